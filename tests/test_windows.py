"""Training from windows of tiled scenes: the pixels of serving, each byte once, and no ground on both sides."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch

from patchdrop.data.load import Data, load
from patchdrop.data.windows import groups, list_windows
from patchdrop.errors import DataError, UsageError
from patchdrop.files import write_json
from patchdrop.grid import Grid, Shape
from patchdrop.read import tiled, windows
from patchdrop.read.source import from_memory
from patchdrop.read.tiled import TiledScene
from patchdrop.runs.folder import RunFolder
from patchdrop.tiff import directory as tiff
from patchdrop.transport.disk_cache import DiskCache, open_cached
from patchdrop.transport.ranges import LocalFile, Span
from pyramids import picture, write_cog
from range_server import RangeServer, range_server
from tiny import source_of, tiny_flags, tiny_settings

SHAPE = Shape((64, 64), (16, 16), Grid(4, 4), 3)
SIZES = {"high": "64", "low": "16"}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("scenes")
    black = picture(300, 420, seed=1).clip(1)
    black[:, :64, 64:128] = 0
    with rasterio.open(
        root / "bare.tif", "w", driver="GTiff", count=3, height=128, width=128, dtype="uint8", tiled=True,
        blockxsize=64, blockysize=64, photometric="RGB",
    ) as file:  # fmt: skip
        file.write(picture(128, 128, seed=3))
    return {
        "a": write_cog(root / "a.tif", black, profile={"nodata": 0}),
        "b": write_cog(root / "b.tif", picture(300, 420, seed=2), "JPEG", where={}),
        "bare": root / "bare.tif",
    }


@pytest.fixture
def server(scenes: dict[str, Path]) -> Iterator[RangeServer]:
    with range_server() as running:
        for name, path in scenes.items():
            running.files[f"{name}.tif"] = path.read_bytes()
            running.etags[f"{name}.tif"] = f'"{name}"'
        yield running


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """First reads and groups small enough that these scenes need several."""
    monkeypatch.setattr(tiff, "HEADER_BYTES", 1024)
    for module in (tiled, windows):
        monkeypatch.setattr(module, "GROUP_PIXELS", 64 * 64 * 3 * 7)


def write_list(path: Path, *lines: object) -> Path:
    """Each line: scene, box, label and, where it has four values, split."""
    split = ",split" if len(lines[0]) > 3 else ""  # type: ignore[arg-type]
    rows = [f'{s},"{",".join(map(str, box))}",{",".join(rest)}' for s, box, *rest in lines]  # type: ignore[misc]
    path.write_text("\n".join([f"scene,box,label{split}", *rows]) + "\n")
    return path


def cells(scene: object, step: int = 64, split: str = "", side: int = 64, rows: int = 4, skip: int = 0) -> list[Any]:
    """A grid of windows, labelled by turns."""
    where = [(y, x) for y in range(0, rows * step, step) for x in range(0, 6 * step, step)][skip:]
    more = (split,) if split else ()
    return [(scene, (y, x, y + side, x + side), "uv"[i % 2], *more) for i, (y, x) in enumerate(where)]


def loaded(path: Path, **changes: Any) -> Data:
    return load(
        source_of(tiny_settings(data=str(path), **{**SIZES, "workers": 0, "memory_gb": 4.0, **changes})),
        lambda *_: None,
    )


def pixels(data: Data, splits: tuple[str, ...] = ("fit", "val")) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """HR and LR of each window by its name."""
    found = {}
    for name in splits:
        split = data.splits[name]
        batches = list(split.in_order(5))
        highs = torch.cat([batch.high for batch in batches])
        lows = torch.cat([batch.low for batch in batches if batch.low is not None])
        found |= {name: (h, low) for name, h, low in zip(split.names, highs, lows, strict=True)}
    return found


# --- the same pixels as in serving


def test_a_window_is_the_cell_that_predict_sees(scenes: dict[str, Path], tmp_path: Path) -> None:
    """HR and LR bit by bit, of every cell, for lossless and JPEG tiles, also where cells are no multiple of LR."""
    for name in ("a", "b"):
        scene = TiledScene(LocalFile(scenes[name]), SHAPE)
        look = scene.look(range(scene.cells))
        kept = [cell for cell in range(scene.cells) if look.seen[cell]]
        rows = [(scenes[name], scene.cell_box(cell), "uv"[cell % 2]) for cell in kept]
        found = pixels(loaded(write_list(tmp_path / "list.csv", *rows), augment=()))
        choice = torch.ones(len(kept), 16, dtype=torch.bool)
        served = scene.reader(kept)(choice)
        ours = torch.stack([found[f"{scenes[name]}:{','.join(map(str, scene.cell_box(c)))}"][0] for c in kept])
        lows = torch.stack([found[f"{scenes[name]}:{','.join(map(str, scene.cell_box(c)))}"][1] for c in kept])
        assert torch.equal(from_memory(ours, SHAPE.grid)(choice).pixels, served.pixels)
        assert torch.equal(lows, look.low[look.seen])
        assert len(kept) == (34 if name == "a" else 35)


def test_a_scene_without_an_overview_gives_low_pixels_averaged_from_high_ones(
    scenes: dict[str, Path], tmp_path: Path
) -> None:
    where = [(y, x, y + 64, x + 64) for y in (0, 64) for x in (0, 64)]
    data = loaded(write_list(tmp_path / "list.csv", *[(scenes["bare"], b, "uv"[i % 2]) for i, b in enumerate(where)]))
    assert data.read is not None and data.read.averaged == data.read.scenes == 1
    with rasterio.open(scenes["bare"]) as file:
        whole = file.read()
    for name, (high, low) in pixels(data).items():
        top, left, bottom, right = map(int, name.rpartition(":")[2].split(","))
        assert np.array_equal(high, whole[:, top:bottom, left:right])
        assert np.allclose(low, high.float().view(3, 16, 4, 16, 4).mean((2, 4)), atol=0.51)


def test_streamed_windows_are_those_in_memory(scenes: dict[str, Path], tmp_path: Path) -> None:
    """Also by worker processes, which are started anew, not forked."""
    path = write_list(tmp_path / "list.csv", *cells(scenes["b"]), *cells(scenes["a"], skip=6))
    held = pixels(loaded(path))
    for workers in (0, 1):
        data = loaded(path, memory_gb=0.0, workers=workers)
        streamed = pixels(data, ("val",) if workers else ("fit", "val"))
        assert streamed.keys() <= held.keys() and len(streamed) >= 4
        assert all(torch.equal(a, b) for name in streamed for a, b in zip(streamed[name], held[name], strict=True))


# --- bytes


def test_windows_of_a_scene_share_header_and_tiles_and_nothing_is_read_beside_them(
    server: RangeServer, scenes: dict[str, Path], tmp_path: Path
) -> None:
    step = [(y, x, y + 64, x + 64) for y in range(0, 129, 32) for x in range(0, 193, 32)]  # they overlap
    rows = [(server.url("b.tif"), box, "uv"[i % 2], "train") for i, box in enumerate(step)]
    rows += [(server.url("b.tif"), (200, 0, 264, 64), "u", "val")]
    data = loaded(write_list(tmp_path / "list.csv", *rows))
    assert data.read is not None
    ledger = data.read.network
    assert ledger.total == (len(server.asked), server.sent)
    scene = TiledScene(LocalFile(scenes["b"]), SHAPE)
    tiles = [0, 1, 4, 5, 8]  # of 128 px, four in a row
    assert ledger.of("patch").bytes == int(scene.full.counts[tiles].sum())
    assert ledger.of("overview").bytes == int(scene.overview.counts.sum())


def test_with_a_cache_a_second_training_asks_the_server_nothing_and_sees_the_same(
    server: RangeServer, tmp_path: Path
) -> None:
    """Also streaming, with other windows of the same tiles, and with another password."""
    url = server.url("b.tif")
    path = write_list(tmp_path / "list.csv", *cells(url))
    cache = str(tmp_path / "cache")
    first = loaded(path, cache=cache)
    assert first.read is not None and first.read.network.total == (len(server.asked), server.sent)
    server.reset()
    again = pixels(loaded(path, cache=cache))
    streamed = pixels(loaded(path, cache=cache, memory_gb=0.0))
    assert server.asked == []
    for name, both in pixels(first).items():
        for other in (again, streamed):
            assert all(torch.equal(a, b) for a, b in zip(both, other[name], strict=True))
    secret = url.replace("//", "//user:secret@")
    moved = [(s, tuple(edge + 8 for edge in box), label) for s, box, label in cells(secret)]
    write_list(path, *[row for row in moved if row[1][2] <= 256 and row[1][3] <= 384])
    assert all("secret" not in name for name in loaded(path, cache=cache).splits["fit"].names)
    assert server.asked == []
    assert "secret" not in " ".join(map(str, Path(cache).rglob("*")))


def test_reading_that_breaks_off_goes_on_without_a_byte_twice(server: RangeServer, tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", *cells(server.url("b.tif")))
    whole = loaded(path, cache=str(tmp_path / "whole")).read
    assert whole is not None
    server.reset()
    held = set()

    def fail(handler: Any, asked: Any) -> bool:
        if len(server.asked) > 6:
            handler.answer(403, b"")
            return True
        held.add(asked)
        return False

    server.misbehave = fail
    with pytest.raises(DataError, match=r"list\.csv: line \d+: .*refuses to send it"):
        loaded(path, cache=str(tmp_path / "cache"))
    server.misbehave = None
    server.reset()
    rest = loaded(path, cache=str(tmp_path / "cache")).read
    assert rest is not None and held.isdisjoint(server.asked)
    assert rest.network.total.bytes + sum(asked.stop - asked.start for asked in held) == whole.network.total.bytes


def test_what_is_kept_is_read_whatever_was_asked_before(server: RangeServer, tmp_path: Path) -> None:
    content = server.files["b.tif"]
    transport = open_cached(server.url("b.tif"), tmp_path)
    assert transport.head(50) == content[:50]
    draw = np.random.default_rng(0)
    for _ in range(30):
        start, stop = sorted(draw.integers(0, 400, 2).tolist())
        assert transport.read([Span(start, stop + 1)], "patch") == [content[start : stop + 1]]
    assert transport.ledger.total.bytes == len({n for a in server.asked for n in range(a.start, a.stop)})
    transport.close()


def test_a_cache_of_another_file_or_with_a_flipped_byte_is_refused(server: RangeServer, tmp_path: Path) -> None:
    def again(*spans: Span) -> None:
        transport = open_cached(server.url("b.tif"), tmp_path)
        try:
            transport.head(100)
            transport.read(spans, "patch")
        finally:
            transport.close()

    again(Span(200, 300))
    server.etags["b.tif"] = '"newer"'
    again(Span(220, 300))
    with pytest.raises(DataError, match=r"is not the file that .* keeps parts of; remove"):
        again(Span(220, 400))
    (piece,) = tmp_path.glob("*/200-300-*")
    piece.write_bytes(b"x" + piece.read_bytes()[1:])
    with pytest.raises(DataError, match=r"200-300-.* is damaged; remove it"):
        again(Span(220, 300))
    write_json(piece.parent / "scene.json", [])
    with pytest.raises(DataError, match=r"scene\.json: is damaged; remove"):
        again()


def test_files_are_not_copied_into_the_cache(scenes: dict[str, Path], tmp_path: Path) -> None:
    assert not isinstance(open_cached(str(scenes["a"]), tmp_path), DiskCache)


def test_streaming_from_a_network_without_a_cache_is_refused(server: RangeServer, tmp_path: Path) -> None:
    path = write_list(tmp_path / "list.csv", *cells(server.url("b.tif")))
    with pytest.raises(UsageError, match="name a folder that keeps them with --cache"):
        loaded(path, memory_gb=0.0)
    assert server.asked == []


# --- splits


def test_windows_that_overlap_stay_on_one_side(scenes: dict[str, Path], tmp_path: Path) -> None:
    rows = cells(scenes["b"], step=70)  # apart
    shifted = [(s, (t + 3, x + 3, b + 3, r + 3), label) for s, (t, x, b, r), label in rows[:12]]
    path = write_list(tmp_path / "list.csv", *rows, *shifted)
    train = list_windows(path).splits["train"]
    assert (len(set(groups(train))), len(train)) == (24, 36)
    sides = loaded(path, val_fraction=0.4, cache="").splits
    home = {name: side for side, split in sides.items() for name in split.names}
    assert {*home.values()} == {"fit", "val"} and len(home) == len(train)
    for group in set(groups(train)):
        assert len({home[w.name] for w, g in zip(train, groups(train), strict=True) if g == group}) == 1


def test_one_chain_of_overlaps_cannot_be_split(scenes: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(DataError, match="too many of its windows overlap: name splits in a column split"):
        loaded(write_list(tmp_path / "list.csv", *cells(scenes["b"], step=60)))


# --- bad rows


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ('b.tif,"0,0,64",u', "box '0,0,64': write four whole numbers: top, left, bottom, right"),
        ('b.tif,"0,64,64,64",u', "holds no pixel"),
        ('b.tif,"250,0,314,64",u', "box outside the scene's 420 x 300 px"),
        ('b.tif,"0,0,32,64",u', "box of 64 x 32 px, the model's HR images are 64 x 64"),
        ('a.tif,"0,64,64,128",u', "all of it is nodata: remove the line"),
        ('none.tif,"0,0,64,64",u', "none.tif: correct the paths"),
        ("b.tif,0 0 64 64,", "empty label: fill it in or remove the line"),
        ('strips.tif,"0,0,64,64",u', "is stored in strips, not in tiles"),
        ('grey.tif,"0,0,64,64",u', "1 bands, the model takes 3"),
        ('text.tif,"0,0,64,64",u', "no TIFF file"),
        ('ftp://h/a.tif,"0,0,64,64",u', "begins with http"),
        ('b.tif,"128,128,192,192",u', "lists the window of"),
    ],
)
def test_a_bad_row_is_one_line_with_file_and_line(
    scenes: dict[str, Path], tmp_path: Path, run: Run, row: str, words: str
) -> None:
    for name, path in scenes.items():
        os.symlink(path, tmp_path / f"{name}.tif")
    (tmp_path / "text.tif").write_text("not a picture at all")
    for name, bands in (("strips", 3), ("grey", 1)):
        tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64} if name == "grey" else {}
        size = {"count": bands, "height": 128, "width": 128, "dtype": "uint8"}
        with rasterio.open(tmp_path / f"{name}.tif", "w", driver="GTiff", **size, **tiles) as file:
            file.write(picture(128, 128, bands))
    path = tmp_path / "list.csv"
    path.write_text(f'scene,box,label\nb.tif,"128,128,192,192",u\n{row}\n')
    code, out, err = run("train", *tiny_flags(data=path, **SIZES), "--out", tmp_path / "run", "--workers", 0)
    assert code == 3 and out == "" and err.count("\n") == 1, err
    assert f"{path}" in err and "line 3" in err and words in err
    assert not (tmp_path / "run").exists()


def test_bad_rows_are_left_out_where_that_was_asked(scenes: dict[str, Path], tmp_path: Path) -> None:
    rows = [*cells(scenes["a"]), (scenes["a"], (250, 0, 314, 64), "u")]
    data = loaded(write_list(tmp_path / "list.csv", *rows), skip_bad=True)
    assert sorted(reason.rpartition(": ")[0].rpartition(": ")[2] for reason in data.skipped.values()) == [
        "all of it is nodata",
        "box outside the scene's 420 x 300 px",
    ]
    assert sum(map(len, data.splits.values())) == len(rows) - 2


def test_a_window_in_two_splits_is_refused_even_where_it_only_overlaps(tmp_path: Path) -> None:
    (tmp_path / "s.tif").touch()
    rows = [("s.tif", (0, 0, 64, 64), "u", "train"), ("s.tif", (60, 60, 124, 124), "u", "test")]
    with pytest.raises(DataError, match=r"list\.csv: line 3: overlaps .*list\.csv: line 2, which is in train"):
        list_windows(write_list(tmp_path / "list.csv", *rows))
    rows[1] = ("s.tif", (64, 64, 128, 128), "u", "test")
    assert list(list_windows(write_list(tmp_path / "list.csv", *rows)).splits) == ["train", "test"]


# --- commands


def test_a_run_on_windows_is_trained_evaluated_calibrated_and_used_on_the_scene(
    server: RangeServer, scenes: dict[str, Path], tmp_path: Path, run: Run
) -> None:
    rows = [*cells(server.url("b.tif"), split="train"), *cells(scenes["a"], split="test", skip=6)]
    path = write_list(tmp_path / "list.csv", *rows)
    epochs = {f"epochs_{stage}": 1 for stage in ("lr", "hr", "patches", "pt", "ft1", "ft2")}
    flags = tiny_flags(data=path, **SIZES, **epochs, cache=tmp_path / "cache", workers=0)
    out = tmp_path / "run"
    code, _, err = run("train", *flags, "--out", out, "--json")
    assert code == 0, err
    (told,) = [event for event in RunFolder(out).read_log() if event["event"] == "read"]
    assert told["network"]["total"] == {"requests": len(server.asked), "bytes": server.sent}
    assert f"{server.sent:,} bytes over the network" in err and "windows of 2 scenes" in err
    server.reset()
    code, text, _ = run("evaluate", out, "--json")
    assert code == 0 and json.loads(text)["rows"][0]["n"] == 18
    assert run("calibrate", out, "--mean-budget", 4)[0] == 0
    assert server.asked == []
    other = write_list(tmp_path / "other.csv", *cells(server.url("b.tif"), split="test", step=60)[:4])
    code, _, err = run("calibrate", out, "--data", other, "--mean-budget", 4)
    assert code == 3 and "which training used" in err
    assert run("predict", out, scenes["a"], "--out", tmp_path / "found")[0] == 0
