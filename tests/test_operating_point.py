"""What is set on validation images after a policy's training: the critic learns on, as far as other images agree."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses import FakeTensorMode

from patchdrop.classify.two_stream import TwoStream
from patchdrop.evaluation import operating_point
from patchdrop.evaluation.operating_point import Outputs, calibrate_critic, few_counts, fit_fusion, tried_counts
from patchdrop.policy.ranking import Critic

PATCHES, CLASSES = 16, 3


def streams(fusion: str = "capped") -> TwoStream:
    """Two streams that stand for no network."""
    found = TwoStream(torch.nn.Identity(), torch.nn.Linear(1, 1), fusion)  # type: ignore[arg-type]
    found.high.grid = SimpleNamespace(patches=PATCHES)  # type: ignore[assignment]
    return found


def sure_or_not(images: int, seed: int) -> Outputs:
    """LR-CNN's certainty says all: where it is sure it is right, elsewhere only four patches help."""
    generator = torch.Generator().manual_seed(seed)
    sure = torch.rand(images, generator=generator) < 0.5
    low_logits = torch.where(sure.unsqueeze(1), torch.tensor([4.0, 0.0, 0.0]), torch.tensor([0.0, 0.2, 0.0]))
    counts = tried_counts(PATCHES)
    knows = sure.unsqueeze(1) | (counts >= 4)
    high = 10 * F.one_hot(torch.where(knows, 0, 1), CLASSES).float()
    return Outputs(
        torch.randn(images, PATCHES, generator=generator),
        low_logits,
        counts,
        high,
        torch.zeros(images, dtype=torch.int64),
    )


def cross_entropy(critic: Critic, outputs: Outputs, model: Any) -> float:
    with torch.no_grad():
        odds = critic(outputs.utilities, outputs.low_logits)[:, outputs.counts]
        return float(F.binary_cross_entropy_with_logits(odds, outputs.right(model.classifier).double()))


def fitted(images: int, steps: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> tuple[Critic, Any, float]:
    monkeypatch.setattr(operating_point, "STEPS", steps)
    torch.manual_seed(0)
    critic = Critic(CLASSES, PATCHES)
    model: Any = SimpleNamespace(policy=SimpleNamespace(critic=critic), classifier=streams())
    error = calibrate_critic(model, sure_or_not(images, 1))
    return critic, model, error


def test_learning_on_finds_on_fresh_images_what_offset_and_scale_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = sure_or_not(2000, 2)
    without, model, _ = fitted(600, (0,), monkeypatch)
    learnt, _, error = fitted(600, (0, 60, 250), monkeypatch)
    assert cross_entropy(learnt, fresh, model) < 0.7 * cross_entropy(without, fresh, model)
    assert error < 0.05


def test_where_validation_images_are_noise_the_critic_does_not_learn_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """Right and wrong are drawn by lot: cross-validation stops at once, or soon."""
    outputs = sure_or_not(60, 3)
    lot = torch.randint(2, (60,), generator=torch.Generator().manual_seed(4))
    noise = Outputs(torch.randn(60, PATCHES), torch.randn(60, CLASSES), outputs.counts, outputs.high * 0 + 1, lot)
    results = []
    for steps in ((0,), (0, 15, 30, 60, 120, 250)):
        monkeypatch.setattr(operating_point, "STEPS", steps)
        torch.manual_seed(0)
        critic = Critic(CLASSES, PATCHES)
        model: Any = SimpleNamespace(policy=SimpleNamespace(critic=critic), classifier=streams("learned"))
        calibrate_critic(model, noise)
        fresh = Outputs(
            torch.randn(2000, PATCHES), torch.randn(2000, CLASSES), outputs.counts, torch.ones(2000, 17, CLASSES),
            torch.randint(2, (2000,)),
        )  # fmt: skip
        results.append(cross_entropy(critic, fresh, model))
    assert results[1] < results[0] + 0.05


@pytest.mark.parametrize("images", [1, 3, 5, 7])
def test_a_few_images_are_enough_to_run(images: int, monkeypatch: pytest.MonkeyPatch) -> None:
    critic, _, error = fitted(images, (0, 5, 10), monkeypatch)
    assert all(bool(value.isfinite().all()) for value in critic.state_dict().values())
    assert 0 <= error <= 1


def test_the_same_images_set_it_to_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (fitted(50, (0, 10, 20), monkeypatch)[0].state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_small_batches_lead_where_large_ones_do(monkeypatch: pytest.MonkeyPatch) -> None:
    fresh = sure_or_not(1000, 2)
    whole, model, _ = fitted(400, (0, 120), monkeypatch)
    monkeypatch.setattr(operating_point, "ROWS", 64 * PATCHES)
    parts, _, _ = fitted(400, (0, 120), monkeypatch)
    assert cross_entropy(parts, fresh, model) == pytest.approx(cross_entropy(whole, fresh, model), abs=0.05)


def test_right_is_of_both_streams_and_of_lr_cnn_alone_before_any_patch() -> None:
    outputs = sure_or_not(40, 5)
    right = outputs.right(streams())
    assert torch.equal(right[:, 0], outputs.low_logits.argmax(1) == 0)
    assert bool(right[:, 4:].all())


@pytest.mark.parametrize("fusion", ["share", "learned", "capped"])
def test_what_both_streams_say_on_a_gpu_is_counted_where_it_was_heard(fusion: str) -> None:
    """By tensors that have devices and no values, so that it needs no GPU: mixing devices raises."""
    with FakeTensorMode():
        outputs = Outputs(
            torch.rand(6, PATCHES), torch.rand(6, CLASSES), torch.arange(17), torch.rand(6, 17, CLASSES),
            torch.zeros(6, dtype=torch.int64),
        )  # fmt: skip
        with torch.device("cuda"):
            there = streams(fusion)
        assert outputs.right(there).device.type == "cpu"


def test_fusion_is_set_by_the_images_that_read_something() -> None:
    outputs = sure_or_not(200, 6)
    nothing = Outputs(outputs.utilities, outputs.low_logits, outputs.counts[:1], outputs.high[:, :1], outputs.target)
    untouched, moved = streams(), streams()
    before: Tensor = untouched.weight_at(torch.tensor(0.5)).detach()
    fit_fusion(moved, outputs)
    assert not torch.equal(moved.weight_at(torch.tensor(0.5)).detach(), before)
    fit_fusion(untouched, Outputs(*(part[:0] if n != 2 else part for n, part in enumerate(_parts(nothing)))))
    assert torch.equal(untouched.weight_at(torch.tensor(0.5)).detach(), before)


def _parts(outputs: Outputs) -> tuple[Tensor, ...]:
    return outputs.utilities, outputs.low_logits, outputs.counts, outputs.high, outputs.target


def test_a_few_counts_are_each_a_quarter_of_the_next() -> None:
    assert few_counts(1).tolist() == [1]
    assert few_counts(16).tolist() == [1, 4, 16]
    assert few_counts(64).tolist() == [1, 4, 16, 64]
    assert few_counts(256).tolist() == [1, 4, 16, 64, 256]
