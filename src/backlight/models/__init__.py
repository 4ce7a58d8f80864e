"""Models: architectures, sources that load a model by name, surgery, and cost.  Importing this registers ours with timm."""

from backlight.models.architectures import cifar, local_vit
from backlight.models.architectures.alternet import AlterNet

__all__ = ["AlterNet", "cifar", "local_vit"]
