"""List windows of tiled scenes from a CSV file with the columns ``scene``, ``box`` and ``label``.

``scene``  a file, relative to the CSV file's folder, or an http(s) URL
``box``    top, left, bottom, right in whole pixels of the scene, bottom and right just outside; with commas (in
           quotes) or spaces. It is as large as the model's HR image: pixels are never resampled.
``label``  name of the class
``split``  if wanted: train, val or test

Or a folder with such a train.csv, val.csv and test.csv. No scene is opened here.

Windows that overlap show the same ground. They stay together when a split is carved out of train, and may not be in
two splits that are named.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from patchdrop.data.listing import check_filled, check_labels, csv_files, read_csv
from patchdrop.errors import DataError
from patchdrop.tiff.tiles import Box
from patchdrop.transport.disk_cache import address
from patchdrop.transport.ranges import is_url, public_name


class WindowRow(NamedTuple):
    """A line of the file; ``where`` names it in errors."""

    scene: str
    box: Box
    label: str
    name: str
    where: str

    @property
    def files(self) -> tuple[Path, ...]:
        """The scene, if it is a file."""
        return () if is_url(self.scene) else (Path(self.scene),)


@dataclass(frozen=True, slots=True)
class Window:
    """A labelled window.

    Attributes:
        scene: path or URL; may hold a password.
        address: identifies its scene.
        name: as the list has it, without passwords, with the box.
        where: file and line, for errors.
    """

    scene: str
    address: str
    box: Box
    target: int
    name: str
    where: str


@dataclass(frozen=True)
class WindowListing:
    """A list of a data set's windows, sorted by scene and box.

    Attributes:
        classes: names, sorted; a target is an index into them.
        splits: ``train``, ``val`` and ``test``, those that exist.
    """

    root: Path
    classes: tuple[str, ...]
    splits: dict[str, tuple[Window, ...]]


def is_window_list(root: Path) -> bool:
    """Check whether there is a CSV file with a column ``scene``, or a folder of them."""
    files = [root] if root.is_file() else [*csv_files(root).values()][:1]
    try:
        for file in files:
            with file.open(newline="", encoding="utf-8-sig") as stream:
                return "scene" in [name.strip() for name in next(csv.reader(stream), [])]
    except (OSError, UnicodeDecodeError, csv.Error):
        pass  # reading the list will report it
    return False


def list_windows(root: Path) -> WindowListing:
    """List the labelled windows of a CSV file, or of a folder with train.csv, val.csv and test.csv.

    Raises:
        DataError: a line makes no sense, or windows of two splits overlap.
    """
    rows = read_csv(root, ("scene", "box", "label"), _row)
    check_labels(root, rows)
    classes = tuple(sorted({row.label for members in rows.values() for row in members}))
    number = {name: index for index, name in enumerate(classes)}
    splits = {
        split: tuple(
            sorted(
                (Window(r.scene, address(r.scene), r.box, number[r.label], r.name, r.where) for r in members),
                key=lambda window: (window.address, window.box),
            )
        )
        for split, members in rows.items()
    }
    _check_apart(splits)
    return WindowListing(root, classes, splits)


def _row(file: Path, line: int, cells: dict[str, str]) -> WindowRow:
    check_filled(file, line, cells, ("scene", "box", "label"))
    where = f"{file}: line {line}"
    words = re.fullmatch(r"(-?\d{1,9})[, ]+(-?\d{1,9})[, ]+(-?\d{1,9})[, ]+(-?\d{1,9})", cells["box"])
    if words is None:
        raise DataError(f"{where}: box {cells['box']!r}: write four whole numbers: top, left, bottom, right")
    top, left, bottom, right = map(int, words.groups())
    if not (0 <= top < bottom and 0 <= left < right):
        raise DataError(f"{where}: box {cells['box']!r} holds no pixel: write top, left, bottom, right, from 0")
    given = cells["scene"]
    scene = given if is_url(given) else str(file.parent / given)
    box = top, left, bottom, right
    return WindowRow(scene, box, cells["label"], f"{public_name(given)}:{','.join(map(str, box))}", where)


def _check_apart(splits: dict[str, tuple[Window, ...]]) -> None:
    """Refuse windows that overlap one of another split, or are listed twice in their own."""
    members = [(window, split) for split, windows in splits.items() for window in windows]
    for i, j in overlapping([window for window, _ in members]):
        (ours, split), (other, home) = sorted((members[i], members[j]), key=lambda member: member[0].where)
        if split != home:
            raise DataError(f"{other.where}: overlaps {ours.where}, which is in {split}: put both into one split")
        if ours.box == other.box:
            raise DataError(f"{other.where}: lists the window of {ours.where} again: keep one line")


def overlapping(windows: Sequence[Window]) -> Iterator[tuple[int, int]]:
    """Yield the positions of each two windows that share a pixel."""
    order = sorted(range(len(windows)), key=lambda i: (windows[i].address, windows[i].box))
    open_ones: list[int] = []
    for i in order:
        scene, (top, left, _, right) = windows[i].address, windows[i].box
        open_ones = [j for j in open_ones if windows[j].address == scene and windows[j].box[2] > top]
        for j in open_ones:
            if windows[j].box[1] < right and left < windows[j].box[3]:
                yield j, i
        open_ones.append(i)


def groups(windows: Sequence[Window]) -> list[int]:
    """Return for each window the first one that it is joined with by a chain of overlaps."""
    root = list(range(len(windows)))

    def first(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    for i, j in overlapping(windows):
        a, b = sorted((first(i), first(j)))
        root[b] = a
    return [first(i) for i in range(len(windows))]
