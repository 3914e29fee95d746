"""Draw test images as pictures: what the policy sees, its probabilities, what it reads, what the classifier gets.

All drawing is numpy and PIL: a card takes milliseconds where a chart takes a quarter of a second.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from patchdrop.grid import Grid, boxes
from patchdrop.report import theme

Pixels = NDArray[np.uint8]

DIM, VEIL = 0.32, 22
"""A patch that is not read keeps this share of its brightness, lifted by a few grey levels of 255."""
OVERLAY_SIDE = 384
"""`overlay` enlarges smaller images, by a whole factor, to at least this longest side in pixels."""
LETTERS = 11
"""Smallest size in pixels of a heat map's numbers; smaller ones are left out."""
RAMP = np.array([[238, 243, 248], [107, 174, 214], [8, 79, 135]], dtype=np.float64)
"""Heat colours for 0, 0.5 and 1: one hue, growing darker, so that it survives print and any colour vision."""


@dataclass(frozen=True)
class GalleryItem:
    """A test image and what became of it. C is 1, 3 or more channels; of more, three are shown."""

    name: str
    """The image's id."""
    low: Pixels
    """LR as the policy sees it, ``(h, w, C)``."""
    high: Pixels
    """All of HR, ``(H, W, C)``."""
    probabilities: NDArray[np.floating]
    """Patch probabilities ``(P,)`` in 0..1, row-major."""
    choice: NDArray[np.bool_]
    """The patches that were read, ``(P,)``, row-major."""
    seen: Pixels
    """What the HR classifier saw, unread patches filled, ``(H, W, C)``."""
    true: str
    predicted: str
    probability: float
    """The classifier's probability of ``predicted``, 0..1."""

    @property
    def right(self) -> bool:
        """Whether the predicted class is the true one."""
        return self.true == self.predicted

    @property
    def patches_read(self) -> int:
        """S, the number of patches read."""
        return int(self.choice.sum())


class Panels(NamedTuple):
    """The four pictures of an item, in the order things happen."""

    low: Image.Image
    heat: Image.Image
    read: Image.Image
    seen: Image.Image


def overlay(item: GalleryItem, grid: Grid) -> Image.Image:
    """Draw HR with unread patches dimmed and read ones outlined, at its own size or a whole multiple of it."""
    height, width = item.high.shape[:2]
    factor = max(1, -(-OVERLAY_SIDE // max(height, width)))
    return read_panel(item, grid, (height * factor, width * factor))


def panels(item: GalleryItem, grid: Grid, size: tuple[int, int]) -> Panels:
    """Draw an item's four pictures, each of ``size`` (height, width) pixels."""
    under = np.asarray(enlarged(item.low, size).convert("L"), dtype=np.float64) / 255
    return Panels(
        low=enlarged(item.low, size),
        heat=heat_panel(item.probabilities, grid, size, under),
        read=read_panel(item, grid, size),
        seen=resized(rgb(item.seen), size),
    )


def rgb(image: Pixels) -> Pixels:
    """Convert ``(H, W, C)`` to ``(H, W, 3)``: the first three channels, or the first one as grey."""
    return image[..., :3] if image.shape[-1] >= 3 else np.repeat(image[..., :1], 3, axis=-1)


def fit(shape: Sequence[int], side: int) -> tuple[int, int]:
    """Return (height, width) in the proportions of ``shape`` (height, width, ...), with a longest side of ``side``."""
    height, width = shape[:2]
    scale = side / max(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def enlarged(image: Pixels, size: tuple[int, int]) -> Image.Image:
    """Enlarge by nearest neighbour, so that the policy's pixels can be counted."""
    return Image.fromarray(rgb(image)).resize(size[::-1], Image.Resampling.NEAREST)


def resized(image: Pixels, size: tuple[int, int]) -> Image.Image:
    """Resize an ``(H, W, 3)`` image smoothly to ``size`` (height, width)."""
    return Image.fromarray(image).resize(size[::-1], Image.Resampling.LANCZOS)


def dimmed(item: GalleryItem, grid: Grid) -> Pixels:
    """Return HR, ``(H, W, 3)``, with the patches that were not read grey and dark."""
    image = rgb(item.high).copy()
    for (top, left, bottom, right), read in zip(boxes(grid, *image.shape[:2]), item.choice, strict=True):
        if not read:
            grey = image[top:bottom, left:right].mean(axis=-1, keepdims=True)
            image[top:bottom, left:right] = VEIL + DIM * grey
    return image


def read_panel(item: GalleryItem, grid: Grid, size: tuple[int, int]) -> Image.Image:
    """Draw `dimmed` at ``size`` (height, width), each read patch with a white line that has a dark edge."""
    height, width = item.high.shape[:2]
    y, x = size[0] / height, size[1] / width
    line = max(1, round(max(size) / 150))
    image = resized(dimmed(item, grid), size)
    draw = ImageDraw.Draw(image)
    for (top, left, bottom, right), read in zip(boxes(grid, height, width), item.choice, strict=True):
        if read:
            box = round(left * x), round(top * y), round(right * x) - 1, round(bottom * y) - 1
            draw.rectangle(box, outline="#10161c", width=line + 1)
            draw.rectangle(box, outline="white", width=line)
    return image


def heat_panel(
    values: NDArray[np.floating],
    grid: Grid,
    size: tuple[int, int],
    under: NDArray[np.float64] | None = None,
) -> Image.Image:
    """Draw a value in 0..1 for each patch as colour, with the number in percent if it fits.

    Args:
        values: ``(P,)``, row-major.
        size: height and width in pixels.
        under: grey image in 0..1 of that size, left faintly visible below the colours.
    """
    canvas = np.empty((*size, 3))
    cells = boxes(grid, *size)
    for (top, left, bottom, right), value in zip(cells, values, strict=True):
        canvas[top:bottom, left:right] = ramp(float(value))
    if under is not None:
        canvas *= 0.76 + 0.24 * under[..., None]
    image = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(image)
    letters = min(size[0] // grid.rows, round(size[1] / grid.cols * 0.8)) * 2 // 5
    for box, value in zip(cells, values, strict=True):
        top, left, bottom, right = box
        draw.line([(left, bottom - 1), (right - 1, bottom - 1), (right - 1, top)], fill="white")
        if letters >= LETTERS:
            dark = float(canvas[top:bottom, left:right].mean()) < 150
            middle = (left + right) / 2, (top + bottom) / 2
            font = theme.font(min(letters, 40))
            draw.text(middle, f"{100 * value:.0f}", fill="white" if dark else theme.INK, anchor="mm", font=font)
    return image


def ramp(value: float) -> NDArray[np.float64]:
    """Return the colour of a value in 0..1: ``(3,)`` in 0..255."""
    at = 2 * min(max(value, 0.0), 1.0)
    low = min(int(at), 1)
    blend: NDArray[np.float64] = RAMP[low] + (at - low) * (RAMP[low + 1] - RAMP[low])
    return blend


def contact_sheet(items: list[GalleryItem], grid: Grid, side: int = 176) -> Image.Image:
    """Draw items side by side in two columns, four pictures each, with headings and the verdict on each.

    Args:
        side: longest side of a picture, pixels.
    """
    size = fit(items[0].high.shape, side)
    columns = min(2, len(items))
    rows = -(-len(items) // columns)
    gap, margin, heading, caption = 22, 36, 34, 60
    across = 4 * size[1] + 3 * gap
    down = size[0] + caption
    width = 2 * margin + columns * across + (columns - 1) * 2 * margin
    sheet = Image.new("RGB", (width, 2 * margin + heading + rows * down - caption // 3), "white")
    draw = ImageDraw.Draw(sheet)
    for column in range(columns):
        draw_headings(draw, margin + column * (across + 2 * margin), margin, size[1], gap)
    for index, item in enumerate(items):
        left = margin + index % columns * (across + 2 * margin)
        top = margin + heading + index // columns * down
        for step, panel in enumerate(panels(item, grid, size)):
            sheet.paste(panel, (left + step * (size[1] + gap), top))
            if step:
                chevron(draw, left + step * (size[1] + gap) - gap / 2, top + size[0] / 2)
        draw_verdict(draw, item, left, top + size[0] + 10, across)
    return sheet


def draw_headings(draw: ImageDraw.ImageDraw, left: int, top: int, width: int, gap: int) -> None:
    """Write the four column names of a contact sheet."""
    for step, name in enumerate(("the policy sees", "it wants, %", "it reads", "the classifier sees")):
        draw.text((left + step * (width + gap), top), name, fill=theme.MUTED, font=theme.font(16))


def chevron(draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
    """Draw a small arrow head to the right, around ``(x, y)``."""
    draw.line([(x - 3, y - 7), (x + 4, y), (x - 3, y + 7)], fill="#9aa5b1", width=2)


def draw_verdict(draw: ImageDraw.ImageDraw, item: GalleryItem, left: int, top: int, width: int) -> None:
    """Write one line below an item: right or wrong, the class, and how much was read."""
    decided, amount = theme.font(17, bold=True), theme.font(17)
    share = theme.whole_percent(item.patches_read / item.choice.size)
    end = f"{item.patches_read} of {item.choice.size} patches, {share} of HR"
    room = width - draw.textlength(end, amount) - 24
    text = f"✓ {item.predicted}" if item.right else f"✗ {item.predicted}, is {item.true}"
    while draw.textlength(text, decided) > room and len(text) > 4:
        text = theme.shorten(text, len(text) - 1)
    draw.text((left, top), text, fill=theme.RIGHT if item.right else theme.WRONG, font=decided)
    draw.text((left + width, top), end, fill=theme.MUTED, font=amount, anchor="ra")
