"""What a training would do and take, before anything trains."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

from patchdrop.commands.shared import completed, network_costs
from patchdrop.costs.flops import step_flops
from patchdrop.data.load import Data, statistics
from patchdrop.grid import Grid
from patchdrop.models.build import ModelConfig, build_stage
from patchdrop.settings.flat import TrainSettings
from patchdrop.training import run as training
from patchdrop.training.orientation import CAREFUL
from patchdrop.training.run import active_stages, device_of, make_task, on_device, stage_steps, teacher_of


def plan(settings: TrainSettings) -> dict[str, Any]:
    """What `train` would do: data, networks, FLOPs, stages and the time they would take here."""
    settings, data, reasons = completed(settings)
    if "auto" in settings.augment:  # found by a trial, which a plan leaves out
        settings = replace(settings, augment=CAREFUL)
    costs = network_costs(settings, data)
    rates = {stage: seconds_a_step(settings, data, stage) for stage in active_stages(settings)}
    stages = {}
    for stage, cost in stage_costs(settings, data).items():
        steps = stage_steps(settings, data, stage)
        stages[stage] = {
            "epochs": getattr(settings, f"epochs_{stage}"),
            "steps": steps,
            "flops": steps * cost,
            "seconds": round(steps * rates[stage], 1),
        }
    return {
        "data": {
            "name": data.name,
            "layout": data.layout,
            "classes": len(data.classes),
            "images": {name: len(split) for name, split in data.splits.items()},
            "skipped": len(data.skipped),
        },
        "high": list(settings.high_size),
        "low": list(settings.low_size),
        "grid": str(Grid.parse(settings.grid)),
        "reasons": reasons,
        "networks": {
            name: {"network": getattr(settings, f"{name}_network"), **asdict(cost)} for name, cost in costs.items()
        },
        "flops_unit": "floating-point operations; a multiply-add counts as two",
        "stages": stages,
        "seconds": round(sum(s["seconds"] for s in stages.values()), 1),
    }


def seconds_a_step(settings: TrainSettings, data: Data, stage: str) -> float:
    """Time of one training step of a stage, measured on the first batches with untrained networks."""
    device = device_of(settings)
    config = ModelConfig.of(settings, data.classes)
    found = statistics(data.splits["fit"], settings.low_size, images=64)
    model = on_device(build_stage(stage, config, found), device)
    teacher = teacher_of(stage, settings, lambda name: build_stage(name, config, found), device)
    task = make_task(stage, model, data, settings, device, teacher)
    return training.seconds_a_step(task, settings.optimizer, settings.precision)


def stage_costs(settings: TrainSettings, data: Data) -> dict[str, float]:
    """FLOPs of one step of each stage that would train."""
    costs = network_costs(settings, data)
    return {s: settings.batch * step_flops(s, costs, settings) for s in active_stages(settings)}
