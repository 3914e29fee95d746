"""Time the networks of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchdrop.commands.shared import first_stage, split_to_evaluate
from patchdrop.costs.times import WARM_UP, Way, straight_lines, ways_of
from patchdrop.costs.times import measure as time_ways
from patchdrop.data.low import area_average
from patchdrop.data.sets import low_of
from patchdrop.errors import UsageError
from patchdrop.evaluation.dial import POLICY_STAGES
from patchdrop.files import write_json
from patchdrop.models.build import ModelConfig
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.terminal.talk import bars
from patchdrop.training.recipe import Recipe, device_of


def bench(
    run_folder: str | Path,
    batches: Sequence[int] = (1, 8, 64),
    threads: int | None = None,
    rounds: int = 15,
    stages: Sequence[str] | None = None,
    data: str | None = None,
    split: str = "test",
    device: str = "cpu",
    images: int = 64,
) -> dict[str, Any]:
    """Time the networks of a run's stages, all in turns, and write ``bench.json``.

    Args:
        batches: numbers of images in a batch, each timed by itself.
        threads: threads of torch; by default the run's.
        rounds: timed runs of each way.
        stages: which stages; by default all that are trained, except ``patches``.
        data: folder or CSV file whose images to use, or ``scenes``; by default noise, on which the policy's
            own choice of patches means nothing.
        split: which split of ``data``.
        device: ``cpu``, ``cuda`` or ``auto``; weights and images lie there before the clock starts.
        images: number of images that a policy's own choice is timed on, in whole batches; one batch to the whole split.

    Raises:
        UsageError: a number is out of range, or a stage does not exist.
        RunError: nothing is trained, or not what was asked for.
    """
    run = RunFolder(run_folder).require()
    recipe = Recipe.of(run.settings())
    _check((*batches, rounds, images, 1 if threads is None else threads), stages or ())
    (recipe if threads is None else replace(recipe, threads=threads)).use_threads()
    first_stage(run)
    where = device_of(device)
    loaded = {s: run.load(s) for s in stages or [s for s in run.stages_done() if s != "patches"]}
    models, config = {s: model.to(where) for s, (model, _) in loaded.items()}, next(iter(loaded.values()))[1]
    high, low = _pixels_to_time(recipe, config, images, max(batches), data, split)
    generator = torch.Generator().manual_seed(recipe.schedule.seed)
    ways = ways_of(models, config, torch.rand(len(high), config.shape.grid.patches, generator=generator))
    rows = _timed(ways, high.to(where), low.to(where), batches, rounds)
    document = {
        "name": run.path.name,
        "pixels": "noise" if data is None else f"{Path(data).name}, {split} split",
        "high": list(config.shape.high),
        "low": list(config.shape.low),
        "patches": config.shape.grid.patches,
        "device": where.type,
        "images": len(high),
        "threads": torch.get_num_threads(),
        "warm_up": WARM_UP,
        "rounds": rounds,
        "rows": rows,
        "lines": straight_lines(rows),
        "provenance": provenance(recipe.schedule.seed),
    }
    write_json(run.path / "bench.json", document)
    return document


def _check(counts: Sequence[int], stages: Sequence[str]) -> None:
    if min(counts) < 1:
        raise UsageError("batch, threads, rounds and images must be at least 1")
    odd = sorted(set(stages) - {"lr", "hr", *POLICY_STAGES})
    if odd:
        raise UsageError(f"stage {odd[0]!r} cannot be timed, use lr, hr, pt, ft1 or ft2")


def _timed(ways: Sequence[Way], high: Tensor, low: Tensor, batches: Sequence[int], rounds: int) -> list[dict[str, Any]]:
    """Time all ways at each batch size, and return their rows."""
    work = {f"batch {size}": ((rounds + WARM_UP) * len(ways), float(size)) for size in batches}
    rows: list[dict[str, Any]] = []
    with bars(work, "runs") as bar:
        for size, name in zip(batches, work, strict=True):
            rows += time_ways(ways, high, low, size, rounds, partial(bar.advance, name, 1))
    return rows


def _pixels_to_time(
    recipe: Recipe, config: ModelConfig, images: int, least: int, data: str | None, split: str
) -> tuple[Tensor, Tensor]:
    """Return HR and LR of ``images`` images, uint8: noise, or images of a data set, spread evenly over its order.

    From a split with fewer images all are taken; some are repeated only if they do not fill a batch of ``least``.
    """
    if data is None:
        generator = torch.Generator().manual_seed(recipe.schedule.seed)
        shape = (max(least, images), config.shape.channels, *config.shape.high)
        high = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return high, area_average(high, config.shape.low)
    found = split_to_evaluate(recipe.source.elsewhere(data), split).splits[split]
    positions = torch.linspace(0, len(found) - 1, max(least, min(images, len(found)))).round().long()
    batch = next(found.batches([positions]))
    return batch.high, low_of(batch, config.shape.low)
