"""Compare two models: before and after fine-tuning, two snapshots of a training, two architectures, several seeds of each."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from backlight.analyses.catalog import CATALOG
from backlight.claims.comparisons import difference_of_means
from backlight.comparing.differences import Difference, NotComparable, cautions, corrected, differences
from backlight.errors import UserError, did_you_mean
from backlight.results.result import DOCUMENT, Result
from backlight.study.cells import load
from backlight.study.folder import Model, read_study, units_in

#: What a model, or several seeds of one, can be given as: a result, a folder of results, a model of a study.
Measured = Result | str | Path | Model


@dataclass(frozen=True, repr=False)
class Comparison:
    """All differences between two models, the second less the first, with Holm's correction over all of them."""

    first: str
    second: str
    differences: list[Difference]
    refused: Mapping[str, str] = field(default_factory=dict)  # analysis -> why its results are not comparable
    cautions: tuple[str, ...] = ()  # why the differences say little

    def rows(self) -> list[dict[str, Any]]:
        """A tidy table: a row a difference."""
        return [{"models": f"{self.first} -> {self.second}", **each.row()} for each in self.differences]

    def of_model(self) -> list[Difference]:
        """The differences of the entire models; the others are of units, of parts of the depth, or of parts of the images."""
        return [each for each in self.differences if not each.number.place]

    def decided(self) -> list[Difference]:
        """The differences that are decided after Holm's correction, those with the smallest p-value first."""
        return sorted((each for each in self.differences if each.decided), key=lambda each: each.adjusted)

    def __getitem__(self, name: str) -> Difference:
        """The difference of this id, ``calibration/ece``, or of an id without its analysis, ``ece``.

        Errors: UserError for a name that none or several have; NotComparable if its analysis did not measure both alike.
        """
        fitting = [each for each in self.differences if name in (each.id, each.id.partition("/")[2])]
        if len(fitting) == 1:
            return fitting[0]
        if fitting:
            raise UserError(f"{name!r} is the name of several: {', '.join(each.id for each in fitting)}; give one of them")
        if (analysis := name.partition("/")[0]) in self.refused:
            raise NotComparable(self.refused[analysis])
        known = [text for each in self.differences for text in (each.id, each.id.partition("/")[2])]
        raise UserError(f"no number is called {name!r}{did_you_mean(name, known)}; there are {', '.join(self._names())}")

    def _names(self) -> list[str]:
        """The ids of the entire models' numbers, then one of each that has several places."""
        placed = {(each.analysis, each.number.quantity): each.id for each in self.differences if each.number.place}
        return [*(each.id for each in self.of_model()), *placed.values()]

    def __repr__(self) -> str:
        """What was compared, and how much differs."""
        return f"<{self.second} against {self.first}: {len(self.decided())} of {len(self.differences)} numbers differ>"

    def _repr_html_(self) -> str:
        """For a notebook: the numbers of the entire models, and of the others those that differ."""
        shown = [each for each in self.differences if not each.number.place or each.decided]
        head = "".join(f"<th>{escape(name)}</th>" for name in ("", self.first, self.second, "difference", "95% interval", ""))
        rows = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in _cells(each))}</tr>" for each in shown)
        return f"<p>{escape(repr(self)[1:-1])}</p><table><tr>{head}</tr>{rows}</table>"


def compare(
    first: Measured | Sequence[Measured], second: Measured | Sequence[Measured], *, same_images: bool = False
) -> Comparison:
    """The differences of ``second`` less ``first``, each with a 95% interval.

    Each is a `Result`, a folder of results that `Result.save`, an analysis or a study wrote (of one model), or a `Model` of
    `read_study`; or a list of at least two of these, the same model trained with several seeds.  Two models are compared over
    the same images, pair by pair; lists over their models.  ``same_images``: the results do not record their images, and
    they were the same, in the same order.
    Errors: UserError if there is no result of an analysis of both, or NotComparable if none of them was measured alike.
    """
    sides = [_models(first), _models(second)]
    if any(len(side) > 1 for side in sides):
        return compare_seeds(*sides, same_images=same_images)
    return compare_models(*(side[0] for side in sides), same_images=same_images)


def compare_models(first: Model, second: Model, *, same_images: bool = False) -> Comparison:
    """The differences between two models, over their images: of each analysis of both, if it measured them alike.

    Errors: UserError if there is none; NotComparable if none measured them alike.
    """
    names = [name for name in first.results if name in second.results]
    order = {name: i for i, name in enumerate(CATALOG)}
    pairs = {n: (first.results[n], second.results[n]) for n in sorted(names, key=lambda n: order.get(n, len(order)))}
    if not pairs:
        raise UserError(f"{first.name} and {second.name} have no analysis in common: run the same analyses of both")
    every, some, refused = [], [], {}
    for name, pair in pairs.items():
        try:
            every += differences(*pair, same_images=same_images)
            some += cautions(*pair)
        except NotComparable as error:
            refused[name] = str(error)
    if len(refused) == len(pairs):
        raise NotComparable("; ".join(refused.values()))
    return Comparison(first.name, second.name, corrected(every), refused, tuple(dict.fromkeys(some)))


def _cells(each: Difference) -> list[str]:
    place = f", {each.number.place}" if each.number.place else ""
    unit = f" ({each.unit})" if each.unit else ""
    numbers = [f"{each.first:.4g}", f"{each.second:.4g}", f"{each.value:+.3g}", f"{each.low:+.3g} to {each.high:+.3g}"]
    return [f"{each.analysis}: {each.title}{place}{unit}", *numbers, each.verdict]


# --- several models on each side


def compare_seeds(first: Sequence[Model], second: Sequence[Model], *, same_images: bool = False) -> Comparison:
    """The differences of the means over several models of each side, such as seeds, with Welch's interval over the models.

    Only numbers that all have in common: units if all words agree, otherwise parts of the depth.
    Errors: UserError with fewer than two models on a side.
    """
    if min(len(first), len(second)) < 2:
        raise UserError("an interval over seeds needs at least two models on each side, and three to decide anything")
    pairs = [compare_models(one, other, same_images=same_images) for one, other in itertools.product(first, second)]
    by_id: dict[str, list[Difference]] = {}
    for each in itertools.chain.from_iterable(pair.differences for pair in pairs):
        by_id.setdefault(each.id, []).append(each)
    means = [_over_models(several, len(first), len(second)) for several in by_id.values() if len(several) == len(pairs)]
    some = tuple(dict.fromkeys(caution for pair in pairs for caution in pair.cautions))
    refused = {name: reason for pair in pairs for name, reason in pair.refused.items()}
    one, other = (" + ".join(model.name for model in side) for side in (first, second))
    return Comparison(one, other, corrected(means), refused, some)


def _over_models(pairs: Sequence[Difference], first: int, second: int) -> Difference:
    """The difference of the means over the models of each side.  ``pairs``: of each first with each second model, in order."""
    one = [each.first for each in pairs[::second]]
    other = [each.second for each in pairs[:second]]
    value, low, high = difference_of_means(other, one)
    return replace(
        pairs[0], first=float(np.mean(one)), second=float(np.mean(other)), value=value, low=low, high=high,
        count=min(first, second), over="models", paired=False,
    )  # fmt: skip


# --- what is compared


def _models(side: Measured | Sequence[Measured]) -> list[Model]:
    """The models of a side."""
    if isinstance(side, (Model, Result, str, Path)):
        return [model_of(side)]
    return [model_of(each) for each in side]


def model_of(measured: Measured) -> Model:
    """A model and its results.  Errors: UserError for a folder with results of no model, or of several."""
    if isinstance(measured, Model):
        return measured
    if isinstance(measured, Result):
        return model_with([measured])
    models = models_in(Path(measured))
    if len(models) > 1:
        names = ", ".join(model.name for model in models)
        raise UserError(f"{measured} holds results of {len(models)} models ({names}): give the folder of one of them")
    return models[0]


def model_with(results: Sequence[Result]) -> Model:
    """The model of these results."""
    by_analysis = {result.analysis: result for result in results}
    return Model(results[0].model, units_in(by_analysis), None, by_analysis)


def models_in(folder: Path) -> list[Model]:
    """The models with results in a folder: of a study, of a model, or of one result.  Errors: UserError if there are none."""
    if (folder / DOCUMENT).exists():
        return [model_of(load(folder))]
    return [model for model in read_study(folder).models if model.results]
