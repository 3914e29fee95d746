"""Open the transport that fits a path, URL or store address."""

from __future__ import annotations

import threading
from pathlib import Path

from patchdrop.errors import UsageError
from patchdrop.transport.cache import Cached
from patchdrop.transport.http import HttpFile, is_http
from patchdrop.transport.ranges import LocalFile, Transport, is_url, public_name
from patchdrop.transport.remote import IN_FLIGHT, LIMIT, RemoteFile
from patchdrop.transport.stores import StoreFile, is_store, split_address


def check_address(source: str) -> None:
    """Raise UsageError for a URL of a kind that cannot be opened."""
    if is_store(source):
        split_address(source)
    elif is_url(source) and not is_http(source):
        raise UsageError(
            f"{public_name(source)}: give a file, a whole URL that begins with http:// or https://, or s3://, gs:// or "
            "az:// with bucket and key"
        )


def open_transport(
    source: str,
    limit: float = LIMIT,
    in_flight: int = IN_FLIGHT,
    stop: threading.Event | None = None,
    cache: Path | None = None,
) -> Transport:
    """Return a transport for a file's path, an http(s) URL, or the address of an object in a store.

    Args:
        limit: seconds a range may take over a network.
        in_flight: ranges asked for at a time over a network.
        stop: no request is begun once it is set.
        cache: folder that keeps headers and overviews of what lies behind a network; None: they are not kept.

    Raises:
        UsageError: a URL of another kind.
        DataError: no such file.
        RunError: the cache cannot be used.
    """
    check_address(source)
    if not is_url(source):
        return LocalFile(Path(source))
    kind = StoreFile if is_store(source) else HttpFile
    remote: RemoteFile = kind(source, limit, in_flight, stop=stop)
    return remote if cache is None else Cached(remote, source, cache)
