"""`patchdrop train` in a process of its own: killed at random moments, interrupted, terminated, and run to its end.

Whatever happened on the way, every stage ends with the bits of a run that was left alone. That run, and the
last go of the others, take place in the test's own process, which saves the seconds that torch takes to start.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from patchdrop.cli import main
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.flat import STAGES
from tiny import tiny_flags, write_folder

PATIENCE = 300
"""Seconds after which a process that should have moved counts as stuck."""


def command(data: Path, out: Path, **more: object) -> list[str]:
    # Five epochs of four steps a stage: long enough to be hit, with a save at every single step.
    epochs = {f"epochs_{stage}": 5 for stage in STAGES}
    flags = {"workers": 1, "save_minutes": 0, "augment": "flip", **epochs, **more}
    return ["train", *tiny_flags(data=data, out=out, **flags)]


def start(data: Path, out: Path, **more: object) -> subprocess.Popen[str]:
    """In a process group of its own, as a terminal gives it."""
    whole = [sys.executable, "-m", "patchdrop", *command(data, out, **more)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    return subprocess.Popen(
        whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )


def run_here(data: Path, out: Path, **more: object) -> dict[str, str]:
    """Train to the end in this process, and return the digests."""
    assert main(command(data, out, **more)) == 0
    assert not list(out.rglob("*.tmp"))
    assert not list(out.rglob("state*"))
    return digests(out)


def saved(out: Path) -> tuple[int, int]:
    """Stages that are trained, and steps of the one that is not."""
    done = RunFolder(out).stages_done()
    steps = 0
    for state in out.glob("*/state.json"):
        try:
            steps = max(steps, json.loads(state.read_text())["step"])
        except FileNotFoundError:  # removed in between
            continue
    return len(done), steps


def wait_for_progress(process: subprocess.Popen[str], out: Path, seen: tuple[int, int]) -> None:
    """Until more is saved than was before, so that a kill never comes before the training's first step."""
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and saved(out) <= seen:
        assert time.monotonic() < deadline, "nothing was saved"
        time.sleep(0.005)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=PATIENCE)
    return process.returncode, errors


def digests(out: Path) -> dict[str, str]:
    run = RunFolder(out)
    return {stage: run.stage_config(stage)["sha256"] for stage in run.stages_done()}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # 36 images less 3 for validation are 4 steps of 8; without a test split, those 3 are all that is evaluated.
    return write_folder(tmp_path_factory.mktemp("images"), train=36, test=0)


@pytest.fixture(scope="module")
def unbroken(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Digests of the run that is left alone."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    found = run_here(data, out)
    assert tuple(found) == STAGES
    return found


def killed_and_run_to_the_end(data: Path, out: Path, kills: int, seed: int) -> dict[str, str]:
    """Digests after that many kill -9, each some time after something new was saved."""
    draw = random.Random(seed)
    landed = 0
    for _ in range(kills):
        process = start(data, out)
        wait_for_progress(process, out, saved(out))
        time.sleep(draw.uniform(0, 0.4))
        process.kill()
        code, errors = ended(process)
        assert code in (-signal.SIGKILL, 0), errors
        landed += code != 0
    assert landed > 0
    return run_here(data, out)


def test_a_run_killed_three_times_ends_with_the_same_bits(data: Path, unbroken: dict[str, str], tmp_path: Path) -> None:
    assert killed_and_run_to_the_end(data, tmp_path / "run", kills=3, seed=0) == unbroken


@pytest.mark.long
@pytest.mark.parametrize("seed", range(1, 7))
def test_runs_killed_thirty_times_in_all_end_with_the_same_bits(
    data: Path, unbroken: dict[str, str], tmp_path: Path, seed: int
) -> None:
    assert killed_and_run_to_the_end(data, tmp_path / "run", kills=5, seed=seed) == unbroken


def test_ctrl_c_and_sigterm_save_leave_with_their_code_and_lose_nothing(
    data: Path, unbroken: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    for number, code in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        process = start(data, out)
        before = saved(out)
        wait_for_progress(process, out, before)
        process.send_signal(number)
        sent = time.monotonic()
        found, errors = ended(process)
        assert (found, errors.strip()) == (code, "stopped; everything is saved, the same command goes on")
        assert time.monotonic() - sent < 10
        assert saved(out) > before
    assert run_here(data, out) == unbroken


def workers_of(process: subprocess.Popen[str]) -> list[int]:
    """Its processes that decode images, from the moment they are started."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return [int(child) for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
    except FileNotFoundError:  # ended in between
        return []


def wait_for_workers(process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while process.poll() is None and not workers_of(process):
        assert time.monotonic() < deadline, "no worker was started"
        time.sleep(0.002)


@pytest.mark.parametrize(
    ("number", "expected"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 143, marks=pytest.mark.long)],
    ids=["int", "term"],
)
def test_ctrl_c_and_sigterm_to_every_process_reach_the_workers_too_and_still_save(
    data: Path, tmp_path: Path, number: int, expected: int
) -> None:
    """Whether they are starting up, before they can say that they do not care, or decoding."""
    out = tmp_path / "run"
    streaming = {"stages": "lr", "epochs_lr": 3, "memory_gb": 0, "workers": 2}
    for wait in (wait_for_workers, lambda process: wait_for_progress(process, out, saved(out))):
        process = start(data, out, **streaming)
        before = saved(out)
        wait(process)
        os.killpg(process.pid, number)
        code, errors = ended(process)
        assert (code, errors.strip()) == (expected, "stopped; everything is saved, the same command goes on")
        assert saved(out) > before
    assert saved(out)[0] == 0, "it was to be stopped while it trained"
    unbroken = run_here(data, tmp_path / "unbroken", **{**streaming, "memory_gb": 4})
    assert run_here(data, out, **streaming) == unbroken


@pytest.fixture
def held(data: Path, tmp_path: Path) -> Callable[[], subprocess.Popen[str]]:
    """Starts a training that is in the middle of it."""

    def of() -> subprocess.Popen[str]:
        process = start(data, tmp_path / "run")
        wait_for_progress(process, tmp_path / "run", (0, 0))
        return process

    return of


@pytest.mark.long
def test_a_second_training_in_the_same_folder_is_refused_while_the_first_goes_on(
    data: Path, unbroken: dict[str, str], tmp_path: Path, held: Callable[[], subprocess.Popen[str]]
) -> None:
    first = held()
    first.send_signal(signal.SIGSTOP)
    code, errors = ended(start(data, tmp_path / "run"))
    first.send_signal(signal.SIGCONT)
    assert code == 3
    assert "another training or evaluation is using it" in errors
    assert ended(first)[0] == 0
    assert digests(tmp_path / "run") == unbroken
