"""Tariffs: sums by hand, what holds of every price, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchdrop.errors import UsageError
from patchdrop.tariffs.tariff import Step, Tariff, read_tariff, tariff_from
from patchdrop.transport.ledger import Cost

EXAMPLES = sorted((Path(__file__).parent.parent / "examples" / "tariffs").glob("*.yaml"))
STEPS = (Step(0, 100, 14), Step(100, 500, 11), Step(500, math.inf, 9))
AREA = st.floats(0, 2000)


@st.composite
def steps(draw: st.DrawFn) -> tuple[Step, ...]:
    edges = [0.0, *sorted(draw(st.sets(st.integers(1, 999), max_size=4))), math.inf]
    prices = sorted(draw(st.lists(st.floats(0, 50), min_size=len(edges) - 1, max_size=len(edges) - 1)), reverse=True)
    return tuple(Step(*step) for step in zip(edges, edges[1:], prices, strict=False))


@pytest.mark.parametrize(("km2", "money"), [(0, 0), (60, 840), (100, 1400), (150, 1950), (500, 5800), (700, 7600)])
def test_each_square_kilometre_costs_what_its_step_says(km2: float, money: float) -> None:
    assert Tariff(currency="EUR", per_km2=STEPS).price_of(km2) == money


@settings(max_examples=40, deadline=None)
@given(steps(), AREA, AREA)
def test_a_larger_order_costs_no_less_and_no_more_than_its_parts(per_km2: tuple[Step, ...], a: float, b: float) -> None:
    price = Tariff(currency="EUR", per_km2=per_km2).price_of
    assert max(price(a), price(b)) <= price(a + b) + 1e-9
    assert price(a + b) <= price(a) + price(b) + 1e-6


def test_storage_costs_by_bytes_and_requests() -> None:
    tariff = Tariff(currency="USD", per_gb=0.09, per_1000_requests=0.4)
    assert tariff.storage(Cost(2500, 3 * 10**9)) == pytest.approx(0.27 + 1.0)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_tariffs_say_that_they_are_illustrative_and_survive_json(path: Path) -> None:
    tariff = read_tariff(path)
    assert tariff_from(tariff.to_mapping(), "a plan") == tariff
    comments = " ".join(line.removeprefix("# ") for line in path.read_text().splitlines() if line.startswith("#"))
    assert "made up for illustration" in comments and "any vendor's offer" in comments


def test_there_is_an_example_for_each_way_of_selling() -> None:
    tariffs = [read_tariff(path) for path in EXAMPLES]
    assert any(t.sells_areas and t.minimum_km2 for t in tariffs)
    assert any(t.per_scene for t in tariffs) and any(t.per_gb and not t.sells_imagery for t in tariffs)


KM2: dict[str, Any] = {"currency": "EUR", "per_km2": 10}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"per_km2": 1}, "currency: is missing"),
        ({"currency": 7, "per_km2": 1}, "currency: is no name"),
        ({"currency": "EUR"}, "per_km2: no price is given"),
        ({**KM2, "minimum_km": 25}, "minimum_km: no such key, did you mean 'minimum_km2'?"),
        ({**KM2, "per_scene": 1}, "per_scene: contradicts per_km2"),
        ({"currency": "EUR", "per_scene": 1, "minimum_km2": 25}, "minimum_km2: is for imagery sold by area"),
        ({"currency": "EUR", "per_km2": -1}, "per_km2: -1 is out of range"),
        ({**KM2, "minimum_km2": math.inf}, "minimum_km2: inf is out of range"),
        ({**KM2, "per_gb": math.nan}, "per_gb: nan is out of range"),
        ({**KM2, "minimum_width_km": "wide"}, "minimum_width_km: 'wide' is no number"),
        ({**KM2, "per_gb": True}, "per_gb: True is no number"),
        ({**KM2, "bounding_box": "yes"}, "bounding_box: 'yes' is not one of none, priced, ordered"),
        ({**KM2, "bounding_box": []}, "bounding_box: [] is not one of"),
        ({**KM2, "max_vertices": 3}, "max_vertices: 3 is no whole number of at least 4"),
        ({**KM2, "per_km2": []}, "per_km2: has no step"),
        ({**KM2, "per_km2": [5]}, "per_km2: step 1: 5 is no step"),
        ({**KM2, "per_km2": [{"from": 0}]}, "step 1: price: is missing"),
        ({**KM2, "per_km2": [{"from": 0, "prize": 1}]}, "step 1: prize: no such key"),
        ({**KM2, "per_km2": [{"from": 0, "to": 9, "price": 1}]}, "step 1: to: the last step has none"),
        ({**KM2, "per_km2": [{"from": 5, "price": 1}]}, "step 1: a hole, it starts at 5 instead of 0 km2"),
        ({**KM2, "per_km2": [{"from": 0, "to": 9, "price": 2}, {"from": 8, "price": 1}]}, "step 2: an overlap"),
        ({**KM2, "per_km2": [{"from": 0, "to": 9, "price": 2}, {"from": 10, "price": 1}]}, "step 2: a hole"),
        ({**KM2, "per_km2": [{"from": 0, "to": 9, "price": 1}, {"from": 9, "price": 2}]}, "step 2: is dearer"),
        ({**KM2, "per_km2": [{"from": 0, "to": 0, "price": 2}, {"from": 0, "price": 1}]}, "step 1: to: 0 is not above"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_tariff_is_one_line_that_names_file_and_key(values: dict[str, Any], words: str) -> None:
    with pytest.raises(UsageError) as error:
        tariff_from(values, "my/tariff.yaml")
    assert str(error.value).startswith("my/tariff.yaml: ") and words in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_missing_or_no_mapping_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "list.yaml").write_text("- 1\n")
    for name in ("none.yaml", "list.yaml"):
        with pytest.raises(UsageError, match=name):
            read_tariff(tmp_path / name)
