"""The worked example of docs/scenes.md runs as it stands there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest
import torch

from patchdrop.cli import main
from patchdrop.data.scenes import CLASSES
from patchdrop.models import ModelConfig, build_stage
from patchdrop.runfolder import RunFolder
from patchdrop.settings import from_mapping, read_profile
from tiny import unsettle

PAGE = (Path(__file__).parent.parent / "docs" / "scenes.md").read_text(encoding="utf-8")


def test_the_worked_example_runs_and_plan_and_prediction_agree(
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
    (code,) = (body for language, body in blocks if language == "python")
    exec(compile(code, "scenes.md", "exec"), {})
    (commands,) = (body for language, body in blocks if language == "")
    (money,) = (body for language, body in blocks if language == "sh")
    write, order = money.splitlines()
    Path("tariff.yaml").write_text(shlex.split(write)[1].replace("\\n", "\n"), encoding="utf-8")
    documents = []
    for line in [*commands.splitlines(), order]:
        capsys.readouterr()
        assert main([*shlex.split(line)[1:], "--json"]) == 0, line
        documents.append(json.loads(capsys.readouterr().out))
    check, plan, predict, ordered = documents
    assert check["scenes"][0]["fit"] and check["scenes"][0]["aligned"]
    assert plan["total"] == predict["total"]
    assert plan["total"]["cells"] == 256
    assert plan["scenes"][0]["execution"] == predict["scenes"][0]["execution"]
    assert ordered["bill"]["money"] == pytest.approx(12 * ordered["bill"]["ordered_km2"])
    assert ordered["bill"]["chosen_km2"] <= ordered["bill"]["ordered_km2"] <= ordered["bill"]["everything_km2"]
    assert ordered["bill"]["chosen_km2"] == pytest.approx(predict["bill"]["chosen_km2"])
