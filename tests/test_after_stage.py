"""What follows a ranking policy's training: operating point, verdict, another try where it loses, a stop in between.

Runs are of `tiny`. Where a try has to lose, its verdict is overwritten (`Verdicts`), or its policy is trained the wrong
way round on a toy where that matters.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.load import Data
from patchdrop.data.sets import MemorySource, Split
from patchdrop.errors import Interrupted, RunError, UsageError
from patchdrop.evaluation.operating_point import TRIED, Goal, cheapest_within, find_price, likely_accuracy, tried_counts
from patchdrop.evaluation.outcome import outcome_of
from patchdrop.files import read_json
from patchdrop.models.compute import Compute
from patchdrop.models.shared_pass import RankingModel
from patchdrop.policy.choice import greedy
from patchdrop.policy.network import Policy
from patchdrop.policy.ranking import Ranking
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.combinations import check_combinations
from patchdrop.training import after_stage, ranking_stages
from patchdrop.training import run as run_module
from patchdrop.training.after_stage import (
    MISTAKE,
    References,
    before_last,
    best_of,
    judge_stage,
    no_more_tries,
    references,
)
from patchdrop.training.attempts import Attempts
from patchdrop.training.batches import Loader
from patchdrop.training.ranking_stages import RankingTask
from patchdrop.training.run import Training, starts_as_low, train_ranking
from test_ranking import RANKING
from test_ranking_learns import CLASSES as TOY_CLASSES
from test_ranking_learns import GRID, SIDE, Counts, Word, marked, normalise
from test_training import CrashError, run_stages, same_bits, tensors_of
from tiny import CLASSES, COLOURS, config_of, data_of, recipe_of, tiny_data, tiny_settings, tiny_split

CPU = torch.device("cpu")
STEPS = 6
"""Of a try: two epochs of three."""
FINISHED = ["config.json", "model.safetensors"]


def ranking_settings(**changes: Any) -> Any:
    """Of a run whose policy stage is Pt alone, whatever LR-CNN is worth."""
    ends: dict[str, Any] = {"epochs_patches": 0, "epochs_ft1": 0, "epochs_ft2": 0, "insist": True}
    return tiny_settings(**{**RANKING, **ends, **changes})


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with its two classifiers."""
    folder = tmp_path_factory.mktemp("classifiers")
    run_stages(folder, ranking_settings(stages=("lr", "hr")))
    return folder


def copied(classifiers: Path, folder: Path) -> Path:
    shutil.copytree(classifiers, folder)
    return folder


class Verdicts:
    """`judge_stage` with another verdict for each try, which keeps the tries' weights."""

    def __init__(self, folder: Path, *said: dict[str, Any]) -> None:
        self.folder, self.said = folder, said
        self.weights: list[dict[str, Tensor]] = []

    def __call__(self, model: nn.Module, *rest: Any) -> dict[str, Any]:
        found = judge_stage(model, *rest)  # type: ignore[arg-type]
        self.weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        number = len(list(self.folder.glob("pt/try-*.json")))
        return {**found, "verdict": {**found["verdict"], **self.said[number]}}


def loses(reward: float = 0.0) -> dict[str, Any]:
    return {"kind": "loses", "better": "cascade", "reward": reward}


POLICY = {"kind": "policy", "better": None}


# --- another try


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ([{"kind": "everything"}], 0),
        ([loses(0.9), POLICY], 1),
        ([loses(0.9), loses(0.8), {"kind": "certainty"}], 2),
        ([loses(0.1), loses(0.5), loses(0.3)], 1),
    ],
)
def test_a_policy_that_loses_is_trained_again_at_most_twice_and_the_best_is_kept(
    tmp_path: Path, classifiers: Path, monkeypatch: pytest.MonkeyPatch, said: list[dict[str, Any]], kept: int
) -> None:
    folder = copied(classifiers, tmp_path / "run")
    verdicts = Verdicts(folder, *said)
    monkeypatch.setattr(run_module, "judge_stage", verdicts)
    # A last stage gives way to what beat it; here the policies are to be seen.
    monkeypatch.setattr(
        run_module, "fall_back", lambda model, config, record, *_: (model, config, record["calibration_error"])
    )
    run = run_stages(folder, ranking_settings(epochs_pt=1))
    config = run.stage_config("pt")
    assert [verdict["kind"] for verdict in config["tries"]] == [verdict["kind"] for verdict in said]
    assert config["verdict"] == config["tries"][kept]
    assert len(verdicts.weights) == len(said)
    assert same_bits(tensors_of(run, "pt"), verdicts.weights[kept])
    for other in range(len(said)):
        assert same_bits(verdicts.weights[other], verdicts.weights[kept]) is (other == kept)
    assert sorted(path.name for path in (folder / "pt").iterdir()) == FINISHED
    assert config["figures"]["epoch"] == 1


def test_tries_have_seeds_of_their_own_and_the_last_does_not_start_as_lr_cnn() -> None:
    schedule = recipe_of(ranking_settings(seed=5)).schedule
    tries = [schedule.again(number) for number in range(3)]
    assert tries[0] == schedule
    assert len({5, *(tried.seed for tried in tries[1:])}) == 3
    assert all(replace(tried, seed=5) == schedule for tried in tries)
    assert schedule.again(1) == schedule.again(1)

    def as_low(start: str) -> list[bool]:
        return [starts_as_low(config_of(ranking_settings(policy_start=start)), number) for number in range(3)]

    assert as_low("lr") == [True, True, False]
    assert as_low("shared") == [True, True, True]
    assert as_low("scratch") == [False, False, False]


def test_a_try_is_a_task_of_its_own_seed_and_start_and_the_same_in_all_else(classifiers: Path) -> None:
    run, recipe = RunFolder(classifiers), recipe_of(ranking_settings())
    training = Training(recipe, tiny_data(), run)
    low = tensors_of(run, "lr", "network.")
    started: list[bool] = []
    for number in range(3):
        task = training.task("pt", number)
        assert isinstance(task, RankingTask)
        assert (task.schedule, task.learning) == (recipe.schedule.again(number), recipe.learning)
        theirs = task.model.policy.utility.network.state_dict()
        started.append(same_bits(dict(theirs), {name: low[name] for name in theirs}))
    assert started == [True, True, False]


def test_which_try_is_kept_and_when_it_is_enough() -> None:
    def records(*kinds: str, rewards: Sequence[float] = ()) -> list[dict[str, Any]]:
        paid = rewards or (0.0,) * len(kinds)
        return [{"verdict": {"kind": k, "reward": r}} for k, r in zip(kinds, paid, strict=True)]

    assert (
        not no_more_tries([]) and not no_more_tries(records("loses")) and not no_more_tries(records("loses", "loses"))
    )
    assert (
        no_more_tries(records("loses", "loses", "loses"))
        and no_more_tries(records("nothing"))
        and no_more_tries(records("policy"))
    )
    assert best_of(records("loses", "policy", rewards=(0.9, 0.1))) == 1
    assert best_of(records("loses", "loses", "loses", rewards=(0.1, 0.3, 0.2))) == 1


def toy(folder: Path, monkeypatch: pytest.MonkeyPatch, broken_tries: int) -> tuple[dict[str, Any], int]:
    """The config of a stage whose first tries are trained with the advantage's sign turned, and how many were started.

    Half of the patches hold the class, and one patch an image is read. Who ranks by the opposite of what was learnt
    needs nine of them.
    """
    settings = tiny_settings(
        **{**RANKING, "low": "16", "fusion": "learned", "augment": (), "batch": 32, "target_patches": 1.0},
        **{"epochs_patches": 0, "epochs_ft1": 0, "epochs_ft2": 0, "epochs_pt": 4, "rate_policy": 1e-2},
    )
    fit, val = marked(512, 8, seed=1), marked(256, 8, seed=2)
    started = [0]

    def turned(utilities: Tensor, order: Tensor, counts: Tensor) -> Tensor:
        sign = -1 if started[0] <= broken_tries else 1
        return sign * log_probability(utilities, order, counts)

    log_probability = ranking_stages.log_probability
    monkeypatch.setattr(ranking_stages, "log_probability", turned)
    monkeypatch.setattr("patchdrop.evaluation.strategies._maps", lambda evaluated: None)  # `Word` has no feature map

    class Toy(Training):
        def task(self, stage: str, number: int = 0) -> RankingTask:
            started[0] += 1
            schedule = self.recipe.schedule.again(number)
            torch.manual_seed(schedule.seed)
            policy = Ranking(Policy("resnet8-w4", GRID, (SIDE, SIDE), normalise()), TOY_CLASSES)
            model = RankingModel(policy, TwoStream(Counts(1), Word(False), "learned"), shared=False)
            return RankingTask(stage, model, Loader(self.data, schedule, CPU), self.recipe.learning)

    data = replace(data_of(settings, fit, val), classes=tuple(str(c) for c in range(TOY_CLASSES)))
    training = Toy(recipe_of(settings), data, RunFolder(folder))

    def alone(model: nn.Module) -> Any:
        return outcome_of(model, settings.shape, val, lambda scores, _: scores >= 0, Compute(CPU))

    training.references = References(val, alone(Word(False)), alone(Counts(1)), CPU, settings.shape.low)
    monkeypatch.setattr(run_module, "_earlier", lambda *_: nn.Identity())  # HR-CNN, where a stage gives way
    train_ranking(training.task("pt"), training, lambda steps: None, lambda: 0)  # type: ignore[arg-type]
    return training.run.stage_config("pt"), started[0]


def test_a_policy_trained_the_wrong_way_round_loses_and_the_next_try_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, started = toy(tmp_path, monkeypatch, broken_tries=1)
    assert [verdict["kind"] for verdict in config["tries"]] == ["loses", "policy"]
    assert started == 2
    assert config["tries"][0]["accuracy"] < 0.5 < 0.9 < config["tries"][1]["accuracy"]
    assert config["verdict"] == config["tries"][1]
    assert config["verdict"]["mean_patches"] == pytest.approx(1, abs=1 / 256)


# --- stopped in between


def twice(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the first try of a run's Pt lose."""
    monkeypatch.setattr(run_module, "judge_stage", Verdicts(folder, loses(), POLICY))


@pytest.fixture(scope="module")
def unbroken(classifiers: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run whose second try was kept."""
    folder = copied(classifiers, tmp_path_factory.mktemp("unbroken") / "run")
    with pytest.MonkeyPatch.context() as patch:
        twice(folder, patch)
        return run_stages(folder, ranking_settings())


def same_stage(run: RunFolder, other: RunFolder) -> bool:
    ours, theirs = run.stage_config("pt"), other.stage_config("pt")
    return {**ours, "seconds": 0} == {**theirs, "seconds": 0}


@pytest.mark.parametrize("step", [STEPS - 1, STEPS + 1, STEPS + 3])
def test_a_run_stopped_in_a_try_goes_on_to_the_same_bits(
    tmp_path: Path, classifiers: Path, unbroken: RunFolder, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    folder = copied(classifiers, tmp_path / "run")
    twice(folder, monkeypatch)
    with pytest.raises(Interrupted):
        run_stages(folder, ranking_settings(), stop_at=("pt", step))
    number, at = divmod(step, STEPS)
    assert read_json(folder / "pt" / "state.json")["step"] == at
    assert len(list((folder / "pt").glob("try-*.json"))) == number
    assert not RunFolder(folder).done("pt")
    run = run_stages(folder, ranking_settings())
    assert same_stage(run, unbroken)
    assert [verdict["kind"] for verdict in run.stage_config("pt")["tries"]] == ["loses", "policy"]
    assert sorted(path.name for path in (folder / "pt").iterdir()) == FINISHED


def test_the_price_does_not_depend_on_the_stages_that_one_call_trains(tmp_path: Path, classifiers: Path) -> None:
    settings = ranking_settings(epochs_ft2=1, epochs_pt=1)
    concurrently = run_stages(copied(classifiers, tmp_path / "once"), settings)
    apart = copied(classifiers, tmp_path / "apart")
    run_stages(apart, replace(settings, stages=("pt",)))
    run = run_stages(apart, settings)
    for stage in ("pt", "ft2"):
        assert run.stage_config(stage)["sha256"] == concurrently.stage_config(stage)["sha256"]
    assert float(tensors_of(run, "pt")["policy.log_price"]) == pytest.approx(-math.log(MISTAKE))


def crash_after_judging(folder: Path, operation: int, try_number: int, patch: pytest.MonkeyPatch) -> bool:
    """Train, crashing at one file operation, counted from where a try is judged; False where there are not so many."""
    left = [10**9]

    def crashing(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **more: Any) -> Any:
            left[0] -= 1
            if left[0] == 0:
                raise CrashError
            return function(*arguments, **more)

        return call

    verdicts = Verdicts(folder, loses(), POLICY)

    def judging_then_counting(*arguments: Any) -> dict[str, Any]:
        found = verdicts(*arguments)
        left[0] = operation if len(verdicts.weights) == try_number + 1 else 10**9
        return found

    patch.setattr(run_module, "judge_stage", judging_then_counting)
    patch.setattr(os, "fsync", crashing(os.fsync))
    patch.setattr(os, "replace", crashing(os.replace))
    patch.setattr(Path, "unlink", crashing(Path.unlink))
    try:
        run_stages(folder, ranking_settings())
    except CrashError:
        return True
    return False


def crash_and_go_on(classifiers: Path, folder: Path, unbroken: RunFolder, operation: int, try_number: int) -> bool:
    copied(classifiers, folder)
    with pytest.MonkeyPatch.context() as patch:
        crashed = crash_after_judging(folder, operation, try_number, patch)
    with pytest.MonkeyPatch.context() as patch:
        twice(folder, patch)
        run = run_stages(folder, ranking_settings())
    assert same_stage(run, unbroken), operation
    assert sorted(path.name for path in (folder / "pt").iterdir()) == FINISHED, operation
    return crashed


def test_a_crash_right_after_a_first_try_was_kept_does_not_pass_it_off_as_the_second(
    tmp_path: Path, classifiers: Path, unbroken: RunFolder
) -> None:
    """The first try's weights are on the disk, or its record is too; the second one's training has not begun."""
    assert crash_and_go_on(classifiers, tmp_path / "run", unbroken, operation=6, try_number=0)


@pytest.mark.long
@pytest.mark.parametrize("try_number", [0, 1])
def test_a_crash_at_any_file_operation_after_a_try_loses_nothing(
    tmp_path: Path, classifiers: Path, unbroken: RunFolder, try_number: int
) -> None:
    operation = 1
    while crash_and_go_on(classifiers, tmp_path / str(operation), unbroken, operation, try_number):
        operation += 1
    assert operation > 10


# --- tries on the disk


def two_tries(folder: Path) -> Attempts:
    tries = Attempts(folder)
    for value in (1.0, 2.0):
        model = nn.Linear(2, 1)
        nn.init.constant_(model.weight, value)
        tries.add(model, {"verdict": {"kind": "loses", "reward": value}})
    return tries


def test_tries_are_kept_in_order_restored_and_removed(tmp_path: Path) -> None:
    tries = two_tries(tmp_path)
    assert [record["verdict"]["reward"] for record in tries.finished()] == [1.0, 2.0]
    model = nn.Linear(2, 1)
    tries.restore(1, model)
    assert model.weight.tolist() == [[2.0, 2.0]]
    tries.restore(0, model)
    assert model.weight.tolist() == [[1.0, 1.0]]
    (tmp_path / "other.json").write_text("{}")
    tries.clear()
    assert tries.finished() == []
    assert [path.name for path in tmp_path.iterdir()] == ["other.json"]


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"sha256": 3}'])
def test_a_damaged_record_of_a_try_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    tries = two_tries(tmp_path)
    (tmp_path / "try-1.json").write_text(content)
    with pytest.raises(RunError, match=r"try-1\.json: .*damaged") as caught:
        tries.finished()
    assert "\n" not in str(caught.value)


def test_damaged_weights_of_a_try_are_refused_in_one_line(tmp_path: Path) -> None:
    tries = two_tries(tmp_path)
    file = tmp_path / "try-0.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(RunError, match="its checksum differs") as caught:
        tries.restore(0, nn.Linear(2, 1))
    assert "\n" not in str(caught.value)


def test_a_kept_try_takes_its_training_state_with_it(tmp_path: Path) -> None:
    (tmp_path / "state.json").write_text("{}")
    (tmp_path / "state-00000006.safetensors").write_bytes(b"")
    Attempts(tmp_path).add(nn.Linear(2, 1), {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["try-0.json", "try-0.safetensors"]


# --- where LR is enough


def plain_colours(count: int, seed: int) -> Split:
    """Images of one colour, the class, all over: LR shows as much as HR."""
    targets = np.arange(count) % len(CLASSES)
    noise = np.random.default_rng(seed).integers(-10, 10, (count, 16, 16, 3))
    images = (COLOURS[targets][:, None, None] + noise).clip(0, 255).astype(np.uint8)
    high = torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
    source = MemorySource(high, None, torch.from_numpy(targets), [str(i) for i in range(count)])
    return Split(source, torch.arange(count))


def test_where_lr_shows_all_the_run_ends_after_two_stages_with_a_policy_that_reads_nothing(tmp_path: Path) -> None:
    splits = {"fit": plain_colours(24, 1), "val": plain_colours(12, 2)}
    settings = tiny_settings(**RANKING, epochs_lr=8, epochs_hr=8)
    data = Data("plain", "markers", CLASSES, settings.shape, splits, {})
    run = run_stages(tmp_path, settings, data=data)
    assert run.stages_done() == ["lr", "hr", "pt"]
    config = run.stage_config("pt")
    assert (config["verdict"]["kind"], config["tries"]) == ("nothing", [])
    assert config["figures"]["mean_patches"] == 0 == config["verdict"]["mean_patches"]
    assert {event["stage"] for event in run.read_log() if "epoch" in event} == {"lr", "hr"}
    for split in (splits["val"], tiny_split(30, 9)):
        model, described = run.load("pt")
        ours = outcome_of(model, described.shape, split, lambda scores, _: greedy(scores), Compute(CPU))
        low = outcome_of(run.load("lr")[0], described.shape, split, lambda scores, _: scores >= 0, Compute(CPU))
        assert not bool(ours.choice.any())
        assert torch.equal(ours.logits, low.logits)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    again = run_stages(tmp_path, settings, data=data)  # as long as it stays so, nothing is added
    assert again.stages_done() == ["lr", "hr", "pt"]
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_who_insists_has_a_policy_trained_all_the_same(tmp_path: Path, classifiers: Path) -> None:
    """A tolerance of 100 points makes LR enough wherever it is."""
    without = run_stages(copied(classifiers, tmp_path / "a"), ranking_settings(insist=False, tolerance=100.0))
    assert without.stage_config("pt")["tries"] == []
    insisting = run_stages(copied(classifiers, tmp_path / "b"), ranking_settings(insist=True, tolerance=100.0))
    assert len(insisting.stage_config("pt")["tries"]) >= 1


# --- the operating point


def on_val(run: RunFolder) -> Tensor:
    """How many patches of each validation image the last policy reads."""
    model, config = run.load("pt")
    found = outcome_of(model, config.shape, tiny_data().splits["val"], lambda scores, _: greedy(scores), Compute(CPU))
    return found.choice.sum(1)


@pytest.mark.parametrize("wanted", [2.0, 5.5])
def test_a_number_of_patches_is_met_on_validation_images(tmp_path: Path, classifiers: Path, wanted: float) -> None:
    settings = ranking_settings(target_patches=wanted, epochs_pt=1, epochs_ft2=1, stages=("pt",))
    run = run_stages(copied(classifiers, tmp_path / "run"), settings)
    # Where no further patch is expected to bring anything, images are alike and all read the next one, or none.
    assert float(on_val(run).double().mean()) == pytest.approx(wanted, abs=0.5)


def test_what_a_mistake_costs_is_the_price_turned_over(tmp_path: Path, classifiers: Path) -> None:
    settings = ranking_settings(mistake=7.5, epochs_pt=1, epochs_ft2=1, stages=("pt",))
    run = run_stages(copied(classifiers, tmp_path / "run"), settings)
    assert float(tensors_of(run, "pt")["policy.log_price"]) == pytest.approx(-math.log(7.5), abs=1e-6)
    assert run.stage_config("pt")["verdict"]["price"] == pytest.approx(1 / 7.5, rel=1e-6)


def test_which_goal_the_settings_have() -> None:
    def goals(**asked: float) -> tuple[Goal, Goal]:
        goal = recipe_of(tiny_settings(**asked)).goal
        return before_last(goal), goal

    assert goals(tolerance=2.0) == (Goal(0.0, MISTAKE, 2.0), Goal(0.0, 0.0, 2.0))
    assert goals(target_patches=3.0) == (Goal(3.0, 0.0, 0.5), Goal(3.0, 0.0, 0.5))
    assert goals(mistake=4.0) == (Goal(0.0, 4.0, 0.5), Goal(0.0, 4.0, 0.5))


def priced(goal: Goal, start: float = 0.0) -> tuple[float, Tensor]:
    """The log price that is found for scores of 50 images, and those scores at it.

    What is expected and what was seen agree: half are right without a patch, and every patch is as good as another.
    """
    scores = 3 * torch.randn(50, 16, generator=torch.Generator().manual_seed(0)) - start
    fraction = torch.linspace(0.5, 1, 17)
    chances = fraction.repeat(50, 1)
    right = torch.arange(50).unsqueeze(1) < 50 * fraction
    outputs: Any = SimpleNamespace(counts=torch.arange(17), right=lambda streams: right)
    model: Any = SimpleNamespace(policy=SimpleNamespace(log_price=torch.tensor(start)), classifier=None)
    find_price(model, scores, chances, outputs, goal)
    found = float(model.policy.log_price)
    return found, scores + start - found


@pytest.mark.parametrize("start", [0.0, 1.5])
@pytest.mark.parametrize("wanted", [0.5, 4.0, 15.9])
def test_the_price_of_a_number_of_patches_is_where_the_greedy_choice_has_it(wanted: float, start: float) -> None:
    _, scores = priced(Goal(target_patches=wanted), start=start)
    assert float(greedy(scores).sum(1).double().mean()) == pytest.approx(wanted, abs=0.5 / 50 + 1e-9)


def test_prices_stay_within_their_bounds() -> None:
    assert priced(Goal(mistake=1e9))[0] == -20
    assert priced(Goal(mistake=2.0), start=5.0)[0] == pytest.approx(-math.log(2))
    assert priced(Goal(target_patches=16.0))[0] == -20
    assert priced(Goal(target_patches=1e-9))[0] == 20


@pytest.mark.parametrize(
    ("accuracy", "tolerance", "point"),
    [
        ([0.5, 0.6, 0.7, 0.8], 0.0, 3),
        ([0.5, 0.6, 0.7, 0.8], 0.1, 2),
        ([0.5, 0.6, 0.7, 0.8], 0.11, 2),
        ([0.5, 0.6, 0.7, 0.8], 1.0, 0),
        ([0.8, 0.7, 0.6, 0.5], 0.0, 0),
        ([0.5, 0.9, 0.7, 0.8], 0.1, 1),
        ([0.7, 0.7, 0.7], 0.0, 0),
    ],
)
def test_the_cheapest_point_within_the_tolerance_of_the_best_is_found(
    accuracy: list[float], tolerance: float, point: int
) -> None:
    assert cheapest_within(accuracy, tolerance) == point


def test_likely_accuracy_is_halfway_between_what_is_expected_and_the_rising_curve_of_what_was_seen() -> None:
    chances = torch.tensor([[0.5, 0.7, 0.9], [0.3, 0.3, 0.4]])
    right = torch.tensor([[True, False], [False, True]])  # after 0 and after 2 patches; 1 counts as 0
    counts = [torch.tensor([0, 0]), torch.tensor([2, 0]), torch.tensor([2, 2])]
    expected = [(0.5 + 0.3) / 2, (0.9 + 0.3) / 2, (0.9 + 0.4) / 2]
    seen = [0.5 / 2, 0.5 / 2, 0.5]  # 1/2, 0 and 1/2 as counted
    found = likely_accuracy(counts, chances, torch.tensor([0, 2]), right)
    assert found == pytest.approx([(e + s) / 2 for e, s in zip(expected, seen, strict=True)])


@pytest.mark.parametrize("tolerance", [0.0, 10.0, 20.0, 100.0])
def test_a_tolerance_sets_the_price_at_which_accuracy_is_that_far_below_the_best(tolerance: float) -> None:
    _, scores = priced(Goal(tolerance=tolerance))
    reads = float((scores >= 0).sum(1).double().mean())
    wanted = 16 * max(0.0, 1 - tolerance / 50)  # from 50 to 100 % along 16 patches
    assert reads == pytest.approx(wanted, abs=1.5)


def test_numbers_of_patches_that_are_tried_rise_from_none_to_all() -> None:
    assert tried_counts(16).tolist() == list(range(17))
    assert tried_counts(4).tolist() == [0, 1, 2, 3, 4]
    for patches in (17, 36, 64, 256):
        tried = tried_counts(patches)
        assert (int(tried[0]), int(tried[-1])) == (0, patches)
        assert bool((tried.diff() > 0).all())
        assert len(tried) <= TRIED
        assert int(tried.diff()[0]) == 1


# --- what policies are judged by


def test_policies_are_settled_by_images_evenly_spread_over_validation(
    classifiers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, config = RunFolder(classifiers), config_of(ranking_settings())
    val = tiny_data().splits["val"]
    found = references(run, config, val, CPU)
    assert found.split.index.tolist() == list(range(12))
    assert not bool(found.low.choice.any()) and bool(found.high.choice.all())
    low, high = run.load("lr")[0], run.load("hr")[0]
    for model, outcome in ((low, found.low), (high, found.high)):
        alone = outcome_of(model, config.shape, val, lambda scores, _: scores >= 0, Compute(CPU))
        assert torch.equal(outcome.logits, alone.logits)
    monkeypatch.setattr(after_stage, "JUDGED", 5)
    assert references(run, config, val, CPU).split.index.tolist() == [0, 2, 4, 7, 9]


@pytest.mark.parametrize(
    "asked",
    [
        {"target_patches": 4.0, "mistake": 5.0},
        {"target_patches": 4.0, "tolerance": 2.0},
        {"mistake": 5.0, "tolerance": 2.0},
    ],
)
def test_two_operating_points_at_once_are_refused(asked: dict[str, float]) -> None:
    with pytest.raises(UsageError, match="different operating points; give one"):
        check_combinations(tiny_settings(**asked))
    for name, value in asked.items():
        check_combinations(tiny_settings(**{name: value}))


def test_a_stage_stopped_by_a_version_that_trained_other_weights_is_refused(
    tmp_path: Path, classifiers: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the weights of both streams were learnt: the optimizer's state has another order."""
    settings = ranking_settings(epochs_ft1=1, epochs_ft2=0)
    run = run_stages(copied(classifiers, tmp_path / "run"), replace(settings, stages=("pt",)))
    with monkeypatch.context() as before:
        before.setattr(ranking_stages, "keep_weights", lambda model: None)
        with pytest.raises(Interrupted):
            run_stages(run.path, settings, stop_at=("ft1", 1))
    with pytest.raises(RunError, match=r"remove its state\.json to train that stage again"):
        run_stages(run.path, settings)
    (run.stage("ft1") / "state.json").unlink()
    assert run_stages(run.path, settings).done("ft1")
