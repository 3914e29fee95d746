"""Work that is shared: by processes side by side, in shards, and by workers that may be killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import patchdrop
import spread_work
from patchdrop.cluster import spread as engine
from patchdrop.cluster.spread import remembering, spread
from patchdrop.errors import RunError, UsageError
from patchdrop.settings.spread import Spread
from pyramids import picture, write_cog
from range_server import RangeServer, range_server

Run = Callable[..., tuple[int, str, str]]
NAMES = [f"s{number}" for number in range(8)]
ELSEWHERE = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{Path(patchdrop.__file__).parent.parent}:{Path(__file__).parent}",
}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scenes")
    for seed, name in enumerate(NAMES):
        write_cog(folder / f"{name}.tif", picture(200, 256, seed=seed))
    return folder


@pytest.fixture(scope="module")
def alone(model: Path, scenes: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """The files of one process."""
    out = tmp_path_factory.mktemp("alone") / "out"
    assert finish([begin(model, scenes, out)]) == [0]
    return files(out)


def begin(model: Path, scenes: Path | str, out: Path, *more: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "patchdrop", "predict", model, scenes, "--out", out, *more]
    return subprocess.Popen(
        [str(part) for part in command], env=ELSEWHERE, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def finish(processes: list[subprocess.Popen[str]]) -> list[int]:
    codes = []
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert "Traceback" not in said, said
        codes.append(process.returncode)
    return codes


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# --- side by side


@pytest.fixture
def server(scenes: Path) -> Iterator[RangeServer]:
    with range_server() as running:
        running.files |= {path.name: path.read_bytes() for path in scenes.iterdir()}
        running.etags |= {path.name: f'"{path.name}"' for path in scenes.iterdir()}
        yield running


def test_processes_on_one_folder_share_the_scenes_and_read_none_twice(
    model: Path, server: RangeServer, tmp_path: Path
) -> None:
    listed = tmp_path / "scenes.csv"
    listed.write_text("path\n" + "".join(f"{server.url(f'{name}.tif')}\n" for name in NAMES))
    assert finish([begin(model, str(listed), tmp_path / "alone")]) == [0]
    once = Counter(asked.path for asked in server.asked)
    server.reset()
    assert finish([begin(model, str(listed), tmp_path / "shared") for _ in range(3)]) == [0, 0, 0]
    assert Counter(asked.path for asked in server.asked) == once
    assert files(tmp_path / "shared") == files(tmp_path / "alone")


@pytest.mark.long
def test_twenty_times_two_processes_on_one_folder(
    model: Path, scenes: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    for number in range(20):
        out = tmp_path / str(number)
        assert finish([begin(model, scenes, out, "--format", "jsonl", "csv", "geojson") for _ in range(2)]) == [0, 0]
        assert files(out) == alone


def test_a_process_killed_beside_another_leaves_its_scene_to_it(
    model: Path, scenes: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    killed = begin(model, scenes, out)
    while not list(out.glob(".*.claim")):
        time.sleep(0.01)
    other = begin(model, scenes, out)
    time.sleep(0.2)
    killed.kill()
    killed.communicate()
    assert finish([other]) == [0]
    assert finish([begin(model, scenes, out)]) == [0]
    assert files(out) == alone


def test_shards_together_are_the_whole(
    model: Path, scenes: Path, alone: dict[str, bytes], run: Run, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seen = []
    for number in (1, 2, 3):
        code, text, _ = run("predict", model, scenes, "--out", out, "--shard", f"{number}/3", "--json")
        assert code == 0
        seen += [Path(scene["scene"]).stem for scene in json.loads(text)["scenes"]]
    assert sorted(seen) == NAMES
    assert files(out) == alone


# --- workers


@pytest.mark.long
def test_workers_write_what_one_process_writes_and_a_scene_that_kills_them_is_named(
    model: Path, scenes: Path, alone: dict[str, bytes], tmp_path: Path
) -> None:
    """A worker dies where it opens the poisoned scene, as for want of memory."""
    poison = scenes / "s3.tif"
    hook = tmp_path / "hook" / "sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(
        "import multiprocessing, os, sys\n"
        "def fall(event, given):\n"
        f"    if event == 'open' and str(given[0]) == {str(poison)!r} and multiprocessing.parent_process():\n"
        "        os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(fall)\n"
    )
    command = [sys.executable, "-m", "patchdrop", "predict", model, scenes, "--out", tmp_path / "out", "--workers", 2]
    done = subprocess.run(
        [str(part) for part in [*command, "--json"]],
        env={**ELSEWHERE, "PYTHONPATH": f"{hook.parent}:{ELSEWHERE['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    document = json.loads(done.stdout)
    assert done.returncode == 4 and "Traceback" not in done.stderr
    assert [Path(scene["scene"]).stem for scene in document["scenes"]] == [name for name in NAMES if name != "s3"]
    assert len(document["failed"]) == 1 and document["failed"][0].startswith(f"{poison}: killed each worker")
    assert files(tmp_path / "out") == {name: content for name, content in alone.items() if not name.startswith("s3-")}


def test_a_plan_by_workers_is_that_of_one_process(model: Path, scenes: Path, run: Run, tmp_path: Path) -> None:
    named = sorted(str(path) for path in scenes.iterdir())
    for name, more in (("alone", ()), ("shared", ("--workers", 2))):
        assert run("plan", model, *named, "--out", tmp_path / name, *more)[0] == 0
    assert files(tmp_path / "alone") == files(tmp_path / "shared")


def over(items: list[str], where: Spread) -> tuple[dict[str, str], dict[str, str]]:
    ended: dict[str, str] = {}
    failed: dict[str, str] = {}
    spread(spread_work.work, items, where, ended.__setitem__, failed.__setitem__)
    return ended, failed


@pytest.fixture
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", ELSEWHERE["PYTHONPATH"])


@pytest.mark.usefixtures("importable")
def test_each_piece_of_work_ends_or_fails_alone_and_other_errors_end_them_all() -> None:
    items = [f"item{number}" for number in range(20)]
    ended, failed = over([*items[:10], "bad", "kills", *items[10:]], Spread(workers=2))
    assert ended == {item: f"{item} in {os.getcwd()}" for item in items}
    assert failed["bad"] == "bad: cannot be read" and failed["kills"].startswith("killed each worker")
    with pytest.raises(RunError, match="full: the disk is full"):
        over([*items, "full"], Spread(workers=1))
    with pytest.raises(ZeroDivisionError):
        over(["bug"], Spread(workers=1))


@pytest.mark.usefixtures("importable")
def test_workers_of_a_running_scheduler_do_the_work() -> None:
    from distributed import LocalCluster

    with LocalCluster(n_workers=1, threads_per_worker=1, host="127.0.0.1", dashboard_address=None) as cluster:
        ended, failed = over(["a", "bad"], Spread(scheduler=cluster.scheduler_address))
    assert ended == {"a": f"a in {os.getcwd()}"} and list(failed) == ["bad"]


def test_a_scheduler_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "PATIENCE", 0.5)
    for address, reason in (("tcp://127.0.0.1:9", "does not answer"), ("nonsense://x", "is no address")):
        with pytest.raises(UsageError, match=f"--scheduler {address}: {reason}") as caught:
            over(["a"], Spread(scheduler=address))
        assert "\n" not in str(caught.value)


def test_a_worker_of_another_version_or_without_the_folder_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "hush", lambda: None)
    refused = engine._called("9.9", os.getcwd(), spread_work.work, "a")
    assert refused == (
        UsageError,
        f"a worker has patchdrop {patchdrop.__version__}, this is 9.9; install the same everywhere",
    )
    refused = engine._called(patchdrop.__version__, "/no/such/folder", spread_work.work, "a")
    assert isinstance(refused, engine._Refused) and refused.kind is RunError and "must share it" in refused.reason


def test_without_dask_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(UsageError, match=r"pip install 'patchdrop\[cluster\]'"):
        over(["a"], Spread(workers=1))


def test_what_is_remembered_is_made_anew_only_for_another_argument() -> None:
    made: list[Any] = []
    remembered = remembering(lambda argument: made.append(argument) or len(made))
    assert [remembered([1]), remembered([1]), remembered([2]), remembered([1])] == [1, 1, 2, 3]


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        ({"shard": "4/3"}, "shard: 4/3 is out of range, use 1/3 to 3/3"),
        ({"shard": "0/3"}, "out of range"),
        ({"shard": "3"}, "write for example 3/16"),
        ({"shard": "1/0"}, "write for example 3/16"),
        ({"workers": -1}, "workers: -1 is out of range"),
        ({"workers": 2, "scheduler": "tcp://x:1"}, "give one of the two"),
    ],
)
def test_what_cannot_be_shared_is_one_line(flags: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        Spread(**flags)


# --- lists of inputs


def test_a_list_stands_for_the_files_that_it_names(model: Path, scenes: Path, run: Run, tmp_path: Path) -> None:
    from pyarrow import Table, parquet

    names = [f"{name}.tif" for name in NAMES[:3]]
    lists = {suffix: scenes.parent / f"{tmp_path.name}{suffix}" for suffix in (".txt", ".csv", ".parquet")}
    inside = [f"{scenes.name}/{name}" for name in names]
    lists[".txt"].write_text("\ufeff" + "\n\n".join(inside))
    lists[".csv"].write_text("label,path\n" + "".join(f"x,{name}\n" for name in inside))
    parquet.write_table(Table.from_pydict({"path": inside}), lists[".parquet"])
    for path in lists.values():
        code, text, err = run("predict", model, path, "--json")
        assert code == 0 and "inputs: 3 scenes" in err
        assert [scene["scene"] for scene in json.loads(text)["scenes"]] == [str(scenes / name) for name in names]


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"\n", "names no file; add some"),
        ("a.txt", b"\xff\xfe\x00", "is no UTF-8 text"),
        ("a.csv", b"file\na.png\n", "no column 'path', it has file; rename one"),
        ("a.csv", b"path,label\n,x\n", "line 2: no path"),
        ("a.csv", b'path\n"a\n', "is no CSV file"),
        ("a.csv", b"", "no column 'path', it has none"),
        ("a.parquet", b"PAR1 not", "is no Parquet file, or is damaged"),
        ("gone.csv", None, "cannot be read"),
    ],
)
def test_a_bad_list_is_one_line(
    model: Path, run: Run, tmp_path: Path, name: str, content: bytes | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    code, _, err = run("predict", model, tmp_path / name)
    assert code == 3 and err.startswith(f"error: {tmp_path / name}") and reason in err and err.count("\n") == 1


@pytest.mark.long
def test_an_interrupt_ends_the_workers_too(model: Path, scenes: Path, tmp_path: Path) -> None:
    out, many = tmp_path / "out", tmp_path / "many"
    many.mkdir()
    for number in range(300):
        (many / f"{number}.tif").symlink_to(scenes / f"s{number % 8}.tif")
    process = begin(model, many, out, "--workers", "1")
    while not list(out.glob("*.json")):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and said.splitlines()[-1] == "stopped" and "Traceback" not in said


def test_a_worker_with_another_run_of_that_name_refuses(model: Path, tmp_path: Path) -> None:
    from patchdrop.scenes import predict

    asked = predict._Asked(predict.Choosing(model), predict.Results(tmp_path), predict.Reading(), None, None)
    work = predict._work(asked)
    same = asked._replace(known=("", work.model.identity, work.model.choice, None))
    assert predict._work(same).model.sha256 == work.model.sha256
    other = asked._replace(known=("", {**work.model.identity, "sha256": "0"}, work.model.choice, None))
    with pytest.raises(RunError, match="is another one on a worker than here"):
        predict._work(other)


def test_work_in_another_folder_waits_for_that_in_this_one(tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    folder, seen, here = engine._Folder(), list[str](), os.getcwd()

    def at(path: Path, seconds: float) -> None:
        with folder(str(path)):
            time.sleep(seconds)
            seen.append(os.getcwd())

    places = [tmp_path / name for name in ("a", "b", "a")]
    for place in places:
        place.mkdir(exist_ok=True)
    try:
        with ThreadPoolExecutor(3) as threads:
            list(threads.map(at, places, (0.3, 0.1, 0.1)))
    finally:
        os.chdir(here)
    assert sorted(seen) == sorted(map(str, places))


def test_a_plan_is_no_work_for_shards(model: Path, scenes: Path, run: Run, tmp_path: Path) -> None:
    code, _, err = run("plan", model, scenes / "s0.tif", "--out", tmp_path, "--shard", "1/2")
    assert code == 2 and "a plan is one file" in err


def test_workers_carry_out_a_plan_and_are_not_sent_what_it_holds(
    model: Path, scenes: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pickle

    from patchdrop.scenes import predict

    named = sorted(str(path) for path in scenes.iterdir())[:3]
    assert run("plan", model, *named, "--out", tmp_path / "plan")[0] == 0
    sent: list[int] = []
    inner = predict.scenes_over

    def watched(over: Spread, work: Any, *rest: Any) -> Any:
        sent.append(len(pickle.dumps(work)))
        return inner(over, work, *rest)

    monkeypatch.setattr(predict, "scenes_over", watched)
    plan = tmp_path / "plan" / "plan.json"
    for name, more in (("alone", ()), ("shared", ("--workers", 1))):
        assert run("predict", model, *named, "--plan", plan, "--out", tmp_path / name, *more)[0] == 0
    assert files(tmp_path / "alone") == files(tmp_path / "shared")
    assert len(sent) == 1 and sent[0] < 2000 < plan.stat().st_size
