"""What each command does, as functions that also make the Python API."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from patchdrop.compare import results as comparison
from patchdrop.compare.bench import Bench
from patchdrop.compare.options import CompareOptions, Price, bind, to_yaml
from patchdrop.compare.rows import Row
from patchdrop.compare.table import FORMS, chosen_rows
from patchdrop.compare.train import plan as comparison_plan
from patchdrop.compare.train import train_rows
from patchdrop.cost import Cost, forward_costs, step_flops
from patchdrop.data.listing import list_images
from patchdrop.data.load import Data, load, statistics
from patchdrop.data.low import area_average
from patchdrop.data.overlap import shared_image
from patchdrop.data.sets import Split, low_of
from patchdrop.dial import Dial, Target
from patchdrop.episode import PatchDrop
from patchdrop.errors import DataError, PatchDropError, RunError, UsageError, first_line
from patchdrop.evaluation.calibrate import drawn, milliseconds, operating_points, without_calibration
from patchdrop.evaluation.dial import FILE as CALIBRATION
from patchdrop.evaluation.dial import POLICY_STAGES, choices_of, policy_stage, policy_stages, read_calibration
from patchdrop.evaluation.evaluate import evaluate as evaluate_stages
from patchdrop.evaluation.evaluate import example_positions
from patchdrop.evaluation.evaluate import results as results_document
from patchdrop.files import write_bytes, write_json
from patchdrop.grid import Grid
from patchdrop.models import ModelConfig, build_stage
from patchdrop.networks import check_pretrained
from patchdrop.policy.choice import Choose, greedy
from patchdrop.provenance import provenance
from patchdrop.read.source import from_memory
from patchdrop.report import GalleryItem, overlay, write_report
from patchdrop.runfolder import RunFolder
from patchdrop.serve.predictor import Prediction, Predictor, gallery_items
from patchdrop.settings import TrainSettings, to_mapping
from patchdrop.talk import bars, say
from patchdrop.timing import WARM_UP, straight_lines, ways_of
from patchdrop.timing import measure as time_ways
from patchdrop.training import run as training
from patchdrop.training.run import Stopper, active_stages, device_of, make_task, on_device, stage_steps, train_stages

GALLERY = 36
NO_PRICE = Price()


def train(settings: TrainSettings, out: str | Path) -> dict[str, Any]:
    """Train what is asked for and not there yet, then evaluate and write the report.

    Returns:
        The document of ``results.json``: of the test split, or of ``val`` where there is none; without rows where no
        stage is trained.
    """
    run = RunFolder(out)
    check_settings(settings)
    _use(settings)
    with run.locked():
        if run.exists():
            run.start(settings)
        data = load_with_bar(settings)
        costs = stage_costs(settings, data)
        run.start(settings)  # only now, so that a mistyped path or network leaves no trace
        run.log({"event": "start", **provenance(settings.seed)})
        work = {stage: (stage_steps(settings, data, stage), cost) for stage, cost in costs.items()}
        with Stopper().listening() as stop, bars(work, "steps") as progress:
            train_stages(settings, data, run, progress.advance, stop)
        return _evaluate_and_report(run, data, _judging_split(data), settings)


def check_settings(settings: TrainSettings) -> None:
    """Raise UsageError where settings contradict each other, before anything is loaded."""
    grid = Grid.parse(settings.grid)
    grid.check(*settings.high_size)
    if settings.target_patches > grid.patches:
        raise UsageError(
            f"target_patches: {settings.target_patches:g} is out of range, grid {grid} has {grid.patches} patches; "
            f"use 0 to {grid.patches}"
        )
    if settings.pretrained:
        check_pretrained((settings.hr_network, settings.lr_network, settings.policy_network))


def evaluate(
    run_folder: str | Path, data: str | None = None, split: str = "test", dial: Dial | None = None
) -> dict[str, Any]:
    """The table of a trained run for a split of a data set, by default the one it was trained on.

    On its own test split the run's ``results.json`` and report are written anew, and no training may go on meanwhile;
    not so where ``dial`` asks for another choice than the policy's own.
    """
    run = RunFolder(run_folder).require()
    settings = run.settings()
    _use(settings)
    if dial is not None and dial.turned:
        return _evaluate_dial(run, settings, data, split, dial)
    elsewhere = data is not None and data != settings.data
    if elsewhere:
        settings = replace(settings, data=str(data), layout="auto")
    writes = split == "test" and not elsewhere
    with run.locked() if writes else nullcontext():
        loaded = _split_to_evaluate(settings, split)
        _same_classes(run, loaded)
        _same_low(run, loaded, split)
        if writes:
            return _evaluate_and_report(run, loaded, split, settings)
        return _results(run, loaded, split, settings)[0]


def _split_to_evaluate(settings: TrainSettings, split: str) -> Data:
    """A split as it was in training: a carved ``val`` is carved again."""
    if split == "test":
        return load_with_bar(settings, only="test")
    data = load_with_bar(settings)
    if split not in data.splits:
        raise RunError(f"{settings.data}: has no {split} split, only {', '.join(data.splits)}")
    return data


def _same_classes(run: RunFolder, data: Data) -> None:
    trained = tuple(run.stage_config(_first_stage(run))["classes"])
    if trained != data.classes:
        odd = sorted(set(trained) ^ set(data.classes))[:3]
        raise RunError(
            f"{run}: was trained on {len(trained)} classes, {data.name} has {len(data.classes)} "
            f"(not in both: {', '.join(odd)}); evaluate it on data with the same classes"
        )


def _same_low(run: RunFolder, data: Data, split: str) -> None:
    """LR images of another sensor cannot be replaced by averages of HR; the other way round one may try."""
    if run.own_low and not data.splits[split].own_low:
        raise RunError(
            f"{run}: was trained on LR images of their own, {data.name} has none; "
            "name them in the column low_path of a CSV file"
        )


def _first_stage(run: RunFolder) -> str:
    done = run.stages_done()
    if not done:
        raise RunError(f"{run}: no stage is trained yet; go on with `patchdrop train`")
    return done[0]


def _results(
    run: RunFolder,
    data: Data,
    split_name: str,
    settings: TrainSettings,
    choices: Mapping[str, Choose] | None = None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    split = data.splits[split_name]
    stages = [
        s for s in run.stages_done() if s in ("lr", "hr") or (s != "patches" and (choices is None or s in choices))
    ]
    names = [n for s in stages for n in ([s] if s in ("lr", "hr") else [s, f"{s}/random", f"{s}/shuffled"])]
    with bars({name: (len(split), 1.0) for name in names}, "images") as progress:
        outcomes = evaluate_stages(run, split, settings.seed, device_of(settings), progress.advance, choices)
    where = provenance(settings.seed)
    where["seconds"] = {s: run.stage_config(s).get("seconds") for s in run.stages_done()}
    where["trained"] = [
        {k: e[k] for k in ("command", "commit", "machine")} for e in run.read_log() if e.get("event") == "start"
    ]
    config = ModelConfig.of(settings, data.classes)
    return results_document(run, config, data.name, split_name, outcomes, where), outcomes


def _evaluate_and_report(run: RunFolder, data: Data, split_name: str, settings: TrainSettings) -> dict[str, Any]:
    document, outcomes = _results(run, data, split_name, settings)
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
    """What `calibrate` wrote, for the report; one that is out of date is left out, and said to be."""
    try:
        return read_calibration(run) if (run.path / CALIBRATION).exists() else None
    except RunError as error:
        say(f"the report leaves the dial out: {error}")
        return None


def _gallery(run: RunFolder, stage: str, split: Split, positions: Sequence[int]) -> list[GalleryItem]:
    model, config = run.load(stage)
    assert isinstance(model, PatchDrop)
    batch = next(split.batches([torch.tensor(positions)]))
    low = low_of(batch, config.low_size)
    with torch.inference_mode():
        episode = model(low, greedy, from_memory(batch.high, Grid.parse(config.grid)))
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
    """Predict image files one by one.

    Args:
        failed: takes the reason of each image that cannot be read; without it the first one raises DataError.
        dial: how many patches may be read; by default what the policy chooses.
        scaled_low: see `Predictor`.
    """
    choose: Choose = greedy
    if dial is not None and dial.turned:
        run = RunFolder(run_folder).require()
        last = policy_stage(run, stage)
        asked = policy_stages(run) if dial.calibrated and stage is None else [last]
        ((stage, choose),) = _choices(dial, run, run.settings(), asked).items()
    predictor = Predictor(run_folder, stage, choose=choose, scaled_low=scaled_low)
    lows = [None] * len(images) if low is None else list(low)
    if len(lows) != len(images):
        raise UsageError(f"{len(images)} images and {len(lows)} LR images were given, one each is needed")
    used: set[str] = set()
    for path, low_path in zip(images, lows, strict=True):
        own_low = None if low_path is None else [low_path]
        try:
            if overlay_folder is None:
                yield predictor.predict([path], own_low)[0]
                continue
            prediction, item = predictor.explain([path], own_low)[0]
        except DataError as error:
            if failed is None:
                raise
            failed(str(error))
            continue
        name = _unused(Path(path).stem, used)
        used.add(name)
        try:
            overlay_folder.mkdir(parents=True, exist_ok=True)
            overlay(item, predictor.grid).save(overlay_folder / f"{name}.png")
        except OSError as error:
            raise RunError(f"{overlay_folder}: cannot be written ({error.strerror}); choose another folder") from error
        yield prediction


def _unused(stem: str, used: Container[str]) -> str:
    """A picture's name: the image's own, numbered where an image of another folder has taken it."""
    names = itertools.chain([stem], (f"{stem}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in used)


def _choices(dial: Dial, run: RunFolder, settings: TrainSettings, stages: Sequence[str]) -> dict[str, Choose]:
    dial.check(Grid.parse(settings.grid).patches)
    return choices_of(dial, run, stages, lambda: _split_to_evaluate(settings, "val").splits["val"], device_of(settings))


def _evaluate_dial(run: RunFolder, settings: TrainSettings, data: str | None, split: str, dial: Dial) -> dict[str, Any]:
    policy_stage(run)
    choices = _choices(dial, run, settings, policy_stages(run))
    elsewhere = data is not None and data != settings.data
    shown = replace(settings, data=str(data), layout="auto") if elsewhere else settings
    loaded = _split_to_evaluate(shown, split)
    _same_classes(run, loaded)
    _same_low(run, loaded, split)
    if dial.calibrated:
        loaded = replace(loaded, splits={split: without_calibration(read_calibration(run), loaded.splits[split])})
    return {**_results(run, loaded, split, shown, choices)[0], "dial": str(dial)}


def calibrate(
    run_folder: str | Path,
    data: str | None = None,
    split: str = "test",
    stage: str | None = None,
    target: Target | None = None,
    fraction: float | None = None,
    seed: int | None = None,
) -> dict[str, Any]:
    """Measure a stage's operating points and pick the one that meets a target; writes ``calibration.json``.

    Thresholds are found on the run's validation split. The curve is measured on images that training did not use:
    a part of the run's own test split, drawn at random, or a split of another data set.

    Args:
        data: folder or CSV file with the labelled images; by default what the run was trained on.
        split: of ``data``.
        fraction: share of the split that is drawn; by default half of the run's own test split, all of another set.
        seed: of the draw; by default the run's.

    Raises:
        DataError: no point qualifies, or an image was used in training.
        RunError: the run's data have changed since its training, or times are asked for that were not measured.
        UsageError: a value out of range.
    """
    run = RunFolder(run_folder).require()
    settings, target = run.settings(), target or Target()
    _use(settings)
    target.check(Grid.parse(settings.grid).patches)
    stage = policy_stage(run, stage)
    with run.locked():
        model, config = run.load(stage)
        assert isinstance(model, PatchDrop)
        patches = Grid.parse(config.grid).patches
        times = milliseconds(run.bench(), stage, patches) if target.unit == "milliseconds" else None
        loaded, val = _calibration_data(run, settings, data, split)
        whole = loaded.splits[split]
        if fraction is None:
            fraction = 0.5 if data is None or data == settings.data else 1.0
        seed = settings.seed if seed is None else seed
        held = Split(whole.source, whole.index[drawn(len(whole), fraction, seed)[1]])
        described, device = run.stage_config(stage), device_of(settings)
        sigma = float(described["figures"].get("sigma", 0.5))
        with bars({"val": (len(val), 1.0), "calibration": (len(held), 1.0)}, "images") as bar:
            found = operating_points(model.to(device), config, val, held, target, times, sigma, device, bar.advance)
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
            "provenance": provenance(seed),
        }
        write_json(run.path / CALIBRATION, document)
    return document


def _calibration_data(run: RunFolder, settings: TrainSettings, data: str | None, split: str) -> tuple[Data, Split]:
    """The data to calibrate on, none of which training used, and the run's own validation split."""
    if data is None or data == settings.data:
        if split != "test":
            raise DataError(
                f"{settings.data}: its {split} split was used in training; calibrate on test, or other --data"
            )
        loaded = load_with_bar(settings)
        if "test" not in loaded.splits:
            raise DataError(f"{settings.data}: has no test split; name labelled images of their own with --data")
        for name, digest in run.data().get("sha256", {}).items():
            if name not in loaded.splits or loaded.splits[name].sha256 != digest:
                raise RunError(f"{settings.data}: its {name} split has changed since the run was trained; put it back")
        val = loaded.splits["val"]
    else:
        loaded = load_with_bar(replace(settings, data=data, layout="auto"), only=split)
        _refuse_trained(run, settings, loaded, data, split)
        val = _split_to_evaluate(settings, "val").splits["val"]
    _same_classes(run, loaded)
    _same_low(run, loaded, split)
    return loaded, val


def _refuse_trained(run: RunFolder, settings: TrainSettings, loaded: Data, data: str, split: str) -> None:
    """Raise DataError where an image of the split is one that training, or the choice of checkpoints, used."""
    recorded = run.data()
    digest = loaded.splits[split].sha256
    for name, used in recorded.get("sha256", {}).items():
        if name != "test" and used == digest:
            raise DataError(f"{data}: its {split} split is what the run used as {name}; calibrate on other images")
    in_memory = loaded.layout in ("scenes", "cifar10", "cifar100")
    if in_memory and split == "train" and loaded.layout == recorded.get("layout"):
        raise DataError(f"{data}: its train split was used in training; calibrate on other images")
    if in_memory or settings.data == "scenes":
        return
    theirs = list_images(settings.data, settings.layout).splits
    ours = [record.path for record in list_images(data).splits[split]]
    shared = shared_image(ours, [record.path for name in ("train", "val") for record in theirs.get(name, ())])
    if shared:
        raise DataError(f"{shared[0]}: is the image {shared[1]}, which training used; calibrate on other images")


def bench(
    run_folder: str | Path,
    batches: Sequence[int] = (1, 8, 64),
    threads: int | None = None,
    rounds: int = 15,
    stages: Sequence[str] | None = None,
    data: str | None = None,
    split: str = "test",
) -> dict[str, Any]:
    """Time the networks of a run's stages on the CPU, all in turns; writes ``bench.json``.

    Args:
        batches: images a batch, each timed by itself.
        threads: of torch; by default the run's.
        rounds: timed runs of each way.
        stages: which; by default all that are trained, without ``patches``.
        data: folder or CSV file whose images to use, or ``scenes``; by default noise, whose own choice of patches
            means nothing.
        split: of ``data``.

    Raises:
        UsageError: a number out of range, or a stage that there is not.
        RunError: nothing is trained, or not what was asked for.
    """
    run = RunFolder(run_folder).require()
    settings = run.settings()
    if min(batches, default=0) < 1 or rounds < 1 or (threads is not None and threads < 1):
        raise UsageError("batch, threads and rounds must be at least 1")
    odd = sorted(set(stages or ()) - {"lr", "hr", *POLICY_STAGES})
    if odd:
        raise UsageError(f"stage {odd[0]!r} cannot be timed, use lr, hr, pt, ft1 or ft2")
    _use(settings if threads is None else replace(settings, threads=threads))
    _first_stage(run)
    loaded = {s: run.load(s) for s in stages or [s for s in run.stages_done() if s != "patches"]}
    models, config = {s: model for s, (model, _) in loaded.items()}, next(iter(loaded.values()))[1]
    high, low = _pixels_to_time(settings, config, max(batches), data, split)
    generator = torch.Generator().manual_seed(settings.seed)
    ways = ways_of(models, config, torch.rand(len(high), Grid.parse(config.grid).patches, generator=generator))
    work = {f"batch {size}": ((rounds + WARM_UP) * len(ways), float(size)) for size in batches}
    rows: list[dict[str, Any]] = []
    with bars(work, "runs") as bar:
        for size, name in zip(batches, work, strict=True):
            rows += time_ways(ways, high[:size], low[:size], rounds, lambda name=name: bar.advance(name, 1))  # type: ignore[misc]
    document = {
        "name": run.path.name,
        "pixels": "noise" if data is None else f"{Path(data).name}, {split} split",
        "high": list(config.high_size),
        "low": list(config.low_size),
        "patches": Grid.parse(config.grid).patches,
        "threads": torch.get_num_threads(),
        "warm_up": WARM_UP,
        "rounds": rounds,
        "rows": rows,
        "lines": straight_lines(rows),
        "provenance": provenance(settings.seed),
    }
    write_json(run.path / "bench.json", document)
    return document


def _pixels_to_time(
    settings: TrainSettings, config: ModelConfig, images: int, data: str | None, split: str
) -> tuple[Tensor, Tensor]:
    """HR and LR of ``images`` images, uint8: noise, or images of a data set, evenly over its order."""
    if data is None:
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (images, config.channels, *config.high_size)
        high = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        return high, area_average(high, config.low_size)
    other = settings if data == settings.data else replace(settings, data=data, layout="auto")
    found = _split_to_evaluate(other, split).splits[split]
    positions = torch.linspace(0, len(found) - 1, images).round().long()
    batch = next(found.batches([positions]))
    return batch.high, low_of(batch, config.low_size)


def info(run_folder: str | Path) -> dict[str, Any]:
    """What is in a run."""
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
        "stages": stages,
        "rows": run.results().get("rows", []),
        "versions": starts[-1]["versions"] if starts else {},
        "settings": to_mapping(settings),
    }


def plan(settings: TrainSettings) -> dict[str, Any]:
    """What `train` would do: data, networks, FLOPs, stages and the time they would take here."""
    check_settings(settings)
    _use(settings)
    data = load_with_bar(settings)
    costs = _costs(settings, data)
    rates = {stage: seconds_a_step(settings, data, stage) for stage in active_stages(settings)}
    stages = {}
    for stage, cost in stage_costs(settings, data).items():
        steps = stage_steps(settings, data, stage)
        stages[stage] = {
            "epochs": getattr(settings, f"epochs_{stage}"),
            "steps": steps,
            "flops": steps * cost,
            "seconds": round(steps * rates[stage], 1),
        }
    return {
        "data": {
            "name": data.name,
            "layout": data.layout,
            "classes": len(data.classes),
            "images": {name: len(split) for name, split in data.splits.items()},
            "skipped": len(data.skipped),
        },
        "high": list(settings.high_size),
        "low": list(settings.low_size),
        "grid": str(Grid.parse(settings.grid)),
        "networks": {
            name: {"network": getattr(settings, f"{name}_network"), **asdict(cost)} for name, cost in costs.items()
        },
        "flops_unit": "floating-point operations; a multiply-add counts as two",
        "stages": stages,
        "seconds": round(sum(s["seconds"] for s in stages.values()), 1),
    }


def compare(
    options: CompareOptions, settings: TrainSettings, out: str | Path, price: Price = NO_PRICE
) -> dict[str, Any]:
    """Train every row of a table that is not there yet, judge all of them on the same images, write and return it.

    Args:
        settings: of the run and, where a row does not say otherwise, of every row; its seed is the first one.
        out: folder of the comparison.
    """
    rows = _check_compare(options, settings)
    if not settings.data:
        raise UsageError(f"table {options.table} needs labelled images: name a folder or CSV file with --data")
    _use(settings)
    folder = RunFolder(out)
    with folder.locked():
        bind(folder.path, options, settings)
        seeds = [settings.seed + i for i in range(options.seeds)]
        first = _bench(options, settings, folder.path)
        split = _judging_split(first.data)
        write_bytes(folder.path / "compare.yaml", to_yaml(options, settings).encode())
        judged = []
        for seed in seeds:
            # Each seed carves its own val out of train.
            bench = first if seed == settings.seed else _bench(options, replace(settings, seed=seed), folder.path)
            _train_comparison(bench, rows)
            with bars({}, "images") as progress:
                judged.append(comparison.seed_rows(bench, rows, split, price, progress.advance, timed=bench is first))
        document = comparison.results(first, rows, judged, seeds, split, price, provenance(settings.seed))
        comparison.write(folder.path, document)
    return document


def compare_list(options: CompareOptions, settings: TrainSettings, out: str | Path) -> dict[str, Any]:
    """The rows of a table; with data also the stages that one seed trains, and what each takes here."""
    rows = _check_compare(options, settings)
    document: dict[str, Any] = {
        "table": options.table,
        "profile": options.profile,
        "rows": [{"row": row.method, "about": row.about, "stages": list(row.stages)} for row in rows],
    }
    if not settings.data:
        return document
    _use(settings)
    bench = replace(_bench(options, settings, Path(out)), planned=True)
    work = comparison_plan(bench, rows, measured=True)
    return {
        **document,
        "data": bench.data.name,
        "work": [w._asdict() for w in work],
        "seconds": round(sum(w.seconds for w in work), 1),
    }


def _check_compare(options: CompareOptions, settings: TrainSettings) -> list[Row]:
    check_settings(settings)
    options.check(settings)
    return chosen_rows(FORMS[options.table], options.rows)


def _train_comparison(bench: Bench, rows: Sequence[Row]) -> None:
    with bench.run.locked():
        bench.run.start(bench.settings)
        bench.run.log({"event": "start", **provenance(bench.settings.seed)})
        steps = comparison_plan(replace(bench, planned=True), rows, measured=False)
        work = {f"{w.row} {w.stage}": (0 if w.done else w.steps, 1.0) for w in steps}
        with Stopper().listening() as stop, bars(work, "steps") as progress:
            train_rows(bench, rows, progress.advance, stop)


def _bench(options: CompareOptions, settings: TrainSettings, folder: Path) -> Bench:
    data = load_with_bar(settings)
    _costs(settings, data)  # networks that cannot take these images are refused before anything is trained
    return Bench(options, settings, data, folder / f"seed-{settings.seed}")


def _judging_split(data: Data) -> str:
    """``test``, or where there is none ``val``, with a word about what that is worth."""
    if "test" in data.splits:
        return "test"
    say("there is no test split: evaluated on val, which also picked checkpoints, so figures are optimistic")
    return "val"


def seconds_a_step(settings: TrainSettings, data: Data, stage: str) -> float:
    """Time of one training step of a stage, measured on the first batches with untrained networks."""
    device = device_of(settings)
    config = ModelConfig.of(settings, data.classes)
    found = statistics(data.splits["fit"], settings.low_size, images=64)
    model = on_device(build_stage(stage, config, found), device)
    return training.seconds_a_step(make_task(stage, model, data, settings, device), settings.optimizer)


def stage_costs(settings: TrainSettings, data: Data) -> dict[str, float]:
    """FLOPs of one step of each stage that would train."""
    costs = _costs(settings, data)
    return {s: settings.batch * step_flops(s, costs, settings) for s in active_stages(settings)}


def _costs(settings: TrainSettings, data: Data) -> dict[str, Cost]:
    """Cost of each network; the first time that networks and sizes meet."""
    try:
        return forward_costs(settings, len(data.classes))
    except PatchDropError:
        raise
    except Exception as error:
        raise UsageError(
            f"networks {settings.hr_network}, {settings.lr_network}, {settings.policy_network} cannot take HR "
            f"{settings.high} and LR {settings.low} px images: {first_line(error)}"
        ) from error


def load_with_bar(settings: TrainSettings, only: str | None = None) -> Data:
    """Load a data set, showing how far decoding is, and say what was skipped."""
    seen = 0

    def progress(done: int, total: int) -> None:
        nonlocal seen
        bar.work = {"decoding": (total, 1.0)}
        bar.advance("decoding", done - seen)
        seen = done

    with bars({}, "images") as bar:
        data = load(settings, progress, only)
    for name, reason in data.skipped.items():
        say(f"skipped {name}: {reason}")
    if data.skipped:
        say(f"skipped {len(data.skipped)} images in all")
    return data


def _use(settings: TrainSettings) -> None:
    if settings.threads:
        torch.set_num_threads(settings.threads)
