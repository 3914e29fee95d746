"""From a user's words to the transport that fits them."""

from __future__ import annotations

import threading
from pathlib import Path

from patchdrop.errors import UsageError
from patchdrop.read.http import HttpFile, is_http
from patchdrop.read.remote import IN_FLIGHT, LIMIT
from patchdrop.read.transport import LocalFile, Transport, is_url, public_name


def open_transport(
    source: str, limit: float = LIMIT, in_flight: int = IN_FLIGHT, stop: threading.Event | None = None
) -> Transport:
    """A transport for a file's path or an http(s) URL.

    Args:
        limit: seconds a range may take over a network.
        in_flight: ranges asked for at a time over a network.
        stop: no request is begun once it is set.

    Raises:
        UsageError: a URL of another kind.
        DataError: no such file.
    """
    if not is_url(source):
        return LocalFile(Path(source))
    if not is_http(source):
        raise UsageError(f"{public_name(source)}: give a file, or a whole URL that begins with http:// or https://")
    return HttpFile(source, limit, in_flight, stop=stop)
