"""Timing: every way runs in every round, in turns, and rows say what was counted. No test measures time."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from patchdrop.cli import main
from patchdrop.costs.times import WARM_UP, Way, flops, measure, straight_lines
from patchdrop.models.build import build_stage
from patchdrop.runs.folder import RunFolder
from tiny import config_of, tiny_settings, unsettle, write_folder

STAGES = ("lr", "hr", "pt", "ft2")
HIGH = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
LOW = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of networks that were not trained. Read only: a test that changes it takes a copy."""
    folder = RunFolder(tmp_path_factory.mktemp("made") / "run")
    settings = tiny_settings(policy_head="global")
    folder.start(settings.to_mapping())
    config = config_of(settings)
    for seed, stage in enumerate(STAGES):
        torch.manual_seed(seed)
        folder.finish(stage, unsettle(build_stage(stage, config), seed), config, {"figures": {}, "seconds": 0.0})
    return folder.path


@pytest.fixture(scope="module")
def document(made: Path) -> dict[str, Any]:
    """What a bench of all stages says, batches of 1 and 3."""
    assert main(["bench", str(made), "--batch", "1", "3", "--rounds", "2", "--threads", "1"]) == 0
    found: dict[str, Any] = json.loads((made / "bench.json").read_text())
    return found


def test_each_round_runs_every_way_once_and_starts_at_another_one() -> None:
    ran: list[str] = []
    ways = [Way(name, "pt", lambda high, low, name=name: ran.append(name)) for name in "abc"]  # type: ignore[misc]
    done: list[None] = []
    rows = measure(ways, HIGH, LOW, 2, 4, lambda: done.append(None))
    timed = ran[: (WARM_UP + 4) * 3]
    rounds = [timed[i : i + 3] for i in range(0, len(timed), 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert [names[0] for names in rounds] == list("abcabc")
    assert len(done) == len(timed)
    assert [row["way"] for row in rows] == ["a", "b", "c"]


def test_a_way_whose_time_depends_on_the_images_runs_all_of_them_and_means_are_over_them() -> None:
    high = torch.arange(5, dtype=torch.uint8).view(5, 1, 1, 1).expand(5, 3, 16, 16)
    ran: dict[str, list[list[int]]] = {"first": [], "all": []}

    def run(name: str) -> Way:
        def see(high: Tensor, low: Tensor) -> Tensor:
            ran[name].append(high[:, 0, 0, 0].tolist())
            return high[:, 0].float() @ torch.ones(16, int(high[0, 0, 0, 0]) + 1)

        return Way(name, "pt", see, every_batch=name == "all")

    first, every = measure([run("first"), run("all")], high, torch.zeros(5, 3, 8, 8), 2, 1, lambda: None)
    assert ran["first"][0] == [0, 1] and all(seen == [0, 1] for seen in ran["first"])
    assert ran["all"][:2] == [[0, 1], [2, 3]] and [4] not in ran["all"]
    assert (first["images"], every["images"], every["batch"]) == (2, 4, 2)
    assert first["flops_image"] == 2 * 16 * 16
    assert every["flops_image"] == 2 * 16 * 16 * (1 + 3) / 2


def test_every_stage_has_its_rows_at_every_batch(document: dict[str, Any]) -> None:
    episodes = [*(f"episode, S = {s}" for s in (0, 1, 2, 4, 8, 16)), "episode, own choice"]
    policy = ["policy", "classifier, all patches", *episodes]
    expected = [("lr", "LR-CNN"), ("hr", "HR-CNN"), *((stage, way) for stage in ("pt", "ft2") for way in policy)]
    for batch in (1, 3):
        assert [(r["stage"], r["way"]) for r in document["rows"] if r["batch"] == batch] == expected
    assert (document["threads"], document["rounds"], document["warm_up"]) == (1, 2, WARM_UP)
    assert document["pixels"] == "noise"
    assert document["provenance"]["machine"]
    for row in document["rows"]:
        first, last = row["ms_quartiles"]
        assert 0 < first <= row["ms_batch"] <= last
        assert row["ms_image"] == pytest.approx(row["ms_batch"] / row["batch"])
        assert row["peak_mib"] is None or row["peak_mib"] > 50
    assert {r["to_plain"] for r in document["rows"] if r["way"] == "HR-CNN"} == {1.0}


def test_an_episode_reads_as_many_patches_as_its_name_says(document: dict[str, Any]) -> None:
    fixed = [row for row in document["rows"] if row["patches"] is not None]
    assert Counter(row["patches"] for row in fixed) == dict.fromkeys((0, 1, 2, 4, 8, 16), 4)
    assert all(row["mean_patches"] == row["patches"] for row in fixed)
    own = [row["mean_patches"] for row in document["rows"] if row["way"] == "episode, own choice"]
    assert all(0 <= mean <= 16 for mean in own)


def test_flops_are_those_of_the_parts_and_none_of_hr_where_no_patch_is_read(document: dict[str, Any]) -> None:
    found = {(r["stage"], r["way"]): r["flops_image"] for r in document["rows"] if r["batch"] == 3}
    hr, lr, policy = found["hr", "HR-CNN"], found["lr", "LR-CNN"], found["ft2", "policy"]
    assert min(hr, lr, policy) > 0
    assert found["pt", "classifier, all patches"] == hr
    assert found["ft2", "classifier, all patches"] == pytest.approx(hr + lr)
    assert found["ft2", "episode, S = 0"] == pytest.approx(policy + lr)
    for count in (1, 16):  # a masked CNN computes everything
        assert found["ft2", f"episode, S = {count}"] == pytest.approx(policy + lr + hr)


def test_flops_of_packed_patches_follow_their_number() -> None:
    """A way is a name and a callable: a classifier that runs on packed patches is one more row."""
    weight = torch.ones(192, 5)

    def run(high: Tensor, low: Tensor) -> Tensor:
        return high[:, :, :8, :8].flatten(1).float() @ weight

    assert flops(Way("packed", "pt", run), HIGH, LOW) == 2 * flops(Way("packed", "pt", run), HIGH[:1], LOW[:1])


def test_a_line_through_times_gives_intercept_slope_and_what_it_explains() -> None:
    rows = [{"stage": "pt", "batch": 1, "patches": s, "ms_image": 2 + 0.5 * s} for s in (1, 4, 8, 16)]
    (line,) = straight_lines([*rows, *({**rows[0], "patches": s, "ms_image": 99} for s in (None, 0))])
    assert (line["ms_first"], line["ms_patch"], line["explained"]) == pytest.approx((2, 0.5, 1))
    bent = [{**row, "ms_image": 10.0 * (row["patches"] == 4)} for row in rows]
    (line,) = straight_lines(bent)
    assert line["explained"] < 0.5


def test_images_of_a_data_set_can_be_timed_and_times_serve_a_target(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(made, tmp_path / "copy")
    data = write_folder(tmp_path / "images", train=9, test=5)
    asked = ["bench", str(copy), "--batch", "7", "--rounds", "1", "--stages", "ft2", "--data", str(data), "--json"]
    assert main(asked) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["pixels"] == "images, test split"
    assert document["images"] == 7  # a split of 5 images fills the batch, and is not repeated to the 64 by default
    assert {row["stage"] for row in document["rows"]} == {"ft2"}
    assert {row["to_plain"] for row in document["rows"]} == {None}


@pytest.mark.parametrize(
    ("flags", "code", "words"),
    [
        (["--batch", "0"], 2, "batch, threads, rounds and images must be at least 1"),
        (["--threads", "-1"], 2, "batch, threads, rounds and images must be at least 1"),
        (["--device", "gpu"], 2, "device: 'gpu' is not one of auto, cpu, cuda"),
        (["--device", "cuda:99"], 2, "device cuda:99: torch finds"),
        (["--images", "0"], 2, "batch, threads, rounds and images must be at least 1"),
        (["--stages", "patches"], 2, "stage 'patches' cannot be timed"),
        (["--stages", "ft1"], 3, "stage ft1 is not trained (trained: lr, hr, pt, ft2)"),
        (["--data", "/nowhere"], 3, "/nowhere: no such file or folder"),
    ],
)
def test_bad_input_is_named_in_one_line(
    made: Path, capsys: pytest.CaptureFixture[str], flags: list[str], code: int, words: str
) -> None:
    assert main(["bench", str(made), *flags]) == code
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1
