"""Write files that are whole or absent: under another name first, flushed to the disk, then renamed into place.

Tensors are safetensors, the rest is JSON; nothing here can run code on loading.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from safetensors import SafetensorError
from safetensors.torch import load as load_bytes
from safetensors.torch import save as save_bytes
from torch import Tensor

from patchdrop.errors import RunError


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a crash leaves the old one or the new one, never a part.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as error:
        _remove(beside)
        raise RunError(_why_not(path, len(content), error)) from error


@contextmanager
def writing(path: Path) -> Iterator[TextIO]:
    """Yield a file to write text to piece by piece, otherwise as `write_bytes`; if the block raises, nothing is left.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(beside, "w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(_why_not(path, None, error)) from error
    finally:
        _remove(beside)


def _remove(path: Path) -> None:
    with suppress(OSError):  # if it could not be made, for example below a file, it cannot be removed either
        path.unlink()


@contextmanager
def beside(path: Path) -> Iterator[Path]:
    """Yield a path for another library to write to, renamed to ``path`` at the end; otherwise as `writing`.

    Raises:
        RunError: the disk is full or the folder cannot be written.
    """
    other = path.with_name(f"{path.stem}.tmp{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        other.unlink(missing_ok=True)
        yield other
        with open(other, "rb") as file:
            os.fsync(file.fileno())
        os.replace(other, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise RunError(_why_not(path, None, error)) from error
    finally:
        other.unlink(missing_ok=True)


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
