"""Attention: how far each head attends, how even its weights are, and how much they depend on the query.

Distance, entropy and normalised mutual information: Park et al., "What Do Self-Supervised Vision Transformers Learn?" (ICLR
2023), section 2, and before it Dosovitskiy et al., "An Image is Worth 16x16 Words" (ICLR 2021), figure 7.  The share above
frequency zero: Wang et al., "Anti-Oversmoothing in Deep Vision Transformers via the Fourier Domain Analysis" (ICLR 2022).

All four describe the attention between tokens that have a position in the image.  Class tokens, registers and padding are
left out, as queries and as keys, and the remaining weights of each query are normalised to sum 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from backlight.analyses.entry import NoSettings
from backlight.analyses.single_pass import Attentions, Reads, described
from backlight.numerics.bootstrap import Interval, mean_interval
from backlight.results.claim import Claim
from backlight.results.result import Result, Row, columns
from backlight.tracing.attention_maps import AttentionCall

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: What is measured of each image and head, in this order.
METRICS = ("distance", "entropy", "nmi", "high_frequency")
#: The log of weight 0: its exponential is 0, and so is the product of the two.
NEVER = -1e4


def summary(log_weights: Tensor, apart: Tensor) -> Tensor:
    """The four metrics of attention matrices, mean over queries: distance, entropy, mutual information, high frequencies.

    - distance: from a query to the keys, weighted by attention.
    - entropy of a query's weights: 0 if one key has all the weight, log M if all keys have the same (nats).
    - mutual information of queries and keys over the square root of the product of their entropies: 0 if all queries have the
      same weights, 1 if each query has a key of its own.  All queries have the same probability.  Where one key has all the
      weight of all queries, 0/0 is 0.
    - the share above frequency zero over queries: a share of the matrix's Frobenius norm, from 0 to 1.  Frequency zero is the
      mean over queries, which replaces the stream by the same average at all positions.

    Shapes: log weights (B, W, H, N, M), finite and N at least 2; distances (W, N, M) -> (B, W, H, 4).
    """
    weights, n = log_weights.exp(), log_weights.shape[-2]
    far = torch.einsum("bwhx,wx->bwh", weights.flatten(-2), apart.flatten(1)) / n
    of_queries = -torch.linalg.vecdot(weights.flatten(-2), log_weights.flatten(-2)) / n
    of_keys = weights.mean(-2)
    of_mean = -torch.special.xlogy(of_keys, of_keys).sum(-1).clamp(max=0)
    scale = (of_mean * math.log(n)).sqrt()
    nmi = torch.where(scale > 0, (of_mean - of_queries).clamp(min=0) / scale, 0)
    below = torch.linalg.vector_norm(of_keys, dim=-1) * math.sqrt(n)
    above = torch.linalg.matrix_norm(weights.sub_(of_keys[..., None, :]))
    return torch.stack([far, of_queries, nmi, above / torch.hypot(above, below)], -1)


@dataclass(frozen=True)
class Group:
    """Windows of an attention call in which the same tokens have a position.  The distances: (W, N, M)."""

    windows: slice | Tensor
    queries: slice | Tensor
    keys: slice | Tensor
    apart: Tensor


def groups(call: AttentionCall, like: Tensor) -> list[Group]:
    """The windows of a call, those with less than two queries left out; on the device and in the type of a tensor."""
    known = torch.cat([~call.queries.isnan().any(-1), ~call.keys.isnan().any(-1)], 1)  # (W, N + M)
    patterns, which = known.unique(dim=0, return_inverse=True)
    result = []
    for g, pattern in enumerate(patterns):
        queries, keys = (part.nonzero().flatten() for part in pattern.split([call.queries.shape[1], call.keys.shape[1]]))
        windows = (which == g).nonzero().flatten()
        if len(queries) > 1 and len(keys):
            apart = torch.cdist(call.queries[windows][:, queries], call.keys[windows][:, keys]).to(like)
            result.append(Group(_run(windows, like), _run(queries, like), _run(keys, like), apart))
    return result


def _run(indices: Tensor, like: Tensor) -> slice | Tensor:
    """Indices as a slice, which copies nothing, if they follow one another; else on the device of a tensor."""
    first, last = int(indices[0]), int(indices[-1])
    return slice(first, last + 1) if last - first + 1 == len(indices) else indices.to(like.device)


def metrics(logits: Tensor, of_call: Sequence[Group]) -> Tensor:
    """The four metrics of each image and head.  Shapes: (B, W, H, N, M) -> (B, H, 4)."""
    several = []
    for group in of_call:
        log_weights = logits[:, group.windows][..., group.queries, :][..., group.keys].log_softmax(-1)
        values = summary(log_weights, group.apart)
        if values.isnan().any():  # masked keys; a query that may attend to none has weights 0
            values = summary(log_weights.nan_to_num_(NEVER, neginf=NEVER), group.apart)
        several.append(values)
    return torch.cat(several, 1).mean(1)


class Heads:
    """Takes four numbers of each image and head from each attention matrix."""

    analysis: ClassVar[str] = "attention"
    reads: ClassVar[Reads] = "attention"

    def __init__(self, attentions: Attentions, settings: NoSettings) -> None:
        self.attentions = attentions
        self.groups: dict[int, list[Group]] = {}
        self.batch: list[list[Tensor]] = [[] for _ in attentions.calls]  # of each call: (some images, H, 4) each
        self.batches: list[list[np.ndarray]] = [[] for _ in attentions.calls]  # of each call: (B, H, 4) each

    def read(self, call: int, logits: Tensor) -> None:
        """Compute the metrics of some images.  Shapes: logits (B, W, H, N, M)."""
        if call not in self.groups:
            self.groups[call] = groups(self.attentions.calls[call], logits)
        self.batch[call].append(metrics(logits, self.groups[call]))

    def finish(self, logits: Tensor, labels: Tensor | None) -> None:
        """Store the metrics of a batch."""
        for batches, parts in zip(self.batches, self.batch, strict=True):  # after the pass, as a copy from the device waits
            batches.append(torch.cat(parts).double().cpu().numpy())
            parts.clear()

    def result(self, model: str, provenance: dict[str, Any], resamples: int, seed: int) -> Attention:
        """A row for each head, with intervals."""
        values = [np.concatenate(parts) for parts in self.batches]  # of each call: (n, H, 4)
        rows = [self._described(call) for call in self.attentions.calls]
        facts = provenance | {
            "units": len(self.attentions.units),
            "uniform": [_uniform(call) for call in self.attentions.calls],
        }
        over_heads = np.stack([each.mean(1) for each in values], 1)  # (n, calls, 4)
        means = mean_interval(over_heads, resamples=resamples, seed=seed)
        return Attention(
            model,
            _table(rows, values, resamples, seed),
            _claims(rows, values, resamples, seed),
            facts,
            {"mean": np.stack(means), "per_image/mean": over_heads.T.astype(np.float32)},
        )

    def _described(self, call: AttentionCall) -> Row:
        """The first columns of the rows of a call."""
        unit = call.unit(self.attentions.units)
        row = described(unit) if unit else {"unit": -1, "kind": "attention", "stage": 0}
        return row | {"module": call.module}


def _uniform(call: AttentionCall) -> dict[str, float]:
    """Distance and entropy of uniform attention, with the same weight for all keys of a window: a reference for both."""
    logits = torch.zeros(1, len(call.queries), 1, call.queries.shape[1], call.keys.shape[1], dtype=torch.float64)
    values = metrics(logits, groups(call, logits))[0, 0]
    return dict(zip(("distance", "entropy"), values[:2].tolist(), strict=True))


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
