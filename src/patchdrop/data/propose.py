"""Propose HR size, LR size and grid for a data set from the sizes of its images, each with its reason.

HR    A size that three of four training images reach: the lower quartile of their shorter sides, as a square; or the
      lower quartiles of height and width, if the images share a shape that is not square. No longer than ``largest``,
      because time grows with the square of the side. Rounded down to a multiple of the grid whose patches halve well:
      patches of 24 px or more are multiples of 8 px, of 12 px or more multiples of 4 px, smaller ones of 2 px.
LR    A quarter of HR a side, so 1/16 of its pixels, and at least 8 px on the shorter side. LR files of their own give
      their size instead. Never more than half of HR a side: LR has to leave something to see in patches.
grid  4 x 4, the paper's for images of 32 to 224 px, as long as a patch keeps 8 px of HR and 2 px of LR a side. HR that
      is not square has about as many patches, nearly square ones: 3 x 4 for 4:3, 3 x 5 for 16:9. Never finer by itself:
      the number of choices that a policy has doubles with every patch.

Values that a user names stay as they are, and the rest follows from them. The embedded images have the sizes of the
profile ``demo``; CIFAR's images and windows of tiled scenes are never resampled, so HR is their own size in any case.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from patchdrop.data.listing import CIFAR_FOLDERS, Record, list_images
from patchdrop.data.source import is_embedded
from patchdrop.data.windows import Window, is_window_list, list_windows
from patchdrop.errors import DataError
from patchdrop.grid import Grid, Named, Size, patch_size, size_text
from patchdrop.read.images import Box, read_size

NOTHING_NAMED = Named(None, None, None)
LARGEST_ON_CPU, LARGEST_ON_GPU = 128, 224
"""Largest longer side of HR in pixels, on a machine without a GPU and on one with."""
SMALLEST = 16
"""Images whose shorter side has fewer pixels hold no patches worth choosing from."""
PARTS = 4
"""Patches along a side of a square image."""
PATCH_PIXELS, PATCH_LOW_PIXELS = 8, 2
"""Smallest side of a patch in pixels of HR and of LR."""
LOW_PIXELS = 8
"""Smallest shorter side of LR in pixels."""
OBLONG, ALIKE = 1.25, 1.5
"""The middle half of the images share a shape that is not square where their sides differ by the first factor or more,
all the same way round, and their aspects from each other by no more than the second."""
MOST_OBLONG = 4
"""Largest factor by which HR's sides differ."""
_STEPS = ((24, 8), (12, 4), (8, 2))

T = TypeVar("T")


@dataclass(frozen=True)
class Proposal:
    """A proposal of sizes and grid.

    Attributes:
        reasons: ``high``, ``low`` and ``grid``, those that no user named -> why, in words that may follow a colon.
        warning: a sentence if HR that a user named is larger than most of the images.
    """

    high: Size
    low: Size
    grid: Grid
    reasons: Mapping[str, str]
    warning: str | None = None


def propose_for(
    data: str, layout: str = "auto", largest: int = LARGEST_ON_CPU, given: Named = NOTHING_NAMED
) -> Proposal:
    """Propose sizes and grid to train with on a data set, in any layout.

    Args:
        data, layout: as in the settings.
        largest: HR's longer side in pixels, at most.
        given: values that a user named; the rest is proposed.

    Raises:
        DataError: there is no such data set, it has no train split, its images are too small, or none can be read.
        UsageError: a layout that does not exist.
    """
    if is_embedded(data, layout):
        return _for_embedded(given)
    root = Path(data)
    if layout in ("auto", "csv") and is_window_list(root):
        return _for_windows(_train(list_windows(root).splits, data), given)
    listing = None if layout in CIFAR_FOLDERS else list_images(root, layout)
    if listing is None or listing.layout in CIFAR_FOLDERS:
        return _exactly((32, 32), "the images are 32 x 32 px", given)
    records = _train(listing.splits, data)
    return propose(image_sizes(records), low_sizes(records), largest, given)


def _train(splits: Mapping[str, Sequence[T]], data: str) -> Sequence[T]:
    if "train" not in splits:
        raise DataError(f"{data}: has no train split, so nothing can be trained on it")
    return splits["train"]


def _for_embedded(given: Named) -> Proposal:
    """Propose an eighth of HR a side for LR, which hides the digits: the embedded images are made for that."""
    side = given.high[0] if given.high else 64
    part = max(1, side // 8)
    high, low = given.high or (side, side), given.low or (part, part)
    reasons = {
        "high": "the embedded images are drawn at any size, the demo's is 64 px",
        "low": "an eighth of HR a side shows where a marker is and hides its digit",
        "grid": f"{PARTS} x {PARTS} patches, each about as large as a marker",
    }
    proposed = {name: why for name, why in reasons.items() if getattr(given, name) is None}
    return Proposal(high, low, given.grid or Grid(PARTS, PARTS), proposed)


def _for_windows(windows: Sequence[Window], given: Named) -> Proposal:
    """Propose the most frequent size as HR; reading names the line of each window of another size."""
    counts = Counter((bottom - top, right - left) for top, left, bottom, right in (window.box for window in windows))
    (height, width), count = counts.most_common(1)[0]
    which = "the windows" if count == len(windows) else f"{count} of {len(windows)} windows"
    why = f"{which} of the list are {height} x {width} px"
    if given.high is None and min(height, width) < SMALLEST:
        raise DataError(f"{why}, too small to choose patches from: list windows of {SMALLEST} px a side or more")
    return _exactly((height, width), f"{why}, and a window is never resampled", given)


def _exactly(size: Size, why: str, given: Named) -> Proposal:
    """Propose HR of a size that must not be rounded."""
    made = propose([], given=given if given.high else given._replace(high=size))
    return made if given.high else replace(made, reasons={"high": why, **made.reasons})


# --- sizes of images


def image_sizes(records: Sequence[Record], count: int = 256) -> list[Size]:
    """Read the sizes of up to ``count`` evenly spaced images, upright; for a record with a box, the box's size.

    Only headers are decoded. Images that cannot be read are skipped.

    Raises:
        DataError: none can be read.
    """
    return _readable([(record.path, record.box) for record in _spaced(records, count)], "images")


def low_sizes(records: Sequence[Record], count: int = 256) -> list[Size] | None:
    """Read sizes as `image_sizes`, of the LR images; None if LR has no files of its own.

    Raises:
        DataError: there are such files, and none can be read.
    """
    files = [(record.low_path, None) for record in _spaced(records, count) if record.low_path is not None]
    return _readable(files, "LR images") if files else None


def _spaced(records: Sequence[Record], count: int) -> list[Record]:
    taken = min(count, len(records))
    return [records[i * len(records) // taken] for i in range(taken)]


def _readable(files: Sequence[tuple[Path, Box | None]], what: str) -> list[Size]:
    sizes: list[Size] = []
    first: DataError | None = None
    for path, box in files:
        try:
            sizes.append(read_size(path, box))
        except DataError as error:
            first = first or error
    if not sizes:
        raise DataError(f"none of the {len(files)} {what} looked at can be read; the first is {first}")
    return sizes


# --- what to propose


def propose(
    sizes: Sequence[Size],
    own_low_sizes: Sequence[Size] | None = None,
    largest: int = LARGEST_ON_CPU,
    given: Named = NOTHING_NAMED,
) -> Proposal:
    """Propose HR, LR and grid by the rules at the top of this file.

    Args:
        sizes: (height, width) of images in pixels; may be empty if HR is named.
        own_low_sizes: those of the LR images, if LR has files of its own.
        largest: HR's longer side in pixels, at most.
        given: values that a user named; the rest is proposed.

    Raises:
        DataError: more than a quarter of the images are too small, and no HR is named.
        UsageError: the images cannot hold the grid.
    """
    reasons: dict[str, str] = {}
    own_low = _lower_quartile([min(size) for size in own_low_sizes]) if own_low_sizes else None
    known_low = min(given.low) if given.low else own_low
    if given.high:
        sides = given.high
        grid = given.grid or _grid(sides, known_low)
    else:
        held = _held(sizes)
        _check_large(min(held))
        capped = _capped(held, largest)
        grid = given.grid or _grid(capped, known_low)
        sides = _fitted(capped, grid)
        reasons["high"] = _why_high(sizes, held, sides, _fitted(held, grid), largest)
    low = given.low
    if low is None:
        low, reasons["low"] = _low(sides, own_low)
    if given.grid is None:
        reasons["grid"] = _why_grid(grid, sides)
    return Proposal(sides, low, grid, reasons, too_large(sizes, sides))


def too_large(sizes: Sequence[Size], high: Size) -> str | None:
    """Return a sentence if HR, (height, width) in pixels, would enlarge more than half of the images, else None."""
    smaller = sum(height < high[0] or width < high[1] for height, width in sizes)
    if 2 * smaller <= len(sizes):
        return None
    held = _held(sizes)
    return (
        f"HR of {high[0]} x {high[1]} px is larger than {smaller} of the {len(sizes)} images looked at: enlarging them "
        f"adds no detail, only time; {held[0]} x {held[1]} px is what three of four have"
    )


def _lower_quartile(values: Sequence[int]) -> int:
    """Return the largest value that three quarters of all values reach."""
    return sorted(values)[len(values) // 4]


def _held(sizes: Sequence[Size]) -> Size:
    """Return the HR that three of four images have: a square, or height and width of a shape that they share."""
    if not _share_a_shape(sizes):
        side = _lower_quartile([min(size) for size in sizes])
        return side, side
    height, width = (_lower_quartile(lengths) for lengths in zip(*sizes, strict=True))
    return min(height, MOST_OBLONG * width), min(width, MOST_OBLONG * height)


def _share_a_shape(sizes: Sequence[Size]) -> bool:
    """Check whether the middle half of all images are oblong, all the same way round, and alike."""
    aspects = sorted(width / height for height, width in sizes)
    lower, upper = aspects[len(aspects) // 4], aspects[-1 - len(aspects) // 4]
    return (lower >= OBLONG or upper <= 1 / OBLONG) and upper <= ALIKE * lower


def _check_large(shorter: int) -> None:
    if shorter < SMALLEST:
        raise DataError(
            f"more than a quarter of the training images have {shorter} px or fewer on their shorter side, too few to "
            f"choose patches from: use images of {SMALLEST} px or more, or have these enlarged with --high 32 --low 8"
        )


def _capped(size: Size, largest: int) -> Size:
    longer = max(size)
    if longer <= largest:
        return size
    return size[0] * largest // longer, size[1] * largest // longer


def _grid(high: Size, low: int | None) -> Grid:
    """Return some 16 nearly square patches, fewer if they would be too small in HR or in ``low``, LR's shorter side."""
    shorter, longer = sorted(high)

    def most(length: int) -> int:
        by_high = length // PATCH_PIXELS
        return by_high if low is None else min(by_high, low * length // (PATCH_LOW_PIXELS * shorter))

    across = min(max(1, round(PARTS * math.sqrt(shorter / longer))), max(2, most(shorter)))
    along = min(math.floor(across * longer / shorter + 0.5), max(across, most(longer)))
    return Grid(across, along) if high[0] == shorter else Grid(along, across)


def _fitted(size: Size, grid: Grid) -> Size:
    """Round the size down so that every patch has the same sides, which halve well."""
    grid.check(*size)
    return _fitted_side(size[0], grid.rows), _fitted_side(size[1], grid.cols)


def _fitted_side(length: int, parts: int) -> int:
    patch = length // parts
    step = next((step for least, step in _STEPS if patch >= least), 1)
    return parts * (patch // step * step)


def _low(high: Size, own_low: int | None) -> tuple[Size, str]:
    """Return LR in HR's shape, and why."""
    shorter = min(high)
    half = max(1, shorter // 2)
    if own_low is not None and own_low <= half:
        side, why = own_low, "the size of the LR images,"
    elif own_low is not None:
        side, why = half, f"half of HR a side, so that patches add detail to LR images of {own_low} px; it is"
    elif shorter // 4 >= LOW_PIXELS:
        side, why = shorter // 4, "a quarter of HR a side, so"
    else:
        side, why = min(LOW_PIXELS, half), "less would show next to nothing; it is"
    height, width = (math.floor(length * side / shorter + 0.5) for length in high)
    return (height, width), f"{why} 1/{high[0] * high[1] / (height * width):.3g} of HR's pixels"


# --- why


def _why_high(sizes: Sequence[Size], held: Size, high: Size, without_cap: Size, largest: int) -> str:
    if len(set(sizes)) == 1:
        why = f"the images are {sizes[0][0]} x {sizes[0][1]} px"
    elif held[0] == held[1]:
        why = f"three of four images have {held[0]} px or more on their shorter side"
    else:
        why = f"three of four images are {held[0]} px high or more, and three of four {held[1]} px wide or more"
    if high != without_cap:
        return (
            f"{why}, but time grows with the square of the side, so HR stops at {largest} px; --high asks for more, "
            f"up to {size_text(without_cap)}"
        )
    return why if high == held else f"{why}, and the grid has to divide HR into patches that halve well"


def _why_grid(grid: Grid, high: Size) -> str:
    height, width = patch_size(grid, *high)
    even = high == (grid.rows * height, grid.cols * width)
    patches = f"{grid.rows} x {grid.cols} patches of {'' if even else 'up to '}{height} x {width} px"
    if grid.rows != grid.cols:
        return f"{patches}, nearly square ones"
    if grid.rows < PARTS:
        return f"{patches}, since smaller ones would show too little"
    return f"{patches}, as in the paper; finer grids, such as --grid 8, take longer to learn"
