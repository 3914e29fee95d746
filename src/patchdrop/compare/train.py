"""Train what is missing of a comparison, row by row and stage by stage, and say what that would cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from patchdrop.compare.bench import Bench
from patchdrop.compare.rows import Row
from patchdrop.errors import Interrupted
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.loop import Task, clear_state, derived_seed
from patchdrop.training.run import (
    Advance,
    Stopper,
    active_stages,
    make_task,
    on_device,
    seconds_a_step,
    starting_model,
    teacher_of,
    train_stage,
    train_stages,
)


class Work(NamedTuple):
    """A stage of a row, and how long it trains."""

    row: str
    stage: str
    epochs: int
    steps: int
    seconds: float
    """Estimated; 0 where it was not measured."""
    done: bool


def train_rows(bench: Bench, rows: Sequence[Row], advance: Advance, stop: Stopper) -> None:
    """Train the run, then every stage of every row that is not there yet.

    Args:
        advance: told ``"<row> <stage>"`` and how many steps were done.

    Raises:
        RunError, TrainingError, Interrupted: as `patchdrop.training.run.train_stages`.
    """
    train_run(bench, advance, stop)
    for row in rows:
        train_row(row, bench, advance, stop)


def train_run(bench: Bench, advance: Advance, stop: Stopper) -> None:
    """Train the run that all rows start from, with every stage of the table; as `train_rows`."""
    settings = replace(bench.settings, insist=True)
    train_stages(settings, bench.data, bench.run, lambda stage, n: advance(f"run {stage}", n), stop)


def train_row(row: Row, bench: Bench, advance: Advance, stop: Stopper) -> None:
    """Train the stages of one row; as `train_rows`."""
    folder = row.folder(bench)
    for stage in row.trains(bench):
        if folder.done(stage):
            clear_state(folder.stage(stage))
            continue
        task = start(row, bench, stage)
        name = f"{row.method} {stage}"
        more = {"patches": row.chooser.count(bench.patches(stage))} if row.chooser else {}
        train_stage(
            task,
            folder,
            row.config(bench),
            row.settings(bench),
            lambda n, name=name: advance(name, n),  # type: ignore[misc]
            stop,
            {"epochs": task.epochs, **more},
        )
        if stop():
            raise Interrupted(stop())


def start(row: Row, bench: Bench, stage: str) -> Task:
    """What trains a stage of a row, with its model as it starts."""
    assert row.task is not None
    torch.manual_seed(derived_seed(bench.settings.seed, stage, "weights"))
    return row.task(row, bench, stage)


def plan(bench: Bench, rows: Sequence[Row], measured: bool) -> list[Work]:
    """Every stage of the run and of the rows: epochs, steps and, where ``measured``, the time of its steps here."""
    found = []
    for stage in active_stages(bench.settings):
        model = on_device(
            starting_model(stage, bench.settings, bench.config(), bench.statistics, bench.earlier), bench.device
        )
        teacher = teacher_of(stage, bench.settings, bench.earlier, bench.device)
        task = make_task(stage, model, bench.data, bench.settings, bench.device, teacher)
        found.append(_work("run", task, bench.run, bench.settings, measured))
    for row in rows:
        for stage in row.trains(bench):
            task = start(row, bench, stage)
            found.append(_work(row.method, task, row.folder(bench), bench.settings, measured))
    return found


def _work(row: str, task: Task, folder: RunFolder, settings: TrainSettings, measured: bool) -> Work:
    steps = task.epochs * task.steps_per_epoch
    done = folder.done(task.stage)
    seconds = steps * seconds_a_step(task, settings.optimizer, settings.precision) if measured and not done else 0.0
    return Work(row, task.stage, task.epochs, steps, round(seconds, 3), done)
