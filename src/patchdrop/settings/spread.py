"""How the work of one command is spread over processes and machines; free of torch, as the command line needs it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from patchdrop.errors import UsageError

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Spread:
    """How the work is spread; by default this process does all of it."""

    shard: str | None = None
    """Do only this part of the work, for example 3/16, the third of sixteen."""
    workers: int = 0
    """Worker processes to start here; they share the work."""
    scheduler: str | None = None
    """Address of a running Dask cluster, for example tcp://10.0.0.5:8786, whose workers share the work."""

    def __post_init__(self) -> None:
        if not 0 <= self.workers <= 1024:
            raise UsageError(f"workers: {self.workers} is out of range, use 1 to 1024")
        if self.workers and self.scheduler is not None:
            raise UsageError("workers: are started here, and --scheduler has its own; give one of the two")
        number, count = self._parts
        if not 1 <= number <= count:
            raise UsageError(f"shard: {self.shard} is out of range, use 1/{count} to {count}/{count}")

    @property
    def _parts(self) -> tuple[int, int]:
        if self.shard is None:
            return 1, 1
        found = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.shard)
        if not found or int(found[2]) == 0:
            raise UsageError(f"shard: {self.shard!r} is no part of the work, write for example 3/16")
        return int(found[1]), int(found[2])

    @property
    def wide(self) -> bool:
        """Whether other processes do the work."""
        return bool(self.workers) or self.scheduler is not None

    def __str__(self) -> str:
        """Say who does the work."""
        if self.scheduler is not None:
            return f"workers of {self.scheduler}"
        return f"{self.workers} workers" if self.workers else "this process"

    def part(self, items: Sequence[T]) -> Sequence[T]:
        """Return the items of this shard: every n-th."""
        number, count = self._parts
        return items[number - 1 :: count]
