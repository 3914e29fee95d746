"""Documents of `check`, `plan` and `predict` for scenes as tables for people."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table


def check_table(document: dict[str, Any]) -> RenderableType:
    """What each file is, and what to do about it."""
    table = Table(
        "file", "fit", "size", "bands", "type", "compression", "tile", "overviews", "LR from", "bytes a patch"
    )
    said = []
    for found in document["scenes"]:
        if "size" not in found:
            table.add_row(escape(found["scene"]), "no", *[""] * 8)
        else:
            table.add_row(*_check_row(found))
        said += [escape(reason) for reason in found["reasons"]]
        said += [f"  {escape(advice)}" for advice in found["advice"]]
    return Group(table, *said)


def _check_row(found: dict[str, Any]) -> list[str]:
    factors = " ".join(f"{level['factor']:g}" for level in found["overviews"]) or "none"
    low = found["low"]
    received = found["bytes_per_patch"]
    tiles = found["tiles_per_patch"]
    return [
        escape(found["scene"]),
        "yes" if found["fit"] else "no",
        _size(found["size"]),
        f"{found['bands']}{' + alpha' if found['alpha'] else ''}, by {found['interleave']}",
        found["dtype"],
        found["compression"],
        f"{_size(found['tile'])}{', aligned' if found['aligned'] else ''}" if found["tile"] else "none: strips",
        factors,
        f"{low['factor']:g} (wanted {low['wanted']:g})" if low else "none",
        f"{received:,.0f} in {tiles:g} tiles" if received is not None else "",
    ]


def scenes_table(document: dict[str, Any]) -> RenderableType:
    """What a plan would read, or a prediction did read, against reading everything."""
    table = Table("scene", title=f"stage {document['stage']} of {escape(document['run'])}", title_justify="left")
    for name in ("cells", "nodata", "patches", "requests", "bytes", "everything: requests", "bytes", "share %"):
        table.add_column(name, justify="right")
    for scene in document["scenes"]:
        cost, everything = scene["execution"]["total"], scene["everything"]
        counts = (scene["cells"], scene["skipped"], scene["patches"], cost["requests"], cost["bytes"])
        table.add_row(escape(scene["scene"]), *_row(*counts, everything["requests"], everything["bytes"]))
    if len(document["scenes"]) > 1:
        table.add_section()
        table.add_row("in total", *_row(*document["total"].values()))
    return Group(table, _bill_table(document))


def _bill_table(document: dict[str, Any]) -> Table:
    """Ground, money and, of a plan, seconds of each scene; what is not known is left empty."""
    tariff = document["tariff"]
    money = f"money, {escape(tariff['currency'])}" if tariff else "money"
    timed = any("estimate" in scene for scene in document["scenes"])
    table = Table("scene", caption="seconds of reading alone, networks left out" if timed else None)
    table.caption_justify = "left"
    for name in ("km2 chosen", "km2 ordered", money, "everything: km2", "money", *(("seconds", "all") * timed)):
        table.add_column(name, justify="right")
    for scene in document["scenes"]:
        seconds = [scene["estimate"][name] for name in ("seconds", "everything_seconds")] if timed else []
        table.add_row(escape(scene["scene"]), *_bill_row(scene["bill"]), *(f"{value:,.1f}" for value in seconds))
    if len(document["scenes"]) > 1:
        table.add_section()
        sums = [
            sum(s["estimate"][name] for s in document["scenes"]) for name in ("seconds", "everything_seconds") if timed
        ]
        table.add_row("in total", *_bill_row(document["bill"]), *(f"{value:,.1f}" for value in sums))
    return table


def _bill_row(bill: dict[str, float | None]) -> list[str]:
    names = (("chosen_km2", 3), ("ordered_km2", 3), ("money", 2), ("everything_km2", 3), ("everything_money", 2))
    return ["" if bill[name] is None else f"{bill[name]:,.{digits}f}" for name, digits in names]


def _row(cells: int, skipped: int, patches: int, requests: int, received: int, most: int, all_bytes: int) -> list[str]:
    share = f"{100 * received / all_bytes:.1f}" if all_bytes else ""
    return [*(f"{n:,}" for n in (cells, skipped, patches, requests, received, most, all_bytes)), share]


def _size(size: list[int]) -> str:
    return f"{size[1]} x {size[0]}"
