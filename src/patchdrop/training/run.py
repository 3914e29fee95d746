"""A whole training run: data, then one stage after the other, each from where it was stopped."""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import nn

from patchdrop.classify.patch_set import PatchSet
from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.load import Data, Statistics, statistics
from patchdrop.episode import PatchDrop
from patchdrop.errors import Interrupted, RunError, UsageError
from patchdrop.files import write_json
from patchdrop.grid import Grid
from patchdrop.models.build import ModelConfig, build_stage, copy_matching
from patchdrop.models.one_look import Advised
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.flat import STAGES, TrainSettings
from patchdrop.terminal.talk import warnings_told
from patchdrop.training.attempts import Attempts
from patchdrop.training.batches import steps_in
from patchdrop.training.loop import Task, clear_state, derived_seed, make_optimizer, saved_step, train, train_step
from patchdrop.training.objectives import Teacher
from patchdrop.training.policy_stages import PolicyTask
from patchdrop.training.ranking_stages import RankingTask
from patchdrop.training.settling import (
    References,
    best_of,
    give_way,
    goal_of,
    read_nothing,
    references,
    retried,
    settle,
    settled,
    weigh_streams,
)
from patchdrop.training.supervised import ClassifierTask

TAUGHT = 0.5
"""HR-CNN's share in what a classifier of a few patches learns from; the labels have the rest."""
Advance = Callable[[str, int], None]
Earlier = Callable[[str], nn.Module]
"""The trained model of an earlier stage, one of its own at each call."""


def device_of(settings: TrainSettings) -> torch.device:
    """The device a run trains on; ``auto`` takes a GPU where there is one.

    Raises:
        UsageError: there is no such device, or none that this project runs on.
        RunError: it is a GPU that is not here.
    """
    name = settings.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if not re.fullmatch(r"cpu|cuda(:\d+)?", name):
        raise UsageError(f"device: {name!r} is not one of auto, cpu, cuda and cuda:0, cuda:1, ...")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise RunError(f"device {name}: torch finds no GPU here; use --device cpu")
    number = int(name.partition(":")[2] or 0)
    if name.startswith("cuda") and number >= torch.cuda.device_count():
        raise RunError(f"device {name}: torch finds {torch.cuda.device_count()} GPUs here, the first is cuda:0")
    return torch.device(name)


def active_stages(settings: TrainSettings) -> list[str]:
    """The stages asked for, in training order, without those of 0 epochs."""
    return [s for s in STAGES if s in settings.stages and getattr(settings, f"epochs_{s}") > 0]


def train_stages(settings: TrainSettings, data: Data, run: RunFolder, advance: Advance, stop: Stopper) -> None:
    """Train every stage that is asked for and not there yet.

    Raises:
        RunError: the folder belongs to another data set, or an earlier stage is missing.
        TrainingError: a loss that is not a number.
        Interrupted: ``stop`` was asked; run the same again to go on.
    """
    _check_data(settings, data, run)
    device = device_of(settings)
    found = statistics(data.splits["fit"], settings.low_size)
    config = ModelConfig.of(settings, data.classes)

    @cache
    def judged() -> References:
        return references(run, config, data.splits["val"], device)

    def low_is_enough() -> bool:
        return not settings.insist and judged().low_is_enough(settings.tolerance)

    for stage in active_stages(settings):
        if run.done(stage):
            clear_state(run.stage(stage))
            Attempts(run.stage(stage)).clear()
            continue
        before_ranking = settings.policy == "ranking" and "pt" in active_stages(settings)
        if stage == "patches" and before_ranking and run.done("lr") and run.done("hr") and low_is_enough():
            settings = replace(settings, epochs_patches=0)  # a policy that reads nothing needs no classifier of patches
            continue

        def earlier(name: str) -> nn.Module:
            return _earlier(run, name, stage)  # noqa: B023

        def start(tried: TrainSettings) -> Task:
            torch.manual_seed(derived_seed(tried.seed, stage, "weights"))  # noqa: B023
            model = on_device(starting_model(stage, tried, config, found, earlier), device)  # noqa: B023
            if stage == "pt" and isinstance(model, Advised) and not low_is_enough():  # noqa: B023
                weigh_streams(model, config, judged())
            teacher = teacher_of(stage, tried, earlier, device)  # noqa: B023
            return make_task(stage, model, data, tried, device, teacher)  # noqa: B023

        def more(steps: int) -> None:
            advance(stage, steps)  # noqa: B023

        if not isinstance(task := start(settings), RankingTask):
            train_stage(task, run, config, settings, more, stop)
            continue
        if low_is_enough():
            if stage == "pt":
                read_nothing(task.model, run, config, judged(), settings, device)
            return
        train_ranking(task, start, run, config, settings, judged(), more, stop)
    if stop():
        raise Interrupted(stop())


def train_ranking(
    task: RankingTask,
    start: Callable[[TrainSettings], Task],
    run: RunFolder,
    config: ModelConfig,
    settings: TrainSettings,
    judged: References,
    advance: Callable[[int], None],
    stop: Stopper,
) -> None:
    """Train a ranking policy's stage and settle it; where it loses to a plain strategy, again, and keep the best try.

    Args:
        task: the first try's, at its start.
        start: settings to the task of another try.

    Raises:
        TrainingError, Interrupted: as `train_stages`.
    """
    folder = run.stage(task.stage)
    tries = Attempts(folder)
    last = task.stage == [stage for stage in STAGES if getattr(settings, f"epochs_{stage}") > 0][-1]
    while not settled(tries.finished()):
        number = len(tries.finished())
        tried = settings if number == 0 else retried(settings, number)
        again = task if number == 0 else start(tried)
        assert isinstance(again, RankingTask)
        outcome = train_to_end(again, run, tried, advance, stop)
        said = settle(again.model, config, judged, goal_of(settings, last), settings.seed, judged.device)
        tries.add(again.model, {**outcome, **said})
    records = tries.finished()
    best = best_of(records)
    tries.restore(best, task.model)
    kept = {name: value for name, value in records[best].items() if name != "sha256"}
    model: nn.Module = task.model
    if last and kept["verdict"]["kind"] == "loses":
        high_cnn = _earlier(run, "hr", task.stage)
        model, config, kept["calibration_error"] = give_way(task.model, config, kept, judged, high_cnn)
    run.finish(task.stage, model, config, {**kept, "tries": [record["verdict"] for record in records]})
    tries.clear()


def train_stage(
    task: Task,
    run: RunFolder,
    config: ModelConfig,
    settings: TrainSettings,
    advance: Callable[[int], None],
    stop: Stopper,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Train one stage to its end, from where its folder says it was stopped, and write its model there.

    Args:
        more: what the stage's ``config.json`` is to hold besides.

    Raises:
        TrainingError, Interrupted: as `train_stages`.
    """
    outcome = train_to_end(task, run, settings, advance, stop)
    run.finish(task.stage, task.model, config, {**(more or {}), **outcome})
    clear_state(run.stage(task.stage))


def train_to_end(
    task: Task, run: RunFolder, settings: TrainSettings, advance: Callable[[int], None], stop: Stopper
) -> dict[str, Any]:
    """Train one stage to its end, from where its folder says it was stopped; returns what `train` does."""
    folder = run.stage(task.stage)
    folder.mkdir(parents=True, exist_ok=True)
    run.forget_after(task.stage, saved_step(folder))
    with warnings_told(_into_log(task.stage, run)):
        return train(
            task,
            folder,
            settings.seed,
            run.log,
            advance,
            stop,
            settings.save_minutes,
            settings.optimizer,
            settings.precision,
        )


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """The model where it trains, in the memory order in which convolutions are fastest."""
    return model.to(device).to(memory_format=torch.channels_last)


def stage_steps(settings: TrainSettings, data: Data, stage: str) -> int:
    """Steps of a whole stage of a run."""
    return int(getattr(settings, f"epochs_{stage}")) * steps_in(data.splits["fit"], settings.batch)


def seconds_a_step(task: Task, optimizer_name: str, precision: str = "float32") -> float:
    """Time of one training step, the least of three on the task's first batches; 0 for a task without steps."""
    if task.epochs == 0:
        return 0.0
    optimizer = make_optimizer(task.groups(), optimizer_name)
    task.train_mode()
    times = []
    for batch, _ in zip(task.batches(0, 0), range(3), strict=False):
        start = time.perf_counter()
        train_step(task, optimizer, batch, 0, 1, precision)
        times.append(time.perf_counter() - start)
    return min(times)


def make_task(
    stage: str,
    model: nn.Module,
    data: Data,
    settings: TrainSettings,
    device: torch.device,
    teacher: Teacher | None = None,
) -> Task:
    """The task that trains a stage's model."""
    fit, val = data.splits["fit"], data.splits["val"]
    if stage in ("lr", "hr", "patches"):
        return ClassifierTask(stage, model, fit, val, settings, device, teacher=teacher)
    assert isinstance(model, PatchDrop)
    if isinstance(model, Advised):
        return RankingTask(stage, model, fit, val, settings, device, teacher)
    return PolicyTask(stage, model, fit, val, settings, device)


def teacher_of(stage: str, settings: TrainSettings, earlier: Earlier, device: torch.device) -> Teacher | None:
    """HR-CNN, where a classifier of a few patches learns from it beside a ranking policy."""
    if settings.policy != "ranking" or stage not in ("patches", "ft1", "ft2"):
        return None
    return Teacher(on_device(earlier("hr"), device), Grid.parse(settings.grid), TAUGHT)


def starting_model(
    stage: str, settings: TrainSettings, config: ModelConfig, found: Statistics, earlier: Earlier
) -> nn.Module:
    """A stage's model as its training starts: new, or with what earlier stages have learnt."""
    model = build_stage(stage, config, found, settings.pretrained)
    if stage == "patches":
        copy_matching(earlier("hr"), model)
        _join_low(model, earlier)
    elif isinstance(model, PatchDrop):
        streams = model.classifier
        high = streams.high if isinstance(streams, TwoStream) else streams
        joins = isinstance(streams, TwoStream)
        if stage == "pt":
            classifier = "patches" if settings.epochs_patches > 0 else "hr"
            if classifier == "hr":
                _join_low(high, earlier)
            copy_matching(earlier(classifier), high)
            if settings.policy_start != "scratch" and settings.policy_network == settings.lr_network:
                policy = model.policy.utility if isinstance(model, Advised) else model.policy
                copy_matching(earlier("lr").network, policy.network)  # type: ignore[arg-type]
        else:
            before = earlier("ft1" if stage == "ft2" and settings.epochs_ft1 > 0 else "pt")
            assert isinstance(before, PatchDrop)
            copy_matching(before.policy, model.policy)
            joins = joins and not isinstance(before.classifier, TwoStream)
            copy_matching(before.classifier, high if joins else streams)
        if joins:
            assert isinstance(streams, TwoStream)
            copy_matching(earlier("lr"), streams.low)
    return model


def _join_low(high: nn.Module, earlier: Earlier) -> None:
    """A patch set's context starts as LR-CNN."""
    if isinstance(high, PatchSet) and high.context is not None:
        copy_matching(earlier("lr"), high.context)


def _earlier(run: RunFolder, stage: str, needed_by: str) -> nn.Module:
    if not run.done(stage):
        raise RunError(f"{run}: stage {needed_by} starts from {stage}, which is not trained; add it to --stages")
    return run.load(stage)[0]


def _check_data(settings: TrainSettings, data: Data, run: RunFolder) -> None:
    """Record what the run trains on, or, once a stage has begun, compare it with what is recorded."""
    described: dict[str, Any] = {
        "name": data.name,
        "layout": data.layout,
        "classes": list(data.classes),
        "images": {name: len(split) for name, split in data.splits.items()},
        "sha256": {name: split.sha256 for name, split in data.splits.items()},
        "low": "own" if data.splits["fit"].own_low else "averaged",
    }
    recorded = run.data() if run.begun() else {}
    if recorded:
        for key, value in described.items():
            if recorded.get(key, value) != value:  # a run of an earlier version may lack a key
                raise RunError(
                    f"{run}: was started on other data ({key} was {recorded[key]}, is {value}); use another --out"
                )
        return
    carved = {"val": data.splits["val"].names}
    write_json(run.path / "data.json", {**described, "skipped": dict(data.skipped), "carved": carved})


def _into_log(stage: str, run: RunFolder) -> Callable[[Warning | str, type[Warning]], bool]:
    """Writes each warning into the log too."""

    def tell(message: Warning | str, _: type[Warning]) -> bool:
        run.log({"event": "warning", "stage": stage, "message": str(message)})
        return False

    return tell


class Stopper:
    """Turns SIGINT and SIGTERM into a wish that the training loop looks at after each step."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> int:
        """The signal that came, or 0."""
        return self.signal

    @contextmanager
    def listening(self) -> Iterator[Stopper]:
        """Catch the signals for the duration of a block."""

        def note(number: int, _: object) -> None:
            self.signal = number

        before = {s: signal.signal(s, note) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
