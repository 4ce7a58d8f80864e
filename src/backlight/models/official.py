"""Checkpoints of the authors' repository, github.com/xxxnell/how-do-vits-work: their names, our names, and the word.

An official AlterNet, or its all-convolution baseline, is recognised from its tensors alone: which blocks attend gives
the word, the shapes give the arguments.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .alternet import AlterNet

STEM, DENSE = re.compile(r"^layer0\.(layer0\.)?0\.weight$"), "classifier.0.dense.weight"
NAMES = (  # official -> ours; the first that matches a name rewrites it
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
)


def alternet_from(state: Mapping[str, Tensor]) -> AlterNet:
    """The AlterNet whose official state dict this is, in eval mode; UserError with the first names that do not fit."""
    names = {name: our_name(name) for name in state}
    model = AlterNet(**official_arguments(state))
    ours = {name: tensor.shape for name, tensor in model.state_dict().items()}
    found = from_official(state)
    strange = [name for name in state if names[name] not in ours or found[names[name]].shape != ours[names[name]]]
    if strange or (strange := sorted(ours.keys() - found.keys())):
        shown = ", ".join(strange[:3]) + (f" and {len(strange) - 3} more" if len(strange) > 3 else "")
        raise UserError(f"not an AlterNet of the authors' repository: {shown} differ from {model.word!r}")
    model.load_state_dict(found)
    return model.eval()


def from_official(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """An official state dict in our names: queries, keys and values in one tensor, the bias table with a head axis."""
    ours = {our_name(name): tensor for name, tensor in state.items()}
    for name, tensor in state.items():
        if name.endswith("attn.to_q.weight"):
            keys_and_values = state.get(name.replace("to_q", "to_kv"), tensor[:0])
            ours[our_name(name)] = torch.cat([tensor, keys_and_values])
        elif name.endswith("attn.pos_embedding"):
            ours[our_name(name)] = tensor[None]
    return ours


def our_name(name: str) -> str:
    """Our name of an official tensor.

    >>> our_name("layer2.3.conv2.0.weight"), our_name("layer2.3.attn.attn.to_kv.weight")
    ('stages.1.3.branch.norm2.weight', 'stages.1.3.branch.attn.qkv.weight')
    """
    rewrites = (re.sub(theirs, ours, name) for theirs, ours in NAMES if re.search(theirs, name))
    name = re.sub(r"\.attn\.attn\.to_(q|kv)\.", ".branch.attn.qkv.", next(rewrites, name))
    return re.sub(r"^layer(\d+)\.", lambda match: f"stages.{int(match[1]) - 1}.", name)


def official_arguments(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What to build: the arguments of AlterNet.  ``dim_head`` is 64, as in all the official models."""
    blocks = sorted({(int(m[1]), int(m[2])) for name in state if (m := re.match(r"layer(\d+)\.(\d+)\.", name))})
    stem = next((name for name, tensor in state.items() if STEM.match(name) and tensor.ndim == 4), "")
    if missing := [name for name in (stem, "layer1.0.conv1.weight", DENSE) if name not in state]:
        raise UserError(
            f"not an AlterNet of the authors' repository: no {missing[0] or 'layer0.layer0.0.weight'}; "
            f"its tensors begin with {', '.join(list(state)[:3])}"
        )
    tables = {block: state.get(f"layer{block[0]}.{block[1]}.attn.pos_embedding") for block in blocks}
    stages = range(1, blocks[-1][0] + 1)
    heads = {s: 3 * 2 ** (s - 1) for s in stages}
    for (s, i), table in tables.items():
        if table is not None:
            heads[s] = max(1, len(state.get(f"layer{s}.{i}.attn.attn.to_q.weight", ())) // 64)
    dim, in_chans, kernel, _ = state[stem].shape
    return {
        "word": " ".join("".join("c" if tables[b] is None else "a" for b in blocks if b[0] == s) for s in stages),
        "block": "bottleneck" if "layer1.0.conv3.2.weight" in state else "basic",
        "stem": "imagenet" if kernel == 7 else "cifar",
        "dim": dim,
        "in_chans": in_chans,
        "num_classes": len(state[DENSE]),
        "heads": tuple(heads.values()),
        "window": next((len(table) // 2 + 1 for table in tables.values() if table is not None), 7),
    }
