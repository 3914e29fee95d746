"""Reading: only what is chosen, and the same pixels whether patches come from memory or from files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from patchdrop.data.low import area_average
from patchdrop.episode import PatchDrop
from patchdrop.errors import DataError, UsageError
from patchdrop.grid import Grid
from patchdrop.models.build import build_stage
from patchdrop.policy.choice import greedy
from patchdrop.read.ahead import decoders
from patchdrop.read.image_file import ImageFiles
from patchdrop.read.images import read_image
from patchdrop.read.source import from_memory
from patchdrop.runs.folder import RunFolder
from patchdrop.serve.predictor import Predictor
from tiny import CLASSES, config_of, tiny_settings, unsettle, write_folder

GRID = Grid(4, 4)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = write_folder(tmp_path_factory.mktemp("images"), train=3, test=9)
    return sorted((root / "test").rglob("*.png"))


def some_choice(images: int) -> Tensor:
    choice = torch.rand(images, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    choice[0] = choice[3] = False
    return choice


def test_files_and_memory_give_the_same_patches(paths: list[Path]) -> None:
    """Also where the wanted size is not the file's own."""
    for size in ((16, 16), (24, 20)):
        choice = some_choice(len(paths))
        whole = torch.stack([read_image(path, size, 3) for path in paths])
        with decoders() as threads:
            ours = ImageFiles(paths, size, 3, threads).reader(GRID)(choice)
        theirs = from_memory(whole, GRID)(choice)
        assert torch.equal(ours.pixels, theirs.pixels)
        assert torch.equal(ours.image, theirs.image)
        assert torch.equal(ours.patch, theirs.patch)
        assert ours.batch == theirs.batch == len(paths)


def test_a_file_without_a_chosen_patch_is_not_opened(paths: list[Path], tmp_path: Path) -> None:
    """Not even where it does not exist."""
    choice = some_choice(len(paths))
    given = [path if bool(row.any()) else tmp_path / "missing.png" for path, row in zip(paths, choice, strict=True)]
    with decoders() as threads:
        files = ImageFiles(given, (16, 16), 3, threads)
        files.reader(GRID)(choice)
        assert files.opened == choice.any(1).tolist()
        assert not all(files.opened)
        with pytest.raises(DataError, match=r"missing\.png: no such file"):
            files.reader(GRID)(torch.ones_like(choice))


def test_a_file_is_decoded_once(paths: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    decoded: list[Path] = []
    monkeypatch.setattr(
        "patchdrop.read.image_file.read_image", lambda path, *rest: (decoded.append(path), read_image(path, *rest))[1]
    )
    with decoders() as threads:
        files = ImageFiles(paths, (16, 16), 3, threads)
        for _ in range(2):
            files.high(1)
            files.reader(GRID)(torch.ones(len(paths), 16, dtype=torch.bool))
    assert sorted(decoded) == sorted(paths)


def test_low_pixels_are_the_mean_of_the_high_pixels_they_cover() -> None:
    high = torch.tensor([[[[0, 2, 10, 10], [4, 6, 10, 13]]]], dtype=torch.uint8)
    assert area_average(high, (1, 2)).tolist() == [[[[3, 11]]]]
    assert area_average(high, (2, 4)).tolist() == high.tolist()
    odd = torch.arange(5, dtype=torch.uint8).view(1, 1, 1, 5) * 10
    assert area_average(odd, (1, 2)).tolist() == [[[[10, 30]]]]  # the middle pixel lies under both
    assert area_average(high, (1, 1)).dtype == torch.uint8


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose stages were not trained: random networks look at, and read, something different in each image."""
    folder = RunFolder(tmp_path_factory.mktemp("run"))
    settings = tiny_settings(policy_head="global")
    folder.start(settings.to_mapping())
    config = config_of(settings)
    for seed, stage in enumerate(("pt", "ft2")):
        torch.manual_seed(seed)
        model = unsettle(build_stage(stage, config), seed)
        for name, tensor in model.state_dict().items():
            if name.endswith("normalise.mean") or name.endswith("normalise.std"):
                tensor.fill_(100.0 if name.endswith("mean") else 50.0)
        folder.finish(stage, model, config, {"figures": {}, "seconds": 0.0})
    return folder.path


def test_a_batch_of_files_is_predicted_as_one_by_one_and_in_any_order(run: Path, paths: list[Path]) -> None:
    predictor = Predictor(run)
    assert predictor.stage == "ft2"
    together = predictor.predict(paths)
    assert [p.path for p in together] == [str(p) for p in paths]
    alone = [predictor.predict(path)[0] for path in paths]
    turned = predictor.predict(list(reversed(paths)))[::-1]
    for other in (alone, turned):
        assert [(p.label, p.patches, p.hr_fraction) for p in other] == [
            (p.label, p.patches, p.hr_fraction) for p in together
        ]
        assert [p.probability for p in other] == pytest.approx([p.probability for p in together], abs=1e-5)
    assert len({p.patches for p in together}) > 1


@pytest.mark.parametrize("stage", ["pt", "ft2"])
def test_a_prediction_is_the_models_own(run: Path, paths: list[Path], stage: str) -> None:
    model, _ = RunFolder(run).load(stage)
    assert isinstance(model, PatchDrop)
    high = torch.stack([read_image(path, (16, 16), 3) for path in paths])
    with torch.inference_mode():
        episode = model(area_average(high, (8, 8)), greedy, from_memory(high, GRID))
    for row, prediction in enumerate(Predictor(run, stage).predict(paths)):
        assert prediction.label == CLASSES[int(episode.logits[row].argmax())]
        assert prediction.probability == pytest.approx(float(episode.logits[row].softmax(0).max()), abs=1e-6)
        assert prediction.patches == tuple(episode.choice[row].nonzero().flatten().tolist())
        assert prediction.hr_fraction == len(prediction.patches) / 16


def test_with_lr_files_of_their_own_an_hr_file_is_opened_only_where_a_patch_is_chosen(
    run: Path, paths: list[Path], tmp_path: Path
) -> None:
    predictor = Predictor(run, "ft2")
    expected = predictor.predict(paths, low=paths)
    torch.nn.init.constant_(predictor.model.policy.network.fc.bias, -1e4)  # from here on it never looks
    missing = [tmp_path / "missing.png"] * len(paths)
    blind = predictor.predict(missing, low=paths)
    assert all(p.patches == () and p.hr_fraction == 0 for p in blind)
    assert any(p.patches for p in expected)
    torch.nn.init.constant_(predictor.model.policy.network.fc.bias, 1e4)
    with pytest.raises(DataError, match=r"missing\.png: no such file"):
        predictor.predict(missing, low=paths)


def test_a_call_leaves_no_trace_in_the_next(run: Path, paths: list[Path], tmp_path: Path) -> None:
    predictor = Predictor(run)
    first = predictor.predict(paths[:4])
    with pytest.raises(DataError):
        predictor.predict([*paths[:2], tmp_path / "missing.png"])
    predictor.explain(paths[4:])
    assert predictor.predict(paths[:4]) == first


def test_an_explanation_is_the_prediction_with_what_was_seen(run: Path, paths: list[Path]) -> None:
    predictor = Predictor(run)
    explained = predictor.explain(paths[:5])
    assert [prediction for prediction, _ in explained] == predictor.predict(paths[:5])
    for path, (prediction, item) in zip(paths, explained, strict=False):
        high = read_image(path, (16, 16), 3).permute(1, 2, 0).numpy()
        assert (item.high == high).all()
        assert tuple(item.choice.nonzero()[0].tolist()) == prediction.patches
        for patch in range(16):
            top, left = 4 * (patch // 4), 4 * (patch % 4)
            seen = item.seen[top : top + 4, left : left + 4]
            if item.choice[patch]:
                assert (seen == high[top : top + 4, left : left + 4]).all()
            else:
                assert (seen == 100).all()


def test_no_image_or_too_few_lr_images_are_refused(run: Path, paths: list[Path]) -> None:
    predictor = Predictor(run)
    with pytest.raises(UsageError, match="no image was given"):
        predictor.predict([])
    with pytest.raises(UsageError, match="2 images and 1 LR images"):
        predictor.predict(paths[:2], low=paths[:1])
