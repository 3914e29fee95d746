"""The common part of all files behind a network: parallel requests, repeated if that may help, within a time limit.

A range is asked for up to ``ATTEMPTS`` times, with a pause with jitter before each further one, within ``limit``
seconds from the first attempt to the last byte. Every attempt is a request and is counted.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import NamedTuple

from patchdrop.errors import DataError
from patchdrop.transport.ledger import Ledger, Purpose
from patchdrop.transport.ranges import Span, Stopped, replaced

ATTEMPTS = 4
FIRST_PAUSE = 0.2
"""Seconds before the second attempt, doubled for each further one, and multiplied by a random 0.5 to 1.5."""
IN_FLIGHT = 32
LIMIT = 15.0


class Version(NamedTuple):
    """The properties that tell a file from a later one of the same name."""

    size: int
    etag: str
    modified: str

    @property
    def strong(self) -> bool:
        """Whether the same ETag means the same bytes."""
        return bool(self.etag) and not self.etag.startswith("W/")

    def __str__(self) -> str:
        return f"{self.size} bytes, {self.etag or self.modified or 'no version'}"


class Retryable(Exception):
    """The reason why a request failed that may succeed when repeated."""


class NotModified(Exception):
    """The server says that the file is still the known one."""


class RemoteFile:
    """A file behind a network, read by ``in_flight`` requests at a time; a kind of server adds `_attempt`.

    Args:
        name: what it is called in messages, without secrets.
        limit: seconds a range may take, all attempts together.
        stop: no request is begun once it is set.

    Attributes:
        found: the version that was opened; None before the first read.
    """

    def __init__(
        self,
        name: str,
        limit: float = LIMIT,
        in_flight: int = IN_FLIGHT,
        first_pause: float = FIRST_PAUSE,
        stop: threading.Event | None = None,
    ) -> None:
        self.name = name
        self.ledger = Ledger()
        self.found: Version | None = None
        self._known: Version | None = None
        self._limit = limit
        self._first_pause = first_pause
        self._stop = stop or threading.Event()
        self._lock = threading.Lock()
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="range")

    @property
    def size(self) -> int:
        """Size of the whole file in bytes, as the server says."""
        return -1 if self.found is None else self.found.size

    @property
    def version(self) -> str:
        """ETag, or time of the last change, and size."""
        return str(self.found or Version(-1, "", ""))

    def head(self, length: int) -> bytes:
        """See `Transport`."""
        return self._range(Span(0, length), "header")

    def head_unless(self, length: int, known: Version) -> bytes | None:
        """Do as `head`, or return None if the server says that the file is still the ``known`` one."""
        self._known = known
        try:
            return self.head(length)
        except NotModified:
            self.found = known
            return None
        finally:
            self._known = None

    def read(self, spans: Sequence[Span], purpose: Purpose) -> list[bytes]:
        """See `Transport`."""
        work = self.ask(spans, purpose)
        try:
            return [done.result() for done in work]
        finally:
            for left in work:
                left.cancel()
            wait(work)  # what is on its way still counts

    def ask(self, spans: Sequence[Span], purpose: Purpose) -> list[Future[bytes]]:
        """See `Transport`; once a range is refused for good, the remaining spans are not asked for."""
        refused: list[DataError] = []
        return [self._threads.submit(self._unless, refused, span, purpose) for span in spans]

    def close(self) -> None:
        """See `Transport`."""
        self._threads.shutdown(cancel_futures=True)

    def _unless(self, refused: list[DataError], span: Span, purpose: Purpose) -> bytes:
        """Do as `_range`, unless another range of the same call was refused before."""
        if refused:
            raise DataError(str(refused[0]))
        try:
            return self._range(span, purpose)
        except DataError as error:
            refused.append(error)
            raise

    def _range(self, span: Span, purpose: Purpose) -> bytes:
        deadline = time.monotonic() + self._limit
        pause, reason = self._first_pause, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                wanted = pause * random.uniform(0.5, 1.5)
                self._stop.wait(min(wanted, max(0.0, deadline - time.monotonic())))
                pause *= 2
            if self._stop.is_set():
                raise Stopped
            if time.monotonic() >= deadline:
                break
            try:
                return self._attempt(span, purpose, deadline)
            except Retryable as why:
                reason = str(why)
        else:
            raise DataError(f"{self.name}: {reason}, {ATTEMPTS} times in a row; try again later")
        raise DataError(
            f"{self.name}: bytes {span.start} to {span.stop} took more than {self._limit:g} s"
            f"{f' ({reason})' if reason else ''}; try again later, or allow more with --limit"
        )

    def _attempt(self, span: Span, purpose: Purpose, deadline: float) -> bytes:
        """Ask once.

        Raises:
            Retryable: it may help to repeat it.
            NotModified: only at the first read, if the file is the known one.
            DataError: it would not help.
        """
        raise NotImplementedError

    def _same(self, found: Version) -> None:
        """Take the first version seen as the file's; raise DataError at any other."""
        with self._lock:
            if self.found is None:
                self.found = found
        if found != self.found:
            raise replaced(self.name)
