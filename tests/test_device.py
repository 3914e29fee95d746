"""Training in bfloat16, and everything on a GPU where there is one: the same figures as float32 on the CPU, nearly."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchdrop.data.sets import Batch
from patchdrop.episode import PatchDrop
from patchdrop.grid import Grid
from patchdrop.packed import gather
from patchdrop.settings.flat import TrainSettings
from patchdrop.training.batches import plain_views
from patchdrop.training.loop import make_optimizer, train_step
from patchdrop.training.policy_stages import PolicyTask
from patchdrop.training.run import make_task
from rows import CPU, DATA, FIT, VAL, tiny_model
from test_sparse import NETWORKS, choices, classifier, images
from tiny import NETWORK, learning_of, loader_of, tiny_flags, tiny_settings, write_folder

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
GRID = Grid(4, 4)
ESTIMATORS = ("straight-through", "rloo", "self-critical")
Run = Callable[..., tuple[int, str, str]]


def first_step(settings: TrainSettings, stage: str, precision: str, device: torch.device = CPU) -> dict[str, float]:
    """Figures of a stage's first training step from the same start."""
    settings = replace(settings, precision=precision)  # type: ignore[arg-type]
    model = tiny_model(stage, settings).to(device)
    task = make_task(stage, model, loader_of(settings, data=DATA, device=device), learning_of(settings))
    before = [p.detach().clone() for p in model.parameters()]
    task.train_mode()
    torch.manual_seed(0)
    figures = train_step(task, make_optimizer(task.groups(), "muon"), next(task.batches(0, 0)), 0, 10)
    assert any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert all(p.dtype == torch.float32 for p in model.parameters())
    return figures


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("stage", ["lr", "hr", "patches", "ft1"])
def test_a_step_in_bfloat16_is_nearly_one_in_float32(name: str, stage: str) -> None:
    settings = tiny_settings(classifier=name, hr_network=NETWORKS[name], fusion="learned")
    exact, coarse = (first_step(settings, stage, precision)["loss"] for precision in ("float32", "bfloat16"))
    assert exact != coarse
    assert coarse == pytest.approx(exact, rel=0.05, abs=0.05)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_estimator_trains_every_classifier_in_bfloat16(name: str, estimator: str) -> None:
    settings = tiny_settings(
        classifier=name, hr_network=NETWORKS[name], fill="mean" if name == "bagnet" else "low", estimator=estimator
    )
    figures = first_step(settings, "ft2", "bfloat16")
    assert 0 <= figures["patches"] <= GRID.patches


def test_policy_logits_stay_float32_in_bfloat16() -> None:
    model = tiny_model("pt", tiny_settings(policy_head="certainty"))
    assert isinstance(model, PatchDrop)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.policy(FIT.source.high[:2].float()).dtype == torch.float32  # type: ignore[attr-defined]


def test_a_run_in_bfloat16_is_another_run_than_one_in_float32(tmp_path: Path, run: Run) -> None:
    data, out = write_folder(tmp_path / "data"), tmp_path / "run"
    flags = [*tiny_flags(data=str(data)), "--out", str(out), "--stages", "lr"]
    assert run("train", *flags, "--precision", "bfloat16")[0] == 0
    code, _, err = run("train", *flags)
    assert code != 0
    assert "precision" in err


@needs_gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_classifier_says_the_same_on_a_gpu(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    model = classifier(name, "mean" if name == "bagnet" else "low").eval()
    high, low = images()

    def said(device: str) -> Tensor:
        with torch.inference_mode():
            packed = gather(high.to(device), choices().to(device), GRID)
            found: Tensor = model.to(device)(packed, low.to(device))
        return found.cpu()

    torch.testing.assert_close(said("cuda"), said("cpu"), rtol=1e-3, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("stage", ["lr", "hr", "patches", "pt", "ft1", "ft2"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_on_a_gpu_is_nearly_one_on_the_cpu(name: str, precision: str, stage: str) -> None:
    settings = tiny_settings(classifier=name, hr_network=NETWORKS[name], fusion="learned")
    here = first_step(settings, stage, "float32")
    there = first_step(settings, stage, precision, torch.device("cuda"))
    if stage in ("lr", "hr"):  # others draw masks, on a GPU from a generator of its own
        assert there["loss"] == pytest.approx(here["loss"], rel=0.1, abs=0.1)


@needs_gpu
def test_lr_made_on_a_gpu_has_the_same_bits() -> None:
    settings = tiny_settings(high="18", low="8")
    batch = Batch(torch.randint(0, 256, (4, 3, 18, 18), dtype=torch.uint8), None, torch.zeros(4, dtype=torch.long))
    here, there = (plain_views(batch, settings.shape.low, torch.device(d)) for d in ("cpu", "cuda"))
    assert torch.equal(here.low, there.low.cpu())


@needs_gpu
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_policy_trains_and_is_validated_on_a_gpu(estimator: str) -> None:
    settings = tiny_settings(estimator=estimator, target_patches=4.0, policy_head="certainty", low_stream="pt")
    gpu = torch.device("cuda")
    model = tiny_model("pt", settings).to(gpu)
    assert isinstance(model, PatchDrop)
    task = PolicyTask("pt", model, loader_of(settings, FIT, VAL, gpu), learning_of(settings))
    with torch.inference_mode():
        figures = task.validate(0.5)
    assert 0 <= figures["mean_patches"] <= GRID.patches


@needs_gpu
@pytest.mark.parametrize("policy", ["ranking", "bernoulli"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_commands_run_on_a_gpu(tmp_path: Path, run: Run, precision: str, policy: str) -> None:
    data, out = write_folder(tmp_path / "data"), tmp_path / "run"
    flags: dict[str, Any] = {"device": "cuda", "precision": precision, "classifier": "canvas", "policy": policy}
    ranks = {"low_stream": "pt", "fusion": "capped"} if policy == "ranking" else {}
    assert run("train", *tiny_flags(data=str(data), **flags, **ranks), "--insist", "--out", out)[0] in (0, 5)
    assert run("evaluate", out, "--data", data)[0] == 0
    code, text, _ = run("bench", out, "--device", "cuda", "--batch", "1", "--rounds", "2", "--json")
    assert code == 0
    rows = json.loads(text)["rows"]
    assert all(row["ms_image"] > 0 and row["peak_mib"] > 0 for row in rows)


@needs_gpu
@pytest.mark.parametrize("table", ["fmow", "bagnet"])
def test_every_row_of_a_table_trains_and_is_judged_on_a_gpu(tmp_path: Path, run: Run, table: str) -> None:
    data, out = write_folder(tmp_path / "data"), tmp_path / "out"
    name = "bagnet" if table == "bagnet" else "masked"
    flags = tiny_flags(data=str(data), device="cuda", precision="bfloat16", classifier=name, hr_network=NETWORK)
    assert run("compare", "--table", table, *flags, "--out", out)[0] == 0
    assert run("compare", "--table", table, *flags, "--out", out, "--jobs", "2")[0] == 0
