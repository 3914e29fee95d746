"""The reward, case by case."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from patchdrop.policy.reward import gain, reward, soft_reward

BY_HAND = {  # P -> 1 - (S/P)^2 for S = 0 .. P
    1: [1.0, 0.0],
    2: [1.0, 0.75, 0.0],
    4: [1.0, 0.9375, 0.75, 0.4375, 0.0],
    16: [
        1.0,
        0.99609375,
        0.984375,
        0.96484375,
        0.9375,
        0.90234375,
        0.859375,
        0.80859375,
        0.75,
        0.68359375,
        0.609375,
        0.52734375,
        0.4375,
        0.33984375,
        0.234375,
        0.12109375,
        0.0,
    ],
}


def choices_of_each_size(patches: int) -> Tensor:
    """Row S keeps S patches, for S = 0 .. P."""
    generator = torch.Generator().manual_seed(patches)
    rank = torch.rand(patches + 1, patches, generator=generator).argsort(1).argsort(1)
    return rank < torch.arange(patches + 1).unsqueeze(1)


@pytest.mark.parametrize("patches", BY_HAND)
@pytest.mark.parametrize("sigma", [0.0, 0.5, 5.0])
def test_right_earns_what_was_saved_and_wrong_costs_sigma_for_every_s(patches: int, sigma: float) -> None:
    choice = choices_of_each_size(patches)
    logits = torch.tensor([[0.0, 2.0, 1.0]]).expand(patches + 1, 3)
    right = reward(choice, logits, torch.full((patches + 1,), 1), sigma)
    wrong = reward(choice, logits, torch.full((patches + 1,), 2), sigma)
    assert right.tolist() == BY_HAND[patches]
    assert wrong.tolist() == [-sigma] * (patches + 1)
    assert right.dtype == wrong.dtype == torch.float32


@pytest.mark.parametrize("patches", [3, 5, 10, 15])
def test_the_gain_for_other_grids_is_one_minus_the_squared_share(patches: int) -> None:
    expected = [float(1 - Fraction(s, patches) ** 2) for s in range(patches + 1)]
    assert gain(choices_of_each_size(patches)).tolist() == pytest.approx(expected, abs=1e-6)


def test_only_the_number_of_patches_counts_not_their_place() -> None:
    choice = torch.eye(6, dtype=torch.bool)
    assert len(set(gain(choice).tolist())) == 1


def test_the_soft_reward_is_the_expected_reward_over_the_classifiers_probabilities() -> None:
    generator = torch.Generator().manual_seed(0)
    choice = choices_of_each_size(16)
    images, classes, sigma = len(choice), 5, 0.7
    logits = torch.randn(images, classes, generator=generator)
    target = torch.randint(classes, (images,), generator=generator)
    expected = torch.zeros(images)
    for guess in range(classes):
        sure = torch.nn.functional.one_hot(torch.full((images,), guess), classes).float()
        expected += logits.softmax(1)[:, guess] * reward(choice, sure, target, sigma)
    torch.testing.assert_close(soft_reward(choice, logits, target, sigma), expected, rtol=0, atol=1e-6)


def test_the_soft_reward_of_a_sure_classifier_is_the_reward() -> None:
    choice = choices_of_each_size(4)
    logits = torch.tensor([[0.0, 1000.0]]).expand(5, 2)
    for target in (torch.zeros(5, dtype=torch.int64), torch.ones(5, dtype=torch.int64)):
        assert torch.equal(soft_reward(choice, logits, target, 2.0), reward(choice, logits, target, 2.0))


def test_the_soft_reward_has_the_gradient_of_its_formula() -> None:
    choice = choices_of_each_size(4).float().requires_grad_()
    logits = torch.randn(5, 3, generator=torch.Generator().manual_seed(1)).requires_grad_()
    target = torch.tensor([0, 1, 2, 0, 1])
    soft_reward(choice, logits, target, 0.5).sum().backward()
    assert choice.grad is not None
    assert logits.grad is not None
    right = logits.detach().softmax(1)[torch.arange(5), target]
    share = choice.detach().mean(1)
    torch.testing.assert_close(choice.grad, (-2 * share / 4 * right).unsqueeze(1).expand(5, 4))
    one_hot = torch.nn.functional.one_hot(target, 3)
    slope = right.unsqueeze(1) * (one_hot - logits.detach().softmax(1))
    torch.testing.assert_close(logits.grad, slope * (1 - share**2 + 0.5).unsqueeze(1))
