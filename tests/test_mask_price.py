"""What a mask costs under a tariff: by hand, and as its order in a scene of that size; a run calibrated by it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from patchdrop.cli import main
from patchdrop.errors import UsageError
from patchdrop.evaluation.calibrate import mask_price
from patchdrop.grid import Grid, boxes
from patchdrop.settings.dial import Target
from patchdrop.tariffs.areas import Ground, orderable
from patchdrop.tariffs.masks import MaskPrice
from patchdrop.tariffs.tariff import tariff_from
from tiny import config_of, tiny_flags, tiny_settings, write_folder

AREA = {"currency": "EUR", "per_km2": 100.0}
SIZE = (400, 400)
"""Patches of 100 px of 1 m: 0.01 km2 each."""


def priced(values: dict[str, object], metres: float | None = 1.0) -> MaskPrice:
    return MaskPrice(tariff_from(values, "t"), Grid(4, 4), SIZE, 3, metres)


def mask(*patches: int) -> torch.Tensor:
    choice = torch.zeros(1, 16, dtype=torch.bool)
    choice[0, list(patches)] = True
    return choice


@pytest.mark.parametrize(
    ("tariff", "patches", "money"),
    [
        (AREA, (), 0.0),
        (AREA, (5,), 1.0),
        (AREA, (0, 15), 2.0),
        (AREA, tuple(range(16)), 16.0),
        (AREA | {"minimum_km2": 0.04}, (5,), 4.0),
        (AREA | {"minimum_km2": 0.04}, (5, 6, 9, 10), 4.0),  # the other three are free
        (AREA | {"minimum_km2": 0.04}, (0, 15), 8.0),
        (AREA | {"bounding_box": "priced"}, (0, 5), 2.0),  # two boxes
        (AREA | {"bounding_box": "priced"}, (0, 1, 5), 3.0),
        (AREA | {"bounding_box": "priced", "minimum_km2": 0.02}, (0, 5), 4.0),
        ({"currency": "EUR", "per_scene": 300}, (), 0.0),
        ({"currency": "EUR", "per_scene": 300}, (3,), 300.0),
        ({"currency": "EUR", "per_gb": 1000, "per_1000_requests": 5}, (3, 4), 2 * (30_000 / 1e6 + 0.005)),
    ],
)
def test_a_masks_price_by_hand(tariff: dict[str, object], patches: tuple[int, ...], money: float) -> None:
    assert float(priced(tariff).money(mask(*patches))) == pytest.approx(money)


def test_a_masks_price_is_that_of_its_order_in_a_scene_of_that_size() -> None:
    tariff = tariff_from(AREA | {"minimum_km2": 0.025, "minimum_width_km": 0.12, "max_vertices": 8}, "t")
    price, places = MaskPrice(tariff, Grid(4, 4), SIZE, 3, 1.0), boxes(Grid(4, 4), *SIZE)
    choice = torch.rand(60, 16, generator=torch.Generator().manual_seed(0)) < 0.4
    for row, money in zip(choice, price.money(choice).tolist(), strict=True):
        chosen = [places[p] for p in row.nonzero().flatten().tolist()]
        areas = orderable(chosen, SIZE, Ground(1, 1, 1e-6), tariff)
        assert money == pytest.approx(tariff.price_of(sum(area.km2 for area in areas)))
    assert price.money(choice[:7]).tolist() == price.money(choice).tolist()[:7]


@pytest.mark.parametrize(
    ("text", "metres", "words"),
    [
        ("{currency: EUR, per_km2: 3}", None, "needs the metres on the ground of an HR pixel; give --pixel-metres"),
        ("{currency: EUR, per_km2: 0}", 1.0, "all patches of an image cost nothing"),
        ("{currency: EUR}", None, "no price is given"),
    ],
)
def test_a_tariff_that_prices_no_mask_is_one_line(tmp_path: Path, text: str, metres: float | None, words: str) -> None:
    file = tmp_path / "tariff.yaml"
    file.write_text(text)
    target = Target(target_cost=1, unit="money", tariff=file, pixel_metres=metres)
    with pytest.raises(UsageError, match=words):
        mask_price(target, config_of(tiny_settings()))


def test_a_run_is_calibrated_in_a_tariffs_money(
    tmp_path: Path, run: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("patchdrop.commands.runs.write_report", lambda run, *_: run / "report.html")
    data, file = write_folder(tmp_path / "images", train=24, test=24), tmp_path / "tariff.yaml"
    file.write_text("{currency: EUR, per_km2: 4000, minimum_km2: 0.00006}")  # 16 px of 1 m: 0.000256 km2
    once = {f"epochs_{stage}": 1 for stage in ("lr", "hr", "patches", "pt")} | {"stages": "pt"}
    flags = tiny_flags(**{**once, "workers": 1, "data": data})
    at = flags.index("--stages")
    flags[at : at + 2] = ["--stages", "lr", "hr", "patches", "pt"]
    out = tmp_path / "run"
    assert main(["train", *flags, "--out", str(out)]) == 0
    money = ("calibrate", out, "--target-cost", 0.6, "--unit", "money", "--json", "--fraction", 1)
    code, text, err = run(*money, "--tariff", file, "--pixel-metres", 1)
    assert code == 0, err
    document = json.loads(text)
    assert document["target"]["tariff"] == {
        "currency": "EUR",
        "per_km2": [{"from": 0, "price": 4000}],
        "minimum_km2": 0.00006,
    }
    first, *_, last = document["points"]
    assert first["validation_cost"] == 0 and last["validation_cost"] == pytest.approx(0.000256 * 4000)
    costs = [point["validation_cost"] for point in document["points"]]
    shares = [point["validation_mean_patches"] / 16 for point in document["points"]]
    assert all(cost >= share * last["validation_cost"] - 1e-9 for cost, share in zip(costs, shares, strict=True))
    assert document["points"][document["chosen"]["point"]]["validation_cost"] <= 0.6
    for wrong in ((), ("--tariff", file), ("--price", 1, "--tariff", file), ("--tariff", tmp_path / "none.yaml")):
        code, _, err = run(*money, *wrong)
        assert code == 2 and err.count("\n") == 1
