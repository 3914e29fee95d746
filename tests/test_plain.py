"""Plain strategies that need no learnt policy, by hand counts."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from patchdrop.classify.low import LowCNN
from patchdrop.episode import PatchDrop
from patchdrop.errors import UsageError
from patchdrop.evaluation import plain
from patchdrop.evaluation.outcome import Outcome, outcome_of
from patchdrop.evaluation.plain import (
    activation_choice,
    candidates,
    cascade,
    cascade_outcome,
    fixed_best,
    given,
    least_certain_first,
    patch_worth,
    scores_on,
    top_of,
)
from patchdrop.grid import Grid
from patchdrop.models.compute import Compute
from patchdrop.networks.build import Normalise
from patchdrop.packed import Packed
from patchdrop.policy.baselines import FixedScores
from patchdrop.policy.choice import random_patches, top
from patchdrop.policy.saliency import activation_maps, detail
from tiny import tiny_settings, tiny_split, unsettle

CPU = Compute(torch.device("cpu"))
AS_IS = Normalise(torch.zeros(1), torch.ones(1))


def logits_of(*probabilities: float) -> Tensor:
    """Class logits of two classes whose best one has each of these probabilities."""
    best = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([best.log(), (1 - best).log()], 1)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# When: LR-CNN's uncertainty


def test_the_least_certain_image_comes_first_and_of_equally_certain_ones_the_first() -> None:
    assert least_certain_first(logits_of(0.9, 0.6, 0.8, 0.6, 0.9, 0.55)).tolist() == [5, 1, 3, 2, 0, 4]


def test_certainty_is_of_the_best_class_whichever_it_is_and_of_its_probability_not_its_logit() -> None:
    by_probability = torch.tensor([[9.0, 8.0, 0.0], [0.0, 0.0, 3.0], [-5.0, -1.0, -5.0]])
    assert least_certain_first(by_probability).tolist() == [0, 1, 2]


def test_images_whose_probabilities_round_to_one_are_still_told_apart() -> None:
    sure = torch.tensor([[60.0, 0.0], [40.0, 0.0], [50.0, 0.0]])
    assert sure.softmax(1)[:, 0].tolist() == [1, 1, 1]
    assert least_certain_first(sure).tolist() == [1, 2, 0]


def test_a_thousand_equal_images_keep_their_order() -> None:
    assert least_certain_first(torch.zeros(1000, 3)).tolist() == list(range(1000))


# Cascade


def test_a_cascade_reads_all_of_the_least_certain_images_and_nothing_of_the_others() -> None:
    choice = cascade(logits_of(0.9, 0.6, 0.8, 0.6, 0.95), 1.6, 4)
    assert choice.dtype == torch.bool
    assert choice.long().tolist() == [[0] * 4, [1] * 4, [0] * 4, [1] * 4, [0] * 4]


@pytest.mark.parametrize("mean", [0.0, 0.01, 1.0, 4.46, 7.04, 15.99, 16.0])
def test_a_cascade_matches_the_mean_as_nearly_as_whole_images_allow(mean: float) -> None:
    n, patches = 321, 16
    found = float(cascade(torch.randn(n, 5, generator=seeded()), mean, patches).sum(1).double().mean())
    nearest = min(abs(whole * patches / n - mean) for whole in range(n + 1))
    assert abs(found - mean) == pytest.approx(nearest, abs=1e-12)


@pytest.mark.parametrize("mean", [-0.1, 16.1])
def test_a_mean_that_no_choice_can_have_is_refused(mean: float) -> None:
    with pytest.raises(UsageError, match="use 0 to 16"):
        cascade(torch.zeros(3, 2), mean, 16)
    with pytest.raises(UsageError, match="use 0 to 16"):
        top_of(torch.arange(16), mean, 3, seeded())


def outcomes(n: int, patches: int = 4) -> tuple[Outcome, Outcome]:
    target = torch.arange(n) % 3
    low, high = torch.randn(n, 3, generator=seeded(1)), torch.randn(n, 3, generator=seeded(2))
    none = torch.zeros(n, patches, dtype=torch.bool)
    return Outcome(none.float(), none, low, target), Outcome(none.float(), ~none, high, target)


def test_a_cascades_word_is_hr_cnns_where_it_read_and_lr_cnns_elsewhere() -> None:
    low, high = outcomes(9)
    choice = cascade(low.logits, 4 * 4 / 9, 4)
    read = choice.any(1)
    found = cascade_outcome(low, high, choice)
    assert int(read.sum()) == 4
    assert torch.equal(found.logits[read], high.logits[read])
    assert torch.equal(found.logits[~read], low.logits[~read])
    assert torch.equal(found.choice, choice)
    assert torch.equal(found.target, low.target)
    assert int(found.right.sum()) == int(high.right[read].sum()) + int(low.right[~read].sum())


def test_a_cascade_that_reads_all_is_hr_cnn_and_one_that_reads_none_lr_cnn() -> None:
    low, high = outcomes(9)
    assert torch.equal(cascade_outcome(low, high, cascade(low.logits, 4, 4)).logits, high.logits)
    assert torch.equal(cascade_outcome(low, high, cascade(low.logits, 0, 4)).logits, low.logits)


def test_a_cascades_scores_rank_images_as_their_doubts_do() -> None:
    low, high = outcomes(9)
    scores = cascade_outcome(low, high, cascade(low.logits, 2, 4)).scores
    assert scores.shape == (9, 4)
    assert torch.equal(scores.amin(1), scores.amax(1))
    assert torch.equal(scores[:, 0].argsort(descending=True), least_certain_first(low.logits))


def test_hr_cnn_does_not_count_for_images_read_in_part_nor_for_another_split() -> None:
    low, high = outcomes(3)
    some = torch.tensor([[True] * 4, [True, False, False, False], [False] * 4])
    with pytest.raises(UsageError, match="all patches of an image or none"):
        cascade_outcome(low, high, some)
    other = Outcome(high.scores, high.choice, high.logits, high.target.flip(0))
    with pytest.raises(UsageError, match="same split"):
        cascade_outcome(low, other, high.choice)


# The best fixed mask


@pytest.mark.parametrize("rounds", [3, 8])
def test_worths_that_add_up_are_found_again_whatever_the_images_chances_are(rounds: int) -> None:
    worth = torch.tensor([0.04, -0.01, 0.0, 0.1, 0.02, 0.03], dtype=torch.float64)
    masks = torch.rand(rounds, 50, 6, generator=seeded()) < 0.4
    of_image = torch.rand(50, generator=seeded(1), dtype=torch.float64) / 2
    found = patch_worth(masks, of_image + masks.double() @ worth)
    torch.testing.assert_close(found, worth, rtol=0, atol=1e-12)


@pytest.mark.parametrize("rounds", [3, 8])
def test_masks_of_one_size_give_the_same_worths_around_a_mean_of_0(rounds: int) -> None:
    worth = torch.tensor([0.04, -0.01, 0.0, 0.1, 0.02, 0.03], dtype=torch.float64)
    masks = torch.stack([random_patches(torch.zeros(50, 6), 2, seeded(i)) for i in range(rounds)])
    found = patch_worth(masks, masks.double() @ worth)
    torch.testing.assert_close(found, worth - worth.mean(), rtol=0, atol=1e-12)


def test_an_easy_image_does_not_lend_its_chances_to_the_patches_that_were_tried_on_it() -> None:
    masks = torch.tensor([[[1, 0], [0, 1]], [[1, 0], [0, 0]]], dtype=torch.bool)
    assert patch_worth(masks, torch.tensor([[0.9, 0.3], [0.9, 0.2]])).tolist() == pytest.approx([0, 0.1], abs=1e-6)


def test_worths_are_0_where_all_masks_are_the_same() -> None:
    assert patch_worth(torch.ones(4, 5, 3, dtype=torch.bool), torch.rand(4, 5)).tolist() == [0, 0, 0]


class HearsChoice(nn.Module):
    """A classifier that knows no more than which patches were read: patch 2 adds 4 to class 0, patch 1 adds 2."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: list[Tensor] = []

    def forward(self, packed: Packed, low: Tensor) -> Tensor:
        bits = torch.zeros(packed.batch, 4)
        bits[packed.image, packed.patch] = 1
        self.outputs.append(bits)
        return bits @ torch.tensor([[0.0, 0, 0], [2, 0, 0], [4, 0, 0], [0, 0, 0]])


def hearing_model() -> tuple[PatchDrop, list[Tensor]]:
    """A model with that classifier, and where the choices come that it is given."""
    classifier = HearsChoice()
    return PatchDrop(FixedScores(torch.zeros(4)), classifier), classifier.outputs


def test_the_best_fixed_mask_is_found_on_a_split_and_repeats_with_its_generator() -> None:
    model, outputs = hearing_model()
    shape = tiny_settings(grid="2").shape
    split = tiny_split(150, 0)
    split.source.targets.zero_()
    order = fixed_best(model, shape, split, 1.5, seeded(3), CPU)
    assert order[:2].tolist() == [2, 1]
    assert sorted(order.tolist()) == [0, 1, 2, 3]
    tried = torch.cat(outputs).view(plain.ROUNDS, 150, 4)
    assert set(tried.sum(2).flatten().tolist()) == {1, 2}
    assert len(torch.unique(tried.flatten(1), dim=0)) == plain.ROUNDS
    assert torch.equal(order, fixed_best(model, shape, split, 1.5, seeded(3), CPU))
    assert torch.equal(torch.cat(outputs).view(2, plain.ROUNDS, 150, 4)[1], tried)
    with pytest.raises(UsageError, match="use 0 to 4"):
        fixed_best(model, shape, split, 4.5, seeded(3), CPU)


def test_patches_that_are_worth_the_same_keep_their_order() -> None:
    model, _ = hearing_model()
    shape = tiny_settings(grid="2").shape
    assert fixed_best(model, shape, tiny_split(6, 0), 4, seeded(), CPU).tolist() == [0, 1, 2, 3]


def test_the_top_of_an_order_is_the_same_in_every_image_but_for_one_patch_more() -> None:
    order = torch.tensor([2, 0, 3, 1])
    assert top_of(order, 2, 3, seeded()).long().tolist() == [[1, 0, 1, 0]] * 3
    assert not bool(top_of(order, 0, 3, seeded()).any())
    assert bool(top_of(order, 4, 3, seeded()).all())
    between = top_of(order, 2.25, 20_000, seeded())
    assert {tuple(row) for row in between.long().tolist()} == {(1, 0, 1, 0), (1, 0, 1, 1)}
    assert abs(float(between.sum(1).double().mean()) - 2.25) <= 4 * (0.1875 / 20_000) ** 0.5
    assert torch.equal(between, top_of(order, 2.25, 20_000, seeded()))


# Where LR-CNN sees its class


class Tiny(nn.Module):
    """Two features of each pixel, its value and 255 less it; class 0 is worth 3 of the one, class 1 of the other."""

    num_features = 2

    def __init__(self, pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.mix = nn.Conv2d(1, 2, 1)
        self.fc = nn.Linear(2, 2)
        with torch.no_grad():
            self.mix.weight.copy_(torch.tensor([1.0, -1.0]).view(2, 1, 1, 1))
            self.mix.bias.copy_(torch.tensor([0.0, 255.0]))  # type: ignore[union-attr]
            self.fc.weight.copy_(torch.tensor([[3.0, -2.0], [-2.0, 3.0]]))
            self.fc.bias.zero_()

    def forward_features(self, images: Tensor) -> Tensor:
        found: Tensor = self.mix(images)
        return found

    def forward_head(self, features: Tensor) -> Tensor:
        pooled = features.amax((2, 3)) if self.pool == "max" else features.mean((2, 3))
        logits: Tensor = self.fc(pooled)
        return logits


def tiny_cnn(pool: str) -> LowCNN:
    low_cnn = LowCNN("resnet8-w4", 2, AS_IS, channels=1)
    low_cnn.network = Tiny(pool)
    return low_cnn.eval()


def planted() -> Tensor:
    """Mostly bright with one darker pixel at (3, 1), and mostly dark with one brighter pixel at (0, 2): uint8."""
    low = torch.stack([torch.full((1, 4, 4), 240), torch.full((1, 4, 4), 10)]).to(torch.uint8)
    low[0, 0, 3, 1], low[1, 0, 0, 2] = 200, 60
    return low


def test_under_a_mean_pool_the_map_is_each_pixels_share_of_its_class() -> None:
    found = activation_maps(tiny_cnn("mean"), planted(), Grid(2, 2))
    share = [240.0, 240.0, (3 * 240 + 200) / 4, 240.0], [245.0, (3 * 245 + 195) / 4, 245.0, 245.0]
    torch.testing.assert_close(found, torch.tensor(share) * 3 / 16)


def test_under_a_max_pool_the_map_is_where_the_feature_of_the_class_peaks() -> None:
    low = torch.zeros(2, 1, 4, 4, dtype=torch.uint8)
    low[0] += 250  # class 0 peaks at (3, 1); class 1's feature is 5 at most
    low[0, 0, 3, 1] = 255
    low[1] += 10  # class 1 peaks at (0, 2)
    low[1, 0, 0, 2] = 0
    found = activation_maps(tiny_cnn("max"), low, Grid(2, 2))
    assert found.tolist() == [[0, 0, 3 * 255 / 4, 0], [0, 3 * 255 / 4, 0, 0]]


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_a_planted_feature_is_found_in_inference_mode_and_no_gradient_is_left(pool: str) -> None:
    low_cnn = tiny_cnn(pool)
    low = torch.zeros(1, 1, 8, 8, dtype=torch.uint8)
    low[0, 0, 4:6, 2:4] = 255
    with torch.no_grad():
        low_cnn.network.fc.bias.copy_(torch.tensor([2000.0, 0.0]))  # class 0 it is, of which little is seen
    outside = activation_maps(low_cnn, low, Grid(4, 4))
    with torch.inference_mode():
        inside = activation_maps(low_cnn, low.clone(), Grid(4, 4))
        assert torch.is_inference_mode_enabled()
    with torch.no_grad():
        without_gradients = activation_maps(low_cnn, low, Grid(4, 4))
    assert torch.equal(inside, outside) and torch.equal(without_gradients, outside)
    assert outside.argmax(1).tolist() == [9]
    assert int((outside > 0).sum()) == 1
    assert not outside.requires_grad and not inside.requires_grad
    assert all(weight.grad is None and weight.requires_grad for weight in low_cnn.parameters())


def test_the_map_is_of_lr_as_lr_cnn_sees_it_enlarged_and_normalised() -> None:
    low_cnn, low = tiny_cnn("mean"), planted()
    larger = nn.functional.interpolate(low.float(), scale_factor=2, mode="bilinear")
    by_itself = activation_maps(low_cnn, (larger - 8) / 2, Grid(4, 4))
    low_cnn.enlarge, low_cnn.normalise = 2, Normalise(torch.full((1,), 8.0), torch.full((1,), 2.0))
    torch.testing.assert_close(activation_maps(low_cnn, low, Grid(4, 4)), by_itself)


@pytest.mark.parametrize(
    ("network", "enlarge"),
    [("resnet8-w4", 1), ("resnet8-w4-d-max", 2), ("resnet18.a1_in1k", 1), ("mobilenetv3_small_050", 1)],
)
def test_maps_of_real_networks_are_finite_differ_between_images_and_leave_the_network_as_it_was(
    network: str, enlarge: int
) -> None:
    torch.manual_seed(0)
    low_cnn = unsettle(LowCNN(network, 3, Normalise(torch.zeros(3), torch.full((3,), 50.0)), enlarge=enlarge), 0).eval()
    before = {name: tensor.clone() for name, tensor in low_cnn.state_dict().items()}
    low = torch.randint(0, 256, (5, 3, 70, 64), dtype=torch.uint8, generator=seeded())
    with torch.inference_mode():
        found = activation_maps(low_cnn, low.clone(), Grid(2, 2))
    assert found.shape == (5, 4)
    assert bool(found.isfinite().all()) and bool((found >= 0).all()) and bool((found > 0).any(1).all())
    assert len(torch.unique(found, dim=0)) == 5
    torch.testing.assert_close(activation_maps(low_cnn, low[3:4], Grid(2, 2)), found[3:4], rtol=1e-3, atol=1e-5)
    assert all(torch.equal(tensor, before[name]) for name, tensor in low_cnn.state_dict().items())
    assert all(weight.grad is None for weight in low_cnn.parameters())


def test_the_least_certain_images_read_their_highest_patches() -> None:
    maps = torch.tensor([[0.0, 3, 1, 2], [5, 5, 5, 5], [9, 8, 7, 6], [0, 0, 1, 0]])
    choice = activation_choice(maps, logits_of(0.7, 0.6, 0.9, 0.8), 1.5, 2)
    assert choice.long().tolist() == [[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 0, 1, 0]]


@pytest.mark.parametrize("each", [4, 8, 16])
@pytest.mark.parametrize("mean", [0.0, 1.0, 3.97, 4.0])
def test_an_activation_choice_matches_the_mean_as_nearly_as_whole_images_allow(mean: float, each: int) -> None:
    n = 321
    low_logits, maps = torch.randn(n, 5, generator=seeded()), torch.rand(n, 16, generator=seeded(1))
    counts = activation_choice(maps, low_logits, mean, each).sum(1)
    assert set(counts.tolist()) <= {0, each}
    assert abs(float(counts.double().mean()) - mean) <= each / n / 2 + 1e-12


def test_an_activation_choice_of_all_patches_is_the_cascade() -> None:
    low_logits, maps = torch.randn(50, 5, generator=seeded()), torch.rand(50, 16, generator=seeded(1))
    assert torch.equal(activation_choice(maps, low_logits, 5.2, 16), cascade(low_logits, 5.2, 16))


@pytest.mark.parametrize(("mean", "each"), [(5.0, 4), (0.0, 0), (3.0, 17)])
def test_too_few_or_too_many_patches_an_image_are_refused(mean: float, each: int) -> None:
    with pytest.raises(UsageError, match=f"use {max(1, mean):g} to 16"):
        activation_choice(torch.zeros(3, 16), torch.zeros(3, 2), mean, each)


@pytest.mark.parametrize(
    ("patches", "mean", "expected"),
    [(16, 0, (4, 8, 16)), (16, 4, (4, 8, 16)), (16, 4.01, (8, 16)), (16, 16, (16,)), (9, 2.9, (3, 5, 9)), (1, 0, (1,))],
)
def test_candidates_are_a_quarter_a_half_and_all_of_the_patches_that_can_meet_the_mean(
    patches: int, mean: float, expected: tuple[int, ...]
) -> None:
    assert candidates(patches, mean) == expected


# Where LR varies


def test_detail_is_the_variance_of_the_pixels_at_each_patchs_place() -> None:
    low = torch.tensor([[[[0, 4, 7, 7], [4, 0, 7, 7], [10, 10, 0, 0], [20, 20, 0, 8]]]], dtype=torch.uint8)
    assert detail(low, Grid(2, 2)).tolist() == [[4, 0, 25, 12]]


def test_detail_is_averaged_over_the_channels() -> None:
    low = torch.tensor([[[[0, 4], [4, 0]], [[0, 8], [0, 8]], [[9, 9], [9, 9]]]], dtype=torch.uint8)
    assert detail(low, Grid(1, 1)).tolist() == [[pytest.approx((4 + 16 + 0) / 3)]]


def test_detail_of_sides_that_are_no_multiples_of_the_grid_is_of_each_patchs_own_pixels() -> None:
    low = torch.zeros(1, 1, 2, 5)  # columns 0 and 1 are of the first patch, 2 to 4 of the second
    low[..., 1], low[..., 2] = 6.0, 9.0
    assert detail(low, Grid(1, 2)).tolist() == [[9, 18]]


def test_lr_with_a_pixel_a_patch_is_enlarged_before_its_detail_is_taken() -> None:
    low = torch.tensor([[[[0, 0, 0, 80]]]], dtype=torch.uint8)
    # Two pixels a patch, at a quarter and three quarters: 0 0, 0 0, 0 20, 60 80.
    assert detail(low, Grid(1, 4)).tolist() == [[0, 0, 100, 100]]
    assert detail(low.mT, Grid(4, 1)).tolist() == [[0, 0, 100, 100]]


def test_even_images_have_no_detail_and_ties_go_to_the_first_patches() -> None:
    flat = detail(torch.full((2, 3, 3, 3), 77, dtype=torch.uint8), Grid(4, 4))
    assert flat.tolist() == [[0] * 16] * 2
    assert top(flat, 3).long().tolist() == [[1, 1, 1] + [0] * 13] * 2


# On a split


def test_scores_and_choices_go_to_their_own_images_across_batches() -> None:
    shape = tiny_settings(grid="2").shape
    split = tiny_split(150, 0)

    def score(low: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return detail(low, Grid(2, 2))

    scores = scores_on(split, shape.low, score, CPU)
    lows = torch.stack([split.source.high[i] for i in range(150)]).float()  # type: ignore[attr-defined]
    by_hand = detail(nn.functional.adaptive_avg_pool2d(lows, 8).round(), Grid(2, 2))
    assert torch.equal(scores, by_hand)
    choice = top(scores, 1)
    model, _ = hearing_model()
    assert torch.equal(outcome_of(model, shape, split, given(choice), CPU).choice, choice)
