"""Make batches of labelled images: from memory if they fit, else streamed through worker processes."""

from __future__ import annotations

import hashlib
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.resource_tracker import ensure_running
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from patchdrop.data.listing import Record
from patchdrop.data.low import area_average
from patchdrop.errors import DataError
from patchdrop.read.images import read_image

Progress = Callable[[int, int], None]


class Batch(NamedTuple):
    """A batch of labelled images, as they were read."""

    high: Tensor
    """HR, ``(B, C, H, W)`` uint8."""
    low: Tensor | None
    """LR of a sensor of its own, or of a scene's overview, ``(B, C, h, w)`` uint8; None if LR is made from HR."""
    target: Tensor
    """Class index, ``(B,)`` int64."""


class Source(Protocol):
    """A source of the images of one or more splits, by position."""

    @property
    def targets(self) -> Tensor:
        """Class indices, ``(n,)`` int64."""

    @property
    def names(self) -> Sequence[str]:
        """A name for each image."""

    @property
    def own_low(self) -> bool:
        """Whether LR images are files of their own, rather than HR averaged."""

    def batches(self, plan: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield one batch for each tensor of positions, in order."""


@dataclass(frozen=True)
class MemorySource:
    """A source that holds 8-bit tensors: ``high (n, C, H, W)``, ``low (n, C, h, w)`` or None, ``targets (n,)``."""

    high: Tensor
    low: Tensor | None
    targets: Tensor
    names: Sequence[str]
    overview: bool = False
    """Whether ``low`` shows HR averaged, as a scene's overview does, rather than what another sensor saw."""

    @property
    def own_low(self) -> bool:
        """Whether LR images of a sensor of their own are held beside HR."""
        return self.low is not None and not self.overview

    def batches(self, plan: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield one batch for each tensor of positions, in order."""
        for index in plan:
            low = None if self.low is None else self.low[index]
            yield Batch(self.high[index], low, self.targets[index])


@dataclass(frozen=True)
class FileSource:
    """A source that decodes images when they are needed, in ``workers`` processes (0: in this one)."""

    records: Sequence[Record]
    high_size: tuple[int, int]
    low_size: tuple[int, int]
    channels: int
    workers: int
    names: Sequence[str]
    targets: Tensor
    skip_bad: bool = False
    skipped: dict[str, str] = field(default_factory=dict)
    """Name -> reason, for images left out so far."""

    @property
    def own_low(self) -> bool:
        """Whether the records name LR images; a listing has them for all images or for none."""
        return any(record.low_path is not None for record in self.records)

    def decoder(self) -> Decoder:
        """Return the decoder of one image, for this process or a worker."""
        return _ImageDecoder(self.records, self.high_size, self.low_size, self.channels)

    def batches(self, plan: Sequence[Tensor]) -> Iterator[Batch]:
        """Yield one batch for each tensor of positions, in order; bad images are missing if ``skip_bad``.

        Raises:
            DataError: an image cannot be read.
        """
        yield from streamed(self.decoder(), plan, self.workers, self._bad)

    def _bad(self, item: Bad) -> None:
        if not self.skip_bad:
            raise DataError(item.reason)
        self.skipped[self.names[item.position]] = item.reason


class Decoder(Protocol):
    """A decoder of the image at a position; may be sent to a worker process before its first image."""

    def __len__(self) -> int: ...

    def __getitem__(self, position: int) -> Decoded: ...


def streamed(decode: Decoder, plan: Sequence[Tensor], workers: int, bad: Callable[[Bad], None]) -> Iterator[Batch]:
    """Yield batches that ``workers`` processes decode (0: this one); images passed to ``bad`` are missing."""
    loader: DataLoader[Decoded] = DataLoader(
        decode,  # type: ignore[arg-type]  # torch asks for a class of its own where any sequence does
        batch_sampler=[index.tolist() for index in plan],
        num_workers=workers,
        collate_fn=list,
        multiprocessing_context="spawn" if workers else None,
    )
    with _signals_left_to_this_process():
        decoded = iter(loader)
    for items in decoded:
        good = [item for item in items if isinstance(item, Pixels)]
        for item in items:
            if isinstance(item, Bad):
                bad(item)
        if good:
            yield _stack(good)


@contextmanager
def _signals_left_to_this_process() -> Iterator[None]:
    """Keep Ctrl-C and SIGTERM from processes started in this block; here they are put off until its end.

    A terminal sends Ctrl-C to every process, a service manager SIGTERM, and a worker that died of it would break the
    save; workers end when this process does. A worker inherits what is blocked, so that it is safe from its first
    instruction on, not only once it could ignore the signal itself.
    """
    ensure_running()  # starting Python's resource tracker would lift the block
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


class Pixels(NamedTuple):
    """A decoded image: ``high (C, H, W)`` and ``low (C, h, w)`` uint8.

    Arrays, not tensors: from a worker these travel as bytes. Tensors would need shared memory, which containers are
    short of, and a worker that is told to end while a thread of its own packs a tensor ends with an abort.
    """

    position: int
    high: NDArray[np.uint8]
    low: NDArray[np.uint8] | None
    target: int


class Bad(NamedTuple):
    """An image that cannot be read, and why."""

    position: int
    reason: str


Decoded = Pixels | Bad


class _ImageDecoder(Dataset[Decoded]):
    """A decoder that returns errors instead of raising them, so that they cross from a worker process as one line."""

    def __init__(self, records: Sequence[Record], high: tuple[int, int], low: tuple[int, int], channels: int) -> None:
        self.records, self.high, self.low, self.channels = records, high, low, channels

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, position: int) -> Decoded:
        record = self.records[position]
        try:
            high = read_image(record.path, self.high, self.channels, record.box)
            low = None if record.low_path is None else read_image(record.low_path, self.low, self.channels)
        except DataError as error:
            return Bad(position, str(error))
        return Pixels(position, high.numpy(), None if low is None else low.numpy(), record.target)


def _stack(items: Sequence[Pixels]) -> Batch:
    lows = [item.low for item in items if item.low is not None]
    return Batch(
        torch.from_numpy(np.stack([item.high for item in items])),
        torch.from_numpy(np.stack(lows)) if lows else None,
        torch.tensor([item.target for item in items]),
    )


def without_bad(source: FileSource, threads: int, progress: Progress) -> FileSource:
    """Return the source without images that cannot be read, which are noted in its ``skipped``; decodes each one once.

    Raises:
        DataError: none could be read.
    """
    decode = source.decoder()

    def bad(position: int) -> Bad | None:
        item = decode[position]
        return item if isinstance(item, Bad) else None

    kept: list[int] = []
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for position, item in enumerate(pool.map(bad, range(len(decode)))):
            if item is None:
                kept.append(position)
            else:
                source._bad(item)
            progress(position + 1, len(decode))
    if not kept:
        raise DataError(f"none of the {len(decode)} images could be read")
    return replace(
        source,
        records=[source.records[i] for i in kept],
        names=[source.names[i] for i in kept],
        targets=source.targets[kept],
    )


def into_memory(source: FileSource, threads: int, progress: Progress) -> MemorySource:
    """Decode a whole source once, in threads (the decoders release the interpreter's lock).

    Raises:
        DataError: an image cannot be read and ``skip_bad`` is off, or none could be read.
    """
    decode = source.decoder()
    items: list[Pixels] = []
    with ThreadPoolExecutor(max(1, threads)) as pool:
        for done, item in enumerate(pool.map(decode.__getitem__, range(len(decode))), 1):
            if isinstance(item, Bad):
                try:
                    source._bad(item)
                except DataError:
                    pool.shutdown(cancel_futures=True)
                    raise
            else:
                items.append(item)
            progress(done, len(decode))
    if not items:
        raise DataError(f"none of the {len(decode)} images could be read")
    batch = _stack(items)
    return MemorySource(batch.high, batch.low, batch.target, [source.names[i.position] for i in items])


@dataclass(frozen=True)
class Split:
    """A part of a source, by positions."""

    source: Source
    index: Tensor

    def __len__(self) -> int:
        return len(self.index)

    @property
    def targets(self) -> Tensor:
        """Class indices ``(n,)`` int64."""
        return self.source.targets[self.index]

    @property
    def names(self) -> list[str]:
        """The images' names, in order."""
        return [self.source.names[i] for i in self.index.tolist()]

    @property
    def own_low(self) -> bool:
        """Whether LR images come from a sensor of their own, rather than from averaged HR."""
        return self.source.own_low

    @property
    def sha256(self) -> str:
        """Checksum of the images' names and labels, in order."""
        listed = "\n".join(f"{t} {name}" for t, name in zip(self.targets.tolist(), self.names, strict=True))
        return hashlib.sha256(listed.encode()).hexdigest()

    def batches(self, plan: Iterable[Tensor]) -> Iterator[Batch]:
        """Yield one batch for each tensor of positions within this split."""
        return self.source.batches([self.index[positions] for positions in plan])

    def in_order(self, size: int) -> Iterator[Batch]:
        """Yield the whole split once, in order, in batches of up to ``size``."""
        return self.batches(torch.split(torch.arange(len(self)), size))


def low_of(batch: Batch, size: tuple[int, int]) -> Tensor:
    """Return the batch's LR images ``(B, C, h, w)`` uint8: its own, or HR averaged over area."""
    return area_average(batch.high, size) if batch.low is None else batch.low
