"""The paper's tables over one data set."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from patchdrop.commands.shared import (
    check_settings,
    judging_split,
    load_with_bar,
    network_costs,
    use_threads,
    with_augmentations,
    with_sizes,
)
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
from patchdrop.settings.comparison import CompareOptions, Price, bind, to_yaml
from patchdrop.settings.defaults import as_recorded, with_schedule
from patchdrop.settings.flat import TrainSettings
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
    settings, rows = _check_compare(options, settings)
    if not settings.data:
        raise UsageError(f"table {options.table} needs labelled images: name a folder or CSV file with --data")
    use_threads(settings)
    folder = RunFolder(out)
    with folder.locked():
        bind(folder.path, options, settings)
        seeds = [settings.seed + i for i in range(options.seeds)]
        first = _bench(options, settings, folder.path, trial=True)
        split = judging_split(first.data)
        asked = folder.path / "compare.yaml"
        if not asked.exists():
            write_bytes(asked, to_yaml(options, settings).encode())
        judged = []
        for seed in seeds:
            # Each seed carves its own val out of train.
            bench = first if seed == settings.seed else _bench(options, replace(first.settings, seed=seed), folder.path)
            _train_comparison(bench, rows)
            with bars({}, "images") as progress:
                judged.append(comparison.seed_rows(bench, rows, split, price, progress.advance, timed=bench is first))
        where = {**provenance(settings.seed), **comparison.training(first, rows)}
        document = comparison.results(first, rows, judged, seeds, split, price, where)
        # Another call may differ in what may differ, such as where the data lie; it is on record once it has worked.
        write_bytes(asked, to_yaml(options, settings).encode())
        comparison.write(folder.path, document)
    return document


def compare_list(options: CompareOptions, settings: TrainSettings, out: str | Path) -> dict[str, Any]:
    """The rows of a table; with data also the stages that one seed trains, and what each takes here."""
    settings, rows = _check_compare(options, settings)
    document: dict[str, Any] = {
        "table": options.table,
        "profile": options.profile,
        "rows": [{"row": row.method, "about": row.about, "stages": list(row.stages)} for row in rows],
    }
    if not settings.data:
        return document
    use_threads(settings)
    bench = replace(_bench(options, settings, Path(out)), planned=True)
    work = comparison_plan(bench, rows, measured=True)
    return {
        **document,
        "data": bench.data.name,
        "work": [w._asdict() for w in work],
        "seconds": round(sum(w.seconds for w in work), 1),
    }


def _check_compare(options: CompareOptions, settings: TrainSettings) -> tuple[TrainSettings, list[Row]]:
    settings, _ = with_sizes(replace(settings, insist=True))  # a table has all stages
    check_settings(settings)
    options.check(settings)
    return settings, chosen_rows(FORMS[options.table], options.rows)


def _train_comparison(bench: Bench, rows: Sequence[Row]) -> None:
    with bench.run.locked():
        bench.run.start(bench.settings)
        steps = comparison_plan(replace(bench, planned=True), rows, measured=False)
        if not all(w.done for w in steps):
            bench.run.log({"event": "start", **provenance(bench.settings.seed)})
        work = {f"{w.row} {w.stage}": (0 if w.done else w.steps, 1.0) for w in steps}
        with Stopper().listening() as stop, bars(work, "steps") as progress:
            if bench.options.jobs == 1:
                train_rows(bench, rows, progress.advance, stop)
            else:
                train_side_by_side(bench, rows, bench.options.jobs, progress.advance, stop)


def _bench(options: CompareOptions, settings: TrainSettings, folder: Path, trial: bool = False) -> Bench:
    run = RunFolder(folder / f"seed-{settings.seed}" / "run")
    if run.exists() and run.begun():
        settings = as_recorded(settings, run.settings())
    data = load_with_bar(settings)
    settings = with_schedule(settings, len(data.splits["fit"]))
    settings = with_augmentations(settings, data) if trial else settings
    network_costs(settings, data)  # networks that cannot take these images are refused before anything is trained
    return Bench(options, settings, data, folder / f"seed-{settings.seed}")
