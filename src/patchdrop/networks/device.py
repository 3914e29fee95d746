"""Find the device that a user named, and set the precision that networks compute in there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from patchdrop.errors import UsageError


def device_of(name: str) -> torch.device:
    """Return the device with a name; ``auto`` takes a GPU where there is one.

    Raises:
        UsageError: there is no such device, or none that this project runs on, or a GPU that this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"device: {name!r} is not one of auto, cpu, cuda and cuda:0, cuda:1, ...")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise UsageError(f"device {name}: torch finds no GPU here; use --device cpu")
    number = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and number >= torch.cuda.device_count():
        raise UsageError(f"device {name}: torch finds {torch.cuda.device_count()} GPUs here, the first is cuda:0")
    return torch.device(name)


def autocast(kind: str, precision: str) -> torch.autocast:
    """Compute convolutions and matrix products in a precision; softmax and the like stay in float32.

    Args:
        kind: ``cpu`` or ``cuda``.
    """
    # No cache: it could give a weight that was cast without a gradient to a pass that needs one.
    return torch.autocast(kind, torch.bfloat16, enabled=precision == "bfloat16", cache_enabled=False)


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Keep all bits of float32: by torch's default, convolutions on a GPU use 10 of the 23 of a mantissa (TF32)."""
    if device.type != "cuda":
        yield
        return
    cudnn: Any = torch.backends.cudnn
    parts = (cudnn.conv, cudnn.rnn, torch.backends.cuda.matmul)  # torch wants those of cuDNN to agree
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, precision in zip(parts, before, strict=True):
            part.fp32_precision = precision
