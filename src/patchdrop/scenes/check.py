"""Check from its header whether a file is fit for partial reading, what a patch costs, and what makes it fit."""

from __future__ import annotations

import math
import shlex
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from patchdrop.errors import DataError
from patchdrop.grid import Shape, boxes, patch_size
from patchdrop.grid import shape_of as parsed
from patchdrop.read.slide import slide_instead, slide_level, slide_misfit
from patchdrop.read.tiled import low_level, low_misfit, misfit
from patchdrop.runs.folder import RunFolder
from patchdrop.scenes.concurrency import SceneBar, concurrently
from patchdrop.scenes.listing import Source
from patchdrop.tiff.decode import unreadable
from patchdrop.tiff.directory import COMPRESSIONS, Header, HeaderError, Level, read_header
from patchdrop.tiff.tiles import covering
from patchdrop.transport.opening import open_transport
from patchdrop.transport.ranges import is_url, public_name
from patchdrop.transport.remote import LIMIT

SAMPLED = 512
"""Number of cells, evenly spread, whose patches are priced; a scene with fewer has all priced."""


def shape_of(run: Path | None, high: str, low: str, grid: str) -> Shape:
    """Return sizes and grid of a run's settings or, without a run, as given, for three bands.

    Raises:
        UsageError: see `patchdrop.grid.shape_of`.
    """
    if run is not None:
        return RunFolder(run).settings().shape
    return parsed(high, low, grid, 3)


def check(
    sources: Sequence[Source],
    shape: Shape,
    failed: Callable[[str], None],
    jobs: int = 1,
    cache: Path | None = None,
    limit: float = LIMIT,
) -> list[dict[str, Any]]:
    """Describe each file, and check whether a model of this shape can read it in parts.

    Args:
        failed: called with the reason for each file whose header cannot be read.
        jobs: files at once.
        cache, limit: see `open_transport`.
    """
    stop = threading.Event()

    def one(source: Source, bar: SceneBar) -> dict[str, Any]:
        bar.begin(1)
        try:
            return check_one(source, shape, stop, cache, limit)
        except DataError as error:
            return {"scene": public_name(source.scene), "fit": False, "reasons": [str(error)], "advice": []}
        finally:
            bar.advance(1)

    found = concurrently(one, sources, jobs, failed, stop, "headers")
    for one_found in found:
        if "size" not in one_found:
            failed(one_found["reasons"][0])
    return found


def check_one(
    source: Source, shape: Shape, stop: threading.Event, cache: Path | None, limit: float = LIMIT
) -> dict[str, Any]:
    """Check one file, and what its LR comes from, as `check` does; raise DataError if a header cannot be read."""
    with closing(open_transport(source.scene, limit, stop=stop, cache=cache)) as transport:
        try:
            header = read_header(transport)
        except HeaderError as refused:
            if is_url(source.scene):
                raise
            return _check_slide(source.scene, shape, refused)
    full, low = header.levels[0], low_level(header, shape)
    reason = misfit(header, shape, overview=source.low is None)
    if source.low is not None and not reason:
        with closing(open_transport(source.low, limit, stop=stop, cache=cache)) as beside:
            below = low_misfit(read_header(beside), shape)
            reason = f"its LR scene {beside.name}: {below}" if below else ""
    tiled = full.tile is not None
    patch = patch_size(shape.grid, *shape.high)
    place = header.georeference
    return {
        "scene": transport.name,
        "fit": not reason,
        "reasons": [reason] if reason else [],
        "advice": [command(transport.name, header, shape)] if reason or not _aligned(full, patch) else [],
        "bytes": transport.size,
        "size": [full.height, full.width],
        "bands": full.colours,
        "alpha": full.alpha is not None,
        "dtype": full.kind,
        "compression": COMPRESSIONS.get(full.compression, str(full.compression)),
        "interleave": "band" if full.planar else "pixel",
        "nodata": full.nodata if full.nodata is None or math.isfinite(full.nodata) else str(full.nodata),
        "masks": header.masks,
        "tiled": tiled,
        "tile": list(full.tile) if full.tile else None,
        "overviews": [_overview(full, level) for level in header.levels[1:]],
        "low": None if low is None else {**_overview(full, low), "wanted": shape.high[1] / shape.low[1]},
        "patch": list(patch),
        "aligned": _aligned(full, patch),
        **(_patch_costs(full, shape) if tiled and not reason else {"bytes_per_patch": None, "tiles_per_patch": None}),
        "georeference": None if place is None else {"epsg": place.epsg, "matrix": list(place.matrix)},
        "header": transport.ledger.of("header")._asdict(),
    }


def _check_slide(source: str, shape: Shape, refused: HeaderError) -> dict[str, Any]:
    """Check a slide for OpenSlide as `check_one` does; what a patch costs is unknown, as OpenSlide reads by itself."""
    with closing(slide_instead(source, refused)) as file:
        width, height = file.slide.dimensions
        levels = [
            {"size": [h, w], "factor": round(width / w, 3), "tile": None, "bytes": None}
            for w, h in file.slide.level_dimensions
        ]
        low, reason = slide_level(file, shape), slide_misfit(file, shape)
        return {
            "scene": file.name,
            "fit": not reason,
            "reasons": [reason] if reason else [],
            "advice": [],
            "bytes": file.size,
            "size": [height, width],
            "bands": 3,
            "alpha": False,
            "dtype": "uint8",
            "slide": file.vendor,
            "overviews": levels[1:],
            "low": None if low is None else {**levels[low], "wanted": shape.high[1] / shape.low[1]},
            "patch": list(patch_size(shape.grid, *shape.high)),
            "georeference": None,
        }


def _overview(full: Level, level: Level) -> dict[str, Any]:
    return {
        "size": [level.height, level.width],
        "factor": round(full.width / level.width, 3),
        "tile": list(level.tile) if level.tile else None,
        "bytes": int(level.counts.sum()),
    }


def _aligned(full: Level, patch: tuple[int, int]) -> bool:
    """Return whether patches are made of whole tiles."""
    return full.tile is not None and all(side % tile == 0 for side, tile in zip(patch, full.tile, strict=True))


def _patch_costs(full: Level, shape: Shape) -> dict[str, float]:
    """Return mean bytes and tiles of patches read one by one: a tile that several patches share counts for each."""
    height, width = shape.high
    rows, cols = full.height // height, full.width // width
    cells = np.unique(np.linspace(0, rows * cols - 1, min(rows * cols, SAMPLED)).astype(int)).tolist()
    tiles, received, patches = 0, 0, 0
    in_plane = full.tile_grid[0] * full.tile_grid[1]
    planes = full.bands if full.planar else 1
    for cell in cells:
        y, x = cell // cols * height, cell % cols * width
        for top, left, bottom, right in boxes(shape.grid, height, width):
            covers = covering(full, (top + y, left + x, bottom + y, right + x))
            tiles += len(covers)
            received += sum(int(full.counts[t + p * in_plane]) for t in covers for p in range(planes))
            patches += 1
    return {"bytes_per_patch": round(received / patches, 1), "tiles_per_patch": round(tiles / patches, 3)}


def command(name: str, header: Header, shape: Shape) -> str:
    """Return the gdal_translate command that makes a file fit, with tiles no larger than a patch if GDAL allows it."""
    full = header.levels[0]
    side = min(patch_size(shape.grid, *shape.high))
    block = min(512, max(128, 1 << (side.bit_length() - 1)))
    factor = min(high // low for high, low in zip(shape.high, shape.low, strict=True))
    words = ["gdal_translate", "-of", "COG"]
    if full.photometric == 3:
        words += ["-expand", "rgb" if shape.channels == 3 else "gray"]
    elif full.colours != shape.channels:
        words += [w for band in range(1, min(full.colours, shape.channels) + 1) for w in ("-b", str(band))]
    if full.kind not in ("uint8", "uint16"):
        words += ["-ot", "Byte", "-scale"]
    kept = COMPRESSIONS.get(full.compression, "none")
    lossy = kept in ("jpeg", "webp") and not unreadable(full)
    words += ["-co", f"COMPRESS={kept.upper()}"] if lossy else ["-co", "COMPRESS=DEFLATE", "-co", "PREDICTOR=YES"]
    words += ["-co", f"BLOCKSIZE={block}", "-co", "OVERVIEWS=IGNORE_EXISTING", "-co", "RESAMPLING=AVERAGE"]
    words += ["-co", f"OVERVIEW_COUNT={max(1, factor.bit_length() - 1)}"]
    return shlex.join([*words, name, "fit.tif"])
