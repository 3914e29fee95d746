"""Write files that are whole or absent: under another name first, flushed to the disk, then renamed into place.

Tensors are safetensors, the rest is JSON; nothing here can run code on loading.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import hashlib
import io
import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from patchdrop.errors import RunError

UNFINISHED = ".tmp"
"""Marks the name of a file that is being written."""
MOST_BYTES = 210
"""Bytes of such a name that are the file's own, so that it is no longer than file systems allow."""


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    with _beside(path, len(content)) as other, _created(other) as file:
        file.write(content)


@contextmanager
def writing(path: Path, errors: str = "strict") -> Iterator[TextIO]:
    """Yield a file to write text to piece by piece, otherwise as `write_bytes`; if the block raises, nothing is left.

    Args:
        errors: what becomes of text that is no UTF-8, as for `open`.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    with _beside(path) as other, _created(other) as file:
        text = io.TextIOWrapper(file, "utf-8", errors, newline="\n")
        yield text
        text.detach()


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a path for another library to write to, renamed to ``path`` at the end; otherwise as `writing`.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    with _beside(path) as other:
        yield other
        with open(other, "rb") as file:
            os.fsync(file.fileno())


@contextmanager
def _beside(path: Path, size: int | None = None) -> Iterator[Path]:
    """Yield a name beside a file that nobody can guess, and rename it to the file's own at the end.

    Two processes that write the same file never write to the same name, and a link planted there is not followed.
    """
    stem = os.fsdecode(os.fsencode(path.stem)[:MOST_BYTES])
    other = path.with_name(f".{stem}.{secrets.token_hex(8)}{UNFINISHED}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield other
        os.replace(other, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(_why_not(path, size, error)) from error
    finally:
        with suppress(OSError):  # if it could not be made, for example below a file, it cannot be removed either
            other.unlink()


@contextmanager
def _created(path: Path) -> Iterator[BinaryIO]:
    """Yield a new file to write to, which is flushed to the disk at the end."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
    with open(handle, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def remove_unfinished(folder: Path, stem: str | None = None) -> None:
    """Remove what killed writers have left in a folder: of all files, or of ``STEM.csv``, ``STEM.map.tif`` and so on.

    Only whoever is the one writer of these files may call it.
    """
    named = "" if stem is None else glob.escape(stem) + "."
    for leftover in folder.glob(f".{named}*{UNFINISHED}*"):
        leftover.unlink(missing_ok=True)


@contextmanager
def claimed(path: Path) -> Iterator[bool]:
    """Claim a piece of work for this thread, by a lock on a file; yield False if someone else is at it.

    The system drops the claim of a process that dies, on this machine or, over a shared file system with locks, on
    another. The file is gone when the claim ends.

    Args:
        path: names the piece of work; the file is made there.

    Raises:
        RunError: the folder cannot be written, or its file system has no locks.
    """
    made = not path.parent.exists()
    handle = _opened(path)
    mine = False
    try:
        mine = _locked(handle, path)
        yield mine
    finally:
        if mine:
            path.unlink(missing_ok=True)
        os.close(handle)
        if made:  # a folder in which nothing was done is not left behind
            with suppress(OSError):
                path.parent.rmdir()


def _opened(path: Path) -> int:
    """Open the file of a claim, and make its folder, which whoever is done with it may remove at that moment."""
    for _ in range(100):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o666)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise RunError(_why_not(path, None, error)) from error
    raise RunError(f"{path.parent}: disappears as soon as it is made; choose another folder")


def _locked(handle: int, path: Path) -> bool:
    """Lock an open file; False if it is locked, or if whoever had it has removed it meanwhile."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        raise RunError(
            f"{path.parent}: cannot be shared, its file system has no locks ({error.strerror}); use another folder"
        ) from error


def _why_not(path: Path, size: int | None, error: OSError) -> str:
    """Say why a file cannot be written; ``size`` is None if it is not known beforehand."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        stat = os.statvfs(next(folder for folder in path.absolute().parents if folder.exists()))
        free = stat.f_bavail * stat.f_frsize
        needed = f"{free} bytes free" if size is None else f"{size} bytes needed and {free} free"
        return f"{path}: the disk is full, {needed}; make room and run the same again"
    return f"{path}: cannot be written ({error.strerror}); choose another folder"


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path, content: Any) -> None:
    """Write JSON (floats keep every bit); raises RunError as `write_bytes`."""
    write_bytes(path, (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        RunError: the file is missing, unreadable or not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise RunError(f"{path}: is damaged, not JSON ({error}); remove it and train that stage again") from error


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """Write a safetensors file and return its SHA-256; raises RunError as `write_bytes`."""
    content = save_bytes({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()})
    write_bytes(path, content)
    return hashlib.sha256(content).hexdigest()


def read_tensors(path: Path, sha256: str) -> dict[str, Tensor]:
    """Read a safetensors file whose checksum is known.

    Raises:
        RunError: the file is missing, or a single bit of it differs.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(
            f"{path}: cannot be read ({error.strerror}); remove its folder and train that stage again"
        ) from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise RunError(f"{path}: is damaged, its checksum differs; remove its folder and train that stage again")
    try:
        tensors = load_bytes(content)
    except SafetensorError as error:
        raise RunError(f"{path}: is no safetensors file ({error})") from error
    # The policy's critic was called outlook before.
    return {name.replace("policy.outlook.", "policy.critic."): tensor for name, tensor in tensors.items()}
