"""Estimate how long an archive would take with more workers, and what they would wait for.

The networks are timed on this machine, on cells without content and with as many patches as were planned; reading is
estimated from the plan's requests and bytes. Decoding is left out.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from patchdrop.packed import gather
from patchdrop.scenes.model import Model

CELLS = 32
"""Cells in a timed batch."""
ROUNDS = 3
"""Times that each is run, after one that does not count."""
WORKERS = (1, 4, 16, 64, 256)


def work_of(model: Model, planned: Sequence[dict[str, Any]], workers: int = 0) -> dict[str, Any] | None:
    """Estimate the seconds of carrying a plan out, by number of workers.

    Each worker reads ahead while its networks compute, so a worker takes the longer of the two. Workers add their
    computing and their waiting for answers; the link's bandwidth they share.

    Args:
        planned: the scenes of a plan's document.
        workers: a number of workers to be listed too.

    Returns:
        Seconds a cell of ``decide`` and ``classify``, and ``by_workers``: their number, the seconds, and what is
        waited for; None for fewer than two scenes whose reading has an estimate, as one scene is one worker's.
    """
    known = [scene for scene in planned if scene.get("estimate") is not None]
    cells = sum(scene["cells"] - scene["skipped"] for scene in known)
    if not cells or len(known) < 2:
        return None
    decide, classify = rates(model, sum(scene["patches"] for scene in known) / cells)
    networks = cells * (decide + classify)
    transfer = sum(_transfer(scene) for scene in known)
    waiting = sum(scene["estimate"]["seconds"] for scene in known) - transfer
    rows = []
    for number in sorted({min(number, len(known)) for number in (*WORKERS, workers)} - {0}):
        reading, computing = transfer + waiting / number, networks / number
        slowest = "bandwidth" if transfer >= waiting / number else "answers"
        waits_for = "networks" if computing >= reading else slowest
        rows.append({"workers": number, "seconds": max(reading, computing), "waits_for": waits_for})
    return {"decide": decide, "classify": classify, "cells": cells, "by_workers": rows}


def _transfer(scene: dict[str, Any]) -> float:
    """Return the seconds that a scene's bytes take at full bandwidth."""
    return float(scene["execution"]["total"]["bytes"] * 8 / (scene["estimate"]["bandwidth_mbit"] * 1e6))


def rates(model: Model, mean_patches: float) -> tuple[float, float]:
    """Time policy and classifier on this machine, with so many patches a cell; seconds a cell of each."""
    (height, width), (low_height, low_width), grid, channels = model.shape
    low = torch.zeros(CELLS, channels, low_height, low_width, dtype=torch.uint8)
    choice = torch.zeros(CELLS, grid.patches, dtype=torch.bool)
    choice.view(-1)[: math.ceil(CELLS * mean_patches)] = True
    packed = gather(torch.zeros(CELLS, channels, height, width, dtype=torch.uint8), choice, grid)
    with torch.inference_mode():
        look = model.look(low)
        return _timed(lambda: model.look(low).scores.cpu()), _timed(lambda: look.classify(packed, low).cpu())


def _timed(run: Callable[[], Tensor]) -> float:
    """Return the seconds a cell of one batch: the fastest of some."""
    times = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times[1:]) / CELLS
