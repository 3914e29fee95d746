"""List the kinds of file that `predict` writes; free of torch, so that the command line answers at once."""

from __future__ import annotations

from typing import Literal

Format = Literal["jsonl", "csv", "geojson", "gpkg", "parquet", "map", "png"]
DEFAULT: tuple[Format, ...] = ("jsonl", "csv", "geojson")
ENDINGS: dict[Format, str] = {
    "jsonl": ".jsonl",
    "csv": ".csv",
    "geojson": ".geojson",
    "gpkg": ".gpkg",
    "parquet": ".parquet",
    "map": ".map.tif",
    "png": ".png",
}
"""Ending of a file's name."""
OF_IMAGES: tuple[Format, ...] = ("jsonl", "csv", "parquet")
"""Kinds that there are for image files too."""
PACKAGES: dict[Format, tuple[str, str]] = {
    "gpkg": ("pyogrio", "geo"),
    "map": ("rasterio", "geo"),
    "parquet": ("pyarrow", "cluster"),
}
"""Package that a kind needs, and the extra that brings it."""
