"""SRGAN: sizes, PSNR, who learns from what in the game, and what stays frozen."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from patchdrop.classify.masked_cnn import MaskedCNN
from patchdrop.classify.super_resolution import (
    PSNR_CAP,
    Discriminator,
    Generator,
    SuperResolution,
    SuperResolved,
    bilinear,
    generator_losses,
    prime_factors,
    psnr,
    reverse_gradient,
)
from patchdrop.grid import Grid
from patchdrop.networks.build import Normalise
from patchdrop.read.source import from_memory
from patchdrop.training.super_resolution import GeneratorTask, SuperResolvedTask
from rows import FIT, VAL, bits, same_bits, tiny_model, trained
from tiny import loader_of, tiny_images, tiny_settings

SETTINGS = tiny_settings()
HIGH = tiny_images(4, 5)[0]
LOW = F.adaptive_avg_pool2d(HIGH.float(), (8, 8)).round().to(torch.uint8)


def generator(
    size: tuple[int, int] = (16, 16), low: tuple[int, int] = (8, 8), channels: int = 3, trained: bool = True
) -> Generator:
    torch.manual_seed(0)
    normalise = Normalise(torch.full((channels,), 110.0), torch.full((channels,), 40.0))
    net = Generator(size, low, normalise, channels=channels, width=4, blocks=2)
    if trained:  # as if it had been trained: it does not start where its last layer is 0
        nn.init.normal_(net.exit.weight, 0, 0.1)
    return net


def game() -> SuperResolution:
    return SuperResolution(generator(), Discriminator(width=4))


def teacher() -> MaskedCNN:
    return tiny_model("hr", SETTINGS)  # type: ignore[return-value]


# --- the generator


@pytest.mark.parametrize(
    ("size", "low", "shuffles"),
    [
        ((16, 16), (8, 8), [2]),
        ((32, 32), (8, 8), [2, 2]),
        ((24, 48), (4, 8), [2, 3]),
        ((8, 8), (8, 8), []),
        ((20, 27), (8, 9), [3]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_it_makes_any_size_by_a_pixel_shuffle_for_each_prime_factor(
    size: tuple[int, int], low: tuple[int, int], shuffles: list[int], channels: int
) -> None:
    net = generator(size, low, channels)
    assert net(torch.zeros(2, channels, *low, dtype=torch.uint8)).shape == (2, channels, *size)
    assert [m.upscale_factor for m in net.enlarge if isinstance(m, nn.PixelShuffle)] == shuffles


@pytest.mark.parametrize(("number", "factors"), [(1, []), (2, [2]), (7, [7]), (8, [2, 2, 2]), (12, [2, 2, 3])])
def test_prime_factors(number: int, factors: list[int]) -> None:
    assert prime_factors(number) == factors


def test_untrained_it_is_the_bilinear_enlargement() -> None:
    assert torch.equal(generator(trained=False)(LOW), bilinear(LOW, (16, 16)))
    assert not torch.allclose(generator()(LOW), bilinear(LOW, (16, 16)))


# --- PSNR


def test_psnr_by_hand_for_each_image_with_a_cap_for_perfect_ones() -> None:
    real = torch.full((3, 3, 4, 4), 200, dtype=torch.uint8)
    made = real.float()
    made[1] += 10
    made[2, 0] += 60  # beyond 255: clamped to 55 too much in a third of the values
    expected = [PSNR_CAP, 20 * math.log10(25.5), 10 * math.log10(255**2 / (55**2 / 3))]
    assert psnr(made, real).tolist() == pytest.approx(expected)
    assert psnr(made[:1] + 0.4, real[:1]).tolist() == [PSNR_CAP]  # whole pixel values count


# --- the game


def test_a_reversed_gradient_has_the_other_sign_and_the_scale() -> None:
    values = torch.tensor([1.0, -2.0], requires_grad=True)
    out = reverse_gradient(values, 0.5)
    assert torch.equal(out, values)
    (out * torch.tensor([3.0, 4.0])).sum().backward()
    assert values.grad.tolist() == [-1.5, -2.0]


def test_one_step_on_the_game_makes_the_discriminator_surer_and_made_images_harder_for_it() -> None:
    class Verdict(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(0.1))

        def forward(self, images: Tensor) -> Tensor:
            return self.scale * images.mean((1, 2, 3))

    judge, hr = Verdict(), teacher()
    made = torch.full((2, 3, 16, 16), 80.0, requires_grad=True)
    losses = generator_losses(made, torch.full_like(made, 200.0), judge, hr, 1.0)
    real_mean = float(hr.normalise(torch.full_like(made, 200.0)).mean())
    made_mean = float(hr.normalise(made.detach()).mean())
    expected = F.softplus(torch.tensor(-0.1 * real_mean)) + F.softplus(torch.tensor(0.1 * made_mean))
    assert torch.allclose(losses.adversarial, expected)
    losses.adversarial.backward()
    assert float(judge.scale.grad) < 0  # descending raises the scale: real ones are brighter, it tells them apart
    assert bool((made.grad < 0).all())  # descending brightens what was made: it looks more like a real one


def test_generator_and_discriminator_learn_in_one_step_and_the_teacher_does_not() -> None:
    model, hr = game(), teacher()
    task = GeneratorTask("sr", model, hr, loader_of(SETTINGS, FIT, VAL), 1)
    trained_parameters = {id(p) for group in task.groups() for p in group.parameters}
    assert trained_parameters == {id(p) for p in model.parameters()}
    loss, figures = task.loss(next(task.batches(0, 0)), 0.0)
    loss.backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in model.parameters())
    assert all(p.grad is None for p in hr.parameters())
    assert set(figures) == {"pixel", "feature", "adversarial", "psnr"}


@pytest.mark.parametrize("name", ["pixel", "feature", "adversarial"])
def test_each_loss_reaches_the_generator_and_only_the_game_the_discriminator(name: str) -> None:
    model, hr = game(), teacher().requires_grad_(False)
    losses = generator_losses(model(LOW), HIGH, model.discriminator, hr, 1e-3)
    getattr(losses, name).backward()
    assert bool(model.generator.exit.weight.grad.any())
    assert (model.discriminator.layers[0].weight.grad is not None) is (name == "adversarial")


def test_the_generators_weight_in_the_game_leaves_the_discriminator_at_full_weight() -> None:
    gradients = []
    for weight in (1.0, 0.25):
        model = game()
        losses = generator_losses(model(LOW), HIGH, model.discriminator, teacher(), weight)
        losses.adversarial.backward()
        gradients.append((model.generator.exit.weight.grad, model.discriminator.layers[0].weight.grad))
    assert torch.allclose(gradients[1][0], 0.25 * gradients[0][0])
    assert torch.equal(gradients[1][1], gradients[0][1])


def test_a_perfect_image_has_no_pixel_and_no_feature_loss() -> None:
    losses = generator_losses(HIGH.float(), HIGH, Discriminator(width=4), teacher(), 1.0)
    assert (losses.pixel.item(), losses.feature.item()) == (0, 0)


# --- the stages


def test_the_generators_stage_improves_on_bilinear_and_leaves_the_teacher_as_it_was(tmp_path: Path) -> None:
    settings = tiny_settings(rate_finetune=1e-2)
    model, hr = SuperResolution(generator(trained=False), Discriminator(width=4)), teacher().train()
    before = bits(hr)
    figures = trained(GeneratorTask("sr", model, hr, loader_of(settings, FIT, VAL), 8), tmp_path)
    assert same_bits(bits(hr), before)
    assert figures["score"] == figures["psnr"] > figures["psnr_bilinear"] + 0.05


def test_the_classifier_is_hr_cnn_on_what_the_generator_made_within_the_range_of_pixels() -> None:
    net, hr = generator(), teacher()
    nn.init.normal_(net.exit.weight, 0, 5)
    made = net(LOW)
    assert bool((made < 0).any()) and bool((made > 255).any())
    everything = torch.ones(4, 16, dtype=torch.bool)
    expected = hr(from_memory(made.clamp(0, 255), Grid(4, 4))(everything), LOW)
    assert torch.allclose(SuperResolved(net, hr).eval()(LOW), expected, rtol=1e-5, atol=1e-5)


def test_in_the_second_stage_the_classifier_learns_and_the_generator_is_frozen(tmp_path: Path) -> None:
    model = SuperResolved(generator(), copy.deepcopy(teacher()))
    generated, network = bits(model.generator), bits(model.network)
    task = SuperResolvedTask("sr-cnn", model, loader_of(SETTINGS, FIT, VAL), 1)
    figures = trained(task, tmp_path)
    assert same_bits(bits(model.generator), generated)
    assert not same_bits(bits(model.network), network)
    assert figures["score"] == figures["accuracy"]
    assert {g.rate for g in task.groups()} == {SETTINGS.rate_finetune}
