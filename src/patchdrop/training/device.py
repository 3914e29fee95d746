"""Find the device that a user named."""

from __future__ import annotations

import re

import torch

from patchdrop.errors import RunError, UsageError


def device_of(name: str) -> torch.device:
    """Return the device with a name; ``auto`` takes a GPU where there is one.

    Raises:
        UsageError: there is no such device, or none that this project runs on.
        RunError: it is a GPU that this machine does not have.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"device: {name!r} is not one of auto, cpu, cuda and cuda:0, cuda:1, ...")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"device {name}: torch finds no GPU here; use --device cpu")
    number = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and number >= torch.cuda.device_count():
        raise RunError(f"device {name}: torch finds {torch.cuda.device_count()} GPUs here, the first is cuda:0")
    return torch.device(name)
