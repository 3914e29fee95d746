"""Models whose policy and classifier share LR-CNN's outputs, so that no network looks at LR twice.

`RankingModel`: the policy is a `patchdrop.policy.ranking.Ranking`, which takes LR-CNN's logits; they are also the
classifier's second stream. `SharedBackbone`: the policy's network is LR-CNN as it was trained, and the policy learns
its head on it. LR-CNN and a policy network of its own cost as much as each other and, beside a small HR network,
together a good part of the time that patches left unread can save.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from patchdrop.classify.two_stream import TwoStream
from patchdrop.episode import Look, PatchDrop
from patchdrop.policy.network import Policy
from patchdrop.policy.ranking import Ranking
from patchdrop.policy.rules import Rule
from patchdrop.policy.saliency import activation_maps, detail


class SharedPass(PatchDrop):
    """A model whose policy and second stream share LR-CNN's logits."""

    classifier: TwoStream

    def __init__(self, policy: nn.Module, classifier: TwoStream) -> None:
        super().__init__(policy, classifier)


class RankingModel(SharedPass):
    """A model with a ranking policy beside LR-CNN.

    Args:
        shared: whether the policy's network holds LR-CNN's weights, which no stage of the policy trains.
    """

    policy: Ranking

    def __init__(self, policy: Ranking, classifier: TwoStream, shared: bool) -> None:
        super().__init__(policy, classifier)
        self.shared = shared

    def outputs(self, low: Tensor) -> tuple[Tensor, Tensor]:
        """Return utilities ``(B, P)``, and LR-CNN's class logits ``(B, K)``, through which no gradient flows."""
        utility = self.policy.utility
        if not self.shared:
            return utility(low), self.classifier.low(low).detach()
        maps = utility.look(low)
        return utility.decide(utility.places(maps), None), utility.low_logits(maps).detach()

    def look(self, low: Tensor) -> Look:
        """Decide from LR images; LR-CNN runs once."""
        utilities, low_logits = self.outputs(low)
        scores, chances = self.policy.weigh(utilities, low_logits)
        return Look(scores, chances, partial(self.classifier.join, low_logits))


class RuleModel(SharedPass):
    """A model with a rule, which uses LR-CNN's logits, instead of a policy."""

    policy: Rule

    def look(self, low: Tensor) -> Look:
        """Decide from LR images."""
        low_logits = self.classifier.low(low)
        return Look(self.policy(low, low_logits, self._see), None, partial(self.classifier.join, low_logits))

    def _see(self, low: Tensor) -> Tensor:
        grid = self.classifier.high.grid
        return detail(low, grid) if self.policy.name == "detail" else activation_maps(self.classifier.low, low, grid)


class SharedBackbone(SharedPass):
    """A model with a policy of independent patches on LR-CNN's network, which no stage of the policy trains."""

    policy: Policy

    def look(self, low: Tensor) -> Look:
        """Decide from LR images, whose features are computed once."""
        maps = self.policy.look(low)
        low_logits = self.policy.low_logits(maps)
        scores = self.policy.decide(self.policy.places(maps), low_logits)
        return Look(scores, None, partial(self.classifier.join, low_logits))
