"""Training on several processes: the same bits however many there are, one that tells, and an end for all together.

Most jobs call `train_stages` and `help_stages` on tiny images; where signals, errors and exit codes matter, the command
line. `processes` starts them as torchrun does; one long test starts torchrun itself.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
import torch

from patchdrop.cli import main
from patchdrop.errors import TrainingError, UsageError
from patchdrop.models.build import build_stage
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.flat import STAGES
from patchdrop.settings.processes import place
from patchdrop.training.loop import make_optimizer, one_step, steps, train_step
from patchdrop.training.run import Stopper, help_stages, on_device, train_stages
from patchdrop.training.shards import Sums, halves, nodes_within, tree_sum
from patchdrop.training.supervised import ClassifierTask
from patchdrop.training.team import Team, joined
from processes import PATIENCE, codes, errors, start, together
from tiny import (
    config_of,
    data_of,
    learning_of,
    loader_of,
    recipe_of,
    tiny_flags,
    tiny_settings,
    tiny_split,
    write_folder,
)

CPU = torch.device("cpu")
RANKING = {"policy": "ranking", "low_stream": "pt", "fill": "low", "fusion": "capped", "insist": True}
CUT = {"batch": 18, "shards": 4, **{f"epochs_{stage}": 1 for stage in STAGES}}
"""Shards of 5, 5, 4 and 4 images; three steps a stage."""
ESTIMATORS: dict[str, dict[str, Any]] = {
    "straight-through": {"target_patches": 4.0, "fusion": "learned"},
    "rloo": {"target_patches": 4.0, "augment": ("flip", "turn", "zoom", "shift", "colour", "erase")},
    "bfloat16": {"estimator": "rloo", "precision": "bfloat16"},
    "self-critical": {"optimizer": "adamw"},
    "exact": {"grid": "2", "classifier": "canvas", "fill": "low"},
}
LINE = "stopped; everything is saved, the same command goes on"
LOST = "another process of this training has ended, so this one ends too"


def train_here(folder: Path, variants: dict[str, dict[str, Any]]) -> None:
    """Train a run of each variant, in a folder of its name, with the other processes of the job."""
    with joined(lambda: CPU) as team:
        for name, changes in variants.items():
            settings = tiny_settings(**{**CUT, **changes})
            data = data_of(settings, tiny_split(54, 1), tiny_split(12, 2))
            if team.rank:
                help_stages(recipe_of(settings), data, team, Stopper())
                continue
            with team.leading():
                train_stages(recipe_of(settings), data, RunFolder(folder / name), lambda *_: None, Stopper(), team)


def found_in(folder: Path) -> dict[str, Any]:
    """Digest and figures of each stage, and each epoch's log without its seconds."""
    run = RunFolder(folder)
    configs = {stage: run.stage_config(stage) for stage in run.stages_done()}
    log = [{k: v for k, v in event.items() if k != "seconds"} for event in run.read_log() if "epoch" in event]
    return {stage: (config["sha256"], config["figures"]) for stage, config in configs.items()} | {"log": log}


def same_for(sizes: Sequence[int], variants: dict[str, dict[str, Any]], folder: Path) -> None:
    """Train variants with each number of processes, and compare."""
    for size in sizes:
        together(size, train_here, (folder / str(size), variants), folder / f"told-{size}")
    first, *others = ({name: found_in(folder / str(size) / name) for name in variants} for size in sizes)
    assert all(first.values())
    assert all(other == first for other in others)


def test_every_stage_of_the_default_recipe_has_the_same_bits_for_one_two_and_four_processes(tmp_path: Path) -> None:
    same_for((1, 2, 4), {"ranking": RANKING}, tmp_path)
    assert list(found_in(tmp_path / "4" / "ranking")) == [*STAGES, "log"]


def test_three_processes_share_six_shards(tmp_path: Path) -> None:
    rest = {f"epochs_{stage}": 0 for stage in STAGES[2:]}
    same_for((1, 2, 3), {"six": {"shards": 6, "batch": 13, "optimizer": "adamw", **rest}}, tmp_path)


@pytest.mark.long
@pytest.mark.parametrize("name", ESTIMATORS)
def test_every_estimator_has_the_same_bits_for_one_two_and_four_processes(tmp_path: Path, name: str) -> None:
    same_for((1, 2, 4), {name: {"estimator": name, **ESTIMATORS[name]}}, tmp_path)


def train_until_spoilt(folder: Path) -> None:
    """Train LR-CNN with a loss that is not a number in one shard of the second step, and find that out."""
    plain, steps_done = ClassifierTask.loss, [0]

    def spoilt(task: ClassifierTask, batch: Any, progress: float) -> Any:
        loss, figures = plain(task, batch, progress)
        steps_done[0] += 1
        return (loss * float("nan") if place().rank == 1 and steps_done[0] == 4 else loss), figures

    ClassifierTask.loss = spoilt  # type: ignore[method-assign]
    with pytest.raises(TrainingError, match="stage lr, step 1: the loss is not a finite number"):
        train_here(folder, {"spoilt": {"epochs_lr": 3}})


def test_a_loss_that_is_no_number_in_one_process_stops_all_in_the_same_step(tmp_path: Path) -> None:
    together(2, train_until_spoilt, (tmp_path,), tmp_path / "told")
    assert not (tmp_path / "spoilt" / "lr" / "state.json").exists()


# --- the tree


def test_each_process_holds_whole_subtrees_of_one_tree_whatever_their_number() -> None:
    def all_nodes(node: tuple[int, int]) -> set[tuple[int, int]]:
        return {node} if node[1] - node[0] == 1 else {node}.union(*map(all_nodes, halves(node)))

    for shards in range(1, 25):
        for size in (n for n in range(1, shards + 1) if shards % n == 0):
            found = [n for rank in range(size) for n in nodes_within(Team(rank, size).own(shards), (0, shards))]
            assert set(found) <= all_nodes((0, shards))
            assert [shard for first, end in found for shard in range(first, end)] == list(range(shards))
            if shards & (shards - 1) == 0:
                assert len(found) == size


def test_the_order_of_the_sum_is_that_of_the_tree() -> None:
    parts = [Sums(torch.tensor([x]), torch.tensor([x])) for x in (1e8, 1.0, -1e8, 3.0, 5.0, 7.0)]
    known = {(k, k + 1): part for k, part in enumerate(parts)}
    v = [part.values for part in parts]
    expected = ((v[0] + v[1]) + (v[2] + v[3])) + (v[4] + v[5])
    assert torch.equal(tree_sum((0, 6), known.get).values, expected)
    assert not torch.equal(sum(v[1:], v[0]), expected)


def classifier(shards: int, **changes: Any) -> ClassifierTask:
    settings = tiny_settings(batch=13, shards=shards, augment=(), **changes)
    torch.manual_seed(0)
    model = on_device(build_stage("hr", config_of(settings), _statistics(settings)), CPU)
    return ClassifierTask("hr", model, loader_of(settings, tiny_split(26, 1), tiny_split(12, 2)))


def _statistics(settings: Any) -> Any:
    from patchdrop.data.load import statistics

    return statistics(tiny_split(26, 1), settings.shape.low)


def gradients(task: ClassifierTask) -> list[torch.Tensor]:
    optimizer = make_optimizer(task.groups(), "adamw")
    task.train_mode = task.model.eval  # type: ignore[method-assign]  # batch norm takes no statistics
    one_step(task, optimizer, next(steps(task, 0, 0)), 1, 10)
    return [p.grad for p in task.model.parameters() if p.grad is not None]


def test_gradients_of_uneven_shards_are_those_of_the_whole_batch_but_for_rounding() -> None:
    whole, cut = gradients(classifier(1)), gradients(classifier(4))
    assert len(whole) == len(cut) > 5
    for ours, theirs in zip(cut, whole, strict=True):
        assert ours.stride() == theirs.stride()
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def test_batch_norm_sees_shards_and_its_running_statistics_are_their_weighted_mean() -> None:
    def after(shards: int) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
        task = classifier(shards)
        figures = one_step(task, make_optimizer(task.groups(), "adamw"), next(steps(task, 0, 0)), 1, 10)
        return {k: v for k, v in task.model.state_dict().items() if "running" in k or "num_batches" in k}, figures

    (whole, _), (cut, figures) = after(1), after(4)
    first = next(k for k in whole if k.endswith("running_mean"))
    assert all(int(v) == 1 for k, v in cut.items() if k.endswith("num_batches_tracked"))
    torch.testing.assert_close(cut[first], whole[first])  # the first layer's mean does not depend on the cut
    assert any(not torch.allclose(cut[k], whole[k]) for k in whole if k.endswith("running_var"))
    assert 0 <= figures["accuracy"] <= 1
    assert figures["accuracy"] * 13 == pytest.approx(round(figures["accuracy"] * 13))


def test_a_moving_sigma_moves_once_a_step(tmp_path: Path) -> None:
    from patchdrop.training.policy_stages import PolicyTask
    from patchdrop.training.run import make_task

    moved = {}
    for shards in (1, 4):
        settings = tiny_settings(batch=13, shards=shards, augment=(), target_patches=4.0)
        torch.manual_seed(0)
        model = build_stage("pt", config_of(settings), _statistics(settings))
        loader = loader_of(settings, tiny_split(26, 1), tiny_split(12, 2))
        task = make_task("pt", model, loader, learning_of(settings))
        assert isinstance(task, PolicyTask)
        start = task.memory["log_sigma"]
        one_step(task, make_optimizer(task.groups(), "muon"), next(steps(task, 0, 0)), 1, 10)
        moved[shards] = task.memory["log_sigma"] - start
    assert moved[1] != 0
    assert moved[4] == pytest.approx(moved[1])


def test_one_shard_is_the_step_that_there_was() -> None:
    ours, theirs = classifier(1), classifier(1)
    one_step(ours, make_optimizer(ours.groups(), "muon"), next(steps(ours, 0, 0)), 1, 10)
    from patchdrop.training.seeds import derived_seed

    theirs.train_mode()
    torch.manual_seed(derived_seed(theirs.schedule.seed, "hr", "step", 1))
    train_step(theirs, make_optimizer(theirs.groups(), "muon"), next(theirs.batches(0, 0)), 1, 10)
    assert all(torch.equal(a, b) for a, b in zip(ours.model.parameters(), theirs.model.parameters(), strict=True))


def test_threads_do_not_depend_on_who_starts_a_run_that_is_cut_and_tiny_shards_are_refused(tmp_path: Path) -> None:
    from patchdrop.commands.shared import prepared

    data = str(write_folder(tmp_path / "images"))
    assert prepared(tiny_settings(data=data, threads=0, shards=4)).settings.threads == 1
    assert prepared(tiny_settings(data=data, threads=0)).settings.threads == 0
    with pytest.raises(UsageError, match="shards: 8 of 8 images a step have fewer than two each"):
        prepared(tiny_settings(data=data, shards=8))


# --- the command line


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("images"), train=54, test=0)


def flags(images: Path, out: Path, **more: object) -> list[str]:
    """Three steps an epoch, ten epochs, a save after each step."""
    cut = {"batch": 16, "shards": 4, "stages": "lr", "epochs_lr": 10}
    return ["train", *tiny_flags(data=images, out=out, workers=1, save_minutes=0, augment="flip", **{**cut, **more})]


def job(size: int, told: Path, *arguments: Sequence[str]) -> list[BaseProcess]:
    """Start the command line in each process, with arguments of its own or with the same."""
    each = arguments if len(arguments) > 1 else arguments * size
    return start(size, main, [(list(tokens),) for tokens in each], told)


def saved_step(out: Path) -> int:
    try:
        return int(json.loads((out / "lr" / "state.json").read_text())["step"])
    except FileNotFoundError:
        return 0


def wait_for_step(processes: Sequence[BaseProcess], out: Path, step: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while saved_step(out) < step and all(process.is_alive() for process in processes):
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.005)


def digest(out: Path) -> str:
    return str(RunFolder(out).stage_config("lr")["sha256"])


@pytest.fixture(scope="module")
def unbroken(images: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Digest of the run of one process that is left alone."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(flags(images, out)) == 0
    return digest(out)


def test_sigterm_to_one_process_saves_and_stops_all_and_another_number_goes_on(
    images: Path, unbroken: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    processes = job(4, tmp_path / "told", flags(images, out))
    wait_for_step(processes, out, 2)
    os.kill(processes[2].pid or 0, signal.SIGTERM)
    assert codes(processes) == [143] * 4
    assert [errors(tmp_path / "told", rank) for rank in range(4)] == [LINE, "", "", ""]
    assert 2 <= saved_step(out) < 30
    assert codes(job(2, tmp_path / "again", flags(images, out))) == [0, 0]
    assert digest(out) == unbroken
    assert [len(f.read_bytes()) for f in sorted((tmp_path / "again").glob("1.*"))] == [0, 0]
    assert "LR-CNN" in (tmp_path / "again" / "0.out").read_text()
    assert [e["processes"] for e in RunFolder(out).read_log() if e["event"] == "start"] == [4, 2]


@pytest.mark.parametrize("killed", [0, 1], ids=["first", "second"])
def test_a_killed_process_ends_the_others_in_one_line_each_and_one_alone_goes_on(
    images: Path, unbroken: str, tmp_path: Path, killed: int
) -> None:
    out = tmp_path / "run"
    processes = job(2, tmp_path / "told", flags(images, out))
    wait_for_step(processes, out, 2)
    processes[killed].kill()
    sent = time.monotonic()
    ended = codes(processes)
    assert time.monotonic() - sent < 20
    other = 1 - killed
    assert (ended[killed], ended[other]) == (-9, 3)
    said = errors(tmp_path / "told", other)
    assert LOST in said
    assert said.count("\n") == 0
    assert said.startswith("error: " if other == 0 else "error: process 2 of 2: ")
    # The table, the log and the lock are those of a run that was left alone.
    assert main(flags(images, out)) == 0
    assert digest(out) == unbroken


def refused(size: int, told: Path, *arguments: Sequence[str]) -> tuple[list[int | None], list[str]]:
    """Exit codes and stderr of a job that does not come to train."""
    ended = codes(job(size, told, *arguments))
    assert not any(path.read_bytes() for path in told.glob("*.out"))
    return ended, [errors(told, rank) for rank in range(size)]


def test_processes_that_cannot_train_together_say_so_in_one_line(images: Path, unbroken: str, tmp_path: Path) -> None:
    ours = flags(images, tmp_path / "run")
    ended, said = refused(3, tmp_path / "three", ours)
    assert ended == [2, 0, 0]
    assert said[0].startswith("error: shards: 4 cannot be divided among 3 processes")
    assert said[1:] == ["", ""]
    ended, said = refused(2, tmp_path / "seeds", ours, [*ours, "--seed", "7"])
    assert ended == [3, 3]
    assert "seed is 0 in the first and 7 in process 2 of 2" in said[0]
    assert said[1] == ""
    other = write_folder(tmp_path / "images", train=48, test=0)
    ended, said = refused(2, tmp_path / "data", ours, flags(other, tmp_path / "run"))
    assert ended == [3, 3]
    assert "data's images is {'val'" in said[0]
    assert said[1] == ""
    ended, said = refused(2, tmp_path / "missing", ours, flags(tmp_path / "nowhere", tmp_path / "run"))
    assert ended == [3, 3]
    assert LOST in said[0]
    assert said[1].startswith("error: process 2 of 2: ")
    assert "nowhere" in said[1]
    assert not (tmp_path / "run" / "lr").exists()


def test_a_run_that_was_begun_whole_is_not_shared_and_a_new_one_is_cut_into_eight(images: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    assert main(flags(images, out, shards=1, epochs_lr=1)) == 0
    ended, said = refused(2, tmp_path / "begun", flags(images, out, shards=1, epochs_lr=1))
    assert ended == [2, 0]
    assert "shards: 1 cannot be divided among 2 processes" in said[0]
    assert codes(job(2, tmp_path / "new", flags(images, tmp_path / "new-run", shards=1, epochs_lr=1))) == [0, 0]
    assert RunFolder(tmp_path / "new-run").settings().shards == 8
    # One process goes on with what is recorded.
    assert main(flags(images, tmp_path / "new-run", shards=1, epochs_lr=1)) == 0


def test_other_commands_are_for_one_process_and_help_is_given_once(tmp_path: Path) -> None:
    ended, said = refused(2, tmp_path / "info", ["info", str(tmp_path)])
    assert ended == [2, 0]
    assert said == ["error: torchrun: processes share `patchdrop train` and `demo` only; run this without it", ""]
    assert refused(2, tmp_path / "flag", ["train", "--no-such-flag", "--out", "x"])[1][1] == ""
    assert codes(job(2, tmp_path / "help", ["train", "--help"])) == [0, 0]
    assert "--shards" in (tmp_path / "help" / "0.out").read_text()
    assert (tmp_path / "help" / "1.out").read_text() == ""


# --- torchrun itself


def torchrun(size: int, *arguments: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    whole = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size), "-m"]
    return subprocess.Popen(
        [*whole, "patchdrop", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.mark.long
def test_torchrun_trains_every_stage_stops_at_sigterm_and_another_number_goes_on(images: Path, tmp_path: Path) -> None:
    everything = {**RANKING, "stages": STAGES, **{f"epochs_{stage}": 2 for stage in STAGES}, "batch": 16, "shards": 4}
    del everything["insist"]

    def command(out: Path) -> list[str]:
        return [*flags(images, out, **everything), "--insist"]

    assert main(command(tmp_path / "alone")) in (0, 5)
    out, stops = tmp_path / "run", 0
    draw = random.Random(0)
    for size in (4, 2, 4, 2):
        job = torchrun(size, *command(out))
        time.sleep(draw.uniform(15, 40))
        job.send_signal(signal.SIGTERM)
        _, said = job.communicate(timeout=PATIENCE)
        assert said.count(LINE) <= 1
        stops += LINE in said
        assert "Traceback" not in said.partition("torch/distributed")[0]
    assert stops > 0
    last = torchrun(2, *command(out))
    printed, said = last.communicate(timeout=PATIENCE)
    assert printed.count("HR-CNN") > 1 or "exitcode  : 5" in said, said
    found, expected = found_in(out), found_in(tmp_path / "alone")
    assert {**found, "log": []} == {**expected, "log": []}


@pytest.mark.long
def test_torchrun_begins_again_by_itself_after_a_process_was_killed(
    images: Path, unbroken: str, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    whole = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    streaming = flags(images, out, memory_gb=0)
    started = subprocess.Popen(
        [*whole, "--max-restarts", "2", "-m", "patchdrop", *streaming],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE
    while saved_step(out) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    children = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    ours = [int(c) for c in children if b"patchdrop" in Path(f"/proc/{c}/cmdline").read_bytes()]
    os.kill(ours[-1], signal.SIGKILL)
    _, said = started.communicate(timeout=PATIENCE)
    assert started.returncode == 0, said
    assert digest(out) == unbroken
