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
    return table


def _row(cells: int, skipped: int, patches: int, requests: int, received: int, most: int, all_bytes: int) -> list[str]:
    share = f"{100 * received / all_bytes:.1f}" if all_bytes else ""
    return [*(f"{n:,}" for n in (cells, skipped, patches, requests, received, most, all_bytes)), share]


def _size(size: list[int]) -> str:
    return f"{size[1]} x {size[0]}"
