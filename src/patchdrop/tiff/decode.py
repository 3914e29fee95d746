"""Decode a tile's bytes to 8-bit pixels.

JPEG and WebP are decoded by Pillow, as plain images are in training, so that there is one decoder for both; DEFLATE by
zlib; LZW, ZSTD and PackBits by the libtiff inside Pillow, which is given nothing but those bytes and their length.

What the samples mean is as for plain images (`patchdrop.read.images`): 16-bit samples are divided by 257; what is
transparent or nodata is black.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from patchdrop.errors import DataError
from patchdrop.tiff.directory import COMPRESSIONS, Level

DECODERS = min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""Tiles or images decoded at once; Pillow and zlib release the interpreter's lock meanwhile."""
_ADOBE = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00"
_MAX_SCANS = 64
_YCBCR = 6
_OTHER_SPACES = {_YCBCR: "YCbCr", 8: "CIELab", 9: "ICCLab", 10: "ITULab"}
_PREDICTED = ("deflate", "lzw", "zstd")


class Pixels(NamedTuple):
    """The pixels of a tile."""

    values: NDArray[np.uint8]
    """``(C, height, width)``, 0..255, without alpha; 0 where nothing was seen."""
    seen: NDArray[np.bool_] | None
    """``(height, width)``: whether a pixel is neither nodata nor transparent; None if that holds for all."""


def unreadable(level: Level) -> str:
    """Say why a level's tiles cannot be decoded, and what to do; empty if they can."""
    if level.tile is None:
        return "is stored in strips, not in tiles"
    if level.compression not in COMPRESSIONS:
        return f"compression {level.compression} is not read"
    if level.kind not in ("uint8", "uint16"):
        return f"samples are {level.kind}, only uint8 and uint16 are read"
    if level.photometric == 3:
        return "has a palette instead of colours"
    if level.photometric in _OTHER_SPACES and not (level.compression == 7 and not level.planar):
        return f"colours are {_OTHER_SPACES[level.photometric]}, only RGB and grey are read, and YCbCr in JPEG"
    if level.compression in (7, 50001) and level.kind != "uint8":
        return f"{COMPRESSIONS[level.compression]} with {level.kind} samples is not read"
    if level.compression == 7 and (1 if level.planar else level.bands) not in (1, 3):
        return f"JPEG of {level.bands} bands is not read"
    if level.compression == 50001 and (level.planar or level.bands not in (3, 4)):
        return f"WebP of {level.bands} bands is not read"
    if level.predictor not in (1, 2):
        return f"predictor {level.predictor} is not read"
    return ""


def decode(level: Level, parts: list[bytes], name: str) -> Pixels:
    """Decode one tile.

    Args:
        parts: the tile's bytes; one part per band if the level is planar. Empty bytes: not stored, all nodata.
        name: name of the scene for errors.

    Raises:
        DataError: the bytes are not such a tile.
    """
    assert level.tile is not None
    if not any(parts):
        shape = (level.colours, *level.tile)
        return Pixels(np.zeros(shape, np.uint8), np.zeros(level.tile, bool))
    try:
        samples = [_samples(level, part) for part in parts]
        bands = np.concatenate(samples) if level.planar else samples[0]
    except Exception as error:  # decoders raise whatever their parsing ran into
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{name}: damaged {COMPRESSIONS[level.compression]} tile ({reason})") from error
    return _pixels(level, bands)


def _samples(level: Level, data: bytes) -> NDArray[np.generic]:
    """Return samples ``(bands, height, width)`` as stored; one band if the level is planar."""
    assert level.tile is not None
    height, width = level.tile
    bands = 1 if level.planar else level.bands
    dtype = np.dtype(level.kind).newbyteorder(level.order)  # type: ignore[arg-type]
    length = height * width * bands * dtype.itemsize
    if not data:
        return np.full((bands, height, width), level.nodata or 0, level.kind)
    if level.compression in (7, 50001):
        return _image(level, data, bands)
    raw = _raw(level, data, length)
    if len(raw) != length:
        raise ValueError(f"{len(raw)} bytes where {length} are needed")
    values = np.frombuffer(raw, dtype).reshape(height, width, bands).astype(level.kind, copy=False)
    if level.predictor == 2 and COMPRESSIONS[level.compression] in _PREDICTED:  # others ignore the tag
        values = np.cumsum(values, axis=1, dtype=level.kind)
    return values.transpose(2, 0, 1)


def _raw(level: Level, data: bytes, length: int) -> bytes:
    kind = COMPRESSIONS[level.compression]
    if kind == "none":
        return data
    if kind == "deflate":
        return zlib.decompressobj().decompress(data, length)
    assert level.tile is not None
    height = level.tile[0]
    with Image.open(
        io.BytesIO(_grey_tiff(data, level.compression, height, length // height)), formats=("TIFF",)
    ) as image:
        return image.tobytes()


def _grey_tiff(data: bytes, compression: int, height: int, width: int) -> bytes:
    """Wrap bytes into a TIFF of one strip, whatever samples they are."""
    tags = [(256, 4, width), (257, 4, height), (258, 3, 8), (259, 3, compression), (262, 3, 1)]
    start = 8 + 2 + 12 * 9 + 4
    tags += [(273, 4, start), (277, 3, 1), (278, 4, height), (279, 4, len(data))]
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    return struct.pack("<2sHIH", b"II", 42, 8, len(tags)) + entries + struct.pack("<I", 0) + data


def _image(level: Level, data: bytes, bands: int) -> NDArray[np.generic]:
    assert level.tile is not None
    jpeg = level.compression == 7
    if jpeg:
        if data.count(b"\xff\xda") > _MAX_SCANS:
            raise ValueError(f"more than {_MAX_SCANS} scans")
        # Without this marker a decoder guesses from other signs whether colours are YCbCr or RGB.
        marker = _ADOBE + (b"\x01" if level.photometric == _YCBCR else b"\x00")
        data = b"\xff\xd8" + (marker if bands == 3 else b"") + level.tables[2:-2] + data[2:]
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[bands]
    with Image.open(io.BytesIO(data), formats=("JPEG",) if jpeg else ("WEBP",)) as image:
        if (image.height, image.width) != level.tile:
            raise ValueError(f"{image.width} x {image.height} px instead of {level.tile[1]} x {level.tile[0]}")
        values = np.asarray(image if image.mode == mode else image.convert(mode))
    return values.reshape(*level.tile, bands).transpose(2, 0, 1)


def _pixels(level: Level, bands: NDArray[np.generic]) -> Pixels:
    colours = bands if level.alpha is None else np.delete(bands, level.alpha, 0)
    seen = None
    if level.nodata is not None:
        seen = (colours != level.nodata).any(0)
    values = _to_eight_bit(colours, level.photometric == 0)
    if level.alpha is not None:
        alpha = _to_eight_bit(bands[level.alpha], False)
        seen = (alpha > 0) if seen is None else seen & (alpha > 0)
        if not level.premultiplied:
            values = ((values.astype(np.uint16) * alpha + 127) // 255).astype(np.uint8)
    if seen is not None:
        if bool(seen.all()):
            return Pixels(values, None)
        values = values * seen
    return Pixels(values, seen)


def _to_eight_bit(bands: NDArray[np.generic], white_is_zero: bool) -> NDArray[np.uint8]:
    levels: NDArray[np.uint8]
    if bands.dtype.itemsize == 1:
        levels = bands.astype(np.uint8, copy=False)
    else:
        levels = ((bands.astype(np.uint32) * 255 + 32767) // 65535).astype(np.uint8)
    return 255 - levels if white_is_zero else levels
