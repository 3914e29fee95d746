"""Define the terms that pixels are sold by, and what an order costs under them; numbers in, numbers out.

Imagery is sold by area or by scene: of an order of some square kilometres only the sum matters, so which areas are
ordered (`patchdrop.tariffs.areas`) is decided in square kilometres, and money comes last. Graduated prices are those of
income tax: each square kilometre costs what its own step says. As steps never get dearer, an order never costs more
than its parts ordered one by one, and a larger one never costs less than a smaller one.

Whoever owns the pixels and stores them pays for requests and bytes instead, or besides.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from patchdrop.errors import UsageError
from patchdrop.settings.flat import nearest, read_yaml
from patchdrop.transport.ledger import Cost

BoundingBox = Literal["none", "priced", "ordered"]
GB = 10**9
"""Bytes that are billed as a gigabyte."""
FEWEST_VERTICES = 4
"""Corners of a box; every area can be ordered as one."""


class Step(NamedTuple):
    """A step of the price list: the cost of each square kilometre from ``start`` to ``stop`` of an order."""

    start: float
    stop: float
    """Infinity for the last step."""
    price: float


@dataclass(frozen=True, kw_only=True)
class Tariff:
    """The terms of one seller. All prices are in ``currency``; an order is what is chosen in one scene."""

    currency: str
    """Name of the currency, such as EUR; only shown."""
    per_km2: tuple[Step, ...] = ()
    """Price of a square kilometre, by the area of the whole order; empty if imagery is not sold by area."""
    per_scene: float | None = None
    """Price of a scene, whatever is chosen in it; free if nothing is."""
    minimum_km2: float = 0.0
    """An area below this costs as much as one of this size."""
    minimum_width_km: float = 0.0
    """Both sides of an area's bounding box are at least this long."""
    bounding_box: BoundingBox = "none"
    """``priced``: an area costs as much as its bounding box, ``ordered``: it has to be a box. Sides of boxes run along
    the scene's rows and columns."""
    max_vertices: int | None = None
    """Most corners of an area, those of its holes with them; a ring's last point, which repeats the first, is none."""
    per_gb: float = 0.0
    """Price of 10^9 bytes read."""
    per_1000_requests: float = 0.0
    """Price of 1000 requests."""

    @property
    def sells_areas(self) -> bool:
        """Whether imagery is sold by area, so that an order is a list of areas."""
        return bool(self.per_km2)

    @property
    def sells_imagery(self) -> bool:
        """Whether imagery is sold at all, by area or by scene, rather than read from storage of one's own."""
        return self.sells_areas or self.per_scene is not None

    def price_of(self, km2: float) -> float:
        """Return the money for an order of this many square kilometres, 0 or more; areas apply the minima before."""
        return sum(step.price * (min(km2, step.stop) - step.start) for step in self.per_km2 if km2 > step.start)

    def storage(self, cost: Cost) -> float:
        """Return the money for requests and bytes."""
        return self.per_gb * cost.bytes / GB + self.per_1000_requests * cost.requests / 1000

    def to_mapping(self) -> dict[str, Any]:
        """Return the values as in ``tariff.yaml``, without those that are defaults."""
        values = {name: value for name, value in asdict(self).items() if value != _DEFAULTS.get(name)}
        if self.per_km2:
            values["per_km2"] = [_step_mapping(step) for step in self.per_km2]
        return values


# --- from YAML


def read_tariff(path: Path) -> Tariff:
    """Read the tariff in a YAML file.

    Raises:
        UsageError: the file cannot be read, or is no tariff.
    """
    return tariff_from(read_yaml(path), str(path))


def tariff_from(values: Mapping[str, Any], where: str) -> Tariff:
    """Build a tariff from plain values, as in ``tariff.yaml``.

    Args:
        where: where they come from, for errors.

    Raises:
        UsageError: a key is unknown or missing, a value is none, or terms contradict each other.
    """
    for key in values:
        if key not in _KEYS:
            raise UsageError(f"{where}: {key}: no such key{nearest(str(key), _KEYS)} (keys: {', '.join(_KEYS)})")
    currency = values.get("currency")
    if not isinstance(currency, str) or not currency.strip():
        raise UsageError(
            f"{where}: currency: {'is missing' if currency is None else 'is no name'}; write one, such as EUR"
        )
    if not any(key in values for key in _PRICES):
        raise UsageError(f"{where}: per_km2: no price is given; give one of {', '.join(_PRICES)}")
    if "per_km2" in values and "per_scene" in values:
        raise UsageError(f"{where}: per_scene: contradicts per_km2; give one")
    for key in _OF_AREAS:
        if key in values and "per_km2" not in values:
            raise UsageError(f"{where}: {key}: is for imagery sold by area; give per_km2, or leave it out")
    numbers = {key: _number(values[key], f"{where}: {key}") for key in _NUMBERS if key in values}
    terms: dict[str, Any] = dict(numbers)
    if "per_km2" in values:
        terms["per_km2"] = _steps(values["per_km2"], f"{where}: per_km2")
    if "bounding_box" in values:
        if values["bounding_box"] not in get_args(BoundingBox):
            raise UsageError(f"{where}: bounding_box: {values['bounding_box']!r} is not one of none, priced, ordered")
        terms["bounding_box"] = values["bounding_box"]
    if "max_vertices" in values:
        cap = values["max_vertices"]
        if type(cap) is not int or cap < FEWEST_VERTICES:
            raise UsageError(f"{where}: max_vertices: {cap!r} is no whole number of at least {FEWEST_VERTICES}")
        terms["max_vertices"] = cap
    return Tariff(currency=currency.strip(), **terms)


_PRICES = ("per_km2", "per_scene", "per_gb", "per_1000_requests")
_OF_AREAS = ("minimum_km2", "minimum_width_km", "bounding_box", "max_vertices")
_NUMBERS = ("per_scene", "minimum_km2", "minimum_width_km", "per_gb", "per_1000_requests")
_KEYS = ("currency", *_PRICES, *_OF_AREAS)
_STEP_KEYS = ("from", "to", "price")
_DEFAULTS = {name: value.default for name, value in Tariff.__dataclass_fields__.items()}


def _steps(value: Any, where: str) -> tuple[Step, ...]:
    if not isinstance(value, list):
        return (Step(0.0, math.inf, _number(value, where)),)
    found: list[Step] = []
    for number, item in enumerate(value, 1):
        step = _step(item, f"{where}: step {number}", last=number == len(value))
        before = found[-1].stop if found else 0.0
        if step.start != before:
            what = "a hole" if step.start > before else "an overlap"
            raise UsageError(f"{where}: step {number}: {what}, it starts at {step.start:g} instead of {before:g} km2")
        if found and step.price > found[-1].price:
            raise UsageError(
                f"{where}: step {number}: is dearer than the one before; a larger order costs less per km2"
            )
        found.append(step)
    if not found:
        raise UsageError(f"{where}: has no step; write a price, or a list of steps with from, to and price")
    return tuple(found)


def _step(item: Any, where: str, last: bool) -> Step:
    if not isinstance(item, dict):
        raise UsageError(f"{where}: {item!r} is no step; write from, to and price")
    for key in item:
        if key not in _STEP_KEYS:
            raise UsageError(f"{where}: {key}: no such key (keys: {', '.join(_STEP_KEYS)})")
    for key in ("from", "price") if last else _STEP_KEYS:
        if key not in item:
            raise UsageError(f"{where}: {key}: is missing; only the last step is without `to`")
    if last and "to" in item:
        raise UsageError(f"{where}: to: the last step has none, so that every order has a price")
    start, price = (_number(item[key], f"{where}: {key}") for key in ("from", "price"))
    stop = math.inf if last else _number(item["to"], f"{where}: to")
    if stop <= start:
        raise UsageError(f"{where}: to: {stop:g} is not above from, {start:g}")
    return Step(start, stop, price)


def _step_mapping(step: Step) -> dict[str, float]:
    end = {} if math.isinf(step.stop) else {"to": step.stop}
    return {"from": step.start, **end, "price": step.price}


def _number(value: Any, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UsageError(f"{where}: {value!r} is no number")
    if not 0 <= value < math.inf:
        raise UsageError(f"{where}: {value!r} is out of range, use a finite number of 0 or more")
    return float(value)
