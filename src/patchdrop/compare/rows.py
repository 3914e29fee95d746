"""Define the rows of the tables: what each one trains, from what it starts, and how it chooses.

A row trains in stages, each kept in a folder of the form of a run's (`patchdrop.runs.folder`). Rows that the run
itself has, and controls that evaluate the run's models with other masks, train nothing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import nn

from patchdrop.classify.masked_cnn import MaskedCNN
from patchdrop.classify.pcn import PartiallyCoupled
from patchdrop.classify.super_resolution import Discriminator, Generator, SuperResolution, SuperResolved
from patchdrop.classify.two_stream import TwoStream
from patchdrop.compare.bench import POLICY_STAGES, Bench
from patchdrop.data.load import statistics
from patchdrop.episode import PatchDrop
from patchdrop.evaluation.strategies import ACTIVATION, CASCADE, DETAIL, FIXED
from patchdrop.grid import Grid, Size
from patchdrop.models.build import ModelConfig, build_stage
from patchdrop.policy.baselines import FixedScores, fixed_columns, fixed_rows, stochastic
from patchdrop.policy.choice import Choose, greedy, sampled, top
from patchdrop.policy.stn import relaxed_top
from patchdrop.runs.folder import RunFolder
from patchdrop.settings.comparison import share_of
from patchdrop.training.couple import CoupledTask
from patchdrop.training.hidden import HiddenTask, Hide, cut_out, policy_masks
from patchdrop.training.loop import Task
from patchdrop.training.objectives import Teacher
from patchdrop.training.policy_stages import keep_weights
from patchdrop.training.recipe import Recipe
from patchdrop.training.run import Start, make_task, on_device, starting_model, starts_as_low, teacher_of
from patchdrop.training.selectors import SelectorTask
from patchdrop.training.super_resolution import GeneratorTask, SuperResolvedTask
from patchdrop.training.supervised import ClassifierTask

KD_WEIGHT = 0.7
"""The teacher's share of KD's loss; its temperature is `Teacher`'s default."""


@dataclass(frozen=True)
class Selector:
    """A way to choose S patches that replaces the policy.

    Attributes:
        policy: maps grid and S to a module of patch logits; None: a policy network of the run's form.
        learns: maps S to the choice in training.
        chooses: maps S to the choice afterwards. It draws from torch's own generator.
        whole: whether S is rounded to a whole number.
    """

    policy: Callable[[Grid, float], FixedScores] | None
    learns: Callable[[float], Choose]
    chooses: Callable[[float], Choose]
    whole: bool = False

    def count(self, patches: float) -> float:
        """Return S as this selector keeps it."""
        return float(round(patches)) if self.whole else patches


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        method: its name in the table.
        about: a line that describes it.
        own: if the run itself has the row: the stage (``lr``, ``hr``), the control or plain strategy (``random``,
            ``shuffled``, ``oracle``, ``cascade``, ...); ``policy`` is PatchDrop.
        stages: the stages that it trains, in order; the last one is evaluated, or each one for a selector.
        task: makes the task that trains a stage.
        build: makes the model that a stage's weights are loaded into.
        recipe: returns the recipe that it is trained by.
        selector: if the row chooses patches in another way than PatchDrop.
        independent: whether it starts from nothing that the run trains.
        policy: whether it has a policy of its own, and so a model for each stage.
        whole_at: if the row reads the whole image at another size than LR's: that size in pixels.
    """

    method: str
    about: str
    own: str = ""
    stages: tuple[str, ...] = ()
    task: Callable[[Row, Bench, str], Task] | None = None
    build: Callable[[Bench, str, ModelConfig], nn.Module] = lambda bench, stage, config: build_stage(stage, config)
    recipe: Callable[[Bench], Recipe] = lambda bench: bench.recipe
    selector: Selector | None = None
    independent: bool = False
    policy: bool = False
    whole_at: Callable[[Bench], tuple[int, int]] | None = None

    def folder(self, bench: Bench) -> RunFolder:
        """Return the folder of its stages."""
        slug = re.sub("[^a-z0-9]+", "-", self.method.lower()).strip("-")
        return RunFolder(bench.folder / slug, partial(self.build, bench))

    def trains(self, bench: Bench) -> list[str]:
        """List its stages in this comparison."""
        active = bench.policy_stages if self.selector or self.policy else self.stages
        return [stage for stage in self.stages if stage in active]

    def config(self, bench: Bench) -> ModelConfig:
        """Return the description of its networks."""
        return bench.config(self.recipe(bench))

    def model(self, bench: Bench, stage: str) -> nn.Module:
        """Load its trained model of one of its stages (in a plan, build an untrained one if there is none)."""
        return bench.trained(self.folder(bench), stage, lambda: self.build(bench, stage, self.config(bench)))


# --- tasks that train a stage


def _plain(row: Row, bench: Bench, stage: str) -> Task:
    recipe = row.recipe(bench)
    return ClassifierTask(stage, on_device(bench.new(stage, recipe), bench.device), recipe.loader(bench.data))


def _distilled(row: Row, bench: Bench, stage: str) -> Task:
    model = on_device(bench.new(stage), bench.device)
    teacher = Teacher(bench.earlier("hr").to(bench.device), bench.grid, KD_WEIGHT)
    return ClassifierTask(stage, model, bench.loader, teacher=teacher)


def _coupled(row: Row, bench: Bench, stage: str) -> Task:
    model = on_device(_new_coupled(bench, bench.config(), bench.recipe.pretrained), bench.device)
    assert isinstance(model, PartiallyCoupled)
    return CoupledTask(stage, model, bench.loader)


def _super_resolution(row: Row, bench: Bench, stage: str) -> Task:
    sizes, epochs = bench.options.sizes, bench.recipe.schedule.epochs["hr"]
    high = bench.earlier("hr")
    assert isinstance(high, MaskedCNN)
    if stage == "generator":
        model = on_device(_generator(bench), bench.device)
        assert isinstance(model, SuperResolution)
        epochs = share_of(epochs, sizes.generator_share)
        return GeneratorTask(stage, model, high, bench.loader, epochs)
    generator = row.model(bench, "generator").generator
    assert isinstance(generator, Generator)
    resolved = on_device(SuperResolved(generator, high), bench.device)
    assert isinstance(resolved, SuperResolved)
    epochs = share_of(epochs, sizes.resolved_share)
    return SuperResolvedTask(stage, resolved, bench.loader, epochs)


def _hidden(hide: Callable[[Bench], Hide]) -> Callable[[Row, Bench, str], Task]:
    def task(row: Row, bench: Bench, stage: str) -> Task:
        model = on_device(bench.new(stage), bench.device)
        assert isinstance(model, MaskedCNN)
        return HiddenTask(stage, model, hide(bench), bench.loader)

    return task


def _choosing(row: Row, bench: Bench, stage: str) -> Task:
    """Train as PatchDrop's stage does, with the same start, epochs and rates, but with the selector as the policy."""
    assert row.selector is not None
    recipe, selector = row.recipe(bench), row.selector
    patches = selector.count(bench.patches(stage))
    model = _starting_policy(row, bench, stage)
    if selector.policy is not None:
        model = PatchDrop(selector.policy(bench.grid, patches), model.classifier)
    _weigh_as_the_run(model, bench, stage)
    on_device(model, bench.device)
    teacher = teacher_of(stage, bench.config(), bench.earlier, bench.device)
    return SelectorTask(stage, model, selector.learns(patches), recipe.loader(bench.data), recipe.learning, teacher)


def _starting_policy(row: Row, bench: Bench, stage: str) -> PatchDrop:
    """Build a model with the row's own policy as its stage starts."""

    def earlier(name: str) -> nn.Module:
        return row.model(bench, name) if name in POLICY_STAGES else bench.earlier(name)

    recipe, config = row.recipe(bench), row.config(bench)
    start = Start(recipe.schedule.stages, recipe.pretrained, starts_as_low(config))
    model = starting_model(stage, start, config, bench.statistics, earlier)
    assert isinstance(model, PatchDrop)
    return model


def _weigh_as_the_run(model: PatchDrop, bench: Bench, stage: str) -> None:
    """Give both streams the weights of the run's stage, which were fitted to validation images."""
    if not isinstance(model.classifier, TwoStream) or not bench.run.done(stage):
        return
    fitted = bench.run.stage_config(stage).get("stream_weights", [])  # none in a run of the paper's policy
    for parameter, value in zip(model.classifier.learnable, fitted, strict=False):
        parameter.data.fill_(value)


# --- models that weights are loaded into


def _build_coupled(bench: Bench, stage: str, config: ModelConfig) -> PartiallyCoupled:
    return _new_coupled(bench, config, pretrained=False)


def _new_coupled(bench: Bench, config: ModelConfig, pretrained: bool) -> PartiallyCoupled:
    return PartiallyCoupled(
        config.lr_network,
        len(config.classes),
        bench.normalise_low(),
        bench.normalise(),
        channels=config.shape.channels,
        enlarge=max(2, config.low_enlarge),  # at LR's own size, HR averaged to it would be LR
        pretrained=pretrained,
    )


def _generator(bench: Bench) -> SuperResolution:
    sizes, (high, low, _, channels) = bench.options.sizes, bench.data.shape
    generator = Generator(
        high,
        low,
        bench.normalise_low(),
        channels=channels,
        width=sizes.generator_width,
        blocks=sizes.generator_blocks,
    )
    return SuperResolution(generator, Discriminator(channels, sizes.generator_width))


def _build_super_resolution(bench: Bench, stage: str, config: ModelConfig) -> nn.Module:
    model = _generator(bench)
    if stage == "generator":
        return model
    high = build_stage("hr", config)
    assert isinstance(high, MaskedCNN)
    return SuperResolved(model.generator, high)


def _build_choosing(selector: Selector) -> Callable[[Bench, str, ModelConfig], nn.Module]:
    def build(bench: Bench, stage: str, config: ModelConfig) -> nn.Module:
        model = build_stage(stage, config)
        assert isinstance(model, PatchDrop)
        if selector.policy is not None:
            return PatchDrop(FixedScores(torch.zeros(bench.grid.patches)), model.classifier)
        return model

    return build


# --- the rows


def _fixed(make: Callable[[Grid, int], FixedScores]) -> Selector:
    return Selector(lambda grid, s: make(grid, int(s)), lambda s: greedy, lambda s: greedy, whole=True)


CHOOSERS = {
    "Fixed-H": _fixed(fixed_rows),
    "Fixed-V": _fixed(fixed_columns),
    "Stochastic": Selector(stochastic, lambda s: sampled, lambda s: sampled),
    "STN": Selector(None, lambda s: partial(relaxed_top, mean_patches=s), lambda s: partial(top, mean_patches=s)),
}
_ABOUT = {
    "Fixed-H": "the same S patches for every image, row by row, the centre first",
    "Fixed-V": "the same S patches for every image, column by column, the centre first",
    "Stochastic": "patches by a probability that falls with the distance from the centre, S on average",
    "STN": "the S highest scores of a network on LR, learnt through a relaxation, without a reward",
}


def _selector_row(method: str) -> Row:
    selector = CHOOSERS[method]
    return Row(
        method,
        _ABOUT[method],
        stages=POLICY_STAGES,
        task=_choosing,
        build=_build_choosing(selector),
        recipe=_own_network,
        selector=selector,
    )


def _own_network(bench: Bench) -> Recipe:
    """Use patch logits alone, without a ranking or a network that stays LR-CNN's: STN learns them end to end."""
    networks = bench.recipe.networks
    start = "lr" if networks.policy_start == "shared" else networks.policy_start
    return replace(bench.recipe, networks=replace(networks, policy="bernoulli", policy_start=start))


def _budget_row(method: str, stage: str) -> Row:
    return Row(
        method,
        "the same network and recipe for as many epochs as Ft-2 was trained in all",
        stages=(stage,),
        task=_plain,
        recipe=partial(Bench.with_budget, stage=stage),
        independent=True,
    )


def _plain_cnn(bench: Bench) -> Recipe:
    networks = replace(bench.recipe.networks, classifier="masked", hr_network=bench.options.sizes.cnn_network)
    return replace(bench.recipe, networks=networks)


SUPER_RESOLUTION = Row(
    "SRGAN",
    "a generator makes HR from LR, a classifier trained on what it makes reads that",
    stages=("generator", "classifier"),
    task=_super_resolution,
    build=_build_super_resolution,
)
LR_CNN = Row("LR-CNN", "a classifier on LR alone", own="lr")
HR_CNN = Row("HR-CNN", "a classifier on all of HR", own="hr")
PATCHDROP = Row("PatchDrop", "the policy and its classifier", own="policy")


def _medium_size(bench: Bench) -> Size:
    """Return the sides of an image with as many pixels as the last stage's patches have."""
    share = math.sqrt(bench.patches(bench.policy_stages[-1]) / bench.grid.patches)
    height, width = (min(side, max(8, round(side * share / 4) * 4)) for side in bench.data.shape.high)
    return height, width


def _medium_recipe(bench: Bench) -> Recipe:
    """Train HR-CNN's network for its epochs as LR-CNN, on images of the medium size."""
    recipe, shape = bench.recipe, bench.data.shape._replace(low=_medium_size(bench))
    networks = replace(recipe.networks, shape=shape, lr_network=recipe.networks.hr_network, low_enlarge=1)
    return replace(recipe, networks=networks, schedule=recipe.schedule.with_epochs(lr=recipe.schedule.epochs["hr"]))


def _medium(row: Row, bench: Bench, stage: str) -> Task:
    recipe, config = row.recipe(bench), row.config(bench)
    data = replace(bench.data, shape=config.shape)
    model = build_stage("lr", config, statistics(data.splits["fit"], config.shape.low))
    return ClassifierTask(stage, on_device(model, bench.device), recipe.loader(data))


def _bernoulli_recipe(bench: Bench) -> Recipe:
    return replace(_own_network(bench), learning=replace(bench.recipe.learning, estimator="self-critical"))


def _bernoulli(row: Row, bench: Bench, stage: str) -> Task:
    recipe, model = row.recipe(bench), _starting_policy(row, bench, stage)
    _weigh_as_the_run(model, bench, stage)
    task = make_task(stage, on_device(model, bench.device), recipe.loader(bench.data), recipe.learning)
    if bench.recipe.networks.policy == "ranking":
        keep_weights(model)
    return task


CONTROLS = (
    Row("Random", "PatchDrop's classifier on random patches, S matched", own="random"),
    Row("Shuffled", "PatchDrop's classifier on its own masks dealt to other images", own="shuffled"),
    Row("Oracle", "PatchDrop's classifier on the best of many masks by the label, on a subset", own="oracle"),
)
PLAIN = (
    Row("Fixed mask", "PatchDrop's classifier on the patches that are best for all validation images", own=FIXED),
    Row("Activation map", "PatchDrop's classifier where LR-CNN is uncertain, on what it looks at", own=ACTIVATION),
    Row("Detail", "PatchDrop's classifier on the patches where LR varies most", own=DETAIL),
    Row("Cascade", "LR-CNN where it is certain, HR-CNN on all of HR elsewhere", own=CASCADE),
)
"""Plain strategies at PatchDrop's S, if its stages were judged against them."""
MEDIUM = Row(
    "MR-CNN",
    "HR-CNN's network on the whole image at the resolution that has as many pixels as PatchDrop reads",
    stages=("lr",),
    task=_medium,
    recipe=_medium_recipe,
    whole_at=_medium_size,
)
BERNOULLI = Row(
    "PatchDrop (Bernoulli)",
    "the paper's policy of independent patches, by its self-critical estimator",
    stages=POLICY_STAGES,
    task=_bernoulli,
    recipe=_bernoulli_recipe,
    policy=True,
)
CHOOSER_ROWS = tuple(_selector_row(method) for method in CHOOSERS)
_LR_BUDGET, _HR_BUDGET = _budget_row("LR-CNN, equal budget", "lr"), _budget_row("HR-CNN, equal budget", "hr")

FULL_ROWS = (
    LR_CNN,
    SUPER_RESOLUTION,
    Row(
        "KD",
        "LR-CNN that learns from HR-CNN's softened outputs too",
        stages=("lr",),
        task=_distilled,
    ),
    Row(
        "PCN",
        "an LR network whose layers share half of their filters with an HR network",
        stages=("lr",),
        task=_coupled,
        build=_build_coupled,
        independent=True,
    ),
    HR_CNN,
    *CHOOSER_ROWS,
    PATCHDROP,
    BERNOULLI,
    *CONTROLS,
    *PLAIN,
    MEDIUM,
    _LR_BUDGET,
    _HR_BUDGET,
    Row(
        "HR-CNN + CutOut",
        "HR-CNN trained with a random square hidden in every second image",
        stages=("hr",),
        task=_hidden(lambda bench: cut_out(bench.statistics.mean)),
        independent=True,
    ),
    Row(
        "HR-CNN + hard positives",
        "HR-CNN trained with what the last policy would not read hidden in every second image",
        stages=("hr",),
        task=_hidden(lambda bench: policy_masks(bench.last_model().to(bench.device))),
    ),
)
BAGNET_ROWS = (
    replace(HR_CNN, method="BagNet, no patch drop", about="BagNet on all patches"),
    Row(
        "CNN, no patch drop",
        "a dense network on all of HR",
        stages=("hr",),
        task=_plain,
        recipe=_plain_cnn,
        independent=True,
    ),
    *CHOOSER_ROWS,
    replace(PATCHDROP, method="BagNet + PatchDrop", about="the policy and BagNet"),
    replace(BERNOULLI, method="BagNet + PatchDrop (Bernoulli)"),
    *CONTROLS,
    *PLAIN,
    LR_CNN,
    replace(_HR_BUDGET, method="BagNet, equal budget"),
)
