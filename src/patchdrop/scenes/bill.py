"""Compute what reading or ordering a part of a scene costs, in km2, money and seconds, and what all of it would cost.

A plan and its execution go through the same functions, so that both come to the same sums.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from patchdrop.errors import DataError
from patchdrop.tariffs.areas import Area, Ground, covered_km2, orderable, scene_outline
from patchdrop.tariffs.tariff import Tariff
from patchdrop.transport.ledger import Cost
from patchdrop.transport.remote import IN_FLIGHT

if TYPE_CHECKING:
    from patchdrop.tiff.tiles import Box


class Bill(NamedTuple):
    """The bill of one or several scenes; a value is None if it is not known or not asked for."""

    chosen_km2: float | None
    """Ground of the chosen patches."""
    ordered_km2: float | None
    """Ground that is billed for the areas that cover them; None without a tariff for imagery."""
    everything_km2: float | None
    """Ground of the whole scene."""
    money: float | None
    """Price in the tariff's currency; None without a tariff."""
    everything_money: float | None
    """The same for the whole scene."""


class Priced(NamedTuple):
    """An area of an order with its share of the order's price."""

    area: Area
    price: float


class Link(NamedTuple):
    """The speed of a connection, for an estimate of time."""

    latency: float
    """Milliseconds until the first byte of an answer."""
    bandwidth: float
    """Megabits (10^6 bits) a second, of all requests together."""
    in_flight: int
    """Requests that are made at a time, of all scenes together."""


NETWORK = Link(50.0, 100.0, IN_FLIGHT)
"""Default for scenes behind HTTP(S)."""
DISK = Link(0.1, 4000.0, 1)
"""Default for files."""


def check_billable(tariff: Tariff, georeferenced: bool, counted: bool, name: str) -> None:
    """Check that a scene can be sold under a tariff.

    Args:
        counted: whether requests and bytes of the scene are known.
        name: name of the scene, for errors.

    Raises:
        DataError: the tariff is by area, and the scene has no georeference; or by bytes or requests that are not known.
    """
    if tariff.sells_areas and not georeferenced:
        raise DataError(
            f"{name}: has no georeference with an EPSG code, which a price per km2 needs: correct it with "
            "gdal_edit -a_srs, or leave --tariff out"
        )
    if (tariff.per_gb or tariff.per_1000_requests) and not counted:
        raise DataError(
            f"{name}: what OpenSlide reads of it is not known, which per_gb and per_1000_requests need: convert it to "
            "a tiled TIFF, or leave --tariff out"
        )


def bill(
    tariff: Tariff | None,
    ground: Ground | None,
    size: tuple[int, int],
    boxes: Sequence[Box],
    cost: Cost,
    everything: Cost,
) -> tuple[Bill, list[Priced]]:
    """Compute the bill of one scene, and the areas to order.

    Args:
        ground: None without a georeference.
        size: height and width of the scene in pixels.
        boxes: the chosen patches.
        cost: requests and bytes of reading them.
        everything: requests and bytes of reading the whole scene.

    Returns:
        The bill and the areas; no areas if the tariff sells no imagery.
    """
    chosen, whole = None, None
    if ground is not None:
        chosen, whole = covered_km2(boxes, ground), size[0] * size[1] * ground.km2
    if tariff is None:
        return Bill(chosen, None, whole, None, None), []
    outline = scene_outline(size)
    everything_money = tariff.storage(everything)
    areas: list[Area] = []
    price = 0.0
    if tariff.sells_areas:
        assert ground is not None, "see check_billable"
        areas = orderable(boxes, size, ground, tariff)
        price = tariff.price_of(sum(area.km2 for area in areas))
        (all_of_it,) = orderable([(0, 0, *size)], size, ground, tariff)
        everything_money += tariff.price_of(all_of_it.km2)
    elif tariff.per_scene is not None:
        areas = [Area(outline, whole or 0.0)] if boxes else []
        price = tariff.per_scene if boxes else 0.0
        everything_money += tariff.per_scene
    ordered = sum(area.km2 for area in areas) if tariff.sells_imagery and ground is not None else None
    money = price + tariff.storage(cost)
    return Bill(chosen, ordered, whole, money, everything_money), _shares(areas, price)


def _shares(areas: Sequence[Area], price: float) -> list[Priced]:
    """Divide an order's price among its areas, in proportion to the ground that each is billed for."""
    total = sum(area.km2 for area in areas)
    return [Priced(area, price * (area.km2 / total if total else 1 / len(areas))) for area in areas]


def total_bill(bills: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Sum bills over scenes, each an order of its own; None if a scene has no such value, or without scenes."""
    sums: dict[str, float | None] = {}
    for name in Bill._fields:
        values = [one[name] for one in bills]
        known = [value for value in values if value is not None]
        sums[name] = sum(known) if known and len(known) == len(values) else None
    return sums


def estimate(costs: Mapping[str, Cost], everything: Cost, link: Link) -> dict[str, Any]:
    """Estimate the seconds that reading takes, without the time of the networks.

    The header's requests follow one another; the others, with those of a pair's LR scene, go ``link.in_flight`` at a
    time. A turn of requests waits for the latency once, and all bytes share the bandwidth.

    Args:
        costs: costs of an execution by purpose: ``header``, ``overview``, ``patch``, of a pair also ``low``.
        everything: cost of reading the whole scene, its header included.
    """

    def seconds(turns: int, received: int) -> float:
        return turns * link.latency / 1000 + received * 8 / (link.bandwidth * 1e6)

    header = costs["header"]
    others = [cost for name, cost in costs.items() if name != "header"]
    turns = header.requests + sum(math.ceil(cost.requests / link.in_flight) for cost in others)
    all_turns = header.requests + math.ceil((everything.requests - header.requests) / link.in_flight)
    return {
        "seconds": seconds(turns, sum(cost.bytes for cost in costs.values())),
        "everything_seconds": seconds(all_turns, everything.bytes),
        "networks": "left out",
        "latency_ms": link.latency,
        "bandwidth_mbit": link.bandwidth,
        "in_flight": link.in_flight,
    }
