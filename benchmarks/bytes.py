"""Proof that the chosen bytes are all that is read: bytes, requests, time, memory and pixels, into results/bytes.

    PYTHONPATH=tests python benchmarks/bytes.py results/bytes [--quick] [--seed 0]

Makes COGs and JPEG files of mosaics of scikit-learn's photographs in a temporary folder and serves them on loopback,
from a process of its own that counts what it sends and waits before each answer. Every time is taken in turns with what
it is compared with. ``--quick`` does the same on small files, without the processes whose memory is measured.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio.errors import NotGeoreferencedWarning
from rasterio.shutil import copy
from rasterio.windows import Window
from sklearn.datasets import load_sample_images
from torch import Tensor

import range_server
from patchdrop.data.low import area_average
from patchdrop.files import read_json, write_json
from patchdrop.grid import Grid, Shape
from patchdrop.read.ahead import one_ahead
from patchdrop.read.images import read_image
from patchdrop.read.tiled import TiledScene
from patchdrop.runs.provenance import provenance
from patchdrop.tiff.tiles import Box, covering
from patchdrop.transport.http import HttpFile
from patchdrop.transport.ledger import Cost, Ledger
from patchdrop.transport.ranges import LocalFile
from range_server import Asked
from tiny import tiny_settings
from untrained import untrained_run

warnings.filterwarnings("ignore", category=NotGeoreferencedWarning)

CODECS = ("JPEG", "DEFLATE", "WEBP")
COUNTS = (0, 1, 2, 4, 5, 8, 16)
"""Patches of 16 that are read in each cell."""
GAPS = (0, 8)
"""What `--gap` may be; GDAL writes 8 bytes, which belong to no tile, between the tiles of a COG."""
PERIOD = 3968
"""Side of the mosaic that a scene repeats: 31 times 128 px, so that of 31 tiles in a row no two are alike."""
HALVINGS = 7
"""Overviews at most; the mosaic can be halved as often."""
GDAL: dict[str, dict[str, str]] = {
    "defaults": {},
    "tuned": {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_HTTP_MULTIPLEX": "YES",
        "GDAL_HTTP_MERGE_CONSECUTIVE_RANGES": "YES",
        "GDAL_NUM_THREADS": "ALL_CPUS",
        "VSI_CACHE": "TRUE",
    },
    "tuned, 10 MiB a request": {
        "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
        "GDAL_NUM_THREADS": "ALL_CPUS",
        "CPL_VSIL_CURL_CHUNK_SIZE": "10485760",
        "CPL_VSIL_CURL_CACHE_SIZE": "209715200",
    },
}


@dataclass(frozen=True)
class Sizes:
    """How large everything is made; sides in pixels."""

    cog: int
    tile: int
    scene: int
    scene_tile: int
    photograph: tuple[int, int]
    photographs: int
    high: int
    repeats: int
    windows: int = 50
    delay: float = 0.03
    """Seconds before each answer."""


FULL = Sizes(8192, 512, 30_000, 256, (3000, 4000), 6, 1024, 5)
QUICK = Sizes(1024, 128, 1000, 64, (600, 800), 2, 256, 1)


def main(out: Path, sizes: Sizes, seed: int, memory: bool) -> dict[str, Any]:
    """Measure, write ``results.json`` and ``README.md`` into ``out``, and return the document."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        paths = {codec: write_cog(folder / f"{codec}.tif", sizes.cog, codec, sizes.tile, seed) for codec in CODECS}
        if memory:
            paths["scene"] = write_cog(folder / "scene.tif", sizes.scene, "JPEG", sizes.scene_tile, seed)
        with serving(folder, sizes.delay) as server:
            document = {
                "delay": sizes.delay,
                "repeats": sizes.repeats,
                "cogs": [cog(server, paths[codec], codec, sizes, seed) for codec in CODECS],
                "scene": memory_of(server, paths["scene"], folder, sizes) if memory else None,
                "photographs": photographs(folder, sizes, seed),
                "provenance": provenance(seed),
            }
    document["claims"] = claims(document)
    write_json(out / "results.json", document)
    (out / "README.md").write_text(markdown(document), encoding="utf-8")
    return document


def say(what: str) -> None:
    """Tell on stderr what is being done."""
    print(what, file=sys.stderr, flush=True)


# --- what is read


def mosaic(height: int, width: int, seed: int) -> NDArray[np.uint8]:
    """``(height, width, 3)``: the photographs side by side, each turned and darkened at random."""
    draw = np.random.default_rng(seed)
    pictures = load_sample_images().images
    tall, wide, _ = pictures[0].shape

    def one() -> NDArray[np.uint8]:
        turned = pictures[draw.integers(len(pictures))][:: draw.choice((-1, 1)), :: draw.choice((-1, 1))]
        return (turned * draw.uniform(0.6, 1.0)).astype(np.uint8)

    rows = [np.hstack([one() for _ in range(-(-width // wide))]) for _ in range(-(-height // tall))]
    return np.vstack(rows)[:height, :width]


def write_cog(path: Path, side: int, codec: str, tile: int, seed: int) -> Path:
    """A square COG that repeats a mosaic, overviews averaged; made tile by tile, so that little memory is needed."""
    say(f"makes {path.name}, {side} px")
    period = min(side, PERIOD)
    picture = Image.fromarray(mosaic(period, period, seed))
    factors = [2**level for level in range(1, HALVINGS + 1) if side >> level >= tile // 2]
    overviews = [repeated(path, picture, side, factor, ()) for factor in factors]
    with rasterio.Env(GDAL_CACHEMAX=128):
        copy(
            repeated(path, picture, side, 1, overviews),
            path,
            driver="COG",
            COMPRESS=codec,
            BLOCKSIZE=str(tile),
            OVERVIEWS="AUTO",
        )
    return path


def repeated(path: Path, picture: Image.Image, side: int, factor: int, overviews: Sequence[Path]) -> Path:
    """A virtual image of a picture side by side with itself, ``factor`` times coarser."""
    source, virtual = (path.with_suffix(f".{factor}.{kind}") for kind in ("tif", "vrt"))
    coarse = picture.reduce(factor)
    coarse.save(source)
    side, period = -(-side // factor), coarse.width
    tiles = "".join(
        f"<SimpleSource><SourceFilename>{source}</SourceFilename><SourceBand>%(band)d</SourceBand>"
        f'<SrcRect xOff="0" yOff="0" xSize="{period}" ySize="{period}"/>'
        f'<DstRect xOff="{x}" yOff="{y}" xSize="{period}" ySize="{period}"/></SimpleSource>'
        for y in range(0, side, period)
        for x in range(0, side, period)
    ) + "".join(
        f"<Overview><SourceFilename>{overview}</SourceFilename><SourceBand>%(band)d</SourceBand></Overview>"
        for overview in overviews
    )
    bands = "".join(
        f'<VRTRasterBand dataType="Byte" band="{band}">{tiles % {"band": band}}</VRTRasterBand>' for band in (1, 2, 3)
    )
    virtual.write_text(f'<VRTDataset rasterXSize="{side}" rasterYSize="{side}">{bands}</VRTDataset>', encoding="utf-8")
    return virtual


class Server:
    """A range server in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._ask, self._answer = process.stdin, process.stdout
        self._address = self._answer.readline().strip()
        self._opened = 0

    def url(self, path: Path) -> str:
        """An address of a file that was not given before, so that no cache knows it."""
        self._opened += 1
        return f"{self._address}{path.name}?{self._opened}"

    def counted(self) -> tuple[list[Asked], int]:
        """What was asked, and the bytes sent, since the last call."""
        self._ask.write("\n")
        self._ask.flush()
        found = json.loads(self._answer.readline())
        return [Asked(*asked) for asked in found["asked"]], found["sent"]


@contextmanager
def serving(folder: Path, delay: float) -> Iterator[Server]:
    """Serve a folder's files as they are now."""
    command = [sys.executable, range_server.__file__, str(folder), str(delay)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Server(process)
        finally:
            assert process.stdin is not None
            process.stdin.close()


# --- bytes, requests and time of COGs


def cog(server: Server, path: Path, codec: str, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Everything about one COG: bytes and requests, pixels, and times in turns."""
    say(f"{codec}, {sizes.cog} px")
    shape = Shape((4 * sizes.tile,) * 2, (sizes.tile // 2,) * 2, Grid(4, 4), 3)
    choices = [Choice(count, gap, seed) for gap in GAPS for count in COUNTS]
    plans = {choice: price(server.url(path), shape, choice) for choice in choices}
    rows: dict[Choice, dict[str, Any]] = {}
    seconds: dict[Choice | str, list[float]] = {name: [] for name in (*choices, *GDAL)}
    gdal: dict[str, dict[str, Any]] = {}
    for _ in range(sizes.repeats):
        for choice in choices:
            server.counted()
            start = time.perf_counter()
            scene, chosen = read(server.url(path), shape, choice)
            seconds[choice].append(time.perf_counter() - start)
            rows[choice] = bytes_of(scene, chosen, choice, *server.counted()) | {"planned": plans[choice]._asdict()}
        for name, settings in GDAL.items():
            start = time.perf_counter()
            by_gdal(server.url(path), settings)
            seconds[name].append(time.perf_counter() - start)
            asked, sent = server.counted()
            gdal[name] = {"name": name, "settings": settings, "requests": len(asked), "bytes": sent}
    plain = min(statistics.median(seconds[name]) for name in GDAL)
    for choice, row in rows.items():
        mine = spread(seconds[choice])
        everything = statistics.median(seconds[choice._replace(count=COUNTS[-1])])
        row |= {"seconds": mine, "speed": everything / mine["median"], "speed_gdal": plain / mine["median"]}
    return {
        "codec": codec,
        "side": sizes.cog,
        "tile": sizes.tile,
        "file_bytes": path.stat().st_size,
        "rows": list(rows.values()),
        "gdal": [row | {"seconds": spread(seconds[name])} for name, row in gdal.items()],
        "windows": windows(path, codec, sizes, seed),
    }


class Choice(NamedTuple):
    """Random patches, ``count`` of each cell, read with this gap."""

    count: int
    gap: int
    seed: int

    def of(self, scene: TiledScene) -> Iterator[tuple[range, Tensor]]:
        """Groups of cells, and what is chosen of them."""
        draw = torch.Generator().manual_seed(self.seed)
        for group in scene.groups():
            yield group, torch.rand(len(group), scene.shape.grid.patches, generator=draw).argsort(1) < self.count


def bytes_of(scene: TiledScene, chosen: set[int], choice: Choice, asked: list[Asked], sent: int) -> dict[str, Any]:
    """Bytes and requests of a scene that was read, by the ledger and by the server, and what was needed."""
    full, overview = scene.full, scene.overview
    header = scene.transport.ledger.of("header").bytes
    own_header = min(int(level.offsets[level.counts > 0].min()) for level in scene.header.levels)
    wanted = [*map(overview.span, range(len(overview.counts))), *map(full.span, sorted(chosen))]
    needed = header + sum(span.length for span in wanted if span.stop > len(scene.header.start))
    others = [tile for tile in range(len(full.counts)) if tile not in chosen]
    return {
        "patches": choice.count,
        "gap": choice.gap,
        "requests": len(asked),
        "bytes": sent,
        "needed": needed,
        "ratio": sent / needed,
        "own_ratio": sent / (own_header + sum(span.length for span in wanted)),
        "unchosen_bytes": overlap(asked, full.offsets[others], full.counts[others]),
        "ledger": scene.transport.ledger.to_json(),
    }


def read(url: str, shape: Shape, choice: Choice) -> tuple[TiledScene, set[int]]:
    """Look at every cell and read what is chosen; the scene, and the tiles that cover those patches."""
    tiles: set[int] = set()
    with closing(HttpFile(url)) as transport:
        scene = TiledScene(transport, shape, choice.gap)
        for group, chosen in one_ahead(asked_for(scene, choice)):
            for part in scene.in_parts(len(group)):
                scene.reader(group[part])(chosen[part])
            for cell, patch in chosen.nonzero().tolist():
                tiles.update(covering(scene.full, scene.patch_box(group[cell], patch)))
    return scene, tiles


def asked_for(scene: TiledScene, choice: Choice) -> Iterator[tuple[range, Tensor]]:
    """Groups of cells that were looked at and asked for, as `predict` does it."""
    for group, chosen in choice.of(scene):
        scene.look(group)
        scene.ask(group, chosen)
        yield group, chosen


def price(url: str, shape: Shape, choice: Choice) -> Cost:
    """What `read` will cost, from header and overview alone."""
    priced = Ledger()
    with closing(HttpFile(url)) as transport:
        scene = TiledScene(transport, shape, choice.gap)
        for group, chosen in choice.of(scene):
            scene.look(group)
            scene.price(group, chosen, priced)
    return transport.ledger.total.plus(priced.total)


def overlap(asked: list[Asked], offsets: NDArray[np.int64], counts: NDArray[np.int64]) -> int:
    """Bytes of some tiles within the ranges that were asked for."""
    starts, stops = np.array([a.start for a in asked])[:, None], np.array([a.stop for a in asked])[:, None]
    shared = np.minimum(stops, offsets + counts) - np.maximum(starts, offsets)
    return int(shared.clip(0).sum())


def by_gdal(url: str, settings: dict[str, str]) -> NDArray[np.uint8]:
    """The whole scene by rasterio, over GDAL's own HTTP reader."""
    with rasterio.Env(**settings), rasterio.open(f"/vsicurl/{url}", driver="GTiff") as file:
        pixels: NDArray[np.uint8] = file.read()
    return pixels


def spread(seconds: list[float]) -> dict[str, float]:
    """Median, least and most."""
    return {"median": statistics.median(seconds), "min": min(seconds), "max": max(seconds)}


# --- pixels


def windows(path: Path, codec: str, sizes: Sizes, seed: int) -> dict[str, Any]:
    """Random windows by our reader, against rasterio's and, where tiles are lossy, against Pillow's decoder alone."""
    draw = np.random.default_rng(seed)
    equal = 0
    differences = []
    with rasterio.open(path, driver="GTiff") as file:
        for _ in range(sizes.windows):
            (top, left, bottom, right), pixels = random_window(path, sizes.tile, draw)
            gdal = file.read(window=Window(left, top, right - left, bottom - top))
            reference = gdal if codec == "DEFLATE" else by_pillow(file, path, (top, left, bottom, right))
            equal += np.array_equal(pixels, reference)
            differences.append(np.abs(pixels.astype(int) - gdal).ravel())
    against_gdal = np.concatenate(differences)
    return {
        "count": sizes.windows,
        "reference": "rasterio" if codec == "DEFLATE" else "Pillow",
        "equal": equal,
        "gdal_most": int(against_gdal.max()),
        "gdal_mean": float(against_gdal.mean()),
    }


def random_window(path: Path, tile: int, draw: np.random.Generator) -> tuple[Box, NDArray[np.uint8]]:
    """A patch of a cell whose size and grid are drawn, so that it lies anywhere across tiles."""
    height, width = (int(side) for side in draw.integers(tile // 2, 2 * tile, 2))
    grid = Grid(*(int(parts) for parts in draw.integers(1, 4, 2)))
    with closing(LocalFile(path)) as transport:
        scene = TiledScene(transport, Shape((height, width), (height // 4, width // 4), grid, 3))
        cell, patch = int(draw.integers(scene.cells)), int(draw.integers(grid.patches))
        packed = scene.reader([cell])(torch.arange(grid.patches)[None] == patch)
    top, left, bottom, right = box = scene.patch_box(cell, patch)
    return box, packed.pixels[0, :, : bottom - top, : right - left].numpy()


def by_pillow(file: rasterio.DatasetReader, path: Path, box: Box) -> NDArray[np.uint8]:
    """A box of pixels from the tiles where GDAL says they are, each as a file of its own for Pillow."""
    side = file.block_shapes[0][0]
    tables = bytes.fromhex(file.get_tag_item("JPEGTABLES", "TIFF", bidx=1) or "")
    stored = path.read_bytes()

    def one(row: int, column: int) -> NDArray[np.uint8]:
        start, length = (
            int(file.get_tag_item(f"BLOCK_{what}_{column}_{row}", "TIFF", bidx=1)) for what in ("OFFSET", "SIZE")
        )
        data = stored[start : start + length]
        if tables:
            data = data[:2] + tables[2:-2] + data[2:]
        with Image.open(io.BytesIO(data), formats=("JPEG", "WEBP")) as image:
            return np.asarray(image.convert("RGB"))

    top, left, bottom, right = box
    rows, columns = range(top // side, -(-bottom // side)), range(left // side, -(-right // side))
    whole = np.vstack([np.hstack([one(row, column) for column in columns]) for row in rows])
    y, x = top - rows.start * side, left - columns.start * side
    return whole[y : y + bottom - top, x : x + right - left].transpose(2, 0, 1)


# --- memory of a large scene

PEAK = """
import sys
code = 0
if sys.argv[1:]:
    from patchdrop.cli import main
    code = main(sys.argv[1:])
else:
    import torch
with open("/proc/self/status") as file:
    print(next(line.split()[1] for line in file if line.startswith("VmHWM")))
sys.exit(code)
"""
"""Prints the most KiB that a fresh process held; `ru_maxrss` would count what it was started from, too."""


def memory_of(server: Server, path: Path, folder: Path, sizes: Sizes) -> dict[str, Any]:
    """Plan and predict of a large scene by an untrained run, each in a process of its own."""
    say(f"memory, {sizes.scene} px")
    settings = tiny_settings(
        high=str(sizes.high), low=str(sizes.high // 8), hr_network="resnet8-w4-s2", policy_head="global"
    )
    run = untrained_run(folder / "run", settings)
    cell = write_cog(folder / "cell.tif", sizes.high, "JPEG", sizes.scene_tile, 0)
    plan = folder / "plan" / "plan.json"
    memory = {"torch": peak(), "one cell": peak("predict", run, cell, "--out", folder / "one")}
    memory["plan"] = peak("plan", run, server.url(path), "--out", plan.parent)
    server.counted()
    memory["predict"] = peak("predict", run, server.url(path), "--out", folder / "found", "--plan", plan)
    asked, sent = server.counted()
    (summary,) = (read_json(found) for found in (folder / "found").glob("*.json"))
    (planned,) = read_json(plan)["scenes"]
    return {
        "side": sizes.scene,
        "tile": sizes.scene_tile,
        "high": sizes.high,
        "cells": summary["cells"],
        "patches": summary["patches"],
        "file_bytes": path.stat().st_size,
        "planned": planned["execution"]["total"],
        "ledger": summary["execution"]["total"],
        "server": {"requests": len(asked), "bytes": sent},
        "peak_mb": {name: found.whole for name, found in memory.items()},
        "anonymous_mb": {name: found.anonymous for name, found in memory.items()},
    }


class Peak(NamedTuple):
    """The most memory that a process held, in MB."""

    whole: float
    anonymous: float
    """Without pages of files, which the system takes back where memory is short; looked at every `LOOK` seconds."""


LOOK = 0.01


def peak(*arguments: object) -> Peak:
    """What `patchdrop` takes for these arguments; without any, importing torch alone."""
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    anonymous = 0
    with tempfile.TemporaryFile("w+") as out, subprocess.Popen(command, stdout=out) as process:
        while process.poll() is None:
            anonymous = max(anonymous, anonymous_of(process.pid))
            time.sleep(LOOK)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, command)
        out.seek(0)
        whole = int(out.read().splitlines()[-1])
    return Peak(whole * 1024 / 1e6, anonymous * 1024 / 1e6)


def anonymous_of(process: int) -> int:
    """KiB that a process holds besides pages of files; 0 of one that has ended."""
    try:
        status = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("RssAnon")), 0)


# --- plain JPEG files


def photographs(folder: Path, sizes: Sizes, seed: int) -> dict[str, Any]:
    """CPU time of LR by decoding at a reduced scale, against decoding whole and averaging."""
    say("JPEG files")
    high, low = (sizes.high,) * 2, (sizes.high // 8,) * 2
    paths = [folder / f"{i}.jpg" for i in range(sizes.photographs)]
    for i, path in enumerate(paths):
        Image.fromarray(mosaic(*sizes.photograph, seed + i)).save(path, quality=90)
    seconds: dict[str, list[float]] = {"whole": [], "scaled": []}
    differences = []
    for path in paths * sizes.repeats:
        start = time.process_time()
        whole = area_average(read_image(path, high)[None], low)[0]
        between = time.process_time()
        scaled = read_image(path, low, gap=1)
        seconds["scaled"].append(time.process_time() - between)
        seconds["whole"].append(between - start)
        differences.append(float((whole.int() - scaled.int()).abs().float().mean()))
    return {
        "count": len(paths),
        "size": list(sizes.photograph),
        "mean_file_bytes": sum(path.stat().st_size for path in paths) // len(paths),
        "high": sizes.high,
        "low": sizes.high // 8,
        "cpu_seconds": {name: spread(found) for name, found in seconds.items()},
        "speed": statistics.median(seconds["whole"]) / statistics.median(seconds["scaled"]),
        "difference": statistics.mean(differences),
    }


# --- what is said about it


def claims(document: dict[str, Any]) -> list[dict[str, Any]]:
    """What was to be shown, what was found, and whether it holds."""
    cogs, scene, images = document["cogs"], document["scene"], document["photographs"]
    rows = [row for cog in cogs for row in cog["rows"]]
    counts = [{"requests": row["requests"], "bytes": row["bytes"]} for row in rows]
    ledgers = [row["ledger"]["total"] for row in rows]
    plans = [row["planned"] for row in rows]
    if scene:
        counts, ledgers, plans = [*counts, scene["server"]], [*ledgers, scene["ledger"]], [*plans, scene["planned"]]
    ratio = max(row["ratio"] for row in rows)
    unchosen = sum(row["unchosen_bytes"] for row in rows)
    speed = min(row["speed"] for row in rows if row["patches"] == 5 and not row["gap"])
    plain, joined = (
        min(row["speed_gdal"] for row in rows if row["patches"] <= 8 and row["gap"] == gap) for gap in (0, 8)
    )
    equal, windows = (sum(cog["windows"][what] for cog in cogs) for what in ("equal", "count"))
    found = [
        ("bytes sent, over header, overview and chosen tiles", "at most 1.05", f"{ratio:.3f}", ratio <= 1.05),
        ("bytes sent of tiles that were not chosen", "0", f"{unchosen}", unchosen == 0),
        ("the ledger is the server's count, requests and bytes", "always", *always(ledgers, counts)),
        ("the plan is the execution, requests and bytes", "always", *always(plans, counts)),
        ("5 of 16 patches, against reading everything", "at least 2.5 x", f"{speed:.2f} x", speed >= 2.5),
        ("up to 8 of 16, against rasterio reading everything", "at least 1 x", f"{plain:.2f} x", plain >= 1),
        ("the same with `--gap 8`", "at least 1 x", f"{joined:.2f} x", joined >= 1),
        ("random windows equal to the reference decoder's", "all", f"{equal} of {windows}", equal == windows),
        (
            "CPU time of LR, scaled against whole decoding",
            "at least 4 x",
            f"{images['speed']:.2f} x",
            images["speed"] >= 4,
        ),
    ]
    if scene:
        most = max(scene["peak_mb"][command] for command in ("plan", "predict"))
        found.append((f"peak memory, scene of {scene['side']} px", "at most 600 MB", f"{most:.0f} MB", most <= 600))
    return [dict(zip(("claim", "target", "found", "holds"), row, strict=True)) for row in found]


def always(left: list[dict[str, int]], right: list[dict[str, int]]) -> tuple[str, bool]:
    """How many pairs are the same, and whether all are."""
    same = sum(a == b for a, b in zip(left, right, strict=True))
    return f"{same} of {len(left)}", same == len(left)


COLUMNS = """In the tables of COGs a patch is a tile and a cell has 16 patches, of which some are read at random.
`over needed` is bytes over those of the header as it is read (16 KiB at least), of the overview and of the chosen
tiles; `over own` is the same with the header's own bytes. Seconds are the median (least - most) of {repeats}, all in
turns. `everything` and `rasterio` say how many times faster that is than 16 of 16 with the same gap, and than the whole
scene by rasterio at its best."""


def markdown(document: dict[str, Any]) -> str:
    """The page of a results document."""
    where = document["provenance"]
    parts = [
        "# Bytes\n\nWhat reading chosen patches costs, over HTTP from a server on the same machine that counts what it "
        f"sends and waits {1000 * document['delay']:.0f} ms before each answer.",
        table(
            ("what", "target", "found", "holds"),
            [(c["claim"], c["target"], c["found"], "yes" if c["holds"] else "**no**") for c in document["claims"]],
        ),
        COLUMNS.format(**document),
        *map(cog_markdown, document["cogs"]),
        scene_markdown(document["scene"]) if document["scene"] else "",
        photographs_markdown(document["photographs"]),
        f"## Origin\n\n* `{where['command']}` at {where['commit']} on {where['machine']}, seed {where['seed']}\n* "
        + ", ".join(f"{name} {version}" for name, version in where["versions"].items()),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown."""
    return "\n".join(f"| {' | '.join(map(str, row))} |" for row in (header, ["---"] * len(header), *rows))


def cog_markdown(cog: dict[str, Any]) -> str:
    """One COG: patches, then GDAL."""
    rows = [
        (
            *(row["patches"], row["gap"], row["requests"], f"{row['bytes']:,}"),
            *(f"{100 * row['bytes'] / cog['file_bytes']:.1f}", f"{row['ratio']:.4f}", f"{row['own_ratio']:.4f}"),
            *(row["unchosen_bytes"], seconds_text(row["seconds"]), f"{row['speed']:.2f}", f"{row['speed_gdal']:.2f}"),
        )
        for row in cog["rows"]
    ]
    header = ("patches of 16", "gap", "requests", "bytes", "of the file %", "over needed", "over own", "unchosen bytes")
    gdal = [(row["name"], row["requests"], f"{row['bytes']:,}", seconds_text(row["seconds"])) for row in cog["gdal"]]
    settings = "\n".join(
        f"* {row['name']}: {', '.join(f'`{name}={value}`' for name, value in row['settings'].items()) or 'nothing set'}"
        for row in cog["gdal"]
    )
    window = cog["windows"]
    return (
        f"## {cog['codec']}, {cog['side']} px\n\nA COG of {cog['file_bytes']:,} bytes, tiles of {cog['tile']} px.\n\n"
        f"{table((*header, 'seconds', 'everything', 'rasterio'), rows)}\n\n"
        f"rasterio, whole scene over `/vsicurl/`:\n\n{table(('GDAL', 'requests', 'bytes', 'seconds'), gdal)}\n\n"
        f"{settings}\n\n{window['equal']} of {window['count']} random windows are equal to {window['reference']}'s, "
        f"bit by bit. GDAL's differ by {window['gdal_mean']:.3f} levels on average, {window['gdal_most']} at most."
    )


def scene_markdown(scene: dict[str, Any]) -> str:
    """Memory of a large scene."""
    mb, anonymous = scene["peak_mb"], scene["anonymous_mb"]
    named = {"torch": "importing torch alone", "one cell": "predict, a scene of one cell"}
    rows = [
        (named.get(name, name), f"{most:.0f}", f"{most - mb['torch']:.0f}", f"{anonymous[name]:.0f}")
        for name, most in mb.items()
    ]
    return (
        f"## Memory, {scene['side']} px\n\nA JPEG COG of {scene['file_bytes']:,} bytes, tiles of {scene['tile']} px, "
        f"{scene['cells']} cells of {scene['high']} px, {scene['patches'] / scene['cells']:.2f} patches of 16 read in "
        "each by an untrained run with small networks. Planned: "
        f"{scene['planned']['requests']:,} requests, {scene['planned']['bytes']:,} bytes; sent by the server: "
        f"{scene['server']['requests']:,} and {scene['server']['bytes']:,}.\n\n"
        f"{table(('a fresh process', 'peak MB', 'beyond torch', 'anonymous MB'), rows)}\n\n"
        "`anonymous` is the most without pages of files (of torch's libraries, above all), which the system takes back "
        "where memory is short."
    )


def photographs_markdown(images: dict[str, Any]) -> str:
    """CPU time of plain files."""
    height, width = images["size"]
    seconds = images["cpu_seconds"]
    rows = [("decoded whole, then averaged", seconds_text(seconds["whole"]))]
    rows += [("decoded at a reduced scale (`--scaled-low`)", seconds_text(seconds["scaled"]))]
    return (
        f"## JPEG files\n\n{images['count']} files of {width} x {height} px, quality 90, "
        f"{images['mean_file_bytes']:,} bytes on average; HR of {images['high']} px, LR of {images['low']} px. "
        f"The two LR images differ by {images['difference']:.2f} levels on average.\n\n"
        f"{table(('LR', 'CPU seconds an image'), rows)}"
    )


def seconds_text(found: dict[str, float]) -> str:
    """Median, and least to most."""
    return f"{found['median']:.3f} ({found['min']:.3f} - {found['max']:.3f})"


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    for told in main(given.out, QUICK if given.quick else FULL, given.seed, not given.quick)["claims"]:
        print(f"{'holds' if told['holds'] else 'FAILS'}  {told['claim']}: {told['found']} (target: {told['target']})")
