"""Checkpoints of the authors' repository, github.com/xxxnell/how-do-vits-work, read into our models and timm's.

A checkpoint is recognised from its tensors alone: their names give the family, their shapes give the arguments.  Supported
are AlterNet and its all-convolution baseline, ResNet and ResNeXt, and the ViT, PiT and Swin of timm 0.5.4.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.models.pit import PoolingVisionTransformer
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from backlight.data.preprocessing import with_pretrained_cfg
from backlight.errors import UserError
from backlight.models.architectures.alternet import CIFAR_100, IMAGENET, AlterNet
from backlight.models.architectures.cifar import CifarResNet

State = Mapping[str, Tensor]
STEM, DENSE = re.compile(r"^layer0\.(layer0\.)?0\.weight$"), "classifier.0.dense.weight"
CIFAR_10 = CIFAR_100 | {"mean": (0.4914, 0.4822, 0.4465), "std": (0.2023, 0.1994, 0.2010)}  # configs/cifar10_*.yaml


@dataclass(frozen=True)
class Family:
    """How one kind of official model is recognised, renamed and built."""

    name: str
    signature: re.Pattern[str]  # the name of a tensor that this family has and the later ones in FAMILIES do not
    names: tuple[tuple[str, str], ...]  # official pattern -> our name; the first pattern that matches is applied
    build: Callable[[State], nn.Module]
    shifted: tuple[str, str, int] | None = None  # a number in a name: its pattern, our form of it, and what is added to it
    buffers: tuple[str, ...] = ()  # endings of the names of buffers, which the model computes itself


def official_model(state: State, *, weights: bool = True) -> nn.Module:
    """The model of an official state dict, in eval mode and with its preprocessing.

    weights=False: random weights.  Errors: UserError with the first names that do not fit.
    """
    family = next((family for family in FAMILIES if any(map(family.signature.search, state))), None)
    if family is None:
        raise UserError(
            f"not a model of the authors' repository: no {DENSE}, patch_embed.proj.weight or patch_embed.conv.weight; "
            f"its tensors begin with {', '.join(list(state)[:3])}"
        )
    state = {name: tensor for name, tensor in state.items() if not name.endswith(family.buffers or ("\0",))}
    try:
        model = family.build(state)
    except (KeyError, ValueError, IndexError, ZeroDivisionError, StopIteration) as error:
        missing = f": no {error.args[0]}" if isinstance(error, KeyError) else ""
        raise UserError(f"not a complete {family.name} of the authors' repository{missing}") from error
    renamed_state = translated(state, family)
    refuse_misfit(state, renamed_state, model, family)
    if weights:
        model.load_state_dict(renamed_state)
    return with_pretrained_cfg(model.eval(), preprocessing(model))


def preprocessing(model: Any) -> dict[str, Any]:
    """The preprocessing of the authors' configurations, for this size of image and number of classes."""
    in_chans = model.conv1.in_channels if isinstance(model, ResNet) else model.in_chans
    if isinstance(model, AlterNet | ResNet):
        small = isinstance(model, CifarResNet) or (isinstance(model, AlterNet) and model.feature_info[0]["reduction"] == 1)
        side = 32 if small else 224
    else:
        side = model.patch_embed.img_size[0]
    base: dict[str, Any] = IMAGENET if side > 64 else CIFAR_10 if model.num_classes == 10 else CIFAR_100
    layers = {} if isinstance(model, AlterNet) else {"first_conv": None, "classifier": None}  # the base has AlterNet's
    return base | layers | {"input_size": (in_chans, side, side), "num_classes": model.num_classes}


def refuse_misfit(state: State, renamed_state: State, model: nn.Module, family: Family) -> None:
    """Errors: UserError with the first names that are unknown, missing or of another shape."""
    ours = model.state_dict()
    misfits = [
        name for name in state if (mine := renamed(name, family)) not in ours or renamed_state[mine].shape != ours[mine].shape
    ] or [name for name in ours if name not in renamed_state]
    if misfits:
        names = ", ".join(misfits[:3]) + (f" and {len(misfits) - 3} more" if len(misfits) > 3 else "")
        expected = repr(model.word) if isinstance(model, AlterNet) else f"a {family.name} of these shapes"
        raise UserError(f"not {'an' if family.name[0] in 'AEIOU' else 'a'} {family.name}: {names} differ from {expected}")


def translated(state: State, family: Family) -> dict[str, Tensor]:
    """The state dict in our names and shapes.

    Of AlterNet, queries, keys and values become one tensor, the 1x1 convolutions of attention become linear layers, and the
    bias table gets a head axis.
    """
    ours = {renamed(name, family): tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        if name.endswith("attn.to_q.weight"):
            keys_and_values = state.get(name.replace("to_q", "to_kv"), tensor[:0])
            ours[renamed(name, family)] = torch.cat([tensor, keys_and_values]).flatten(1)
        elif name.endswith("attn.to_out.0.weight"):
            ours[renamed(name, family)] = tensor.flatten(1)
        elif name.endswith("attn.pos_embedding"):
            ours[renamed(name, family)] = tensor[None]
    return ours


def renamed(name: str, family: Family) -> str:
    """Our name of an official tensor.

    >>> renamed("layer2.3.conv2.0.weight", FAMILIES[0]), renamed("layer2.3.conv2.0.weight", FAMILIES[1])
    ('stages.1.3.branch.norm2.weight', 'layer2.3.conv2.weight')
    """
    name = next((re.sub(theirs, ours, name) for theirs, ours in family.names if re.search(theirs, name)), name)
    if family.shifted is None:
        return name
    theirs, ours, shift = family.shifted
    return re.sub(theirs, lambda match: ours.format(int(match[1]) + shift), name)


# From shapes to arguments


def alternet(state: State) -> AlterNet:
    """The AlterNet of these shapes; ``dim_head`` is 64, as in all official models."""
    blocks = blocks_of(state, r"layer(\d+)\.(\d+)\.")
    stem, dense = state[stem_name(state)], state[DENSE]
    state["layer1.0.conv1.weight"]  # the first block is a convolution
    tables = {block: state.get(f"layer{block[0]}.{block[1]}.attn.pos_embedding") for block in blocks}
    stages = range(1, blocks[-1][0] + 1)
    heads = {s: 3 * 2 ** (s - 1) for s in stages}
    for (s, i), table in tables.items():
        if table is not None:
            heads[s] = max(1, len(state.get(f"layer{s}.{i}.attn.attn.to_q.weight", ())) // 64)
    return AlterNet(
        " ".join("".join("c" if tables[b] is None else "a" for b in blocks if b[0] == s) for s in stages),
        block="bottleneck" if "layer1.0.conv3.2.weight" in state else "basic",
        stem="imagenet" if stem.shape[2] == 7 else "cifar",
        dim=stem.shape[0],
        in_chans=stem.shape[1],
        num_classes=len(dense),
        heads=tuple(heads.values()),
        window=next((len(table) // 2 + 1 for table in tables.values() if table is not None), 7),
    )


def resnet(state: State) -> ResNet:
    """The ResNet or ResNeXt of these shapes, basic or bottleneck; the 3x3 kernel gives the number of groups."""
    blocks = blocks_of(state, r"layer([1-9])\.(\d+)\.")
    stem, dense = state[stem_name(state)], state[DENSE]
    width, per_group = state["layer1.0.conv2.0.weight"].shape[:2]
    bottleneck = "layer1.0.conv3.0.weight" in state
    groups = width // per_group if bottleneck else 1
    stages = range(1, 5)
    ends = [state[f"layer{stage}.0.conv{3 if bottleneck else 2}.0.weight"] for stage in stages]
    channels = [len(end) // (4 if bottleneck else 1) for end in ends]
    make: Any = ResNet if stem.shape[2] == 7 else CifarResNet
    return make(
        block=Bottleneck if bottleneck else BasicBlock,
        layers=tuple(sum(s == stage for s, _ in blocks) for stage in stages),
        channels=tuple(channels),
        cardinality=groups,
        base_width=64 * width // (groups * channels[0]) if bottleneck else 64,
        num_classes=len(dense),
        in_chans=stem.shape[1],
    )


def vit(state: State) -> VisionTransformer:
    """The ViT of these shapes; the number of heads is not in the tensors, and all official heads have 64 channels."""
    patch, position = state["patch_embed.proj.weight"], state["pos_embed"]
    tokens = position.shape[1] - ("cls_token" in state)
    return VisionTransformer(
        img_size=math.isqrt(tokens) * patch.shape[2],
        **patches_of(patch, state),
        depth=len(blocks_of(state, r"(blocks)\.(\d+)\.")),
        num_heads=max(1, len(patch) // 64),
        mlp_ratio=state["blocks.0.mlp.fc1.weight"].shape[0] / len(patch),
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        class_token="cls_token" in state,
        global_pool="token" if "cls_token" in state else "avg",
    )


def pit(state: State) -> PoolingVisionTransformer:
    """The PiT of these shapes, with heads of 32 channels as in the official PiT-Ti; images of 32 px if patches are small."""
    patch, side = state["patch_embed.conv.weight"], state["pos_embed"].shape[2]
    blocks = blocks_of(state, r"transformers\.(\d+)\.blocks\.(\d+)\.")
    stages = range(blocks[-1][0] + 1)
    dims = [len(state[f"transformers.{s}.blocks.0.attn.proj.weight"]) for s in stages]
    img_size = 32 if patch.shape[2] <= 4 else 224
    return PoolingVisionTransformer(
        img_size=img_size,
        patch_size=patch.shape[2],
        stride=max(1, (img_size - patch.shape[2]) // (side - 1)),
        base_dims=tuple(32 for _ in dims),
        heads=tuple(dim // 32 for dim in dims),
        depth=tuple(sum(stage == s for s, _ in blocks) for stage in stages),
        mlp_ratio=len(state["transformers.0.blocks.0.mlp.fc1.weight"]) / dims[0],
        in_chans=patch.shape[1],
        num_classes=len(state["head.weight"]),
    )


def swin(state: State) -> SwinTransformer:
    """The Swin of these shapes; bias tables give heads and window, and the image is as large as the stages allow."""
    patch, stages = state["patch_embed.proj.weight"], {}
    for s, i in blocks_of(state, r"layers\.(\d+)\.blocks\.(\d+)\."):
        stages[s] = i + 1
    tables = [state[f"layers.{s}.blocks.0.attn.relative_position_bias_table"] for s in stages]
    window = (math.isqrt(len(tables[0])) + 1) // 2
    return SwinTransformer(
        img_size=patch.shape[2] * window * 2 ** (len(stages) - 1),  # the last stage is one window
        **patches_of(patch, state),
        depths=tuple(stages.values()),
        num_heads=tuple(table.shape[1] for table in tables),
        window_size=window,
        mlp_ratio=len(state["layers.0.blocks.0.mlp.fc1.weight"]) / len(patch),
        qkv_bias="layers.0.blocks.0.attn.qkv.bias" in state,
    )


def patches_of(patch: Tensor, state: State) -> dict[str, Any]:
    """The arguments in the shapes of the patch embedding and the head.  Shapes: patch (dim, in_chans, p, p)."""
    dim, in_chans, side, _ = patch.shape
    return {"patch_size": side, "embed_dim": dim, "in_chans": in_chans, "num_classes": len(state["head.weight"])}


def stem_name(state: State) -> str:
    """The official name of the first convolution's weight.  Errors: KeyError if there is none."""
    name = next((name for name, tensor in state.items() if STEM.match(name) and tensor.ndim == 4), None)
    if name is None:
        raise KeyError("layer0.0.weight")
    return name


def blocks_of(state: State, pattern: str) -> list[tuple[Any, int]]:
    """(stage, block) of every block, in order.  Errors: KeyError if there is none."""
    blocks = {(m[1], int(m[2])) for name in state if (m := re.match(pattern, name))}
    if not blocks:
        raise KeyError(pattern.replace(r"(\d+)", "0").replace("\\", "").strip("()"))
    return sorted((int(stage) if stage.isdigit() else stage, block) for stage, block in blocks)


FAMILIES = (
    Family(
        "AlterNet",
        re.compile(r"^classifier\.0\.bn\.|\.attn\.pos_embedding$|\.conv2\.2\.weight$"),
        (
            (r"^layer0\.(layer0\.)?0\.", "stem.conv."),
            (r"^classifier\.0\.bn\.", "norm.bn."),
            (r"^classifier\.0\.dense\.", "head.fc."),
            (r"\.shortcut\.0\.", ".shortcut."),
            (r"\.(bn|norm1)\.", ".norm."),
            (r"\.conv1\.", ".branch.conv1."),
            (r"\.conv([23])\.0\.", r".branch.norm\1."),
            (r"\.conv([23])\.2\.", r".branch.conv\1."),
            (r"\.conv\.", ".branch.conv."),
            (r"\.norm2\.", ".branch.norm2."),
            (r"\.attn\.pos_embedding$", ".branch.attn.bias_table"),
            (r"\.attn\.attn\.to_out\.0\.", ".branch.attn.out."),
            (r"\.attn\.attn\.to_(q|kv)\.", ".branch.attn.qkv."),
        ),
        alternet,
        (r"^layer(\d+)\.", "stages.{}.", -1),
    ),
    Family(
        "ResNet",
        re.compile(r"^classifier\.0\.dense\.weight$"),
        (
            (r"^layer0\.(layer0\.)?0\.", "conv1."),
            (r"^layer0\.(layer0\.)?1\.", "bn1."),
            (r"^classifier\.0\.dense\.", "fc."),
            (r"\.shortcut\.", ".downsample."),
            (r"\.conv(\d)\.0\.", r".conv\1."),
            (r"\.conv(\d)\.1\.", r".bn\1."),
        ),
        resnet,
    ),
    Family(
        "PiT",
        re.compile(r"^patch_embed\.conv\.weight$"),
        (),
        pit,
        (r"^transformers\.(\d+)\.pool\.", "transformers.{}.pool.", 1),  # official: end of a stage; timm: start of the next
    ),
    Family(
        "Swin",
        re.compile(r"\.relative_position_bias_table$"),
        ((r"^head\.", "head.fc."),),
        swin,
        (r"^layers\.(\d+)\.downsample\.", "layers.{}.downsample.", 1),  # as for PiT
        buffers=("relative_position_index", "attn_mask"),
    ),
    Family("ViT", re.compile(r"^patch_embed\.proj\.weight$"), (), vit),
)
