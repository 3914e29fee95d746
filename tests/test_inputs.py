"""What the inputs of `predict` are is found by looking at them."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from patchdrop.cli import BAD_INPUT, DONE, USAGE, main
from patchdrop.errors import DataError, UsageError
from patchdrop.read.inputs import Inputs, inputs_of
from tiny import SIDE, TINY, tiny_flags, write_folder

HIGH = (16, 16)
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


def picture(path: Path, side: int = 20) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((side, side, 3), 90, dtype=np.uint8)).save(path)
    return str(path)


def tiff(path: Path, side: int, placed: bool = False, tiled: bool = True) -> str:
    """A TIFF of noise, in tiles of 16 px or in strips."""
    where = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000, 1, 1)} if placed else {}
    tiles = {"tiled": True, "blockxsize": 16, "blockysize": 16} if tiled else {}
    pixels = np.random.default_rng(0).integers(0, 256, (3, side, side), dtype=np.uint8)
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", interleave="pixel", **tiles, **where
    ) as file:
        file.write(pixels)
        if tiled and side >= 32:
            file.build_overviews([2], rasterio.enums.Resampling.average)
    return str(path)


def test_a_folder_stands_for_its_images_and_a_pattern_for_its_files(tmp_path: Path) -> None:
    names = [picture(tmp_path / name) for name in ("a/1.png", "a/b/2.jpg", "c.png")]
    (tmp_path / "notes.txt").write_text("no image")
    for hidden in ("a/._1.png", ".thumbs/t.png"):
        picture(tmp_path / hidden)
    assert inputs_of([str(tmp_path)], HIGH) == Inputs(sorted(names), [])
    assert inputs_of([str(tmp_path / "a" / "*.png"), names[2]], HIGH) == Inputs([names[0], names[2]], [])
    assert inputs_of([str(tmp_path / "**" / "*.jpg")], HIGH).images == [names[1]]


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tmp_path: Path) -> None:
    name = picture(tmp_path / "[1].png")
    assert inputs_of([name], HIGH) == Inputs([name], [])


def test_a_tiff_is_a_scene_where_it_has_a_place_or_many_cells(tmp_path: Path) -> None:
    placed = tiff(tmp_path / "placed.tif", 32, placed=True)
    large, small = tiff(tmp_path / "large.tif", 64), tiff(tmp_path / "small.tif", 32)
    strips = tiff(tmp_path / "strips.tif", 64, tiled=False)
    chip = tiff(tmp_path / "chip.tif", 16, placed=True)
    found = inputs_of([placed, large, small, strips, chip], HIGH)
    assert found == Inputs([small, chip], [placed, large, strips])
    assert str(found) == "2 image files and 3 scenes"


def test_urls_and_slides_are_scenes_and_what_is_not_there_is_left_to_whoever_reads_it(tmp_path: Path) -> None:
    gone = [str(tmp_path / name) for name in ("gone.tif", "gone.png")]
    remote = ["https://a.b/c.tif", "s3://x/y.png", "z.svs"]
    assert inputs_of([*remote, *gone], HIGH) == Inputs([gone[1]], [*remote, gone[0]])


def test_results_inside_a_named_folder_are_no_inputs(tmp_path: Path) -> None:
    name = picture(tmp_path / "a.png")
    picture(tmp_path / "out" / "a.png")
    assert inputs_of([str(tmp_path)], HIGH, [tmp_path / "out"]).images == [name]


def test_an_empty_folder_and_a_pattern_without_a_match_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no image"):
        inputs_of([str(tmp_path)], HIGH)
    with pytest.raises(UsageError, match="is empty"):
        inputs_of([""], HIGH)
    with pytest.raises(DataError, match="matches no file"):
        inputs_of([str(tmp_path / "*.png")], HIGH)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("inputs")
    data = write_folder(root / "data")
    stages = ["--stages", "lr", "hr", "patches", "pt"]
    flags = tiny_flags(**{**TINY, "data": str(data), "workers": 0, **{f"epochs_{s}": 1 for s in ("lr", "hr", "pt")}})
    assert main(["train", *flags, *stages, "--out", str(root / "run")]) == DONE
    return root / "run"


def test_images_and_scenes_go_into_one_folder_and_one_document(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, scene = picture(tmp_path / "in" / "a.png", SIDE), tiff(tmp_path / "in" / "b.tif", 64, placed=True)
    assert main(["predict", str(run), str(tmp_path / "in"), "--out", str(tmp_path / "out"), "--json"]) == DONE
    said = capsys.readouterr()
    assert "1 image file and 1 scene" in said.err
    document = json.loads(said.out)
    assert [row["path"] for row in document["predictions"]] == [image]
    assert [found["scene"] for found in document["scenes"]] == [scene]
    lines = [json.loads(line) for line in (tmp_path / "out" / "predictions.jsonl").read_text().splitlines()]
    assert lines == document["predictions"]
    with open(tmp_path / "out" / "predictions.csv", newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["label"] == lines[0]["label"] and row["patches"].split() == list(map(str, lines[0]["patches"]))
    assert list((tmp_path / "out").glob("b-*.jsonl"))


def test_without_a_folder_the_cells_of_a_scene_are_printed_and_nothing_is_left(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scene = tiff(tmp_path / "b.tif", 64, placed=True)
    monkeypatch.chdir(tmp_path)
    assert main(["predict", str(run), scene, "--json"]) == DONE
    (found,) = json.loads(capsys.readouterr().out)["scenes"]
    assert [cell["cell"] for cell in found["results"]] == list(range(found["cells"]))
    assert [path.name for path in tmp_path.iterdir()] == ["b.tif"]
    assert main(["predict", str(run), scene]) == DONE
    assert "probability" in capsys.readouterr().out


def test_flags_that_no_input_has_a_use_for_are_refused(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image, scene = picture(tmp_path / "a.png"), tiff(tmp_path / "b.tif", 64, placed=True)
    for flags in (
        [image, "--overlay", str(tmp_path)],
        [image, "--gap", "9"],
        [scene, "--overlay", "x"],
        [scene, "--scaled-low"],
        [],
    ):
        assert main(["predict", str(run), *flags]) == USAGE
        assert capsys.readouterr().err.strip().splitlines()[-1].startswith("error: ")
    assert main(["predict", str(run), str(tmp_path / "*.jpg")]) == BAD_INPUT
