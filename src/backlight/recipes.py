"""How a model is trained: plain numbers, one frozen dataclass, one name for each set of them."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UserError, did_you_mean


@dataclass(frozen=True)
class Recipe:
    """AdamW, a linear warm-up and a cosine to zero, with timm's mixup and label smoothing.

    Weight decay leaves biases, norms and what the model says (``no_weight_decay``) alone, as timm does and the paper's
    code does not.
    """

    epochs: int
    lr: float
    batch_size: int
    weight_decay: float = 0.05
    warmup_epochs: float = 5
    crop_pad: int = 4  # pixels of padding from which a random crop is taken
    flip: bool = True
    erase: float = 0.0  # share of images with a random rectangle of noise
    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.1
    clip: float | None = 5.0  # norm of the gradient


#: backlight train "word:ccc ccca ccca?block=basic&dim=16&stem=cifar&in_chans=1&img_size=28" --data fashion --out runs/mine
#: Some 10 minutes on two CPU cores for 300,000 parameters; the README has the accuracies.
FASHION = Recipe(epochs=60, lr=1e-3, batch_size=64, warmup_epochs=3, crop_pad=2, erase=0.1)

RECIPES = {"fashion": FASHION}


def recipe(name: str) -> Recipe:
    """The recipe of this name.  Errors: UserError with the closest names."""
    if name not in RECIPES:
        raise UserError(f"no recipe is called {name!r}{did_you_mean(name, RECIPES)}; there is {', '.join(RECIPES)}")
    return RECIPES[name]
