"""Sizes and grid proposed from the sizes of images, and the reading of those sizes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from patchdrop.data import propose as module
from patchdrop.data.listing import Record, list_images
from patchdrop.data.load import load
from patchdrop.data.propose import (
    LARGEST_ON_GPU,
    Proposal,
    image_sizes,
    low_sizes,
    propose,
    propose_for,
    too_large,
)
from patchdrop.errors import DataError, UsageError
from patchdrop.grid import Grid, Named, Size, named, size_text
from patchdrop.read import images
from patchdrop.read.images import read_image, read_size
from patchdrop.settings.flat import TrainSettings
from tiny import source_of


def image(path: Path, height: int, width: int, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), (90, 120, 40)).save(path, **options)
    return path


def turned(path: Path, height: int, width: int) -> Path:
    """An image that is stored lying and shown standing, ``height x width`` when upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return image(path, width, height, exif=exif)


def records(*paths: Path) -> list[Record]:
    return [Record(path, 0) for path in paths]


def chosen(proposal: Proposal) -> tuple[str, str, str]:
    return size_text(proposal.high), size_text(proposal.low), str(proposal.grid)


def asked(high: str = "", low: str = "", grid: str = "") -> Named:
    return named(high, low, grid)


def refusal(data: Path | str) -> str:
    with pytest.raises(DataError) as caught:
        propose_for(str(data))
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- reading sizes


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_the_size_is_that_of_the_image_as_it_is_decoded(tmp_path: Path, kind: str) -> None:
    for path in (image(tmp_path / f"upright.{kind}", 30, 50), turned(tmp_path / f"turned.{kind}", 70, 20)):
        assert read_size(path) == tuple(read_image(path, None).shape[1:])
    assert read_size(tmp_path / f"upright.{kind}") == (30, 50)
    assert read_size(tmp_path / f"turned.{kind}") == (70, 20)


def test_a_png_turned_by_metadata_behind_its_pixels_is_turned(tmp_path: Path) -> None:
    path = turned(tmp_path / "a.png", 70, 20)
    data = path.read_bytes()
    start = data.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(data[start : start + 4], "big")
    end = data.index(b"IEND") - 4
    assert stop <= data.index(b"IDAT") < end
    path.write_bytes(data[:start] + data[stop:end] + data[start:stop] + data[end:])
    assert read_size(path) == (70, 20)
    assert tuple(read_image(path, None).shape[1:]) == (70, 20)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif"])
def test_sizes_are_read_without_decoding_a_pixel(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = image(tmp_path / f"a.{kind}", 30, 50)

    decoded: list[Image.Image] = []
    for opener in images._KINDS:
        monkeypatch.setattr(opener, "load", lambda opened: decoded.append(opened))
    assert read_size(path) == (30, 50)
    assert decoded == []


def test_a_box_counts_with_the_part_of_the_upright_image_that_it_cuts_out(tmp_path: Path) -> None:
    path = turned(tmp_path / "a.jpg", 70, 20)
    assert read_size(path, (-5.0, 10.0, 15.0, 90.0)) == (60, 15)
    assert image_sizes([Record(path, 0, box=(0.0, 10.0, 20.0, 50.0)), Record(path, 0)]) == [(40, 20), (70, 20)]
    with pytest.raises(DataError, match=r"a\.jpg: box .* holds no pixel of the 20 x 70 image"):
        read_size(path, (30.0, 0.0, 40.0, 10.0))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "not a JPEG, PNG, WebP or TIFF image"),
        (b"\xff\xd8\xff" + b"\0" * 70_000, "JPEG with an overlong header"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 40, "not a JPEG, PNG, WebP or TIFF image"),
    ],
)
def test_a_damaged_header_is_one_line_with_the_file(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "bad.jpg"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_size(path)
    assert str(caught.value).startswith(f"{path}: {says}")
    assert "\n" not in str(caught.value)


def test_an_image_that_training_would_refuse_for_its_pixels_has_no_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(images, "MAX_PIXELS", 1000)
    png, jpeg = image(tmp_path / "a.png", 30, 50), image(tmp_path / "a.jpg", 30, 50)
    with pytest.raises(DataError, match="50 x 30 px is more than"):
        read_size(png)
    assert read_size(jpeg) == (30, 50)  # decoded a few rows at a time, so it may be larger


def test_corrupt_and_missing_files_among_good_ones_are_passed_over(tmp_path: Path) -> None:
    good, other = image(tmp_path / "a.png", 40, 60), image(tmp_path / "d.jpg", 50, 50)
    bad = tmp_path / "b.jpg"
    bad.write_bytes(b"no image at all")
    assert image_sizes(records(good, bad, tmp_path / "c.png", other)) == [(40, 60), (50, 50)]


def test_where_no_image_can_be_read_the_first_is_named_in_one_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "train" / "x").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "x" / f"{name}.jpg").write_bytes(b"no image at all")
    assert refusal(tmp_path) == (
        f"none of the 2 images looked at can be read; the first is {tmp_path}/train/x/a.jpg: not a JPEG, PNG, WebP or "
        "TIFF image, or its header is damaged: replace or remove it"
    )


def test_images_looked_at_are_evenly_spaced_and_no_more_than_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "read_size", lambda path, box: (int(path.name), 1))
    numbered = records(*(Path(str(i)) for i in range(1000)))
    assert [height for height, _ in image_sizes(numbered, 4)] == [0, 250, 500, 750]
    assert [height for height, _ in image_sizes(numbered[:3], 4)] == [0, 1, 2]
    assert len(image_sizes(numbered)) == 256


def test_sizes_of_lr_files_are_read_where_lr_has_files(tmp_path: Path) -> None:
    high, low = image(tmp_path / "a.png", 64, 64), image(tmp_path / "low.png", 11, 12)
    assert low_sizes(records(high)) is None
    assert low_sizes([Record(high, 0, low_path=low)]) == [(11, 12)]
    with pytest.raises(DataError, match="none of the 1 LR images looked at can be read; the first is"):
        low_sizes([Record(high, 0, low_path=tmp_path / "gone.png")])


# --- proposing


@pytest.mark.parametrize(
    ("side", "high", "low", "grid"),
    [
        (16, "16", "8", "2"),
        (28, "24", "8", "3"),
        (32, "32", "8", "4"),
        (63, "48", "12", "4"),
        (64, "64", "16", "4"),
        (95, "80", "20", "4"),
        (96, "96", "24", "4"),
        (127, "96", "24", "4"),
        (150, "128", "32", "4"),
        (400, "128", "32", "4"),
    ],
)
def test_square_images_give_a_square_that_they_hold(side: int, high: str, low: str, grid: str) -> None:
    assert chosen(propose([(side, side)])) == (high, low, grid)


@pytest.mark.parametrize(
    ("size", "high", "low", "grid"),
    [
        ((300, 400), "96x128", "24x32", "3x4"),
        ((1080, 1920), "72x120", "18x30", "3x5"),
        ((100, 125), "96x120", "24x30", "4x5"),
        ((24, 40), "24x40", "8x13", "3x5"),
        ((64, 1000), "32x128", "8x32", "2x8"),  # no more than 4 times as wide as high
    ],
)
def test_images_of_one_oblong_shape_give_that_shape_and_nearly_square_patches(
    size: Size, high: str, low: str, grid: str
) -> None:
    assert chosen(propose([size])) == (high, low, grid)

    def standing(text: str) -> str:
        return "x".join(reversed(text.split("x")))

    assert chosen(propose([(size[1], size[0])])) == (standing(high), standing(low), standing(grid))


@pytest.mark.parametrize(
    "sizes",
    [
        [(100, 124)],  # not oblong enough
        [(100, 150), (150, 100)],  # lying and standing
        [(100, 125), (100, 125), (100, 200), (100, 200)],  # not alike
    ],
)
def test_images_without_a_shape_in_common_give_a_square(sizes: list[Size]) -> None:
    assert chosen(propose(sizes)) == ("96", "24", "4")


def test_a_quarter_of_odd_images_changes_neither_shape_nor_size() -> None:
    usual = [(300, 400)] * 30
    assert chosen(propose([*usual, *[(40, 20)] * 10])) == ("96x128", "24x32", "3x4")
    assert chosen(propose([*usual, *[(40, 20)] * 11])) != ("96x128", "24x32", "3x4")
    assert chosen(propose([*[(64, 64)] * 30, *[(20, 20)] * 10])) == ("64", "16", "4")
    assert chosen(propose([*[(64, 64)] * 30, *[(20, 20)] * 11])) == ("20", "8", "2")


@pytest.mark.parametrize("largest", [64, 128, 224])
def test_hr_is_never_larger_than_the_images_or_the_cap_and_the_grid_divides_it(largest: int) -> None:
    for height in range(16, 300, 7):
        for width in range(16, 300, 5):
            proposal = propose([(height, width)], largest=largest)
            high, low, grid = proposal.high, proposal.low, proposal.grid
            assert high[0] <= height and high[1] <= width and max(high) <= largest
            assert high[0] % grid.rows == 0 and high[1] % grid.cols == 0
            patch = high[0] // grid.rows, high[1] // grid.cols
            assert min(patch) >= 8 and max(patch) <= 1.5 * min(patch)
            assert 4 <= grid.patches <= 24
            assert 2 * low[0] <= high[0] + 1 and 2 * low[1] <= high[1] + 1
            assert min(low) >= 8 and low[0] >= 2 * grid.rows and low[1] >= 2 * grid.cols


def test_a_larger_cap_is_used_and_the_reason_says_how_far_one_may_ask_for_more() -> None:
    assert propose([(400, 400)]).reasons["high"] == (
        "the images are 400 x 400 px, but time grows with the square of the side, so HR stops at 128 px; "
        "--high asks for more, up to 384"
    )
    wider = propose([(400, 400)], largest=LARGEST_ON_GPU)
    assert chosen(wider) == ("224", "56", "4")
    assert "stops at 224 px" in wider.reasons["high"]
    assert "time grows" not in propose([(150, 150)]).reasons["high"]


def test_each_reason_says_what_was_seen_and_what_follows() -> None:
    assert propose([(32, 32)]).reasons == {
        "high": "the images are 32 x 32 px",
        "low": "a quarter of HR a side, so 1/16 of HR's pixels",
        "grid": "4 x 4 patches of 8 x 8 px, as in the paper; finer grids, such as --grid 8, take longer to learn",
    }
    assert propose([(30, 30), (30, 31)]).reasons == {
        "high": "three of four images have 30 px or more on their shorter side",
        "low": "less would show next to nothing; it is 1/14.1 of HR's pixels",
        "grid": "3 x 3 patches of 10 x 10 px, since smaller ones would show too little",
    }
    assert propose([(50, 80), (51, 80)]).reasons == {
        "high": "three of four images are 50 px high or more, and three of four 80 px wide or more, and the grid has "
        "to divide HR into patches that halve well",
        "low": "a quarter of HR a side, so 1/16 of HR's pixels",
        "grid": "3 x 5 patches of 16 x 16 px, nearly square ones",
    }


def test_images_below_16_px_are_refused_in_one_line_that_says_what_to_do() -> None:
    with pytest.raises(DataError) as caught:
        propose([(64, 64)] * 5 + [(15, 40)] * 2)
    assert str(caught.value) == (
        "more than a quarter of the training images have 15 px or fewer on their shorter side, too few to choose "
        "patches from: use images of 16 px or more, or have these enlarged with --high 32 --low 8"
    )
    assert chosen(propose([(15, 40)], given=asked(high="32", low="8"))) == ("32", "8", "4")


def test_lr_images_of_their_own_give_lrs_size_in_hrs_shape_up_to_half_of_hr() -> None:
    assert chosen(propose([(256, 256)], [(33, 33)] * 4 + [(20, 90)])) == ("128", "33", "4")
    assert chosen(propose([(300, 400)], [(40, 30)])) == ("96x128", "30x40", "3x4")
    finer = propose([(256, 256)], [(100, 100)])
    assert finer.low == (64, 64)
    assert finer.reasons["low"] == (
        "half of HR a side, so that patches add detail to LR images of 100 px; it is 1/4 of HR's pixels"
    )
    assert propose([(256, 256)], [(16, 16)]).reasons["low"] == "the size of the LR images, 1/64 of HR's pixels"


def test_a_patch_covers_two_lr_pixels_a_side_where_lr_images_are_tiny() -> None:
    assert chosen(propose([(256, 256)], [(6, 6)])) == ("120", "6", "3")
    assert chosen(propose([(256, 256)], given=asked(low="4"))) == ("128", "4", "2")


def test_what_is_named_stays_and_the_rest_follows_from_it() -> None:
    sizes = [(150, 150)]
    assert chosen(propose(sizes, given=asked(high="100"))) == ("100", "25", "4")
    assert chosen(propose(sizes, given=asked(high="60x100"))) == ("60x100", "15x25", "3x5")
    assert chosen(propose(sizes, given=asked(high="24x44"))) == ("24x44", "8x15", "3x5")
    assert chosen(propose(sizes, given=asked(low="10x12"))) == ("128", "10x12", "4")
    assert chosen(propose(sizes, given=asked(grid="7"))) == ("112", "28", "7")
    assert chosen(propose(sizes, given=asked(grid="3x5"))) == ("120", "30", "3x5")
    assert chosen(propose([], given=asked(high="8"))) == ("8", "4", "2")
    assert list(propose(sizes, given=asked(high="100")).reasons) == ["low", "grid"]
    assert list(propose(sizes, given=asked(low="10")).reasons) == ["high", "grid"]
    assert list(propose(sizes, given=asked(grid="7")).reasons) == ["high", "low"]
    assert propose(sizes, given=asked(high="64", low="8", grid="4")) == Proposal((64, 64), (8, 8), Grid(4, 4), {})


def test_patches_of_a_named_hr_may_differ_by_a_pixel_which_the_reason_says() -> None:
    reason = propose([], given=asked(high="90")).reasons["grid"]
    assert reason.startswith("4 x 4 patches of up to 23 x 23 px, as in the paper")


def test_a_named_grid_that_the_images_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="a 30 x 30 px image cannot hold a 40 x 40 grid"):
        propose([(30, 30)], given=asked(grid="40"))


# --- HR larger than the images


def test_hr_larger_than_most_images_is_warned_of() -> None:
    sizes = [(150, 150)] * 3 + [(500, 500)] * 2
    assert too_large(sizes, (224, 224)) == (
        "HR of 224 x 224 px is larger than 3 of the 5 images looked at: enlarging them adds no detail, only time; "
        "150 x 150 px is what three of four have"
    )
    assert too_large(sizes, (150, 150)) is None
    assert too_large([(150, 150), (500, 500)], (224, 224)) is None  # half is not most
    assert too_large([(100, 400)], (128, 128)) is not None
    assert too_large([(400, 100)], (128, 128)) is not None
    assert too_large([(3, 2)], (8, 8)) is not None
    assert too_large([], (128, 128)) is None


def test_a_proposal_warns_of_a_named_hr_only() -> None:
    assert propose([(150, 150)], given=asked(high="224")).warning == too_large([(150, 150)], (224, 224))
    assert propose([(150, 150)], given=asked(high="128")).warning is None
    assert propose([(150, 150)]).warning is None


# --- data sets


def folder(root: Path, *sizes: Size, kind: str = "jpg") -> Path:
    for i, (height, width) in enumerate(sizes):
        image(root / "train" / "ab"[i % 2] / f"{i}.{kind}", height, width)
    return root


def test_a_folder_of_mixed_sizes_gives_what_three_of_four_images_hold(tmp_path: Path) -> None:
    data = folder(tmp_path, (70, 90), (90, 70), (120, 130), (300, 200), (64, 64), (400, 500), (81, 80), (100, 100))
    assert sorted(min(size) for size in image_sizes(list_images(data).splits["train"])) == [
        64,
        70,
        70,
        80,
        100,
        120,
        200,
        400,
    ]
    proposal = propose_for(str(data))
    assert chosen(proposal) == ("64", "16", "4")
    assert proposal.reasons["high"].startswith("three of four images have 70 px or more on their shorter side")


def test_portrait_photographs_stay_portraits_also_where_only_their_exif_says_so(tmp_path: Path) -> None:
    folder(tmp_path, (400, 300), (400, 300), (440, 330))
    for i in range(3):
        turned(tmp_path / "train" / "a" / f"turned{i}.jpg", 400, 300)
    (tmp_path / "train" / "a" / "bad.jpg").write_bytes(b"\xff\xd8\xff damaged")
    assert chosen(propose_for(str(tmp_path))) == ("128x96", "32x24", "4x3")


def test_only_training_images_are_looked_at(tmp_path: Path) -> None:
    folder(tmp_path, (64, 64), (64, 64))
    for name in "ab":
        for i in range(5):
            image(tmp_path / "test" / name / f"{i}.png", 16, 16)
    assert chosen(propose_for(str(tmp_path))) == ("64", "16", "4")
    image(tmp_path / "other" / "test" / "a" / "0.png", 64, 64)
    assert refusal(tmp_path / "other") == (f"{tmp_path}/other: has no train split, so nothing can be trained on it")


def test_a_csv_file_with_lr_images_gives_their_size(tmp_path: Path) -> None:
    lines = ["path,low_path,label"]
    for i in range(4):
        image(tmp_path / f"{i}.png", 96, 96)
        image(tmp_path / f"low{i}.png", 12, 12)
        lines.append(f"{i}.png,low{i}.png,{'uv'[i % 2]}")
    (tmp_path / "data.csv").write_text("\n".join(lines) + "\n")
    assert chosen(propose_for(str(tmp_path / "data.csv"))) == ("96", "12", "4")


def test_fmow_counts_with_what_is_cut_out_around_its_boxes(tmp_path: Path) -> None:
    for name in ("port", "farm"):
        path = image(tmp_path / "train" / name / f"{name}_0" / f"{name}_0_0_rgb.jpg", 600, 900)
        boxes = {"bounding_boxes": [{"category": name, "box": [100, 100, 50, 20]}], "img_width": 900, "img_height": 600}
        path.with_suffix(".json").write_text(json.dumps(boxes))
    assert image_sizes(list_images(tmp_path).splits["train"]) == [(150, 150), (150, 150)]
    assert chosen(propose_for(str(tmp_path), "fmow", LARGEST_ON_GPU)) == ("128", "32", "4")


def test_cifars_images_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "cifar-10-batches-bin").mkdir()
    for proposal in (propose_for(str(tmp_path)), propose_for("anywhere", "cifar100")):
        assert chosen(proposal) == ("32", "8", "4")
        assert proposal.reasons["high"] == "the images are 32 x 32 px"
    assert propose_for(str(tmp_path), given=asked(grid="5")).high == (32, 32)
    assert propose_for(str(tmp_path), given=asked(high="64")).reasons.keys() == {"low", "grid"}


def test_the_embedded_scenes_have_the_sizes_of_the_demo() -> None:
    assert chosen(propose_for("markers")) == ("64", "8", "4")
    assert chosen(propose_for("anything", "markers")) == ("64", "8", "4")
    assert chosen(propose_for("markers", given=asked(high="128"))) == ("128", "16", "4")
    assert chosen(propose_for("markers", given=asked(high="32", grid="2"))) == ("32", "4", "2")
    assert propose_for("markers").reasons.keys() == {"high", "low", "grid"}
    assert propose_for("markers", given=asked(high="128", low="32")).reasons.keys() == {"grid"}


def window_list(path: Path, *boxes: str) -> Path:
    (path.parent / "scene.tif").touch()
    lines = [f'scene.tif,"{box}",{"uv"[i % 2]}' for i, box in enumerate(boxes)]
    path.write_text("\n".join(["scene,box,label", *lines]) + "\n")
    return path


def test_windows_give_their_own_size_whatever_cap_and_grid_would_like(tmp_path: Path) -> None:
    data = window_list(tmp_path / "data.csv", "0,0,100,180", "100,0,200,180")
    proposal = propose_for(str(data))
    assert chosen(proposal) == ("100x180", "25x45", "3x5")
    assert proposal.reasons["high"] == "the windows of the list are 100 x 180 px, and a window is never resampled"
    assert chosen(propose_for(str(data), given=asked(high="64", grid="2"))) == ("64", "16", "2")


def test_of_windows_that_differ_the_most_frequent_size_is_taken(tmp_path: Path) -> None:
    data = window_list(tmp_path / "data.csv", "0,0,32,32", "0,64,64,128", "64,64,128,128")
    proposal = propose_for(str(data))
    assert chosen(proposal) == ("64", "16", "4")
    assert proposal.reasons["high"].startswith("2 of 3 windows of the list are 64 x 64 px")


def test_windows_below_16_px_are_refused(tmp_path: Path) -> None:
    data = window_list(tmp_path / "data.csv", "0,0,12,40", "12,0,24,40")
    assert refusal(data) == (
        "the windows of the list are 12 x 40 px, too small to choose patches from: list windows of 16 px a side or more"
    )


def test_a_data_set_that_is_not_there_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == f"{tmp_path}/absent: no such file or folder: check the path of the data set"


def test_what_is_proposed_is_what_training_reads(tmp_path: Path) -> None:
    high, low, grid = chosen(propose_for(str(folder(tmp_path, *[(48, 64)] * 20, kind="png"))))
    settings = TrainSettings(data=str(tmp_path), high=high, low=low, grid=grid, workers=0)
    split = load(source_of(settings), lambda done, total: None).splits["fit"]
    (batch,) = split.batches([torch.arange(2)])
    assert tuple(batch.high.shape) == (2, 3, 48, 64)
    assert settings.shape.low == (12, 16)
