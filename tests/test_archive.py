"""Many image files, predicted block by block into a folder that several processes share."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import patchdrop
from patchdrop.commands import predicting
from patchdrop.serve import archive
from patchdrop.serve.archive import COLUMNS

Run = Callable[..., tuple[int, str, str]]
COUNT, BAD = 22, (3, 17)
ELSEWHERE = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(patchdrop.__file__).parent.parent)}


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of noise, of which two are damaged."""
    folder = tmp_path_factory.mktemp("photos")
    generator = np.random.default_rng(0)
    for number in range(COUNT):
        path = folder / f"{number:04}.png"
        Image.fromarray(generator.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(path)
        if number in BAD:
            path.write_bytes(path.read_bytes()[:500])
    return folder


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive, "BLOCK", 4)
    monkeypatch.setattr(predicting, "BATCH", 4)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lines(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]


def test_every_image_has_a_row_in_each_file_and_a_damaged_one_says_why(
    model: Path, photos: Path, run: Run, tmp_path: Path
) -> None:
    from pyarrow import parquet

    out = tmp_path / "out"
    code, text, err = run("predict", model, photos, "--out", out, "--format", "csv", "parquet", "--json")
    document = json.loads(text)
    rows = lines(out)
    assert code == 4 and len(document["failed"]) == len(BAD) and err.count("error: ") == len(BAD)
    assert [Path(row["path"]).stem for row in rows] == [f"{number:04}" for number in range(COUNT)]
    bad = [number for number, row in enumerate(rows) if row["error"] is not None]
    assert tuple(bad) == BAD and [rows[number]["error"] for number in bad] == document["failed"]
    assert document["predictions"] == [row for row in rows if row["error"] is None]
    with (out / "predictions.csv").open(newline="") as file:
        listed = list(csv.DictReader(file))
    assert [row["label"] for row in listed] == [row["label"] or "" for row in rows]
    table = parquet.read_table(out / "predictions.parquet").to_pylist()
    assert table == rows and list(table[0]) == list(COLUMNS)
    summary = document["image_files"]
    assert (summary["images"], summary["failed"]) == (COUNT, len(BAD)) and sum(summary["classes"].values()) == 20
    assert sorted(path.name for path in out.iterdir()) == [
        *("predictions.csv", "predictions.json", "predictions.jsonl", "predictions.parquet")
    ]


@pytest.mark.usefixtures("small_blocks")
def test_what_is_finished_is_not_read_again_and_what_has_changed_is(
    model: Path, photos: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = tmp_path / "photos"
    copies.mkdir()
    for path in photos.iterdir():
        (copies / path.name).write_bytes(path.read_bytes())
    out, read = tmp_path / "out", list[str]()
    inner = predicting._rows

    def counted(predictor: Any, pictures: Any, block: archive.Block) -> list[dict[str, Any]]:
        if len(read) == 3 and not (out / "again").exists():
            (out / "again").touch()
            raise KeyboardInterrupt
        read.append(Path(block.images[0]).stem)
        return inner(predictor, pictures, block)

    monkeypatch.setattr(predicting, "_rows", counted)
    out.mkdir()
    assert run("predict", model, copies, "--out", out)[0] == 130
    assert read == ["0000", "0004", "0008"]
    assert run("predict", model, copies, "--out", out)[0] == 4
    assert read[3:] == ["0012", "0016", "0020"]
    before, read[:] = files(out), []
    code, text, _ = run("predict", model, copies, "--out", out, "--json")
    assert code == 4 and not read and files(out) == before and len(json.loads(text)["predictions"]) == 20
    for number in BAD:
        (copies / f"{number:04}.png").write_bytes((photos / "0000.png").read_bytes())
    assert run("predict", model, copies, "--out", out)[0] == 0
    assert all(row["error"] is None for row in lines(out))
    assert run("predict", model, copies, "--out", out, "--budget", 2)[0] == 0
    assert {len(row["patches"]) for row in lines(out)} == {2}


@pytest.mark.usefixtures("small_blocks")
def test_shards_leave_the_files_to_the_last_one(model: Path, photos: Path, run: Run, tmp_path: Path) -> None:
    assert run("predict", model, photos, "--out", tmp_path / "alone")[0] == 4
    out = tmp_path / "shared"
    for number, unfinished, expected in ((2, 4, (4, 8, 1)), (1, 2, (4, 8, 1))):
        code, text, err = run("predict", model, photos, "--out", out, "--shard", f"{number}/3", "--json")
        found = json.loads(text)["image_files"]
        assert (code, found["images"], found["failed"], found["unfinished_blocks"]) == (*expected, unfinished)
        assert f"{unfinished} of 6 blocks of images are left to other shards" in err
        assert not (out / "predictions.jsonl").exists()
    assert run("predict", model, photos, "--out", out, "--shard", "3/3")[0] == 4
    assert files(out) == files(tmp_path / "alone")


def test_a_stale_file_of_another_kind_is_removed(model: Path, photos: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("predict", model, photos, "--out", out, "--format", "csv", "parquet")[0] == 4
    assert run("predict", model, photos, "--out", out, "--format", "jsonl", "--budget", 1)[0] == 4
    assert sorted(path.name for path in out.iterdir()) == ["predictions.json", "predictions.jsonl"]


def test_a_damaged_summary_is_made_again(model: Path, photos: Path, run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert run("predict", model, photos, "--out", out)[0] == 4
    whole = files(out)
    for damage in (b"[]", b"{", b"{}"):
        (out / "predictions.json").write_bytes(damage)
        assert run("predict", model, photos, "--out", out)[0] == 4
        assert files(out) == whole


def test_pictures_have_the_names_of_their_images_and_numbers_where_two_are_alike(
    model: Path, photos: Path, run: Run, tmp_path: Path
) -> None:
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.png").write_bytes((photos / "0000.png").read_bytes())
    named = (tmp_path / "a" / "x.png", tmp_path / "b" / "x.png")
    assert run("predict", model, *named, "--out", tmp_path / "out", "--overlay", tmp_path / "pictures")[0] == 0
    assert sorted(path.name for path in (tmp_path / "pictures").iterdir()) == ["x-2.png", "x.png"]


def test_a_mean_budget_over_several_processes_says_why_not(model: Path, photos: Path, run: Run, tmp_path: Path) -> None:
    for more in (("--workers", 2), ("--shard", "1/2")):
        code, _, err = run("predict", model, photos, "--out", tmp_path / "out", "--mean-budget", 2, *more)
        assert code == 2 and "error: --mean-budget: is spent over all images" in err and "Traceback" not in err


def test_sharing_needs_a_folder_and_scene_formats_need_scenes(
    model: Path, photos: Path, run: Run, tmp_path: Path
) -> None:
    code, _, err = run("predict", model, photos, "--workers", 2)
    assert code == 2 and "name one with --out" in err
    code, _, err = run("predict", model, photos, "--out", tmp_path / "out", "--format", "jsonl", "map")
    assert code == 2 and "--format map: for scenes" in err


def elsewhere(model: Path, photos: Path, out: Path, *more: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "patchdrop", "predict", model, photos, "--out", out, *more]
    return subprocess.Popen(
        list(map(str, command)), env=ELSEWHERE, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def test_processes_side_by_side_and_workers_write_the_files_of_one_process(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    """Three hundred images are two blocks."""
    many = tmp_path / "many"
    many.mkdir()
    for number in range(300):
        (many / f"{number:04}.png").symlink_to(photos / f"{number % COUNT:04}.png")
    outs = {name: tmp_path / name for name in ("alone", "shared", "workers")}
    processes = [elsewhere(model, many, outs["alone"])]
    processes += [elsewhere(model, many, outs["shared"]) for _ in range(2)]
    processes += [elsewhere(model, many, outs["workers"], "--workers", 2)]
    for process in processes:
        _, said = process.communicate(timeout=300)
        assert process.returncode == 4 and "Traceback" not in said and said.count("error: ") == 27
    assert len(lines(outs["alone"])) == 300
    assert files(outs["shared"]) == files(outs["alone"]) == files(outs["workers"])


@pytest.mark.long
def test_an_image_that_kills_its_worker_is_named_and_the_others_of_its_block_are_read(
    model: Path, photos: Path, tmp_path: Path
) -> None:
    hook = tmp_path / "hook" / "sitecustomize.py"
    hook.parent.mkdir()
    hook.write_text(
        "import multiprocessing, os, sys\n"
        "def fall(event, given):\n"
        "    if event == 'open' and str(given[0]).endswith('0005.png') and multiprocessing.parent_process():\n"
        "        os.kill(os.getpid(), 9)\n"
        "sys.addaudithook(fall)\n"
    )
    command = [sys.executable, "-m", "patchdrop", "predict", model, photos, "--out", tmp_path / "out", "--workers", 1]
    path = {"PYTHONPATH": f"{hook.parent}:{ELSEWHERE['PYTHONPATH']}"}
    done = subprocess.run(
        list(map(str, command)), env={**ELSEWHERE, **path}, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 4 and "Traceback" not in done.stderr
    reasons = {Path(row["path"]).stem: row["error"] for row in lines(tmp_path / "out") if row["error"] is not None}
    assert list(reasons) == ["0003", "0005", "0017"] and "killed each worker that read it" in reasons["0005"]


def test_blocks_are_whole_batches() -> None:
    assert archive.BLOCK % predicting.BATCH == 0


@pytest.mark.usefixtures("small_blocks")
def test_another_kind_of_file_is_made_without_reading_again(
    model: Path, photos: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert run("predict", model, photos, "--out", out, "--format", "csv")[0] == 4
    before = files(out)
    monkeypatch.setattr(predicting, "_rows", None)
    assert run("predict", model, photos, "--out", out, "--format", "csv", "parquet")[0] == 4
    after = files(out)
    assert all(after[name] == before[name] for name in before if name != "predictions.json")
    assert "predictions.parquet/part-00000.parquet" in after


@pytest.mark.usefixtures("small_blocks")
def test_an_image_that_changes_meanwhile_is_read_as_it_was_found_and_again_the_next_time(
    model: Path, photos: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies, out, inner = tmp_path / "photos", tmp_path / "out", predicting._rows
    copies.mkdir()
    for path in sorted(photos.iterdir())[:3]:
        (copies / path.name).write_bytes(path.read_bytes())

    def changing(*given: Any) -> list[dict[str, Any]]:
        (copies / "0001.png").write_bytes((photos / "0005.png").read_bytes())
        return inner(*given)

    monkeypatch.setattr(predicting, "_rows", changing)
    assert run("predict", model, copies, "--out", out)[0] == 0 and len(lines(out)) == 3
    _, _, err = run("predict", model, copies, "--out", out)
    assert "has predictions of other images or of another choice, which are replaced" in err


def test_a_name_that_is_no_utf_8_is_written_with_escapes(model: Path, photos: Path, run: Run, tmp_path: Path) -> None:
    for name, content in ((b"good-\xe9.png", (photos / "0000.png").read_bytes()), (b"bad-\xe9.png", b"nothing")):
        Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name))).write_bytes(content)
    code, text, _ = run("predict", model, tmp_path, "--out", tmp_path / "out", "--format", "csv", "parquet", "--json")
    assert code == 4 and len(json.loads(text)["predictions"]) == 1
    from pyarrow import parquet

    rows = parquet.read_table(tmp_path / "out" / "predictions.parquet").to_pylist()
    assert [row["path"].rpartition("/")[2] for row in rows] == ["bad-\\udce9.png", "good-\\udce9.png"]
