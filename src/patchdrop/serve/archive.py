"""The predictions of many image files, in a folder that several processes may write to.

Images are cut into blocks, and each finished block has a part, a file of lines of JSON, in the folder
``predictions.parts``. When every block has one, the parts become ``predictions.jsonl`` and what else is asked for, and
are removed; ``predictions.json`` then says of which images and choices these are.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from patchdrop.errors import RunError, UsageError
from patchdrop.files import beside, claimed, read_json, remove_unfinished, write_json, writing

NAME = "predictions"
BLOCK = 256
"""Images in a block; a multiple of those predicted at a time, which are then the same with blocks and without."""
ROWS_A_PART = 100_000
"""Rows of one Parquet file."""
COLUMNS = (
    *("path", "label", "probability", "patches", "hr_fraction"),
    *("chance_now", "chance_after", "chance_all", "error"),
)
ENDINGS = {"jsonl": ".jsonl", "csv": ".csv", "parquet": ".parquet"}
"""Kinds of files, and their endings; Parquet is a folder of files."""
Rows = Iterator[dict[str, Any]]


class Block(NamedTuple):
    """Some of the images, which are predicted together."""

    images: tuple[str, ...]
    lows: tuple[str, ...] | None
    """LR images of a sensor of their own."""
    pictures: tuple[str, ...]
    """Names of the pictures of what was read."""
    name: str = ""
    """Says which files, in the state that they were found in, and which choice its results are of."""

    def one_by_one(self) -> list[Block]:
        """Cut it into blocks of one image."""
        lows = self.lows or (None,) * len(self.images)
        return [
            Block((image,), None if low is None else (low,), (picture,))
            for image, low, picture in zip(self.images, lows, self.pictures, strict=True)
        ]


def blocks_of(images: Sequence[str], lows: Sequence[str | Path] | None, pictures: Sequence[str]) -> list[Block]:
    """Cut images into blocks of `BLOCK`."""
    starts = range(0, len(images), BLOCK)
    parts = [slice(start, start + BLOCK) for start in starts]
    return [
        Block(tuple(images[part]), None if lows is None else tuple(map(str, lows[part])), tuple(pictures[part]))
        for part in parts
    ]


def refused(path: str, reason: str) -> dict[str, Any]:
    """Return the row of an image that could not be read."""
    return {**dict.fromkeys(COLUMNS), "path": path, "patches": [], "error": reason}


def to_line(row: Mapping[str, Any]) -> bytes:
    """Return a row as a line of JSON."""
    return json.dumps({name: row[name] for name in COLUMNS}).encode() + b"\n"


@dataclass(frozen=True)
class Archive:
    """A folder of predictions, and the blocks that it is to have.

    Attributes:
        identity: what tells these results from others: stage, weights, choice.
        digest: of identity and all images.
    """

    folder: Path
    formats: tuple[str, ...]
    identity: Mapping[str, Any]
    blocks: Sequence[Block]
    digest: str

    @classmethod
    def of(cls, folder: Path, formats: Sequence[str], identity: Mapping[str, Any], blocks: Sequence[Block]) -> Archive:
        """Describe the folder; UsageError if a kind of file needs a package that is not installed."""
        if "parquet" in formats and importlib.util.find_spec("pyarrow") is None:
            raise UsageError("--format parquet needs pyarrow: install it with `pip install 'patchdrop[cluster]'`")
        named = [block._replace(name=_name(block, identity)) for block in blocks]
        digest = hashlib.sha256("".join(block.name for block in named).encode()).hexdigest()
        return cls(folder, tuple(kind for kind in ENDINGS if kind in formats), identity, named, digest)

    def without_blocks(self) -> Archive:
        """Return the same for a worker, which is told each of its blocks."""
        return replace(self, blocks=())

    def part(self, block: Block) -> Path:
        """Return the path of a block's part."""
        return self.folder / f"{NAME}.parts" / f"{block.name}.jsonl"

    def unfinished(self) -> int:
        """Count the blocks without a part."""
        return sum(not self.part(block).exists() for block in self.blocks)

    def found(self) -> dict[str, Any] | None:
        """Return the document of ``predictions.json``, of whatever images; None if it is damaged or lacks a file."""
        path = self.folder / f"{NAME}.json"
        if not path.exists():
            return None
        try:
            found = dict(read_json(path))
            whole = all((self.folder / name).exists() for name in found["files"].values()) and "jsonl" in found["files"]
        except (RunError, KeyError, TypeError, ValueError, AttributeError):
            return None
        return found if whole else None

    def finished(self) -> dict[str, Any] | None:
        """Return the same if it is of these images and choices, whatever the formats."""
        found = self.found()
        return found if found is not None and found.get("digest") == self.digest else None

    def joined(self) -> dict[str, Any] | None:
        """Make the files of the parts, if all are there, and return the document of ``predictions.json``.

        Returns:
            None: parts of some blocks are not there.
        """
        while True:
            with claimed(self.folder / f".{NAME}.claim") as mine:
                if mine:
                    found = self.finished()
                    if found is not None and set(self.formats) <= set(found["files"]):
                        return found
                    parts = [self.part(block) for block in self.blocks]
                    if found is not None:  # only kinds of files are missing
                        self._write([self.folder / found["files"]["jsonl"]])
                    elif all(part.exists() for part in parts):
                        self._write(parts)
                        _remove(parts)
                    else:
                        return None
            if not mine:
                time.sleep(0.2)

    def of_blocks(self, blocks: Sequence[Block]) -> tuple[dict[str, Any], list[str]]:
        """Sum up finished blocks, and list why images of them could not be read."""
        parts = [part for part in map(self.part, blocks) if part.exists()]
        return _summary(_read(parts)), [row["error"] for row in _read(parts) if row["error"] is not None]

    def rows(self) -> Rows:
        """Yield the rows of ``predictions.jsonl``."""
        yield from _read([self.folder / f"{NAME}{ENDINGS['jsonl']}"])

    def reasons(self) -> Iterator[str]:
        """Yield why images could not be read, in their order."""
        return (row["error"] for row in self.rows() if row["error"] is not None)

    def _write(self, parts: Sequence[Path]) -> None:
        remove_unfinished(self.folder, NAME)
        (self.folder / f"{NAME}.json").unlink(missing_ok=True)  # it says what the other files are of
        kinds = [kind for kind in ENDINGS if kind == "jsonl" or kind in self.formats]
        for kind in kinds:
            WRITERS[kind](self.folder / f"{NAME}{ENDINGS[kind]}", _read(parts))
        for kind in set(ENDINGS) - set(kinds):  # of an earlier call
            path = self.folder / f"{NAME}{ENDINGS[kind]}"
            if path.is_dir():
                shutil.rmtree(path)
            path.unlink(missing_ok=True)
        document = {**self.identity, **_summary(_read(parts)), "files": {k: f"{NAME}{ENDINGS[k]}" for k in kinds}}
        write_json(self.folder / f"{NAME}.json", {**document, "digest": self.digest})


def _remove(parts: Sequence[Path]) -> None:
    """Remove parts that are joined, and their folder if it holds no others."""
    for part in parts:
        part.unlink(missing_ok=True)
        part.with_suffix(".claim").unlink(missing_ok=True)
    folder = parts[0].parent
    if not any(path.suffix in (".jsonl", ".claim") and not path.name.startswith(".") for path in folder.iterdir()):
        shutil.rmtree(folder, ignore_errors=True)


def _name(block: Block, identity: Mapping[str, Any]) -> str:
    files = [(name, _state(name)) for name in (*block.images, *(block.lows or ()))]
    return hashlib.sha256(json.dumps([identity, files, block.pictures], sort_keys=True).encode()).hexdigest()[:32]


def _state(name: str) -> tuple[int, int] | None:
    """Return size and time of a file's last change; None if there is no file."""
    try:
        found = os.stat(name)
    except (OSError, ValueError):
        return None
    return found.st_size, found.st_mtime_ns


def _read(parts: Sequence[Path]) -> Rows:
    for part in parts:
        with part.open("rb") as lines:
            yield from map(json.loads, lines)


def _summary(rows: Rows) -> dict[str, Any]:
    """Count images, failures and classes, and average what was read."""
    images, read = 0, 0.0
    classes: Counter[str] = Counter()
    for row in rows:
        images += 1
        if row["error"] is None:
            classes[row["label"]] += 1
            read += row["hr_fraction"]
    right = sum(classes.values())
    counts = dict(sorted(classes.items()))
    return {
        "images": images,
        "failed": images - right,
        "classes": counts,
        "hr_fraction": read / right if right else None,
    }


def _write_lines(path: Path, rows: Rows) -> None:
    with writing(path) as file:
        for row in rows:
            file.write(to_line(row).decode())


def _write_csv(path: Path, rows: Rows) -> None:
    with writing(path, "backslashreplace") as file:  # for names that are no UTF-8
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in rows:
            table.writerow({**row, "patches": " ".join(map(str, row["patches"]))})


def _write_parquet(path: Path, rows: Rows) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = {name: pyarrow.float64() for name in COLUMNS}
    kinds |= {name: pyarrow.string() for name in ("path", "label", "error")}
    schema = pyarrow.schema(list({**kinds, "patches": pyarrow.list_(pyarrow.int32())}.items()))
    if path.is_dir():
        shutil.rmtree(path)
    for number in itertools.count():
        some = list(itertools.islice(rows, ROWS_A_PART))
        if not some and number:
            return
        with beside(path / f"part-{number:05}.parquet") as other:
            parquet.write_table(pyarrow.Table.from_pylist([_printable(row) for row in some], schema), other)


def _printable(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with what is no UTF-8, as a name may be, written with escapes."""
    texts = {
        name: text.encode("utf-8", "backslashreplace").decode() for name, text in row.items() if isinstance(text, str)
    }
    return {**row, **texts}


WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "jsonl": _write_lines,
    "csv": _write_csv,
    "parquet": _write_parquet,
}
