"""Work on several scenes at once: threads wait for their bytes, with one progress bar and one way to stop."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from patchdrop.errors import DataError
from patchdrop.terminal.talk import Bars, bars
from patchdrop.transport.ranges import Stopped

S = TypeVar("S")
T = TypeVar("T")


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
            return work(source, bar)
        except DataError:
            raise
        except BaseException:
            stop.set()
            raise
        finally:
            bar.ended()

    found = []
    with bars({}, unit) as shown, ThreadPoolExecutor(jobs, "scene") as threads:
        bar = SceneBar(shown, len(sources))
        waiting = [threads.submit(one, source) for source in sources]
        try:
            for done in waiting:
                try:
                    found.append(done.result())
                except DataError as error:
                    failed(str(error))
                except Stopped:
                    continue  # because of another scene, whose error is still to come
        except BaseException:
            stop.set()
            raise
    return found
