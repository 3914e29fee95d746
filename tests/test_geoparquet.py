"""GeoParquet of scenes, and the estimate of what more workers would take."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rasterio

from patchdrop.scenes import rates
from patchdrop.scenes.model import Choosing, load_model
from pyramids import picture, write_cog

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return [write_cog(folder / f"{name}.tif", picture(200, 256, seed=seed)) for seed, name in enumerate("abc")]


def test_a_scene_s_parquet_has_the_rows_of_its_lines_and_says_where_they_lie(
    model: Path, scenes: list[Path], run: Run, tmp_path: Path
) -> None:
    from pyarrow import parquet

    code, text, _ = run("predict", model, scenes[0], "--out", tmp_path, "--format", "jsonl", "parquet", "--json")
    (found,) = json.loads(text)["scenes"]
    with rasterio.open(scenes[0]) as scene:
        where, crs = scene.transform, scene.crs
    file = parquet.ParquetFile(tmp_path / found["files"]["parquet"])
    geo = json.loads(file.schema_arrow.metadata[b"geo"])
    lines = [json.loads(line) for line in (tmp_path / found["files"]["jsonl"]).read_text().splitlines()]
    rows = file.read().to_pylist()
    assert code == 0 and geo["version"] == "1.1.0" and geo["columns"][geo["primary_column"]]["encoding"] == "WKB"
    assert [row["cell"] for row in rows] == [line["cell"] for line in lines]
    for row, line in zip(rows, lines, strict=True):
        assert [row[name] for name in ("label", "probability", "patches")] == [
            line[name] for name in ("label", "probability", "patches")
        ]
        assert [row[name] for name in ("top", "left", "bottom", "right")] == line["box"]
        order, kind, rings, points = struct.unpack_from("<BIII", row["geometry"])
        assert (order, kind, rings, points) == (1, 3, 1, 5)
        corners = [struct.unpack_from("<2d", row["geometry"], 13 + 16 * number) for number in range(4)]
        top, left, bottom, right = line["box"]
        assert set(corners) == {where * (x, y) for x in (left, right) for y in (top, bottom)}  # x before y
    assert geo["columns"]["geometry"]["crs"]["id"]["code"] == crs.to_epsg()


def planned(count: int) -> list[dict[str, Any]]:
    """Scenes of 1000 cells and 1.25 MB each, at 1 Mbit/s: ten seconds of bandwidth and two of waiting."""
    estimate = {"seconds": 12.0, "bandwidth_mbit": 1.0}
    execution = {"total": {"bytes": 1_250_000}}
    return [{"cells": 1010, "skipped": 10, "patches": 4000, "estimate": estimate, "execution": execution}] * count


def test_workers_share_bandwidth_and_divide_the_rest(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rates, "rates", lambda model, mean: (0.03, mean / 100))
    work = rates.work_of(load_model(Choosing(model)), planned(20), workers=5)
    assert work is not None and (work["cells"], work["decide"], work["classify"]) == (20_000, 0.03, 0.04)
    assert [row["workers"] for row in work["by_workers"]] == [1, 4, 5, 16, 20]
    # 200 s of bandwidth that all share; 40 s of waiting and 1,400 s of networks that they divide.
    assert [row["seconds"] for row in work["by_workers"]] == pytest.approx([1400, 350, 280, 202.5, 202])
    assert [row["waits_for"] for row in work["by_workers"]] == ["networks"] * 3 + ["bandwidth"] * 2


def test_one_scene_or_a_slide_has_no_such_estimate(model: Path) -> None:
    slide = {"cells": 9, "skipped": 0, "patches": 1, "estimate": None}
    found = load_model(Choosing(model))
    assert rates.work_of(found, planned(1)) is None and rates.work_of(found, [slide, slide]) is None


def test_a_plan_of_several_scenes_shows_it_and_its_file_does_not(
    model: Path, scenes: list[Path], run: Run, tmp_path: Path
) -> None:
    code, text, _ = run("plan", model, *scenes, "--out", tmp_path)
    assert code == 0 and "waits for" in text and "ms a cell to decide" in text
    assert "work" not in json.loads((tmp_path / "plan.json").read_text())
    decide, classify = rates.rates(load_model(Choosing(model)), 0.0)
    assert decide > 0 and classify > 0
