"""Record where a result comes from: command, commit, machine, versions."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("patchdrop", "torch", "torchvision", "timm", "numpy", "pillow", "safetensors", "scikit-learn")


def provenance(seed: int) -> dict[str, Any]:
    """Return what to print beside every figure."""
    return {
        "command": command(),
        "commit": commit(),
        "machine": machine(),
        "seed": seed,
        "versions": versions(),
    }


def command() -> str:
    """Return the command line, with the program's name rather than its path."""
    program = Path(sys.argv[0])
    name = program.parent.name if program.name == "__main__.py" else program.name  # as `python -m NAME` has it
    return " ".join([name, *sys.argv[1:]])


def commit() -> str:
    """Return the commit of the source tree this package runs from, with ``+changes`` if edited; else the version."""
    here = Path(__file__).resolve().parent
    git = ["git", "-C", str(here)]
    try:
        tracked = subprocess.run([*git, "ls-files", "--error-unmatch", __file__], capture_output=True, check=False)
        if tracked.returncode != 0:
            return f"version {versions().get('patchdrop', 'unknown')}"
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        edited = subprocess.run([*git, "status", "--porcelain", "--", "."], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head + ("+changes" if edited.stdout.strip() else "")


def machine() -> str:
    """Describe processor, cores and memory, without the host's name."""
    name = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        name = f"{name}, {os.cpu_count()} cores, {memory:.0f} GiB"
    except (OSError, StopIteration, ValueError):
        pass
    if "torch" in sys.modules:
        import torch

        if torch.cuda.is_available():
            name += f", {torch.cuda.get_device_name()}"
    return name


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that affect figures."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
