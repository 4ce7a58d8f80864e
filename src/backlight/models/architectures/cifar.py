"""The networks that the paper compares on CIFAR, for images of 32 px: timm's classes with the authors' arguments.

Park & Kim (2022), README and figures 5 to 9.  The classes are timm's, so timm's arguments change them:
``vit_ti_cifar?patch_size=4``, ``?class_token=false&global_pool=avg``, ``?num_heads=6``, ``?depth=6``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.convit import ConVit
from timm.models.mlp_mixer import MlpMixer
from timm.models.pit import PoolingVisionTransformer
from timm.models.resnet import Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from backlight.models.architectures.alternet import CIFAR_100, conv3x3


class CifarResNet(ResNet):
    """A post-activation ResNet whose stem is a 3x3 convolution that keeps the resolution: no stride and no pooling.

    Shapes: (B, in_chans, H, W) -> (B, num_classes); stages at 1, 1/2, 1/4 and 1/8 of the resolution.
    """

    def __init__(self, *, in_chans: int = 3, **arguments: Any) -> None:
        super().__init__(in_chans=in_chans, **arguments)
        stem: nn.Conv2d = self.get_submodule("conv1")  # type: ignore[assignment]
        conv = conv3x3(in_chans, stem.out_channels)
        nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
        self.add_module("conv1", conv)
        self.add_module("maxpool", nn.Identity())
        for stage, info in enumerate(self.feature_info):
            info["reduction"] = max(1, 2 ** (stage - 1))


#: The authors' models, in timm's arguments.
RESNET_50: dict[str, Any] = {"block": Bottleneck, "layers": (3, 4, 6, 3)}
RESNEXT_50 = RESNET_50 | {"cardinality": 32, "base_width": 4}
VIT_TI: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "embed_dim": 192,
    "depth": 12,
    "num_heads": 3,
    "qkv_bias": False,
}
PIT_TI: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "stride": 1,
    "base_dims": (32, 32, 32),
    "depth": (2, 6, 4),
    "heads": (2, 4, 8),
    "mlp_ratio": 4,
}
SWIN_TI: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 1,
    "window_size": 4,
    "embed_dim": 96,
    "depths": (2, 2, 6, 2),
    "num_heads": (3, 6, 12, 24),
    "qkv_bias": False,
}
MIXER_TI: dict[str, Any] = {
    "img_size": 32,
    "patch_size": 2,
    "num_blocks": 8,
    "embed_dim": 256,
    "mlp_ratio": (0.5, 4.0),  # hidden width of the token MLP, 128, and of the channel MLP, 1024, / embed_dim
}
CONVIT_TI: dict[str, Any] = {"img_size": 32, "patch_size": 2, "embed_dim": 48, "num_heads": 4}

FIRST = {"resnet": "conv1", "resnext": "conv1", "mixer": "stem.proj", "pit": "patch_embed.conv"}
HEADS = {"resnet": "fc", "resnext": "fc", "swin": "head.fc"}


def configuration(name: str) -> dict[str, Any]:
    """The configuration of a model for timm: CIFAR-100's preprocessing and the names of the first and last layer."""
    family = name.partition("_")[0]
    return CIFAR_100 | {
        "first_conv": FIRST.get(family, "patch_embed.proj"),
        "classifier": HEADS.get(family, "head"),
        "pool_size": (4, 4) if family in ("resnet", "resnext", "swin") else None,  # None, as in timm, for tokens
        "fixed_input_size": family not in ("resnet", "resnext"),
    }


NAMES = (
    "resnet_50_cifar",
    "resnext_50_cifar",
    "vit_ti_cifar",
    "pit_ti_cifar",
    "swin_ti_cifar",
    "mixer_ti_cifar",
    "convit_ti_cifar",
)
default_cfgs = generate_default_cfgs({name: configuration(name) for name in NAMES})  # timm reads this name


def create(cls: type[nn.Module], variant: str, pretrained: bool, defaults: dict[str, Any], arguments: dict[str, Any]) -> Any:
    """The registered model ``variant``, built as timm builds its own; the user's arguments override the defaults."""
    arguments = defaults | arguments
    feature_cfg = {"out_indices": feature_indices(arguments), "feature_cls": "getter"}
    return build_model_with_cfg(cls, variant, pretrained, feature_cfg=feature_cfg, **arguments)


def feature_indices(arguments: dict[str, Any]) -> int | tuple[int, ...]:
    """The maps that ``features_only=True`` returns, as in timm: of all stages, or of the last three blocks."""
    if "layers" in arguments:
        return tuple(range(len(arguments["layers"]) + 1))  # and of the stem
    stages = arguments.get("depths", arguments.get("depth"))
    return tuple(range(len(stages))) if isinstance(stages, Sequence) else 3


@register_model
def resnet_50_cifar(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    """ResNet-50 with a stem for 32 px."""
    return create(CifarResNet, "resnet_50_cifar", pretrained, RESNET_50, arguments)


@register_model
def resnext_50_cifar(pretrained: bool = False, **arguments: Any) -> CifarResNet:
    """ResNeXt-50 (32x4d) with a stem for 32 px."""
    return create(CifarResNet, "resnext_50_cifar", pretrained, RESNEXT_50, arguments)


@register_model
def vit_ti_cifar(pretrained: bool = False, **arguments: Any) -> VisionTransformer:
    """ViT-Ti with patches of 2 px."""
    return create(VisionTransformer, "vit_ti_cifar", pretrained, VIT_TI, arguments)


@register_model
def pit_ti_cifar(pretrained: bool = False, **arguments: Any) -> PoolingVisionTransformer:
    """PiT-Ti with overlapping patches of 2 px."""
    return create(PoolingVisionTransformer, "pit_ti_cifar", pretrained, PIT_TI, arguments)


@register_model
def swin_ti_cifar(pretrained: bool = False, **arguments: Any) -> SwinTransformer:
    """Swin-Ti with patches of 1 px and windows of 4 x 4."""
    return create(SwinTransformer, "swin_ti_cifar", pretrained, SWIN_TI, arguments)


@register_model
def mixer_ti_cifar(pretrained: bool = False, **arguments: Any) -> MlpMixer:
    """MLP-Mixer-Ti with patches of 2 px."""
    return create(MlpMixer, "mixer_ti_cifar", pretrained, MIXER_TI, arguments)


@register_model
def convit_ti_cifar(pretrained: bool = False, **arguments: Any) -> ConVit:
    """ConViT-Ti of d'Ascoli et al.  The model that the paper calls ConViT in figure 7 is `local_vit_ti_cifar`."""
    return create(ConVit, "convit_ti_cifar", pretrained, CONVIT_TI, arguments)
