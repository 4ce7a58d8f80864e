"""Our models, registered with timm by importing this package."""

from . import cifar, local_vit
from .alternet import AlterNet

__all__ = ["AlterNet", "cifar", "local_vit"]
