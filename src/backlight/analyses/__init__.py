"""The analyses: one word each, the same in Python, on the command line, in the docs and as a folder of results."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ..errors import UserError, did_you_mean

if TYPE_CHECKING:
    from ..result import Result
    from .single_pass import Reducer

#: What each analysis asks, in the order of the page.  Kept here so that ``--help`` need not import torch.
ANALYSES = {
    "fourier": "Which frequencies does each unit remove, and which does it amplify?",
    "variance": "Which units average the feature map, and which make its places differ?",
    "lesion": "How much worse is the model without one of its units?",
    "calibration": "How right is the model, and does it know?",
    "hessian": "Is the loss that training minimises convex here, and how sharp is it?",
    "landscape": "How does the loss rise around the trained weights?",
    "trajectory": "Which way did training go, and how did the loss fall on it?",
}
#: Those of the training loss, which want batches of augmented training images drawn once: images a batch, images in all.
TRAINING_LOSS = {"hessian": (16, 320), "landscape": (64, 512), "trajectory": (64, 512)}
#: What a study runs unless told otherwise: the passes over images.  Those of the training loss take many times as long.
BY_DEFAULT = tuple(name for name in ANALYSES if name not in TRAINING_LOSS)
#: The reducers of those that only watch a forward pass and so can share one.
SINGLE_PASS = {"fourier": "Spectra", "variance": "Spread", "calibration": "Confidence"}


def known(name: str) -> str:
    """The name itself.  Errors: UserError if no analysis is called so."""
    if name not in ANALYSES:
        raise UserError(f"no analysis is called {name!r}{did_you_mean(name, ANALYSES)}; there are {', '.join(ANALYSES)}")
    return name


def result_type(name: str) -> type[Result]:
    """The Result of an analysis."""
    return getattr(import_module(f".{known(name)}", __name__), name.capitalize())


def reducer_type(name: str) -> type[Reducer]:
    """The reducer of a single-pass analysis."""
    return getattr(import_module(f".{known(name)}", __name__), SINGLE_PASS[name])
