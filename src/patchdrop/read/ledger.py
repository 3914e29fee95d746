"""What reading cost: requests and bytes, as the transport counted them, by what they were for."""

from __future__ import annotations

import threading
from typing import Literal, NamedTuple

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


class RegionLedger:
    """Regions of one slide by purpose."""

    def __init__(self) -> None:
        self._read = dict.fromkeys(PURPOSES, Regions(0, 0))

    def add(self, purpose: Purpose, regions: int, pixels: int) -> None:
        """Count more regions, of so many pixels in all."""
        self._read[purpose] = self._read[purpose].plus(Regions(regions, pixels))

    def of(self, purpose: Purpose) -> Regions:
        """What was read for one purpose."""
        return self._read[purpose]

    @property
    def total(self) -> Regions:
        """What was read in all."""
        return Regions(*(sum(column) for column in zip(*self._read.values(), strict=True)))

    def to_json(self) -> dict[str, dict[str, int]]:
        """As `Ledger.to_json`, with ``regions`` and ``pixels``, and no bytes."""
        return {**{p: self.of(p)._asdict() for p in PURPOSES}, "total": self.total._asdict()}


class Ledger:
    """Costs of one scene by purpose; may be told from many threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._costs = dict.fromkeys(PURPOSES, Cost(0, 0))

    def add(self, purpose: Purpose, requests: int, received: int) -> None:
        """Count ``requests`` more requests and ``received`` more bytes."""
        with self._lock:
            self._costs[purpose] = self._costs[purpose].plus(Cost(requests, received))

    def of(self, purpose: Purpose) -> Cost:
        """What was read for one purpose."""
        with self._lock:
            return self._costs[purpose]

    @property
    def total(self) -> Cost:
        """What was read in all."""
        with self._lock:
            return Cost(*(sum(column) for column in zip(*self._costs.values(), strict=True)))

    def to_json(self) -> dict[str, dict[str, int]]:
        """``{"header": {"requests": .., "bytes": ..}, "overview": .., "patch": .., "total": ..}``."""
        return {**{p: self.of(p)._asdict() for p in PURPOSES}, "total": self.total._asdict()}
