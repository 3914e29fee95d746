"""Build the networks of each stage from a description that is saved beside their weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Any, get_args, get_type_hints

import torch
from torch import Tensor, nn

from patchdrop.classify.bagnet import BagNet
from patchdrop.classify.canvas import CanvasCNN
from patchdrop.classify.high import HighClassifier, Spec
from patchdrop.classify.low import LowCNN
from patchdrop.classify.masked_cnn import MaskedCNN
from patchdrop.classify.patch_set import PatchSet
from patchdrop.classify.two_stream import TwoStream
from patchdrop.classify.vit import TokenViT
from patchdrop.data.load import Statistics
from patchdrop.episode import PatchDrop
from patchdrop.errors import RunError, UsageError
from patchdrop.grid import Shape, shape_of, size_text
from patchdrop.models.shared_pass import RankingModel, RuleModel, SharedBackbone
from patchdrop.networks.build import Normalise
from patchdrop.policy.network import Policy
from patchdrop.policy.ranking import Ranking
from patchdrop.policy.rules import RULES, Rule
from patchdrop.settings.flat import TrainSettings, two_streams

AGAIN = "remove that stage's folder and train it again"


@dataclass(frozen=True)
class ModelConfig:
    """A description from which a stage's networks can be built again; part of each stage's ``config.json``.

    In JSON the shape is four plain values beside the others: ``grid``, ``high``, ``low`` and ``channels``.
    """

    classes: tuple[str, ...]
    shape: Shape
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
    def from_json(cls, values: Mapping[str, Any], where: str) -> ModelConfig:
        """Read the description in a ``config.json``.

        Raises:
            RunError: a key without a default is missing (the default is what all runs had before the key existed), or a
                value makes no sense.
        """
        own = {name: field for name, field in cls.__dataclass_fields__.items() if name not in ("classes", "shape")}
        kinds: dict[str, type] = {"classes": list, "grid": str, "high": str, "low": str, "channels": int}
        kinds |= {name: {"int": int, "str": str}[str(field.type)] for name, field in own.items()}
        defaults: dict[str, Any] = {n: f.default for n, f in own.items() if f.default is not MISSING}
        values = {**defaults, **values}
        for name, kind in kinds.items():
            if name not in values:
                raise RunError(f"{where}: lacks {name!r}, it is not of this version; train that stage again")
            value = values[name]
            texts = value if isinstance(value, list) else []
            if not isinstance(value, kind) or not all(isinstance(text, str) for text in texts):
                raise RunError(f"{where}: {name!r} is {value!r}, which makes no sense; train that stage again")
        try:
            shape = shape_of(values["high"], values["low"], values["grid"], values["channels"])
        except UsageError as error:
            raise RunError(f"{where}: is damaged or of another version ({error}); train that stage again") from error
        return cls(tuple(values["classes"]), shape, **{name: values[name] for name in own})

    def to_json(self) -> dict[str, Any]:
        """Return plain values."""
        high, low, grid, channels = self.shape
        flat = {"grid": str(grid), "high": size_text(high), "low": size_text(low), "channels": channels}
        own = {name: value for name, value in vars(self).items() if name not in ("classes", "shape")}
        return {"classes": list(self.classes), **flat, **own}

    def check(self) -> None:
        """Raise UsageError if there is no such classifier or policy."""
        classifiers = get_args(get_type_hints(TrainSettings)["classifier"])
        if self.classifier not in classifiers:
            raise UsageError(f"classifier: {self.classifier!r} is not one of {', '.join(classifiers)}")
        policies = ("ranking", "bernoulli", *RULES)
        if self.policy not in policies:
            raise UsageError(f"policy: {self.policy!r} is not one of {', '.join(policies)}")


def build_stage(
    stage: str, config: ModelConfig, statistics: Statistics | None = None, pretrained: bool = False
) -> nn.Module:
    """Build the untrained model of a stage: LowCNN for ``lr``, a HighClassifier for ``hr`` and ``patches``, else
    PatchDrop.

    Args:
        statistics: channel statistics of the training images; None if weights that hold them are loaded next.
    """
    if stage == "lr":
        return _build_low(config, statistics, pretrained)
    if stage in ("hr", "patches"):
        return _build_high(config, statistics, pretrained, alone=stage == "hr")
    if config.policy in RULES:
        streams = TwoStream(
            _build_high(config, statistics, False), _build_low(config, statistics, False), config.fusion
        )
        return RuleModel(Rule(config.policy, config.shape.grid.patches), streams)
    ranks, shared = config.policy == "ranking", config.policy_start == "shared"
    policy = Policy(
        config.policy_network,
        config.shape.grid,
        config.shape.low,
        _low_statistics(config, statistics),
        channels=config.shape.channels,
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
        return RankingModel(Ranking(policy, len(config.classes)), streams, shared)
    return SharedBackbone(policy, streams) if shared else PatchDrop(policy, streams)


def _build_low(config: ModelConfig, statistics: Statistics | None, pretrained: bool, features: bool = False) -> LowCNN:
    """Build LR-CNN; with ``features``, without its head."""
    return LowCNN(
        config.lr_network,
        0 if features else len(config.classes),
        _low_statistics(config, statistics),
        channels=config.shape.channels,
        enlarge=config.low_enlarge,
        pretrained=pretrained,
    )


def _build_high(
    config: ModelConfig, statistics: Statistics | None, pretrained: bool, alone: bool = False
) -> HighClassifier:
    """Build the HR classifier; ``alone``: every patch is read, so a patch set learns without LR."""
    mean, std = (
        (torch.zeros(config.shape.channels), torch.ones(config.shape.channels))
        if statistics is None
        else (statistics.mean, statistics.std)
    )
    spec = Spec(config.hr_network, len(config.classes), config.shape, Normalise(mean, std), config.fill, pretrained)
    if config.classifier == "bagnet":
        return BagNet(spec)
    if config.classifier == "canvas":
        return CanvasCNN(spec, stages=config.patch_stages)
    if config.classifier == "patch-set":
        without = alone or config.fill == "mean"
        context = None if without else _build_low(config, statistics, False, features=True)
        return PatchSet(spec, context=context, layers=config.set_layers)
    if config.classifier == "vit":
        return TokenViT(spec)
    return MaskedCNN(spec)


def _low_statistics(config: ModelConfig, statistics: Statistics | None) -> Normalise:
    if statistics is None:
        return Normalise(torch.zeros(config.shape.channels), torch.ones(config.shape.channels))
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
    """Copy every tensor whose name and shape agree; return how many did."""
    theirs = source.state_dict()
    ours = target.state_dict()
    same = {name: theirs[name] for name in ours if name in theirs and theirs[name].shape == ours[name].shape}
    target.load_state_dict({**ours, **same})
    return len(same)
