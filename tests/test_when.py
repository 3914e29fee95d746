""" "When" for free: where no patch is chosen, no HR pixel is decoded and no HR layer runs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torch import Tensor, nn

from patchdrop.classify.two_stream import TwoStream
from patchdrop.data.low import area_average
from patchdrop.errors import UsageError
from patchdrop.models.build import build_stage
from patchdrop.policy.choice import Choose, keep_all
from patchdrop.read.images import read_image
from patchdrop.runs.folder import RunFolder
from patchdrop.serve.predictor import Predictor
from tiny import config_of, tiny_settings, unsettle

SIDE = 64


def nothing(logits: Tensor) -> Tensor:
    return torch.zeros_like(logits, dtype=torch.bool)


def only_second(logits: Tensor) -> Tensor:
    choice = nothing(logits)
    choice[1, :5] = True
    return choice


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Networks that were not trained, HR of 64 px and LR of 8 px, in Ft-2."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    settings = tiny_settings(high=str(SIDE))
    folder.start(settings.to_mapping())
    config = config_of(settings)
    torch.manual_seed(0)
    folder.finish("ft2", unsettle(build_stage("ft2", config)), config, {"figures": {}, "seconds": 0.0})
    return folder.path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Smooth JPEG images of 256 px, four times the size of HR."""
    root = tmp_path_factory.mktemp("photos")
    draw = np.random.default_rng(0)
    paths = [root / f"{i}.jpg" for i in range(3)]
    for path in paths:
        coarse = Image.fromarray(draw.integers(0, 256, (12, 12, 3), dtype=np.uint8))
        coarse.resize((256, 256), Image.Resampling.BICUBIC).save(path, quality=92)
    return paths


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Width of every JPEG at the moment its pixels are decoded."""
    widths: list[int] = []
    load = JpegImagePlugin.JpegImageFile.load

    def note(image: JpegImagePlugin.JpegImageFile) -> object:
        if image.tile:
            widths.append(image.width)
        return load(image)

    monkeypatch.setattr(JpegImagePlugin.JpegImageFile, "load", note)
    return widths


def serving(run: Path, choose: Choose, scaled_low: bool = False) -> tuple[Predictor, list[int]]:
    """A predictor, and the number of images in every call of every layer of its HR network."""
    predictor = Predictor(run, choose=choose, scaled_low=scaled_low)
    two = predictor.model.classifier
    assert isinstance(two, TwoStream)
    seen: list[int] = []

    def note(layer: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
        seen.append(len(output))

    for layer in two.high.modules():
        layer.register_forward_hook(note)
    return predictor, seen


def test_with_lr_files_nothing_of_hr_is_opened_or_computed_where_no_patch_is_chosen(
    run: Path, photos: list[Path], decoded: list[int]
) -> None:
    predictor, seen = serving(run, nothing)
    missing = [Path("/nowhere") / path.name for path in photos]
    found = predictor.predict(missing, low=photos)
    assert all(p.patches == () and p.hr_fraction == 0 for p in found)
    assert seen == []
    assert len(decoded) == 3  # the LR files


def test_in_a_mixed_batch_only_images_with_a_patch_are_opened_and_computed(
    run: Path, photos: list[Path], decoded: list[int]
) -> None:
    predictor, seen = serving(run, only_second)
    missing = Path("/nowhere/missing.jpg")
    mixed = predictor.predict([missing, photos[1], missing], low=photos)
    assert [len(p.patches) for p in mixed] == [0, 5, 0]
    assert seen
    assert set(seen) <= {1, 5}  # one image, or its five patches before they are laid on the canvas
    assert len(decoded) == 3 + 1
    alone = serving(run, nothing)[0].predict(photos, low=photos)
    assert [p.label for p in mixed[::2]] == [p.label for p in alone[::2]]
    assert [p.probability for p in mixed[::2]] == pytest.approx([p.probability for p in alone[::2]], abs=1e-6)


def test_a_jpeg_without_a_chosen_patch_is_never_decoded_whole_where_lr_is_made_at_a_reduced_scale(
    run: Path, photos: list[Path], decoded: list[int]
) -> None:
    predictor, seen = serving(run, nothing, scaled_low=True)
    predictor.predict(photos)
    assert decoded == [32, 32, 32]  # an eighth of 256 px, the smallest that JPEG gives
    assert seen == []
    decoded.clear()
    serving(run, only_second, scaled_low=True)[0].predict(photos)
    assert sorted(decoded) == [32, 32, 32, 256]


def test_lr_averaged_from_hr_is_not_free_but_the_hr_network_still_does_not_run(
    run: Path, photos: list[Path], decoded: list[int]
) -> None:
    predictor, seen = serving(run, nothing)
    predictor.predict(photos)
    assert decoded == [256, 256, 256]
    assert seen == []


def test_lr_at_a_reduced_scale_is_nearly_the_average_of_hr(photos: list[Path]) -> None:
    for path in photos:
        averaged = area_average(read_image(path, (128, 128), 3)[None], (32, 32))[0]
        scaled = read_image(path, (32, 32), 3, gap=1)
        difference = (averaged.int() - scaled.int()).abs().double()
        assert float(difference.mean()) < 2
        assert float(averaged.double().std()) > 20


def test_with_every_patch_chosen_hr_is_the_same_however_lr_is_made(run: Path, photos: list[Path]) -> None:
    ours, theirs = (serving(run, keep_all, scaled)[0].predict(photos) for scaled in (True, False))
    assert ours == theirs  # weight S/P = 1: the HR classifier alone


def test_reduced_lr_is_refused_where_it_cannot_be_had(run: Path, photos: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="LR images were given, and are also to be made from HR"):
        Predictor(run, scaled_low=True).predict(photos, low=photos)
    folder = RunFolder(tmp_path / "other")
    settings = tiny_settings(high="16x32")
    folder.start(settings.to_mapping())
    config = config_of(settings)
    folder.finish("ft2", build_stage("ft2", config), config, {"figures": {}, "seconds": 0.0})
    with pytest.raises(UsageError, match="HR and LR differ in shape"):
        Predictor(folder.path, scaled_low=True)
