"""COGs for tests, written by GDAL: painted, where a pixel's value tells which level was read, and with pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio.enums import Resampling
from rasterio.errors import NotGeoreferencedWarning
from rasterio.shutil import copy
from rasterio.transform import from_origin

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

UTM = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_000_000, 2, 2)}
"""Somewhere near Zadar, 2 m a pixel."""


def picture(height: int, width: int, bands: int = 3, seed: int = 0) -> NDArray[np.uint8]:
    """``(bands, height, width)``: smooth shapes with some noise, so that every window is different."""
    draw = np.random.default_rng(seed)
    rough = draw.integers(0, 256, (bands, height // 16 + 2, width // 16 + 2), dtype=np.uint8)
    smooth = [np.asarray(Image.fromarray(band).resize((width, height), Image.Resampling.BICUBIC)) for band in rough]
    noisy = np.stack(smooth).astype(int) + draw.integers(-6, 7, (bands, height, width))
    return noisy.clip(0, 255).astype(np.uint8)


def write_cog(
    path: Path,
    pixels: NDArray[Any],
    compress: str = "DEFLATE",
    block: int = 128,
    where: Mapping[str, Any] | None = None,
    profile: Mapping[str, Any] | None = None,
    **options: str,
) -> Path:
    """A COG of ``pixels (bands, height, width)``, overviews averaged.

    Args:
        where: georeference, `UTM` if left out, empty for none.
        profile: more for the file it is made from, such as ``nodata``.
        options: creation options of GDAL's COG driver.
    """
    source = path.with_suffix(".source.tif")
    bands, height, width = pixels.shape
    settings = {"driver": "GTiff", "count": bands, "height": height, "width": width, "dtype": pixels.dtype}
    settings |= {"photometric": "RGB"} if bands >= 3 else {}
    with rasterio.open(source, "w", **{**settings, **(UTM if where is None else where), **(profile or {})}) as file:
        file.write(pixels)
    chosen = {"OVERVIEWS": "IGNORE_EXISTING", "RESAMPLING": "AVERAGE", "BLOCKSIZE": str(block), **options}
    copy(source, path, driver="COG", COMPRESS=compress, **chosen)
    source.unlink()
    return path


def write_painted(
    path: Path, side: int, colours: Mapping[int, int], compress: str = "DEFLATE", block: int = 128
) -> Path:
    """A square COG of three bands whose level ``factor`` times coarser has the value ``colours[factor]`` all over."""
    layers = {}
    for factor, colour in colours.items():
        layer = path.with_suffix(f".{factor}.tif")
        size = -(-side // factor)
        with rasterio.open(layer, "w", driver="GTiff", count=3, height=size, width=size, dtype="uint8") as file:
            file.write(np.full((3, size, size), colour, np.uint8))
        layers[factor] = layer
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}"><SimpleSource><SourceFilename>{layers[1]}</SourceFilename>'
        f"<SourceBand>{band}</SourceBand></SimpleSource>"
        + "".join(
            f"<Overview><SourceFilename>{layer}</SourceFilename><SourceBand>{band}</SourceBand></Overview>"
            for factor, layer in layers.items()
            if factor > 1
        )
        + "</VRTRasterBand>"
        for band in (1, 2, 3)
    )
    virtual = path.with_suffix(".vrt")
    virtual.write_text(f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{bands}</VRTDataset>', encoding="utf-8")
    copy(virtual, path, driver="COG", COMPRESS=compress, BLOCKSIZE=str(block), OVERVIEWS="AUTO")
    for used in (virtual, *layers.values()):
        used.unlink()
    return path


def write_slide(path: Path, pixels: NDArray[np.uint8], factors: tuple[int, ...] = (2, 4)) -> Path:
    """A tiled pyramid of ``pixels (3, height, width)`` with a label beside it, as scanners write it.

    OpenSlide opens it as ``generic-tiff``; our own reader refuses it, because of the second image.
    """
    _, height, width = pixels.shape
    colour = {"count": 3, "dtype": "uint8", "photometric": "RGB"}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate"}
    with rasterio.open(path, "w", driver="GTiff", height=height, width=width, **colour, **tiles) as file:
        file.write(pixels)
        file.build_overviews(list(factors), Resampling.average)
    with rasterio.open(path, "w", driver="GTiff", height=32, width=48, **colour, APPEND_SUBDATASET="YES") as file:
        file.write(np.full((3, 32, 48), 90, np.uint8))
    return path
