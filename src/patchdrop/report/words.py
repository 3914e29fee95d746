"""Write what the page says: sentences, tiles and tables from the results, before any markup."""

from __future__ import annotations

from typing import Any

from patchdrop.report import theme
from patchdrop.report.theme import Row
from patchdrop.terminal.columns import interval

ALWAYS = ("PatchDrop", "Random", "Cascade")
"""Methods of each policy stage that are always in the accuracy chart and in short tables."""


def policy_rows(results: dict[str, Any]) -> list[Row]:
    """Return PatchDrop's rows in order of the stages."""
    rows = [row for row in results["rows"] if row["method"] == "PatchDrop"]
    return [row for stage in theme.POLICY_STAGES for row in rows if row["stage"] == stage]


def present(results: dict[str, Any], key: str) -> dict[str, Any]:
    """Return ``results[key]`` by stage, in order of the stages, without empty ones."""
    found = results.get(key) or {}
    return {stage: found[stage] for stage in theme.POLICY_STAGES if found.get(stage)}


def last_classes(results: dict[str, Any]) -> tuple[str, list[Row]] | None:
    """Return the last stage that has figures by class, and those of the classes that have any images."""
    found = {
        stage: [row for row in rows if theme.finite(row["mean_patches"])]
        for stage, rows in present(results, "per_class").items()
    }
    return next(((stage, rows) for stage, rows in reversed(found.items()) if rows), None)


def find(results: dict[str, Any], method: str, stage: str | None) -> Row | None:
    """Return the method's row of this stage; with no such row and no stage of its own, its first."""
    rows = [row for row in results["rows"] if row["method"] == method]
    own = [row for row in rows if row["stage"] == stage]
    return next(iter(own or [row for row in rows if row["stage"] not in theme.POLICY_STAGES]), None)


def headline(results: dict[str, Any]) -> str:
    """Write the sentence that the whole page is about."""
    ours = policy_rows(results)
    stage = ours[-1]["stage"] if ours else None
    whole, cheap = find(results, "HR-CNN", stage), find(results, "LR-CNN", stage)
    if ours:
        last = ours[-1]
        share, right = theme.whole_percent(last["hr_fraction"]), theme.percent(last["accuracy"])
        start = f"PatchDrop reads {share} of the high-resolution pixels and is right on {right} of images"
        return start + (f"; reading everything gives {theme.percent(whole['accuracy'])}." if whole else ".")
    known = [row for row in (whole, cheap) if row]
    parts = [f"{row['method']} is right on {theme.percent(row['accuracy'])} of images" for row in known]
    return ("; ".join(parts) or "Nothing has been evaluated yet") + "."


def comparison(results: dict[str, Any]) -> str:
    """Compare the last stage with reading nothing, random patches and other images' masks."""
    ours = policy_rows(results)
    if not ours:
        return ""
    stage = ours[-1]["stage"]
    said = (
        ("LR-CNN", "Low resolution alone gives {}"),
        ("Random", "as many patches at random give {}"),
        ("Shuffled", "masks chosen for other images give {}"),
        ("Cascade", "all of HR where LR-CNN is unsure, and none elsewhere, gives {}"),
    )
    found = [(text, find(results, method, stage)) for method, text in said]
    parts = [text.format(theme.percent(row["accuracy"])) for text, row in found if row]
    return sentence("; ".join(parts)) if parts else ""


def sentence(text: str) -> str:
    """Add a capital and a full stop."""
    return text[:1].upper() + text[1:] + "."


def tiles(results: dict[str, Any]) -> list[dict[str, str]]:
    """Return the last stage's figures, large: value, unit below, note."""
    ours = policy_rows(results)
    if not ours:
        return []
    row = ours[-1]
    low, high = row["ci95"]
    return [
        {
            "value": theme.whole_percent(row["hr_fraction"]),
            "name": "of high resolution read",
            "note": f"{row['mean_patches']:.1f} of {results['patches']} patches on average",
        },
        {
            "value": theme.percent(row["accuracy"]),
            "name": "accuracy",
            "note": f"±{theme.SPACE}{50 * (high - low):.1f} points; {row['correct']:,} of {row['n']:,} right",
        },
        {
            "value": theme.number(row.get("distinct_masks"), 0),
            "name": "different masks",
            "note": f"on {row['n']:,} {results['split']} images",
        },
        {
            "value": theme.number(row.get("patches_sd"), 1),
            "name": "spread of patches",
            "note": "standard deviation of S over images",
        },
    ]


def chosen(calibration: dict[str, Any]) -> str:
    """Say which operating point was chosen, and what it did on the calibration images."""
    if calibration["chosen"] is None:
        return "No point is chosen: only the curve was asked for."
    kind, target = calibration["chosen"]["kind"], calibration["target"]
    point = calibration["points"][calibration["chosen"]["point"]]
    if kind == "target-accuracy":
        why = (
            f"the cheapest that is right on at least {theme.percent(target['target_accuracy'])} of new images "
            f"from the same source, with {theme.whole_percent(target['confidence'])} confidence"
        )
    elif kind == "target-cost":
        why = f"the most accurate on val that costs at most {target['target_cost']:g} {target['unit']} an image there"
    else:
        why = f"{target['mean_budget']:g} patches on average on val"
    return (
        f"Chosen: {why}. It reads every patch with a probability of at least {point['threshold']:.3f}, which is "
        f"{theme.whole_percent(point['hr_fraction'])} of high resolution, and is right on "
        f"{theme.percent(point['accuracy'])} of the calibration images ({interval(point['ci95'])}{theme.SPACE}%)."
    )


def ends(calibration: dict[str, Any]) -> str:
    """Name the curve's ends and the chosen point, for those who cannot see it."""
    curve, found = calibration["points"], calibration["chosen"]
    named = [("Nothing read", curve[0]), ("all read", curve[-1])]
    if found:
        named.append(("chosen", curve[found["point"]]))
    shown = [
        f"{name}: {theme.percent(row['accuracy'])} with {theme.whole_percent(row['hr_fraction'])} read"
        for name, row in named
    ]
    return "; ".join(shown)


def groups(results: dict[str, Any]) -> list[tuple[str, list[Row]]]:
    """Group the table's rows, classifiers first, then stage by stage."""
    rows = results["rows"]
    first = [row for row in rows if row["stage"] not in theme.POLICY_STAGES]
    staged = [(name, [row for row in rows if row["stage"] == s]) for s, name in theme.POLICY_STAGES.items()]
    return [(name, found) for name, found in [("Classifiers", first), *staged] if found]


def class_table(results: dict[str, Any]) -> list[dict[str, Any]]:
    """Return one line for each class with its figures of every stage; most patches in the last stage first."""
    stages = present(results, "per_class")
    last = last_classes(results)
    if last is None:
        return []
    by_name = {stage: {row["class"]: row for row in rows} for stage, rows in stages.items()}
    ordered = sorted(last[1], key=lambda row: -row["mean_patches"])
    return [
        {"class": row["class"], "n": row["n"], "stages": [by_name[s].get(row["class"]) for s in stages]}
        for row in ordered
    ]


def provenance(results: dict[str, Any]) -> list[tuple[str, str]]:
    """Return where the numbers come from, as names and values; the command has its own place."""
    found = results.get("provenance") or {}
    versions = ", ".join(f"{name} {version}" for name, version in (found.get("versions") or {}).items())
    seconds = {s: t for s, t in (found.get("seconds") or {}).items() if theme.finite(t)}
    times = ", ".join(f"{theme.stage_name(stage)} {theme.duration(t)}" for stage, t in seconds.items())
    total = f"{times}; together {theme.duration(sum(seconds.values()))}" if len(seconds) > 1 else times
    named = [
        ("Commit", found.get("commit")),
        ("Machine", found.get("machine")),
        ("Seed", found.get("seed")),
        ("Versions", versions),
        ("Training time", total),
    ]
    return [(name, str(value)) for name, value in named if value not in (None, "")]


def brief(rows: list[Row]) -> list[Row]:
    """Drop most baselines from the rows: besides `ALWAYS`, only the one most accurate in the last stage stays."""
    staged = [row for row in rows if row["stage"] in theme.POLICY_STAGES]
    others = [row for row in staged if row["stage"] == staged[-1]["stage"] and row["method"] not in ALWAYS]
    best = max(others, key=lambda row: row["accuracy"])["method"] if others else ""
    return [row for row in rows if row not in staged or row["method"] in (*ALWAYS, best)]


def charted(rows: list[Row]) -> list[Row]:
    """Return the main chart's rows: of `brief`, PatchDrop's stages, the classifiers, and the last stage's baselines."""
    last = next((row["stage"] for row in reversed(rows) if row["method"] == "PatchDrop"), None)
    return [row for row in brief(rows) if row["method"] in theme.OWN or row["stage"] == last]


def last_forecast(results: dict[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the last stage whose policy predicts how often it will be right, and how it turned out."""
    return next(reversed(present(results, "forecast").items()), None)


def predicted(bins: list[Row]) -> str:
    """Name the points of the chart of forecasts, for those who cannot see it."""
    shown = [f"{theme.percent(row['right'])} where {theme.percent(row['predicted'])} was predicted" for row in bins]
    return "right on " + "; ".join(shown)


def points(rows: list[Row]) -> str:
    """Name the points of the main chart, for those who cannot see it."""
    return "; ".join(
        f"{label(row)}: {theme.percent(row['accuracy'])} with {theme.whole_percent(row['hr_fraction'])} read"
        for row in rows
    )


def label(row: Row) -> str:
    """Return a row's label: ``PatchDrop, Ft-1``; classifiers need no stage."""
    stage = row["stage"]
    known = stage in theme.POLICY_STAGES
    return f"{row['method']}, {theme.POLICY_STAGES[stage]}" if known else str(row["method"])
