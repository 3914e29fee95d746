"""Do what several commands do first: check settings, load data, check that run and data belong together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from patchdrop.costs.flops import Cost, forward_costs
from patchdrop.data.load import Data, check_classes, load
from patchdrop.data.propose import LARGEST_ON_CPU, LARGEST_ON_GPU, propose_for
from patchdrop.data.source import DataSource
from patchdrop.errors import PatchDropError, RunError, UsageError, first_line
from patchdrop.grid import patch_size, size_text
from patchdrop.models.build import ModelConfig
from patchdrop.networks.build import check_pretrained, takes
from patchdrop.networks.device import device_of
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.combinations import check_combinations
from patchdrop.settings.defaults import GRID, networks_for, schedule_for
from patchdrop.settings.flat import Augmentation, TrainSettings
from patchdrop.terminal.talk import bars, say
from patchdrop.training.augmentation_trial import CAREFUL, augmentations
from patchdrop.training.recipe import Recipe
from patchdrop.training.work import step_flops


@dataclass(frozen=True)
class Prepared:
    """The inputs of a training.

    Attributes:
        settings: the settings, with all that is filled in from the data.
        recipe: the same settings as values.
        costs: cost of each network.
        reasons: name of a setting that was proposed -> why; under ``warning``, that HR is larger than the images.
    """

    settings: TrainSettings
    recipe: Recipe
    data: Data
    costs: Mapping[str, Cost]
    reasons: Mapping[str, str]

    @property
    def config(self) -> ModelConfig:
        """Description of the networks."""
        return self.recipe.with_classes(self.data.classes)

    def steps(self, stage: str) -> int:
        """Return the number of steps of a whole stage."""
        return self.recipe.loader(self.data).steps_per_epoch * self.recipe.schedule.epochs[stage]

    def flops_a_step(self, stage: str) -> float:
        """Return the FLOPs of one step of a stage."""
        return self.recipe.schedule.batch * step_flops(stage, self.costs, self.config, self.recipe.learning)


def prepared(settings: TrainSettings, trial: bool = True, recorded: Mapping[str, Any] | None = None) -> Prepared:
    """Look at the data, fill in the settings that nobody gave, and load the images.

    Args:
        trial: whether a short training finds augmentations that are left open, and what is filled in is printed;
            otherwise they are `CAREFUL`.
        recorded: settings of a run that has begun; they fill in what nobody gave.

    Raises:
        UsageError: settings contradict each other; this is checked before images are decoded and, if sizes and grid
            are given, before data are looked for.
    """
    settings, reasons = sized(settings.filled(recorded or {}).steady)
    recipe = Recipe.of(settings)
    recipe.use_threads()
    data = load_with_bar(recipe.source)
    check_classes(data, settings.data)
    settings = settings.filled(schedule_for(len(data.splits["fit"])))
    _check_shards(settings.shards, min(settings.batch, len(data.splits["fit"])))
    recipe = Recipe.of(settings)
    costs = network_costs(recipe.with_classes(data.classes))
    if trial:
        for name, reason in reasons.items():
            say(f"{name} {getattr(settings, name, '')}".rstrip() + f": {reason}")
    if "auto" in settings.augment:
        chosen = _augmentations(recipe, data) if trial else CAREFUL
        settings = replace(settings, augment=chosen)
        recipe = Recipe.of(settings)
    return Prepared(settings, recipe, data, costs, reasons)


def _check_shards(shards: int, images: int) -> None:
    if shards > 1 and images < 2 * shards:
        raise UsageError(
            f"shards: {shards} of {images} images a step have fewer than two each, too few for batch norm; "
            "use fewer --shards, or a larger --batch"
        )


def sized(settings: TrainSettings) -> tuple[TrainSettings, dict[str, str]]:
    """Return the settings with sizes, grid and networks filled in, and the reasons for those that are proposed.

    Raises:
        UsageError: they contradict each other.
    """
    given, reasons = settings.named, {}
    if settings.data:
        if None not in given:
            _with_networks(settings)  # report contradictions before the data are looked for
        largest = LARGEST_ON_CPU if device_of(settings.device).type == "cpu" else LARGEST_ON_GPU
        found = propose_for(settings.data, settings.layout, largest, given)
        sizes = {"high": size_text(found.high), "low": size_text(found.low), "grid": str(found.grid)}
        settings = settings.filled(sizes)
        reasons = {**found.reasons, **({} if found.warning is None else {"warning": found.warning})}
    return _with_networks(settings), reasons


def _with_networks(settings: TrainSettings) -> TrainSettings:
    high, low, _, _ = settings.filled({"grid": GRID}).shape
    networks = networks_for(high, low, settings.low_enlarge, settings.lr_network)
    settings = settings.filled({"grid": GRID, **networks})
    check_combinations(settings)
    if settings.pretrained:
        check_pretrained((settings.hr_network, settings.lr_network, settings.policy_network))
    return settings


def _augmentations(recipe: Recipe, data: Data) -> tuple[Augmentation, ...]:
    chosen, accuracy = augmentations(recipe.loader(data), recipe.with_classes(data.classes))
    seen = ", ".join(f"{name} {100 * share:.1f} %" for name, share in accuracy.items())
    say(f"augmentations: {', '.join(chosen)}" + (f" (a short trial on LR images is right on {seen})" if seen else ""))
    return chosen


def load_with_bar(source: DataSource, only: str | None = None) -> Data:
    """Load a data set with a bar for the decoding, and say what was skipped."""
    seen = 0

    def progress(done: int, total: int) -> None:
        nonlocal seen
        bar.work = {"decoding": (total, 1.0)}
        bar.advance("decoding", done - seen)
        seen = done

    with bars({}, "images") as bar:
        data = load(source, progress, only)
    for name, reason in data.skipped.items():
        say(f"skipped {name}: {reason}")
    if data.read is not None:
        say(str(data.read))
    if data.skipped:
        say(f"skipped {len(data.skipped)} images in all")
    return data


def judging_split(data: Data) -> str:
    """Return ``test`` or, if there is none, ``val``; then say that its figures are optimistic."""
    if "test" in data.splits:
        return "test"
    say("there is no test split: evaluated on val, which also picked checkpoints, so figures are optimistic")
    return "val"


def split_to_evaluate(source: DataSource, split: str) -> Data:
    """Load the data for a split as in training; a ``val`` that was carved out of train is carved again."""
    if split == "test":
        return load_with_bar(source, only="test")
    data = load_with_bar(source)
    if split not in data.splits:
        raise RunError(f"{source.data}: has no {split} split, only {', '.join(data.splits)}")
    return data


def same_classes(run: RunFolder, data: Data) -> None:
    """Raise RunError if a run was trained on other classes than the data have."""
    trained = tuple(run.stage_config(first_stage(run))["classes"])
    if trained != data.classes:
        odd = sorted(set(trained) ^ set(data.classes))[:3]
        raise RunError(
            f"{run}: was trained on {len(trained)} classes, {data.name} has {len(data.classes)} "
            f"(not in both: {', '.join(odd)}); evaluate it on data with the same classes"
        )


def same_low(run: RunFolder, data: Data, split: str) -> None:
    """Raise RunError if a run learnt from LR of another sensor and the data have none; the reverse one may try."""
    if run.own_low and not data.splits[split].own_low:
        raise RunError(
            f"{run}: was trained on LR images of their own, {data.name} has none; "
            "name them in the column low_path of a CSV file"
        )


def first_stage(run: RunFolder) -> str:
    """Return the first trained stage; raise RunError if there is none."""
    done = run.stages_done()
    if not done:
        raise RunError(f"{run}: no stage is trained yet; go on with `patchdrop train`")
    return done[0]


def network_costs(config: ModelConfig) -> dict[str, Cost]:
    """Return the cost of each network; raise UsageError if one cannot take its size, as here they first meet."""
    try:
        return forward_costs(config)
    except PatchDropError:
        raise
    except Exception as error:
        named = f"{config.hr_network}, {config.lr_network}, {config.policy_network}"
        high, low = size_text(config.shape.high), size_text(config.shape.low)
        raise UsageError(
            _of_patches(config) or f"networks {named} cannot take HR {high} and LR {low} px images: {first_line(error)}"
        ) from error


def _of_patches(config: ModelConfig) -> str:
    """Say why BagNet's network cannot look at single patches, and at what size it could; empty if it can."""
    high, _, grid, channels = config.shape
    height, width = patch_size(grid, *high)
    if config.classifier != "bagnet" or takes(config.hr_network, (height, width), channels):
        return ""
    larger = [(height * factor, width * factor) for factor in (2, 4, 8, 16)]
    fitting = next((size for size in larger if takes(config.hr_network, size, channels)), None)
    would = "" if fitting is None else f"; {fitting[0]} x {fitting[1]} px would do (coarser --grid, larger --high)"
    return (
        f"classifier bagnet: hr_network {config.hr_network} cannot take patches of {height} x {width} px{would}; "
        "resnet8 to resnet32 take 8 px and more"
    )
