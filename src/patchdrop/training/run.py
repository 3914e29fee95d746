"""Run a whole training: load the data, then train one stage after the other, each from where it was stopped."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from patchdrop.classify.patch_set import PatchSet
from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.load import Data, Statistics, statistics
from patchdrop.episode import PatchDrop
from patchdrop.errors import Interrupted, RunError
from patchdrop.files import write_json
from patchdrop.models.build import ModelConfig, build_stage, copy_matching, fill_weights
from patchdrop.models.shared_pass import RankingModel
from patchdrop.runs.folder import RunFolder
from patchdrop.terminal.talk import warnings_told
from patchdrop.training.after_stage import (
    TRIES,
    References,
    before_last,
    best_of,
    fall_back,
    judge_stage,
    no_more_tries,
    read_nothing,
    references,
    weigh_streams,
)
from patchdrop.training.attempts import Attempts
from patchdrop.training.batches import Loader
from patchdrop.training.loop import Task, assist, clear_state, saved_step, train
from patchdrop.training.objectives import Teacher
from patchdrop.training.policy_stages import Learning, PolicyTask
from patchdrop.training.ranking_stages import RankingTask
from patchdrop.training.recipe import Recipe
from patchdrop.training.schedule import Schedule
from patchdrop.training.seeds import derived_seed
from patchdrop.training.supervised import ClassifierTask
from patchdrop.training.team import ALONE, Team

TAUGHT = 0.5
"""HR-CNN's share in the loss of a classifier of a few patches; the labels have the rest."""
Advance = Callable[[str, int], None]
Earlier = Callable[[str], nn.Module]
"""Loads a fresh copy of an earlier stage's trained model."""


class Training:
    """A call of training: a recipe, its data, the folder that holds what is trained, and who shares the work."""

    def __init__(self, recipe: Recipe, data: Data, run: RunFolder, team: Team = ALONE) -> None:
        self.recipe, self.data, self.run, self.team = recipe, data, run, team
        self.config = recipe.with_classes(data.classes)
        self.statistics = statistics(data.splits["fit"], data.shape.low)
        self.device = recipe.device

    @cached_property
    def references(self) -> References:
        """LR-CNN and HR-CNN evaluated on validation images."""
        return references(self.run, self.config, self.data.splits["val"], self.device)

    @property
    def low_is_enough(self) -> bool:
        """Whether a policy has nothing to gain, and the recipe does not insist on one."""
        return not self.recipe.insist and self.references.low_is_enough(self.recipe.goal.tolerance)

    def task(self, stage: str, number: int = 0) -> Task:
        """Return the task that trains a stage, with its model at its start.

        Args:
            number: which try; each has another seed, and in the last one the policy does not start as LR-CNN.
        """
        schedule = self.recipe.schedule.again(number)
        torch.manual_seed(derived_seed(schedule.seed, stage, "weights"))

        def earlier(name: str) -> nn.Module:
            return _earlier(self.run, name, stage)

        start = Start(schedule.stages, self.recipe.pretrained, starts_as_low(self.config, number))
        model = on_device(starting_model(stage, start, self.config, self.statistics, earlier), self.device)
        if stage == "pt" and isinstance(model, RankingModel) and not self.low_is_enough:
            weigh_streams(model, self.references)
        teacher = teacher_of(stage, self.config, earlier, self.device)
        loader = Loader(self.data, schedule, self.device, self.team.own(schedule.shards))
        return make_task(stage, model, loader, self.recipe.learning, teacher)


def train_stages(
    recipe: Recipe, data: Data, run: RunFolder, advance: Advance, stop: Stopper, team: Team = ALONE
) -> None:
    """Train every stage that is asked for and not trained yet.

    Args:
        team: leads these processes; the others are in `help_stages`.

    Raises:
        RunError: the folder belongs to another data set, or an earlier stage is missing.
        TrainingError: a loss is not a number.
        Interrupted: ``stop`` asked for it; run the same again to go on.
    """
    _check_data(data, run)
    _agree(recipe, data, team)
    training = Training(recipe, data, run, team)
    ranks = recipe.networks.policy == "ranking"
    for stage in recipe.stages:
        if run.done(stage):
            clear_state(run.stage(stage))
            Attempts(run.stage(stage)).clear()
            continue
        judgeable = ranks and "pt" in recipe.stages and run.done("lr") and run.done("hr")
        if stage == "patches" and judgeable and training.low_is_enough:
            # A policy that reads nothing needs no classifier of patches.
            training.recipe = replace(training.recipe, schedule=recipe.schedule.with_epochs(patches=0))
            continue
        more = partial(advance, stage)
        if not isinstance(task := training.task(stage), RankingTask):
            train_stage(task, run, training.config, more, stop, team=team)
            continue
        if training.low_is_enough:
            if stage == "pt":
                read_nothing(task.model, run, training.config, training.references, recipe.schedule.seed)
            return
        train_ranking(task, training, more, stop)
    if stop():
        raise Interrupted(stop())


def train_ranking(task: RankingTask, training: Training, advance: Callable[[int], None], stop: Stopper) -> None:
    """Train a ranking policy's stage and judge it; if it loses to a plain strategy, try again, and keep the best try.

    Args:
        task: the task of the first try, at its start.

    Raises:
        TrainingError, Interrupted: as `train_stages`.
    """
    run, config, judged = training.run, training.config, training.references
    tries = Attempts(run.stage(task.stage))
    last = task.stage == training.recipe.schedule.stages[-1]
    goal = training.recipe.goal if last else before_last(training.recipe.goal)
    while not no_more_tries(tries.finished()):
        number = len(tries.finished())
        again = task if number == 0 else training.task(task.stage, number)
        assert isinstance(again, RankingTask)
        outcome = train_to_end(again, run, advance, stop, training.team)
        said = judge_stage(again.model, config, judged, goal, training.recipe.schedule.seed)
        tries.add(again.model, {**outcome, **said})
    records = tries.finished()
    best = best_of(records)
    tries.restore(best, task.model)
    kept = {name: value for name, value in records[best].items() if name != "sha256"}
    model: nn.Module = task.model
    if last and kept["verdict"]["kind"] == "loses":
        high_cnn = _earlier(run, "hr", task.stage)
        model, config, kept["calibration_error"] = fall_back(task.model, config, kept, judged, high_cnn)
    run.finish(task.stage, model, config, {**kept, "tries": [record["verdict"] for record in records]})
    tries.clear()


def train_stage(
    task: Task,
    run: RunFolder,
    config: ModelConfig,
    advance: Callable[[int], None],
    stop: Stopper,
    more: Mapping[str, Any] | None = None,
    team: Team = ALONE,
) -> None:
    """Train one stage to its end, from where its folder says it was stopped, and write its model there.

    Args:
        more: further entries for the stage's ``config.json``.

    Raises:
        TrainingError, Interrupted: as `train_stages`.
    """
    outcome = train_to_end(task, run, advance, stop, team)
    run.finish(task.stage, task.model, config, {**(more or {}), **outcome})
    clear_state(run.stage(task.stage))


def train_to_end(
    task: Task, run: RunFolder, advance: Callable[[int], None], stop: Stopper, team: Team = ALONE
) -> dict[str, Any]:
    """Train one stage to its end, from where its folder says it was stopped; return what `train` returns."""
    folder = run.stage(task.stage)
    folder.mkdir(parents=True, exist_ok=True)
    run.forget_after(task.stage, saved_step(folder))
    if team.size > 1:
        team.send(Order.of(task))
    with warnings_told(_into_log(task.stage, run)):
        return train(task, folder, run.log, advance, stop, team)


class Order(NamedTuple):
    """A stage that helpers are asked to help with: what they need to build its task as the leader has it.

    Attributes:
        weights: of the model at its start.
        teacher: weights of the teacher; None if the stage has none.
    """

    stage: str
    schedule: Schedule
    weights: Mapping[str, Tensor]
    teacher: Mapping[str, Tensor] | None

    @classmethod
    def of(cls, task: Task) -> Order:
        """Describe a task."""
        teacher = task.teacher if isinstance(task, (ClassifierTask, RankingTask)) else None
        taught = None if teacher is None else _weights(teacher.model)
        return cls(task.stage, task.schedule, _weights(task.model), taught)

    def task(self, recipe: Recipe, data: Data, team: Team) -> Task:
        """Build the task."""
        config, found = recipe.with_classes(data.classes), statistics(data.splits["fit"], data.shape.low)

        def filled(stage: str, weights: Mapping[str, Tensor] | None) -> nn.Module:
            model = build_stage(stage, config, found)
            fill_weights(model, weights or {}, f"stage {stage} of the first process")
            return model

        model = on_device(filled(self.stage, self.weights), recipe.device)
        teacher = teacher_of(self.stage, config, lambda name: filled(name, self.teacher), recipe.device)
        loader = Loader(data, self.schedule, recipe.device, team.own(self.schedule.shards))
        return make_task(self.stage, model, loader, recipe.learning, teacher)


def help_stages(recipe: Recipe, data: Data, team: Team, stop: Stopper) -> None:
    """Help the process that leads `train_stages` with the steps of every stage, until it says that there is no other.

    Raises:
        TrainingError, Interrupted: as there.
    """
    _agree(recipe, data, team)
    while (order := team.receive()) is not None:
        task = order.task(recipe, data, team)
        if (standing := team.receive()) is None:
            return
        assist(task, standing, stop, team)


def _weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.cpu() for name, tensor in model.state_dict().items()}


def on_device(model: nn.Module, device: torch.device) -> nn.Module:
    """Move a model to the device, in the memory order in which convolutions are fastest."""
    return model.to(device).to(memory_format=torch.channels_last)


def make_task(stage: str, model: nn.Module, loader: Loader, learning: Learning, teacher: Teacher | None = None) -> Task:
    """Build the task that trains a stage's model."""
    if stage in ("lr", "hr", "patches"):
        return ClassifierTask(stage, model, loader, teacher=teacher)
    assert isinstance(model, PatchDrop)
    if isinstance(model, RankingModel):
        return RankingTask(stage, model, loader, learning, teacher)
    return PolicyTask(stage, model, loader, learning)


def teacher_of(stage: str, config: ModelConfig, earlier: Earlier, device: torch.device) -> Teacher | None:
    """Return HR-CNN as the teacher of a classifier of a few patches beside a ranking policy; None for other stages."""
    if config.policy != "ranking" or stage not in ("patches", "ft1", "ft2"):
        return None
    return Teacher(on_device(earlier("hr"), device), config.shape.grid, TAUGHT)


class Start(NamedTuple):
    """The settings that decide what a stage's training starts from.

    Attributes:
        stages: stages of the whole run that have epochs.
        pretrained: whether timm's networks start from published weights.
        as_low: whether the policy starts with LR-CNN's features; both must be the same network.
    """

    stages: Sequence[str]
    pretrained: bool
    as_low: bool


def starts_as_low(config: ModelConfig, number: int = 0) -> bool:
    """Check whether a try's policy starts as LR-CNN; in the last try only if it shares LR-CNN's pass."""
    alike = config.policy_network == config.lr_network
    return alike and config.policy_start in (("lr", "shared") if number < TRIES - 1 else ("shared",))


def starting_model(stage: str, start: Start, config: ModelConfig, found: Statistics, earlier: Earlier) -> nn.Module:
    """Build a stage's model as its training starts: new, or with weights from earlier stages."""
    model = build_stage(stage, config, found, start.pretrained)
    if stage == "patches":
        copy_matching(earlier("hr"), model)
        _join_low(model, earlier)
    elif isinstance(model, PatchDrop):
        streams = model.classifier
        high = streams.high if isinstance(streams, TwoStream) else streams
        joins = isinstance(streams, TwoStream)
        if stage == "pt":
            classifier = "patches" if "patches" in start.stages else "hr"
            if classifier == "hr":
                _join_low(high, earlier)
            copy_matching(earlier(classifier), high)
            if start.as_low:
                policy = model.policy.utility if isinstance(model, RankingModel) else model.policy
                copy_matching(earlier("lr").network, policy.network)  # type: ignore[arg-type]
        else:
            before = earlier("ft1" if stage == "ft2" and "ft1" in start.stages else "pt")
            assert isinstance(before, PatchDrop)
            copy_matching(before.policy, model.policy)
            joins = joins and not isinstance(before.classifier, TwoStream)
            copy_matching(before.classifier, high if joins else streams)
        if joins:
            assert isinstance(streams, TwoStream)
            copy_matching(earlier("lr"), streams.low)
    return model


def _join_low(high: nn.Module, earlier: Earlier) -> None:
    """Start a patch set's context as LR-CNN."""
    if isinstance(high, PatchSet) and high.context is not None:
        copy_matching(earlier("lr"), high.context)


def _earlier(run: RunFolder, stage: str, needed_by: str) -> nn.Module:
    if not run.done(stage):
        raise RunError(f"{run}: stage {needed_by} starts from {stage}, which is not trained; add it to --stages")
    return run.load(stage)[0]


def _agree(recipe: Recipe, data: Data, team: Team) -> None:
    """Compare data, threads and device of all processes that train together; the data may lie in another folder."""
    if team.size > 1:
        pixels = {name: part.tolist() for name, part in vars(statistics(data.splits["fit"], data.shape.low)).items()}
        facts = {f"data's {name}": value for name, value in {**_described(data), **pixels}.items() if name != "name"}
        team.agree({**facts, "threads": torch.get_num_threads(), "device": recipe.device.type})


def _described(data: Data) -> dict[str, Any]:
    return {
        "name": data.name,
        "layout": data.layout,
        "classes": list(data.classes),
        "images": {name: len(split) for name, split in data.splits.items()},
        "sha256": {name: split.sha256 for name, split in data.splits.items()},
        "low": "own" if data.splits["fit"].own_low else "averaged",
    }


def _check_data(data: Data, run: RunFolder) -> None:
    """Record the data that the run trains on or, once a stage has begun, compare them with the record."""
    described = _described(data)
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
    """Return a function that writes each warning into the log too."""

    def tell(message: Warning | str, _: type[Warning]) -> bool:
        run.log({"event": "warning", "stage": stage, "message": str(message)})
        return False

    return tell


class Stopper:
    """A handler that turns SIGINT and SIGTERM into a request, which the training loop checks after each step."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self) -> int:
        """Return the signal that came, or 0."""
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
