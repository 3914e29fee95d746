"""Work for worker processes, which import it by its name."""

from __future__ import annotations

import os
import signal

from patchdrop.errors import DataError, RunError


def work(item: str) -> str:
    """Say the item back; some names do worse."""
    if item.startswith("kills"):
        os.kill(os.getpid(), signal.SIGKILL)
    if item.startswith("bad"):
        raise DataError(f"{item}: cannot be read")
    if item.startswith("full"):
        raise RunError(f"{item}: the disk is full")
    if item.startswith("bug"):
        raise ZeroDivisionError(item)
    return f"{item} in {os.getcwd()}"
