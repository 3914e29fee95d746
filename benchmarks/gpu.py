"""What a GPU brings at inference and in training: images a second, and the share of the time in which it computes.

    python benchmarks/gpu.py [--profile canvas-paper] [--images 2048] [--cpu-images 256] [--budget 5] [--rounds 3]
                             [--steps 20] [--cpu-steps 3] [--devices cpu cuda] [--out results/gpu]

Networks of a profile that are not trained, images that are made here, and a budget that reads the same number of
patches of every image. Timed are, on each device and in each precision, the best of ``--rounds``:

* memory: episodes (policy, choice, reading from memory, classifier) of batches that lie in main memory;
* files: what `patchdrop predict` does with as many JPEG files;
* scene: what it does with one GeoTIFF of the same images, tiles as large as patches, from a disk (needs rasterio);
* training: steps of each stage, from images in memory.

The share is that of the wall-clock in which the GPU runs kernels or copies, by torch's profiler, in a round of its own.
Without a GPU it runs as a trial: the figures are printed, and written only where ``--out`` names a folder.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from patchdrop.commands.predicting import Asking
from patchdrop.commands.predicting import predict as predict_files
from patchdrop.commands.shared import sized
from patchdrop.data.load import Data, Statistics, statistics
from patchdrop.data.low import area_average
from patchdrop.data.sets import MemorySource, Split
from patchdrop.episode import PatchDrop, play
from patchdrop.errors import UsageError
from patchdrop.files import write_bytes, write_json
from patchdrop.grid import patch_size
from patchdrop.models.build import build_stage
from patchdrop.models.compute import Compute, Networks
from patchdrop.policy.budget import ALL, at_most
from patchdrop.read.source import from_memory
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.scenes.listing import Source
from patchdrop.scenes.model import Choosing
from patchdrop.scenes.predict import Results
from patchdrop.scenes.predict import predict as predict_scenes
from patchdrop.scenes.walk import Reading
from patchdrop.settings.defaults import schedule_for
from patchdrop.settings.dial import Dial
from patchdrop.settings.flat import TrainSettings, from_mapping, read_profile
from patchdrop.settings.machine import Machine, Precision
from patchdrop.terminal.talk import errors_told, say
from patchdrop.training.batches import Loader
from patchdrop.training.loop import make_optimizer, train_step
from patchdrop.training.recipe import Recipe
from patchdrop.training.run import make_task, on_device, teacher_of

OUT = Path(__file__).resolve().parent.parent / "results" / "gpu"
CLASSES = tuple(f"class {number}" for number in range(30))
BATCHES = (32, 256)
"""Images of a batch from memory."""
STAGE = "ft2"
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
WARM_UP = 2
Row = dict[str, Any]


def main() -> None:
    """Measure, and write the documents."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--profile", default="canvas-paper")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--cpu-images", type=int, default=256, help="of them, those that the CPU takes")
    parser.add_argument("--budget", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--cpu-steps", type=int, default=3)
    parser.add_argument("--batch", type=int, help="images of a training step; by default the profile's")
    parser.add_argument("--devices", nargs="+", default=["cpu", "cuda"])
    parser.add_argument("--out", type=Path)
    asked = parser.parse_args()
    gpu = torch.cuda.is_available()
    devices = [name for name in asked.devices if gpu or name == "cpu"]
    settings = settings_of(asked.profile, asked.batch)
    high = pictures(asked.images, settings)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run, data = untrained(folder / "run", settings, high), data_of(settings, high)
        for device in devices:
            some, steps = (high[: asked.cpu_images], asked.cpu_steps) if device == "cpu" else (high, asked.steps)
            sources = inputs(folder / device.replace(":", "-"), some, settings)
            for precision in PRECISIONS if device != "cpu" else PRECISIONS[:1]:
                say(f"{device}, {precision}")
                machine = Machine(device=device, precision=precision)
                rows += list(inference(run, some, sources, machine, asked.budget, asked.rounds, folder))
                rows += list(training(settings, data, machine, steps))
    document = {
        "profile": asked.profile,
        "images": len(high),
        "cpu_images": min(asked.cpu_images, len(high)),
        "high": list(settings.shape.high),
        "low": list(settings.shape.low),
        "patches": settings.shape.grid.patches,
        "budget": asked.budget,
        "threads": torch.get_num_threads(),
        "rounds": asked.rounds,
        "rows": rows,
        "provenance": provenance(0),
    }
    print(json.dumps(document, indent=1))
    out = asked.out or (OUT if gpu else None)
    if out is None:
        say("no GPU here: nothing is written")
        return
    write_json(out / "results.json", document)
    write_bytes(out / "README.md", page(document).encode())


# --- what is measured on


def settings_of(profile: str, batch: int | None) -> TrainSettings:
    """Return the profile's settings with networks, batch and epochs filled in."""
    settings, _ = sized(replace(from_mapping({**read_profile(profile), "data": ""}, profile), insist=True))
    settings = settings.filled(schedule_for(10_000))
    return settings if batch is None else replace(settings, batch=batch)


def pictures(count: int, settings: TrainSettings) -> Tensor:
    """Return smooth images of HR's size with some noise: ``(n, C, H, W)`` uint8."""
    generator = torch.Generator().manual_seed(0)
    parts = []
    for start in range(0, count, 256):
        shape = (min(256, count - start), settings.channels)
        rough = torch.rand(*shape, 12, 12, generator=generator) * 255
        smooth = torch.nn.functional.interpolate(rough, settings.shape.high, mode="bilinear")
        parts.append((smooth + 6 * torch.randn(smooth.shape, generator=generator)).clamp(0, 255).to(torch.uint8))
    return torch.cat(parts)


def untrained(path: Path, settings: TrainSettings, high: Tensor) -> Path:
    """Make a run of networks as they are before training."""
    folder, config = RunFolder(path), Recipe.of(settings).with_classes(CLASSES)
    folder.start(settings.to_mapping())
    torch.manual_seed(0)
    model = build_stage(STAGE, config, found_in(high, settings))
    folder.finish(STAGE, model, config, {"figures": {}, "seconds": 0.0})
    return path


def found_in(high: Tensor, settings: TrainSettings) -> Statistics:
    """Return the channel statistics of images."""
    return statistics(split_of(high), settings.shape.low, images=64)


def split_of(high: Tensor) -> Split:
    """Return images in memory, with classes in turn."""
    targets = torch.arange(len(high)) % len(CLASSES)
    return Split(MemorySource(high, None, targets, [str(i) for i in range(len(high))]), torch.arange(len(high)))


def data_of(settings: TrainSettings, high: Tensor) -> Data:
    """Return the images as a data set to train on."""
    split = split_of(high)
    return Data("made here", "folder", CLASSES, settings.shape, {"fit": split, "val": split}, {})


def inputs(folder: Path, high: Tensor, settings: TrainSettings) -> dict[str, Any]:
    """Write the images as JPEG files, and as a scene where rasterio is at hand; what to predict by kind."""
    (folder / "images").mkdir(parents=True)
    paths = [folder / "images" / f"{number:05d}.jpg" for number in range(len(high))]
    for path, image in zip(paths, high, strict=True):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=90)
    found: dict[str, Any] = {"files": paths}
    if find_spec("rasterio") is None:
        say("rasterio is not installed: scenes are left out")
    elif len(high) >= 9:
        found["scene"] = write_scene(folder / "scene.tif", high, settings)
    return found


def write_scene(path: Path, high: Tensor, settings: TrainSettings) -> tuple[str, int]:
    """Lay images out as one tiled GeoTIFF with an overview; its path and number of cells."""
    import rasterio
    from rasterio.enums import Resampling
    from rasterio.transform import from_origin

    across = int(len(high) ** 0.5)
    down = len(high) // across
    rows = high[: down * across].unflatten(0, (down, across))
    height, width = settings.shape.high
    canvas = rows.permute(2, 0, 3, 1, 4).reshape(settings.channels, down * height, across * width).numpy()
    sides = [max(16, side // 16 * 16) for side in patch_size(settings.shape.grid, height, width)]
    tiles = {"tiled": True, "blockysize": sides[0], "blockxsize": sides[1], "compress": "deflate", "predictor": 2}
    where = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_000_000, 1, 1)}
    size = {"count": settings.channels, "height": canvas.shape[1], "width": canvas.shape[2], "dtype": np.uint8}
    with rasterio.open(path, "w", driver="GTiff", BIGTIFF="IF_SAFER", **size, **where, **tiles) as file:
        file.write(canvas)
        file.build_overviews([height // settings.shape.low[0]], Resampling.average)
    return str(path), down * across


# --- how it is measured


def inference(
    run: Path, high: Tensor, sources: dict[str, Any], machine: Machine, budget: int, rounds: int, folder: Path
) -> Iterator[Row]:
    """Yield a row for each way of predicting on one device in one precision."""
    where, dial = Compute.of(machine), Dial(budget=budget, threshold=0.0)
    model, config = RunFolder(run).load(STAGE)
    assert isinstance(model, PatchDrop)
    networks = Networks(model, where)
    low = torch.cat([area_average(part, config.shape.low) for part in high.split(256)])

    def from_batches(size: int) -> None:
        choose = partial(at_most, budget=budget, cut=ALL)
        with torch.inference_mode():
            for some, their in zip(high.split(size), low.split(size), strict=True):
                read = from_memory(some, config.shape.grid)
                play(networks.look, lambda scores: choose(scores).cpu(), read, their).logits.cpu()

    def from_files() -> None:
        asking = Asking(run, STAGE, dial, machine=machine)
        assert len(list(predict_files(asking, sources["files"]))) == len(high)

    def from_scene() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as out:
            choosing = Choosing(run, STAGE, dial, machine)
            predict_scenes(choosing, [Source(sources["scene"][0])], Results(Path(out)), Reading(), _fail)

    work: list[tuple[str, int | None, int, Callable[[], None]]] = [
        ("memory", size, len(high), partial(from_batches, size)) for size in BATCHES
    ]
    work.append(("files", None, len(high), from_files))
    if "scene" in sources:
        work.append(("scene", None, sources["scene"][1], from_scene))
    for name, size, images, once in work:
        seconds = fastest(once, where.device, rounds)
        row = {"what": name, "batch": size, "images_a_second": images / seconds}
        yield {**where.to_json(), **row, "gpu_share": share(once, where.device)}


def _fail(reason: str) -> None:
    raise UsageError(reason)


def fastest(once: Callable[[], None], device: torch.device, rounds: int) -> float:
    """Return the seconds of the fastest of some rounds, after one that does not count."""
    times = []
    for number in range(rounds + 1):
        start = time.perf_counter()
        once()
        wait_for(device)
        if number:
            times.append(time.perf_counter() - start)
    return min(times)


def share(once: Callable[[], None], device: torch.device) -> float | None:
    """Return the share of a round's time in which the GPU runs a kernel or a copy; None without a GPU."""
    if device.type != "cuda":
        return None
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        start = time.perf_counter()
        once()
        wait_for(device)
        seconds = time.perf_counter() - start
    there = [event.time_range for event in profiled.events() or [] if event.device_type == DeviceType.CUDA]
    return union([(span.start, span.end) for span in there]) / 1e6 / seconds  # they are in microseconds


def union(spans: Sequence[tuple[float, float]]) -> float:
    """Return the length of all spans together, what they share counted once."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(spans):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def wait_for(device: torch.device) -> None:
    """Wait for what a GPU has been given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def training(settings: TrainSettings, data: Data, machine: Machine, steps: int) -> Iterator[Row]:
    """Yield the rate of each stage's training on one device in one precision."""
    where = Compute.of(machine)
    recipe = Recipe.of(replace(settings, precision=machine.precision, device=machine.device, batch=settings.batch))
    config, found = recipe.with_classes(CLASSES), found_in(data.splits["fit"].source.high, settings)  # type: ignore[attr-defined]
    build = partial(build_stage, config=config, statistics=found)
    loader = Loader(data, recipe.schedule, where.device)
    for stage in recipe.stages:
        if recipe.schedule.epochs[stage] == 0 or not loader.steps_per_epoch:
            continue
        model = on_device(build(stage), where.device)
        teacher = teacher_of(stage, config, build, where.device)
        task = make_task(stage, model, loader, recipe.learning, teacher)
        optimizer = make_optimizer(task.groups(), recipe.schedule.optimizer)
        task.train_mode()
        start = time.perf_counter()
        for step in range(WARM_UP + steps):
            if step == WARM_UP:
                wait_for(where.device)
                start = time.perf_counter()
            epoch, first = divmod(step, task.steps_per_epoch)
            train_step(task, optimizer, next(iter(task.batches(epoch, first))), step, WARM_UP + steps)
        wait_for(where.device)
        rate = steps * recipe.schedule.batch / (time.perf_counter() - start)
        row = {"what": f"training {stage}", "batch": recipe.schedule.batch, "images_a_second": rate}
        yield {**where.to_json(), **row, "gpu_share": None}


def page(document: Row) -> str:
    """Return the README of the figures: a line for each kind of work, a column for each device and precision."""
    ways = list(dict.fromkeys((row["device"], row["precision"]) for row in document["rows"]))
    kinds = list(dict.fromkeys((row["what"], row["batch"]) for row in document["rows"]))
    cells = {(row["what"], row["batch"], row["device"], row["precision"]): row for row in document["rows"]}
    lines = ["| work | batch | " + " | ".join(f"{device}, {precision}" for device, precision in ways) + " |"]
    lines.append("|---" * (2 + len(ways)) + "|")
    for what, batch in kinds:
        shown = [_cell(cells.get((what, batch, *way))) for way in ways]
        lines.append(f"| {what} | {'' if batch is None else batch} | {' | '.join(shown)} |")
    where = document["provenance"]
    high, low = ("x".join(map(str, document[name])) for name in ("high", "low"))
    return "\n".join(
        [
            "# A GPU beside the CPU",
            "",
            "Images a second; in brackets the share of the time in which the GPU computes. Profile "
            f"{document['profile']}, networks not trained, HR {high} px, LR {low} px, {document['budget']} of "
            f"{document['patches']} patches of each of {document['images']} images ({document['cpu_images']} on the "
            f"CPU); the best of {document['rounds']} rounds, {document['threads']} threads.",
            "",
            *lines,
            "",
            f"`{where['command']}` at {where['commit']}, {where['machine']}.",
            "",
        ]
    )


def _cell(row: Row | None) -> str:
    if row is None:
        return ""
    share = "" if row["gpu_share"] is None else f" ({100 * row['gpu_share']:.0f} %)"
    return f"{row['images_a_second']:,.0f}{share}"


if __name__ == "__main__":
    with errors_told():
        main()
