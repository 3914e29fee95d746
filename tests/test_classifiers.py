"""What a classifier may see: the chosen patches, LR, and nothing else. Equal means equal to the bit."""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from masks import pixel_mask
from patchdrop.classify.high import Spec
from patchdrop.classify.low import LowCNN
from patchdrop.classify.masked_cnn import MaskedCNN
from patchdrop.classify.two_stream import CAP, TwoStream
from patchdrop.data.low import area_average
from patchdrop.episode import PatchDrop, play
from patchdrop.grid import Grid, Shape
from patchdrop.networks.build import Normalise
from patchdrop.packed import Packed, gather
from patchdrop.policy.choice import greedy, keep_all
from patchdrop.policy.network import Policy
from patchdrop.read.source import from_memory
from tiny import NETWORK, unsettle

CLASSES = 5
GEOMETRIES = [(Grid(4, 4), (32, 32), (8, 8)), (Grid(3, 4), (20, 23), (7, 9))]
FUSIONS = ["share", "learned"]
FILLS = ["mean", "low"]


class Setup(NamedTuple):
    """Networks, and a batch of 32 images with choices of every size."""

    high: MaskedCNN
    low: LowCNN
    grid: Grid
    images: Tensor
    lows: Tensor
    choice: Tensor


def set_up(grid: Grid, size: tuple[int, int], low_size: tuple[int, int], fill: str = "mean") -> Setup:
    torch.manual_seed(0)
    normalise = Normalise(torch.tensor([100.0, 120.0, 90.0]), torch.tensor([50.0, 40.0, 60.0]))
    high = MaskedCNN(Spec(NETWORK, CLASSES, Shape(size, low_size, grid, 3), normalise, fill))
    low = LowCNN(NETWORK, CLASSES, normalise)
    images = torch.randint(0, 256, (32, 3, *size), dtype=torch.uint8)
    counts = torch.arange(32).unsqueeze(1) % (grid.patches + 1)
    choice = torch.rand(32, grid.patches).argsort(1).argsort(1) < counts
    unsettle(high, 1)
    unsettle(low, 2)
    return Setup(high, low, grid, images, area_average(images, low_size), choice)


def two_stream(setup: Setup, fusion: str) -> TwoStream:
    return TwoStream(setup.high, setup.low, fusion).eval()


def packed_of(setup: Setup, choice: Tensor) -> Packed:
    return gather(setup.images, choice, setup.grid)


class Calls:
    """Counts the calls of a module, and the images of each."""

    def __init__(self, module: nn.Module) -> None:
        self.images: list[int] = []
        module.register_forward_hook(lambda _, inputs, __: self.images.append(len(inputs[0])))


geometries = pytest.mark.parametrize("geometry", GEOMETRIES, ids=["divisible", "odd"])


# --- the two identities


@geometries
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("fill", FILLS)
@torch.inference_mode()
def test_every_patch_is_the_hr_classifier(geometry: tuple, fusion: str, fill: str) -> None:
    setup = set_up(*geometry, fill)
    packed = packed_of(setup, torch.ones_like(setup.choice))
    alone = setup.high(packed, setup.lows)
    assert torch.equal(two_stream(setup, fusion)(packed, setup.lows), alone)
    assert not torch.equal(alone, setup.low(setup.lows))


@geometries
@torch.inference_mode()
def test_every_patch_is_the_plain_network_on_the_whole_normalised_image(geometry: tuple) -> None:
    setup = set_up(*geometry)
    packed = packed_of(setup, torch.ones_like(setup.choice))
    whole = setup.high.normalise(setup.images).contiguous(memory_format=torch.channels_last)
    assert torch.equal(setup.high(packed, setup.lows), setup.high.network(whole))


@geometries
@pytest.mark.parametrize("fusion", FUSIONS)
@torch.inference_mode()
def test_no_patch_is_the_lr_classifier_and_the_hr_network_is_not_called(geometry: tuple, fusion: str) -> None:
    setup = set_up(*geometry)
    calls = Calls(setup.high.network)
    packed = packed_of(setup, torch.zeros_like(setup.choice))
    assert packed.pixels.numel() == 0
    assert torch.equal(two_stream(setup, fusion)(packed, setup.lows), setup.low(setup.lows))
    assert calls.images == []


@pytest.mark.parametrize("fusion", FUSIONS)
@torch.inference_mode()
def test_in_a_mixed_batch_only_zoomed_images_reach_the_hr_network_and_the_others_keep_lr(
    fusion: str,
) -> None:
    setup = set_up(*GEOMETRIES[0])
    calls = Calls(setup.high.network)
    none = setup.choice.sum(1) == 0
    assert 0 < int(none.sum()) < 32
    found = two_stream(setup, fusion)(packed_of(setup, setup.choice), setup.lows)
    lr = setup.low(setup.lows)
    assert calls.images == [int((~none).sum())]
    assert torch.equal(found[none], lr[none])
    assert not bool((found[~none] == lr[~none]).all(1).any())


@torch.inference_mode()
def test_an_episode_that_keeps_none_reads_nothing_and_one_that_keeps_all_reads_hr() -> None:
    setup = set_up(*GEOMETRIES[0])
    classifier = two_stream(setup, "share")
    policy = Policy(NETWORK, setup.grid, setup.lows.shape[-2:], setup.low.normalise).eval()
    model, read = PatchDrop(policy, classifier), from_memory(setup.images, setup.grid)
    nothing = play(model.look, lambda scores: ~keep_all(scores), read, setup.lows)
    assert nothing.packed.pixels.shape[0] == 0
    assert torch.equal(nothing.logits, setup.low(setup.lows))
    everything = play(model.look, keep_all, read, setup.lows)
    assert torch.equal(everything.logits, setup.high(everything.packed, setup.lows))


# --- dropped pixels cannot matter


@geometries
@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("classifier", ["masked", *FUSIONS])
@torch.inference_mode()
def test_dropped_pixels_cannot_matter(geometry: tuple, fill: str, classifier: str) -> None:
    setup = set_up(*geometry, fill)
    model: nn.Module = setup.high if classifier == "masked" else two_stream(setup, classifier)
    height, width = setup.images.shape[2:]
    mask = pixel_mask(setup.choice, setup.grid, height, width).unsqueeze(1)
    expected = model(packed_of(setup, setup.choice), setup.lows)
    assert bool(expected.isfinite().all())
    strangers = [
        torch.where(mask, setup.images.float(), torch.nan),
        torch.where(mask, setup.images.float(), torch.inf),
        torch.where(mask, setup.images, setup.images.flip(0)),
    ]
    for images in strangers:
        assert torch.equal(model(gather(images, setup.choice, setup.grid), setup.lows), expected)


@torch.inference_mode()
def test_a_whole_episode_does_not_depend_on_dropped_pixels() -> None:
    setup = set_up(*GEOMETRIES[0])
    policy = unsettle(Policy(NETWORK, setup.grid, setup.lows.shape[-2:], setup.low.normalise), 3)
    model = PatchDrop(policy, two_stream(setup, "share"))
    plain = model(setup.lows, greedy, from_memory(setup.images, setup.grid))
    assert 0 < int(plain.choice.sum()) < plain.choice.numel()
    mask = pixel_mask(plain.choice, setup.grid, 32, 32).unsqueeze(1)
    holes = torch.where(mask, setup.images.float(), torch.nan)
    holed = model(setup.lows, greedy, from_memory(holes, setup.grid))
    assert torch.equal(holed.logits, plain.logits)


@geometries
@torch.inference_mode()
def test_the_canvas_is_the_normalised_image_masked(geometry: tuple) -> None:
    setup = set_up(*geometry)
    height, width = setup.images.shape[2:]
    mask = pixel_mask(setup.choice, setup.grid, height, width).unsqueeze(1)
    normalised = setup.high.normalise(setup.images)
    canvas = setup.high.canvas(packed_of(setup, setup.choice), setup.lows)
    assert torch.equal(canvas, torch.where(mask, normalised, torch.zeros(())))


@geometries
@torch.inference_mode()
def test_with_fill_low_unread_patches_hold_the_enlarged_lr_image(geometry: tuple) -> None:
    setup = set_up(*geometry, "low")
    height, width = setup.images.shape[2:]
    mask = pixel_mask(setup.choice, setup.grid, height, width).unsqueeze(1)
    enlarged = torch.nn.functional.interpolate(
        setup.high.normalise(setup.lows), (height, width), mode="bilinear", align_corners=False
    )
    canvas = setup.high.canvas(packed_of(setup, setup.choice), setup.lows)
    assert torch.equal(canvas, torch.where(mask, setup.high.normalise(setup.images), enlarged))


# --- the batch does not matter


@geometries
@pytest.mark.parametrize("classifier", ["masked", *FUSIONS])
@torch.inference_mode()
def test_neither_the_order_of_a_batch_nor_its_size_matters(geometry: tuple, classifier: str) -> None:
    setup = set_up(*geometry)
    model: nn.Module = setup.high if classifier == "masked" else two_stream(setup, classifier)
    whole = model(packed_of(setup, setup.choice), setup.lows)
    order = torch.randperm(32, generator=torch.Generator().manual_seed(5))
    mixed = gather(setup.images[order], setup.choice[order], setup.grid)
    reordered = torch.empty_like(whole)
    reordered[order] = model(mixed, setup.lows[order])
    singles = torch.cat(
        [
            model(gather(setup.images[i : i + 1], setup.choice[i : i + 1], setup.grid), setup.lows[i : i + 1])
            for i in range(32)
        ]
    )
    for other in (reordered, singles):
        torch.testing.assert_close(other, whole, rtol=1e-5, atol=1e-5)
        assert torch.equal(other.argmax(1), whole.argmax(1))
    assert len(whole.argmax(1).unique()) > 1


@torch.inference_mode()
def test_the_policy_does_not_look_at_the_rest_of_the_batch() -> None:
    setup = set_up(*GEOMETRIES[0])
    for head in ("spatial", "global"):
        policy = unsettle(Policy(NETWORK, setup.grid, setup.lows.shape[-2:], setup.low.normalise, head=head), 3)
        whole = policy(setup.lows)
        singles = torch.cat([policy(setup.lows[i : i + 1]) for i in range(32)])
        torch.testing.assert_close(singles, whole, rtol=1e-5, atol=1e-5)
        assert len(torch.unique(greedy(whole), dim=0)) > 1


# --- the weights of the two streams


class Constant(nn.Module):
    """A network that says the same of every image."""

    def __init__(self, value: float) -> None:
        super().__init__()
        self.value = value

    def forward(self, images: Tensor) -> Tensor:
        return torch.full((len(images), CLASSES), self.value)


def weights_by_s(setup: Setup, fusion: str, of: str) -> list[float]:
    """The weight of one stream at S = 0 .. P, read off what the classifier gives."""
    model = two_stream(setup, fusion)
    model.high.network = Constant(1.0 if of == "high" else 0.0)
    model.low.network = Constant(0.0 if of == "high" else 1.0)
    patches = setup.grid.patches
    choice = torch.arange(patches).unsqueeze(0) < torch.arange(patches + 1).unsqueeze(1)
    images = torch.zeros(patches + 1, 3, 32, 32, dtype=torch.uint8)
    with torch.inference_mode():
        found = model(gather(images, choice, setup.grid), torch.zeros(patches + 1, 3, 8, 8))
    return found[:, 0].tolist()


@pytest.mark.parametrize("fusion", FUSIONS)
def test_the_weights_sum_to_one_and_rise_with_s(fusion: str) -> None:
    high = weights_by_s(set_up(*GEOMETRIES[0]), fusion, "high")
    low = weights_by_s(set_up(*GEOMETRIES[0]), fusion, "low")
    assert [h + w for h, w in zip(high, low, strict=True)] == pytest.approx([1.0] * 17, abs=1e-7)
    assert all(a < b for a, b in pairwise(high))
    assert (high[0], high[-1]) == (0.0, 1.0)


def test_the_papers_weight_is_s_over_p() -> None:
    assert weights_by_s(set_up(*GEOMETRIES[0]), "share", "high") == [s / 16 for s in range(17)]


def test_the_learned_weight_starts_at_a_power_of_3_and_is_the_papers_at_1() -> None:
    setup = set_up(*GEOMETRIES[0])
    found = weights_by_s(setup, "learned", "high")
    assert found == pytest.approx([1 - (1 - s / 16) ** 3 for s in range(17)], abs=1e-6)
    model = two_stream(setup, "learned")
    assert model.log_power is not None
    with torch.no_grad():
        model.log_power.zero_()
        weight = model.weight(packed_of(setup, setup.choice))
    torch.testing.assert_close(weight, setup.choice.float().mean(1), rtol=0, atol=1e-6)


def test_a_capped_weight_leaves_low_its_say_where_every_patch_is_read() -> None:
    setup = set_up(*GEOMETRIES[0])
    found = weights_by_s(setup, "capped", "high")
    assert found[0] == 0
    assert found == pytest.approx([CAP * (1 - (1 - s / 16) ** 3) for s in range(17)], abs=1e-6)
    model = two_stream(setup, "capped")
    assert model.cap is not None
    model(packed_of(setup, setup.choice), setup.lows).square().sum().backward()
    assert model.cap.grad is not None
    assert float(model.cap.grad) != 0


def test_the_learned_power_gets_a_finite_gradient_at_every_s() -> None:
    setup = set_up(*GEOMETRIES[0])
    model = two_stream(setup, "learned")
    assert model.log_power is not None
    model(packed_of(setup, setup.choice), setup.lows).square().sum().backward()
    assert model.log_power.grad is not None
    assert bool(model.log_power.grad.isfinite())
    assert float(model.log_power.grad) != 0


# --- soft weights, for the straight-through estimator


@pytest.mark.parametrize("fill", FILLS)
@pytest.mark.parametrize("classifier", ["masked", *FUSIONS])
def test_weights_of_0_and_1_are_dropping_and_keeping(fill: str, classifier: str) -> None:
    setup = set_up(*GEOMETRIES[0], fill)
    model: nn.Module = setup.high if classifier == "masked" else two_stream(setup, classifier)
    everything = packed_of(setup, torch.ones_like(setup.choice))
    weighted = Packed(everything.pixels, everything.image, everything.patch, 32, setup.choice.float().flatten())
    with torch.inference_mode():
        soft = model(weighted, setup.lows)
        hard = model(packed_of(setup, setup.choice), setup.lows)
    torch.testing.assert_close(soft, hard, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_every_patch_weight_gets_a_finite_gradient(fusion: str) -> None:
    setup = set_up(*GEOMETRIES[0])
    everything = packed_of(setup, torch.ones_like(setup.choice))
    weight = setup.choice.float().flatten().requires_grad_()
    weighted = Packed(everything.pixels, everything.image, everything.patch, 32, weight)
    two_stream(setup, fusion)(weighted, setup.lows).square().sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())
    assert bool((weight.grad != 0).all())


# --- setting the weights by images that no network was trained on


def words(seed: int, images: int, high_noise: float, low_noise: float) -> tuple[Tensor, Tensor, Tensor]:
    """Logits of an HR stream after 4 and 16 patches, of LR-CNN, and classes; noise hides the class."""
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, (images,), generator=generator)
    truth = torch.nn.functional.one_hot(target, CLASSES).float()
    high = truth.unsqueeze(1) + high_noise * torch.randn(images, 2, CLASSES, generator=generator)
    low = truth + low_noise * torch.randn(images, CLASSES, generator=generator)
    return high, low, target


def fitted(fusion: str, images: int, high_noise: float, low_noise: float) -> tuple[TwoStream, TwoStream]:
    """Two streams before and after the fit."""
    setup = set_up(*GEOMETRIES[0])
    before, after = two_stream(setup, fusion), two_stream(setup, fusion)
    high, low, target = words(1, images, high_noise, low_noise)
    after.fit(torch.tensor([0.25, 1.0]), high, low, target)
    return before, after


@pytest.mark.parametrize(("high_noise", "low_noise"), [(0.5, 0.5), (0.4, 0.8), (0.8, 0.4)])
def test_fitted_weights_are_right_on_fresh_images_nearly_as_often_as_the_best_there_are(
    high_noise: float, low_noise: float
) -> None:
    _, model = fitted("capped", 2000, high_noise, low_noise)
    high, low, target = words(2, 4000, high_noise, low_noise)

    def accuracy(weight: float, number: int) -> float:
        fused = weight * high[:, number] + (1 - weight) * low
        return float((fused.argmax(1) == target).double().mean())

    for number, share in enumerate((0.25, 1.0)):
        best = max(accuracy(step / 50, number) for step in range(51))
        found = float(model.weight_at(torch.tensor(share)).detach())
        assert 0 < found < 1
        assert accuracy(found, number) > best - 0.005
        # Noise of equal variance wants weights in the proportion of the precisions.
        precise = low_noise**2 / (low_noise**2 + high_noise**2)
        assert found == pytest.approx(precise, abs=0.12)


def test_a_handful_of_images_hardly_moves_the_weights() -> None:
    before, few = fitted("capped", 4, 0.3, 2.0)
    _, many = fitted("capped", 2000, 0.3, 2.0)
    share = torch.tensor([0.25, 1.0])
    moved_by_few = (few.weight_at(share) - before.weight_at(share)).abs().max()
    moved_by_many = (many.weight_at(share) - before.weight_at(share)).abs().max()
    assert float(moved_by_few) < 0.15 < 0.25 < float(moved_by_many)


def test_fitting_moves_the_weights_alone_and_leaves_what_learns_as_it_was() -> None:
    for fusion, moved in (("share", set()), ("learned", {"log_power"}), ("capped", {"log_power", "cap"})):
        setup = set_up(*GEOMETRIES[0])
        model = two_stream(setup, fusion)
        model.requires_grad_(False)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        model.fit(torch.tensor([0.25, 1.0]), *words(1, 300, 0.4, 1.0))
        after = model.state_dict()
        assert {name for name in after if not torch.equal(after[name], before[name])} == moved
        assert not any(p.requires_grad or p.grad is not None for p in model.parameters())
    model.fit(torch.tensor([0.25, 1.0]), *words(1, 0, 0.4, 1.0))  # no images, nothing to go by
    assert torch.equal(model.state_dict()["cap"], after["cap"])


@pytest.mark.parametrize("kept", ["none", "some", "all"])
def test_what_the_streams_say_apart_adds_up_to_what_they_say_together(kept: str) -> None:
    setup = set_up(*GEOMETRIES[0])
    model = two_stream(setup, "capped")
    choice = {"none": torch.zeros_like(setup.choice), "some": setup.choice, "all": torch.ones_like(setup.choice)}[kept]
    packed = packed_of(setup, choice)
    low_logits = model.low(setup.lows)
    said = model.apart(low_logits, packed, setup.lows)
    assert torch.equal(said.fused, model(packed, setup.lows))
    assert torch.equal(said.zoomed, choice.any(1))
    weight = model.weight(packed).unsqueeze(1)[said.zoomed]
    torch.testing.assert_close(weight * said.high + (1 - weight) * low_logits[said.zoomed], said.fused[said.zoomed])
    assert torch.equal(said.fused[~said.zoomed], low_logits[~said.zoomed])
