"""FGSM and PGD on the pixels of one batch, and random noise of the same size.

FGSM (Goodfellow et al. 2015) takes one step of the gradient's sign; PGD (Madry et al. 2018) takes several, each with a
projection after it.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from backlight.analyses.adversarial.settings import AdversarialSettings
from backlight.analyses.pixel_scores import PixelLogits, image_scores
from backlight.errors import UserError
from backlight.numerics.frequency_bands import band as band_mask
from backlight.numerics.frequency_bands import confined, root_mean_square, signs, uniform

#: Random noise is no attack: it shows what a change of the same size does that does not follow the gradient.
ATTACKS = ("random", "fgsm", "pgd")
#: What is recorded for each image under each attack, in this order.  ``gain``: loss after the last step of PGD less loss after
#: the first.
SCORES = ("accuracy", "nll", "success", "rms", "in_band", "gain")
#: The steps of PGD are together two and a half times the bound, as in Madry et al.
STEPS_PER_BOUND = 2.5
#: The rounding error of a pixel that is normalised and back.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Goal:
    """What an attack must achieve for each image: any answer but the label, or the target.  Shapes: (B,) each."""

    labels: Tensor
    targets: Tensor | None

    def reached(self, logits: Tensor) -> Tensor:
        """Whether the model's answer is what the attack wants.  Shapes: (B, K) -> (B,), of bool."""
        answers = logits.argmax(1)
        return answers == self.targets if self.targets is not None else answers != self.labels

    def loss(self, logits: Tensor) -> Tensor:
        """What attacks increase: the label's NLL, or the target's log probability (nats).  Shapes: (B, K) -> (B,).

        As log(1 + exp(-m)) of the margin m between a class and all others together.  The gradient of a log-softmax loses the
        part of the class itself where its probability rounds to 1, so that the model would seem robust.
        """
        logits = logits.float() if logits.device.type == "mps" else logits.double()
        own = (self.labels if self.targets is None else self.targets)[:, None]
        others = logits.scatter(1, own, -torch.inf).logsumexp(1)
        nll = nn.functional.softplus(others - logits.gather(1, own).squeeze(1))
        return nll if self.targets is None else -nll


class Attack:
    """The attacks on one batch.  A change is held as ``delta``; the model receives the pixels plus delta, clipped to [0, 1].

    Without a band, delta itself is clipped so that the sum is valid.  In a band, clipping delta would add frequencies outside
    the band; so delta stays in the band and in the bound, and only what the model receives is clipped.  Clipping moves every
    pixel towards its clean value, which is valid: it never makes a change larger, so both bounds hold for what the model
    receives.
    """

    def __init__(
        self,
        settings: AdversarialSettings,
        logits_of: PixelLogits,
        pixels: Tensor,
        goal: Goal,
        positions: Tensor,
        seed: int,
    ) -> None:
        self.settings, self.logits_of, self.pixels, self.goal = settings, logits_of, pixels, goal
        self.positions, self.seed = positions, seed
        size = (int(pixels.shape[-2]), int(pixels.shape[-1]))
        self.mask = None
        if settings.band:
            low, high = settings.band
            self.mask = band_mask(size, low, high, pixels.device)
        if self.mask is not None and not self.mask.any():
            raise UserError(f"images of {size[0]} x {size[1]} have no frequency in the band; give a wider one")
        self.clean_gradient, _ = self.gradient(torch.zeros_like(pixels))

    def scores(self, clean_logits: Tensor) -> Tensor:
        """Scores of the clean images, then of attacks within epsilons in ascending order.

        Shapes: (B, K) -> (1 + epsilons * attacks, 6, B).
        """
        attacks = (self.random, self.fgsm, self.pgd)  # as ATTACKS
        attacked = [attack(epsilon / 255) for epsilon in sorted(self.settings.epsilons_or_default) for attack in attacks]
        return torch.stack([self._scores(clean_logits, torch.zeros_like(self.pixels)), *attacked])

    def without_gradient(self) -> Tensor:
        """Whether the gradient of an image is zero everywhere or not finite.  Shapes: -> (B,), of bool."""
        gradient = self.clean_gradient.flatten(1)
        return ~(gradient != 0).any(1) | ~gradient.isfinite().all(1)

    def random(self, epsilon: float) -> Tensor:
        """Scores under random noise as large as FGSM's change."""
        white = signs(self.positions, self.pixels.shape[1:], seed=self.seed, stream=1).to(self.pixels.dtype)
        return self._scores_at(self.projected(epsilon * self.direction(white), epsilon))

    def fgsm(self, epsilon: float) -> Tensor:
        """Scores after one step from the clean image to the bound."""
        return self._scores_at(self.projected(epsilon * self.direction(self.clean_gradient), epsilon))

    def pgd(self, epsilon: float) -> Tensor:
        """Scores at the step of PGD that is closest to the goal, for each image, so that more steps never harm less."""
        steps = self.settings.steps
        step = self.settings.step_size / 255 if self.settings.step_size else STEPS_PER_BOUND * epsilon / steps
        delta, gradient = torch.zeros_like(self.pixels), self.clean_gradient
        if self.settings.random_start:
            delta = self.start(epsilon)
            gradient, _ = self.gradient(delta)
        best, best_rank, first_loss, loss = delta, None, None, None
        for remaining in reversed(range(steps)):
            delta = self.projected(delta + step * self.direction(gradient), epsilon)
            gradient, logits = self.gradient(delta) if remaining else (gradient, self.logits_of(self.attacked(delta)))
            loss = self.goal.loss(logits)
            first_loss = loss if first_loss is None else first_loss
            reached = self.goal.reached(logits)
            rank = loss.where(~reached, loss + 1e9)  # an image that reached the goal is closer than any that did not
            better = rank > best_rank if best_rank is not None else torch.ones_like(reached)
            best = delta.where(better.view(-1, 1, 1, 1), best)
            best_rank = rank.where(better, best_rank) if best_rank is not None else rank
        return self._scores_at(best, loss - first_loss)  # type: ignore[operator]

    def gradient(self, delta: Tensor) -> tuple[Tensor, Tensor]:
        """The gradient of the loss in the pixels, zero where clipping holds them; and the logits.

        Errors: UserError if no gradient flows from the output to the pixels.
        """
        pixels = self.attacked(delta).detach().requires_grad_()
        with torch.enable_grad():
            logits = self.logits_of(pixels)
            if logits.requires_grad:
                (gradient,) = torch.autograd.grad(self.goal.loss(logits).sum(), pixels, allow_unused=True)
        if not logits.requires_grad or gradient is None:
            raise UserError("no gradient flows from the model's output to its images, so gradient attacks cannot run on it")
        unclipped = self.pixels + delta
        free = (unclipped > -ROUNDING) & (unclipped < 1 + ROUNDING)
        return gradient * free, logits.detach()

    def direction(self, gradient: Tensor) -> Tensor:
        """The change of norm 1 that increases the loss most; in a band, one that increases it.

        In a band, for "l2", it is the part of the gradient in the band.  For "linf" the best change would be the solution of a
        linear program; instead the sign of that part is taken and projected on the band again.  It increases the loss: its
        product with the gradient is the sum of the magnitudes of the gradient's part in the band.
        Shapes: (B, C, H, W) -> the same.
        """
        gradient = gradient / _largest(gradient)  # first, or squares of small numbers underflow
        if self.mask is not None:
            gradient = confined(gradient, self.mask)
        if self.settings.norm == "l2":
            return gradient / _length(gradient)
        sign = gradient.sign()
        if self.mask is not None:
            sign = confined(sign, self.mask)
            sign = sign / _largest(sign)
        return sign

    def projected(self, delta: Tensor, epsilon: float) -> Tensor:
        """Delta within the bound; without a band also such that the pixels are valid.

        In a band a change that is too large is scaled as a whole.
        """
        if self.mask is None and self.settings.norm == "linf":
            delta = delta.clamp(-epsilon, epsilon)
        else:
            delta = delta * (epsilon / self._norm(delta)).clamp_max(1)
        return delta if self.mask is not None else self.attacked(delta) - self.pixels

    def start(self, epsilon: float) -> Tensor:
        """A random start: uniform in the bound for "linf" without a band, else a uniform field of half the bound's norm."""
        field = uniform(self.positions, self.pixels.shape[1:], seed=self.seed, stream=2).to(self.pixels.dtype)
        if self.mask is None and self.settings.norm == "linf":
            return self.projected(epsilon * field, epsilon)
        field = field if self.mask is None else confined(field, self.mask)
        return self.projected(epsilon / 2 * field / self._norm(field), epsilon)

    def attacked(self, delta: Tensor) -> Tensor:
        """The pixels that the model receives."""
        return (self.pixels + delta).clamp_(0, 1)

    def _norm(self, fields: Tensor) -> Tensor:
        return _length(fields) if self.settings.norm == "l2" else _largest(fields)

    def _scores_at(self, delta: Tensor, gain: Tensor | None = None) -> Tensor:
        pixels = self.attacked(delta)
        return self._scores(self.logits_of(pixels), pixels - self.pixels, gain)

    def _scores(self, logits: Tensor, change: Tensor, gain: Tensor | None = None) -> Tensor:
        """Shapes: (B, K), (B, C, H, W), (B,) -> (6, B)."""
        correct, nll, rms = image_scores(logits, self.goal.labels, change)
        in_band = torch.ones_like(rms)
        if self.mask is not None:
            in_band = (root_mean_square(confined(change, self.mask)).to(rms) / rms).square().where(rms > 0, in_band)
        rows = [correct, nll, self.goal.reached(logits), rms, in_band, gain if gain is not None else torch.zeros_like(rms)]
        return torch.stack([row.to(rms) for row in rows])


def random_targets(positions: Tensor, labels: Tensor, classes: int, seed: int) -> Tensor:
    """For each image a class other than its label, each with the same probability.  Shapes: (B,), (B,) -> (B,).

    Errors: UserError if there is no other class.
    """
    if classes < 2:
        raise UserError("the model has 1 output, so a targeted attack has no other class to aim at; leave targeted out")
    share = (uniform(positions, (1,), seed=seed, stream=3).squeeze(1).double().cpu() + 1) / 2
    return (labels + 1 + (share * (classes - 1)).long().to(labels.device)) % classes


def _largest(fields: Tensor) -> Tensor:
    """The largest magnitude in each image, never zero.  Shapes: (B, C, H, W) -> (B, 1, 1, 1)."""
    return fields.abs().amax((1, 2, 3), keepdim=True).clamp_min(torch.finfo(fields.dtype).tiny)


def _length(fields: Tensor) -> Tensor:
    """The Euclidean length of each image, never zero.  Shapes: (B, C, H, W) -> (B, 1, 1, 1)."""
    return torch.linalg.vector_norm(fields, dim=(1, 2, 3), keepdim=True).clamp_min(torch.finfo(fields.dtype).tiny)
