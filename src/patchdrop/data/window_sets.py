"""Make batches of windows of scenes: from memory if they fit, else streamed through worker processes.

All scenes are visited once, one after the other, before training: header and boxes are checked, and pixels are read
into memory. Where they do not fit, windows behind a network are brought into the cache, and workers then read from it;
those on a disk are read by the workers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchdrop.data.sets import Bad, Batch, Decoded, MemorySource, Pixels, Progress, Source, streamed
from patchdrop.data.source import DataSource
from patchdrop.data.windows import Window
from patchdrop.errors import DataError, PatchDropError, UsageError
from patchdrop.grid import Shape
from patchdrop.read.windows import WindowBatch, Windows
from patchdrop.transport.disk_cache import open_cached
from patchdrop.transport.ledger import PURPOSES, Ledger
from patchdrop.transport.ranges import Transport, is_url

OPEN_SCENES = 8
"""Number of scenes whose headers a worker keeps."""
_BLACK = "all of it is nodata: remove the line"


class Read:
    """The cost, in this process, of reading the windows of scenes.

    Attributes:
        network, disk: ledgers of scenes behind a network, and of those on a disk.
        scenes: how many were opened.
        averaged: scenes without a fitting overview, whose LR is HR averaged.
    """

    def __init__(self) -> None:
        self.network, self.disk = Ledger(), Ledger()
        self.scenes = self.averaged = 0

    def add(self, source: str, ledger: Ledger) -> None:
        """Add the cost of one scene."""
        for purpose in PURPOSES:
            (self.network if is_url(source) else self.disk).add(purpose, *ledger.of(purpose))

    def to_json(self) -> dict[str, Any]:
        """Return plain values for the log."""
        counts = {"scenes": self.scenes, "averaged": self.averaged}
        return {**counts, "network": self.network.to_json(), "disk": self.disk.to_json()}

    def __str__(self) -> str:
        """Return one line for people."""
        said = []
        for name, ledger in (("over the network", self.network), ("from disk", self.disk)):
            parts = ", ".join(f"{p} {ledger.of(p).bytes:,}" for p in PURPOSES)
            said.append(f"{ledger.total.requests:,} requests and {ledger.total.bytes:,} bytes {name} ({parts})")
        averaged = f"; {self.averaged} without a fitting overview, LR is averaged from HR" if self.averaged else ""
        return f"windows of {self.scenes} scenes: {'; '.join(said)}{averaged}"


def load_windows(
    splits: Mapping[str, Sequence[Window]],
    asked: DataSource,
    skipped: dict[str, str],
    progress: Progress,
) -> tuple[dict[str, Source], Read]:
    """Load the windows of each split; return them with the cost of reading them.

    Args:
        skipped: takes name -> reason of windows that are left out (``skip_bad``).

    Raises:
        DataError: a window cannot be read; file and line are named.
        UsageError: windows behind a network neither fit into memory nor have a cache.
    """
    shape, cache = asked.shape, Path(asked.cache) if asked.cache else None
    members = [window for windows in splits.values() for window in windows]
    samples = shape.channels * shape.high[0] * shape.high[1]
    fits = len(members) * samples <= asked.memory_gb * 2**30
    if not fits and cache is None and any(is_url(window.scene) for window in members):
        raise UsageError(
            f"{asked.data}: more than --memory-gb {asked.memory_gb:g} of windows, some behind a network, which "
            "every epoch would read again: name a folder that keeps them with --cache"
        )

    def bad(position: int, reason: str) -> None:
        window = members[position]
        if not asked.skip_bad:
            raise DataError(f"{window.where}: {reason}")
        skipped[window.name] = f"{window.where}: {reason}"
        left_out.add(position)

    left_out: set[int] = set()
    held = _Held(members, shape) if fits else None
    read = _visit(members, shape, cache, bad, progress, held)
    sources: dict[str, Source] = {}
    start = 0
    for split, windows in splits.items():
        kept = [i for i in range(start, start + len(windows)) if i not in left_out]
        start += len(windows)
        if not kept:
            raise DataError(f"none of the {len(windows)} windows of {split} could be read")
        chosen = [members[i] for i in kept]
        sources[split] = (
            WindowSource(chosen, shape, cache, asked.workers, asked.skip_bad, skipped)
            if held is None
            else held.source(kept, chosen)
        )
    return sources, read


class _Held:
    """Pixels of windows held in memory."""

    def __init__(self, members: Sequence[Window], shape: Shape) -> None:
        self._high = torch.zeros(len(members), shape.channels, *shape.high, dtype=torch.uint8)
        self._low = torch.zeros(len(members), shape.channels, *shape.low, dtype=torch.uint8)

    def put(self, positions: Sequence[int], seen: WindowBatch) -> None:
        self._high[positions], self._low[positions] = seen.high, seen.low

    def source(self, kept: Sequence[int], windows: Sequence[Window]) -> MemorySource:
        whole = slice(kept[0], kept[-1] + 1) if kept[-1] - kept[0] + 1 == len(kept) else list(kept)  # a slice: no copy
        return MemorySource(self._high[whole], self._low[whole], _targets(windows), _names(windows), overview=True)


def _targets(windows: Sequence[Window]) -> Tensor:
    return torch.tensor([window.target for window in windows])


def _names(windows: Sequence[Window]) -> list[str]:
    return [window.name for window in windows]


def _visit(
    members: Sequence[Window],
    shape: Shape,
    cache: Path | None,
    bad: Callable[[int, str], None],
    progress: Progress,
    held: _Held | None,
) -> Read:
    """Check every window, and read it or, if nothing is held, bring what lies behind a network into the cache."""
    read = Read()
    by_scene: dict[str, list[int]] = {}
    for position, window in enumerate(members):
        by_scene.setdefault(window.address, []).append(position)
    done = 0
    for positions in by_scene.values():
        source = members[positions[0]].scene
        try:
            transport = open_cached(source, cache)
        except (DataError, UsageError) as error:
            _all_bad(positions, error, bad)
            continue
        with closing(transport):
            try:
                for group in _scene(transport, members, positions, shape, bad, held, read):
                    done += group
                    progress(done, len(members))
            finally:
                read.add(source, transport.ledger)
    return read


def _all_bad(positions: Sequence[int], error: PatchDropError, bad: Callable[[int, str], None]) -> None:
    for position in positions:
        bad(position, str(error))


def _scene(
    transport: Transport,
    members: Sequence[Window],
    positions: Sequence[int],
    shape: Shape,
    bad: Callable[[int, str], None],
    held: _Held | None,
    read: Read,
) -> Iterator[int]:
    """Yield how many windows each group had, when it is done."""
    try:
        scene = Windows(transport, shape)
    except DataError as error:
        _all_bad(positions, error, bad)
        yield len(positions)
        return
    read.scenes += 1
    read.averaged += not scene.overview
    inside = []
    for position in positions:
        reason = scene.misplaced(members[position].box)
        if reason:
            bad(position, reason)
        else:
            inside.append(position)
    yield len(positions) - len(inside)
    for group in scene.groups([members[i].box for i in inside]):
        for position, reason in _problems(scene, members, [inside[i] for i in group], held):
            bad(position, reason)
        yield len(group)


def _problems(
    scene: Windows, members: Sequence[Window], positions: Sequence[int], held: _Held | None
) -> Iterator[tuple[int, str]]:
    """Read some windows, and yield those that cannot be read."""
    boxes = [members[i].box for i in positions]
    try:
        seen = None
        if held is not None:
            seen = scene.read(boxes)
        elif is_url(members[positions[0]].scene):
            scene.fetch(boxes)
    except DataError as error:
        if len(positions) == 1:
            yield positions[0], str(error)
        else:
            for position in positions:  # find out which of them it was
                yield from _problems(scene, members, [position], held)
        return
    if held is not None and seen is not None:
        held.put(positions, seen)
        for position, any_seen in zip(positions, seen.seen.tolist(), strict=True):
            if not any_seen:
                yield position, _BLACK


@dataclass(frozen=True)
class WindowSource:
    """A source that decodes windows when they are needed, in ``workers`` processes (0: in this one)."""

    windows: Sequence[Window]
    shape: Shape
    cache: Path | None
    workers: int
    skip_bad: bool
    skipped: dict[str, str]

    @property
    def targets(self) -> Tensor:
        """Class indices, ``(n,)`` int64."""
        return _targets(self.windows)

    @property
    def names(self) -> Sequence[str]:
        """A name for each window."""
        return _names(self.windows)

    @property
    def own_low(self) -> bool:
        """False: LR is as in serving, not from another sensor."""
        return False

    def batches(self, plan: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield one batch for each tensor of positions, in order; bad windows are missing if ``skip_bad``.

        Raises:
            DataError: a window cannot be read.
        """
        with closing(_WindowDecoder(self.windows, self.shape, self.cache)) as decode:
            yield from streamed(decode, plan, self.workers, self._bad)

    def _bad(self, item: Bad) -> None:
        if not self.skip_bad:
            raise DataError(item.reason)
        self.skipped[self.names[item.position]] = item.reason


class _WindowDecoder:
    """A decoder that returns errors instead of raising them, so that they cross from a worker process as one line."""

    def __init__(self, windows: Sequence[Window], shape: Shape, cache: Path | None) -> None:
        self._windows, self._shape, self._cache = windows, shape, cache
        self._open: OrderedDict[str, tuple[Transport, Windows]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, position: int) -> Decoded:
        window = self._windows[position]
        try:
            scene = self._scene(window)
            seen = scene.read([window.box])
            scene.release()
        except DataError as error:
            return Bad(position, f"{window.where}: {error}")
        if not bool(seen.seen[0]):
            return Bad(position, f"{window.where}: {_BLACK}")
        return Pixels(position, seen.high[0].numpy(), seen.low[0].numpy(), window.target)

    def _scene(self, window: Window) -> Windows:
        if window.address not in self._open:
            transport = open_cached(window.scene, self._cache)
            try:
                self._open[window.address] = transport, Windows(transport, self._shape)
            except DataError:
                transport.close()
                raise
            if len(self._open) > OPEN_SCENES:
                self._open.popitem(last=False)[1][0].close()
        self._open.move_to_end(window.address)
        return self._open[window.address][1]

    def close(self) -> None:
        """Close the scenes that are open in this process."""
        for transport, _ in self._open.values():
            transport.close()
        self._open.clear()
