"""CutOut and conditional hard positives: what is hidden, how often, and that images are judged whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from patchdrop.episode import PatchDrop
from patchdrop.policy.baselines import SURE
from patchdrop.training.batches import Views
from patchdrop.training.hidden import HiddenTask, Hide, cut_out, policy_masks
from rows import FIT, VAL, bits, same_bits, tiny_model, trained
from tiny import loader_of, tiny_settings

SETTINGS = tiny_settings()


class Says(nn.Module):
    """A policy whose first half of the images keeps patch 3 alone, the other half none."""

    def forward(self, low: Tensor) -> Tensor:
        logits = torch.full((len(low), 16), -SURE)
        logits[: len(low) // 2, 3] = SURE
        return logits


def views(count: int = 40) -> Views:
    return Views(
        torch.full((count, 3, 16, 16), 200, dtype=torch.uint8),
        torch.zeros(count, 3, 8, 8, dtype=torch.uint8),
        torch.zeros(count, dtype=torch.int64),
    )


def test_cutout_hides_one_square_of_a_quarter_of_the_image_at_places_that_differ() -> None:
    torch.manual_seed(0)
    high, left = cut_out(torch.tensor([10.0, 20.0, 30.0]))(views(), 16)
    hole = (high == torch.tensor([10, 20, 30]).view(1, 3, 1, 1)).all(1)
    assert left.all()
    assert hole.sum((1, 2)).tolist() == [64] * 40
    assert hole.any(2).sum(1).tolist() == hole.any(1).sum(1).tolist() == [8] * 40
    assert len({tuple(h.flatten().tolist()) for h in hole}) > 20


def test_a_policys_mask_leaves_its_patches_and_one_that_leaves_nothing_hides_nothing() -> None:
    high, left = policy_masks(PatchDrop(Says(), nn.Identity()))(views(4), 16)
    assert torch.equal(high, views(4).high)
    assert left.sum(1).tolist() == [1, 1, 16, 16]
    assert left[:2, 3].all()


def test_about_half_of_the_images_are_hidden_in_training_and_none_in_validation() -> None:
    seen: list[Tensor] = []

    def spy(hide: Hide) -> Hide:
        return lambda v, patches: (torch.zeros_like(v.high), hide(v, patches)[1])

    model = tiny_model("hr", SETTINGS)
    model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].pixels.view(-1, 16, 3, 4, 4)))
    task = HiddenTask("hr", model, spy(cut_out(torch.zeros(3))), loader_of(SETTINGS, FIT, VAL))
    torch.manual_seed(0)
    for epoch in range(4):
        for batch in task.batches(epoch, 0):
            task.loss(batch, 0.0)
    hidden = torch.cat([(pixels == 0).flatten(1).all(1) for pixels in seen])
    assert 0.35 < float(hidden.float().mean()) < 0.65
    seen.clear()
    task.validate(1.0)
    assert not torch.cat([(pixels == 0).flatten(1).all(1) for pixels in seen]).any()


@pytest.mark.parametrize("policy", ["bernoulli", "ranking"])
def test_a_policy_that_masks_is_not_trained(tmp_path: Path, policy: str) -> None:
    masks = tiny_model("pt", tiny_settings(policy=policy, low_stream="pt" if policy == "ranking" else "ft2"))
    before = bits(masks)
    model = tiny_model("hr", SETTINGS)
    trained(HiddenTask("hr", model, policy_masks(masks), loader_of(SETTINGS, FIT, VAL)), tmp_path)
    assert same_bits(bits(masks), before)
