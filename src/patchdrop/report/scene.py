"""Draw a scene as a picture: its overview, cells outlined in their class' colour, what was read bright, the rest dim.

Drawn cell by cell on a canvas of at most `MOST` pixels a side, so memory does not depend on the scene's size.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from patchdrop.report import theme
from patchdrop.report.gallery import DIM, VEIL, fit, resized, rgb

MOST, LEAST = 1900, 1200
"""Longest side of the scene in the picture, in pixels: smaller scenes are enlarged to ``LEAST``."""
OUTLINED = 24
"""Cells smaller than this many pixels in the picture are tinted instead of outlined."""
TINT = 130
"""Opacity of a tint, of 255."""
NO_DATA = "#eef1f4"
CLASSES = 24
"""The legend names at most this many classes, the most frequent ones."""
MARGIN, LETTERS, SWATCH = 48, 21, 22

Box = tuple[float, float, float, float]
"""Top, left, bottom, right in the scene's pixels."""


class ScenePicture:
    """A picture of a scene that takes cells one by one; `page` returns it.

    Args:
        size: height and width of the scene in its own pixels.
        low: pixels of LR for each pixel of the scene, at most 1.
    """

    def __init__(self, size: tuple[int, int], low: float) -> None:
        self._size = size
        self._shown = fit(size, min(MOST, max(LEAST, *size)))
        side = max(1, min(MOST, round(max(size) * low)))
        height, width = fit(size, side)
        self._view = Image.new("RGB", (width, height))
        self._read = Image.new("L", self._shown[::-1])
        self._marks = Image.new("RGBA", self._shown[::-1])
        self._on_read, self._on_marks = ImageDraw.Draw(self._read), ImageDraw.Draw(self._marks)

    def add(self, box: Box, low: NDArray[np.uint8], colour: str, read: Sequence[Box]) -> None:
        """Draw a cell.

        Args:
            low: ``(h, w, C)``, LR.
            colour: of its class, as ``#rrggbb``.
            read: the patches that were read.
        """
        top, left, bottom, right = self._at(box, self._view)
        self._view.paste(resized(rgb(low), (bottom - top, right - left)), (left, top))
        for patch in read:
            self._on_read.rectangle(self._drawn(patch), fill=255)
        outline = self._drawn(box)
        # Without rounding: rounded sides differ from cell to cell.
        side = min(box[2] - box[0], box[3] - box[1]) * max(self._shown) / max(self._size)
        if side < OUTLINED:
            red, green, blue = (int(colour[i : i + 2], 16) for i in (1, 3, 5))
            self._on_marks.rectangle(outline, fill=(red, green, blue, TINT))
        else:
            left, top, right, bottom = outline
            inset = 1 if side >= 2 * OUTLINED else 0  # a dark line between neighbours of one colour
            within = left + inset, top + inset, right - inset, bottom - inset
            self._on_marks.rectangle(within, outline=colour, width=max(1, min(4, round(side / 24))))

    def leave_out(self, box: Box) -> None:
        """Draw a cell that holds no data."""
        self._on_marks.rectangle(self._drawn(box), fill=NO_DATA)

    def page(self, title: str, legend: Sequence[tuple[str, str, int]], caption: Sequence[str]) -> Image.Image:
        """Return the picture with its title, the legend and some lines below.

        Args:
            legend: name, colour and number of cells of each class, the most frequent first.
        """
        scene = self._scene()
        width = max(scene.width, 900)
        rows = _legend_rows(legend, width)
        heading, line = 64, 38
        height = MARGIN + heading + scene.height + 28 + line * (len(rows) + len(caption)) + 12 + MARGIN
        page = Image.new("RGB", (width + 2 * MARGIN, height), "white")
        draw = ImageDraw.Draw(page)
        _text(draw, (MARGIN, MARGIN), title, 34, theme.INK, width, bold=True)
        page.paste(scene, (MARGIN + (width - scene.width) // 2, MARGIN + heading))
        y = MARGIN + heading + scene.height + 28
        for row in rows:
            for x, entry in row:
                _draw_entry(draw, MARGIN + x, y, entry)
            y += line
        y += 12
        for text in caption:
            _text(draw, (MARGIN, y), text, LETTERS, theme.MUTED, width)
            y += line
        return page

    def _scene(self) -> Image.Image:
        image = np.asarray(self._view.resize(self._shown[::-1], Image.Resampling.BICUBIC))
        grey = (VEIL + DIM * image.mean(axis=-1, dtype=np.float32)).astype(np.uint8)
        bright = np.where(np.asarray(self._read)[..., None] > 0, image, grey[..., None])
        found = Image.fromarray(bright)
        found.paste(self._marks, mask=self._marks)
        return found

    def _at(self, box: Box, image: Image.Image) -> tuple[int, int, int, int]:
        """Return the box in an image of the whole scene; at least a pixel."""
        down, across = image.height / self._size[0], image.width / self._size[1]
        top, left = min(round(box[0] * down), image.height - 1), min(round(box[1] * across), image.width - 1)
        return top, left, max(top + 1, round(box[2] * down)), max(left + 1, round(box[3] * across))

    def _drawn(self, box: Box) -> tuple[int, int, int, int]:
        """Return the box as a rectangle in the picture, its ends inclusive: left, top, right, bottom."""
        top, left, bottom, right = self._at(box, self._marks)
        return left, top, right - 1, bottom - 1


def png(image: Image.Image) -> bytes:
    """Return the bytes of a PNG file."""
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return file.getvalue()


class _Entry(NamedTuple):
    """A class in the legend."""

    name: str
    cells: str
    colour: str

    @property
    def width(self) -> int:
        return SWATCH + 10 + round(theme.font(LETTERS).getlength(self.name + 2 * " " + self.cells))


def _legend_rows(legend: Sequence[tuple[str, str, int]], width: int) -> list[list[tuple[int, _Entry]]]:
    """Place the classes: left edge and entry of each, in as many rows as needed."""
    entries = [_Entry(theme.shorten(name, 28), f"{count:,}", colour) for name, colour, count in legend[:CLASSES]]
    if len(legend) > CLASSES:
        rest = sum(count for _, _, count in legend[CLASSES:])
        entries.append(_Entry(f"{len(legend) - CLASSES:,} more classes", f"{rest:,}", ""))
    rows: list[list[tuple[int, _Entry]]] = []
    x = width
    for entry in entries:
        if x + entry.width > width:
            rows.append([])
            x = 0
        rows[-1].append((x, entry))
        x += entry.width + 40
    return rows


def _draw_entry(draw: ImageDraw.ImageDraw, x: int, y: int, entry: _Entry) -> None:
    font = theme.font(LETTERS)
    if entry.colour:
        draw.rounded_rectangle((x, y + 2, x + SWATCH, y + 2 + SWATCH), 5, fill=entry.colour)
    draw.text((x + SWATCH + 10, y), entry.name, fill=theme.INK, font=font)
    draw.text((x + entry.width, y), entry.cells, fill=theme.MUTED, font=font, anchor="ra")


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[int, int], text: str, size: int, colour: str, width: int, bold: bool = False
) -> None:
    font = theme.font(size, bold)
    while draw.textlength(text, font) > width and len(text) > 4:
        text = theme.shorten(text, len(text) - 1)
    draw.text(at, text, fill=colour, font=font)
