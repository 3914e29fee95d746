"""Classifiers that compute on what was read: equal to a plain reference, at a cost that follows the patches."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from masks import pixel_mask
from patchdrop import commands
from patchdrop.classify.canvas import CanvasCNN
from patchdrop.classify.high import HighClassifier
from patchdrop.classify.patch_set import PatchSet
from patchdrop.classify.two_stream import TwoStream
from patchdrop.classify.vit import TokenViT
from patchdrop.commands.predicting import Asking
from patchdrop.errors import Interrupted, UsageError
from patchdrop.grid import Grid
from patchdrop.models.build import build_stage
from patchdrop.networks.build import stages_of
from patchdrop.packed import Packed, gather
from patchdrop.runs.folder import RunFolder
from patchdrop.training.policy_stages import PolicyTask
from patchdrop.training.supervised import ClassifierTask
from rows import FIT, VAL, bits, same_bits, tiny_model, trained
from tiny import NETWORK, config_of, learning_of, loader_of, tiny_settings, write_folder

NETWORKS = {"masked": NETWORK, "bagnet": NETWORK, "canvas": NETWORK, "patch-set": NETWORK, "vit": "vit2-w16-p2"}
SPARSE = ("bagnet", "canvas", "patch-set", "vit")
NEW = SPARSE[1:]
EVERY = [*((name, "mean") for name in NETWORKS), *((name, "low") for name in NETWORKS if name != "bagnet")]
GRID = Grid(4, 4)
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
every = pytest.mark.parametrize(("name", "fill"), EVERY)


def classifier(name: str, fill: str = "mean", stage: str = "patches", network: str = "", side: int = 16) -> nn.Module:
    settings = tiny_settings(
        classifier=name, hr_network=network or NETWORKS[name], fill=fill, high=str(side), fusion="learned"
    )
    model = tiny_model(stage, settings)
    for weight in model.parameters():
        if weight.ndim == 4 and not bool(weight.any()):  # a projection that starts at 0 would hide mistakes
            nn.init.normal_(weight, 0, 0.3, generator=torch.Generator().manual_seed(3))
    return model


def images(side: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    high = torch.randint(0, 256, (6, 3, side, side), generator=generator).float()
    return high, torch.randint(0, 256, (6, 3, 8, 8), generator=generator)


def choices() -> Tensor:
    """Six images that keep 0, 1, all, and some patches; two as many."""
    choice = torch.rand(6, 16, generator=torch.Generator().manual_seed(2)) < 0.4
    choice[0], choice[1], choice[2] = False, False, True
    choice[1, 3] = True
    choice[4] = choice[3].roll(1)
    return choice


def flops(model: nn.Module, packed: Packed, low: Tensor) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(packed, low)
    return int(counter.get_total_flops())


# --- a plain reference


@pytest.mark.parametrize("fill", ["mean", "low"])
@pytest.mark.parametrize(("network", "side"), [(NETWORK, 16), ("resnet10-w4", 128), ("resnet10-w4-d", 128)])
@torch.inference_mode()
def test_the_sparse_canvas_is_the_dense_network_with_zeros_in_unread_patches_before_every_early_layer(
    network: str, side: int, fill: str
) -> None:
    net = classifier("canvas", fill, network=network, side=side)
    assert isinstance(net, CanvasCNN)
    (high, low), choice = images(side), choices()
    choice[0, 5] = True

    def masked(features: Tensor) -> Tensor:
        return features * pixel_mask(choice, GRID, *features.shape[2:]).unsqueeze(1)

    parts = stages_of(net.network)
    early = [layer for part in parts[: 1 + net.stages] for layer in part]
    hooks = [
        layer.register_forward_pre_hook(lambda _, inputs: masked(inputs[0]))
        for part in early
        for layer in part.modules()
        if isinstance(layer, (nn.Conv2d, nn.MaxPool2d))
    ]
    features = net.normalise(high)
    for layer in early:
        features = layer(features)
    for hook in hooks:
        hook.remove()
    canvas = masked(features)
    if net.entry is not None:
        unread = ~pixel_mask(choice, GRID, *features.shape[2:]).unsqueeze(1)
        canvas = torch.where(unread, net.entry(net.normalise(low)), canvas)
    for part in parts[1 + net.stages :]:
        for layer in part:
            canvas = layer(canvas)
    expected = net.network.forward_head(canvas)
    assert net.stages == len(parts) - 2
    torch.testing.assert_close(net(gather(high, choice, GRID), low), expected, **CLOSE)


@torch.inference_mode()
def test_the_patch_set_is_its_layers_on_one_image_and_its_network_on_one_patch_at_a_time() -> None:
    net = classifier("patch-set", "low")
    assert isinstance(net, PatchSet)
    assert net.context is not None
    (high, low), choice = images(), choices()
    found = net(gather(high, choice, GRID), low)
    for image in range(1, 6):
        single = gather(high[image : image + 1], choice[image : image + 1], GRID)
        tokens = [net.token + net.join(net.context(low[image : image + 1]))[0]]
        for pixels, place in zip(single.pixels, single.patch, strict=True):
            tokens.append(net.embed(net.network(net.normalise(pixels[None])))[0] + net.positions[0, place])
        sequence = torch.stack(tokens)[None]
        for layer in net.layers:
            sequence = layer(sequence)
        expected = net.head(net.norm(sequence[0, 0] + sequence[0, 1:].mean(0)))
        torch.testing.assert_close(found[image], expected, rtol=1e-5, atol=5e-5)


@pytest.mark.parametrize("fill", ["mean", "low"])
@torch.inference_mode()
def test_the_vit_is_the_plain_one_without_the_tokens_of_unread_patches(fill: str) -> None:
    net = classifier("vit", fill)
    assert isinstance(net, TokenViT)
    (high, low), choice = images(), choices()
    plain = net.network
    tokens = plain._pos_embed(plain.patch_embed(net.normalise(high)))
    shown = pixel_mask(choice, GRID, 8, 8).flatten(1)  # tokens of 2 px
    cells = torch.nn.functional.adaptive_avg_pool2d(net.normalise(low), (8, 8))
    found = net(gather(high, choice, GRID), low)
    for image in range(1, 6):
        sequence = torch.cat([tokens[image, :1], tokens[image, 1:][shown[image]]])
        if fill == "low":
            rest = net.low_embed(cells[image : image + 1]).flatten(2)[0].T + net.low_positions[0]
            sequence = torch.cat([sequence, rest[~choice[image]]])
        expected = plain.head(plain.norm(plain.blocks(sequence[None]))[:, 0])[0]
        torch.testing.assert_close(found[image], expected, **CLOSE)


@pytest.mark.parametrize("name", ["masked", "canvas", "vit"])
@torch.inference_mode()
def test_every_patch_is_the_plain_network_on_the_whole_image(name: str) -> None:
    net = classifier(name, "low")
    assert isinstance(net, HighClassifier)
    high, low = images()
    packed = gather(high, torch.ones(6, 16, dtype=torch.bool), GRID)
    found = net(packed, low)
    torch.testing.assert_close(found, net.network(net.normalise(high)), **CLOSE)  # type: ignore[operator]
    torch.testing.assert_close(net.whole(high, low), found, **CLOSE)
    by_patches = net(replace(packed, weight=torch.ones(6 * 16)), low)
    torch.testing.assert_close(by_patches, found, **CLOSE)


def test_on_all_patches_batch_norm_learns_the_statistics_of_whole_images() -> None:
    net = classifier("canvas", "low")
    assert isinstance(net, CanvasCNN)
    high, low = images()
    before = bits(net)
    net.train()(gather(high, torch.ones(6, 16, dtype=torch.bool), GRID), low)
    packed = bits(net.network)
    net.load_state_dict(before)
    net.network.train()(net.normalise(high))
    assert not same_bits(packed, {k.removeprefix("network."): v for k, v in before.items() if k.startswith("network.")})
    for key, value in bits(net.network).items():
        torch.testing.assert_close(packed[key], value, **CLOSE)


# --- what holds for all


@every
@torch.inference_mode()
def test_neither_order_nor_composition_of_a_batch_matters_nor_a_nan_in_a_dropped_patch(name: str, fill: str) -> None:
    net, (high, low), choice = classifier(name, fill), images(), choices()
    found = net(gather(high, choice, GRID), low)
    order = torch.tensor([3, 0, 5, 4, 2, 1])
    torch.testing.assert_close(net(gather(high[order], choice[order], GRID), low[order]), found[order], **CLOSE)
    for i in range(6):
        one = slice(i, i + 1)
        torch.testing.assert_close(net(gather(high[one], choice[one], GRID), low[one]), found[one], **CLOSE)
    holes = torch.where(pixel_mask(choice, GRID, 16, 16).unsqueeze(1), high, torch.nan)
    assert torch.equal(net(gather(holes, choice, GRID), low), found)
    assert bool(found.isfinite().all())


@every
def test_weights_of_0_and_1_choose_as_packing_does_and_each_carries_a_gradient(name: str, fill: str) -> None:
    net, (high, low), choice = classifier(name, fill), images(), choices()
    weight = choice.float().flatten().requires_grad_()
    relaxed = net(replace(gather(high, torch.ones_like(choice), GRID), weight=weight), low)
    torch.testing.assert_close(relaxed, net(gather(high, choice, GRID), low), rtol=1e-5, atol=2e-5)
    relaxed[:, 0].square().sum().backward()
    assert weight.grad is not None
    assert bool(weight.grad.isfinite().all())
    moved = weight.grad.view(6, 16) != 0
    assert bool(moved[2:].all())  # the only patch of an image is all of a mean, whatever it weighs


@every
@torch.inference_mode()
def test_no_patch_calls_no_hr_layer_and_in_ft2_is_lr(name: str, fill: str) -> None:
    net, (high, low) = classifier(name, fill, "ft2").classifier, images()
    assert isinstance(net, TwoStream)
    for layer in net.high.modules():
        layer.register_forward_hook(lambda *_: pytest.fail("a layer of the HR classifier ran"))
    nothing = gather(high, torch.zeros(6, 16, dtype=torch.bool), GRID)
    assert torch.equal(net(nothing, low), net.low(low))


@pytest.mark.parametrize("name", NEW)
@torch.inference_mode()
def test_an_image_without_a_patch_runs_no_layer_alone_and_none_in_a_batch(name: str) -> None:
    net, (high, low), choice = classifier(name, "low"), images(), choices()
    found = net(gather(high, choice, GRID), low)
    assert torch.equal(found[0], net.unread)
    rest = flops(net, gather(high[1:], choice[1:], GRID), low[1:])
    assert flops(net, gather(high, choice, GRID), low) == rest
    for layer in net.children():
        layer.register_forward_hook(lambda *_: pytest.fail("a layer ran"))
    assert torch.equal(net(gather(high[:1], choice[:1], GRID), low[:1])[0], net.unread)


@pytest.mark.parametrize("name", NEW)
def test_a_batch_costs_what_its_images_cost_one_at_a_time(name: str) -> None:
    net, (high, low), choice = classifier(name), images(), choices()
    singles = [flops(net, gather(high[i : i + 1], choice[i : i + 1], GRID), low[i : i + 1]) for i in range(6)]
    assert singles[0] == 0
    assert flops(net, gather(high, choice, GRID), low) == sum(singles)


@pytest.mark.parametrize("name", ["canvas", "vit"])
def test_each_further_patch_costs_the_same_but_for_attention(name: str) -> None:
    net, (high, low) = classifier(name), images()
    costs = [flops(net, gather(high[:1], torch.arange(16)[None] < s, GRID), low[:1]) for s in range(1, 17)]
    steps = [b - a for a, b in pairwise(costs)]
    if name == "canvas":
        assert set(steps) == {steps[0]}
        assert 16 * steps[0] > costs[-1] / 2
    else:
        growth = [b - a for a, b in pairwise(steps)]
        # The square of the tokens: 2 layers, 2 products, a multiply-add as 2, 16 channels; 4 tokens more each time.
        assert set(growth) == {2 * 2 * 2 * 16 * 2 * 4**2}


# --- training


@pytest.mark.parametrize("name", NEW)
@pytest.mark.parametrize("stage", ["patches", "ft2"])
def test_a_stopped_stage_goes_on_to_the_same_bits(name: str, stage: str, tmp_path: Path) -> None:
    settings = tiny_settings(
        classifier=name, hr_network=NETWORKS[name], fill="low", estimator="straight-through", fusion="learned"
    )

    def run(folder: Path, stop_after: int = 0) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model = build_stage(stage, config_of(settings))
        kinds = (ClassifierTask(stage, model, loader_of(settings, FIT, VAL)),) if stage == "patches" else ()
        task = kinds[0] if kinds else PolicyTask(stage, model, loader_of(settings, FIT, VAL), learning_of(settings))  # type: ignore[arg-type]
        trained(task, folder, stop_after)
        return bits(model)

    whole = run(tmp_path / "whole")
    with pytest.raises(Interrupted):
        run(tmp_path / "stopped", 4)
    assert same_bits(run(tmp_path / "stopped"), whole)


@pytest.mark.parametrize(
    "name", ["canvas", pytest.param("patch-set", marks=pytest.mark.long), pytest.param("vit", marks=pytest.mark.long)]
)
def test_a_whole_run_trains_every_stage_predicts_and_is_timed(name: str, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    epochs = {f"epochs_{stage}": 1 for stage in ("lr", "hr", "patches", "pt", "ft1", "ft2")}
    settings = tiny_settings(
        data=str(data), classifier=name, hr_network=NETWORKS[name], fill="low", val_fraction=0.25, **epochs
    )
    document = commands.train(settings, tmp_path / "run")
    assert {row["stage"] for row in document["rows"]} == {"lr", "hr", "pt", "ft1", "ft2"}
    run = RunFolder(tmp_path / "run")
    assert (tmp_path / "run" / "report.html").exists()
    if name == "patch-set":
        alone, joined, low = (run.load(stage)[0] for stage in ("hr", "patches", "lr"))
        assert isinstance(alone, PatchSet)
        assert alone.context is None
        assert isinstance(joined, PatchSet)
        assert joined.context is not None
        ours, theirs = joined.context.network.stem[0].weight, low.network.stem[0].weight  # type: ignore[index, union-attr]
        assert float((ours - theirs).detach().abs().mean()) < 0.2 * float(theirs.detach().abs().mean())
    image = next((data / "test").rglob("*.png"))
    assert len(list(commands.predict(Asking(run.path, overlay=tmp_path / "overlays"), [image]))) == 1
    timed = commands.bench(run.path, batches=(2,), rounds=1, stages=["hr", "ft2"])
    work = {row["way"]: row["flops_image"] for row in timed["rows"]}
    assert work["episode, S = 0"] < work["episode, S = 1"] < work["episode, S = 4"] < work["episode, S = 8"]


# --- what is refused


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"classifier": "vit", "hr_network": "vit2-w16-p4", "high": "40"},
            "multiple of 4 x 4 px, .*use --high 32 or 48",
        ),
        ({"classifier": "vit", "hr_network": "vit_tiny_patch16_224"}, "multiple of 16 x 16 px.*use --high 64"),
        ({"classifier": "vit", "hr_network": "resnet8"}, "'resnet8' is no plain vision transformer; use one such as"),
        ({"classifier": "vit", "hr_network": "vit2-w200-p4"}, "no multiple of 64; use vit2-w192-p4"),
        ({"classifier": "vit", "hr_network": "vit_base_patch16_siglip_224", "high": "64"}, "no class token"),
        (
            {"classifier": "canvas", "hr_network": "resnet50", "high": "40"},
            "stride of resnet50's .*use --high 32 or 48",
        ),
        ({"classifier": "canvas", "patch_stages": 2, "high": "20x36"}, "use --high 16x32 or 24x40"),
        ({"classifier": "canvas", "patch_stages": 3}, "patch_stages: 3 leaves no stage .* use 1 to 2"),
        ({"classifier": "canvas", "hr_network": "mobilenetv3_small_050"}, "is no ResNet; use resnet8"),
        ({"classifier": "canvas", "hr_network": "seresnet50"}, "layer SEModule that cannot run on single patches"),
        ({"classifier": "patch-set", "hr_network": "vit_tiny_patch16_224"}, "cannot take patches of 4 x 4 px"),
    ],
)
def test_patches_and_networks_that_do_not_fit_are_refused_in_one_line_that_says_what_does(
    changes: dict[str, str], says: str
) -> None:
    settings = tiny_settings(**changes)
    with pytest.raises(UsageError, match=says) as error:
        build_stage("hr", config_of(settings))
    assert "\n" not in str(error.value)


def test_bagnet_and_lr_in_unread_patches_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="fill: 'low' has no meaning with classifier bagnet"):
        commands.train(tiny_settings(classifier="bagnet", fill="low"), tmp_path / "run")
