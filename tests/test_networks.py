"""Networks by name: the published sizes, free widths, any timm name, and the nearest name for one that is none."""

from __future__ import annotations

import pytest
import timm.models.resnet
import torch
from torch import Tensor, nn

from patchdrop.costs.flops import Cost, forward_costs
from patchdrop.errors import UsageError
from patchdrop.grid import Grid
from patchdrop.networks.build import Normalise, build, feature_map, feature_maps, folded
from patchdrop.networks.residual import BasicBlock, Bottleneck
from patchdrop.policy.network import Policy
from patchdrop.settings.flat import TrainSettings
from tiny import config_of, unsettle


def parameters(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize(
    ("name", "classes", "expected"),
    [
        # He et al. 2016 for 32 px, with projections for shortcuts: 0.27, 0.46 and 1.7 million
        ("resnet20", 10, 272_474),
        ("resnet32", 10, 466_906),
        # as in torchvision and timm, for 224 px
        ("resnet18", 1000, 11_689_512),
        ("resnet34", 1000, 21_797_672),
        ("resnet50", 1000, 25_557_032),
    ],
)
def test_the_published_networks_have_the_published_size(name: str, classes: int, expected: int) -> None:
    assert parameters(build(name, classes)) == expected


@pytest.mark.parametrize(
    ("name", "features", "side"),
    [
        ("resnet8", 64, 8),
        ("resnet8-w4", 16, 8),
        ("resnet14-w6-s2", 24, 4),
        ("resnet8-w4-max", 16, 8),
        ("resnet10-w8", 64, 1),
        ("resnet50-w4", 128, 1),
        ("resnet8-w4-d", 16, 4),
        ("resnet14-w4-s2-d-max", 16, 2),
        ("resnet10-w8-d", 64, 1),
        ("resnet50-w4-d", 128, 1),
        ("mobilenetv3_small_050", 288, 1),
    ],
)
def test_a_name_gives_the_width_and_the_feature_map_it_says(name: str, features: int, side: int) -> None:
    network = build(name, 0).eval()
    with torch.inference_mode():
        found = feature_map(network, torch.randn(2, 3, 32, 32))
    assert found.shape == (2, features, side, side)
    assert network.num_features == features
    assert build(name, 7).eval()(torch.randn(2, 3, 32, 32)).shape == (2, 7)


def test_pooling_by_the_maximum_is_that() -> None:
    torch.manual_seed(0)
    network = build("resnet8-w4-max", 3).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        expected = network.fc(network.forward_features(images).amax((2, 3)))
        assert torch.equal(network(images), expected)
        network.pool = "mean"
        assert not torch.allclose(network(images), expected)


def test_a_halving_network_starts_as_its_averaging_shortcuts() -> None:
    network = build("resnet8-w16-d", 0).eval()
    images = torch.randn(2, 3, 16, 16)
    with torch.inference_mode():
        expected = network.stem(images)
        for block in network.stages:
            assert isinstance(block.downsample[0], nn.AvgPool2d)
            expected = torch.relu(block.downsample(expected))
        assert torch.equal(network.forward_features(images), expected)


@pytest.mark.parametrize("projected", [False, True])
@pytest.mark.parametrize("ours", [BasicBlock, Bottleneck])
def test_a_block_is_timms_block_bit_by_bit(ours: type[BasicBlock | Bottleneck], projected: bool) -> None:
    theirs = getattr(timm.models.resnet, ours.__name__)
    inputs = 6 if projected else 4 * ours.expansion

    def trained(block: type[nn.Module]) -> tuple[nn.Module, Tensor]:
        torch.manual_seed(0)
        shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(6, 4 * ours.expansion, 1)) if projected else None
        stride = 2 if projected else 1
        made = block(inputs, 4, stride, shortcut)
        images = torch.randn(2, inputs, 8, 8)
        found: Tensor = made(images)
        found.square().sum().backward()
        return made, found

    (mine, found), (other, expected) = trained(ours), trained(theirs)
    assert torch.equal(found, expected)
    assert list(mine.state_dict()) == list(other.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(mine.state_dict().values(), other.state_dict().values(), strict=True))
    for a, b in zip(mine.parameters(), other.parameters(), strict=True):
        assert a.grad is not None and b.grad is not None and torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("channels", [1, 3, 8])
def test_the_number_of_channels_is_free(channels: int) -> None:
    assert build("resnet8-w4", 2, channels).eval()(torch.randn(1, channels, 16, 16)).shape == (1, 2)


@pytest.mark.parametrize(
    ("name", "near"),
    [("resnet9", "resnet"), ("ResNet50", "resnet"), ("resnet50-s2", "resnet50"), ("mobilenet", "mob")],
)
def test_a_name_that_is_none_is_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(UsageError, match=f"network '{name}' does not exist, did you mean '{near}"):
        build(name, 2)


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("resnet8-w4", [32, 32, 16, 8]),
        ("resnet10-w8-d", [16, 8, 4, 2, 1]),
        ("resnet18.a1_in1k", [8, 8, 4, 2, 1]),
        ("mobilenetv3_small_050", [16, 8, 4, 2, 1]),
    ],
)
def test_feature_maps_are_those_of_every_stage_and_the_last_is_the_feature_map(name: str, sides: list[int]) -> None:
    network = build(name, 0).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        maps = feature_maps(network, images)
        assert torch.equal(maps[-1], feature_map(network, images))
    assert [found.shape[2] for found in maps] == sides


def test_a_network_without_a_feature_map_is_refused_for_the_spatial_head() -> None:
    with pytest.raises(UsageError, match="gives no feature map: use --policy-head global"):
        feature_map(build("vit_tiny_patch16_224", 0), torch.randn(1, 3, 224, 224))


def test_normalising_is_by_the_channels_own_statistics_and_takes_bytes() -> None:
    normalise = Normalise(torch.tensor([10.0, 20.0]), torch.tensor([2.0, 5.0]))
    pixels = torch.tensor([[[[12]], [[10]]]], dtype=torch.uint8)
    assert normalise(pixels).flatten().tolist() == [1.0, -2.0]
    assert set(normalise.state_dict()) == {"mean", "std"}


@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(2, 3), Grid(1, 1)], ids=str)
@pytest.mark.parametrize(("head", "classes"), [("certainty", 7), ("certainty", 1), ("spatial", 7), ("global", 7)])
def test_a_policy_gives_one_finite_logit_a_patch(grid: Grid, head: str, classes: int) -> None:
    scale = Normalise(torch.zeros(3), torch.ones(3))
    policy = Policy("resnet8-w4", grid, (12, 10), scale, head=head, classes=classes, enlarge=2).eval()
    logits = policy(torch.randint(0, 256, (5, 3, 12, 10), dtype=torch.uint8))
    assert logits.shape == (5, grid.patches)
    assert bool(logits.isfinite().all())


def test_the_spatial_head_starts_even_and_reads_each_patch_at_its_own_place() -> None:
    torch.manual_seed(0)
    policy = Policy("resnet8-w4", Grid(2, 2), (64, 64), Normalise(torch.zeros(3), torch.ones(3))).eval()
    low = torch.randint(0, 256, (1, 3, 64, 64)).float()
    assert policy(low).tolist() == [[0.0, 0.0, 0.0, 0.0]]
    nn.init.normal_(policy.head.weight)
    policy.head.weight.data[:, policy.network.num_features :] = 0  # leave the mean over the image out
    changed = low.clone()
    changed[:, :, :16, 48:] += 50  # far inside the upper right quarter
    with torch.inference_mode():
        moved = (policy(changed) - policy(low)).abs()[0]
    assert float(moved[1]) > 10 * float(moved[[0, 2, 3]].max())


@pytest.mark.parametrize("name", ["resnet8-w4-d", "resnet18.a1_in1k"])
@pytest.mark.parametrize("head", ["spatial", "certainty"])
def test_patches_do_not_share_a_logit_where_the_last_map_is_coarser_than_the_grid(name: str, head: str) -> None:
    torch.manual_seed(0)
    side = 16 if name == "resnet8-w4-d" else 64
    scale = Normalise(torch.full((3,), 128.0), torch.full((3,), 60.0))
    policy = Policy(name, Grid(4, 4), (side, side), scale, head=head, classes=5).eval()
    nn.init.normal_(policy.head.weight)
    low = torch.randint(0, 256, (1, 3, side, side)).float()
    with torch.inference_mode():
        assert policy.look(low)[-1].shape[2] == 2
        assert len(policy(low).unique()) == 16


def test_a_network_whose_maps_are_all_coarser_than_the_grid_is_refused_with_the_ways_out() -> None:
    scale = Normalise(torch.zeros(3), torch.ones(3))
    with pytest.raises(UsageError, match=r"resnet8-w4: its finest .* 2 x 2 px is 2 x 2, too coarse"):
        Policy("resnet8-w4", Grid(4, 4), (2, 2), scale)
    Policy("resnet8-w4", Grid(4, 4), (2, 2), scale, enlarge=2)
    Policy("resnet8-w4", Grid(4, 4), (2, 2), scale, head="global")


def test_the_certainty_head_starts_at_the_probability_that_the_best_class_is_wrong() -> None:
    torch.manual_seed(0)
    scale = Normalise(torch.full((3,), 128.0), torch.full((3,), 60.0))
    policy = Policy("resnet8-w4", Grid(2, 2), (32, 32), scale, head="certainty", classes=5).eval()
    low = torch.randint(0, 256, (6, 3, 32, 32)).float()
    with torch.inference_mode():
        best = policy.network(scale(low)).softmax(1).amax(1)
        read = policy(low).sigmoid()
    assert torch.allclose(read, (1 - best)[:, None].expand(6, 4), atol=1e-5)


def test_costs_are_counted() -> None:
    """By hand for the first convolution and the head; the whole from the sum of a ResNet-8's layers."""
    settings = TrainSettings(
        high="32",
        low="8",
        grid="4",
        low_enlarge=1,
        hr_network="resnet8-w4",
        lr_network="resnet8-w4",
        policy_network="resnet8-w4",
    )
    costs = forward_costs(config_of(settings, map(str, range(10))))

    def flops(side: int, classes: int) -> int:
        convolutions = [(3, 4, 3, side), (4, 4, 3, side), (4, 4, 3, side)]
        for inputs, outputs, at in ((4, 8, side // 2), (8, 16, side // 4)):
            convolutions += [(inputs, outputs, 3, at), (outputs, outputs, 3, at), (inputs, outputs, 1, at)]
        return sum(2 * i * o * k * k * s * s for i, o, k, s in convolutions) + 2 * 16 * classes

    assert costs["hr"] == Cost(parameters(build("resnet8-w4", 10)), flops(32, 10))
    assert costs["lr"] == Cost(parameters(build("resnet8-w4", 10)), flops(8, 10))


@pytest.mark.parametrize("name", ["resnet8-w4", "resnet10-w8-d", "resnet18"])
def test_a_folded_copy_gives_the_same_logits_without_batch_norms_and_leaves_the_original(name: str) -> None:
    network = unsettle(build(name, 3)).train()
    copy = folded(network)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    assert not any(parameter.requires_grad for parameter in copy.parameters())
    assert network.training and any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    images = torch.randn(2, 3, 32, 32)
    assert torch.allclose(copy(images), network.eval()(images), rtol=1e-4, atol=1e-4)


def test_a_network_that_is_no_resnet_is_copied_as_it_is() -> None:
    network = build("mobilenetv3_small_050", 3)
    assert torch.equal(folded(network)(torch.ones(1, 3, 32, 32)), network.eval()(torch.ones(1, 3, 32, 32)))
