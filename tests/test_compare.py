"""The tables: every row trains, is judged on the same images and costed; stopped anywhere, a comparison goes on."""

from __future__ import annotations

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

from patchdrop import commands
from patchdrop.classify.bagnet import BagNet
from patchdrop.classify.high import Spec
from patchdrop.cli import app, main
from patchdrop.commands.shared import load_with_bar
from patchdrop.compare.bench import Bench
from patchdrop.compare.costs import GivenChoice, flops, pixels_read, times_in_turns
from patchdrop.compare.form import seed_form
from patchdrop.compare.judge import oracle, spread_over_classes
from patchdrop.compare.results import markdown_table, over_seeds
from patchdrop.compare.rows import CHOOSERS, PLAIN
from patchdrop.compare.side_by_side import _end
from patchdrop.compare.table import FORMS
from patchdrop.costs.flops import forward_costs
from patchdrop.episode import PatchDrop
from patchdrop.errors import Interrupted, RunError, TrainingError, UsageError
from patchdrop.grid import Grid, Shape
from patchdrop.networks.build import Normalise
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.combinations import check_combinations
from patchdrop.settings.comparison import PROFILES, CompareOptions, Price, share_of
from patchdrop.settings.flat import STAGES, TrainSettings, from_mapping, read_profile, to_yaml
from patchdrop.training.after_stage import References
from patchdrop.training.run import Stopper
from tiny import config_of, recipe_of, tiny_flags, tiny_settings, with_networks, write_folder

GRID = Grid(4, 4)
SHORT: dict[str, Any] = {
    **{f"epochs_{stage}": 1 for stage in STAGES},
    "policy_head": "global",
    "rate_policy": 1e-4,
    "workers": 0,
    "val_fraction": 0.25,
}
SOME = ("KD", "Fixed-H", "STN", "PatchDrop")
TIMES = {"ms_batch1", "ms_batch64"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("data") / "images")


@pytest.fixture(scope="module")
def settings(data: Path) -> TrainSettings:
    return tiny_settings(data=str(data), **SHORT)


@pytest.fixture(scope="module")
def fmow(settings: TrainSettings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole comparison. Read only."""
    out = tmp_path_factory.mktemp("fmow") / "out"
    commands.compare(CompareOptions(table="fmow"), settings, out, Price(per_image=10.0))
    return out


@pytest.fixture
def some(fmow: Path, tmp_path: Path) -> Path:
    """A comparison of which nothing but the run is there."""
    out = tmp_path / "some"
    shutil.copytree(fmow / "seed-0" / "run", out / "seed-0" / "run")
    return out


def document(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def without_times(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def without_plain(table: str) -> list[str]:
    """Methods of a table whose policy predicts no chance, so that no stage was judged against plain strategies."""
    return [row.method for row in FORMS[table].rows if row not in PLAIN]


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: object) -> str:
    app.config = ()
    capsys.readouterr()
    assert main(["compare", *map(str, arguments)]) == code
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err.count("\n") == 1
    return found.err


# --- a whole table


def test_every_row_of_the_fmow_table_is_trained_and_judged_in_every_stage(fmow: Path) -> None:
    found = document(fmow)
    methods = without_plain("fmow")
    assert [(row["method"], row["stage"]) for row in found["rows"]] == [
        (method, stage) for method in methods for stage in ("pt", "ft1", "ft2")
    ]
    for row in found["rows"]:
        assert row["accuracy"] == row["correct"] / row["n"]
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
        assert row["hr_fraction"] == pytest.approx(row["mean_patches"] / 16)
        assert row["hr_pixel_fraction"] == pytest.approx(row["mean_patches"] / 16)
        assert row["hr_bytes"] == pytest.approx(row["mean_patches"] * 4 * 4 * 3)
        assert row["price"] == pytest.approx(10 * row["mean_patches"] / 16)
        assert (row["p_value"] is None) == (row["method"] == "PatchDrop")
    for row in found["rows"]:
        control = row["method"] in ("Random", "Shuffled", "Oracle")
        assert ("flops" not in row or row["flops"] is None) == control
        assert control or 0 < row["flops"] <= row["flops_dense"]
        assert control or min(row["ms_batch1"], row["ms_batch64"]) > 0


def test_the_folder_holds_the_table_in_four_forms_and_what_runs_it_again(fmow: Path) -> None:
    found = document(fmow)
    text = (fmow / "table.md").read_text()
    assert all(row["method"] in text for row in found["rows"])
    assert "Money (10 an image)" in text
    assert "PSNR" in text
    lines = list(csv.DictReader((fmow / "table.csv").open()))
    assert [float(line["accuracy"]) for line in lines] == [row["accuracy"] for row in found["rows"]]
    assert (fmow / "accuracy.png").read_bytes().startswith(b"\x89PNG")
    again = yaml.safe_load((fmow / "compare.yaml").read_text())
    assert (again["table"], again["hr_network"], again["seed"]) == ("fmow", "resnet8-w4", 0)


def test_rows_without_a_policy_say_the_same_in_each_stage_and_choosers_keep_patchdrops_s(fmow: Path) -> None:
    rows = {(row["method"], row["stage"]): row for row in document(fmow)["rows"]}
    run = RunFolder(fmow / "seed-0" / "run")
    for stage in ("pt", "ft1", "ft2"):
        assert rows["LR-CNN", stage]["mean_patches"] == rows["KD", stage]["mean_patches"] == 0
        assert rows["HR-CNN", stage]["mean_patches"] == rows["HR-CNN + CutOut", stage]["mean_patches"] == 16
        assert rows["PCN", stage]["correct"] == rows["PCN", "pt"]["correct"]
        wanted = run.stage_config(stage)["figures"]["mean_patches"]
        assert rows["Fixed-H", stage]["mean_patches"] == rows["Fixed-V", stage]["mean_patches"] == round(wanted)
        assert rows["STN", stage]["mean_patches"] == pytest.approx(wanted, abs=1)


def test_what_a_row_trained_is_kept_in_the_form_of_a_runs_stages(fmow: Path) -> None:
    for folder, stages in {"kd": ["lr"], "srgan": ["generator", "classifier"], "stn": ["pt", "ft1", "ft2"]}.items():
        for stage in stages:
            here = fmow / "seed-0" / folder / stage
            assert sorted(p.name for p in here.iterdir()) == ["config.json", "model.safetensors"]
            assert json.loads((here / "config.json").read_text())["stage"] == stage


def test_the_bagnet_table_trains_every_row(settings: TrainSettings, tmp_path: Path) -> None:
    options = CompareOptions(table="bagnet", patches=5)
    bagnet = replace(settings, classifier="bagnet", fill="mean")
    found = commands.compare(options, bagnet, tmp_path / "out")
    assert list(dict.fromkeys(row["method"] for row in found["rows"])) == without_plain("bagnet")
    rows = {(row["method"], row["stage"]): row for row in found["rows"]}
    assert rows["Fixed-V", "ft2"]["mean_patches"] == 5
    assert found["tables"][0]["header"] == ["", "Pt", "S", "Ft-1", "S", "ms"]
    fixed, whole = rows["Fixed-H", "ft1"], rows["BagNet, no patch drop", "ft1"]
    assert fixed["flops"] < 0.4 * fixed["flops_dense"] < 0.5 * whole["flops"]
    assert any("as asked" in line for line in found["foot"])


def test_beside_a_ranking_policy_every_row_is_trained_in_every_stage_even_where_lr_cnn_is_enough(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(References, "low_is_enough", lambda *_: True)
    rows = ("LR-CNN", "Fixed-H", "STN", "PatchDrop", "Random", "Shuffled", "Oracle", "HR-CNN + hard positives")
    ranking = replace(settings, policy="ranking", policy_head="spatial", low_stream="pt", policy_start="shared")
    found = commands.compare(CompareOptions(table="fmow", rows=rows), ranking, tmp_path / "out")
    assert sorted((row["method"], row["stage"]) for row in found["rows"]) == sorted(
        (method, stage) for method in rows for stage in ("pt", "ft1", "ft2")
    )
    seed, judged = tmp_path / "out" / "seed-0", {(row["method"], row["stage"]): row for row in found["rows"]}
    for stage in ("pt", "ft1", "ft2"):
        ours = RunFolder(seed / "run").stage_config(stage)
        assert (ours["policy"], json.loads((seed / "stn" / stage / "config.json").read_text())["policy"]) == (
            "ranking",
            "bernoulli",
        )
        wanted = ours["verdict"]["mean_patches"]  # what the policy reads of val, not the budget it is validated at
        assert judged["Fixed-H", stage]["mean_patches"] == round(wanted)
        assert judged["STN", stage]["mean_patches"] == pytest.approx(wanted, abs=1)


# --- going on


def test_a_comparison_that_was_stopped_equals_an_unbroken_one(
    fmow: Path, settings: TrainSettings, some: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(1, 1000))
    monkeypatch.setattr(Stopper, "__call__", lambda self: 2 if next(calls) in (2, 7, 11) else 0)
    options = CompareOptions(table="fmow", rows=SOME)
    stops = 0
    while True:
        try:
            found = commands.compare(options, settings, some, Price(per_image=10.0))
            break
        except Interrupted:
            stops += 1
    assert stops == 3
    for folder, stage in (("kd", "lr"), ("fixed-h", "ft1"), ("stn", "pt"), ("stn", "ft2")):
        digests = [
            json.loads((out / "seed-0" / folder / stage / "config.json").read_text())["sha256"] for out in (some, fmow)
        ]
        assert digests[0] == digests[1]
    unbroken = [row for row in document(fmow)["rows"] if row["method"] in SOME]
    assert without_times(found["rows"]) == without_times(unbroken)


def write_asked(folder: Path, options: CompareOptions, settings: TrainSettings) -> None:
    (folder / "asked.yaml").write_text(to_yaml({**options.to_mapping(), **settings.to_mapping()}))


@pytest.mark.long
def test_rows_side_by_side_end_as_one_after_the_other_and_stop_when_asked(
    fmow: Path, settings: TrainSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    rows = ("KD", "PCN", "Fixed-H", "PatchDrop")
    out.mkdir()
    write_asked(out, CompareOptions(table="fmow", rows=rows, jobs=2), settings)
    command = [sys.executable, "-m", "patchdrop", "compare", "--config", str(out / "asked.yaml"), "--out", str(out)]
    first = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while first.poll() is None and not (out / "seed-0" / "pcn" / "lr").exists():
        time.sleep(0.02)
    first.send_signal(signal.SIGTERM)
    assert "goes on" in first.communicate()[1]
    assert first.returncode == 143
    assert not (out / "results.json").exists()
    subprocess.run(command, check=True, capture_output=True)
    unbroken = [row for row in document(fmow)["rows"] if row["method"] in rows]
    priced = [{k: v for k, v in row.items() if k != "price"} for row in without_times(unbroken)]
    assert [{k: v for k, v in row.items() if k != "price"} for row in without_times(document(out)["rows"])] == priced


@pytest.mark.long
def test_after_kill_9_the_processes_of_rows_end_too_and_what_they_saved_is_gone_on_with(
    settings: TrainSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    longer = replace(settings, epochs_lr=400, save_minutes=0.0)
    write_asked(out, CompareOptions(table="fmow", rows=("PCN",), jobs=2), longer)
    command = [sys.executable, "-m", "patchdrop", "compare", "--config", str(out / "asked.yaml"), "--out", str(out)]
    first = subprocess.Popen(command)
    state = out / "seed-0" / "pcn" / "lr" / "state.json"
    while first.poll() is None and not state.exists():
        time.sleep(0.02)
    children = [Path("/proc") / c for c in Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()]
    before = json.loads(state.read_text())["step"]
    first.kill()
    first.wait()
    deadline = time.monotonic() + 60
    while any(child.exists() for child in children):
        assert time.monotonic() < deadline, "a process was left behind"
        time.sleep(0.1)
    assert len(children) >= 2
    assert json.loads(state.read_text())["step"] >= before


def test_a_process_of_a_row_that_is_ended_from_outside_is_one_of_our_errors_or_an_interrupt() -> None:
    future: Future[None] = Future()
    future.set_exception(BrokenProcessPool())
    stop = Stopper()
    with pytest.raises(TrainingError, match="fewer --jobs"):
        _end(future, stop)
    stop.signal = 2
    with pytest.raises(Interrupted):
        _end(future, stop)


def test_what_is_trained_is_not_trained_again_and_a_finished_run_may_be_dropped_in(
    fmow: Path, settings: TrainSettings, some: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(fmow / "seed-0" / "kd", some / "seed-0" / "kd")

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("patchdrop.training.run.train", fail)
    found = commands.compare(CompareOptions(table="fmow", rows=("KD", "LR-CNN")), settings, some)
    assert list(dict.fromkeys(row["method"] for row in found["rows"])) == ["LR-CNN", "KD"]
    assert len(found["provenance"]["trained"]) == 1  # this call trained nothing


def test_other_settings_in_the_same_folder_are_refused_with_the_difference(fmow: Path, settings: TrainSettings) -> None:
    with pytest.raises(RunError, match="batch: 8 -> 4"):
        commands.compare(CompareOptions(table="fmow"), replace(settings, batch=4), fmow)
    with pytest.raises(RunError, match="patches: None -> 5"):
        commands.compare(CompareOptions(table="fmow", patches=5), settings, fmow)
    with pytest.raises(RunError, match="table: fmow -> imagenet"):
        commands.compare(CompareOptions(table="imagenet"), settings, fmow)


# --- bad input


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--table", "fmow"], "needs labelled images"),
        (["--table", "fmow", "--price-per-km2", "3"], "--price-per-km2 without --gsd"),
        (["--table", "fmow", "--gsd", "3"], "--gsd without --price-per-km2"),
        (["--table", "fmow", "--price-per-image", "-1"], "--price-per-image: -1"),
        (["--table", "fmow", "--rows", "Stocastic"], "did you mean 'Stochastic'?"),
        (["--table", "fmow", "--rows", "stn"], "did you mean 'STN'?"),
        (["--table", "fmow", "--patches", "17"], "17 cannot be read of a grid of 16"),
        (["--table", "fmow", "--epochs-lr", "0"], "lr is left out"),
        (["--table", "fmow", "--stages", "lr", "hr"], "pt is left out"),
        (["--table", "fmow", "--seeds", "0"], "seeds: 0"),
        (["--table", "fmow", "--classifier", "bagnet", "--fill", "mean"], "compares with 'masked'"),
        (["--table", "fmov"], "fmov"),
        (["--table", "fmow", "--data", "nowhere"], "nowhere"),
        (["--table", "fmow", "--config", "nothing"], "no such file"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line_and_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, arguments: list[str], says: str
) -> None:
    code = 3 if "nowhere" in arguments else 2
    assert says in refused(capsys, code, *arguments, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_without_a_folder_nothing_is_compared(capsys: pytest.CaptureFixture[str], data: Path) -> None:
    assert "--out" in refused(capsys, 2, "--table", "fmow", "--data", data)


# --- the list


def test_the_list_without_data_names_the_rows_and_with_data_what_each_takes(
    capsys: pytest.CaptureFixture[str], data: Path, tmp_path: Path
) -> None:
    for table, profile in PROFILES:
        app.config = ()
        assert main(["compare", "--table", table, "--profile", profile, "--list", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert [row["row"] for row in found["rows"]] == [row.method for row in FORMS[table].rows]
        assert "work" not in found
    flags = [*tiny_flags(**SHORT), "--data", str(data), "--out", str(tmp_path / "out")]
    app.config = ()
    assert main(["compare", "--table", "fmow", "--list", "--json", "--rows", "KD", "Stochastic", "SRGAN", *flags]) == 0
    work = {(w["row"], w["stage"]): w for w in json.loads(capsys.readouterr().out)["work"]}
    selectors = {("Stochastic", stage) for stage in ("pt", "ft1", "ft2")}
    srgan = {("SRGAN", "generator"), ("SRGAN", "classifier")}
    assert set(work) == {("run", stage) for stage in STAGES} | {("KD", "lr")} | selectors | srgan
    assert (work["KD", "lr"]["epochs"], work["KD", "lr"]["steps"]) == (1, 2)
    assert work["Stochastic", "pt"]["steps"] == work["Stochastic", "pt"]["seconds"] == 0
    assert work["run", "hr"]["seconds"] > 0
    assert not (tmp_path / "out").exists()


# --- parts


@pytest.mark.parametrize(("table", "profile"), PROFILES)
def test_a_tables_profile_has_settings_of_that_table_and_networks_that_take_its_images(
    table: str, profile: str
) -> None:
    settings = with_networks(from_mapping(read_profile(PROFILES[table, profile]), profile))
    options = CompareOptions(table=table, profile=profile)  # type: ignore[arg-type]
    options.check(settings.shape.grid.patches, settings.trained_stages, settings.classifier)
    check_combinations(settings)
    costs = forward_costs(config_of(settings, map(str, range(10))))
    assert 0 < costs["policy"].flops < costs["hr"].flops


def test_a_comparison_runs_again_from_its_own_file_and_flags_win(
    fmow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[CompareOptions, TrainSettings]] = []
    monkeypatch.setattr("patchdrop.commands.compare", lambda o, s, *_: asked.append((o, s)) or document(fmow))
    app.config = ()
    arguments = ["compare", "--config", str(fmow / "compare.yaml"), "--out", str(tmp_path / "again"), "--batch", "4"]
    assert main(arguments) == 0
    options, settings = asked[0]
    assert options == CompareOptions(table="fmow")
    before = from_mapping(
        {
            k: v
            for k, v in yaml.safe_load((fmow / "compare.yaml").read_text()).items()
            if k in TrainSettings.__dataclass_fields__
        },
        "compare.yaml",
    )
    assert settings == replace(before, batch=4)


def test_a_refused_call_leaves_the_comparisons_file_as_it_was(
    fmow: Path, settings: TrainSettings, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(fmow, out)
    before = (out / "compare.yaml").read_bytes()
    other = write_folder(tmp_path / "other", train=27)
    with pytest.raises(RunError, match="was started on other data"):
        commands.compare(CompareOptions(table="fmow"), replace(settings, data=str(other)), out)
    assert (out / "compare.yaml").read_bytes() == before


def test_where_the_policy_stands_on_lr_cnn_stn_learns_a_network_of_its_own(
    settings: TrainSettings, tmp_path: Path
) -> None:
    shared = replace(
        settings,
        classifier="bagnet",
        fill="mean",
        low_stream="pt",
        policy_head="certainty",
        policy_start="shared",
    )
    options = CompareOptions(table="bagnet", rows=("STN", "BagNet + PatchDrop"), patches=5)
    commands.compare(options, shared, tmp_path / "out")
    seed = tmp_path / "out" / "seed-0"
    low, ours, stn = (
        {name: t for name, t in load_file(seed / where / "model.safetensors").items() if name.startswith(prefix)}
        for where, prefix in (("run/lr", "network."), ("run/ft2", "policy.network."), ("stn/ft2", "policy.network."))
    )
    assert all(torch.equal(ours[f"policy.{name}"], tensor) for name, tensor in low.items())
    assert not all(torch.equal(stn[f"policy.{name}"], tensor) for name, tensor in low.items())


def test_a_price_by_the_area_is_that_of_the_ground_the_image_shows() -> None:
    assert Price(per_km2=20.0, gsd=0.5).of_image(2000, 1000) == pytest.approx(20 * 1.0 * 0.5)
    assert Price(per_image=3.0).of_image(5, 5) == 3
    assert Price().of_image(5, 5) is None
    with pytest.raises(UsageError, match="name one"):
        Price(per_image=1.0, per_km2=1.0, gsd=1.0)


def test_pixels_read_are_counted_where_patches_differ_in_size() -> None:
    choice = torch.tensor([[True, False, False, True], [False, False, False, False]])
    # 5 x 5 px in a 2 x 2 grid: 2 x 2, 2 x 3, 3 x 2 and 3 x 3 px.
    assert pixels_read(choice, Grid(2, 2), (5, 5)) == (4 + 9) / 2


class Linear(nn.Module):
    """A policy of 16 x 4 multiply-adds an image."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 16)

    def forward(self, low: torch.Tensor) -> torch.Tensor:
        scores: torch.Tensor = self.layer(low.flatten(1).float())
        return scores


class Pixels(nn.Module):
    """A backbone of 3 x 8 multiply-adds a patch of one pixel."""

    num_features = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 8)

    def forward(self, patches: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.layer(patches.flatten(1))
        return features


def test_flops_of_a_toy_equal_a_count_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("patchdrop.classify.high.build", lambda *_: Pixels())
    bagnet = BagNet(Spec("toy", 5, Shape((4, 4), (2, 2), GRID, 3), Normalise(torch.zeros(3), torch.ones(3))))
    given = GivenChoice(PatchDrop(Linear(), bagnet), GRID)
    high, low = torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2, 1, 2, 2, dtype=torch.uint8)
    choice = torch.zeros(2, 16, dtype=torch.bool)
    choice[0, :6] = True
    by_hand = 2 * (16 * 4 + (6 / 2) * 3 * 8 + 8 * 5)  # policy, three patches on average, head
    assert flops(given, high, low, choice) == by_hand
    assert flops(given, high, low, torch.ones_like(choice)) == 2 * (16 * 4 + 16 * 3 * 8 + 8 * 5)


def test_work_is_timed_in_turns_and_warm_up_does_not_count() -> None:
    order: list[str] = []
    times = times_in_turns({name: partial(order.append, name) for name in "ab"}, torch.device("cpu"), repeats=1)
    assert order == ["a", "b"] * 3
    assert set(times) == {"a", "b"}


def test_a_share_of_epochs_is_whole_ones_and_at_least_one() -> None:
    assert [share_of(20, 0.3), share_of(20, 1), share_of(1, 0.3), share_of(0, 0.3)] == [6, 20, 1, 0]


def test_a_subset_is_spread_over_the_classes() -> None:
    targets = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    assert spread_over_classes(targets, 4).tolist() == [0, 1, 4, 6]
    assert spread_over_classes(targets, 100).tolist() == list(range(7))


def bench_of(settings: TrainSettings, comparison: Path) -> Bench:
    recipe = recipe_of(settings)
    return Bench(CompareOptions(table="fmow"), recipe, load_with_bar(recipe.source), comparison / "seed-0")


def test_the_oracle_is_never_below_any_of_its_candidates_and_reads_no_more_where_they_are_right(
    fmow: Path, settings: TrainSettings
) -> None:
    bench = bench_of(settings, fmow)
    split = bench.data.splits["test"]
    generator = torch.Generator().manual_seed(0)
    masks = {name: torch.rand(len(split), 16, generator=generator) < share for name, share in (("", 0.3), ("x", 0.7))}
    found = oracle(bench, "ft1", split, masks)
    assert found.candidates == 2 + 2 + 64
    for name, mask in masks.items():
        alone = oracle(bench, "ft1", split, {"": mask}).patchdrop
        assert not (alone.right & ~found.outcome.right).any(), name
        both = alone.right
        assert (found.outcome.choice.sum(1) <= alone.choice.sum(1))[both].all()


def test_an_equal_budget_is_as_many_epochs_as_ft_2s_chain(settings: TrainSettings, fmow: Path) -> None:
    longer = replace(settings, epochs_lr=2, epochs_hr=3, epochs_patches=7, epochs_pt=1, epochs_ft1=4, epochs_ft2=5)
    bench = bench_of(longer, fmow)
    assert bench.with_budget("lr").schedule.epochs["lr"] == 2 + 7 + 1 + 4 + 5
    assert bench.with_budget("hr").schedule.epochs["hr"] == 3 + 7 + 1 + 4 + 5


def test_fixed_rows_keep_a_whole_s_and_the_others_a_mean() -> None:
    assert [CHOOSERS[name].count(5.6) for name in ("Fixed-H", "Fixed-V", "Stochastic", "STN")] == [6, 6, 5.6, 5.6]


# --- layout


def test_a_comparison_is_published_with_its_origin_and_the_readmes_table_or_refused_where_that_has_no_place(
    fmow: Path, tmp_path: Path
) -> None:
    scripts = Path(__file__).parent.parent / "scripts"
    readme, out = tmp_path / "README.md", tmp_path / "results" / "toy"
    readme.write_text("before\n<!-- results/toy -->\nold\n<!-- end -->\nafter\n")
    code = (
        "import sys, pathlib\n"
        f"sys.path.insert(0, {str(scripts)!r})\n"
        "import publish\n"
        f"publish.README = pathlib.Path({str(readme)!r})\n"
        f"publish.main(pathlib.Path({str(fmow)!r}), pathlib.Path({str(out)!r}), False)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
    text = readme.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert all(method in text for method in without_plain("fmow"))
    told = (out / "README.md").read_text()
    assert "evaluated by" in told and told.count("trained by") == 1 and "in all." in told and str(fmow) not in told
    assert {p.name for p in out.iterdir()} == {"README.md", "results.json", "compare.yaml", "table.csv", "accuracy.png"}
    readme.write_text("nothing\n")
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert found.returncode == 1 and "no place" in found.stderr


def test_a_second_seed_is_trained_beside_the_first_and_both_are_in_the_table(
    some: Path, settings: TrainSettings
) -> None:
    first = commands.compare(CompareOptions(table="fmow", rows=("KD", "PatchDrop")), settings, some)
    kept = (some / "seed-0" / "kd" / "lr" / "model.safetensors").stat().st_mtime_ns
    found = commands.compare(CompareOptions(table="fmow", rows=("KD", "PatchDrop"), seeds=2), settings, some)
    assert (some / "seed-0" / "kd" / "lr" / "model.safetensors").stat().st_mtime_ns == kept
    assert found["seeds"] == [0, 1]
    assert RunFolder(some / "seed-1" / "run").settings().seed == 1
    for one, both in zip(first["rows"], found["rows"], strict=True):
        values = both["seeds"]["accuracy"]["values"]
        assert (both["seeds"]["seed"], values[0], both["correct"]) == ([0, 1], one["accuracy"], one["correct"])
        assert both["seeds"]["accuracy"]["mean"] == pytest.approx(sum(values) / 2)
    text = (some / "table.md").read_text()
    assert "±" in text and "seed 0" in text


def made(method: str, stage: str, accuracy: float, patches: float) -> dict[str, Any]:
    return {"method": method, "stage": stage, "accuracy": accuracy, "mean_patches": patches, "p_value": None}


def test_the_imagenet_table_has_one_s_for_all_stages_as_the_paper_has() -> None:
    rows = [
        *(made("HR-CNN", stage, 0.765, 16) for stage in ("pt", "ft1", "ft2")),
        made("PatchDrop", "pt", 0.602, 10.1),
        made("PatchDrop", "ft1", 0.749, 9.1),
        made("PatchDrop", "ft2", 0.76, 7.9),
    ]
    header, lines = seed_form(rows, ["HR-CNN", "PatchDrop"], FORMS["imagenet"])
    assert header == ["", "Pt", "Ft-1", "Ft-2", "S"]
    assert lines == [["HR-CNN", "76.5", "76.5", "76.5", "16"], ["PatchDrop", "60.2", "74.9", "76.0", "10.1, 9.1, 7.9"]]
    assert markdown_table(header, lines).splitlines()[3].startswith("| **PatchDrop** | 60.2")


def test_several_seeds_give_mean_and_deviation() -> None:
    rows = over_seeds([[made("KD", "pt", 0.5, 0)], [made("KD", "pt", 0.7, 0)]], [3, 4])
    assert rows[0]["accuracy"] == 0.5
    assert rows[0]["seeds"]["seed"] == [3, 4]
    assert rows[0]["seeds"]["accuracy"]["mean"] == pytest.approx(0.6)
    assert rows[0]["seeds"]["accuracy"]["sd"] == pytest.approx(0.02**0.5)
    assert seed_form(rows, ["KD"], FORMS["fmow"])[1] == [["KD", "60.0 ± 14.1", "0"]]
