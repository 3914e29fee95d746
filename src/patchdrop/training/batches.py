"""The order of training batches, and their way to the device."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from patchdrop.data.augment import augment
from patchdrop.data.sets import Batch, Split, low_of
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.loop import derived_seed


class Views(NamedTuple):
    """A batch as the networks take it, on their device."""

    high: Tensor
    low: Tensor
    target: Tensor


def steps_in(split: Split, batch: int) -> int:
    """Steps an epoch; the last, smaller batch is left out unless it is the only one."""
    return max(1, len(split) // batch)


def shuffled_plan(split: Split, batch: int, seed: int, stage: str, epoch: int) -> list[Tensor]:
    """Positions of each step's images in one epoch; the same for the same arguments."""
    generator = torch.Generator().manual_seed(derived_seed(seed, stage, "order", epoch))
    order = torch.randperm(len(split), generator=generator)
    return list(torch.split(order[: steps_in(split, batch) * batch], batch))


def training_views(batch: Batch, settings: TrainSettings, device: torch.device) -> Views:
    """Augment a batch and make its LR images from what HR has become."""
    high, low = augment(batch.high, batch.low, settings.augment)
    return plain_views(Batch(high, low, batch.target), settings, device)


def plain_views(batch: Batch, settings: TrainSettings, device: torch.device) -> Views:
    """A batch without augmentation."""
    high, low = batch.high.to(device), None if batch.low is None else batch.low.to(device)
    target = batch.target.to(device)
    return Views(high, low_of(Batch(high, low, target), settings.low_size), target)


def validation_views(split: Split, settings: TrainSettings, device: torch.device) -> Iterator[Views]:
    """A split in order."""
    for batch in split.in_order(max(64, settings.batch)):
        yield plain_views(batch, settings, device)
