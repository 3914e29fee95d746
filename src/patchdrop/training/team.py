"""The processes that train together, as torchrun starts them: the first one leads, the others help with its steps.

The leader does all that one process does: it holds the run's folder, validates, judges, evaluates and writes. A helper
holds the data, waits for a stage, and takes its shards of each step (`patchdrop.training.shards`). So what is done once
is done by the leader, and what all know came from it.

Objects and single numbers travel by gloo, gradients by gloo between CPUs and by NCCL between GPUs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from patchdrop.errors import PatchDropError, RunError, TrainingError, UsageError, first_line
from patchdrop.settings.processes import place
from patchdrop.terminal.talk import hush

PATIENCE = timedelta(days=7)
"""Helpers wait while the leader validates and judges; a process that ends is noticed at once."""


class DifferError(RunError):
    """Processes that were not started alike; every one finds that out, and the first says it."""


class Team:
    """The processes of one training, as one of them sees them; by default it is alone.

    Attributes:
        rank: number of this process; 0 leads.
        size: how many there are.
    """

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self._stepping = self._left = False

    @property
    def shards(self) -> int:
        """The number of shards if none is named: 8 where they divide it, else one for each process; alone no cut."""
        return 1 if self.size == 1 else 8 if 8 % self.size == 0 else self.size

    def own(self, shards: int) -> range:
        """Return the shards of a step that this process computes: equally many for each, side by side."""
        return range(shards * self.rank // self.size, shards * (self.rank + 1) // self.size)

    def check(self, shards: int) -> None:
        """Raise UsageError if there are not equally many shards for each process."""
        if shards % self.size:
            raise UsageError(
                f"shards: {shards} cannot be divided among {self.size} processes; start as many as divide it, "
                "or a run with other --shards in another --out"
            )

    def gather(self, ours: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, in their order; each has the same shape."""
        if self.size == 1:
            return [ours]
        found = [torch.empty_like(ours) for _ in range(self.size)]
        with _connected():
            dist.all_gather(found, ours)
        return found

    def highest(self, number: int) -> int:
        """Return the highest of all processes' numbers, once all have come here."""
        if self.size == 1:
            return number
        found = torch.tensor(number)
        with _connected():
            dist.all_reduce(found, dist.ReduceOp.MAX)
        return int(found)

    def send(self, message: Any) -> None:
        """Send an object from the leader to every helper, which waits for it in `receive`."""
        if self.size > 1:
            with _connected():
                dist.broadcast_object_list([message], src=0, device=torch.device("cpu"))

    def receive(self) -> Any:
        """Wait for the leader's next object."""
        found = [None]
        with _connected():
            dist.broadcast_object_list(found, src=0, device=torch.device("cpu"))
        return found[0]

    def agree(self, facts: Mapping[str, Any]) -> None:
        """Compare what every process knows.

        Raises:
            DifferError: two of them differ; it says in what.
        """
        if self.size == 1:
            return
        every: list[Any] = [None] * self.size
        with _connected():
            dist.all_gather_object(every, dict(facts))
        for rank, theirs in enumerate(every):
            for name, value in every[0].items():
                if theirs.get(name) != value:
                    self.leave()
                    raise DifferError(
                        f"the processes of a training must have the same settings, data and versions: {name} is "
                        f"{value!s:.80} in the first and {theirs.get(name)!s:.80} in process {rank + 1} of {self.size}"
                    )

    def leave(self) -> None:
        """Wait until all are about to end: one that ends earlier may cut off what others still read."""
        if self.size > 1 and not self._left:
            self._left = True
            with suppress(RunError):
                self.highest(0)

    @contextmanager
    def stepping(self) -> Iterator[None]:
        """Mark a block in which helpers take part in steps rather than wait for a message."""
        self._stepping = True
        yield
        self._stepping = False

    @contextmanager
    def leading(self) -> Iterator[None]:
        """Tell helpers at the end of a block, if they wait for a message, that there is no other."""
        try:
            yield
        finally:
            if not self._stepping and not self._left:
                with suppress(RunError):
                    self.send(None)
                self.leave()

    @contextmanager
    def helping(self) -> Iterator[None]:
        """Print nothing in a block but an error that is this process' own, and say whose it is."""
        hush()
        try:
            yield
            self.leave()
        except (DifferError, TrainingError):  # the leader found it too, and says it
            raise
        except PatchDropError as error:
            hush(False)
            raise type(error)(f"process {self.rank + 1} of {self.size}: {error}") from error


ALONE = Team()


@contextmanager
def joined(find_device: Callable[[], torch.device]) -> Iterator[Team]:
    """Join the processes that torchrun started; without it, the team is this process alone.

    Args:
        find_device: finds the device that a user named, for several processes; of GPUs each takes its own.

    Raises:
        UsageError: one GPU is named for several processes.
        RunError: there are fewer GPUs than processes here, or the other processes cannot be reached.
    """
    rank, size, local = place()
    if size == 1:
        yield ALONE
        return
    device = find_device()
    if device.index is not None:
        raise UsageError(f"device: {device} is one GPU for {size} processes; use --device cuda, one for each")
    if device.type == "cuda":
        if local >= (count := torch.cuda.device_count()):
            hush(False)
            raise RunError(f"process {rank + 1} of {size}: is number {local + 1} of a machine with {count} GPUs")
        torch.cuda.set_device(local)
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=PATIENCE)
    except RuntimeError as error:
        raise RunError(
            f"process {rank + 1} of {size}: cannot reach the others ({first_line(error)}); see docs/larger.md"
        ) from error
    yield Team(rank, size)
    dist.destroy_process_group()


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RunError(
            "another process of this training has ended, so this one ends too; what was saved last is kept, and the "
            "same command goes on from there"
        ) from error
