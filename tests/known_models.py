"""Models whose results are known in closed form, and helpers that the tests of the analyses share."""

import contextlib
import math

import torch
from torch import nn

BINOMIAL = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16
SIDE = 8


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def batches(images, size, labels=None):
    """Batches of the images; with labels, of (images, labels)."""
    parts = images.split(size)
    return list(parts) if labels is None else list(zip(parts, labels.split(size), strict=True))


class Residual(nn.Module):
    """x + branch(x)."""

    def __init__(self, branch):
        super().__init__()
        self.branch = branch

    def forward(self, x):
        return x + self.branch(x)


class Mean(nn.Module):
    """The mean of each channel over all positions."""

    def forward(self, x):
        return x.mean((2, 3))


def stem(channels=3, out=None):
    """A convolution that copies the image, and fills further channels with zeros."""
    copy = nn.Conv2d(channels, out or channels, 1, bias=False)
    with torch.no_grad():
        copy.weight.copy_(torch.eye(out or channels, channels)[:, :, None, None])
    return copy


def tower(*units, channels=3, classes=10, first=None):
    """A stem, residual units, global pooling and a classifier."""
    torch.manual_seed(0)
    return nn.Sequential(first or stem(channels), *units, Mean(), nn.Linear(channels, classes))


def filtering(kernel, channels=3):
    """A unit that adds the circular convolution of each channel with a 3 x 3 kernel."""
    branch = nn.Conv2d(channels, channels, 3, padding=1, padding_mode="circular", groups=channels, bias=False)
    with torch.no_grad():
        branch.weight.copy_(kernel.expand_as(branch.weight))
    return Residual(branch)


def binomial(cycles, side=SIDE):
    """Response of the binomial blur on the diagonal: (1 + cos w) / 2 along each side."""
    return ((1 + math.cos(2 * math.pi * cycles / side)) / 2) ** 2


def delta_kernel():
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1
    return kernel


#: A unit whose stream goes through 1 + H, H the binomial blur: the highest frequency falls by log 2 against zero.
def blur():
    return filtering(BINOMIAL)


#: A unit whose stream goes through 2 - H: the highest frequency rises by log 2 against zero.
def sharpen():
    return filtering(delta_kernel() - BINOMIAL)


def identity():
    """A unit that adds zero."""
    return filtering(torch.zeros(3, 3))


class Averaging(nn.Module):
    """Uniform attention: at every position, the value matrix times the mean over positions."""

    def __init__(self, value):
        super().__init__()
        channels = len(value)
        self.query, self.value = nn.Linear(channels, channels), nn.Linear(channels, channels, bias=False)
        with torch.no_grad():
            self.query.weight.zero_()
            self.query.bias.zero_()
            self.value.weight.copy_(value)
        self.project = nn.Identity()

    def forward(self, x):
        tokens = x.flatten(2).transpose(1, 2)
        weights = (self.query(tokens) @ tokens.transpose(1, 2)).softmax(-1)
        return self.project((weights @ self.value(tokens)).transpose(1, 2).reshape(x.shape))


def averaging(gain, channels=3):
    """A unit that multiplies frequency zero by 1 + gain and does not change the others."""
    return Residual(Averaging(gain * torch.eye(channels)))


def pointwise(weight):
    """A unit that adds a linear mixture of channels at each position: an MLP without its nonlinearity."""
    branch = nn.Conv2d(*weight.shape[::-1], 1, bias=False)
    with torch.no_grad():
        branch.weight.copy_(weight[:, :, None, None])
    return Residual(branch)


def deciding(classes, strength=50.0):
    """The channel mixture that copies channels 0..K-1 of the images into K..2K-1, which the head reads."""
    weight = torch.zeros(2 * classes, 2 * classes)
    weight[classes:, :classes] = strength * torch.eye(classes)
    return weight


def reading_upper_channels(*units, classes=4):
    """A model that recognises a class only if one of its units has copied it into channels K..2K-1; see `labelled_images`."""
    model = tower(*units, channels=2 * classes, classes=classes, first=stem(classes, 2 * classes))
    with torch.no_grad():
        model[-1].weight.zero_()
        model[-1].bias.zero_()
        model[-1].weight[:, classes:] = torch.eye(classes)
    return model


def decisive(classes=4, strength=50.0):
    """Three units; only the middle one matters: the first scales the image, the last writes to channels that are not read."""
    scaling, unread = torch.zeros(2, 2 * classes, 2 * classes)
    scaling[:classes, :classes] = 0.5 * torch.eye(classes)
    unread[:classes, classes:] = torch.eye(classes)
    return reading_upper_channels(
        pointwise(scaling), pointwise(deciding(classes, strength)), pointwise(unread), classes=classes
    )


def labelled_images(n, classes=4, side=SIDE):
    """Images in which the channel of the label is the brightest; labels 0, 1, ... in turn."""
    labels = torch.arange(n) % classes
    images = 0.01 * noise(n, classes, side, side)
    images[torch.arange(n), labels] += 1
    return images, labels


@contextlib.contextmanager
def unchanged(model):
    """Fails if anything of the model or of torch differs after the block, also after an exception."""

    def state():
        return (
            {name: module.training for name, module in model.named_modules()},
            {name: tensor.clone() for name, tensor in model.state_dict().items()},
            [
                (name, list(hooks))
                for name, module in model.named_modules()
                for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks)
            ],
            {name: sorted(vars(module)) for name, module in model.named_modules()},
            [p.requires_grad for p in model.parameters()],
            (torch.is_grad_enabled(), torch.is_inference_mode_enabled(), torch.backends.mha.get_fastpath_enabled()),
        )

    before = state()
    try:
        yield
    finally:
        after = state()
        assert all(torch.equal(tensor, after[1][name]) for name, tensor in before[1].items())
        assert before[0] == after[0]
        assert before[2:] == after[2:]
