"""Our models, registered with timm by importing this package."""

from .alternet import AlterNet

__all__ = ["AlterNet"]
