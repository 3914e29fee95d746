"""The command line: exit codes, one-line errors that name what is wrong, and the documents it prints."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import patchdrop
from patchdrop.cli import app, main
from patchdrop.errors import CollapsedPolicyWarning, PatchDropError, RunError, UsageError
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.defaults import schedule_for
from patchdrop.settings.flat import STAGES, TrainSettings, from_mapping
from patchdrop.terminal.talk import as_line, errors_told, warnings_told
from patchdrop.training.after_stage import References
from tiny import CLASSES, tiny_flags, tiny_settings, write_folder
from untrained import untrained_run

ONE_EPOCH = {f"epochs_{stage}": 1 for stage in STAGES}
Run = Callable[..., tuple[int, str, str]]
Refused = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command line run in this process: its exit code, stdout and stderr."""

    def of(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        app.config = ()  # a process of its own starts without the last one's settings file
        code = main([str(a) for a in arguments])
        found = capsys.readouterr()
        return code, found.out, found.err

    return of


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the report's pictures, which take seconds, where a test is not about them."""
    monkeypatch.setattr("patchdrop.commands.runs.write_report", lambda run, *_: run / "report.html")


@pytest.fixture
def refused(run: Run) -> Refused:
    """The one line that a command line is refused with."""

    def of(code: int, *arguments: object) -> str:
        found, out, err = run(*arguments)
        assert found == code, err
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        return err.removeprefix("error: ").strip()

    return of


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 24 and 12 images."""
    return write_folder(tmp_path_factory.mktemp("data") / "images")


def flags(data: Path, out: Path, **changes: Any) -> list[str]:
    """A short training; the policy's random head gives the images masks of their own."""
    more = {**ONE_EPOCH, "policy_head": "global", "rate_policy": 1e-4, "workers": 1, "data": data, "out": out}
    return ["train", *tiny_flags(**{**more, **changes})]


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all stages. Read only: a test that changes it takes a copy."""
    out = tmp_path_factory.mktemp("trained") / "run"
    assert main(flags(data, out)) == 0
    return out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


def picture(data: Path, index: int = 0) -> Path:
    return sorted((data / "test").rglob("*.png"))[index]


# --- flags and settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--out", "x", "--epoch-hr", "3"], ["--epoch-hr", "--epochs-hr"]),
        (["train", "--out", "x", "--no-such-thing", "3"], ["--no-such-thing"]),
        (["train"], ["--out"]),
        (["trian", "--out", "x"], ["trian", "train"]),
        (["evaluate"], ["run"]),
        (["predict", "x"], ["inputs"]),
        (["train", "--out", "x", "--batch", "-1"], ["batch: -1 is out of range"]),
        (["train", "--out", "x", "--batch", "many"], ["--batch", "many"]),
        (["train", "--out", "x", "--sigma", "-1"], ["sigma: -1.0 is out of range"]),
        (["train", "--out", "x", "--sigma", "nan"], ["sigma: nan is out of range"]),
        (["train", "--out", "x", "--rate-policy", "inf"], ["rate_policy: inf is out of range"]),
        (["train", "--out", "x", "--alpha-start", "0.4"], ["alpha_start: 0.4 is out of range"]),
        (["train", "--out", "x", "--val-fraction", "1"], ["val_fraction: 1.0 is out of range"]),
        (["train", "--out", "x", "--samples", "1"], ["samples: 1 is out of range"]),
        (["train", "--out", "x", "--estimator", "reinforce"], ["--estimator", "reinforce", "self-critical"]),
        (["train", "--out", "x", "--high", "big"], ["high: 'big' is no image size"]),
        (["train", "--out", "x", "--low", "0"], ["low: '0' is no image size"]),
        (["train", "--out", "x", "--grid", "4x"], ["grid '4x'"]),
        (["train", "--out", "x", "--grid", "0"], ["grid 0: needs at least one row"]),
        (["train", "--out", "x", "--high", "16", "--grid", "17"], ["16 x 16 px image cannot hold a 17 x 17 grid"]),
        (
            ["train", "--out", "x", "--target-patches", "16.5"],
            ["target_patches: 16.5 is out of", "grid 4 has 16 patches"],
        ),
        (
            ["train", "--out", "x", "--dry-run", "--grid", "2x3", "--target-patches", "7"],
            ["target_patches: 7 is out of range", "grid 2x3 has 6 patches", "use 0 to 6"],
        ),
        (["train", "--out", "x", "--stages"], ["stages: none is named", "ft2"]),
        (["train", "--out", "x", "--config", "dmo"], ["--config dmo", "'demo'"]),
        (["train", "--out", "x", "--config"], ["--config"]),
    ],
    ids=lambda value: " ".join(value[2:] or value) if isinstance(value, list) else None,
)
def test_a_wrong_flag_or_value_is_named_and_exits_with_2(
    refused: Refused, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    message = refused(2, *arguments)
    for word in words:
        assert word in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("epohcs_hr: 3", ["there is no setting 'epohcs_hr'", "'epochs_hr'"]),
        ("epochs_hr: three", ["epochs_hr: 'three' is no int"]),
        ("epochs_hr: 2.5", ["epochs_hr: 2.5 is no int"]),
        ("epochs_hr: true", ["epochs_hr: True is no int"]),
        ("epochs_hr:", ["epochs_hr: None is no int"]),
        ("skip_bad: 1", ["skip_bad: 1 is no bool"]),
        ("fusion: shared", ["fusion: 'shared' is not one of share, learned", "'share'"]),
        ("augment: [flip, spin]", ["augment: 'spin' is not one of"]),
        ("stages: [lr, ft3]", ["stages: 'ft3' is not one of"]),
        ("batch: -1", ["batch: -1 is out of range"]),
        ("- epochs_hr", ["must hold `setting: value` lines"]),
        ("epochs_hr: [", ["is not YAML"]),
        ("a: !!python/object/apply:os.getcwd []", ["is not YAML"]),
        ("3: 4", ["there is no setting 3"]),
    ],
)
def test_a_wrong_key_or_value_in_a_settings_file_is_named_with_its_file(
    refused: Refused, tmp_path: Path, content: str, words: list[str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content + "\n")
    message = refused(2, "train", "--out", tmp_path / "x", "--config", file)
    for word in words:
        assert word in message
    if "out of range" not in message:
        assert message.startswith(f"{file}: ")
    assert not (tmp_path / "x").exists()


def test_a_missing_settings_file_is_named(refused: Refused, tmp_path: Path) -> None:
    message = refused(2, "train", "--out", tmp_path / "x", "--config", tmp_path / "no.yaml")
    assert f"{tmp_path / 'no.yaml'}: no such file" in message


def test_flags_win_over_the_settings_file_and_the_file_over_defaults(run: Run, data: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(
        yaml.safe_dump({"high": "16", "low": "8", "grid": "2x3", "epochs_lr": 5, "epochs_hr": 7, "batch": 8})
    )
    code, out, _ = run(
        "train", "--out", tmp_path / "x", "--config", file, "--epochs-hr", 2, "--data", data, "--dry-run", "--json",
        "--hr-network", "resnet8-w4", "--lr-network", "resnet8-w4", "--policy-network", "resnet8-w4",
    )  # fmt: skip
    plan = json.loads(out)
    assert code == 0
    assert (plan["grid"], plan["high"], plan["low"]) == ("2x3", [16, 16], [8, 8])
    assert plan["stages"]["lr"]["epochs"] == 5
    assert plan["stages"]["hr"]["epochs"] == 2
    assert plan["stages"]["pt"]["epochs"] == schedule_for(plan["data"]["images"]["fit"])["epochs_pt"]


def test_a_dry_run_states_the_plan_and_writes_nothing(run: Run, data: Path, tmp_path: Path) -> None:
    code, out, _ = run(*flags(data, tmp_path / "x"), "--dry-run", "--json")
    plan = json.loads(out)
    assert code == 0
    assert plan["data"]["images"] == {"val": 3, "fit": 21, "test": 12}
    assert [stage["steps"] for stage in plan["stages"].values()] == [2] * 6
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["resnt10", "resnet1O", "resnet8w4", "mobilnetv3_small_100"])
@pytest.mark.parametrize("flag", ["hr_network", "lr_network", "policy_network"])
def test_an_unknown_network_is_named_with_the_nearest(
    refused: Refused, data: Path, tmp_path: Path, flag: str, name: str
) -> None:
    message = refused(2, *flags(data, tmp_path / "x", **{flag: name}))
    assert f"network {name!r} does not exist, did you mean 'resnet" in message.replace("mobilenet", "resnet")


@pytest.mark.parametrize("flag", ["hr_network", "lr_network"])
def test_a_network_that_cannot_take_the_image_size_is_named_with_the_reason(
    refused: Refused, data: Path, tmp_path: Path, flag: str
) -> None:
    side = {"hr_network": 16, "lr_network": 8}[flag]
    wrong = flags(data, tmp_path / "x", **{flag: "vit_tiny_patch16_224"})
    message = refused(2, *wrong)
    assert "vit_tiny_patch16_224" in message
    assert message.endswith(f"cannot take HR 16 and LR 8 px images: Input height ({side}) doesn't match model (224).")
    assert refused(2, *wrong, "--dry-run") == message
    assert not (tmp_path / "x" / "settings.yaml").exists()


def test_a_bagnet_whose_network_cannot_take_a_patch_is_refused_with_a_size_that_it_can(
    refused: Refused, data: Path, tmp_path: Path
) -> None:
    wrong = flags(data, tmp_path / "x", classifier="bagnet", hr_network="convnext_atto")
    message = refused(2, *wrong)
    assert "hr_network convnext_atto cannot take patches of 4 x 4 px; 32 x 32 px would do" in message


def test_a_policy_network_without_a_feature_map_is_named_with_the_way_out(
    refused: Refused, data: Path, tmp_path: Path
) -> None:
    more = {"policy_network": "test_vit", "policy_head": "spatial", "low": "160", "high": "160"}
    assert "gives no feature map: use --policy-head global" in refused(2, *flags(data, tmp_path / "x", **more))


@pytest.mark.parametrize(("said", "line"), [("", "AssertionError"), ("first\nsecond", "first")])
def test_of_a_networks_own_error_one_line_is_said(
    refused: Refused, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, line: str
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError(*([said] if said else []))

    monkeypatch.setattr("patchdrop.networks.build.ResNet.forward", fail)
    assert refused(2, *flags(data, tmp_path / "x")).endswith(f"px images: {line}")


def test_settings_survive_yaml_to_the_last_value() -> None:
    settings = TrainSettings(high="96x160", augment=("erase",), stages=("lr", "ft2"), rate_policy=1e-3 / 3)
    again = from_mapping(yaml.safe_load(patchdrop.settings.flat.to_yaml(settings.to_mapping())), "here")
    assert again == settings
    assert again.to_mapping() == settings.to_mapping()
    with pytest.raises(UsageError, match=r"stages: 'ft9' is not one of .*did you mean 'ft2'"):
        TrainSettings(stages=("ft9",))


def test_more_patches_wanted_than_there_are_is_refused_from_python_before_data_are_looked_for(tmp_path: Path) -> None:
    settings = TrainSettings(data=str(tmp_path / "missing"), high="16", low="8", grid="2", target_patches=4.5)
    with pytest.raises(UsageError, match=r"target_patches: 4\.5 is out of range, grid 2 has 4 patches; use 0 to 4"):
        patchdrop.train(settings, tmp_path / "x")
    assert not (tmp_path / "x").exists()


# --- data that cannot be used


def test_a_missing_folder_an_empty_one_and_a_file_that_is_no_csv_are_named(refused: Refused, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert refused(3, *flags(missing, tmp_path / "a")).startswith(f"{missing}: no such file or folder")
    empty = tmp_path / "empty"
    empty.mkdir()
    assert refused(3, *flags(empty, tmp_path / "b")).startswith(f"{empty}: no train, val or test folder")
    text = tmp_path / "text.csv"
    text.write_text("hello\n")
    assert str(text) in refused(3, *flags(text, tmp_path / "c"))


def test_a_class_without_an_image_is_named(refused: Refused, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "images")
    (data / "train" / "white").mkdir()
    message = refused(3, *flags(data, tmp_path / "x"))
    assert message.startswith(f"{data / 'train' / 'white'}: class folder without")


def test_classes_that_differ_between_splits_are_named(refused: Refused, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "images")
    shutil.move(data / "test" / "red", data / "test" / "purple")
    message = refused(3, *flags(data, tmp_path / "x"))
    assert "train and test differ in 2 of their classes" in message
    assert "red" in message
    assert "purple" in message


def test_without_a_train_split_there_is_nothing_to_train_on(refused: Refused, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "images")
    shutil.rmtree(data / "train")
    assert "has no train split" in refused(3, *flags(data, tmp_path / "x"))


def truncate(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:60])
    return path


def test_a_truncated_image_is_named(refused: Refused, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "images")
    bad = truncate(data / "train" / "red" / "002.png")
    message = refused(3, *flags(data, tmp_path / "x"))
    assert message.startswith(f"{bad}: damaged image")


@pytest.mark.usefixtures("quick")
def test_with_skip_bad_a_truncated_image_is_left_out_counted_and_listed(run: Run, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "images")
    truncate(data / "train" / "red" / "002.png")
    truncate(data / "test" / "green" / "001.png")
    code, _, err = run(*flags(data, tmp_path / "x", stages="lr"), "--skip-bad")
    assert code == 0
    assert "skipped train/red/002.png: " in err
    assert "skipped test/green/001.png: " in err
    assert "skipped 2 images in all" in err
    recorded = json.loads((tmp_path / "x" / "data.json").read_text())
    assert sorted(recorded["skipped"]) == ["test/green/001.png", "train/red/002.png"]
    assert sum(recorded["images"].values()) == 24 + 12 - 2
    (row,) = json.loads((tmp_path / "x" / "results.json").read_text())["rows"]
    assert row["n"] == 11


# --- unusual shapes work


@pytest.mark.parametrize(
    "changes",
    [{"grid": "1"}, {"high": "18x21", "low": "7x9", "grid": "4"}, {"grid": "2x5"}, {"channels": 1}],
    ids=["grid of one patch", "HR not divisible", "grid not square", "grey"],
)
@pytest.mark.usefixtures("quick")
def test_unusual_geometry_trains_evaluates_and_predicts(
    run: Run, data: Path, tmp_path: Path, changes: dict[str, str]
) -> None:
    code, out, _ = run(*flags(data, tmp_path / "x", **changes), "--json")
    document = json.loads(out)
    assert code == 0
    patches = {"1": 1, "2x5": 10}.get(changes.get("grid", ""), 16)
    assert document["patches"] == patches
    assert all(len(row["patches_histogram"]) == patches + 1 for row in document["rows"])
    code, out, _ = run("predict", tmp_path / "x", picture(data), "--json")
    assert code == 0
    (prediction,) = json.loads(out)["predictions"]
    assert prediction["hr_fraction"] == len(prediction["patches"]) / patches


# --- all defaults


EPOCH_EACH = [token for stage in STAGES for token in (f"--epochs-{stage}", "1")]


def test_with_all_defaults_a_run_is_trained_judged_used_calibrated_and_exported(
    run: Run, data: Path, tmp_path: Path
) -> None:
    """But for sizes, grid, epochs, and that the policy is trained whatever three validation images say."""
    out = tmp_path / "x"
    asked = ["train", "--data", data, "--out", out, "--high", 16, "--low", 8, "--grid", 4, *EPOCH_EACH, "--insist"]

    def document(*arguments: object) -> dict[str, Any]:
        code, printed, err = run(*arguments, "--json")
        assert code == 0, err
        return only_json(printed)

    trained = document(*asked)
    plain = ("Random", "Shuffled", "Random places", "Fixed mask", "Activation map", "Detail", "Cascade")
    assert [(row["method"], row["stage"]) for row in trained["rows"]] == [
        ("LR-CNN", "lr"),
        ("HR-CNN", "hr"),
        *((method, stage) for stage in ("pt", "ft1", "ft2") for method in ("PatchDrop", *plain)),
    ]
    assert "PatchDrop" in (out / "report.html").read_text(encoding="utf-8")
    assert document("evaluate", out)["rows"] == trained["rows"]
    images = sorted((data / "test").rglob("*.png"))
    ours = next(row for row in trained["rows"] if (row["method"], row["stage"]) == ("PatchDrop", "ft2"))
    found = document("predict", out, *images)["predictions"]
    counts = [len(prediction["patches"]) for prediction in found]
    assert np.bincount(counts, minlength=17).tolist() == ours["patches_histogram"]
    assert sum(Path(p["path"]).parent.name == p["label"] for p in found) == ours["correct"]
    point = document("calibrate", out, "--mean-budget", 4)["chosen"]["point"]
    assert json.loads((out / "calibration.json").read_text())["points"][point]["validation_mean_patches"] == 4
    assert any(prediction["patches"] for prediction in document("predict", out, *images, "--calibrated")["predictions"])
    checked = document("export", out, "--onnx", tmp_path / "onnx")["check"]
    assert max(checked["difference"].values()) <= checked["tolerance"]
    told = document("info", out)
    settings = told["settings"]
    assert list(told["stages"]) == list(STAGES)
    assert (settings["policy"], settings["grid"], settings["batch"]) == ("ranking", "4", 8)
    assert settings["hr_network"] and settings["lr_network"] and settings["policy_network"]
    assert settings["augment"] == ["flip", "shift"]


@pytest.mark.usefixtures("quick")
def test_a_run_that_found_lr_cnn_enough_reads_nothing_and_stays_so(
    run: Run, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(References, "low_is_enough", lambda *_: True)
    more = {"policy": "ranking", "policy_head": "spatial", "low_stream": "pt"}
    for _ in range(2):
        code, out, err = run(*flags(data, tmp_path / "x", **more), "--json")
        assert code == 0, err
        assert RunFolder(tmp_path / "x").stages_done() == ["lr", "hr", "pt"]
        rows = {row["method"]: row for row in only_json(out)["rows"]}
        assert rows["PatchDrop"]["mean_patches"] == 0
        assert rows["PatchDrop"]["correct"] == rows["LR-CNN"]["correct"]


# --- the run folder


@pytest.mark.usefixtures("quick")
def test_a_run_that_is_there_is_not_trained_again(run: Run, data: Path, copy: Path) -> None:
    before = {stage: (copy / stage / "model.safetensors").stat().st_mtime_ns for stage in STAGES}
    code, _, _ = run(*flags(data, copy))
    assert code == 0
    assert {s: (copy / s / "model.safetensors").stat().st_mtime_ns for s in STAGES} == before


def test_other_settings_in_the_same_folder_are_refused_and_named(refused: Refused, data: Path, trained: Path) -> None:
    message = refused(3, *flags(data, trained, seed=4, sigma=2.0))
    assert message.startswith(f"{trained}: was started with other settings (")
    assert "seed: 0 -> 4" in message
    assert "sigma: 0.5 -> 2.0" in message


def test_other_data_in_the_same_folder_are_refused_and_the_difference_is_named(
    refused: Refused, trained: Path, tmp_path: Path
) -> None:
    fewer = write_folder(tmp_path / "images", train=18)
    assert "other data (images was " in refused(3, *flags(fewer, trained))
    renamed = write_folder(tmp_path / "other")
    assert "other data (name was images, is other)" in refused(3, *flags(renamed, trained))
    classes = write_folder(tmp_path / "again" / "images")
    for split in ("train", "test"):
        shutil.move(classes / split / "red", classes / split / "purple")
    message = refused(3, *flags(classes, trained))
    assert "other data (classes was " in message
    assert "'purple'" in message


def test_evaluating_on_other_classes_is_refused_and_named(refused: Refused, trained: Path, tmp_path: Path) -> None:
    other = write_folder(tmp_path / "images")
    shutil.rmtree(other / "train" / "red")
    shutil.rmtree(other / "test" / "red")
    message = refused(3, "evaluate", trained, "--data", other)
    assert "was trained on 3 classes, images has 2 (not in both: red)" in message


@pytest.mark.parametrize("command", ["evaluate", "info", "predict"])
def test_a_folder_that_is_no_run_is_named(refused: Refused, data: Path, tmp_path: Path, command: str) -> None:
    for folder in (tmp_path, tmp_path / "missing"):
        more = [picture(data)] if command == "predict" else []
        assert refused(3, command, folder, *more).startswith(f"{folder}: is no run folder")


def test_a_split_that_does_not_exist_is_named(refused: Refused, trained: Path) -> None:
    assert "has no holdout split, only" in refused(3, "evaluate", trained, "--split", "holdout")


def test_an_unwritable_run_folder_is_named(refused: Refused, data: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        message = refused(3, *flags(data, out))
        assert message.startswith(f"{out}: cannot be written")


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_damaged_checkpoint_is_named(refused: Refused, data: Path, copy: Path, command: str) -> None:
    path = copy / "ft2" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    more = [picture(data)] if command == "predict" else []
    assert refused(3, command, copy, *more).startswith(f"{path}: is damaged, its checksum differs")


def test_a_damaged_config_is_named(refused: Refused, data: Path, copy: Path) -> None:
    path = copy / "ft2" / "config.json"
    path.write_text(path.read_text()[:100])
    assert refused(3, "predict", copy, picture(data)).startswith(f"{path}: is damaged")


def test_a_run_in_use_is_refused_to_training_and_to_an_evaluation_that_writes(
    run: Run, refused: Refused, data: Path, copy: Path
) -> None:
    with RunFolder(copy).locked():
        for arguments in (flags(data, copy), ["evaluate", copy]):
            message = refused(3, *arguments)
            assert message.startswith(f"{copy}: another training or evaluation is using it; wait for it")
        assert run("evaluate", copy, "--split", "val")[0] == 0
        assert run("info", copy)[0] == 0


def test_an_evaluation_holds_the_folder_until_its_report_is_written(
    run: Run, copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[str] = []

    def write_report(folder: Path, *_: object) -> Path:
        with pytest.raises(RunError, match="is using it"), RunFolder(copy).locked():
            pass
        held.append("report")
        return folder / "report.html"

    monkeypatch.setattr("patchdrop.commands.runs.write_report", write_report)
    assert run("evaluate", copy)[0] == 0
    assert held == ["report"]
    with RunFolder(copy).locked():
        pass


def test_a_stage_that_is_not_trained_is_named(refused: Refused, data: Path, copy: Path) -> None:
    shutil.rmtree(copy / "ft2")
    message = refused(3, "predict", copy, picture(data), "--stage", "ft2")
    assert "stage ft2 is not trained (trained: lr, hr, patches, pt, ft1)" in message
    assert "stage 'lr' has no policy" in refused(2, "predict", copy, picture(data), "--stage", "lr")
    for stage in STAGES:
        shutil.rmtree(copy / stage, ignore_errors=True)
    assert "no policy is trained yet" in refused(3, "predict", copy, picture(data))
    assert "no stage is trained yet" in refused(3, "evaluate", copy)


def test_what_is_refused_raises_with_debug(data: Path, tmp_path: Path) -> None:
    with pytest.raises(patchdrop.errors.RunError):
        main(["evaluate", str(tmp_path), "--debug"])


# --- predict


def test_predictions_are_those_of_the_table(run: Run, data: Path, trained: Path) -> None:
    """Right answers and patches over all test images, one by one, against the row of `evaluate`."""
    images = sorted((data / "test").rglob("*.png"))
    code, out, err = run("predict", trained, *images, "--json")
    assert (code, err) == (0, "")
    found = json.loads(out)
    assert found["failed"] == []
    assert [p["path"] for p in found["predictions"]] == [str(i) for i in images]
    rows = json.loads((trained / "results.json").read_text())["rows"]
    row = next(r for r in rows if (r["method"], r["stage"]) == ("PatchDrop", "ft2"))
    right = sum(Path(p["path"]).parent.name == p["label"] for p in found["predictions"])
    counts = [len(p["patches"]) for p in found["predictions"]]
    assert right == row["correct"]
    assert np.bincount(counts, minlength=17).tolist() == row["patches_histogram"]
    for prediction in found["predictions"]:
        assert prediction["hr_fraction"] == len(prediction["patches"]) / 16
        assert prediction["patches"] == sorted(set(prediction["patches"]))
        assert 1 / 3 <= prediction["probability"] <= 1


def test_predictions_say_how_likely_they_are_right_where_the_policy_does(
    run: Run, data: Path, trained: Path, tmp_path: Path
) -> None:
    (mute,) = only_json(run("predict", trained, picture(data), "--json")[1])["predictions"]
    assert [mute[name] for name in ("chance_now", "chance_after", "chance_all")] == [None] * 3
    assert "chance" not in run("predict", trained, picture(data))[1]
    ranking = untrained_run(tmp_path / "run", tiny_settings(policy="ranking", low_stream="pt", fusion="learned"))
    images = [picture(data, index) for index in range(4)]
    found = {
        budget: only_json(run("predict", ranking, *images, "--budget", budget, "--threshold", 0, "--json")[1])
        for budget in (0, 5, 16)
    }
    chances = {budget: [p["chance_after"] for p in said["predictions"]] for budget, said in found.items()}
    for budget, said in found.items():
        assert [len(p["patches"]) for p in said["predictions"]] == [budget] * 4
        assert [p["chance_now"] for p in said["predictions"]] == chances[0]
        assert [p["chance_all"] for p in said["predictions"]] == chances[16]
    assert all(0 < now < after < most < 1 for now, after, most in zip(*chances.values(), strict=True))
    printed = run("predict", ranking, *images, "--budget", 5, "--threshold", 0)[1]
    for now, after, _ in zip(*chances.values(), strict=True):
        assert f"{100 * now:.0f} → {100 * after:.0f} %" in printed


def test_a_bad_image_among_good_ones_is_named_and_the_others_predicted(
    run: Run, data: Path, trained: Path, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    missing = tmp_path / "missing.png"
    good = picture(data)
    code, out, err = run("predict", trained, bad, good, missing, "--json")
    assert code == 4
    found = json.loads(out)
    assert [p["path"] for p in found["predictions"]] == [str(good)]
    assert [reason.split(": ")[0] for reason in found["failed"]] == [str(bad), str(missing)]
    assert [line.split(": ")[:2] for line in err.splitlines()] == [["error", str(bad)], ["error", str(missing)]]


def test_only_bad_images_exit_with_3(run: Run, trained: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n\x1a\n")
    code, out, err = run("predict", trained, bad, "--json")
    assert code == 3
    assert json.loads(out)["predictions"] == []
    assert err.startswith(f"error: {bad}: ")


def test_lr_images_of_their_own_are_one_for_each_image(run: Run, refused: Refused, data: Path, trained: Path) -> None:
    one, two = picture(data), picture(data, 1)
    code, out, _ = run("predict", trained, one, two, "--low", two, one, "--json")
    assert code == 0
    assert len(json.loads(out)["predictions"]) == 2
    assert "2 images and 1 LR images were given" in refused(2, "predict", trained, one, two, "--low", one)


def test_overlays_are_one_picture_an_image_and_none_overwrites_another(
    run: Run, data: Path, trained: Path, tmp_path: Path
) -> None:
    """Even where an image has the very name that a second one of the same stem would be given."""
    images = [tmp_path / name for name in ("x/a.png", "y/a-2.png", "z/a.png", "z/a.PNG", "z/b.png")]
    for index, image in enumerate(images):
        image.parent.mkdir(exist_ok=True)
        shutil.copy(picture(data, index), image)
    code, _, _ = run("predict", trained, *images, "--overlay", tmp_path / "shown")
    assert code == 0
    shown = sorted((tmp_path / "shown").iterdir())
    assert [path.name for path in shown] == ["a-2.png", "a-3.png", "a-4.png", "a.png", "b.png"]
    assert len({path.read_bytes() for path in shown}) == len(images)
    for path in shown:
        with Image.open(path) as image:
            image.load()


@pytest.mark.parametrize("below", ["", "below"])
def test_an_overlay_folder_that_cannot_be_written_is_named(
    refused: Refused, data: Path, trained: Path, tmp_path: Path, below: str
) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / below
    message = refused(3, "predict", trained, picture(data), "--overlay", folder)
    assert message.startswith(f"{folder}: cannot be written (")
    assert message.endswith("; choose another folder")


# --- a report that cannot be written


@pytest.mark.parametrize(
    ("why", "words"),
    [("full", "No space left on device"), ("no folder", "File exists"), ("a folder", "Is a directory")],
)
def test_where_the_report_cannot_be_written_the_results_are_kept(
    refused: Refused, copy: Path, why: str, words: str
) -> None:
    before = json.loads((copy / "results.json").read_text())
    (copy / "results.json").unlink()
    (copy / "report.html").unlink()
    if why == "full":
        (copy / "report.html").symlink_to("/dev/full")  # every write to it fails as on a full disk
    elif why == "no folder":
        shutil.rmtree(copy / "figures")
        (copy / "figures").write_text("")
    else:
        (copy / "report.html").mkdir()
    message = refused(3, "evaluate", copy)
    assert message == f"{copy}: the report cannot be written ({words}); results.json is there"
    assert json.loads((copy / "results.json").read_text())["rows"] == before["rows"]


# --- markup in names is text


BOLD, SCRIPT = "[bold]red[/bold]", "<script>alert(1)</script>"


@pytest.fixture(scope="module")
def marked(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run in it; classes, data set, run and an image have markup for names."""
    root = tmp_path_factory.mktemp("marked")
    lines = ["path,label,split"]
    for index, path in enumerate(sorted(data.rglob("*.png"))):
        split, label, _ = path.relative_to(data).parts
        image = root / f"[link]{index}<script>.png"
        shutil.copy(path, image)
        lines.append(f"{image.name},{ {'blue': BOLD, 'green': SCRIPT, 'red': '[/i]'}[label] },{split}")
    (root / "[b]data.csv").write_text("\n".join(lines) + "\n")
    less = {"epochs_patches": 0, "epochs_ft1": 0, "epochs_ft2": 0}
    assert main(flags(root / "[b]data.csv", root / "[i]run", **less)) == 0
    return root


def test_markup_in_names_is_printed_as_it_is(run: Run, marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(marked)
    image = sorted(p.name for p in marked.glob("*.png"))[0]
    for arguments, words in (
        (["evaluate", "[i]run"], ["[b]data.csv, test split"]),
        (["info", "[i]run"], ["[i]run", "[b]data.csv (csv)", f"{SCRIPT}, [/i], {BOLD}"]),
        (["predict", "[i]run", image], [image]),
        ([*flags(Path("[b]data.csv"), Path("new")), "--dry-run"], ["data: [b]data.csv (csv)"]),
    ):
        code, out, _ = run(*arguments)
        assert code == 0
        for word in words:
            assert word in out


def test_a_class_with_markup_for_its_name_is_predicted_by_that_name(
    run: Run, marked: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(marked)
    images = sorted(p.name for p in marked.glob("*.png"))
    labels = {p["label"] for p in json.loads(run("predict", "[i]run", *images, "--json")[1])["predictions"]}
    assert labels <= {BOLD, SCRIPT, "[/i]"}
    out = run("predict", "[i]run", *images)[1]
    assert all(label in out for label in labels)


def test_markup_in_names_is_text_in_the_report(marked: Path) -> None:
    page = (marked / "[i]run" / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;script&gt;.png" in page
    for text in (BOLD, "[b]data.csv", "[i]run", "[link]"):
        assert text in page


def test_an_overlay_has_its_images_name_to_the_letter(
    run: Run, marked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(marked)
    image = sorted(p.name for p in marked.glob("*.png"))[0]
    assert run("predict", "[i]run", image, "--overlay", tmp_path / "[bold]shown")[0] == 0
    assert [p.name for p in (tmp_path / "[bold]shown").iterdir()] == [image]


# --- warnings


@pytest.mark.usefixtures("quick")
def test_a_warning_is_one_line_on_stderr_and_one_in_the_log(run: Run, data: Path, tmp_path: Path) -> None:
    """A policy that does not learn reads everything of all of 102 validation images."""
    often = shutil.copytree(data, tmp_path / "images")
    for index in range(102):
        image = picture(data, index % 12)
        (often / "val" / image.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(image, often / "val" / image.parent.name / f"{index}.png")
    still = {"policy_head": "spatial", "rate_policy": 0, "epochs_patches": 0, "epochs_ft1": 0, "epochs_ft2": 0}
    code, out, err = run(*flags(often, tmp_path / "x", **still), "--json")
    assert code == 0
    assert isinstance(only_json(out), dict)
    warned, reported = err.splitlines()
    assert warned.startswith("warning: stage pt: 102 of 102 images have the same mask, the policy hardly looks. Set ")
    assert reported.startswith("report: ")
    (logged,) = [e for e in RunFolder(tmp_path / "x").read_log() if e["event"] == "warning"]
    assert (logged["stage"], f"warning: {logged['message']}") == ("pt", warned)


def test_only_our_own_warnings_are_made_lines_and_listeners_go_with_their_block(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    outputs: list[str] = []

    def note(message: Warning | str, _: type[Warning]) -> bool:
        outputs.append(str(message))
        return False

    passed_on: list[str] = []
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: passed_on.append(str(message)))
    before = warnings.showwarning
    with warnings_told(as_line), warnings_told(note):
        warnings.warn("ours", CollapsedPolicyWarning, stacklevel=1)
        warnings.warn("theirs", RuntimeWarning, stacklevel=1)
    assert warnings.showwarning is before
    assert outputs == ["ours", "theirs"]
    assert passed_on == ["theirs"]
    assert capsys.readouterr().err == "warning: ours\n"


# --- LR images of a sensor of their own


def write_csv(data: Path, folder: Path, low: bool) -> Path:
    """The images of a folder as a CSV file, with an LR image for each: its darkened, small copy."""
    lines = ["path,label,split,low_path"] if low else ["path,label,split"]
    for path in sorted(data.rglob("*.png")):
        split, label, name = path.relative_to(data).parts
        if low:
            small = folder / "low" / f"{split}-{label}-{name}"
            small.parent.mkdir(parents=True, exist_ok=True)
            with Image.open(path) as image:
                image.reduce(2).point(lambda value: value // 3).save(small)
        lines.append(f"{path},{label},{split}" + (f",{small}" if low else ""))
    file = folder / "images.csv"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("memory_gb", [4, 0], ids=["memory", "streamed"])
def test_a_run_on_lr_of_its_own_never_takes_averaged_hr_for_it(
    run: Run, refused: Refused, data: Path, tmp_path: Path, memory_gb: int
) -> None:
    file = write_csv(data, tmp_path, low=True)
    out = tmp_path / "x"
    less = {"epochs_patches": 0, "epochs_ft1": 0, "epochs_ft2": 0, "memory_gb": memory_gb, "workers": 0}
    assert run(*flags(file, out, **less))[0] == 0
    assert json.loads((out / "data.json").read_text())["low"] == "own"
    image = picture(data)
    message = refused(2, "predict", out, image)
    assert message == (f"{out}: was trained on LR images of their own; give one for each image with --low")
    assert refused(2, "predict", out, image, "--overlay", tmp_path / "shown") == message
    own = tmp_path / "low" / "-".join(image.relative_to(data).parts)
    assert run("predict", out, image, "--low", own)[0] == 0
    assert "was trained on LR images of their own, images has none" in refused(3, "evaluate", out, "--data", data)
    assert run("evaluate", out)[0] == 0
    assert "images of their own" in run("info", out)[1]


def test_a_run_on_averaged_lr_may_be_tried_on_lr_of_its_own(
    run: Run, data: Path, trained: Path, tmp_path: Path
) -> None:
    assert json.loads((trained / "data.json").read_text())["low"] == "averaged"
    file = write_csv(data, tmp_path, low=True)
    assert run("predict", trained, picture(data), "--low", next((tmp_path / "low").iterdir()))[0] == 0
    assert run("evaluate", trained, "--data", file)[0] == 0


def test_a_run_does_not_go_on_with_lr_from_elsewhere(refused: Refused, run: Run, data: Path, tmp_path: Path) -> None:
    averaged, own = (write_csv(data, tmp_path / name, low=name == "own") for name in ("averaged", "own"))
    assert run(*flags(averaged, tmp_path / "x", stages="lr"))[0] == 0
    message = refused(3, *flags(own, tmp_path / "x", stages="lr"))
    assert "other data (low was averaged, is own)" in message


# --- without a test split


@pytest.fixture
def untested(tmp_path: Path) -> Path:
    """An image folder of which only train is there."""
    data = write_folder(tmp_path / "images")
    shutil.rmtree(data / "test")
    return data


def test_without_a_test_split_val_is_evaluated_named_everywhere_and_called_optimistic(
    run: Run, refused: Refused, untested: Path, tmp_path: Path
) -> None:
    less = {"epochs_patches": 0, "epochs_ft1": 0, "epochs_ft2": 0}
    code, out, err = run(*flags(untested, tmp_path / "x", **less))
    assert code == 0
    assert "images, val split, P = 16" in out
    said = [line for line in err.splitlines() if not line.startswith("report: ")]
    assert said == [
        "there is no test split: evaluated on val, which also picked checkpoints, so figures are optimistic"
    ]
    document = json.loads((tmp_path / "x" / "results.json").read_text())
    assert document["split"] == "val"
    assert [row["method"] for row in document["rows"]] == ["LR-CNN", "HR-CNN", "PatchDrop", "Random", "Shuffled"]
    assert {row["n"] for row in document["rows"]} == {3}
    page = (tmp_path / "x" / "report.html").read_text(encoding="utf-8")
    assert "val split" in page
    assert "optimistic" in page
    assert "test images" not in page
    assert "3 val images" in page
    assert "has no test split; name one that it has with --split" in refused(3, "evaluate", tmp_path / "x")
    code, out, _ = run("evaluate", tmp_path / "x", "--split", "val", "--json")
    assert (code, only_json(out)["rows"]) == (0, document["rows"])


def test_where_a_test_split_is_nothing_is_called_optimistic(trained: Path) -> None:
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "optimistic" not in page
    assert "12 test images" in page


@pytest.mark.parametrize("split", ["test", "val"])
def test_where_no_stage_is_trained_the_document_is_whole_but_for_its_rows(
    run: Run, data: Path, untested: Path, tmp_path: Path, split: str
) -> None:
    nothing = {f"epochs_{stage}": 0 for stage in STAGES}
    given = data if split == "test" else untested
    code, out, _ = run(*flags(given, tmp_path / "x", **nothing), "--json")
    document = only_json(out)
    assert code == 0
    assert (document["rows"], document["split"], document["data"]) == ([], split, "images")
    assert (document["patches"], document["class_names"], document["high"]) == (16, list(CLASSES), [16, 16])
    assert json.loads((tmp_path / "x" / "results.json").read_text()) == document
    code, out, _ = run(*flags(given, tmp_path / "x", **nothing))
    assert code == 0
    assert f"images, {split} split, P = 16" in out


# --- what is printed


def only_json(out: str) -> Any:
    """The document that is all of stdout."""
    document, end = json.JSONDecoder().raw_decode(out)
    assert out[end:] == "\n"
    return document


@pytest.mark.usefixtures("quick")
def test_with_json_stdout_holds_one_document_and_nothing_else(
    run: Run, data: Path, copy: Path, trained: Path, tmp_path: Path
) -> None:
    for arguments in (
        flags(data, copy),
        [*flags(data, tmp_path / "new"), "--dry-run"],
        ["evaluate", copy],
        ["evaluate", copy, "--split", "val"],
        ["predict", copy, picture(data)],
        ["info", copy],
    ):
        code, out, _ = run(*arguments, "--json")
        assert code == 0
        assert isinstance(only_json(out), dict)


@pytest.mark.usefixtures("quick")
def test_without_json_a_table_is_printed(run: Run, data: Path, copy: Path, tmp_path: Path) -> None:
    for arguments, words in (
        (["evaluate", copy], ["PatchDrop", "Shuffled", "HR-CNN", "ft2"]),
        (["info", copy], ["resnet8-w4", "blue, green, red"]),
        (["predict", copy, picture(data)], ["probability"]),
        ([*flags(data, tmp_path / "new"), "--dry-run"], ["MFLOP", "estimated time"]),
    ):
        code, out, _ = run(*arguments)
        assert code == 0
        for word in words:
            assert word in out
        with pytest.raises(ValueError, match="Expecting value"):
            json.loads(out)


def judged(run: Path, **stages: str) -> Path:
    """The run with a verdict of this kind on each of these stages."""
    for stage, kind in stages.items():
        file = run / stage / "config.json"
        figures = {"accuracy": 0.8125, "mean_patches": 3.0, "reward": 0.7}
        plain = {"cascade": {**figures, "accuracy": 0.9375, "surplus": 3.0, "p_value": 0.0123}}
        said = {"kind": kind, "sentence": f"{kind} [b]of[/b] {stage}.", "better": None, "price": 0.1, "images": 3}
        file.write_text(json.dumps({**json.loads(file.read_text()), "verdict": {**said, **figures, "plain": plain}}))
    return run


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize(("stages", "code"), [({"pt": "loses", "ft2": "policy"}, 0), ({"ft1": "loses"}, 5)])
def test_a_plain_strategy_that_is_better_than_the_last_policy_is_an_exit_code_and_a_line(
    run: Run, data: Path, copy: Path, stages: dict[str, str], code: int
) -> None:
    judged(copy, **stages)
    stage, kind = list(stages.items())[-1]
    found, out, err = run(*flags(data, copy))
    assert found == code
    assert (f"{kind} [b]of[/b] {stage}." in err) == (code == 5)
    assert out.startswith(f"{kind} [b]of[/b] {stage}.")
    assert f"stage {stage} on 3 validation images" in out
    for row in (["Policy", "81.2", "3.00", "18.8", "0.700"], ["Cascade", "93.8", "3.00", "18.8", "0.700", "0.012"]):
        assert any(re.findall(r"[^\s│]+", line) == row for line in out.splitlines())
    found, out, err = run(*flags(data, copy), "--json")
    assert found == code and only_json(out)["verdict"]["stage"] == stage
    assert run("evaluate", copy)[0] == 0
    assert f"{stage}: {kind} [b]of[/b] {stage}." in run("info", copy)[1]
    assert only_json(run("info", copy, "--json")[1])["verdict"]["kind"] == kind
    assert "validation images" not in run("evaluate", copy, "--budget", 2)[1]


def test_a_run_that_was_never_judged_has_no_verdict(trained: Path, run: Run) -> None:
    document = json.loads((trained / "results.json").read_text())
    assert document["verdict"] is None and document["forecast"] == {}
    assert only_json(run("info", trained, "--json")[1])["verdict"] is None
    assert "verdict" not in run("info", trained)[1]


def test_a_damaged_verdict_is_one_line(refused: Refused, copy: Path) -> None:
    judged(copy, pt="odd")
    for command in ("evaluate", "info"):
        assert "pt/config.json: is damaged; remove its folder" in refused(3, command, copy)


def test_info_says_what_is_in_a_run(run: Run, trained: Path) -> None:
    document = only_json(run("info", trained, "--json")[1])
    assert list(document["stages"]) == list(STAGES)
    assert document["data"]["classes"] == list(CLASSES)
    assert document["grid"] == "4"
    assert document["settings"]["hr_network"] == "resnet8-w4"
    assert document["versions"]["patchdrop"] == patchdrop.__version__
    for stage, found in document["stages"].items():
        assert found["sha256"] == RunFolder(trained).stage_config(stage)["sha256"]


def test_a_run_can_be_repeated_from_its_own_settings(run: Run, trained: Path, tmp_path: Path) -> None:
    code, _, _ = run("train", "--config", trained / "settings.yaml", "--out", tmp_path / "again", "--stages", "lr")
    assert code == 0
    ours, theirs = RunFolder(tmp_path / "again"), RunFolder(trained)
    assert ours.stage_config("lr")["sha256"] == theirs.stage_config("lr")["sha256"]


@pytest.mark.usefixtures("quick")
def test_streamed_from_disk_a_run_ends_with_the_same_bits_and_rows(
    run: Run, data: Path, trained: Path, tmp_path: Path
) -> None:
    code, out, _ = run(*flags(data, tmp_path / "x", memory_gb=0, workers=0), "--json")
    assert code == 0
    ours, theirs = RunFolder(tmp_path / "x"), RunFolder(trained)
    for stage in STAGES:
        assert ours.stage_config(stage)["sha256"] == theirs.stage_config(stage)["sha256"]
    assert only_json(out)["rows"] == json.loads((trained / "results.json").read_text())["rows"]


def test_an_exit_code_reaches_the_shell(tmp_path: Path) -> None:
    whole = [sys.executable, "-m", "patchdrop", "train", "--out", str(tmp_path / "x"), "--batch", "-1"]
    found = subprocess.run(whole, capture_output=True, text=True, timeout=120, check=False)
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith("error: batch: -1 is out of range")


# --- the contract of results.json


@pytest.fixture(scope="module")
def results(trained: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((trained / "results.json").read_text())
    return found


@pytest.mark.parametrize(("error", "code"), [(RunError("runs/x: no run"), 3), (UsageError("grid: 0"), 2)])
def test_a_script_ends_with_an_errors_line_and_code(
    error: PatchDropError, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, errors_told():
        raise error
    assert left.value.code == code
    assert capsys.readouterr().err == f"error: {error}\n"
    with pytest.raises(ZeroDivisionError), errors_told():  # a fault of ours keeps its traceback
        raise ZeroDivisionError


def test_results_have_a_row_for_each_method_and_stage(results: dict[str, Any]) -> None:
    expected = [("LR-CNN", "lr"), ("HR-CNN", "hr")]
    expected += [(m, s) for s in ("pt", "ft1", "ft2") for m in ("PatchDrop", "Random", "Shuffled")]
    assert [(row["method"], row["stage"]) for row in results["rows"]] == expected


def test_results_say_what_they_are_of(results: dict[str, Any], trained: Path) -> None:
    assert (results["name"], results["data"], results["split"]) == ("run", "images", "test")
    assert (results["classes"], results["class_names"]) == (3, list(CLASSES))
    assert (results["patches"], results["grid"]) == (16, [4, 4])
    assert (results["high"], results["low"]) == ([16, 16], [8, 8])
    assert results["provenance"]["seed"] == 0
    assert set(results["provenance"]) >= {"command", "commit", "machine", "versions", "seconds", "trained"}


def test_the_figures_of_a_row_agree_with_each_other(results: dict[str, Any]) -> None:
    for row in results["rows"]:
        histogram = row["patches_histogram"]
        assert row["n"] == 12 == sum(histogram)
        assert row["accuracy"] == row["correct"] / row["n"]
        assert row["ci95"] == list(patchdrop.evaluation.metrics.wilson(row["correct"], row["n"]))
        assert row["mean_patches"] == pytest.approx(sum(s * c for s, c in enumerate(histogram)) / 12, rel=1e-12)
        assert row["hr_fraction"] == row["mean_patches"] / results["patches"]
        squares = sum(s * s * c for s, c in enumerate(histogram)) / 12
        assert row["patches_sd"] == pytest.approx(math.sqrt(squares - row["mean_patches"] ** 2), abs=1e-9)
        assert row["sigma"] == 0.5
        assert 1 <= row["distinct_masks"] <= 12
        wrong = (row["n"] - row["correct"]) / row["n"]
        assert -row["sigma"] * wrong - 1e-6 <= row["reward"] <= row["accuracy"] - row["sigma"] * wrong + 1e-6


def test_lr_cnn_reads_nothing_and_hr_cnn_everything(results: dict[str, Any]) -> None:
    lr, hr = results["rows"][:2]
    assert (lr["mean_patches"], lr["hr_fraction"], lr["distinct_masks"]) == (0, 0, 1)
    assert (hr["mean_patches"], hr["hr_fraction"], hr["distinct_masks"]) == (16, 1, 1)
    assert lr["reward"] == pytest.approx(lr["accuracy"] - 0.5 * (1 - lr["accuracy"]), abs=1e-6)
    assert hr["reward"] == pytest.approx(-0.5 * (1 - hr["accuracy"]), abs=1e-6)


def test_the_yardsticks_are_at_the_policys_s(results: dict[str, Any]) -> None:
    rows = {(row["method"], row["stage"]): row for row in results["rows"]}
    for stage in ("pt", "ft1", "ft2"):
        ours, random, dealt = (rows[method, stage] for method in ("PatchDrop", "Random", "Shuffled"))
        assert 0 < ours["mean_patches"] < 16
        assert ours["distinct_masks"] > 1
        assert dealt["patches_histogram"] == ours["patches_histogram"]
        assert dealt["distinct_masks"] == ours["distinct_masks"]
        assert abs(random["mean_patches"] - ours["mean_patches"]) <= 1
        assert sum(count > 0 for count in random["patches_histogram"]) <= 2
        assert ours["p_value"] is None
        assert 0 < ours["p_value_hr_cnn"] <= 1
        assert 0 < random["p_value"] <= 1
        assert 0 < dealt["p_value"] <= 1


def test_looks_and_classes_add_up_to_the_rows(results: dict[str, Any]) -> None:
    rows = {(row["method"], row["stage"]): row for row in results["rows"]}
    for stage in ("pt", "ft1", "ft2"):
        row = rows["PatchDrop", stage]
        assert sum(results["looks"][stage]) == pytest.approx(row["mean_patches"], rel=1e-5)
        classes = results["per_class"][stage]
        assert [c["class"] for c in classes] == list(CLASSES)
        assert sum(c["n"] * c["accuracy"] for c in classes) == pytest.approx(row["correct"], rel=1e-5)
        total = sum(c["n"] * c["mean_patches"] for c in classes)
        assert total == pytest.approx(row["n"] * row["mean_patches"], rel=1e-5)


@pytest.mark.usefixtures("quick")
def test_evaluating_again_gives_the_same_rows(run: Run, copy: Path, results: dict[str, Any]) -> None:
    found = only_json(run("evaluate", copy, "--json")[1])
    assert found["rows"] == results["rows"]
    assert json.loads((copy / "results.json").read_text())["rows"] == results["rows"]


def test_another_split_or_data_set_leaves_the_runs_own_results_alone(
    run: Run, copy: Path, data: Path, tmp_path: Path
) -> None:
    before = (copy / "results.json").read_bytes()
    found = only_json(run("evaluate", copy, "--split", "val", "--json")[1])
    assert (found["split"], found["rows"][0]["n"]) == ("val", 3)
    elsewhere = write_folder(tmp_path / "elsewhere", test=9)
    found = only_json(run("evaluate", copy, "--data", elsewhere, "--json")[1])
    assert (found["data"], found["rows"][0]["n"]) == ("elsewhere", 9)
    assert (copy / "results.json").read_bytes() == before


def test_the_report_is_written(trained: Path) -> None:
    page = (trained / "report.html").read_text(encoding="utf-8")
    assert "PatchDrop" in page
    assert not list(trained.rglob("*.tmp"))
    assert not list(trained.rglob("state*"))


def test_a_class_with_a_single_image_is_refused_before_anything_is_written(tmp_path: Path, refused: Refused) -> None:
    data = write_folder(tmp_path / "data")
    image = next((data / "train" / CLASSES[0]).iterdir())
    for split in ("train", "test"):
        (data / split / "lonely").mkdir()
        shutil.copy(image, data / split / "lonely" / "000.png")
    for more in ((), ("--dry-run",)):
        message = refused(3, "train", *tiny_flags(data=str(data)), "--out", tmp_path / "run", *more)
        assert "1 of 4 classes have a single image in train and val (lonely)" in message
    assert not (tmp_path / "run").exists()
