"""Write ``results.json`` of a comparison: rows, tables ready to print, and a foot that says how they were made."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from patchdrop.classify.super_resolution import Generator
from patchdrop.compare.bench import Bench
from patchdrop.compare.form import STAGE_NAMES, details, seed_form
from patchdrop.compare.judge import ORACLE_MASKS, Judged, Oracle, judge, oracle, signal_to_noise
from patchdrop.compare.measure import measured_costs, reading_costs, whole_costs
from patchdrop.compare.rows import Row
from patchdrop.compare.table import FORMS
from patchdrop.data.sets import Split
from patchdrop.evaluation.evaluate import row_of
from patchdrop.evaluation.metrics import mcnemar
from patchdrop.evaluation.outcome import Outcome
from patchdrop.files import write_bytes, write_json
from patchdrop.grid import size_text
from patchdrop.report.comparison import comparison
from patchdrop.report.figures import png
from patchdrop.settings.comparison import Price
from patchdrop.training.run import Advance

Rows = list[dict[str, Any]]


def results(
    bench: Bench,
    rows: Sequence[Row],
    judged: Sequence[Rows],
    seeds: Sequence[int],
    split_name: str,
    price: Price,
    provenance: dict[str, Any],
) -> dict[str, Any]:
    """Lay the tables out.

    Args:
        bench: of the first seed.
        judged: `seed_rows` of each seed. The document's ``rows`` are the first seed's; with several seeds, each row
            has ``seeds`` with the figures of all.
    """
    shown = over_seeds(judged, seeds)
    form, grid = FORMS[bench.options.table], bench.grid
    head, lines = seed_form(shown, [row.method for row in rows], form)
    more_head, more_lines = details(shown, price != Price())
    return {
        "table": bench.options.table,
        "profile": bench.options.profile,
        "data": bench.data.name,
        "split": split_name,
        "classes": len(bench.data.classes),
        "patches": grid.patches,
        "grid": [grid.rows, grid.cols],
        "high": list(bench.data.shape.high),
        "low": list(bench.data.shape.low),
        "seeds": list(seeds),
        "rows": shown,
        "tables": [
            {"title": "Accuracy, %, and S", "header": head, "lines": lines},
            {"title": "Every stage", "header": more_head, "lines": more_lines},
        ],
        "foot": foot(bench, rows, shown, split_name, price, provenance),
        "provenance": provenance,
    }


def seed_rows(bench: Bench, rows: Sequence[Row], split_name: str, price: Price, advance: Advance, timed: bool) -> Rows:
    """Return the rows of ``results.json`` of one seed, in the table's order, stage by stage."""
    split = bench.data.splits[split_name]
    judged = judge(bench, rows, split, advance)
    oracles = _oracles(bench, rows, split, judged) if any(row.own == "oracle" for row in rows) else {}
    for row in rows:
        if row.own == "oracle":
            judged[row.method] = {stage: found.outcome for stage, found in oracles.items()}
    measured = measured_costs(bench, rows, split, judged) if timed else {}
    found: Rows = []
    for row in rows:
        more = _psnr(row, bench, split)
        for stage, outcome in judged[row.method].items():
            entry = row_of(row.method, stage, outcome, _sigma(bench, stage))
            read = (
                whole_costs(row.whole_at(bench), bench, price) if row.whole_at else reading_costs(outcome, bench, price)
            )
            entry |= {**read, **measured.get((row.method, stage), {}), **more}
            ours = oracles[stage].patchdrop if row.own == "oracle" else judged[""][stage]
            entry["p_value"] = None if row.own == "policy" else mcnemar(ours.right, outcome.right)
            if row.own == "oracle":
                entry |= {"candidates": oracles[stage].candidates, **_on_subset(oracles[stage].patchdrop)}
            found.append(entry)
    return found


def _oracles(bench: Bench, rows: Sequence[Row], split: Split, judged: Judged) -> dict[str, Oracle]:
    selectors = [row.method for row in rows if row.selector]
    found = {}
    for stage, outcome in judged[""].items():
        masks = {"": outcome.choice, **{name: judged[name][stage].choice for name in selectors}}
        found[stage] = oracle(bench, stage, split, masks)
    return found


def _on_subset(outcome: Outcome) -> dict[str, float]:
    return {
        "patchdrop_accuracy_on_these": float(outcome.right.double().mean()),
        "patchdrop_mean_patches_on_these": float(outcome.choice.sum(1).double().mean()),
    }


def _sigma(bench: Bench, stage: str) -> float:
    return float(bench.run.stage_config(stage)["figures"].get("sigma", bench.recipe.learning.sigma))


def _psnr(row: Row, bench: Bench, split: Split) -> dict[str, float]:
    if "generator" not in row.stages:
        return {}
    generator = row.model(bench, "generator").to(bench.device).generator
    assert isinstance(generator, Generator)
    return signal_to_noise(generator.eval(), bench, split)


def training(bench: Bench, rows: Sequence[Row]) -> dict[str, Any]:
    """Return, for the provenance, the commands that trained the run, and the seconds of each row's stages."""
    seconds = {"run": {stage: bench.run.stage_config(stage).get("seconds") for stage in bench.run.stages_done()}}
    for row in rows:
        if stages := row.trains(bench):
            folder = row.folder(bench)
            seconds[row.method] = {stage: folder.stage_config(stage).get("seconds") for stage in stages}
    return {"trained": bench.run.trained_by(), "seconds": seconds}


def over_seeds(judged: Sequence[Rows], seeds: Sequence[int]) -> Rows:
    """Return the first seed's rows; with several seeds, each has mean and standard deviation over all of them."""
    shown = []
    for together in zip(*judged, strict=True):
        row = dict(together[0])
        if len(seeds) > 1:
            row["seeds"] = {
                "seed": list(seeds),
                "p_value": [r["p_value"] for r in together],
                **{name: _spread([r[name] for r in together]) for name in ("accuracy", "mean_patches")},
            }
        shown.append(row)
    return shown


def _spread(values: list[float]) -> dict[str, Any]:
    return {"mean": statistics.mean(values), "sd": statistics.stdev(values), "values": values}


def foot(
    bench: Bench, rows: Sequence[Row], shown: Rows, split_name: str, price: Price, where: Mapping[str, Any]
) -> list[str]:
    """Return lines that say how the tables were made, a sentence or two each."""
    networks, (high, low, grid, _) = bench.recipe.networks, bench.data.shape
    n = len(bench.data.splits[split_name])
    lines = [
        f"{bench.data.name}, {split_name} split, {n} images, {len(bench.data.classes)} classes; "
        f"HR {size_text(high)} px, LR {size_text(low)} px, P = {grid.patches}; profile "
        f"{bench.options.profile}: HR {networks.hr_network} ({networks.classifier}), LR {networks.lr_network}, policy "
        f"{networks.policy_network}; epochs "
        + ", ".join(f"{stage} {epochs}" for stage, epochs in bench.recipe.schedule.epochs.items())
        + f"; seed {bench.seed}.",
        _matched(bench, rows),
        "Intervals: 95 %, Wilson. p: exact McNemar test of the stage's PatchDrop against the row on the same images.",
        *_of_rows(bench, rows, shown),
        "HR kB: 8-bit pixels of the patches read. FLOP: a multiply-add counts as two, policy and LR stream included; "
        "dense: with every patch read. Milliseconds: decoding and making LR left out; median, all rows in turns in one "
        f"process, {torch.get_num_threads()} threads, {bench.device.type}, {where['machine']}.",
        _minutes(where.get("seconds", {})),
    ]
    return [line for line in [*lines, *_money(bench, shown, n, price)] if line]


def _matched(bench: Bench, rows: Sequence[Row]) -> str:
    stages = bench.policy_stages
    selectors = [row for row in rows if row.selector]
    if not selectors:
        return ""
    source = "as asked" if bench.options.patches is not None else "PatchDrop's mean on val"
    wanted = ", ".join(f"{STAGE_NAMES[s]} {bench.patches(s):.2f}" for s in stages)
    whole = [row for row in selectors if row.selector and row.selector.whole]
    kept = ""
    if whole and whole[0].selector:
        rounded = ", ".join(f"{whole[0].selector.count(bench.patches(s)):.0f}" for s in stages)
        kept = f"; {' and '.join(row.method for row in whole)} keep {rounded}"
    return f"S of the selectors: {source}, {wanted}{kept}."


def _of_rows(bench: Bench, rows: Sequence[Row], shown: Rows) -> list[str]:
    first = {row["method"]: row for row in reversed(shown)}
    lines = []
    for row in rows:
        entry = first.get(row.method)
        if entry is None:
            continue
        if "psnr" in entry:
            lines.append(
                f"{row.method}: PSNR {entry['psnr']:.2f} dB; of the bilinear enlargement "
                f"{entry['psnr_bilinear']:.2f} dB."
            )
        if "equal budget" in row.method:
            stage = row.stages[0]
            epochs = row.folder(bench).stage_config(stage).get("epochs")
            own = bench.recipe.schedule.epochs[stage]
            lines.append(f"{row.method}: {epochs} epochs in place of {own}, as many as Ft-2's whole chain had.")
        if row.own == "oracle":
            lines.append(
                f"{row.method}: PatchDrop's own classifier, the first {entry['n']} images spread over the classes, "
                f"{entry['candidates']} masks each ({ORACLE_MASKS} of them random); PatchDrop on these: "
                + ", ".join(
                    f"{STAGE_NAMES[r['stage']]} {100 * r['patchdrop_accuracy_on_these']:.1f} %"
                    for r in shown
                    if r["method"] == row.method
                )
                + "."
            )
    return lines


def _minutes(seconds: Mapping[str, Mapping[str, float | None]]) -> str:
    by_row = {name: sum(s or 0 for s in stages.values()) / 60 for name, stages in seconds.items()}
    if not by_row:
        return ""
    each = ", ".join(f"{name} {minutes:.0f}" for name, minutes in by_row.items())
    return f"Training, first seed, minutes of wall-clock by row: {each}; {sum(by_row.values()):.0f} in all."


def _money(bench: Bench, shown: Rows, n: int, price: Price) -> list[str]:
    worth = price.of_image(*bench.data.shape.high)
    ours = [row for row in shown if row["method"].endswith("PatchDrop")]
    if worth is None or not ours:
        return []
    row = ours[-1]
    share = row["hr_pixel_fraction"]
    basis = (
        f"{price.per_km2:g} a km2 at {price.gsd:g} m a pixel" if price.per_km2 is not None else f"{worth:g} an image"
    )
    return [
        f"Money ({basis}): HR that {row['method']} does not buy in {STAGE_NAMES[row['stage']]}: "
        f"(1 - {share:.4f}) x {n} images x {worth:,.4g} = {(1 - share) * n * worth:,.2f}, "
        f"of {n * worth:,.2f} for all of HR."
    ]


def csv_text(document: Mapping[str, Any]) -> str:
    """Return ``table.csv``: one line for each method and stage."""
    columns = [
        "method", "stage", "accuracy", "ci95_low", "ci95_high", "n", "mean_patches", "patches_sd", "hr_fraction",
        "hr_pixel_fraction", "hr_bytes", "flops", "flops_dense", "timed_patches", "ms_batch1", "ms_batch64", "price",
        "p_value",
    ]  # fmt: skip
    lines = [columns]
    for row in document["rows"]:
        values = {**row, "ci95_low": row["ci95"][0], "ci95_high": row["ci95"][1]}
        lines.append(["" if values.get(name) is None else str(values[name]) for name in columns])
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(lines)
    return text.getvalue()


def write(folder: Path, document: Mapping[str, Any]) -> None:
    """Write ``table.md``, ``table.csv`` and ``accuracy.png``, then ``results.json``; RunError if that fails."""
    write_bytes(folder / "table.md", markdown(document).encode())
    write_bytes(folder / "table.csv", csv_text(document).encode())
    write_bytes(folder / "accuracy.png", png(comparison(document["rows"])))
    write_json(folder / "results.json", document)


def markdown(document: Mapping[str, Any]) -> str:
    """Return ``table.md``: the tables and their foot."""
    parts = [f"# {document['data']}, table {document['table']}"]
    for table in document["tables"]:
        parts.append(f"## {table['title']}")
        parts.append(markdown_table(table["header"], table["lines"]))
    where = document["provenance"]
    parts.append("\n".join(f"* {line}" for line in document["foot"]))
    parts.append(f"`{where['command']}` at {where['commit']}")
    return "\n\n".join(parts) + "\n"


def markdown_table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown; the PatchDrop rows are bold."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    rule = "|" + "---|" * len(header)
    bold = [[f"**{c[0]}**", *c[1:]] if c[0].endswith("PatchDrop") else list(c) for c in lines]
    return "\n".join([line(header), rule, *map(line, bold)])
