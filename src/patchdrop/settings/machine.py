"""What a user may say of the machine that applies a trained run; free of torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from patchdrop.errors import UsageError

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where a trained run computes, and how precisely; what it was trained on does not count."""

    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, or ``auto``: a GPU where there is one."""
    precision: Precision = "float32"
    """Of the HR classifiers; ``bfloat16`` is faster on GPUs. What is decided from LR is float32 always."""

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise UsageError(f"precision: {self.precision!r} is not one of {', '.join(get_args(Precision))}")
