"""The effective receptive field of the stream after each unit.

Luo et al., "Understanding the Effective Receptive Field in Deep Convolutional Neural Networks" (2016), as computed by Ding et
al., "Scaling Up Your Kernels to 31x31" (RepLKNet, CVPR 2022), in their script ``erf/visualize_erf.py``:

    S(pixel) = mean over images of the sum over colours of relu(d sum_c relu(y_c(centre)) / d x(pixel))

with x the images, y the feature map after a unit and centre its position (h // 2, w // 2).  The size of the field is r(t), the
side of the smallest square that holds a share t of S, around the point of the image under the centre.  That point is read off
the model (`points_under_centre`): a patch embedding has it in the middle of a cell of H/h x W/w pixels, a padded 3 x 3
convolution of stride 2 at its first pixel.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from backlight.analyses.erf.gradients import frozen, gradients, points_under_centre
from backlight.analyses.erf.settings import ErfSettings
from backlight.analyses.erf.squares import Squares, script_squares
from backlight.analyses.single_pass import Streams, find_streams, unreadable
from backlight.errors import UserError
from backlight.inputs import image_batches, to_model
from backlight.numerics.bootstrap import Array, Interval, statistic_interval
from backlight.results.claim import Claim
from backlight.results.provenance import provenance
from backlight.results.result import Result, Row, columns
from backlight.tracing.tap import Tap
from backlight.tracing.trace import evaluating, model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: The longer side of the stored fields at most; those of larger images are averaged over blocks of pixels.
STORED = 128
#: Orders of magnitude in the figure of the fields.
DECADES = 4
#: The field of a deep convolutional network is a Gaussian: its width grows with depth, and its support faster.
LUO = "Luo et al. 2016, section 2"


class Field:
    """What is kept of the images at one tap: the sum of S, and each image's part of it within each square."""

    def __init__(self, tap: Tap, squares: Squares) -> None:
        self.size, self.squares = tap.layout.size, squares  # type: ignore[union-attr]
        self.batches: list[Array] = []
        self.sum = torch.zeros(squares.image, dtype=torch.float64)
        self.images, self.not_finite = 0, 0

    def add(self, gradient: Tensor) -> None:
        """Add a batch of images, without those whose gradient is not finite.  Shapes: (B, C, H, W)."""
        wide = torch.promote_types(gradient.dtype, torch.float32)
        fields = gradient.relu().sum(1, dtype=wide).cpu().double()
        finite = fields.flatten(1).isfinite().all(1)
        fields = fields.where(finite[:, None, None], 0)
        self.images += int(finite.sum())
        self.not_finite += int((~finite).sum())
        self.sum += fields.sum(0)
        self.batches.append(self.squares.held(fields))

    @cached_property
    def held(self) -> Array:
        """The part of each image within each square.  Shapes: (n, S)."""
        return np.concatenate(self.batches)

    def side(self, weights: Array, shares: Array) -> Array:
        """The sides of the squares that hold these shares, each image with a weight.  Shapes: (n,), (T,) -> (T,)."""
        return self.squares.side(weights @ self.held, shares)


def measure(
    model: nn.Module,
    data: Iterable[Any],
    settings: ErfSettings,
    *,
    at: Sequence[str] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Erf:
    """The receptive fields after each unit of a model, or of the modules ``at``.  Errors: as `backlight.erf`."""
    started = time.perf_counter()
    with torch.inference_mode(False), torch.enable_grad(), evaluating(model), frozen(model):
        streams, by_tap, images = _read(model, data, at)
    fields = [(unit, by_tap[tap]) for unit, _, tap in streams.rows()]
    interval = partial(statistic_interval, images=images, resamples=resamples, seed=seed)
    table = [row for unit, field in fields for row in _rows(unit, field, settings, interval)]
    claims = [] if settings.paper else list(_claims([field for _, field in fields], interval, named=at is not None))
    facts = provenance(
        model, data, images=images, resamples=resamples, seed=seed, at=list(at) if at else None, **asdict(settings)
    ) | {
        "seconds": round(time.perf_counter() - started, 3),
        "left_out": unreadable(streams),
        "image": list(fields[0][1].squares.image),
        "gradients_not_finite": {str(unit["unit"]): field.not_finite for unit, field in fields if field.not_finite},
    }
    arrays = {"fields": np.stack([_stored(field.sum) for _, field in fields])}
    return Erf(model_name(model, name), table, claims, facts, arrays)


def _read(model: nn.Module, data: Iterable[Any], at: Sequence[str] | None) -> tuple[Streams, dict[int, Field], int]:
    """The units, the field at each tap after one of them, and the number of images."""
    batches = image_batches(data)
    first = next(batches, None)
    if first is None:
        raise UserError("no images: the data are empty")
    image = (int(first[0].shape[2]), int(first[0].shape[3]))
    two = to_model(first[0][:2], model)
    streams = find_streams(model, two.clone(), at)
    taps = {i: streams.taps[i] for _, _, i in streams.rows()}
    points = _points(model, two, [*taps.values()])
    fields = {i: Field(tap, Squares(point, image)) for (i, tap), point in zip(taps.items(), points, strict=True)}
    count = 0
    for images, _ in itertools.chain([first], batches):
        if tuple(images.shape[2:]) != image:
            sizes = " and ".join(f"{h} x {w}" for h, w in (image, images.shape[2:]))
            raise UserError(f"the data hold images of {sizes}, whose receptive fields differ; resize them to one size")
        for field, gradient in zip(fields.values(), gradients(model, to_model(images, model), [*taps.values()]), strict=True):
            field.add(gradient)
        count += len(images)
    return streams, fields, count


def _points(model: nn.Module, images: Tensor, taps: Sequence[Tap]) -> list[tuple[float, float]]:
    """The point under the centre at each tap: that of the first tap of its resolution, whose field is the smallest."""
    sizes = [tap.layout.size for tap in taps]  # type: ignore[union-attr]
    distinct = list(dict.fromkeys(sizes))
    points = points_under_centre(model, images, [taps[sizes.index(size)] for size in distinct])
    return [points[distinct.index(size)] for size in sizes]


def _rows(unit: Row, field: Field, settings: ErfSettings, interval: Callable[..., Interval]) -> list[Row]:
    """A row for each share."""
    shares, squares = np.array(settings.shares), field.squares
    if settings.paper:
        squares, side = script_squares(field.sum / max(1, field.images), shares)
        sides = Interval(side, *np.full((2, len(side)), np.nan))
    else:
        sides = interval(lambda weights: field.side(weights, shares), within=(1, squares.sides[-1]))
    areas = [squares.area(ends) for ends in sides]
    (height, width), (y, x) = field.size, squares.centre
    return [
        unit
        | {"height": height, "width": width, "centre_y": y, "centre_x": x, "share": share}
        | columns("side", (ends[k] for ends in sides))
        | columns("area", (ends[k] for ends in areas))
        for k, share in enumerate(settings.shares)
    ]


def _claims(fields: Sequence[Field], interval: Callable[..., Interval], *, named: bool) -> Iterator[Claim]:
    """On the last stream against the first, unless modules were named in any order; and on the last stream alone."""
    first, last, half = fields[0], fields[-1], np.array([0.5])

    def claim(name: str, statement: str, quantity: str, statistic: Callable[[Array], Array]) -> Claim:
        about: dict[str, Any] = {"id": f"erf/{name}", "statement": statement, "source": LUO, "quantity": quantity}
        return Claim.of_sign("positive", interval(statistic), count=last.images, **about)

    if not named and len(fields) > 1:
        yield claim(
            "grows",
            "Units see further with depth.",
            "side of the square that holds half of the field, after the last unit minus before the first (pixels)",
            lambda weights: (last.side(weights, half) - first.side(weights, half))[0],
        )
    side = last.squares.side(last.held.sum(0), np.ones(1))[0]
    yield claim(
        "centre",
        "The centre of a receptive field counts more than its border.",
        "share of the field in the central half of the area of its support, after the last unit, minus one half",
        lambda weights: last.squares.central_share(weights @ last.held, side) - 0.5,
    )


def _stored(field: Tensor) -> np.ndarray:
    """The field with its maximum at 1, averaged over blocks of pixels if the image is large.  Shapes: (H, W) -> (H', W')."""
    block = -(-max(field.shape) // STORED)
    small = nn.functional.avg_pool2d(field[None, None], block, ceil_mode=True)[0, 0]
    return (small / small.max().clamp_min(torch.finfo(small.dtype).tiny)).float().numpy()


@dataclass(frozen=True, repr=False)
class Erf(Result):
    """A row for each unit and share: side (pixels) and area (share of the image) of the square, each with its 95% interval.

    ``unit`` -1 is the stem: the stream that the first unit reads.  ``centre_y``, ``centre_x``: the middle of the squares, in
    pixels from the top left corner.  ``arrays["fields"]``: S after each unit in the order of the table, its maximum at 1.
    """

    analysis: ClassVar[str] = "erf"
    panels: ClassVar[tuple[str, ...]] = ("radius", "maps")

    def _draw(self, ax: Axes, panel: str) -> None:
        """``radius``: the side over depth, a curve for each share.  ``maps``: S of the first, the middle and the last unit."""
        (self._draw_maps if panel == "maps" else self._draw_sides)(ax)

    def _draw_sides(self, ax: Axes) -> None:
        import matplotlib as mpl

        from backlight.results import figures as drawing

        units = list(drawing.by_unit(self.table))
        depth = np.linspace(0, 1, len(units))
        half_step = 0.5 / max(1, len(units) - 1)
        for x, (one, *_), (two, *_) in zip(depth, units, units[1:], strict=False):
            if two["kind"] == "attention":  # from the stream before it to the stream after it
                ax.axvspan(x, x + 2 * half_step, color=drawing.KIND_COLOUR["attention"], alpha=0.10, lw=0)
            if two["stage"] != one["stage"]:
                ax.axvline(x + half_step, color="0.6", lw=0.8, ls=":")
        colours = mpl.colormaps["viridis"](np.linspace(0, 0.8, len(units[0])))
        for rows, colour in zip(zip(*units, strict=True), colours, strict=True):
            side, low, high = (np.array([row[f"side{end}"] for row in rows], float) for end in ("", "_low", "_high"))
            ax.fill_between(depth, low, high, color=colour, alpha=0.2, lw=0)
            ax.plot(depth, side, "o-", color=colour, markersize=min(2.5, 120 / len(units)), label=f"{rows[0]['share']:.3g}")
        ax.set_xlim(-0.02, 1.02)
        drawing.label(ax, self.chart("radius"))
        ax.set_ylim(bottom=0)
        ax.legend(**drawing.LEGEND)

    def _draw_maps(self, ax: Axes) -> None:
        from backlight.results import figures as drawing

        names = ["stem" if rows[0]["unit"] < 0 else f"unit {rows[0]['unit']}" for rows in drawing.by_unit(self.table)]
        shown = list(dict.fromkeys((0, len(names) // 2, len(names) - 1)))
        fields = np.maximum(self.arrays["fields"][shown], 10.0**-DECADES)
        _, h, w = fields.shape
        gap = np.full((h, 1 + w // 16), np.nan)
        strip = np.hstack([part for field in fields for part in (gap, np.log10(field))][1:])
        image = ax.imshow(strip, cmap="magma", vmin=-DECADES, vmax=0, interpolation="nearest")
        ax.figure.colorbar(image, ax=ax, label="log10 of S over its maximum", orientation="horizontal", aspect=30)
        ax.set_xticks([(w - 1) / 2 + i * (w + gap.shape[1]) for i in range(len(shown))], [names[i] for i in shown])
        ax.xaxis.tick_top()
        ax.tick_params(length=0)
        ax.set_yticks([])
        ax.spines[:].set_visible(False)
