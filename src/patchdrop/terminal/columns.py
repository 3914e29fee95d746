"""The tables of results: which figures a row has, in which order, and how they are written.

The terminal, the report's page and published pages draw these same columns, so that a figure has one name and one form
wherever it is read.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

Row = Mapping[str, Any]
"""A row of ``results.json``, of a comparison, or of a verdict (`judged`)."""


@dataclass(frozen=True)
class Column:
    """A column of a table: its heading, and the text of its cell in a row; empty if the row has no such figure."""

    name: str
    text: Callable[[Row], str]


def number(value: Any, digits: int = 2) -> str:
    """Format a number with separated thousands; empty for None and for what is not a number."""
    return f"{value:,.{digits}f}" if isinstance(value, Real) and math.isfinite(value) else ""


def percent(share: Any, digits: int = 1) -> str:
    """Format a share 0..1 in percent, without the sign."""
    return number(100 * share, digits) if isinstance(share, Real) else ""


def interval(pair: Any) -> str:
    """Format a 95 % interval of shares, in percent: ``86.6 - 89.4``."""
    low, high = (percent(share) for share in pair or (None, None))
    return f"{low} - {high}" if low and high else ""


def p_value(p: float | None) -> str:
    """Format a p value with two significant digits."""
    return "" if p is None or not math.isfinite(p) else f"{p:.2g}"


METHOD = Column("method", lambda row: str(row["method"]))
STAGE = Column("stage", lambda row: str(row["stage"]))
ACCURACY = Column("accuracy %", lambda row: percent(row["accuracy"]))
INTERVAL = Column("95 % interval", lambda row: interval(row.get("ci95")))
PATCHES = Column("S", lambda row: number(row["mean_patches"]))
SPREAD = Column("sd of S", lambda row: number(row.get("patches_sd")))
SHARE = Column("HR read %", lambda row: percent(row["hr_fraction"]))
MASKS = Column("masks", lambda row: number(row.get("distinct_masks"), 0))
P_VALUE = Column("p", lambda row: p_value(row.get("p_value")))
P_HIGH = Column("p HR-CNN", lambda row: p_value(row.get("p_value_hr_cnn")))

REWARD = Column("reward", lambda row: number(row.get("reward"), 3))

RESULTS = (METHOD, STAGE, ACCURACY, INTERVAL, PATCHES, SPREAD, SHARE, MASKS, REWARD, P_VALUE, P_HIGH)
"""A row of ``results.json``; p: against the stage's PatchDrop, and against HR-CNN."""
VERDICT = (METHOD, ACCURACY, PATCHES, SHARE, Column("worth", lambda row: number(row["reward"], 3)), P_VALUE)
"""A row of `judged`; worth: share right less the price of what was read; p: against the policy."""

CALIBRATION = (
    Column("threshold", lambda row: number(row["threshold"], 4)),
    *(PATCHES, SHARE, ACCURACY, INTERVAL),
    Column("HR bytes", lambda row: number(row["bytes"], 0)),
    REWARD,
)
"""A point of the curve in ``calibration.json``."""


def judged(document: Row) -> Iterator[dict[str, Any]]:
    """Yield the figures behind a ``results.json``'s verdict: the policy's, then the plain strategies', best first."""
    verdict = document.get("verdict")
    if not verdict:
        return
    plain = sorted(verdict["plain"].items(), key=lambda pair: -pair[1]["reward"])
    for name, row in [("Policy", verdict), *((name.capitalize(), row) for name, row in plain)]:
        yield {**row, "method": name, "hr_fraction": row["mean_patches"] / document["patches"]}
