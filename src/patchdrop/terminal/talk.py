"""Print bars, lines and warnings on stderr while the program works; bars only on a terminal."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from patchdrop.errors import PatchDropError

console = Console(stderr=True)


@contextmanager
def errors_told() -> Iterator[None]:
    """End a script with the error's one line and exit code, as the command line does, instead of a traceback."""
    try:
        yield
    except PatchDropError as error:
        raise SystemExit(tell(error)) from None


def tell(error: PatchDropError) -> int:
    """Print an error's one line, and return its exit code."""
    line(f"error: {error}")
    return error.exit_code


def line(text: str) -> None:
    """Print one line on stderr as it is."""
    if not console.quiet:
        print(text, file=sys.stderr)


def hush(quiet: bool = True) -> None:
    """Print nothing from now on: of several processes that do the same one is to be heard. ``False`` ends that."""
    console.quiet = quiet


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        rate = task.finished_speed or task.speed
        return Text("" if rate is None else f"{rate:.1f}/s", style="dim")


@contextmanager
def bars(work: Mapping[str, tuple[int, float]], unit: str) -> Iterator[Bars]:
    """Show a bar for each item of work, and one for all of it.

    Args:
        work: name -> (count, cost of one); the cost, in any unit, weighs the items in the total.
        unit: what is counted, for example ``steps``.
    """
    columns = (
        TextColumn("{task.description:>14}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        yield Bars(progress, work, unit)


class Bars:
    """The bars on the screen, which are told what was done and draw it."""

    def __init__(self, progress: Progress, work: Mapping[str, tuple[int, float]], unit: str) -> None:
        self.progress = progress
        self.work = dict(work)
        self.unit = unit
        self.tasks: dict[str, Any] = {}
        total = sum(count * cost for count, cost in work.values())
        self.total = progress.add_task("in total", total=100, unit="%") if len(work) > 1 and total else None
        self.scale = 100 / total if total else 0.0

    def expect(self, name: str, count: int, description: str) -> None:
        """Expect ``count`` units of an item in all, as far as is known now."""
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(description, total=count, unit=self.unit)
        self.progress.update(self.tasks[name], total=count, description=description)

    def advance(self, name: str, count: int) -> None:
        """Count ``count`` more units of an item as done."""
        expected, cost = self.work.get(name, (None, 0.0))
        if name not in self.tasks:
            self.tasks[name] = self.progress.add_task(name, total=expected, unit=self.unit)
        self.progress.advance(self.tasks[name], count)
        if self.total is not None:
            self.progress.advance(self.total, count * cost * self.scale)


def say(text: str) -> None:
    """Print one line on stderr."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def warnings_told(tell: Callable[[Warning | str, type[Warning]], bool]) -> Iterator[None]:
    """Pass each warning to ``tell`` first while the block runs; unless it returns True, show the warning as before."""

    def show(message: Warning | str, category: type[Warning], *rest: Any) -> None:
        if not tell(message, category):
            before(message, category, *rest)

    before = warnings.showwarning
    warnings.showwarning = show  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = before


def as_line(message: Warning | str, category: type[Warning]) -> bool:
    """Print a warning of this package as one line on stderr, and return True; leave those of other packages."""
    ours = category.__module__.startswith("patchdrop")
    if ours:
        say(f"warning: {message}")
    return ours
