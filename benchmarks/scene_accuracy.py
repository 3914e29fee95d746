"""Accuracy and bytes of a run on a scene made of its test images, over HTTP, against the same images as files.

    PYTHONPATH=tests python benchmarks/scene_accuracy.py RUN results/bytes/accuracy.json [--data ROOT]

Lays the test split out as one georeferenced COG for each codec, each image a cell, tiles as large as a patch, overviews
averaged, serves it from a range server on loopback that counts what it sends, and lets ``plan`` and ``predict --out``
go over it. Images that do not fill a last row are left out. JPEG and WebP compress the set's images a second time.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.transform import from_origin

from patchdrop.data.load import Data, load
from patchdrop.data.sets import low_of
from patchdrop.episode import PatchDrop
from patchdrop.evaluation.metrics import wilson
from patchdrop.files import write_json
from patchdrop.policy.choice import greedy
from patchdrop.read.source import from_memory
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.scenes.listing import Source
from patchdrop.scenes.model import Choosing
from patchdrop.scenes.plan import Terms, plan
from patchdrop.scenes.predict import Results, predict
from patchdrop.scenes.walk import Reading
from patchdrop.settings.flat import TrainSettings
from patchdrop.terminal.talk import errors_told
from patchdrop.training.recipe import Recipe
from range_server import RangeServer, range_server

CODECS: dict[str, dict[str, Any]] = {
    "deflate": {"compress": "deflate", "predictor": 2},
    "jpeg": {"compress": "jpeg", "jpeg_quality": 90, "photometric": "ycbcr"},
    "webp": {"compress": "webp", "webp_level": 90},
}
"""Creation options of GDAL's."""


def main() -> None:
    """Measure and write the document."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run")
    parser.add_argument("out", type=Path)
    parser.add_argument("--data")
    asked = parser.parse_args()
    run = RunFolder(asked.run).require()
    settings = run.settings()
    if asked.data:
        settings = replace(settings, data=asked.data)
    if settings.threads:
        torch.set_num_threads(settings.threads)
    data = load(Recipe.of(settings).source, lambda done, total: None, only="test")
    stage = run.stages_done()[-1]
    target, plain = data.splits["test"].targets.tolist(), plain_labels(run, stage, data, settings)
    with tempfile.TemporaryDirectory() as name, range_server() as server:
        scenes = [over_http(server, Path(name), codec, asked.run, stage, data, settings) for codec in CODECS]
    target = target[: len(scenes[0]["labels"])]
    plain = plain[: len(target)]
    rows = [
        {"source": "plain images", **right(plain, target, plain)},
        *({**right(scene.pop("labels"), target, plain), **scene} for scene in scenes),
    ]
    document = {"run": asked.run, "stage": stage, "rows": rows, "provenance": provenance(settings.seed)}
    write_json(asked.out, document)
    print(json.dumps(rows, indent=1))


def right(labels: list[int], target: list[int], plain: list[int]) -> dict[str, Any]:
    """Accuracy, its 95 % interval, and how many labels differ from those of the plain images."""
    hits = sum(a == b for a, b in zip(labels, target, strict=True))
    return {
        "accuracy": hits / len(target),
        "ci95": list(wilson(hits, len(target))),
        "n": len(target),
        "other_than_plain": sum(a != b for a, b in zip(labels, plain, strict=True)),
    }


def plain_labels(run: RunFolder, stage: str, data: Data, settings: TrainSettings) -> list[int]:
    """Class indices of the images as they are."""
    model, config = run.load(stage)
    assert isinstance(model, PatchDrop)
    model.eval()
    labels: list[int] = []
    with torch.inference_mode():
        for batch in data.splits["test"].in_order(settings.batch):
            low = low_of(batch, config.shape.low)
            found = model(low, greedy, from_memory(batch.high, config.shape.grid))
            labels += found.logits.argmax(1).tolist()
    return labels


def over_http(
    server: RangeServer, folder: Path, codec: str, run: str, stage: str, data: Data, settings: TrainSettings
) -> dict[str, Any]:
    """Plan and predict the scene of one codec; what was read, and the class index of each image."""
    path = folder / f"{codec}.tif"
    write_scene(path, codec, data, settings)
    server.files[path.name] = path.read_bytes()
    url = server.url(path.name)
    failures: list[str] = []
    choosing = Choosing(run, stage)
    planned = plan(choosing, [Source(url)], folder / f"plan-{codec}", Reading(), Terms(), failures.append)
    server.reset()
    plan_file = folder / f"plan-{codec}" / "plan.json"
    found = predict(choosing, [Source(url)], Results(folder / codec), Reading(), failures.append, plan_file)
    assert not failures, failures
    (scene,) = found["scenes"]
    execution = scene["execution"]["total"]
    cells = [json.loads(line) for line in (folder / codec / scene["files"]["jsonl"]).read_text().splitlines()]
    number = {name: i for i, name in enumerate(data.classes)}
    return {
        "source": f"scene, {codec}, HTTP",
        "labels": [number[cell["label"]] for cell in cells],
        "mean_patches": scene["patches"] / scene["cells"],
        "requests": execution["requests"],
        "bytes": execution["bytes"],
        "bytes_sent_by_server": server.sent,
        "bytes_planned": planned["scenes"][0]["execution"]["total"]["bytes"],
        "bytes_of_everything": scene["everything"]["bytes"],
    }


def write_scene(path: Path, codec: str, data: Data, settings: TrainSettings) -> None:
    """The test split side by side, as many across as down or one less, with tiles of a patch's size."""
    images = torch.cat([batch.high for batch in data.splits["test"].in_order(settings.batch)])
    across = int(len(images) ** 0.5)
    down = len(images) // across
    rows = images[: down * across].unflatten(0, (down, across))
    height, width = settings.shape.high
    canvas: NDArray[np.uint8] = rows.permute(2, 0, 3, 1, 4).reshape(3, down * height, across * width).numpy()
    factor = height // settings.shape.low[0]
    where = {"crs": "EPSG:32633", "transform": from_origin(400_000, 5_000_000, 1, 1)}
    tiles = {"tiled": True, "blockxsize": width // 4, "blockysize": height // 4, **CODECS[codec]}
    size = {"count": 3, "height": canvas.shape[1], "width": canvas.shape[2], "dtype": np.uint8}
    with rasterio.open(path, "w", driver="GTiff", **size, **where, **tiles) as file:
        file.write(canvas)
        file.build_overviews([factor], Resampling.average)


if __name__ == "__main__":
    with errors_told():
        main()
