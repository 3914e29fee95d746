"""What once broke, or could: each of these failed before it was mended."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

import patchdrop
from patchdrop.cli import main
from patchdrop.commands import info, plan
from patchdrop.data.sets import Batch
from patchdrop.errors import Interrupted, PatchDropError, RunError, UsageError
from patchdrop.files import write_json
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.flat import STAGES, TrainSettings
from patchdrop.training.estimator import StraightThrough
from test_training import CPU, STEPS_PER_EPOCH, fresh_task, run_stages
from tiny import recipe_of, tiny_flags, tiny_settings, write_folder

ONE_EPOCH = {f"epochs_{stage}": 1 for stage in STAGES}


def test_no_source_file_is_ignored_by_git() -> None:
    root = Path(patchdrop.__file__).parent
    files = [str(p) for p in root.rglob("*.py")]
    found = subprocess.run(
        ["git", "-C", str(root), "check-ignore", *files], capture_output=True, text=True, check=False
    )
    assert found.stdout == ""


def test_fit_may_be_smaller_than_a_batch(tmp_path: Path) -> None:
    run = run_stages(tmp_path, tiny_settings(batch=64))
    assert run.stages_done() == list(STAGES)


@pytest.mark.parametrize("estimator", ["self-critical", "rloo"])
def test_in_pt_class_logits_that_are_not_numbers_make_the_loss_so(estimator: str) -> None:
    task: Any = fresh_task("pt", estimator=estimator)
    batch = next(iter(task.batches(0, 0)))
    loss, _ = task.loss(Batch(batch.high.float() * torch.nan, batch.low, batch.target), 0.5)
    assert not bool(loss.isfinite())


@pytest.mark.parametrize("where", ["test", "train"])
def test_streaming_with_skip_bad_evaluates_and_lists_what_it_skipped(
    tmp_path: Path, where: str, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_folder(tmp_path / "images")
    bad = data / where / "red" / "002.png"
    bad.write_bytes(bad.read_bytes()[:60])
    more = {**ONE_EPOCH, "data": data, "out": tmp_path / "x", "memory_gb": 0, "workers": 0}
    assert main(["train", *tiny_flags(**more), "--skip-bad"]) == 0
    assert list(json.loads((tmp_path / "x" / "data.json").read_text())["skipped"]) == [f"{where}/red/002.png"]


def test_a_mistyped_network_or_data_path_does_not_spoil_the_run_folder(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "images")
    wrong = {**ONE_EPOCH, "data": data, "out": tmp_path / "x", "stages": "lr", "lr_network": "resnt8"}
    assert main(["train", *tiny_flags(**wrong)]) == 2
    assert main(["train", *tiny_flags(**{**wrong, "data": tmp_path / "nowhere"})]) == 3
    assert not (tmp_path / "x").exists()
    assert main(["train", *tiny_flags(**{**wrong, "lr_network": "resnet8-w4"})]) == 0


def test_what_is_refused_before_a_stage_begins_does_not_bind_the_run_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = str(write_folder(tmp_path / "images"))
    settings = tiny_settings(data=data, stages=("lr",), epochs_lr=1)
    with monkeypatch.context() as patch:
        patch.setattr("patchdrop.training.run.build_stage", Mock(side_effect=UsageError("no weights to be had")))
        with pytest.raises(UsageError):
            patchdrop.train(settings, tmp_path / "x")
    other = replace(settings, val_fraction=0.3, seed=1)
    patchdrop.train(other, tmp_path / "x")
    assert RunFolder(tmp_path / "x").settings() == replace(other, stages=STAGES)
    with pytest.raises(RunError, match="other settings"):
        patchdrop.train(settings, tmp_path / "x")


def test_pretrained_weights_that_do_not_exist_are_refused_before_anything_is_loaded(tmp_path: Path) -> None:
    settings = tiny_settings(data=str(tmp_path / "nothing"), pretrained=True)
    for attempt in (lambda: plan(settings), lambda: patchdrop.train(settings, tmp_path / "x")):
        with pytest.raises(UsageError, match="no published weights"):
            attempt()


def test_a_settings_file_of_one_call_is_forgotten_by_the_next(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "images")
    file = tmp_path / "mine.yaml"
    file.write_text("batch: 8\n")
    more = {**ONE_EPOCH, "data": data, "out": tmp_path / "x", "stages": "lr"}
    assert main(["train", *tiny_flags(**more), "--config", str(file)]) == 0
    assert main(["evaluate", str(tmp_path / "x")]) == 0


@pytest.mark.parametrize("content", ["{}", "[]", "null", '{"step": 1}', "3"])
def test_a_damaged_state_is_refused_in_one_line(tmp_path: Path, content: str) -> None:
    with pytest.raises(Interrupted):
        run_stages(tmp_path, tiny_settings(), stop_at=("lr", 2))
    (tmp_path / "lr" / "state.json").write_text(content)
    with pytest.raises(RunError, match=r"lr/state\.json"):
        run_stages(tmp_path, tiny_settings())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("classes", 3),
        ("classes", None),
        ("classes", [1, 2, 3]),
        ("channels", "3"),
        ("lr_network", 7),
        ("lr_network", "foo"),
        ("grid", [4]),
        ("grid", "x"),
        ("low", "zz"),
        ("figures", None),
    ],
)
def test_a_config_with_a_value_of_the_wrong_type_is_refused(tmp_path: Path, key: str, value: object) -> None:
    run = run_stages(tmp_path, tiny_settings(stages=("lr",), epochs_lr=1))
    write_json(run.stage("lr") / "config.json", {**run.stage_config("lr"), key: value})
    with pytest.raises(RunError, match=r"lr/config\.json: ") as caught:
        run.load("lr")
    assert "train" in str(caught.value)


@pytest.mark.parametrize("name", ["data.json", "results.json"])
def test_info_refuses_a_damaged_document_in_one_line(tmp_path: Path, name: str) -> None:
    run = run_stages(tmp_path, tiny_settings(stages=("lr",), epochs_lr=1))
    run.start(tiny_settings().to_mapping())
    (tmp_path / name).write_text("[]")
    with pytest.raises(RunError, match=f"{name}: is damaged"):
        info(tmp_path)


def test_a_line_cut_short_by_a_crash_does_not_swallow_the_next(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    run.log({"event": "one"})
    run.log({"event": "two"})
    (tmp_path / "log.jsonl").write_bytes((tmp_path / "log.jsonl").read_bytes()[:-5])
    run.log({"event": "start"})
    assert run.read_log() == [{"event": "one"}, {"event": "start"}]


def test_a_line_cut_within_a_letter_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").write_bytes(b'{"event": "one"}\n' + '{"command": "é'.encode()[:-1])
    assert RunFolder(tmp_path).read_log() == [{"event": "one"}]


def test_digits_that_are_no_numbers_are_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no image size"):
        TrainSettings(high="²")


def test_straight_through_is_0_or_1_to_the_bit() -> None:
    torch.manual_seed(0)
    choices = StraightThrough().propose(torch.randn(1000, 16), 0.8)
    assert set(choices.unique().tolist()) == {0.0, 1.0}


def test_weights_that_are_not_numbers_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import patchdrop.training.loop as loop

    plain = loop.train_step

    def spoiling(task: Any, optimizer: Any, batch: Any, step: int, *rest: Any) -> Any:
        figures = plain(task, optimizer, batch, step, *rest)
        if step == STEPS_PER_EPOCH - 1:
            with torch.no_grad():
                next(task.model.parameters()).fill_(torch.nan)
        return figures

    monkeypatch.setattr(loop, "train_step", spoiling)
    with pytest.raises(PatchDropError, match="stage lr, step"):
        run_stages(tmp_path, tiny_settings(stages=("lr",)))
    assert not (tmp_path / "lr" / "state.json").exists()


def test_the_advice_after_a_bad_number_can_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The message says to lower the rate and run the same command again; the folder then refuses the new rate."""
    task: Any = fresh_task("lr")
    from patchdrop.training.loop import _not_a_number

    message = _not_a_number(task, 4, "the loss")
    assert "another --out" in message


def test_a_log_that_cannot_be_written_is_one_of_our_errors(tmp_path: Path) -> None:
    (tmp_path / "log.jsonl").mkdir()
    with pytest.raises(PatchDropError):
        RunFolder(tmp_path).log({"event": "one"})


def test_a_signal_between_the_last_step_and_the_end_is_not_forgotten(tmp_path: Path) -> None:
    """It comes while the last stage's model is written."""
    from patchdrop.training.run import train_stages
    from tiny import tiny_data

    asked = [0]
    run = RunFolder(tmp_path)
    plain = run.finish

    def finish(*arguments: Any) -> None:
        plain(*arguments)
        asked[0] = 15

    run.finish = finish  # type: ignore[method-assign]
    with pytest.raises(Interrupted):
        train_stages(recipe_of(tiny_settings(stages=("lr",))), tiny_data(), run, lambda *_: None, lambda: asked[0])


_ = CPU


def test_narrow_networks_train_at_odd_sizes(tmp_path: Path) -> None:
    """A strided 1 x 1 convolution with few channels once wrote out of bounds in its backward pass."""
    write_folder(tmp_path / "images")
    flags = tiny_flags(data=tmp_path / "images", out=tmp_path / "run", high="50x70", low="12x18", grid="3x5")
    assert main(["train", *flags]) == 0


def test_settings_from_python_are_checked_and_coerced() -> None:
    settings = TrainSettings(high=32, augment=["flip"], data=Path("photos"))  # type: ignore[arg-type]
    assert (settings.high, settings.augment, settings.data) == ("32", ("flip",), "photos")
    with pytest.raises(UsageError, match="did you mean 'flip'"):
        TrainSettings(augment=("flipp",))  # type: ignore[arg-type]


def test_other_images_under_the_same_names_of_classes_and_counts_are_refused(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_folder(tmp_path / name / "images")
    renamed = next((tmp_path / "b" / "images" / "train").rglob("*.png"))
    renamed.rename(renamed.with_name("zz.png"))
    assert main(["train", *tiny_flags(data=tmp_path / "a" / "images", out=tmp_path / "run")]) == 0
    assert main(["train", *tiny_flags(data=tmp_path / "b" / "images", out=tmp_path / "run")]) == 3
