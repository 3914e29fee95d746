"""Cost of a training step of Pt against forward passes of the HR classifier, and the time spent outside networks.

    python benchmarks/pt_step.py [PROFILE] [--json]

Counts FLOPs of one step and times steps, HR forward passes and policy steps in turns in the same run. ``passes`` is
(step - policy's own step) / (one forward pass of the HR classifier); the target is at most 2.3 for the estimators that
take two passes. ``networks`` is the share of a step's time that is not making its batch; the target is 0.9.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import cycle
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from patchdrop.commands.shared import prepared
from patchdrop.data.load import Data
from patchdrop.data.load import statistics as channel_statistics
from patchdrop.models.build import build_stage
from patchdrop.policy.choice import keep_all
from patchdrop.read.source import from_memory
from patchdrop.runs.provenance import machine, provenance
from patchdrop.settings.flat import from_mapping, read_profile
from patchdrop.terminal.talk import errors_told
from patchdrop.training.batches import Loader
from patchdrop.training.loop import make_optimizer, train_step
from patchdrop.training.recipe import Recipe
from patchdrop.training.run import make_task

ROUNDS = 15
ESTIMATORS = ("straight-through", "self-critical", "rloo")


def main(profile: str, as_json: bool) -> None:
    """Print a line for each estimator."""
    ready = prepared(replace(from_mapping(read_profile(profile), profile), policy="bernoulli"))
    found = {name: measure(with_estimator(ready.recipe, name), ready.data) for name in ESTIMATORS}
    if as_json:
        where = {"threads": torch.get_num_threads(), "profile": profile, "provenance": provenance(ready.settings.seed)}
        print(json.dumps({**where, "estimators": found}, indent=1))
        return
    print(f"{machine()}, {torch.get_num_threads()} threads, profile {profile}")
    for name, row in found.items():
        print(name, ", ".join(f"{key} {value:.3g}" for key, value in row.items()))


def with_estimator(recipe: Recipe, name: str) -> Recipe:
    """The same recipe with another policy gradient."""
    return replace(recipe, learning=replace(recipe.learning, estimator=name))


def measure(recipe: Recipe, data: Data) -> dict[str, float]:
    """FLOPs and median milliseconds."""
    config, loader = recipe.with_classes(data.classes), Loader(data, recipe.schedule, torch.device("cpu"))
    model = build_stage("pt", config, channel_statistics(data.splits["fit"], config.shape.low, 64))
    model = model.to(memory_format=torch.channels_last)
    task = make_task("pt", model, loader, recipe.learning)
    optimizer = make_optimizer(task.groups(), recipe.schedule.optimizer)
    task.train_mode()
    batch = next(iter(task.batches(0, 0)))
    views = loader.training_views(batch)
    packed = from_memory(views.high, task.grid)(keep_all(torch.zeros(len(views.target), task.grid.patches)))

    def forward() -> None:
        with torch.no_grad():
            model.classifier(packed, views.low)

    def policy_step() -> None:
        loss = model.policy(views.low).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    work: dict[str, Callable[[], Any]] = {
        "step": lambda: train_step(task, optimizer, batch, 0, 1),
        "forward": forward,
        "policy": policy_step,
        "views": lambda: loader.training_views(batch),
    }
    flops = {name: count(job) for name, job in work.items()}
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for name, _ in zip(cycle(work), range(ROUNDS * len(work)), strict=False):
        start = time.perf_counter()
        work[name]()
        seconds[name].append(time.perf_counter() - start)
    ms = {name: 1000 * statistics.median(times[2:]) for name, times in seconds.items()}
    return {
        "passes_by_flops": (flops["step"] - flops["policy"]) / flops["forward"],
        "passes_by_time": (ms["step"] - ms["policy"] - ms["views"]) / ms["forward"],
        "networks": 1 - ms["views"] / ms["step"],
        **{f"{name}_ms": value for name, value in ms.items()},
    }


def count(job: Callable[[], Any]) -> int:
    """FLOPs of a job; a multiply-add counts as two."""
    with FlopCounterMode(display=False) as counter:
        job()
    return int(counter.get_total_flops())


if __name__ == "__main__":
    names = [a for a in sys.argv[1:] if not a.startswith("--")]
    with errors_told():
        main(names[0] if names else "demo", "--json" in sys.argv)
