"""A device that is not there: tensors with values that say they lie on another device, and refuse what a GPU refuses.

On a GPU every operation wants all its tensors there; a tensor of the CPU beside them is an error. This device raises
the same error, computes everything else on the CPU, and so finds tensors that were forgotten, without a GPU.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

ELSEWHERE = torch.device("meta")
"""The only kind of device beside the CPU that any build of torch lets tensors say they are on."""
_MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
_INDEXED = (torch.ops.aten.index.Tensor, torch.ops.aten.index_put_.default, torch.ops.aten.index_put.default)
"""These take indices on the CPU, of tensors that are elsewhere."""


class There(Tensor):
    """A tensor that says it is elsewhere."""

    here: Tensor

    @staticmethod
    def __new__(cls, here: Tensor) -> There:
        made = Tensor._make_wrapper_subclass(
            cls, here.size(), here.stride(), here.storage_offset(), dtype=here.dtype, device=ELSEWHERE
        )
        made.here = here
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        return computed(func, args, kwargs or {})

    def tolist(self) -> Any:
        return self.here.tolist()

    def numpy(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("can't convert a tensor on another device to numpy")


class _Mode(TorchDispatchMode):
    """Sends there what asks for it: new tensors, and copies."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        with self:  # what is made of other operations comes back as these
            found = func.decompose(*args, **(kwargs or {}))
        return computed(func, args, kwargs or {}) if found is NotImplemented else found


def computed(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """What an operation gives, with its tensors where they are on a GPU; an error where it mixes devices."""
    tensors = [leaf for leaf in tree_flatten((args, dict(kwargs)))[0] if isinstance(leaf, Tensor)]
    there = [tensor for tensor in tensors if isinstance(tensor, There)]
    asked = kwargs.get("device")
    to_there = bool(there) if asked is None else torch.device(asked).type == ELSEWHERE.type
    if func is torch.ops.aten.copy_.default:
        to_there = isinstance(args[0], There)
    checked = [args[0]] if func in _INDEXED and isinstance(args[0], There) else tensors
    left = [list(tensor.shape) for tensor in checked if not isinstance(tensor, There) and tensor.dim()]
    if func in _INDEXED and there and not isinstance(args[0], There):
        raise RuntimeError(f"{func}: indices should be on the CPU, or on the device of what they index")
    if func not in _MOVES and left and (there or to_there):
        raise RuntimeError(f"Expected all tensors to be on the same device, {func} has one of {left[0]} on cpu")
    names = {id(tensor.here): tensor for tensor in there}
    real = tree_map(lambda leaf: leaf.here if isinstance(leaf, There) else leaf, (tuple(args), dict(kwargs)))
    if asked is not None:
        real[1]["device"] = torch.device("cpu")
    found = func(*real[0], **real[1])
    if func in _MOVES and to_there and asked is not None and found is tensors[0]:
        found = found.clone()

    def placed(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not to_there:
            return leaf
        return names.get(id(leaf)) if id(leaf) in names else There(leaf)

    return tree_map(placed, found)


@contextmanager
def elsewhere() -> Iterator[torch.device]:
    """Let there be a device elsewhere; its tensors cannot take inference mode, so that there is none meanwhile."""

    def without(mode: bool = True) -> AbstractContextManager[Any]:
        return torch.no_grad() if mode else nullcontext()

    with mock.patch.object(torch, "inference_mode", without), _Mode():
        yield ELSEWHERE
