"""Define how methods, stages and numbers look everywhere in a report: on the page, in charts and under images.

Charts are drawn for white paper only; the page turns them dark with one CSS filter, and its own marks
with the same filter, so that a method has one colour in one place. Every method also has a shape of its
own. Fonts in images are the ones that come with matplotlib, the same on every machine.
"""

from __future__ import annotations

import colorsys
import importlib.util
import math
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from PIL import ImageFont

Row = dict[str, Any]
"""One row of ``results["rows"]``, of ``results["per_class"]`` or of the training log."""

SCALE = 2
"""Device pixels per CSS pixel, in charts."""
INK, MUTED, LINE = "#1c2733", "#5a6673", "#dfe4ea"
RIGHT, WRONG = "#00755a", "#b34700"
FONT = "DejaVu Sans"
SPACE = "\N{NO-BREAK SPACE}"
NOTHING = "\N{EN DASH}"


@dataclass(frozen=True)
class Mark:
    """A method's colour, its marker in charts (matplotlib's name) and its glyph on the page."""

    colour: str
    marker: str
    glyph: str


METHODS = {
    "PatchDrop": Mark("#0072b2", "o", "●"),
    "Shuffled": Mark("#a8478a", "s", "■"),
    "Random": Mark("#68727d", "D", "◆"),
    "Cascade": Mark("#5b3fa0", "X", "✖"),
    "LR-CNN": Mark("#d55e00", "v", "▼"),
    "HR-CNN": Mark("#008a64", "^", "▲"),
}
OTHER = Mark("#7a5c00", "P", "✚")

CLASS_COLOURS = (
    *("#2f9be6", "#ff8c3b", "#22c08a", "#e873c4", "#f3cb2e", "#9c8bff"),
    *("#4fd8de", "#ff6b66", "#a6d63f", "#d19d63", "#d3dae2", "#c98bd9"),
)
"""Colours of the first classes: the methods' hues, bright enough for a line on a photograph."""
GOLDEN = (math.sqrt(5) - 1) / 2

POLICY_STAGES = {"pt": "Pt", "ft1": "Ft-1", "ft2": "Ft-2"}
OWN = ("PatchDrop", "LR-CNN", "HR-CNN")
"""Methods that are no baselines."""
STAGES = {"lr": "LR-CNN", "hr": "HR-CNN", "patches": "HR-CNN on patches", **POLICY_STAGES}


def mark(method: str) -> Mark:
    """Return the look of a method; one for all that have none of their own."""
    return METHODS.get(method, OTHER)


def class_colour(number: int) -> str:
    """Return a class' colour by its number from 0, as ``#rrggbb``; after the first twelve, hues far apart."""
    if number < len(CLASS_COLOURS):
        return CLASS_COLOURS[number]
    light = (0.55, 0.68, 0.45)[number % 3]
    parts = colorsys.hls_to_rgb(number * GOLDEN % 1, light, 0.75)
    return "#" + "".join(f"{round(255 * part):02x}" for part in parts)


def stage_name(stage: str) -> str:
    """Return a stage's name: ``ft1`` is Ft-1; an unknown stage keeps its name."""
    return STAGES.get(stage, stage)


def finite(value: Any) -> bool:
    """Check whether this is a number that can be printed or drawn."""
    return isinstance(value, Real) and math.isfinite(value)


def percent(share: float | None, digits: int = 1) -> str:
    """Format a share: 0.864 is ``86.4 %``, with a space that does not break."""
    return f"{100 * share:.{digits}f}{SPACE}%" if share is not None and finite(share) else NOTHING


def whole_percent(share: float | None) -> str:
    """Format a share: 0.314 is ``31 %``; those near 0 or 1 keep a decimal, so that 0.4 % is not read as nothing."""
    if share is None or not finite(share):
        return NOTHING
    edge = 0 < share < 0.01 or 0.99 < share < 1
    return percent(share, 1 if edge else 0)


def number(value: float | None, digits: int = 2) -> str:
    """Format a number: 12345.6 is ``12,345.60``."""
    if value is None or not finite(value):
        return NOTHING
    return f"{value:,.{digits}f}".replace("-", "\N{MINUS SIGN}")


def duration(seconds: float) -> str:
    """Format a time: ``41 s``, ``3 min 20 s`` or ``2 h 5 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{SPACE}s"
    if whole < 3600:
        return f"{whole // 60}{SPACE}min {whole % 60}{SPACE}s"
    return f"{whole // 3600}{SPACE}h {whole % 3600 // 60}{SPACE}min"


def shorten(text: str, length: int) -> str:
    """Cut text to at most ``length`` characters, the last an ellipsis if something was cut."""
    return text if len(text) <= length else text[: length - 1].rstrip() + "…"


def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """Return the font of the report's images at ``size`` pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(str(_matplotlib() / "mpl-data/fonts/ttf" / name), size)


def _matplotlib() -> Path:
    """Return matplotlib's folder, without importing it, which takes half a second and only charts need."""
    found = importlib.util.find_spec("matplotlib")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent
