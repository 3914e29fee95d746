"""List the images of a data set: which file, which class, which split.

Nothing is decoded here. Whatever the layout, classes are numbered by their sorted names, images are
sorted by path, and hidden files and folders are passed over, so that a listing depends on names alone.

Layouts
-------
``folder``    ``train/<class>/``, ``test/<class>/`` and, if there is one, ``val/<class>/``; images may lie in
              subfolders of a class. One split is enough, for example to evaluate on ``test``.
``csv``       a file with the columns ``path`` and ``label`` and, if wanted, ``low_path`` (the LR image) and
              ``split`` (train, val or test; without it, all is train); or a folder with train.csv, val.csv,
              test.csv. Paths are relative to the CSV file's folder. (Windows of scenes, with the columns ``scene``
              and ``box``, are listed by `patchdrop.data.windows`.)
``imagenet``  ILSVRC 2012 as published: see `patchdrop.data.imagenet`.
``fmow``      fMoW-rgb as published: see `patchdrop.data.fmow`.
"""

from __future__ import annotations

import csv
import difflib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from patchdrop.data.fmow import is_fmow, read_fmow
from patchdrop.data.folders import SPLITS, Box, Row, Rows, read_folder, some
from patchdrop.data.imagenet import is_imagenet, read_imagenet
from patchdrop.errors import DataError, UsageError

CIFAR_FOLDERS = {
    "cifar10": ("cifar-10-batches-bin", "cifar-10-batches-py"),
    "cifar100": ("cifar-100-binary", "cifar-100-python"),
}


@dataclass(frozen=True, slots=True)
class Record:
    """A labelled image."""

    path: Path
    target: int
    low_path: Path | None = None
    """The LR image, if it is a file of its own."""
    box: Box | None = None
    """The part of the image to use; it may reach over the image's edge."""


@dataclass(frozen=True)
class Listing:
    """A list of a data set's images by split."""

    root: Path
    layout: str
    classes: tuple[str, ...]
    """Class names, sorted; a target is an index into them."""
    splits: dict[str, tuple[Record, ...]]
    """``train``, ``val`` and ``test``, those that exist."""


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
    """Return the layout of an existing file or folder: folder, csv, imagenet, fmow, cifar10 or cifar100."""
    if root.is_file() or any((root / f"{split}.csv").is_file() for split in SPLITS):
        return "csv"
    for layout, names in CIFAR_FOLDERS.items():
        if root.name in names or any((root / name).is_dir() for name in names):
            return layout
    if is_imagenet(root):
        return "imagenet"
    return "fmow" if is_fmow(root) else "folder"


def _listing(root: Path, layout: str, rows: Rows) -> Listing:
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


# --- CSV files


class Listed(Protocol):
    """A parsed line of a CSV file."""

    @property
    def label(self) -> str:
        """Name of the class."""

    @property
    def files(self) -> Sequence[Path]:
        """Files that must exist."""


L = TypeVar("L", bound=Listed)


def _read_csv(root: Path) -> Rows:
    rows = read_csv(root, ("path", "label"), _csv_row)
    _check_leak(root, rows)
    _check_repeats(root, rows)
    check_labels(root, rows)
    _check_low(root, rows)
    return rows


def read_csv(
    root: Path, columns: Sequence[str], read_row: Callable[[Path, int, dict[str, str]], L]
) -> dict[str, list[L]]:
    """Read the rows of each split of a CSV file, or of a folder's train.csv, val.csv and test.csv.

    Args:
        columns: those that must be there.
        read_row: makes a row from file, line and cells.

    Raises:
        DataError: no such table; the line is named.
    """
    if root.is_file():
        return _csv_rows(root, "train", True, columns, read_row)
    files = csv_files(root)
    if not files:
        raise DataError(f"{root}: no train.csv, val.csv or test.csv in it: name the CSV file itself")
    rows: dict[str, list[L]] = {}
    for split, file in files.items():
        rows |= _csv_rows(file, split, False, columns, read_row)
    return rows


def csv_files(root: Path) -> dict[str, Path]:
    """Return the CSV files of a folder by split."""
    return {split: root / f"{split}.csv" for split in SPLITS if (root / f"{split}.csv").is_file()}


def _csv_rows(
    file: Path,
    split: str,
    own_split: bool,
    columns: Sequence[str],
    read_row: Callable[[Path, int, dict[str, str]], L],
) -> dict[str, list[L]]:
    """Read the rows of a file, by its ``split`` column if it may have one of its own, else all into ``split``."""
    rows: dict[str, list[L]] = {}
    missing: list[str] = []
    for line, cells in _csv_cells(file, columns):
        row = read_row(file, line, cells)
        missing += [f"line {line}: {path}" for path in row.files if not path.is_file()]
        name = cells.get("split") or split
        if name not in SPLITS:
            raise DataError(f"{file}: line {line}: split {name!r}: write train, val or test")
        if name != split and not own_split:
            raise DataError(f"{file}: line {line}: split {name!r} in {file.name}: remove the column split")
        rows.setdefault(name, []).append(row)
    if missing:
        raise DataError(
            f"{file}: {len(missing)} missing files: {some(missing)}: "
            f"correct the paths, which are relative to {file.parent}"
        )
    if not rows:
        raise DataError(f"{file}: no rows below the header: add a line for each image")
    return rows


def _csv_cells(file: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line number and stripped cells by column; utf-8-sig, because spreadsheets put a mark in front."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.DictReader(stream, strict=True)
            columns = [name.strip() for name in reader.fieldnames or []]
            reader.fieldnames = columns
            for column in needed:
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


def check_filled(file: Path, line: int, cells: Mapping[str, str], columns: Sequence[str]) -> None:
    """Raise DataError if a cell of one of the columns is empty."""
    for column in columns:
        if cells.get(column) == "":
            raise DataError(f"{file}: line {line}: empty {column}: fill it in or remove the line")


def _csv_row(file: Path, line: int, cells: dict[str, str]) -> Row:
    check_filled(file, line, cells, ("path", "label", "low_path"))
    low = cells.get("low_path")
    return Row(file.parent / cells["path"], cells["label"], file.parent / low if low else None)


def _check_leak(root: Path, rows: Rows) -> None:
    """Refuse an image that is in two splits."""
    home: dict[str, str] = {}
    for split, members in rows.items():
        for row in members:
            file = os.path.realpath(row.path)
            if home.setdefault(file, split) != split:
                raise DataError(f"{root}: {row.path} is in both {home[file]} and {split}: keep it in one")


def _check_repeats(root: Path, rows: Rows) -> None:
    """Refuse an image listed twice: of two copies in train, one could be carved out for validation."""
    for split, members in rows.items():
        seen: set[tuple[str, Path | None]] = set()
        for row in members:
            image = os.path.realpath(row.path), row.low_path
            if image in seen:
                raise DataError(f"{root}: {row.path} is listed twice in {split}: keep one line")
            seen.add(image)


def check_labels(root: Path, rows: Mapping[str, Sequence[Listed]]) -> None:
    """Refuse classes that are not in train; that a small test split lacks a rare class is no mistake."""
    if "train" in rows:
        known = {row.label for row in rows["train"]}
        for split, members in rows.items():
            unknown = sorted({row.label for row in members} - known)
            if unknown:
                raise DataError(f"{root}: labels in {split} but not in train: {some(unknown)}: correct them")


def _check_low(root: Path, rows: Rows) -> None:
    """Refuse LR files for some images only: a batch cannot mix the two kinds."""
    if len({row.low_path is None for members in rows.values() for row in members}) > 1:
        raise DataError(f"{root}: not every CSV file has the column low_path: add it to all or to none")


_READERS: dict[str, Callable[[Path], Rows]] = {
    "folder": read_folder,
    "csv": _read_csv,
    "imagenet": read_imagenet,
    "fmow": read_fmow,
}
