"""Write the results for a scene's cells as they come, with a writer for each kind of file.

Text files are written cell by cell, the GeoPackage in batches. The class map holds a number for each cell, the picture
is bounded in size; both are written when the scene is finished. No file appears before that.

GDAL only writes here: it opens nothing that comes from a user.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

import numpy as np
from numpy.typing import NDArray

from patchdrop.errors import RunError, UsageError, first_line
from patchdrop.files import beside, write_bytes, writing
from patchdrop.read.tiled import Cells
from patchdrop.report import theme
from patchdrop.report.scene import ScenePicture, png
from patchdrop.scenes.formats import ENDINGS, PACKAGES, Format
from patchdrop.scenes.geojson import COLLECTION_END, collection_start, feature
from patchdrop.scenes.places import Places
from patchdrop.tiff.tiles import Box

BATCH = 4096
"""Cells that are handed to the GeoPackage at once."""
_COLUMNS = (
    *("cell", "top", "left", "bottom", "right", "label", "probability", "patches"),
    *("chance_now", "chance_after"),
)


class CellResult(NamedTuple):
    """The result for one cell; ``label`` and ``low`` are None if all of it is nodata."""

    cell: int
    box: Box
    label: str | None
    probability: float
    patches: tuple[int, ...]
    chance_now: float | None = None
    """The policy's chance, 0 to 1, that the label is right without HR; None if it predicts none."""
    chance_after: float | None = None
    """The same after the patches that were read."""
    low: NDArray[np.uint8] | None = None
    """LR, ``(C, h, w)``."""


class Writer(Protocol):
    """A writer that takes a scene's cells in their order."""

    def add(self, found: CellResult) -> None:
        """Add one more cell."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Finish after the last cell; ``summary`` is the document of ``NAME.json``."""


def check_formats(formats: Sequence[Format]) -> None:
    """Raise UsageError if a kind of file needs a package that is not installed."""
    for kind in formats:
        package, extra = PACKAGES.get(kind, ("", ""))
        if package and importlib.util.find_spec(package) is None:
            raise UsageError(f"--format {kind} needs {package}: install it with `pip install 'patchdrop[{extra}]'`")


def file_name(name: str, kind: Format) -> str:
    """Return the name of a scene's file of a kind; ``name`` is the scene's."""
    return name + ENDINGS[kind]


@contextmanager
def outputs(
    formats: Sequence[Format], path: Path, scene: Cells, places: Places, classes: Sequence[str]
) -> Iterator[list[Writer]]:
    """Yield a writer for each kind of file; the files are there when the block ends, and none if it raises.

    Args:
        path: folder and scene's name, without an ending.
        classes: classes of the model, in its order.

    Raises:
        RunError: a file cannot be written.
    """
    with ExitStack() as stack:
        writers: list[Writer] = []
        for kind in dict.fromkeys(formats):
            at = path.with_name(file_name(path.name, kind))
            if kind == "jsonl":
                writers.append(JsonLines(stack.enter_context(writing(at))))
            elif kind == "csv":
                writers.append(Csv(stack.enter_context(writing(at))))
            elif kind == "geojson":
                writers.append(GeoJson(stack.enter_context(writing(at)), places))
            elif kind == "gpkg":
                writers.append(GeoPackage(stack.enter_context(beside(at)), places))
            elif kind == "parquet":
                writers.append(stack.enter_context(closing(GeoParquet(stack.enter_context(beside(at)), places))))
            elif kind == "map":
                writers.append(ClassMap(at, scene, places, classes))
            else:
                writers.append(Picture(at, scene, classes))
        yield writers


class JsonLines:
    """A writer of a line of JSON for each cell."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def add(self, found: CellResult) -> None:
        """Write one more line."""
        self._file.write(json.dumps({"cell": found.cell, "box": found.box, **_decided(found)}) + "\n")

    def finish(self, summary: dict[str, Any]) -> None:
        """Do nothing; all is written already."""


class Csv:
    """A writer of a row for each cell; spaces separate the numbers of its patches."""

    def __init__(self, file: TextIO) -> None:
        self._table = csv.writer(file)
        self._table.writerow(_COLUMNS)

    def add(self, found: CellResult) -> None:
        """Write one more row."""
        decided = (found.label, f"{found.probability:.6f}", _joined(found.patches))
        chances = ("" if chance is None else f"{chance:.6f}" for chance in (found.chance_now, found.chance_after))
        self._table.writerow((found.cell, *found.box, *decided, *chances))

    def finish(self, summary: dict[str, Any]) -> None:
        """Do nothing; all is written already."""


class Features:
    """A collection of GeoJSON features, written one by one; ``kind`` is that of `Places`."""

    def __init__(self, file: TextIO, kind: str) -> None:
        self._file = file
        self._separator = "\n"
        file.write(collection_start(kind))

    def add(self, geometry: dict[str, Any], properties: dict[str, Any]) -> None:
        """Add one more feature."""
        self._file.write(self._separator + json.dumps(feature(geometry, properties)))
        self._separator = ",\n"

    def end(self) -> None:
        """End the collection."""
        self._file.write(COLLECTION_END)


class GeoJson:
    """A writer of a GeoJSON feature for each cell."""

    def __init__(self, file: TextIO, places: Places) -> None:
        self._features, self._places = Features(file, places.kind), places

    def add(self, found: CellResult) -> None:
        """Add one more feature."""
        self._features.add(self._places.polygon(found.box), {"cell": found.cell, **_decided(found)})

    def finish(self, summary: dict[str, Any]) -> None:
        """End the collection."""
        self._features.end()


class GeoPackage:
    """A writer of a layer ``cells`` in the scene's own coordinates, with the columns of the CSV file."""

    def __init__(self, path: Path, places: Places) -> None:
        self._path, self._places = path.resolve(), places
        self._held: list[CellResult] = []
        self._begun = False

    def add(self, found: CellResult) -> None:
        """Add one more feature."""
        self._held.append(found._replace(low=None))
        if len(self._held) == BATCH:
            self._write()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the features that are still held."""
        if self._held or not self._begun:
            self._write()

    def _write(self) -> None:
        from pyogrio.errors import DataLayerError, DataSourceError
        from pyogrio.raw import write

        held, self._held = self._held, []
        shapes = np.array([_wkb(self._places.ring(c.box)) for c in held], dtype=object)
        boxes = np.array([c.box for c in held]).reshape(-1, 4)
        columns: list[NDArray[Any]] = [
            np.array([c.cell for c in held], dtype=np.int64),
            *boxes.T,
            np.array([c.label for c in held], dtype=object),
            np.array([c.probability for c in held], dtype=np.float64),
            np.array([_joined(c.patches) for c in held], dtype=object),
            np.array([c.chance_now for c in held], dtype=np.float64),  # None is NaN here, and no value in the file
            np.array([c.chance_after for c in held], dtype=np.float64),
        ]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # about a missing coordinate system
                write(
                    self._path,
                    shapes,
                    columns,
                    np.array(_COLUMNS, dtype=object),
                    layer="cells",
                    driver="GPKG",
                    geometry_type="Polygon",
                    crs=self._places.crs,
                    append=self._begun,
                )
        except (DataSourceError, DataLayerError, RuntimeError) as error:
            raise RunError(
                f"{self._path}: cannot be written ({first_line(error)}); make room or use another"
            ) from error
        self._begun = True


class GeoParquet:
    """A writer of a GeoParquet 1.1 file in the scene's own coordinates, with the columns of the CSV file."""

    def __init__(self, path: Path, places: Places) -> None:
        import pyarrow
        from pyarrow import parquet
        from pyproj import CRS

        kinds = {name: pyarrow.int64() for name in _COLUMNS}
        kinds |= {name: pyarrow.float64() for name in ("probability", "chance_now", "chance_after")}
        kinds |= {"label": pyarrow.string(), "patches": pyarrow.list_(pyarrow.int32()), "geometry": pyarrow.binary()}
        crs = None if places.crs is None else CRS.from_user_input(places.crs).to_json_dict()
        geometry = {"encoding": "WKB", "geometry_types": ["Polygon"], "crs": crs}
        said = {"version": "1.1.0", "primary_column": "geometry", "columns": {"geometry": geometry}}
        self._schema = pyarrow.schema(list(kinds.items()), {"geo": json.dumps(said)})
        self._places = places
        self._held: list[dict[str, Any]] = []
        self._file = parquet.ParquetWriter(path, self._schema)

    def add(self, found: CellResult) -> None:
        """Add one more row."""
        box = dict(zip(_COLUMNS[1:5], found.box, strict=True))
        shape = {"geometry": _wkb(self._places.ring(found.box))}
        self._held.append({"cell": found.cell, **box, **_decided(found), **shape})
        if len(self._held) == BATCH:
            self._write()

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the rows that are still held."""
        self._write()
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self) -> None:
        from pyarrow import Table

        held, self._held = self._held, []
        self._file.write_table(Table.from_pylist(held, self._schema))


class ClassMap:
    """A writer of a small COG of one band: a pixel for each patch, whose value is the number of its cell's class.

    Pixels nest in cells. Where the last cells overlap their neighbours, a pixel shows the earlier cell. The last row
    and column of pixels may reach beyond the scene's border, by less than a patch.
    """

    def __init__(self, path: Path, scene: Cells, places: Places, classes: Sequence[str]) -> None:
        self._path, self._scene, self._places, self._classes = path, scene, places, classes
        kind = np.uint8 if len(classes) < 255 else np.uint16
        self._nodata = int(np.iinfo(kind).max)
        self._cells = np.full((scene.rows, scene.cols), self._nodata, kind)
        self._number = {name: i for i, name in enumerate(classes)}

    def add(self, found: CellResult) -> None:
        """Add the class of one more cell."""
        if found.label is not None:
            self._cells[divmod(found.cell, self._scene.cols)] = self._number[found.label]

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the map."""
        from rasterio import Affine
        from rasterio.io import MemoryFile

        scene = self._scene
        grid = scene.shape.grid
        down, across = scene.cell[0] / grid.rows, scene.cell[1] / grid.cols
        height, width = _parts(scene.size[0], down), _parts(scene.size[1], across)
        pixels = self._cells.repeat(grid.rows, 0).repeat(grid.cols, 1)[:height, :width]
        matrix = Affine(*(self._places.matrix or (1, 0, 0, 0, 1, 0))) @ Affine.scale(across, down)
        profile = {"count": 1, "dtype": pixels.dtype, "height": height, "width": width, "nodata": self._nodata}
        with MemoryFile() as memory, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about a missing georeference
            with memory.open(
                driver="COG", crs=self._places.crs, transform=matrix, compress="deflate", **profile
            ) as file:
                file.write(pixels, 1)
                file.set_band_description(1, "class")
                file.write_colormap(1, {i: (*_rgb(theme.class_colour(i)), 255) for i in range(len(self._classes))})
                file.update_tags(CLASSES=json.dumps(list(self._classes), ensure_ascii=False))
            write_bytes(self._path, memory.read())


class Picture:
    """A writer of a picture of the scene's overview, with each cell's class and the patches that were read."""

    def __init__(self, path: Path, scene: Cells, classes: Sequence[str]) -> None:
        self._path, self._scene = path, scene
        self._colours = {name: theme.class_colour(i) for i, name in enumerate(classes)}
        low = max(pixels / side for pixels, side in zip(scene.shape.low, scene.cell, strict=True))
        self._picture = ScenePicture(scene.size, low)

    def add(self, found: CellResult) -> None:
        """Draw one more cell."""
        if found.label is None or found.low is None:
            self._picture.leave_out(found.box)
            return
        read = [self._scene.patch_box(found.cell, patch) for patch in found.patches]
        self._picture.add(found.box, found.low.transpose(1, 2, 0), self._colours[found.label], read)

    def finish(self, summary: dict[str, Any]) -> None:
        """Write the picture."""
        counts = sorted(summary["classes"].items(), key=lambda pair: -pair[1])
        legend = [(name, self._colours[name], count) for name, count in counts]
        name = summary["scene"].rstrip("/").rpartition("/")[2]
        page = self._picture.page(name, legend, _caption(summary, self._scene.shape.grid.patches))
        write_bytes(self._path, png(page))


def _caption(summary: dict[str, Any], patches: int) -> list[str]:
    cells = summary["cells"] - summary["skipped"]
    total, everything = summary["execution"]["total"], summary["everything"]
    times, unit = ("requests", "bytes") if "bytes" in total else ("regions", "pixels")
    skipped = f" ({summary['skipped']:,} more without data)" if summary["skipped"] else ""
    share = theme.percent(summary["patches"] / (cells * patches) if cells else None)
    of_all = theme.percent(total[unit] / everything[unit] if everything[unit] else None)
    read = f"{summary['patches']:,} of {cells * patches:,} patches"
    return [
        f"{cells:,} cells{skipped} · {read} read (bright), {share} of HR",
        f"{total[unit]:,} {unit} in {total[times]:,} {times}, {of_all} of reading everything",
    ]


def _decided(found: CellResult) -> dict[str, Any]:
    chances = {"chance_now": found.chance_now, "chance_after": found.chance_after}
    return {"label": found.label, "probability": found.probability, "patches": found.patches, **chances}


def _joined(patches: Sequence[int]) -> str:
    return " ".join(map(str, patches))


def _wkb(ring: Sequence[tuple[float, float]]) -> bytes:
    """Return a polygon of one ring as well-known binary (OGC 06-103r4)."""
    return struct.pack(f"<BIII{2 * len(ring)}d", 1, 3, 1, len(ring), *(value for point in ring for value in point))


def _rgb(colour: str) -> tuple[int, int, int]:
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def _parts(length: int, part: float) -> int:
    # A quotient that rounding made a little larger than a whole number counts as that number.
    return max(1, int(np.ceil(length / part - 1e-6)))
