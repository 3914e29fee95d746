"""Read byte ranges of an object in S3, Google Cloud Storage or Azure Blob Storage, through obstore.

Credentials, region and endpoint come from the environment, as obstore reads it (``AWS_...``, ``GOOGLE_...``,
``AZURE_...``), and from nowhere else. obstore repeats nothing here, so that each request is ours and is counted. What
its errors say is never shown, because it may hold parts of a signature; only the status is taken from it.

Bytes of bodies are counted as they arrive, except those of error pages, which obstore keeps to itself.
"""

from __future__ import annotations

import re
import threading
import time
from typing import TYPE_CHECKING

from patchdrop.errors import DataError, UsageError
from patchdrop.transport.ledger import Purpose
from patchdrop.transport.ranges import Span, Stopped, public_name, replaced
from patchdrop.transport.remote import FIRST_PAUSE, IN_FLIGHT, LIMIT, NotModified, RemoteFile, Retryable, Version

if TYPE_CHECKING:
    from obstore import GetOptions

VARIABLES = {"s3": "AWS", "gs": "GOOGLE", "az": "AZURE_STORAGE"}
"""Scheme -> prefix of its environment variables."""


def is_store(source: str) -> bool:
    """Check whether a text names an object in a store."""
    return source.partition("://")[0] in VARIABLES and "://" in source


def split_address(url: str) -> tuple[str, str, str]:
    """Return scheme, bucket (or container) and key of an object.

    Raises:
        UsageError: a part is missing, or there is more than these.
    """
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    if not bucket or not key or "@" in bucket or any(mark in rest for mark in "?#"):
        raise UsageError(f"{public_name(url)}: write {scheme}://bucket/key; credentials come from the environment")
    return scheme, bucket, key


class StoreFile(RemoteFile):
    """An object in a store, read in ranges.

    Args:
        url: ``s3://bucket/key``, ``gs://bucket/key`` or ``az://container/key``.
        limit, in_flight, first_pause, stop: see `RemoteFile`; one attempt, too, is given up after ``limit`` seconds.

    Raises:
        UsageError: obstore is not installed, the address is none, or the environment does not say enough.
    """

    def __init__(
        self,
        url: str,
        limit: float = LIMIT,
        in_flight: int = IN_FLIGHT,
        first_pause: float = FIRST_PAUSE,
        stop: threading.Event | None = None,
    ) -> None:
        scheme, bucket, key = split_address(url)
        super().__init__(url, limit, in_flight, first_pause, stop)
        try:
            import obstore
            from obstore import exceptions, store
        except ImportError as error:
            raise UsageError(f"{url}: object stores need obstore: pip install 'patchdrop[stores]'") from error
        self._get, self._errors, self._key = obstore.get, exceptions, key
        self._variables = f"{VARIABLES[scheme]}_..."
        wait = f"{limit:g}s"
        try:
            self._store = store.from_url(
                f"{scheme}://{bucket}",
                # An endpoint without TLS is used only where the environment names one.
                client_options={"timeout": wait, "connect_timeout": wait, "allow_http": True},
                retry_config={"max_retries": 0},
            )
        except (exceptions.BaseError, ValueError) as error:
            raise UsageError(
                f"{url}: the environment does not say how to reach it; set the variables {self._variables}"
            ) from error

    def _attempt(self, span: Span, purpose: Purpose, deadline: float) -> bytes:
        self.ledger.add(purpose, 1, 0)
        options: GetOptions = {"range": (span.start, span.stop)}
        if self.found is not None and self.found.strong:
            options["if_match"] = self.found.etag
        if self._known is not None:
            options["if_none_match"] = self._known.etag
        parts = []
        try:
            answer = self._get(self._store, self._key, options=options)
            meta = answer.meta
            for part in answer.stream(min_chunk_size=1):
                parts.append(bytes(part))
                self.ledger.add(purpose, 0, len(parts[-1]))
                if self._stop.is_set():
                    raise Stopped
                if time.monotonic() > deadline:
                    raise Retryable(f"{sum(map(len, parts))} bytes so far")
        except self._errors.NotModifiedError:
            raise NotModified from None
        except self._errors.PreconditionError:
            raise replaced(self.name) from None
        except FileNotFoundError:
            raise DataError(f"{self.name}: no such object in the store; check the address") from None
        except (self._errors.BaseError, OSError, ValueError) as error:
            raise self._reason(error) from None
        self._same(Version(meta["size"], meta["e_tag"] or "", str(meta["last_modified"] or "")))
        stop = min(span.stop, meta["size"])
        body = b"".join(parts)
        if tuple(answer.range) != (span.start, stop) or len(body) != stop - span.start:
            raise Retryable(f"the store sends {len(body)} of {stop - span.start} bytes")
        return body

    def _reason(self, error: Exception) -> Exception:
        """Return an error of ours for one of obstore's: its kind and status, none of its words."""
        found = re.search(r"status code: (\d{3})", str(error))
        status = int(found.group(1)) if found else 0
        refused = (self._errors.PermissionDeniedError, self._errors.UnauthenticatedError)
        if isinstance(error, refused) or status in (401, 403):
            return DataError(
                f"{self.name}: the store refuses to send it; check the credentials in the variables {self._variables}"
            )
        if isinstance(error, ValueError):
            return DataError(f"{self.name}: no valid name of an object; correct it")
        if "non-partial" in str(error):
            return DataError(f"{self.name}: the store ignores ranges; it cannot be read in parts")
        if status and status != 429 and status < 500:
            return DataError(f"{self.name}: the store answers {status}; check address, region and endpoint")
        return Retryable(f"the store answers {status}" if status else "no answer from the store, or a broken one")
