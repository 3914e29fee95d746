"""Read byte ranges of a scene, and count each where it arrives.

Only a transport touches a scene's bytes, so its ledger is the cost of reading. This module has the protocol, files on
disk, and prices for plans; networks are in `http` and `stores`, and `opening` picks one.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import NamedTuple, Protocol

from patchdrop.errors import DataError
from patchdrop.transport.ledger import Ledger, Purpose

MAX_JOINED = 2**24
"""Most bytes of a range that was made by joining."""


class Stopped(Exception):
    """Reading was told to stop; the user's interrupt, or another scene's error, is what will be reported."""


class Span(NamedTuple):
    """The bytes ``start`` to ``stop`` of a file, ``stop`` just outside."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.stop - self.start


class Transport(Protocol):
    """A source of byte ranges.

    Attributes:
        name: the file or URL, without passwords and tokens.
        ledger: what was read.
    """

    name: str
    ledger: Ledger

    def head(self, length: int) -> bytes:
        """Return the first ``length`` bytes, fewer if the file is shorter; the first read, counted as header."""

    def read(self, spans: Sequence[Span], purpose: Purpose) -> list[bytes]:
        """Return the bytes of each span, one request each.

        Raises:
            DataError: they cannot be had, or the file was replaced since the first read.
        """

    def ask(self, spans: Sequence[Span], purpose: Purpose) -> list[Future[bytes]]:
        """Do as `read`, without waiting if bytes take time to come: each answer gives its bytes, or raises.

        The caller has to cancel answers that are no longer wanted.
        """

    @property
    def size(self) -> int:
        """Size of the whole file in bytes, known after `head`."""

    @property
    def version(self) -> str:
        """A text that differs for a later file of the same name, known after `head`."""

    def close(self) -> None:
        """Close connections and handles."""


def is_url(source: str) -> bool:
    """Check whether a text names something behind a network, rather than a file."""
    return "://" in source


def public_name(source: str) -> str:
    """Return a URL without user, password, query and fragment, which may be secrets; a path as it is.

    Control characters, and bytes of a file's name that are no UTF-8, are escaped: they cannot be shown or written.
    """
    name = source
    if is_url(source):
        scheme, _, rest = re.split("[?#]", source, maxsplit=1)[0].partition("://")
        host, slash, path = rest.partition("/")
        name = f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"
    return re.sub(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", lambda found: ascii(found[0])[1:-1], name)


def joined(spans: Sequence[Span], gap: int) -> list[Span]:
    """Return requests that cover ``spans``: sorted, those at most ``gap`` bytes apart as one, up to ``MAX_JOINED``."""
    found: list[Span] = []
    for span in sorted(set(spans)):
        last = found[-1] if found else None
        if last and span.start <= last.stop + gap and max(span.stop, last.stop) - last.start <= MAX_JOINED:
            found[-1] = Span(last.start, max(last.stop, span.stop))
        else:
            found.append(span)
    return found


def answered(parts: Iterable[bytes]) -> list[Future[bytes]]:
    """Wrap bytes that are there already as answers."""
    found: list[Future[bytes]] = []
    for part in parts:
        answer: Future[bytes] = Future()
        answer.set_result(part)
        found.append(answer)
    return found


class Priced:
    """A transport that reads nothing and counts what another one would read; for plans."""

    def __init__(self, of: Transport, ledger: Ledger) -> None:
        self.name, self.ledger = of.name, ledger
        self.size, self.version = of.size, of.version

    def head(self, length: int) -> bytes:
        """Count, and return nothing."""
        return self.read([Span(0, min(length, self.size))], "header")[0]

    def read(self, spans: Sequence[Span], purpose: Purpose) -> list[bytes]:
        """Count, and return nothing."""
        self.ledger.add(purpose, len(spans), sum(span.length for span in spans))
        return [b""] * len(spans)

    def ask(self, spans: Sequence[Span], purpose: Purpose) -> list[Future[bytes]]:
        """Do as `read`."""
        return answered(self.read(spans, purpose))

    def close(self) -> None:
        """Do nothing."""


class LocalFile:
    """A file on disk, read in ranges; a request is one range."""

    def __init__(self, path: Path) -> None:
        self.name = public_name(str(path))
        self.ledger = Ledger()
        self._path = path
        self._file = -1
        try:
            # A pipe would block on opening.
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._found = os.fstat(self._file)
        except OSError as error:
            self.close()
            raise DataError(f"{self.name}: cannot be read ({error.strerror}): check the path") from error
        if not stat.S_ISREG(self._found.st_mode):
            self.close()
            raise DataError(f"{self.name}: not a file: check the path")

    @property
    def size(self) -> int:
        """Size of the file in bytes when it was opened."""
        return self._found.st_size

    @property
    def version(self) -> str:
        """Size and time of the last change."""
        return f"{self._found.st_size} bytes, {self._found.st_mtime_ns} ns"

    def head(self, length: int) -> bytes:
        """See `Transport`."""
        return self.read([Span(0, min(length, self.size))], "header")[0]

    def read(self, spans: Sequence[Span], purpose: Purpose) -> list[bytes]:
        """See `Transport`."""
        return [self._read(span, purpose) for span in spans]

    def ask(self, spans: Sequence[Span], purpose: Purpose) -> list[Future[bytes]]:
        """See `Transport`; reads at once."""
        return answered(self.read(spans, purpose))

    def _read(self, span: Span, purpose: Purpose) -> bytes:
        parts = []
        at = span.start
        try:
            while at < span.stop:
                part = os.pread(self._file, span.stop - at, at)
                if not part:
                    break
                parts.append(part)
                at += len(part)
            now = os.stat(self._path)  # after reading, so that what was written meanwhile is noticed
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror})") from error
        finally:
            self.ledger.add(purpose, 1, at - span.start)
        if at < span.stop or _identity(now) != _identity(self._found):
            raise replaced(self.name)
        return b"".join(parts)

    def close(self) -> None:
        """See `Transport`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def replaced(name: str) -> DataError:
    """Return the error for a file that is no longer the one that was opened."""
    return DataError(f"{name}: was replaced while it was being read; run the same again for the new one")
