"""Byte ranges of a file on disk or behind HTTP(S), each counted where it arrives.

A transport is the only thing that touches a scene's bytes, so its ledger is what reading cost. Retries, redirects and
error pages are requests too and are counted.

What a server may do, and what follows
--------------------------------------
* Answers 429 or 5xx, closes or resets the connection, or sends too few bytes: asked again after a pause with jitter,
  ``ATTEMPTS`` times, within the time limit of the range.
* Ignores ranges, sends another range, more bytes than asked for or compressed ones: refused at once. The body of an
  answer that is the whole file is not read.
* Redirects: followed up to ``REDIRECTS`` times, from then on the new place is asked. A redirect to another host must
  lead to a public address (of the connection itself, so a name that resolves differently the second time does not
  help) and not from https to http. The URL that the user named may be anywhere.
* Sends slowly: ``limit`` seconds a range, from the first attempt to the last byte.
* Has another version of the file than at the first read: told by If-Match, ETag, Last-Modified and the total size.
"""

from __future__ import annotations

import ipaddress
import os
import random
import re
import stat
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import NamedTuple, Protocol, cast
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError, LocationValueError, SSLError

from patchdrop.errors import DataError, UsageError
from patchdrop.read.ledger import Ledger, Purpose
from patchdrop.version import VERSION

ATTEMPTS = 4
FIRST_PAUSE = 0.2
"""Seconds before the second attempt, doubled for each further one, times 0.5 to 1.5 at random."""
IN_FLIGHT = 32
LIMIT = 15.0
REDIRECTS = 5
MAX_JOINED = 2**24
"""A range grows by joining to this many bytes at most."""
_PIECE = 2**16
_RETRIED = (429, 500, 502, 503, 504)
_REDIRECTED = (301, 302, 303, 307, 308)


class Span(NamedTuple):
    """Bytes ``start`` to ``stop`` of a file, ``stop`` just outside."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        """Number of bytes."""
        return self.stop - self.start


class Transport(Protocol):
    """Where byte ranges come from.

    Attributes:
        name: the file or URL, without passwords and tokens.
        ledger: what was read.
        in_flight: requests that are made at a time.
    """

    name: str
    ledger: Ledger
    in_flight: int

    def head(self, length: int) -> bytes:
        """The file's first ``length`` bytes, fewer where it is shorter; the first read, counted as header."""

    def read(self, spans: Sequence[Span], purpose: Purpose) -> list[bytes]:
        """The bytes of each span, one request each.

        Raises:
            DataError: they cannot be had, or the file was replaced since the first read.
        """

    @property
    def size(self) -> int:
        """Bytes of the whole file, known after `head`."""

    @property
    def version(self) -> str:
        """What tells this file from a later one of the same name, known after `head`."""

    def close(self) -> None:
        """Give back connections and handles."""


def is_url(source: str) -> bool:
    """Whether a user's words name something behind a network, rather than a file."""
    return "://" in source


def open_transport(source: str, limit: float = LIMIT) -> Transport:
    """A transport for a file's path or an http(s) URL.

    Raises:
        UsageError: a URL of another kind.
        DataError: no such file.
    """
    if not is_url(source):
        return LocalFile(Path(source))
    if not _is_http(source):
        raise UsageError(f"{public_name(source)}: give a file, or a whole URL that begins with http:// or https://")
    return HttpFile(source, limit)


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that make no sense
        return False


def public_name(source: str) -> str:
    """A URL without user, password, query and fragment, which may be secrets; a path as it is."""
    if not is_url(source):
        return source
    scheme, _, rest = re.split("[?#]", source, maxsplit=1)[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def joined(spans: Sequence[Span], gap: int) -> list[Span]:
    """The requests that cover ``spans``: sorted, those at most ``gap`` bytes apart as one, up to ``MAX_JOINED``."""
    found: list[Span] = []
    for span in sorted(set(spans)):
        last = found[-1] if found else None
        if last and span.start <= last.stop + gap and max(span.stop, last.stop) - last.start <= MAX_JOINED:
            found[-1] = Span(last.start, max(last.stop, span.stop))
        else:
            found.append(span)
    return found


class Priced:
    """A transport that reads nothing and counts what another one would; for plans."""

    def __init__(self, of: Transport, ledger: Ledger) -> None:
        self.name, self.ledger, self.in_flight = of.name, ledger, of.in_flight
        self.size, self.version = of.size, of.version

    def head(self, length: int) -> bytes:
        """Counted, but empty."""
        return self.read([Span(0, min(length, self.size))], "header")[0]

    def read(self, spans: Sequence[Span], purpose: Purpose) -> list[bytes]:
        """Counted, but empty."""
        self.ledger.add(purpose, len(spans), sum(span.length for span in spans))
        return [b""] * len(spans)

    def close(self) -> None:
        """Nothing to give back."""


class LocalFile:
    """Ranges of a file on disk; a request is one range."""

    in_flight = 1

    def __init__(self, path: Path) -> None:
        self.name = str(path)
        self.ledger = Ledger()
        self._path = path
        self._file = -1
        try:
            # A pipe would block on opening.
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            self._found = os.fstat(self._file)
        except OSError as error:
            self.close()
            raise DataError(f"{path}: cannot be read ({error.strerror}): check the path") from error
        if not stat.S_ISREG(self._found.st_mode):
            self.close()
            raise DataError(f"{path}: not a file: check the path")

    @property
    def size(self) -> int:
        """Bytes of the file when it was opened."""
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

    def _read(self, span: Span, purpose: Purpose) -> bytes:
        parts = []
        at = span.start
        try:
            now = os.stat(self._path)
            while at < span.stop:
                part = os.pread(self._file, span.stop - at, at)
                if not part:
                    break
                parts.append(part)
                at += len(part)
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read ({error.strerror})") from error
        finally:
            self.ledger.add(purpose, 1, at - span.start)
        if at < span.stop or _identity(now) != _identity(self._found):
            raise _replaced(self.name)
        return b"".join(parts)

    def close(self) -> None:
        """See `Transport`."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _identity(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _replaced(name: str) -> DataError:
    return DataError(f"{name}: was replaced while it was being read; run the same again for the new one")


class _Again(Exception):
    """Why a request failed that may succeed when repeated."""


class _PrivateAddress(Exception):
    pass


class HttpFile:
    """Ranges of a file behind HTTP(S), ``in_flight`` requests at a time.

    Args:
        url: http or https; may carry ``user:password@`` and a query, which are never shown.
        limit: seconds a range may take, all attempts together.
    """

    def __init__(
        self, url: str, limit: float = LIMIT, in_flight: int = IN_FLIGHT, first_pause: float = FIRST_PAUSE
    ) -> None:
        self.name = public_name(url)
        self.ledger = Ledger()
        self.in_flight = in_flight
        self._limit = limit
        self._first_pause = first_pause
        self._size = -1
        self._etag = self._modified = ""
        self._named = self._place = url
        self._lock = threading.Lock()
        self._pools = {public: _pools(in_flight, public) for public in (False, True)}
        self._threads = ThreadPoolExecutor(in_flight, thread_name_prefix="range")

    @property
    def size(self) -> int:
        """Bytes of the whole file by the server's word."""
        return self._size

    @property
    def version(self) -> str:
        """ETag, or time of the last change, and size."""
        return f"{self._size} bytes, {self._etag or self._modified or 'no version'}"

    def head(self, length: int) -> bytes:
        """See `Transport`."""
        return self._range(Span(0, length), "header")

    def read(self, spans: Sequence[Span], purpose: Purpose) -> list[bytes]:
        """See `Transport`."""
        work = [self._threads.submit(self._range, span, purpose) for span in spans]
        try:
            return [done.result() for done in work]
        finally:
            for left in work:
                left.cancel()
            wait(work)  # what is on its way still counts

    def close(self) -> None:
        """See `Transport`."""
        self._threads.shutdown()
        for pools in self._pools.values():
            pools.clear()

    def _range(self, span: Span, purpose: Purpose) -> bytes:
        deadline = time.monotonic() + self._limit
        pause, reason = self._first_pause, ""
        for attempt in range(ATTEMPTS):
            if attempt:
                wanted = pause * random.uniform(0.5, 1.5)
                time.sleep(min(wanted, max(0.0, deadline - time.monotonic())))
                pause *= 2
            if time.monotonic() >= deadline:
                break
            try:
                return self._follow(span, purpose, deadline)
            except _Again as why:
                reason = str(why)
        else:
            raise DataError(f"{self.name}: {reason}, {ATTEMPTS} times in a row; try again later")
        raise DataError(
            f"{self.name}: bytes {span.start} to {span.stop} took more than {self._limit:g} s"
            f"{f' ({reason})' if reason else ''}; try again later, or allow more with --limit"
        )

    def _follow(self, span: Span, purpose: Purpose, deadline: float) -> bytes:
        """One attempt, through redirects."""
        place = self._place
        for _ in range(REDIRECTS + 1):
            response = self._ask(place, span, deadline, purpose)
            try:
                if response.status not in _REDIRECTED:
                    if place != self._named and response.status in (401, 403):
                        self._place = self._named  # a signed address has run out; ask for a new one
                        raise _Again(f"the place it redirects to answers {response.status}")
                    body = self._body(response, span, deadline, purpose)
                    self._place = place
                    return body
                self._take(response, _PIECE, deadline, purpose)
                place = self._next(place, response.headers.get("Location", ""))
            finally:
                response.release_conn()
        raise DataError(f"{self.name}: redirects more than {REDIRECTS} times; give the address it leads to")

    def _next(self, place: str, location: str) -> str:
        try:
            following = urljoin(place, location)
        except ValueError:
            following = ""
        downgrade = place.lower().startswith("https:") and not following.lower().startswith("https:")
        if not location or not _is_http(following) or downgrade:
            raise DataError(f"{self.name}: redirects to {public_name(following)!r}, which is not followed")
        return following

    def _ask(self, place: str, span: Span, deadline: float, purpose: Purpose) -> urllib3.BaseHTTPResponse:
        headers = {
            "Range": f"bytes={span.start}-{span.stop - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": f"patchdrop/{VERSION}",
        }
        if self._etag and not self._etag.startswith("W/"):
            headers["If-Match"] = self._etag
        same_host = _host(place) == _host(self._named)
        if same_host:
            headers.update(_basic_auth(self._named))
        left = max(0.001, deadline - time.monotonic())
        try:
            response = self._pools[not same_host].request(
                "GET",
                _without_user(place),
                headers=headers,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
                timeout=urllib3.Timeout(connect=left, read=left),
            )
        except _PrivateAddress:
            raise DataError(
                f"{self.name}: redirects to {public_name(place)}, a private address, which is not followed"
            ) from None
        except SSLError as error:
            raise DataError(f"{self.name}: no secure connection ({_reason(error)}): check the address") from error
        except LocationValueError as error:
            raise DataError(f"{self.name}: no address of a server: check it") from error
        except HTTPError as error:
            raise _Again(f"no answer ({_reason(error)})") from error
        self.ledger.add(purpose, 1, 0)
        return response

    def _body(self, response: urllib3.BaseHTTPResponse, span: Span, deadline: float, purpose: Purpose) -> bytes:
        if response.status in _RETRIED:
            self._take(response, _PIECE, deadline, purpose)
            raise _Again(f"the server answers {response.status}")
        if response.status == 412:
            self._take(response, _PIECE, deadline, purpose)
            raise _replaced(self.name)
        if response.status != 206:
            response.close()  # not the whole file
            raise DataError(f"{self.name}: {_STATUS.get(response.status, f'the server answers {response.status}')}")
        try:
            expected = self._check(response, span)
        except DataError:
            response.close()
            raise
        body = self._take(response, expected + 1, deadline, purpose)
        if len(body) < expected:
            raise _Again(f"the server sends {len(body)} of {expected} bytes")
        if len(body) > expected:
            response.close()
            raise DataError(f"{self.name}: the server sends more than the range asked for; it cannot be read in parts")
        return body

    def _check(self, response: urllib3.BaseHTTPResponse, span: Span) -> int:
        """The length of the body by the headers, after comparing them with what was asked."""
        content = response.headers.get("Content-Range", "")
        try:
            unit, _, rest = content.partition(" ")
            sent, _, total_text = rest.partition("/")
            first, last = (int(n) for n in sent.split("-"))
            total = int(total_text)
        except ValueError:
            unit, first, last, total = "", -1, -1, -1
        stop = min(span.stop, total)
        length = int(response.headers.get("Content-Length", stop - span.start))
        if (unit, first, last + 1) != ("bytes", span.start, stop) or length != stop - span.start:
            raise DataError(
                f"{self.name}: the server sends {content or 'an unnamed range'} where bytes "
                f"{span.start}-{span.stop - 1} were asked for; it cannot be read in parts"
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DataError(f"{self.name}: the server compresses ranges; it cannot be read in parts")
        found = response.headers.get("ETag", ""), response.headers.get("Last-Modified", ""), total
        with self._lock:
            if self._size < 0:
                self._etag, self._modified, self._size = found
        if found != (self._etag, self._modified, self._size):
            raise _replaced(self.name)
        return stop - span.start

    def _take(self, response: urllib3.BaseHTTPResponse, most: int, deadline: float, purpose: Purpose) -> bytes:
        """Up to ``most`` bytes of a body, counted as they come; fewer where the connection breaks."""
        parts: list[bytes] = []
        got = 0
        while got < most:
            left = deadline - time.monotonic()
            connection = cast("HTTPConnection | None", response.connection)
            if left <= 0:
                response.close()
                raise _Again(f"{got} bytes so far")
            if connection is not None and connection.sock is not None:
                connection.sock.settimeout(left)
            try:
                part = response.read1(min(_PIECE, most - got))
            except HTTPError:
                response.close()
                break
            if not part:
                break
            self.ledger.add(purpose, 0, len(part))
            parts.append(part)
            got += len(part)
        return b"".join(parts)


_STATUS = {
    200: "the server ignores ranges and sends the whole file; copy it to a server that knows them, or download it",
    401: "the server wants a login (401); give it as https://user:password@host/...",
    403: "the server refuses to send it (403); check its permissions or the address's signature",
    404: "no such file on the server (404); check the address",
    416: "the server holds no such bytes (416); the file is empty or was cut short",
}


def _pools(in_flight: int, public: bool) -> urllib3.PoolManager:
    manager = urllib3.PoolManager(num_pools=4, maxsize=in_flight)
    if public:
        manager.pool_classes_by_scheme = {"http": _PublicPool, "https": _PublicSecurePool}
    return manager


class _PublicConnection(HTTPConnection):
    def connect(self) -> None:
        super().connect()
        _require_public(self)


class _PublicSecureConnection(HTTPSConnection):
    def connect(self) -> None:
        super().connect()
        _require_public(self)


class _PublicPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PublicConnection


class _PublicSecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PublicSecureConnection


def _require_public(connection: HTTPConnection) -> None:
    """Nothing was asked yet: a private address gets no request."""
    address = ipaddress.ip_address(connection.sock.getpeername()[0].partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
        address = address.ipv4_mapped
    if not address.is_global or address.is_multicast:
        connection.close()
        raise _PrivateAddress


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def _basic_auth(url: str) -> dict[str, str]:
    user = urlsplit(url).netloc.rpartition("@")[0]
    return urllib3.make_headers(basic_auth=unquote(user)) if user else {}


def _reason(error: Exception) -> str:
    """What lies under urllib3's wrapping, in a few words and without the address."""
    cause = error.__cause__ or error.__context__ or error
    text = getattr(cause, "strerror", None) or type(cause).__name__
    return str(text)
