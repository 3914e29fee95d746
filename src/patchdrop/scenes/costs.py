"""Compute what reading scenes costs: requests and bytes, or regions and pixels of slides; then money and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from patchdrop.read.tiled import TiledScene
from patchdrop.scenes.bill import Bill, Link, Priced, bill, check_billable, estimate, total_bill
from patchdrop.scenes.places import Places
from patchdrop.scenes.walk import Scene
from patchdrop.tariffs.tariff import Tariff
from patchdrop.tiff.tiles import Box
from patchdrop.transport.ledger import Cost, Regions


def cost_of_everything(scene: Scene) -> Cost | Regions:
    """Return what reading the whole scene costs, its header included."""
    header: Any = scene.transport.ledger.needed("header")
    found: Cost | Regions = header.plus(scene.everything())
    return found


def with_total(costs: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Return the costs, all of one kind, and their sum as ``total``."""
    kind = type(costs["patch"])
    total = kind(*(sum(column) for column in zip(*costs.values(), strict=True)))
    return {name: cost._asdict() for name, cost in {**costs, "total": total}.items()}


def total_of(scenes: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Sum over scenes what was, or would be, read, and what reading everything costs.

    Requests and bytes are of scenes; regions and pixels of slides, whose bytes cannot be counted.
    """
    sums = {name: sum(scene[name] for scene in scenes) for name in ("cells", "skipped", "patches")}
    for units in (("requests", "bytes"), ("regions", "pixels")):
        counted = [scene for scene in scenes if units[1] in scene["everything"]]
        if counted or (not scenes and units[1] == "bytes"):
            sums |= {name: sum(scene["execution"]["total"][name] for scene in counted) for name in units}
            sums |= {f"everything_{name}": sum(scene["everything"][name] for scene in counted) for name in units}
    return sums


def check_price(scene: Scene, places: Places, tariff: Tariff | None) -> None:
    """Raise DataError if the tariff's prices do not fit the scene, before its pixels are read."""
    if tariff is not None:
        check_billable(tariff, places.kind == "CRS84", isinstance(scene, TiledScene), scene.name)


def bill_of(
    scene: Scene, places: Places, boxes: Sequence[Box], total: dict[str, int], tariff: Tariff | None
) -> tuple[Bill, list[Priced]]:
    """Compute the bill of some patches of a scene that cost ``total`` to read, and the areas to order."""
    cost = everything = Cost(0, 0)  # for a slide nothing is counted that could be paid for
    if isinstance(scene, TiledScene):
        cost, everything = Cost(**total), Cost(**cost_of_everything(scene)._asdict())
    return bill(tariff, places.ground(*scene.size), scene.size, boxes, cost, everything)


def seconds_of(scene: Scene, costs: dict[str, Any], link: Link) -> dict[str, Any] | None:
    """Estimate the seconds as `estimate` does; None for a slide, whose bytes are not known."""
    if not isinstance(scene, TiledScene):
        return None
    return estimate(costs, Cost(**cost_of_everything(scene)._asdict()), link)


def billed(scenes: Sequence[dict[str, Any]], tariff: Tariff | None) -> dict[str, Any]:
    """Return the tariff and the sum of the scenes' bills."""
    return {"tariff": mapping(tariff), "bill": total_bill([scene["bill"] for scene in scenes])}


def mapping(tariff: Tariff | None) -> dict[str, Any] | None:
    """Return the tariff for JSON; None without one."""
    return None if tariff is None else tariff.to_mapping()
