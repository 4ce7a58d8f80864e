"""Adversarial attacks: how small a change of the pixels, aimed along the gradient, makes right answers wrong.

The authors of "How Do Vision Transformers Work?" (ICLR 2022) have FGSM and PGD in ``ops/adversarial.py``.  They bound the
change of normalised images, so that one bound means another change of the pixels for each data set and channel, and do not
keep pixels valid.  Here pixels in [0, 1] are changed: the bound is in 1/255 of a pixel's range, whatever the normalisation.

An attack that does not succeed may be weak, and the model not strong: its gradients may be masked (Athalye et al. 2018).  So
random noise of the same size runs beside both attacks, and laws that working gradients obey are tested as claims.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch import nn

from backlight.analyses.adversarial.attacks import ATTACKS, SCORES, Attack, Goal, random_targets
from backlight.analyses.adversarial.settings import AdversarialSettings
from backlight.analyses.chance import Answers
from backlight.analyses.pixel_scores import logits_of_pixels, refuse_other_size
from backlight.data.normalisation import normalisation_of
from backlight.devices import device_of
from backlight.errors import UserError
from backlight.inputs import checked_labels, first_tensor, image_batches, refuse_no_classifier, to_model
from backlight.numerics.bootstrap import Interval, skewed_mean_interval
from backlight.numerics.proportions import paired_difference_interval, share_interval
from backlight.results.claim import Claim, Sign, Verdict
from backlight.results.provenance import provenance
from backlight.results.result import Result, Row, columns
from backlight.tracing.trace import evaluating, model_name

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def measure(
    model: nn.Module,
    data: Iterable[Any],
    settings: AdversarialSettings,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resamples: int = 1000,
    seed: int = 0,
    name: str | None = None,
) -> Adversarial:
    """The result of `backlight.adversarial`."""
    started = time.perf_counter()
    normalisation = normalisation_of(data, mean, std)
    logits_of = logits_of_pixels(model, normalisation)
    scores: list[np.ndarray] = []  # (1 + epsilons * attacks, 6, B) each: the clean images, then attacks within epsilons
    attackable: list[np.ndarray] = []  # (B,) each: whether an attack can succeed, because the clean answer is not its goal
    without_gradient: list[np.ndarray] = []  # (B,) each
    images_done, size, answers = 0, (0, 0), Answers()
    with torch.inference_mode(False), torch.no_grad(), evaluating(model):
        for images, labels in image_batches(data):
            pixels = normalisation.checked_pixels(images.to(device_of(model))).clamp(0, 1)
            clean = first_tensor(model(to_model(images, model)))
            refuse_no_classifier(model, clean, data)
            clean, labels = checked_labels(clean, labels.to(clean.device, copy=True) if labels is not None else None)
            answers.add(clean, labels)
            if not scores:
                size = (int(images.shape[-2]), int(images.shape[-1]))
            refuse_other_size(images, size)
            positions = torch.arange(images_done, images_done + len(images), device=pixels.device)
            goal = Goal(labels, random_targets(positions, labels, clean.shape[1], seed) if settings.targeted else None)
            attack = Attack(settings, logits_of, pixels, goal, positions, seed)
            scores.append(attack.scores(clean).cpu().numpy())
            attackable.append((~goal.reached(clean)).cpu().numpy())
            without_gradient.append(attack.without_gradient().cpu().numpy())
            images_done += len(images)
    if not scores:
        raise UserError("no images: the data are empty")
    summary = AttackScores(
        settings, np.concatenate(scores, axis=2), np.concatenate(attackable), np.concatenate(without_gradient), resamples, seed
    )
    claims = summary.claims()
    recorded = asdict(settings) | {"epsilons": settings.epsilons_or_default} | asdict(normalisation)
    facts = provenance(model, data, images=images_done, resamples=resamples, seed=seed, **recorded) | {
        "seconds": round(time.perf_counter() - started, 3),
        "clean": {
            score: [float(x) for x in summary.interval(score, summary.scores[0, s])] for s, score in enumerate(SCORES[:2])
        },
        "attackable": int(summary.attackable.sum()),
        "gradient_masking": summary.masking() | {"suspected": any(claim.verdict == "does not hold" for claim in claims)},
    }
    facts |= answers.caution(facts)
    correct = np.concatenate([summary.scores[:1, 0], summary.of("accuracy", "pgd")]).astype(np.float32)
    return Adversarial(model_name(model, name), summary.table(), claims, facts, {"per_image/correct": correct})


@dataclass(frozen=True)
class AttackScores:
    """The scores of all images.  Shapes: scores (1 + epsilons * attacks, 6, n), attackable (n,), without_gradient (n,)."""

    settings: AdversarialSettings
    scores: np.ndarray
    attackable: np.ndarray
    without_gradient: np.ndarray
    resamples: int
    seed: int

    @property
    def images(self) -> int:
        """The number of images."""
        return self.scores.shape[-1]

    def of(self, score: str, attack: str) -> np.ndarray:
        """A score under an attack, epsilons in ascending order.  Shapes: -> (epsilons, n)."""
        return self.scores[1 + ATTACKS.index(attack) :: len(ATTACKS), SCORES.index(score)]

    def interval(self, score: str, values: np.ndarray) -> Interval:
        """The mean of a score over images.  Shapes: (n,) -> ()."""
        return share_interval(values) if score == "accuracy" else self._mean(values)

    def change(self, score: str, values: np.ndarray) -> Interval:
        """The mean change of a score from the clean images.  Shapes: (n,) -> ()."""
        clean = self.scores[0, SCORES.index(score)]
        return paired_difference_interval(values, clean) if score == "accuracy" else self._mean(values - clean)

    def _mean(self, values: np.ndarray) -> Interval:
        return skewed_mean_interval(values, resamples=self.resamples, seed=self.seed)

    def table(self) -> list[Row]:
        """A row for each epsilon and attack."""
        shown = ("accuracy", "nll", "rms", *(("in_band",) if self.settings.band else ()))
        rows: list[Row] = []
        for e, epsilon in enumerate(sorted(self.settings.epsilons_or_default)):
            for attack in ATTACKS:
                row: Row = {"attack": attack, "epsilon": epsilon, "norm": self.settings.norm}
                for score in shown:
                    row |= columns(score, self.interval(score, self.of(score, attack)[e]))
                for score in SCORES[:2]:
                    row |= columns(f"{score}_change", self.change(score, self.of(score, attack)[e]))
                rows.append(row | columns("success", self._success(self.of("success", attack)[e])))
        return rows

    def _success(self, reached: np.ndarray) -> Iterable[Any]:
        """Among the images on which an attack can succeed; NaN if there is none."""
        return share_interval(reached[self.attackable]) if self.attackable.any() else (np.nan, np.nan, np.nan)

    def claims(self) -> list[Claim]:
        """Laws of attacks whose gradients work."""
        clean = self.scores[0, 0][None]
        pgd, fgsm, random = (self.of("accuracy", attack) for attack in ("pgd", "fgsm", "random"))
        rise = self._never_positive(
            "monotone",
            paired_difference_interval(pgd.T, np.concatenate([clean, pgd[:-1]]).T),
            "Accuracy never rises with epsilon.",
            "largest rise of accuracy under PGD from an epsilon to the next (percentage points)",
        )
        steps = self._of_sign(
            "steps-help",
            "positive",
            self._mean(self.of("gain", "pgd").mean(0)),
            "More steps bring PGD closer to its goal.",
            "loss after the last step less loss after the first, mean over epsilons (nats)",
        )
        stronger = self._never_positive(
            "pgd-above-fgsm",
            paired_difference_interval(pgd.T, fgsm.T),
            "PGD is at least as strong as FGSM.",
            "largest excess of the accuracy under PGD over that under FGSM, of all epsilons (percentage points)",
        )
        aimed = self._of_sign(
            "gradient-above-noise",
            "negative",
            Interval(*(100 * x for x in paired_difference_interval(pgd.mean(0), random.mean(0)))),
            "The gradient harms more than random noise of the same size.",
            "accuracy under PGD less that under random noise, mean over epsilons (percentage points)",
        )
        gradient = self._never_positive(
            "gradients",
            share_interval(self.without_gradient[:, None]),
            "Every image has a gradient.",
            "share of the images whose gradient is zero everywhere or not finite (%)",
        )
        return [rise, *([steps] if self.settings.steps > 1 else []), stronger, aimed, gradient]

    def _of_sign(self, name: str, sign: Sign, interval: Interval, statement: str, quantity: str) -> Claim:
        """The claim that a mean over images has this sign."""
        about: dict[str, Any] = {"statement": statement, "source": "Athalye et al. 2018", "quantity": quantity}
        return Claim.of_sign(sign, interval, id=f"adversarial/{name}", count=self.images, **about)

    def _never_positive(self, name: str, excess: Interval, statement: str, quantity: str) -> Claim:
        """The claim that the largest of m means over images is not above zero.

        Undecided if it is above zero and its interval holds zero.  Shapes: (m,), as fractions.
        """
        worst = int(np.argmax(excess.value))
        value, low, high = (100 * float(end[worst]) for end in excess)
        verdict: Verdict = "undecided" if not np.isfinite(low) else "does not hold" if low > 0 else "holds"
        if verdict == "holds" and value > 0:
            verdict = "undecided"
        about = statement, "Athalye et al. 2018", quantity
        return Claim(f"adversarial/{name}", *about, value, low, high, verdict, self.images, "images")

    def masking(self) -> dict[str, list[float]]:
        """Signs of masked gradients: shares of images, each with its interval."""
        reached = {attack: self.of("success", attack) > 0 for attack in ATTACKS}
        shares = {
            "zero_gradients": self.without_gradient,
            "fgsm_beats_pgd": (reached["fgsm"] & ~reached["pgd"]).any(0),
            "random_beats_pgd": (reached["random"] & ~reached["pgd"]).any(0),
        }
        return {name: [float(x) for x in share_interval(share)] for name, share in shares.items()}


@dataclass(frozen=True, repr=False)
class Adversarial(Result):
    """A row for each epsilon and attack: accuracy, NLL, their change from the clean images, and the success rate.

    ``epsilon`` is in 1/255 of a pixel's range.  Accuracies are fractions, NLL in nats; a change is attacked minus clean.
    ``success`` is the share of the correctly answered images whose answer becomes wrong; for targeted attacks, the share of the
    images not answered with their target whose answer becomes the target.  ``rms`` is the root mean square of the change, for
    pixels from 0 to 1; ``in_band``, with a band, is the share of the change's energy that is in the band after clipping.
    ``arrays["per_image/correct"]``: (clean, PGD at each epsilon in ascending order) x images, 1 for a right answer.
    """

    analysis: ClassVar[str] = "adversarial"
    panels: ClassVar[tuple[str, ...]] = ("accuracy", "success")

    def _draw(self, ax: Axes, panel: str) -> None:
        """A line for each attack over epsilon."""
        from backlight.results import figures as drawing

        colour = {"random": "#8A8A8A", "fgsm": drawing.KIND_COLOUR["other"], "pgd": drawing.KIND_COLOUR["attention"]}
        names = {"random": "random", "fgsm": "FGSM", "pgd": "PGD"}
        for attack in ATTACKS:
            rows = [row for row in self.table if row["attack"] == attack]
            epsilon = np.array([0, *(row["epsilon"] for row in rows)])
            clean = self.provenance["clean"]["accuracy"] if panel == "accuracy" else [0, 0, 0]
            value, low, high = (
                100 * np.array([at_zero, *(row[f"{panel}{end}"] for row in rows)], float)
                for at_zero, end in zip(clean, ("", "_low", "_high"), strict=True)
            )
            ax.fill_between(epsilon, low, high, color=colour[attack], alpha=0.2, lw=0)
            ax.plot(epsilon, value, "o-", color=colour[attack], label=names[attack])
        ax.set_ylim(-3, 103)
        drawing.label(ax, self.chart(panel))
        ax.set_xlim(left=0)
        ax.legend(**drawing.LEGEND)
