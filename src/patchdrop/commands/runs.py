"""Train a run, evaluate it, predict with it, and describe what is in it."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

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
from patchdrop.episode import PatchDrop
from patchdrop.errors import DataError, RunError, UsageError
from patchdrop.evaluation.calibrate import without_calibration
from patchdrop.evaluation.dial import FILE as CALIBRATION
from patchdrop.evaluation.dial import (
    choices_of,
    chosen_point,
    policy_stage,
    policy_stages,
    read_calibration,
    stage_and_choice,
)
from patchdrop.evaluation.evaluate import evaluate as evaluate_stages
from patchdrop.evaluation.evaluate import example_positions, yardstick_names
from patchdrop.evaluation.evaluate import results as results_document
from patchdrop.evaluation.verdict import last_verdict
from patchdrop.files import write_json
from patchdrop.policy.budget import above, cut_for_mean
from patchdrop.policy.choice import Choose, greedy
from patchdrop.read.source import from_memory
from patchdrop.report.gallery import GalleryItem, overlay
from patchdrop.report.page import write_report
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.serve.predictor import Prediction, Predictor, gallery_items
from patchdrop.settings.dial import Dial
from patchdrop.settings.flat import TrainSettings
from patchdrop.terminal.talk import bars, say
from patchdrop.training.recipe import Recipe, device_of
from patchdrop.training.run import Stopper, help_stages, train_stages
from patchdrop.training.team import Team, joined
from patchdrop.version import VERSION

OF_A_MACHINE = ("data", "layout", "cache", "workers", "memory_gb", "device")
"""Settings that each of the processes that train together has for itself."""
GALLERY = 36
BATCH = 32
"""Images predicted at a time."""
Pair = tuple[str | Path, str | Path | None]
"""HR file, and LR file of a sensor of its own, or None."""
Found = TypeVar("Found")


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
            return _evaluate_and_report(run, data, judging_split(data), recipe)


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
    run_folder: str | Path, data: str | None = None, split: str = "test", dial: Dial | None = None
) -> dict[str, Any]:
    """Evaluate a trained run on a split of a data set, by default the data set that it was trained on.

    On its own test split the run's ``results.json`` and report are written anew, and no training may go on meanwhile,
    unless ``dial`` asks for another choice than the policy's own.
    """
    run = RunFolder(run_folder).require()
    recipe = Recipe.of(run.settings())
    recipe.use_threads()
    if dial is not None and dial.turned:
        return _evaluate_dial(run, recipe, data, split, dial)
    source = recipe.source.elsewhere(data)
    writes = split == "test" and source is recipe.source
    with run.locked() if writes else nullcontext():
        loaded = split_to_evaluate(source, split)
        same_classes(run, loaded)
        same_low(run, loaded, split)
        if writes:
            return _evaluate_and_report(run, loaded, split, recipe)
        return _results(run, loaded, split, recipe)[0]


def _evaluate_dial(run: RunFolder, recipe: Recipe, data: str | None, split: str, dial: Dial) -> dict[str, Any]:
    policy_stage(run)
    dial.check(recipe.source.shape.grid.patches)
    if dial.calibrated:
        chosen_point(run, read_calibration(run))  # report what is missing before images are decoded
    loaded = split_to_evaluate(recipe.source.elsewhere(data), split)
    same_classes(run, loaded)
    same_low(run, loaded, split)
    choices = choices_of(dial, run, policy_stages(run), loaded.splits[split], recipe.device)
    if dial.calibrated:
        loaded = replace(loaded, splits={split: without_calibration(read_calibration(run), loaded.splits[split])})
    return {**_results(run, loaded, split, recipe, choices)[0], "dial": str(dial)}


def _results(
    run: RunFolder,
    data: Data,
    split_name: str,
    recipe: Recipe,
    choices: Mapping[str, Choose] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    split = data.splits[split_name]
    stages = [
        s for s in run.stages_done() if s in ("lr", "hr") or (s != "patches" and (choices is None or s in choices))
    ]
    names = [n for s in stages for n in ([s] if s in ("lr", "hr") else _names(run, s))]
    with bars({name: (len(split), 1.0) for name in names}, "images") as progress:
        outcomes = evaluate_stages(run, split, recipe.schedule.seed, recipe.device, progress.advance, choices)
    where = provenance(recipe.schedule.seed)
    where["seconds"] = {s: run.stage_config(s).get("seconds") for s in run.stages_done()}
    where["trained"] = run.trained_by()
    return results_document(run, recipe.with_classes(data.classes), data.name, split_name, outcomes, where), outcomes


def _names(run: RunFolder, stage: str) -> list[str]:
    return yardstick_names(stage, "plain" in run.stage_config(stage))


def _evaluate_and_report(run: RunFolder, data: Data, split_name: str, recipe: Recipe) -> dict[str, Any]:
    document, outcomes = _results(run, data, split_name, recipe)
    write_json(run.path / "results.json", document)
    shown = [s for s in ("pt", "ft1", "ft2") if s in outcomes]
    items: list[GalleryItem] = []
    if shown:
        positions = example_positions(outcomes[shown[-1]], GALLERY)
        items = _gallery(run, shown[-1], data.splits[split_name], positions)
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


def _gallery(run: RunFolder, stage: str, split: Split, positions: Sequence[int]) -> list[GalleryItem]:
    model, config = run.load(stage)
    assert isinstance(model, PatchDrop)
    batch = next(split.batches([torch.tensor(positions)]))
    low = low_of(batch, config.shape.low)
    with torch.inference_mode():
        episode = model(low, greedy, from_memory(batch.high, config.shape.grid))
    names = [split.names[i] for i in positions]
    truths = [config.classes[t] for t in batch.target.tolist()]
    return gallery_items(model, episode, batch.high, low, names, truths, config.classes)


def predict(
    run_folder: str | Path,
    images: Sequence[str | Path],
    low: Sequence[str | Path] | None = None,
    stage: str | None = None,
    overlay_folder: Path | None = None,
    failed: Callable[[str], None] | None = None,
    dial: Dial | None = None,
    scaled_low: bool = False,
) -> Iterable[Prediction]:
    """Predict image files, `BATCH` at a time.

    Args:
        failed: called with the reason for each image that cannot be read; without it the first one raises DataError.
        dial: how many patches may be read; by default what the policy chooses. A mean budget is spread over these
            images, so LR of all of them is looked at first.
        scaled_low: see `Predictor`.
    """
    choose: Choose = greedy
    run = RunFolder(run_folder).require()
    mean_budget = None if dial is None else dial.mean_budget
    if dial is not None and dial.turned and mean_budget is None:
        stage, choose = stage_and_choice(dial, run, stage, Recipe.of(run.settings()).device)
    predictor = Predictor(run_folder, stage, choose=choose, scaled_low=scaled_low)
    if low is not None and len(low) != len(images):
        raise UsageError(f"{len(images)} images and {len(low)} LR images were given, one each is needed")
    pairs = [(path, None if low is None else low[i]) for i, path in enumerate(images)]
    batches = [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]
    if dial is not None and mean_budget is not None:
        dial.check(predictor.grid.patches)
        predictor.choose = partial(above, cut=cut_for_mean(_scores(predictor, batches), mean_budget))
    if overlay_folder is None:
        for batch in batches:
            yield from _readable(predictor.predict, batch, failed)
        return
    used: set[str] = set()
    for prediction, item in itertools.chain.from_iterable(_readable(predictor.explain, b, failed) for b in batches):
        name = _unused(Path(prediction.path).stem, used)
        used.add(name)
        try:
            overlay_folder.mkdir(parents=True, exist_ok=True)
            overlay(item, predictor.grid).save(overlay_folder / f"{name}.png")
        except OSError as error:
            raise RunError(f"{overlay_folder}: cannot be written ({error.strerror}); choose another folder") from error
        yield prediction


def _readable(
    ask: Callable[[list[str | Path], list[str | Path] | None], Iterable[Found]],
    batch: Sequence[Pair],
    failed: Callable[[str], None] | None,
) -> Iterator[Found]:
    """Yield a predictor's answer for each image of a batch; if one cannot be read, ask for each alone."""
    lows = [low for _, low in batch if low is not None]
    try:
        found = list(ask([path for path, _ in batch], lows or None))
    except DataError as error:
        if len(batch) > 1:
            for pair in batch:
                yield from _readable(ask, [pair], failed)
        elif failed is None:
            raise
        else:
            failed(str(error))
        return
    yield from found


def _scores(predictor: Predictor, batches: Iterable[Sequence[Pair]]) -> Tensor:
    """Return the patch logits of all images whose LR can be read; the others are reported when they are predicted."""
    found = [scores for batch in batches for scores in _readable(predictor.scores, batch, lambda reason: None)]
    return torch.stack(found) if found else torch.empty(0, predictor.grid.patches)


def _unused(stem: str, used: Container[str]) -> str:
    """Return a picture's name: the image's own, with a number if an image of another folder has taken it."""
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in used)


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
