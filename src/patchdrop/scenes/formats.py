"""List the kinds of file that `predict` writes for a scene; free of torch, so that the command line answers at once."""

from __future__ import annotations

from typing import Literal

Format = Literal["jsonl", "csv", "geojson", "gpkg", "map", "png"]
DEFAULT: tuple[Format, ...] = ("jsonl", "csv", "geojson")
ENDINGS: dict[Format, str] = {
    "jsonl": ".jsonl",
    "csv": ".csv",
    "geojson": ".geojson",
    "gpkg": ".gpkg",
    "map": ".map.tif",
    "png": ".png",
}
"""Ending of a file's name."""
PACKAGES: dict[Format, str] = {"gpkg": "pyogrio", "map": "rasterio"}
"""Package of the extra ``geo`` that a kind needs."""
