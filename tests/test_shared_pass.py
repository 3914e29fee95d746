"""A policy that stands on LR-CNN: one pass over LR, the same answer, and a network that no stage moves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchdrop.episode import PatchDrop
from patchdrop.errors import UsageError
from patchdrop.grid import Grid
from patchdrop.models.build import build_stage, copy_matching
from patchdrop.models.shared_pass import SharedBackbone
from patchdrop.policy.choice import greedy
from patchdrop.read.source import from_memory
from patchdrop.settings.combinations import check_combinations
from test_cost import counted, formula
from test_training import run_stages, same_bits, tensors_of
from tiny import config_of, tiny_images, tiny_settings, unsettle

SHARED: dict[str, Any] = {
    "classifier": "canvas",
    "fill": "low",
    "low_stream": "pt",
    "fusion": "learned",
    "policy_head": "certainty",
    "policy_start": "shared",
}


@pytest.fixture
def model() -> SharedBackbone:
    config = config_of(tiny_settings(**SHARED))
    torch.manual_seed(0)
    built = unsettle(build_stage("pt", config))
    assert isinstance(built, SharedBackbone)
    copy_matching(built.classifier.low, built.policy)
    return built


def test_one_look_answers_as_two_would_to_the_bit(model: SharedBackbone) -> None:
    high = tiny_images(12, seed=0)[0]
    low = torch.nn.functional.avg_pool2d(high.float(), 2)
    read = from_memory(high, Grid(4, 4))
    with torch.inference_mode():
        once = model(low, greedy, read)
        twice = PatchDrop(model.policy, model.classifier)(low, greedy, read)
    assert 0 < int(once.choice.sum()) < once.choice.numel()
    assert torch.equal(once.scores, twice.scores)
    assert torch.equal(once.choice, twice.choice)
    assert torch.equal(once.logits, twice.logits)


def test_lr_passes_through_one_network_once(model: SharedBackbone) -> None:
    runs = {"policy": 0, "low": 0}

    def count(name: str) -> Any:
        def note(layer: nn.Module, inputs: tuple[object, ...], output: Tensor) -> None:
            runs[name] += 1

        return note

    model.policy.network.stem[0].register_forward_hook(count("policy"))  # type: ignore[index, union-attr]
    model.classifier.low.network.stem[0].register_forward_hook(count("low"))  # type: ignore[index, union-attr]
    high = tiny_images(4, seed=0)[0]
    with torch.inference_mode():
        model(torch.nn.functional.avg_pool2d(high.float(), 2), greedy, from_memory(high, Grid(4, 4)))
    assert runs == {"policy": 1, "low": 0}


def test_no_stage_moves_the_network_that_is_shared_and_each_moves_the_head(tmp_path: Path) -> None:
    run = run_stages(tmp_path, tiny_settings(**SHARED, epochs_ft1=0))
    low = tensors_of(run, "lr", "network.")
    heads = []
    for stage in ("pt", "ft2"):
        assert isinstance(run.load(stage)[0], SharedBackbone)
        assert same_bits(tensors_of(run, stage, "policy.network."), low)
        assert same_bits(tensors_of(run, stage, "classifier.low.network."), low)
        heads.append(tensors_of(run, stage, "policy.head."))
    assert bool(heads[0]["weight"].any())
    assert not same_bits(*heads)


def test_a_step_costs_one_pass_of_the_policys_network_and_a_backward_pass_of_its_head() -> None:
    settings = tiny_settings(**{**SHARED, "classifier": "masked", "fill": "mean"}, estimator="rloo")
    head = 2 * 16 * (8 + 16 + 16)  # FLOPs to the weights: 16 patches, features of each place in two maps, and the mean
    assert counted("pt", settings) == formula("pt", settings) + head


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"policy_network": "resnet8-w8"}, "policy_network is resnet8-w8"),
        ({"policy_head": "spatial"}, "--policy-head certainty"),
        ({"policy_head": "global", "policy": "ranking"}, "--policy-head spatial"),
        ({"low_stream": "ft2"}, "--low-stream pt"),
    ],
)
def test_what_cannot_be_shared_is_refused_with_what_to_set(change: dict[str, str], said: str) -> None:
    check_combinations(tiny_settings(**SHARED))
    with pytest.raises(UsageError, match=said):
        check_combinations(tiny_settings(**{**SHARED, **change}))
