"""Many scenes: lists, several at once, killed and started again, with a cache; the same results and no byte twice."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from patchdrop.errors import DataError, UsageError
from patchdrop.read import tiled
from patchdrop.scenes import plan, predict
from patchdrop.scenes.concurrency import SceneBar, concurrently
from patchdrop.tiff import directory as tiff
from patchdrop.transport.cache import FILE
from patchdrop.transport.ranges import Stopped
from pyramids import picture, write_cog
from range_server import Asked, RangeServer, range_server
from untrained import command

PATIENCE = 300
"""Seconds after which a process counts as stuck."""
NAMES = ("a", "b", "c", "d", "e")
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def contents(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    root = tmp_path_factory.mktemp("scenes")
    return {
        f"{name}.tif": write_cog(root / f"{name}.tif", picture(200, 256, seed=seed)).read_bytes()
        for seed, name in enumerate(NAMES)
    }


@pytest.fixture
def server(contents: dict[str, bytes]) -> Iterator[RangeServer]:
    with range_server() as running:
        running.files |= contents
        running.etags |= {name: f'"{name}"' for name in contents}
        yield running


@pytest.fixture
def listed(server: RangeServer, tmp_path: Path) -> Path:
    """The five scenes, the third of them twice, and in between one that is none."""
    server.files["bad.tif"] = b"not a picture" * 10
    path = tmp_path / "scenes.csv"
    path.write_text("scene\n" + "".join(f"{server.url(f'{n}.tif')}\n" for n in ("a", "b", "c", "bad", "c", "d", "e")))
    return path


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """First reads and groups small enough that these scenes need several."""
    monkeypatch.setattr(tiff, "HEADER_BYTES", 1024)
    monkeypatch.setattr(tiled, "GROUP_PIXELS", 64 * 64 * 3 * 7)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# --- several at once


class Counted:
    """A function that counts how many run at once; the first ``jobs`` calls wait until they all are there."""

    def __init__(self, inner: Callable[..., Any], jobs: int) -> None:
        self.inner, self.jobs = inner, jobs
        self.active = self.most = self.begun = 0
        self.lock, self.together = threading.Lock(), threading.Barrier(jobs)

    def __call__(self, *given: Any) -> Any:
        with self.lock:
            self.active, self.begun = self.active + 1, self.begun + 1
            self.most = max(self.most, self.active)
            first = self.begun <= self.jobs
        try:
            if first:
                self.together.wait(PATIENCE)
            return self.inner(*given)
        finally:
            with self.lock:
                self.active -= 1


@pytest.mark.usefixtures("small")
def test_three_at_once_write_the_bytes_of_one_at_a_time_and_are_three(
    model: Path, listed: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {}
    for verb, module in (("plan", plan), ("predict", predict)):
        for jobs in (1, 3):
            out = tmp_path / f"{verb}{jobs}"
            with monkeypatch.context() as patched:
                counted = Counted(getattr(module, f"_{verb}_scene"), jobs)
                patched.setattr(module, f"_{verb}_scene", counted)
                code, text, err = run(verb, model, "--scenes", listed, "--out", out, "--jobs", jobs, "--json")
            assert (code, counted.most, counted.begun) == (4, jobs, 6)
            document = json.loads(text)
            document.pop("work", None)  # times of this moment
            found[verb, jobs] = (document, err, files(out))
        assert found[verb, 1] == found[verb, 3]
    document = found["predict", 3][0]
    assert [Path(s["scene"]).stem for s in document["scenes"]] == list(NAMES)
    assert len(document["failed"]) == 1 and "bad.tif: no TIFF" in document["failed"][0]
    assert len(found["predict", 3][2]) == 4 * 5


def test_check_takes_a_list_and_a_bad_row_exits_with_4(
    model: Path, server: RangeServer, run: Run, tmp_path: Path
) -> None:
    path = tmp_path / "scenes.jsonl"
    path.write_text(json.dumps({"scene": server.url("a.tif")}) + "\n{}\n")
    code, out, err = run("check", "--scenes", path, "--run", model, "--jobs", 2, "--json")
    document = json.loads(out)
    assert code == 4 and [s["fit"] for s in document["scenes"]] == [True]
    assert document["failed"] == [err.removeprefix("error: ").strip()] and "line 2: no scene" in err


def test_data_errors_are_told_in_order_and_any_other_ends_them_all() -> None:
    told: list[str] = []

    def bad(source: str, bar: SceneBar) -> str:
        if source in "bd":
            raise DataError(f"{source} is bad")
        return source

    assert concurrently(bad, list("abcde"), 3, told.append, threading.Event()) == ["a", "c", "e"]
    assert told == ["b is bad", "d is bad"]
    stop, ends = threading.Event(), []

    def worse(source: str, bar: SceneBar) -> str:
        if source == "b":
            raise UsageError("no good")
        ends.append((source, stop.wait(30)))
        raise Stopped

    with pytest.raises(UsageError, match="no good"):
        concurrently(worse, list("abcdefgh"), 2, told.append, stop)
    assert ends == [("a", True)]


def test_one_bar_expects_of_scenes_still_closed_what_the_open_ones_have() -> None:
    seen: list[tuple[int, str]] = []

    class Shown:
        done = 0

        def expect(self, name: str, count: int, description: str) -> None:
            seen.append((count, description))

        def advance(self, name: str, count: int) -> None:
            self.done += count

    shown = Shown()
    bar = SceneBar(shown, 3)  # type: ignore[arg-type]
    bar.started()
    bar.begin(10)
    bar.advance(10)
    bar.ended()
    bar.started()  # finished in an earlier run: never opened
    bar.ended()
    bar.started()
    bar.begin(20)
    assert [count for count, _ in seen] == [30, 30, 30, 20, 30]
    assert seen[-1][1] == "2 of 3 scenes" and shown.done == 10


# --- stopped and started again


def settle(server: RangeServer) -> None:
    """Wait for what a killed process still had on its way, and forget it."""
    while server.taken()[0]:
        time.sleep(0.5)


def test_killed_and_interrupted_runs_go_on_and_ask_for_no_finished_scene_again(
    model: Path, listed: Path, server: RangeServer, run: Run, tmp_path: Path
) -> None:
    out, unbroken = tmp_path / "out", tmp_path / "unbroken"
    assert run("predict", model, "--scenes", listed, "--out", unbroken, "--jobs", 2)[0] == 4
    arguments = [str(a) for a in ("predict", model, "--scenes", listed, "--out", out, "--jobs", 2)]
    processes = multiprocessing.get_context("forkserver")  # torch is imported once for all of them
    processes.set_forkserver_preload(["untrained", "patchdrop.scenes.predict"])
    finished: set[str] = set()
    # A scene takes six requests and two are read at once: at the thirteenth, one or two of five are finished.
    for number, moment in ((signal.SIGKILL, 2), (signal.SIGKILL, 13), (signal.SIGINT, 5)):
        settle(server)
        errors = tmp_path / "errors.txt"
        process = processes.Process(target=command, args=(arguments, errors))

        sent = threading.Event()

        def at_that_moment(
            _: Any, asked: Asked, process: Any = process, number: int = number, moment: int = moment, sent: Any = sent
        ) -> bool:
            if len(server.asked) >= moment and not sent.is_set():
                sent.set()
                os.kill(process.pid, number)
            return False

        server.misbehave = at_that_moment
        process.start()
        process.join(PATIENCE)
        assert process.exitcode == (130 if number == signal.SIGINT else -number), errors.read_text()
        if number == signal.SIGINT:
            said = errors.read_text().splitlines()
            assert said[-1] == "stopped" and all(line.startswith("error: ") for line in said[:-1])
            assert not list(out.glob("*.tmp"))
        assert finished.isdisjoint(asked.path for asked in server.asked)
        finished = {f"{path.name[0]}.tif" for path in out.glob("?-*.json")}
    assert 0 < len(finished) < 5, "it was to be stopped in mid-run"
    server.misbehave = None
    server.reset()
    assert run("predict", model, "--scenes", listed, "--out", out, "--jobs", 2)[0] == 4
    asked = {request.path for request in server.asked}
    assert asked == {f"{name}.tif" for name in (*NAMES, "bad")} - finished
    assert files(out) == files(unbroken)


# --- a cache of headers and overviews


@pytest.mark.usefixtures("small")
def test_with_a_cache_headers_and_overviews_are_paid_once_and_asked_after_each_time(
    model: Path, server: RangeServer, run: Run, tmp_path: Path
) -> None:
    url, cache = server.url("a.tif"), ("--cache", tmp_path / "cache", "--json")
    code, text, _ = run("plan", model, url, "--out", tmp_path / "plan", *cache)
    (planned,) = json.loads(text)["scenes"]
    assert code == 0 and planned["planning"]["total"]["bytes"] == server.sent
    server.reset()
    code, text, _ = run("predict", model, url, "--out", tmp_path / "without", "--json")
    (without,) = json.loads(text)["scenes"]
    assert without["execution"] == planned["execution"]
    server.reset()
    code, text, _ = run("predict", model, url, "--out", tmp_path / "out", *cache)
    (found,) = json.loads(text)["scenes"]
    assert code == 0
    assert found["execution"]["header"] == {"requests": 1, "bytes": 0}
    assert found["execution"]["overview"] == {"requests": 0, "bytes": 0}
    assert found["execution"]["patch"] == without["execution"]["patch"]
    assert found["execution"]["total"] == {"requests": len(server.asked), "bytes": server.sent}
    assert found["everything"] == without["everything"]
    same = [(tmp_path / folder / found["files"]["jsonl"]).read_bytes() for folder in ("out", "without")]
    assert same[0] == same[1]
    kept = b"".join(path.read_bytes() for path in (tmp_path / "cache").iterdir())
    assert url.encode() not in kept


@pytest.mark.usefixtures("small")
def test_a_cache_is_not_used_for_another_version_and_keeps_nothing_without_one(
    model: Path, server: RangeServer, contents: dict[str, bytes], run: Run, tmp_path: Path
) -> None:
    def planned(*more: object) -> dict[str, Any]:
        server.reset()
        code, text, _ = run("plan", model, server.url("a.tif"), "--out", tmp_path / "plan", *more, "--json")
        assert code == 0
        found = json.loads(text)["scenes"][0]
        assert found["planning"]["total"] == {"requests": len(server.asked), "bytes": server.sent}
        return {name: value for name, value in found.items() if name != "planning"}

    cache = ("--cache", tmp_path / "cache")
    first = planned(*cache)
    server.files["a.tif"], server.etags["a.tif"] = contents["b.tif"], '"newer"'
    newer = planned(*cache)
    assert newer == planned() != first
    assert planned(*cache) == newer and server.sent == 0
    del server.etags["a.tif"]
    planned(*cache)
    assert planned(*cache)["chosen"] == newer["chosen"] and server.sent > 0
    database = tmp_path / "cache" / FILE
    for path in database.parent.iterdir():
        path.unlink()
    database.write_bytes(b"no database" * 1000)
    code, out, err = run("plan", model, server.url("a.tif"), "--out", tmp_path / "plan", *cache)
    assert code == 3 and out == "" and err.count("\n") == 1
    assert f"--cache {database}: cannot be used" in err and "remove it" in err
