"""Export a trained stage as ONNX graphs into a folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchdrop.commands.shared import load_with_bar
from patchdrop.data.low import area_average
from patchdrop.data.sets import low_of
from patchdrop.episode import PatchDrop
from patchdrop.errors import PatchDropError, RunError
from patchdrop.evaluation.dial import policy_stage
from patchdrop.files import read_json, write_bytes, write_json
from patchdrop.grid import boxes, patch_size
from patchdrop.models.build import ModelConfig
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import versions
from patchdrop.serve.export import BATCHES, PACKAGES, TOLERANCE, Runtime, check, check_packages, interface, to_graphs
from patchdrop.terminal.talk import say
from patchdrop.training.recipe import Recipe

GRAPHS = ("policy", "classifier")
DESCRIPTION = "model.json"
THRESHOLD = 0.0
"""Lowest patch logit at which a patch is read: a probability of 0.5, as in `patchdrop.policy.choice.greedy`."""


def export(run_folder: str | Path, onnx: str | Path, stage: str | None = None) -> dict[str, Any]:
    """Write a stage's policy and classifier as ONNX graphs, after checking that ONNX Runtime agrees with torch.

    Args:
        onnx: folder for ``policy.onnx``, ``classifier.onnx`` and ``model.json``, their description with checksums.
        stage: ``pt``, ``ft1`` or ``ft2``; by default the last one that is trained.

    Returns:
        The document of ``model.json``, and the ``folder``.

    Raises:
        UsageError: a package is missing, or the stage has no policy.
        RunError: no policy is trained, the graphs cannot be made or disagree, or the folder cannot be written or holds
            the export of other weights. Then nothing is written.
    """
    check_packages()
    run, folder = RunFolder(run_folder).require(), Path(onnx)
    recipe = Recipe.of(run.settings())
    recipe.use_threads()
    stage = policy_stage(run, stage)
    model, config = run.load(stage)
    assert isinstance(model, PatchDrop)
    weights = run.stage_config(stage)["sha256"]
    with _own_folder(folder, weights):
        high, low, pixels = _pixels_to_check(recipe, config)
        say(f"{run}: exporting stage {stage}")
        graphs = to_graphs(model, config)
        found = check(model, Runtime(graphs, torch.get_num_threads()), config.shape.grid, high, low)
        document = {
            "run": run.path.resolve().name,
            "stage": stage,
            "sha256": weights,
            **_description(config, run.own_low),
            **{name: _graph(name, graph) for name, graph in zip(GRAPHS, graphs, strict=True)},
            "check": {"pixels": pixels, "batches": list(BATCHES), "tolerance": TOLERANCE, "difference": found},
            "versions": {**versions(), **{name: version(name) for name in PACKAGES}},
        }
        _write(folder, dict(zip(GRAPHS, graphs, strict=True)), document)
    return {"folder": str(folder), **document}


def _description(config: ModelConfig, own_low: bool) -> dict[str, Any]:
    """Describe what is needed to run the graphs: sizes, where patches lie, how to choose."""
    grid, size = config.shape.grid, config.shape.high
    return {
        "classifier_kind": config.classifier,
        "classes": list(config.classes),
        "channels": config.shape.channels,
        "high": list(size),
        "low": list(config.shape.low),
        "low_from": "own" if own_low else "averaged",
        "grid": [grid.rows, grid.cols],
        "patch": list(patch_size(grid, *size)),
        "boxes": [list(box) for box in boxes(grid, *size)],
        "choice": {"threshold": THRESHOLD, "temperature": 1.0},
    }


def _graph(name: str, graph: bytes) -> dict[str, Any]:
    return {"file": _file(name), "sha256": hashlib.sha256(graph).hexdigest(), "bytes": len(graph), **interface(graph)}


def _file(name: str) -> str:
    return f"{name}.onnx"


def _write(folder: Path, graphs: Mapping[str, bytes], document: dict[str, Any]) -> None:
    """Write the graphs, then the description with their checksums; if one cannot be written, leave none of them."""
    try:
        for name, graph in graphs.items():
            write_bytes(folder / _file(name), graph)
        write_json(folder / DESCRIPTION, document)
    except RunError:
        for name in (*map(_file, graphs), DESCRIPTION):
            (folder / name).unlink(missing_ok=True)
        raise


@contextmanager
def _own_folder(folder: Path, weights: str) -> Iterator[None]:
    """Make the folder, and check that it is free or of the same weights; remove it again if it was made for nothing.

    Raises:
        RunError: it cannot be written, or holds something else.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        writable = os.access(folder, os.W_OK | os.X_OK)
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise RunError(f"{folder}: cannot be written ({error.strerror}); choose another folder") from error
    if not writable:
        raise RunError(f"{folder}: cannot be written (Permission denied); choose another folder")
    if DESCRIPTION in names:
        found = _held(folder / DESCRIPTION)
        if found.get("sha256") != weights:
            what = "a model.json of something else"
            if "sha256" in found:
                what = f"the export of other weights (stage {found.get('stage')} of {found.get('run')})"
            raise RunError(f"{folder}: holds {what}; choose another folder, or empty this one")
    try:
        yield
    finally:
        if made and not any(folder.iterdir()):
            folder.rmdir()


def _held(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except RunError:
        return {}
    return found if isinstance(found, dict) else {}


def _pixels_to_check(recipe: Recipe, config: ModelConfig) -> tuple[Tensor, Tensor, str]:
    """Return HR and LR of as many training images as the largest batch, or noise if there are none, and which it is."""
    images = max(BATCHES)
    # Without memory for images, only these few of a data set in files are decoded.
    few = replace(recipe.source, memory_gb=0.0, workers=0, skip_bad=False)
    try:
        split = load_with_bar(few, only="train").splits["train"]
        positions = torch.linspace(0, len(split) - 1, images).round().long()
        batch = next(split.batches([positions]))
        return batch.high, low_of(batch, config.shape.low), "images of the training data"
    except PatchDropError as error:
        say(f"checked on noise, because the run's data cannot be read: {error}")
    generator = torch.Generator().manual_seed(recipe.schedule.seed)
    shape = (images, config.shape.channels, *config.shape.high)
    high = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    return high, area_average(high, config.shape.low), "noise"
