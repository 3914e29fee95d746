"""Average the policy's chances of being right over cells, to tell what it expects reading to bring."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from patchdrop.serve.predictor import Chances

NAMES = ("chance_now", "chance_after", "chance_all")
"""Keys of a scene's document: without HR, after the chosen patches, after everything."""


class Expected:
    """The mean chances over a scene's cells, which are added group by group."""

    def __init__(self) -> None:
        self._cells = 0
        self._sums: dict[str, float | None] = dict.fromkeys(NAMES, 0.0)

    def add(self, cells: Sequence[Chances]) -> None:
        """Add a group of cells."""
        self._cells += len(cells)
        for place, name in enumerate(NAMES):
            self._sums[name] = _sum([self._sums[name], *(cell[place] for cell in cells)])

    def to_json(self) -> dict[str, float | None]:
        """Return the means, 0 to 1; None if the policy predicts none for some cell, or no cell holds data."""
        return {name: _mean(total, self._cells) for name, total in self._sums.items()}


def over_scenes(scenes: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """Return the means over the cells of several scenes; None if one has none, as those of earlier versions."""
    seen = [(scene, scene["cells"] - scene["skipped"]) for scene in scenes if scene["cells"] > scene["skipped"]]
    cells = sum(count for _, count in seen)
    found: dict[str, float | None] = {}
    for name in NAMES:
        means = [scene.get(name) for scene, _ in seen]
        total = _sum([None if mean is None else mean * count for mean, (_, count) in zip(means, seen, strict=True)])
        found[name] = _mean(total, cells)
    return found


def _mean(total: float | None, cells: int) -> float | None:
    return None if total is None or not cells else total / cells


def _sum(values: Sequence[float | None]) -> float | None:
    """Return the sum; None if one of the values is."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
