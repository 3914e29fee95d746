"""A server of byte ranges on loopback that counts what it sends, and can be told to misbehave.

    python tests/range_server.py FOLDER SECONDS

serves the files of a folder from a process of its own, ``SECONDS`` after each request, prints its address, and answers
each line of stdin with what was asked and sent since the last one, as a line of JSON; it ends with stdin.
"""

from __future__ import annotations

import json
import mmap
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NamedTuple


class Asked(NamedTuple):
    """One request: its path, and the range as ``start, stop``, stop just outside."""

    path: str
    start: int
    stop: int


class RangeServer(ThreadingHTTPServer):
    """Serves ``files`` (path -> bytes, or a map of a file).

    Attributes:
        asked: every request, in the order in which they came.
        sent: bytes of bodies.
        delay: seconds before each answer.
        misbehave: if set, called with the handler and what was asked first; True: it has answered.
    """

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes | mmap.mmap] = {}
        self.etags: dict[str, str] = {}
        self.asked: list[Asked] = []
        self.sent = 0
        self.delay = 0.0
        self.misbehave: Callable[[_Handler, Asked], bool] | None = None
        self.lock = threading.Lock()

    def url(self, path: str) -> str:
        """The address of a file."""
        return f"http://127.0.0.1:{self.server_address[1]}/{path}"

    def taken(self) -> tuple[list[Asked], int]:
        """What was asked and sent, which is then forgotten."""
        with self.lock:
            found = self.asked, self.sent
            self.asked, self.sent = [], 0
        return found

    def reset(self) -> None:
        """Forget what was asked and sent."""
        self.taken()

    def handle_error(self, *_: object) -> None:
        """A client that hangs up is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        """Asked by GDAL; not counted, because it has no body."""
        time.sleep(self.server.delay)
        content = self.server.files.get(self.path.lstrip("/").partition("?")[0])
        self.send_response(404 if content is None else 200)
        self.send_header("Content-Length", str(len(content or b"")))
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()

    def do_GET(self) -> None:
        path = self.path.lstrip("/").partition("?")[0]
        first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
        content = self.server.files.get(path, b"")
        asked = Asked(path, int(first), min(int(last or len(content) - 1) + 1, len(content)))
        with self.server.lock:
            self.server.asked.append(asked)
        time.sleep(self.server.delay)
        if self.server.misbehave and self.server.misbehave(self, asked):
            return
        etag = self.server.etags.get(path)
        if path not in self.server.files:
            self.answer(404, b"no such file")
        elif etag and self.headers.get("If-Match", etag) != etag:
            self.answer(412, b"")
        elif etag and self.headers.get("If-None-Match") == etag:
            self.answer(304, b"", ETag=etag)
        else:
            self.part(asked)

    def part(self, asked: Asked, **headers: str) -> None:
        """The range that was asked for."""
        content = self.server.files[asked.path]
        found = {"Content-Range": f"bytes {asked.start}-{asked.stop - 1}/{len(content)}"}
        if asked.path in self.server.etags:
            found["ETag"] = self.server.etags[asked.path]
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        self.answer(206, content[asked.start : asked.stop], **{**found, **named})

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        """Any answer, counted."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        with self.server.lock:
            self.server.sent += len(body)
        self.wfile.write(body)


@contextmanager
def range_server() -> Iterator[RangeServer]:
    """A running server."""
    server = RangeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def main(folder: Path, delay: float) -> None:
    """Serve a folder until stdin ends."""
    with range_server() as server:
        server.delay = delay
        for path in folder.iterdir():
            with path.open("rb") as file:
                server.files[path.name] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        print(server.url(""), flush=True)
        for _ in sys.stdin:
            asked, sent = server.taken()
            print(json.dumps({"asked": asked, "sent": sent}), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
