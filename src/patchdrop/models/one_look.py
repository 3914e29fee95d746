"""Models whose policy and classifier share LR-CNN's outputs, so that no network looks at LR twice.

`Advised`: the policy is a `patchdrop.policy.ranking.Ranking`, which takes LR-CNN's logits; they are also the
classifier's second stream. `OneLook`: the policy's network is LR-CNN as it was trained, and the policy learns its head
on it. LR-CNN and a policy network of its own cost as much as each other and, beside a small HR network, together a good
part of the time that patches left unread can save.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from patchdrop.classify.two_stream import TwoStream
from patchdrop.episode import Look, PatchDrop
from patchdrop.policy.network import Policy
from patchdrop.policy.ranking import Ranking
from patchdrop.policy.rules import Rule
from patchdrop.policy.sights import activation_maps, detail


class SharedLook(PatchDrop):
    """A model whose policy and second stream share LR-CNN's logits."""

    classifier: TwoStream

    def __init__(self, policy: nn.Module, classifier: TwoStream) -> None:
        super().__init__(policy, classifier)


class Advised(SharedLook):
    """A model with a ranking policy beside LR-CNN.

    Args:
        shared: whether the policy's network holds LR-CNN's weights, which no stage of the policy trains.
    """

    policy: Ranking

    def __init__(self, policy: Ranking, classifier: TwoStream, shared: bool) -> None:
        super().__init__(policy, classifier)
        self.shared = shared

    def hear(self, low: Tensor) -> tuple[Tensor, Tensor]:
        """Return utilities ``(B, P)``, and LR-CNN's class logits ``(B, K)``, through which no gradient flows."""
        utility = self.policy.utility
        if not self.shared:
            return utility(low), self.classifier.low(low).detach()
        maps = utility.look(low)
        return utility.decide(utility.places(maps), None), utility.opinion(maps).detach()

    def look(self, low: Tensor) -> Look:
        """Decide from LR images; LR-CNN runs once."""
        utilities, opinion = self.hear(low)
        scores, chances = self.policy.weigh(utilities, opinion)
        return Look(scores, chances, partial(self.classifier.join, opinion))


class Ruled(SharedLook):
    """A model with a rule, which uses LR-CNN's logits, instead of a policy."""

    policy: Rule

    def look(self, low: Tensor) -> Look:
        """Decide from LR images."""
        opinion = self.classifier.low(low)
        return Look(self.policy(low, opinion, self._see), None, partial(self.classifier.join, opinion))

    def _see(self, low: Tensor) -> Tensor:
        grid = self.classifier.high.grid
        return detail(low, grid) if self.policy.name == "detail" else activation_maps(self.classifier.low, low, grid)


class OneLook(SharedLook):
    """A model with a policy of independent patches on LR-CNN's network, which no stage of the policy trains."""

    policy: Policy

    def look(self, low: Tensor) -> Look:
        """Decide from LR images, whose features are computed once."""
        maps = self.policy.look(low)
        opinion = self.policy.opinion(maps)
        scores = self.policy.decide(self.policy.places(maps), opinion)
        return Look(scores, None, partial(self.classifier.join, opinion))
