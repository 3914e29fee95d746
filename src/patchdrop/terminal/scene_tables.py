"""Show the documents of `check`, `plan` and `predict` for scenes as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table


def check_table(document: dict[str, Any]) -> RenderableType:
    """Build the table of what each file is; below it, reasons against it and advice."""
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
    if "slide" in found:
        size = [escape(found["scene"]), "yes" if found["fit"] else "no", _size(found["size"]), "3", found["dtype"]]
        low_from = f"{low['factor']:g} (wanted {low['wanted']:g})" if low else "none"
        return [*size, f"OpenSlide: {found['slide']}", "", factors, low_from, "not counted"]
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


def cells_table(scene: dict[str, Any]) -> RenderableType:
    """Build the table of a scene's cells that hold more than nodata, one per line."""
    table = Table("cell", "label", "probability", "patches", title=escape(scene["scene"]), title_justify="left")
    for cell in scene["results"]:
        if cell["label"] is not None:
            patches = " ".join(map(str, cell["patches"])) or "none"
            table.add_row(str(cell["cell"]), escape(cell["label"]), f"{cell['probability']:.3f}", patches)
    return table


def scenes_table(document: dict[str, Any]) -> RenderableType:
    """Build the table of what a plan would read, or a prediction did read, compared with reading everything."""
    table = Table("scene", title=f"stage {document['stage']} of {escape(document['run'])}", title_justify="left")
    for name in ("cells", "nodata", "patches", "requests", "bytes", "everything: requests", "bytes", "share %"):
        table.add_column(name, justify="right")
    said = expected(document["total"])
    if said:
        table.add_column("right %", justify="right")
    for scene in document["scenes"]:
        counts = [f"{scene[name]:,}" for name in ("cells", "skipped", "patches")]
        costs = _costs(scene["execution"]["total"], scene["everything"])
        table.add_row(escape(scene["scene"]), *counts, *costs, *([_chances(scene)] if said else []))
    if len(document["scenes"]) > 1:
        total = document["total"]
        counts = [f"{total[name]:,}" for name in ("cells", "skipped", "patches")]
        everything = {name.removeprefix("everything_"): v for name, v in total.items() if name.startswith("everything")}
        table.add_section()
        for word, unit in (("in total", "bytes"), ("slides in total", "pixels")):
            if unit in total:
                table.add_row(word, *counts, *_costs(total, everything, unit))
                counts = [""] * 3
    slides = any("pixels" in scene["everything"] for scene in document["scenes"])
    work = [_work_table(document["work"])] if document.get("work") else []
    return Group(table, *([said] if said else []), *([SLIDES] * slides), _bill_table(document), *work)


def _work_table(work: dict[str, Any]) -> RenderableType:
    """Build the table of how long carrying a plan out would take, by number of workers."""
    table = Table("workers", "time", "waits for", title="carrying it out on such machines", title_justify="left")
    for row in work["by_workers"]:
        table.add_row(f"{row['workers']}", duration(row["seconds"]), row["waits_for"])
    said = (
        f"networks, timed here: {1000 * work['decide']:.2f} ms a cell to decide, {1000 * work['classify']:.2f} to "
        "classify; reading as estimated above; decoding left out"
    )
    return Group(table, said)


def duration(seconds: float) -> str:
    """Format a time in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


SLIDES = "Slides are read by OpenSlide: regions and pixels (px) are counted, bytes cannot be."


def expected(total: dict[str, Any]) -> str:
    """Return a sentence on how often the policy expects to be right; empty if it predicts no chances."""
    now, after, everything = (total.get(name) for name in ("chance_now", "chance_after", "chance_all"))
    if now is None or everything is None:
        return ""
    read = "" if after is None else f", on {100 * after:.0f} % after reading what was chosen"
    after_all = f", on {100 * everything:.0f} % after reading everything"
    return f"By the policy's prediction, right on {100 * now:.0f} % of cells now{read}{after_all}."


def _chances(scene: dict[str, Any]) -> str:
    """Return the chances now and after what was chosen; ``?`` for an unknown one, as of a scene without data."""
    values = (scene.get(name) for name in ("chance_now", "chance_after"))
    return " → ".join("?" if value is None else f"{100 * value:.0f}" for value in values)


def _costs(cost: dict[str, int], everything: dict[str, int], unit: str = "") -> list[str]:
    """Return requests and bytes (of a slide regions and pixels), the same for everything, and the share in percent."""
    unit = unit or ("bytes" if "bytes" in everything else "pixels")
    times, px = ("requests", "") if unit == "bytes" else ("regions", " px")
    share = f"{100 * cost[unit] / everything[unit]:.1f}" if everything[unit] else ""
    return [*(f"{c[name]:,}{mark}" for c in (cost, everything) for name, mark in ((times, ""), (unit, px))), share]


def _bill_table(document: dict[str, Any]) -> Table:
    """Build the table of each scene's ground, money and, of a plan, seconds; unknown values are left empty."""
    tariff = document["tariff"]
    money = f"money, {escape(tariff['currency'])}" if tariff else "money"
    timed = any("estimate" in scene for scene in document["scenes"])  # only in a plan; that of a slide is None
    table = Table("scene", caption="seconds of reading alone, networks left out" if timed else None)
    table.caption_justify = "left"
    for name in ("km2 chosen", "km2 ordered", money, "everything: km2", "money", *(("seconds", "all") * timed)):
        table.add_column(name, justify="right")
    for scene in document["scenes"]:
        table.add_row(escape(scene["scene"]), *_bill_row(scene["bill"]), *_seconds([scene]))
    if len(document["scenes"]) > 1:
        table.add_section()
        table.add_row("in total", *_bill_row(document["bill"]), *_seconds(document["scenes"]))
    return table


def _seconds(scenes: Sequence[dict[str, Any]]) -> list[str]:
    """Sum the seconds of what was chosen, and of everything, over a plan's scenes; empty if there is no estimate."""
    estimates = [scene["estimate"] for scene in scenes if scene.get("estimate") is not None]
    names = ("seconds", "everything_seconds") if estimates else ()
    return [f"{sum(estimate[name] for estimate in estimates):,.1f}" for name in names]


def _bill_row(bill: dict[str, float | None]) -> list[str]:
    names = (("chosen_km2", 3), ("ordered_km2", 3), ("money", 2), ("everything_km2", 3), ("everything_money", 2))
    return ["" if bill[name] is None else f"{bill[name]:,.{digits}f}" for name, digits in names]


def _size(size: list[int]) -> str:
    return f"{size[1]} x {size[0]}"
