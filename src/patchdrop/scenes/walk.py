"""Do what `plan` and `predict` of scenes share: open a scene, look at it in groups of cells, and describe it.

Each group of cells goes the way of `patchdrop.episode.play`: look (LR from the overview) -> decide -> choose -> read ->
classify. The last two go part by part, so that pixels of only a few cells are held at a time. They begin after the next
group's tiles have been asked for, so that its bytes come meanwhile. A plan stops after choose and counts what would be
read. Both ask for a group's tiles at once and in the same order, so the requests and bytes of a plan are those of its
execution, as long as no request has to be repeated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from patchdrop.episode import Look
from patchdrop.errors import DataError, UsageError
from patchdrop.models.compute import together
from patchdrop.policy.choice import Choose
from patchdrop.read.pairs import LowScene
from patchdrop.read.slide import SlideScene, slide_instead
from patchdrop.read.tiled import TiledScene
from patchdrop.scenes.flags import SceneFlags
from patchdrop.scenes.listing import Source
from patchdrop.scenes.model import Model
from patchdrop.scenes.places import Places
from patchdrop.serve.predictor import Chances, chances_of
from patchdrop.tiff.directory import Header, HeaderError, read_header
from patchdrop.transport.opening import open_transport
from patchdrop.transport.ranges import Transport, is_url, public_name
from patchdrop.transport.remote import IN_FLIGHT, LIMIT

Failed = Callable[[str], None]
"""Called with the reason for a scene that fails; the others go on."""
Scene = TiledScene | SlideScene


class Reading(NamedTuple):
    """The settings for reading scenes."""

    gap: int = 0
    """Ranges at most this many bytes apart are read as one."""
    limit: float = LIMIT
    """Seconds a range may take over a network, all attempts together."""
    jobs: int = 1
    """Scenes at once, 1 to 32; they share 32 requests in flight."""
    cache: Path | None = None
    """Folder that keeps headers and overviews of scenes behind a network."""
    cell_metres: float | None = None
    """Side of a cell on the ground; None: a cell has HR's size in pixels of the scene."""


def reading_of(flags: SceneFlags) -> Reading:
    """Return the settings for reading that the command line gives."""
    return Reading(flags.gap, flags.limit, flags.jobs, flags.cache, flags.cell_metres)


@contextmanager
def opened(source: Source, model: Model, reading: Reading) -> Iterator[Scene]:
    """Open a scene, or a slide if the reader of TIFFs refuses the file.

    Raises:
        DataError: it cannot be read, or not with this model and these settings.
    """
    if source.low is None and model.predictor.own_low:
        raise DataError(
            f"{public_name(source.scene)}: {model.run} was trained on LR images of their own, a scene's overview is "
            "none; give the LR scene with --low-scene, or train one without"
        )
    with ExitStack() as stack:

        def reached(name: str) -> Transport:
            in_flight = max(1, IN_FLIGHT // reading.jobs)
            opened = open_transport(name, reading.limit, in_flight, model.stop, reading.cache)
            return stack.enter_context(closing(opened))

        transport = reached(source.scene)
        try:
            header = read_header(transport)
        except HeaderError as refused:
            if is_url(source.scene):
                raise
            file = stack.enter_context(closing(slide_instead(source.scene, refused)))
            if source.low is not None or reading.cell_metres is not None:
                raise DataError(
                    f"{file.name}: is read by OpenSlide, which knows no georeference: leave --low-scene and "
                    "--cell-metres out"
                ) from None
            yield SlideScene(file, model.shape)
            return
        places = Places(header.georeference, transport.name)
        cell = _cell(header, places, model, reading, transport.name)
        if source.low is None:
            yield TiledScene(transport, model.shape, reading.gap, header, cell)
            return
        beside = reached(source.low)
        transport.ledger.beside = beside.ledger
        size = header.levels[0].height, header.levels[0].width
        below = read_header(beside)
        onto = places.onto(Places(below.georeference, beside.name), below.levels[0].width)
        low = LowScene(beside, below, model.shape, reading.gap, transport.name, size, cell or model.shape.high, onto)
        yield TiledScene(transport, model.shape, reading.gap, header, cell, low)


def _cell(header: Header, places: Places, model: Model, reading: Reading, name: str) -> tuple[int, int] | None:
    """Return height and width in pixels of a cell with a ground size; None if cells have HR's size."""
    if reading.cell_metres is None:
        return None
    size = header.levels[0].height, header.levels[0].width
    height, width = places.cell(reading.cell_metres, size)
    said = f"{name}: cells of {reading.cell_metres:g} m are {width} x {height} px"
    if height > size[0] or width > size[1]:
        raise DataError(f"{said}, the scene has {size[1]} x {size[0]}: give fewer --cell-metres")
    if height < model.shape.low[0] or width < model.shape.low[1]:
        raise DataError(f"{said}, fewer than LR's {model.shape.low[1]} x {model.shape.low[0]}: give more --cell-metres")
    return height, width


def seen_cells(scene: Scene, group: range) -> tuple[list[int], Tensor]:
    """Return the cells that hold more than nodata, and their LR."""
    look = scene.look(group)
    return [cell for cell, seen in zip(group, look.seen.tolist(), strict=True) if seen], look.low[look.seen]


class Decided(NamedTuple):
    """The outcome of looking at some cells, and which of their patches are to be read."""

    parts: list[tuple[slice, Look]]
    """Positions of the cells whose pixels are held at a time, and the look at their LR."""
    choice: Tensor
    """Patches to read, ``(B, P)`` bool."""
    chances: list[Chances]
    """Chances of being right on each cell."""


def decide(model: Model, scene: Scene, low: Tensor, choose: Choose) -> Decided:
    """Look at the LR ``(B, C, h, w)`` of one or more cells, and choose patches.

    This goes part by part, so that a part's classifier can reuse what was computed for its cells; in a plan too, whose
    logits are then those of its execution to the bit.
    """
    with torch.inference_mode():
        parts = [(part, model.look(low[part])) for part in scene.in_parts(len(low))]
        scores, chances = together([look for _, look in parts])
        choice = choose(scores).cpu()
        return Decided(parts, choice, chances_of(scores.cpu(), None if chances is None else chances.cpu(), choice))


def described(scene: Scene, places: Places) -> dict[str, Any]:
    """Return what a plan and a prediction both say of a scene."""
    low = scene.low if isinstance(scene, TiledScene) and isinstance(scene.low, LowScene) else None
    return {
        "scene": scene.name,
        "version": scene.transport.version,
        **({} if low is None else {"low": low.name, "low_version": low.version}),
        "size": list(scene.size),
        "cell": list(scene.cell),
        "coordinates": places.kind,
        "cells": scene.cells,
    }


def each_once(sources: Sequence[Source]) -> list[Source]:
    """Return the sources without repetitions.

    Raises:
        UsageError: two of them differ only in what may not be shown, or in their LR scene.
    """
    named: dict[str, Source] = {}
    for source in sources:
        first = named.setdefault(name_of(source.scene), source)
        if first.low != source.low or (is_url(source.scene) and first != source):
            raise UsageError(
                f"{public_name(source.scene)}: is named twice, with another user, query, fragment or LR scene; "
                "give one of them, or each its own --out"
            )
    return list(named.values())


def name_of(source: str) -> str:
    """Return the name of a scene's files: its own name, and enough of a digest to tell it from others of that name."""
    name = public_name(source)
    stem = PurePosixPath(name).stem[:50] or "scene"  # the file system's limit counts bytes, and suffixes follow
    address = name.encode() if is_url(source) else os.fsencode(os.path.abspath(source))
    return f"{stem}-{hashlib.sha256(address).hexdigest()[:8]}"
