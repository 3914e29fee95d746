"""The dial on the command line: budgets, calibrated points, and calibration images that training did not use."""

from __future__ import annotations

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from patchdrop.cli import main
from patchdrop.errors import DataError, RunError, UsageError
from patchdrop.evaluation.calibrate import Measured, bytes_read, cost, cuts_on, drawn, milliseconds, pick
from patchdrop.settings.dial import Target
from patchdrop.settings.flat import STAGES
from tiny import config_of, tiny_flags, tiny_settings, write_folder

Ask = Callable[..., Any]
Refused = Callable[..., str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image folder of 48 and 40 images."""
    return write_folder(tmp_path_factory.mktemp("data") / "images", train=48, test=40)


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all stages. Read only: a test that changes it takes a copy."""
    out = tmp_path_factory.mktemp("trained") / "run"
    once = {f"epochs_{stage}": 1 for stage in STAGES}
    more = {**once, "policy_head": "global", "rate_policy": 1e-3, "workers": 1, "data": data, "out": out}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("patchdrop.commands.runs.write_report", lambda run, *_: run / "report.html")
        assert main(["train", *tiny_flags(**more)]) == 0
    return out


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "copy"))


@pytest.fixture
def ask(capsys: pytest.CaptureFixture[str]) -> Ask:
    """The document that a command prints."""

    def of(*arguments: object, code: int = 0) -> Any:
        capsys.readouterr()
        assert main([*(str(a) for a in arguments), "--json"]) == code, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return of


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """The one line that a command is refused with."""

    def of(code: int, *arguments: object) -> str:
        capsys.readouterr()
        found = main([str(a) for a in arguments])
        said = capsys.readouterr()
        assert found == code, said.err
        assert said.out == ""
        assert said.err.startswith("error: ")
        assert said.err.count("\n") == 1
        return said.err.removeprefix("error: ").strip()

    return of


def rows(document: Any, method: str = "PatchDrop") -> dict[str, dict[str, Any]]:
    return {row["stage"]: row for row in document["rows"] if row["method"] == method}


def images(data: Path) -> list[Path]:
    return sorted((data / "test").rglob("*.png"))


# --- evaluate and predict


def test_a_threshold_of_a_half_gives_the_greedy_table_to_the_bit(ask: Ask, trained: Path) -> None:
    greedy = json.loads((trained / "results.json").read_text())
    assert ask("evaluate", trained, "--threshold", 0.5)["rows"] == greedy["rows"]
    assert ask("evaluate", trained, "--budget", 16)["rows"] == greedy["rows"]


def test_a_turned_dial_leaves_results_and_report_as_they_are(ask: Ask, trained: Path) -> None:
    before = (trained / "results.json").read_bytes()
    document = ask("evaluate", trained, "--budget", 1)
    assert document["dial"] == "at most 1 patches"
    assert (trained / "results.json").read_bytes() == before
    assert not (trained / "report.html").exists()


def test_a_budget_caps_every_image_of_every_policy_stage(ask: Ask, trained: Path) -> None:
    greedy = rows(json.loads((trained / "results.json").read_text()))
    capped = rows(ask("evaluate", trained, "--budget", 2))
    assert set(capped) == {"pt", "ft1", "ft2"}
    for stage, row in capped.items():
        few = greedy[stage]["patches_histogram"]
        assert row["patches_histogram"][:3] == [few[0], few[1], sum(few[2:])]
    exactly = rows(ask("evaluate", trained, "--budget", 3, "--threshold", 0))
    assert all(row["patches_histogram"][3] == 40 for row in exactly.values())


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_mean_budget_is_met_on_the_images_it_is_spent_on(ask: Ask, trained: Path, split: str) -> None:
    found = rows(ask("evaluate", trained, "--mean-budget", 3.5, "--split", split))
    for row in found.values():
        assert row["mean_patches"] == pytest.approx(3.5, abs=0.51 / row["n"])


def test_predicted_patches_are_nested_in_the_budget(ask: Ask, data: Path, trained: Path) -> None:
    files = images(data)[:6]
    last: list[set[int]] = [set() for _ in files]
    for budget in (0, 1, 4, 16):
        found = [set(p["patches"]) for p in ask("predict", trained, *files, "--budget", budget)["predictions"]]
        assert all(len(patches) <= budget for patches in found)
        assert all(fewer <= more for fewer, more in zip(last, found, strict=True))
        last = found
    greedy = ask("predict", trained, *files)["predictions"]
    assert [set(p["patches"]) for p in greedy] == last
    spent = ask("predict", trained, *files, "--mean-budget", 2)["predictions"]
    assert all(set(p["patches"]) <= whole or whole <= set(p["patches"]) for p, whole in zip(spent, last, strict=True))
    assert sum(len(p["patches"]) for p in spent) == 2 * len(files)


def test_a_bad_image_takes_nothing_from_a_mean_budget(ask: Ask, data: Path, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    files = images(data)[:5]
    with_bad = (*files[:2], tmp_path / "bad.jpg", *files[2:])
    found = ask("predict", trained, *with_bad, "--mean-budget", 2, code=4)
    assert len(found["failed"]) == 1
    without = ask("predict", trained, *files, "--mean-budget", 2)["predictions"]
    for one, other in zip(found["predictions"], without, strict=True):
        assert one == {**other, "probability": pytest.approx(other["probability"], rel=1e-5)}


# --- calibrate


def test_a_point_of_the_curve_is_what_the_table_says_of_its_threshold(ask: Ask, copy: Path) -> None:
    """On all of the test split: the greedy row, the one that reads nothing, the one that reads all."""
    for stage in ("pt", "ft2"):
        points = ask("calibrate", copy, "--fraction", 1, "--stage", stage)["points"]
        for threshold, point in ((0.5, next(p for p in points if p["cut"] == 0)), (1, points[0]), (0, points[-1])):
            row = rows(ask("evaluate", copy, "--threshold", threshold))[stage]
            for name in ("accuracy", "correct", "n", "ci95", "mean_patches", "hr_fraction"):
                assert point[name] == row[name]
            assert point["reward"] == pytest.approx(row["reward"], abs=1e-6)
            assert point["bytes"] == pytest.approx(row["hr_fraction"] * 16 * 16 * 3)
            assert point["threshold"] == threshold
        assert [p["mean_patches"] for p in points] == sorted(p["mean_patches"] for p in points)


def test_the_calibrated_point_is_used_and_evaluated_on_the_images_left(ask: Ask, data: Path, copy: Path) -> None:
    document = ask("calibrate", copy, "--mean-budget", 3, "--fraction", 0.25)
    assert json.loads((copy / "calibration.json").read_text()) == document
    assert document["images"]["n"] == 10
    assert document["provenance"]["command"]
    point = document["points"][document["chosen"]["point"]]
    assert point["validation_mean_patches"] == pytest.approx(3, abs=0.5)
    found = ask("evaluate", copy, "--calibrated")
    assert set(rows(found)) == {"ft2"}
    assert rows(found)["ft2"]["n"] == 30
    left, taken = drawn(40, 0.25, 0)
    assert len(left) == 30
    files = [images(data)[i] for i in left]
    predicted = ask("predict", copy, *files, "--calibrated")["predictions"]
    assert predicted == ask("predict", copy, *files, "--threshold", point["threshold"])["predictions"]
    right = sum(p["label"] == Path(p["path"]).parent.name for p in predicted)
    assert rows(found)["ft2"]["correct"] == right
    again = ask("predict", copy, *(images(data)[i] for i in taken), "--calibrated")["predictions"]
    assert point["correct"] == sum(p["label"] == Path(p["path"]).parent.name for p in again)


def test_the_draw_follows_its_seed_and_is_of_images_not_of_classes() -> None:
    left, taken = drawn(40, 0.5, 3)
    assert sorted(left + taken) == list(range(40))
    assert drawn(40, 0.5, 3) == (left, taken) != drawn(40, 0.5, 4)
    assert {sum(i < 20 for i in drawn(40, 0.5, seed)[1]) for seed in range(20)} != {10}
    for fraction in (0, -1, 1.1, 0.01, float("nan")):
        with pytest.raises(UsageError, match="fraction"):
            drawn(40, fraction, 0)


def test_a_guaranteed_point_is_written_and_an_unreachable_target_is_not(ask: Ask, refused: Refused, copy: Path) -> None:
    chosen = ask("calibrate", copy, "--target-accuracy", 0.05, "--confidence", 0.9)["chosen"]
    assert chosen["kind"] == "target-accuracy"
    assert chosen["p_value"] <= 0.1
    before = (copy / "calibration.json").read_bytes()
    message = refused(3, "calibrate", copy, "--target-accuracy", 0.999, "--json")
    assert (
        "no operating point is known to be right on 0.999 of new images with confidence 0.95; the best one" in message
    )
    assert (copy / "calibration.json").read_bytes() == before


def test_a_cost_picks_the_most_accurate_point_within_it(ask: Ask, refused: Refused, copy: Path) -> None:
    document = ask("calibrate", copy, "--target-cost", 0.25, "--unit", "money", "--price", 1)
    point = document["points"][document["chosen"]["point"]]
    assert point["validation_cost"] <= 0.25
    within = [p for p in document["points"] if p["validation_cost"] <= 0.25]
    assert point["validation_accuracy"] == max(p["validation_accuracy"] for p in within)
    message = refused(3, "calibrate", copy, "--target-cost", 1, "--unit", "milliseconds")
    assert "stage ft2 has not been timed; run `patchdrop bench` first" in message


def test_images_of_another_source_are_all_used(ask: Ask, refused: Refused, copy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    for path in write_folder(tmp_path / "made", train=3, test=33).rglob("test/*/*.png"):
        place = other / "test" / path.parent.name / f"new-{path.name}"
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    document = ask("calibrate", copy, "--data", other, "--mean-budget", 2)
    assert (document["images"]["n"], document["images"]["data"]) == (33, "other")
    assert rows(ask("evaluate", copy, "--calibrated"))["ft2"]["n"] == 40
    message = refused(3, "evaluate", copy, "--calibrated", "--data", other)
    assert message.startswith("every image of this split was used to calibrate")


# --- what is refused


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_runs_own_train_and_val_splits_are_refused(refused: Refused, data: Path, trained: Path, split: str) -> None:
    for more in ([], ["--data", data]):
        message = refused(3, "calibrate", trained, "--split", split, *more)
        assert f"its {split} split was used in training; calibrate on test" in message


def test_a_set_that_holds_a_single_training_image_is_refused(
    refused: Refused, data: Path, trained: Path, tmp_path: Path
) -> None:
    other = Path(shutil.copytree(data, tmp_path / "other"))
    shutil.rmtree(other / "train")
    first = sorted((data / "train").rglob("*.png"))[5]
    stolen = other / "test" / first.parent.name / "renamed.png"
    shutil.copy(first, stolen)
    message = refused(3, "calibrate", trained, "--data", other)
    assert message == f"{stolen}: is the image {first}, which training used; calibrate on other images"
    elsewhere = Path(shutil.copytree(data, tmp_path / "again"))
    assert "which training used" in refused(3, "calibrate", trained, "--data", elsewhere, "--split", "train")


def test_data_that_have_changed_since_training_are_refused(
    refused: Refused, data: Path, copy: Path, tmp_path: Path
) -> None:
    """An image that was trained on may lie in test by now."""
    moved = Path(shutil.copytree(data, tmp_path / "moved" / "images"))
    settings = copy / "settings.yaml"
    settings.write_text(settings.read_text().replace(str(data), str(moved)))
    image = sorted((moved / "train").rglob("*.png"))[0]
    image.rename(moved / "test" / image.parent.name / "new.png")
    assert "split has changed since the run was trained; put it back" in refused(3, "calibrate", copy)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_run_without_a_calibrated_point_says_what_to_do(
    ask: Ask, refused: Refused, data: Path, copy: Path, command: str
) -> None:
    asked = [command, copy, *(images(data)[:1] if command == "predict" else []), "--calibrated"]
    assert refused(3, *asked) == f"{copy}: has no calibration.json; make one with `patchdrop calibrate`"
    document = ask("calibrate", copy)
    assert document["chosen"] is None
    assert "holds a curve but no chosen point; give `patchdrop calibrate` --mean-budget" in refused(3, *asked)
    ask("calibrate", copy, "--mean-budget", 2, "--stage", "pt")
    assert main([str(a) for a in asked]) == 0
    if command == "predict":
        assert "stage pt is calibrated, not ft2; leave out --stage" in refused(2, *asked, "--stage", "ft2")
    path = copy / "calibration.json"
    whole = json.loads(path.read_text())
    for damage in (
        {"points": []},
        {"points": [{"cut": 1}]},
        {"chosen": {"kind": "mean-budget", "point": 99}},
        {"chosen": {"kind": "x", "point": 0}},
        {"target": {}},
        {"stage": 3},
        {"chosen": None, "points": []},
    ):
        path.write_text(json.dumps({**whole, **damage}))
        assert refused(3, *asked) == f"{path}: is damaged; make it anew with `patchdrop calibrate`"
    path.write_text(json.dumps({**whole, "sha256": "0"}))
    assert "was made with other weights of stage pt" in refused(3, *asked)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["evaluate", "RUN", "--budget", 17], 2, "budget: 17 is out of range, this run's grid has 16 patches"),
        (["evaluate", "RUN", "--budget", -1], 2, "budget: -1 is out of range"),
        (["evaluate", "RUN", "--mean-budget", 16.5], 2, "mean_budget: 16.5 is out of range"),
        (["evaluate", "RUN", "--threshold", 2], 2, "threshold: 2 is out of range"),
        (["evaluate", "RUN", "--budget", 2, "--mean-budget", 2], 2, "--mean-budget and --budget contradict"),
        (["predict", "RUN", "IMAGE", "--budget", 17], 2, "budget: 17 is out of range"),
        (["predict", "RUN", "IMAGE", "--calibrated", "--budget", 1], 2, "--calibrated and --budget contradict"),
        (["predict", "RUN", "IMAGE", "--budget", 1, "--stage", "ft9"], 2, "stage 'ft9' has no policy"),
        (["calibrate", "RUN", "--stage", "hr"], 2, "stage 'hr' has no policy, use pt, ft1 or ft2"),
        (["calibrate", "RUN", "--target-cost", "inf"], 2, "target_cost: inf is out of range"),
        (["calibrate", "RUN", "--mean-budget", 17], 2, "mean_budget: 17 is out of range"),
        (["calibrate", "RUN", "--mean-budget", 1, "--target-cost", 1], 2, "contradict each other"),
        (["calibrate", "RUN", "--target-accuracy", 85], 2, "target_accuracy: 85 is out of range"),
        (["calibrate", "RUN", "--fraction", 0], 2, "fraction: 0 of 40 images cannot be drawn"),
        (["calibrate", "RUN", "--unit", "euros"], 2, "euros"),
        (["calibrate", "/nowhere"], 3, "is no run folder"),
    ],
)
def test_bad_input_is_named_in_one_line(
    refused: Refused, data: Path, trained: Path, arguments: list[object], code: int, words: str
) -> None:
    names: dict[object, object] = {"RUN": trained, "IMAGE": images(data)[0]}
    assert words in refused(code, *(names.get(a, a) for a in arguments))
    assert not (trained / "calibration.json").exists()


# --- the parts


def test_thresholds_go_from_no_patch_to_all_and_hold_the_policys_own_and_the_one_asked_for() -> None:
    scores = torch.randn(300, 16, generator=torch.Generator().manual_seed(0))
    cuts = cuts_on(scores, 3.3)
    used = [float((scores >= cut).sum(1).double().mean()) for cut in cuts]
    assert used == sorted(used)
    assert (used[0], used[-1]) == (0, 16)
    assert 0.0 in cuts
    assert min(abs(s - 3.3) for s in used) < 0.002
    assert max(b - a for a, b in itertools.pairwise(used)) < 0.51


def test_bytes_are_those_of_the_chosen_patches_also_where_patches_differ_in_size() -> None:
    config = config_of(tiny_settings(high="7x10", grid="2x3", channels=1))
    choice = torch.eye(6, dtype=torch.bool).unsqueeze(1)
    sizes = bytes_read(choice, config)
    assert sum(sizes) == 70
    assert sizes == [3 * 3, 3 * 3, 3 * 4, 4 * 3, 4 * 3, 4 * 4]


def test_milliseconds_follow_the_number_of_patches_of_each_image_not_their_mean() -> None:
    timed = [{"stage": "ft2", "batch": 8, "patches": s, "ms_image": ms} for s, ms in ((0, 1.0), (1, 5.0), (16, 20.0))]
    others = [{"stage": "ft2", "batch": 1, "patches": 0, "ms_image": 99.0}, {**timed[0], "patches": None}]
    times = milliseconds({"rows": [*timed, *others]}, "ft2", 16)
    assert times[[0, 1, 16]].tolist() == [1, 5, 20]
    assert float(times[4]) == pytest.approx(8)
    choice = torch.zeros(1, 4, 16, dtype=torch.bool)
    choice[0, 0] = True  # 16 patches in one image, none in three
    found = cost(
        Measured(choice, torch.ones(1, 4, dtype=torch.bool)),
        Target(target_cost=1, unit="milliseconds"),
        config_of(tiny_settings()),
        times,
    )
    assert found == [(20 + 3 * 1) / 4]
    with pytest.raises(RunError, match="stage pt has not been timed"):
        milliseconds({"rows": timed}, "pt", 16)


def test_a_cost_below_the_cheapest_point_is_refused_with_that_point() -> None:
    choice = torch.stack([torch.zeros(4, 16, dtype=torch.bool), torch.ones(4, 16, dtype=torch.bool)])
    measured = Measured(choice, torch.ones(2, 4, dtype=torch.bool))
    target = Target(target_cost=0.5, unit="milliseconds")
    with pytest.raises(DataError, match=r"costs 0\.5 milliseconds an image or less; the cheapest costs 1 with 0\.00"):
        pick(target, [1.0, -1.0], torch.zeros(4, 16), measured, measured, [1.0, 20.0])
    assert pick(target, [1.0, -1.0], torch.zeros(4, 16), measured, measured, [0.4, 0.5]) == {
        "kind": "target-cost",
        "point": 0,
    }
