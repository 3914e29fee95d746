"""Muon: orthogonal steps for matrices, AdamW for the rest, and state that is all tensors."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from patchdrop.training.optimizer import BETAS, EPSILON, Muon, is_matrix, orthogonal


@pytest.mark.parametrize("shape", [(8, 200), (200, 8), (64, 64), (2, 2)])
def test_singular_values_come_near_one_and_singular_vectors_stay(shape: tuple[int, int]) -> None:
    # The iteration promises 0.7 to 1.2 for singular values above a hundredth of the norm.
    left, right = (torch.linalg.qr(torch.randn(side, min(shape), dtype=torch.float64))[0] for side in shape)
    values = torch.linspace(0.1, 1, min(shape), dtype=torch.float64)
    flat = left.T @ orthogonal((left * values) @ right.T) @ right
    assert torch.allclose(flat, flat.diag().diag(), atol=1e-5)
    assert 0.65 < float(flat.diag().min()) <= float(flat.diag().max()) < 1.25


def test_a_step_does_not_depend_on_the_gradients_size_and_has_the_promised_one() -> None:
    moves = []
    for scale in (1e-3, 1e3):
        torch.manual_seed(0)
        weight = nn.Parameter(torch.zeros(32, 16, 3, 3))
        weight.grad = scale * torch.randn_like(weight)
        Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}]).step()
        moves.append(weight.detach())
    assert torch.allclose(moves[0], moves[1], rtol=1e-3, atol=1e-6)
    values = torch.linalg.svdvals(moves[0].flatten(1))
    assert bool((values > 0.65 * 0.1 * 0.2 * math.sqrt(144)).all())
    assert bool((values < 1.25 * 0.1 * 0.2 * math.sqrt(144)).all())


def test_vectors_move_as_by_torchs_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(7))
    muon = Muon([{"params": [ours], "lr": 0.01, "weight_decay": 0.1}])
    adamw = torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.1, betas=BETAS, eps=EPSILON)
    for _ in range(5):
        ours.grad = torch.randn(7)
        theirs.grad = ours.grad.clone()
        muon.step()
        adamw.step()
    assert torch.allclose(ours, theirs, rtol=1e-5)


def test_what_counts_as_a_matrix() -> None:
    assert is_matrix(nn.Conv2d(3, 8, 3).weight)
    assert is_matrix(nn.Linear(4, 2).weight)
    assert not is_matrix(nn.Linear(4, 1).weight)
    assert not is_matrix(nn.Conv2d(8, 8, 3, groups=8).weight)
    assert not is_matrix(nn.BatchNorm2d(4).weight)


def test_its_state_is_tensors_alone_so_that_it_can_be_saved_without_pickle() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
    optimizer = Muon([{"params": list(model.parameters()), "lr": 0.01, "weight_decay": 0.0}])
    model(torch.randn(2, 3, 8, 8)).square().mean().backward()
    optimizer.step()
    slots = [value for state in optimizer.state_dict()["state"].values() for value in state.values()]
    assert slots
    assert all(isinstance(value, torch.Tensor) for value in slots)


def test_a_parameter_without_a_gradient_stays() -> None:
    weight = nn.Parameter(torch.ones(4, 4))
    Muon([{"params": [weight], "lr": 0.1, "weight_decay": 0.5}]).step()
    assert torch.equal(weight, torch.ones(4, 4))
