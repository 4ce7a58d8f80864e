"""The architectures that Backlight adds to timm: AlterNet, and the networks that the paper compares on CIFAR."""
