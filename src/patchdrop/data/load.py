"""Load the data set that settings name, as the splits of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from patchdrop.data.cifar import load_cifar
from patchdrop.data.listing import Listing, Record, list_images
from patchdrop.data.markers import CLASSES as MARKER_CLASSES
from patchdrop.data.markers import make_images
from patchdrop.data.sets import FileSource, MemorySource, Progress, Source, Split, into_memory, low_of, without_bad
from patchdrop.data.source import DataSource
from patchdrop.data.splits import carve
from patchdrop.data.window_sets import Read, load_windows
from patchdrop.data.windows import groups, is_window_list, list_windows
from patchdrop.errors import DataError
from patchdrop.grid import Shape, Size
from patchdrop.settings.flat import MARKERS

TRAIN_MARKERS, TEST_MARKERS = 5000, 1500


@dataclass(frozen=True)
class Statistics:
    """Channel mean and deviation of the training images in 0..255, for HR and for LR: ``(C,)`` each."""

    mean: Tensor
    std: Tensor
    low_mean: Tensor
    low_std: Tensor


@dataclass(frozen=True)
class Data:
    """Labelled images in splits.

    Attributes:
        shape: of the images as they are decoded.
        splits: ``fit`` (all networks train on it), ``val`` (picks the checkpoint) and ``test``.
        skipped: image -> why it was left out.
        read: the cost of reading windows of scenes; None for other data.
    """

    name: str
    layout: str
    classes: tuple[str, ...]
    shape: Shape
    splits: Mapping[str, Split]
    skipped: Mapping[str, str]
    read: Read | None = None


def load(asked: DataSource, progress: Progress, only: str | None = None) -> Data:
    """Read a data set and split it.

    Args:
        progress: called with how many images are decoded, and of how many.
        only: read just this split (``train``, ``val`` or ``test``), and carve nothing out of it.

    Raises:
        DataError: see `patchdrop.data.listing` and `patchdrop.read.images`.
    """
    parts = _read(asked, progress, only)
    if only is not None:
        if only not in parts.sources:
            raise DataError(f"{asked.data}: has no {only} split; name one that it has with --split")
        whole = {only: _whole(parts.sources[only])}
        return Data(parts.name, parts.layout, parts.classes, asked.shape, whole, parts.skipped, parts.read)
    if "train" not in parts.sources:
        raise DataError(f"{asked.data}: has no train split, so nothing can be trained on it")
    splits = _split(parts.sources, asked, parts.groups)
    return Data(parts.name, parts.layout, parts.classes, asked.shape, splits, parts.skipped, parts.read)


@dataclass(frozen=True)
class _Parts:
    name: str
    layout: str
    classes: tuple[str, ...]
    sources: Mapping[str, Source]
    skipped: Mapping[str, str]
    groups: Mapping[str, int] | None = None
    """Name of each training image -> number of its group, which no split divides; None: each by itself."""
    read: Read | None = None


def _read(asked: DataSource, progress: Progress, only: str | None) -> _Parts:
    layout, shape = asked.layout, asked.shape
    if asked.embedded:
        size = shape.high
        if size[0] != size[1] or shape.channels != 3:
            raise DataError("markers: the embedded images are square RGB images, set one --high and 3 channels")
        made = {
            "train": make_images("train", TRAIN_MARKERS, size[0]),
            "test": make_images("test", TEST_MARKERS, size[0]),
        }
        return _in_memory(MARKERS, MARKERS, MARKER_CLASSES, made)
    root = Path(asked.data)
    if layout in ("cifar10", "cifar100"):
        return _cifar(root, layout, shape)
    if layout in ("auto", "csv") and is_window_list(root):
        return _from_scenes(root, asked, progress, only)
    listing = list_images(root, layout)
    if listing.layout in ("cifar10", "cifar100"):
        return _cifar(root, listing.layout, shape)
    return _from_files(listing, asked, progress, only)


def _cifar(root: Path, layout: str, shape: Shape) -> _Parts:
    classes, splits = load_cifar(root, layout)
    for name, (high, _) in splits.items():
        if tuple(high.shape[1:]) != (shape.channels, *shape.high):
            raise DataError(f"{root}: {name} images are 32 x 32 RGB, set --high 32 --channels 3")
    return _in_memory(root.name, layout, classes, splits)


def _in_memory(name: str, layout: str, classes: Sequence[str], splits: Mapping[str, tuple[Tensor, Tensor]]) -> _Parts:
    sources = {
        split: MemorySource(high, None, targets, [f"{split}/{i:05d}" for i in range(len(targets))])
        for split, (high, targets) in splits.items()
    }
    return _Parts(name, layout, tuple(classes), sources, {})


def _from_files(listing: Listing, asked: DataSource, progress: Progress, only: str | None) -> _Parts:
    sources: dict[str, Source] = {}
    skipped: dict[str, str] = {}
    wanted = {k: v for k, v in listing.splits.items() if only in (None, k)}
    height, width = asked.shape.high
    images = sum(map(len, wanted.values()))
    fits = images * asked.shape.channels * height * width <= asked.memory_gb * 2**30
    before = 0
    for split, records in wanted.items():
        source = FileSource(
            records,
            asked.shape.high,
            asked.shape.low,
            asked.shape.channels,
            asked.workers,
            [_name(listing.root, record) for record in records],
            torch.tensor([record.target for record in records]),
            asked.skip_bad,
            skipped,
        )
        if fits:
            sources[split] = into_memory(source, asked.workers, _after(before, images, progress))
        elif asked.skip_bad:
            sources[split] = without_bad(source, asked.workers, _after(before, images, progress))
        else:
            sources[split] = source
        before += len(records)
    return _Parts(listing.root.name, listing.layout, listing.classes, sources, skipped)


def _from_scenes(root: Path, asked: DataSource, progress: Progress, only: str | None) -> _Parts:
    listing = list_windows(root)
    wanted = {k: v for k, v in listing.splits.items() if only in (None, k)}
    skipped: dict[str, str] = {}
    sources, read = load_windows(wanted, asked, skipped, progress)
    train = listing.splits.get("train", ())
    joined = dict(zip((window.name for window in train), groups(train), strict=True))
    return _Parts(root.name, "windows", listing.classes, sources, skipped, joined, read)


def _after(before: int, total: int, progress: Progress) -> Progress:
    """Return progress over several splits, of which ``before`` images are done."""
    return lambda done, _: progress(before + done, total)


def _name(root: Path, record: Record) -> str:
    return record.path.relative_to(root).as_posix() if record.path.is_relative_to(root) else record.path.name


def check_classes(data: Data, where: str) -> None:
    """Refuse to train on classes with a single image, which can be used either to train or to evaluate, not both.

    Raises:
        DataError: there are some; they are named.
    """
    parts = [data.splits[name] for name in ("fit", "val")]
    targets = torch.cat([split.targets for split in parts])
    counts = torch.bincount(targets, minlength=len(data.classes)).tolist()
    single = [name for name, count in zip(data.classes, counts, strict=True) if count == 1]
    if single:
        named = ", ".join(single[:5]) + (" and others" if len(single) > 5 else "")
        raise DataError(
            f"{where}: {len(single)} of {len(data.classes)} classes have a single image in train and val ({named}), "
            "too few to learn from and to judge by; add images or leave such classes out"
        )


def _split(sources: Mapping[str, Source], asked: DataSource, groups: Mapping[str, int] | None) -> dict[str, Split]:
    train = sources["train"]
    group = list(range(len(train.targets))) if groups is None else [groups[name] for name in train.names]
    fit = list(range(len(train.targets)))
    splits: dict[str, Split] = {}
    if "val" in sources:
        splits["val"] = _whole(sources["val"])
    elif asked.val_fraction > 0:
        fit, val = carve(train.targets.tolist(), asked.val_fraction, asked.seed, group)
        splits["val"] = Split(train, torch.tensor(val))
    else:
        raise DataError(f"{asked.data}: has no val split, and val_fraction is 0; one of the two is needed")
    splits["fit"] = Split(train, torch.tensor(fit))
    if "test" in sources:
        splits["test"] = _whole(sources["test"])
    empty = [name for name, split in splits.items() if len(split) == 0]
    if empty:
        joined = ", or too many of its windows overlap: name splits in a column split" if groups else ""
        raise DataError(f"{asked.data}: no image is left for the {empty[0]} split{joined}")
    return splits


def _whole(source: Source) -> Split:
    return Split(source, torch.arange(len(source.targets)))


def statistics(split: Split, low_size: Size, images: int = 2048) -> Statistics:
    """Compute channel statistics over up to ``images`` evenly spaced images of a split (use ``fit`` alone)."""
    step = max(1, len(split) // images)
    positions = torch.arange(0, len(split), step)[:images]
    highs, lows = _Moments(), _Moments()
    for batch in split.batches(torch.split(positions, 64)):
        highs.add(batch.high)
        lows.add(low_of(batch, low_size))
    return Statistics(*highs.result(), *lows.result())


class _Moments:
    """Running sums of pixels and of their squares, per channel."""

    def __init__(self) -> None:
        self.count = 0
        self.first = torch.zeros(1, dtype=torch.float64)
        self.second = torch.zeros(1, dtype=torch.float64)

    def add(self, images: Tensor) -> None:
        pixels = images.double()
        self.count += pixels.numel() // pixels.shape[1]
        self.first = self.first + pixels.sum((0, 2, 3))
        self.second = self.second + pixels.square().sum((0, 2, 3))

    def result(self) -> tuple[Tensor, Tensor]:
        mean = self.first / self.count
        # A constant channel has deviation 0; one grey level keeps the division finite.
        return mean.float(), (self.second / self.count - mean**2).clamp(min=1.0).sqrt().float()
