"""What is filled in where nothing is named: networks by size, epochs and batch by images; old settings are read."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from patchdrop import commands
from patchdrop.errors import RenamedWarning, UsageError
from patchdrop.settings.defaults import EPOCHS, FEWEST, IMAGES, MOST, batch_for, schedule_for
from patchdrop.settings.flat import GONE, STAGES, UNNAMED, TrainSettings, from_mapping, read_settings, to_yaml
from tiny import recipe_of, with_networks, write_folder


def with_schedule(settings: TrainSettings, images: int) -> TrainSettings:
    return settings.filled(schedule_for(images))


# --- networks


@pytest.mark.parametrize(
    ("high", "network"),
    [
        ("32", "resnet8-w48-d"),
        ("47", "resnet8-w48-d"),
        ("48", "resnet8-w40-d"),
        ("32x48", "resnet8-w40-d"),
        ("95", "resnet8-w40-d"),
        ("96", "resnet10-w32-d"),
        ("64x96", "resnet10-w32-d"),
        ("224", "resnet10-w32-d"),
    ],
)
def test_the_hr_network_follows_from_the_longer_side(high: str, network: str) -> None:
    assert with_networks(TrainSettings(high=high, low="32")).hr_network == network


@pytest.mark.parametrize(
    ("low", "enlarge", "network"),
    [
        ("8", 2, "resnet8-w32"),
        ("11", 2, "resnet8-w32"),
        ("12", 2, "resnet8-w48-d"),
        ("23", 2, "resnet8-w48-d"),
        ("24", 1, "resnet8-w48-d"),
        ("11x64", 2, "resnet8-w32"),
        ("56", 1, "resnet8-w48-d"),
    ],
)
def test_lr_network_and_enlargement_follow_from_the_shorter_side(low: str, enlarge: int, network: str) -> None:
    found = with_networks(TrainSettings(high="96", low=low))
    assert (found.low_enlarge, found.lr_network, found.policy_network, found.grid) == (enlarge, network, network, "4")


def test_networks_that_are_named_stay_and_the_policys_follows_lr_cnns() -> None:
    named = TrainSettings(high="32", low="8", grid="2x3", hr_network="resnet14", lr_network="resnet20", low_enlarge=1)
    assert with_networks(named) == replace(named, policy_network="resnet20")
    assert with_networks(replace(named, policy_network="resnet8")) == replace(named, policy_network="resnet8")
    assert with_networks(TrainSettings(high="32", low="8", low_enlarge=3)).lr_network == "resnet8-w48-d"  # 24 px


# --- schedule


def test_at_7200_images_epochs_and_batch_are_those_of_the_recipe() -> None:
    found = with_schedule(TrainSettings(), IMAGES)
    assert IMAGES == 7200
    assert found.epochs == {"lr": 16, "hr": 20, "patches": 6, "pt": 4, "ft1": 6, "ft2": 8} == EPOCHS
    assert found.batch == 64


def test_twice_the_images_take_fewer_epochs_and_more_steps() -> None:
    assert with_schedule(TrainSettings(), 14_400).epochs == {
        "lr": 12, "hr": 15, "patches": 4, "pt": 3, "ft1": 4, "ft2": 6
    }  # fmt: skip
    assert with_schedule(TrainSettings(), 3600).epochs == {
        "lr": 22, "hr": 27, "patches": 8, "pt": 5, "ft1": 8, "ft2": 11
    }  # fmt: skip
    steps = [n * with_schedule(TrainSettings(), n).epochs["hr"] for n in (450, 900, 1800, 3600, 7200, 14_400, 100_000)]
    assert steps == sorted(steps)


def test_epochs_never_rise_with_the_images_and_stay_within_2_and_200() -> None:
    sizes = [0, 1, 5, 10, 30, 100, 300, 1000, 3000, 7200, 20_000, 100_000, 1_300_000, 10**9]
    found = [with_schedule(TrainSettings(), n).epochs for n in sizes]
    for fewer, more in itertools.pairwise(found):
        assert all(more[stage] <= fewer[stage] for stage in STAGES)
    assert set(found[0].values()) == {MOST} == {200}
    assert set(found[-1].values()) == {FEWEST} == {2}
    assert found[1] == found[0]


@pytest.mark.parametrize(
    ("images", "batch"),
    [
        (0, 8), (1, 8), (8, 8), (127, 8), (128, 16), (255, 16), (256, 32), (511, 32), (512, 64), (7200, 64),
        (19_999, 64), (20_000, 128), (1_300_000, 128),
    ],
)  # fmt: skip
def test_the_batch_follows_from_the_images(images: int, batch: int) -> None:
    assert batch_for(images) == batch == with_schedule(TrainSettings(), images).batch


def test_an_epoch_of_64_images_or_more_has_8_steps_or_more() -> None:
    assert all(images // batch_for(images) >= 8 for images in range(64, 3000))
    assert all(batch_for(images) <= batch_for(images + 1) for images in range(30_000))


def test_epochs_and_batch_that_are_named_stay_those_of_0_too() -> None:
    found = with_schedule(TrainSettings(epochs_hr=3, epochs_patches=0, epochs_ft2=1000, batch=7), IMAGES)
    assert found.epochs == {"lr": 16, "hr": 3, "patches": 0, "pt": 4, "ft1": 6, "ft2": 1000}
    assert found.batch == 7
    assert with_schedule(found, 100) == found


def test_what_is_filled_in_is_all_that_was_not_named() -> None:
    settings = with_schedule(with_networks(TrainSettings(high="32", low="8")), 1000)
    left = {name for name, value in UNNAMED.items() if getattr(settings, name) == value}
    assert left == {"augment", "shards"}  # found by a trial on the images, and by how many processes there are
    assert all(getattr(TrainSettings(), name) == value for name, value in UNNAMED.items())
    assert settings == with_schedule(with_networks(settings), 5)


def test_a_run_that_goes_on_takes_from_its_record_what_is_not_named_and_nothing_else() -> None:
    recorded = with_schedule(with_networks(TrainSettings(high="32", low="8", augment=("turn",), seed=4)), 1000)
    assert TrainSettings(seed=4).filled(recorded.to_mapping()) == recorded
    asked = TrainSettings(high="64", epochs_pt=7, sigma=0.9)
    assert asked.filled(recorded.to_mapping()) == replace(recorded, high="64", epochs_pt=7, sigma=0.9, seed=0)


# --- settings of earlier versions


def written(folder: Path, text: str) -> Path:
    path = folder / "settings.yaml"
    path.write_text(text)
    return path


def test_settings_are_read_as_they_were_written(tmp_path: Path) -> None:
    settings = with_schedule(with_networks(TrainSettings(high="32", low="8", mistake=7.5)), 1000)
    assert read_settings(written(tmp_path, to_yaml(settings.to_mapping()))) == settings
    assert not set(GONE) & set(settings.to_mapping())


def test_old_settings_without_a_policy_are_those_of_independent_patches_and_gone_keys_are_dropped(
    tmp_path: Path,
) -> None:
    gone = (
        "policy_fraction: 0.3\ndistill: 0.5\npt_views: 4\ncost: tariff.yaml\nreward: soft\nrate_policy_finetune: 1e-4"
    )
    found = read_settings(written(tmp_path, f"high: '32'\nlow: '8'\nsigma: 0.7\n{gone}\n"))
    then: dict[str, Any] = {"policy": "bernoulli", "low_stream": "ft2", "fill": "mean", "fusion": "share"}
    assert found == TrainSettings(high="32", low="8", sigma=0.7, **then)


def test_what_old_settings_say_of_fill_and_streams_is_kept(tmp_path: Path) -> None:
    found = read_settings(written(tmp_path, "fill: low\nlow_stream: ft1\nfusion: learned\npixel_metres: 0.3\n"))
    assert (found.policy, found.fill, found.low_stream, found.fusion) == ("bernoulli", "low", "ft1", "learned")


def test_new_settings_with_a_gone_key_and_old_ones_with_an_unknown_key_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the setting 'distill' is gone, it changed nothing beyond noise; remove it"):
        read_settings(written(tmp_path, "policy: ranking\ndistill: 0.5\n"))
    with pytest.raises(UsageError, match="there is no setting 'sigmo', did you mean 'sigma'"):
        read_settings(written(tmp_path, "sigmo: 0.5\n"))


@pytest.mark.parametrize("name", GONE)
def test_a_config_with_a_gone_key_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        from_mapping({"seed": 1, name: 0}, "mine.yaml")
    assert str(caught.value) == f"mine.yaml: the setting {name!r} is gone, {GONE[name]}; remove it"
    assert name not in TrainSettings.__dataclass_fields__


def test_the_command_line_refuses_such_a_config_in_one_line(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text("reward: soft\n")
    code, _, errors = run("train", "--config", config, "--out", tmp_path / "run")
    assert code == 2
    assert "the setting 'reward' is gone, each estimator has its own; remove it" in errors
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_the_embedded_data_set_answers_to_its_earlier_name_and_says_so(tmp_path: Path) -> None:
    with pytest.warns(RenamedWarning, match="called markers now"):
        settings = TrainSettings(data="scenes", layout="scenes")  # type: ignore[arg-type]
    assert (settings.data, settings.layout) == ("markers", "markers")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a run of then is not told about it
        kept = read_settings(written(tmp_path, "data: scenes\nlayout: scenes\npolicy: ranking\n"))
    assert (kept.data, kept.layout) == ("markers", "markers")
    folder = TrainSettings(data="scenes", layout="folder")  # a folder may be called so
    assert folder.data == "scenes"


PUBLISHED = sorted((Path(__file__).parent.parent / "results").glob("*/settings.yaml"))
LIGHT = ("cifar10", "demo")
"""Published runs whose networks are small enough for every test run."""


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.parent.name)
def test_the_settings_of_every_published_run_are_still_read(path: Path) -> None:
    settings = read_settings(path)
    assert recipe_of(settings).with_classes(("a", "b")).shape == settings.shape


@pytest.mark.parametrize(
    "path",
    [pytest.param(p, marks=[] if p.parent.name in LIGHT else pytest.mark.long, id=p.parent.name) for p in PUBLISHED],
)
def test_every_published_run_could_be_trained_again(path: Path, tmp_path: Path) -> None:
    """A dry run takes a few steps of each stage; the images here are others, and few."""
    settings = read_settings(path)
    data = write_folder(tmp_path / "data", side=max(settings.shape.high))
    planned = commands.plan(replace(settings, data=str(data), layout="folder", batch=4, workers=0, device="cpu"))
    assert planned["high"] == list(settings.shape.high) and planned["grid"] == str(settings.shape.grid)
    assert planned["stages"] and all(stage["seconds"] > 0 for stage in planned["stages"].values() if stage["epochs"])
