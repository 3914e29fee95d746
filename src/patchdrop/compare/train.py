"""Train what is missing of a comparison, row by row and stage by stage, and estimate the time for that."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from patchdrop.compare.bench import Bench
from patchdrop.compare.rows import Row
from patchdrop.errors import Interrupted
from patchdrop.runs.folder import RunFolder
from patchdrop.training.loop import Task, clear_state
from patchdrop.training.run import (
    Advance,
    Start,
    Stopper,
    make_task,
    on_device,
    starting_model,
    starts_as_low,
    teacher_of,
    train_stage,
    train_stages,
)
from patchdrop.training.seeds import derived_seed
from patchdrop.training.work import seconds_a_step


class Work(NamedTuple):
    """A stage of a row, and how long it trains."""

    row: str
    stage: str
    epochs: int
    steps: int
    seconds: float
    """Estimated; 0 if it was not measured."""
    done: bool


def train_rows(bench: Bench, rows: Sequence[Row], advance: Advance, stop: Stopper) -> None:
    """Train the run, then every stage of every row that is not trained yet.

    Args:
        advance: called with ``"<row> <stage>"`` and how many steps were done.

    Raises:
        RunError, TrainingError, Interrupted: as `patchdrop.training.run.train_stages`.
    """
    train_run(bench, advance, stop)
    for row in rows:
        train_row(row, bench, advance, stop)


def train_run(bench: Bench, advance: Advance, stop: Stopper) -> None:
    """Train the run that all rows start from, with every stage of the table; as `train_rows`."""
    recipe = replace(bench.recipe, insist=True)
    train_stages(recipe, bench.data, bench.run, lambda stage, n: advance(f"run {stage}", n), stop)


def train_row(row: Row, bench: Bench, advance: Advance, stop: Stopper) -> None:
    """Train the stages of one row; as `train_rows`."""
    folder = row.folder(bench)
    for stage in row.trains(bench):
        if folder.done(stage):
            clear_state(folder.stage(stage))
            continue
        task = start(row, bench, stage)
        name = f"{row.method} {stage}"
        more = {"patches": row.selector.count(bench.patches(stage))} if row.selector else {}
        train_stage(
            task,
            folder,
            row.config(bench),
            lambda n, name=name: advance(name, n),  # type: ignore[misc]
            stop,
            {"epochs": task.epochs, **more},
        )
        if stop():
            raise Interrupted(stop())


def start(row: Row, bench: Bench, stage: str) -> Task:
    """Return the task that trains a stage of a row, with its model as it starts."""
    assert row.task is not None
    torch.manual_seed(derived_seed(bench.seed, stage, "weights"))
    return row.task(row, bench, stage)


def plan(bench: Bench, rows: Sequence[Row], measured: bool) -> list[Work]:
    """List every stage of the run and the rows: epochs, steps and, if ``measured``, the time of its steps here."""
    found, config, recipe = [], bench.config(), bench.recipe
    begin = Start(recipe.schedule.stages, recipe.pretrained, starts_as_low(config))
    for stage in recipe.stages:
        model = on_device(starting_model(stage, begin, config, bench.statistics, bench.earlier), bench.device)
        teacher = teacher_of(stage, config, bench.earlier, bench.device)
        task = make_task(stage, model, bench.loader, recipe.learning, teacher)
        found.append(_work("run", task, bench.run, measured))
    for row in rows:
        for stage in row.trains(bench):
            task = start(row, bench, stage)
            found.append(_work(row.method, task, row.folder(bench), measured))
    return found


def _work(row: str, task: Task, folder: RunFolder, measured: bool) -> Work:
    steps = task.epochs * task.steps_per_epoch
    done = folder.done(task.stage)
    seconds = steps * seconds_a_step(task) if measured and not done else 0.0
    return Work(row, task.stage, task.epochs, steps, round(seconds, 3), done)
