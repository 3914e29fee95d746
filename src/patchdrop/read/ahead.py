"""Read ahead: what comes next is on its way while what is there is worked on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from patchdrop.tiff.decode import DECODERS

T = TypeVar("T")


def one_ahead(items: Iterable[T]) -> Iterator[T]:
    """Yield the same items, each once the next one has been made, whose bytes then come while this one is worked on."""
    waiting: list[T] = []
    for item in items:
        yield from waiting
        waiting = [item]
    yield from waiting


@contextmanager
def decoders(count: int = DECODERS) -> Iterator[ThreadPoolExecutor]:
    """Run threads that decode images; at the end, however it comes, what they have not begun is dropped."""
    threads = ThreadPoolExecutor(count, "decode")
    try:
        yield threads
    finally:
        threads.shutdown(cancel_futures=True)
