"""AlterNet: a residual CNN whose stages end in self-attention.

Park & Kim, "How Do Vision Transformers Work?" (ICLR 2022), section 4 and figure 11.
A word describes the model: one group of letters per stage, one letter per block; ``c`` convolution, ``a`` attention,
``b`` blur (spatial smoothing).  The words and arguments below build the authors' models exactly (`paper_checkpoints` reads
their weights).  A word without ``a`` is the all-convolution baseline, a pre-activation ResNet.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import ClassifierHead, DropPath
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from backlight.errors import UserError
from backlight.models.architectures.window_attention import WindowAttention

ALTERNET_18 = "cc ca ca ca"
ALTERNET_50 = "ccc ccca cacaca caca"  # and 34, whose blocks are basic
ALTERNET_101 = "ccc ccca " + 17 * "c" + "cacaca caca"
ALTERNET_152 = "ccc ccccccca " + 30 * "c" + "cacaca caca"
ALTERNET_50_CIFAR = "ccc ccca ccccca caca"


class AlterNet(nn.Module):
    """The model that ``word`` describes.  Shapes: (B, in_chans, H, W) -> (B, num_classes), any H and W.

    block: ``"bottleneck"`` (as ResNet-50) or ``"basic"`` (as ResNet-18).  stem: ``"imagenet"`` (a quarter of the
    resolution) or ``"cifar"`` (the full resolution).  dim: width of the first stage; each further stage halves the map and
    doubles the width.  heads: attention heads of each stage, or one number for all stages.  window: side of the
    attention windows, in pixels of the map.  dim_head=40 gives an attention block as many parameters as the bottleneck
    it replaces; the official 64 gives it 1.47 times as many.  Errors: UserError for an argument that does not fit.

    >>> AlterNet("cc ca", dim=16, num_classes=10)(torch.zeros(1, 3, 32, 32)).shape
    torch.Size([1, 10])
    """

    def __init__(
        self,
        word: str = ALTERNET_50,
        *,
        num_classes: int = 1000,
        in_chans: int = 3,
        block: str = "bottleneck",
        stem: str = "imagenet",
        dim: int = 64,
        heads: int | Sequence[int] = (3, 6, 12, 24),
        dim_head: int = 64,
        window: int = 7,
        bias_per_head: bool = False,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        global_pool: str = "avg",
    ) -> None:
        super().__init__()
        stages = word_stages(word)
        heads = (heads,) * len(stages) if isinstance(heads, int) else tuple(heads)
        refuse_bad_arguments(stages, block=block, stem=stem, heads=heads, dim=dim, dim_head=dim_head, window=window)
        self.word, self.block = " ".join(stages), block
        self.num_classes, self.in_chans = num_classes, in_chans
        self.grad_checkpointing = False

        make_stem, reduction = STEMS[stem]
        attention = {"heads": heads, "dim_head": dim_head, "window": window, "bias_per_head": bias_per_head}
        last = max(1, sum(map(len, stages)) - 1)
        drop_paths = (drop_path_rate * j / last for j in count())  # linear: 0 at the first unit, the rate at the last
        self.stem = make_stem(in_chans, dim)
        self.stages = nn.Sequential()
        self.feature_info: list[dict[str, Any]] = []
        dim_in = dim
        for s, letters in enumerate(stages):
            stage, dim_out = nn.Sequential(), dim * 2**s * EXPANSION[block]
            for i, letter in enumerate(letters):
                stride = 2 if s and i == 0 else 1
                shape = {"dim_in": dim_in, "dim_out": dim_out, "stride": stride, "drop_path": next(drop_paths)}
                stage.append(unit_of_letter(letter, s, block=block, attention=attention, **shape))
                dim_in = dim_out
            self.stages.append(stage)
            self.feature_info.append({"num_chs": dim_in, "reduction": reduction * 2**s, "module": f"stages.{s}"})
        self.num_features = self.head_hidden_size = dim_in
        self.norm = nn.Sequential(OrderedDict(bn=nn.BatchNorm2d(dim_in), act=nn.ReLU()))
        self.head = ClassifierHead(dim_in, num_classes, pool_type=global_pool, drop_rate=drop_rate)

    def forward(self, x: Tensor) -> Tensor:
        """Logits.  Shapes: (B, in_chans, H, W) -> (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """The last map, normalised and rectified.  Shapes: (B, in_chans, H, W) -> (B, num_features, h, w)."""
        x = self.stem(x)
        for stage in self.stages:
            x = checkpoint_seq(stage, x) if self.grad_checkpointing and not torch.jit.is_scripting() else stage(x)
        return self.norm(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits, or with ``pre_logits`` the pooled features.  Shapes: (B, num_features, h, w) -> (B, num_classes)."""
        return self.head(x, pre_logits=pre_logits)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        *,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The stream at the end of the selected stages, in timm's convention."""
        if output_fmt != "NCHW":
            raise ValueError(f"the stages of an AlterNet return NCHW maps, not {output_fmt}")
        selected, last = feature_take_indices(len(self.stages), indices)
        intermediates = []
        x = self.stem(x)
        for s, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
            if s in selected:
                intermediates.append(self.norm(x) if norm and s == len(self.stages) - 1 else x)
        if intermediates_only:
            return intermediates
        return (self.norm(x) if s == len(self.stages) - 1 else x), intermediates

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Remove what the selected stages do not need; return their indices."""
        selected, last = feature_take_indices(len(self.stages), indices)
        shortened = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if prune_norm or shortened:
            self.norm = nn.Sequential()
        if shortened:
            self.num_features = self.head_hidden_size = self.feature_info[last]["num_chs"]
        if prune_head or shortened:
            self.num_classes = 0
            self.head.in_features = self.num_features
            self.head.reset(0, "")
        return selected

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the last linear layer by a new one; 0 classes: by none."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute activations in the backward pass instead of storing them."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Patterns that assign parameters to layers, for timm's layer-wise learning rates."""
        blocks = r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem", "blocks": blocks}

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay."""
        return {name for name, _ in self.named_parameters() if name.endswith("bias_table")}

    def extra_repr(self) -> str:
        """What ``print(model)`` adds to the class name."""
        return f"{self.word!r}, block={self.block!r}"


def unit_of_letter(
    letter: str, stage: int, *, block: str, attention: dict[str, Any], dim_in: int, dim_out: int, **shape: Any
) -> nn.Module:
    """The residual unit for one letter of the word, in stage number ``stage``."""
    width, stride = dim_out // EXPANSION[block], shape["stride"]
    if letter == "b":
        return Smoothing(dim_in, dim_out, **shape)
    if letter == "c":
        branch = CONV_BRANCHES[block](dim_in, width, stride)
        return PreActivation(dim_in, dim_out, act=nn.ReLU(), branch=branch, **shape)
    attend = WindowAttention(width, dim_out, **attention | {"heads": attention["heads"][stage]})
    branch = attention_branch(dim_in, width, stride, attend)
    return PreActivation(dim_in, dim_out, act=nn.GELU(), branch=branch, **shape)


class PreActivation(nn.Module):
    """``skip + branch(act(norm(x)))``; if the shape changes, the skip is a projection of the activated input.

    Shapes: (B, dim_in, H, W) -> (B, dim_out, H/stride, W/stride), rounded up.
    """

    def __init__(
        self, dim_in: int, dim_out: int, *, stride: int, act: nn.Module, branch: nn.Module, drop_path: float = 0.0
    ) -> None:
        super().__init__()
        self.norm, self.act = nn.BatchNorm2d(dim_in), act
        self.shortcut = None if dim_in == dim_out and stride == 1 else conv1x1(dim_in, dim_out, stride)
        self.branch = branch
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The stream after the unit."""
        activated = self.act(self.norm(x))
        skip = x if self.shortcut is None else self.shortcut(activated)
        return skip + self.drop_path(self.branch(activated))


class Smoothing(nn.Module):
    """``x + (blur(x) - x)``: a blur of the stream, as a residual unit; if the shape changes, x is projected first."""

    def __init__(self, dim_in: int, dim_out: int, *, stride: int, drop_path: float = 0.0) -> None:
        super().__init__()
        same = dim_in == dim_out and stride == 1
        self.shortcut = nn.Identity() if same else conv1x1(dim_in, dim_out, stride)
        self.branch = BlurDifference()
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """The blurred stream."""
        skip = self.shortcut(x)
        return skip + self.drop_path(self.branch(skip))


class BlurDifference(nn.Module):
    """``blur(x) - x`` for the fixed 3x3 binomial blur, borders replicated.  Shapes: (B, C, H, W) -> (B, C, H, W)."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        binomial = torch.tensor([0.25, 0.5, 0.25])  # its response (1 + cos w)/2 falls to 0 at the Nyquist frequency
        kernel = torch.outer(binomial, binomial)
        kernel[1, 1] -= 1  # "- x"
        self.register_buffer("kernel", kernel, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """What the blur adds to x."""
        channels = x.shape[1]
        x = F.pad(x, (1, 1, 1, 1), mode="replicate")
        return F.conv2d(x, self.kernel.expand(channels, 1, 3, 3), groups=channels)


def basic_branch(dim_in: int, width: int, stride: int) -> nn.Sequential:
    """Two 3x3 convolutions, as in ResNet-18."""
    conv1, conv2 = conv3x3(dim_in, width, stride), conv3x3(width, width)
    return nn.Sequential(OrderedDict(conv1=conv1, norm2=nn.BatchNorm2d(width), act2=nn.ReLU(), conv2=conv2))


def bottleneck_branch(dim_in: int, width: int, stride: int) -> nn.Sequential:
    """1x1, 3x3, 1x1 convolutions, as in ResNet-50."""
    return nn.Sequential(
        OrderedDict(
            conv1=conv1x1(dim_in, width),
            norm2=nn.BatchNorm2d(width),
            act2=nn.ReLU(),
            conv2=conv3x3(width, width, stride),
            norm3=nn.BatchNorm2d(width),
            act3=nn.ReLU(),
            conv3=conv1x1(width, 4 * width),
        )
    )


def attention_branch(dim_in: int, width: int, stride: int, attend: WindowAttention) -> nn.Sequential:
    """A 1x1 convolution, no activation, then attention, whose output projection restores the width."""
    return nn.Sequential(OrderedDict(conv=conv1x1(dim_in, width, stride), norm2=nn.BatchNorm2d(width), attn=attend))


def imagenet_stem(in_chans: int, dim: int) -> nn.Sequential:
    """A 7x7 convolution and max pooling; normalisation and activation follow in the first block."""
    conv = nn.Conv2d(in_chans, dim, 7, 2, 3, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, pool=nn.MaxPool2d(3, 2, 1)))


def cifar_stem(in_chans: int, dim: int) -> nn.Sequential:
    """A 3x3 convolution that keeps the resolution."""
    return nn.Sequential(OrderedDict(conv=conv3x3(in_chans, dim)))


def conv1x1(dim_in: int, dim_out: int, stride: int = 1) -> nn.Conv2d:
    """A 1x1 convolution without bias."""
    return nn.Conv2d(dim_in, dim_out, 1, stride, bias=False)


def conv3x3(dim_in: int, dim_out: int, stride: int = 1) -> nn.Conv2d:
    """A 3x3 convolution without bias, zero padded."""
    return nn.Conv2d(dim_in, dim_out, 3, stride, 1, bias=False)


CONV_BRANCHES = {"basic": basic_branch, "bottleneck": bottleneck_branch}
EXPANSION = {"basic": 1, "bottleneck": 4}  # output width of a block / width inside it
STEMS = {"imagenet": (imagenet_stem, 4), "cifar": (cifar_stem, 1)}  # and the factor by which it reduces the resolution


def word_stages(word: str) -> list[str]:
    """The letters of each stage.

    >>> word_stages("ccc ccca")
    ['ccc', 'ccca']
    """
    if unknown := sorted(set(word) - set("abc ")):
        raise UserError(f"a word has the letters c (convolution), a (attention), b (blur) and spaces; {word!r} has {unknown}")
    if not word.split():
        raise UserError("a word needs at least one letter: c (convolution), a (attention) or b (blur)")
    return word.split()


def refuse_bad_arguments(stages: list[str], *, block: str, stem: str, heads: Sequence[int], **sizes: int) -> None:
    """Errors: UserError for a name that AlterNet does not have, a size below 1, or too few heads."""
    for name, value, known in (("block", block, list(CONV_BRANCHES)), ("stem", stem, list(STEMS))):
        if value not in known:
            raise UserError(f"{name}={value!r}: it must be {' or '.join(known)}")
    for name, size in sizes.items():
        if not isinstance(size, int) or size < 1:
            raise UserError(f"{name}={size!r}: it must be an integer, at least 1")
    if any(not isinstance(number, int) or number < 1 for number in heads):
        raise UserError(f"heads={heads!r}: each must be an integer, at least 1")
    if "a" in "".join(stages[len(heads) :]):
        raise UserError(f"heads={heads!r}: too few for the {len(stages)} stages of {' '.join(stages)!r}")


def without_attention(word: str) -> str:
    """The all-convolution baseline of a word.

    >>> without_attention("ccc ccca")
    'ccc cccc'
    """
    return word.replace("a", "c")


def create(variant: str, pretrained: bool, defaults: dict[str, Any], arguments: dict[str, Any]) -> AlterNet:
    """The registered model ``variant``, built as timm builds its own; the user's arguments override the defaults."""
    arguments = defaults | arguments
    stages = range(len(arguments["word"].split()))
    feature_cfg = {"out_indices": tuple(stages), "feature_cls": "getter"}
    return build_model_with_cfg(AlterNet, variant, pretrained, feature_cfg=feature_cfg, **arguments)


IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "pool_size": (7, 7),
    "crop_pct": 0.875,
    "crop_mode": "center",
    "interpolation": "bicubic",
    "mean": IMAGENET_DEFAULT_MEAN,
    "std": IMAGENET_DEFAULT_STD,
    "first_conv": "stem.conv",
    "classifier": "head.fc",
    "license": "apache-2.0",
    "paper_ids": "arXiv:2202.06709",
    "paper_name": "How Do Vision Transformers Work?",
}
CIFAR_100 = IMAGENET | {
    "num_classes": 100,
    "input_size": (3, 32, 32),
    "pool_size": (4, 4),
    "crop_pct": 1.0,
    "interpolation": "bilinear",
    "mean": (0.5071, 0.4867, 0.4408),  # configs/cifar100_*.yaml of the authors' repository
    "std": (0.2675, 0.2565, 0.2761),
}
DEPTHS = (18, 34, 50, 101, 152)
configurations: dict[str, Any] = {"alternet_50_cifar": CIFAR_100, "preact_resnet_50_cifar": CIFAR_100}
configurations |= {f"{family}_{depth}": IMAGENET for family in ("alternet", "preact_resnet") for depth in DEPTHS}
default_cfgs = generate_default_cfgs(configurations)  # timm reads this name


@register_model
def alternet_18(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """AlterNet with the depths of ResNet-18."""
    return create("alternet_18", pretrained, {"word": ALTERNET_18, "block": "basic"}, arguments)


@register_model
def alternet_34(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """AlterNet with the depths of ResNet-34."""
    return create("alternet_34", pretrained, {"word": ALTERNET_50, "block": "basic"}, arguments)


@register_model
def alternet_50(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """AlterNet-50 for ImageNet."""
    return create("alternet_50", pretrained, {"word": ALTERNET_50}, arguments)


@register_model
def alternet_101(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """AlterNet with the depths of ResNet-101."""
    return create("alternet_101", pretrained, {"word": ALTERNET_101}, arguments)


@register_model
def alternet_152(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """AlterNet with the depths of ResNet-152."""
    return create("alternet_152", pretrained, {"word": ALTERNET_152}, arguments)


@register_model
def alternet_50_cifar(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """AlterNet-50 for CIFAR-100."""
    defaults = {"word": ALTERNET_50_CIFAR, "stem": "cifar", "window": 4}
    return create("alternet_50_cifar", pretrained, defaults, arguments)


@register_model
def preact_resnet_18(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """The all-convolution baseline of `alternet_18`."""
    return create("preact_resnet_18", pretrained, {"word": without_attention(ALTERNET_18), "block": "basic"}, arguments)


@register_model
def preact_resnet_34(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """The all-convolution baseline of `alternet_34`."""
    return create("preact_resnet_34", pretrained, {"word": without_attention(ALTERNET_50), "block": "basic"}, arguments)


@register_model
def preact_resnet_50(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """The all-convolution baseline of `alternet_50`."""
    return create("preact_resnet_50", pretrained, {"word": without_attention(ALTERNET_50)}, arguments)


@register_model
def preact_resnet_101(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """The all-convolution baseline of `alternet_101`."""
    return create("preact_resnet_101", pretrained, {"word": without_attention(ALTERNET_101)}, arguments)


@register_model
def preact_resnet_152(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """The all-convolution baseline of `alternet_152`."""
    return create("preact_resnet_152", pretrained, {"word": without_attention(ALTERNET_152)}, arguments)


@register_model
def preact_resnet_50_cifar(pretrained: bool = False, **arguments: Any) -> AlterNet:
    """The all-convolution baseline of `alternet_50_cifar`."""
    defaults = {"word": without_attention(ALTERNET_50), "stem": "cifar"}
    return create("preact_resnet_50_cifar", pretrained, defaults, arguments)
