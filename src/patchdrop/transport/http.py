"""Read byte ranges of a file behind HTTP(S).

Retries, redirects and error pages are requests too and are counted.

What a server may do, and what follows
--------------------------------------
* Answers 429 or 5xx, closes or resets the connection, or sends too few bytes: asked again (`remote`).
* Ignores ranges, sends another range, more bytes than asked for or compressed ones: refused at once. The body of an
  answer that is the whole file is not read.
* Redirects: followed up to ``REDIRECTS`` times, from then on the new place is asked. A redirect to another host must
  lead to a public address (of the connection itself, so a name that resolves differently the second time does not
  help) and not from https to http. The URL that the user named may be anywhere.
* Sends slowly, headers or body: ``limit`` seconds a range, from the first attempt to the last byte.
* Has another version of the file than at the first read: told by If-Match, ETag, Last-Modified and the total size.
"""

from __future__ import annotations

import base64
import http.client
import io
import ipaddress
import socket
import threading
import time
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import ConnectTimeoutError, HTTPError, LocationValueError, NewConnectionError, SSLError

from patchdrop.errors import DataError
from patchdrop.transport.ledger import Purpose
from patchdrop.transport.ranges import Span, Stopped, public_name, replaced
from patchdrop.transport.remote import FIRST_PAUSE, IN_FLIGHT, LIMIT, NotModified, RemoteFile, Retryable, Version
from patchdrop.version import VERSION

REDIRECTS = 5
_PIECE = 2**16
_RETRIED = (429, 500, 502, 503, 504)
_REDIRECTED = (301, 302, 303, 307, 308)
_NAT64, _LOCAL_NAT64 = ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("64:ff9b:1::/48")


def is_http(url: str) -> bool:
    """Check for a complete http(s) URL."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets or a port that make no sense
        return False


class _PrivateAddress(Exception):
    pass


class HttpFile(RemoteFile):
    """A file behind HTTP(S), read in ranges.

    Args:
        url: http or https; may carry ``user:password@`` and a query, which are never shown.
        limit, in_flight, first_pause, stop: see `RemoteFile`.
    """

    def __init__(
        self,
        url: str,
        limit: float = LIMIT,
        in_flight: int = IN_FLIGHT,
        first_pause: float = FIRST_PAUSE,
        stop: threading.Event | None = None,
    ) -> None:
        super().__init__(public_name(url), limit, in_flight, first_pause, stop)
        self._named = self._place = url
        self._pools = {public: _pools(in_flight, public) for public in (False, True)}

    def close(self) -> None:
        """See `Transport`."""
        super().close()
        for pools in self._pools.values():
            pools.clear()

    def _attempt(self, span: Span, purpose: Purpose, deadline: float) -> bytes:
        """Ask once, following redirects."""
        place = self._place
        for _ in range(REDIRECTS + 1):
            response = self._ask(place, span, deadline, purpose)
            try:
                if response.status not in _REDIRECTED:
                    if place != self._named and response.status in (401, 403):
                        self._place = self._named  # a signed address has run out; ask for a new one
                        raise Retryable(f"the place it redirects to answers {response.status}")
                    body = self._body(response, span, deadline, purpose)
                    self._place = place
                    return body
                self._take(response, _PIECE, deadline, purpose)
                place = self._next(place, response.headers.get("Location", ""))
            finally:
                response.close()  # a connection whose answer was read to the end has gone back already
        raise DataError(f"{self.name}: redirects more than {REDIRECTS} times; give the address it leads to")

    def _next(self, place: str, location: str) -> str:
        try:
            following = urljoin(place, location)
        except ValueError:
            following = ""
        downgrade = place.lower().startswith("https:") and not following.lower().startswith("https:")
        if not location or not is_http(following) or downgrade:
            raise DataError(f"{self.name}: redirects to {public_name(following)!r}, which is not followed")
        return following

    def _ask(self, place: str, span: Span, deadline: float, purpose: Purpose) -> urllib3.BaseHTTPResponse:
        headers = {
            "Range": f"bytes={span.start}-{span.stop - 1}",
            "Accept-Encoding": "identity",
            "User-Agent": f"patchdrop/{VERSION}",
        }
        if self.found is not None and self.found.strong:
            headers["If-Match"] = self.found.etag
        if self._known is not None:
            headers["If-None-Match"] = self._known.etag
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
                timeout=urllib3.Timeout(total=left),
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
            if not isinstance(error, (NewConnectionError, ConnectTimeoutError)):
                self.ledger.add(purpose, 1, 0)  # it was sent
            raise Retryable(f"no answer ({_reason(error)})") from error
        self.ledger.add(purpose, 1, 0)
        return response

    def _body(self, response: urllib3.BaseHTTPResponse, span: Span, deadline: float, purpose: Purpose) -> bytes:
        if response.status in _RETRIED:
            self._take(response, _PIECE, deadline, purpose)
            raise Retryable(f"the server answers {response.status}")
        if response.status == 412:
            self._take(response, _PIECE, deadline, purpose)
            raise replaced(self.name)
        if response.status == 304 and self._known is not None:
            self._take(response, 1, deadline, purpose)  # reads nothing, but gives the connection back
            raise NotModified
        if response.status != 206:
            raise DataError(f"{self.name}: {_STATUS.get(response.status, f'the server answers {response.status}')}")
        expected = self._check(response, span)
        body = self._take(response, expected + 1, deadline, purpose)
        if len(body) < expected:
            raise Retryable(f"the server sends {len(body)} of {expected} bytes")
        if len(body) > expected:
            raise DataError(f"{self.name}: the server sends more than the range asked for; it cannot be read in parts")
        return body

    def _check(self, response: urllib3.BaseHTTPResponse, span: Span) -> int:
        """Return the length of the body by the headers, after comparing them with the request."""
        content = response.headers.get("Content-Range", "")
        try:
            unit, _, rest = content.partition(" ")
            sent, _, total_text = rest.partition("/")
            first, last = (int(n) for n in sent.split("-"))
            total = int(total_text)
        except ValueError:
            unit, first, last, total = "", -1, -1, -1
        stop = min(span.stop, total)
        length = response.headers.get("Content-Length", str(stop - span.start))
        if (unit, first, last + 1) != ("bytes", span.start, stop) or length != str(stop - span.start):
            raise DataError(
                f"{self.name}: the server sends {_quoted(content) or 'an unnamed range'} where bytes "
                f"{span.start}-{span.stop - 1} were asked for; it cannot be read in parts"
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise DataError(f"{self.name}: the server compresses ranges; it cannot be read in parts")
        self._same(Version(total, response.headers.get("ETag", ""), response.headers.get("Last-Modified", "")))
        return stop - span.start

    def _take(self, response: urllib3.BaseHTTPResponse, most: int, deadline: float, purpose: Purpose) -> bytes:
        """Read up to ``most`` bytes of a body, counted as they come; fewer if the connection breaks."""
        parts: list[bytes] = []
        got = 0
        while got < most:
            if self._stop.is_set():
                raise Stopped
            if time.monotonic() >= deadline:
                raise Retryable(f"{got} bytes so far")
            try:
                part = response.read1(min(_PIECE, most - got))
            except HTTPError:
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


class _Until(io.RawIOBase):
    """A socket's bytes until a deadline, however slowly they come; a socket's own timeout begins anew with each."""

    def __init__(self, sock: socket.socket, deadline: float) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=0)
        self._deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(max(0.001, self._deadline - time.monotonic()))
        return self._file.readinto(buffer)

    def close(self) -> None:
        self._file.close()
        super().close()


class _TimelyResponse(http.client.HTTPResponse):
    """A response whose headers and body must arrive within the socket's timeout at its start."""

    def __init__(self, sock: socket.socket, *args: Any, **options: Any) -> None:
        super().__init__(sock, *args, **options)
        self.fp.close()
        self.fp = io.BufferedReader(_Until(sock, time.monotonic() + (sock.gettimeout() or LIMIT)))


class _Connection(HTTPConnection):
    response_class = _TimelyResponse


class _SecureConnection(HTTPSConnection):
    response_class = _TimelyResponse


class _PublicConnection(_Connection):
    def connect(self) -> None:
        super().connect()
        _require_public(self)


class _PublicSecureConnection(_SecureConnection):
    def connect(self) -> None:
        super().connect()
        _require_public(self)


class _Pool(urllib3.HTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _SecureConnection


class _PublicPool(urllib3.HTTPConnectionPool):
    ConnectionCls = _PublicConnection


class _PublicSecurePool(urllib3.HTTPSConnectionPool):
    ConnectionCls = _PublicSecureConnection


def _pools(in_flight: int, public: bool) -> urllib3.PoolManager:
    manager = urllib3.PoolManager(num_pools=4, maxsize=in_flight)
    plain, secure = (_PublicPool, _PublicSecurePool) if public else (_Pool, _SecurePool)
    manager.pool_classes_by_scheme = {"http": plain, "https": secure}
    return manager


def _require_public(connection: HTTPConnection) -> None:
    """Close the connection to a private address before any request is sent."""
    if not is_public(connection.sock.getpeername()[0].partition("%")[0]):
        connection.close()
        raise _PrivateAddress


def is_public(text: str) -> bool:
    """Check that an IP address is on the open Internet, also an IPv4 address that an IPv6 one stands for."""
    address = ipaddress.ip_address(text)
    if isinstance(address, ipaddress.IPv6Address):
        translated = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else None
        address = address.ipv4_mapped or address.sixtofour or translated or address
    return address.is_global and not address.is_multicast and address not in _LOCAL_NAT64


def _host(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _without_user(url: str) -> str:
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2], fragment="").geturl()


def _basic_auth(url: str) -> dict[str, str]:
    user = urlsplit(url).netloc.rpartition("@")[0]
    return {"Authorization": f"Basic {base64.b64encode(unquote(user).encode()).decode()}"} if user else {}


def _quoted(said: str) -> str:
    """Shorten a server's text, and remove what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in said[:80])


def _reason(error: Exception) -> str:
    """Return the cause under urllib3's wrapping, in a few words and without the address."""
    cause = error.__cause__ or error.__context__ or error
    text = getattr(cause, "strerror", None) or type(cause).__name__
    return str(text)
