"""List image folders, one per class, as the rows that every layout is read into; other listing modules build on it."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from patchdrop.errors import DataError
from patchdrop.read.images import SUFFIXES

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels; right and bottom are just outside."""

SPLITS = ("train", "val", "test")


class Row(NamedTuple):
    """A listed image whose class is still a name."""

    path: Path
    label: str
    low_path: Path | None = None
    box: Box | None = None

    @property
    def files(self) -> tuple[Path, ...]:
        """The image and, if there is one, the LR image."""
        return (self.path,) if self.low_path is None else (self.path, self.low_path)


Rows = dict[str, list[Row]]
"""The rows of each split."""


def read_folder(root: Path) -> Rows:
    """Return the rows of ``train``, ``val`` and ``test``, those that exist."""
    found = [split for split in SPLITS if (root / split).is_dir()]
    if not found:
        raise DataError(
            f"{root}: no train, val or test folder: put each class's images into train/<class>/ and test/<class>/"
        )
    return checked(root, {split: class_rows(root / split) for split in found})


def class_rows(split: Path) -> list[Row]:
    """Return the images below ``split``, labelled by the folder right below it."""
    folders = visible_folders(split)
    if not folders:
        raise DataError(f"{split}: no class folder: put each class's images into {split.name}/<class>/")
    return [Row(path, folder.name) for folder in folders for path in _images_of_class(folder)]


def _images_of_class(folder: Path) -> list[Path]:
    images = list(images_below(folder))
    if not images:
        raise DataError(f"{folder}: class folder without a JPEG, PNG, WebP or TIFF image: fill or remove it")
    return images


def images_below(folder: Path) -> Iterator[Path]:
    """Yield visible image files in a folder and its visible subfolders, in no order."""
    for at, folders, files in os.walk(folder, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(at, name) for name in files if _is_image(name))


def _raise(error: OSError) -> None:
    """Raise the error: a folder that cannot be read is not an empty folder."""
    raise error


def _is_image(name: str) -> bool:
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in SUFFIXES


def visible_folders(folder: Path) -> list[Path]:
    """Return the visible folders right below ``folder``, sorted; none if it does not exist."""
    if not folder.is_dir():
        return []
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def checked(root: Path, rows: Rows) -> Rows:
    """Return ``rows`` after checking that every split has the same classes."""
    labels = {split: {row.label for row in rows[split]} for split in rows}
    first, *others = labels
    for other in others:
        difference = sorted(labels[first] ^ labels[other])
        if difference:
            where = [f"{name} (only in {first if name in labels[first] else other})" for name in difference]
            raise DataError(
                f"{root}: {first} and {other} differ in {len(difference)} of their classes: {some(where)}: "
                "give them the same class folders"
            )
    return rows


def some(names: Iterable[str]) -> str:
    """Return the first five names as text."""
    names = list(names)
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
