"""List the images of fMoW-rgb as published.

``train/<class>/<class>_<place>/<class>_<place>_<view>_rgb.jpg`` with a ``.json`` beside each, one record a bounding
box, cut out with context (`square_with_context`). The published ``test/`` has numbers instead of classes and cannot be
listed: ``val`` is listed as ``test``, unless ``test/`` has been sorted into class folders too, with the mapping that
was published later. ``false_detection``, which is no class of the training set, is left out.
"""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

from patchdrop.data.folders import SPLITS, Box, Row, Rows, checked, visible_folders
from patchdrop.errors import DataError

CONTEXT = 1.25
"""Side of the square cut out, in multiples of the box's longer side ..."""
CONTEXT_PIXELS = 224
"""... but at least this many pixels, the input of the paper's networks ..."""
CONTEXT_MOST = 3.0
"""... as long as that is not more than this multiple."""

_NO_CLASS = "false_detection"


def is_fmow(root: Path) -> bool:
    """Check whether there are folders ``<class>/<class>_<place>``."""
    return any(_classes(root / split) for split in SPLITS)


def _classes(split: Path) -> list[Path]:
    """Return the class folders of a split: those with folders ``<class>_<place>`` in them."""
    return [folder for folder in visible_folders(split) if folder.name != _NO_CLASS and _places(folder)]


def _places(folder: Path) -> list[Path]:
    return [place for place in visible_folders(folder) if re.fullmatch(re.escape(folder.name) + r"_\d+", place.name)]


def read_fmow(root: Path) -> Rows:
    """Return the rows of each split that is there, ``val`` as ``test`` if there is no other."""
    folders = {split: _classes(root / split) for split in SPLITS}
    if folders["val"] and not folders["test"]:
        folders = {"train": folders["train"], "test": folders["val"]}
    folders = {split: classes for split, classes in folders.items() if classes}
    if not folders:
        raise DataError(f"{root}: no train/<class>/<class>_<n> folder: unpack fMoW-rgb's train and val here")
    names = {folder.name for classes in folders.values() for folder in classes}
    return checked(
        root,
        {
            split: [row for folder in classes for row in _class_rows(folder, names)]
            for split, classes in folders.items()
        },
    )


def _class_rows(folder: Path, names: set[str]) -> list[Row]:
    rows = [
        row for place in _places(folder) for image in _views(place) for row in _image_rows(image, folder.name, names)
    ]
    if not rows:
        raise DataError(f"{folder}: class folder without an _rgb.jpg image: unpack fMoW-rgb again")
    return rows


def _views(place: Path) -> list[Path]:
    """Return one image per view: the pan-sharpened ``_rgb``, or ``_msrgb`` (a quarter of its side) if it is alone."""
    views: dict[str, Path] = {}
    for path in sorted(place.iterdir()):  # ..._msrgb.jpg comes before ..._rgb.jpg
        match = re.fullmatch(r"(.+)_(?:ms)?rgb\.jpg", path.name)
        if match:
            views[match[1]] = path
    return [views[view] for view in sorted(views)]


def _image_rows(image: Path, folder_class: str, names: set[str]) -> list[Row]:
    """Return one row per box of a known class; a file has a list of boxes, or one box by itself."""
    file = image.with_suffix(".json")
    try:
        content = json.loads(file.read_bytes())
        boxes = content["bounding_boxes"]
        size = (content.get("img_width"), content.get("img_height"))
        rows = []
        for entry in boxes if isinstance(boxes, list) else [boxes]:
            label = entry.get("category", folder_class)
            if label in names:
                rows.append(Row(image, label, box=square_with_context(_four_numbers(entry["box"]), *size)))
    except FileNotFoundError:
        raise DataError(f"{file}: missing beside its image: unpack fMoW-rgb again") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{file}: no bounding_boxes with a box [x, y, width, height] ({error!r}): unpack fMoW-rgb again"
        ) from error
    return rows


def _four_numbers(box: Any) -> tuple[float, float, float, float]:
    x, y, width, height = (float(edge) for edge in box)
    if not all(math.isfinite(edge) for edge in (x, y, width, height)):
        raise ValueError("not a number")
    return x, y, width, height


def square_with_context(
    box: tuple[float, float, float, float],
    image_width: float | None = None,
    image_height: float | None = None,
) -> Box:
    """Return the square to cut out around an fMoW box.

    Its side is 1.25 times the box's longer side; a small box gets more of its surroundings, up to 3 times its longer
    side, until the square has 224 px. (A box of 50 px gives 150, of 100 px 224, of 400 px 500.) If the image's size is
    known and has room, the square is moved inside.

    Args:
        box: left, top, width, height in pixels, as fMoW's files have it.
        image_width, image_height: pixels, if known.

    Returns:
        Left, top, right, bottom in whole pixels.
    """
    x, y, width, height = box
    longer = max(width, height)
    side = round(min(CONTEXT_MOST * longer, max(CONTEXT * longer, CONTEXT_PIXELS)))
    left = _moved_inside(round(x + (width - side) / 2), side, image_width)
    top = _moved_inside(round(y + (height - side) / 2), side, image_height)
    return left, top, left + side, top + side


def _moved_inside(start: int, side: int, length: float | None) -> float:
    if length is None or side > length:
        return float(start)
    return float(min(max(start, 0), int(length) - side))
