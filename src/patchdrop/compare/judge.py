"""Evaluate every row on the same images, and find the upper limit that an oracle reaches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from patchdrop.classify.super_resolution import Generator, bilinear, psnr
from patchdrop.compare.bench import Bench
from patchdrop.compare.rows import Row
from patchdrop.data.sets import MemorySource, Split, low_of
from patchdrop.episode import PatchDrop
from patchdrop.evaluation.evaluate import evaluate
from patchdrop.evaluation.outcome import BATCH, Outcome, outcome_of
from patchdrop.policy.choice import greedy
from patchdrop.training.seeds import derived_seed
from patchdrop.training.supervised import random_subset

ORACLE_IMAGES = 256
ORACLE_MASKS = 64
"""Number of random masks among the oracle's candidates, each with an S of its own."""
Judged = dict[str, dict[str, Outcome]]
"""Method -> stage -> outcome; a method without a policy has the same outcome in each stage."""


@dataclass(frozen=True)
class Oracle:
    """The result of PatchDrop's classifier of a stage with the best of many masks for each image, by the label."""

    outcome: Outcome
    patchdrop: Outcome
    """PatchDrop's outcome on the same images."""
    candidates: int


def judge(bench: Bench, rows: Sequence[Row], split: Split, advance: Callable[[str, int], None]) -> Judged:
    """Evaluate every row on a split except the oracle; the key "" holds the run's own PatchDrop, row or not."""
    own = evaluate(bench.run, split, bench.seed, bench.compute, lambda name, n: advance(f"run {name}", n))
    stages = [stage for stage in bench.policy_stages if stage in own]
    judged: Judged = {"": {stage: own[stage] for stage in stages}}
    for row in rows:
        if row.own == "oracle":
            continue
        if row.own == "policy":
            judged[row.method] = judged[""]
        elif row.own and row.own not in ("lr", "hr"):
            shown = {stage: own[f"{stage}/{row.own}"] for stage in stages if f"{stage}/{row.own}" in own}
            judged[row.method] = shown
        elif row.own:
            judged[row.method] = dict.fromkeys(stages, own[row.own])
        elif row.selector or row.policy:
            judged[row.method] = {stage: _judged(row, bench, stage, split, advance) for stage in stages}
        else:
            judged[row.method] = dict.fromkeys(stages, _judged(row, bench, row.stages[-1], split, advance))
    return judged


def _judged(row: Row, bench: Bench, stage: str, split: Split, advance: Callable[[str, int], None]) -> Outcome:
    model = row.model(bench, stage).to(bench.device)
    torch.manual_seed(derived_seed(bench.seed, row.method, stage, "judge"))

    def choose(scores: Tensor, start: int) -> Tensor:
        if row.selector is None:
            return greedy(scores)
        return row.selector.chooses(row.selector.count(bench.patches(stage)))(scores)

    outcome = outcome_of(model, row.config(bench).shape, split, choose, bench.compute)
    advance(f"{row.method} {stage}", len(split))
    return outcome


def judged_model(row: Row, bench: Bench, stage: str) -> nn.Module:
    """Return the model that a row is evaluated with in a stage of the table."""
    if row.own:
        return bench.earlier(row.own if row.own in ("lr", "hr") else stage).to(bench.device)
    return row.model(bench, stage if row.selector or row.policy else row.stages[-1]).to(bench.device)


def oracle(bench: Bench, stage: str, split: Split, masks: Mapping[str, Tensor]) -> Oracle:
    """Find the best mask of each image: among those with a right class, the one with the fewest patches.

    If none is right, take the one with the fewest patches. So the oracle is right wherever a candidate is.

    Args:
        masks: candidates besides none, all and `ORACLE_MASKS` random ones: name -> ``(len(split), P)`` bool;
            PatchDrop's own is under "".
    """
    positions = spread_over_classes(split.targets, ORACLE_IMAGES)
    subset = held(split, positions)
    n, count = len(positions), bench.grid.patches
    torch.manual_seed(derived_seed(bench.seed, stage, "oracle"))
    candidates = [mask[positions] for mask in masks.values()]
    candidates += [torch.zeros(n, count, dtype=torch.bool), torch.ones(n, count, dtype=torch.bool)]
    candidates += [random_subset(n, count) for _ in range(ORACLE_MASKS)]
    model = bench.earlier(stage).to(bench.device)
    assert isinstance(model, PatchDrop)
    outcomes = [_with_mask(model, bench, subset, mask) for mask in candidates]
    right = torch.stack([outcome.right for outcome in outcomes])
    counts = torch.stack([mask.sum(1) for mask in candidates])
    best = torch.where(right, counts, count + 1 + counts).argmin(0)
    images = torch.arange(n)
    found = Outcome(
        outcomes[0].scores,
        torch.stack(candidates)[best, images],
        torch.stack([outcome.logits for outcome in outcomes])[best, images],
        outcomes[0].target,
    )
    own = outcomes[list(masks).index("")]
    return Oracle(found, own, len(candidates))


def _with_mask(model: PatchDrop, bench: Bench, split: Split, mask: Tensor) -> Outcome:
    def choose(scores: Tensor, start: int) -> Tensor:
        return mask[start : start + len(scores)]

    return outcome_of(model, bench.data.shape, split, choose, bench.compute)


def spread_over_classes(targets: Tensor, count: int) -> Tensor:
    """Return positions of each class' first image, then of each one's second, until there are ``count``; sorted."""
    seen: dict[int, int] = {}
    ranks = []
    for position, target in enumerate(targets.tolist()):
        seen[target] = seen.get(target, 0) + 1
        ranks.append((seen[target], position))
    return torch.tensor(sorted(position for _, position in sorted(ranks)[:count]))


def held(split: Split, positions: Tensor) -> Split:
    """Decode a part of a split once, and hold it in memory."""
    batches = list(split.batches(torch.split(positions, BATCH)))
    lows = [batch.low for batch in batches if batch.low is not None]
    targets = torch.cat([batch.target for batch in batches])
    source = MemorySource(
        torch.cat([batch.high for batch in batches]),
        torch.cat(lows) if lows else None,
        targets,
        [str(i) for i in range(len(targets))],
    )
    return Split(source, torch.arange(len(targets)))


def signal_to_noise(generator: Generator, bench: Bench, split: Split) -> dict[str, float]:
    """Return the mean PSNR in decibels of a generator's images from a split's LR, and of bilinear enlargements."""
    made, plain = 0.0, 0.0
    with torch.inference_mode():
        for batch in split.in_order(BATCH):
            low, high = low_of(batch, bench.data.shape.low).to(bench.device), batch.high.to(bench.device)
            made += float(psnr(generator(low), high).sum())
            plain += float(psnr(bilinear(low, bench.data.shape.high), high).sum())
    return {"psnr": made / len(split), "psnr_bilinear": plain / len(split)}
