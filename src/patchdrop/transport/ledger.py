"""What reading cost: requests and bytes, as the transport counted them, by what they were for."""

from __future__ import annotations

import threading
from typing import Generic, Literal, NamedTuple, TypeVar

Purpose = Literal["header", "overview", "patch"]
PURPOSES: tuple[Purpose, ...] = ("header", "overview", "patch")


class Cost(NamedTuple):
    """Requests made and bytes of their answers' bodies."""

    requests: int
    bytes: int

    def plus(self, other: Cost) -> Cost:
        """The sum of both."""
        return Cost(self.requests + other.requests, self.bytes + other.bytes)


class Regions(NamedTuple):
    """Regions asked of a library that reads a file by itself, and their pixels; its bytes cannot be counted."""

    regions: int
    pixels: int

    def plus(self, other: Regions) -> Regions:
        """The sum of both."""
        return Regions(self.regions + other.regions, self.pixels + other.pixels)


C = TypeVar("C", Cost, Regions)


class Tally(Generic[C]):
    """Costs of one kind by purpose; may be told from many threads.

    Args:
        kind: what is counted.
    """

    def __init__(self, kind: type[C]) -> None:
        self._kind: type[C] = kind
        self._lock = threading.Lock()
        self._costs: dict[Purpose, C] = {purpose: kind(0, 0) for purpose in PURPOSES}
        self._held: dict[Purpose, C] = {purpose: kind(0, 0) for purpose in PURPOSES}
        self.beside: Tally[C] | None = None
        """What is read of the LR scene of a pair, all of it told as ``low``."""

    def add(self, purpose: Purpose, times: int, amount: int) -> None:
        """Count ``times`` more requests (or regions) and ``amount`` more bytes (or pixels)."""
        with self._lock:
            self._costs[purpose] = self._costs[purpose].plus(self._kind(times, amount))

    def hold(self, purpose: Purpose, times: int, amount: int) -> None:
        """Count what a cache spared, and was therefore not added."""
        with self._lock:
            self._held[purpose] = self._held[purpose].plus(self._kind(times, amount))

    def of(self, purpose: Purpose) -> C:
        """What was read for one purpose."""
        with self._lock:
            return self._costs[purpose]

    def needed(self, purpose: Purpose) -> C:
        """What was read for one purpose, and what would have been read without a cache."""
        with self._lock:
            return self._costs[purpose].plus(self._held[purpose])

    @property
    def total(self) -> C:
        """What was read in all, of both scenes of a pair."""
        costs: list[C] = [self.of(purpose) for purpose in PURPOSES]
        if self.beside is not None:
            costs.append(self.beside.total)
        return self._sum(costs)

    def all_needed(self) -> dict[str, C]:
        """What was read, and would have been without a cache, by purpose; of a pair also ``low``."""
        found: dict[str, C] = {purpose: self.needed(purpose) for purpose in PURPOSES}
        return found if self.beside is None else {**found, "low": self._sum(list(self.beside.all_needed().values()))}

    def to_json(self) -> dict[str, dict[str, int]]:
        """``{"header": {"requests": .., "bytes": ..}, "overview": .., "patch": .., "total": ..}``."""
        low = {} if self.beside is None else {"low": self.beside.total._asdict()}
        return {**{p: self.of(p)._asdict() for p in PURPOSES}, **low, "total": self.total._asdict()}

    def _sum(self, costs: list[C]) -> C:
        return self._kind(*(sum(column) for column in zip(*costs, strict=True)))


class Ledger(Tally[Cost]):
    """Requests and bytes of one scene."""

    def __init__(self) -> None:
        super().__init__(Cost)


class RegionLedger(Tally[Regions]):
    """Regions and pixels of one slide."""

    def __init__(self) -> None:
        super().__init__(Regions)
