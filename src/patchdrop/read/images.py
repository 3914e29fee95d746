"""Decode one image file to 8-bit pixels, or say in one line why that is impossible.

Any bytes give pixels or a `DataError`: no other exception, and no file that holds a worker for long or
takes its memory. Three things see to that. The format is told from the content and is one of four. The
file's structure is checked before Pillow opens it, because Pillow walks a file's parts in Python (16 MiB
of empty parts took it 8 s). The header is checked before any pixel is decoded.

How large an image may be
-------------------------
``MAX_PIXELS``, 16.8 megapixels, holds for everything that must be decoded whole, or is wanted whole. A
camera's or a satellite's JPEG is often larger (fMoW's first image has 8200 x 6312 pixels) and needs less:
it is decoded a few rows at a time, at 1/2, 1/4 or 1/8 of its side where the wanted image is much smaller.
So for a JPEG stored in one pass ``MAX_JPEG_PIXELS``, 67 megapixels, holds for the pixels that come out;
Pillow's own limit of 178 megapixels holds for those that are stored. A progressive JPEG is held whole and
counts as the other formats do. With these limits the worst of 20 files tried took 450 MB and 3.3 s.

What the pixels mean
--------------------
* 16-bit samples are divided by 257, so that the container's whole range becomes 0..255. The range of the
  data is not looked at: the same value has to give the same brightness in every image of a data set.
  (Pillow itself drops the low byte of 16-bit colour; the two differ by at most one level.)
* Floating-point samples, and integers beyond 16 bits, are refused: their range is not written in the file.
* Transparency is composited over black, the value that satellite tiles carry where nothing was seen.
* CMYK, YCbCr, Lab, palette and 1-bit images become RGB or grey; grey is ITU-R 601 luma.
* The EXIF orientation is applied; an unreadable EXIF block counts as upright.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import (
    ExifTags,
    Image,
    ImageOps,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)
from torch import Tensor

from patchdrop.errors import DataError, UsageError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff"})
"""Suffixes of image files."""
Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the upright image; right and bottom are just outside."""

# Named here so that their modules are imported: Pillow would do so at the first image, in whichever thread.
_KINDS = (
    JpegImagePlugin.JpegImageFile,
    PngImagePlugin.PngImageFile,
    WebPImagePlugin.WebPImageFile,
    TiffImagePlugin.TiffImageFile,
)
FORMATS = tuple(str(kind.format) for kind in _KINDS)
MAX_PIXELS = 2**24
MAX_JPEG_PIXELS = 2**26
MAX_SIDE = 2**15
MAX_BYTES = 2**27
MAX_PARTS = 2**16
"""Most segments of a JPEG's header or chunks of a PNG (which has one every 8 KiB or so)."""
MAX_JPEG_HEADER = 2**24
MAX_JPEG_SCANS = 64
"""Most passes of a progressive JPEG; encoders write about 10, and each costs time for the whole image."""
MAX_TIFF_VALUES = 2**18
"""Most values of one TIFF tag, such as the offsets of its strips; Pillow makes some 300 bytes of each."""
MAX_TIFF_DIRECTORIES = 64
_PNG_METADATA = (b"eXIf", b"Raw profile type exif", b"XML:com.adobe.xmp")
"""Marks of metadata; a PNG with an orientation contains one of them."""
GAP = 3.0
"""Cheap halving stops at this multiple of the wanted size; antialiased resampling does the rest."""


class _Refusal(Exception):
    """Why an image is refused: what is wrong, a colon, and what to do."""


def read_image(
    path: Path, size: tuple[int, int] | None, channels: int = 3, box: Box | None = None, gap: float = GAP
) -> Tensor:
    """Read the image file at ``path``.

    Args:
        path: a JPEG, PNG, WebP or TIFF file, told by its content, not its name.
        size: height and width of the result. The image is scaled, with antialiasing, until it just covers
            ``size``, and its centre is cut out; a smaller image is enlarged. Where the scale is 1 no pixel
            is resampled. None keeps the image's own size.
        channels: 3 for RGB, 1 for grey.
        box: what to cut out before that, clamped to the image; without ``size``, rounded to whole pixels.
        gap: a JPEG is decoded at a reduced scale that leaves at least this multiple of ``size``; 1 decodes least.

    Returns:
        uint8 ``(channels, height, width)``.

    Raises:
        DataError: not such an image, damaged, too large, or nothing of it lies in ``box``.
        UsageError: ``size`` or ``channels`` make no sense.
    """
    return decode_image(_file_bytes(path), str(path), size, channels, box, gap)


def read_size(path: Path, box: Box | None = None) -> tuple[int, int]:
    """Return height and width in pixels of the upright image in a file, or of what ``box`` cuts out of it.

    The file is read, but no pixel is decoded: if only the pixels are damaged, there is still a size. (A PNG with EXIF
    or XMP metadata is decoded, since these may follow its pixels.)

    Args:
        box: clamped to the image and rounded to whole pixels.

    Raises:
        DataError: not such an image, its header is damaged, it is too large, or nothing of it lies in ``box``.
    """
    data = _file_bytes(path)
    with _refused_in_one_line(str(path)), _opened(data) as image:
        if not _is_streamed(image, data):
            _check_pixels(image, MAX_PIXELS)
        # Pillow decodes a whole PNG to look for metadata behind its pixels.
        plain = image.format == "PNG" and not any(mark in data for mark in _PNG_METADATA)
        left, top, right, bottom = _region(image.size if plain else _upright_size(image), box, None)
    return int(bottom - top), int(right - left)


def decode_image(
    data: bytes,
    name: str,
    size: tuple[int, int] | None,
    channels: int = 3,
    box: Box | None = None,
    gap: float = GAP,
) -> Tensor:
    """Decode a file's bytes as `read_image` does; ``name`` says in an error which image it was."""
    if channels not in (1, 3):
        raise UsageError(f"channels {channels}: images are read as 3 (RGB) or 1 (grey)")
    if size is not None and min(size) < 1:
        raise UsageError(f"image size {size}: height and width must be at least 1 px")
    with _refused_in_one_line(name):
        return _decode(data, size, channels, box, gap)


@contextmanager
def _refused_in_one_line(name: str) -> Iterator[None]:
    """Turn whatever is raised in the block into a DataError that names the image."""
    try:
        yield
    except _Refusal as refusal:
        raise DataError(f"{name}: {refusal}") from None
    except Image.DecompressionBombError:
        raise DataError(f"{name}: too large for Pillow's own limit: cut it into tiles") from None
    except UnidentifiedImageError:
        raise DataError(
            f"{name}: not a JPEG, PNG, WebP or TIFF image, or its header is damaged: replace or remove it"
        ) from None
    except Exception as error:  # Pillow's readers raise whatever their parsing ran into, MemoryError included
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(f"{name}: damaged image ({reason}): replace or remove it") from error


def _file_bytes(path: Path) -> bytes:
    try:
        if not path.is_file():  # a pipe or a device would block or never end
            found = "not a file" if path.exists() else "no such file"
            raise DataError(f"{path}: {found}: check the path")
        if path.stat().st_size > MAX_BYTES:
            raise DataError(f"{path}: larger than {MAX_BYTES >> 20} MiB: tile or compress it")
        return path.read_bytes()
    except (OSError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read ({error}): check the path and its permissions") from error


def _decode(data: bytes, size: tuple[int, int] | None, channels: int, box: Box | None, gap: float) -> Tensor:
    with _opened(data) as image:
        region = _region(_upright_size(image), box, size)
        if size is None or not _is_streamed(image, data):
            _check_pixels(image, MAX_PIXELS)
        factor = _draft(image, region, size, gap)
        _check_pixels(image, MAX_JPEG_PIXELS)
        image.load()
        _turn_upright(image)
        pixels = _flatten(_cut(_to_eight_bit(image), region, factor, size), channels)
    values = np.asarray(pixels).reshape(pixels.height, pixels.width, channels)
    return torch.from_numpy(np.array(values.transpose(2, 0, 1), order="C"))


@contextmanager
def _opened(data: bytes) -> Iterator[Image.Image]:
    """Open the image, its header read and checked."""
    if len(data) > MAX_BYTES:
        raise _Refusal(f"larger than {MAX_BYTES >> 20} MiB: tile or compress it")
    _check_structure(data)
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        _check_frames(image)
        yield image


# --- checks before decoding


def _check_structure(data: bytes) -> None:
    """Refuse files whose parts Pillow would walk for seconds; anything else is left to Pillow."""
    if data[:3] == b"\xff\xd8\xff":
        _check_jpeg(data)
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        _check_png(data)
    elif data[:4] in TiffImagePlugin.PREFIXES:
        _check_tiff(data)


def _check_jpeg(data: bytes) -> None:
    if data.count(b"\xff\xda") > MAX_JPEG_SCANS:
        raise _Refusal(f"JPEG with more than {MAX_JPEG_SCANS} scans: save it again as a baseline JPEG")
    _first_scan(data)


def _first_scan(data: bytes) -> int:
    """Return where a JPEG's first scan begins, or the end of the data; every byte between segments is a part."""
    at, parts = 2, 0
    while at + 4 <= len(data) and data[at : at + 2] != b"\xff\xda":
        parts += 1
        if parts > MAX_PARTS or at > MAX_JPEG_HEADER:
            raise _Refusal("JPEG with an overlong header: save it again without metadata")
        marker = JpegImagePlugin.MARKER.get(int.from_bytes(data[at : at + 2], "big"))
        if marker is None:
            at += 1
        elif marker[2] is None:
            at += 2
        else:
            at += 2 + max(2, int.from_bytes(data[at + 2 : at + 4], "big"))
    return min(at, len(data))


def _check_png(data: bytes) -> None:
    at = 8
    for _ in range(MAX_PARTS):
        if at + 8 > len(data) or data[at + 4 : at + 8] == b"IEND":
            return
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise _Refusal(f"PNG with more than {MAX_PARTS} chunks: save it again")


class _TiffTag(NamedTuple):
    kind: int
    values: int
    value: int
    """The value itself if it is one short or long integer, else without meaning."""


def _check_tiff(data: bytes) -> None:
    """Refuse several pages, tags of very many values, and tiles larger than an image may be."""
    order = "<" if data[:2] == b"II" else ">"
    big = data[2] == 43  # as Pillow tells BigTIFF
    (offset,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    seen: set[int] = set()
    pages = 0
    while offset and offset not in seen:
        if len(seen) == MAX_TIFF_DIRECTORIES:
            raise _Refusal(f"TIFF with more than {MAX_TIFF_DIRECTORIES} images: save one image a file")
        seen.add(offset)
        tags, offset = _tiff_directory(data, offset, order, big)
        if any(tag.values > MAX_TIFF_VALUES and tag.kind not in _TIFF_BYTES for tag in tags.values()):
            raise _Refusal("TIFF with too many strips, tiles or bands: save it again with 256 px tiles")
        if _tiff_value(tags, 322) * _tiff_value(tags, 323) > MAX_PIXELS:
            raise _Refusal("TIFF with overlarge tiles: save it again with 256 px tiles")
        # Overviews (1) and masks (4) of the same image are directories of their own, but no pages.
        pages += not _tiff_value(tags, 254) & 5
    if pages > 1:
        raise _Refusal(f"holds {pages} pages: save one image a file")


_TIFF_BYTES = (1, 2, 6, 7)
"""Tag types whose values stay one string in Pillow: metadata of this kind is rightly long."""


def _tiff_directory(data: bytes, offset: int, order: str, big: bool) -> tuple[dict[int, _TiffTag], int]:
    """Return the tags of the directory at ``offset``, and where the next one is (0: there is none)."""
    length, entry, word = (8, 20, "Q") if big else (2, 12, "I")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), data, offset)
    if count > 4096:
        raise _Refusal("TIFF with too many tags: save it again without metadata")
    tags = {}
    for at in range(offset + length, offset + length + count * entry, entry):
        tag, kind, values = struct.unpack_from(order + "HH" + word, data, at)
        inline = struct.unpack_from(order + ("H" if kind == 3 else "I"), data, at + 4 + struct.calcsize(word))
        tags[tag] = _TiffTag(kind, values, inline[0] if values == 1 and kind in (3, 4) else 0)
    (following,) = struct.unpack_from(order + word, data, offset + length + count * entry)
    return tags, following


def _tiff_value(tags: dict[int, _TiffTag], number: int) -> int:
    return tags[number].value if number in tags else 0


def _check_frames(image: Image.Image) -> None:
    # A phone's JPEG may carry previews behind it (Pillow: MPO); its first frame is the photo. A TIFF's
    # overviews are frames too for Pillow; its pages have been counted by `_check_tiff`.
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise _Refusal("holds an animation: save one image a file")


def _check_pixels(image: Image.Image, limit: int) -> None:
    """Refuse an image too large to decode; its size is the one it will be decoded at."""
    if max(image.size) > MAX_SIDE or image.width * image.height > limit:
        raise _Refusal(
            f"{image.width} x {image.height} px is more than the {limit / 1e6:.1f} megapixels, or the "
            f"{MAX_SIDE} px a side, that are read at once: cut it into tiles"
        )


def _is_streamed(image: Image.Image, data: bytes) -> bool:
    """Check for a JPEG with all its colours in one scan, which is decoded a few rows at a time."""
    if not isinstance(image, JpegImagePlugin.JpegImageFile) or "progressive" in image.info:
        return False
    scan = _first_scan(data)
    return data[scan + 4 : scan + 5] == bytes([image.layers])


# --- where the wanted pixels are


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # damaged metadata does not make the pixels unusable
        return 1


def _upright_size(image: Image.Image) -> tuple[int, int]:
    """Return width and height once turned upright; Pillow's TIFF reader gives those by itself."""
    if image.format != "TIFF" and _orientation(image) in (5, 6, 7, 8):
        return image.height, image.width
    return image.size


def _turn_upright(image: Image.Image) -> None:
    if image.format != "TIFF" and _orientation(image) != 1:
        ImageOps.exif_transpose(image, in_place=True)


def _region(upright: tuple[int, int], box: Box | None, size: tuple[int, int] | None) -> Box:
    """Return the part of the upright image (width, height) that is to be shown at ``size`` (height, width)."""
    width, height = upright
    left, top, right, bottom = (0.0, 0.0, float(width), float(height))
    if box is not None:
        if not all(math.isfinite(edge) for edge in box):
            raise _Refusal(f"box {box} is not four numbers: correct its left, top, right, bottom")
        left, top = max(left, box[0]), max(top, box[1])
        right, bottom = min(right, box[2]), min(bottom, box[3])
    if size is None:
        left, top, right, bottom = (float(round(edge)) for edge in (left, top, right, bottom))
    if min(right - left, bottom - top) < 1:  # also where they are the wrong way round
        raise _Refusal(f"box {box} holds no pixel of the {width} x {height} image: correct the box")
    if size is None:
        return left, top, right, bottom
    scale = min((right - left) / size[1], (bottom - top) / size[0])
    shown = scale * size[1], scale * size[0]
    left += max(0.0, right - left - shown[0]) / 2  # rounding may make the side that fits too long
    top += max(0.0, bottom - top - shown[1]) / 2
    if scale == 1:  # half a pixel off centre, so that no pixel is resampled
        left, top = float(math.floor(left)), float(math.floor(top))
    return left, top, left + shown[0], top + shown[1]


def _draft(image: Image.Image, region: Box, size: tuple[int, int] | None, gap: float) -> int:
    """Have a JPEG decoded at 1/8, 1/4 or 1/2 of its side if the region stays ``gap`` times ``size``.

    Returns:
        8, 4, 2, or 1 for an image that is decoded as it is.
    """
    if size is None or not isinstance(image, JpegImagePlugin.JpegImageFile):
        return 1
    shrink = min((region[2] - region[0]) / size[1], (region[3] - region[1]) / size[0]) / gap
    for factor in (8, 4, 2):
        if shrink >= factor:
            image.draft(None, (image.width // factor, image.height // factor))
            return factor
    return 1


def _cut(image: Image.Image, region: Box, factor: int, size: tuple[int, int] | None) -> Image.Image:
    """Cut out the region, given in undrafted pixels, at ``size``."""
    # Where a turned JPEG has a side that is no multiple of the factor, this is off by less than one of its
    # reduced pixels, a third of a pixel of the result.
    left, top, right, bottom = (edge / factor for edge in region)
    whole = all(edge.is_integer() for edge in region)
    if size is None or (whole and (bottom - top, right - left) == size):
        return image.crop((int(left), int(top), int(right), int(bottom)))
    part = left, top, right, bottom
    return image.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=part, reducing_gap=GAP)


# --- what the samples mean


def _to_eight_bit(image: Image.Image) -> Image.Image:
    """Return an image in a mode whose 8-bit samples can be resampled: no palette, no transparent colour."""
    if image.mode.startswith("I"):
        return _from_sixteen_bit(image)
    if image.mode == "F":
        raise _Refusal("floating-point samples have no known range: save it with 8 or 16 bits")
    if image.has_transparency_data:
        return image if image.mode in ("LA", "RGBA") else image.convert("RGBA")
    return image.convert("RGB") if image.mode in ("1", "P") else image


def _from_sixteen_bit(image: Image.Image) -> Image.Image:
    levels = np.asarray(image)
    if levels.dtype.kind != "u":
        if levels.min() < 0 or levels.max() > 65535:
            raise _Refusal("samples beyond 0..65535 have no known range: save it with 8 or 16 bits")
        levels = levels.astype(np.uint16)
    tags = getattr(image, "tag_v2", {})
    top = 4095 if tags.get(258) == (12,) else 65535
    table = np.minimum((np.arange(65536) * 255 + top // 2) // top, 255).astype(np.uint8)
    if tags.get(262) == 0:  # a TIFF whose white is 0; Pillow turns these round for 8 bits only
        table = 255 - table
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        table[transparent] = 0
    return Image.fromarray(table[levels])


def _flatten(image: Image.Image, channels: int) -> Image.Image:
    """Return RGB or grey; transparent pixels become black."""
    if image.mode in ("LA", "RGBA"):
        opaque = Image.new("RGB", image.size)
        opaque.paste(image.convert("RGB"), mask=image.getchannel("A"))
        image = opaque
    if channels == 1:
        return image if image.mode == "L" else image.convert("RGB").convert("L")
    return image.convert("RGB")
