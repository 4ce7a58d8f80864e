"""Attention: how far does each head look, how sharply, does it ask each place alike, and how much is more than an average?

Distance, entropy and normalised mutual information: Park et al., "What Do Self-Supervised Vision Transformers Learn?" (ICLR
2023), section 2, and before it Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021), figure 7.  The share above
frequency zero: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis" (ICLR 2022).

All four are of the attention among tokens that are places of the image: class tokens, registers and padding are left out, as
queries and as keys, and the rows brought to sum 1 again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy import evaluating, units
from ..attending import Attention as Place
from ..attending import attentions, watching
from ..errors import UserError
from ..evidence import evidence
from ..numerics.bootstrap import mean_interval
from ..result import Claim, Result, Row, columns
from .single_pass import described, fit, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is kept of each image and head, in this order.
NUMBERS = ("distance", "entropy", "nmi", "high_frequency")
#: Logits looked at together: 64 MB, some of it several times over.
LIMIT = 2**24


def distance(weights: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """How far a query looks on average.  Shapes: (..., W, H, N, M), (W, N, 2), (W, M, 2) -> (..., W, H, N), in pixels."""
    apart = torch.cdist(queries.nan_to_num(), keys.nan_to_num()).to(weights.dtype)  # a key of no place has no weight
    return (weights * apart[:, None]).sum(-1)


def entropy(weights: Tensor) -> Tensor:
    """Of each query's weights: 0 on one key, log M spread evenly.  Shapes: (..., M) -> (...), in nats."""
    return -torch.special.xlogy(weights, weights).sum(-1)


def mutual_information(weights: Tensor) -> Tensor:
    """Of queries and keys, over the root of both entropies: 0 if all queries look alike, 1 if each looks at its own key.

    Shapes: (..., N, M), N at least 2 -> (...).  All queries are as likely.  If all look at one key: 0, as it tells nothing.
    """
    of_keys = entropy(weights.mean(-2))
    information = (of_keys - entropy(weights).mean(-1)).clamp(min=0)
    scale = (of_keys * math.log(weights.shape[-2])).sqrt()
    return torch.where(scale > 0, information / scale, 0)


def high_frequency(weights: Tensor) -> Tensor:
    """The share of an attention matrix that does not give all queries the same: of its norm, from 0 to 1.

    Shapes: (..., N, M) -> (...).  The rest is frequency zero over queries: the average that attention makes of the stream.
    """
    above = weights - weights.mean(-2, keepdim=True)
    return torch.linalg.matrix_norm(above) / torch.linalg.matrix_norm(weights)


def attention(
    model: nn.Module,
    data: Iterable[Any],
    *,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Attention:
    """Distance, entropy, normalised mutual information and the share above frequency zero of each head, with 95% intervals.

    ``data`` yields batches of images, alone or with labels.  In windows the numbers are means over windows.
    Errors: UserError if the model has no attention, if it is not known where its tokens lie, or if there are no images.
    """
    started = time.perf_counter()
    places: list[Place] = []
    rows: list[Row] = []
    unknown: list[str] = []
    kept: list[list[np.ndarray]] = []  # (B, H, 4) a batch, a list a place
    size: torch.Size | None = None

    def look(i: int, logits: Tensor) -> None:
        kept[i].append(_numbers(logits, places[i]).double().cpu().numpy())

    with evaluating(model), torch.inference_mode():
        for images, _ in split(data):
            images = fit(images, model)
            if size is None:
                size = images.shape[2:]
                places, rows, unknown = _attending(model, images[:2])
                kept = [[] for _ in places]
            if images.shape[2:] != size:
                sizes = " and ".join(f"{h} x {w}" for h, w in (size, images.shape[2:]))
                raise UserError(f"the data hold images of {sizes}, whose tokens lie elsewhere; bring them to one size")
            with watching(model, places, look):
                model(images)
    if size is None:
        raise UserError("no images: the data are empty")
    seen = [np.concatenate(batches) for batches in kept]  # (n, H, 4) each
    table = []
    for row, numbers in zip(rows, seen, strict=True):
        found = mean_interval(numbers, resamples=resamples, seed=seed)
        for head in range(numbers.shape[1]):
            ends = [columns(number, (x[head, k] for x in found)) for k, number in enumerate(NUMBERS)]
            table.append({**row, "head": head, **ends[0], **ends[1], **ends[2], **ends[3]})
    facts = evidence(model, data, images=len(seen[0]), resamples=resamples, seed=seed) | {
        "seconds": round(time.perf_counter() - started, 3),
        "left_out": unknown,
        "evenly": [_evenly(place) for place in places],
    }
    means = mean_interval(np.stack([numbers.mean(1) for numbers in seen], 1), resamples=resamples, seed=seed)
    claims = _claims(rows, seen, resamples, seed)
    return Attention(name or type(model).__name__, table, claims, facts, {"mean": np.stack(means)})


def _attending(model: nn.Module, images: Tensor) -> tuple[list[Place], list[Row], list[str]]:
    """The attentions, each with its row's first columns, and the modules of those that cannot be read."""
    places, unknown = attentions(model, images)
    if not places:
        name = type(model).__name__
        if unknown:
            raise UserError(f"it is not known which places of the image the tokens of {name}'s attention describe")
        raise UserError(f"{name} has no attention between places of the image: analyse its units with fourier or variance")
    found = units(model, images)
    rows = []
    for place in places:
        unit = place.unit(found)
        row = described(unit) if unit else {"unit": -1, "kind": "attention", "stage": 0}
        rows.append(row | {"module": place.module})
    return places, rows, unknown


def _numbers(logits: Tensor, place: Place) -> Tensor:
    """The four numbers of each image and head.  Shapes: (B, W, H, N, M) -> (B, H, 4)."""
    at_once = max(1, LIMIT // logits[0].numel())
    return torch.cat([_of_some(part, place) for part in logits.split(at_once)])


def _of_some(logits: Tensor, place: Place) -> Tensor:
    device = logits.device
    queries, keys = (t.to(device, torch.float32 if device.type == "mps" else None) for t in (place.queries, place.keys))
    asked, given = ~queries.isnan().any(-1), ~keys.isnan().any(-1)  # (W, N), (W, M)
    groups = [torch.arange(len(asked), device=device)] if bool(asked.all()) else list(_alike(asked))
    found = []
    for windows in groups:  # windows with the same queries together
        rows = asked[windows[0]]
        if rows.sum() < 2:
            continue
        some = logits[:, windows][..., rows, :].masked_fill(~given[windows][:, None, None], -torch.inf)
        weights = some.softmax(-1).nan_to_num()  # a query that may look at no place looks nowhere
        numbers = (
            distance(weights, queries[windows][:, rows], keys[windows]).mean(-1),
            entropy(weights).mean(-1),
            mutual_information(weights),
            high_frequency(weights),
        )
        found.append(torch.stack(numbers, -1))
    return torch.cat(found, 1).mean(1)


def _alike(asked: Tensor) -> Iterable[Tensor]:
    """Windows in groups with places at the same tokens.  Shapes: (W, N) -> (W') each."""
    _, group = asked.unique(dim=0, return_inverse=True)
    return (torch.nonzero(group == g).flatten() for g in range(int(group.max()) + 1))


def _evenly(place: Place) -> dict[str, float]:
    """Distance and entropy of an attention that looks at all places of its window alike: what the numbers compare to."""
    even = torch.zeros(1, len(place.queries), 1, place.queries.shape[1], place.keys.shape[1], dtype=torch.float64)
    numbers = _numbers(even, place)[0, 0]
    return dict(zip(("distance", "entropy"), numbers[:2].tolist(), strict=True))


def _claims(rows: Sequence[Row], seen: Sequence[np.ndarray], resamples: int, seed: int) -> list[Claim]:
    """Whether the last attention of a stage reaches further than the first, and tells queries apart less."""
    stages = [[i for i, _ in group] for _, group in groupby(enumerate(rows), key=lambda pair: pair[1]["stage"])]
    several = [stage for stage in stages if len(stage) > 1]
    if not several:
        return []

    def rise(k: int) -> Any:
        steps = [seen[stage[-1]][..., k].mean(1) - seen[stage[0]][..., k].mean(1) for stage in several]
        return mean_interval(np.mean(steps, axis=0), resamples=resamples, seed=seed)

    return [
        Claim.of_sign(
            "positive",
            rise(NUMBERS.index("distance")),
            statement="Attention looks further at the end of a stage than at its start.",
            source="Dosovitskiy et al. (2021), figure 7",
            quantity="distance of a stage's last attention less that of its first, mean over heads and stages (pixels)",
        ),
        Claim.of_sign(
            "negative",
            rise(NUMBERS.index("nmi")),
            statement="Attention collapses, as contrastive training makes it: it depends less on the query where a stage ends.",
            source="Park et al. (2023), section 2",
            quantity="NMI of a stage's last attention less that of its first, mean over heads and stages",
        ),
    ]


@dataclass(frozen=True)
class Attention(Result):
    """A row a head: distance in pixels, entropy in nats, NMI and the share above frequency zero, each with its 95% interval.

    ``unit`` is the unit that the attention belongs to, -1 if to none.  ``evidence["evenly"]``: distance and entropy of each
    attention if it looked at all places alike.  ``arrays["mean"]``: (value, low, high) x attentions x numbers, over heads.
    """

    analysis: ClassVar[str] = "attention"
    panels: ClassVar[tuple[str, ...]] = ("distance", "entropy", "nmi", "high_frequency")

    def by_attention(self) -> list[list[Row]]:
        """The heads of each attention together."""
        return [list(heads) for _, heads in groupby(self.table, key=lambda row: (row["unit"], row["module"]))]

    def _draw(self, ax: Axes, panel: str) -> None:
        """A mark a head over depth with its interval, a line through the means; dotted lines end a stage."""
        from .. import drawing

        places = self.by_attention()
        steps = max(1, len(places) - 1)
        colour = drawing.KIND_COLOUR["attention"]
        for i, heads in enumerate(places):
            if i and heads[0]["stage"] != places[i - 1][0]["stage"]:
                ax.axvline((i - 0.5) / steps, color="0.6", lw=0.8, ls=":")
            value, low, high = (np.array([row[f"{panel}{end}"] for row in heads], float) for end in ("", "_low", "_high"))
            spread = (np.arange(len(heads)) - (len(heads) - 1) / 2) * min(0.012, 0.6 / steps / len(heads))
            ax.errorbar(i / steps + spread, value, np.abs([value - low, high - value]), fmt="o", color=colour, ms=2.5,
                        elinewidth=0.6, alpha=0.7)  # fmt: skip
        depth = np.arange(len(places)) / steps
        ax.plot(depth, [np.mean([row[panel] for row in heads]) for heads in places], color="0.35", lw=0.8, zorder=1)
        evenly = self.evidence.get("evenly", [])
        if panel in ("distance", "entropy") and len(evenly) == len(places):
            ax.plot(depth, [place[panel] for place in evenly], "_", color="0.2", ms=9, label="evenly")
            ax.legend(**drawing.LEGEND)
        ax.set(xlabel="Normalised depth", xlim=(-0.06, 1.06), ylabel=LABEL[panel])
        if panel in ("nmi", "high_frequency"):
            ax.set_ylim(0, 1)


LABEL = {
    "distance": "Attention distance (pixels)",
    "entropy": "Entropy (nats)",
    "nmi": "NMI of queries and keys",
    "high_frequency": "Share above frequency zero",
}
