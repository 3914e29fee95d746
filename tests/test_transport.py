"""Transports: the bytes asked for and no others, counted to the byte, from servers good and bad."""

from __future__ import annotations

import base64
import itertools
import os
import socket
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchdrop.errors import DataError, UsageError
from patchdrop.transport import ranges as module
from patchdrop.transport.http import HttpFile, is_public
from patchdrop.transport.ledger import Cost, Ledger
from patchdrop.transport.opening import open_transport
from patchdrop.transport.ranges import LocalFile, Priced, Span, joined, public_name
from patchdrop.transport.remote import IN_FLIGHT
from range_server import Asked, RangeServer, range_server

CONTENT = bytes(range(256)) * 400
SPANS = [Span(10, 20), Span(5000, 9000), Span(100_000, 102_400)]


@pytest.fixture
def server() -> Iterator[RangeServer]:
    with range_server() as running:
        running.files["a.tif"] = CONTENT
        running.etags["a.tif"] = '"one"'
        yield running


@pytest.fixture
def remote(server: RangeServer) -> Iterator[HttpFile]:
    file = HttpFile(server.url("a.tif"), limit=2.0, first_pause=0.01)
    yield file
    file.close()


def test_a_ledger_adds_up_by_purpose() -> None:
    ledger = Ledger()
    ledger.add("header", 1, 100)
    ledger.add("patch", 2, 5)
    ledger.add("patch", 1, 7)
    assert ledger.of("patch") == Cost(3, 12)
    assert ledger.total == Cost(4, 112)
    assert ledger.to_json()["total"] == {"requests": 4, "bytes": 112}


def test_a_file_and_a_server_give_the_same_bytes_at_the_same_cost(
    server: RangeServer, remote: HttpFile, tmp_path: Path
) -> None:
    (tmp_path / "a.tif").write_bytes(CONTENT)
    local = LocalFile(tmp_path / "a.tif")
    for file in (local, remote):
        assert file.head(16) == CONTENT[:16]
        assert file.size == len(CONTENT)
        assert file.read(SPANS, "patch") == [CONTENT[start:stop] for start, stop in SPANS]
        assert file.ledger.of("header") == Cost(1, 16)
        assert file.ledger.of("patch") == Cost(3, 6410)
    assert {(a.start, a.stop) for a in server.asked} == {(0, 16), *SPANS}
    assert server.sent == remote.ledger.total.bytes


def test_a_short_file_is_read_whole_by_the_first_read(server: RangeServer) -> None:
    server.files["short.tif"] = b"II*\0" + bytes(96)
    file = HttpFile(server.url("short.tif"))
    assert file.head(16384) == server.files["short.tif"]
    assert file.ledger.total == Cost(1, 100)
    file.close()


@given(
    st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=20).map(
        lambda pairs: [Span(start, start + length) for start, length in pairs]
    ),
    st.integers(0, 50),
)
def test_joined_ranges_cover_what_is_wanted_and_nothing_beyond_the_gap(spans: list[Span], gap: int) -> None:
    wanted = {byte for span in spans for byte in range(*span)}
    requests = joined(spans, gap)
    covered = [byte for request in requests for byte in range(*request)]
    assert len(covered) == len(set(covered))
    assert wanted <= set(covered)
    if gap == 0:
        assert wanted == set(covered)
    for before, after in itertools.pairwise(requests):
        assert after.start - before.stop > gap
    longest = max((len(run) for run in _runs(sorted(set(covered) - wanted))), default=0)
    assert longest <= gap


def _runs(numbers: list[int]) -> list[list[int]]:
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return runs


def test_joining_stops_at_the_largest_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_JOINED", 100)
    assert joined([Span(i, i + 40) for i in range(0, 200, 40)], 0) == [Span(0, 80), Span(80, 160), Span(160, 200)]


def test_a_plan_counts_and_reads_nothing(server: RangeServer, remote: HttpFile) -> None:
    remote.head(16)
    ledger = Ledger()
    assert Priced(remote, ledger).read(SPANS, "patch") == [b"", b"", b""]
    assert ledger.of("patch") == Cost(3, 6410)
    assert len(server.asked) == 1


def test_many_requests_are_in_flight_at_once(server: RangeServer, remote: HttpFile) -> None:
    active = most = 0

    def slowly(handler: Any, asked: Asked) -> bool:
        nonlocal active, most
        with server.lock:
            active += 1
            most = max(most, active)
        time.sleep(0.05)
        with server.lock:
            active -= 1
        return False

    server.misbehave = slowly
    remote.read([Span(i, i + 1) for i in range(64)], "patch")
    assert 4 < most <= IN_FLIGHT


# --- servers that misbehave


def once(then: Callable[[Any, Asked], bool]) -> Callable[[Any, Asked], bool]:
    told: list[int] = []
    return lambda handler, asked: not told and (told.append(1), then(handler, asked))[1]


def status(code: int) -> Callable[[Any, Asked], bool]:
    return lambda handler, _: (handler.answer(code, b"busy"), True)[1]


def short(handler: Any, asked: Asked) -> bool:
    handler.send_response(206)
    handler.send_header("Content-Length", str(asked.stop - asked.start))
    handler.send_header("Content-Range", f"bytes {asked.start}-{asked.stop - 1}/{len(CONTENT)}")
    handler.send_header("ETag", '"one"')
    handler.end_headers()
    handler.wfile.write(CONTENT[asked.start : asked.start + 3])
    handler.server.sent += 3
    handler.close_connection = True
    return True


def reset(handler: Any, _: Asked) -> bool:
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.connection.close()
    handler.close_connection = True
    raise ConnectionResetError


@pytest.mark.parametrize("fault", [status(503), status(429), status(500), short], ids=["503", "429", "500", "short"])
def test_a_passing_fault_is_overcome_and_its_cost_is_counted(
    server: RangeServer, remote: HttpFile, fault: Callable[[Any, Asked], bool]
) -> None:
    remote.head(16)
    server.misbehave = once(fault)
    assert remote.read([Span(10, 1000)], "patch") == [CONTENT[10:1000]]
    assert remote.ledger.of("patch").requests == 2
    assert remote.ledger.total == Cost(len(server.asked), server.sent)


def test_a_connection_that_is_reset_is_made_again(server: RangeServer, remote: HttpFile) -> None:
    server.misbehave = once(reset)
    assert remote.read([Span(10, 1000)], "patch") == [CONTENT[10:1000]]
    assert remote.ledger.total.bytes == server.sent == 990
    assert remote.ledger.total.requests == len(server.asked) == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (status(503), "the server answers 503, 4 times in a row; try again later"),
        (short, "the server sends 3 of 990 bytes, 4 times in a row"),
        (reset, r"no answer \(.*\), 4 times in a row"),
    ],
    ids=["503", "short", "reset"],
)
def test_a_lasting_fault_is_one_line_after_four_attempts(
    server: RangeServer, remote: HttpFile, fault: Callable[[Any, Asked], bool], words: str
) -> None:
    remote.head(16)
    server.misbehave = fault
    with pytest.raises(DataError, match=rf"^http://127.0.0.1:\d+/a.tif: {words}") as caught:
        remote.read([Span(10, 1000)], "patch")
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 5


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (lambda h, a: (h.answer(200, CONTENT), True)[1], "the server ignores ranges"),
        (
            lambda h, a: (h.part(a, Content_Range=f"bytes 0-{a.stop - a.start - 1}/{len(CONTENT)}"), True)[1],
            "the server sends bytes 0-989/102400 where bytes 10-999 were asked for",
        ),
        (lambda h, a: (h.part(a, Content_Range="nonsense"), True)[1], "the server sends nonsense where"),
        (lambda h, a: (h.answer(206, CONTENT[10:1000]), True)[1], "the server sends an unnamed range where"),
        (lambda h, a: (h.part(a, Content_Encoding="gzip"), True)[1], "the server compresses ranges"),
        (lambda h, a: (h.part(a, ETag='"two"'), True)[1], "was replaced while it was being read"),
        (
            lambda h, a: (h.part(a, Content_Range=f"bytes {a.start}-{a.stop - 1}/999999"), True)[1],
            "was replaced while it was being read",
        ),
        (status(404), "no such file on the server"),
        (status(403), "refuses to send it"),
        (status(416), "holds no such bytes"),
        (status(418), "the server answers 418"),
    ],
    ids=["200", "wrong", "nonsense", "unnamed", "gzip", "etag", "size", "404", "403", "416", "418"],
)
def test_a_server_that_cannot_be_trusted_is_refused_at_once(
    server: RangeServer, remote: HttpFile, fault: Callable[[Any, Asked], bool], words: str
) -> None:
    remote.head(16)
    server.misbehave = fault
    with pytest.raises(DataError, match=words) as caught:
        remote.read([Span(10, 1000)], "patch")
    assert "\n" not in str(caught.value)
    assert len(server.asked) == 2
    assert remote.ledger.of("patch").bytes < 1000


def test_after_a_refusal_the_rest_of_what_was_asked_for_together_is_left_alone(server: RangeServer) -> None:
    file = HttpFile(server.url("a.tif"), limit=2.0, in_flight=1, first_pause=0.01)
    file.head(16)
    server.misbehave = lambda h, a: len(server.asked) > 5 and status(403)(h, a)
    answers = file.ask([Span(n, n + 1) for n in range(100, 200)], "patch")
    errors = [answer.exception(10) for answer in answers]
    assert errors[:4] == [None] * 4 and all(isinstance(error, DataError) for error in errors[4:])
    assert len(server.asked) == 1 + 4 + 1
    server.misbehave = None
    assert file.read(SPANS[:1], "patch") == [CONTENT[10:20]]
    file.close()


def test_a_longer_body_than_was_asked_for_is_refused(server: RangeServer, remote: HttpFile) -> None:
    def more(handler: Any, asked: Asked) -> bool:
        handler.send_response(206)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.send_header("Content-Range", f"bytes {asked.start}-{asked.stop - 1}/{len(CONTENT)}")
        handler.send_header("ETag", '"one"')
        handler.end_headers()
        handler.wfile.write(b"800\r\n" + bytes(2048) + b"\r\n0\r\n\r\n")
        return True

    server.misbehave = more
    with pytest.raises(DataError, match="more than the range asked for"):
        remote.read([Span(10, 1000)], "patch")


@pytest.mark.parametrize("etag", ['"one"', 'W/"one"', None], ids=["strong", "weak", "none"])
def test_a_scene_replaced_in_mid_run_is_noticed(server: RangeServer, etag: str | None) -> None:
    server.etags.clear()
    if etag:
        server.etags["a.tif"] = etag
    file = HttpFile(server.url("a.tif"))
    file.head(16)
    server.files["a.tif"] = CONTENT + b"more"
    if etag:
        server.etags["a.tif"] = etag.replace("one", "two")
    with pytest.raises(DataError, match=r"a\.tif: was replaced while it was being read; run the same again"):
        file.read([Span(10, 20)], "patch")
    file.close()


def test_a_server_that_drips_is_given_up_at_the_limit(server: RangeServer) -> None:
    def drip(handler: Any, asked: Asked) -> bool:
        handler.send_response(206)
        handler.send_header("Content-Length", str(asked.stop - asked.start))
        handler.send_header("Content-Range", f"bytes {asked.start}-{asked.stop - 1}/{len(CONTENT)}")
        handler.end_headers()
        for byte in CONTENT[asked.start : asked.stop]:
            handler.wfile.write(bytes([byte]))
            time.sleep(0.02)
        return True

    server.misbehave = drip
    file = HttpFile(server.url("a.tif"), limit=0.3)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"bytes 0 to 1000 took more than 0.3 s \(.*\); try again later"):
        file.head(1000)
    assert 0.25 < time.monotonic() - start < 2
    assert 5 <= file.ledger.total.bytes <= 20
    file.close()


def test_headers_that_drip_are_given_up_at_the_limit(server: RangeServer) -> None:
    def drip(handler: Any, _: Asked) -> bool:
        handler.wfile.write(b"HTTP/1.1 206 Partial Content\r\nServer: ")
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)
        return True

    server.misbehave = drip
    file = HttpFile(server.url("a.tif"), limit=0.3)
    start = time.monotonic()
    with pytest.raises(DataError, match=r"took more than 0.3 s"):
        file.head(1000)
    assert time.monotonic() - start < 2
    file.close()


def test_an_answer_that_is_not_read_to_its_end_does_not_spoil_the_next(server: RangeServer, remote: HttpFile) -> None:
    remote.head(16)
    server.misbehave = once(lambda handler, _: (handler.answer(503, bytes(10**6)), True)[1])
    assert remote.read([Span(10, 1000)], "patch") == [CONTENT[10:1000]]
    assert remote.ledger.of("patch").requests == len(server.asked) - 1 == 2


@pytest.mark.parametrize(
    "headers",
    [{"Content_Length": "abc"}, {"Content_Length": "990, 990"}, {"Content_Range": "bytes 1\r\n \x1b[31m" * 50}],
)
def test_headers_of_nonsense_are_one_short_line(server: RangeServer, remote: HttpFile, headers: dict[str, str]) -> None:
    remote.head(16)
    server.misbehave = lambda handler, asked: (handler.part(asked, **headers), True)[1]
    with pytest.raises(DataError, match="cannot be read in parts") as caught:
        remote.read([Span(10, 1000)], "patch")
    assert str(caught.value).isprintable() and len(str(caught.value)) < 250


def test_a_server_that_never_answers_is_given_up_at_the_limit(server: RangeServer) -> None:
    server.delay = 1.0
    file = HttpFile(server.url("a.tif"), limit=0.2)
    with pytest.raises(DataError, match=r"took more than 0.2 s"):
        file.head(1000)
    file.close()


def test_nobody_listening_is_one_line() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    file = HttpFile(f"http://127.0.0.1:{port}/a.tif", first_pause=0.01)
    with pytest.raises(DataError, match=r"no answer \(Connection refused\), 4 times in a row"):
        file.head(16)
    file.close()


# --- redirects


def test_a_redirect_on_the_same_server_is_followed_once_and_counted(server: RangeServer) -> None:
    def moved(handler: Any, asked: Asked) -> bool:
        if asked.path == "old.tif":
            handler.answer(302, b"moved", Location="/a.tif?signature=secret")
        return asked.path == "old.tif"

    server.misbehave = moved
    file = HttpFile(server.url("old.tif"))
    assert file.head(16) == CONTENT[:16]
    assert file.read(SPANS, "patch") == [CONTENT[start:stop] for start, stop in SPANS]
    assert [a.path for a in server.asked].count("old.tif") == 1
    assert file.ledger.total == Cost(5, server.sent)
    file.close()


def test_a_redirect_whose_signature_ran_out_is_asked_for_again(server: RangeServer) -> None:
    signatures = ["1"]

    def moved(handler: Any, asked: Asked) -> bool:
        if asked.path == "old.tif":
            handler.answer(302, b"", Location=f"/a.tif?{signatures[-1]}")
        elif not handler.path.endswith(signatures[-1]):
            handler.answer(403, b"")
        else:
            return False
        return True

    server.misbehave = moved
    file = HttpFile(server.url("old.tif"), first_pause=0.01)
    file.head(16)
    signatures.append("2")
    assert file.read([Span(5, 9)], "patch") == [CONTENT[5:9]]
    file.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]"])
def test_a_redirect_to_a_private_address_is_refused_before_anything_is_asked_there(
    server: RangeServer, host: str
) -> None:
    with range_server() as inner:
        inner.files["secret"] = CONTENT
        port = inner.server_address[1]
        server.misbehave = lambda h, _: (h.answer(302, b"", Location=f"http://{host}:{port}/secret"), True)[1]
        file = HttpFile(server.url("a.tif"), first_pause=0.01)
        with pytest.raises(DataError, match=r"redirects to .*/secret, a private address, which is not followed"):
            file.head(16)
        assert inner.asked == []
        file.close()


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("64:ff9b::5db8:d822", True),  # NAT64 of 93.184.216.34
        ("2002:5db8:d822::1", True),  # 6to4 of it
        ("::ffff:93.184.216.34", True),
        ("10.0.0.1", False),
        ("169.254.169.254", False),
        ("::1", False),
        ("224.0.0.1", False),
        ("::ffff:10.0.0.1", False),
        ("64:ff9b::a00:1", False),  # of 10.0.0.1
        ("64:ff9b::a9fe:a9fe", False),  # of 169.254.169.254
        ("64:ff9b:1::5db8:d822", False),
        ("2002:a00:1::1", False),
        ("2002:7f00:1::", False),
    ],
)
def test_an_address_that_stands_for_a_private_one_is_private(address: str, public: bool) -> None:
    assert is_public(address) == public


@pytest.mark.parametrize("location", ["ftp://example.org/a.tif", "file:///etc/passwd", "http://[::1", ""])
def test_a_redirect_to_something_else_than_http_is_refused(server: RangeServer, location: str) -> None:
    server.misbehave = lambda h, _: (h.answer(302, b"", Location=location), True)[1]
    file = HttpFile(server.url("a.tif"))
    with pytest.raises(DataError, match="which is not followed"):
        file.head(16)
    file.close()


def test_a_circle_of_redirects_ends(server: RangeServer) -> None:
    server.misbehave = lambda h, _: (h.answer(302, b"", Location="/a.tif"), True)[1]
    file = HttpFile(server.url("a.tif"))
    with pytest.raises(DataError, match="redirects more than 5 times"):
        file.head(16)
    file.close()


# --- names, files


def test_passwords_and_tokens_are_used_but_never_shown(server: RangeServer) -> None:
    seen: list[str | None] = []
    server.misbehave = lambda h, _: (seen.append(h.headers.get("Authorization")), False)[1]
    url = server.url("a.tif").replace("http://", "http://me:se%40cret@") + "?token=abc"
    assert public_name(url) == server.url("a.tif")
    file = HttpFile(url)
    assert file.name == server.url("a.tif")
    file.head(16)
    assert seen == ["Basic bWU6c2VAY3JldA=="]
    file.close()
    file = HttpFile(server.url("a.tif").replace("http://", "http://жe:x@"))
    file.head(16)
    assert seen[1] == "Basic " + base64.b64encode("жe:x".encode()).decode()
    file.close()


def test_a_name_that_cannot_be_shown_is_escaped_but_opened(tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"a\n\xff.tif")
    path.write_bytes(CONTENT)
    file = open_transport(str(path))
    assert file.name == f"{tmp_path}/a\\n\\udcff.tif" and file.head(16) == CONTENT[:16]
    file.close()


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://host/a.tif", "file:///etc/passwd", "hdfs://host/a.tif", "/vsicurl/http://h/a"),
        *("http://", "http:///a.tif", "http://[::1", "http://u:p@[x]/a", "http://h:99999/a", "http://h:x/a"),
    ],
)
def test_nothing_but_files_http_and_stores_is_opened(url: str) -> None:
    with pytest.raises((UsageError, DataError), match=r"http:// or https://|No such file"):
        open_transport(url)


def test_what_is_no_file_is_one_line(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path):
        with pytest.raises(DataError, match="not a file"):
            LocalFile(path)
    with pytest.raises(DataError, match="No such file"):
        LocalFile(tmp_path / "missing.tif")


@pytest.mark.parametrize("change", ["written", "replaced", "cut"])
def test_a_file_that_changes_in_mid_run_is_noticed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(CONTENT)
    file = LocalFile(path)
    file.head(16)
    if change == "written":
        path.write_bytes(CONTENT + b"more")
    elif change == "replaced":
        (tmp_path / "b.tif").write_bytes(CONTENT)
        (tmp_path / "b.tif").rename(path)
    else:
        os.truncate(path, 100)
    with pytest.raises(DataError, match="was replaced while it was being read"):
        file.read([Span(50, 200)], "patch")
    file.close()
