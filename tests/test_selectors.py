"""Selectors with a given S: STN's relaxation by hand, and what Pt, Ft-1 and Ft-2 train of a selector."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from patchdrop.episode import PatchDrop
from patchdrop.grid import Grid
from patchdrop.policy.baselines import FixedScores, fixed_rows, stochastic
from patchdrop.policy.choice import greedy, sampled, top
from patchdrop.policy.stn import relaxed_top, threshold
from patchdrop.training.policy_stages import PolicyTask
from patchdrop.training.selectors import SelectorTask
from rows import FIT, VAL, bits, same_bits, tiny_model, trained
from tiny import learning_of, loader_of, tiny_settings

SETTINGS = tiny_settings()
GRID = Grid(4, 4)
STN = partial(relaxed_top, mean_patches=5)
BLIND: dict[str, tuple[Callable[[], FixedScores], Callable[[Tensor], Tensor]]] = {
    "fixed": (lambda: fixed_rows(GRID, 5), greedy),
    "stochastic": (lambda: stochastic(GRID, 5.0), sampled),
}


def selector(stage: str, name: str = "stn") -> SelectorTask:
    model = tiny_model(stage, SETTINGS)
    assert isinstance(model, PatchDrop)
    if name == "stn":
        return SelectorTask(stage, model, STN, loader_of(SETTINGS, FIT, VAL), learning_of(SETTINGS))
    make, choose = BLIND[name]
    return SelectorTask(
        stage, PatchDrop(make(), model.classifier), choose, loader_of(SETTINGS, FIT, VAL), learning_of(SETTINGS)
    )


# --- the relaxation


@pytest.mark.parametrize("count", [0, 1, 5, 16])
def test_every_image_keeps_exactly_s_patches_and_they_are_the_highest(count: int) -> None:
    scores = torch.randn(50, 16, generator=torch.Generator().manual_seed(0)).requires_grad_()
    choice = relaxed_top(scores, count)
    assert torch.equal(choice, top(scores, count).float())
    assert choice.sum(1).tolist() == [count] * 50


def test_the_gradient_is_that_of_a_sigmoid_of_the_distance_to_the_border() -> None:
    scores = torch.tensor([[3.0, 0.0, 1.0, -2.0]], requires_grad=True)
    choice = relaxed_top(scores, 2)
    weights = torch.tensor([[1.0, -1.0, 2.0, 5.0]])
    (choice * weights).sum().backward()
    soft = torch.sigmoid(scores.detach() - 0.5)  # the border lies between 1 and 0
    assert choice.tolist() == [[1, 0, 1, 0]]
    assert torch.allclose(scores.grad, weights * soft * (1 - soft))


def test_the_border_lies_between_in_and_out_and_on_the_outermost_score_where_there_is_no_out_or_no_in() -> None:
    scores = torch.tensor([[3.0, 1.0, 0.0]]).expand(4, -1)
    choice = torch.arange(3) < torch.arange(4)[:, None]
    assert threshold(scores, choice).flatten().tolist() == [3, 2, 0.5, 0]


# --- the stages


@pytest.mark.parametrize("stage", ["pt", "ft1", "ft2"])
def test_stns_gradient_reaches_its_whole_network_in_every_stage(stage: str) -> None:
    task = selector(stage)
    task.train_mode()
    torch.manual_seed(0)
    loss, figures = task.loss(next(task.batches(0, 0)), 0.0)
    loss.backward()
    assert figures["patches"] == 5
    assert all(p.grad is not None and float(p.grad.abs().sum()) > 0 for p in task.model.policy.parameters())


def test_in_pt_stn_learns_and_the_classifier_stays_as_it_was_weights_and_statistics(tmp_path: Path) -> None:
    task = selector("pt")
    policy, classifier = bits(task.model.policy), bits(task.model.classifier)
    figures = trained(task, tmp_path)
    assert same_bits(bits(task.model.classifier), classifier)
    assert not same_bits(bits(task.model.policy), policy)
    assert (figures["mean_patches"], figures["patches_sd"]) == (5, 0)
    assert figures["score"] == figures["probability"]


@pytest.mark.parametrize("name", BLIND)
def test_a_blind_chooser_has_nothing_to_train_and_its_pt_no_step(tmp_path: Path, name: str) -> None:
    task = selector("pt", name)
    assert list(task.model.policy.parameters()) == []
    before = bits(task.model)
    assert (task.epochs, trained(task, tmp_path)) == (0, {})
    assert same_bits(bits(task.model), before)


@pytest.mark.parametrize("name", ["stn", *BLIND])
@pytest.mark.parametrize("stage", ["ft1", "ft2"])
def test_ft_trains_the_hr_classifier_and_neither_statistics_nor_the_lr_classifier(
    tmp_path: Path, stage: str, name: str
) -> None:
    task = selector(stage, name)
    before = bits(task.model)
    figures = trained(task, tmp_path)
    moved = {key for key, tensor in task.model.state_dict().items() if not torch.equal(tensor, before[key])}
    high = "classifier.high." if stage == "ft2" else "classifier."
    assert {f"{high}network.fc.weight", f"{high}network.stem.0.weight"} <= moved
    assert all(key.startswith((high, "policy.") if name == "stn" else high) for key in moved)
    assert not any("running" in key or "normalise" in key for key in moved)
    assert figures["mean_patches"] == (pytest.approx(5, abs=1.5) if name == "stochastic" else 5)


@pytest.mark.parametrize("stage", ["pt", "ft1", "ft2"])
def test_a_chooser_trains_what_patchdrop_trains_at_the_same_rates_for_as_long(stage: str) -> None:
    ours = selector(stage)
    theirs = PolicyTask(stage, tiny_model(stage, SETTINGS), loader_of(SETTINGS, FIT, VAL), learning_of(SETTINGS))
    described = [
        (task.epochs, task.steps_per_epoch, [(len(g.parameters), g.rate, g.weight_decay) for g in task.groups()])
        for task in (ours, theirs)
    ]
    assert described[0] == described[1]
    mine, other = next(ours.batches(1, 2)), next(theirs.batches(1, 2))
    assert torch.equal(mine.high, other.high)


def test_with_no_patch_ft_2_has_nothing_to_learn_from_and_goes_on() -> None:
    model = tiny_model("ft2", SETTINGS)
    task = SelectorTask(
        "ft2",
        PatchDrop(fixed_rows(GRID, 0), model.classifier),
        greedy,
        loader_of(SETTINGS, FIT, VAL),
        learning_of(SETTINGS),
    )
    loss, figures = task.loss(next(task.batches(0, 0)), 0.0)
    loss.backward()
    assert figures["patches"] == 0
    assert all(float(p.grad.abs().sum()) == 0 for group in task.groups() for p in group.parameters)
