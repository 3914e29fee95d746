"""Look at files and URLs, and tell image files from scenes.

A folder stands for the image files in it and below, a pattern for the files that it matches, and a list for the files
and URLs that it names: a ``.txt`` file with one a line, or ``.csv`` and ``.parquet`` files with a column ``path``. The
rest is

* a scene if it lies behind a URL, is a slide, or is a TIFF of at least `CELLS` cells a side, `CELLS_PLACED` if it has a
  place on Earth: it is cut into cells of HR's size, each of which gets a class;
* an image otherwise: it gets one class.
"""

from __future__ import annotations

import csv
import glob
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from patchdrop.errors import DataError, UsageError, first_line
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
    if path.suffix.lower() in LISTS:
        return _listed(path)
    if path.exists() or not glob.has_magic(name):
        return [name]
    found = sorted(glob.glob(name, recursive=True))
    if not found:
        raise DataError(f"{name}: matches no file; check the pattern")
    return found


def _listed(path: Path) -> list[str]:
    """Return the files and URLs that a list names; its folder is where their own names start from."""
    try:
        names = LISTS[path.suffix.lower()](path)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: is no UTF-8 text; save it as such") from error
    if not names:
        raise DataError(f"{path}: names no file; add some")
    return [name if is_url(name) else str(path.parent / name) for name in names]


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip()]


def _csv_column(path: Path) -> list[str]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        reader = csv.DictReader(stream, strict=True)
        try:
            if COLUMN not in (reader.fieldnames or ()):
                raise _no_column(path, reader.fieldnames or ())
            rows = [(reader.line_num, (row[COLUMN] or "").strip()) for row in reader]
        except csv.Error as error:
            raise DataError(f"{path}: is no CSV file ({error}); save it as UTF-8 text with commas") from error
    for line, name in rows:
        if not name:
            raise DataError(f"{path}: line {line}: no {COLUMN}; fill it in or remove the line")
    return [name for _, name in rows]


def _parquet_column(path: Path) -> list[str]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError as error:
        raise UsageError(
            f"{path}: Parquet needs pyarrow; install it with `pip install 'patchdrop[cluster]'`"
        ) from error
    try:
        file = parquet.ParquetFile(path)
        if COLUMN not in file.schema_arrow.names:
            raise _no_column(path, file.schema_arrow.names)
        if file.schema_arrow.names.count(COLUMN) > 1:
            raise DataError(f"{path}: has two columns {COLUMN!r}; keep one")
        names = file.read([COLUMN]).column(COLUMN).to_pylist()
    except ArrowException as error:
        raise DataError(f"{path}: is no Parquet file, or is damaged ({first_line(error)})") from error
    for row, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise DataError(f"{path}: row {row}: no {COLUMN}; fill it in or remove the row")
    return list(names)


def _no_column(path: Path, columns: Sequence[str]) -> DataError:
    advice = "give it to --scenes" if "scene" in columns else "rename one"
    return DataError(f"{path}: no column {COLUMN!r}, it has {', '.join(columns) or 'none'}; {advice}")


COLUMN = "path"
LISTS: dict[str, Callable[[Path], list[str]]] = {".txt": _lines, ".csv": _csv_column, ".parquet": _parquet_column}
"""Endings of lists, and what reads each."""


def _hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def is_scene(name: str, high: Size) -> bool:
    """Check whether a file or URL is a scene, for a model of this HR size; one that cannot be read is not."""
    if is_url(name) or name.lower().endswith(SLIDE_SUFFIXES):
        return True
    if not name.lower().endswith(TIFF_SUFFIXES):
        return False
    try:
        if not Path(name).exists():
            return True  # one that is gone may have been finished before
        with closing(LocalFile(Path(name))) as file:
            header = read_header(file)
        size, placed = (header.levels[0].height, header.levels[0].width), header.georeference is not None
    except HeaderError:
        try:  # in strips, perhaps: whoever reads scenes says how to convert a large one
            size, placed = read_size(Path(name)), False
        except DataError:
            return True  # no image either: a slide, perhaps
    except (DataError, OSError, ValueError):  # whoever reads it says what is wrong with it
        return False
    least = CELLS_PLACED if placed else CELLS
    return all(side >= least * cell for side, cell in zip(size, high, strict=True))
