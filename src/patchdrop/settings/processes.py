"""Which process this is of those that ``torchrun`` started together, as its environment says."""

from __future__ import annotations

import os
from typing import NamedTuple


class Place(NamedTuple):
    """A process' number among all of a job, their number, and its number on its machine."""

    rank: int = 0
    size: int = 1
    local: int = 0


def place() -> Place:
    """Return this process' place; a process that torchrun did not start is alone."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return Place()
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))
