"""KD: the loss by hand, weight 0 is plain training, and the teacher does not move."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from patchdrop.grid import Grid
from patchdrop.training.objectives import Teacher, cross_entropy, distillation_loss
from patchdrop.training.supervised import ClassifierTask
from rows import FIT, VAL, bits, same_bits, tiny_model, trained
from tiny import loader_of, tiny_settings

SETTINGS = tiny_settings()
GRID = Grid.parse(SETTINGS.grid)


def kd(
    student: nn.Module, teacher: nn.Module, stage: str = "kd", weight: float = 0.7, **options: float
) -> ClassifierTask:
    taught = Teacher(teacher, GRID, weight, **options)
    return ClassifierTask(stage, student, loader_of(SETTINGS, FIT, VAL), like="lr", teacher=taught)


def distil(folder: Path, weight: float, **options: float) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    student = tiny_model("lr", SETTINGS)
    task = kd(student, tiny_model("hr", SETTINGS), "lr", weight, **options)
    figures = trained(task, folder)
    return bits(student), figures


def test_the_loss_is_what_a_hand_computes() -> None:
    # At T = 2 the teacher's probabilities are 3/4 and 1/4, the student's 1/2 each.
    teacher, student = torch.tensor([[2 * math.log(3), 0.0]]), torch.zeros(1, 2)
    divergence = 0.75 * math.log(1.5) + 0.25 * math.log(0.5)
    expected = 0.4 * math.log(2) + 0.6 * 4 * divergence
    loss = distillation_loss(student, teacher, torch.tensor([1]), weight=0.6, temperature=2.0)
    assert float(loss) == pytest.approx(expected, rel=1e-6)


def test_the_loss_is_a_mean_over_images_and_zero_for_a_student_that_agrees() -> None:
    torch.manual_seed(0)
    logits, teacher, target = torch.randn(5, 3), torch.randn(5, 3), torch.arange(5) % 3
    each = [distillation_loss(logits[i : i + 1], teacher[i : i + 1], target[i : i + 1], 0.3, 4.0) for i in range(5)]
    assert torch.allclose(distillation_loss(logits, teacher, target, 0.3, 4.0), torch.stack(each).mean())
    assert float(distillation_loss(teacher, teacher, target, 1.0, 3.0)) == 0
    assert torch.equal(distillation_loss(logits, teacher, target, 0.0, 7.0, 0.1), cross_entropy(logits, target, 0.1))


@pytest.mark.parametrize("temperature", [1.0, 5.0])
def test_weight_0_is_plain_training_to_the_bit_at_any_temperature(tmp_path: Path, temperature: float) -> None:
    plain = tiny_model("lr", SETTINGS)
    figures = trained(ClassifierTask("lr", plain, loader_of(SETTINGS, FIT, VAL)), tmp_path / "plain")
    distilled, theirs = distil(tmp_path / "kd", weight=0.0, temperature=temperature)
    assert same_bits(distilled, bits(plain))
    assert theirs == figures


def test_the_teachers_word_and_its_temperature_count(tmp_path: Path) -> None:
    cold, _ = distil(tmp_path / "cold", weight=0.5, temperature=1.0)
    warm, _ = distil(tmp_path / "warm", weight=0.5, temperature=4.0)
    plain, _ = distil(tmp_path / "plain", weight=0.0)
    assert not same_bits(cold, plain)
    assert not same_bits(cold, warm)


def test_the_teacher_stays_as_it_was_weights_and_statistics(tmp_path: Path) -> None:
    teacher = tiny_model("hr", SETTINGS).train()
    before = bits(teacher)
    student = tiny_model("lr", SETTINGS)
    task = kd(student, teacher)
    started = bits(student)
    trained(task, tmp_path)
    assert same_bits(bits(teacher), before)
    assert all(p.grad is None for p in teacher.parameters())
    assert not same_bits(bits(student), started)


def test_the_teacher_sees_whole_hr_images_that_were_augmented_as_the_students() -> None:
    task = kd(tiny_model("lr", SETTINGS), teacher := tiny_model("hr", SETTINGS))
    seen = []
    teacher.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    task.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs))
    task.loss(next(task.batches(0, 0)), 0.0)
    (student_low,), (packed, low) = seen
    assert torch.equal(student_low, low)
    assert packed.counts.tolist() == [16] * 8
    # LR is 2 x 2 means of HR; a patch is 4 x 4 HR pixels.
    mean = packed.pixels.float().mean((1, 2, 3)).view(8, 16).mean(1)
    assert torch.allclose(mean, low.float().mean((1, 2, 3)), atol=0.5)
