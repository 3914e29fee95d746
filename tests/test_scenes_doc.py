"""The worked examples of the pages about scenes run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from patchdrop.cli import main
from patchdrop.models.build import build_stage
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.flat import from_mapping, read_profile
from tiny import config_of, unsettle, with_networks

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.parametrize("page", ["scenes", "archives", "buying"])
def test_the_worked_examples_run_and_plan_and_prediction_agree(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With networks of the demo's sizes that were not trained."""
    monkeypatch.chdir(tmp_path)
    settings = with_networks(from_mapping(read_profile("demo"), "demo"))
    folder = RunFolder("demo")
    folder.start(settings.to_mapping())
    torch.manual_seed(0)
    config = config_of(settings)
    folder.finish("ft2", unsettle(build_stage("ft2", config)), config, {"figures": {}, "seconds": 0.0})
    text = (DOCS / f"{page}.md").read_text(encoding="utf-8")

    def of(line: str) -> Any:
        capsys.readouterr()
        assert main([*shlex.split(line)[1:], "--json"]) == 0, line
        return json.loads(capsys.readouterr().out)

    names: dict[str, object] = {}
    plan: Any = None
    for language, body in re.findall(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        if language == "python":
            exec(compile(body, f"{page}.md", "exec"), names)
            continue
        for line in body.splitlines():
            if line.startswith("printf"):
                Path("tariff.yaml").write_text(shlex.split(line)[1].replace("\\n", "\n"), encoding="utf-8")
                continue
            found = of(line)
            if "plan" in line.split()[1]:
                plan = found
            elif "check" in line:
                assert all(scene["fit"] and scene["aligned"] for scene in found["scenes"])
            else:
                assert found["total"] == plan["total"]
                assert found["total"]["cells"] == 256
                executions = [[scene["execution"] for scene in document["scenes"]] for document in (plan, found)]
                assert executions[0] == executions[1]
                assert found.get("bill") == plan.get("bill")
    if page == "buying":
        bill = plan["bill"]
        assert bill["money"] == pytest.approx(12 * bill["ordered_km2"])
        assert bill["chosen_km2"] <= bill["ordered_km2"] <= bill["everything_km2"]
