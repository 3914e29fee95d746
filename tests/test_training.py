"""Training on a data set of 24 images: what stays frozen, what repeats, what a stop costs (nothing), what stops it.

A run's digest is the SHA-256 of a stage's ``model.safetensors``; ``figures`` are those of its best validation,
to the last bit. Most tests start from copies of one unbroken run.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from patchdrop.data.load import Data, statistics
from patchdrop.data.sets import Batch
from patchdrop.errors import CollapsedPolicyWarning, Interrupted, RunError, TrainingError
from patchdrop.files import read_json, read_tensors, write_json, write_tensors
from patchdrop.models.build import build_stage
from patchdrop.policy.reward import reward, soft_reward
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.flat import STAGES, TrainSettings
from patchdrop.training.loop import Task, rate_at, train
from patchdrop.training.policy_stages import SIGMA_RANGE, PolicyTask
from patchdrop.training.run import make_task, train_stages
from tiny import CLASSES, config_of, learning_of, loader_of, recipe_of, tiny_data, tiny_settings, tiny_split

STEPS_PER_EPOCH = 3
STEPS = 2 * STEPS_PER_EPOCH
CPU = torch.device("cpu")
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "everything": {
        "target_patches": 4.0,
        "estimator": "rloo",
        "fusion": "learned",
        "fill": "low",
        "policy_head": "global",
        "augment": ("flip", "upside-down", "turn", "zoom", "shift", "colour", "erase"),
    },
    "relaxed": {"estimator": "straight-through", "target_patches": 4.0, "fusion": "learned"},
}


def run_stages(
    folder: Path, settings: TrainSettings, stop_at: tuple[str, int] | None = None, data: Data | None = None
) -> RunFolder:
    """Train all stages; with ``stop_at``, be interrupted after that step of that stage."""
    at = dict.fromkeys(STAGES, 0)
    now = [""]

    def advance(stage: str, steps: int) -> None:
        at[stage] += steps
        now[0] = stage

    def stop() -> int:
        return 15 if stop_at == (now[0], at.get(now[0])) else 0

    run = RunFolder(folder)
    train_stages(recipe_of(settings), data or tiny_data(), run, advance, stop)
    return run


def outcome(run: RunFolder, stage: str) -> tuple[str, dict[str, float]]:
    config = run.stage_config(stage)
    return config["sha256"], config["figures"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """The unbroken run of a variant, trained when it is first asked for."""
    made: dict[str, RunFolder] = {}

    def of(variant: str) -> RunFolder:
        if variant not in made:
            folder = tmp_path_factory.mktemp(variant)
            made[variant] = run_stages(folder, tiny_settings(**VARIANTS[variant]))
        return made[variant]

    return of


def before(run: RunFolder, stage: str, folder: Path) -> Path:
    """A copy of a run in which a stage and those after it are not trained yet."""
    copy = folder / "copy"
    shutil.copytree(run.path, copy)
    for later in STAGES[STAGES.index(stage) :]:
        shutil.rmtree(copy / later)
    return copy


def tensors_of(run: RunFolder, stage: str, prefix: str = "") -> dict[str, Tensor]:
    found = load_file(run.stage(stage) / "model.safetensors")
    return {k.removeprefix(prefix): v for k, v in found.items() if k.startswith(prefix)}


def same_bits(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


# --- frozen means frozen


@pytest.mark.parametrize("variant", VARIANTS)
def test_pt_leaves_the_classifier_as_it_was_weights_and_statistics(runs: Any, variant: str) -> None:
    run = runs(variant)
    classifier = tensors_of(run, "pt", "classifier.")
    assert any(name.endswith("running_mean") for name in classifier)
    assert same_bits(classifier, tensors_of(run, "patches"))


@pytest.mark.parametrize("variant", VARIANTS)
def test_ft2_leaves_the_lr_classifier_as_it_was(runs: Any, variant: str) -> None:
    run = runs(variant)
    assert same_bits(tensors_of(run, "ft2", "classifier.low."), tensors_of(run, "lr"))


def test_lr_cnn_may_join_in_pt_and_ft1_be_left_out(tmp_path: Path) -> None:
    run = run_stages(
        tmp_path, tiny_settings(classifier="canvas", fill="low", low_stream="pt", fusion="learned", epochs_ft1=0)
    )
    assert run.stages_done() == [stage for stage in STAGES if stage != "ft1"]
    low, patches = tensors_of(run, "lr"), tensors_of(run, "patches")
    for stage in ("pt", "ft2"):
        assert same_bits(tensors_of(run, stage, "classifier.low."), low)
    assert same_bits(tensors_of(run, "pt", "classifier.high."), patches)
    assert float(tensors_of(run, "pt")["classifier.log_power"]) == pytest.approx(math.log(3))
    assert not same_bits(tensors_of(run, "ft2", "classifier.high."), patches)
    assert not same_bits(tensors_of(run, "ft2", "policy."), tensors_of(run, "pt", "policy."))


def test_what_a_stage_trains_does_move(runs: Any) -> None:
    run = runs("everything")
    assert not same_bits(tensors_of(run, "hr"), tensors_of(run, "patches"))
    assert not same_bits(tensors_of(run, "pt", "policy."), tensors_of(run, "ft1", "policy."))
    assert not same_bits(tensors_of(run, "ft1", "policy."), tensors_of(run, "ft2", "policy."))
    high = tensors_of(run, "ft1", "classifier.")
    assert not same_bits(tensors_of(run, "pt", "classifier."), high)
    assert not same_bits(high, tensors_of(run, "ft2", "classifier.high."))
    assert float(tensors_of(run, "ft2")["classifier.log_power"]) != pytest.approx(math.log(3), abs=1e-7)


def test_batch_norm_statistics_move_while_classifiers_learn_and_stay_in_the_policy_stages(runs: Any) -> None:
    def statistics_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v for k, v in tensors.items() if "running_" in k or "num_batches" in k}

    run = runs("plain")
    patches = statistics_of(tensors_of(run, "patches"))
    assert not same_bits(statistics_of(tensors_of(run, "hr")), patches)
    assert same_bits(statistics_of(tensors_of(run, "ft1", "classifier.")), patches)
    assert same_bits(statistics_of(tensors_of(run, "ft2", "classifier.high.")), patches)


def test_the_policy_starts_from_the_lr_classifiers_features_where_that_is_asked(tmp_path: Path, runs: Any) -> None:
    for start, same in (("lr", True), ("scratch", False)):
        folder = before(runs("plain"), "pt", tmp_path / start)
        settings = tiny_settings(policy_start=start, rate_policy=0.0)
        run = run_stages(folder, settings)
        ours = tensors_of(run, "pt", "policy.network.")
        theirs = tensors_of(run, "lr", "network.")
        assert same_bits(ours, {k: v for k, v in theirs.items() if k in ours}) is same


def test_a_policy_of_another_network_takes_nothing_from_the_lr_classifier(tmp_path: Path, runs: Any) -> None:
    """Its first layers have tensors of the same names and shapes, which mean something else in a deeper network."""
    settings = tiny_settings(policy_network="resnet14-w4", rate_policy=0.0, stages=("pt",), epochs_pt=1)
    run = run_stages(before(runs("plain"), "pt", tmp_path), settings)
    ours, theirs = tensors_of(run, "pt", "policy.network."), tensors_of(run, "lr", "network.")
    shared = [k for k in ours if k in theirs and ours[k].shape == theirs[k].shape and ours[k].ndim == 4]
    assert shared
    assert not any(torch.equal(ours[k], theirs[k]) for k in shared)


# --- the same again


def test_two_processes_with_one_seed_end_with_the_same_bits_and_another_seed_with_others(
    tmp_path: Path, runs: Any
) -> None:
    code = (
        "import sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training import run_stages; from tiny import tiny_settings\n"
        f"run_stages(Path({str(tmp_path / 'again')!r}), tiny_settings())\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    other = run_stages(tmp_path / "other", tiny_settings(seed=1))
    ours, again = runs("plain"), RunFolder(tmp_path / "again")
    for stage in STAGES:
        assert outcome(again, stage) == outcome(ours, stage)
        assert outcome(other, stage)[0] != outcome(ours, stage)[0]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(
    ("variant", "step"),
    [("plain", 1), ("plain", 3), ("plain", 5), ("plain", 6), ("everything", 4), ("relaxed", 2)],
)
def test_a_stopped_stage_goes_on_to_the_same_bits(
    tmp_path: Path, runs: Any, variant: str, stage: str, step: int
) -> None:
    """Step 1 is the first, 2, 4 and 5 lie within an epoch, 3 and 6 end one."""
    unbroken = runs(variant)
    settings = tiny_settings(**VARIANTS[variant])
    folder = before(unbroken, stage, tmp_path)
    with pytest.raises(Interrupted) as stopped:
        run_stages(folder, settings, stop_at=(stage, step))
    assert stopped.value.signal == 15
    assert read_json(folder / stage / "state.json")["step"] == step
    assert not RunFolder(folder).done(stage)
    after = STAGES[: STAGES.index(stage) + 1]
    resumed = run_stages(folder, tiny_settings(**VARIANTS[variant], stages=after))
    assert outcome(resumed, stage) == outcome(unbroken, stage)
    digest = resumed.stage_config(stage)["sha256"]
    assert digest == unbroken.stage_config(stage)["sha256"]
    assert sorted(p.name for p in (folder / stage).iterdir()) == ["config.json", "model.safetensors"]


def test_a_run_stopped_at_every_single_step_ends_with_the_same_bits_and_the_same_log(tmp_path: Path, runs: Any) -> None:
    unbroken = runs("plain")
    stops = 0
    for stage in STAGES:
        for step in range(1, STEPS + 1):
            with pytest.raises(Interrupted):
                run_stages(tmp_path, tiny_settings(), stop_at=(stage, step))
            stops += 1
    assert stops == 36
    run = run_stages(tmp_path, tiny_settings())
    for stage in STAGES:
        assert outcome(run, stage) == outcome(unbroken, stage)
    timeless = [
        [{k: v for k, v in event.items() if k != "seconds"} for event in r.read_log() if "epoch" in event]
        for r in (run, unbroken)
    ]
    assert len(timeless[1]) == 2 * len(STAGES)
    assert timeless[0] == timeless[1]


def test_saving_along_the_way_changes_nothing(tmp_path: Path, runs: Any) -> None:
    run = run_stages(tmp_path, tiny_settings(save_minutes=0.0))
    for stage in STAGES:
        assert outcome(run, stage) == outcome(runs("plain"), stage)


class CrashError(BaseException):
    """Not an Exception: nothing may catch it and tidy up, as nothing can when the power fails."""


def test_a_crash_at_any_file_operation_loses_nothing(
    tmp_path: Path, runs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before each flush, rename and removal in turn, with a save at every step: then the same is run again."""
    settings = tiny_settings(stages=("lr",), save_minutes=0.0)
    until_crash = [0]

    def crashing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            until_crash[0] -= 1
            if until_crash[0] == 0:
                raise CrashError
            return function(*arguments, **more)

        return call

    monkeypatch.setattr(os, "fsync", crashing(os.fsync))
    monkeypatch.setattr(os, "replace", crashing(os.replace))
    monkeypatch.setattr(Path, "unlink", crashing(Path.unlink))
    for operation in range(1, 1000):
        folder = tmp_path / str(operation)
        until_crash[0] = operation
        try:
            run_stages(folder, settings)
        except CrashError:
            run = run_stages(folder, settings)
            assert outcome(run, "lr") == outcome(runs("plain"), "lr")
            assert sorted(p.name for p in run.stage("lr").iterdir()) == ["config.json", "model.safetensors"]
            assert sorted(p.name for p in folder.iterdir()) == ["data.json", "log.jsonl", "lr"]
            epochs = [(e["epoch"], e["step"]) for e in run.read_log()]
            assert epochs == [(1, 3), (2, 6)]
        else:
            break
    assert operation > 40


def test_a_resumed_stage_of_another_length_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_stages(tmp_path, tiny_settings(), stop_at=("lr", 1))
    with pytest.raises(RunError, match=r"stopped in a training of 6 steps, this one has 9"):
        run_stages(tmp_path, tiny_settings(epochs_lr=3))


def test_a_stopped_stage_of_another_network_is_refused_with_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_stages(tmp_path, tiny_settings(), stop_at=("lr", 1))
    with pytest.raises(RunError, match=r"this network has .*; remove that stage's folder and train it again"):
        run_stages(tmp_path, tiny_settings(lr_network="resnet8-w8"))


def test_other_data_in_the_same_folder_are_refused_and_the_difference_is_named(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        run_stages(tmp_path, tiny_settings(), stop_at=("lr", 1))
    other = replace(tiny_data(), classes=(*CLASSES, "white"))
    with pytest.raises(RunError, match=r"other data \(classes was .*'white'"):
        run_stages(tmp_path, tiny_settings(), data=other)
    fewer = replace(tiny_data(), splits={**tiny_data().splits, "val": tiny_split(9, 2)})
    with pytest.raises(RunError, match=r"other data \(images was .*'val': 12.*, is .*'val': 9"):
        run_stages(tmp_path, tiny_settings(), data=fewer)


def test_a_stage_whose_start_is_not_trained_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="stage ft1 starts from pt, which is not trained; add it to --stages"):
        run_stages(tmp_path, tiny_settings(stages=("ft1",)))


# --- what a saved state holds: without any one item, the resumed run is another


class Scored:
    """A task whose validation score rises or falls with the epochs, whatever was learnt."""

    def __init__(self, task: Task, rising: bool) -> None:
        self._task = task
        self._sign = 1.0 if rising else -1.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._task, name)

    def validate(self, progress: float) -> dict[str, float]:
        return {**self._task.validate(progress), "score": self._sign * progress}


def fresh_task(stage: str, rising: bool = True, **changes: Any) -> Task:
    torch.manual_seed(1)
    settings, data = tiny_settings(optimizer="adamw", **changes), tiny_data()
    found = statistics(data.splits["fit"], settings.shape.low)
    model = build_stage(stage, config_of(settings, data.classes), found)
    scored: Any = Scored(make_task(stage, model, loader_of(settings, data=data), learning_of(settings)), rising)
    return scored


def trained(task: Task, folder: Path, stop_at: int | None = None) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The final tensors and figures."""
    folder.mkdir(exist_ok=True)
    done = [0]

    def advance(steps: int) -> None:
        done[0] += steps

    result = train(task, folder, lambda _: None, advance, lambda: 15 if done[0] == stop_at else 0)
    return dict(task.model.state_dict()), result["figures"]


def reset_model(ending: str) -> Callable[[dict[str, Any], dict[str, Tensor], dict[str, Tensor]], None]:
    """As if tensors of that name were not saved: they come back as they were at the start."""

    def tamper(manifest: dict[str, Any], tensors: dict[str, Tensor], start: dict[str, Tensor]) -> None:
        names = [n for n in tensors if n.startswith("model/") and n.endswith(ending)]
        assert names
        for name in names:
            tensors[name] = start[name.removeprefix("model/")]

    return tamper


def reset_slot(slot: str) -> Callable[[dict[str, Any], dict[str, Tensor], dict[str, Tensor]], None]:
    def tamper(manifest: dict[str, Any], tensors: dict[str, Tensor], start: dict[str, Tensor]) -> None:
        names = [n for n in tensors if n.startswith("optimizer/") and n.endswith(f"/{slot}")]
        assert names
        for name in names:
            tensors[name] = torch.zeros_like(tensors[name])

    return tamper


def drop_optimizer(manifest: dict[str, Any], tensors: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if n.startswith("optimizer/")]:
        del tensors[name]


def drop_best(manifest: dict[str, Any], tensors: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    for name in [n for n in tensors if n.startswith("best/")]:
        del tensors[name]


def reset(key: str, value: Any) -> Callable[[dict[str, Any], dict[str, Tensor], dict[str, Tensor]], None]:
    def tamper(manifest: dict[str, Any], tensors: dict[str, Tensor], start: dict[str, Tensor]) -> None:
        assert manifest[key] != value
        manifest[key] = value

    return tamper


ITEMS: dict[str, tuple[str, bool, Callable[..., None]]] = {
    "weights": ("hr", True, reset_model("conv1.weight")),
    "head": ("hr", True, reset_model("fc.bias")),
    "running mean": ("hr", True, reset_model("running_mean")),
    "running variance": ("hr", True, reset_model("running_var")),
    "batches seen": ("hr", True, reset_model("num_batches_tracked")),
    "optimizer": ("hr", True, drop_optimizer),
    "first moment": ("hr", True, reset_slot("exp_avg")),
    "second moment": ("hr", True, reset_slot("exp_avg_sq")),
    "optimizer's step": ("hr", True, reset_slot("step")),
    "step": ("hr", True, reset("step", 0)),
    "step by one": ("hr", True, reset("step", 3)),
    "sums": ("hr", True, reset("sums", {})),
    "best weights": ("hr", False, drop_best),
    "best score": ("hr", False, reset("best_score", None)),
    "best figures": ("hr", False, reset("best_figures", {})),
    "policy's first moment": ("ft1", True, reset_slot("exp_avg")),
    "memory": ("ft1", True, reset("memory", {})),
}


def tampered(folder: Path, tamper: Callable[..., None], start: dict[str, Tensor]) -> None:
    manifest = read_json(folder / "state.json")
    tensors = read_tensors(folder / manifest["file"], manifest["sha256"])
    tamper(manifest, tensors, start)
    manifest["sha256"] = write_tensors(folder / manifest["file"], tensors)
    write_json(folder / "state.json", manifest)


@pytest.mark.parametrize("item", [None, *ITEMS])
def test_each_item_of_the_saved_state_is_needed(tmp_path: Path, item: str | None) -> None:
    stage, rising, tamper = ITEMS[item] if item else ("ft1", True, lambda *_: None)
    more: dict[str, Any] = {"target_patches": 5.5, "sigma": 2.0} if stage == "ft1" else {}
    unbroken = trained(fresh_task(stage, rising, **more), tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        trained(fresh_task(stage, rising, **more), tmp_path / "broken", stop_at=4)
    start = {k: v.clone() for k, v in fresh_task(stage, **more).model.state_dict().items()}
    tampered(tmp_path / "broken", tamper, start)
    try:
        resumed = trained(fresh_task(stage, rising, **more), tmp_path / "broken")
    except (KeyError, RuntimeError):
        assert item is not None
        return
    equal = same_bits(resumed[0], unbroken[0]) and resumed[1] == unbroken[1]
    assert equal is (item is None)


def test_one_bit_of_a_saved_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        trained(fresh_task("lr"), tmp_path / "lr", stop_at=4)
    (file,) = (tmp_path / "lr").glob("state-*.safetensors")
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match="is damaged, its checksum differs"):
        trained(fresh_task("lr"), tmp_path / "lr")


# --- the first value that is not a number stops the run


def failing(task: Any, stage: str, bad_step: int, kind: str, value: float) -> Any:
    """The task, with a bad value injected at one step (0 is the first)."""
    plain_loss, plain_batches = task.loss, task.batches
    seen = [-1]

    def loss(batch: Batch, progress: float) -> tuple[Tensor, dict[str, float]]:
        seen[0] += 1
        found, figures = plain_loss(batch, progress)
        if seen[0] == bad_step and kind == "loss":
            return found * value, figures
        if seen[0] == bad_step and kind == "gradient":
            found.register_hook(lambda gradient: gradient * value)
        return found, figures

    def batches(epoch: int, first_step: int) -> Any:
        for index, batch in enumerate(plain_batches(epoch, first_step), epoch * STEPS_PER_EPOCH + first_step):
            bad = index == bad_step and kind == "input"
            yield Batch(batch.high.float() * value, batch.low, batch.target) if bad else batch

    task.loss, task.batches = loss, batches
    return task


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize(
    ("stage", "kind", "term"),
    [
        ("lr", "loss", "the loss"),
        ("hr", "loss", "the loss"),
        ("hr", "gradient", "a gradient"),
        ("hr", "input", "the loss"),
        ("patches", "input", "the loss"),
        ("pt", "loss", "the loss"),
        ("pt", "gradient", "a gradient"),
        ("ft1", "input", "the loss"),
        ("ft2", "gradient", "a gradient"),
        ("ft2", "input", "the loss"),
    ],
)
def test_a_bad_number_stops_training_before_the_optimizer_and_nothing_is_saved_after(
    tmp_path: Path,
    runs: Any,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    kind: str,
    term: str,
    value: float,
) -> None:
    folder = before(runs("plain"), stage, tmp_path)
    tasks: list[Any] = []

    def make(*arguments: Any) -> Any:
        tasks.append(failing(make_task(*arguments), stage, 4, kind, value))
        return tasks[-1]

    with monkeypatch.context() as patch:
        patch.setattr("patchdrop.training.run.make_task", make)
        with pytest.raises(TrainingError) as caught:
            run_stages(folder, tiny_settings())
    message = str(caught.value)
    assert message.startswith(f"stage {stage}, step 4: {term} is not a finite number")
    assert "\n" not in message
    assert all(bool(v.isfinite().all()) for v in tasks[0].model.parameters())
    assert read_json(folder / stage / "state.json")["step"] == 3
    assert len(list((folder / stage).glob("state-*.safetensors"))) == 1
    assert not RunFolder(folder).done(stage)
    assert not list((folder / stage).glob("model*"))
    resumed = run_stages(folder, tiny_settings(stages=STAGES[: STAGES.index(stage) + 1]))
    assert outcome(resumed, stage) == outcome(runs("plain"), stage)


# --- sigma moves towards the wanted number of patches


def policy_task(**changes: Any) -> PolicyTask:
    torch.manual_seed(1)
    settings, data = tiny_settings(**changes), tiny_data()
    model: Any = build_stage("pt", config_of(settings, data.classes))
    task = make_task("pt", model, loader_of(settings, data=data), learning_of(settings))
    assert isinstance(task, PolicyTask)
    return task


def sigma_after_a_step(patches: int, target: float, sigma: float) -> float:
    """Of a policy that keeps ``patches`` of 16, whatever it sees."""
    task = policy_task(target_patches=target, sigma=sigma)
    logits = torch.where(torch.arange(16) < patches, 5.0, -5.0)
    task.model.policy.forward = lambda low: logits.expand(len(low), 16)  # type: ignore[method-assign, union-attr]
    task.loss(next(iter(task.batches(0, 0))), 0.5)
    return task.sigma


def test_too_few_patches_make_mistakes_dearer_and_too_many_cheaper() -> None:
    assert sigma_after_a_step(2, target=4, sigma=1.0) == pytest.approx(math.exp(0.1 * 2 / 16), rel=1e-6)
    assert sigma_after_a_step(10, target=4, sigma=1.0) == pytest.approx(math.exp(-0.1 * 6 / 16), rel=1e-6)
    assert sigma_after_a_step(4, target=4, sigma=1.0) == pytest.approx(1.0, rel=1e-6)
    assert sigma_after_a_step(10, target=0, sigma=1.0) == 1.0


def test_sigma_stays_in_its_range() -> None:
    low, high = SIGMA_RANGE
    assert sigma_after_a_step(16, target=1, sigma=low) == pytest.approx(low, rel=1e-6)
    assert sigma_after_a_step(0, target=15, sigma=high) == pytest.approx(high, rel=1e-6)


def test_with_a_target_the_score_is_the_right_class_probability_less_the_patches_more_than_an_eighth_beyond_it() -> (
    None
):
    task = policy_task(target_patches=4.0)
    figures = {"accuracy": 0.9, "probability": 0.75, "mean_patches": 6.0, "reward": 0.1}
    assert task._score(figures) == 0.75 - 1.5 / 16
    assert task._score({**figures, "mean_patches": 4.5}) == 0.75
    assert policy_task()._score(figures) == 0.1


# --- smaller promises


@pytest.mark.parametrize(
    ("estimator", "soft"), [("straight-through", True), ("rloo", False), ("self-critical", False), ("exact", False)]
)
def test_straight_through_is_paid_the_soft_reward_and_the_others_the_papers(estimator: str, soft: bool) -> None:
    task = policy_task(policy="bernoulli", estimator=estimator)
    choice, logits = torch.rand(5, 16) < 0.5, torch.randn(5, 3)
    paid = task._reward(choice, logits, torch.arange(5) % 3)
    assert torch.equal(paid, (soft_reward if soft else reward)(choice, logits, torch.arange(5) % 3, task.sigma))


def test_the_policys_rate_in_ft_is_two_fifths_of_that_in_pt() -> None:
    rates = {stage: fresh_task(stage, rate_policy=1e-3).groups()[0].rate for stage in ("pt", "ft1", "ft2")}
    assert rates == {"pt": 1e-3, "ft1": pytest.approx(4e-4), "ft2": pytest.approx(4e-4)}


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    assert rate_at(0.0) == pytest.approx(0.005, abs=1e-3)
    assert rate_at(0.2) == pytest.approx(1.0)
    assert rate_at(0.6) == pytest.approx(0.5)
    assert rate_at(1.0) == pytest.approx(0.0, abs=1e-12)
    rates = [rate_at(i / 100) for i in range(101)]
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == sorted(rates[20:], reverse=True)


def test_a_policy_that_gives_all_images_one_mask_is_warned_of_and_the_log_says_so(tmp_path: Path) -> None:
    task = policy_task()
    with pytest.warns(CollapsedPolicyWarning, match="128 of 128 images have the same mask"):
        task._warn_of_collapse(torch.ones(128, 16, dtype=torch.bool))


def test_the_log_has_a_line_for_each_epoch_with_its_figures(runs: Any) -> None:
    lines = (runs("plain").path / "log.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    epochs = [(e["stage"], e["epoch"], e["step"]) for e in events if e["event"] == "validation"]
    assert epochs == [(s, e, e * STEPS_PER_EPOCH) for s in STAGES for e in (1, 2)]
    wanted = {"accuracy", "reward", "mean_patches", "distinct_masks", "entropy", "sigma", "alpha"}
    for event in events:
        if event["event"] == "validation" and event["stage"] in ("pt", "ft1", "ft2"):
            assert wanted <= event.keys()
