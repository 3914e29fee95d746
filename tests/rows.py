"""What the tests of the tables' rows share: tiny networks, and a stage trained through the loop."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch
from torch import Tensor, nn

from patchdrop.data.load import statistics
from patchdrop.models.build import build_stage
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.loop import Task, train
from tiny import config_of, tiny_data, unsettle

CPU = torch.device("cpu")
DATA = tiny_data()
FIT, VAL = DATA.splits["fit"], DATA.splits["val"]


def tiny_model(stage: str, settings: TrainSettings, seed: int = 0) -> nn.Module:
    """A stage's model with weights and statistics as if it had been trained."""
    torch.manual_seed(seed)
    model = build_stage(stage, config_of(settings), statistics(FIT, settings.shape.low))
    return unsettle(model, seed)


def trained(task: Task, folder: Path, stop_after: int = 0) -> dict[str, float]:
    """Train a task to its end, or interrupt it after some steps; the figures of its best validation."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = itertools.count(1)

    def stop() -> int:
        return 15 if next(asked) == stop_after else 0

    outcome = train(task, folder, lambda _: None, lambda _: None, stop)
    figures: dict[str, float] = outcome["figures"]
    return figures


def bits(module: nn.Module) -> dict[str, Tensor]:
    """A copy of all weights and statistics."""
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
