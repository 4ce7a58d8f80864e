"""Adversarial attacks: how small a change of the pixels, aimed along the gradient, turns right answers into wrong ones?

FGSM (Goodfellow et al. 2015) takes one step of the gradient's sign, PGD (Madry et al. 2018) several with a projection after
each.  The authors of "How Do Vision Transformers Work?" have both in ``ops/adversarial.py`` and bound them in the space of
normalised images, where a bound means another change of the pixels for every data set and channel, and never keep pixels
valid.  Here everything happens to pixels in [0, 1]: the bound is in 1/255 of a pixel's range whatever the normalisation.

An attack that finds nothing may be weak rather than the model strong: its gradients may be masked (Athalye et al. 2018).  So
random noise of the same size runs beside both attacks, and laws that working gradients obey are checked as claims.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..anatomy import evaluating, tensors
from ..errors import UserError
from ..evidence import device_of, evidence
from ..numerics.bands import band as band_of
from ..numerics.bands import confined, root_mean_square, signs, uniform
from ..numerics.bootstrap import Interval, mean_interval
from ..pixels import pixel_space
from ..result import Claim, Result, Row, Verdict, columns
from .calibration import labelled
from .noise import answering, graded, in_pixels, refuse_other_size
from .single_pass import fit, refuse_other_classes, split

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: In 1/255: a grey level is 1; robustness is usually told at 8 on CIFAR and at 4 on ImageNet.  A length over all pixels and
#: channels grows with their number, hence the larger ones.
EPSILONS = {"linf": (1.0, 2.0, 4.0, 8.0), "l2": (32.0, 64.0, 128.0, 256.0)}
#: What each row is of.  Random noise is no attack: it tells what a change of this size does that is aimed at nothing.
ATTACKS = ("random", "fgsm", "pgd")
#: What is kept of each image, in this order.
SCORES = ("accuracy", "nll", "success", "rms", "in_band", "climb")
#: Steps of PGD together cross the ball two and a half times over, as Madry et al. set them.
CROSSING = 2.5
#: Rounding of a pixel that was normalised and back.
ROUNDING = 1e-6

Answer = Callable[[Tensor], Tensor]


def adversarial(
    model: nn.Module,
    data: Iterable[Any],
    *,
    epsilons: Sequence[float] | None = None,
    norm: Literal["linf", "l2"] = "linf",
    steps: int = 10,
    step_size: float | None = None,
    random_start: bool = True,
    targeted: bool = False,
    band: tuple[float, float] | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Adversarial:
    """Accuracy, NLL and success rate under random noise, FGSM and PGD of each epsilon, with 95% intervals over images.

    ``epsilons`` and ``step_size`` (default 2.5 epsilon / steps) are in 1/255 of a pixel's range; ``norm`` says what they bound:
    the largest change of a pixel, or with "l2" the length of the change.  ``targeted`` attacks aim at another class, drawn for
    each image; others away from the label.  ``band`` (from, to), in units of pi, confines the change to these frequencies.
    ``mean`` and ``std`` say how the images were normalised, where the data do not.  Random starts depend on ``seed`` and the
    position of an image in the data alone.
    Errors: UserError if a setting makes no sense, the data have no labels, or no gradient reaches the images.
    """
    started = time.perf_counter()
    if norm not in EPSILONS:
        raise UserError(f"no norm is called {norm!r}; there are {', '.join(EPSILONS)}")
    asked = Asked(tuple(epsilons or EPSILONS[norm]), norm, steps, step_size, random_start, targeted, band)
    asked.check()
    space = pixel_space(data, mean, std)
    answer = answering(model, space)
    kept: list[np.ndarray] = []  # (1 + epsilons * attacks, 6, B): the clean images first, then attacks within epsilons
    eligible: list[np.ndarray] = []  # (B,): whether an attack can succeed, because the clean image has not yet
    position, size = 0, (0, 0)
    with torch.inference_mode(False), torch.no_grad(), evaluating(model):
        for images, labels in split(data):
            pixels = in_pixels(images.to(device_of(model)), space).clamp(0, 1)
            clean = next(tensors(model(fit(images, model))))
            clean, labels = labelled(clean, labels.to(clean.device, copy=True) if labels is not None else None)
            if not kept:
                refuse_other_classes(clean, data)
                size = (int(images.shape[-2]), int(images.shape[-1]))
            refuse_other_size(images, size)
            positions = torch.arange(position, position + len(images), device=pixels.device)
            goal = Goal(labels, _targets(positions, labels, clean.shape[1], seed) if targeted else None)
            attack = Attack(asked, answer, pixels, goal, positions, seed)
            kept.append(torch.stack([attack.unharmed(clean), *attack.all()]).cpu().numpy())
            eligible.append((~goal.reached(clean)).cpu().numpy())
            position += len(images)
    if not kept:
        raise UserError("no images: the data are empty")
    seen, could = np.concatenate(kept, axis=2), np.concatenate(eligible)
    found = Found(asked, seen, could, resamples, seed)
    facts = evidence(
        model, data, images=seen.shape[2], resamples=resamples, seed=seed,
        epsilons=list(asked.epsilons), norm=norm, steps=steps, step_size=step_size, random_start=random_start,
        targeted=targeted, band=list(band) if band else None, mean=list(space.mean), std=list(space.std),
    )  # fmt: skip
    claims = found.claims()
    facts |= {
        "seconds": round(time.perf_counter() - started, 3),
        "clean": {score: [float(x) for x in found.interval(seen[0, s])] for s, score in enumerate(SCORES[:2])},
        "attackable": int(could.sum()),
        "gradient_masking": found.masking() | {"suspected": any(claim.verdict == "does not hold" for claim in claims)},
    }
    return Adversarial(name or type(model).__name__, found.table(), claims, facts)


@dataclass(frozen=True)
class Asked:
    """The settings of the attacks."""

    epsilons: tuple[float, ...]
    norm: str
    steps: int
    step_size: float | None
    random_start: bool
    targeted: bool
    band: tuple[float, float] | None

    def check(self) -> None:
        """Errors: UserError for what makes no sense whatever the images."""
        for epsilon in self.epsilons:
            if not 0 < epsilon < float("inf") or (self.norm == "linf" and epsilon > 255):
                raise UserError(f"an epsilon is in 1/255 of a pixel's range, above 0 and up to 255, got {epsilon:g}")
        if self.steps < 1:
            raise UserError(f"PGD needs at least 1 step, got {self.steps}")
        if self.step_size is not None and not 0 < self.step_size < float("inf"):
            raise UserError(f"the step size is in 1/255 of a pixel's range and must be above 0, got {self.step_size:g}")
        if self.band is not None and not 0 <= self.band[0] < self.band[1] <= 1:
            raise UserError(
                f"a band goes from one frequency up to another within 0 to 1π, got {self.band[0]:g}π to {self.band[1]:g}π"
            )


@dataclass(frozen=True)
class Goal:
    """What an attack wants of each image: any answer but the label, or the target."""

    labels: Tensor
    targets: Tensor | None

    def reached(self, logits: Tensor) -> Tensor:
        """Shapes: (B, K) -> (B,), of bool."""
        answers = logits.argmax(1)
        return answers == self.targets if self.targets is not None else answers != self.labels

    def closeness(self, logits: Tensor) -> Tensor:
        """What attacks climb: the label's NLL, or the target's log probability.  Shapes: (B, K) -> (B,).

        As log(1 + exp(-m)) of the margin m between a class and all others together: the gradient of a log-softmax loses the
        class's own part where its probability rounds to 1, and the model would seem robust.
        """
        logits = logits.float() if logits.device.type == "mps" else logits.double()
        own = (self.labels if self.targets is None else self.targets)[:, None]
        others = logits.scatter(1, own, -torch.inf).logsumexp(1)
        nll = nn.functional.softplus(others - logits.gather(1, own).squeeze(1))
        return nll if self.targets is None else -nll


class Attack:
    """The attacks on one batch.  A change is kept as ``delta``; the model sees the pixels plus delta, clipped to [0, 1].

    Without a band delta itself stays where the pixels are valid.  In a band clipping would lead out of it, so that delta stays
    in the band and in the ball and what is clipped off is lost.  Clipping moves every pixel towards its clean value, which is
    valid: it never makes a change larger, and both bounds hold for what the model sees.
    """

    def __init__(self, asked: Asked, answer: Answer, pixels: Tensor, goal: Goal, positions: Tensor, seed: int) -> None:
        self.asked, self.answer, self.pixels, self.goal = asked, answer, pixels, goal
        self.positions, self.seed = positions, seed
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        self.mask = band_of(size, *asked.band, pixels.device) if asked.band else None
        if self.mask is not None and not self.mask.any():
            raise UserError(f"images of {size[0]} x {size[1]} have no frequency in the band: give a wider one")
        self.slope, _ = self.gradient(torch.zeros_like(pixels))

    def all(self) -> list[Tensor]:
        """Scores (6, B) of each attack, within each epsilon."""
        return [
            attack(epsilon / 255) for epsilon in self.asked.epsilons for attack in (self.random, self.fgsm, self.pgd)
        ]  # fmt: skip

    def unharmed(self, clean: Tensor) -> Tensor:
        """Scores of the clean images; under ``climb`` whether the gradient is zero or no number.  Shapes: (B, K) -> (6, B)."""
        lost = (~(self.slope.flatten(1) != 0).any(1) | ~self.slope.isfinite().flatten(1).all(1)).double()
        return self.scores(clean, torch.zeros_like(self.pixels), lost)

    def random(self, epsilon: float) -> Tensor:
        """As large a change as FGSM's, aimed at nothing."""
        white = signs(self.positions, self.pixels.shape[1:], seed=self.seed, stream=1).to(self.pixels.dtype)
        return self.judged(self.bounded(epsilon * self.direction(white), epsilon))

    def fgsm(self, epsilon: float) -> Tensor:
        """One step from the clean image to the edge of the ball."""
        return self.judged(self.bounded(epsilon * self.direction(self.slope), epsilon))

    def pgd(self, epsilon: float) -> Tensor:
        """Steps and projections; of each image the point that came closest to the goal, so that more steps never harm less."""
        step = self.asked.step_size / 255 if self.asked.step_size else CROSSING * epsilon / self.asked.steps
        delta, slope = torch.zeros_like(self.pixels), self.slope
        if self.asked.random_start:
            delta = self.start(epsilon)
            slope, _ = self.gradient(delta)
        best, most, first, close = delta, None, None, None
        for remaining in reversed(range(self.asked.steps)):
            delta = self.bounded(delta + step * self.direction(slope), epsilon)
            slope, logits = self.gradient(delta) if remaining else (slope, self.answer(self.seen(delta)))
            close = self.goal.closeness(logits)
            first = close if first is None else first
            reached = self.goal.reached(logits)
            rank = close.where(~reached, close + 1e9)  # to have reached the goal counts more than any closeness
            better = rank > most if most is not None else torch.ones_like(reached)
            best = delta.where(better.view(-1, 1, 1, 1), best)
            most = rank.where(better, most) if most is not None else rank
        return self.judged(best, close - first)  # type: ignore[operator]

    def gradient(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The slope of closeness in the pixels, zero where clipping holds them; and the logits."""
        seen = self.seen(delta).detach().requires_grad_()
        with torch.enable_grad():
            logits = self.answer(seen)
            if logits.requires_grad:
                (slope,) = torch.autograd.grad(self.goal.closeness(logits).sum(), seen, allow_unused=True)
        if not logits.requires_grad or slope is None:
            raise UserError(
                "no gradient flows from the model's output to its images, so that gradient attacks cannot run on it"
            )
        moved = self.pixels + delta
        free = (moved > -ROUNDING) & (moved < 1 + ROUNDING)
        return slope * free, logits.detach()

    def direction(self, slope: Tensor) -> Tensor:
        """The change of norm 1 that climbs steepest; in a band one that climbs.  Shapes: (B, C, H, W) -> the same.

        In a band the steepest is the slope's part in it; where the largest change of a pixel is bounded it would be a linear
        program, and that part's sign, projected again, is taken instead.  It climbs: its product with the slope is the sum of
        the magnitudes of the slope's part in the band.
        """
        slope = slope / _largest(slope)  # first, or squares of small numbers vanish
        if self.mask is not None:
            slope = confined(slope, self.mask)
        if self.asked.norm == "l2":
            return slope / _length(slope)
        slope = slope.sign()
        if self.mask is not None:
            slope = confined(slope, self.mask)
            slope = slope / _largest(slope)
        return slope

    def bounded(self, delta: Tensor, epsilon: float) -> Tensor:
        """Within the ball, and without a band among valid pixels.  In a band a change too large is scaled as a whole."""
        if self.mask is None and self.asked.norm == "linf":
            delta = delta.clamp(-epsilon, epsilon)
        else:
            size = _length(delta) if self.asked.norm == "l2" else _largest(delta)
            delta = delta * (epsilon / size).clamp_max(1)
        return delta if self.mask is not None else self.seen(delta) - self.pixels

    def start(self, epsilon: float) -> Tensor:
        """Uniform in the ball of largest changes; elsewhere a uniform field of half the ball's radius."""
        field = uniform(self.positions, self.pixels.shape[1:], seed=self.seed, stream=2).to(self.pixels.dtype)
        if self.mask is None and self.asked.norm == "linf":
            return self.bounded(epsilon * field, epsilon)
        field = field if self.mask is None else confined(field, self.mask)
        size = _length(field) if self.asked.norm == "l2" else _largest(field)
        return self.bounded(epsilon / 2 * field / size, epsilon)

    def seen(self, delta: Tensor) -> Tensor:
        """The pixels that the model is shown."""
        return (self.pixels + delta).clamp_(0, 1)

    def judged(self, delta: Tensor, climb: Tensor | None = None) -> Tensor:
        seen = self.seen(delta)
        return self.scores(self.answer(seen), seen - self.pixels, climb)

    def scores(self, logits: Tensor, change: Tensor, climb: Tensor | None = None) -> Tensor:
        """Shapes: (B, K), (B, C, H, W), (B,) -> (6, B)."""
        correct, nll, rms = graded(logits, self.goal.labels, change)
        within = torch.ones_like(rms)
        if self.mask is not None:
            within = (root_mean_square(confined(change, self.mask)).to(rms) / rms).square().where(rms > 0, within)
        rows = [correct, nll, self.goal.reached(logits), rms, within, climb if climb is not None else torch.zeros_like(rms)]
        return torch.stack([row.to(rms) for row in rows])


def _targets(positions: Tensor, labels: Tensor, classes: int, seed: int) -> Tensor:
    """For each image a class that is not its label, all alike likely.  Errors: UserError if there is none."""
    if classes < 2:
        raise UserError("the model knows 1 class, so that there is no other to aim at; leave targeted out")
    share = (uniform(positions, (1,), seed=seed, stream=3).squeeze(1).double().cpu() + 1) / 2
    return (labels + 1 + (share * (classes - 1)).long().to(labels.device)) % classes


def _largest(fields: Tensor) -> Tensor:
    """The largest magnitude of each image, never zero.  Shapes: (B, C, H, W) -> (B, 1, 1, 1)."""
    return fields.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(fields.dtype).tiny)


def _length(fields: Tensor) -> Tensor:
    """The Euclidean length of each image, never zero.  Shapes: (B, C, H, W) -> (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(fields, dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(fields.dtype).tiny)


# --- what was found


@dataclass(frozen=True)
class Found:
    """Everything kept of the images.  Shapes: seen (1 + epsilons * attacks, 6, n), could (n,)."""

    asked: Asked
    seen: np.ndarray
    could: np.ndarray
    resamples: int
    seed: int

    def of(self, score: str, attack: str) -> np.ndarray:
        """A score under an attack, epsilons in ascending order.  Shapes: -> (epsilons, n)."""
        found = self.seen[1:, SCORES.index(score)].reshape(len(self.asked.epsilons), len(ATTACKS), -1)
        return found[np.argsort(self.asked.epsilons), ATTACKS.index(attack)]

    def interval(self, values: np.ndarray) -> Interval:
        """Shapes: (..., n) -> (...)."""
        return mean_interval(np.moveaxis(values, -1, 0), resamples=self.resamples, seed=self.seed)

    def table(self) -> list[Row]:
        shown = SCORES[:2] + SCORES[3 : 5 if self.asked.band else 4]
        rows: list[Row] = []
        for e, epsilon in enumerate(sorted(self.asked.epsilons)):
            for attack in ATTACKS:
                row: Row = {"attack": attack, "epsilon": epsilon, "norm": self.asked.norm}
                for score in shown:
                    row |= columns(score, self.interval(self.of(score, attack)[e]))
                for s, score in enumerate(SCORES[:2]):
                    row |= columns(f"{score}_change", self.interval(self.of(score, attack)[e] - self.seen[0, s]))
                rows.append(row | columns("success", self._success(self.of("success", attack)[e])))
        return rows

    def _success(self, reached: np.ndarray) -> Iterable[Any]:
        """Among the images on which an attack can succeed; NaN if there is none."""
        return self.interval(reached[self.could]) if self.could.any() else (np.nan, np.nan, np.nan)

    def claims(self) -> list[Claim]:
        """The laws of attacks whose gradients tell the way."""
        clean = self.seen[0, 0][None]
        pgd, fgsm, random = (self.of("accuracy", attack) for attack in ("pgd", "fgsm", "random"))
        found = [
            self._never(
                np.diff(np.concatenate([clean, pgd]), axis=0),
                "Accuracy never rises with epsilon.",
                "largest rise of accuracy under PGD from an epsilon to the next (percentage points)",
            )
        ]
        if self.asked.steps > 1:
            found.append(
                Claim.of_sign(
                    "positive",
                    self.interval(self.of("climb", "pgd").mean(0)),
                    statement="More steps bring PGD closer to its goal.",
                    source="Athalye et al. 2018",
                    quantity="loss after the last step less loss after the first, mean over epsilons (nats)",
                )
            )
        found.append(
            self._never(
                pgd - fgsm,
                "PGD is at least as strong as FGSM.",
                "largest excess of the accuracy under PGD over that under FGSM, of all epsilons (percentage points)",
            )
        )
        found.append(
            Claim.of_sign(
                "negative",
                self.interval(100 * (pgd - random).mean(0)),
                statement="The gradient harms more than random noise of the same size.",
                source="Athalye et al. 2018",
                quantity="accuracy under PGD less that under random noise, mean over epsilons (percentage points)",
            )
        )
        found.append(
            self._never(
                self.seen[0, SCORES.index("climb")][None],
                "Every image has a gradient.",
                "share of the images whose gradient is zero everywhere or not finite (%)",
            )
        )
        return found

    def _never(self, excess: np.ndarray, statement: str, quantity: str) -> Claim:
        """The claim that the largest of some excesses is not above zero; undecided where it is, and its interval holds zero.

        Shapes: (m, n), as fractions.
        """
        ends = self.interval(100 * excess)
        worst = int(np.argmax(ends.value))
        value, low, high = (float(end[worst]) for end in ends)
        verdict: Verdict = "undecided" if not np.isfinite(low) else "does not hold" if low > 0 else "holds"
        if verdict == "holds" and value > 0:
            verdict = "undecided"
        return Claim(statement, "Athalye et al. 2018", quantity, value, low, high, verdict)

    def masking(self) -> dict[str, list[float]]:
        """Shares of images, each with its interval, that tell of masked gradients."""
        reached = {attack: self.of("success", attack) > 0 for attack in ATTACKS}
        shares = {
            "zero_gradients": self.seen[0, SCORES.index("climb")],
            "fgsm_beats_pgd": (reached["fgsm"] & ~reached["pgd"]).any(0),
            "random_beats_pgd": (reached["random"] & ~reached["pgd"]).any(0),
        }
        return {what: [float(x) for x in self.interval(share.astype(float))] for what, share in shares.items()}


@dataclass(frozen=True)
class Adversarial(Result):
    """A row an epsilon and attack: accuracy, NLL, their change from the clean images, and the success rate.

    ``epsilon`` is in 1/255 of a pixel's range.  Accuracies are fractions, NLL in nats; a change is attacked minus clean.
    ``success`` is the share of the rightly answered images that are answered wrongly; of targeted attacks, the share of the
    images not answered with their target that are.  ``rms`` is the root mean square of the change in pixels from 0 to 1, and
    ``in_band``, where a band was asked for, the share of the change's energy that clipping left in it.
    """

    analysis: ClassVar[str] = "adversarial"
    panels: ClassVar[tuple[str, ...]] = ("accuracy", "success")

    def _draw(self, ax: Axes, panel: str) -> None:
        """A line an attack over epsilon."""
        from .. import drawing

        colour = {"random": "#8A8A8A", "fgsm": drawing.KIND_COLOUR["other"], "pgd": drawing.KIND_COLOUR["attention"]}
        names = {"random": "random", "fgsm": "FGSM", "pgd": "PGD"}
        for attack in ATTACKS:
            rows = [row for row in self.table if row["attack"] == attack]
            epsilon = np.array([0, *(row["epsilon"] for row in rows)])
            start = self.evidence["clean"]["accuracy"] if panel == "accuracy" else [0, 0, 0]
            value, low, high = (
                100 * np.array([begin, *(row[f"{panel}{end}"] for row in rows)], float)
                for begin, end in zip(start, ("", "_low", "_high"), strict=True)
            )
            ax.fill_between(epsilon, low, high, color=colour[attack], alpha=0.2, lw=0)
            ax.plot(epsilon, value, "o-", color=colour[attack], label=names[attack])
        label = {"accuracy": "Accuracy (%)", "success": "Success of the attack (%)"}[panel]
        ax.set(xlabel="Epsilon (1/255)", ylabel=label, ylim=(-3, 103))
        ax.set_xlim(left=0)
        ax.legend(**drawing.LEGEND)
