"""Read a TIFF's header: its levels, where each tile's bytes lie, and where the scene lies on Earth.

Source: Adobe, *TIFF Revision 6.0* (1992); the BigTIFF design; OGC 19-008r4, *GeoTIFF Standard 1.1*.

Only the header is read, block by block, and everything it says is checked before memory is taken for it. A file that is
no TIFF is refused by its first bytes, so no other format can hide behind the name.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from patchdrop.errors import DataError
from patchdrop.transport.ranges import Span, Transport, joined

HEADER_BYTES = 2**14
"""Bytes of the first read: they hold the whole header of a COG of some 8,000 px a side."""
MORE_BYTES = 2**12
"""At least this many bytes are read if the header goes on elsewhere."""
MAX_HEADER_BYTES = 2**27
MAX_DIRECTORIES = 64
MAX_TAGS = 1024
MAX_TILES = 2**22
MAX_TILE_SIDE = 2**13
MAX_TILE_BYTES = 2**26
"""Most bytes of one decoded tile."""
MAX_OVERHEAD = 2**10
"""An encoded tile has at most twice its decoded bytes, plus this many for tables and the like."""
MAX_BANDS = 64
MAX_SIDE = 2**24
MAX_TABLES = 2**16

COMPRESSIONS = {
    1: "none",
    5: "lzw",
    7: "jpeg",
    8: "deflate",
    32946: "deflate",
    32773: "packbits",
    50000: "zstd",
    50001: "webp",
}
_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_CODES = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d", 13: "I", 16: "Q", 17: "q", 18: "Q"}
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER = 256, 257, 258, 259, 262, 266
_STRIPS, _SAMPLES, _PLANAR, _PREDICTOR = 273, 277, 284, 317
_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS, _EXTRA, _FORMAT, _TABLES = 322, 323, 324, 325, 338, 339, 347
_SUBFILE, _SCALE, _TIEPOINT, _MATRIX, _GEOKEYS, _NODATA = 254, 33550, 33922, 34264, 34735, 42113
_TOO_LARGE = f"header larger than {MAX_HEADER_BYTES >> 20} MiB: write the file again with larger tiles"
_USED = (
    *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _PLANAR, _PREDICTOR),
    *(_TILE_WIDTH, _TILE_HEIGHT, _OFFSETS, _COUNTS, _EXTRA, _FORMAT, _TABLES),
    *(_SUBFILE, _SCALE, _TIEPOINT, _MATRIX, _GEOKEYS, _NODATA),
)


@dataclass(frozen=True, eq=False)
class Level:
    """A resolution of a scene.

    Attributes:
        bands: samples per pixel, alpha included.
        kind: ``uint8``, ``float32``, ...
        tile: height and width of a tile in pixels; None if the level is stored in strips.
        planar: bands are stored one after the other (band interleave).
        predictor: 1 none, 2 differences along rows, 3 floating point.
        alpha: number of the alpha band, None without one.
        premultiplied: colours are stored times alpha ("associated alpha").
        tables: JPEG's shared tables, empty for others.
        offsets, counts: ``(tiles,)`` int64, first byte and number of bytes of each tile, row by row; if planar,
            band by band. A tile of 0 bytes is not stored and is all nodata.
    """

    width: int
    height: int
    bands: int
    kind: str
    order: str
    compression: int
    photometric: int
    predictor: int
    planar: bool
    alpha: int | None
    nodata: float | None
    tile: tuple[int, int] | None
    tables: bytes
    offsets: NDArray[np.int64]
    counts: NDArray[np.int64]
    premultiplied: bool = False

    @property
    def tile_grid(self) -> tuple[int, int]:
        """Rows and columns of tiles."""
        assert self.tile is not None
        return -(-self.height // self.tile[0]), -(-self.width // self.tile[1])

    @property
    def colours(self) -> int:
        """Number of bands that are not alpha."""
        return self.bands - (self.alpha is not None)

    def span(self, tile: int) -> Span:
        """Return where a tile's bytes lie."""
        return Span(int(self.offsets[tile]), int(self.offsets[tile] + self.counts[tile]))


@dataclass(frozen=True)
class Georeference:
    """The place of pixels on Earth.

    Attributes:
        matrix: ``(a, b, c, d, e, f)``: x = a column + b row + c, y = d column + e row + f, of a pixel's corner.
        epsg: code of the coordinate system, None where the header gives none.
    """

    matrix: tuple[float, float, float, float, float, float]
    epsg: int | None


@dataclass(frozen=True)
class Header:
    """The contents of a header: all that is known before a tile is read.

    Attributes:
        levels: full resolution first, then overviews from fine to coarse.
        masks: number of transparency masks, which are not read.
        start: the file's first bytes, as they came.
    """

    levels: tuple[Level, ...]
    masks: int
    georeference: Georeference | None
    start: bytes


class HeaderError(DataError):
    """A header that this reader does not accept; another reader may."""


def read_header(transport: Transport) -> Header:
    """Read the header of a TIFF.

    Raises:
        HeaderError: no TIFF, damaged, several images, or values beyond what this module allows.
        DataError: it cannot be had.
    """
    start = transport.head(HEADER_BYTES)
    blocks = _Blocks(transport, start)
    try:
        return _header(blocks, start, transport.size)
    except (struct.error, _Damaged) as damage:
        raise HeaderError(f"{transport.name}: damaged TIFF header ({damage}): write the file again") from None
    except _Refused as refusal:
        raise HeaderError(f"{transport.name}: {refusal}") from None


class _Damaged(Exception):
    pass


class _Refused(Exception):
    """A reason, a colon, and what to do."""


class _Blocks:
    """A store of the header's bytes, each read once."""

    def __init__(self, transport: Transport, start: bytes) -> None:
        self._transport = transport
        self._blocks = {0: start}
        self._read = len(start)

    def get(self, start: int, length: int) -> bytes:
        self.fetch([Span(start, start + length)], MORE_BYTES)
        found = self._held(Span(start, start + length))
        assert found is not None
        return found

    def fetch(self, spans: list[Span], least: int) -> None:
        """Make sure that these bytes are held."""
        size = self._transport.size
        for span in spans:
            if span.start < 0 or span.stop > size:
                raise _Damaged(f"it points to byte {span.stop} of {size}")
        absent = [Span(self._held_from(s.start), s.stop) for s in spans if self._held(s) is None]
        wanted = joined([Span(s.start, min(size, max(s.stop, s.start + least))) for s in absent], MORE_BYTES)
        self._read += sum(span.length for span in wanted)
        if self._read > MAX_HEADER_BYTES:
            raise _Refused(_TOO_LARGE)
        for span, block in zip(wanted, self._transport.read(wanted, "header"), strict=True):
            self._blocks[span.start] = block
        self._blocks = _merged(self._blocks)

    def _held(self, span: Span) -> bytes | None:
        for start, block in self._blocks.items():
            if start <= span.start and span.stop <= start + len(block):
                return block[span.start - start : span.stop - start]
        return None

    def _held_from(self, at: int) -> int:
        """Return the first byte from ``at`` on that is not held."""
        ends = [start + len(block) for start, block in self._blocks.items() if start <= at < start + len(block)]
        return max(ends, default=at)


def _merged(blocks: dict[int, bytes]) -> dict[int, bytes]:
    """Merge blocks that touch or overlap."""
    found: dict[int, bytes] = {}
    first = stop = -1
    for start, block in sorted(blocks.items()):
        if start > stop:
            first, stop = start, start
            found[first] = b""
        found[first] += block[stop - start :]
        stop = max(stop, start + len(block))
    return found


@dataclass(frozen=True)
class _Entry:
    """A tag: its type, its number of values, and where they are."""

    kind: int
    count: int
    span: Span


def _header(blocks: _Blocks, start: bytes, size: int) -> Header:
    if size < 16:
        raise _Refused("no TIFF file: give a tiled GeoTIFF or COG")
    order = {b"II": "<", b"MM": ">"}.get(start[:2], "")
    magic = struct.unpack(order + "H", start[2:4])[0] if order else 0
    if magic not in (42, 43):
        raise _Refused("no TIFF file, by its first bytes: give a tiled GeoTIFF or COG")
    big = magic == 43
    at = struct.unpack(order + ("Q" if big else "I"), start[8:16] if big else start[4:8])[0]
    directories: list[dict[int, _Entry]] = []
    seen: set[int] = set()
    while at:
        if at in seen or len(directories) == MAX_DIRECTORIES:
            raise _Refused(f"more than {MAX_DIRECTORIES} images, or a circle of them: write the file again")
        seen.add(at)
        entries, at = _directory(blocks, at, order, big)
        directories.append(entries)
    wanted = [e.span for entries in directories for tag, e in entries.items() if tag in _USED]
    if sum(span.length for span in wanted) > MAX_HEADER_BYTES:  # tags may name the same bytes, which are read once
        raise _Refused(_TOO_LARGE)
    blocks.fetch([span for span in wanted if span.length], 0)
    read = [_values(blocks, entries, order) for entries in directories]
    images = [tags for tags in read if not _one(tags, _SUBFILE, 0) & 4]
    if not images:
        raise _Damaged("it holds no image")
    pages = [tags for tags in images if not _one(tags, _SUBFILE, 0) & 1]
    if len(pages) != 1 or pages[0] is not images[0]:
        raise _Refused(f"holds {len(pages)} images beside one another: save one scene a file")
    nodata = _nodata(images[0])
    levels = [_level(tags, order, nodata, size) for tags in images]
    overviews = sorted(levels[1:], key=lambda level: -level.width)
    return Header((levels[0], *overviews), len(read) - len(images), _georeference(images[0]), start)


def _directory(blocks: _Blocks, at: int, order: str, big: bool) -> tuple[dict[int, _Entry], int]:
    """Return the tags of the directory at ``at``, and where the next one is (0: there is none)."""
    head, entry, word = (8, 20, "Q") if big else (2, 12, "I")
    (count,) = struct.unpack(order + ("Q" if big else "H"), blocks.get(at, head))
    if not 0 < count <= MAX_TAGS:
        raise _Damaged(f"a directory of {count} tags")
    tail = struct.calcsize(word)
    raw = blocks.get(at + head, count * entry + (8 if big else 4))
    entries = {}
    for i in range(count):
        tag, kind, values = struct.unpack_from(order + "HH" + word, raw, i * entry)
        length = values * _SIZES.get(kind, 0)
        place = i * entry + 4 + struct.calcsize("=" + word)
        start = at + head + place
        if length > tail:
            (start,) = struct.unpack_from(order + word, raw, place)
        entries[tag] = _Entry(kind, values, Span(start, start + length))
        if tag in _USED and values > MAX_TILES * MAX_BANDS:
            raise _Damaged(f"tag {tag} of {values} values")
    (following,) = struct.unpack_from(order + word, raw, count * entry)
    return entries, following


def _values(blocks: _Blocks, entries: dict[int, _Entry], order: str) -> dict[int, Any]:
    """Return tag -> numpy array of its values, or bytes for text and undefined types."""
    found: dict[int, Any] = {}
    for tag, entry in entries.items():
        if tag not in _USED or entry.span.length == 0:
            continue
        raw = blocks.get(entry.span.start, entry.span.length)
        code = _CODES.get(entry.kind)
        found[tag] = raw if code is None or tag == _TABLES else np.frombuffer(raw, np.dtype(order + code))
    if _STRIPS in entries:
        found[_STRIPS] = True
    return found


def _one(tags: dict[int, Any], tag: int, default: int) -> int:
    values = tags.get(tag)
    if values is None:
        return default
    if isinstance(values, bytes) or values.dtype.kind not in "ui":
        raise _Damaged(f"tag {tag} is no whole number")
    return int(values[0])


def _level(tags: dict[int, Any], order: str, nodata: float | None, size: int) -> Level:
    width, height = _one(tags, _WIDTH, 0), _one(tags, _HEIGHT, 0)
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise _Damaged(f"{width} x {height} px")
    bands = _one(tags, _SAMPLES, 1)
    if not 0 < bands <= MAX_BANDS:
        raise _Refused(f"{bands} bands, {MAX_BANDS} are the most that are read: pick some with `gdal_translate -b`")
    if _one(tags, _FILL_ORDER, 1) != 1:
        raise _Refused("bits are stored last to first (FillOrder 2): write the file again with `gdal_translate`")
    planar = bands > 1 and _one(tags, _PLANAR, 1) == 2
    tile = (_one(tags, _TILE_HEIGHT, 0), _one(tags, _TILE_WIDTH, 0)) if _OFFSETS in tags else None
    offsets = counts = np.zeros(0, np.int64)
    kind = _kind(tags)
    if tile is not None:
        tiles = _tile_count(tile, width, height, bands, kind, planar)
        offsets, counts = (_integers(tags, tag, tiles) for tag in (_OFFSETS, _COUNTS))
        stored = counts > 0
        most = 2 * _tile_bytes(tile, bands, kind, planar) + MAX_OVERHEAD
        if bool((counts > most).any() or (counts < 0).any() or (offsets < 0).any()):
            raise _Damaged(f"a tile of more than {most} bytes")
        if bool((offsets[stored] + counts[stored] > size).any()):
            raise _Damaged(f"a tile beyond the file's {size} bytes; it was cut short")
    extra = [] if isinstance(tags.get(_EXTRA, b""), bytes) else tags[_EXTRA].tolist()
    tables = tags.get(_TABLES, b"")
    if len(tables) > MAX_TABLES:
        raise _Damaged("overlong JPEG tables")
    return Level(
        width,
        height,
        bands,
        kind,
        order,
        _one(tags, _COMPRESSION, 1),
        _one(tags, _PHOTOMETRIC, 1),
        _one(tags, _PREDICTOR, 1),
        planar,
        bands - 1 if extra and extra[-1] in (1, 2) else None,
        nodata,
        tile,
        tables,
        offsets,
        counts,
        bool(extra) and extra[-1] == 1,
    )


def _tile_count(tile: tuple[int, int], width: int, height: int, bands: int, kind: str, planar: bool) -> int:
    if not all(0 < side <= MAX_TILE_SIDE for side in tile):
        raise _Refused(f"tiles of {tile[1]} x {tile[0]} px: write the file again with 512 px tiles")
    if _tile_bytes(tile, bands, kind, planar) > MAX_TILE_BYTES:
        raise _Refused(f"tiles of more than {MAX_TILE_BYTES >> 20} MiB: write the file again with 512 px tiles")
    tiles = -(-width // tile[1]) * -(-height // tile[0]) * (bands if planar else 1)
    if tiles > MAX_TILES:
        raise _Refused(f"{tiles} tiles, {MAX_TILES} are the most that are read: use larger tiles or cut it into scenes")
    return tiles


def _tile_bytes(tile: tuple[int, int], bands: int, kind: str, planar: bool) -> int:
    """Return the bytes of a decoded tile."""
    width_bytes = int("".join(c for c in kind if c.isdigit()) or 8) // 8 or 1
    return tile[0] * tile[1] * (1 if planar else bands) * width_bytes


def _integers(tags: dict[int, Any], tag: int, count: int) -> NDArray[np.int64]:
    values = tags.get(tag)
    if values is None or isinstance(values, bytes) or len(values) != count or values.dtype.kind not in "ui":
        raise _Damaged(f"tag {tag} does not name {count} tiles")
    if int(values.max(initial=0)) > 2**62:
        raise _Damaged("a tile beyond the file's end")
    integers: NDArray[np.int64] = values.astype(np.int64)
    return integers


def _kind(tags: dict[int, Any]) -> str:
    bits, form = _one(tags, _BITS, 1), _one(tags, _FORMAT, 1)
    if any(len(np.unique(tags[tag])) > 1 for tag in (_BITS, _FORMAT) if tag in tags):
        raise _Refused("bands of different types: write the file again with one type")
    name = {1: "uint", 2: "int", 3: "float"}.get(form, "complex")
    return f"{name}{bits}"


def _nodata(tags: dict[int, Any]) -> float | None:
    text = tags.get(_NODATA, b"")
    try:
        return float(text.rstrip(b"\0 ").decode("ascii")) if isinstance(text, bytes) and text else None
    except ValueError:
        return None


def _georeference(tags: dict[int, Any]) -> Georeference | None:
    keys = tags.get(_GEOKEYS)
    pairs: dict[int, int] = {}
    if keys is not None and not isinstance(keys, bytes):
        for key, place, _, value in keys[4 : len(keys) // 4 * 4].reshape(-1, 4).tolist():
            if place == 0:
                pairs[key] = value
    matrix = _matrix(tags)
    if matrix is None or not np.isfinite(matrix).all():
        return None
    a, b, c, d, e, f = matrix
    if pairs.get(1025) == 2:  # coordinates are of pixels' centres
        c, f = c - (a + b) / 2, f - (d + e) / 2
    # 3072 names a projected system, 2048 a geographic one; 32767 means that it is spelt out instead.
    code = pairs.get(3072 if pairs.get(1024) == 1 else 2048, 32767)
    return Georeference((a, b, c, d, e, f), code if 1024 <= code < 32767 else None)


def _matrix(tags: dict[int, Any]) -> tuple[float, ...] | None:
    def numbers(tag: int, count: int) -> list[float] | None:
        values = tags.get(tag)
        if values is None or isinstance(values, bytes) or len(values) < count:
            return None
        return [float(v) for v in values[:count]]

    whole = numbers(_MATRIX, 16)
    if whole:
        return whole[0], whole[1], whole[3], whole[4], whole[5], whole[7]
    scale, tie = numbers(_SCALE, 2), numbers(_TIEPOINT, 6)
    if scale and tie:
        return scale[0], 0.0, tie[3] - tie[0] * scale[0], 0.0, -scale[1], tie[4] + tie[1] * scale[1]
    return None
