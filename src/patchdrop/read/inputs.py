"""Look at files and URLs, and tell image files from scenes.

A folder stands for the image files in it and below, a pattern for the files that it matches. The rest is

* a scene if it lies behind a URL, is a slide, or is a TIFF of at least `CELLS` cells a side, `CELLS_PLACED` if it has a
  place on Earth: it is cut into cells of HR's size, each of which gets a class;
* an image otherwise: it gets one class.
"""

from __future__ import annotations

import glob
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from patchdrop.errors import DataError, UsageError
from patchdrop.grid import Size
from patchdrop.read.images import SUFFIXES, read_size
from patchdrop.read.slide import SLIDE_SUFFIXES
from patchdrop.tiff.directory import HeaderError, read_header
from patchdrop.transport.ranges import LocalFile, is_url

CELLS, CELLS_PLACED = 3, 2
"""Sides of a scene, in cells of HR's size, at least: of one without a place on Earth, and of one with."""
TIFF_SUFFIXES = (".tif", ".tiff", ".gtiff", ".btf", ".tf8")


class Inputs(NamedTuple):
    """The named inputs, each kind in the order of naming."""

    images: list[str]
    scenes: list[str]

    def __str__(self) -> str:
        """Say how many there are of each kind."""
        counts = ((len(self.images), "image file"), (len(self.scenes), "scene"))
        return " and ".join(f"{count} {kind}{'' if count == 1 else 's'}" for count, kind in counts if count)


def inputs_of(named: Sequence[str], high: Size, without: Sequence[Path] = ()) -> Inputs:
    """Sort named inputs into images and scenes.

    Args:
        named: files, folders, patterns such as ``photos/*.jpg``, and URLs.
        high: HR (height, width) in pixels of the model that will read them.
        without: folders of results, whose files are passed over where they lie in a folder that is named.

    Raises:
        DataError: a folder holds no image, or a pattern matches no file.
    """
    results = [folder.resolve() for folder in without]
    files = [file for name in named for file in _files(name, results)]
    scenes = [is_scene(file, high) for file in files]
    return Inputs(
        [file for file, scene in zip(files, scenes, strict=True) if not scene],
        [file for file, scene in zip(files, scenes, strict=True) if scene],
    )


def _files(name: str, results: Sequence[Path]) -> list[str]:
    """Return the files that a name stands for; a file may be called ``[1].png``, so an existing one is no pattern."""
    if is_url(name):
        return [name]
    if not name:
        raise UsageError("inputs: one of them is empty; name a file, folder, pattern or URL")
    path = Path(name)
    if path.is_dir():
        known = {*SUFFIXES, *SLIDE_SUFFIXES}
        found = sorted(
            str(file)
            for file in path.rglob("*")
            if file.suffix.lower() in known and not _hidden(file.relative_to(path)) and file.is_file()
            if not any(folder in file.resolve().parents for folder in results if folder != path.resolve())
        )
        if not found:
            raise DataError(f"{name}: holds no image ({', '.join(sorted(SUFFIXES))}); name image files or scenes")
        return found
    if path.exists() or not glob.has_magic(name):
        return [name]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise DataError(f"{name}: matches no file; check the pattern")
    return found


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_scene(name: str, high: Size) -> bool:
    """Check whether a file or URL is a scene, for a model of this HR size; one that cannot be read is not."""
    if is_url(name) or name.lower().endswith(SLIDE_SUFFIXES):
        return True
    if not name.lower().endswith(TIFF_SUFFIXES):
        return False
    if not Path(name).exists():
        return True  # one that is gone may have been finished before
    try:
        with closing(LocalFile(Path(name))) as file:
            header = read_header(file)
        size, placed = (header.levels[0].height, header.levels[0].width), header.georeference is not None
    except HeaderError:
        try:  # in strips, perhaps: whoever reads scenes says how to convert a large one
            size, placed = read_size(Path(name)), False
        except DataError:
            return True  # no image either: a slide, perhaps
    except DataError:
        return False
    least = CELLS_PLACED if placed else CELLS
    return all(side >= least * cell for side, cell in zip(size, high, strict=True))
