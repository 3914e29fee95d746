"""Measure the operating points of a trained policy on images that training did not use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from patchdrop.commands.shared import load_with_bar, same_classes, same_low, split_to_evaluate
from patchdrop.data.listing import list_images
from patchdrop.data.load import Data
from patchdrop.data.overlap import shared_image
from patchdrop.data.sets import Split
from patchdrop.data.source import DataSource
from patchdrop.data.windows import is_window_list, list_windows, overlapping
from patchdrop.episode import PatchDrop
from patchdrop.errors import DataError, RunError
from patchdrop.evaluation.calibrate import drawn, mask_price, milliseconds, operating_points
from patchdrop.evaluation.dial import FILE as CALIBRATION
from patchdrop.evaluation.dial import policy_stage
from patchdrop.files import write_json
from patchdrop.models.compute import Compute
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.settings.dial import Target
from patchdrop.settings.flat import MARKERS
from patchdrop.settings.machine import Machine
from patchdrop.terminal.talk import bars
from patchdrop.training.recipe import Recipe


def calibrate(
    run_folder: str | Path,
    data: str | None = None,
    split: str = "test",
    stage: str | None = None,
    target: Target | None = None,
    fraction: float | None = None,
    seed: int | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Measure a stage's operating points, pick the one that meets a target, and write ``calibration.json``.

    Thresholds are found on the run's validation split. The curve is measured on images that training did not use:
    a part of the run's own test split, drawn at random, or a split of another data set.

    Args:
        data: folder or CSV file with the labelled images; by default what the run was trained on.
        split: which split of ``data``.
        fraction: share of the split that is drawn; by default half of the run's own test split, all of another set.
        seed: seed of the draw; by default the run's.
        machine: device and precision; by default a GPU where there is one, in float32.

    Raises:
        DataError: no point qualifies, or an image was used in training.
        RunError: the run's data have changed since its training, or times are asked for that were not measured.
        UsageError: a value is out of range, or there is no such device.
    """
    compute = Compute.of(machine)
    run = RunFolder(run_folder).require()
    recipe, target = Recipe.of(run.settings()), target or Target()
    recipe.use_threads()
    target.check(recipe.source.shape.grid.patches)
    stage = policy_stage(run, stage)
    with run.locked():
        model, config = run.load(stage)
        assert isinstance(model, PatchDrop)
        patches = config.shape.grid.patches
        times = milliseconds(run.bench(), stage, patches) if target.unit == "milliseconds" else None
        priced = (target, times, mask_price(target, config))
        loaded, val = _calibration_data(run, recipe.source, data, split)
        whole = loaded.splits[split]
        if fraction is None:
            fraction = 0.5 if recipe.source.elsewhere(data) is recipe.source else 1.0
        seed = recipe.schedule.seed if seed is None else seed
        held = Split(whole.source, whole.index[drawn(len(whole), fraction, seed)[1]])
        described = run.stage_config(stage)
        sigma = float(described["figures"].get("sigma", 0.5))
        with bars({"val": (len(val), 1.0), "calibration": (len(held), 1.0)}, "images") as bar:
            found = operating_points(model.to(compute.device), config, val, held, *priced, sigma, compute, bar.advance)
        document = {
            "name": run.path.name,
            "stage": stage,
            "sha256": described["sha256"],
            "patches": patches,
            "images": {
                "data": loaded.name,
                "split": split,
                "fraction": fraction,
                "seed": seed,
                "n": len(held),
                "sha256": whole.sha256,
            },
            **found,
            "provenance": {**provenance(seed), **compute.to_json()},
        }
        write_json(run.path / CALIBRATION, document)
    return document


def _calibration_data(run: RunFolder, source: DataSource, data: str | None, split: str) -> tuple[Data, Split]:
    """Load the data to calibrate on, none of which training used, and the run's own validation split."""
    if data is None or data == source.data:
        if split != "test":
            raise DataError(
                f"{source.data}: its {split} split was used in training; calibrate on test, or other --data"
            )
        loaded = load_with_bar(source)
        if "test" not in loaded.splits:
            raise DataError(f"{source.data}: has no test split; name labelled images of their own with --data")
        for name, digest in run.data().get("sha256", {}).items():
            if name not in loaded.splits or loaded.splits[name].sha256 != digest:
                raise RunError(f"{source.data}: its {name} split has changed since the run was trained; put it back")
        val = loaded.splits["val"]
    else:
        loaded = load_with_bar(source.elsewhere(data), only=split)
        _refuse_trained(run, source, loaded, data, split)
        val = split_to_evaluate(source, "val").splits["val"]
    same_classes(run, loaded)
    same_low(run, loaded, split)
    return loaded, val


def _refuse_trained(run: RunFolder, source: DataSource, loaded: Data, data: str, split: str) -> None:
    """Raise DataError if training, or the choice of checkpoints, used an image of the split."""
    recorded = run.data()
    digest = loaded.splits[split].sha256
    for name, used in recorded.get("sha256", {}).items():
        if name != "test" and used == digest:
            raise DataError(f"{data}: its {split} split is what the run used as {name}; calibrate on other images")
    in_memory = loaded.layout in (MARKERS, "cifar10", "cifar100")
    if in_memory and split == "train" and loaded.layout == recorded.get("layout"):
        raise DataError(f"{data}: its train split was used in training; calibrate on other images")
    if in_memory or source.embedded:
        return
    if is_window_list(Path(data)) or is_window_list(Path(source.data)):
        _refuse_trained_windows(Path(source.data), Path(data), split)
        return
    theirs = list_images(source.data, source.layout).splits
    ours = [record.path for record in list_images(data).splits[split]]
    shared = shared_image(ours, [record.path for name in ("train", "val") for record in theirs.get(name, ())])
    if shared:
        raise DataError(f"{shared[0]}: is the image {shared[1]}, which training used; calibrate on other images")


def _refuse_trained_windows(trained: Path, data: Path, split: str) -> None:
    """Raise DataError if a window of the split overlaps one that training used; files are not comparable with it."""
    if not (is_window_list(trained) and is_window_list(data)):
        return
    ours = list_windows(data).splits[split]
    theirs = [w for name in ("train", "val") for w in list_windows(trained).splits.get(name, ())]
    for i, j in overlapping([*ours, *theirs]):
        if (i < len(ours)) != (j < len(ours)):
            mine, used = sorted((i, j))
            window = theirs[used - len(ours)]
            raise DataError(
                f"{ours[mine].where}: overlaps the window of {window.where}, which training used; "
                "calibrate on other windows"
            )
