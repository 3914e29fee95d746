"""A trained run on a split: the table, its yardsticks, and what the report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from patchdrop.classify.high import HighClassifier
from patchdrop.data.sets import Split, low_of
from patchdrop.episode import PatchDrop
from patchdrop.evaluation.dial import POLICY_STAGES
from patchdrop.evaluation.metrics import mcnemar, spread, wilson
from patchdrop.grid import Grid
from patchdrop.models import ModelConfig
from patchdrop.policy.choice import Choose, greedy, keep_all, random_patches, shuffled
from patchdrop.read.source import from_memory
from patchdrop.reward import reward
from patchdrop.runfolder import RunFolder

BATCH = 64


@dataclass(frozen=True)
class Outcome:
    """What one way of choosing did on every image of a split."""

    scores: Tensor
    """Patch logits ``(n, P)``."""
    choice: Tensor
    """``(n, P)`` bool."""
    logits: Tensor
    """Class logits ``(n, K)``."""
    target: Tensor
    """``(n,)``."""

    @property
    def right(self) -> Tensor:
        """``(n,)`` bool."""
        return self.logits.argmax(1) == self.target


def evaluate(
    run: RunFolder,
    split: Split,
    seed: int,
    device: torch.device,
    advance: Callable[[str, int], None],
    choices: Mapping[str, Choose] | None = None,
) -> dict[str, Outcome]:
    """Every trained stage on a split, and the yardsticks of each policy stage.

    Args:
        choices: how each policy stage chooses, those without one are left out; None: greedily, all of them.

    Returns:
        Outcomes by name: ``lr``, ``hr``, and for each policy stage ``pt``, ``pt/random``, ``pt/shuffled``, ...
    """
    outcomes: dict[str, Outcome] = {}
    for stage in run.stages_done():
        if stage == "patches" or (choices is not None and stage in POLICY_STAGES and stage not in choices):
            continue
        model, config = run.load(stage)
        model.to(device)
        grid = Grid.parse(config.grid)

        def one(choose: Callable[[Tensor, int], Tensor], name: str) -> None:
            outcomes[name] = outcome_of(model, config, grid, split, choose, device)  # noqa: B023
            advance(name, len(split))

        if not isinstance(model, PatchDrop):
            one(lambda scores, _: keep_all(scores), stage)
            continue
        choose = greedy if choices is None else choices[stage]
        one(lambda scores, _: choose(scores), stage)  # noqa: B023
        policy = outcomes[stage].choice
        generator = torch.Generator().manual_seed(seed)
        mean_patches = float(policy.sum(1).double().mean())
        at_random = random_patches(policy.float(), mean_patches, generator)
        dealt = shuffled(policy, generator)
        one(lambda scores, start: at_random[start : start + len(scores)], f"{stage}/random")  # noqa: B023
        one(lambda scores, start: dealt[start : start + len(scores)], f"{stage}/shuffled")  # noqa: B023
    return outcomes


def outcome_of(
    model: nn.Module,
    config: ModelConfig,
    grid: Grid,
    split: Split,
    choose: Callable[[Tensor, int], Tensor],
    device: torch.device,
) -> Outcome:
    """What a model does on every image of a split.

    Args:
        model: PatchDrop, an HR classifier, which reads every patch, or else a classifier of LR alone.
        choose: patch logits of a batch and the position of its first image to the patches to read, ``(B, P)`` bool.
    """
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    start = 0
    with torch.inference_mode():
        for batch in split.in_order(BATCH):
            low = low_of(batch, config.low_size).to(device)
            high = batch.high.to(device)
            if isinstance(model, PatchDrop):
                here = start
                episode = model(low, lambda s: choose(s, here).to(device), from_memory(high, grid))  # noqa: B023
                scores, choice, logits = episode.scores, episode.choice, episode.logits
            else:
                scores = torch.zeros(len(low), grid.patches, device=device)
                choice = keep_all(scores)
                is_low = not isinstance(model, HighClassifier)
                logits = model(low) if is_low else model(from_memory(high, grid)(choice), low)
                choice = torch.zeros_like(choice) if is_low else choice
            start += len(low)
            parts.append((scores.cpu(), choice.cpu(), logits.float().cpu(), batch.target))
    return Outcome(*(torch.cat(column) for column in zip(*parts, strict=True)))


def table_rows(outcomes: dict[str, Outcome], sigmas: dict[str, float]) -> list[dict[str, Any]]:
    """The rows of ``results.json``.

    Args:
        sigmas: the penalty each policy stage ended with; the reward of its rows uses it.
    """
    rows = []
    for name, outcome in outcomes.items():
        stage, _, yardstick = name.partition("/")
        method = {"lr": "LR-CNN", "hr": "HR-CNN"}.get(stage, yardstick.capitalize() or "PatchDrop")
        sigma = sigmas.get(stage, next(iter(sigmas.values()), 0.5))
        row = row_of(method, stage, outcome, sigma)
        if stage in POLICY_STAGES and yardstick:
            row["p_value"] = mcnemar(outcomes[stage].right, outcome.right)
        elif stage in POLICY_STAGES and "hr" in outcomes:
            row["p_value_hr_cnn"] = mcnemar(outcome.right, outcomes["hr"].right)
        rows.append(row)
    return rows


def row_of(method: str, stage: str, outcome: Outcome, sigma: float) -> dict[str, Any]:
    """One row of ``results.json``, without a test against another."""
    n, patches = outcome.choice.shape
    correct = int(outcome.right.sum())
    figures = spread(outcome.choice)
    counts = outcome.choice.sum(1)
    return {
        "method": method,
        "stage": stage,
        "accuracy": correct / n,
        "ci95": list(wilson(correct, n)),
        "correct": correct,
        "n": n,
        "mean_patches": figures["mean_patches"],
        "hr_fraction": figures["mean_patches"] / patches,
        "patches_sd": figures["patches_sd"],
        "patches_histogram": torch.bincount(counts, minlength=patches + 1).tolist(),
        "distinct_masks": int(figures["distinct_masks"]),
        "reward": float(reward(outcome.choice, outcome.logits, outcome.target, sigma).mean()),
        "sigma": sigma,
        "p_value": None,
    }


def per_class(outcome: Outcome, classes: tuple[str, ...]) -> list[dict[str, Any]]:
    """Accuracy and mean S of each class that has an image."""
    rows = []
    for index, name in enumerate(classes):
        mine = outcome.target == index
        if bool(mine.any()):
            rows.append(
                {
                    "class": name,
                    "n": int(mine.sum()),
                    "accuracy": float(outcome.right[mine].float().mean()),
                    "mean_patches": float(outcome.choice[mine].sum(1).float().mean()),
                }
            )
    return rows


def results(
    run: RunFolder,
    config: ModelConfig,
    data_name: str,
    split_name: str,
    outcomes: dict[str, Outcome],
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """The document ``results.json`` (the contract is in the documentation); no rows where nothing is trained."""
    grid = Grid.parse(config.grid)
    sigmas = {
        stage: float(run.stage_config(stage)["figures"].get("sigma", 0.5)) for stage in POLICY_STAGES if run.done(stage)
    }
    shown = [stage for stage in POLICY_STAGES if stage in outcomes]
    return {
        "name": run.path.name,
        "data": data_name,
        "split": split_name,
        "classes": len(config.classes),
        "class_names": list(config.classes),
        "patches": grid.patches,
        "grid": [grid.rows, grid.cols],
        "high": list(config.high_size),
        "low": list(config.low_size),
        "rows": table_rows(outcomes, sigmas),
        "per_class": {stage: per_class(outcomes[stage], config.classes) for stage in shown},
        "looks": {stage: outcomes[stage].choice.float().mean(0).tolist() for stage in shown},
        "provenance": provenance,
    }


def example_positions(outcome: Outcome, count: int) -> list[int]:
    """Positions of up to ``count`` images, evenly over the split's order (so over the classes of sorted splits)."""
    n = len(outcome.target)
    return sorted(set(np.linspace(0, n - 1, min(count, n)).round().astype(int).tolist()))
