"""Several processes that train together, as torchrun would start them, but forked from one that has torch loaded."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

PATIENCE = 300
"""Seconds after which a process that should have ended counts as stuck."""
CONTEXT = multiprocessing.get_context("forkserver")
# The first optimizer of a process imports torch._dynamo, which takes seconds.
CONTEXT.set_forkserver_preload(["patchdrop.commands", "patchdrop.training.run", "tiny", "torch._dynamo"])


def start(size: int, work: Callable[..., int | None], given: Sequence[Any], told: Path) -> list[BaseProcess]:
    """Start ``size`` processes, each of which calls ``work(*given[its number])`` and ends with what it returns.

    Args:
        told: folder; stdout and stderr of process N go to its files ``N.out`` and ``N.err``.
    """
    told.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for rank in range(size):
        names = {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        environment = {name: str(value) for name, value in names.items()} | {"TORCHELASTIC_RUN_ID": "test"}
        process = CONTEXT.Process(target=_begin, args=(environment, told / str(rank), work, given[rank]))
        process.start()
        started.append(process)
    return started


def _begin(environment: dict[str, str], told: Path, work: Callable[..., int | None], given: Sequence[Any]) -> None:
    os.environ.update(environment if int(environment["WORLD_SIZE"]) > 1 else {})
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for stream, suffix in ((1, ".out"), (2, ".err")):
        os.dup2(os.open(told.with_suffix(suffix), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    sys.exit(work(*given))


def codes(processes: Sequence[BaseProcess]) -> list[int | None]:
    """The exit codes of processes, once all have ended; the number of a signal is below 0."""
    for process in processes:
        process.join(PATIENCE)
    return [process.exitcode for process in processes]


def together(size: int, work: Callable[..., int | None], given: Sequence[Any], told: Path) -> None:
    """Run ``work(*given)`` in each of the processes to its end."""
    ended = codes(start(size, work, [given] * size, told))
    assert ended == [0] * size, "".join(path.read_text() for path in sorted(told.glob("*.err")))


def errors(told: Path, rank: int) -> str:
    """What a process wrote to stderr."""
    return (told / f"{rank}.err").read_text().strip()
