"""What an earlier version wrote loads and works: run folders, calibrations, plans, ledgers, exports."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patchdrop import commands
from patchdrop.cli import main
from patchdrop.commands.predicting import Asking
from patchdrop.runs.folder import RunFolder
from patchdrop.serve.export import Runtime
from patchdrop.settings.dial import Dial
from tiny import write_folder

KEPT = Path(__file__).parent / "kept"
SCENE_CHANGED = 1_700_000_000_000_000_000
"""When the scene was last changed, in nanoseconds: part of its version, which plans and results name."""


def near(found: Any, kept: Any) -> bool:
    """Whether two documents agree, numbers to five digits."""
    if isinstance(kept, dict):
        return found.keys() >= kept.keys() and all(near(found[key], value) for key, value in kept.items())
    if isinstance(kept, list):
        return len(found) == len(kept) and all(map(near, found, kept))
    return bool(found == pytest.approx(kept, rel=1e-5, abs=1e-6)) if isinstance(kept, float) else bool(found == kept)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the runs, their images and the scene, which is the present one."""
    shutil.copytree(KEPT, tmp_path, dirs_exist_ok=True)
    write_folder(tmp_path / "images", train=48, test=24)
    os.utime(tmp_path / "scene.tif", ns=(SCENE_CHANGED, SCENE_CHANGED))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("run", ["ranking", "bernoulli"])
def test_a_run_predicts_and_is_evaluated_as_it_was(place: Path, run: str) -> None:
    kept = json.loads((place / run / "predictions.json").read_text())
    found = [asdict(p) for p in commands.predict(Asking(place / run), [place / "images" / row["path"] for row in kept])]
    for row in found:
        row["path"], row["patches"] = os.path.relpath(row["path"], place / "images"), list(row["patches"])
    assert near(found, kept)
    rows = {(row["method"], row["stage"]): row for row in commands.evaluate(place / run)["rows"]}
    for row in json.loads((place / run / "rows.json").read_text()):
        # Rewards of the two classifiers are by the first policy stage's sigma, which is not kept.
        kept_here = {name: value for name, value in row.items() if name not in ("sigma", "reward")}
        assert near(rows[row["method"], row["stage"]], kept_here)


def test_a_calibrated_point_is_still_the_run_s(place: Path) -> None:
    document = commands.evaluate(place / "ranking", dial=Dial(calibrated=True))
    calibration = json.loads((place / "ranking" / "calibration.json").read_text())
    assert [row["stage"] for row in document["rows"] if row["method"] == "PatchDrop"] == [calibration["stage"]]


def test_going_on_with_a_finished_run_trains_nothing(place: Path) -> None:
    weights = (place / "ranking" / "ft2" / "model.safetensors").read_bytes()
    done = replace(RunFolder("ranking").settings(), stages=("lr", "hr", "pt", "ft2"))
    document = commands.train(done, "ranking")
    assert {row["stage"] for row in document["rows"]} == {"lr", "hr", "pt", "ft2"}
    assert (place / "ranking" / "ft2" / "model.safetensors").read_bytes() == weights


def test_a_plan_is_carried_out_with_the_bytes_and_the_words_of_then(place: Path) -> None:
    asked = ["--out", "now", "--plan", "planned/plan.json", "--format", "jsonl"]
    assert main(["predict", "ranking", "scene.tif", *asked]) == 0

    def document(folder: str, ending: str) -> str:
        return next((place / folder).glob(f"scene-*{ending}")).read_text()

    now, then = (json.loads(document(folder, ".json")) for folder in ("now", "predicted"))
    for key in ("execution", "everything", "patches", "classes", "version", "stage", "sha256"):
        assert now[key] == then[key], key
    lines = ([json.loads(line) for line in document(folder, ".jsonl").splitlines()] for folder in ("now", "predicted"))
    assert near(*lines)


def test_an_export_of_then_says_what_the_run_says(place: Path) -> None:
    description = json.loads((place / "onnx" / "model.json").read_text())
    graphs = tuple((place / "onnx" / description[name]["file"]).read_bytes() for name in ("policy", "classifier"))
    model, config = RunFolder("ranking").load(description["stage"])
    low = torch.randint(
        0, 256, (2, 3, *config.shape.low), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    scores = Runtime(graphs, 1).look(low).scores
    assert torch.allclose(scores, model.look(low).scores, atol=1e-4)  # type: ignore[operator]
