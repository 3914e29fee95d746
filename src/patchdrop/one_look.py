"""PatchDrop with one look at LR: the policy stands on LR-CNN, so LR passes through that network once.

LR-CNN and policy cost as much as each other and, beside a small HR network, together a good part of the time that
patches left unread can save. Here the policy's network is LR-CNN as it was trained; Pt learns the policy's head on it.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor

from patchdrop.classify.two_stream import TwoStream
from patchdrop.episode import Episode, PatchDrop, play
from patchdrop.policy.choice import Choose
from patchdrop.policy.network import Policy
from patchdrop.read.source import Reader


class OneLook(PatchDrop):
    """The policy's network and the second stream's hold the same weights, which no stage of the policy trains."""

    policy: Policy
    classifier: TwoStream

    def __init__(self, policy: Policy, classifier: TwoStream) -> None:
        super().__init__(policy, classifier)

    def forward(self, low: Tensor, choose: Choose, read: Reader) -> Episode:
        """`play`, to the bit, with LR's features computed once."""
        maps = self.policy.look(low)
        opinion = self.policy.opinion(maps)
        scores = self.policy.decide(self.policy.places(maps), opinion)
        return play(lambda _: scores, choose, read, partial(self.classifier.join, opinion), low)
