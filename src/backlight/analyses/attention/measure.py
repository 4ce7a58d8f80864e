"""Attention: how far each head attends, how even its weights are, and how much they depend on the query.

Distance, entropy and normalised mutual information: Park et al., "What Do Self-Supervised Vision Transformers Learn?" (ICLR
2023), section 2, and before it Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021), figure 7.  The share above
frequency zero: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis" (ICLR 2022).

All four describe the attention between tokens that have a position in the image.  Class tokens, registers and padding are
left out, as queries and as keys, and the remaining weights of each query are normalised to sum 1.
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

from backlight.analyses.single_pass import described
from backlight.errors import NotApplicable, UserError
from backlight.inputs import image_batches, to_model
from backlight.numerics.bootstrap import Interval, mean_interval
from backlight.results.claim import Claim
from backlight.results.provenance import provenance
from backlight.results.result import Result, Row, columns
from backlight.tracing.attention_maps import AttentionCall, attention_calls, reading_attention
from backlight.tracing.find import units
from backlight.tracing.trace import evaluating, model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is measured of each image and head, in this order.
METRICS = ("distance", "entropy", "nmi", "high_frequency")
#: Logits computed at once: 64 MB in float32, and a few copies.
LOGITS_AT_ONCE = 2**24


def distance(weights: Tensor, queries: Tensor, keys: Tensor) -> Tensor:
    """Mean distance from a query to the keys, weighted by attention.

    Shapes: weights (..., W, H, N, M), queries (W, N, 2), keys (W, M, 2) -> (..., W, H, N), in pixels.
    """
    apart = torch.cdist(queries.nan_to_num(), keys.nan_to_num()).to(weights.dtype)  # a key without a position has weight 0
    return (weights * apart[:, None]).sum(-1)


def entropy(weights: Tensor) -> Tensor:
    """Entropy of each query's weights: 0 if one key has all the weight, log M if all keys have the same.

    Shapes: (..., M) -> (...), in nats.
    """
    return -torch.special.xlogy(weights, weights).sum(-1)


def mutual_information(weights: Tensor) -> Tensor:
    """Mutual information of queries and keys, divided by the square root of the product of their entropies.

    0 if all queries have the same weights, 1 if each query has a key of its own.  All queries have the same probability.
    Where one key has all the weight of all queries, 0/0 is 0.  Shapes: (..., N, M), N at least 2 -> (...).
    """
    of_keys = entropy(weights.mean(-2))
    information = (of_keys - entropy(weights).mean(-1)).clamp(min=0)
    scale = (of_keys * math.log(weights.shape[-2])).sqrt()
    return torch.where(scale > 0, information / scale, 0)


def high_frequency(weights: Tensor) -> Tensor:
    """The share of an attention matrix above frequency zero over queries: a share of its Frobenius norm, from 0 to 1.

    Frequency zero is the mean over queries; it replaces the stream by the same average at all positions.
    Shapes: (..., N, M) -> (...).
    """
    above = weights - weights.mean(-2, keepdim=True)
    return torch.linalg.matrix_norm(above) / torch.linalg.matrix_norm(weights)


def measure(model: nn.Module, data: Iterable[Any], *, resamples: int, seed: int, name: str | None) -> Attention:
    """The result of `backlight.attention`."""
    started = time.perf_counter()
    calls: list[AttentionCall] = []
    rows: list[Row] = []
    unknown: list[str] = []
    batches: list[list[np.ndarray]] = []  # of each call: (B, H, 4) per batch
    size: torch.Size | None = None
    count = 0  # of units

    def read(i: int, logits: Tensor) -> None:
        batches[i].append(_metrics(logits, calls[i]).double().cpu().numpy())

    with evaluating(model), torch.inference_mode():
        for images, _ in image_batches(data):
            images = to_model(images, model)
            if size is None:
                size = images.shape[2:]
                calls, rows, unknown, count = _calls(model, images[:2])
                batches = [[] for _ in calls]
            if images.shape[2:] != size:
                sizes = " and ".join(f"{h} x {w}" for h, w in (size, images.shape[2:]))
                raise UserError(
                    f"the data have images of {sizes}, whose tokens have different positions; resize them to one size"
                )
            with reading_attention(model, calls, read):
                model(images)
    if size is None:
        raise UserError("no images: the data are empty")
    metrics = [np.concatenate(parts) for parts in batches]  # of each call: (n, H, 4)
    facts = provenance(model, data, images=len(metrics[0]), resamples=resamples, seed=seed) | {
        "seconds": round(time.perf_counter() - started, 3),
        "left_out": unknown,
        "units": count,
        "uniform": [_uniform(call) for call in calls],
    }
    over_heads = np.stack([values.mean(1) for values in metrics], 1)  # (n, calls, 4)
    means = mean_interval(over_heads, resamples=resamples, seed=seed)
    return Attention(
        model_name(model, name),
        _table(rows, metrics, resamples, seed),
        _claims(rows, metrics, resamples, seed),
        facts,
        {"mean": np.stack(means), "per_image/mean": over_heads.T.astype(np.float32)},
    )


def _calls(model: nn.Module, images: Tensor) -> tuple[list[AttentionCall], list[Row], list[str], int]:
    """The attention calls, the first columns of the rows of each, the modules of those that cannot be read; how many units."""
    calls, unknown = attention_calls(model, images)
    if not calls:
        name = model_name(model)
        wrong = f"{name} has no attention between positions of the image"
        if unknown:
            wrong = f"the positions of the tokens in the attention of {name} are not known"
        raise NotApplicable(f"{wrong}; analyse its units with fourier or variance")
    all_units = units(model, images)
    rows = []
    for call in calls:
        unit = call.unit(all_units)
        row = described(unit) if unit else {"unit": -1, "kind": "attention", "stage": 0}
        rows.append(row | {"module": call.module})
    return calls, rows, unknown, len(all_units)


def _metrics(logits: Tensor, call: AttentionCall) -> Tensor:
    """The four metrics of each image and head.  Shapes: (B, W, H, N, M) -> (B, H, 4)."""
    images = max(1, LOGITS_AT_ONCE // logits[0].numel())
    return torch.cat([_metrics_at_once(part, call) for part in logits.split(images)])


def _metrics_at_once(logits: Tensor, call: AttentionCall) -> Tensor:
    device = logits.device
    queries, keys = (t.to(device, torch.float32 if device.type == "mps" else None) for t in (call.queries, call.keys))
    is_query, is_key = ~queries.isnan().any(-1), ~keys.isnan().any(-1)  # with a position; (W, N), (W, M)
    groups = [torch.arange(len(is_query), device=device)] if bool(is_query.all()) else list(_equal_rows(is_query))
    metrics = []
    for windows in groups:  # at once: windows in which the same tokens are queries
        rows = is_query[windows[0]]
        if rows.sum() < 2:
            continue
        selected = logits[:, windows][..., rows, :].masked_fill(~is_key[windows][:, None, None], -torch.inf)
        weights = selected.softmax(-1).nan_to_num()  # a query that may attend to no position has weights 0
        several = (
            distance(weights, queries[windows][:, rows], keys[windows]).mean(-1),
            entropy(weights).mean(-1),
            mutual_information(weights),
            high_frequency(weights),
        )
        metrics.append(torch.stack(several, -1))
    return torch.cat(metrics, 1).mean(1)


def _equal_rows(mask: Tensor) -> Iterable[Tensor]:
    """The indices of rows that are equal, in groups.  Shapes: (W, N) -> (W') each."""
    _, group = mask.unique(dim=0, return_inverse=True)
    return (torch.nonzero(group == g).flatten() for g in range(int(group.max()) + 1))


def _uniform(call: AttentionCall) -> dict[str, float]:
    """Distance and entropy of uniform attention, with the same weight for all keys of a window: a reference for both."""
    logits = torch.zeros(1, len(call.queries), 1, call.queries.shape[1], call.keys.shape[1], dtype=torch.float64)
    metrics = _metrics(logits, call)[0, 0]
    return dict(zip(("distance", "entropy"), metrics[:2].tolist(), strict=True))


def _table(rows: Sequence[Row], metrics: Sequence[np.ndarray], resamples: int, seed: int) -> list[Row]:
    """One row per head.  Shapes: metrics (n, H, 4) per call."""
    table: list[Row] = []
    for row, values in zip(rows, metrics, strict=True):
        interval = mean_interval(values, resamples=resamples, seed=seed)
        for head in range(values.shape[1]):
            table.append(row | {"head": head})
            for k, metric in enumerate(METRICS):
                table[-1] |= columns(metric, (ends[head, k] for ends in interval))
    return table


def _claims(rows: Sequence[Row], metrics: Sequence[np.ndarray], resamples: int, seed: int) -> list[Claim]:
    """Whether, from the first to the last attention of a stage, the distance rises and the NMI falls."""
    stages = [[i for i, _ in group] for _, group in groupby(enumerate(rows), key=lambda pair: pair[1]["stage"])]
    several = [stage for stage in stages if len(stage) > 1]
    if not several:
        return []

    def rise(metric: str) -> Interval:
        k = METRICS.index(metric)
        steps = [metrics[stage[-1]][..., k].mean(1) - metrics[stage[0]][..., k].mean(1) for stage in several]
        return mean_interval(np.mean(steps, axis=0), resamples=resamples, seed=seed)

    images = len(metrics[0])
    return [
        Claim.of_sign(
            "positive",
            rise("distance"),
            id="attention/distance-rises",
            count=images,
            statement="The attention distance is larger at the end of a stage than at its start.",
            source="Dosovitskiy et al. (2021), figure 7",
            quantity="distance of a stage's last attention minus that of its first, mean over heads and stages (pixels)",
        ),
        Claim.of_sign(
            "negative",
            rise("nmi"),
            id="attention/collapse",
            count=images,
            statement="Attention collapses, as after contrastive training: at the end of a stage it depends less on the query.",
            source="Park et al. (2023), section 2",
            quantity="NMI of a stage's last attention minus that of its first, mean over heads and stages",
        ),
    ]


@dataclass(frozen=True, repr=False)
class Attention(Result):
    """One row per head: distance (pixels), entropy (nats), NMI and the share above frequency zero, each with its 95% interval.

    ``unit`` is the unit that contains the attention, -1 if no unit does.  ``provenance["uniform"]``: distance and entropy of
    each attention with uniform weights.  ``arrays["mean"]``: (value, low, high) x attentions x metrics, mean over heads;
    ``arrays["per_image/mean"]``: the same of each image, metrics x attentions x images.
    """

    analysis: ClassVar[str] = "attention"
    panels: ClassVar[tuple[str, ...]] = METRICS

    def by_attention(self) -> list[list[Row]]:
        """The rows of each attention's heads."""
        return [list(heads) for _, heads in groupby(self.table, key=lambda row: (row["unit"], row["module"]))]

    def _depths(self) -> np.ndarray:
        """The depth of each attention in the model, 0 at the first unit and 1 at the last; without units, among attentions."""
        attentions = self.by_attention()
        units, count = np.array([heads[0]["unit"] for heads in attentions]), self.provenance.get("units", 0)
        known = count > 1 and (units >= 0).all()
        return units / (count - 1) if known else np.arange(len(attentions)) / max(1, len(attentions) - 1)

    def _draw(self, ax: Axes, panel: str) -> None:
        """One mark per head over depth, with its interval; a line through the means; dotted lines between stages."""
        from backlight.results import figures as drawing

        attentions = self.by_attention()
        depth = self._depths()
        steps = max(1, self.provenance.get("units", len(attentions)) - 1)
        colour = drawing.KIND_COLOUR["attention"]
        for i, heads in enumerate(attentions):
            if i and heads[0]["stage"] != attentions[i - 1][0]["stage"]:
                ax.axvline((depth[i - 1] + depth[i]) / 2, color="0.6", lw=0.8, ls=":")
            value, low, high = (np.array([row[f"{panel}{end}"] for row in heads], float) for end in ("", "_low", "_high"))
            spread = (np.arange(len(heads)) - (len(heads) - 1) / 2) * min(0.012, 0.6 / steps / len(heads))
            ax.errorbar(depth[i] + spread, value, np.abs([value - low, high - value]), fmt="o", color=colour, ms=2.5,
                        elinewidth=0.6, alpha=0.7)  # fmt: skip
        ax.plot(depth, [np.mean([row[panel] for row in heads]) for heads in attentions], color="0.35", lw=0.8, zorder=1)
        uniform = self.provenance.get("uniform", [])
        if panel in ("distance", "entropy") and len(uniform) == len(attentions):
            ax.plot(depth, [reference[panel] for reference in uniform], "_", color="0.2", ms=9, label="uniform")
            ax.legend(**drawing.LEGEND)
        ax.set_xlim(-0.06, 1.06)
        drawing.label(ax, self.chart(panel))
        if panel in ("nmi", "high_frequency"):
            ax.set_ylim(0, 1)
