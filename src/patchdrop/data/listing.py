"""What images a data set holds: which file, which class, which split.

Nothing is decoded here. Whatever the layout, classes are numbered by their sorted names, images are
sorted by path, and hidden files and folders are passed over, so that a listing depends on names alone.

Layouts
-------
``folder``    ``train/<class>/``, ``test/<class>/`` and, if there is one, ``val/<class>/``; images may lie in
              subfolders of a class. One split is enough, for example to evaluate on ``test``.
``csv``       a file with the columns ``path`` and ``label`` and, if wanted, ``low_path`` (the LR image) and
              ``split`` (train, val or test; without it, all is train); or a folder with train.csv, val.csv,
              test.csv. Paths are relative to the CSV file's folder.
``imagenet``  ILSVRC 2012 as published: ``train/<wnid>/``, and ``val/<wnid>/`` or a flat ``val/`` labelled by
              Kaggle's ``LOC_val_solution.csv``; the folder itself, or one with ``ILSVRC/Data/CLS-LOC``. The
              official test set has no labels, so the validation set is listed as ``test``.
``fmow``      fMoW-rgb as published: ``train/<class>/<class>_<place>/<class>_<place>_<view>_rgb.jpg`` with a
              ``.json`` beside each, one record a bounding box, cut out with context (`square_with_context`).
              The published ``test/`` has numbers in place of classes and cannot be listed: ``val`` is listed
              as ``test``, unless ``test/`` has been sorted into class folders too, with the mapping that
              was published later. ``false_detection``, no class of the training set, is left out.
"""

from __future__ import annotations

import csv
import difflib
import json
import math
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from patchdrop.errors import DataError, UsageError

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom are just outside."""

SPLITS = ("train", "val", "test")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"})
CIFAR_FOLDERS = {
    "cifar10": ("cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": ("cifar-100-binary", "cifar-100-python"),
}

CONTEXT = 1.25
"""fMoW: side of the square cut out, in multiples of the box's longer side ..."""
CONTEXT_PIXELS = 224
"""... but at least this many pixels, the input of the paper's networks ..."""
CONTEXT_MOST = 3.0
"""... as long as that is not more than this multiple."""


@dataclass(frozen=True, slots=True)
class Record:
    """One labelled image."""

    path: Path
    target: int
    low_path: Path | None = None
    """The LR image, where it is a file of its own."""
    box: Box | None = None
    """The part of the image to use; it may reach over the image's edge."""


@dataclass(frozen=True)
class Listing:
    """The images of a data set."""

    root: Path
    layout: str
    classes: tuple[str, ...]
    """Names, sorted; a target is an index into them."""
    splits: dict[str, tuple[Record, ...]]
    """``train``, ``val`` and ``test``, those that exist."""


class _Row(NamedTuple):
    """An image whose class is still a name."""

    path: Path
    label: str
    low_path: Path | None = None
    box: Box | None = None


_Rows = dict[str, list[_Row]]
"""The rows of each split."""


def list_images(root: str | Path, layout: str = "auto") -> Listing:
    """List the labelled images of ``root`` in the given layout; ``auto`` looks at what is there.

    A folder of CIFAR batches gives a listing without images, whose ``layout`` (cifar10 or cifar100) says
    what `patchdrop.data.cifar` is to load.

    Raises:
        DataError: there is no such data set, or it is not complete or not consistent.
        UsageError: ``layout`` is not one of auto, folder, csv, imagenet, fmow.
    """
    root = Path(root)
    if layout not in ("auto", *_READERS):
        raise UsageError(f"layout {layout!r} is not listed from image files: use auto, {', '.join(_READERS)}")
    try:
        if not root.exists():
            raise DataError(f"{root}: no such file or folder: check the path of the data set")
        found = detect_layout(root) if layout == "auto" else layout
        if found in CIFAR_FOLDERS:
            return Listing(root, found, (), {})
        return _listing(root, found, _READERS[found](root))
    except OSError as error:
        raise DataError(f"{root}: cannot be listed ({error}): check the path and its permissions") from error


def detect_layout(root: Path) -> str:
    """The layout of an existing file or folder: folder, csv, imagenet, fmow, cifar10 or cifar100."""
    if root.is_file() or any((root / f"{split}.csv").is_file() for split in SPLITS):
        return "csv"
    for layout, names in CIFAR_FOLDERS.items():
        if root.name in names or any((root / name).is_dir() for name in names):
            return layout
    if _is_imagenet(root):
        return "imagenet"
    return "fmow" if _is_fmow(root) else "folder"


def _listing(root: Path, layout: str, rows: _Rows) -> Listing:
    """Number the classes and sort the records."""
    classes = tuple(sorted({row.label for split in rows.values() for row in split}))
    number = {name: index for index, name in enumerate(classes)}
    splits = {
        split: tuple(
            Record(row.path, number[row.label], row.low_path, row.box)
            for row in sorted(rows[split], key=lambda row: (str(row.path), row.box or ()))
        )
        for split in SPLITS
        if split in rows
    }
    return Listing(root, layout, classes, splits)


# --- image folders


def _read_folder(root: Path) -> _Rows:
    found = [split for split in SPLITS if (root / split).is_dir()]
    if not found:
        raise DataError(
            f"{root}: no train, val or test folder: put each class's images into train/<class>/ and test/<class>/"
        )
    return _checked(root, {split: _class_rows(root / split) for split in found})


def _class_rows(split: Path) -> list[_Row]:
    """The images below ``split``, labelled by the folder right below it."""
    folders = _folders(split)
    if not folders:
        raise DataError(f"{split}: no class folder: put each class's images into {split.name}/<class>/")
    return [_Row(path, folder.name) for folder in folders for path in _images_of_class(folder)]


def _images_of_class(folder: Path) -> list[Path]:
    images = list(_images_below(folder))
    if not images:
        raise DataError(f"{folder}: class folder without a JPEG, PNG, WebP or TIFF image: fill or remove it")
    return images


def _images_below(folder: Path) -> Iterator[Path]:
    for at, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(at, name) for name in files if _is_image(name))


def _raise(error: OSError) -> None:
    """A folder that cannot be read is an error, not an empty folder."""
    raise error


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def _folders(folder: Path) -> list[Path]:
    """The visible folders right below ``folder``, sorted; none where that does not exist."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _checked(root: Path, rows: _Rows) -> _Rows:
    """``rows``, where every split has the same classes."""
    labels = {split: {row.label for row in rows[split]} for split in rows}
    first, *others = labels
    for other in others:
        difference = sorted(labels[first] ^ labels[other])
        if difference:
            where = [f"{name} (only in {first if name in labels[first] else other})" for name in difference]
            raise DataError(
                f"{root}: {first} and {other} differ in {len(difference)} of their classes: {_some(where)}: "
                "give them the same class folders"
            )
    return rows


def _some(names: Iterable[str]) -> str:
    """The first five names."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


# --- CSV files


def _read_csv(root: Path) -> _Rows:
    if root.is_file():
        rows = _csv_rows(root, "train", own_split=True)
    else:
        files = {split: root / f"{split}.csv" for split in SPLITS if (root / f"{split}.csv").is_file()}
        if not files:
            raise DataError(f"{root}: no train.csv, val.csv or test.csv in it: name the CSV file itself")
        rows = {}
        for split, file in files.items():
            rows |= _csv_rows(file, split, own_split=False)
    _check_leak(root, rows)
    _check_labels(root, rows)
    _check_low(root, rows)
    return rows


def _csv_rows(file: Path, split: str, own_split: bool) -> _Rows:
    """The rows of a file, by its ``split`` column where it may have one of its own, else all in ``split``."""
    rows: _Rows = {}
    missing: list[str] = []
    for line, cells in _csv_cells(file):
        row = _csv_row(file, line, cells)
        missing += [f"line {line}: {path}" for path in (row.path, row.low_path) if path and not path.is_file()]
        name = cells.get("split") or split
        if name not in SPLITS:
            raise DataError(f"{file}: line {line}: split {name!r}: write train, val or test")
        if name != split and not own_split:
            raise DataError(f"{file}: line {line}: split {name!r} in {file.name}: remove the column split")
        rows.setdefault(name, []).append(row)
    if missing:
        raise DataError(
            f"{file}: {len(missing)} missing files: {_some(missing)}: "
            f"correct the paths, which are relative to {file.parent}"
        )
    if not rows:
        raise DataError(f"{file}: no rows below the header: add a line for each image")
    return rows


def _csv_cells(file: Path) -> Iterator[tuple[int, dict[str, str]]]:
    """Line number and stripped cells by column; utf-8-sig, because spreadsheets put a mark in front."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            for column in ("path", "label"):
                _check_column(file, column, columns)
            for cells in reader:
                if None in cells:
                    raise DataError(f"{file}: line {reader.line_num}: more cells than columns: quote cells with commas")
                yield reader.line_num, {column: (cells[column] or "").strip() for column in columns}
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: not a CSV file ({error}): save it as UTF-8 text with commas") from error


def _check_column(file: Path, column: str, columns: list[str]) -> None:
    if column in columns:
        return
    near = difflib.get_close_matches(column, columns, 1)
    advice = f"rename {near[0]!r}, if that is it" if near else "add it to the header"
    raise DataError(f"{file}: no column {column!r}: {advice}")


def _csv_row(file: Path, line: int, cells: dict[str, str]) -> _Row:
    for column in ("path", "label", "low_path"):
        if cells.get(column) == "":
            raise DataError(f"{file}: line {line}: empty {column}: fill it in or remove the line")
    low = cells.get("low_path")
    return _Row(file.parent / cells["path"], cells["label"], file.parent / low if low else None)


def _check_leak(root: Path, rows: _Rows) -> None:
    """An image of one split must not be in another."""
    home: dict[str, str] = {}
    for split, members in rows.items():
        for row in members:
            file = os.path.realpath(row.path)
            if home.setdefault(file, split) != split:
                raise DataError(f"{root}: {row.path} is in both {home[file]} and {split}: keep it in one")


def _check_labels(root: Path, rows: _Rows) -> None:
    """No class may be new after training; that a small test split lacks a rare class is no mistake."""
    if "train" in rows:
        known = {row.label for row in rows["train"]}
        for split, members in rows.items():
            unknown = sorted({row.label for row in members} - known)
            if unknown:
                raise DataError(f"{root}: labels in {split} but not in train: {_some(unknown)}: correct them")


def _check_low(root: Path, rows: _Rows) -> None:
    """LR images are files of their own for all images or for none: a batch cannot mix the two."""
    if len({row.low_path is None for members in rows.values() for row in members}) > 1:
        raise DataError(f"{root}: not every CSV file has the column low_path: add it to all or to none")


# --- ImageNet

_WNID = re.compile(r"n\d{8}")


def _is_imagenet(root: Path) -> bool:
    if _imagenet_base(root) != root or (root / "LOC_val_solution.csv").is_file():
        return True
    names = [folder.name for split in ("train", "val") for folder in _folders(root / split)]
    # Someone's own train/val/test folders of ImageNet classes are an ordinary image folder.
    return bool(names) and all(_WNID.fullmatch(name) for name in names) and not _folders(root / "test")


def _imagenet_base(root: Path) -> Path:
    """The folder that holds ``train`` and ``val``."""
    nested = (root / "ILSVRC" / "Data" / "CLS-LOC", root / "Data" / "CLS-LOC")
    return next((folder for folder in nested if folder.is_dir()), root)


def _read_imagenet(root: Path) -> _Rows:
    base = _imagenet_base(root)
    rows: _Rows = {}
    if (base / "train").is_dir():
        rows["train"] = _class_rows(base / "train")
    if (base / "val").is_dir():
        flat = not _folders(base / "val")
        rows["test"] = _flat_val_rows(root, base / "val") if flat else _class_rows(base / "val")
    if not rows:
        raise DataError(f"{base}: no train or val folder: unpack ImageNet's archives into train/ and val/")
    return _checked(root, rows)


def _flat_val_rows(root: Path, val: Path) -> list[_Row]:
    solution = root / "LOC_val_solution.csv"
    if not solution.is_file():
        raise DataError(
            f"{val}: no class folders, and no {solution}: sort its images into val/<wnid>/ or add that file"
        )
    labels = _solution_labels(solution)
    images = sorted(_images_below(val))
    unknown = [path.name for path in images if path.stem not in labels]
    if unknown:
        raise DataError(f"{val}: images not in {solution.name}: {_some(unknown)}: remove them")
    absent = sorted(labels.keys() - {path.stem for path in images})
    if absent:
        raise DataError(f"{val}: images of {solution.name} are missing: {_some(absent)}: unpack them again")
    return [_Row(path, labels[path.stem]) for path in images]


def _solution_labels(file: Path) -> dict[str, str]:
    """Image name -> wnid, from lines such as ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``."""
    labels = {}
    with file.open(newline="", encoding="utf-8", errors="replace") as stream:
        for line in csv.DictReader(stream):
            wnid = (line.get("PredictionString") or "").split(" ")[0]
            if not line.get("ImageId") or not _WNID.fullmatch(wnid):
                raise DataError(f"{file}: no ImageId,PredictionString lines: download it again from Kaggle")
            labels[line["ImageId"]] = wnid
    return labels


# --- fMoW

_FMOW_NO_CLASS = "false_detection"


def _is_fmow(root: Path) -> bool:
    return any(_fmow_classes(root / split) for split in SPLITS)


def _fmow_classes(split: Path) -> list[Path]:
    """The class folders of a split: those with folders ``<class>_<place>`` in them."""
    return [folder for folder in _folders(split) if folder.name != _FMOW_NO_CLASS and _fmow_places(folder)]


def _fmow_places(folder: Path) -> list[Path]:
    return [place for place in _folders(folder) if re.fullmatch(re.escape(folder.name) + r"_\d+", place.name)]


def _read_fmow(root: Path) -> _Rows:
    folders = {split: _fmow_classes(root / split) for split in SPLITS}
    if folders["val"] and not folders["test"]:
        folders = {"train": folders["train"], "test": folders["val"]}
    folders = {split: classes for split, classes in folders.items() if classes}
    if not folders:
        raise DataError(f"{root}: no train/<class>/<class>_<n> folder: unpack fMoW-rgb's train and val here")
    names = {folder.name for classes in folders.values() for folder in classes}
    return _checked(
        root,
        {
            split: [row for folder in classes for row in _fmow_class_rows(folder, names)]
            for split, classes in folders.items()
        },
    )


def _fmow_class_rows(folder: Path, names: set[str]) -> list[_Row]:
    rows = [
        row
        for place in _fmow_places(folder)
        for image in _fmow_views(place)
        for row in _fmow_image_rows(image, folder.name, names)
    ]
    if not rows:
        raise DataError(f"{folder}: class folder without an _rgb.jpg image: unpack fMoW-rgb again")
    return rows


def _fmow_views(place: Path) -> list[Path]:
    """One image a view: the pan-sharpened ``_rgb``, or ``_msrgb`` (a quarter of its side) if it is alone."""
    views: dict[str, Path] = {}
    for path in sorted(place.iterdir()):  # ..._msrgb.jpg comes before ..._rgb.jpg
        match = re.fullmatch(r"(.+)_(?:ms)?rgb\.jpg", path.name)
        if match:
            views[match[1]] = path
    return [views[view] for view in sorted(views)]


def _fmow_image_rows(image: Path, folder_class: str, names: set[str]) -> list[_Row]:
    """One row for each box of a known class; a file has a list of boxes, or one box by itself."""
    file = image.with_suffix(".json")
    try:
        content = json.loads(file.read_bytes())
        boxes = content["bounding_boxes"]
        size = (content.get("img_width"), content.get("img_height"))
        rows = []
        for entry in boxes if isinstance(boxes, list) else [boxes]:
            label = entry.get("category", folder_class)
            if label in names:
                rows.append(_Row(image, label, box=square_with_context(_four_numbers(entry["box"]), *size)))
    except FileNotFoundError:
        raise DataError(f"{file}: missing beside its image: unpack fMoW-rgb again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: no bounding_boxes with a box [x, y, width, height] ({error!r}): unpack fMoW-rgb again"
        ) from error
    return rows


def _four_numbers(box: Any) -> tuple[float, float, float, float]:
    x, y, width, height = (float(edge) for edge in box)
    if not all(math.isfinite(edge) for edge in (x, y, width, height)):
        raise ValueError("not a number")
    return x, y, width, height


def square_with_context(
    box: tuple[float, float, float, float],
    image_width: float | None = None,
    image_height: float | None = None,
) -> Box:
    """The square to cut out around an fMoW box.

    Its side is 1.25 times the box's longer side; a small box gets more of its surroundings, up to 3 times
    its longer side, until the square has 224 px. (A box of 50 px gives 150, of 100 px 224, of 400 px 500.)
    Where the image's size is known and has room, the square is moved inside.

    Args:
        box: left, top, width, height in pixels, as fMoW's files have it.
        image_width, image_height: pixels, if known.

    Returns:
        Left, top, right, bottom in whole pixels.
    """
    x, y, width, height = box
    longer = max(width, height)
    side = round(min(CONTEXT_MOST * longer, max(CONTEXT * longer, CONTEXT_PIXELS)))
    left = _moved_inside(round(x + (width - side) / 2), side, image_width)
    top = _moved_inside(round(y + (height - side) / 2), side, image_height)
    return left, top, left + side, top + side


def _moved_inside(start: int, side: int, length: float | None) -> float:
    if length is None or side > length:
        return float(start)
    return float(min(max(start, 0), int(length) - side))


_READERS: dict[str, Callable[[Path], _Rows]] = {
    "folder": _read_folder,
    "csv": _read_csv,
    "imagenet": _read_imagenet,
    "fmow": _read_fmow,
}
