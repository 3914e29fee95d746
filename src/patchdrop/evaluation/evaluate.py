"""Evaluate a trained run on a split: the results table, its baselines, and the figures of the report."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch

from patchdrop.data.sets import Split
from patchdrop.episode import PatchDrop
from patchdrop.evaluation.dial import POLICY_STAGES
from patchdrop.evaluation.forecast import forecasts
from patchdrop.evaluation.metrics import mcnemar, spread, wilson
from patchdrop.evaluation.outcome import Outcome, outcome_of
from patchdrop.evaluation.strategies import (
    ACTIVATION,
    CASCADE,
    DETAIL,
    FIXED,
    PLACES,
    RANDOM,
    SHUFFLED,
    Evaluated,
    Plain,
    controls,
    from_low_alone,
    plain_outcomes,
    random_places,
)
from patchdrop.evaluation.verdict import last_verdict
from patchdrop.models.build import ModelConfig
from patchdrop.models.compute import Compute
from patchdrop.policy.choice import Choose, greedy
from patchdrop.policy.reward import reward
from patchdrop.runs.folder import RunFolder


def evaluate(
    run: RunFolder,
    split: Split,
    seed: int,
    compute: Compute,
    advance: Callable[[str, int], None],
    choices: Mapping[str, Choose] | None = None,
) -> dict[str, Outcome]:
    """Evaluate every trained stage on a split, and the baselines of each policy stage.

    Args:
        choices: how each policy stage chooses; stages without one are left out. None: all of them, greedily.

    Returns:
        Outcomes by name: ``lr``, ``hr``, and for each policy stage ``pt``, ``pt/random``, ``pt/shuffled``, ...
    """
    outcomes: dict[str, Outcome] = {}
    for stage in run.stages_done():
        if stage == "patches" or (choices is not None and stage in POLICY_STAGES and stage not in choices):
            continue
        model, config = run.load(stage)
        model.to(compute.device)
        choose = greedy if choices is None else choices.get(stage, greedy)
        outcomes[stage] = outcome_of(model, config.shape, split, lambda scores, _: choose(scores), compute)  # noqa: B023
        advance(stage, len(split))
        if isinstance(model, PatchDrop):
            evaluated = Evaluated(
                model, config, split, outcomes[stage], outcomes.get("lr"), outcomes.get("hr"), seed, compute
            )
            for name, outcome in _yardsticks(evaluated, run.stage_config(stage).get("plain")):
                outcomes[f"{stage}/{name}"] = outcome
                advance(f"{stage}/{name}", len(split))
    return outcomes


def _yardsticks(evaluated: Evaluated, plain: Any) -> Iterator[tuple[str, Outcome]]:
    """Yield the controls of every policy, and the plain strategies of a stage that was settled against them."""
    yield from controls(evaluated).items()
    if plain is not None and evaluated.low is not None:
        yield PLACES, random_places(evaluated)
        yield from plain_outcomes(evaluated, Plain.from_json(plain)).items()
        yield from from_low_alone(evaluated).items()


def yardstick_names(stage: str, settled: bool) -> list[str]:
    """Return the names of a policy stage's outcomes, in order."""
    plain = (PLACES, FIXED, ACTIVATION, DETAIL, CASCADE) if settled else ()
    return [stage, *(f"{stage}/{name}" for name in (RANDOM, SHUFFLED, *plain))]


def table_rows(outcomes: dict[str, Outcome], sigmas: dict[str, float]) -> list[dict[str, Any]]:
    """Return the rows of ``results.json``.

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
    """Return one row of ``results.json``, without a test against another."""
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
    """Return accuracy and mean S of each class that has an image."""
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
    """Return the document ``results.json`` (the contract is in the documentation); no rows where nothing is trained."""
    grid = config.shape.grid
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
        "high": list(config.shape.high),
        "low": list(config.shape.low),
        "rows": table_rows(outcomes, sigmas),
        "per_class": {stage: per_class(outcomes[stage], config.classes) for stage in shown},
        "looks": {stage: outcomes[stage].choice.float().mean(0).tolist() for stage in shown},
        "verdict": last_verdict(run),
        "forecast": forecasts(outcomes),
        "provenance": provenance,
    }


def example_positions(outcome: Outcome, count: int) -> list[int]:
    """Return up to ``count`` positions, evenly over the split's order (so over the classes of sorted splits)."""
    n = len(outcome.target)
    return sorted(set(np.linspace(0, n - 1, min(count, n)).round().astype(int).tolist()))
