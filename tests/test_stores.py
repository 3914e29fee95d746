"""Objects in stores: the same bytes, ledger, limits and error lines as over HTTP; nothing of a secret is shown.

moto stands for S3. What a store may do wrong is done by the tests' own range server, asked in S3's way.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from email.utils import formatdate
from pathlib import Path
from typing import Any

import pytest

from patchdrop.errors import DataError, UsageError
from patchdrop.transport.cache import Cached
from patchdrop.transport.ledger import Cost
from patchdrop.transport.opening import open_transport
from patchdrop.transport.ranges import Span
from patchdrop.transport.remote import ATTEMPTS
from patchdrop.transport.stores import StoreFile
from range_server import Asked, RangeServer, range_server

CONTENT = bytes(range(256)) * 400
SPANS = [Span(10, 20), Span(5000, 9000), Span(100_000, 102_400)]
URL = "s3://bucket/folder/a b.tif"
SECRETS = {"AWS_ACCESS_KEY_ID": "NOBODYSKEY", "AWS_SECRET_ACCESS_KEY": "hidden/word", "AWS_SESSION_TOKEN": "passing"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """What S3's tools read, for an endpoint."""

    def of(endpoint: str) -> None:
        for name, value in {**SECRETS, "AWS_REGION": "us-east-1", "AWS_ENDPOINT_URL": endpoint}.items():
            monkeypatch.setenv(name, value)

    return of


@pytest.fixture
def server(environment: Callable[[str], None]) -> Iterator[RangeServer]:
    """One object; every answer has the headers that S3's have."""
    with range_server() as running:
        running.files["bucket/folder/a%20b.tif"] = CONTENT
        running.etags["bucket/folder/a%20b.tif"] = '"one"'

        def dated(handler: Any, asked: Asked) -> bool:
            etag = running.etags.get(asked.path)
            if asked.path not in running.files or handler.headers.get("If-Match", etag) != etag:
                return False
            if handler.headers.get("If-None-Match") == etag:
                return False
            handler.part(asked, Last_Modified=formatdate(0, usegmt=True))
            return True

        running.misbehave = dated
        environment(running.url("").rstrip("/"))
        yield running


def opened(url: str = URL, limit: float = 5.0) -> StoreFile:
    return StoreFile(url, limit, first_pause=0.01)


def test_moto_as_s3_gives_the_bytes_that_were_put_there(environment: Callable[[str], None]) -> None:
    boto3 = pytest.importorskip("boto3")
    from moto.server import ThreadedMotoServer

    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    moto.start()
    try:
        host, port = moto.get_host_and_port()
        environment(f"http://{host}:{port}")
        client = boto3.client("s3", endpoint_url=f"http://{host}:{port}")
        client.create_bucket(Bucket="bucket")
        client.put_object(Bucket="bucket", Key="folder/a b.tif", Body=CONTENT)
        file = open_transport(URL)
        assert file.head(16) == CONTENT[:16]
        assert file.size == len(CONTENT)
        assert file.read(SPANS, "patch") == [CONTENT[s.start : s.stop] for s in SPANS]
        assert file.ledger.of("header") == Cost(1, 16)
        assert file.ledger.of("patch") == Cost(3, sum(s.length for s in SPANS))
        version = file.version
        client.put_object(Bucket="bucket", Key="folder/a b.tif", Body=CONTENT[1:])
        with pytest.raises(DataError, match="was replaced while it was being read"):
            file.read(SPANS[:1], "patch")
        file.close()
        assert version.startswith(f"{len(CONTENT)} bytes, ")
        with pytest.raises(DataError, match="no such object in the store"):
            opened("s3://bucket/none.tif").head(16)
    finally:
        moto.stop()


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_google_and_azure_are_asked_in_their_own_way_for_the_same_bytes(
    server: RangeServer, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    endpoint = server.url("").rstrip("/")
    key = {"gcs_base_url": endpoint, "disable_oauth": True, "client_email": "", "private_key": "", "private_key_id": ""}
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", json.dumps(key))
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "nobody")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "bm9ib2R5")
    monkeypatch.setenv("AZURE_STORAGE_ENDPOINT", endpoint)
    asked_as = {"gs": "bucket/folder%2Fa%20b%2Etif", "az": "bucket/folder/a%20b.tif"}[scheme]
    server.files = {asked_as: CONTENT}
    server.etags = {asked_as: '"one"'}
    file = opened(f"{scheme}://bucket/folder/a b.tif")
    assert file.head(16) == CONTENT[:16]
    assert file.size == len(CONTENT)
    assert file.read(SPANS, "patch") == [CONTENT[s.start : s.stop] for s in SPANS]
    assert file.ledger.total == Cost(len(server.asked), server.sent) == Cost(4, 16 + sum(s.length for s in SPANS))
    file.close()


def test_the_ledger_counts_what_the_server_counts_repeated_requests_too(server: RangeServer) -> None:
    file = opened()
    assert file.head(200_000) == CONTENT
    whole = server.misbehave
    failures = iter([503, 429, 0, 0, 500])

    def sometimes(handler: Any, asked: Asked) -> bool:
        status = next(failures, 0)
        if status:
            handler.answer(status, b"")
            return True
        return whole is not None and whole(handler, asked)

    server.misbehave = sometimes
    assert file.read(SPANS, "patch") == [CONTENT[s.start : s.stop] for s in SPANS]
    assert file.ledger.total == Cost(len(server.asked), server.sent) == Cost(7, server.sent)
    file.close()


def test_a_body_that_breaks_off_is_asked_for_again_and_counted(server: RangeServer) -> None:
    file = opened()
    file.head(10)
    whole, broken = server.misbehave, []

    def once(handler: Any, asked: Asked) -> bool:
        if broken:
            return whole is not None and whole(handler, asked)
        broken.append(asked)
        handler.send_response(206)
        content_range = f"bytes {asked.start}-{asked.stop - 1}/{len(CONTENT)}"
        headers = {"Content-Range": content_range, "ETag": '"one"', "Last-Modified": formatdate(0, usegmt=True)}
        for name, value in {**headers, "Content-Length": str(asked.stop - asked.start)}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(CONTENT[asked.start : asked.start + 40])
        handler.close_connection = True
        return True

    server.misbehave = once
    assert file.read([Span(0, 100)], "patch") == [CONTENT[:100]]
    assert file.ledger.of("patch").requests == 2 and file.ledger.of("patch").bytes in (100, 140)
    file.close()


@pytest.mark.parametrize(
    ("status", "words", "requests"),
    [
        (403, "refuses to send it; check the credentials in the variables AWS_...", 1),
        (401, "refuses to send it", 1),
        (400, "the store answers 400; check address, region and endpoint", 1),
        (404, "no such object in the store", 1),
        (412, "was replaced", 1),
        (200, "ignores ranges", 1),
        (503, f"the store answers 503, {ATTEMPTS} times in a row", ATTEMPTS),
    ],
)
def test_an_error_is_one_line_without_what_the_store_or_obstore_says(
    server: RangeServer, status: int, words: str, requests: int
) -> None:
    dated = {"Last_Modified": formatdate(0, usegmt=True), "ETag": '"one"'}
    server.misbehave = lambda handler, _: handler.answer(status, b"Signature=abc", **dated) or True
    file = opened()
    with pytest.raises(DataError) as error:
        file.head(10)
    said = str(error.value)
    assert said.startswith(f"{URL}: ") and words in said and "\n" not in said
    assert not any(secret in said for secret in (*SECRETS.values(), "Signature", "127.0.0.1"))
    assert file.ledger.total.requests == len(server.asked) == requests
    file.close()


def test_a_slow_store_ends_at_the_limit(server: RangeServer) -> None:
    server.delay = 2.0
    file = opened(limit=0.3)
    began = time.monotonic()
    with pytest.raises(DataError, match=r"took more than 0.3 s .* --limit"):
        file.head(10)
    assert time.monotonic() - began < 2
    file.close()


def test_a_cache_asks_a_store_once_whether_the_object_is_still_the_same(server: RangeServer, tmp_path: Path) -> None:
    for requests in (2, 1):
        server.reset()
        file = open_transport(URL, cache=tmp_path)
        assert isinstance(file, Cached)
        assert file.head(100) == CONTENT[:100]
        assert file.read(SPANS[1:2], "overview") == [CONTENT[5000:9000]]
        assert file.ledger.total == Cost(len(server.asked), server.sent) == Cost(requests, server.sent)
        assert (file.ledger.needed("header"), file.ledger.needed("overview")) == (Cost(1, 100), Cost(1, 4000))
        file.close()
    assert server.sent == 0


@pytest.mark.parametrize(
    "url", ["s3://bucket", "gs:///key", "az://me:word@container/key", "s3://bucket/key?token=word"]
)
def test_an_address_that_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(UsageError, match="credentials come from the environment") as error:
        open_transport(url)
    assert "word" not in str(error.value)


def test_what_is_missing_is_said_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_CONNECTION_STRING"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UsageError, match="set the variables AZURE_STORAGE_"):
        open_transport("az://container/key")
    monkeypatch.setitem(sys.modules, "obstore", None)
    with pytest.raises(UsageError, match="object stores need obstore: pip install 'patchdrop") as error:
        open_transport(URL)
    assert "\n" not in str(error.value)
