"""Describe what a training would do, and estimate the time it would take, before anything trains."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from patchdrop.commands.shared import Prepared, prepared
from patchdrop.data.load import statistics
from patchdrop.models.build import build_stage
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.run import make_task, on_device, teacher_of
from patchdrop.training.work import seconds_a_step


def plan(settings: TrainSettings) -> dict[str, Any]:
    """Describe what `train` would do: data, networks, FLOPs, stages and the time they would take here."""
    ready = prepared(settings, trial=False)
    recipe, data = ready.recipe, ready.data
    stages = {}
    for stage in recipe.stages:
        steps = ready.steps(stage)
        stages[stage] = {
            "epochs": recipe.schedule.epochs[stage],
            "steps": steps,
            "flops": steps * ready.flops_a_step(stage),
            "seconds": round(steps * _seconds_a_step(ready, stage), 1),
        }
    high, low, grid, _ = data.shape
    names = {"hr": recipe.networks.hr_network, "lr": recipe.networks.lr_network}
    names["policy"] = recipe.networks.policy_network
    return {
        "data": {
            "name": data.name,
            "layout": data.layout,
            "classes": len(data.classes),
            "images": {name: len(split) for name, split in data.splits.items()},
            "skipped": len(data.skipped),
        },
        "high": list(high),
        "low": list(low),
        "grid": str(grid),
        "reasons": ready.reasons,
        "networks": {name: {"network": names[name], **asdict(cost)} for name, cost in ready.costs.items()},
        "flops_unit": "floating-point operations; a multiply-add counts as two",
        "stages": stages,
        "seconds": round(sum(s["seconds"] for s in stages.values()), 1),
    }


def _seconds_a_step(ready: Prepared, stage: str) -> float:
    """Measure the time of one training step of a stage on the first batches, with untrained networks."""
    config, device = ready.config, ready.recipe.device
    found = statistics(ready.data.splits["fit"], ready.data.shape.low, images=64)
    model = on_device(build_stage(stage, config, found), device)
    teacher = teacher_of(stage, config, lambda name: build_stage(name, config, found), device)
    return seconds_a_step(make_task(stage, model, ready.recipe.loader(ready.data), ready.recipe.learning, teacher))
