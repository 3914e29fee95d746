"""Keep byte ranges that came over a network on disk, so that none is asked for twice.

A scene has a folder, named after its address: ``scene.json`` says which file it was (size and version), and every
range that was read is a file ``START-STOP-SHA256``, written whole or not at all as soon as it has arrived. What is
kept is read without asking the server; as soon as more is needed, the server's file must still be the same.

The address is the URL without user and password. Its query belongs to it, because some servers name files there: a
signed URL with a new signature is another scene.
"""

from __future__ import annotations

import bisect
import fcntl
import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from patchdrop.errors import DataError, RunError
from patchdrop.files import read_json, write_bytes, write_json
from patchdrop.transport.ledger import Purpose
from patchdrop.transport.opening import open_transport
from patchdrop.transport.ranges import Span, Transport, answered, is_url, public_name
from patchdrop.transport.remote import IN_FLIGHT


def address(source: str) -> str:
    """Identify a scene: by the real path of a file, or by a URL without user and password."""
    if not is_url(source):
        return os.path.realpath(source)
    parts = urlsplit(source)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def open_cached(source: str, cache: Path | None) -> Transport:
    """Do as `open_transport`, and keep what comes over a network in ``cache``, if there is one."""
    transport = open_transport(source)
    return transport if cache is None or not is_url(source) else DiskCache(transport, _folder(cache, source))


def _folder(cache: Path, source: str) -> Path:
    stem = PurePosixPath(public_name(source)).stem[:64] or "scene"
    return cache / f"{stem}-{hashlib.sha256(address(source).encode()).hexdigest()[:24]}"


class _Piece(NamedTuple):
    """The bytes ``start`` to ``stop`` of the scene, in a file of their own."""

    start: int
    stop: int
    path: Path


class DiskCache:
    """A transport that reads from a folder and fetches what is missing there from another transport.

    Its ledger is that transport's: it counts what came over the network.

    Raises:
        DataError: the folder is damaged.
    """

    def __init__(self, inner: Transport, folder: Path) -> None:
        self.name = inner.name
        self.ledger = inner.ledger
        self._inner = inner
        self._folder = folder
        self._lock = threading.Lock()
        self._held_lock = -1
        self._checked: set[Path] = set()
        try:
            self._known = _known(folder)
            self._pieces = _pieces(folder)
        except DataError:
            inner.close()
            raise

    @property
    def size(self) -> int:
        """See `Transport`."""
        return self._inner.size if self._known is None else int(self._known["size"])

    @property
    def version(self) -> str:
        """See `Transport`."""
        return self._inner.version if self._known is None else str(self._known["version"])

    def head(self, length: int) -> bytes:
        """See `Transport`."""
        if self._known is None:
            self._hold()
            start = self._inner.head(length)
            self._known = {"scene": self.name, "size": self._inner.size, "version": self._inner.version}
            write_json(self._folder / "scene.json", self._known)
            self._keep(Span(0, len(start)), start)
            return start
        return self.read([Span(0, min(length, self.size))], "header")[0]

    def read(self, spans: Sequence[Span], purpose: Purpose) -> list[bytes]:
        """See `Transport`; a span that is kept in part costs a request for each missing part."""
        missing = [part for span in spans for part, piece in self._parts(span) if piece is None]
        if missing:
            self._hold()
            # One by one, so that what has arrived is kept even if another range fails.
            with ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="keep") as pool:
                try:
                    list(pool.map(lambda part: self._fetch(part, purpose), missing))
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
        return [b"".join(self._bytes(part, piece) for part, piece in self._parts(span)) for span in spans]

    def ask(self, spans: Sequence[Span], purpose: Purpose) -> list[Future[bytes]]:
        """See `Transport`; waits until all is kept."""
        return answered(self.read(spans, purpose))

    def close(self) -> None:
        """See `Transport`."""
        self._inner.close()
        if self._held_lock >= 0:
            os.close(self._held_lock)
            self._held_lock = -1

    def _fetch(self, span: Span, purpose: Purpose) -> None:
        (content,) = self._inner.read([span], purpose)
        if self._inner.version != self.version:
            raise DataError(f"{self.name}: is not the file that {self._folder} keeps parts of; remove that folder")
        self._keep(span, content)

    def _keep(self, span: Span, content: bytes) -> None:
        path = self._folder / f"{span.start}-{span.stop}-{hashlib.sha256(content).hexdigest()[:32]}"
        write_bytes(path, content)
        with self._lock:
            bisect.insort(self._pieces, _Piece(span.start, span.stop, path))

    def _parts(self, span: Span) -> list[tuple[Span, _Piece | None]]:
        """Cut the span into parts that are kept and parts that are not."""
        found: list[tuple[Span, _Piece | None]] = []
        at = span.start
        first = max(0, bisect.bisect_right(self._pieces, at, key=lambda piece: piece.start) - 1)
        for piece in self._pieces[first:]:
            if piece.start >= span.stop:
                break
            if piece.stop <= at:
                continue
            if piece.start > at:
                found.append((Span(at, piece.start), None))
            found.append((Span(max(at, piece.start), min(span.stop, piece.stop)), piece))
            at = found[-1][0].stop
        if at < span.stop:
            found.append((Span(at, span.stop), None))
        return found

    def _bytes(self, span: Span, piece: _Piece | None) -> bytes:
        assert piece is not None
        try:
            with open(piece.path, "rb") as file:
                if piece.path not in self._checked:
                    if hashlib.sha256(file.read()).hexdigest()[:32] != piece.path.name.rpartition("-")[2]:
                        raise DataError(f"{piece.path}: is damaged; remove it")
                    self._checked.add(piece.path)
                file.seek(span.start - piece.start)
                return file.read(span.length)
        except OSError as error:
            raise DataError(f"{piece.path}: cannot be read ({error.strerror})") from error

    def _hold(self) -> None:
        """Lock the folder, so that no other process adds to it."""
        if self._held_lock >= 0:
            return
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._held_lock = os.open(self._folder / ".lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        except OSError as error:
            raise RunError(f"{self._folder}: cannot be written ({error.strerror}); choose another --cache") from error
        try:
            fcntl.flock(self._held_lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(f"{self._folder}: another training is filling it; wait for it") from error


def _known(folder: Path) -> dict[str, Any] | None:
    path = folder / "scene.json"
    if not path.exists():
        return None
    try:
        found = read_json(path)
        return {"scene": str(found["scene"]), "size": int(found["size"]), "version": str(found["version"])}
    except (RunError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"{path}: is damaged; remove {folder}") from error


def _pieces(folder: Path) -> list[_Piece]:
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        start, _, rest = path.name.partition("-")
        stop, _, digest = rest.partition("-")
        if start.isdecimal() and stop.isdecimal() and len(digest) == 32:
            found.append(_Piece(int(start), int(stop), path))
    return sorted(found)
