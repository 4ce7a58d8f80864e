"""Models of your own for Backlight.  A MODEL on the command line is FILE.py:FUNCTION, and NAME=MODEL gives it a short name:

    backlight units net=mymodels.py:small_net --check
    backlight calibration net=mymodels.py:small_net --data fashion --limit 500
    backlight study --models net=mymodels.py:small_net demo-cnn --data fashion --limit 500 --out runs

Replace the class by yours, and the lines that load weights by those that load yours.
"""

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """A residual unit: the stream, plus a branch that is added to it.  Backlight finds such sums in any model."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        )

    def forward(self, stream: Tensor) -> Tensor:
        return stream + self.branch(stream)


class SmallNet(nn.Module):
    # What your training did to the images, in timm's words.  A wrong mean or size costs points of accuracy, without any error.
    pretrained_cfg = {
        "input_size": (1, 28, 28),  # channels, height, width
        "mean": (0.286,),
        "std": (0.353,),
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }
    num_classes = 10

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.blocks = nn.Sequential(Block(16), nn.MaxPool2d(2), Block(16), Block(16))
        self.head = nn.Linear(16, self.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits (B, classes) of images (B, C, H, W)."""
        return self.head(self.blocks(self.stem(images)).mean((2, 3)))


def small_net() -> nn.Module:
    """The model with its weights.  Without weights of yours, seeded random ones: the same model every time."""
    torch.manual_seed(0)
    model = SmallNet()
    # model.load_state_dict(torch.load("weights.pt", map_location="cpu", weights_only=True))
    return model
