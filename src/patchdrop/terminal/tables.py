"""Show the documents of the commands as tables for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from patchdrop.terminal import columns
from patchdrop.terminal.columns import Column, Row
from patchdrop.terminal.scene_tables import cells_table, duration, scenes_table


def results_table(document: dict[str, Any]) -> RenderableType:
    """Build the table of a ``results.json``, below its verdict if there is one and the policy itself chose."""
    verdict = document.get("verdict")
    heads = [] if verdict is None or "dial" in document else [_verdict_table(document)]
    return Group(*heads, _rows_table(document))


def _verdict_table(document: dict[str, Any]) -> RenderableType:
    verdict = document["verdict"]
    table = Table(title=f"stage {verdict['stage']} on {verdict['images']} validation images", title_justify="left")
    _add_columns(table, columns.VERDICT)
    for number, row in enumerate(columns.judged(document)):
        table.add_row(*_cells(columns.VERDICT, row), style=None if number else "bold")
    table.caption = f"worth: share right less {verdict['price']:.2g} S/P; p: McNemar test against the policy"
    return Group(Text(verdict["sentence"], style="bold"), table)


def _rows_table(document: dict[str, Any]) -> Table:
    dial = f", {document['dial']}" if "dial" in document else ""
    title = f"{escape(document['data'])}, {document['split']} split, P = {document['patches']}{dial}"
    table = Table(title=title, title_justify="left")
    _add_columns(table, columns.RESULTS)
    for row in document["rows"]:
        if row["method"] == "PatchDrop":
            table.add_section()
        table.add_row(*_cells(columns.RESULTS, row))
    table.caption = (
        "p: exact McNemar test of the stage's PatchDrop against that row; p HR-CNN: of that row against HR-CNN"
    )
    return table


def _add_columns(table: Table, shown: Sequence[Column]) -> None:
    """Add columns: words to the left, figures to the right."""
    for column in shown:
        table.add_column(column.name, justify="left" if column in (columns.METHOD, columns.STAGE) else "right")


def _cells(shown: Sequence[Column], row: Row) -> list[str]:
    return [escape(column.text(row)) for column in shown]


def plan_table(document: dict[str, Any]) -> RenderableType:
    """Build the text and tables of a dry run of training."""
    data = document["data"]
    counts = ", ".join(f"{name} {count}" for name, count in data["images"].items())
    networks = Table("network", "name", "parameters", "MFLOP an image", title="networks", title_justify="left")
    for name, found in document["networks"].items():
        networks.add_row(name, found["network"], f"{found['parameters']:,}", f"{found['flops'] / 1e6:,.1f}")
    stages = Table("stage", "epochs", "steps", "TFLOP", "estimated time", title="stages", title_justify="left")
    for name, found in document["stages"].items():
        stages.add_row(
            name,
            str(found["epochs"]),
            str(found["steps"]),
            f"{found['flops'] / 1e12:,.2f}",
            duration(found["seconds"]),
        )
    return Group(
        f"data: {escape(data['name'])} ({data['layout']}), {data['classes']} classes, {counts}",
        f"images skipped: {data['skipped']}",
        f"HR {_sides(document['high'])} px, LR {_sides(document['low'])} px, grid {document['grid']}",
        *(f"{name}: {escape(reason)}" for name, reason in document["reasons"].items()),
        networks,
        stages,
        f"in total about {duration(document['seconds'])} on this machine; FLOPs are {document['flops_unit']}",
    )


def _sides(size: Sequence[int]) -> str:
    return " x ".join(str(side) for side in size)


def calibration_table(document: dict[str, Any]) -> RenderableType:
    """Build the table of the curve in a ``calibration.json``, with the chosen point marked."""
    images, chosen = document["images"], document["chosen"]
    title = (
        f"stage {document['stage']}, P = {document['patches']}, measured on {images['n']} images of "
        f"{escape(images['data'])}, {images['split']} split"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("")
    _add_columns(table, columns.CALIBRATION)
    for number, point in enumerate(document["points"]):
        table.add_row("->" if chosen and chosen["point"] == number else "", *_cells(columns.CALIBRATION, point))
    table.caption = _why_chosen(document)
    return table


def _why_chosen(document: dict[str, Any]) -> str:
    chosen, target = document["chosen"], document["target"]
    if chosen is None:
        return "no point is chosen: give --mean-budget, --target-accuracy or --target-cost"
    if chosen["kind"] == "mean-budget":
        return f"->: {target['mean_budget']:g} patches on average on the validation split"
    if chosen["kind"] == "target-cost":
        return f"->: the most accurate on the validation split of those at {target['target_cost']:g} {target['unit']}"
    return (
        f"->: the cheapest that is right on at least {100 * target['target_accuracy']:g} % of new images, "
        f"with confidence {100 * target['confidence']:g} % (p = {chosen['p_value']:.2g})"
    )


def bench_table(document: dict[str, Any]) -> RenderableType:
    """Build the table of the rows in a ``bench.json``, batch size by batch size."""
    high, low = ("x".join(map(str, document[name])) for name in ("high", "low"))
    title = f"HR {high}, LR {low}, P = {document['patches']}, pixels: {escape(document['pixels'])}"
    table = Table(title=title, title_justify="left")
    table.add_column("batch", justify="right")
    table.add_column("stage")
    table.add_column("way")
    for name in ("S", "ms a batch", "quartiles", "ms an image", "x HR-CNN", "MFLOP an image", "peak MiB"):
        table.add_column(name, justify="right")
    last = None
    for row in document["rows"]:
        if last not in (None, row["batch"]):
            table.add_section()
        last = row["batch"]
        table.add_row(
            str(row["batch"]),
            row["stage"],
            row["way"],
            "" if row["mean_patches"] is None else f"{row['mean_patches']:.2f}",
            f"{row['ms_batch']:.2f}",
            " - ".join(f"{quartile:.2f}" for quartile in row["ms_quartiles"]),
            f"{row['ms_image']:.2f}",
            "" if row["to_plain"] is None else f"{row['to_plain']:.2f}",
            f"{row['flops_image'] / 1e6:,.1f}",
            "" if row["peak_mib"] is None else f"{row['peak_mib']:.0f}",
        )
    lines = [
        f"{line['stage']}, batch {line['batch']}: {line['ms_first']:.2f} ms + {line['ms_patch']:.3f} ms a patch "
        f"(explains {100 * line['explained']:.0f} % of the variance over S)"
        for line in document["lines"]
    ]
    return Group(
        table,
        *lines,
        f"median and quartiles of {document['rounds']} rounds in turns, after {document['warm_up']} to warm up, "
        f"on {document['device']}, {document['threads']} threads; {document['provenance']['machine']}",
        "an episode is policy, choice, reading from memory and classifier; x HR-CNN: median over rounds of the time "
        "against HR-CNN's; a multiply-add is two FLOP; peak MiB is of the whole process, on a GPU of what tensors hold",
    )


def compare_table(document: dict[str, Any]) -> RenderableType:
    """Build the tables of a comparison, and the lines that say what they rest on."""
    parts: list[RenderableType] = []
    for found in document["tables"]:
        table = Table(title=f"{escape(document['data'])}: {found['title']}", title_justify="left")
        for index, name in enumerate(found["header"]):
            table.add_column(name or "method", justify="right" if index else "left")
        for line in found["lines"]:
            table.add_row(*map(escape, line))
        parts.append(table)
    return Group(*parts, *(escape(line) for line in document["foot"]))


def compare_list_table(document: dict[str, Any]) -> RenderableType:
    """Build the tables of a comparison's rows and of the training that they take."""
    rows = Table("row", "what it is", "trains", title=f"table {document['table']}", title_justify="left")
    for row in document["rows"]:
        rows.add_row(row["row"], row["about"], " ".join(row["stages"]))
    if "work" not in document:
        return Group(rows, "with --data: epochs and estimated time of each")
    work = Table(
        "row", "stage", "epochs", "steps", "estimated time", title="what one seed trains", title_justify="left"
    )
    for found in document["work"]:
        takes = "done" if found["done"] else duration(found["seconds"])
        work.add_row(found["row"], found["stage"], str(found["epochs"]), str(found["steps"]), takes)
    return Group(rows, work, f"in total about {duration(document['seconds'])} a seed on this machine, judging left out")


def predicted_tables(document: dict[str, Any]) -> RenderableType:
    """Build the tables of what was predicted for image files, scenes, or both."""
    parts: list[RenderableType] = []
    if "predictions" in document:
        parts.append(predictions_table(document))
    elif "classes" in document.get("image_files", {}):
        parts.append(_classes_table(document["image_files"]))
    if "scenes" in document:
        parts += [cells_table(scene) for scene in document["scenes"] if "results" in scene]
        parts.append(scenes_table(document))
    return Group(*parts)


def _classes_table(document: dict[str, Any]) -> RenderableType:
    """Build the table of how many images have each class, where there are too many for a line each."""
    table = Table(
        "label", title=f"{document['images']:,} images, {document['failed']:,} not read", title_justify="left"
    )
    table.add_column("images", justify="right")
    for name, count in sorted(document["classes"].items(), key=lambda pair: -pair[1]):
        table.add_row(escape(name), f"{count:,}")
    table.caption = f"HR read: {columns.percent(document['hr_fraction'])} %"
    return table


def predictions_table(document: dict[str, Any]) -> RenderableType:
    """Build the table of predictions, one line per image."""
    found = document["predictions"]
    table = Table("image", "label", "probability", "HR read %", "patches")
    said = any(p["chance_now"] is not None for p in found)
    if said:
        table.add_column("chance of being right")
        table.caption = "chance of being right: as the policy predicts it, without HR and after the patches"
    for p in found:
        patches = " ".join(map(str, p["patches"])) or "none"
        decided = (escape(p["label"]), f"{p['probability']:.3f}", f"{100 * p['hr_fraction']:.1f}", patches)
        table.add_row(escape(p["path"]), *decided, *([_chances(p)] if said else []))
    return table


def _chances(prediction: dict[str, Any]) -> str:
    now, after = (_whole(prediction[name]) for name in ("chance_now", "chance_after"))
    return f"{now} → {after} %"


def _whole(chance: float | None) -> str:
    """Return a chance in percent; close to 1 with a decimal, so that it is not read as certainty."""
    return "?" if chance is None else f"{100 * chance:.{1 if 0.995 <= chance < 1 else 0}f}"


def export_table(document: dict[str, Any]) -> RenderableType:
    """Build the table of an export's graphs, and of how far ONNX Runtime was from torch."""
    title = f"{document['folder']}: stage {document['stage']} of {document['run']}"
    table = Table("graph", "inputs", "output", "bytes", title=escape(title), title_justify="left")
    for name in ("policy", "classifier"):
        graph = document[name]
        inputs = "\n".join(_tensor(value) for value in graph["inputs"])
        table.add_row(graph["file"], escape(inputs), escape(_tensor(graph["outputs"][0])), f"{graph['bytes']:,}")
    check = document["check"]
    differences = ", ".join(f"{name} {value:.1g}" for name, value in check["difference"].items())
    table.caption = f"ONNX Runtime against torch on {check['pixels']}: same choices, largest difference {differences}"
    return table


def _tensor(value: dict[str, Any]) -> str:
    return f"{value['name']} ({', '.join(map(str, value['shape']))}) {value['type']}"


def info_table(document: dict[str, Any]) -> RenderableType:
    """Build the tables of what is in a run."""
    data = document["data"]
    head = Table(show_header=False, title=escape(document["run"]), title_justify="left")
    head.add_row("data", escape(f"{data['name']} ({data['layout']})"))
    head.add_row("classes", escape(", ".join(data["classes"] or [])))
    head.add_row("images", ", ".join(f"{k} {v}" for k, v in (data["images"] or {}).items()))
    head.add_row("LR", {"own": "images of their own", "averaged": "HR averaged"}.get(data["low"], "not recorded"))
    head.add_row("grid", document["grid"])
    head.add_row("HR classifier", document["classifier"])
    head.add_row("networks", ", ".join(f"{k} {v}" for k, v in document["networks"].items()))
    if document["verdict"] is not None:
        head.add_row("verdict", escape(f"{document['verdict']['stage']}: {document['verdict']['sentence']}"))
    head.add_row("versions", ", ".join(f"{k} {v}" for k, v in document["versions"].items()))
    stages = Table("stage", "parameters", "time", "best validation", title="stages", title_justify="left")
    for name, found in document["stages"].items():
        figures = found["figures"] or {}
        shown = [f"{k} {figures[k]:.3g}" for k in ("epoch", "accuracy", "mean_patches", "reward") if k in figures]
        stages.add_row(name, f"{found['parameters']:,}", duration(found["seconds"] or 0), ", ".join(shown))
    settings = Table("setting", "value", title="settings", title_justify="left")
    for key, value in document["settings"].items():
        settings.add_row(key, escape(" ".join(value) if isinstance(value, list) else str(value)))
    return Group(head, stages, settings)
