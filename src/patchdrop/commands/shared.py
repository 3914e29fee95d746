"""What several commands do first: check settings, load data, see that run and data belong together."""

from __future__ import annotations

from dataclasses import replace

import torch

from patchdrop.costs.flops import Cost, forward_costs
from patchdrop.data.load import Data, check_classes, load
from patchdrop.data.propose import LARGEST_ON_CPU, LARGEST_ON_GPU, propose_for
from patchdrop.errors import PatchDropError, RunError, UsageError, first_line
from patchdrop.grid import Grid, patch_size
from patchdrop.networks.build import check_pretrained, takes
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.defaults import with_networks, with_schedule
from patchdrop.settings.flat import TrainSettings
from patchdrop.terminal.talk import bars, say
from patchdrop.training.orientation import augmentations
from patchdrop.training.run import device_of

EXACT_PATCHES = 10


def with_sizes(settings: TrainSettings) -> tuple[TrainSettings, dict[str, str]]:
    """Settings whose sizes, grid and networks are named, and the reasons for those that are proposed.

    Among the reasons may be a ``warning``: HR larger than the images are.
    """
    if not settings.data:
        return with_networks(settings), {}
    largest = LARGEST_ON_CPU if device_of(settings).type == "cpu" else LARGEST_ON_GPU
    named = {name: getattr(settings, name) for name in ("high", "low", "grid")}
    found = propose_for(settings.data, settings.layout, largest, **named)
    settings = replace(settings, high=found.high, low=found.low, grid=found.grid)
    warned = {} if found.warning is None else {"warning": found.warning}
    return with_networks(settings), {**found.reasons, **warned}


def completed(settings: TrainSettings) -> tuple[TrainSettings, Data, dict[str, str]]:
    """Settings with all that is filled in from the data, the data, and the reasons for sizes that are proposed.

    Raises:
        UsageError: settings contradict each other; this is said before images are decoded, and where sizes and grid
            are named before data are looked for.
    """
    if settings.high and settings.low and settings.grid:
        check_settings(with_networks(settings))
    settings, reasons = with_sizes(settings)
    check_settings(settings)
    use_threads(settings)
    data = load_with_bar(settings)
    check_classes(data, settings.data)
    return with_schedule(settings, len(data.splits["fit"])), data, reasons


def with_augmentations(settings: TrainSettings, data: Data) -> TrainSettings:
    """Settings whose augmentations are named: those that suit the images, where that was left open."""
    if "auto" not in settings.augment:
        return settings
    chosen, accuracy = augmentations(settings, data, device_of(settings))
    seen = ", ".join(f"{name} {100 * share:.1f} %" for name, share in accuracy.items())
    say(f"augmentations: {', '.join(chosen)}" + (f" (a short trial on LR images is right on {seen})" if seen else ""))
    return replace(settings, augment=chosen)


def check_settings(settings: TrainSettings) -> None:
    """Raise UsageError where settings contradict each other, before anything is loaded."""
    grid = Grid.parse(settings.grid)
    grid.check(*settings.high_size)
    if settings.target_patches > grid.patches:
        raise UsageError(
            f"target_patches: {settings.target_patches:g} is out of range, grid {grid} has {grid.patches} patches; "
            f"use 0 to {grid.patches}"
        )
    _check_goal(settings)
    if settings.estimator == "exact" and grid.patches > EXACT_PATCHES:
        raise UsageError(
            f"estimator: exact takes all 2^P masks, grid {grid} has {grid.patches} patches; use a grid of at most "
            f"{EXACT_PATCHES} patches, or rloo with more --samples"
        )
    if settings.classifier == "bagnet" and settings.fill != "mean":
        raise UsageError(
            f"fill: {settings.fill!r} has no meaning with classifier bagnet, which sees patches only; use mean"
        )
    if settings.policy == "ranking" and settings.low_stream != "pt":
        raise UsageError(
            f"low_stream: policy ranking hears LR-CNN from Pt on, not from {settings.low_stream}; use --low-stream pt, "
            "or --policy bernoulli"
        )
    if settings.policy == "ranking" and settings.policy_head == "certainty":
        raise UsageError("policy_head: certainty is for --policy bernoulli, policy ranking has LR-CNN's word anyway")
    if settings.policy_start == "shared":
        _check_shared(settings)
    if settings.pretrained:
        check_pretrained((settings.hr_network, settings.lr_network, settings.policy_network))


def _check_goal(settings: TrainSettings) -> None:
    """Raise UsageError where more than one operating point is asked for."""
    given = {
        "--target-patches": settings.target_patches > 0,
        "--mistake": settings.mistake > 0,
        "--tolerance": settings.tolerance != TrainSettings.tolerance,
    }
    asked = [flag for flag, is_given in given.items() if is_given]
    if len(asked) > 1:
        raise UsageError(f"{' and '.join(asked)} ask for different operating points; give one")


def _check_shared(settings: TrainSettings) -> None:
    if settings.policy_network != settings.lr_network:
        raise UsageError(
            f"policy_start: shared takes LR-CNN's network, but policy_network is {settings.policy_network} and "
            f"lr_network {settings.lr_network}; name the same twice"
        )
    if settings.policy_head != "certainty" and settings.policy == "bernoulli":
        raise UsageError(
            f"policy_start: shared needs a policy that keeps LR-CNN's classes, which head {settings.policy_head} "
            "does not; use --policy-head certainty"
        )
    if settings.policy_head == "global":
        raise UsageError(
            "policy_start: shared needs a policy that reads the features of LR-CNN's network, which head global does "
            "not; use --policy-head spatial"
        )
    if settings.low_stream != "pt":
        raise UsageError(
            f"policy_start: shared needs LR-CNN as a second stream from Pt on, not from {settings.low_stream}; "
            "use --low-stream pt"
        )


def use_threads(settings: TrainSettings) -> None:
    """Let torch use the settings' number of CPU threads; 0 leaves it as it is."""
    if settings.threads:
        torch.set_num_threads(settings.threads)


def load_with_bar(settings: TrainSettings, only: str | None = None) -> Data:
    """Load a data set, showing how far decoding is, and say what was skipped."""
    seen = 0

    def progress(done: int, total: int) -> None:
        nonlocal seen
        bar.work = {"decoding": (total, 1.0)}
        bar.advance("decoding", done - seen)
        seen = done

    with bars({}, "images") as bar:
        data = load(settings, progress, only)
    for name, reason in data.skipped.items():
        say(f"skipped {name}: {reason}")
    if data.read is not None:
        say(str(data.read))
    if data.skipped:
        say(f"skipped {len(data.skipped)} images in all")
    return data


def judging_split(data: Data) -> str:
    """``test``, or where there is none ``val``, with a word about what that is worth."""
    if "test" in data.splits:
        return "test"
    say("there is no test split: evaluated on val, which also picked checkpoints, so figures are optimistic")
    return "val"


def split_to_evaluate(settings: TrainSettings, split: str) -> Data:
    """A split as it was in training: a carved ``val`` is carved again."""
    if split == "test":
        return load_with_bar(settings, only="test")
    data = load_with_bar(settings)
    if split not in data.splits:
        raise RunError(f"{settings.data}: has no {split} split, only {', '.join(data.splits)}")
    return data


def same_classes(run: RunFolder, data: Data) -> None:
    """Raise RunError where a run was trained on other classes than the data have."""
    trained = tuple(run.stage_config(first_stage(run))["classes"])
    if trained != data.classes:
        odd = sorted(set(trained) ^ set(data.classes))[:3]
        raise RunError(
            f"{run}: was trained on {len(trained)} classes, {data.name} has {len(data.classes)} "
            f"(not in both: {', '.join(odd)}); evaluate it on data with the same classes"
        )


def same_low(run: RunFolder, data: Data, split: str) -> None:
    """LR images of another sensor cannot be replaced by averages of HR; the other way round one may try."""
    if run.own_low and not data.splits[split].own_low:
        raise RunError(
            f"{run}: was trained on LR images of their own, {data.name} has none; "
            "name them in the column low_path of a CSV file"
        )


def first_stage(run: RunFolder) -> str:
    """The first trained stage; raises RunError where there is none."""
    done = run.stages_done()
    if not done:
        raise RunError(f"{run}: no stage is trained yet; go on with `patchdrop train`")
    return done[0]


def network_costs(settings: TrainSettings, data: Data) -> dict[str, Cost]:
    """Cost of each network; the first time that networks and sizes meet."""
    try:
        return forward_costs(settings, len(data.classes))
    except PatchDropError:
        raise
    except Exception as error:
        named = f"{settings.hr_network}, {settings.lr_network}, {settings.policy_network}"
        raise UsageError(
            _of_patches(settings)
            or f"networks {named} cannot take HR {settings.high} and LR {settings.low} px images: {first_line(error)}"
        ) from error


def _of_patches(settings: TrainSettings) -> str:
    """Why BagNet's network cannot look at single patches, and at what size it could; empty where it can."""
    height, width = patch_size(Grid.parse(settings.grid), *settings.high_size)
    if settings.classifier != "bagnet" or takes(settings.hr_network, (height, width), settings.channels):
        return ""
    larger = [(height * factor, width * factor) for factor in (2, 4, 8, 16)]
    fitting = next((size for size in larger if takes(settings.hr_network, size, settings.channels)), None)
    would = "" if fitting is None else f"; {fitting[0]} x {fitting[1]} px would do (coarser --grid, larger --high)"
    return (
        f"classifier bagnet: hr_network {settings.hr_network} cannot take patches of {height} x {width} px{would}; "
        "resnet8 to resnet32 take 8 px and more"
    )
