"""Check which settings go together, by one table that the documentation shows too."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from patchdrop.errors import UsageError
from patchdrop.settings.flat import TrainSettings

EXACT_PATCHES = 10
"""Most patches of a grid for the estimator ``exact``, which takes all 2^P masks."""


@dataclass(frozen=True)
class Combination:
    """A rule that settings must keep, with its check and its error.

    Attributes:
        rule: the rule in words, for the documentation.
        broken: whether settings, with sizes, grid and networks filled in, break it.
        says: the error for such settings, which tells what to do instead.
    """

    rule: str
    broken: Callable[[TrainSettings], bool]
    says: Callable[[TrainSettings], str]


COMBINATIONS = (
    Combination(
        "`target_patches` is at most the number of patches of `grid`",
        lambda s: s.target_patches > s.shape.grid.patches,
        lambda s: (
            f"target_patches: {s.target_patches:g} is out of range, grid {s.grid} has {s.shape.grid.patches} patches; "
            f"use 0 to {s.shape.grid.patches}"
        ),
    ),
    Combination(
        "one of `tolerance`, `target_patches` and `mistake` is given",
        lambda s: len(s.operating_points) > 1,
        lambda s: f"{' and '.join(s.operating_points)} ask for different operating points; give one",
    ),
    Combination(
        f"`estimator: exact` has at most {EXACT_PATCHES} patches",
        lambda s: s.estimator == "exact" and s.shape.grid.patches > EXACT_PATCHES,
        lambda s: (
            f"estimator: exact takes all 2^P masks, grid {s.grid} has {s.shape.grid.patches} patches; use a grid of at "
            f"most {EXACT_PATCHES} patches, or rloo with more --samples"
        ),
    ),
    Combination(
        "`classifier: bagnet` has `fill: mean`",
        lambda s: s.classifier == "bagnet" and s.fill != "mean",
        lambda s: f"fill: {s.fill!r} has no meaning with classifier bagnet, which sees patches only; use mean",
    ),
    Combination(
        "`policy: ranking` has `low_stream: pt`",
        lambda s: s.policy == "ranking" and s.low_stream != "pt",
        lambda s: (
            f"low_stream: policy ranking uses LR-CNN from Pt on, not from {s.low_stream}; use --low-stream pt, "
            "or --policy bernoulli"
        ),
    ),
    Combination(
        "`policy_head: certainty` has `policy: bernoulli`",
        lambda s: s.policy_head == "certainty" and s.policy == "ranking",
        lambda s: "policy_head: certainty is for --policy bernoulli, policy ranking uses LR-CNN's prediction anyway",
    ),
    Combination(
        "`policy_start: shared` has one network for policy and LR-CNN",
        lambda s: s.policy_start == "shared" and s.policy_network != s.lr_network,
        lambda s: (
            f"policy_start: shared takes LR-CNN's network, but policy_network is {s.policy_network} and lr_network "
            f"{s.lr_network}; name the same twice"
        ),
    ),
    Combination(
        "`policy_start: shared` with `policy: bernoulli` has `policy_head: certainty`",
        lambda s: s.policy_start == "shared" and s.policy == "bernoulli" and s.policy_head != "certainty",
        lambda s: (
            f"policy_start: shared needs a policy that keeps LR-CNN's classes, which head {s.policy_head} does not; "
            "use --policy-head certainty"
        ),
    ),
    Combination(
        "`policy_start: shared` has another `policy_head` than `global`",
        lambda s: s.policy_start == "shared" and s.policy_head == "global",
        lambda s: (
            "policy_start: shared needs a policy that reads the features of LR-CNN's network, which head global does "
            "not; use --policy-head spatial"
        ),
    ),
    Combination(
        "`policy_start: shared` has `low_stream: pt`",
        lambda s: s.policy_start == "shared" and s.low_stream != "pt",
        lambda s: (
            f"policy_start: shared needs LR-CNN as a second stream from Pt on, not from {s.low_stream}; "
            "use --low-stream pt"
        ),
    ),
)


def check_combinations(settings: TrainSettings) -> None:
    """Refuse settings that contradict each other.

    Args:
        settings: with sizes, grid and networks filled in.

    Raises:
        UsageError: they do, or the grid has more patches than HR can hold.
    """
    for combination in COMBINATIONS:
        if combination.broken(settings):
            raise UsageError(combination.says(settings))
