"""The worked examples of docs/scenes.md run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from patchdrop.cli import main
from patchdrop.data.scenes import CLASSES
from patchdrop.models import ModelConfig, build_stage
from patchdrop.runfolder import RunFolder
from patchdrop.settings import from_mapping, read_profile
from tiny import unsettle

PAGE = (Path(__file__).parent.parent / "docs" / "scenes.md").read_text(encoding="utf-8")


def test_the_worked_examples_run_and_plan_and_prediction_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With networks of the demo's sizes that were not trained."""
    monkeypatch.chdir(tmp_path)
    settings = from_mapping(read_profile("demo"), "demo")
    folder = RunFolder("demo")
    folder.start(settings)
    torch.manual_seed(0)
    config = ModelConfig.of(settings, CLASSES)
    folder.finish("ft2", unsettle(build_stage("ft2", config)), config, {"figures": {}, "seconds": 0.0})
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)

    def of(line: str) -> Any:
        capsys.readouterr()
        assert main([*shlex.split(line)[1:], "--json"]) == 0, line
        return json.loads(capsys.readouterr().out)

    names: dict[str, object] = {}
    plans = []
    for language, body in blocks:
        if language == "python":
            exec(compile(body, "scenes.md", "exec"), names)
        elif language == "sh":
            write, line = body.splitlines()
            Path("tariff.yaml").write_text(shlex.split(write)[1].replace("\\n", "\n"), encoding="utf-8")
            ordered = of(line)["bill"]
            assert ordered["money"] == pytest.approx(12 * ordered["ordered_km2"])
            assert ordered["chosen_km2"] <= ordered["ordered_km2"] <= ordered["everything_km2"]
            assert ordered["chosen_km2"] == pytest.approx(plans[0]["bill"]["chosen_km2"])
        else:
            *check, plan, predict = map(of, body.splitlines())
            assert all(scene["fit"] and scene["aligned"] for found in check for scene in found["scenes"])
            assert plan["total"] == predict["total"]
            assert plan["total"]["cells"] == 256
            executions = [[scene["execution"] for scene in document["scenes"]] for document in (plan, predict)]
            assert executions[0] == executions[1]
            plans.append(plan)
    assert [len(plan["scenes"]) for plan in plans] == [1, 4, 1]
    assert plans[2]["scenes"][0]["execution"]["low"]["bytes"] > 0 and plans[2]["total"]["skipped"] == 0
