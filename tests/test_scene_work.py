"""Scenes from the command line: check, plan, predict; what is planned is what is read, and what is read is counted."""

from __future__ import annotations

import csv
import importlib.util
import itertools
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.warp
import shapely
import shapely.geometry
import torch
from PIL import Image
from rasterio.shutil import copy
from torch import Tensor

from patchdrop.classify.low import LowCNN
from patchdrop.episode import Look, PatchDrop
from patchdrop.errors import DataError
from patchdrop.grid import Grid, Shape
from patchdrop.models.compute import Networks
from patchdrop.models.shared_pass import RankingModel
from patchdrop.packed import Packed
from patchdrop.policy import budget
from patchdrop.policy.choice import greedy
from patchdrop.read import tiled
from patchdrop.read.source import from_memory
from patchdrop.read.tiled import TiledScene
from patchdrop.runs.folder import RunFolder
from patchdrop.scenes import outputs, predict
from patchdrop.scenes.chances import NAMES as CHANCES
from patchdrop.scenes.places import Places
from patchdrop.tiff import directory as tiff
from patchdrop.tiff.directory import Georeference
from patchdrop.transport.ranges import LocalFile
from pyramids import picture, write_cog
from range_server import RangeServer, range_server
from tiny import CLASSES, tiny_settings
from untrained import untrained_run

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
SHAPE = Shape((64, 64), (16, 16), Grid(4, 4), 3)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A scene of 5 x 7 cells of 64 px, the last ones overlapping, and one of 4 x 4 without a georeference."""
    root = tmp_path_factory.mktemp("scenes")
    black = picture(300, 420, seed=1).clip(1)
    black[:, :64, 64:192] = 0
    return {
        "utm": write_cog(root / "utm.tif", black, profile={"nodata": 0}),
        "plain": write_cog(root / "plain.tif", picture(256, 256, seed=2), "JPEG", where={}),
    }


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """First reads, groups and their parts small enough that these scenes need several."""
    monkeypatch.setattr(tiff, "HEADER_BYTES", 1024)
    monkeypatch.setattr(tiled, "GROUP_PIXELS", 64 * 64 * 3 * 10)
    monkeypatch.setattr(tiled, "PART_PIXELS", 64 * 64 * 3 * 4)


@pytest.fixture
def server(scenes: dict[str, Path]) -> Iterator[RangeServer]:
    with range_server() as running:
        for name, path in scenes.items():
            running.files[f"{name}.tif"] = path.read_bytes()
            running.etags[f"{name}.tif"] = f'"{name}"'
        yield running


def results(folder: Path, scene: dict[str, Any]) -> list[dict[str, Any]]:
    lines = (folder / scene["files"]["jsonl"]).read_text().splitlines()
    return [json.loads(line) for line in lines]


# --- plan and predict


@pytest.mark.parametrize("gap", [0, 1000])
def test_a_plan_states_what_its_execution_reads_and_the_server_counts_the_same(
    model: Path, server: RangeServer, run: Run, tmp_path: Path, gap: int
) -> None:
    urls = [server.url("utm.tif"), server.url("plain.tif")]
    code, out, _ = run("plan", model, *urls, "--out", tmp_path / "plan", "--gap", gap, "--json")
    assert code == 0
    planned = json.loads(out)
    spent = [scene["planning"]["total"] for scene in planned["scenes"]]
    assert sum(s["requests"] for s in spent) == len(server.asked)
    assert sum(s["bytes"] for s in spent) == server.sent
    assert all(scene["planning"]["patch"] == {"requests": 0, "bytes": 0} for scene in planned["scenes"])
    server.reset()
    code, out, _ = run("predict", model, *urls, "--out", tmp_path / "out", "--gap", gap, "--json")
    assert code == 0
    read = json.loads(out)
    assert read["total"] == planned["total"]
    assert [s["execution"] for s in read["scenes"]] == [s["execution"] for s in planned["scenes"]]
    assert read["total"]["requests"] == len(server.asked)
    assert read["total"]["bytes"] == server.sent
    assert 0 < read["total"]["patches"] < (35 + 16) * 16
    if gap == 0:
        patches = sum(s["execution"]["patch"]["bytes"] for s in read["scenes"])
        headers = sum(s["execution"]["header"]["bytes"] for s in read["scenes"])
        assert patches + headers <= read["total"]["everything_bytes"]


def test_a_group_is_asked_for_at_once_while_pixels_of_the_one_before_are_held_part_by_part(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    classify, ask = Networks.classify, TiledScene.ask

    def classified(self: Networks, parts: Sequence[tuple[slice, Look]], packed: Packed, low: Tensor) -> Tensor:
        done.append(f"{packed.batch}")
        return classify(self, parts, packed, low)

    def asked(self: TiledScene, cells: Sequence[int], choice: Tensor) -> None:
        done.append(f"ask {len(cells)}")
        ask(self, cells, choice)

    monkeypatch.setattr(Networks, "classify", classified)
    monkeypatch.setattr(TiledScene, "ask", asked)
    code, _, _ = run("predict", model, scenes["utm"], "--out", tmp_path)
    assert code == 0
    # Of the first ten cells two are nodata.
    expected = "ask 8, ask 10, 4, 4, ask 10, 4, 4, 2, ask 5, 4, 4, 2, 4, 1"
    assert done == expected.split(", ")


@pytest.mark.parametrize("stage", ["pt", "ft2"])
def test_a_scenes_cells_are_predicted_as_images_of_their_pixels(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path, stage: str
) -> None:
    code, out, _ = run("predict", model, scenes["utm"], "--out", tmp_path, "--stage", stage, "--json")
    assert code == 0
    (scene,) = json.loads(out)["scenes"]
    found = results(tmp_path, scene)
    with rasterio.open(scenes["utm"], driver="GTiff") as file:
        whole = torch.from_numpy(file.read())
    geometry = TiledScene(LocalFile(scenes["utm"]), SHAPE)
    boxes = [geometry.cell_box(cell) for cell in range(geometry.cells)]
    high = torch.stack([whole[:, t:b, x:r] for t, x, b, r in boxes])
    loaded, _ = RunFolder(model).load(stage)
    assert isinstance(loaded, PatchDrop)
    with torch.inference_mode():
        episode = loaded(geometry.look(range(geometry.cells)).low, greedy, from_memory(high, Grid(4, 4)))
    assert [line["cell"] for line in found] == list(range(35))
    assert [tuple(line["box"]) for line in found] == boxes
    for cell, line in enumerate(found):
        if cell in (1, 2):  # nodata all over
            assert line["label"] is None and line["patches"] == []
            continue
        assert line["label"] == CLASSES[int(episode.logits[cell].argmax())]
        assert line["probability"] == pytest.approx(float(episode.logits[cell].softmax(0).max()), abs=1e-5)
        assert line["patches"] == episode.choice[cell].nonzero().flatten().tolist()
    assert scene["skipped"] == 2 and sum(scene["classes"].values()) == 33
    assert len({tuple(line["patches"]) for line in found}) > 3
    with open(tmp_path / scene["files"]["csv"], encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] or None for row in rows] == [line["label"] for line in found]
    assert [[int(p) for p in row["patches"].split()] for row in rows] == [line["patches"] for line in found]
    shapes = json.loads((tmp_path / scene["files"]["geojson"]).read_text())["features"]
    assert [f["properties"]["patches"] for f in shapes] == [line["patches"] for line in found]


def test_every_kind_of_file_tells_of_the_same_cells_and_costs_nothing_more(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = pytest.importorskip("pyogrio.raw").read
    monkeypatch.setattr(outputs, "BATCH", 10)
    kinds = ("jsonl", "gpkg", "map", "png")
    code, out, _ = run("predict", model, *scenes.values(), "--out", tmp_path / "all", "--format", *kinds, "--json")
    assert code == 0
    found = json.loads(out)["scenes"]
    code, out, _ = run("predict", model, *scenes.values(), "--out", tmp_path / "usual", "--json")
    assert [s["execution"] for s in found] == [s["execution"] for s in json.loads(out)["scenes"]]
    for scene, path in zip(found, scenes.values(), strict=True):
        there = {p.name for p in (tmp_path / "all").glob(f"{path.stem}-*")}
        assert there == {*scene["files"].values(), scene["files"]["jsonl"].removesuffix("l")}
        lines = results(tmp_path / "all", scene)
        with rasterio.open(path, driver="GTiff") as file:
            where, crs = file.transform, file.crs
        # the GeoPackage
        about, _, shapes, columns = read(tmp_path / "all" / scene["files"]["gpkg"])
        assert (about["crs"] == "EPSG:32633") == (crs is not None)
        table = dict(zip(about["fields"], columns, strict=True))
        assert [v or None for v in table["label"]] == [line["label"] for line in lines]
        assert [[int(p) for p in v.split()] for v in table["patches"]] == [line["patches"] for line in lines]
        assert np.allclose(table["probability"], [line["probability"] for line in lines])
        assert np.isnan(table["chance_now"]).all() and np.isnan(table["chance_after"]).all()
        for line, shape in zip(lines, shapes, strict=True):
            ring = np.frombuffer(shape, "<f8", offset=13).reshape(5, 2)
            top, left, bottom, right = line["box"]
            corners = [where @ (x, y) for x, y in ((left, top), (right, bottom))]
            assert np.allclose(sorted({*ring[:, 0]}), sorted(c[0] for c in corners))
            assert np.allclose(sorted({*ring[:, 1]}), sorted(c[1] for c in corners))
        # the map: where a pixel's centre lies in cells, it has the first one's class
        with rasterio.open(tmp_path / "all" / scene["files"]["map"], driver="GTiff") as file:
            values, nodata = file.read(1), file.nodata
            assert file.crs == crs and file.transform == where @ rasterio.Affine.scale(16)
            assert json.loads(file.tags()["CLASSES"]) == list(CLASSES)
            colours = [file.colormap(1)[i][:3] for i in range(len(CLASSES))]
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        height, width = scene["size"]
        assert values.shape == (-(-height // 16), -(-width // 16))
        expected = np.full(values.shape, -1)
        for line in reversed(lines):
            top, left, bottom, right = line["box"]
            number = nodata if line["label"] is None else CLASSES.index(line["label"])
            expected[-(-(top - 8) // 16) : -(-(bottom - 8) // 16), -(-(left - 8) // 16) : -(-(right - 8) // 16)] = (
                number
            )
        inside = expected >= 0
        assert inside[:-1, :-1].all() and np.array_equal(values[inside], expected[inside])
        # the picture: read patches have their colours, others are grey
        picture = np.asarray(Image.open(tmp_path / "all" / scene["files"]["png"])).astype(int)
        assert max(picture.shape) < 2000
        for number, line in enumerate(lines[:3]):
            scale = 1200 / max(scene["size"])
            for patch in range(16):
                y, x = 16 * (patch // 4) + 8, 64 * number + 16 * (patch % 4) + 8
                pixel = picture[round(112 + y * scale), round(48 + x * scale)]
                if line["label"] is None:
                    assert pixel.tolist() == [0xEE, 0xF1, 0xF4]
                else:
                    assert (np.ptp(pixel) > 0) == (patch in line["patches"])
            if line["label"] is not None:
                edge = picture[round(112 + 32 * scale), round(48 + 64 * number * scale) + 2]
                assert tuple(edge) == colours[CLASSES.index(line["label"])]


def test_files_that_need_a_package_or_another_folder_are_refused_in_a_line(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("predict", model, scenes["plain"], "--out", tmp_path / "out", "--format")
    with monkeypatch.context() as lacking:
        lacking.setattr(importlib.util, "find_spec", lambda _: None)
        code, out, err = run(*call, "csv", "gpkg")
        assert code == 2 and out == "" and err.count("\n") == 1 and "--format gpkg needs pyogrio: install" in err
    assert not (tmp_path / "out").exists()
    assert run(*call, "csv")[0] == 0
    assert {p.suffix for p in (tmp_path / "out").iterdir()} == {".csv", ".json"}
    code, _, err = run(*call, "csv", "png")
    assert code == 2 and "was finished without --format png; choose another --out" in err


@pytest.fixture(scope="module")
def ranking(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of a policy that says how likely it is to be right."""
    settings = tiny_settings(high="64", low="16", policy="ranking", low_stream="pt", fusion="learned")
    run = RunFolder(untrained_run(tmp_path_factory.mktemp("ranking"), settings, ("pt",)))
    model, config = run.load("pt")
    assert isinstance(model, RankingModel)
    lows = TiledScene(LocalFile(write_cog(run.path / "any.tif", picture(256, 256, seed=3))), SHAPE).look(range(16)).low
    with torch.no_grad():  # half of the patches are worth their price
        model.policy.log_price += model.look(lows).scores.median()
    run.finish("pt", model, config, {"figures": {}, "seconds": 0.0})
    return run.path


def test_the_chances_of_cells_are_those_of_images_and_their_means_are_told(
    ranking: Path, scenes: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    call = (*scenes.values(), "--out", tmp_path)
    planned = json.loads(run("plan", ranking, *call, "--json")[1])
    code, out, _ = run("predict", ranking, *call, "--format", "jsonl", "csv", "geojson", "--json")
    found = json.loads(out)
    assert code == 0 and found["total"] == planned["total"]
    loaded, _ = RunFolder(ranking).load("pt")
    assert isinstance(loaded, RankingModel)
    means = []
    for scene, plan in zip(found["scenes"], planned["scenes"], strict=True):
        lines = [line for line in results(tmp_path, scene) if line["label"] is not None]
        geometry = TiledScene(LocalFile(Path(scene["scene"])), SHAPE)
        with torch.inference_mode():
            chances = loaded.look(geometry.look([line["cell"] for line in lines]).low).chances
        assert chances is not None
        counts = [len(line["patches"]) for line in lines]
        assert len({*counts}) > 1
        assert [line["chance_now"] for line in lines] == pytest.approx(chances[:, 0].tolist(), abs=1e-5)
        after = [float(row[count]) for row, count in zip(chances, counts, strict=True)]
        assert [line["chance_after"] for line in lines] == pytest.approx(after, abs=1e-5)
        expected = float(chances[:, 0].mean()), float(np.mean(after)), float(chances[:, -1].mean())
        assert [scene[name] for name in CHANCES] == pytest.approx(expected, abs=1e-5)
        assert [plan[name] for name in CHANCES] == [scene[name] for name in CHANCES]
        means.append((len(lines), [scene[name] for name in CHANCES]))
        with open(tmp_path / scene["files"]["csv"], encoding="utf-8") as file:
            rows = [row for row in csv.DictReader(file) if row["label"]]
        assert [float(row["chance_after"]) for row in rows] == pytest.approx(after, abs=1e-5)
        shapes = json.loads((tmp_path / scene["files"]["geojson"]).read_text())["features"]
        told = [f["properties"]["chance_now"] for f in shapes if f["properties"]["label"]]
        assert told == [line["chance_now"] for line in lines]
    weights, values = zip(*means, strict=True)
    assert [found["total"][name] for name in CHANCES] == pytest.approx(np.average(values, 0, weights).tolist())
    printed = run("plan", ranking, *call)[1]
    now, _, everything = (f"{100 * found['total'][name]:.0f} %" for name in CHANCES)
    assert f"on {now} of cells now, on " in printed and f"on {everything} after reading everything" in printed


def test_no_network_looks_at_a_cells_lr_twice(
    ranking: Path, scenes: dict[str, Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    forward = LowCNN.forward

    def counted(self: LowCNN, low: Tensor) -> Tensor:
        seen.append(len(low))
        return forward(self, low)

    monkeypatch.setattr(LowCNN, "forward", counted)
    assert run("predict", ranking, scenes["plain"], "--out", tmp_path)[0] == 0
    assert sum(seen) == 16


def test_of_patches_that_a_plan_names_against_the_ranking_no_chance_is_told(
    ranking: Path, scenes: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    assert run("plan", ranking, scenes["plain"], "--out", tmp_path)[0] == 0
    document = json.loads((tmp_path / "plan.json").read_text())
    cell, patches = next((cell, patches) for cell, patches in document["scenes"][0]["chosen"] if len(patches) < 16)
    chosen = dict(document["scenes"][0]["chosen"])
    chosen[cell] = [patch for patch in range(16) if patch not in patches]
    document["scenes"][0]["chosen"] = sorted(chosen.items())
    (tmp_path / "plan.json").write_text(json.dumps(document))
    call = ("predict", ranking, scenes["plain"], "--out", tmp_path, "--plan", tmp_path / "plan.json")
    (scene,) = json.loads(run(*call, "--json")[1])["scenes"]
    lines = results(tmp_path, scene)
    assert [line["cell"] for line in lines if line["chance_after"] is None] == [cell]
    assert all(line["chance_now"] is not None for line in lines)
    assert scene["chance_after"] is None and 0 < scene["chance_now"] < 1
    assert "of cells now, on " in run(*call)[1]


def test_a_policy_that_does_not_say_has_no_chances_and_scenes_finished_before_there_were_any_load(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    call = ("predict", model, scenes["plain"], "--out", tmp_path)
    document = json.loads(run(*call, "--json")[1])
    (scene,) = document["scenes"]
    assert [scene[name] for name in CHANCES] == [document["total"][name] for name in CHANCES] == [None] * 3
    assert {(line["chance_now"], line["chance_after"]) for line in results(tmp_path, scene)} == {(None, None)}
    (summary,) = (path for path in tmp_path.glob("*.json"))
    summary.write_text(json.dumps({name: value for name, value in scene.items() if name not in CHANCES}))
    code, out, _ = run(*call, "--json")
    assert code == 0 and json.loads(out)["total"] == document["total"]
    code, out, _ = run(*call)
    assert code == 0 and "of cells now" not in out
    summary.write_text(json.dumps({**scene, "chance_now": "often"}))
    assert run(*call)[0] == 3


def test_a_plan_is_carried_out_as_it_stands_in_the_file(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    assert run("plan", model, scenes["plain"], scenes["utm"], "--out", tmp_path)[0] == 0
    document = json.loads((tmp_path / "plan.json").read_text())
    other = document["scenes"].pop()
    document["scenes"][0]["chosen"] = [[3, [0, 5]], [7, [15]]]
    (tmp_path / "plan.json").write_text(json.dumps(document))
    flags = ("--out", tmp_path / "out", "--plan", tmp_path / "plan.json", "--json")
    code, out, _ = run("predict", model, scenes["plain"], *flags)
    (scene,) = json.loads(out)["scenes"]
    assert code == 0 and scene["patches"] == 3
    chosen = {line["cell"]: line["patches"] for line in results(tmp_path / "out", scene) if line["patches"]}
    assert chosen == {3: [0, 5], 7: [15]}
    code, _, err = run("predict", model, scenes["utm"], *flags)
    assert code == 3 and "utm.tif: is not in" in err
    code, _, err = run("predict", model, scenes["plain"], "--stage", "pt", *flags)
    assert code == 2 and "was made with another training" in err
    for chosen, words in (
        ([[16, [0]]], "plain.tif: its plan names cell 16, the scene has 16"),
        ([[-1, [0]]], "plain.tif: its plan names cell -1, the scene has 16"),
        ([[2, [3, 16]]], "plain.tif: its plan names patch 16 of cell 2, the grid has 16"),
    ):
        both = document | {"scenes": [document["scenes"][0] | {"chosen": chosen}, other]}
        (tmp_path / "plan.json").write_text(json.dumps(both))
        both_scenes = (scenes["plain"], scenes["utm"])
        code, out, err = run("predict", model, *both_scenes, "--out", tmp_path / f"b{chosen[0][0]}", *flags[2:])
        assert code == 4 and err.count("\n") == 1 and words in err
        assert [Path(s["scene"]).name for s in json.loads(out)["scenes"]] == ["utm.tif"]
    document["scenes"][0]["version"] = "another"
    (tmp_path / "plan.json").write_text(json.dumps(document))
    code, _, err = run("predict", model, scenes["plain"], "--out", tmp_path / "new", *flags[2:])
    assert code == 3 and "is not the file that was planned" in err
    (tmp_path / "plan.json").write_text("{}")
    code, _, err = run("predict", model, scenes["plain"], *flags)
    assert code == 2 and "is no plan.json of `patchdrop plan`" in err


def test_the_dial_caps_each_cell_and_plan_and_prediction_agree_under_it(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    def of(command: str, name: str, *flags: object) -> dict[str, Any]:
        code, out, err = run(command, model, scenes["plain"], "--out", tmp_path / name, "--json", *flags)
        assert code == 0, err
        return json.loads(out)

    planned = of("plan", "plan", "--budget", 3, "--threshold", 0)
    assert planned["choice"] == "at most 3 patches, threshold 0"
    assert [len(patches) for _, patches in planned["scenes"][0]["chosen"]] == [3] * 16
    read = of("predict", "out", "--budget", 3, "--threshold", 0)
    assert read["total"] == planned["total"]
    by_plan = of("predict", "by_plan", "--plan", tmp_path / "plan" / "plan.json")
    same = [results(tmp_path / name, d["scenes"][0]) for name, d in (("out", read), ("by_plan", by_plan))]
    assert same[0] == same[1]
    assert of("plan", "none", "--threshold", 1)["total"]["patches"] == 0
    with_plan = ("predict", model, scenes["plain"], "--out", tmp_path / "out", "--budget", 2)
    code, _, err = run(*with_plan, "--plan", tmp_path / "plan" / "plan.json")
    assert code == 2 and "says what is read" in err
    code, _, err = run(*with_plan)
    assert code == 2 and "holds results of another run, stage, dial, plan or tariff" in err


def test_scenes_take_the_calibrated_point_and_its_stage(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    calibrated = Path(shutil.copytree(model, tmp_path / "model"))
    flags = (scenes["plain"], "--out", tmp_path / "plan", "--calibrated", "--json")
    code, _, err = run("plan", calibrated, *flags)
    assert code == 3 and "make one with `patchdrop calibrate`" in err
    curve = dict.fromkeys(("mean_patches", "hr_fraction", "accuracy"), 0.5) | {"ci95": [0.4, 0.6]}
    points = [curve | {"cut": cut, "threshold": budget.probability_of(cut)} for cut in (budget.NONE, 0.4)]
    document = {
        "stage": "pt",
        "sha256": RunFolder(calibrated).stage_config("pt")["sha256"],
        "points": points,
        "target": {"mean_budget": 4},
        "chosen": {"kind": "mean-budget", "point": 1},
        "images": {"data": "a", "split": "test", "sha256": "b", "seed": 0, "n": 9, "fraction": 1},
    }
    (calibrated / "calibration.json").write_text(json.dumps(document))
    code, out, _ = run("plan", calibrated, *flags)
    planned = json.loads(out)
    assert code == 0 and planned["stage"] == "pt" and planned["choice"] == "calibrated, threshold 0.59868766"
    scene = TiledScene(LocalFile(scenes["plain"]), SHAPE)
    loaded, _ = RunFolder(model).load("pt")
    with torch.inference_mode():
        expected = loaded.policy(scene.look(range(scene.cells)).low) >= 0.4
    chosen = dict(planned["scenes"][0]["chosen"])
    assert chosen == {i: row.nonzero().flatten().tolist() for i, row in enumerate(expected) if row.any()}


def test_a_finished_scene_is_never_read_again_and_one_that_was_stopped_begins_anew(
    model: Path, server: RangeServer, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = [server.url("utm.tif"), server.url("plain.tif")]
    with monkeypatch.context() as broken:
        classify = predict._classify

        def stop(model: Any, scene: TiledScene, decided: Any) -> Any:
            if "plain" in scene.name and decided.group.start:
                raise KeyboardInterrupt
            return classify(model, scene, decided)

        broken.setattr(predict, "_classify", stop)
        assert run("predict", model, *urls, "--out", tmp_path)[0] == 130
    assert {p.name.partition("-")[0] for p in tmp_path.iterdir()} == {"utm"}
    server.reset()
    code, out, _ = run("predict", model, *urls, "--out", tmp_path, "--json")
    assert code == 0 and {a.path for a in server.asked} == {"plain.tif"}
    first = json.loads(out)
    server.reset()
    code, out, _ = run("predict", model, *urls, "--out", tmp_path, "--json")
    assert code == 0 and server.asked == [] and json.loads(out) == first
    code, _, err = run("predict", model, urls[0], "--out", tmp_path, "--stage", "pt")
    assert code == 2 and "holds results of another run, stage, dial, plan or tariff" in err


def test_a_finished_scene_that_has_changed_is_read_again_and_a_damaged_result_is_one_line(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    mine = {name: Path(shutil.copy(path, tmp_path)) for name, path in scenes.items()}
    call = ("predict", model, *mine.values(), "--out", tmp_path / "out", "--json")
    code, out, _ = run(*call)
    first = json.loads(out)
    assert code == 0
    code, out, err = run(*call)
    assert (code, err) == (0, "") and json.loads(out) == first
    write_cog(mine["plain"], picture(256, 256, seed=9), where={})
    code, out, err = run(*call)
    again = json.loads(out)
    assert code == 0 and err.count("\n") == 1 and "plain.tif: has changed since" in err and "is read again" in err
    assert again["scenes"][0] == first["scenes"][0] and again["scenes"][1]["version"] != first["scenes"][1]["version"]
    assert run(*call)[2] == ""
    write_cog(mine["plain"], picture(256, 192, seed=9), where={})
    code, out, _ = run(*call[:-1], "--format", "jsonl", "--json")
    again = json.loads(out)
    assert code == 0 and [p.suffix for p in sorted((tmp_path / "out").glob("plain-*"))] == [".json", ".jsonl"]
    call = (*call[:-1], "--format", "jsonl", "--json")
    mine["plain"].unlink()  # what is gone cannot be read again
    assert run(*call)[2] == "" and json.loads(run(*call)[1]) == again
    (result,) = (tmp_path / "out").glob("plain-*.json")
    for damaged in ("{", "[]", "{}", json.dumps(again["scenes"][1] | {"execution": {}}), json.dumps({"files": 3})):
        result.write_text(damaged)
        code, out, err = run(*call)
        assert code == 4 and err.count("\n") == 1 and f"{result}: is damaged; remove it" in err
        assert json.loads(out)["scenes"] == first["scenes"][:1]


def test_one_bad_scene_is_reported_and_the_others_finish(
    model: Path, server: RangeServer, run: Run, tmp_path: Path
) -> None:
    server.files["bad.tif"] = b"<VRTDataset/>" + bytes(100)
    urls = [server.url("bad.tif"), server.url("plain.tif"), server.url("missing.tif")]
    for command in ("plan", "predict"):
        code, out, err = run(command, model, *urls, "--out", tmp_path / command, "--json")
        document = json.loads(out)
        assert code == 4 and [Path(s["scene"]).name for s in document["scenes"]] == ["plain.tif"]
        assert len(document["failed"]) == 2
        assert "bad.tif: no TIFF file" in err and "missing.tif: no such file" in err
    code, out, _ = run("predict", model, urls[0], "--out", tmp_path / "none", "--json")
    assert code == 3 and json.loads(out)["scenes"] == []
    assert not (tmp_path / "none").exists()


def test_a_slow_server_ends_at_the_limit_that_was_given(
    model: Path, server: RangeServer, run: Run, tmp_path: Path
) -> None:
    server.delay = 1.0
    code, _, err = run("predict", model, server.url("plain.tif"), "--out", tmp_path, "--limit", "0.2")
    assert code == 3 and "took more than 0.2 s" in err and "--limit" in err


def test_a_scene_replaced_in_mid_run_leaves_no_result(
    model: Path, server: RangeServer, run: Run, tmp_path: Path
) -> None:
    def swap(handler: Any, _: Any) -> bool:
        if len(server.asked) >= 4:
            server.etags["plain.tif"] = '"newer"'
        return False

    server.misbehave = swap
    code, _, err = run("predict", model, server.url("plain.tif"), "--out", tmp_path)
    assert code == 3 and "was replaced while it was being read" in err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predict", "RUN", "a.png", "--gap", "5"], "for scenes, and the inputs are 1 image file"),
        (["predict", "RUN", "http://h/a.tif", "--out", "o", "--overlay", "p"], "--overlay: for image files"),
        (["predict", "RUN", "ftp://h/a.tif", "--out", "o"], "begins with http:// or https://"),
        (["plan", "RUN", "a.tif"], "--out"),
        (["plan", "RUN", "a.tif", "--out", "o", "--budget", "17"], "budget: 17 is out of range"),
        (
            ["plan", "RUN", "a.tif", "--out", "o", "--mean-budget", "3"],
            "needs all images at once; calibrate the run with it",
        ),
        (["plan", "RUN", "a.tif", "--out", "o", "--gap", "-1"], "gap"),
        (["plan", "RUN", "a.tif", "--out", "o", "--limit", "0"], "limit"),
        (["plan", "RUN", "a.tif", "--out", "o", "--limit", "inf"], "limit"),
        (["plan", "RUN", "http://h/a?v=1", "http://h/a?v=2", "--out", "o"], "http://h/a: is named twice"),
        (["check", "a.tif", "--high", "x"], "high"),
        (["predict", "RUN", "a.tif", "--out", "o", "--format", "shp"], "format"),
        (["predict", "RUN", "a.png", "--format", "csv"], "name a folder for them with --out"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_wrong_call_is_one_line_and_exits_with_2(
    model: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*[str(model) if a == "RUN" else a for a in arguments])
    assert code == 2 and out == "" and err.count("\n") == 1 and words in err
    assert list(tmp_path.iterdir()) == []


def test_scenes_of_odd_names_and_of_one_name_have_their_own_results(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [os.fsdecode(b"a\n\xff.tif"), "\u00e9" * 125 + ".tif"]
    for name in names:
        shutil.copy(scenes["plain"], tmp_path / name)
    for folder, scene in (("1", "plain"), ("2", "utm")):
        (tmp_path / folder).mkdir()
        shutil.copy(scenes[scene], tmp_path / folder / "a.tif")
        monkeypatch.chdir(tmp_path / folder)
        code, out, _ = run("predict", model, "a.tif", *(["../" + n for n in names]), "--out", "../out", "--json")
        found = [s["cells"] for s in json.loads(out.encode())["scenes"]]
        assert code == 0 and found == [{"1": 16, "2": 35}[folder], 16, 16]
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 4


def test_an_out_that_is_a_file_is_one_line(model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path) -> None:
    (tmp_path / "out").touch()
    for command in ("plan", "predict"):
        code, out, err = run(command, model, scenes["plain"], "--out", tmp_path / "out")
        assert code == 3 and out == "" and err.count("\n") == 1 and "cannot be written" in err


@pytest.mark.parametrize("text", ['{"gap": Infinity}', "[" * 10**5])
def test_a_plan_of_nonsense_is_one_line(model: Path, run: Run, tmp_path: Path, text: str) -> None:
    head = '{"stage": "ft2", "sha256": "", "scenes": [], '
    (tmp_path / "plan.json").write_text(text.replace("{", head))
    code, _, err = run("predict", model, "a.tif", "--out", tmp_path, "--plan", tmp_path / "plan.json")
    assert code == 2 and err.count("\n") == 1 and "--plan" in err


# --- areas


def area(ring: list[list[float]]) -> float:
    return sum(x * v - u * y for (x, y), (u, v) in itertools.pairwise(ring)) / 2


def test_areas_are_in_crs84_counter_clockwise_and_cover_the_chosen_patches(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    assert run("plan", model, *scenes.values(), "--out", tmp_path)[0] == 0
    planned = json.loads((tmp_path / "plan.json").read_text())["scenes"]
    for scene, kind in zip(planned, ("CRS84", "pixels"), strict=True):
        collection = json.loads((tmp_path / scene["areas"]).read_text())
        assert collection["type"] == "FeatureCollection"
        assert collection.get("coordinates") == (None if kind == "CRS84" else "pixels")
        assert scene["coordinates"] == kind
        found: dict[int, list[int]] = {}
        for shape in collection["features"]:
            (ring,) = shape["geometry"]["coordinates"]
            assert shape["type"] == "Feature" and shape["geometry"]["type"] == "Polygon"
            assert ring[0] == ring[-1] and len(ring) == 5 and area(ring) > 0
            if kind == "CRS84":
                assert all(13.7 < x < 13.8 and 45.1 < y < 45.2 for x, y in ring)
            else:
                assert area(ring) == 256 * len(shape["properties"]["patches"])
            found.setdefault(shape["properties"]["cell"], []).extend(shape["properties"]["patches"])
        assert sorted(found.items()) == [(cell, patches) for cell, patches in scene["chosen"]]


@pytest.mark.parametrize(
    "tariff",
    [
        {"per_km2": [{"from": 0, "to": 0.1, "price": 14}, {"from": 0.1, "price": 9}], "minimum_km2": 0.02},
        {"per_scene": 300},
        {"per_gb": 0.09, "per_1000_requests": 0.4},
    ],
    ids=lambda tariff: next(iter(tariff)),
)
def test_a_prediction_costs_the_money_of_its_plan_and_its_areas_add_up(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path, tariff: dict[str, Any]
) -> None:
    file = tmp_path / "tariff.yaml"
    file.write_text(json.dumps({"currency": "EUR", **tariff}))  # JSON is YAML
    flags = ("--out", tmp_path / "plan", "--tariff", file, "--latency", 100, "--bandwidth", 8, "--json")
    code, out, _ = run("plan", model, scenes["utm"], *flags)
    planned = json.loads(out)
    assert code == 0
    for more in (("--plan", tmp_path / "plan" / "plan.json"), ("--tariff", file)):
        code, out, _ = run("predict", model, scenes["utm"], "--out", tmp_path / more[0], *more, "--json")
        read = json.loads(out)
        assert code == 0 and read["bill"] == planned["bill"] and read["tariff"] == planned["tariff"]
    (scene,) = planned["scenes"]
    bill, cost = scene["bill"], scene["execution"]["total"]
    # 300 x 420 px of 2 m; UTM's scale is 0.9997 there.
    assert bill["everything_km2"] == pytest.approx(0.504 / 0.9997**2, rel=1e-3)
    assert 0 < bill["chosen_km2"] < bill["everything_km2"] and bill["money"] > 0
    if "per_gb" not in tariff:  # everything is read in fewer, longer ranges
        assert bill["money"] <= bill["everything_money"]
    seconds = cost["requests"] * 0.1 + cost["bytes"] / 1e6
    assert scene["estimate"]["seconds"] == pytest.approx(seconds) and scene["estimate"]["networks"] == "left out"
    shapes = json.loads((tmp_path / "plan" / scene["areas"]).read_text())["features"]
    if "per_gb" in tariff:
        assert bill["money"] == pytest.approx(0.09 * cost["bytes"] / 1e9 + 0.4 * cost["requests"] / 1000)
        assert bill["ordered_km2"] is None and all("cell" in shape["properties"] for shape in shapes)
        return
    values = [shape["properties"] for shape in shapes]
    assert sum(v["price"] for v in values) == pytest.approx(bill["money"])
    assert sum(v["km2"] for v in values) == pytest.approx(bill["ordered_km2"]) and values[0]["currency"] == "EUR"
    for shape in shapes:
        outer, *holes = shape["geometry"]["coordinates"]
        assert area(outer) > 0 and all(area(hole) < 0 for hole in holes)
        assert all(13.7 < x < 13.8 and 45.1 < y < 45.2 for x, y in outer)
    if "per_scene" in tariff:
        assert bill["money"] == 300 and bill["ordered_km2"] == bill["everything_km2"] and len(shapes) == 1


def test_a_price_by_area_needs_a_georeference_and_a_plan_brings_its_own_tariff(
    model: Path, scenes: dict[str, Path], run: Run, tmp_path: Path
) -> None:
    file = tmp_path / "tariff.yaml"
    file.write_text("{currency: EUR, per_km2: 3}")
    code, _, err = run("plan", model, scenes["plain"], "--out", tmp_path / "plan", "--tariff", file)
    assert code == 3 and err.count("\n") == 1 and "has no georeference" in err
    code, _, err = run("predict", model, "a.tif", "--out", tmp_path, "--plan", "p", "--tariff", file)
    assert code == 2 and "a plan brings its own" in err
    file.write_text("{currency: EUR, per_km2: -3}")
    code, _, err = run("plan", model, scenes["plain"], "--out", tmp_path / "plan", "--tariff", file)
    assert code == 2 and err.count("\n") == 1 and "tariff.yaml: per_km2: -3 is out of range" in err


def test_corners_lie_where_rasterio_says() -> None:
    matrix = (2.0, 0.5, 400_000.0, 0.25, -2.0, 5_000_000.0)  # rotated
    (ring,) = Places(Georeference(matrix, 32633), "a").polygon((10, 20, 30, 60))["coordinates"]
    transform = rasterio.Affine(*matrix)
    xs, ys = zip(*(transform @ corner for corner in ((20, 10), (20, 30), (60, 30), (60, 10))), strict=True)
    theirs = rasterio.warp.transform("EPSG:32633", "OGC:CRS84", xs, ys)
    assert np.allclose(ring[:4], np.array(theirs).T, atol=1e-7)


@pytest.mark.parametrize("epsg", [3857, 4326, 32701])
def test_a_box_across_the_180th_meridian_is_two_polygons_on_its_two_sides(epsg: int) -> None:
    west = rasterio.warp.transform("OGC:CRS84", f"EPSG:{epsg}", [179.9], [-17.0])
    side = 0.02 if epsg == 4326 else 2000
    matrix = (side, 0.0, west[0][0], 0.0, -side, west[1][0])
    geometry = Places(Georeference(matrix, epsg), "a").polygon((0, 0, 10, 10))
    (first,), (second,) = geometry["coordinates"]
    assert geometry["type"] == "MultiPolygon"
    for ring in (first, second):
        assert ring[0] == ring[-1] and area(ring) > 0 and len({x > 0 for x, _ in ring}) == 1
    assert max(x for x, _ in first) == 180 and min(x for x, _ in second) == -180
    total = area(first) + area(second)
    assert total == pytest.approx(side**2 * 100 if epsg == 4326 else 0.033, rel=0.2)
    below = Places(Georeference((matrix[0], 0.0, matrix[2] - 20 * side, *matrix[3:]), epsg), "a").polygon((0, 0, 5, 5))
    assert below["type"] == "Polygon"


@pytest.mark.parametrize(("hole", "holes"), [((2, 8), 0), ((1, 4), 1)])
def test_an_area_with_a_hole_is_cut_at_the_180th_meridian_too(hole: tuple[int, int], holes: int) -> None:
    def square(low: float, high: float) -> list[tuple[float, float]]:
        return [(low, low), (low, high), (high, high), (high, low)]

    places = Places(Georeference((0.02, 0.0, 179.9, 0.0, -0.02, -17.0), 4326), "a")
    parts = places.outline([square(0, 10), square(*hole)])["coordinates"]
    assert len(parts) == 2 and sum(len(part) - 1 for part in parts) == holes
    found = sum(area(ring) for part in parts for ring in part)
    assert found == pytest.approx(0.02**2 * (100 - (hole[1] - hole[0]) ** 2))
    assert all(area(outer) > 0 and all(area(ring) < 0 for ring in inner) for outer, *inner in parts)


@pytest.mark.parametrize(
    ("epsg", "left", "top", "sign", "wide"),
    [
        (3413, -5000.0, 5000.0, 1, 360),  # the pole is the box's centre
        (3413, -2000.0, 9000.0, 1, 360),
        (3031, -9500.0, 500.0, -1, 360),
        (3413, 0.0, 10_000.0, 1, 90),  # a corner
        (3413, -10_000.0, 0.0, 1, 90),
        (3031, 1000.0, 5000.0, -1, 180),  # beside it
    ],
)
def test_a_box_over_a_pole_is_a_valid_polygon_that_reaches_it(
    epsg: int, left: float, top: float, sign: int, wide: float
) -> None:
    places = Places(Georeference((100.0, 0.0, left, 0.0, -100.0, top), epsg), "a")
    geometry = places.polygon((0, 0, 100, 100))
    shape = shapely.geometry.shape(geometry)
    assert shape.is_valid and shape.bounds[0] >= -180 and shape.bounds[2] <= 180
    width = sum(part.bounds[2] - part.bounds[0] for part in shapely.get_parts(shape))
    assert width == pytest.approx(wide) if wide != 180 else width < 180
    assert (sign * max(sign * shape.bounds[1], sign * shape.bounds[3]) == 90 * sign) == (wide != 180)
    if wide == 360:  # every place next to the pole, and none far away
        assert all(shape.covers(shapely.Point(x, sign * 89.9999)) for x in range(-175, 180, 10))
        assert not any(shape.covers(shapely.Point(x, sign * 89.8)) for x in range(-175, 180, 10))


def test_longitudes_from_0_to_360_are_brought_back_and_half_the_globe_stays_one_box() -> None:
    east = Places(Georeference((1.0, 0.0, 200.0, 0.0, -1.0, 10.0), 4326), "a").polygon((0, 0, 10, 10))
    assert east["coordinates"][0][0] == [-160, 10]
    globe = Places(Georeference((1.0, 0.0, -180.0, 0.0, -1.0, 90.0), 4326), "a").polygon((0, 0, 180, 360))
    assert {tuple(p) for p in globe["coordinates"][0]} == {(-180, 90), (-180, -90), (180, -90), (180, 90)}


@pytest.mark.parametrize(
    ("epsg", "top", "words"),
    [(4326, 5e6, "leads off the Earth"), (5773, 0.0, "no known"), (4978, 0.0, "no known"), (9999, 0.0, "no known")],
)
def test_a_georeference_that_is_none_is_one_line(epsg: int, top: float, words: str) -> None:
    with pytest.raises(DataError, match=words):
        Places(Georeference((1.0, 0.0, 0.0, 0.0, -1.0, top), epsg), "a").polygon((0, 0, 10, 10))


# --- check


def test_check_reads_the_header_only_and_says_what_a_patch_costs(
    server: RangeServer, scenes: dict[str, Path], run: Run
) -> None:
    code, out, _ = run("check", server.url("utm.tif"), "--high", 512, "--low", 128, "--json")
    assert code == 3  # smaller than one cell
    server.reset()
    code, out, _ = run("check", server.url("plain.tif"), "--high", 256, "--low", 64, "--grid", 2, "--json")
    (found,) = json.loads(out)["scenes"]
    assert code == 0 and found["fit"] and found["aligned"] and found["advice"] == []
    assert found["header"] == {"requests": len(server.asked), "bytes": server.sent}
    full = TiledScene(LocalFile(scenes["plain"]), SHAPE).full
    assert found["bytes_per_patch"] == pytest.approx(full.counts.mean(), abs=0.1)
    assert found["tiles_per_patch"] == 1
    assert (
        found["low"] == {**found["overviews"][0], "wanted": 4}
        and found["compression"] == "jpeg"
        and found["georeference"] is None
    )


def test_checks_advice_makes_a_file_fit(run: Run, tmp_path: Path) -> None:
    """The options it gives to gdal_translate, given to the same driver here."""
    path = tmp_path / "strips.tif"
    bands4 = {"count": 4, "height": 700, "width": 900, "dtype": "uint8", "photometric": "MINISBLACK", "ALPHA": "NO"}
    with rasterio.open(path, "w", driver="GTiff", **bands4) as file:
        file.write(picture(700, 900, 4))
    flags = ("--high", "512", "--low", "128", "--json")
    code, out, _ = run("check", path, *flags)
    (found,) = json.loads(out)["scenes"]
    assert code == 3 and not found["fit"] and "strips" in found["reasons"][0]
    words = shlex.split(found["advice"][0])
    assert words[:3] == ["gdal_translate", "-of", "COG"] and words[-2:] == [str(path), "fit.tif"]
    options = dict(w.split("=") for flag, w in itertools.pairwise(words) if flag == "-co")
    bands = [int(w) for flag, w in itertools.pairwise(words) if flag == "-b"]
    with rasterio.open(path) as file:
        pixels = file.read(bands)
    with rasterio.open(tmp_path / "b.tif", "w", driver="GTiff", count=3, height=700, width=900, dtype="uint8") as file:
        file.write(pixels)
    copy(tmp_path / "b.tif", tmp_path / "fit.tif", driver="COG", **options)
    code, out, _ = run("check", tmp_path / "fit.tif", *flags)
    (found,) = json.loads(out)["scenes"]
    assert code == 0 and found["fit"] and found["aligned"] and found["low"]["factor"] == pytest.approx(4, rel=0.01)


def test_check_of_nodata_that_is_no_number_is_still_json(run: Run, tmp_path: Path) -> None:
    profile = {"count": 1, "height": 256, "width": 256, "dtype": "float32", "tiled": True, "nodata": np.nan}
    with rasterio.open(tmp_path / "a.tif", "w", driver="GTiff", **profile) as file:
        file.write(np.zeros((1, 256, 256), np.float32))
    code, out, _ = run("check", tmp_path / "a.tif", "--json")
    assert code == 3 and "NaN" not in out and json.loads(out)["scenes"][0]["nodata"] == "nan"


def test_checks_exit_code_tells_all_some_and_none(
    scenes: dict[str, Path], model: Path, run: Run, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.tif"
    bad.write_bytes(b"not a picture at all")
    assert run("check", *scenes.values(), "--run", model)[0] == 0
    code, out, err = run("check", scenes["utm"], bad, "--run", model)
    assert code == 4 and "no TIFF file" in out and "bad.tif" in err
    assert run("check", bad, "--run", model)[0] == 3
