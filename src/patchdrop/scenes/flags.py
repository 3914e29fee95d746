"""What is asked of commands for scenes beside the model; free of torch, so that the command line answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from patchdrop.errors import UsageError

MOST_METRES = 1e7
"""A quarter of the way round the Earth."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """Which scenes, and how they are reached."""

    scenes: Path | None = None
    """List of scenes: .csv or .jsonl with scene (and low, an LR scene), or STAC items as .json."""
    asset: str | None = None
    """Asset of each STAC item; by default its one GeoTIFF."""
    low_scene: str | None = None
    """Scene that LR comes from, laid under each scene by the georeference of both; by default its own overview."""
    limit: float = 15.0
    """Seconds a range may take over a network."""
    jobs: int = 1
    """Scenes at once."""
    cache: Path | None = None
    """Folder that keeps headers and overviews of remote scenes for later commands."""

    def __post_init__(self) -> None:
        if self.low_scene == "":
            raise UsageError("low_scene: is empty; name a file or URL, or leave it out")
        if not 0 < self.limit <= 86400:
            raise UsageError(f"limit: {self.limit:g} is out of range, use more than 0 and at most 86400 seconds")
        if not 1 <= self.jobs <= 32:
            raise UsageError(f"jobs: {self.jobs} is out of range, use 1 to 32")


@dataclass(frozen=True, kw_only=True)
class SceneFlags(Reach):
    """And how they are cut and read."""

    gap: int = 0
    """Read ranges at most this many bytes apart as one."""
    cell_metres: float | None = None
    """Side of a cell in metres on the ground; by default a cell has HR's size in the scene's own pixels."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gap < 0:
            raise UsageError(f"gap: {self.gap} is out of range, use 0 or more bytes")
        if self.cell_metres is not None and not 0 < self.cell_metres <= MOST_METRES:
            raise UsageError(
                f"cell_metres: {self.cell_metres:g} is out of range, use more than 0, up to {MOST_METRES:g}"
            )
