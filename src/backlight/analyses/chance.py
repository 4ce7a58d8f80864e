"""Whether a model's accuracy is above chance.  Where it is not, no verdict is about a trained classifier."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from backlight.errors import NotApplicable
from backlight.inputs import WITHOUT_CLASSIFIER, not_finite, refuse_not_finite
from backlight.numerics.proportions import proportion_interval
from backlight.results.claim import LEAST

#: A model at chance is taken for an encoder if it has twice as many outputs as the labels name classes, and at least so many.
FEATURES = 32


@dataclass
class Answers:
    """Counts the right answers of the unchanged model."""

    outputs: int = 0
    named: int = 0  # classes up to the largest label
    right: int = 0
    images: int = 0
    not_finite: int = 0

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch.  Shapes: (B, K), (B,)."""
        self.outputs = logits.shape[1]
        self.named = max(self.named, int(labels.max()) + 1)
        self.right += int((logits.argmax(1) == labels).sum())
        self.images += len(labels)
        self.not_finite += not_finite(logits)

    def caution(self, provenance: Mapping[str, Any]) -> dict[str, str]:
        """What stands beside every verdict of this model, as an entry of its provenance; empty if accuracy is above chance.

        An untrained model has its caution already.  Errors: UserError if outputs are not finite; NotApplicable if they are no
        class scores by all signs.
        """
        refuse_not_finite(self.not_finite, self.images)
        value, low, high = (float(x) for x in proportion_interval(self.right, self.images))
        if low > 1 / self.outputs:
            return {}
        accuracy = f"accuracy {value:.1%} [{100 * low:.1f}, {100 * high:.1f}]"
        if "untrained" in provenance.get("caution", ""):
            return {}
        if self.outputs >= max(FEATURES, 2 * self.named) and self.images >= LEAST["images"]:
            raise NotApplicable(
                f"no classifier: the model has {self.outputs} outputs, the labels name {self.named} classes, and {accuracy} is "
                f"not above chance; {WITHOUT_CLASSIFIER}"
            )
        cautions = f"at chance level: {accuracy} of {self.outputs} classes", provenance.get("caution", "")
        return {"caution": "; ".join(filter(None, cautions))}
