"""Export: ONNX Runtime gives what torch gives, what does not is not written, and no torch is needed afterwards."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

from patchdrop.cli import main
from patchdrop.commands import exporting
from patchdrop.episode import PatchDrop
from patchdrop.errors import RunError
from patchdrop.grid import Grid
from patchdrop.models.build import build_stage, copy_matching
from patchdrop.models.shared_pass import RankingModel
from patchdrop.policy.budget import cut_for_mean
from patchdrop.runs.folder import RunFolder
from patchdrop.serve import export as exporter
from patchdrop.serve.export import Graphs, Runtime, check, to_graphs
from patchdrop.serve.predictor import Predictor
from tiny import CLASSES, config_of, tiny_images, tiny_settings, unsettle, write_folder

EXAMPLE = Path(__file__).parent.parent / "examples" / "onnx_predict.py"


def write_run(folder: Path, data: Path, stages: tuple[str, ...], seed: int = 0) -> Path:
    """A run of networks that were not trained: two streams with learned fusion, a grid that does not divide HR."""
    run = RunFolder(folder)
    settings = tiny_settings(data=str(data), high="18", grid="4", fusion="learned", fill="low")
    run.start(settings.to_mapping())
    config = config_of(settings)
    for stage in stages:
        torch.manual_seed(seed)
        run.finish(stage, unsettle(build_stage(stage, config), seed), config, {"figures": {}, "seconds": 0.0})
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run. Read only."""
    root = tmp_path_factory.mktemp("export")
    return write_run(root / "run", write_folder(root / "images", train=9, test=3, side=18), ("lr", "ft2"))


@pytest.fixture(scope="module")
def exported(made: Path) -> Path:
    """Its export. Read only: a test that changes it takes a copy."""
    folder = made.parent / "onnx"
    assert main(["export", str(made), "--onnx", str(folder)]) == 0
    return folder


def description(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "model.json").read_text())
    return found


def test_the_description_says_what_the_graphs_take_and_vouches_for_them(made: Path, exported: Path) -> None:
    found = description(exported)
    low = {"name": "low", "type": "uint8", "shape": ["batch", 3, 8, 8]}
    assert found["policy"]["inputs"] == [low]
    assert found["policy"]["outputs"] == [{"name": "scores", "type": "float32", "shape": ["batch", 16]}]
    assert found["classifier"]["inputs"] == [
        {"name": "pixels", "type": "uint8", "shape": ["patches", 3, 5, 5]},
        {"name": "image", "type": "int64", "shape": ["patches"]},
        {"name": "patch", "type": "int64", "shape": ["patches"]},
        low,
    ]
    assert found["classifier"]["outputs"] == [{"name": "logits", "type": "float32", "shape": ["batch", 3]}]
    assert (found["stage"], found["classes"], found["grid"]) == ("ft2", list(CLASSES), [4, 4])
    assert found["sha256"] == RunFolder(made).stage_config("ft2")["sha256"]
    assert found["check"]["pixels"] == "images of the training data"
    for name in ("policy", "classifier"):
        graph = (exported / found[name]["file"]).read_bytes()
        assert hashlib.sha256(graph).hexdigest() == found[name]["sha256"]
        assert str(Path(exporter.__file__).parent).encode() not in graph
        onnx.checker.check_model(graph)


def test_the_hr_network_is_in_a_branch_that_runs_only_where_a_patch_is_chosen(exported: Path) -> None:
    graph = onnx.load(exported / "classifier.onnx").graph
    (branch,) = [node for node in graph.node if node.op_type == "If"]
    inside = {a.name: [n.op_type for n in a.g.node].count("Conv") for a in branch.attribute}
    assert inside["then_branch"] > 0 and inside["else_branch"] == 0


def test_bagnet_exports_without_a_line_of_its_own() -> None:
    settings = tiny_settings(classifier="bagnet")
    config = config_of(settings)
    model = unsettle(build_stage("pt", config))
    assert isinstance(model, PatchDrop)
    found = check(model, Runtime(to_graphs(model, config), 1), Grid(4, 4), *images(16))
    assert max(found.values()) > 0


@pytest.mark.parametrize("start", ["lr", "shared"])
def test_a_ranking_policy_exports_with_all_that_it_takes(start: str) -> None:
    settings = tiny_settings(policy="ranking", low_stream="pt", policy_start=start)
    config = config_of(settings)
    torch.manual_seed(0)
    model = unsettle(build_stage("ft2", config))
    assert isinstance(model, RankingModel)
    if start == "shared":
        copy_matching(model.policy.utility.network, model.classifier.low.network)
    torch.nn.init.normal_(model.policy.critic.offset)  # chances that fall here and there
    high, low = images(16)
    with torch.no_grad():
        # Halfway between two logits, since rounding may put a patch that stands at its very price on either side.
        model.policy.log_price += cut_for_mean(model.look(low).scores, 8)
        assert 0 < int((model.look(low).scores >= 0).sum()) < 7 * 16
    found = check(model, Runtime(to_graphs(model, config), 1), Grid(4, 4), high, low)
    assert max(found.values()) > 0


@pytest.mark.parametrize(("kind", "fill"), [("canvas", "low"), ("patch-set", "mean"), ("vit", "low")])
def test_a_sparse_classifier_exports_in_a_form_without_sizes_that_depend_on_data(kind: str, fill: str) -> None:
    """As the second stream of Ft-2, in a branch of the graph."""
    network = {"hr_network": "vit2-w64-p4"} if kind == "vit" else {}
    settings = tiny_settings(classifier=kind, fill=fill, high="32", grid="4", fusion="capped", **network)
    config = config_of(settings)
    model = unsettle(build_stage("ft2", config))
    assert isinstance(model, PatchDrop)
    graphs = to_graphs(model, config)
    found = check(model, Runtime(graphs, 1), Grid(4, 4), *images(32))
    assert max(found.values()) > 0
    # The branches with HR layers: canvas has one on patches, and one of the plain network for whole images.
    branches = [node for node in onnx.load_from_string(graphs.classifier).graph.node if node.op_type == "If"]
    layers = [{a.name: [n.op_type for n in a.g.node].count("Conv") for a in node.attribute} for node in branches]
    assert [found["then_branch"] > 0 for found in layers] == [True] * (2 if kind == "canvas" else 1)
    assert all(found["else_branch"] == 0 for found in layers)


def images(side: int) -> tuple[torch.Tensor, torch.Tensor]:
    high = tiny_images(7, 5, side)[0]
    return high, high[:, :, :8, :8].contiguous()


def test_other_weights_are_seen_and_leave_no_graph(
    made: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The graphs of this run, passed off as those of another one."""
    graphs = Graphs(*((exported / f"{name}.onnx").read_bytes() for name in exporting.GRAPHS))
    other = write_run(tmp_path / "other", made.parent / "nowhere", ("ft2",), seed=1)
    monkeypatch.setattr(exporting, "to_graphs", lambda model, config: graphs)
    assert main(["export", str(other), "--onnx", str(tmp_path / "new")]) == 3
    said = capsys.readouterr().err.splitlines()
    assert "checked on noise, because the run's data cannot be read" in said[0]
    assert said[-1].startswith("error: a batch of 1, own choice: ") and "nothing is exported" in said[-1]
    assert not (tmp_path / "new").exists()
    assert main(["export", str(other), "--onnx", str(exported)]) == 3
    assert "holds the export of other weights (stage ft2 of run); choose another" in capsys.readouterr().err


def test_a_classifier_that_is_off_by_a_little_is_seen(made: Path, exported: Path) -> None:
    model, config = RunFolder(made).load("ft2")
    assert isinstance(model, PatchDrop)
    graphs = Graphs(*((exported / f"{name}.onnx").read_bytes() for name in exporting.GRAPHS))
    with torch.no_grad():
        model.classifier.low.network.fc.bias[0] += 1  # type: ignore[union-attr,index,operator]
    with pytest.raises(RunError, match="logits differ by"):
        check(model, Runtime(graphs, 1), config.shape.grid, *images(18))


def blocked(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The example in a process in which neither torch nor this package can be imported."""
    code = (
        "import runpy, sys\nsys.modules['torch'] = sys.modules['patchdrop'] = None\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", code, str(EXAMPLE), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_example_predicts_without_torch_what_the_predictor_predicts(made: Path, exported: Path) -> None:
    path = made.parent / "images" / "test" / "red" / "002.png"
    (expected,) = Predictor(made).predict([path])
    found = blocked(exported, path)
    assert found.stdout.split() == [expected.label, "patches", *map(str, expected.patches)], found.stderr


def test_the_example_names_a_wrong_shape(exported: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "model.json").write_text(json.dumps({**description(exported), "low": [9, 8]}))
    Image.fromarray(np.zeros((18, 18, 3), np.uint8)).save(tmp_path / "a.png")
    found = blocked(copy, tmp_path / "a.png")
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr == "error: low has the shape [1, 3, 9, 8], the model takes ['batch', 3, 8, 8]\n"


def test_the_example_without_an_image_says_how_it_is_called(exported: Path) -> None:
    found = subprocess.run([sys.executable, EXAMPLE, exported], capture_output=True, text=True, check=False)
    assert (found.returncode, found.stdout) == (1, "")
    assert found.stderr.endswith("EXPORT IMAGE [LR_IMAGE]`.\n") and "Traceback" not in found.stderr


def test_bad_input_is_named_in_one_line_before_anything_is_exported(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(code: int, *arguments: object) -> str:
        assert main(["export", *map(str, arguments)]) == code
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        return said

    blank = write_run(tmp_path / "blank", made.parent / "images", ("lr",))
    file = tmp_path / "file"
    file.write_text("")
    assert "no policy is trained yet" in refused(3, blank, "--onnx", tmp_path / "x")
    assert "has no policy" in refused(2, made, "--onnx", tmp_path / "x", "--stage", "lr")
    assert "cannot be written" in refused(3, made, "--onnx", file / "x")
    (tmp_path / "model.json").write_text("{}")
    assert "holds a model.json of something else; choose" in refused(3, made, "--onnx", tmp_path)
    monkeypatch.setattr(exporter, "PACKAGES", ("onnx", "no_such_package"))
    assert "needs no_such_package; install" in refused(2, made, "--onnx", tmp_path / "x")
    assert not (tmp_path / "x").exists()
