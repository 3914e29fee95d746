"""Whole slides through OpenSlide: the pixels of our own reader, regions counted, and never a byte that was not."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio.shutil import copy

from patchdrop.data.markers import CLASSES as SCENE_CLASSES
from patchdrop.errors import DataError
from patchdrop.grid import Grid, Shape
from patchdrop.models.build import build_stage
from patchdrop.read.slide import SlideFile, SlideScene, slide_instead
from patchdrop.read.tiled import TiledScene
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.flat import from_mapping, read_profile
from patchdrop.transport.ranges import LocalFile
from pyramids import picture, write_slide
from tiny import config_of, tiny_settings, unsettle, with_networks

openslide = pytest.importorskip("openslide")
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
PAGE = (Path(__file__).parent.parent / "docs" / "slides.md").read_text(encoding="utf-8")
SHAPE = Shape((64, 64), (16, 16), Grid(4, 4), 3)
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Glass without tissue on the left."""
    pixels = picture(256, 320, seed=4)
    pixels[:, :, :128] = 240
    return write_slide(tmp_path_factory.mktemp("slide") / "slide.tif", pixels)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was not trained, whose policy chooses nothing on bright glass and patches elsewhere."""
    folder = RunFolder(tmp_path_factory.mktemp("model"))
    settings = tiny_settings(high="64", low="16", policy_head="global")
    folder.start(settings.to_mapping())
    config = config_of(settings)
    torch.manual_seed(0)
    module = unsettle(build_stage("ft2", config), 0)
    for name, tensor in module.state_dict().items():
        if name.endswith(("normalise.mean", "normalise.std")):
            tensor.fill_(100.0 if name.endswith("mean") else 50.0)
    folder.finish("ft2", module, config, {"figures": {}, "seconds": 0.0})
    return folder.path


def test_openslide_and_our_reader_see_the_same(slide: Path, tmp_path: Path) -> None:
    """The same pyramid without the label, which our own reader takes."""
    plain = tmp_path / "plain.tif"
    copy(slide, plain, driver="GTiff", TILED="YES", BLOCKXSIZE="64", BLOCKYSIZE="64", COPY_SRC_OVERVIEWS="YES")
    ours, theirs = TiledScene(LocalFile(plain), SHAPE), SlideScene(SlideFile(str(slide)), SHAPE)
    assert ours.cells == theirs.cells == 20
    assert [ours.cell_box(c) for c in range(20)] == [theirs.cell_box(c) for c in range(20)]
    assert torch.equal(ours.look(range(20)).low, theirs.look(range(20)).low)
    choice = torch.rand(20, 16, generator=torch.Generator().manual_seed(0)) < 0.3
    read = theirs.reader(range(20))(choice)
    assert torch.equal(ours.reader(range(20))(choice).pixels, read.pixels)
    ledger = theirs.transport.ledger
    assert ledger.of("overview") == (20, 20 * 16 * 16)
    assert ledger.of("patch") == (len(read.pixels), len(read.pixels) * 16 * 16)


def test_check_plan_and_predict_count_regions_and_report_no_bytes(
    slide: Path, model: Path, run: Run, tmp_path: Path
) -> None:
    code, out, err = run("check", slide, "--run", model, "--json")
    (checked,) = json.loads(out)["scenes"]
    assert code == 0 and checked["slide"] == "generic-tiff" and checked["low"]["factor"] == 4, err
    assert "bytes_per_patch" not in checked
    code, out, _ = run("plan", model, slide, "--out", tmp_path / "plan", "--json")
    planned = json.loads(out)
    flags = ("--out", tmp_path / "found", "--plan", tmp_path / "plan" / "plan.json")
    code, out, _ = run("predict", model, slide, *flags, "--json")
    read = json.loads(out)
    assert code == 0 and read["total"] == planned["total"]
    (scene,) = read["scenes"]
    assert scene["execution"] == planned["scenes"][0]["execution"]
    assert scene["execution"]["patch"] == {"regions": scene["patches"], "pixels": scene["patches"] * 16 * 16}
    assert "bytes" not in json.dumps([scene["execution"], scene["everything"], read["total"]])
    assert 0 < read["total"]["pixels"] < read["total"]["everything_pixels"] == 20 * 64 * 64
    assert scene["coordinates"] == "pixels" and scene["cells"] == 20
    for command in (["check", slide, "--run", model], ["predict", model, slide, *flags]):
        code, out, _ = run(*command)
        assert code == 0 and ("not counted" in out or "bytes cannot be" in out)


def test_a_slide_has_a_picture_a_map_and_a_price_but_no_price_of_bytes(
    slide: Path, model: Path, run: Run, tmp_path: Path
) -> None:
    tariff = tmp_path / "tariff.yaml"
    tariff.write_text("{currency: EUR, per_scene: 30}")
    code, out, err = run("plan", model, slide, "--out", tmp_path / "plan", "--tariff", tariff, "--json")
    planned = json.loads(out)
    assert code == 0 and planned["bill"]["money"] == 30, err
    assert planned["scenes"][0]["estimate"] is None
    code, out, err = run("plan", model, slide, "--out", tmp_path / "plan", "--tariff", tariff)
    assert code == 0 and "30.00" in out, err
    flags = ("--out", tmp_path / "found", "--plan", tmp_path / "plan" / "plan.json", "--format", "png", "map", "--json")
    code, out, err = run("predict", model, slide, *flags)
    read = json.loads(out)
    assert code == 0 and read["bill"] == planned["bill"], err
    files = read["scenes"][0]["files"]
    assert Image.open(tmp_path / "found" / files["png"]).format == "PNG"
    with rasterio.open(tmp_path / "found" / files["map"]) as found:
        assert found.shape == (256 / 16, 320 / 16)
    tariff.write_text("{currency: EUR, per_gb: 1}")
    code, _, err = run("predict", model, slide, "--out", tmp_path / "none", "--tariff", tariff)
    assert code == 3 and "what OpenSlide reads of it is not known" in err and err.count("\n") == 1


def test_glass_of_which_nothing_is_chosen_costs_no_region(slide: Path) -> None:
    scene = SlideScene(SlideFile(str(slide)), SHAPE)
    tissue = scene.look(range(20)).low.float().std((1, 2, 3)) > 8
    assert 0 < int(tissue.sum()) < 20
    packed = scene.reader(range(20))(tissue.unsqueeze(1).expand(20, 16))
    assert set(packed.image.tolist()) == set(tissue.nonzero().flatten().tolist())
    assert scene.transport.ledger.of("patch").regions == 16 * int(tissue.sum())


def test_a_slide_that_does_not_fit_and_a_file_that_is_none_are_one_line(slide: Path, run: Run, tmp_path: Path) -> None:
    code, out, _ = run("check", slide, "--high", 64, "--low", 48, "--json")
    assert code == 3 and "no level between level 0 and LR" in json.loads(out)["scenes"][0]["reasons"][0]
    text = tmp_path / "a.svs"
    text.write_text("not a slide")
    code, out, err = run("check", text, "--json")
    assert code == 3 and "no TIFF file" in err and err.count("\n") == 1


def test_without_openslide_a_slides_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openslide", None)
    refused = DataError("x: no TIFF file")
    with pytest.raises(DataError, match=r"no TIFF file; whole slides need `pip install 'patchdrop\[slides\]'`"):
        slide_instead("x.mrxs", refused)
    with pytest.raises(DataError, match=r"no TIFF file$"):
        slide_instead("x.tif", refused)


def test_nothing_scanned_is_black_and_unseen(slide: Path) -> None:
    """Beyond the slide's border, where OpenSlide's pixels are transparent."""
    pixels = SlideFile(str(slide)).region(0, (250, 310, 270, 330), "patch")
    assert pixels.seen is not None and int(pixels.seen.sum()) == 6 * 10
    assert not pixels.values[:, ~pixels.seen].any() and np.asarray(pixels.values).max() > 0


def test_the_worked_example_runs_as_it_stands(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With networks of the demo's sizes that were not trained."""
    monkeypatch.chdir(tmp_path)
    settings = with_networks(from_mapping(read_profile("demo"), "demo"))
    folder = RunFolder("demo")
    folder.start(settings.to_mapping())
    config = config_of(settings, SCENE_CLASSES)
    folder.finish("ft2", unsettle(build_stage("ft2", config)), config, {"figures": {}, "seconds": 0.0})
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    exec(compile(next(body for language, body in blocks if language == "python"), "slides.md", "exec"), {})
    documents = []
    for line in next(body for language, body in blocks if not language).splitlines():
        code, out, err = run(*shlex.split(line)[1:], "--json")
        assert code == 0, err
        documents.append(json.loads(out))
    assert documents[0]["scenes"][0]["slide"] == "generic-tiff"
    assert documents[1]["total"] == documents[2]["total"] and documents[2]["total"]["cells"] == 144
