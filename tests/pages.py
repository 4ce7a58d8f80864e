"""Studies made by hand, and a page as a browser sees it."""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backlight.analyses.calibration.measure import Calibration
from backlight.analyses.catalog import CATALOG
from backlight.analyses.fourier.measure import Fourier
from backlight.analyses.lesion.measure import Lesion
from backlight.analyses.variance.measure import Variance
from backlight.records import encoded
from backlight.results.claim import Claim
from backlight.results.result import Result
from backlight.study.cells import Reason
from backlight.study.folder import ModelUnits, StudyRequest, UnitRow

NASTY = "<img src=x onerror=alert(1)></script>"
MODULE = "blocks.<b>2</b>"
EVIDENCE = {
    "images": 48,
    "settings": {"seed": 0},
    "data": {"data": "noise", "split": "test"},
    "model": {"parameters": 2721226},
}


def word(kinds: str) -> list[dict[str, Any]]:
    """Rows of units from a model's word."""
    names = {"a": "attention", "c": "conv", "m": "mlp"}
    units = [(stage, letter) for stage, letters in enumerate(kinds.split()) for letter in letters]
    return [
        {"unit": i, "kind": names[letter], "stage": stage, "module": MODULE if i == 2 else f"blocks.{i}"}
        for i, (stage, letter) in enumerate(units)
    ]


def ends(column: str, value: float) -> dict[str, float]:
    return {column: value, f"{column}_low": value - 0.1, f"{column}_high": value + 0.1}


def results_of(model: str, kinds: str) -> list[Result]:
    units = word(kinds)
    stem = {"unit": -1, "kind": "stem", "stage": 0, "module": "stem"}
    claim = Claim.of_sign(
        "negative", (-2, -3, -1), id="fourier/attention-relative", statement="Attention is a low-pass filter.",
        source="Figure 8", quantity=f"mean of {len(units)} units (nepers)", count=50,
    )  # fmt: skip
    spectrum = [
        unit | {"height": 8, "width": 8, "cycles": k, "frequency": k / 4} | ends("delta", -0.1 * k * (i + 1))
        | (ends("transfer", 0.05 * k) if i else dict.fromkeys(["transfer", "transfer_low", "transfer_high"], np.nan))
        for i, unit in enumerate([stem, *units]) for k in range(5)
    ]  # fmt: skip
    spread = [unit | ends("variance", 10.0 ** (i / 2)) for i, unit in enumerate([stem, *units])]
    whole = {"unit": -1, "kind": "whole", "stage": 0, "module": ""}
    lesions = [
        unit
        | {"lesion": "unit" if i else "whole", "accuracy": 0.5, "nll": 2.0}
        | ends("accuracy_change", -0.01 * i)
        | ends("nll_change", 0.1 * i)
        for i, unit in enumerate([whole, *units])
    ]
    answers = np.arange(48) < 24  # unit i turns i of them wrong
    flipped = {
        "per_image/correct": np.array([answers & (np.arange(48) >= max(0, i - 1)) for i in range(len(lesions))], np.uint8)
    }
    metrics = [
        {"metric": "accuracy", "value": 0.5, "low": 0.4, "high": 0.6},
        {"metric": "ece", "value": 0.1, "low": 0.0, "high": 0.2},
    ]
    bins = np.linspace(0.05, 0.95, 10)
    diagram = np.stack([np.stack([bins, bins**2 + shift, np.full(10, 0.1)]) for shift in (0, -0.05, 0.05)])
    return [
        Fourier(model, spectrum, [claim], EVIDENCE),
        Variance(model, spread, [], EVIDENCE),
        Lesion(model, lesions, [], EVIDENCE | {"whole": {"accuracy": [0.5, 0.4, 0.6], "nll": [2.0, 1.9, 2.1]}}, flipped),
        Calibration(model, metrics, [], EVIDENCE, {"reliability": diagram}),
    ]


def save(folder: Path, models: Iterable[tuple[str, str, str]]) -> None:
    """Results of models (folder, name, word); figures left out, for they take seconds and the page shows none."""
    save_results(folder, [(slug, result) for slug, name, kinds in models for result in results_of(name, kinds)])


def save_results(folder: Path, results: Iterable[tuple[str, Result]]) -> None:
    """Save results under the folder of their model."""
    from matplotlib.figure import Figure

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Result, "figure", lambda self: Figure(figsize=(1, 1)))
        for slug, result in results:
            result.save(folder / slug / result.analysis)


def make_study(folder: Path) -> Path:
    """A study of two models, one with a nasty name."""
    save(folder, (("resnet", "resnet18", "cc cc"), ("nasty", NASTY, "amamam")))
    request = StudyRequest({name: [*CATALOG] for name in ("resnet18", NASTY)}, {"data": {"name": "noise"}})
    (folder / "study.json").write_bytes(encoded(request))
    rows = [UnitRow(**unit, shape=[65, 192], identity=True, removable=True) for unit in word("amamam")]
    (folder / "nasty" / "units.json").write_bytes(encoded(ModelUnits(NASTY, "amamam", 2721226, rows)))
    failed = Reason(NASTY, "hessian", "out of memory <b>today</b>", True, {})
    (folder / "nasty" / "hessian.reason.json").write_bytes(encoded(failed))
    return folder


def spectra(caution: str = "") -> Iterator[tuple[str, Fourier]]:
    """For the page's claims: a CNN and a ViT with numbers per image, and with claims decided by a narrow margin."""
    noise = np.random.default_rng(0).normal(size=(2, 50))
    facts = EVIDENCE | {"data": EVIDENCE["data"] | {"ids_sha256": "abc"}, "caution": caution}  # type: ignore[operator]
    for i, (slug, name, kinds) in enumerate((("resnet", "resnet18", "cc cc"), ("nasty", NASTY, "amamam"))):
        result = results_of(name, kinds)[0]
        weak = replace(result.claims[0], value=-1.0, low=-1.9, high=-0.05)
        arrays = {"per_image/delta": np.stack([np.zeros(50), 2 - 3 * i + noise[i]])}
        yield slug, Fourier(name, result.table, [weak], facts, arrays)


def with_spectra(study: Path, caution: str = "") -> Path:
    """The study with claims that compare."""
    save_results(study, spectra(caution))
    return study


class Reader(HTMLParser):
    """A page as a browser sees it: its elements, its text outside scripts and styles, its scripts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.styles, self.within = "", "", ""
        self.scripts: list[tuple[str | None, str]] = []
        self.packed: list[tuple[dict[str, str | None], str]] = []
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.within = tag

    def handle_endtag(self, tag: str) -> None:
        self.within = ""

    def handle_data(self, data: str) -> None:
        if self.within == "script":
            attributes = self.elements[-1][1]
            self.scripts.append((attributes.get("type"), data))
            if "data-chunk" in attributes:
                self.packed.append((attributes, data))
        elif self.within == "style":
            self.styles += data
        else:
            self.text += data

    @property
    def chunks(self) -> dict[str, str]:
        """What is compressed, by each of its names."""
        named = [(a["data-chunk"] or "", text) for a, text in self.packed]
        return {name: text for names, text in named for name in names.split()}

    def chunk(self, name: str) -> Any:
        """The JSON of a compressed part."""
        return json.loads(zlib.decompress(base64.b64decode(self.chunks[name])))
