"""Turn what the dial asks for into a choice of patches for each stage of a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from patchdrop.data.sets import Split, low_of
from patchdrop.episode import PatchDrop
from patchdrop.errors import RunError, UsageError
from patchdrop.files import read_json
from patchdrop.grid import Size
from patchdrop.models.compute import Compute
from patchdrop.models.shared_pass import RankingModel
from patchdrop.policy.budget import above, at_most, cut_for_mean, logit_of
from patchdrop.policy.choice import Choose
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.dial import Dial

POLICY_STAGES = ("pt", "ft1", "ft2")
BATCH = 64
FILE = "calibration.json"
LACKS = "make it anew with `patchdrop calibrate`"


def policy_stages(run: RunFolder) -> list[str]:
    """List the trained stages that have a policy, in order."""
    return [stage for stage in run.stages_done() if stage in POLICY_STAGES]


def policy_stage(run: RunFolder, stage: str | None = None) -> str:
    """Return the stage asked for, or else the last trained one that has a policy.

    Raises:
        RunError: none is trained.
        UsageError: the stage asked for has no policy.
    """
    trained = policy_stages(run)
    if stage is None and not trained:
        raise RunError(f"{run}: no policy is trained yet; go on with `patchdrop train`")
    stage = stage or trained[-1]
    if stage not in POLICY_STAGES:
        raise UsageError(f"stage {stage!r} has no policy, use pt, ft1 or ft2")
    return stage


def policy_scores(model: PatchDrop, low_size: Size, split: Split, compute: Compute) -> Tensor:
    """Return the policy's patch logits on every image of a split: ``(n, P)`` float32. The classifier is not run."""
    with torch.inference_mode():
        found = [compute.look(model, low_of(batch, low_size)).scores.cpu() for batch in split.in_order(BATCH)]
    return torch.cat(found).float()


def choices_of(
    dial: Dial, run: RunFolder, stages: Sequence[str], images: Split | None, compute: Compute
) -> dict[str, Choose]:
    """Return how each policy stage chooses under a dial that is turned.

    Args:
        stages: policy stages that are trained.
        images: the images that a mean budget is spent on; None if they are not at hand all at once.

    Returns:
        Stage -> function from patch logits to choice. A calibrated point is of one stage, so other stages are left out.

    Raises:
        UsageError: a budget above the number of patches, a mean budget without images, or a calibrated point of another
            stage than the one asked for.
        RunError: no calibrated point, or one made with other weights.
    """
    dial.check(run.settings().shape.grid.patches)
    if dial.calibrated:
        calibration = read_calibration(run)
        stage = calibration["stage"]
        if stage not in stages:
            raise UsageError(f"{run}: stage {stage} is calibrated, not {', '.join(stages)}; leave out --stage")
        return {stage: partial(above, cut=chosen_point(run, calibration)["cut"])}
    choices: dict[str, Choose] = {}
    for stage in stages:
        model, config = run.load(stage)
        assert isinstance(model, PatchDrop)
        if dial.mean_budget is not None:
            if images is None:
                raise UsageError(
                    "--mean-budget: needs all images at once; calibrate the run with it, then give --calibrated"
                )
            scores = policy_scores(model.to(compute.device), config.shape.low, images, compute)
            choices[stage] = partial(above, cut=cut_for_mean(scores, dial.mean_budget))
            continue
        if dial.mistake is not None:
            choices[stage] = partial(above, cut=_cut_at(dial.mistake, model, stage))
            continue
        cut = 0.0 if dial.threshold is None else logit_of(dial.threshold)
        choices[stage] = (
            partial(above, cut=cut) if dial.budget is None else partial(at_most, budget=dial.budget, cut=cut)
        )
    return choices


def _cut_at(mistake: float, model: PatchDrop, stage: str) -> float:
    """Return the threshold on logits above which a patch is worth its price, if a wrong answer costs so many images."""
    if not isinstance(model, RankingModel):
        raise UsageError(f"--mistake: the policy of stage {stage} predicts no chance of being right; use --mean-budget")
    return -math.log(mistake) - float(model.policy.log_price)


def stage_and_choice(dial: Dial, run: RunFolder, stage: str | None, compute: Compute) -> tuple[str, Choose]:
    """Return the stage that predicts, and how it chooses for each image by itself; otherwise as `choices_of`.

    Args:
        stage: the one asked for; by default the calibrated one, or the last that is trained.
    """
    last = policy_stage(run, stage)
    asked = policy_stages(run) if dial.calibrated and stage is None else [last]
    ((found, choose),) = choices_of(dial, run, asked, None, compute).items()
    return found, choose


def read_calibration(run: RunFolder) -> dict[str, Any]:
    """Read ``calibration.json``.

    Raises:
        RunError: there is none, it is damaged, or its stage has been trained again since.
    """
    path = run.path / FILE
    if not path.exists():
        raise RunError(f"{run}: has no {FILE}; make one with `patchdrop calibrate`")
    found = read_json(path)
    if not _well_formed(found):
        raise RunError(f"{path}: is damaged; {LACKS}")
    if run.stage_config(found["stage"])["sha256"] != found["sha256"]:
        raise RunError(f"{path}: was made with other weights of stage {found['stage']}; {LACKS}")
    return dict(found)


def chosen_point(run: RunFolder, calibration: dict[str, Any]) -> dict[str, Any]:
    """Return the chosen operating point; raises RunError where only a curve was asked for."""
    if calibration["chosen"] is None:
        raise RunError(
            f"{run}: {FILE} holds a curve but no chosen point; give `patchdrop calibrate` --mean-budget, "
            "--target-accuracy or --target-cost"
        )
    return dict(calibration["points"][calibration["chosen"]["point"]])


def _well_formed(found: Any) -> bool:
    """Check that a ``calibration.json`` has all that other commands, and the report, read from it."""
    numbers = ("cut", "threshold", "mean_patches", "hr_fraction", "accuracy")
    try:
        values = [[point[name] for name in numbers] + point["ci95"] for point in found["points"]]
        images, chosen = found["images"], found["chosen"]
        return bool(
            len(values) > 1
            and all(len(row) == len(numbers) + 2 and all(math.isfinite(value) for value in row) for row in values)
            and found["stage"] in POLICY_STAGES
            and all(
                isinstance(text, str) for text in (found["sha256"], *(images[n] for n in ("data", "split", "sha256")))
            )
            and all(isinstance(number, int) for number in (images["seed"], images["n"]))
            and 0 < images["fraction"] <= 1
            and (chosen is None or _answers(chosen, found["target"], len(values)))
        )
    except (KeyError, TypeError, ValueError, IndexError):
        return False


def _answers(chosen: Any, target: Any, points: int) -> bool:
    """Check that the chosen point is one of the curve's, and names the target that it meets."""
    wishes = {
        "mean-budget": ("mean_budget",),
        "target-accuracy": ("target_accuracy", "confidence"),
        "target-cost": ("target_cost", "unit"),
    }
    return chosen["point"] in range(points) and all(name in target for name in wishes[chosen["kind"]])
