"""Bytes and time of reading chosen patches of a COG over HTTP, against reading all of it and against rasterio.

    PYTHONPATH=tests python benchmarks/ranges.py [JPEG|DEFLATE|WEBP] [--side 8192] [--delay 0.03] [--json]

A range server on loopback counts what it sends and waits before each answer. Patches are tiles of 512 px, cells are
2048 px.
``ratio`` is bytes on the wire over (header + overview + the chosen tiles' own bytes); the target is at most 1.05.
``speed`` is how many times faster than reading everything by the same reader; the target for 5 of 16 is 2.5.
rasterio reads the whole scene, in its default configuration but for listing the folder.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch

from patchdrop.grid import Grid
from patchdrop.provenance import machine
from patchdrop.read import tiled
from patchdrop.read.http import HttpFile
from patchdrop.read.tiled import Shape, TiledScene
from pyramids import picture, write_cog
from range_server import RangeServer, range_server

SHAPE = Shape((2048, 2048), (256, 256), Grid(4, 4), 3)


def main(compress: str, side: int, delay: float, as_json: bool) -> None:
    """Print a line for each number of patches, and one for rasterio."""
    with tempfile.TemporaryDirectory() as folder, range_server() as server:
        part = picture(2048, 2048)
        tiles = -(-side // 2048)
        path = write_cog(Path(folder) / "a.tif", np.tile(part, (1, tiles, tiles))[:, :side, :side], compress, 512)
        server.files["a.tif"] = path.read_bytes()
        server.delay = delay
        rows = [read(server, count) for count in (0, 1, 5, 8, 16)]
        for row in rows:
            row["speed"] = round(rows[-1]["seconds"] / row["seconds"], 2)
        rows.append(by_rasterio(server))
    document = {
        "compress": compress,
        "side": side,
        "delay": delay,
        "rows": rows,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10,
        "machine": machine(),
    }
    if as_json:
        print(json.dumps(document, indent=2))
        return
    print(f"{compress}, {side} px, {1000 * delay:.0f} ms a request")
    for row in rows:
        print("  ".join(f"{name} {value}" for name, value in row.items()))


def read(server: RangeServer, count: int) -> dict[str, Any]:
    """Look at every cell and read ``count`` random patches of each."""
    server.reset()
    start = time.perf_counter()
    file = HttpFile(server.url("a.tif"))
    scene = TiledScene(file, SHAPE)
    generator = torch.Generator().manual_seed(0)
    chosen: set[int] = set()
    for group in scene.groups():
        scene.look(group)
        choice = torch.rand(len(group), 16, generator=generator).argsort(1) < count
        scene.reader(group)(choice)
        boxes = [scene.patch_box(group[cell], patch) for cell, patch in choice.nonzero().tolist()]
        chosen |= {tile for box in boxes for tile in tiled.covering(scene.full, box)}
    seconds = time.perf_counter() - start
    file.close()
    assert file.ledger.total == (len(server.asked), server.sent)
    own = int(scene.full.counts[sorted(chosen)].sum() + scene.overview.counts.sum())
    return {
        "patches": f"{count} of 16",
        "requests": len(server.asked),
        "bytes": server.sent,
        "ratio": round(server.sent / (own + file.ledger.of("header").bytes), 3),
        "seconds": round(seconds, 2),
    }


def by_rasterio(server: RangeServer) -> dict[str, Any]:
    """The whole scene by GDAL's own HTTP reader."""
    server.reset()
    start = time.perf_counter()
    with (
        rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR"),
        rasterio.open(f"/vsicurl/{server.url('a.tif')}", driver="GTiff") as file,
    ):
        file.read()
    seconds = round(time.perf_counter() - start, 2)
    return {"patches": "rasterio, all", "requests": len(server.asked), "bytes": server.sent, "seconds": seconds}


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("compress", nargs="?", default="JPEG")
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--delay", type=float, default=0.03)
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    main(given.compress, given.side, given.delay, given.json)
