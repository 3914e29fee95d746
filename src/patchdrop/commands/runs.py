"""Train a run, evaluate it, and describe what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from patchdrop.commands.shared import (
    judging_split,
    load_with_bar,
    prepared,
    same_classes,
    same_low,
    split_to_evaluate,
)
from patchdrop.data.load import Data
from patchdrop.data.sets import Split, low_of
from patchdrop.episode import PatchDrop, play
from patchdrop.errors import RunError
from patchdrop.evaluation.calibrate import without_calibration
from patchdrop.evaluation.dial import FILE as CALIBRATION
from patchdrop.evaluation.dial import (
    choices_of,
    chosen_point,
    policy_stage,
    policy_stages,
    read_calibration,
)
from patchdrop.evaluation.evaluate import evaluate as evaluate_stages
from patchdrop.evaluation.evaluate import example_positions, yardstick_names
from patchdrop.evaluation.evaluate import results as results_document
from patchdrop.evaluation.verdict import last_verdict
from patchdrop.files import write_json
from patchdrop.models.compute import Compute
from patchdrop.networks.device import device_of
from patchdrop.policy.choice import Choose, greedy
from patchdrop.read.source import from_memory
from patchdrop.report.gallery import GalleryItem
from patchdrop.report.page import write_report
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.serve.predictor import gallery_items
from patchdrop.settings.dial import Dial
from patchdrop.settings.flat import TrainSettings
from patchdrop.settings.machine import Machine
from patchdrop.terminal.talk import bars, say
from patchdrop.training.recipe import Recipe
from patchdrop.training.run import Stopper, help_stages, train_stages
from patchdrop.training.team import Team, joined
from patchdrop.version import VERSION

OF_A_MACHINE = ("data", "layout", "cache", "workers", "memory_gb", "device")
"""Settings that each of the processes that train together has for itself."""
GALLERY = 36


def train(settings: TrainSettings, out: str | Path) -> dict[str, Any]:
    """Train what is asked for and not trained yet, then evaluate and write the report.

    Where torchrun started several processes, the first one does all that, and the others help it to train.

    Returns:
        The document of ``results.json`` for the test split, or for ``val`` if there is none; without rows if no stage
        is trained. Empty in a process that helps.
    """
    with joined(partial(device_of, settings.device)) as team:
        team.agree({"version": VERSION, "torch": torch.__version__, **settings.bound})
        if team.rank:
            _help(team, {name: getattr(settings, name) for name in OF_A_MACHINE})
            return {}
        run = RunFolder(out)
        with team.leading(), run.locked():
            if run.exists() and run.begun():
                settings = settings.filled(run.settings().to_mapping()).steady
                run.start(settings.to_mapping())
            settings = settings.filled({} if run.begun() else {"shards": team.shards})
            team.check(settings.shards)
            ready = prepared(settings)
            recipe, data = ready.recipe, ready.data
            run.start(ready.settings.to_mapping())  # only now, so that a mistyped path or network leaves no trace
            run.log({"event": "start", **provenance(settings.seed), "processes": team.size})
            team.send(ready.settings)
            if data.read is not None:
                run.log({"event": "read", **data.read.to_json()})
            work = {stage: (ready.steps(stage), ready.flops_a_step(stage)) for stage in recipe.stages}
            with Stopper().listening() as stop, bars(work, "steps") as progress:
                train_stages(recipe, data, run, progress.advance, stop, team)
            return _evaluate_and_report(run, data, judging_split(data), recipe, Compute(recipe.device))


def _help(team: Team, here: Mapping[str, Any]) -> None:
    """Load the data that the first process trains on, and take part in its steps.

    Args:
        here: the settings `OF_A_MACHINE` of this process.
    """
    with team.helping():
        if (settings := team.receive()) is None:
            return
        recipe = Recipe.of(replace(settings, **here))
        recipe.use_threads()
        data = load_with_bar(recipe.source)
        with Stopper().listening() as stop:
            help_stages(recipe, data, team, stop)


def evaluate(
    run_folder: str | Path,
    data: str | None = None,
    split: str = "test",
    dial: Dial | None = None,
    machine: Machine | None = None,
) -> dict[str, Any]:
    """Evaluate a trained run on a split of a data set, by default the data set that it was trained on.

    On its own test split the run's ``results.json`` and report are written anew, and no training may go on meanwhile,
    unless ``dial`` asks for another choice than the policy's own.

    Args:
        machine: device and precision; by default a GPU where there is one, in float32.
    """
    compute = Compute.of(machine)
    run = RunFolder(run_folder).require()
    recipe = Recipe.of(run.settings())
    recipe.use_threads()
    if dial is not None and dial.turned:
        return _evaluate_dial(run, recipe, data, split, dial, compute)
    source = recipe.source.elsewhere(data)
    writes = split == "test" and source is recipe.source
    with run.locked() if writes else nullcontext():
        loaded = split_to_evaluate(source, split)
        same_classes(run, loaded)
        same_low(run, loaded, split)
        if writes:
            return _evaluate_and_report(run, loaded, split, recipe, compute)
        return _results(run, loaded, split, recipe, compute)[0]


def _evaluate_dial(
    run: RunFolder, recipe: Recipe, data: str | None, split: str, dial: Dial, compute: Compute
) -> dict[str, Any]:
    policy_stage(run)
    dial.check(recipe.source.shape.grid.patches)
    if dial.calibrated:
        chosen_point(run, read_calibration(run))  # report what is missing before images are decoded
    loaded = split_to_evaluate(recipe.source.elsewhere(data), split)
    same_classes(run, loaded)
    same_low(run, loaded, split)
    choices = choices_of(dial, run, policy_stages(run), loaded.splits[split], compute)
    if dial.calibrated:
        loaded = replace(loaded, splits={split: without_calibration(read_calibration(run), loaded.splits[split])})
    return {**_results(run, loaded, split, recipe, compute, choices)[0], "dial": str(dial)}


def _results(
    run: RunFolder,
    data: Data,
    split_name: str,
    recipe: Recipe,
    compute: Compute,
    choices: Mapping[str, Choose] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    split = data.splits[split_name]
    stages = [
        s for s in run.stages_done() if s in ("lr", "hr") or (s != "patches" and (choices is None or s in choices))
    ]
    names = [n for s in stages for n in ([s] if s in ("lr", "hr") else _names(run, s))]
    with bars({name: (len(split), 1.0) for name in names}, "images") as progress:
        outcomes = evaluate_stages(run, split, recipe.schedule.seed, compute, progress.advance, choices)
    where = {**provenance(recipe.schedule.seed), **compute.to_json()}
    where["seconds"] = {s: run.stage_config(s).get("seconds") for s in run.stages_done()}
    where["trained"] = run.trained_by()
    return results_document(run, recipe.with_classes(data.classes), data.name, split_name, outcomes, where), outcomes


def _names(run: RunFolder, stage: str) -> list[str]:
    return yardstick_names(stage, "plain" in run.stage_config(stage))


def _evaluate_and_report(
    run: RunFolder, data: Data, split_name: str, recipe: Recipe, compute: Compute
) -> dict[str, Any]:
    document, outcomes = _results(run, data, split_name, recipe, compute)
    write_json(run.path / "results.json", document)
    shown = [s for s in ("pt", "ft1", "ft2") if s in outcomes]
    items: list[GalleryItem] = []
    if shown:
        positions = example_positions(outcomes[shown[-1]], GALLERY)
        items = _gallery(run, shown[-1], data.splits[split_name], positions, compute)
    try:
        page = write_report(run.path, document, run.read_log(), items, _dial_curve(run))
    except OSError as error:
        raise RunError(f"{run}: the report cannot be written ({error.strerror}); results.json is there") from error
    say(f"report: {page}")
    return document


def _dial_curve(run: RunFolder) -> dict[str, Any] | None:
    """Read what `calibrate` wrote, for the report; if it is out of date, leave it out and say so."""
    try:
        return read_calibration(run) if (run.path / CALIBRATION).exists() else None
    except RunError as error:
        say(f"the report leaves the dial out: {error}")
        return None


def _gallery(run: RunFolder, stage: str, split: Split, positions: Sequence[int], compute: Compute) -> list[GalleryItem]:
    model, config = run.load(stage)
    assert isinstance(model, PatchDrop)
    batch = next(split.batches([torch.tensor(positions)]))
    low = low_of(batch, config.shape.low)
    look = partial(compute.look, model.to(compute.device))
    with torch.inference_mode():
        episode = play(look, greedy, from_memory(batch.high.to(compute.device), config.shape.grid), low)
    names = [split.names[i] for i in positions]
    truths = [config.classes[t] for t in batch.target.tolist()]
    return gallery_items(model, episode, batch.high, low, names, truths, config.classes)


def info(run_folder: str | Path) -> dict[str, Any]:
    """Describe what is in a run."""
    run = RunFolder(run_folder).require()
    stages = {}
    for stage in run.stages_done():
        config = run.stage_config(stage)
        stages[stage] = {k: config.get(k) for k in ("parameters", "seconds", "figures", "sha256")}
    data = run.data()
    starts = [e for e in run.read_log() if e.get("event") == "start"]
    settings = run.settings()
    return {
        "run": str(run),
        "data": {k: data.get(k) for k in ("name", "layout", "classes", "images", "low")},
        "grid": settings.grid,
        "classifier": settings.classifier,
        "networks": {
            "hr": settings.hr_network,
            "lr": settings.lr_network,
            "policy": settings.policy_network,
        },
        "verdict": last_verdict(run),
        "stages": stages,
        "rows": run.results().get("rows", []),
        "versions": starts[-1]["versions"] if starts else {},
        "settings": settings.to_mapping(),
    }
