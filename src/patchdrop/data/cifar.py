"""Load CIFAR-10 and CIFAR-100 as published into memory.

Two of the published versions are read. The binary one is fixed-size records and is parsed here. The Python
one is pickles, which run code when they are opened: it goes through torchvision, which compares each file's
MD5 with the published one before it opens any, so that only the authors' own files are ever unpickled.
Nothing is downloaded.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from patchdrop.data.listing import CIFAR_FOLDERS
from patchdrop.errors import DataError, UsageError

if TYPE_CHECKING:
    from torchvision.datasets import CIFAR10

_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class _Binary:
    """The file layout of a data set's binary version."""

    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    classes: int
    labels: int
    """Label bytes before a record's pixels; the last of them is the class."""
    train_records: int
    """Records in each file of train."""
    test_records: int


_BINARY = {
    "cifar10": _Binary(
        tuple(f"data_batch_{i}.bin" for i in range(1, 6)),
        ("test_batch.bin",),
        "batches.meta.txt",
        classes=10,
        labels=1,
        train_records=10_000,
        test_records=10_000,
    ),
    "cifar100": _Binary(
        ("train.bin",),
        ("test.bin",),
        "fine_label_names.txt",
        classes=100,
        labels=2,  # coarse, fine
        train_records=50_000,
        test_records=10_000,
    ),
}


def load_cifar(root: Path, layout: str) -> tuple[tuple[str, ...], dict[str, tuple[Tensor, Tensor]]]:
    """Load a whole data set.

    Args:
        root: the folder with ``cifar-10-batches-bin`` or ``cifar-10-batches-py`` (``cifar-100-binary`` or
            ``cifar-100-python``) in it, or that folder itself; the binary version is preferred.
        layout: ``cifar10`` or ``cifar100`` (its 100 fine classes).

    Returns:
        Class names in the published order; and for ``train`` and ``test`` the images, uint8
        ``(n, 3, 32, 32)`` RGB, and the class indices, int64 ``(n,)``.

    Raises:
        DataError: the files are not there, cut short or not the published ones.
    """
    if layout not in CIFAR_FOLDERS:
        raise UsageError(f"layout {layout!r}: CIFAR is {' or '.join(CIFAR_FOLDERS)}")
    binary, python = CIFAR_FOLDERS[layout]
    root = root.resolve()
    parent = root.parent if root.name in (binary, python) else root
    if (parent / binary).is_dir() and root.name != python:
        return _load_binary(parent / binary, _BINARY[layout])
    if (parent / python).is_dir():
        from torchvision.datasets import CIFAR10, CIFAR100  # late: it takes seconds, and most data are none of these

        return _load_python(parent, CIFAR10 if layout == "cifar10" else CIFAR100)
    raise DataError(f"{root}: no {binary} or {python} folder: unpack the published {layout} archive here")


def _load_binary(folder: Path, form: _Binary) -> tuple[tuple[str, ...], dict[str, tuple[Tensor, Tensor]]]:
    names = _names(folder / form.names, form.classes)
    return names, {
        "train": _joined(_records(folder / file, form, form.train_records) for file in form.train),
        "test": _joined(_records(folder / file, form, form.test_records) for file in form.test),
    }


def _names(file: Path, classes: int) -> tuple[str, ...]:
    try:
        names = tuple(file.read_text(encoding="ascii").split())
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read ({error}): unpack the archive again") from error
    if len(names) != classes:
        raise DataError(f"{file}: {len(names)} class names where {classes} belong: unpack the archive again")
    return names


def _records(file: Path, form: _Binary, records: int) -> tuple[Tensor, Tensor]:
    """Read images and classes of one file, whose size must be exactly that of ``records`` records."""
    length = form.labels + _PIXELS
    try:
        size = file.stat().st_size
        if size != records * length:
            raise DataError(f"{file}: {size} bytes where {records * length} belong: unpack the archive again")
        table = np.fromfile(file, np.uint8).reshape(records, length)
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error}): unpack the archive again") from error
    classes = table[:, form.labels - 1].astype(np.int64)
    if classes.max() >= form.classes:
        raise DataError(f"{file}: class {classes.max()} of {form.classes}: unpack the archive again")
    images = np.ascontiguousarray(table[:, form.labels :]).reshape(records, 3, 32, 32)
    return torch.from_numpy(images), torch.from_numpy(classes)


def _joined(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, classes = zip(*parts, strict=True)
    return torch.cat(images), torch.cat(classes)


def _load_python(parent: Path, kind: type[CIFAR10]) -> tuple[tuple[str, ...], dict[str, tuple[Tensor, Tensor]]]:
    try:
        train, test = kind(parent, train=True, download=False), kind(parent, train=False, download=False)
    except (RuntimeError, OSError) as error:
        raise DataError(
            f"{parent / kind.base_folder}: not all of the published files: unpack the archive again"
        ) from error
    return tuple(train.classes), {"train": _held(train), "test": _held(test)}


def _held(loaded: CIFAR10) -> tuple[Tensor, Tensor]:
    """Turn torchvision's ``(n, 32, 32, 3)`` into ``(n, 3, 32, 32)``."""
    images = np.ascontiguousarray(loaded.data.transpose(0, 3, 1, 2))
    return torch.from_numpy(images), torch.tensor(loaded.targets, dtype=torch.int64)
