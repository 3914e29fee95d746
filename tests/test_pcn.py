"""PCN: what is coupled stays equal to the HR network's, what is not goes its own way, and export changes nothing."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from patchdrop.classify.low import LowCNN
from patchdrop.classify.pcn import PartiallyCoupled
from patchdrop.data.low import area_average
from patchdrop.errors import UsageError
from patchdrop.networks.build import Normalise
from patchdrop.training.couple import CoupledTask
from patchdrop.training.objectives import cross_entropy
from rows import FIT, VAL, bits, same_bits, trained
from tiny import CLASSES, NETWORK, loader_of, tiny_images, tiny_settings, unsettle

SETTINGS = tiny_settings()
HIGH = tiny_images(6, 5)[0]
LOW = area_average(HIGH, (8, 8))


def statistics(mean: float) -> Normalise:
    return Normalise(torch.full((3,), mean), torch.full((3,), 40.0))


def pcn(share: float = 0.5) -> PartiallyCoupled:
    torch.manual_seed(0)
    model = PartiallyCoupled(NETWORK, len(CLASSES), statistics(100), statistics(120), share=share)
    return unsettle(model)  # type: ignore[return-value]


def task_of(model: PartiallyCoupled) -> CoupledTask:
    return CoupledTask("pcn", model, loader_of(SETTINGS, FIT, VAL))


@pytest.fixture(scope="module")
def after(tmp_path_factory: pytest.TempPathFactory) -> tuple[PartiallyCoupled, dict[str, Tensor]]:
    """A coupled pair that was trained, and its weights before."""
    model = pcn()
    before = bits(model)
    figures = trained(task_of(model), tmp_path_factory.mktemp("pcn"))
    assert figures["score"] == figures["accuracy"]
    return model, before


def test_after_training_the_first_half_of_each_layer_is_the_hr_networks_and_the_rest_is_not(after) -> None:
    model, _ = after
    high, ours = dict(model.high.named_parameters()), dict(model.export().named_parameters())
    assert len(ours) > 20
    for name, weights in ours.items():
        half = 0 if name.startswith("network.fc.") else len(weights) // 2
        assert torch.equal(weights[:half], high[name][:half])
        assert not torch.isclose(weights[half:], high[name][half:], rtol=1e-3).any()


def test_both_networks_learn_and_each_keeps_statistics_and_pixel_scale_of_its_own(after) -> None:
    model, before = after
    for side in ("high", "low"):
        for name in ("network.stem.0.weight", "network.fc.weight", "network.stem.1.running_mean"):
            assert not torch.equal(model.state_dict()[f"{side}.{name}"], before[f"{side}.{name}"])
    assert not torch.equal(model.high.network.stem[1].running_mean, model.low.network.stem[1].running_mean)
    assert float(model.low.normalise.mean.mean()) == 100 and float(model.high.normalise.mean.mean()) == 120


def test_export_is_a_plain_lr_classifier_with_the_same_logits_to_the_bit(after) -> None:
    model = copy.deepcopy(after[0])
    before = bits(model)
    alone = model.eval().export()
    assert type(alone) is LowCNN
    assert same_bits(bits(model), before)
    assert torch.equal(alone(LOW), model(LOW))
    # A copy: training on does not reach what was exported.
    kept = bits(alone)
    with torch.no_grad():
        model.high.network.stem[0].weight.add_(1)
    assert same_bits(bits(alone), kept)
    assert not torch.equal(alone(LOW), model(LOW))


def test_the_lr_loss_reaches_the_hr_networks_shared_filters_and_its_own_others_only() -> None:
    model = pcn()
    model(LOW).sum().backward()
    shared, own = model.high.network.stem[0].weight.grad, model.low.network.stem[0].weight.grad
    assert [float(g.abs().sum()) > 0 for g in (*shared, *own)] == [True, True, False, False, False, False, True, True]
    assert not model.high.network.fc.weight.grad.any() and model.low.network.fc.weight.grad.any()


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_ends_of_share_are_no_coupling_and_all_but_the_head(share: float) -> None:
    model = pcn(share)
    high = {f"network.{name}": p for name, p in model.high.network.named_parameters()}
    for name, weights in model.coupled().items():
        source = high if share == 1.0 and "fc" not in name else dict(model.low.named_parameters())
        assert torch.equal(weights, source[name])


def test_the_hr_network_sees_hr_averaged_to_the_size_of_the_enlarged_lr() -> None:
    model = pcn()
    four = tiny_images(6, 5, side=32)[0]
    assert torch.equal(model.high_logits(four, LOW), model.high(area_average(four, (16, 16))))
    assert torch.equal(model.high_logits(HIGH, LOW), model.high(HIGH))


def test_the_loss_is_the_sum_of_both_cross_entropies() -> None:
    model = pcn()
    task, batch = task_of(model), next(task_of(model).batches(0, 0))
    torch.manual_seed(3)
    views = task.loader.training_views(batch)
    each = [cross_entropy(x, views.target, 0.1) for x in (model(views.low), model.high_logits(views.high, views.low))]
    torch.manual_seed(3)
    assert torch.equal(task.loss(batch, 0.0)[0], each[0] + each[1])


def test_lr_that_is_not_enlarged_is_refused() -> None:
    with pytest.raises(UsageError, match="factor of 2 or more, not 1"):
        PartiallyCoupled(NETWORK, 3, statistics(100), statistics(100), enlarge=1)
