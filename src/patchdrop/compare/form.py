"""Format rows as the lines of a table: in the paper's own form, and one line for each method and stage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from patchdrop.compare.table import Form
from patchdrop.terminal.columns import interval, number, p_value, percent

STAGE_NAMES = {"pt": "Pt", "ft1": "Ft-1", "ft2": "Ft-2"}
Lines = list[list[str]]


def seed_form(rows: Sequence[Mapping[str, Any]], methods: Sequence[str], form: Form) -> tuple[list[str], Lines]:
    """Return the table as the paper has it: a line for each method, a column for each stage."""
    found = {(row["method"], row["stage"]): row for row in rows}
    stages = [stage for stage in form.stages if any(row["stage"] == stage for row in rows)]
    header = [""]
    for stage in stages:
        header += [STAGE_NAMES[stage]] if form.one_s else [STAGE_NAMES[stage], "S"]
    header += ["S"] if form.one_s else []
    header += ["ms"] if form.time else []
    lines = []
    for method in methods:
        mine = [found[method, stage] for stage in stages if (method, stage) in found]
        if not mine:
            continue
        cells = [method]
        for row in mine:
            cells += [accuracy(row)] if form.one_s else [accuracy(row), patches(row)]
        counts = [patches(row) for row in mine]
        cells += [counts[0] if len(set(counts)) == 1 else ", ".join(counts)] if form.one_s else []
        cells += [number(mine[-1].get("ms_batch64"), 2)] if form.time else []
        lines.append(cells)
    return header, lines


def details(rows: Sequence[Mapping[str, Any]], priced: bool) -> tuple[list[str], Lines]:
    """Return a line for every method in every stage: intervals, tests and costs."""
    header = [
        "", "stage", "accuracy %", "95 % interval", "S", "HR read %", "HR kB", "MFLOP", "MFLOP dense", "ms, batch 1",
        "ms, batch 64", *(["price"] if priced else []), "p",
    ]  # fmt: skip
    lines = []
    for row in rows:
        lines.append(
            [
                row["method"],
                STAGE_NAMES[row["stage"]],
                accuracy(row),
                interval(row["ci95"]),
                patches(row, 2),
                percent(row["hr_pixel_fraction"]),
                number(row["hr_bytes"] / 1000, 1),
                number(_millions(row.get("flops")), 1),
                number(_millions(row.get("flops_dense")), 1),
                number(row.get("ms_batch1"), 2),
                number(row.get("ms_batch64"), 2),
                *([number(row["price"], 4)] if priced else []),
                p_value(row["p_value"]),
            ]
        )
    return header, lines


def accuracy(row: Mapping[str, Any]) -> str:
    """Format accuracy in percent; mean and standard deviation if there are several seeds."""
    if "seeds" in row:
        found = row["seeds"]["accuracy"]
        return f"{100 * found['mean']:.1f} ± {100 * found['sd']:.1f}"
    return percent(row["accuracy"])


def patches(row: Mapping[str, Any], digits: int = 1) -> str:
    """Format S: a whole number, or with decimals; the mean over seeds if there are several."""
    value = row["seeds"]["mean_patches"]["mean"] if "seeds" in row else row["mean_patches"]
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.{digits}f}"


def _millions(value: float | None) -> float | None:
    return None if value is None else value / 1e6
