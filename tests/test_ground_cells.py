"""Cells of a size on the ground: cut in metres, read from the level that suits, resampled to the model's HR size."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from pyproj import Geod
from rasterio.transform import from_origin

from patchdrop.grid import Grid, Shape, boxes
from patchdrop.packed import gather
from patchdrop.read import tiled
from patchdrop.read.tiled import TiledScene
from patchdrop.scenes.places import Places
from patchdrop.tiff import directory as tiff
from patchdrop.tiff.directory import Georeference
from patchdrop.tiff.resample import area_resampled
from patchdrop.transport.ledger import Ledger
from patchdrop.transport.ranges import LocalFile
from pyramids import UTM, picture, write_cog, write_painted
from range_server import RangeServer, range_server

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SHAPE = Shape((64, 64), (16, 16), Grid(4, 4), 3)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def scene_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """800 x 1000 px of 2 m."""
    return write_cog(tmp_path_factory.mktemp("scene") / "scene.tif", picture(800, 1000, seed=3).clip(1), block=128)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """First reads and groups small enough that these scenes need several."""
    monkeypatch.setattr(tiff, "HEADER_BYTES", 512)
    monkeypatch.setattr(tiff, "MORE_BYTES", 0)
    monkeypatch.setattr(tiled, "GROUP_PIXELS", 64 * 64 * 3 * 10)


def cut(path: Path, cell: tuple[int, int] | None, shape: Shape = SHAPE) -> TiledScene:
    return TiledScene(LocalFile(path), shape, cell=cell)


def test_cells_of_the_models_own_size_are_read_as_they_always_were(
    model: Path, scene_file: Path, run: Run, tmp_path: Path
) -> None:
    found = {}
    for name, flags in {"pixels": (), "metres": ("--cell-metres", 128)}.items():
        code, out, _ = run("predict", model, scene_file, "--out", tmp_path / name, "--json", *flags)
        (scene,) = json.loads(out)["scenes"]
        assert code == 0 and scene["cell"] == [64, 64]
        found[name] = {kind: (tmp_path / name / file).read_bytes() for kind, file in scene["files"].items()}
        found[name]["execution"] = json.dumps(scene["execution"]).encode()
    assert found["pixels"] == found["metres"]


@pytest.mark.parametrize(
    ("side", "high", "low"), [(64, 10, 40), (100, 10, 40), (128, 20, 80), (256, 40, 160), (60, 10, 20)]
)
def test_high_and_low_come_from_the_coarsest_levels_that_are_fine_enough(
    tmp_path: Path, side: int, high: int, low: int
) -> None:
    """A painted pixel tells its level: 10 is full resolution, 20 twice coarser, and so on."""
    path = write_painted(tmp_path / "painted.tif", 1024, {1: 10, 2: 20, 4: 40, 8: 80, 16: 160})
    scene = cut(path, (side, side))
    cells = range(min(scene.cells, 5))
    choice = torch.ones(len(cells), 16, dtype=torch.bool)
    assert set(scene.look(cells).low.unique().tolist()) == {low}
    assert set(scene.reader(cells)(choice).pixels.unique().tolist()) == {high}


@pytest.mark.parametrize("cell", [(150, 150), (75, 90), (300, 260), (50, 50)])
def test_patches_read_one_by_one_are_those_of_the_whole_cell_resampled(scene_file: Path, cell: tuple[int, int]) -> None:
    scene = cut(scene_file, cell)
    level = scene._high.level
    factor = scene.full.width // level.width
    options = {} if factor == 1 else {"overview_level": factor.bit_length() - 2}
    with rasterio.open(scene_file, driver="GTiff", **options) as file:
        pixels = file.read()
    cells = [0, scene.cols - 1, scene.cells // 2, scene.cells - 1]
    whole = []
    for number in cells:
        top, left, bottom, right = scene.cell_box(number)
        down, across = pixels.shape[1] / 800, pixels.shape[2] / 1000
        exact = top * down, left * across, bottom * down, right * across
        whole.append(area_resampled(pixels, exact, (0, 0, *pixels.shape[1:]), SHAPE.high))
    draw = torch.Generator().manual_seed(0)
    choice = torch.rand(len(cells), 16, generator=draw) < 0.5
    expected = gather(torch.from_numpy(np.stack(whole)), choice, SHAPE.grid)
    found = scene.reader(cells)(choice)
    assert torch.equal(found.image, expected.image) and torch.equal(found.patch, expected.patch)
    assert (found.pixels.int() - expected.pixels.int()).abs().max() <= 1  # rounding


def test_no_byte_is_read_but_those_of_tiles_under_the_chosen_patches(scene_file: Path) -> None:
    scene, priced = cut(scene_file, (200, 200)), Ledger()
    level = scene._high.level
    assert level.width == 500
    choice = torch.zeros(1, 16, dtype=torch.bool)
    choice[0, [0, 15]] = True
    cut(scene_file, (200, 200)).price([6], choice, priced)
    scene.reader([6])(choice)
    # cell 6 is at 200, 200 px: patches of 50 px, at 100 and 175 px of a level twice coarser, to 125 and 200
    tiles = {
        (row, column)
        for start, stop in ((100, 125), (175, 200))
        for row in range(start // 128, -(-stop // 128))
        for column in range(start // 128, -(-stop // 128))
    }
    expected = sum(int(level.counts[row * 4 + column]) for row, column in tiles)
    assert scene.transport.ledger.of("patch").bytes == expected == priced.of("patch").bytes
    assert scene.transport.ledger.of("patch") == priced.of("patch")


def test_cells_tile_the_scene_and_patches_their_cell(scene_file: Path) -> None:
    scene = cut(scene_file, (150, 170))
    held = np.zeros((800, 1000), int)
    for cell in range(scene.cells):
        top, left, bottom, right = scene.cell_box(cell)
        assert (bottom - top, right - left) == (150, 170)
        held[top:bottom, left:right] += 1
        assert [scene.patch_box(cell, p) for p in range(16)] == [
            (t + top, x + left, b + top, r + left) for t, x, b, r in boxes(SHAPE.grid, 150, 170)
        ]
    assert held.min() == 1


@pytest.fixture
def server(scene_file: Path) -> Iterator[RangeServer]:
    with range_server() as running:
        running.files["scene.tif"], running.etags["scene.tif"] = scene_file.read_bytes(), '"scene"'
        yield running


def test_a_plan_of_ground_cells_states_what_its_execution_reads(
    model: Path, server: RangeServer, run: Run, tmp_path: Path
) -> None:
    url, kinds = server.url("scene.tif"), ("--format", "jsonl", "geojson", "map", "png")
    code, out, err = run("plan", model, url, "--cell-metres", 250, "--out", tmp_path / "plan", "--json")
    planned = json.loads(out)
    assert code == 0, err
    assert planned["cell_metres"] == 250 and planned["scenes"][0]["cell"] == [125, 125]
    assert planned["scenes"][0]["cells"] == 7 * 8
    server.reset()
    plan = ("--plan", tmp_path / "plan" / "plan.json")
    code, out, err = run("predict", model, url, *plan, "--out", tmp_path / "out", "--json", *kinds)
    read = json.loads(out)
    assert code == 0, err
    assert read["total"] == planned["total"] and read["total"]["patches"] > 0
    assert read["scenes"][0]["execution"] == planned["scenes"][0]["execution"]
    assert read["scenes"][0]["execution"]["total"] == {"requests": len(server.asked), "bytes": server.sent}
    with rasterio.open(tmp_path / "out" / read["scenes"][0]["files"]["map"], driver="GTiff") as file:
        assert file.transform.a == pytest.approx(2 * 125 / 4) and file.transform.c == 400_000
    shapes = json.loads((tmp_path / "out" / read["scenes"][0]["files"]["geojson"]).read_text())["features"]
    ring = np.array(shapes[3]["geometry"]["coordinates"][0])
    assert abs(Geod(ellps="WGS84").polygon_area_perimeter(*ring.T)[0]) == pytest.approx(250**2, rel=0.01)
    code, _, err = run("predict", model, url, "--cell-metres", 200, "--out", tmp_path / "out")
    assert code == 2 and "size of cells; choose another --out" in err


def test_ground_cells_and_another_low_scene_go_together(
    model: Path, scene_file: Path, run: Run, tmp_path: Path
) -> None:
    low = write_cog(
        tmp_path / "low.tif", picture(50, 60), where=UTM | {"transform": from_origin(399_900, 5_000_100, 40, 40)}
    )
    flags = ("--cell-metres", 400, "--low-scene", low, "--json")
    code, out, _ = run("plan", model, scene_file, *flags, "--out", tmp_path / "plan")
    planned = json.loads(out)
    code_too, out, _ = run("predict", model, scene_file, *flags, "--out", tmp_path / "out")
    read = json.loads(out)
    assert code == code_too == 0
    assert read["scenes"][0]["execution"] == planned["scenes"][0]["execution"]
    assert planned["scenes"][0]["cell"] == [200, 200] and planned["scenes"][0]["skipped"] == 0


@pytest.mark.parametrize(
    ("matrix", "epsg"),
    [
        ((1e-5, 0.0, 13.7, 0.0, -1e-5, 60.0), 4326),
        ((2.0, 0.0, 1_500_000.0, 0.0, -2.0, 8_400_000.0), 3857),
        ((3.0, 0.0, 400_000.0, 0.0, -3.0, 5_000_000.0), 32633),
        ((6.0, 0.0, 6_000_000.0, 0.0, -6.0, 2_000_000.0), 2249),
    ],
    ids=["degrees", "Mercator", "UTM", "feet"],
)
def test_metres_are_those_on_the_ground_in_any_coordinate_system(matrix: Any, epsg: int) -> None:
    places = Places(Georeference(matrix, epsg), "a")
    height, width = places.cell(500, (2000, 2000))
    (ring,) = places.polygon((1000, 1000, 1000 + height, 1000 + width))["coordinates"]
    earth = Geod(ellps="WGS84")
    sides = [earth.inv(*ring[i], *ring[i + 1])[2] for i in range(4)]
    assert sides == pytest.approx([500] * 4, rel=0.005)


NOWHERE: dict[str, Any] = {}
WIDE = {"crs": "EPSG:4326", "transform": from_origin(0, 70, 0.05, 0.05)}


@pytest.mark.parametrize(
    ("where", "metres", "code", "words"),
    [
        (NOWHERE, 100, 3, "has no georeference with an EPSG code, which --cell-metres needs"),
        (WIDE, 50_000, 3, "no grid of cells of --cell-metres: warp it to UTM"),
        (UTM, 5000, 3, "cells of 5000 m are 2499 x 2499 px, the scene has 256 x 256: give fewer --cell-metres"),
        (UTM, 20, 3, "cells of 20 m are 10 x 10 px, fewer than LR's 16 x 16: give more --cell-metres"),
        (UTM, 40, 3, "has no overview between full resolution and LR"),
        (UTM, 0, 2, "cell_metres: 0 is out of range"),
        (UTM, "nan", 2, "cell_metres: nan is out of range"),
    ],
)
def test_metres_that_make_no_cells_are_one_line(
    model: Path, run: Run, tmp_path: Path, where: Any, metres: object, code: int, words: str
) -> None:
    path = write_cog(tmp_path / "a.tif", picture(256, 256), where=where)
    found, _, err = run("plan", model, path, "--cell-metres", metres, "--out", tmp_path / "plan")
    assert found == code and err.count("\n") == 1 and words in err
