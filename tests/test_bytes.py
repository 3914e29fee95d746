"""The benchmark of bytes, small: it runs, and what it says of bytes, plans and pixels holds."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("bytes")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        bench = importlib.import_module("bytes")
    document: dict[str, Any] = bench.main(out, bench.QUICK, 0, False)
    assert json.loads((out / "results.json").read_text()) == document
    page = (out / "README.md").read_text()
    assert all(claim["claim"] in page and claim["found"] in page for claim in document["claims"])
    return document


def test_what_is_sent_is_what_is_needed_what_was_planned_and_what_the_ledger_says(found: dict[str, Any]) -> None:
    rows = [row for cog in found["cogs"] for row in cog["rows"]]
    assert len(rows) == 3 * 2 * 7
    for row in rows:
        sent = {"requests": row["requests"], "bytes": row["bytes"]}
        assert row["planned"] == row["ledger"]["total"] == sent
        assert row["unchosen_bytes"] == 0
        assert row["ratio"] == 1 if row["gap"] == 0 else 1 <= row["ratio"] <= 1.05
    for cog in found["cogs"]:
        by_gap = [[row["bytes"] for row in cog["rows"] if row["gap"] == gap] for gap in (0, 8)]
        assert by_gap[0] == sorted(set(by_gap[0])) and all(a <= b for a, b in zip(*by_gap, strict=True))
        assert cog["gdal"][0]["bytes"] > by_gap[0][4]


def test_random_windows_are_those_of_the_reference_decoders(found: dict[str, Any]) -> None:
    for cog in found["cogs"]:
        windows = cog["windows"]
        assert windows["equal"] == windows["count"] == 50
        assert windows["gdal_most"] == 0 or cog["codec"] != "DEFLATE"


def test_the_claims_that_do_not_measure_time_hold(found: dict[str, Any]) -> None:
    assert [c["claim"] for c in found["claims"] if not c["holds"] and not c["target"].endswith(" x")] == []
