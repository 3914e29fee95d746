"""Train rows side by side, each in a process of its own.

Small networks leave a second core nearly idle, and rows do not need one another: two processes of one thread each take
about half the time of one process of two threads. Every process loads the data for itself.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.queues import Queue
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from threading import Lock, Thread

import torch

from patchdrop.compare.bench import Bench
from patchdrop.compare.rows import Row
from patchdrop.compare.table import FORMS
from patchdrop.compare.train import train_row, train_run
from patchdrop.data.load import load
from patchdrop.errors import Interrupted, TrainingError
from patchdrop.settings.comparison import CompareOptions
from patchdrop.terminal.talk import as_line, warnings_told
from patchdrop.training.recipe import Recipe
from patchdrop.training.run import Advance, Stopper

POLL_SECONDS = 0.5
RUN = ""
"""Stands for the run among the methods' names."""


def train_side_by_side(bench: Bench, rows: Sequence[Row], jobs: int, advance: Advance, stop: Stopper) -> None:
    """Train as `patchdrop.compare.train.train_rows`, in ``jobs`` processes; rows that need the run wait for it.

    Every row ends with the same weights as in one process of as many threads.
    """
    methods = {row.method: row for row in rows if row.trains(bench)}
    waiting = [method for method, row in methods.items() if not row.independent]
    context = get_context("spawn")
    told: Queue[tuple[str, int]] = context.Queue()
    asked: Synchronized[int] = context.Value("i", 0)
    begin = (bench.options, bench.recipe, bench.folder, jobs, told, asked, os.getpid())
    with ProcessPoolExecutor(jobs, context, initializer=_begin, initargs=begin) as pool:
        try:
            run = pool.submit(_train, RUN)
            running: set[Future[None]] = {run}
            running |= {pool.submit(_train, method) for method, row in methods.items() if row.independent}
            while running:
                done, running = wait(running, POLL_SECONDS, FIRST_COMPLETED)
                while not told.empty():
                    advance(*told.get())
                for future in done:
                    _end(future, stop)
                if stop():
                    raise Interrupted(stop())
                if run in done:
                    running |= {pool.submit(_train, method) for method in waiting}
        except BaseException:
            asked.value = stop() or signal.SIGTERM
            pool.shutdown(cancel_futures=True)
            raise


def _end(future: Future[None], stop: Stopper) -> None:
    """Raise what a row ended with; a process that was ended from outside becomes Interrupted or a TrainingError."""
    try:
        future.result()
    except BrokenProcessPool as error:
        if stop():
            raise Interrupted(stop()) from error
        raise TrainingError(
            "a process that trains a row was ended from outside, as happens where memory runs out; "
            "the same command goes on, with fewer --jobs in less memory"
        ) from error


class _Asked(Stopper):
    """The stop signal of the first process, or SIGTERM once that process is gone."""

    def __init__(self, asked: Synchronized[int], parent: int) -> None:
        super().__init__()
        self._asked = asked
        self._parent = parent

    def __call__(self) -> int:
        return self._asked.value or (signal.SIGTERM if os.getppid() != self._parent else 0)


_bench: Bench
_told: Queue[tuple[str, int]]
_stop: _Asked
_busy = Lock()
"""Held while a row trains."""


def _begin(
    options: CompareOptions,
    recipe: Recipe,
    folder: Path,
    jobs: int,
    told: Queue[tuple[str, int]],
    asked: Synchronized[int],
    parent: int,
) -> None:
    """Set up what a process keeps for all its rows."""
    global _bench, _told, _stop
    # The terminal's Ctrl-C reaches every process; the first one passes it on.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(recipe.threads or max(1, torch.get_num_threads() // jobs))
    _bench = Bench(options, recipe, load(recipe.source, lambda done, total: None), folder)
    _told, _stop = told, _Asked(asked, parent)
    Thread(target=_end_after, args=(parent,), daemon=True).start()


def _end_after(parent: int) -> None:
    """End this process once the first one is gone, which cannot tell it to, and a row in training has been saved."""
    while os.getppid() == parent:
        time.sleep(POLL_SECONDS)
    with _busy:
        os._exit(1)


def _train(method: str) -> None:
    def advance(name: str, count: int) -> None:
        _told.put((name, count))

    with _busy, warnings_told(as_line):
        if method == RUN:
            train_run(_bench, advance, _stop)
        else:
            row = next(row for row in FORMS[_bench.options.table].rows if row.method == method)
            train_row(row, _bench, advance, _stop)
