"""Count the cost of reading by purpose: requests and bytes, as the transport saw them."""

from __future__ import annotations

import threading
from typing import Generic, Literal, NamedTuple, TypeVar

Purpose = Literal["header", "overview", "patch"]
PURPOSES: tuple[Purpose, ...] = ("header", "overview", "patch")


class Cost(NamedTuple):
    """The number of requests made and of bytes in their answers' bodies."""

    requests: int
    bytes: int

    def plus(self, other: Cost) -> Cost:
        """Return the sum of both."""
        return Cost(self.requests + other.requests, self.bytes + other.bytes)


class Regions(NamedTuple):
    """A count of regions asked of a library that reads a file itself, and of pixels; its bytes cannot be counted."""

    regions: int
    pixels: int

    def plus(self, other: Regions) -> Regions:
        """Return the sum of both."""
        return Regions(self.regions + other.regions, self.pixels + other.pixels)


C = TypeVar("C", Cost, Regions)


class Tally(Generic[C]):
    """A tally of costs of one kind by purpose; many threads may add to it.

    Args:
        kind: what is counted.
    """

    def __init__(self, kind: type[C]) -> None:
        self._kind: type[C] = kind
        self._lock = threading.Lock()
        self._costs: dict[Purpose, C] = {purpose: kind(0, 0) for purpose in PURPOSES}
        self._held: dict[Purpose, C] = {purpose: kind(0, 0) for purpose in PURPOSES}
        self.beside: Tally[C] | None = None
        """The tally of a pair's LR scene; its total is reported as ``low``."""

    def add(self, purpose: Purpose, times: int, amount: int) -> None:
        """Count ``times`` more requests (or regions) and ``amount`` more bytes (or pixels)."""
        with self._lock:
            self._costs[purpose] = self._costs[purpose].plus(self._kind(times, amount))

    def hold(self, purpose: Purpose, times: int, amount: int) -> None:
        """Count what came from a cache, and was therefore not added."""
        with self._lock:
            self._held[purpose] = self._held[purpose].plus(self._kind(times, amount))

    def of(self, purpose: Purpose) -> C:
        """Return what was read for one purpose."""
        with self._lock:
            return self._costs[purpose]

    def needed(self, purpose: Purpose) -> C:
        """Return what was read for one purpose, plus what a cache spared."""
        with self._lock:
            return self._costs[purpose].plus(self._held[purpose])

    @property
    def total(self) -> C:
        """The total of what was read, of both scenes of a pair."""
        costs: list[C] = [self.of(purpose) for purpose in PURPOSES]
        if self.beside is not None:
            costs.append(self.beside.total)
        return self._sum(costs)

    def all_needed(self) -> dict[str, C]:
        """Return what was read, plus what a cache spared, by purpose; of a pair also ``low``."""
        found: dict[str, C] = {purpose: self.needed(purpose) for purpose in PURPOSES}
        return found if self.beside is None else {**found, "low": self._sum(list(self.beside.all_needed().values()))}

    def to_json(self) -> dict[str, dict[str, int]]:
        """Return ``{"header": {"requests": .., "bytes": ..}, "overview": .., "patch": .., "total": ..}``."""
        low = {} if self.beside is None else {"low": self.beside.total._asdict()}
        return {**{p: self.of(p)._asdict() for p in PURPOSES}, **low, "total": self.total._asdict()}

    def _sum(self, costs: list[C]) -> C:
        return self._kind(*(sum(column) for column in zip(*costs, strict=True)))


class Ledger(Tally[Cost]):
    """A tally of requests and bytes of one scene."""

    def __init__(self) -> None:
        super().__init__(Cost)


class RegionLedger(Tally[Regions]):
    """A tally of regions and pixels of one slide."""

    def __init__(self) -> None:
        super().__init__(Regions)
