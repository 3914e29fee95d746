"""Run one function on many arguments, each on a worker process of Dask.

Addresses travel, pixels do not: an argument is the name of a scene or a few names of files, a result a few numbers.
What is worth keeping is written by the function itself, into a folder that the workers share. So a piece of work may
run twice, after its worker was killed, without harm.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import islice
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from patchdrop.errors import DataError, PatchDropError, RunError, UsageError, first_line
from patchdrop.settings.spread import Spread
from patchdrop.terminal.talk import hush
from patchdrop.version import VERSION

if TYPE_CHECKING:
    from distributed import Client

T = TypeVar("T")
R = TypeVar("R")

AHEAD = 2
"""Pieces of work that are handed out for each thread of the workers: what it works on, and the next one."""
KILLED = "killed each worker that read it (out of memory, or a fault of a library); leave it out, or read it alone"
PATIENCE = 10
"""Seconds to wait for a scheduler to answer, and for a first worker of it."""


def remembering(make: Callable[[T], R]) -> Callable[[T], R]:
    """Return a function that makes something of its argument once, as long as the argument stays the same.

    For a worker process, which is asked with the same settings for one piece of work after the other. What is made of
    files must have something in its argument that changes when they do.
    """
    last: list[tuple[T, R]] = []
    lock = threading.Lock()

    def remembered(argument: T) -> R:
        with lock:
            if not last or last[0][0] != argument:
                last[:] = [(argument, make(argument))]
            return last[0][1]

    return remembered


class _Folder:
    """The working folder of a worker process, whose threads may have work from clients in several folders."""

    def __init__(self) -> None:
        self._free = threading.Condition()
        self._working = 0

    @contextmanager
    def __call__(self, path: str) -> Iterator[None]:
        """Work in a folder; wait until nobody works in another one."""
        with self._free:
            self._free.wait_for(lambda: not self._working or os.getcwd() == path)
            os.chdir(path)
            self._working += 1
        try:
            yield
        finally:
            with self._free:
                self._working -= 1
                self._free.notify_all()


_folder = _Folder()


class _Refused(NamedTuple):
    """An error of this package, as it travels from a worker."""

    kind: type[PatchDropError]
    reason: str


def spread(
    work: Callable[[T], R],
    items: Iterable[T],
    over: Spread,
    ended: Callable[[T, R], None],
    failed: Callable[[T, str], None],
) -> None:
    """Call ``work`` on each item, on workers, in no order.

    Args:
        work: a function that can be pickled; workers call it in this process's folder.
        ended: called here with each item and its result.
        failed: called here with each item for which ``work`` raised DataError, or which killed its workers, and why.

    Raises:
        UsageError: no scheduler answers, a worker has another version, or Dask is not installed.
        PatchDropError: any other error of ``work``; what is not done by then is left.
    """
    try:
        from distributed import KilledWorker
    except ImportError as error:
        raise UsageError(
            "--workers and --scheduler need Dask: install it with `pip install 'patchdrop[cluster]'`"
        ) from error

    def tell(item: T, future: Any, result: R | _Refused, killed: Callable[[T], None]) -> None:
        if future.status == "error" and isinstance(future.exception(), KilledWorker):
            killed(item)
        elif future.status == "finished" and not isinstance(result, _Refused):
            ended(item, result)
        else:
            failed(item, _why(future, result, over))

    with _client(over) as client:
        _same_version(client)
        suspects: list[T] = []
        for done in _done(client, work, items, AHEAD * max(1, sum(client.nthreads().values()))):
            tell(*done, suspects.append)
        for suspect in suspects:  # a worker's death counts against all that it was given: which one was it?
            for done in _done(client, work, [suspect], 1):
                tell(*done, lambda item: failed(item, KILLED))


def _done(
    client: Client, work: Callable[[T], R], items: Iterable[T], slots: int
) -> Iterator[tuple[T, Any, R | _Refused]]:
    """Yield each item with its future and what became of it, in the order in which they are done.

    Args:
        slots: items that are handed out at a time; the others wait here and take no memory there.
    """
    from distributed import as_completed

    left = iter(items)
    running: dict[Any, T] = {}

    def submit(item: T) -> Any:
        future = client.submit(_called, VERSION, os.getcwd(), work, item, pure=False)
        running[future] = item
        return future

    first = [submit(item) for item in islice(left, slots)]
    finished = as_completed(first, loop=client.loop, with_results=True, raise_errors=False)
    for future, result in finished:
        yield running.pop(future), future, result
        for more in islice(left, 1):
            finished.add(submit(more))


def _called(version: str, folder: str, work: Callable[[T], R], item: T) -> R | _Refused:
    """Do one piece of work, on the worker."""
    if version != VERSION:
        return _Refused(UsageError, f"a worker has patchdrop {VERSION}, this is {version}; install the same everywhere")
    if not os.path.isdir(folder):
        return _Refused(RunError, f"a worker has no folder {folder}; workers must share it")
    hush()  # whoever gave the work says how it goes
    try:
        with _folder(folder):
            return work(item)
    except PatchDropError as error:
        return _Refused(type(error), str(error))


def _why(future: Any, result: Any, over: Spread) -> str:
    """Return the reason why one piece of work failed; raise what concerns all of them."""
    if isinstance(result, _Refused):
        if result.kind is not DataError:
            raise result.kind(result.reason)
        return result.reason
    if future.status != "error":  # cancelled, or lost
        raise RunError(f"{over}: lost the scheduler; what is finished is kept, and the same command goes on from there")
    error = future.exception()
    if isinstance(error, ModuleNotFoundError):
        raise RunError(f"a worker cannot run this: {first_line(error)}; install patchdrop on all workers")
    raise error


@contextmanager
def _client(over: Spread) -> Iterator[Client]:
    """Connect to the scheduler that is named, or start workers here, which end with the block."""
    import dask
    from distributed import Client, LocalCluster

    with ExitStack() as stack:
        if over.scheduler is not None:
            if not re.fullmatch(r"(tcp|tls|ws|wss)://.+:\d+", over.scheduler):
                raise UsageError(f"--scheduler {over.scheduler}: is no address; write for example tcp://10.0.0.5:8786")
            try:
                client = stack.enter_context(Client(over.scheduler, timeout=PATIENCE, set_as_default=False))
            except (OSError, ValueError) as error:
                raise UsageError(f"--scheduler {over.scheduler}: does not answer ({first_line(error)})") from error
            try:
                client.wait_for_workers(1, timeout=PATIENCE)
            except TimeoutError as error:
                raise UsageError(f"--scheduler {over.scheduler}: has no workers; start some") from error
            yield client
            return
        threads = max(1, (os.cpu_count() or 1) // over.workers)
        settings = {"distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads}
        with dask.config.set(settings):
            cluster = LocalCluster(
                n_workers=over.workers,
                threads_per_worker=1,
                processes=True,
                host="127.0.0.1",
                dashboard_address="127.0.0.1:0",
                memory_limit=0,
                silence_logs=50,
            )
        yield stack.enter_context(Client(stack.enter_context(cluster), set_as_default=False))


def _same_version(client: Client) -> None:
    """Raise UsageError if a worker has another version of this package, or none."""
    try:
        for worker, version in client.run(_version).items():
            if version != VERSION:
                raise UsageError(
                    f"worker {worker} has patchdrop {version}, this is {VERSION}; install the same everywhere"
                )
    except PatchDropError:
        raise
    except Exception as error:  # what a worker raised comes back as a bare Exception
        raise RunError(f"a worker cannot run this: {first_line(error)}; install patchdrop on all workers") from error


def _version() -> str:
    return VERSION
