"""Train the embedded images with each estimator from the same classifiers, and write the table of the docs.

    python scripts/compare_estimators.py results/estimators

Takes about 8 minutes on 2 cores.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import patchdrop
from patchdrop.files import write_json
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.settings.flat import TrainSettings, from_mapping, read_profile, to_yaml

VARIANTS: dict[str, dict[str, Any]] = {
    "straight-through": {"estimator": "straight-through"},
    "rloo, 2 samples": {"estimator": "rloo", "samples": 2},
    "self-critical": {"estimator": "self-critical"},
}


def main(out: Path) -> None:
    """Classifiers once, then Pt, Ft-1 and Ft-2 with each variant."""
    base = replace(from_mapping(read_profile("demo"), "demo"), policy="bernoulli")
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        first = Path(scratch) / "classifiers"
        patchdrop.train(replace(base, stages=("lr", "hr", "patches")), first)
        base = RunFolder(first).settings()  # with what the profile leaves open
        for name, changes in VARIANTS.items():
            document = _run(first, Path(scratch) / "variant", replace(base, **changes))
            for row in document["rows"]:
                if row["method"] == "PatchDrop" or (row["method"] == "HR-CNN" and not rows):
                    rows.append({"estimator": name if row["method"] == "PatchDrop" else "", **row})
    write_json(out / "results.json", {"rows": rows, "provenance": provenance(base.seed)})
    (out / "table.md").write_text(_markdown(rows), encoding="utf-8")


def _run(first: Path, folder: Path, settings: TrainSettings) -> dict[str, Any]:
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(first, folder)
    (folder / "settings.yaml").write_text(to_yaml(settings.to_mapping()), encoding="utf-8")
    return patchdrop.train(settings, folder)


def _markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| estimator | stage | accuracy % | 95 % interval | S | masks |", "|---|---|---|---|---|---|"]
    for row in rows:
        low, high = row["ci95"]
        name = row["estimator"] or row["method"]
        figures = f"{100 * row['accuracy']:.1f} | {100 * low:.1f} - {100 * high:.1f} | {row['mean_patches']:.2f}"
        lines.append(f"| {name} | {row['stage']} | {figures} | {row['distinct_masks']} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main(Path(sys.argv[1]))
