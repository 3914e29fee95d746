"""Time every way of running a run's networks, in turns in one process.

A way is a name and a callable. A round runs each of them once, starting with another one each time, so that other load
on the machine affects all of them alike. FLOPs and memory are measured outside the rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from patchdrop.classify.high import HighClassifier
from patchdrop.episode import Episode, PatchDrop
from patchdrop.grid import Grid
from patchdrop.models.build import ModelConfig
from patchdrop.policy.budget import ALL, at_most
from patchdrop.policy.choice import Choose, greedy, keep_all
from patchdrop.read.source import from_memory

WARM_UP = 2
PATCHES = (0, 1, 2, 4, 8, 16)
"""Numbers of patches that are timed, if the grid has as many."""
Batch = tuple[Tensor, Tensor]
"""HR and LR of some images."""
PLAIN = "HR-CNN"
"""The plain HR network, which the others are compared with."""


@dataclass(frozen=True)
class Way:
    """A way of running networks on a batch of images that is held in memory."""

    name: str
    stage: str
    run: Callable[[Tensor, Tensor], object]
    """Takes HR ``(B, C, H, W)`` and LR ``(B, C, h, w)``, pixels 0..255."""
    patches: int | None = None
    """Patches that each image reads, if the way fixes it."""
    every_batch: bool = False
    """Whether all images are run, batch by batch, not only the first batch: the time depends on the images."""


def ways_of(models: Mapping[str, nn.Module], config: ModelConfig, scores: Tensor) -> list[Way]:
    """Return the ways to run the models of a run's stages.

    Args:
        models: stage -> model.
        scores: ``(n, P)`` logits that say which patches are read if only their number is fixed; a batch of B images
            takes the first B.
    """
    grid = config.shape.grid
    found: list[Way] = []
    for stage, model in models.items():
        if isinstance(model, PatchDrop):
            found += _policy_ways(stage, model, grid, scores)
        elif stage == "lr":
            found.append(Way("LR-CNN", stage, _low_alone(model)))
        else:
            assert isinstance(model, HighClassifier)
            found.append(Way(PLAIN, stage, model.whole))
    return found


def _policy_ways(stage: str, model: PatchDrop, grid: Grid, scores: Tensor) -> list[Way]:
    fixed = [
        Way(f"episode, S = {count}", stage, _episode(model, grid, _exactly(scores, count)), count)
        for count in sorted({*(c for c in PATCHES if c <= grid.patches), grid.patches})
    ]
    return [
        Way("policy", stage, lambda high, low: model.look(low)),
        Way("classifier, all patches", stage, _packed(model.classifier, grid)),
        *fixed,
        Way("episode, own choice", stage, _episode(model, grid, greedy), every_batch=True),
    ]


def _low_alone(model: nn.Module) -> Callable[[Tensor, Tensor], object]:
    return lambda high, low: model(low)


def _packed(model: nn.Module, grid: Grid) -> Callable[[Tensor, Tensor], object]:
    return lambda high, low: model(from_memory(high, grid)(keep_all(high.new_empty(len(high), grid.patches))), low)


def _episode(model: PatchDrop, grid: Grid, choose: Choose) -> Callable[[Tensor, Tensor], object]:
    return lambda high, low: model(low, choose, from_memory(high, grid))


def _exactly(scores: Tensor, count: int) -> Choose:
    return lambda logits: at_most(scores[: len(logits)].to(logits.device), count, ALL)


def measure(
    ways: Sequence[Way],
    high: Tensor,
    low: Tensor,
    size: int,
    rounds: int,
    advance: Callable[[], None],
    clock: Callable[[], float] = time.perf_counter,
) -> list[dict[str, Any]]:
    """Measure time, FLOPs and memory of every way on batches of ``size`` images; return plain values.

    Args:
        high: HR of at least ``size`` images, on the ways' device; images beyond whole batches are not run.
        low: their LR.
        rounds: timed runs of each way, after `WARM_UP` that are not timed.
        advance: called after every run.
        clock: read before and after, in seconds; `time.process_time` leaves out the time of other processes, and
            adds up threads.
    """
    batches = [(high[i : i + size], low[i : i + size]) for i in range(0, len(high) - size + 1, size)]
    runs = [batches if way.every_batch else batches[:1] for way in ways]
    seconds: list[list[float]] = [[] for _ in ways]
    with torch.inference_mode():
        for turn in range(WARM_UP + rounds):
            for step in range(len(ways)):
                number = (turn + step) % len(ways)
                wait_for(high.device)
                start = clock()
                for batch in runs[number]:
                    ways[number].run(*batch)
                wait_for(high.device)
                if turn >= WARM_UP:
                    seconds[number].append((clock() - start) / len(runs[number]))
                advance()
    plain = next((seconds[i] for i, way in enumerate(ways) if way.name == PLAIN), None)
    return [_row(way, times, plain, run) for way, times, run in zip(ways, seconds, runs, strict=True)]


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _row(way: Way, seconds: list[float], plain: list[float] | None, batches: Sequence[Batch]) -> dict[str, Any]:
    batch = len(batches[0][0])
    images = batch * len(batches)
    kept = [_patches_of(way, *run) for run in batches]
    milliseconds = np.array(seconds) * 1000
    low_quarter, median, high_quarter = np.percentile(milliseconds, [25, 50, 75]).tolist()
    return {
        "way": way.name,
        "stage": way.stage,
        "patches": way.patches,
        "mean_patches": None if None in kept else statistics.mean(k for k in kept if k is not None),
        "batch": batch,
        "ms_batch": median,
        "ms_quartiles": [low_quarter, high_quarter],
        "ms_image": median / batch,
        # The ratio is taken per round: other load that slows down a round slows down both.
        "to_plain": None if plain is None else statistics.median(s / p for s, p in zip(seconds, plain, strict=True)),
        "images": images,
        "flops_image": sum(flops(way, *run) for run in batches) / images,
        "peak_mib": peak_memory(way, *batches[0]),
    }


def _patches_of(way: Way, high: Tensor, low: Tensor) -> float | None:
    """Return the mean number of patches that an image reads if the way is an episode, else None."""
    with torch.inference_mode():
        found = way.run(high, low)
    return float(found.choice.sum(1).double().mean()) if isinstance(found, Episode) else None


def flops(way: Way, high: Tensor, low: Tensor) -> int:
    """Count the floating-point operations of one run; a multiply-add counts as two."""
    # The counter sees nothing under inference mode.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        way.run(high, low)
    return int(counter.get_total_flops())


def peak_memory(way: Way, high: Tensor, low: Tensor) -> float | None:
    """Return the most memory that is held while a way runs, in MiB; None if the system does not say.

    On the CPU this is the resident set of the whole process, with what Python, torch, the weights and the allocator
    hold anyway, so only differences between ways count; on a GPU it is what tensors hold there, weights included.
    """
    if high.is_cuda:
        torch.cuda.reset_peak_memory_stats(high.device)
        with torch.inference_mode():
            way.run(high, low)
        return torch.cuda.max_memory_allocated(high.device) / 2**20
    try:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # sets the high-water mark to what is held now
        with torch.inference_mode():
            way.run(high, low)
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) / 1024
    except (OSError, StopIteration):
        return None


def straight_lines(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Fit, for each stage and batch, a straight line to an image's time against the number of patches read.

    From one patch on: without a patch most classifiers run no HR network, and that time is a row of its own.

    Returns:
        ``stage``, ``batch``, ``ms_first`` at S = 0 of the line, ``ms_patch`` its slope, and ``explained``, the share of
        the times' variance (r squared) that it explains.
    """
    found = []
    timed = [row for row in rows if row["patches"]]
    for stage, batch in dict.fromkeys((row["stage"], row["batch"]) for row in timed):
        of_stage = [row for row in timed if (row["stage"], row["batch"]) == (stage, batch)]
        x, y = np.array([(row["patches"], row["ms_image"]) for row in of_stage], dtype=np.float64).T
        if len(x) < 3:
            continue
        slope, first = np.polyfit(x, y, 1).tolist()
        spread = float(((y - y.mean()) ** 2).sum())
        explained = 1 - float(((y - first - slope * x) ** 2).sum()) / spread if spread else 1.0
        found.append({"stage": stage, "batch": batch, "ms_first": first, "ms_patch": slope, "explained": explained})
    return found
