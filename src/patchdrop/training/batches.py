"""Batches of a data set on their way to the networks: augmented ones to train on, plain ones to validate on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from patchdrop.data.augment import augment
from patchdrop.data.load import Data
from patchdrop.data.sets import Batch, Split, low_of
from patchdrop.grid import Size
from patchdrop.training.schedule import Schedule
from patchdrop.training.seeds import derived_seed


class Views(NamedTuple):
    """A batch as the networks take it, on their device."""

    high: Tensor
    low: Tensor
    target: Tensor


@dataclass(frozen=True)
class Loader:
    """What a stage trains on, in which order, and where."""

    data: Data
    schedule: Schedule
    device: torch.device

    @property
    def fit(self) -> Split:
        """The images that train."""
        return self.data.splits["fit"]

    @property
    def val(self) -> Split:
        """The images that pick the checkpoint."""
        return self.data.splits["val"]

    @property
    def steps_per_epoch(self) -> int:
        """Steps an epoch; the last, smaller batch is left out unless it is the only one."""
        return max(1, len(self.fit) // self.schedule.batch)

    def batches(self, stage: str, epoch: int, first_step: int) -> Iterator[Batch]:
        """Every image once, in a new order each epoch, from a step on; the same for the same arguments."""
        generator = torch.Generator().manual_seed(derived_seed(self.schedule.seed, stage, "order", epoch))
        order = torch.randperm(len(self.fit), generator=generator)[: self.steps_per_epoch * self.schedule.batch]
        return self.fit.batches(torch.split(order, self.schedule.batch)[first_step:])

    def training_views(self, batch: Batch) -> Views:
        """An augmented batch, and LR images made from what HR has become."""
        high, low = augment(batch.high, batch.low, self.schedule.augment)
        return plain_views(Batch(high, low, batch.target), self.data.shape.low, self.device)

    def validation_views(self) -> Iterator[Views]:
        """The validation split in order."""
        for batch in self.val.in_order(max(64, self.schedule.batch)):
            yield plain_views(batch, self.data.shape.low, self.device)


def plain_views(batch: Batch, low_size: Size, device: torch.device) -> Views:
    """A batch without augmentation."""
    high, low = batch.high.to(device), None if batch.low is None else batch.low.to(device)
    target = batch.target.to(device)
    return Views(high, low_of(Batch(high, low, target), low_size), target)
