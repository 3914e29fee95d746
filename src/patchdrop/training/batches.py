"""Turn batches of a data set into network inputs: augmented for training, plain for validation."""

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
    """A batch as network inputs, on the networks' device."""

    high: Tensor
    low: Tensor
    target: Tensor


@dataclass(frozen=True)
class Loader:
    """A source of a stage's batches: its data, the schedule that orders them, and the device they go to.

    Attributes:
        own: the shards of each batch that this process computes; None: all of them.
    """

    data: Data
    schedule: Schedule
    device: torch.device
    own: range | None = None

    @property
    def fit(self) -> Split:
        """The images to train on."""
        return self.data.splits["fit"]

    @property
    def val(self) -> Split:
        """The images that select the checkpoint."""
        return self.data.splits["val"]

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch; the last, smaller batch is left out unless it is the only one."""
        return max(1, len(self.fit) // self.schedule.batch)

    def batches(self, stage: str, epoch: int, first_step: int) -> Iterator[Batch]:
        """Yield an epoch's batches from ``first_step`` on, in an order that is new each epoch and repeatable.

        Where batches are cut into shards, it yields this process' shards of the first batch, then of the next.
        """
        generator = torch.Generator().manual_seed(derived_seed(self.schedule.seed, stage, "order", epoch))
        order = torch.randperm(len(self.fit), generator=generator)[: self.steps_per_epoch * self.schedule.batch]
        plan = torch.split(order, self.schedule.batch)[first_step:]
        shards = self.schedule.shards
        own = range(shards) if self.own is None else self.own
        return self.fit.batches([torch.tensor_split(batch, shards)[shard] for batch in plan for shard in own])

    def training_views(self, batch: Batch) -> Views:
        """Augment a batch, and make its LR images from the augmented HR."""
        high, low = augment(batch.high, batch.low, self.schedule.augment)
        return plain_views(Batch(high, low, batch.target), self.data.shape.low, self.device)

    def validation_views(self) -> Iterator[Views]:
        """Yield the validation split in order, without augmentation."""
        for batch in self.val.in_order(max(64, self.schedule.batch)):
            yield plain_views(batch, self.data.shape.low, self.device)


def plain_views(batch: Batch, low_size: Size, device: torch.device) -> Views:
    """Move a batch to the device and add its LR images, without augmentation."""
    high, low = batch.high.to(device), None if batch.low is None else batch.low.to(device)
    target = batch.target.to(device)
    return Views(high, low_of(Batch(high, low, target), low_size), target)
