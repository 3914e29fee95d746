"""The paper's tables over one data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchdrop.commands.shared import Prepared, judging_split, prepared, sized
from patchdrop.compare import results as comparison
from patchdrop.compare.bench import Bench
from patchdrop.compare.rows import Row
from patchdrop.compare.side_by_side import train_side_by_side
from patchdrop.compare.table import FORMS, chosen_rows
from patchdrop.compare.train import plan as comparison_plan
from patchdrop.compare.train import train_rows
from patchdrop.errors import UsageError
from patchdrop.files import write_bytes
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.settings.comparison import CompareOptions, Price, bind
from patchdrop.settings.flat import TrainSettings, to_yaml
from patchdrop.terminal.talk import bars
from patchdrop.training.run import Stopper

NO_PRICE = Price()


def compare(
    options: CompareOptions, settings: TrainSettings, out: str | Path, price: Price = NO_PRICE
) -> dict[str, Any]:
    """Train every row of a table that is not there yet, judge all of them on the same images, write and return it.

    Args:
        settings: of the run and, where a row does not say otherwise, of every row; its seed is the first one.
        out: folder of the comparison.
    """
    settings, rows = _asked(options, settings)
    if not settings.data:
        raise UsageError(f"table {options.table} needs labelled images: name a folder or CSV file with --data")
    folder = RunFolder(out)
    asked = folder.path / "compare.yaml"
    with folder.locked():
        document = {**options.to_mapping(), **settings.to_mapping()}
        bind(folder.path, document)
        seeds = [settings.seed + i for i in range(options.seeds)]
        ready = _ready(settings, folder.path)
        split = judging_split(ready.data)
        if not asked.exists():
            write_bytes(asked, to_yaml(document).encode())
        first, judged = _bench(options, ready, folder.path), []
        for seed in seeds:
            if seed != settings.seed:  # each seed carves its own val out of train
                ready = _ready(replace(ready.settings, seed=seed), folder.path)
            bench = first if seed == settings.seed else _bench(options, ready, folder.path)
            _train_comparison(bench, ready.settings.to_mapping(), rows)
            with bars({}, "images") as progress:
                judged.append(comparison.seed_rows(bench, rows, split, price, progress.advance, timed=bench is first))
        where = {**provenance(settings.seed), **comparison.training(first, rows)}
        results = comparison.results(first, rows, judged, seeds, split, price, where)
        # Another call may differ in what may differ, such as where the data lie; it is on record once it has worked.
        write_bytes(asked, to_yaml(document).encode())
        comparison.write(folder.path, results)
    return results


def compare_list(options: CompareOptions, settings: TrainSettings, out: str | Path) -> dict[str, Any]:
    """The rows of a table; with data also the stages that one seed trains, and what each takes here."""
    settings, rows = _asked(options, settings)
    document: dict[str, Any] = {
        "table": options.table,
        "profile": options.profile,
        "rows": [{"row": row.method, "about": row.about, "stages": list(row.stages)} for row in rows],
    }
    if not settings.data:
        return document
    ready = _ready(settings, Path(out))
    bench = replace(_bench(options, ready, Path(out)), planned=True)
    work = comparison_plan(bench, rows, measured=True)
    return {
        **document,
        "data": bench.data.name,
        "work": [w._asdict() for w in work],
        "seconds": round(sum(w.seconds for w in work), 1),
    }


def _train_comparison(bench: Bench, settings: Mapping[str, Any], rows: Sequence[Row]) -> None:
    with bench.run.locked():
        bench.run.start(settings)
        steps = comparison_plan(replace(bench, planned=True), rows, measured=False)
        if not all(w.done for w in steps):
            bench.run.log({"event": "start", **provenance(bench.seed)})
        work = {f"{w.row} {w.stage}": (0 if w.done else w.steps, 1.0) for w in steps}
        with Stopper().listening() as stop, bars(work, "steps") as progress:
            if bench.options.jobs == 1:
                train_rows(bench, rows, progress.advance, stop)
            else:
                train_side_by_side(bench, rows, bench.options.jobs, progress.advance, stop)


def _ready(settings: TrainSettings, folder: Path) -> Prepared:
    """What one seed's run is given: what is filled in is as the run has it on record, where it has begun."""
    run = RunFolder(_folder(folder, settings.seed) / "run")
    return prepared(settings.filled(run.settings().to_mapping()) if run.exists() and run.begun() else settings)


def _bench(options: CompareOptions, ready: Prepared, folder: Path) -> Bench:
    return Bench(options, ready.recipe, ready.data, _folder(folder, ready.settings.seed))


def _folder(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"


def _asked(options: CompareOptions, settings: TrainSettings) -> tuple[TrainSettings, list[Row]]:
    """Settings with sizes and networks, and the rows asked for; a table has all stages."""
    rows = chosen_rows(FORMS[options.table], options.rows)
    settings, _ = sized(replace(settings, insist=True))
    stages = [stage for stage in settings.stages if settings.epochs[stage] != 0]
    options.check(settings.shape.grid.patches, stages, settings.classifier)
    return settings, rows
