"""Measure what a row costs for each image: bytes and pixels read, operations counted, time taken."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from patchdrop.classify.high import HighClassifier
from patchdrop.costs.times import wait_for
from patchdrop.episode import PatchDrop
from patchdrop.grid import Grid, boxes
from patchdrop.read.source import from_memory

Key = TypeVar("Key")
BATCHES = (1, 64)
WARM_UP, REPEATS = 2, 25
SINGLES = 16
"""Images that are timed one by one."""


def pixels_read(choice: Tensor, grid: Grid, size: tuple[int, int]) -> float:
    """Return the HR pixels of the chosen patches, a mean over images ``(n, P)`` bool."""
    areas = torch.tensor([(b - t) * (r - le) for t, le, b, r in boxes(grid, *size)], dtype=torch.float64)
    return float((choice.double() @ areas).mean())


@dataclass(frozen=True)
class GivenChoice:
    """A row's model, called with a known choice: ``high (B, C, H, W)``, ``low (B, C, h, w)``, ``choice (B, P)``.

    The policy runs, but its scores are ignored; so what is measured is an episode with just that choice.
    """

    model: nn.Module
    grid: Grid

    @torch.inference_mode()
    def __call__(self, high: Tensor, low: Tensor, choice: Tensor) -> Tensor:
        """Return class logits."""
        logits: Tensor
        if isinstance(self.model, PatchDrop):
            logits = self.model(low, lambda scores: choice, from_memory(high, self.grid)).logits
        elif isinstance(self.model, HighClassifier):
            logits = self.model(from_memory(high, self.grid)(torch.ones_like(choice)), low)
        else:
            logits = self.model(low)
        return logits


def flops(given: GivenChoice, high: Tensor, low: Tensor, choice: Tensor) -> float:
    """Count the floating-point operations per image while a batch runs; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        given(high, low, choice)
    return float(counter.get_total_flops()) / len(high)


def times_in_turns(
    work: Mapping[Key, Callable[[], object]], device: torch.device, repeats: int = REPEATS
) -> dict[Key, float]:
    """Return the median seconds of each named piece of work, run in turns, after `WARM_UP` rounds that do not count."""
    taken: dict[Key, list[float]] = {name: [] for name in work}
    for number in range(WARM_UP + repeats):
        for name, run in work.items():
            wait_for(device)
            start = time.perf_counter()
            run()
            wait_for(device)
            if number >= WARM_UP:
                taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(seconds) for name, seconds in taken.items()}
