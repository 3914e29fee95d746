"""The ranking policy against enumeration: its gradient, its draws, its slopes, its choice at a price, its critic.

`unbiased` is the check of the gradient: the task's own loss on every ordered prefix, weighted by the probability of
each written out, against autograd through the sum of rewards. The real loss passes it with any baseline; each broken
one does not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from patchdrop.classify.two_stream import Streams, TwoStream
from patchdrop.data.sets import Batch
from patchdrop.evaluation.metrics import calibration_error
from patchdrop.evaluation.operating_point import Outputs, calibrate_critic
from patchdrop.grid import Grid
from patchdrop.models.build import build_stage, copy_matching
from patchdrop.models.shared_pass import RankingModel
from patchdrop.networks.build import Normalise
from patchdrop.packed import Packed, gather
from patchdrop.policy.budget import ALL, NONE, above, at_most
from patchdrop.policy.choice import greedy, keep_all
from patchdrop.policy.network import Policy
from patchdrop.policy.ranking import (
    BELIEF,
    Critic,
    Ranking,
    drawn_order,
    first,
    in_order,
    log_probability,
    slopes,
)
from patchdrop.read.source import from_memory
from patchdrop.training import ranking_stages
from patchdrop.training.ranking_stages import WHOLE, RankingTask, drawn_counts
from rows import FIT, VAL, tiny_model
from test_training import run_stages, same_bits, tensors_of
from tiny import CLASSES, config_of, learning_of, loader_of, tiny_images, tiny_settings, unsettle

RANKING: dict[str, Any] = {"policy": "ranking", "low_stream": "pt", "fusion": "learned", "fill": "low"}


def drawn(*shape: int, seed: int = 0, spread: float = 1.0) -> Tensor:
    """Normal numbers, float64."""
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def prefixes(patches: int, k: int) -> Tensor:
    """Every order of k of the patches, the others behind them: ``(P! / (P - k)!, P)``."""
    every = range(patches)
    rows = [[*taken, *(p for p in every if p not in taken)] for taken in itertools.permutations(every, k)]
    return torch.tensor(rows)


def by_hand(utilities: Tensor, orders: Tensor, k: int) -> Tensor:
    """Chances that the first k patches are drawn in each order (Plackett-Luce), one after the other: ``(n,)``."""
    weights = utilities.exp().expand(len(orders), -1)
    left = torch.ones_like(weights, dtype=torch.bool)
    found = weights.new_ones(len(orders))
    for patch in orders.T[:k]:
        found = found * weights.gather(1, patch.unsqueeze(1)).squeeze(1) / (weights * left).sum(1)
        left = left & ~torch.nn.functional.one_hot(patch, len(utilities)).bool()
    return found


# --- probabilities


@pytest.mark.parametrize("patches", range(1, 6))
def test_probabilities_of_all_ordered_prefixes_are_those_written_out_and_sum_to_one(patches: int) -> None:
    utilities = drawn(patches, seed=patches, spread=2)
    for k in range(patches + 1):
        orders = prefixes(patches, k)
        counts = torch.full((len(orders),), k)
        found = log_probability(utilities.expand(len(orders), -1), orders, counts).exp()
        assert float(found.sum()) == pytest.approx(1, abs=1e-12)
        torch.testing.assert_close(found, by_hand(utilities, orders, k), rtol=1e-12, atol=1e-15)


def test_a_probability_depends_on_utilities_up_to_a_constant_only_and_large_ones_do_no_harm() -> None:
    orders, counts = prefixes(4, 3), torch.full((24,), 3)
    utilities = drawn(4).expand(24, -1)
    torch.testing.assert_close(
        log_probability(utilities + 100, orders, counts), log_probability(utilities, orders, counts)
    )
    extreme = torch.tensor([800.0, -800.0, 0.0, 1.0]).expand(24, -1)
    assert bool(log_probability(extreme, orders, counts).isfinite().all())


def test_orders_are_drawn_with_their_probabilities() -> None:
    utilities, draws = drawn(4, seed=5, spread=0.8), 24_000
    torch.manual_seed(0)
    found = drawn_order(utilities.expand(draws, -1))
    expected = by_hand(utilities, prefixes(4, 4), 4) * draws
    code = torch.tensor([1000, 100, 10, 1])
    seen = torch.stack([((found * code).sum(1) == int((order * code).sum())).sum() for order in prefixes(4, 4)])
    assert int(seen.sum()) == draws
    chi_square = float(((seen - expected) ** 2 / expected).sum())
    assert chi_square < 23 + 4 * math.sqrt(2 * 23)  # 23 degrees of freedom: their mean and four deviations


def test_numbers_of_patches_are_drawn_few_more_often_than_many_and_all_in_one_of_eight() -> None:
    torch.manual_seed(0)
    counts = drawn_counts(40_000, 16)
    share = torch.bincount(counts, minlength=17) / len(counts)
    expected = torch.tensor([0.0] + [math.sqrt(k / 16) - math.sqrt((k - 1) / 16) for k in range(1, 17)])
    expected = expected * (1 - 1 / WHOLE)
    expected[16] += 1 / WHOLE
    assert float((share - expected).abs().max()) < 0.01
    assert drawn_counts(50, 1).tolist() == [1] * 50


def test_an_order_goes_from_the_highest_utility_to_the_lowest_and_of_equals_the_first_leads() -> None:
    order = in_order(torch.tensor([[0.0, 2.0, 1.0, 2.0]]))
    assert order.tolist() == [[1, 3, 2, 0]]
    assert [first(order, torch.tensor([k])).long().tolist()[0] for k in (0, 1, 3, 4)] == [
        [0, 0, 0, 0],
        [0, 1, 0, 0],
        [0, 1, 1, 1],
        [1, 1, 1, 1],
    ]


# --- the gradient


class World:
    """One image with P patches: its utilities, and whether the classifier is right after each set of them."""

    def __init__(self, patches: int, seed: int) -> None:
        self.utilities = drawn(patches, seed=seed)
        self.right = torch.rand(2**patches, generator=torch.Generator().manual_seed(seed)) < 0.5
        self.right[-1] = not self.right[0]  # both outcomes occur, whatever the seed
        self.bits = 2 ** torch.arange(patches)

    def after(self, choice: Tensor) -> Tensor:
        """Whether the class is right with each choice ``(n, P)``."""
        return self.right[(choice.long() * self.bits).sum(1)]

    def true_gradient(self, k: int) -> Tensor:
        """Of the expected loss ``-E[right] / k`` with k patches, through the sum over all ordered prefixes."""
        utilities = self.utilities.clone().requires_grad_()
        orders = prefixes(len(utilities), k)
        right = self.after(first(orders, torch.full((len(orders),), k)))
        expected = (by_hand(utilities, orders, k) * right).sum()
        (gradient,) = torch.autograd.grad(-expected / k, utilities)
        return gradient


def task_of(world: World, baseline: int) -> RankingTask:
    """The real task, whose policy says the world's utilities, and whose critic has arbitrary weights, in float64."""
    patches = len(world.utilities)
    settings = tiny_settings(**RANKING, grid=f"1x{patches}", augment=())
    model = tiny_model("pt", settings)
    assert isinstance(model, RankingModel)
    critic = model.policy.critic.double()
    for index, parameter in enumerate(critic.parameters()):
        parameter.data = drawn(*parameter.shape, seed=100 * baseline + index)
    return RankingTask("pt", model, loader_of(settings, FIT, VAL), learning_of(settings))


Broken = Callable[[RankingTask, World, Tensor, pytest.MonkeyPatch], None]


def unbiased(world: World, k: int, baseline: int = 0, broken: Broken | None = None) -> bool:
    """Whether the expected gradient of the task's loss with k patches is the true one."""
    return bias(world, k, baseline, broken) < 1e-10


def bias(world: World, k: int, baseline: int = 0, broken: Broken | None = None) -> float:
    """The largest error of that gradient."""
    orders = prefixes(len(world.utilities), k)
    images = len(orders)
    task = task_of(world, baseline)
    leaf = world.utilities.expand(images, -1).clone().requires_grad_()

    def apart(low_logits: Tensor, packed: Packed, low: Tensor) -> Streams:
        choice = torch.zeros(packed.batch, len(world.utilities), dtype=torch.bool)
        choice[packed.image, packed.patch] = True
        right = world.after(choice)
        logits = torch.stack([~right, right], 1).float()
        return Streams(logits, logits, torch.ones(images, dtype=torch.bool))

    task.model.outputs = lambda low: (leaf, torch.zeros(images, len(CLASSES), dtype=torch.float64))  # type: ignore[method-assign]
    task.streams.apart = apart  # type: ignore[method-assign]
    batch = Batch(torch.zeros(images, 3, 16, 16, dtype=torch.uint8), None, torch.ones(images, dtype=torch.int64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_stages, "drawn_order", lambda utilities: orders)
        patch.setattr(ranking_stages, "drawn_counts", lambda images, patches: torch.full((images,), k))
        if broken is not None:
            broken(task, world, orders, patch)
        loss, _ = task.loss(batch, 0.5)
        (gradients,) = torch.autograd.grad(loss * images, leaf)
    expected = (by_hand(world.utilities, orders, k).unsqueeze(1) * gradients).sum(0)
    return float((expected - world.true_gradient(k)).abs().max())


@pytest.mark.parametrize("patches", range(1, 7))
def test_the_ranking_has_the_true_gradient_of_the_expected_reward_at_every_length(patches: int) -> None:
    world = World(patches, seed=patches)
    for k in range(1, patches + 1):
        assert unbiased(world, k), k


@pytest.mark.parametrize("baseline", range(1, 5))
def test_whatever_the_baseline_is(baseline: int) -> None:
    assert unbiased(World(4, seed=9), k=3, baseline=baseline)


def instead(change: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Broken:
    """Another log-probability in the loss."""
    return lambda task, world, orders, patch: patch.setattr(ranking_stages, "log_probability", change)


def without_removing(utilities: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    taken = torch.arange(order.shape[1]) < counts.unsqueeze(1)
    return (utilities.log_softmax(1).gather(1, order) * taken).sum(1)


def deaf_denominator(utilities: Tensor, order: Tensor, counts: Tensor) -> Tensor:
    ranked = utilities.gather(1, order)
    left = ranked.detach().flip(1).logcumsumexp(1).flip(1)
    return ((ranked - left) * (torch.arange(order.shape[1]) < counts.unsqueeze(1))).sum(1)


def saw_the_sample(task: RankingTask, world: World, orders: Tensor, patch: pytest.MonkeyPatch) -> None:
    def raw(utilities: Tensor, low_logits: Tensor) -> Tensor:
        right = world.after(first(orders, torch.full((len(orders),), 3)))
        weight = task.policy.critic.start[0].weight.sum() * 0  # so that it still has a gradient
        return torch.where(right, 1.0, -1.0).double().unsqueeze(1).expand(-1, orders.shape[1] + 1) + weight

    patch.setattr(task.policy.critic, "raw", raw, raising=False)


def reads_one_less(task: RankingTask, world: World, orders: Tensor, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ranking_stages, "first", lambda order, counts: first(order, counts - 1))


def reads_the_last(task: RankingTask, world: World, orders: Tensor, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(ranking_stages, "first", lambda order, counts: first(order.flip(1), counts))


BROKEN: dict[str, Broken] = {
    "wrong sign": instead(lambda u, o, k: -log_probability(u, o, k)),
    "not divided by k": instead(lambda u, o, k: k * log_probability(u, o, k)),
    "taken patches not removed": instead(without_removing),
    "denominator without gradient": instead(deaf_denominator),
    "order ascending": instead(lambda u, o, k: log_probability(-u, o, k)),
    "first patch left out": instead(lambda u, o, k: log_probability(u, o, k) - log_probability(u, o, k.clamp(max=1))),
    "last patch left out": instead(lambda u, o, k: log_probability(u, o, k - 1)),
    "baseline that saw the sample": saw_the_sample,
    "one patch less is read": reads_one_less,
    "the last patches are read": reads_the_last,
}


def test_the_check_itself_lets_the_real_one_pass() -> None:
    assert unbiased(World(4, seed=9), k=3, broken=instead(log_probability))


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_gradient_is_caught(name: str) -> None:
    assert bias(World(4, seed=9), k=3, broken=BROKEN[name]) > 1e-3


# --- how many: slopes, choice at a price


def hull(chances: list[float]) -> list[float]:
    """Slopes of the least concave curve that lies nowhere below the chances, point by point."""
    ends = range(len(chances))

    def line(i: int, j: int, k: int) -> float:
        return chances[i] if i == j else chances[i] + (chances[j] - chances[i]) * (k - i) / (j - i)

    curve = [max(line(i, j, k) for i in ends if i <= k for j in ends if j >= k) for k in ends]
    return [after - before for before, after in itertools.pairwise(curve)]


def curves(patches: int) -> Tensor:
    """Chances of every kind after 0 to P patches: random, rising, falling, S-shaped, flat, straight, one step."""
    k = torch.arange(patches + 1, dtype=torch.float64) / patches
    rows = [
        *drawn(40, patches + 1, seed=patches).sigmoid(),
        *(0.2 + 0.6 * drawn(10, patches + 1, seed=1).exp().cumsum(1) / (patches + 20)),
        *(0.9 - 0.5 * drawn(5, patches + 1, seed=2).exp().cumsum(1) / (10 * patches + 20)),
        *((20 * (k - middle)).sigmoid() for middle in (0.1, 0.5, 0.9)),
        torch.full_like(k, 0.5),
        0.1 + 0.8 * k,
        (k >= 0.5).double(),
        (k >= 1).double(),
    ]
    return torch.stack(rows)


@pytest.mark.parametrize("patches", [1, 2, 3, 7, 16, 25])
def test_slopes_are_those_of_the_upper_hull(patches: int) -> None:
    chances = curves(patches)
    expected = torch.tensor([hull(row) for row in chances.tolist()], dtype=torch.float64)
    torch.testing.assert_close(slopes(chances), expected, rtol=1e-9, atol=1e-12)


def test_slopes_never_rise_along_the_ranking_not_even_by_rounding() -> None:
    found = slopes(curves(16).float())
    assert bool((found[:, 1:] <= found[:, :-1]).all())


def foreseeing(chances: Tensor, log_price: float = 0.0) -> tuple[Ranking, Tensor]:
    """A policy that foresees these chances of each image, and arbitrary utilities ``(n, P)``."""
    patches = chances.shape[1] - 1
    policy = Ranking(Policy("resnet8-w4", Grid(1, patches), (8, 32), Normalise(torch.zeros(3), torch.ones(3))), 3)
    policy.critic.forward = lambda utilities, low_logits: chances.float().logit(1e-6)  # type: ignore[method-assign]
    policy.log_price.fill_(log_price)
    return policy, drawn(len(chances), patches, seed=3).float()


def test_scores_fall_along_the_ranking_so_that_every_threshold_reads_a_prefix_of_it() -> None:
    policy, utilities = foreseeing(curves(16))
    utilities[::3] = utilities[::3].round()  # some are equal
    scores = policy.weigh(utilities, torch.zeros(len(utilities), 3)).scores
    order = in_order(utilities)
    ranked = scores.gather(1, order)
    assert bool((ranked[:, 1:] < ranked[:, :-1]).all())
    for cut in [ALL, NONE, 0.0, *scores.flatten()[::37].tolist()]:
        choice = above(scores, cut)
        assert torch.equal(choice, first(order, choice.sum(1)))
    previous = torch.zeros_like(scores, dtype=torch.bool)
    for budget in range(17):
        choice = at_most(scores, budget, ALL)
        assert torch.equal(choice, first(order, torch.full((len(scores),), budget)))
        assert not bool((previous & ~choice).any())
        previous = choice


@pytest.mark.parametrize("log_price", [-8.0, -4.0, -2.0, -1.0, -0.3, 0.5])
@pytest.mark.parametrize("patches", [1, 4, 16])
def test_at_a_price_the_greedy_choice_is_the_best_prefix(patches: int, log_price: float) -> None:
    policy, utilities = foreseeing(curves(patches), log_price)
    scores, chances = policy.weigh(utilities, torch.zeros(len(utilities), 3))
    price = math.exp(log_price)
    worth = chances.double() - price * torch.arange(patches + 1) / patches
    counts = greedy(scores).sum(1)
    chosen = worth.gather(1, counts.unsqueeze(1)).squeeze(1)
    assert float((worth.max(1).values - chosen).max()) < 1e-4 * price + 1e-7  # neighbours of equal slopes lie apart
    assert patches == 1 or 0 < int(counts.sum()) < counts.numel() * patches


@pytest.mark.parametrize("patches", [1, 2, 16])
def test_at_the_lowest_price_everything_is_read_and_at_the_highest_nothing(patches: int) -> None:
    for log_price, read in ((-20.0, True), (20.0, False)):
        policy, utilities = foreseeing(curves(patches), log_price)
        scores = policy.weigh(utilities, torch.zeros(len(utilities), 3)).scores
        assert bool((greedy(scores) == read).all())


# --- how many: the critic


def critic_of(patches: int = 16, seed: int = 0) -> Critic:
    torch.manual_seed(seed)
    critic = Critic(len(CLASSES), patches)
    unsettle(critic, seed)
    return critic


def test_as_trained_more_patches_never_make_it_less_hopeful() -> None:
    with torch.no_grad():
        odds = critic_of().raw(drawn(200, 16, spread=3).float(), drawn(200, 3, seed=1, spread=3).float())
    assert odds.shape == (200, 17)
    assert bool((odds[:, 1:] >= odds[:, :-1]).all())
    assert bool(odds.isfinite().all())


def test_it_takes_the_utilities_in_their_order_and_not_where_they_are() -> None:
    critic, utilities, low_logits = critic_of(), drawn(20, 16).float(), drawn(20, 3, seed=1).float()
    with torch.no_grad():
        here = critic(utilities, low_logits)
        assert torch.equal(critic(utilities[:, torch.randperm(16)], low_logits), here)
        torch.testing.assert_close(critic(utilities + 3, low_logits), here, rtol=1e-4, atol=1e-4)
        assert torch.equal(here.float(), critic.raw(utilities, low_logits))  # nothing is set right yet


def came_true(images: int, counts: Tensor, offset: Tensor, scale: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Odds as trained, and outcomes drawn from odds that are shifted and scaled."""
    start = drawn(images, 1, seed=seed, spread=1.5)
    odds = torch.cat([start, start + drawn(images, 16, seed=seed + 1).abs().mul(0.3).cumsum(1)], 1)
    true = offset + scale[0].exp() * start + scale[1].exp() * (odds - start)
    chance = torch.rand(images, len(counts), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return odds, chance < true.sigmoid()[:, counts]


COUNTS = torch.tensor([0, 1, 2, 4, 8, 16])


def test_from_many_images_the_critic_learns_how_far_it_was_off() -> None:
    offset, scale = 0.1 * torch.arange(17) - 0.8, torch.tensor([0.3, -0.4])
    odds, right = came_true(20_000, COUNTS, offset, scale)
    critic = critic_of()
    critic.fit(odds, COUNTS, right)
    assert float((critic.scale - scale).abs().max()) < 0.05
    assert float((critic.offset - offset)[COUNTS].abs().max()) < 0.1
    # Between the numbers that were tried it is a straight line, as the true one is here.
    assert float((critic.offset - offset).abs().max()) < 0.1


def test_where_it_was_right_already_nothing_moves_but_for_chance() -> None:
    odds, right = came_true(20_000, COUNTS, torch.zeros(17), torch.zeros(2))
    critic = critic_of()
    critic.fit(odds, COUNTS, right)
    assert float(critic.scale.abs().max()) < 0.05
    assert float(critic.offset.abs().max()) < 0.1


@pytest.mark.parametrize("outcome", [True, False])
def test_three_images_hardly_move_it_even_where_all_are_right_or_wrong(outcome: bool) -> None:
    """Each image pulls at an offset with a force below 1, and `BELIEF` pulls back."""
    odds, _ = came_true(3, COUNTS, torch.zeros(17), torch.zeros(2))
    critic = critic_of()
    critic.fit(odds, COUNTS, torch.full((3, len(COUNTS)), outcome))
    assert 0 < float(critic.offset.abs().max()) < 3 / BELIEF
    assert float(critic.scale.abs().max()) < 0.5
    assert bool((critic.offset > 0).all()) if outcome else bool((critic.offset < 0).all())


@pytest.mark.parametrize("images", [0, 1, 2, 50])
@pytest.mark.parametrize("outcome", [True, False])
def test_chances_stay_finite_whatever_it_is_fitted_to(images: int, outcome: bool) -> None:
    odds = torch.cat([drawn(images, 1, spread=40), drawn(images, 16, seed=1, spread=40)], 1)
    critic = critic_of()
    critic.fit(odds, COUNTS, torch.full((images, len(COUNTS)), outcome))
    assert bool(critic.offset.isfinite().all()) and bool(critic.scale.isfinite().all())
    with torch.no_grad():
        chances = critic(drawn(5, 16).float(), drawn(5, 3).float()).sigmoid()
    assert bool(((chances >= 0) & (chances <= 1)).all())


def test_a_fit_repeats_to_the_bit_and_forgets_the_one_before() -> None:
    odds, right = came_true(200, COUNTS, torch.full((17,), 0.5), torch.tensor([0.2, 0.2]))
    ours, again = critic_of(), critic_of()
    ours.fit(odds, COUNTS, right)
    again.fit(*reversed_images(odds, ~right))
    again.fit(odds, COUNTS, right)
    assert torch.equal(ours.offset, again.offset) and torch.equal(ours.scale, again.scale)
    assert bool(ours.offset.any()) and bool(ours.scale.any())


def reversed_images(odds: Tensor, right: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return odds.flip(0), COUNTS, right.flip(0)


# --- LR-CNN and HR-CNN at the ends


def advised(start: str) -> RankingModel:
    """A model of Pt with weights as if it had been trained; where shared, with LR-CNN's in the policy."""
    model = tiny_model("pt", tiny_settings(**RANKING, policy_start=start))
    assert isinstance(model, RankingModel)
    if model.shared:
        copy_matching(model.classifier.low, model.policy.utility)
    return model


def passes(module: nn.Module) -> list[int]:
    """Counts the calls of a module, in a list of one number."""
    count = [0]

    def note(*_: object) -> None:
        count[0] += 1

    module.register_forward_hook(note)
    return count


@pytest.mark.parametrize("start", ["lr", "shared"])
def test_without_a_patch_it_is_lr_cnn_to_the_bit_and_hr_cnn_is_not_called(start: str) -> None:
    model = advised(start)
    high = tiny_images(12, seed=0)[0]
    low = torch.nn.functional.avg_pool2d(high.float(), 2)
    called = passes(model.classifier.high)
    with torch.inference_mode():
        episode = model(low, lambda scores: torch.zeros_like(scores, dtype=torch.bool), from_memory(high, Grid(4, 4)))
        assert torch.equal(episode.logits, model.classifier.low(low))
    assert called == [0]
    assert episode.chances is not None and episode.chances.shape == (12, 17)


@pytest.mark.parametrize("start", ["lr", "shared"])
def test_with_every_patch_it_is_the_hr_classifier_to_the_bit(start: str) -> None:
    model = advised(start)
    high = tiny_images(12, seed=0)[0]
    low = torch.nn.functional.avg_pool2d(high.float(), 2)
    with torch.inference_mode():
        episode = model(low, keep_all, from_memory(high, Grid(4, 4)))
        whole = model.classifier.high(gather(high, episode.choice, Grid(4, 4)), low)
    assert torch.equal(episode.logits, whole)
    assert not torch.equal(episode.logits, model.classifier.low(low))


@pytest.mark.parametrize("start", ["lr", "shared"])
def test_with_some_patches_the_logits_are_those_of_the_two_streams(start: str) -> None:
    model = advised(start)
    high = tiny_images(12, seed=0)[0]
    low = torch.nn.functional.avg_pool2d(high.float(), 2)
    choice = torch.rand(12, 16, generator=torch.Generator().manual_seed(0)) < 0.3
    with torch.inference_mode():
        episode = model(low, lambda scores: choice, from_memory(high, Grid(4, 4)))
        assert torch.equal(episode.logits, model.classifier(gather(high, choice, Grid(4, 4)), low))


@pytest.mark.parametrize(("start", "in_policy", "in_classifier"), [("lr", 1, 1), ("shared", 1, 0)])
def test_a_look_and_a_classification_pass_lr_through_each_network_once(
    start: str, in_policy: int, in_classifier: int
) -> None:
    model = advised(start)
    policys = passes(model.policy.utility.network.stem[0])  # type: ignore[index, union-attr]
    lows = passes(model.classifier.low.network.stem[0])  # type: ignore[index, union-attr]
    high = tiny_images(4, seed=0)[0]
    with torch.inference_mode():
        model(torch.nn.functional.avg_pool2d(high.float(), 2), keep_all, from_memory(high, Grid(4, 4)))
    assert (policys, lows) == ([in_policy], [in_classifier])


def gradients(start: str, chance: Callable[[Tensor, Tensor, Tensor], Tensor]) -> dict[str, Tensor]:
    """Of a step's loss with another log-probability of the order, where they are not 0."""
    model = advised(start)
    task = RankingTask(
        "pt",
        model,
        loader_of(tiny_settings(**RANKING, policy_start=start), FIT, VAL),
        learning_of(tiny_settings(**RANKING, policy_start=start)),
    )
    batch = next(iter(task.batches(0, 0)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking_stages, "log_probability", chance)
        torch.manual_seed(0)
        loss, _ = task.loss(batch, 0.5)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}


@pytest.mark.parametrize("start", ["lr", "shared"])
def test_the_critic_learns_from_what_came_true_alone_and_the_ranking_from_its_own_loss_alone(start: str) -> None:
    without = gradients(start, lambda u, o, k: u.sum(1) * 0)
    assert without and all(name.startswith("policy.critic.") for name in without)
    both = gradients(start, log_probability)
    assert all(torch.equal(both[name], without[name]) for name in without)
    others = both.keys() - without.keys()
    assert "policy.utility.head.weight" in others
    assert all(name.startswith("policy.utility.") for name in others)
    assert any(name.startswith("policy.utility.network.") for name in others) is (start == "lr")


def test_a_shared_network_stays_as_lr_cnn_through_training_and_the_rest_of_the_policy_moves(tmp_path: Path) -> None:
    settings = tiny_settings(**RANKING, policy_start="shared", epochs_patches=0, epochs_ft1=0, insist=True)
    run = run_stages(tmp_path, settings)
    low = tensors_of(run, "lr", "network.")
    built = build_stage("pt", config_of(settings)).state_dict()
    for stage in ("pt", "ft2"):
        model = run.load(stage)[0]
        assert isinstance(model, RankingModel) and model.shared
        assert isinstance(model.classifier, TwoStream)
        assert same_bits(tensors_of(run, stage, "policy.utility.network."), low)
        assert same_bits(tensors_of(run, stage, "classifier.low.network."), low)
        trained = tensors_of(run, stage)
        for name in ("policy.utility.head.weight", "policy.critic.start.0.weight", "policy.log_price"):
            assert not torch.equal(trained[name], built[name]), name


def test_setting_right_takes_away_what_the_critic_was_off_on_images_it_was_not_fitted_to() -> None:
    model = advised("lr")
    utilities, low_logits, counts = drawn(500, 16).float(), drawn(500, 3, seed=1).float(), torch.arange(17)
    with torch.no_grad():
        odds = model.policy.critic.raw(utilities, low_logits).double()
    draw = torch.rand(500, 17, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    off = draw < (odds / 2 - 1).sigmoid()
    before = calibration_error(odds.sigmoid().flatten(), off.flatten())
    # The HR stream alone decides; its class is the right one, 0, where the draw says so.
    high = torch.stack([off.float(), 0.5 * torch.ones(500, 17), torch.zeros(500, 17)], 2)
    outputs = Outputs(utilities, torch.zeros_like(low_logits), counts, high, torch.zeros(500, dtype=torch.int64))
    assert torch.equal(outputs.right(model.classifier)[:, 1:], off[:, 1:])
    assert calibrate_critic(model, outputs) < 0.02 < 0.1 < before
