"""What `plan` and `predict` of scenes share: a scene is opened, looked at in groups of cells, and described.

Of each group of cells: look (LR from the overview) -> decide -> choose -> read -> classify, the walk of
`patchdrop.episode.play`. The last two go part by part, so that pixels of a few cells are held at a time, and after the
next group has been asked for, so that its bytes come meanwhile. A plan stops after choose and counts what would be
read. Both ask for a group's tiles at once and in the same order, so the requests and bytes of a plan are those of its
execution, as long as no request has to be repeated.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from torch import Tensor

from patchdrop.errors import UsageError
from patchdrop.read.opening import open_transport
from patchdrop.read.remote import IN_FLIGHT, LIMIT
from patchdrop.read.slide import SlideScene, slide_instead
from patchdrop.read.tiff import HeaderError
from patchdrop.read.tiled import TiledScene
from patchdrop.read.transport import is_url, public_name
from patchdrop.scenes.model import Model
from patchdrop.scenes.places import Places

Failed = Callable[[str], None]
"""Takes the reason of a scene that fails; the others go on."""
Scene = TiledScene | SlideScene
T = TypeVar("T")


class Reading(NamedTuple):
    """How scenes are read."""

    gap: int = 0
    """Ranges at most this many bytes apart are read as one."""
    limit: float = LIMIT
    """Seconds a range may take over a network, all attempts together."""
    jobs: int = 1
    """Scenes at once, 1 to 32; they share 32 requests in flight."""
    cache: Path | None = None
    """Folder that keeps headers and overviews of scenes behind a network."""


@contextmanager
def opened(source: str, model: Model, reading: Reading) -> Iterator[Scene]:
    """A scene, or a slide where the reader of TIFFs does not take the file."""
    in_flight = max(1, IN_FLIGHT // reading.jobs)
    with ExitStack() as stack:
        opened = open_transport(source, reading.limit, in_flight, model.stop, reading.cache)
        transport = stack.enter_context(closing(opened))
        scene: Scene
        try:
            scene = TiledScene(transport, model.shape, reading.gap)
        except HeaderError as refused:
            if is_url(source):
                raise
            scene = SlideScene(stack.enter_context(closing(slide_instead(source, refused))), model.shape)
        yield scene


def seen_cells(scene: Scene, group: range) -> tuple[list[int], Tensor]:
    """The cells that hold more than nodata, and their LR."""
    look = scene.look(group)
    return [cell for cell, seen in zip(group, look.seen.tolist(), strict=True) if seen], look.low[look.seen]


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """The same items, each when the next one has been made: its bytes come while this one is worked on."""
    waiting: list[T] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting


def described(scene: Scene, places: Places) -> dict[str, Any]:
    """What a plan and a prediction both say of a scene."""
    return {
        "scene": scene.name,
        "version": scene.transport.version,
        "size": list(scene.size),
        "coordinates": places.kind,
        "cells": scene.cells,
    }


def each_once(sources: Sequence[str]) -> list[str]:
    """The sources without repetitions.

    Raises:
        UsageError: two of them cannot be told apart by what may be shown of them.
    """
    named: dict[str, str] = {}
    for source in sources:
        if named.setdefault(public_name(source), source) != source:
            raise UsageError(
                f"{public_name(source)}: is named twice, with another user, query or fragment; "
                "give one of them, or each its own --out"
            )
    return list(named.values())


def name_of(source: str) -> str:
    """What a scene's files are called: its own name, and enough of a digest to tell it from others of that name."""
    name = public_name(source)
    stem = PurePosixPath(name).stem[:50] or "scene"  # the file system's limit counts bytes, and suffixes follow
    address = name.encode() if is_url(source) else os.fsencode(os.path.abspath(source))
    return f"{stem}-{hashlib.sha256(address).hexdigest()[:8]}"
