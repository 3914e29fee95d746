"""The gradient estimators against the true gradient, by enumeration of every choice.

``unbiased`` is the check: it weighs the gradient of a loss on each of the 2^P choices by its probability,
and compares with the gradient of -E[R] from autograd through the sum over all choices. The real estimators
pass it; each of eight broken ones does not.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from patchdrop.policy.choice import greedy, mixed
from patchdrop.policy.reward import gain, reward, soft_reward
from patchdrop.training.estimator import (
    Exact,
    LeaveOneOut,
    SelfCritical,
    StraightThrough,
    estimator,
    log_probability,
    policy_gradient_loss,
)

SIGMA = 0.5
Loss = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""logits ``(1, P)``, choices ``(K, 1, P)``, rewards ``(K, 1)``, alpha -> scalar."""
Pay = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""As `patchdrop.policy.reward.reward`."""


def every_choice(patches: int) -> Tensor:
    """``(2^P, P)`` bool."""
    numbers = torch.arange(2**patches).unsqueeze(1)
    return (numbers >> torch.arange(patches)) % 2 == 1


@dataclass(frozen=True)
class World:
    """One image: its patch logits, and whether the classifier is right after each choice."""

    logits: Tensor
    right: Tensor

    @classmethod
    def drawn(cls, patches: int, seed: int) -> World:
        generator = torch.Generator().manual_seed(seed)
        logits = torch.randn(patches, generator=generator, dtype=torch.float64)
        right = torch.rand(2**patches, generator=generator) < 0.6
        right[0], right[-1] = False, True  # both outcomes occur, whatever the seed
        return cls(logits, right)

    def true_rewards(self) -> Tensor:
        """By hand: 1 - (S/P)^2 or -sigma, ``(2^P,)`` float64."""
        patches = len(self.logits)
        sizes = every_choice(patches).sum(1).tolist()
        saved = [float(1 - Fraction(s, patches) ** 2) for s in sizes]
        return torch.tensor(
            [g if r else -SIGMA for g, r in zip(saved, self.right.tolist(), strict=True)],
            dtype=torch.float64,
        )

    def paid(self, pay: Pay) -> Tensor:
        """What ``pay`` gives for each choice, freed of float32 rounding where it is right up to that."""
        class_logits = torch.stack([~self.right, self.right], 1).float()
        target = torch.ones(len(self.right), dtype=torch.int64)
        rewards = pay(every_choice(len(self.logits)), class_logits, target, SIGMA).double()
        exact = self.true_rewards()
        return torch.where((rewards - exact).abs() < 2e-7, exact, rewards)

    def true_gradient(self, alpha: float) -> Tensor:
        """Of -E[R] with respect to the logits, through explicit enumeration."""
        logits = self.logits.clone().requires_grad_()
        probabilities = mixed_by_hand(logits, alpha)
        taken = torch.where(every_choice(len(logits)), probabilities, 1 - probabilities).prod(1)
        (gradient,) = torch.autograd.grad(-(taken * self.true_rewards()).sum(), logits)
        return gradient

    def probabilities(self, alpha: float) -> Tensor:
        """Of each choice, ``(2^P,)``."""
        one = mixed_by_hand(self.logits, alpha)
        return torch.where(every_choice(len(self.logits)), one, 1 - one).prod(1)

    def greedy_position(self) -> int:
        """Which of the 2^P choices is the greedy one."""
        bits = (self.logits >= 0).long()
        return int((bits << torch.arange(len(bits))).sum())


def mixed_by_hand(logits: Tensor, alpha: float) -> Tensor:
    s = 1 / (1 + torch.exp(-logits))
    return alpha * s + (1 - alpha) * (1 - s)


def gradient_of(loss: Loss, world: World, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
    logits = world.logits.clone().unsqueeze(0).requires_grad_()
    value = loss(logits, choices.unsqueeze(1), rewards.unsqueeze(1), alpha)
    (gradient,) = torch.autograd.grad(value, logits)
    return gradient[0]


def unbiased(loss: Loss, pay: Pay, world: World, alpha: float, tolerance: float = 1e-10) -> bool:
    """Whether the expected gradient of a loss of one sample and the greedy choice is the true one."""
    choices, rewards = every_choice(len(world.logits)), world.paid(pay)
    best = world.greedy_position()
    expected = torch.zeros_like(world.logits)
    for index, probability in enumerate(world.probabilities(alpha)):
        pair = [index, best]
        expected += probability * gradient_of(loss, world, choices[pair], rewards[pair], alpha)
    return bool(((expected - world.true_gradient(alpha)).abs() <= tolerance).all())


def without_baseline(logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
    return policy_gradient_loss(logits, choices[:1], rewards[:1], alpha)


# --- the real ones


@pytest.mark.parametrize("patches", range(1, 11))
@pytest.mark.parametrize("alpha", [0.7, 1.0])
def test_self_critical_has_the_true_gradient_of_the_expected_reward(patches: int, alpha: float) -> None:
    assert unbiased(SelfCritical().loss, reward, World.drawn(patches, patches), alpha)


@pytest.mark.parametrize("patches", range(1, 11))
@pytest.mark.parametrize("alpha", [0.7, 1.0])
def test_without_a_baseline_the_gradient_is_true_as_well(patches: int, alpha: float) -> None:
    assert unbiased(without_baseline, reward, World.drawn(patches, 100 + patches), alpha)


@pytest.mark.parametrize("patches", range(1, 5))
@pytest.mark.parametrize("alpha", [0.7, 1.0])
def test_two_samples_against_each_other_have_the_true_gradient(patches: int, alpha: float) -> None:
    world = World.drawn(patches, 200 + patches)
    choices, rewards, probability = every_choice(patches), world.paid(reward), world.probabilities(alpha)
    expected = torch.zeros_like(world.logits)
    for i in range(2**patches):
        for j in range(2**patches):
            gradient = gradient_of(LeaveOneOut(2).loss, world, choices[[i, j]], rewards[[i, j]], alpha)
            expected += probability[i] * probability[j] * gradient
    torch.testing.assert_close(expected, world.true_gradient(alpha), rtol=0, atol=1e-10)


def test_three_samples_against_each_other_have_the_true_gradient() -> None:
    world, alpha = World.drawn(2, 300), 0.8
    choices, rewards, probability = every_choice(2), world.paid(reward), world.probabilities(alpha)
    expected = torch.zeros_like(world.logits)
    for triple in torch.cartesian_prod(*[torch.arange(4)] * 3):
        gradient = gradient_of(LeaveOneOut(3).loss, world, choices[triple], rewards[triple], alpha)
        expected += probability[triple].prod() * gradient
    torch.testing.assert_close(expected, world.true_gradient(alpha), rtol=0, atol=1e-10)


def test_a_patch_that_is_sure_at_alpha_1_leaves_the_gradient_finite_and_true() -> None:
    assert unbiased(SelfCritical().loss, reward, saturated(), 1.0)


def test_the_baseline_lowers_the_variance_of_the_gradient() -> None:
    """Rewards far from 0 are where a baseline pays; here every one of them is 10 higher."""
    world, alpha = World.drawn(4, 7), 0.9
    choices, rewards = every_choice(4), world.paid(reward) + 10
    best = world.greedy_position()

    def variance(loss: Loss) -> float:
        total = 0.0
        for index, probability in enumerate(world.probabilities(alpha)):
            pair = [index, best]
            gradient = gradient_of(loss, world, choices[pair], rewards[pair], alpha)
            total += float(probability * (gradient - world.true_gradient(alpha)).square().sum())
        return total

    assert variance(SelfCritical().loss) < 0.05 * variance(without_baseline)


# --- the broken ones


def saturated() -> World:
    """A patch whose probability is 1 to the last bit, beside two ordinary ones."""
    world = World.drawn(3, 8)
    logits = world.logits.clone()
    logits[1] = 1000.0
    return World(logits, world.right)


def wrong_sign(logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
    return -SelfCritical().loss(logits, choices, rewards, alpha)


def mean_over_patches(logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
    return SelfCritical().loss(logits, choices, rewards, alpha) / logits.shape[-1]


def unclamped_log(logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
    probabilities = mixed(logits, alpha)
    taken = torch.where(choices[:1], probabilities, 1 - probabilities)
    return -((rewards[:1] - rewards[1:]) * taken.log().sum(-1)).mean()


def baseline_that_saw_the_sample(logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
    return policy_gradient_loss(logits, choices[:1], rewards[:1] - rewards.mean(0, keepdim=True), alpha)


def a_patch_left_out(logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
    return SelfCritical().loss(logits[..., 1:], choices[..., 1:], rewards, alpha)


def zero_and_one_swapped(logits: Tensor, choices: Tensor, rewards: Tensor, alpha: float) -> Tensor:
    return SelfCritical().loss(logits, ~choices, rewards, alpha)


def reward_not_squared(choice: Tensor, class_logits: Tensor, target: Tensor, sigma: float) -> Tensor:
    right = class_logits.argmax(1) == target
    return torch.where(right, 1 - choice.float().mean(1), torch.tensor(-sigma))


def penalty_forgotten(choice: Tensor, class_logits: Tensor, target: Tensor, sigma: float) -> Tensor:
    return (class_logits.argmax(1) == target) * gain(choice)


BROKEN: dict[str, tuple[Loss, Pay, World, float]] = {
    "wrong sign": (wrong_sign, reward, World.drawn(3, 8), 0.7),
    "mean over patches": (mean_over_patches, reward, World.drawn(3, 8), 0.7),
    "unclamped log": (unclamped_log, reward, saturated(), 1.0),
    "a baseline that saw the sample": (baseline_that_saw_the_sample, reward, World.drawn(3, 8), 0.7),
    "a patch left out": (a_patch_left_out, reward, World.drawn(3, 8), 0.7),
    "0 and 1 swapped": (zero_and_one_swapped, reward, World.drawn(3, 8), 0.7),
    "reward not squared": (SelfCritical().loss, reward_not_squared, World.drawn(3, 8), 0.7),
    "penalty forgotten": (SelfCritical().loss, penalty_forgotten, World.drawn(3, 8), 0.7),
}


@pytest.mark.parametrize("name", BROKEN)
def test_the_check_catches(name: str) -> None:
    loss, pay, world, alpha = BROKEN[name]
    assert not unbiased(loss, pay, world, alpha, tolerance=1e-4)
    assert unbiased(SelfCritical().loss, reward, world, alpha)


# --- what they propose, and how images are put together


def test_self_critical_proposes_a_sample_and_the_greedy_choice() -> None:
    torch.manual_seed(0)
    logits = torch.randn(400, 16, requires_grad=True)
    choices = SelfCritical().propose(logits, 0.9)
    assert choices.shape == (2, 400, 16)
    assert choices.dtype == torch.bool
    assert torch.equal(choices[1], greedy(logits))
    frequency = choices[0].float().mean()
    assert float(frequency) == pytest.approx(float(mixed(logits.detach(), 0.9).mean()), abs=0.03)
    assert not torch.equal(choices[0], choices[1])


def test_rloo_proposes_k_independent_samples() -> None:
    torch.manual_seed(0)
    choices = LeaveOneOut(5).propose(torch.zeros(300, 16), 0.7)
    assert choices.shape == (5, 300, 16)
    flat = choices.flatten(1).float()
    assert float((torch.corrcoef(flat) - torch.eye(5)).abs().max()) < 0.06


def test_the_loss_is_a_mean_over_images_and_a_sum_over_patches() -> None:
    torch.manual_seed(0)
    logits = torch.randn(6, 9, dtype=torch.float64)
    choices = torch.rand(2, 6, 9) < 0.5
    rewards = torch.randn(2, 6, dtype=torch.float64)
    for method in (SelfCritical(), LeaveOneOut(2)):
        whole = method.loss(logits, choices, rewards, 0.8)
        singles = [method.loss(logits[i : i + 1], choices[:, i : i + 1], rewards[:, i : i + 1], 0.8) for i in range(6)]
        torch.testing.assert_close(whole, torch.stack(singles).mean(), rtol=1e-12, atol=0)
    by_patch = torch.stack([log_probability(logits[:, p : p + 1], choices[0, :, p : p + 1], 0.8) for p in range(9)])
    torch.testing.assert_close(log_probability(logits, choices[0], 0.8), by_patch.sum(0))


def test_the_log_probabilities_of_all_choices_sum_to_one() -> None:
    world = World.drawn(6, 1)
    found = log_probability(world.logits.expand(64, 6), every_choice(6), 0.9).exp()
    assert float(found.sum()) == pytest.approx(1.0, abs=1e-12)
    torch.testing.assert_close(found, world.probabilities(0.9))


def test_no_gradient_flows_through_the_rewards() -> None:
    logits = torch.randn(4, 3, requires_grad=True)
    rewards = torch.randn(2, 4, requires_grad=True)
    choices = torch.rand(2, 4, 3) < 0.5
    SelfCritical().loss(logits, choices, rewards, 0.9).backward()
    assert rewards.grad is None


# --- straight-through: biased, so what it promises instead


def test_straight_through_proposes_0_or_1_forward_and_the_probability_backward() -> None:
    torch.manual_seed(0)
    logits = torch.randn(50, 8, dtype=torch.float64, requires_grad=True)
    choices = StraightThrough().propose(logits, 0.8)
    assert choices.shape == (1, 50, 8)
    torch.testing.assert_close(choices, choices.round(), rtol=0, atol=1e-12)
    assert set(choices.round().unique().tolist()) == {0.0, 1.0}
    factor = torch.randn(50, 8, dtype=torch.float64)
    (ours,) = torch.autograd.grad((choices[0] * factor).sum(), logits)
    (theirs,) = torch.autograd.grad((mixed_by_hand(logits, 0.8) * factor).sum(), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


def test_straight_through_has_the_gradient_of_the_relaxed_reward_at_its_sample() -> None:
    torch.manual_seed(1)
    images, patches, alpha = 7, 5, 0.8
    logits = torch.randn(images, patches, dtype=torch.float64, requires_grad=True)
    head = torch.randn(patches, 3, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 0, 1, 2, 0])

    def relaxed(choice: Tensor) -> Tensor:
        return soft_reward(choice, choice @ head, target, SIGMA)

    method = StraightThrough()
    choices = method.propose(logits, alpha)
    loss = method.loss(logits, choices, relaxed(choices[0]).unsqueeze(0), alpha)
    (ours,) = torch.autograd.grad(loss, logits)

    at = choices[0].detach().round().requires_grad_()
    (slope,) = torch.autograd.grad(-relaxed(at).mean(), at)
    s = torch.sigmoid(logits.detach())
    by_hand = slope * (2 * alpha - 1) * s * (1 - s)  # d/dl of alpha s + (1 - alpha)(1 - s)
    torch.testing.assert_close(ours, by_hand, rtol=1e-5, atol=1e-8)  # the reward is float32


@pytest.mark.parametrize("alpha", [0.7, 1.0])
def test_the_exact_estimators_gradient_is_the_true_one_whatever_was_sampled(alpha: float) -> None:
    world = World.drawn(4, seed=3)
    choices = Exact().propose(world.logits[None], alpha)
    assert choices.shape == (17, 1, 4)
    assert torch.equal(choices[1:, 0], every_choice(4))
    paid = torch.cat([torch.full((1,), torch.nan, dtype=torch.float64), world.true_rewards()])
    found = gradient_of(Exact().loss, world, choices[:, 0], paid, alpha)
    assert torch.allclose(found, world.true_gradient(alpha), atol=1e-12)


def test_estimators_are_found_by_name() -> None:
    assert estimator("exact", 4) == Exact()
    assert estimator("self-critical", 4) == SelfCritical()
    assert estimator("rloo", 4) == LeaveOneOut(4)
    assert estimator("straight-through", 4) == StraightThrough()
    assert [estimator(n, 2).relaxed for n in ("self-critical", "rloo", "straight-through")] == [
        False,
        False,
        True,
    ]
