"""The analyses: one word each, the same in Python, on the command line, in the docs and as a folder of results."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..errors import UserError, did_you_mean

if TYPE_CHECKING:
    from ..result import Result
    from .single_pass import Reducer

#: What each analysis asks, in the order of the page.  Kept here so that ``--help`` need not import torch.
ANALYSES = {
    "fourier": "Which frequencies does each unit remove, and which does it amplify?",
    "variance": "Which units average the feature map, and which make its places differ?",
    "similarity": "Which units see the images alike, and do blocks of them go with the stages?",
    "attention": "How far does each head look, how evenly, and does it depend on who asks?",
    "lesion": "How much worse is the model without one of its units?",
    "noise": "Which frequencies does a model need undisturbed?",
    "corruption": "How much worse is the model on blurred, noisy, foggy, pixelated images?",
    "adversarial": "How small a change of the pixels, aimed along the gradient, turns right answers into wrong ones?",
    "shape_bias": "Where outline and fill disagree, which of the two does the model go by?",
    "calibration": "How right is the model, and does it know?",
    "hessian": "Is the loss that training minimises convex here, and how sharp is it?",
    "landscape": "How does the loss rise around the trained weights?",
    "trajectory": "Which way did training go, and how did the loss fall on it?",
}
#: Those of the training loss, which want batches of augmented training images drawn once: images a batch, images in all.
TRAINING_LOSS = {"hessian": (16, 320), "landscape": (64, 512), "trajectory": (64, 512)}
#: What a study runs unless told otherwise: what takes a few passes over the images and suits every model.
BY_DEFAULT = ("fourier", "variance", "similarity", "lesion", "calibration")
#: The reducers of those that only watch a forward pass and so can share one.
SINGLE_PASS = {"fourier": "Spectra", "variance": "Spread", "similarity": "Grams", "calibration": "Confidence"}
#: Settings with which one of them needs passes of its own.
ALONE = {"other", "branch"}


def known(name: str) -> str:
    """The name itself.  Errors: UserError if no analysis is called so."""
    if name not in ANALYSES:
        raise UserError(f"no analysis is called {name!r}{did_you_mean(name, ANALYSES)}; there are {', '.join(ANALYSES)}")
    return name


def shares_a_pass(name: str, settings: Mapping[str, Any]) -> bool:
    """Whether the analysis, so asked, can share a forward pass."""
    return name in SINGLE_PASS and not ALONE & settings.keys()


def result_type(name: str) -> type[Result]:
    """The Result of an analysis, or of the build-up search, which trains and so is none."""
    if name == "buildup":
        return import_module("..buildup", __name__).Buildup
    return getattr(import_module(f".{known(name)}", __name__), name.title().replace("_", ""))


def reducer_type(name: str) -> type[Reducer]:
    """The reducer of a single-pass analysis."""
    return getattr(import_module(f".{known(name)}", __name__), SINGLE_PASS[name])
