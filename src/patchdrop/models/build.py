"""The networks of each stage, built from a description that is saved beside their weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from patchdrop.classify.bagnet import BagNet
from patchdrop.classify.canvas import CanvasCNN
from patchdrop.classify.high import HighClassifier
from patchdrop.classify.low import LowCNN
from patchdrop.classify.masked_cnn import MaskedCNN
from patchdrop.classify.patch_set import PatchSet
from patchdrop.classify.two_stream import TwoStream
from patchdrop.classify.vit import TokenViT
from patchdrop.data.load import Statistics
from patchdrop.episode import PatchDrop
from patchdrop.errors import RunError, UsageError
from patchdrop.grid import Grid
from patchdrop.models.one_look import Advised, OneLook, Ruled
from patchdrop.networks.build import Normalise
from patchdrop.policy.network import Policy
from patchdrop.policy.ranking import Ranking
from patchdrop.policy.rules import RULES, Rule
from patchdrop.settings.flat import TrainSettings, size_of, two_streams

AGAIN = "remove that stage's folder and train it again"


@dataclass(frozen=True)
class ModelConfig:
    """All that is needed to build a stage's networks again; part of each stage's ``config.json``."""

    classes: tuple[str, ...]
    grid: str
    high: str
    low: str
    channels: int
    hr_network: str
    lr_network: str
    policy_network: str
    policy_head: str
    low_enlarge: int
    fill: str
    fusion: str
    classifier: str = "masked"
    patch_stages: int = 0
    set_layers: int = 1
    low_stream: str = "ft2"
    policy_start: str = "lr"
    policy: str = "bernoulli"

    @classmethod
    def of(cls, settings: TrainSettings, classes: Sequence[str]) -> ModelConfig:
        """The description that belongs to these settings."""
        shared = {name: getattr(settings, name) for name in cls.__dataclass_fields__ if name != "classes"}
        return cls(classes=tuple(classes), **shared)

    @classmethod
    def from_json(cls, values: Mapping[str, Any], where: str) -> ModelConfig:
        """The description in a ``config.json``.

        Raises:
            RunError: a key is missing that has no default (the default is what all runs had before there was the key).
        """
        defaults = {n: f.default for n, f in cls.__dataclass_fields__.items() if f.default is not MISSING}
        values = {**defaults, **values}
        missing = [name for name in cls.__dataclass_fields__ if name not in values]
        if missing:
            raise RunError(f"{where}: lacks {missing[0]!r}, it is not of this version; train that stage again")
        chosen = {name: values[name] for name in cls.__dataclass_fields__}
        for name, field in cls.__dataclass_fields__.items():
            kind = {"int": int, "str": str}.get(str(field.type), list)
            if not isinstance(chosen[name], kind) or (
                kind is list and not all(isinstance(c, str) for c in chosen[name])
            ):
                raise RunError(f"{where}: {name!r} is {chosen[name]!r}, which makes no sense; train that stage again")
        return cls(**{**chosen, "classes": tuple(chosen["classes"])})

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {**asdict(self), "classes": list(self.classes)}

    def check(self) -> None:
        """Raise UsageError where there is no such classifier, or sizes or grid are none or do not fit together."""
        classifiers = get_args(get_type_hints(TrainSettings)["classifier"])
        if self.classifier not in classifiers:
            raise UsageError(f"classifier: {self.classifier!r} is not one of {', '.join(classifiers)}")
        policies = ("ranking", "bernoulli", *RULES)
        if self.policy not in policies:
            raise UsageError(f"policy: {self.policy!r} is not one of {', '.join(policies)}")
        size_of(self.low, "low")
        Grid.parse(self.grid).check(*self.high_size)

    @property
    def high_size(self) -> tuple[int, int]:
        """HR (height, width) in pixels."""
        return size_of(self.high, "high")

    @property
    def low_size(self) -> tuple[int, int]:
        """LR (height, width) in pixels."""
        return size_of(self.low, "low")


def build_stage(
    stage: str, config: ModelConfig, statistics: Statistics | None = None, pretrained: bool = False
) -> nn.Module:
    """The untrained model of a stage.

    LowCNN for ``lr``, a HighClassifier for ``hr`` and ``patches``, else PatchDrop.

    Args:
        statistics: channel statistics of the training images; None where weights that hold them are loaded next.
    """
    if stage == "lr":
        return _build_low(config, statistics, pretrained)
    if stage in ("hr", "patches"):
        return _build_high(config, statistics, pretrained, alone=stage == "hr")
    if config.policy in RULES:
        streams = TwoStream(
            _build_high(config, statistics, False), _build_low(config, statistics, False), config.fusion
        )
        return Ruled(Rule(config.policy, Grid.parse(config.grid).patches), streams)
    ranks, shared = config.policy == "ranking", config.policy_start == "shared"
    policy = Policy(
        config.policy_network,
        Grid.parse(config.grid),
        config.low_size,
        _low_statistics(config, statistics),
        channels=config.channels,
        enlarge=config.low_enlarge,
        head=config.policy_head,
        classes=len(config.classes) if config.policy_head == "certainty" or shared else 0,
        pretrained=pretrained,
    )
    high = _build_high(config, statistics, False)
    if not two_streams(stage, config.low_stream):
        return PatchDrop(policy, high)
    streams = TwoStream(high, _build_low(config, statistics, False), config.fusion)
    if ranks:
        return Advised(Ranking(policy, len(config.classes)), streams, shared)
    return OneLook(policy, streams) if shared else PatchDrop(policy, streams)


def _build_low(config: ModelConfig, statistics: Statistics | None, pretrained: bool, features: bool = False) -> LowCNN:
    """LR-CNN; where asked without its head."""
    return LowCNN(
        config.lr_network,
        0 if features else len(config.classes),
        _low_statistics(config, statistics),
        channels=config.channels,
        enlarge=config.low_enlarge,
        pretrained=pretrained,
    )


def _build_high(
    config: ModelConfig, statistics: Statistics | None, pretrained: bool, alone: bool = False
) -> HighClassifier:
    """The HR classifier; ``alone`` where every patch is read, so that a patch set learns without LR."""
    mean, std = (
        (torch.zeros(config.channels), torch.ones(config.channels))
        if statistics is None
        else (statistics.mean, statistics.std)
    )
    network, classes, grid, size = config.hr_network, len(config.classes), Grid.parse(config.grid), config.high_size
    normalise, fill = Normalise(mean, std), config.fill
    shared: dict[str, Any] = {"channels": config.channels, "pretrained": pretrained}
    if config.classifier == "bagnet":
        return BagNet(network, classes, grid, normalise, **shared)
    if config.classifier == "canvas":
        return CanvasCNN(network, classes, grid, size, normalise, fill=fill, stages=config.patch_stages, **shared)
    if config.classifier == "patch-set":
        context = None if alone or fill == "mean" else _build_low(config, statistics, False, features=True)
        return PatchSet(network, classes, grid, size, normalise, context=context, layers=config.set_layers, **shared)
    if config.classifier == "vit":
        return TokenViT(network, classes, grid, size, config.low_size, normalise, fill=fill, **shared)
    return MaskedCNN(network, classes, grid, size, normalise, fill=fill, **shared)


def _low_statistics(config: ModelConfig, statistics: Statistics | None) -> Normalise:
    if statistics is None:
        return Normalise(torch.zeros(config.channels), torch.ones(config.channels))
    return Normalise(statistics.low_mean, statistics.low_std)


def fill_weights(model: nn.Module, tensors: Mapping[str, Tensor], where: str) -> None:
    """Load weights after comparing every name, shape and type.

    Raises:
        RunError: they are not of this model, or hold a value that is not a number.
    """
    expected = model.state_dict()
    odd = sorted(set(expected) ^ set(tensors))
    if odd:
        raise RunError(f"{where}: is not of this network ({odd[0]!r} is missing or unknown); {AGAIN}")
    for name, tensor in tensors.items():
        ours = expected[name]
        if tensor.shape != ours.shape or tensor.dtype != ours.dtype:
            raise RunError(f"{where}: {name} is {list(tensor.shape)}, this network has {list(ours.shape)}; {AGAIN}")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise RunError(f"{where}: {name} holds values that are not numbers; {AGAIN}")
    model.load_state_dict(dict(tensors))


def copy_matching(source: nn.Module, target: nn.Module) -> int:
    """Copy every tensor whose name and shape agree; returns how many did."""
    theirs = source.state_dict()
    ours = target.state_dict()
    same = {name: theirs[name] for name in ours if name in theirs and theirs[name].shape == ours[name].shape}
    target.load_state_dict({**ours, **same})
    return len(same)
