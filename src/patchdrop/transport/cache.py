"""Keep headers and overviews of remote scenes between commands: `plan`, then `predict`, pay for them once.

One SQLite file in a folder that the user names. A scene's bytes are kept under a digest of its URL (never the URL
itself, which may hold secrets) with the version they were read from. They are used only after the server has said, to
one conditional request, that the file is still that version; a file without a strong ETag is not kept. Patches are not
kept either.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import closing
from pathlib import Path
from typing import Any, NoReturn

from patchdrop.errors import RunError
from patchdrop.transport.ledger import Purpose
from patchdrop.transport.ranges import Span, answered
from patchdrop.transport.remote import RemoteFile, Version

FILE = "headers.sqlite"
_TABLES = """
CREATE TABLE IF NOT EXISTS scenes (url TEXT PRIMARY KEY, size INTEGER, etag TEXT, modified TEXT);
CREATE TABLE IF NOT EXISTS blocks (url TEXT, start INTEGER, stop INTEGER, data BLOB, PRIMARY KEY (url, start, stop));
"""
_WAIT = 60.0
"""Seconds to wait for another scene, or another process, that is writing."""


class Cached:
    """A remote file whose header and overview come from a cache if it holds them.

    The ledger counts what was sent, and separately what came from the cache (`Ledger.hold`).

    Raises:
        RunError: the cache cannot be used.
    """

    def __init__(self, inner: RemoteFile, url: str, folder: Path) -> None:
        self.name, self.ledger = inner.name, inner.ledger
        self._inner = inner
        self._url = hashlib.sha256(url.encode()).hexdigest()
        self._path = folder / FILE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            # Used by one thread at a time, but not always by the one that opened it.
            self._rows = sqlite3.connect(self._path, timeout=_WAIT, isolation_level=None, check_same_thread=False)
            self._rows.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {_TABLES}")
        except (OSError, sqlite3.Error) as error:
            self._unusable(error)

    @property
    def size(self) -> int:
        """See `Transport`."""
        return self._inner.size

    @property
    def version(self) -> str:
        """See `Transport`."""
        return self._inner.version

    def head(self, length: int) -> bytes:
        """See `Transport`; asks whether the file is the one that is held."""
        known = self._known()
        found = self._inner.head(length) if known is None else self._inner.head_unless(length, known)
        if found is None:
            return self.read([Span(0, min(length, self.size))], "header")[0]
        version = self._inner.found
        if version is not None and version.strong:
            if known != version:
                self._run("DELETE FROM blocks WHERE url = ?", self._url)
                self._run("INSERT OR REPLACE INTO scenes VALUES (?, ?, ?, ?)", self._url, *version)
            self._keep(Span(0, len(found)), found)
        return found

    def read(self, spans: Sequence[Span], purpose: Purpose) -> list[bytes]:
        """See `Transport`."""
        if purpose == "patch":
            return self._inner.read(spans, purpose)
        held = {span: self._held(span) for span in spans}
        absent = [span for span, data in held.items() if data is None]
        read = dict(zip(absent, self._inner.read(absent, purpose), strict=True))
        for span, data in read.items():
            self._keep(span, data)
        answered = [data for data in held.values() if data is not None]
        # The first bytes come with the request that asked for the version.
        requests = sum(span.start > 0 for span, data in held.items() if data is not None)
        self.ledger.hold(purpose, requests, sum(map(len, answered)))
        return [read[span] if data is None else data for span, data in ((s, held[s]) for s in spans)]

    def ask(self, spans: Sequence[Span], purpose: Purpose) -> list[Future[bytes]]:
        """See `Transport`; waits for headers and overviews."""
        return self._inner.ask(spans, purpose) if purpose == "patch" else answered(self.read(spans, purpose))

    def close(self) -> None:
        """See `Transport`."""
        self._rows.close()
        self._inner.close()

    def _known(self) -> Version | None:
        rows = self._run("SELECT size, etag, modified FROM scenes WHERE url = ?", self._url)
        return Version(*rows[0]) if rows else None

    def _held(self, span: Span) -> bytes | None:
        rows = self._run(
            "SELECT substr(data, ? - start + 1, ?) FROM blocks WHERE url = ? AND start <= ? AND stop >= ? LIMIT 1",
            *(span.start, span.length, self._url, span.start, span.stop),
        )
        return bytes(rows[0][0]) if rows else None

    def _keep(self, span: Span, data: bytes) -> None:
        if self._inner.found is not None and self._inner.found.strong:
            self._run("INSERT OR REPLACE INTO blocks VALUES (?, ?, ?, ?)", self._url, *span, data)

    def _run(self, statement: str, *values: object) -> list[tuple[Any, ...]]:
        try:
            with closing(self._rows.execute(statement, values)) as cursor:
                return cursor.fetchall()
        except sqlite3.Error as error:
            self._unusable(error)

    def _unusable(self, error: Exception) -> NoReturn:
        raise RunError(f"--cache {self._path}: cannot be used ({error}); remove it, or name another folder") from error
