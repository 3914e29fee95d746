"""BagNet: a dropped patch neither matters nor costs, and an image does not depend on its batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from patchdrop import commands
from patchdrop.classify.bagnet import BagNet
from patchdrop.classify.high import Spec
from patchdrop.classify.two_stream import TwoStream
from patchdrop.commands.predicting import Asking
from patchdrop.costs.flops import forward_costs
from patchdrop.episode import PatchDrop
from patchdrop.errors import RunError
from patchdrop.files import read_json, write_json
from patchdrop.grid import Grid, Shape
from patchdrop.models.build import ModelConfig
from patchdrop.networks.build import Normalise
from patchdrop.packed import Packed, gather
from patchdrop.runs.folder import RunFolder
from patchdrop.training.policy_stages import PolicyTask
from patchdrop.training.supervised import ClassifierTask
from rows import FIT, VAL, bits, same_bits, tiny_model, trained
from tiny import CLASSES, NETWORK, config_of, learning_of, loader_of, tiny_settings, unsettle, write_folder

GRID = Grid(4, 4)
SETTINGS = tiny_settings()
LOW = torch.zeros(5, 3, 8, 8)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


def bagnet(grid: Grid = GRID, positions: bool = False) -> BagNet:
    torch.manual_seed(0)
    normalise = Normalise(torch.full((3,), 110.0), torch.full((3,), 40.0))
    net = BagNet(Spec(NETWORK, len(CLASSES), Shape((16, 16), (8, 8), grid, 3), normalise), positions=positions)
    if net.positions is not None:
        torch.nn.init.normal_(net.positions, 0, 0.5)
    return unsettle(net)


def images(count: int = 5, side: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, 3, side, side), generator=torch.Generator().manual_seed(1)).float()


def choices(grid: Grid = GRID) -> Tensor:
    """Five images that keep 0, 1, all, and some patches."""
    choice = torch.rand(5, grid.patches, generator=torch.Generator().manual_seed(2)) < 0.4
    choice[0], choice[1], choice[2] = False, False, True
    choice[1, 3] = True
    return choice


def flops(net: BagNet, packed: Packed) -> int:
    with FlopCounterMode(display=False) as counter:
        net(packed, LOW)
    return int(counter.get_total_flops())


@pytest.mark.parametrize("positions", [False, True])
@pytest.mark.parametrize(("grid", "side"), [(GRID, 16), (Grid(3, 5), 17)])
def test_each_image_is_the_head_of_the_mean_over_its_patches_one_at_a_time(
    grid: Grid, side: int, positions: bool
) -> None:
    net, high, choice = bagnet(grid, positions), images(side=side), choices(grid)
    logits = net(gather(high, choice, grid), LOW)
    for image in range(5):
        single = gather(high[image : image + 1], choice[image : image + 1], grid)
        features = torch.zeros(net.head.in_features)
        for pixels, place in zip(single.pixels, single.patch, strict=True):
            scale = 1 + net.positions[place] if net.positions is not None else 1
            features += net.network(net.normalise(pixels[None]))[0] * scale / len(single.pixels)
        assert torch.allclose(logits[image], net.head(features), **CLOSE)
        assert torch.allclose(logits[image], net(single, LOW[:1])[0], **CLOSE)


def test_what_a_dropped_patch_holds_cannot_matter_not_even_a_nan() -> None:
    net, high, choice = bagnet(), images(), choices()
    spoilt = torch.full_like(high, torch.nan)
    shown = choice.view(5, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    spoilt = torch.where(shown, high, spoilt)
    assert torch.equal(net(gather(spoilt, choice, GRID), LOW), net(gather(high, choice, GRID), LOW))


@pytest.mark.parametrize("training", [False, True])
def test_an_image_without_patches_gets_the_heads_bias_and_no_patch_at_all_runs_no_network(training: bool) -> None:
    net = bagnet()
    assert torch.equal(net(gather(images(), choices(), GRID), LOW)[0], net.head.bias)
    nothing = gather(images(), torch.zeros(5, 16, dtype=torch.bool), GRID)
    net.network.register_forward_hook(lambda *_: pytest.fail("the network ran"))
    assert torch.equal(net.train(training)(nothing, LOW), net.head.bias.expand(5, -1))


@pytest.mark.parametrize("positions", [False, True])
def test_the_order_of_the_batch_does_not_matter(positions: bool) -> None:
    net, high, choice = bagnet(positions=positions), images(), choices()
    order = torch.tensor([3, 0, 4, 2, 1])
    logits = net(gather(high, choice, GRID), LOW)
    assert torch.allclose(net(gather(high[order], choice[order], GRID), LOW), logits[order], **CLOSE)


def test_where_a_patch_lies_matters_only_with_positions() -> None:
    high, moved = images(1), images(1).roll(4, 3)
    here, there = torch.arange(16)[None] == 5, torch.arange(16)[None] == 6
    for positions in (False, True):
        net = bagnet(positions=positions)
        same = torch.equal(net(gather(high, here, GRID), LOW[:1]), net(gather(moved, there, GRID), LOW[:1]))
        assert same is not positions


def test_positions_start_without_effect() -> None:
    torch.manual_seed(0)
    spec = Spec(NETWORK, 3, SETTINGS.shape, Normalise(torch.zeros(3), torch.ones(3)))
    plain, placed = BagNet(spec).eval(), BagNet(spec, positions=True).eval()
    placed.load_state_dict({**placed.state_dict(), **plain.state_dict()})
    packed = gather(images(), choices(), GRID)
    assert torch.equal(plain(packed, LOW), placed(packed, LOW))


def test_flops_are_proportional_to_the_number_of_patches() -> None:
    net, high = bagnet(), images()
    head = 2 * 5 * net.head.in_features * 3
    one = torch.zeros(5, 16, dtype=torch.bool)
    one[2, 7] = True
    patch = flops(net, gather(high, one, GRID)) - head
    assert patch > 1000
    for choice in (choices(), torch.ones(5, 16, dtype=torch.bool)):
        assert flops(net, gather(high, choice, GRID)) == head + patch * int(choice.sum())


def test_weights_of_0_and_1_choose_as_packing_does_and_carry_a_gradient() -> None:
    net, high, choice = bagnet(), images(), choices()
    everything = gather(high, torch.ones_like(choice), GRID)
    weight = choice.float().flatten().requires_grad_()
    relaxed = net(replace(everything, weight=weight), LOW)
    assert torch.allclose(relaxed, net(gather(high, choice, GRID), LOW), **CLOSE)
    relaxed[:, 0].sum().backward()
    # More of a patch moves the mean towards it, by its distance from the mean over the number of patches.
    features = net.network(net.normalise(everything.pixels)).view(5, 16, -1)
    counts = choice.sum(1)[:, None, None]
    mean = (features * choice[:, :, None]).sum(1, keepdim=True) / counts.clamp(min=1)
    expected = ((features - mean) / counts.clamp(min=1)) @ net.head.weight[0]
    assert torch.allclose(weight.grad.view(5, 16), expected, atol=1e-5)


def test_it_trains_as_the_hr_classifier_of_every_stage(tmp_path: Path) -> None:
    settings = tiny_settings(estimator="straight-through")
    net = bagnet()
    for stage in ("hr", "patches"):
        before = bits(net)
        trained(ClassifierTask(stage, net, loader_of(settings, FIT, VAL)), tmp_path / stage)
        assert not same_bits(bits(net), before)
    pt, ft2 = tiny_model("pt", settings), tiny_model("ft2", settings)
    stages = {"pt": net, "ft1": net, "ft2": TwoStream(net, ft2.classifier.low, "learned")}
    for stage, classifier in stages.items():
        before, policy = bits(net), bits(pt.policy)
        task = PolicyTask(stage, PatchDrop(pt.policy, classifier), loader_of(settings, FIT, VAL), learning_of(settings))
        trained(task, tmp_path / stage)
        assert same_bits(bits(net), before) is (stage == "pt")
        assert not same_bits(bits(pt.policy), policy)


# --- a whole run with BagNet as its HR classifier


def test_a_run_with_bagnet_trains_every_stage_predicts_and_is_evaluated(tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    settings = tiny_settings(data=str(data), classifier="bagnet", estimator="straight-through", val_fraction=0.25)
    document = commands.train(settings, tmp_path / "run")
    stages = {row["stage"] for row in document["rows"]}
    assert stages == {"lr", "hr", "pt", "ft1", "ft2"}
    assert next(row for row in document["rows"] if row["method"] == "HR-CNN")["mean_patches"] == 16
    run = RunFolder(tmp_path / "run")
    assert isinstance(run.load("hr")[0], BagNet)
    assert isinstance(run.load("ft2")[0].classifier.high, BagNet)
    image = next((data / "test").rglob("*.png"))
    assert len(list(commands.predict(Asking(run.path, overlay=tmp_path / "overlays"), [image]))) == 1
    assert commands.info(run.path)["classifier"] == "bagnet"


def test_a_config_from_before_there_was_a_choice_of_classifier_is_a_masked_cnns() -> None:
    values = config_of(tiny_settings()).to_json()
    del values["classifier"]
    assert ModelConfig.from_json(values, "config.json").classifier == "masked"
    with pytest.raises(RunError, match="'classifier' is 3"):
        ModelConfig.from_json({**values, "classifier": 3}, "config.json")


def test_a_classifier_that_does_not_exist_is_refused_rather_than_taken_for_a_masked_cnn(tmp_path: Path) -> None:
    run, config = RunFolder(tmp_path), config_of(SETTINGS)
    run.finish("hr", tiny_model("hr", SETTINGS), config, {"figures": {}})
    path = tmp_path / "hr" / "config.json"
    write_json(path, {**read_json(path), "classifier": "tree"})
    with pytest.raises(RunError, match="classifier: 'tree' is not one of masked, bagnet"):
        run.load("hr")


def test_bagnets_cost_is_of_its_patches_and_not_of_a_canvas() -> None:
    settings = tiny_settings(classifier="bagnet")
    model = BagNet(Spec(settings.hr_network, 3, settings.shape, Normalise(torch.zeros(3), torch.ones(3))))
    packed = gather(torch.zeros(1, 3, 16, 16), torch.ones(1, 16, dtype=torch.bool), GRID)
    with FlopCounterMode(display=False) as counter:
        model(packed, torch.zeros(1, 3, 8, 8))
    assert forward_costs(config_of(settings))["hr"].flops == counter.get_total_flops()
