"""Pairs: LR from one scene, HR from another, laid over each other by their georeferences."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin

from patchdrop.errors import DataError
from patchdrop.grid import Grid, Shape
from patchdrop.read import pairs, tiled
from patchdrop.read.pairs import LowScene, averaged
from patchdrop.read.tiled import TiledScene
from patchdrop.scenes.places import Places
from patchdrop.tiff import directory as tiff
from patchdrop.tiff.directory import Georeference, read_header
from patchdrop.transport.ledger import Cost
from patchdrop.transport.ranges import LocalFile
from pyramids import UTM, picture, write_cog, write_painted
from range_server import RangeServer, range_server

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SHAPE = Shape((64, 64), (16, 16), Grid(4, 4), 3)
HEIGHT, WIDTH = 300, 420
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def high(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """5 x 7 cells of 64 px of 2 m in UTM 33, the last ones overlapping."""
    return write_cog(tmp_path_factory.mktemp("high") / "high.tif", picture(HEIGHT, WIDTH, seed=1).clip(1))


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """First reads and groups small enough that these scenes need several."""
    monkeypatch.setattr(tiff, "HEADER_BYTES", 512)
    monkeypatch.setattr(tiff, "MORE_BYTES", 0)
    monkeypatch.setattr(tiled, "GROUP_PIXELS", 64 * 64 * 3 * 10)


def lying_under(high: Path, path: Path, crs: str, metres: float, margin: float = 0.0, seed: int = 2) -> Path:
    """A picture of the ground of ``high``, and ``margin`` metres round it, in another coordinate system."""
    with rasterio.open(high, driver="GTiff") as file:
        left, bottom, right, top = rasterio.warp.transform_bounds(file.crs, crs, *file.bounds)
    unit = 1.0 if rasterio.crs.CRS.from_string(crs).is_projected else 1 / 111_000
    step, margin = metres * unit, margin * unit
    where = {"crs": crs, "transform": from_origin(left - margin, top + margin, step, step)}
    rows, columns = (round((b - a + 2 * margin) / step) for a, b in ((bottom, top), (left, right)))
    return write_cog(path, picture(rows, columns, seed=seed), where=where)


def pair(high: Path, low: Path, shape: Shape = SHAPE) -> tuple[TiledScene, LowScene]:
    above, below = LocalFile(high), LocalFile(low)
    header, other = read_header(above), read_header(below)
    onto = Places(header.georeference, above.name).onto(Places(other.georeference, below.name), other.levels[0].width)
    size = header.levels[0].height, header.levels[0].width
    found = LowScene(below, other, shape, 0, above.name, size, shape.high, onto)
    return TiledScene(above, shape, header=header, low=found), found


# --- what is seen


def test_a_scenes_own_overview_as_another_file_gives_the_same_low_to_the_bit(high: Path, tmp_path: Path) -> None:
    with rasterio.open(high, driver="GTiff", overview_level=1) as file:
        overview = file.read()
    assert overview.shape == (3, HEIGHT // 4, WIDTH // 4)
    low = write_cog(tmp_path / "low.tif", overview, where=UTM | {"transform": from_origin(400_000, 5_000_000, 8, 8)})
    alone = TiledScene(LocalFile(high), SHAPE)
    expected = alone.look(range(alone.cells))
    found = pair(high, low)[0].look(range(alone.cells))
    assert torch.equal(found.low, expected.low) and torch.equal(found.seen, expected.seen)


@pytest.mark.parametrize(
    ("crs", "metres"), [("EPSG:32633", 3.1), ("EPSG:32632", 5), ("EPSG:3857", 1.3), ("EPSG:4326", 4), ("EPSG:3035", 2)]
)
def test_low_is_the_mean_of_what_gdal_finds_under_each_pixel_in_any_coordinate_system(
    high: Path, tmp_path: Path, crs: str, metres: float
) -> None:
    low = lying_under(high, tmp_path / "low.tif", crs, metres, margin=40)
    scene, below = pair(high, low)
    found = scene.look(range(scene.cells))
    assert found.seen.all()
    number = (below._full.width // below.level.width).bit_length() - 2  # of the overview
    with rasterio.open(low, driver="GTiff", **({"overview_level": number} if number >= 0 else {})) as file:
        assert file.width == below.level.width
        pixels, where, system = file.read(), file.transform, file.crs
    many = 20  # points on a side of a pixel of LR
    for cell in range(0, scene.cells, 9):
        top, left, _, _ = scene.cell_box(cell)
        steps = (np.arange(16 * many) + 0.5) * 4 / many
        xs, ys = np.meshgrid(400_000 + 2 * (left + steps), 5_000_000 - 2 * (top + steps))
        there = rasterio.warp.transform("EPSG:32633", system, xs.ravel(), ys.ravel())
        rows, columns = (np.array(v) for v in rasterio.transform.rowcol(where, *there))
        theirs = pixels[:, rows, columns].reshape(3, 16, many, 16, many).mean((2, 4))
        apart = np.abs(found.low[cell].numpy() - theirs)
        assert apart.max() < 10 and apart.mean() < 2  # few points beside many, of a picture as rough as LR


@pytest.mark.parametrize("crs", ["EPSG:32633", "EPSG:32632", "EPSG:4326"])
def test_low_of_a_ramp_is_the_ramp_where_each_pixel_of_low_lies(high: Path, tmp_path: Path, crs: str) -> None:
    low = lying_under(high, tmp_path / "low.tif", crs, 3, margin=60)
    with rasterio.open(low, driver="GTiff") as file:
        rows, columns, where = file.height, file.width, file.transform
    ramps = np.stack([np.mgrid[:rows, :columns][i] * 200 / (rows, columns)[i] for i in (0, 1, 1)])
    low = write_cog(tmp_path / "ramp.tif", ramps.round().astype(np.uint8), where={"crs": crs, "transform": where})
    scene, _ = pair(high, low)
    found = scene.look(range(scene.cells)).low.numpy()
    for cell in range(scene.cells):
        top, left, _, _ = scene.cell_box(cell)
        ys, xs = (np.arange(16) * 4 + 2 + edge for edge in (top, left))
        x, y = np.meshgrid(400_000 + 2 * xs, 5_000_000 - 2 * ys)
        there = rasterio.warp.transform("EPSG:32633", crs, x.ravel(), y.ravel())
        row, column = (np.array(v) for v in rasterio.transform.rowcol(where, *there, op=lambda v: v))
        expected = np.stack([(row - 0.5) * 200 / rows, (column - 0.5) * 200 / columns]).reshape(2, 16, 16)
        assert np.abs(found[cell][:2] - expected).max() < 2


def test_only_tiles_under_the_cells_are_read_of_the_level_that_low_needs(tmp_path: Path) -> None:
    high = write_cog(tmp_path / "high.tif", picture(128, 128))
    colours = {1: 10, 2: 20, 4: 40, 8: 80}
    painted = write_painted(tmp_path / "painted.tif", 2048, colours, block=128)
    with rasterio.open(painted, "r+", driver="GTiff", IGNORE_COG_LAYOUT_BREAK="YES") as file:
        file.crs, file.transform = "EPSG:32633", from_origin(399_000, 5_001_000, 2, 2)
    scene, below = pair(high, painted)
    found = scene.look(range(scene.cells))
    assert set(found.low.unique().tolist()) == {40}  # 8 m a pixel, as LR
    # 1000 m from the corner, 256 m wide: px 125 to 157 of that level, tiles of 128 px
    tiles = [row * 4 + column for row in (0, 1) for column in (0, 1)]
    read = below._transport.ledger.of("overview")
    assert read.bytes == sum(int(below.level.counts[tile]) for tile in tiles) < below.level.counts.sum()


def test_rows_that_are_passed_are_let_go(high: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "GROUP_PIXELS", 64 * 64 * 3 * 7)  # a row of cells
    low = lying_under(high, tmp_path / "low.tif", "EPSG:32632", 0.5)
    scene, below = pair(high, low, Shape((64, 64), (64, 64), Grid(4, 4), 3))
    held = []
    for group in scene.groups():
        scene.look(group)
        held.append(len(below._tiles._held))
    assert held[-1] < below.level.counts.size and len(held) > 3
    assert below._transport.ledger.of("overview").bytes <= below.level.counts.sum()  # none was read twice


def test_a_low_scene_that_runs_the_other_way_is_let_go_too(tmp_path: Path) -> None:
    """South up under north up: its first rows are needed last."""
    high = write_cog(tmp_path / "high.tif", picture(1280, 128, seed=1).clip(1))
    upside_down = {"crs": UTM["crs"], "transform": rasterio.Affine(2, 0, 400_000, 0, 2, 5_000_000 - 2560)}
    low = write_cog(tmp_path / "low.tif", picture(1280, 128, seed=2), where=upside_down)
    scene, below = pair(high, low, Shape((64, 64), (64, 64), Grid(4, 4), 3))
    held = []
    for group in scene.groups():
        scene.look(group)
        held.append(len(below._tiles._held))
    assert max(held) < below.level.counts.size
    assert below._transport.ledger.of("overview").bytes <= below.level.counts.sum()


def test_across_the_180th_meridian_no_cell_takes_the_strip_round_the_globe(tmp_path: Path) -> None:
    """The middle cell lies on the seam of the LR scene's longitudes."""
    where = {"crs": "EPSG:32660", "transform": from_origin(818_000, 40_000, 100, 100)}
    high = write_cog(tmp_path / "high.tif", picture(320, 320, seed=1).clip(1), where=where)
    world = np.full((3, 360, 720), 120, np.uint8)
    world[:, :, :200], world[:, :, -200:] = 50, 50
    globe = {"crs": "EPSG:4326", "transform": from_origin(-180, 90, 0.5, 0.5)}
    scene, _ = pair(high, write_cog(tmp_path / "low.tif", world, where=globe))
    look = scene.look(range(scene.cells))
    assert int(look.seen.sum()) == 20 < scene.cells
    assert look.low[look.seen].unique().tolist() == [50]


def test_points_are_taken_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = np.random.default_rng(0)
    values, seen = draw.integers(0, 256, (3, 40, 40), dtype=np.uint8), np.ones((40, 40), bool)
    rows, columns = np.meshgrid(np.linspace(1, 37, 10), np.linspace(2, 38, 10), indexing="ij")
    whole, _ = averaged(values, seen, columns + 1e-3 * rows, rows)
    monkeypatch.setattr(pairs, "AT_A_TIME", 1)
    found, any_seen = averaged(values, seen, columns + 1e-3 * rows, rows)
    assert any_seen and np.array_equal(found, whole)


def test_check_knows_that_lr_comes_from_another_scene(model: Path, high: Path, run: Run, tmp_path: Path) -> None:
    with rasterio.open(high, driver="GTiff") as file:
        values, where = file.read(), {"crs": file.crs, "transform": file.transform}
    bare = write_cog(tmp_path / "bare.tif", values, where=where, OVERVIEWS="NONE")
    low = lying_under(high, tmp_path / "low.tif", "EPSG:4326", 4)
    code, out, _ = run("check", bare, "--run", model, "--json")
    assert code == 3 and "lay another scene under it with --low-scene" in json.loads(out)["scenes"][0]["reasons"][0]
    assert run("check", bare, "--run", model, "--low-scene", low)[0] == 0
    (tmp_path / "scenes.csv").write_text("scene,low\nbare.tif,low.tif\n")
    assert run("check", "--scenes", tmp_path / "scenes.csv", "--run", model)[0] == 0
    grey = write_cog(tmp_path / "grey.tif", values[:1], where=where)
    code, out, _ = run("check", bare, "--run", model, "--low-scene", grey, "--json")
    assert code == 3 and "its LR scene" in json.loads(out)["scenes"][0]["reasons"][0]


def test_a_coarser_low_scene_is_repeated() -> None:
    values = np.arange(4, dtype=np.uint8).reshape(1, 2, 2) * 10
    rows, columns = np.meshgrid(np.linspace(0, 2, 5), np.linspace(0, 2, 5), indexing="ij")
    found, seen = averaged(values, np.ones((2, 2), bool), columns, rows)
    assert seen and found[0].tolist() == np.kron(values[0], np.ones((2, 2), int)).tolist()


def test_means_over_points_are_exact_ones_to_a_level() -> None:
    draw = np.random.default_rng(0)
    values = draw.integers(0, 256, (3, 40, 40), dtype=np.uint8)
    seen = np.ones((40, 40), bool)
    rows, columns = np.meshgrid(np.linspace(1, 37, 10), np.linspace(2, 38, 10), indexing="ij")
    exact, _ = averaged(values, seen, columns, rows)
    bent = columns + 1e-3 * rows
    found, _ = averaged(values, seen, bent, rows)
    assert np.abs(found.astype(int) - exact).max() <= 5  # of noise, the hardest there is


# --- what is skipped


def test_cells_outside_the_low_scene_or_on_its_nodata_are_not_seen(high: Path, tmp_path: Path) -> None:
    pixels = picture(75, 60, seed=5).clip(1)  # 480 m of 840 m across
    pixels[:, :16] = 0
    where = UTM | {"transform": from_origin(400_000, 5_000_000, 8, 8)}
    low = write_cog(tmp_path / "low.tif", pixels, where=where, profile={"nodata": 0})
    scene, _ = pair(high, low)
    seen = scene.look(range(scene.cells)).seen.reshape(scene.rows, scene.cols)
    # cells are 16 LR px: columns 0 to 3 lie on it, 3 in part
    assert seen.tolist() == [[False] * 7] + [[True] * 4 + [False] * 3] * 4


def test_low_is_found_on_the_other_side_of_the_180th_meridian(tmp_path: Path) -> None:
    east = write_cog(
        tmp_path / "high.tif",
        picture(128, 128),
        where={"crs": "EPSG:4326", "transform": from_origin(180.5, 10, 0.001, 0.001)},
    )
    low = write_cog(
        tmp_path / "low.tif",
        picture(64, 64),
        where={"crs": "EPSG:4326", "transform": from_origin(-179.6, 10.1, 0.004, 0.004)},
    )
    assert pair(east, low)[0].look(range(4)).seen.all()


# --- from the command line


@pytest.fixture
def server(high: Path, tmp_path: Path) -> Iterator[RangeServer]:
    low = lying_under(high, tmp_path / "low.tif", "EPSG:4326", 4, margin=-200)
    with range_server() as running:
        for name, path in {"high.tif": high, "low.tif": low}.items():
            running.files[name] = path.read_bytes()
            running.etags[name] = f'"{name}"'
        yield running


@pytest.mark.parametrize("flags", [(), ("--gap", 1000), ("--cache", "CACHE")])
def test_a_plan_of_a_pair_states_what_its_execution_reads_of_both(
    model: Path, server: RangeServer, run: Run, tmp_path: Path, flags: tuple[object, ...]
) -> None:
    given = [tmp_path / "cache" if flag == "CACHE" else flag for flag in flags]
    flags = (server.url("high.tif"), "--low-scene", server.url("low.tif"), *given, "--json")
    code, out, err = run("plan", model, *flags, "--out", tmp_path / "plan")
    planned = json.loads(out)
    (scene,) = planned["scenes"]
    assert code == 0, err
    assert scene["planning"]["total"] == {"requests": len(server.asked), "bytes": server.sent}
    assert scene["planning"]["overview"] == {"requests": 0, "bytes": 0} and scene["low"] == server.url("low.tif")
    assert scene["planning"]["low"]["bytes"] == sum(a.stop - a.start for a in server.asked if a.path == "low.tif")
    assert 0 < scene["skipped"] < scene["cells"]
    server.reset()
    by_plan = () if "--gap" in given else ("--plan", tmp_path / "plan" / "plan.json")
    code, out, err = run("predict", model, *flags, "--out", tmp_path / "out", *by_plan)
    read = json.loads(out)
    assert code == 0, err
    assert read["scenes"][0]["execution"]["total"] == {"requests": len(server.asked), "bytes": server.sent}
    if "--cache" not in given:
        assert read["scenes"][0]["execution"] == scene["execution"] and read["total"] == planned["total"]
        parts = [Cost(**cost) for name, cost in scene["execution"].items() if name != "total"]
        assert len(parts) == 4 and sum(cost.bytes for cost in parts) == server.sent
    assert read["scenes"][0]["skipped"] == scene["skipped"] and read["total"]["patches"] > 0


def test_a_list_names_the_low_scene_of_each(model: Path, high: Path, run: Run, tmp_path: Path) -> None:
    lying_under(high, tmp_path / "a.tif", "EPSG:4326", 4)
    lying_under(high, tmp_path / "b.tif", "EPSG:32632", 6)
    (tmp_path / "scenes.csv").write_text(f"scene,low\n{high},a.tif\n")
    (tmp_path / "scenes.jsonl").write_text(json.dumps({"scene": str(high)}) + '\n{"scene": "x.tif", "low": 3}\n')
    code, out, _ = run("plan", model, "--scenes", tmp_path / "scenes.csv", "--out", tmp_path / "p", "--json")
    assert code == 0 and json.loads(out)["scenes"][0]["low"] == str(tmp_path / "a.tif")
    flags = ("--scenes", tmp_path / "scenes.jsonl", "--low-scene", tmp_path / "b.tif", "--json")
    code, out, err = run("plan", model, *flags, "--out", tmp_path / "p")
    assert code == 4 and json.loads(out)["scenes"][0]["low"] == str(tmp_path / "b.tif")
    assert "line 2: low: is no name" in err
    code, _, err = run("plan", model, high, *flags[:2], "--out", tmp_path / "p")
    assert code == 4 and "line 2" in err  # the same scene twice is one


def test_results_and_plans_belong_to_their_low_scene(model: Path, high: Path, run: Run, tmp_path: Path) -> None:
    for seed, name in enumerate(("a.tif", "b.tif")):
        lying_under(high, tmp_path / name, "EPSG:4326", 4, seed=seed)
    low = ("--low-scene", tmp_path / "a.tif")
    assert run("plan", model, high, *low, "--out", tmp_path / "plan")[0] == 0
    by_plan = ("--plan", tmp_path / "plan" / "plan.json", "--out", tmp_path / "out")
    code, _, err = run("predict", model, high, *by_plan)
    assert code == 3 and f"was planned with LR from {tmp_path / 'a.tif'}, not from its overview" in err
    assert run("predict", model, high, *low, *by_plan)[0] == 0
    code, _, err = run("predict", model, high, "--low-scene", tmp_path / "b.tif", *by_plan)
    assert code == 2 and "LR scene or size of cells; choose another --out" in err
    (tmp_path / "a.tif").write_bytes((tmp_path / "b.tif").read_bytes())
    code, _, err = run("predict", model, high, *low, *by_plan[:2], "--out", tmp_path / "new")
    assert code == 3 and "a.tif: is not the file that was planned" in err


def test_a_run_on_low_images_of_their_own_takes_pairs_only(model: Path, high: Path, run: Run, tmp_path: Path) -> None:
    own = Path(shutil.copytree(model, tmp_path / "own"))
    (own / "data.json").write_text('{"low": "own"}')
    code, _, err = run("plan", own, high, "--out", tmp_path / "plan")
    assert code == 3 and err.count("\n") == 1 and "give the LR scene with --low-scene" in err
    lying_under(high, tmp_path / "a.tif", "EPSG:4326", 4)
    assert run("plan", own, high, "--low-scene", tmp_path / "a.tif", "--out", tmp_path / "plan")[0] == 0


AWAY = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 8, 8)}
TURNED = {"crs": "EPSG:32633", "transform": rasterio.Affine(8, 1, 400_000, 1, -8, 5_000_000)}
SITE: dict[str, Any] = UTM | {"transform": from_origin(400_000, 5_000_000, 8, 8)}


@pytest.mark.parametrize(
    ("of_high", "of_low", "bands", "words"),
    [
        (UTM, AWAY, 3, "low.tif: shows none of the ground of"),
        (UTM, {}, 3, "low.tif: has no georeference with an EPSG code"),
        ({}, SITE, 3, "high.tif: has no georeference with an EPSG code"),
        (UTM, TURNED, 3, "low.tif: is rotated in its coordinate system"),
        (TURNED, SITE, 3, "high.tif: is rotated in its coordinate system"),
        (UTM, SITE, 1, "low.tif: 1 bands, the model takes 3"),
        (UTM, None, 3, "low.tif: cannot be read"),
    ],
)
def test_a_pair_that_is_none_is_one_line_and_other_scenes_are_read(
    model: Path, high: Path, run: Run, tmp_path: Path, of_high: Any, of_low: Any, bands: int, words: str
) -> None:
    above = write_cog(tmp_path / "high.tif", picture(128, 128), where=of_high)
    if of_low is not None:
        write_cog(tmp_path / "low.tif", picture(128, 128, bands), where=of_low)
    good = lying_under(high, tmp_path / "good.tif", "EPSG:32633", 8)
    (tmp_path / "scenes.csv").write_text(f"scene,low\n{above},{tmp_path / 'low.tif'}\n{high},{good}\n")
    code, out, err = run("plan", model, "--scenes", tmp_path / "scenes.csv", "--out", tmp_path / "plan", "--json")
    assert code == 4 and err.count("\n") == 1 and words in err
    assert [scene["scene"] for scene in json.loads(out)["scenes"]] == [str(high)]


def test_a_place_without_a_meaning_in_the_low_scenes_system_is_no_pair(tmp_path: Path) -> None:
    pole = write_cog(
        tmp_path / "high.tif",
        picture(128, 128),
        where={"crs": "EPSG:4326", "transform": from_origin(0, -89, 0.001, 0.001)},
    )
    low = write_cog(tmp_path / "low.tif", picture(128, 128), where=SITE)
    with pytest.raises(DataError, match=r"shows none of the ground|cannot be laid under"):
        pair(pole, low)


def test_onto_is_the_way_back_of_the_way_there() -> None:
    a = Places(Georeference((2.0, 0.0, 400_000.0, 0.0, -2.0, 5_000_000.0), 32633), "a")
    b = Places(Georeference((1e-4, 0.0, 13.0, 0.0, -1e-4, 46.0), 4326), "b")
    x: NDArray[np.float64] = np.linspace(0, 400, 9)
    there = a.onto(b, 10_000)(x, x[::-1])
    back = b.onto(a, 420)(*there)
    assert np.allclose(back, (x, x[::-1]), atol=1e-5)
