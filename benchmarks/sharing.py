"""Measure work that several processes share: kills, overhead, damaged files, and a very long list.

    python benchmarks/sharing.py RUN results/sharing

Makes scenes and images of noise in a folder of its own, and has them predicted by commands as a user types them: by one
process, by two with ``--shard``, and by two workers, some of which are killed at random. Writes ``results.json``.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rasterio
from PIL import Image
from rasterio.transform import from_origin

from patchdrop.cluster.spread import spread
from patchdrop.settings.spread import Spread

SCENES, KILLS = 400, 20
IMAGES, DAMAGED = 1000, 10
ROWS = 1_000_000
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}
# Where the poisoned scene is opened in a worker, the worker dies, as for want of memory.
HOOK = """import multiprocessing, os, sys
def fall(event, given):
    if event == "open" and str(given[0]).endswith("poison.tif") and multiprocessing.parent_process():
        os.kill(os.getpid(), 9)
sys.addaudithook(fall)
"""


def make_scene(path: Path, side: int, seed: int) -> None:
    """Write a tiled GeoTIFF of noise with one overview."""
    pixels = np.random.default_rng(seed).integers(0, 256, (3, side, side), dtype=np.uint8)
    place = {"crs": "EPSG:32633", "transform": from_origin(500_000, 5_000_000 + seed, 1, 1)}
    tiles = {"tiled": True, "blockxsize": 64, "blockysize": 64, "compress": "deflate", "interleave": "pixel"}
    with rasterio.open(
        path, "w", driver="GTiff", width=side, height=side, count=3, dtype="uint8", **tiles, **place
    ) as file:
        file.write(pixels)
        file.build_overviews([4], rasterio.enums.Resampling.average)


def command(run: Path, inputs: object, out: Path, *more: object) -> subprocess.Popen[bytes]:
    """Start ``patchdrop predict``."""
    words = [sys.executable, "-m", "patchdrop", "predict", run, inputs, "--out", out, *more]
    return subprocess.Popen(
        [str(word) for word in words], env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def seconds(*start: Callable[[], subprocess.Popen[bytes]]) -> tuple[float, list[int]]:
    """Run commands side by side to their ends; seconds and exit codes."""
    begun = time.perf_counter()
    codes = [process.wait() for process in [one() for one in start]]
    return time.perf_counter() - begun, codes


def differences(left: Path, right: Path, without: str = "\0") -> list[str]:
    """Name the files that differ between two folders or are in one of them alone."""
    names = {
        str(p.relative_to(f)) for f in (left, right) for p in f.rglob("*") if p.is_file() and without not in p.name
    }
    return sorted(
        n
        for n in names
        if not (left / n).exists() or not (right / n).exists() or not filecmp.cmp(left / n, right / n, False)
    )


def workers_of(process: subprocess.Popen[bytes]) -> list[psutil.Process]:
    """The worker processes below a command: children of its nannies, which are below the command itself."""
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process.pid).children(recursive=True)
        return [child for child in found if "spawn_main" in " ".join(child.cmdline())]
    return []


def killed(run: Path, scenes: Path, alone: Path, folder: Path) -> dict[str, Any]:
    """Two workers, killed at random moments, and a scene that always kills them."""
    hook = folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(HOOK)
    poisoned = folder / "poisoned"
    shutil.copytree(scenes, poisoned)
    shutil.copy(next(scenes.iterdir()), poisoned / "poison.tif")
    ENVIRONMENT["PYTHONPATH"] = f"{hook}:{os.environ.get('PYTHONPATH', '')}"
    out = folder / "killed"
    draw, kills, begun = random.Random(0), 0, time.perf_counter()
    process = command(run, poisoned, out, "--workers", 2)
    while process.poll() is None:
        time.sleep(draw.uniform(0.5, 4))
        running = workers_of(process)
        if running and kills < KILLS:
            with contextlib.suppress(psutil.NoSuchProcess):
                draw.choice(running).send_signal(signal.SIGKILL)
                kills += 1
    ENVIRONMENT.pop("PYTHONPATH")
    taken = time.perf_counter() - begun
    summaries = [json.loads(path.read_text()) for path in out.glob("*.json")]
    expected = [json.loads(path.read_text()) for path in alone.glob("*.json")]
    return {
        "scenes": len(list(poisoned.iterdir())),
        "kills": kills,
        "seconds": taken,
        "exit_code": process.returncode,
        "finished": len(summaries),
        "differences": differences_by_stem(alone, out),
        "totals_equal": sorted(s["execution"]["total"]["bytes"] for s in summaries)
        == sorted(s["execution"]["total"]["bytes"] for s in expected),
    }


def differences_by_stem(left: Path, right: Path) -> int:
    """Count files of cells whose content differs, by the scene's own name, as the scenes lie in different folders."""

    def lines(folder: Path) -> dict[str, bytes]:
        return {path.name.rpartition("-")[0]: path.read_bytes() for path in folder.glob("*.jsonl")}

    mine, theirs = lines(left), lines(right)
    return sum(mine.get(name) != theirs.get(name) for name in {*mine, *theirs} - {"poison"})


def nothing(row: str) -> None:
    """Do nothing, on a worker."""


def long_list() -> dict[str, Any]:
    """A million pieces of work that do nothing, of which the first 20,000 are waited for."""
    first: list[float] = []
    begun = time.perf_counter()

    class Enough(Exception):
        pass

    done = 0

    def ended(*_: object) -> None:
        nonlocal done
        done += 1
        if not first:
            first.append(time.perf_counter() - begun)
        if done == 20_000:
            raise Enough

    names = [f"/archive/{number // 1000:04}/{number:07}.jpg" for number in range(ROWS)]
    listed = time.perf_counter() - begun
    with contextlib.suppress(Enough):
        spread(nothing, names, Spread(workers=2), ended, ended)
    return {
        "rows": ROWS,
        "seconds_to_list": listed,
        "seconds_to_first": first[0],
        "rows_a_second": 20_000 / (time.perf_counter() - begun - listed),
        "client_and_scheduler_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def main(run: Path, out: Path) -> None:
    """Measure, and write ``results.json``."""
    from patchdrop.runs.folder import RunFolder
    from patchdrop.runs.provenance import provenance

    # In a process of its own, without torch, which neither the list nor the scheduler needs.
    listed = subprocess.run([sys.executable, __file__, "--long-list"], capture_output=True, text=True, check=True)
    found: dict[str, Any] = {"long_list": json.loads(listed.stdout)}
    high = max(RunFolder(run).settings().shape.high)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scenes, images = folder / "scenes", folder / "images"
        scenes.mkdir()
        images.mkdir()
        for number in range(SCENES):
            make_scene(scenes / f"s{number:03}.tif", 8 * high, number)
        draw = np.random.default_rng(0)
        for number in range(IMAGES):
            path = images / f"{number:04}.png"
            Image.fromarray(draw.integers(0, 256, (high, high, 3), dtype=np.uint8)).save(path)
            if number % (IMAGES // DAMAGED) == 7:
                path.write_bytes(path.read_bytes()[:1000])
        for name, inputs, code in (("scenes", scenes, 0), ("images", images, 4)):
            ways: dict[str, list[Callable[[], subprocess.Popen[bytes]]]] = {
                "one": [lambda i=inputs, n=name: command(run, i, folder / f"{n}-one")],
                "shards": [
                    lambda i=inputs, n=name, s=s: command(run, i, folder / f"{n}-shards", "--shard", f"{s}/2")
                    for s in (1, 2)
                ],
                "workers": [lambda i=inputs, n=name: command(run, i, folder / f"{n}-workers", "--workers", 2)],
            }
            found[name] = {
                way: dict(zip(("seconds", "exit_codes"), seconds(*start), strict=True)) for way, start in ways.items()
            }
            for way in ("shards", "workers"):
                found[name][way]["differences"] = differences(folder / f"{name}-one", folder / f"{name}-{way}")
            assert found[name]["one"]["exit_codes"] == [code]
        found["killed"] = killed(run, scenes, folder / "scenes-one", folder)
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**found, "provenance": provenance(0)}, indent=2)
    (out / "results.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1] == "--long-list":
        print(json.dumps(long_list()))
    else:
        main(Path(sys.argv[1]), Path(sys.argv[2]))
