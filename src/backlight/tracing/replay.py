"""Forward passes of the same images that differ late: modules that finish before the difference are not run again.

Their outputs are kept from the intact pass, and handed back as copies.  A module is handed back only if a trial showed that it
runs once, changes no input in place, and returns new tensors; all others run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from backlight.inputs import tensors
from backlight.tracing.trace import inside

LIMIT = 2 << 30  # bytes of outputs that are kept of a batch; modules beyond run again


@dataclass
class Call:
    """When a module ran in the trial, and whether it can be handed back."""

    enter: int
    exit: int = -1
    calls: int = 1
    sound: bool = True
    inputs: list[Tensor] = field(default_factory=list)  # copies, until it returns


class Replay:
    """Passes of one model that are intact up to a module."""

    def __init__(self, model: nn.Module, images: Tensor) -> None:
        """Try the model.  Shapes: images (B, C, H, W), one batch of two or so."""
        self.root = inside(model)
        self.calls: Mapping[str, Call] = {} if self.root is not model else tried(model, images)
        #: Whether the intact pass may compute attention in another way than passes in which a hook reads or replaces something.
        self.own_pass = any(
            isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer) for module in model.modules()
        )
        self.kept: dict[str, Any] = {}
        self.wanted: set[str] = set()

    def moment(self, module: str, *, entered: bool = False) -> int:
        """When this module returns, or is entered; 0, before everything, if that is not known."""
        call = self.calls.get(module)
        if call is None or call.calls != 1:
            return 0
        return call.enter if entered else call.exit

    def finished(self, moment: int) -> frozenset[str]:
        """The largest modules that finish before this moment."""
        done = {name for name, call in self.calls.items() if call.sound and call.calls == 1 and call.exit < moment}
        largest = frozenset(name for name in done if not any(parent in done for parent in parents(name)))
        self.wanted |= largest
        return largest

    @contextmanager
    def keeping(self) -> Iterator[None]:
        """Within the block a forward pass keeps the outputs that are wanted, up to `LIMIT` bytes."""
        self.kept, left = {}, [LIMIT]

        def keep(name: str) -> Callable[..., None]:
            def hook(_: nn.Module, __: Any, output: Any) -> None:
                left[0] -= sum(tensor.nbytes for tensor in tensors(output))
                if left[0] >= 0:
                    self.kept[name] = copied(output)

            return hook

        with ExitStack() as hooks:
            for name in sorted(self.wanted):
                hooks.callback(self.root.get_submodule(name).register_forward_hook(keep(name)).remove)
            yield

    @contextmanager
    def handing_back(self, names: frozenset[str]) -> Iterator[None]:
        """Within the block these modules return what they returned in the pass that was kept."""
        with ExitStack() as stack:
            for name in names & self.kept.keys():
                module = self.root.get_submodule(name)
                stack.callback(module.__dict__.pop, "forward", None)
                module.__dict__["forward"] = returning(self.kept[name])
            yield


def returning(output: Any) -> Callable[..., Any]:
    """A function that returns copies of this output, whatever it gets."""
    return lambda *_, **__: copied(output)


def parents(name: str) -> Iterator[str]:
    """The modules that hold the module of this name.

    >>> list(parents("a.b.c"))
    ['a.b', 'a']
    """
    while "." in name:
        name = name.rpartition(".")[0]
        yield name


def copied(output: Any) -> Any:
    """The same nested tensors, copied."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, dict):
        return {key: copied(value) for key, value in output.items()}
    return type(output)(copied(value) for value in output) if type(output) in (tuple, list) else output


def is_plain(output: Any) -> bool:
    """Whether `copied` copies all of it: tensors in tuples, lists and dictionaries."""
    if isinstance(output, dict) and type(output) is dict:
        return all(map(is_plain, output.values()))
    return output is None or type(output) is Tensor or (type(output) in (tuple, list) and all(map(is_plain, output)))


def tried(model: nn.Module, images: Tensor) -> dict[str, Call]:
    """When each module runs in a forward pass, and whether it can be handed back: by name."""
    calls: dict[str, Call] = {}
    clock = iter(range(1 << 62))

    def enter(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            if name in calls:
                calls[name].calls += 1
            else:
                inputs = [tensor.clone() for tensor in tensors((args, list(kwargs.values())))]
                patched = "forward" in module.__dict__ or isinstance(module, torch.jit.ScriptModule)
                calls[name] = Call(next(clock), sound=not patched, inputs=inputs)

        return hook

    def leave(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
            call, given = calls[name], list(tensors((args, list(kwargs.values()))))
            unchanged = len(given) == len(call.inputs) and all(map(equal, given, call.inputs))
            own = {tensor.untyped_storage().data_ptr() for tensor in given}
            new = not any(tensor.untyped_storage().data_ptr() in own for tensor in tensors(output))
            call.exit, call.inputs = next(clock), []
            call.sound = call.sound and unchanged and new and is_plain(output)

        return hook

    with ExitStack() as hooks:
        for name, module in model.named_modules():
            if name:
                hooks.callback(module.register_forward_pre_hook(enter(name), with_kwargs=True).remove)
                hooks.callback(module.register_forward_hook(leave(name), with_kwargs=True).remove)
        model(images)
    return {name: call for name, call in calls.items() if call.exit >= 0}


def equal(a: Tensor, b: Tensor) -> bool:
    """Whether all numbers are the same, NaN included."""
    return a.shape == b.shape and torch.equal(torch.nan_to_num(a), torch.nan_to_num(b))
