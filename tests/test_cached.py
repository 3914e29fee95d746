"""Pt on kept evidence: the network's own rewards, without running it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from patchdrop import commands
from patchdrop.classify.bagnet import BagNet
from patchdrop.commands.shared import check_settings
from patchdrop.cost import forward_costs, step_flops
from patchdrop.episode import PatchDrop
from patchdrop.errors import Interrupted, UsageError
from patchdrop.grid import Grid
from patchdrop.models import copy_matching
from patchdrop.one_look import OneLook
from patchdrop.packed import gather
from patchdrop.settings import TrainSettings
from patchdrop.training.cached import CachedPolicyTask
from patchdrop.training.loop import saved_step
from patchdrop.training.policy_stages import PolicyTask
from patchdrop.training.run import make_task
from rows import CPU, DATA, FIT, VAL, bits, same_bits, tiny_model, trained
from tiny import tiny_settings, write_folder

SETTINGS = tiny_settings(classifier="bagnet", pt_views=1)
GRID = Grid(4, 4)


def task_of(**changes: object) -> CachedPolicyTask:
    settings = replace(SETTINGS, **changes)  # type: ignore[arg-type]
    model = tiny_model("pt", settings).train()  # as a starting model is
    found = make_task("pt", model, DATA, settings, CPU)
    assert isinstance(found, CachedPolicyTask)
    return found


@pytest.mark.parametrize("grid", [GRID, Grid(3, 5)])
def test_evidence_gives_the_networks_logits_for_any_choice(grid: Grid) -> None:
    settings = replace(SETTINGS, grid=str(grid))
    net = tiny_model("pt", settings).classifier
    assert isinstance(net, BagNet)
    high = torch.randint(0, 256, (6, 3, 16, 16)).float()
    choice = torch.rand(6, grid.patches) < 0.4
    choice[0], choice[1] = False, True
    evidence = net.evidence(gather(high, torch.ones_like(choice), grid))
    assert evidence.shape == (6, grid.patches, 3)
    expected = net(gather(high, choice, grid), torch.zeros(6, 3, 8, 8))
    assert torch.allclose(net.of_evidence(evidence, choice), expected, rtol=1e-5, atol=1e-5)
    weight = torch.rand(6, grid.patches)
    everything = gather(high, torch.ones_like(choice), grid)
    relaxed = net(replace(everything, weight=weight.flatten()), torch.zeros(6, 3, 8, 8))
    assert torch.allclose(net.of_evidence(evidence, weight), relaxed, rtol=1e-5, atol=1e-5)


STREAMS: dict[str, dict[str, Any]] = {
    "one": {},
    "two": {"low_stream": "pt", "fusion": "capped"},
    "two, one look": {"low_stream": "pt", "fusion": "learned", "policy_head": "certainty", "policy_start": "shared"},
}


@pytest.mark.parametrize("streams", STREAMS)
@pytest.mark.parametrize("estimator", ["self-critical", "straight-through", "rloo", "nested"])
def test_the_loss_and_the_figures_are_those_of_pt_through_the_network(estimator: str, streams: str) -> None:
    settings = replace(SETTINGS, estimator=estimator, augment=(), **STREAMS[streams])
    cached = CachedPolicyTask(ready(settings), FIT, VAL, settings, CPU)
    plain = PolicyTask("pt", ready(settings), FIT, None, VAL, settings, CPU)
    losses = []
    for task in (cached, plain):
        task.train_mode()
        torch.manual_seed(0)
        batch = next(task.batches(0, 1))
        torch.manual_seed(1)
        losses.append(task.loss(batch, 0.5))
    assert torch.allclose(losses[0][0], losses[1][0], rtol=1e-4)
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-4)
    with torch.inference_mode():
        assert cached.validate(0.5) == pytest.approx(plain.validate(0.5), rel=1e-4)


def ready(settings: TrainSettings) -> PatchDrop:
    """A model as Pt starts with it: where the policy stands on LR-CNN, the two are one network."""
    model = tiny_model("pt", settings).train()
    assert isinstance(model, PatchDrop)
    torch.manual_seed(0)
    torch.nn.init.normal_(model.policy.head.weight)  # type: ignore[arg-type, union-attr]
    if isinstance(model, OneLook):
        copy_matching(model.classifier.low, model.policy)
    return model


def test_a_step_of_a_policy_that_stands_on_lr_cnn_runs_its_head_alone() -> None:
    settings = replace(SETTINGS, **STREAMS["two, one look"])
    task = CachedPolicyTask(ready(settings), FIT, VAL, settings, CPU)
    assert isinstance(task.model, OneLook)
    runs: list[str] = []
    task.bagnet.network.register_forward_hook(lambda *_: runs.append("hr"))
    for name, network in (("policy", task.model.policy.network), ("low", task.judge.low.network)):  # type: ignore[union-attr]
        network.stem.register_forward_hook(lambda *_, name=name: runs.append(name))  # type: ignore[union-attr, misc]
    batch = next(task.batches(0, 0))
    assert runs == ["hr", "policy"] * -(-len(FIT) // 64)
    loss, _ = task.loss(batch, 0.0)
    loss.backward()  # type: ignore[no-untyped-call]
    assert runs == ["hr", "policy"] * -(-len(FIT) // 64)
    head = task.model.policy.head.weight.grad
    assert head is not None and bool(head.any())
    assert all(p.grad is None for p in task.model.policy.network.parameters())


def test_the_network_runs_once_for_each_view_and_never_in_a_step() -> None:
    task = task_of(pt_views=2)
    runs: list[int] = []
    before = bits(task.model.classifier)
    task.bagnet.network.register_forward_hook(lambda *_: runs.append(1))
    batches = [next(task.batches(epoch, 0)) for epoch in range(4)]
    assert len(runs) == 2 * -(-len(FIT) // 64)
    task.loss(batches[0], 0.0)
    assert len(runs) == 2 * -(-len(FIT) // 64)
    assert not torch.equal(task._kept[0].high, task._kept[1].high)
    assert same_bits(before, bits(task.model.classifier))


def test_only_the_policy_changes_and_a_resumed_stage_ends_with_the_same_bits(tmp_path: Path) -> None:
    settings = replace(SETTINGS, pt_views=2, epochs_pt=3, estimator="rloo", samples=8)
    ends = []
    for name, stop in (("whole", 0), ("broken", 4)):
        task = CachedPolicyTask(tiny_model("pt", settings), FIT, VAL, settings, CPU)  # type: ignore[arg-type]
        before = bits(task.model.classifier)
        if not stop:
            trained(task, tmp_path / name, settings)
        else:
            with pytest.raises(Interrupted):
                trained(task, tmp_path / name, settings, stop)
            assert saved_step(tmp_path / name) == stop
            task = CachedPolicyTask(tiny_model("pt", settings), FIT, VAL, settings, CPU)  # type: ignore[arg-type]
            trained(task, tmp_path / name, settings)
        assert same_bits(before, bits(task.model.classifier))
        assert isinstance(task.model, PatchDrop)
        ends.append(bits(task.model.policy))  # type: ignore[arg-type]
    assert same_bits(*ends)


def test_a_run_trains_with_it_and_other_classifiers_are_refused(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    settings = replace(SETTINGS, data=str(data), val_fraction=0.25)
    assert {row["stage"] for row in commands.train(settings, tmp_path / "run")["rows"]} >= {"pt", "ft1", "ft2"}
    with pytest.raises(UsageError, match="pt_views: classifier masked looks at patches together"):
        check_settings(replace(settings, classifier="masked"))
    with pytest.raises(UsageError, match="grid 4 has 16 patches; use a grid of at most 10"):
        check_settings(replace(settings, estimator="exact"))


def test_a_step_costs_the_policy_and_a_share_of_one_pass_a_view() -> None:
    settings = replace(SETTINGS, pt_views=1, epochs_pt=4)
    costs = forward_costs(settings, 3)
    hr, lr, policy = (costs[name].flops for name in ("hr", "lr", "policy"))
    assert step_flops("pt", costs, settings) == 3 * policy + hr / 4
    assert step_flops("pt", costs, replace(settings, **STREAMS["two"])) == 3 * policy + (hr + lr) / 4
    settings = replace(settings, **STREAMS["two, one look"])
    costs = forward_costs(settings, 3)
    assert step_flops("pt", costs, settings) == (costs["hr"].flops + costs["policy"].flops) / 4


def test_more_views_than_memory_may_hold_are_refused_before_anything_is_computed(tmp_path: Path) -> None:
    settings = replace(SETTINGS, data=str(write_folder(tmp_path / "data")), val_fraction=0.25, memory_gb=1e-6)
    with pytest.raises(UsageError, match=r"pt_views: 1 views of .* more than --memory-gb 1e-06; use fewer"):
        commands.train(settings, tmp_path / "run")
    assert not (tmp_path / "run" / "lr").exists()
    with pytest.raises(UsageError, match=r"pt_views: 3 views of .* more than --memory-gb 1e-05; use fewer"):
        task_of(pt_views=3, epochs_pt=3, memory_gb=1e-5)
    task_of(pt_views=3, epochs_pt=3, memory_gb=1.0)
