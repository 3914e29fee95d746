"""Measure the cost columns of all rows side by side on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patchdrop.compare.bench import Bench
from patchdrop.compare.costs import BATCHES, SINGLES, GivenChoice, flops, pixels_read, times_in_turns
from patchdrop.compare.judge import Judged, held, judged_model, spread_over_classes
from patchdrop.compare.rows import Row
from patchdrop.data.sets import Split, low_of
from patchdrop.evaluation.outcome import Outcome
from patchdrop.settings.comparison import Price

MEASURED = ("flops", "flops_dense", "timed_patches", *(f"ms_batch{batch}" for batch in BATCHES))
Costs = dict[tuple[str, str], dict[str, Any]]
"""(method, stage) -> the cost columns."""


def reading_costs(outcome: Outcome, bench: Bench, price: Price) -> dict[str, Any]:
    """Return the cost of a choice's reads: bytes of 8-bit pixels, share of HR's pixels, money per image."""
    height, width = bench.data.shape.high
    pixels = pixels_read(outcome.choice, bench.grid, (height, width))
    share = pixels / (height * width)
    worth = price.of_image(height, width)
    return {
        "hr_bytes": pixels * bench.data.shape.channels,
        "hr_pixel_fraction": share,
        "price": None if worth is None else worth * share,
    }


def whole_costs(size: tuple[int, int], bench: Bench, price: Price) -> dict[str, Any]:
    """Do as `reading_costs` for a row that reads whole images of a size in pixels, and add S of as many pixels."""
    height, width = bench.data.shape.high
    pixels = size[0] * size[1]
    share, worth = pixels / (height * width), price.of_image(height, width)
    return {
        "mean_patches": share * bench.grid.patches,
        "hr_fraction": share,
        "hr_bytes": pixels * bench.data.shape.channels,
        "hr_pixel_fraction": share,
        "price": None if worth is None else worth * share,
    }


def measured_costs(bench: Bench, rows: Sequence[Row], split: Split, judged: Judged) -> Costs:
    """Measure FLOPs and times, in turns, of every row that is a system (controls and the oracle are not).

    All on the same images, 64 spread over the classes; at batch 1 on `SINGLES` of them, one by one, because the time
    of a row may depend on the image.
    """
    positions = spread_over_classes(split.targets, max(BATCHES))
    batch = next(held(split, positions).in_order(len(positions)))
    high = batch.high.to(bench.device)
    lows: dict[tuple[str, str], Tensor] = {}
    given: dict[tuple[str, str], GivenChoice] = {}
    choices = {}
    for row in rows:
        if row.own not in ("", "lr", "hr", "policy"):
            continue
        for stage, outcome in judged[row.method].items():
            if (
                row.selector
                or row.policy
                or row.own == "policy"
                or not any(method == row.method for method, _ in given)
            ):
                given[row.method, stage] = GivenChoice(judged_model(row, bench, stage), bench.grid)
                choices[row.method, stage] = outcome.choice[positions].to(bench.device)
                sides = row.whole_at(bench) if row.whole_at else bench.data.shape.low
                lows[row.method, stage] = low_of(batch, sides).to(bench.device)
    costs: Costs = {}
    for key, player in given.items():
        everything = torch.ones_like(choices[key])
        costs[key] = {
            "flops": flops(player, high, lows[key], choices[key]),
            "flops_dense": flops(player, high, lows[key], everything),
            "timed_patches": float(choices[key].sum(1).double().mean()),
        }
    for size in BATCHES:
        starts = torch.linspace(0, len(high) - 1, min(SINGLES, len(high))).long().tolist() if size == 1 else [0]
        parts = [slice(start, start + min(size, len(high))) for start in starts]
        work = {key: partial(_play, player, high, lows[key], choices[key], parts) for key, player in given.items()}
        with bench.compute.exact():
            seconds = times_in_turns(work, bench.device)
        images = sum(part.stop - part.start for part in parts)
        for key in given:
            costs[key][f"ms_batch{size}"] = 1000 * seconds[key] / images
    # A row without a policy is one model, timed once, whatever the stage.
    for row in rows:
        for stage in judged.get(row.method, {}):
            first = next((costs[k] for k in costs if k[0] == row.method), dict.fromkeys(MEASURED))
            costs.setdefault((row.method, stage), first)
    return costs


def _play(given: GivenChoice, high: Tensor, low: Tensor, choice: Tensor, parts: Sequence[slice]) -> None:
    for part in parts:
        given(high[part], low[part], choice[part])
