"""Make the paper's tables for one data set."""

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
    """Train each row of a table that is not trained yet, judge all on the same images, write and return the table.

    Args:
        settings: settings of the run and, unless a row says otherwise, of every row; their seed is the first one.
        out: folder of the comparison.
    """
    settings, _ = sized(replace(settings, insist=True))  # a table has all stages
    options.check(settings.shape.grid.patches, settings.trained_stages, settings.classifier)
    rows = chosen_rows(FORMS[options.table], options.rows)
    if not settings.data:
        raise UsageError(f"table {options.table} needs labelled images: name a folder or CSV file with --data")
    folder = RunFolder(out)
    asked = folder.path / "compare.yaml"
    with folder.locked():
        document = {**options.to_mapping(), **settings.to_mapping()}
        bind(folder.path, document)
        seeds = [settings.seed + i for i in range(options.seeds)]
        ready = prepared(settings, recorded=_recorded(folder.path, settings.seed))
        split = judging_split(ready.data)
        if not asked.exists():
            write_bytes(asked, to_yaml(document).encode())
        first, judged = _bench(options, ready, folder.path), []
        for seed in seeds:
            if seed != settings.seed:  # each seed carves its own val out of train
                ready = prepared(replace(ready.settings, seed=seed), recorded=_recorded(folder.path, seed))
            bench = first if seed == settings.seed else _bench(options, ready, folder.path)
            _train_comparison(bench, ready.settings.to_mapping(), rows)
            with bars({}, "images") as progress:
                judged.append(comparison.seed_rows(bench, rows, split, price, progress.advance, timed=bench is first))
        where = {**provenance(settings.seed), **comparison.training(first, rows)}
        results = comparison.results(first, rows, judged, seeds, split, price, where)
        # Some settings may change from call to call, such as where the data lie; they are recorded once it has worked.
        write_bytes(asked, to_yaml(document).encode())
        comparison.write(folder.path, results)
    return results


def compare_list(options: CompareOptions, settings: TrainSettings, out: str | Path) -> dict[str, Any]:
    """List the rows of a table; with data also the stages that one seed trains, and the time each takes here."""
    settings, _ = sized(replace(settings, insist=True))  # a table has all stages
    options.check(settings.shape.grid.patches, settings.trained_stages, settings.classifier)
    rows = chosen_rows(FORMS[options.table], options.rows)
    document: dict[str, Any] = {
        "table": options.table,
        "profile": options.profile,
        "rows": [{"row": row.method, "about": row.about, "stages": list(row.stages)} for row in rows],
    }
    if not settings.data:
        return document
    ready = prepared(settings, recorded=_recorded(Path(out), settings.seed))
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


def _recorded(folder: Path, seed: int) -> dict[str, Any]:
    """Return the settings of a seed's run; empty if it has not begun."""
    run = RunFolder(_folder(folder, seed) / "run")
    return run.settings().to_mapping() if run.exists() and run.begun() else {}


def _bench(options: CompareOptions, ready: Prepared, folder: Path) -> Bench:
    return Bench(options, ready.recipe, ready.data, _folder(folder, ready.settings.seed))


def _folder(folder: Path, seed: int) -> Path:
    return folder / f"seed-{seed}"
