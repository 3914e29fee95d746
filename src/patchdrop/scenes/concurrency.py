"""Work on several scenes at once: threads wait for their bytes, with one progress bar and one way to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from patchdrop.cluster.spread import spread
from patchdrop.errors import DataError
from patchdrop.scenes.listing import Source
from patchdrop.settings.spread import Spread
from patchdrop.terminal.talk import Bars, bars
from patchdrop.transport.ranges import Stopped, public_name

S = TypeVar("S")
T = TypeVar("T")


POLL = 0.5
"""Seconds between two looks at scenes that other processes are at."""


class Busy(Exception):
    """Another process, or another thread, is at this scene."""


class SceneBar:
    """A progress bar for all scenes; it estimates the cells of unopened scenes from those of the opened ones.

    Args:
        scenes: number of scenes.
    """

    def __init__(self, shown: Bars, scenes: int) -> None:
        self._shown = shown
        self._lock = threading.Lock()
        self._scenes = self._waiting = scenes
        self._opened = self._cells = self._ended = 0

    def started(self) -> None:
        """Count one more scene as begun."""
        with self._lock:
            self._waiting -= 1

    def begin(self, cells: int) -> None:
        """Count one more scene as opened, with this many cells."""
        with self._lock:
            self._opened += 1
            self._cells += cells
        self.advance(0)

    def advance(self, cells: int) -> None:
        """Count this many more cells as done."""
        with self._lock:
            if self._opened:
                expected = self._cells + self._waiting * self._cells // self._opened
                self._shown.expect("cells", expected, f"{self._ended} of {self._scenes} scenes")
                self._shown.advance("cells", cells)

    def put_off(self) -> None:
        """Count one begun scene as not begun, because someone else is at it."""
        with self._lock:
            self._waiting += 1

    def ended(self) -> None:
        """Count one more scene as ended, successfully or not."""
        with self._lock:
            self._ended += 1
        self.advance(0)


def concurrently(
    work: Callable[[S, SceneBar], T],
    sources: Sequence[S],
    jobs: int,
    failed: Callable[[str], None],
    stop: threading.Event,
    unit: str = "cells",
) -> list[T]:
    """Run ``work`` on each scene, ``jobs`` of them at a time.

    Args:
        work: may raise `Busy`; it is then called again for that scene after all others, until it does not.
        failed: called with the reason for each scene whose work raises DataError, in the order of the scenes; the
            others go on.
        stop: set if an interrupt, or any other error, ends the work on all of them; work that sees it raises `Stopped`.
        unit: what the bar counts.

    Returns:
        The results of the others, in the order of the scenes.
    """

    def one(source: S) -> T:
        if stop.is_set():
            raise Stopped
        bar.started()
        try:
            found = work(source, bar)
        except Busy:
            bar.put_off()
            raise
        except DataError:
            bar.ended()
            raise
        except BaseException:
            stop.set()
            raise
        bar.ended()
        return found

    found: dict[int, T] = {}
    left = list(range(len(sources)))
    with bars({}, unit) as shown, ThreadPoolExecutor(jobs, "scene") as threads:
        bar = SceneBar(shown, len(sources))
        try:
            while left:
                waiting = {number: threads.submit(one, sources[number]) for number in left}
                left = []
                for number, done in waiting.items():
                    try:
                        found[number] = done.result()
                    except Busy:
                        left.append(number)
                    except DataError as error:
                        failed(str(error))
                    except Stopped:
                        continue  # because of another scene, whose error is still to come
                if left:
                    time.sleep(POLL)
        except BaseException:
            stop.set()
            raise
    return [found[number] for number in sorted(found)]


def alone(work: Callable[[S, SceneBar], T], source: S, stop: threading.Event) -> T:
    """Run ``work`` on one scene, on a worker, in this thread."""
    stop.clear()  # it was set if earlier work of this process ended with an error
    with bars({}, "cells") as shown:
        bar = SceneBar(shown, 1)
        while True:
            bar.started()
            try:
                return work(source, bar)
            except Busy:
                bar.put_off()
                time.sleep(POLL)


def scenes_over(
    over: Spread, work: Callable[[Source], T], sources: Sequence[Source], failed: Callable[[str], None]
) -> dict[Source, T]:
    """Have other processes work on scenes.

    Args:
        work: works on one scene, on a worker.
        failed: called with the reason for each scene whose work failed, in the order of the scenes.

    Returns:
        The results of the others, in the order of the scenes.
    """
    found: dict[Source, T] = {}
    reasons: dict[Source, str] = {}
    with bars({}, "scenes") as shown:
        shown.expect("scenes", len(sources), f"{over}")

        def ended(source: Source, result: T) -> None:
            found[source] = result
            shown.advance("scenes", 1)

        def not_ended(source: Source, reason: str) -> None:
            name = public_name(source.scene)
            reasons[source] = reason if reason.startswith(name) else f"{name}: {reason}"
            shown.advance("scenes", 1)

        spread(work, sources, over, ended, not_ended)
    for source in sources:
        if source in reasons:
            failed(reasons[source])
    return {source: found[source] for source in sources if source in found}
