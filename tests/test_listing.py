"""Which images a data set holds, in each layout; and CIFAR, which holds none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from patchdrop.data import cifar
from patchdrop.data.cifar import load_cifar
from patchdrop.data.fmow import square_with_context
from patchdrop.data.listing import Listing, Record, list_images
from patchdrop.errors import DataError, UsageError


def touch(root: Path, *names: str) -> None:
    """Empty files: a listing decodes nothing."""
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def found(listing: Listing, split: str) -> list[tuple[str, str]]:
    """Path below the root and class name of each record, in order."""
    return [
        (record.path.relative_to(listing.root).as_posix(), listing.classes[record.target])
        for record in listing.splits[split]
    ]


def refusal(root: Path, layout: str = "auto") -> str:
    with pytest.raises(DataError) as caught:
        list_images(root, layout)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- folders


def test_folder_lists_sorted_images_and_numbers_sorted_classes(tmp_path: Path) -> None:
    touch(tmp_path, "train/b/2.PNG", "train/b/1.jpg", "train/a/sub/3.tif", "test/a/x.webp", "test/b/y.jpeg")
    listing = list_images(tmp_path)
    assert listing.root == tmp_path
    assert listing.layout == "folder"
    assert listing.classes == ("a", "b")
    assert found(listing, "train") == [
        ("train/a/sub/3.tif", "a"),
        ("train/b/1.jpg", "b"),
        ("train/b/2.PNG", "b"),
    ]
    assert listing.splits["test"][1] == Record(tmp_path / "test/b/y.jpeg", 1)
    assert list(listing.splits) == ["train", "test"]


def test_folder_may_have_val_or_just_one_split(tmp_path: Path) -> None:
    touch(tmp_path / "one", "test/a/1.jpg")
    assert list(list_images(str(tmp_path / "one")).splits) == ["test"]
    touch(tmp_path / "three", "test/a/1.jpg", "val/a/1.jpg", "train/a/1.jpg")
    assert list(list_images(tmp_path / "three").splits) == ["train", "val", "test"]


def test_hidden_and_other_files_are_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/a/.2.jpg", "train/a/notes.txt", "train/.cache/3.jpg")
    touch(tmp_path, "train/a/.ipynb_checkpoints/4.jpg", "train/list.txt")
    assert found(list_images(tmp_path), "train") == [("train/a/1.jpg", "a")]


def test_missing_root_is_named(tmp_path: Path) -> None:
    assert refusal(tmp_path / "absent") == (
        f"{tmp_path}/absent: no such file or folder: check the path of the data set"
    )


def test_empty_root_and_root_without_splits_are_refused(tmp_path: Path) -> None:
    assert "no train, val or test folder: put" in refusal(tmp_path)
    touch(tmp_path, "a/1.jpg")
    assert "no train, val or test folder: put" in refusal(tmp_path)


def test_split_without_class_folders_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/1.jpg")
    assert refusal(tmp_path).startswith(f"{tmp_path}/train: no class folder: put")


def test_class_folder_without_images_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/1.gif")
    assert refusal(tmp_path).startswith(f"{tmp_path}/train/b: class folder without a JPEG, PNG, WebP or TIFF")


def test_classes_that_differ_between_splits_are_listed_up_to_five(tmp_path: Path) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/b/1.jpg", "test/a/1.jpg", "test/c/1.jpg")
    assert "differ in 2 of their classes: b (only in train), c (only in test): give" in refusal(tmp_path)
    touch(tmp_path, *[f"test/d{i}/1.jpg" for i in range(6)])
    text = refusal(tmp_path)
    assert "d0 (only in test), d1 (only in test), d2 (only in test) and 3 more" in text
    assert "d3" not in text


def test_a_folder_that_cannot_be_read_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "train/a/1.jpg", "train/a/sub/2.jpg")
    scan = os.scandir

    def fail(path: str) -> Iterator[os.DirEntry[str]]:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", fail)
    assert "cannot be listed ([Errno 13] Permission denied: " in refusal(tmp_path)


def test_unknown_layout_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'zip'.*folder, csv, imagenet, fmow"):
        list_images(tmp_path, "zip")


@pytest.mark.parametrize("layout", ["folder", "csv", "imagenet", "fmow"])
def test_a_given_layout_that_is_not_there_is_refused(tmp_path: Path, layout: str) -> None:
    assert refusal(tmp_path, layout).startswith(f"{tmp_path}: no ")


# --- CSV


def write_csv(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_csv_without_split_is_all_train(tmp_path: Path) -> None:
    touch(tmp_path, "x/1.jpg", "2.jpg")
    listing = list_images(write_csv(tmp_path / "data.csv", "label,path\nb,x/1.jpg\na,2.jpg\n"))
    assert listing.layout == "csv"
    assert listing.splits == {"train": (Record(tmp_path / "2.jpg", 0), Record(tmp_path / "x/1.jpg", 1))}


def test_csv_with_split_and_low_paths(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "low1.jpg", "low2.jpg")
    text = "path, label, split, low_path\n1.jpg, a, test, low1.jpg\n\n2.jpg, a, train, low2.jpg\n"
    assert list_images(write_csv(tmp_path / "data.csv", text)).splits == {
        "train": (Record(tmp_path / "2.jpg", 0, tmp_path / "low2.jpg"),),
        "test": (Record(tmp_path / "1.jpg", 0, tmp_path / "low1.jpg"),),
    }


def test_csv_files_named_after_splits_are_found_in_a_folder(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg", "3.jpg", "4.jpg")
    write_csv(tmp_path / "train.csv", "path,label\n1.jpg,a\n2.jpg,b\n")
    write_csv(tmp_path / "val.csv", "path,label\n3.jpg,b\n")  # a rare class may be missing here
    write_csv(tmp_path / "test.csv", "path,label,split\n4.jpg,a,test\n")
    listing = list_images(tmp_path)
    assert listing.layout == "csv"
    assert [found(listing, split) for split in ("train", "val", "test")] == [
        [("1.jpg", "a"), ("2.jpg", "b")],
        [("3.jpg", "b")],
        [("4.jpg", "a")],
    ]


def test_csv_from_a_spreadsheet_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    (tmp_path / "data.csv").write_bytes(b"\xef\xbb\xbfpath,label\r\n1.jpg,\xc3\xa9\r\n")
    assert list_images(tmp_path / "data.csv").classes == ("é",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("path,lable\n1.jpg,a\n", "no column 'label': rename 'lable', if that is it"),
        ("file,label\n1.jpg,a\n", "no column 'path': add it"),
        ("", "no column 'path': add it to the header"),
        ("path,label\n", "no rows below the header: add"),
        ("path,label\n1.jpg,\n", "line 2: empty label: fill"),
        ("path,label\n1.jpg\n", "line 2: empty label: fill"),
        ("path,label\n1.jpg,a\n ,a\n", "line 3: empty path: fill"),
        ("path,label,low_path\n1.jpg,a,\n", "line 2: empty low_path: fill"),
        ("path,label\n0.jpg,a\n1.jpg,a\n", "1 missing files: line 2: {0}/0.jpg: correct"),
        ("path,label,low_path\n1.jpg,a,0.jpg\n", "1 missing files: line 2: {0}/0.jpg: correct"),
        ("path,label,split\n1.jpg,a,dev\n", "line 2: split 'dev': write train, val or test"),
        ("path,label\n1.jpg,a,b\n", "line 2: more cells than columns: quote"),
        ('path,label\n1.jpg,"a\n', "not a CSV file"),
        ("path,label,split\n1.jpg,a,train\n1.jpg,a,test\n", "1.jpg is in both train and test: keep"),
        ("path,label\n1.jpg,a\n./1.jpg,a\n", "1.jpg is listed twice in train: keep one line"),
        ("path,label\n1.jpg,a\n1.jpg,b\n", "1.jpg is listed twice in train: keep one line"),
        ("path,label,split\n1.jpg,a,train\n2.jpg,b,test\n", "labels in test but not in train: b: correct"),
    ],
)
def test_csv_errors_say_where(tmp_path: Path, text: str, message: str) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    told = refusal(write_csv(tmp_path / "data.csv", text))
    assert told.startswith(f"{tmp_path}/data.csv: ")
    assert message.format(tmp_path) in told


def test_csv_lists_up_to_five_missing_files(tmp_path: Path) -> None:
    rows = "".join(f"{i}.jpg,a\n" for i in range(8))
    told = refusal(write_csv(tmp_path / "data.csv", "path,label\n" + rows))
    assert "8 missing files: " in told
    assert f"line 6: {tmp_path}/4.jpg and 3 more: correct" in told


def test_csv_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.csv").write_bytes(b"path,label\n\xff\xfe,a\n")
    assert "not a CSV file" in refusal(tmp_path / "data.csv")


def test_csv_file_of_one_split_must_not_name_another(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg")
    write_csv(tmp_path / "test.csv", "path,label,split\n1.jpg,a,train\n")
    assert "split 'train' in test.csv: remove the column" in refusal(tmp_path)


@pytest.mark.parametrize("other", ["test", "val"])
@pytest.mark.parametrize(
    "spelling",
    ["a.jpg", "./a.jpg", "sub/../a.jpg", "sub/../sub/.././a.jpg", "{root}/a.jpg", "link.jpg", "linked/a.jpg"],
)
@pytest.mark.parametrize("files", ["one file", "a file a split"])
def test_an_image_of_two_splits_is_found_out_however_its_path_is_spelt(
    tmp_path: Path, spelling: str, other: str, files: str
) -> None:
    touch(tmp_path, "a.jpg", "b.jpg", "sub/c.jpg")
    (tmp_path / "link.jpg").symlink_to("a.jpg")
    (tmp_path / "linked").symlink_to(tmp_path)
    second = spelling.format(root=tmp_path)
    if files == "one file":
        rows = f"path,label,split\na.jpg,x,train\nb.jpg,x,train\nsub/c.jpg,x,{other}\n{second},x,{other}\n"
        root = write_csv(tmp_path / "data.csv", rows)
    else:
        root = write_csv(tmp_path / "train.csv", "path,label\na.jpg,x\nb.jpg,x\n").parent
        write_csv(tmp_path / f"{other}.csv", f"path,label\nsub/c.jpg,x\n{second},x\n")
    assert refusal(root) == f"{root}: {tmp_path / second} is in both train and {other}: keep it in one"


def test_low_paths_are_for_all_images_or_for_none(tmp_path: Path) -> None:
    touch(tmp_path, "1.jpg", "2.jpg")
    write_csv(tmp_path / "train.csv", "path,label,low_path\n1.jpg,a,1.jpg\n")
    write_csv(tmp_path / "test.csv", "path,label\n2.jpg,a\n")
    assert "low_path: add it to all or to none" in refusal(tmp_path)


# --- ImageNet

TENCH, COCK = "n01440764", "n01514668"


def test_imagenet_validation_folders_are_listed_as_test(tmp_path: Path) -> None:
    touch(tmp_path, f"train/{TENCH}/{TENCH}_1.JPEG", f"train/{COCK}/{COCK}_2.JPEG")
    touch(tmp_path, f"val/{TENCH}/ILSVRC2012_val_00000002.JPEG", f"val/{COCK}/ILSVRC2012_val_00000001.JPEG")
    listing = list_images(tmp_path)
    assert listing.layout == "imagenet"
    assert listing.classes == (TENCH, COCK)
    assert list(listing.splits) == ["train", "test"]
    assert found(listing, "test")[1] == (f"val/{COCK}/ILSVRC2012_val_00000001.JPEG", COCK)


def kaggle(root: Path, solution: str) -> None:
    """Kaggle's tree, whose flat val is labelled by a table in the folder above."""
    inner = "ILSVRC/Data/CLS-LOC"
    touch(root, f"{inner}/train/{TENCH}/{TENCH}_1.JPEG", f"{inner}/train/{COCK}/{COCK}_2.JPEG")
    touch(root, *[f"{inner}/val/ILSVRC2012_val_0000000{i}.JPEG" for i in (1, 2, 3)])
    touch(root, f"{inner}/test/ILSVRC2012_test_00000001.JPEG")
    (root / "LOC_val_solution.csv").write_text("ImageId,PredictionString\n" + solution)


SOLUTION = (
    f"ILSVRC2012_val_00000002,{COCK} 85 1 499 272 \n"
    f"ILSVRC2012_val_00000001,{TENCH} 1 2 3 4 {TENCH} 5 6 7 8 \n"
    f"ILSVRC2012_val_00000003,{TENCH} 0 0 9 9 \n"
)


def test_imagenet_flat_validation_is_labelled_by_kaggles_table(tmp_path: Path) -> None:
    kaggle(tmp_path, SOLUTION)
    listing = list_images(tmp_path)
    assert listing.layout == "imagenet"
    assert [label for _, label in found(listing, "test")] == [TENCH, COCK, TENCH]
    assert [path[-6] for path, _ in found(listing, "test")] == ["1", "2", "3"]
    assert len(listing.splits["train"]) == 2


def test_imagenet_flat_validation_needs_the_table(tmp_path: Path) -> None:
    kaggle(tmp_path, SOLUTION)
    (tmp_path / "LOC_val_solution.csv").unlink()
    assert "val: no class folders, and no" in refusal(tmp_path)


def test_imagenet_table_and_images_must_agree(tmp_path: Path) -> None:
    kaggle(tmp_path, SOLUTION)
    touch(tmp_path, "ILSVRC/Data/CLS-LOC/val/stray.JPEG")
    assert "images not in LOC_val_solution.csv: stray.JPEG: remove" in refusal(tmp_path)
    (tmp_path / "ILSVRC/Data/CLS-LOC/val/stray.JPEG").unlink()
    (tmp_path / "ILSVRC/Data/CLS-LOC/val/ILSVRC2012_val_00000003.JPEG").unlink()
    assert "are missing: ILSVRC2012_val_00000003: unpack" in refusal(tmp_path)


@pytest.mark.parametrize("line", ["ILSVRC2012_val_00000001,tench 1 2 3 4\n", "ILSVRC2012_val_00000001\n"])
def test_imagenet_table_of_something_else_is_refused(tmp_path: Path, line: str) -> None:
    kaggle(tmp_path, line)
    assert "no ImageId,PredictionString lines: download" in refusal(tmp_path)


def test_imagenet_splits_must_have_the_same_classes(tmp_path: Path) -> None:
    touch(tmp_path, f"train/{TENCH}/1.JPEG", f"val/{COCK}/1.JPEG")
    assert f"{TENCH} (only in train), {COCK} (only in test)" in refusal(tmp_path)


def test_own_splits_of_imagenet_classes_are_an_ordinary_folder(tmp_path: Path) -> None:
    touch(tmp_path, f"train/{TENCH}/1.JPEG", f"val/{TENCH}/2.JPEG", f"test/{TENCH}/3.JPEG")
    listing = list_images(tmp_path)
    assert listing.layout == "folder"
    assert found(listing, "val") == [(f"val/{TENCH}/2.JPEG", TENCH)]


# --- fMoW


def fmow_view(root: Path, view: str, content: object, kind: str = "rgb") -> None:
    """For example view ``train/zoo/zoo_3/zoo_3_1``."""
    touch(root, f"{view}_{kind}.jpg")
    (root / f"{view}_{kind}.json").write_text(json.dumps(content))


def boxes(*entries: tuple[str, list[float]]) -> dict[str, object]:
    return {
        "img_width": 1000,
        "img_height": 800,
        "bounding_boxes": [{"ID": 1, "category": label, "box": box} for label, box in entries],
    }


HANGAR = ("airport_hangar", [0.0, 0.0, 9.0, 9.0])


def small_fmow(root: Path) -> None:
    fmow_view(root, "train/zoo/zoo_0/zoo_0_0", boxes(("zoo", [400, 300, 200, 100])))
    fmow_view(root, "train/airport_hangar/airport_hangar_7/airport_hangar_7_0", boxes(HANGAR))
    fmow_view(root, "val/zoo/zoo_1/zoo_1_0", boxes(("zoo", [400, 300, 200, 100])))
    fmow_view(
        root,
        "val/airport_hangar/airport_hangar_2/airport_hangar_2_4",
        boxes(HANGAR),
    )


def test_fmow_gives_a_record_a_box_with_its_category_and_val_as_test(tmp_path: Path) -> None:
    small_fmow(tmp_path)
    fmow_view(
        tmp_path,
        "train/airport_hangar/airport_hangar_7/airport_hangar_7_0",
        boxes(("zoo", [400, 300, 200, 100]), ("airport_hangar", [10, 10, 400, 100])),
    )
    listing = list_images(tmp_path)
    assert listing.layout == "fmow"
    assert listing.classes == ("airport_hangar", "zoo")
    assert list(listing.splits) == ["train", "test"]
    image = tmp_path / "train/airport_hangar/airport_hangar_7/airport_hangar_7_0_rgb.jpg"
    assert listing.splits["train"][:2] == (
        Record(image, 0, None, (0, 0, 500, 500)),
        Record(image, 1, None, (375, 225, 625, 475)),
    )
    assert [path for path, _ in found(listing, "test")] == [
        "val/airport_hangar/airport_hangar_2/airport_hangar_2_4_rgb.jpg",
        "val/zoo/zoo_1/zoo_1_0_rgb.jpg",
    ]


def test_fmow_takes_msrgb_only_where_it_is_alone(tmp_path: Path) -> None:
    small_fmow(tmp_path)
    fmow_view(tmp_path, "train/zoo/zoo_0/zoo_0_0", boxes(("zoo", [0, 0, 9, 9])), "msrgb")
    fmow_view(tmp_path, "train/zoo/zoo_0/zoo_0_1", boxes(("zoo", [0, 0, 9, 9])), "msrgb")
    touch(tmp_path, "train/zoo/zoo_0/zoo_0_0_ms.tif")
    names = [record.path.name for record in list_images(tmp_path).splits["train"]]
    assert names == ["airport_hangar_7_0_rgb.jpg", "zoo_0_0_rgb.jpg", "zoo_0_1_msrgb.jpg"]


def test_fmow_test_with_numbers_is_passed_over_and_with_classes_is_test(tmp_path: Path) -> None:
    small_fmow(tmp_path)
    fmow_view(tmp_path, "test/0011978/0011978_0", {"bounding_boxes": [{"ID": 1, "box": [0, 0, 9, 9]}]})
    assert list(list_images(tmp_path).splits) == ["train", "test"]
    fmow_view(tmp_path, "test/zoo/zoo_9/zoo_9_0", boxes(("zoo", [0, 0, 9, 9]), ("false_detection", [0, 0, 9, 9])))
    fmow_view(
        tmp_path,
        "test/airport_hangar/airport_hangar_9/airport_hangar_9_0",
        boxes(HANGAR),
    )
    fmow_view(
        tmp_path,
        "test/false_detection/false_detection_1/false_detection_1_0",
        boxes(("false_detection", [0, 0, 9, 9])),
    )
    listing = list_images(tmp_path)
    assert list(listing.splits) == ["train", "val", "test"]
    assert [label for _, label in found(listing, "test")] == ["airport_hangar", "zoo"]
    assert listing.classes == ("airport_hangar", "zoo")


def test_fmow_reads_a_single_box_and_takes_a_missing_category_from_the_folder(tmp_path: Path) -> None:
    fmow_view(tmp_path, "train/zoo/zoo_0/zoo_0_0", {"bounding_boxes": {"box": [400, 300, 200, 100]}})
    assert list_images(tmp_path).splits["train"][0].box == (375, 225, 625, 475)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"bounding_boxes": [{"category": "zoo"}]},
        {"bounding_boxes": [{"category": "zoo", "box": [1, 2, 3]}]},
        {"bounding_boxes": [{"category": "zoo", "box": [1, 2, 3, float("nan")]}]},
        {"bounding_boxes": [{"category": "zoo", "box": [1, 2, 3, float("inf")]}]},
        {"bounding_boxes": ["zoo"]},
        ["zoo"],
        {"bounding_boxes": [{"category": ["zoo"], "box": [1, 2, 3, 4]}]},
    ],
)
def test_fmow_json_without_a_box_is_named(tmp_path: Path, content: object) -> None:
    small_fmow(tmp_path)
    fmow_view(tmp_path, "train/zoo/zoo_0/zoo_0_0", content)
    told = refusal(tmp_path)
    assert told.startswith(f"{tmp_path}/train/zoo/zoo_0/zoo_0_0_rgb.json: no bounding_boxes with a box")


def test_fmow_json_that_is_no_json_or_is_not_there_is_named(tmp_path: Path) -> None:
    small_fmow(tmp_path)
    file = tmp_path / "train/zoo/zoo_0/zoo_0_0_rgb.json"
    file.write_bytes(b"\xff{")
    assert refusal(tmp_path).startswith(f"{file}: no bounding_boxes")
    file.unlink()
    assert refusal(tmp_path).startswith(f"{file}: missing beside its image")


def test_fmow_class_without_images_is_named(tmp_path: Path) -> None:
    small_fmow(tmp_path)
    (tmp_path / "train/zoo/zoo_0/zoo_0_0_rgb.jpg").unlink()
    assert refusal(tmp_path).startswith(f"{tmp_path}/train/zoo: class folder without an _rgb.jpg image")


@pytest.mark.parametrize(
    ("longer", "side"), [(10, 30), (50, 150), (74, 222), (75, 224), (100, 224), (179, 224), (400, 500)]
)
def test_small_boxes_get_more_context(longer: int, side: int) -> None:
    for box in ((1000, 2000, longer, 1), (1000, 2000, 1, longer)):
        left, top, right, bottom = square_with_context(box)
        assert right - left == bottom - top == side
        assert (left + right) / 2 == pytest.approx(1000 + box[2] / 2, abs=0.5)
        assert (top + bottom) / 2 == pytest.approx(2000 + box[3] / 2, abs=0.5)


def test_the_square_moves_inside_where_there_is_room() -> None:
    assert square_with_context((0, 0, 50, 50), 1000, 800) == (0, 0, 150, 150)
    assert square_with_context((950, 750, 50, 50), 1000, 800) == (850, 650, 1000, 800)
    assert square_with_context((0, 0, 900, 700), 1000, 800) == (-112, -212, 1013, 913)


# --- CIFAR


def cifar_records(labels: list[list[int]], seed: int) -> tuple[bytes, torch.Tensor]:
    """Binary records and their images."""
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 3, 32, 32), np.uint8)
    parts = (bytes(label) + image.tobytes() for label, image in zip(labels, images, strict=True))
    return b"".join(parts), torch.from_numpy(images)


@pytest.fixture
def cifar10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """CIFAR-10 with two images a file."""
    small = dataclasses.replace(cifar._BINARY["cifar10"], train_records=2, test_records=2)
    monkeypatch.setitem(cifar._BINARY, "cifar10", small)
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    for i in range(1, 6):
        (folder / f"data_batch_{i}.bin").write_bytes(cifar_records([[i], [0]], i)[0])
    (folder / "test_batch.bin").write_bytes(cifar_records([[9], [3]], 6)[0])
    (folder / "batches.meta.txt").write_text("".join(f"name{i}\n" for i in range(10)) + "\n")
    return folder


@pytest.mark.parametrize("up", [True, False])
def test_cifar10_binary_gives_the_stored_images(cifar10: Path, up: bool) -> None:
    classes, splits = load_cifar(cifar10.parent if up else cifar10, "cifar10")
    assert classes == tuple(f"name{i}" for i in range(10))
    assert splits["train"][1].tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert torch.equal(splits["train"][0][2:4], cifar_records([[2], [0]], 2)[1])
    assert splits["train"][0].dtype == torch.uint8
    assert splits["test"][1].tolist() == [9, 3]
    assert splits["test"][1].dtype == torch.int64


def test_cifar100_binary_takes_the_fine_label(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = dataclasses.replace(cifar._BINARY["cifar100"], train_records=2, test_records=1)
    monkeypatch.setitem(cifar._BINARY, "cifar100", small)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    train, images = cifar_records([[3, 99], [1, 7]], 0)
    (folder / "train.bin").write_bytes(train)
    (folder / "test.bin").write_bytes(cifar_records([[0, 50]], 1)[0])
    (folder / "fine_label_names.txt").write_text("".join(f"name{i}\n" for i in range(100)))
    classes, splits = load_cifar(tmp_path, "cifar100")
    assert len(classes) == 100
    assert splits["train"][1].tolist() == [99, 7]
    assert torch.equal(splits["train"][0], images)
    assert splits["test"][1].tolist() == [50]


def test_cifar_batches_are_recognised_but_hold_no_image_files(cifar10: Path) -> None:
    for root in (cifar10, cifar10.parent):
        assert list_images(root) == Listing(root, "cifar10", (), {})


@pytest.mark.parametrize("change", [-3073, -1, 1])
def test_a_cifar_file_of_another_size_is_named(cifar10: Path, change: int) -> None:
    file = cifar10 / "data_batch_3.bin"
    file.write_bytes((file.read_bytes() + b"\0")[: 2 * 3073 + change])
    with pytest.raises(DataError, match=rf"data_batch_3\.bin: {2 * 3073 + change} bytes where 6146 belong"):
        load_cifar(cifar10, "cifar10")


def test_a_cifar_class_out_of_range_is_named(cifar10: Path) -> None:
    (cifar10 / "test_batch.bin").write_bytes(cifar_records([[10], [3]], 6)[0])
    with pytest.raises(DataError, match=r"test_batch\.bin: class 10 of 10"):
        load_cifar(cifar10, "cifar10")


def test_missing_cifar_files_are_named(cifar10: Path) -> None:
    (cifar10 / "data_batch_5.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_5\.bin: cannot be read"):
        load_cifar(cifar10, "cifar10")
    (cifar10 / "batches.meta.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=r"batches\.meta\.txt: 2 class names where 10 belong"):
        load_cifar(cifar10, "cifar10")
    (cifar10 / "batches.meta.txt").unlink()
    with pytest.raises(DataError, match=r"batches\.meta\.txt: cannot be read"):
        load_cifar(cifar10, "cifar10")


def test_no_cifar_folder_is_an_error_and_no_such_layout_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no cifar-100-binary or cifar-100-python folder: unpack"):
        load_cifar(tmp_path, "cifar100")
    with pytest.raises(UsageError, match="'svhn'"):
        load_cifar(tmp_path, "svhn")


class Trap:
    """Pickled, it makes a folder when it is opened."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[Path]]:
        return Path.mkdir, (self.path,)


def test_other_peoples_pickles_are_never_opened(tmp_path: Path) -> None:
    trap = pickle.dumps(Trap(tmp_path / "sprung"))
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for name in [*[f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta"]:
        (folder / name).write_bytes(trap)
    with pytest.raises(DataError, match="not all of the published files"):
        load_cifar(tmp_path, "cifar10")
    assert not (tmp_path / "sprung").exists()
    pickle.loads(trap)
    assert (tmp_path / "sprung").exists()  # so the trap works


def test_cifar_pickles_with_the_published_sums_give_the_stored_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()

    def publish(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    _, images = cifar_records([[1], [2]], 0)
    flat = images.flatten(1).numpy()
    train = publish("data_batch_1", {"data": flat, "labels": [1, 2]})
    test = publish("test_batch", {"data": flat[:1], "labels": [4]})
    meta = publish("batches.meta", {"label_names": ["cat", "dog"]})
    monkeypatch.setattr("torchvision.datasets.CIFAR10.train_list", [["data_batch_1", train]])
    monkeypatch.setattr("torchvision.datasets.CIFAR10.test_list", [["test_batch", test]])
    names = {"filename": "batches.meta", "key": "label_names", "md5": meta}
    monkeypatch.setattr("torchvision.datasets.CIFAR10.meta", names)
    classes, splits = load_cifar(tmp_path, "cifar10")
    assert classes == ("cat", "dog")
    assert torch.equal(splits["train"][0], images)
    assert splits["train"][1].tolist() == [1, 2]
    assert splits["test"][1].tolist() == [4]
