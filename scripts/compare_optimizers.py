"""Train HR-CNN in few epochs with each optimizer, and write the table of the docs.

    python scripts/compare_optimizers.py results/optimizers [PROFILE] [DATA]

By default on the embedded images, about 4 minutes on 2 cores. Only the validation split is looked at.
"""

from __future__ import annotations

import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import patchdrop
from patchdrop.files import write_json
from patchdrop.runs.folder import RunFolder
from patchdrop.runs.provenance import provenance
from patchdrop.settings.flat import from_mapping, read_profile

EPOCHS = 4
VARIANTS: tuple[tuple[str, float], ...] = (("muon", 0.02), ("muon", 0.01), ("adamw", 0.006), ("adamw", 0.002))


def main(out: Path, profile: str, data: str | None) -> None:
    """One short run a variant."""
    base = from_mapping(read_profile(profile), profile)
    base = replace(base, stages=("hr",), epochs_hr=EPOCHS, data=data or base.data)
    rows: list[dict[str, Any]] = []
    for name, rate in VARIANTS:
        with tempfile.TemporaryDirectory() as folder:
            patchdrop.train(replace(base, optimizer=name, rate_classifier=rate), folder)
            epochs = [e for e in RunFolder(folder).read_log() if e["event"] == "validation"]
        accuracies = [e["accuracy"] for e in epochs]
        rows.append({"optimizer": name, "rate": rate, "val_accuracy": accuracies, "seconds": epochs[-1]["seconds"]})
    where = provenance(base.seed)
    write_json(out / "results.json", {"profile": profile, "rows": rows, "provenance": where})
    (out / "table.md").write_text(_markdown(rows, where), encoding="utf-8")


def _markdown(rows: list[dict[str, Any]], where: dict[str, Any]) -> str:
    epochs = " | ".join(f"epoch {i + 1}" for i in range(EPOCHS))
    lines = [f"| optimizer | rate | {epochs} | seconds |", "|---|---|" + "---|" * (EPOCHS + 1)]
    for row in rows:
        shown = " | ".join(f"{100 * a:.1f}" for a in row["val_accuracy"])
        lines.append(f"| {row['optimizer']} | {row['rate']:g} | {shown} | {row['seconds']:.0f} |")
    return (
        "\n".join(lines) + f"\n\nValidation accuracy %, seed {where['seed']}, {where['machine']}, {where['commit']}.\n"
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), *(sys.argv[2:3] or ["demo"]), *(sys.argv[3:4] or [None]))  # type: ignore[misc]
