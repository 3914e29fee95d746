"""Every setting of a training run, in one place, free of torch so that ``--help`` answers at once.

`TrainSettings` is what the command line parses, what ``settings.yaml`` holds, and what the stages read.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import yaml

from patchdrop.errors import RenamedWarning, UsageError, first_line
from patchdrop.grid import Named, Shape, named, shape_of
from patchdrop.settings.machine import Precision

Stage = Literal["lr", "hr", "patches", "pt", "ft1", "ft2"]
_PROFILES = Path(__file__).parent / "profiles"
STAGES: tuple[Stage, ...] = get_args(Stage)
FREE_SETTINGS = ("stages", "insist", "device", "workers", "memory_gb", "save_minutes", "data", "layout", "cache")
"""These may differ from call to call without making it another run."""
GONE = {
    "policy_fraction": "validation images serve instead",
    "distill": "it changed nothing beyond noise",
    "pt_views": "policy ranking takes one pass of the classifier a step",
    "cost": "a tariff is given at use",
    "pixel_metres": "a tariff is given at use",
    "reward": "each estimator has its own",
    "rate_policy_finetune": "it follows rate_policy",
}
"""Settings of earlier versions, and why they went."""
Augmentation = Literal["auto", "flip", "upside-down", "turn", "shift", "zoom", "colour", "erase"]


MARKERS = "markers"
"""The embedded data set's name, and its layout's."""
EARLIER_NAME = "scenes"


def called_now(data: Any) -> Any:
    """The name of a data set, or of a layout, as it is called now; the embedded one had another, which is said."""
    if data != EARLIER_NAME:
        return data
    warnings.warn(
        f"the embedded data set is called {MARKERS} now; {EARLIER_NAME}, its earlier name, goes on working",
        RenamedWarning,
        stacklevel=3,
    )
    return MARKERS


def two_streams(stage: str, low_stream: str) -> bool:
    """Whether a stage of the policy has LR-CNN as a second stream, where that joins in stage ``low_stream``."""
    order: tuple[str, ...] = STAGES
    return order.index(stage) >= order.index(low_stream)


@dataclass(frozen=True, kw_only=True)
class TrainSettings:
    """What to train, on which data, and how."""

    # --- data
    data: str = "markers"
    """Folder or CSV file with the labelled images; ``markers`` is the embedded data set."""
    layout: Literal["auto", "markers", "folder", "csv", "cifar10", "cifar100", "imagenet", "fmow"] = "auto"
    """How the data are laid out; ``auto`` looks at the folder."""
    high: str = ""
    """HR size in pixels: ``128``, or ``96x160`` for height x width; by default proposed from the images."""
    low: str = ""
    """LR size in pixels, as ``high``; by default a quarter of its sides."""
    grid: str = ""
    """Patches: ``4`` for 4 x 4, ``3x5`` for 3 rows of 5; by default 4, or what is proposed with the sizes."""
    channels: int = 3
    """Channels read from the images: 3 for RGB, 1 for grey."""
    val_fraction: float = 0.1
    """Share of train carved out for validation, stratified, where there is no ``val`` split."""
    augment: tuple[Augmentation, ...] = ("auto",)
    """Augmentations of a training batch, drawn anew for each image; ``auto`` shifts, and flips and turns where images
    look the same all ways round (`patchdrop.training.augmentation_trial`)."""
    memory_gb: float = 4.0
    """Data sets up to this many GiB of 8-bit pixels are held in memory; larger ones are streamed."""
    workers: int = 2
    """Processes that decode images, at the start of a run or all along when streaming."""
    cache: str = ""
    """Folder that keeps what windows of scenes read over a network, so that no byte is read twice."""
    skip_bad: bool = False
    """Leave out images that cannot be read (counted and listed) instead of stopping."""

    # --- networks
    classifier: Literal["masked", "bagnet", "canvas", "patch-set", "vit"] = "masked"
    """HR classifier: ``masked``, one dense network over a canvas (the paper). The others compute on what was read:
    ``bagnet``, features of single patches, averaged; ``canvas``, early stages on patches, late ones on a canvas of
    their features; ``patch-set``, a small transformer over features of patches; ``vit``, a vision transformer on the
    tokens of the patches. See docs/method.md."""
    patch_stages: int = 0
    """``canvas``: stages of ``hr_network`` that run on single patches; 0: as many as the patch's size allows, but the
    last."""
    set_layers: int = 1
    """``patch-set``: layers of the transformer."""
    hr_network: str = ""
    """HR classifier: resnet8, resnet32 (32 px), resnet10, resnet34, resnet50 (224 px), each with an
    optional width such as ``resnet10-w32``, or any timm name; by default one that fits the size. With
    ``bagnet`` and ``patch-set`` it sees one patch; ``vit`` takes names such as ``vit4-w192-p8`` or
    ``vit_tiny_patch16_224``."""
    lr_network: str = ""
    """LR classifier, named as ``hr_network``; by default one that fits the size."""
    policy_network: str = ""
    """Policy network, named as ``hr_network``; by default as ``lr_network``."""
    pretrained: bool = False
    """Start timm networks from their published weights (downloaded once)."""
    low_enlarge: int = 0
    """Factor by which LR is enlarged (bilinear) before the policy and the LR classifier; 0: 2 below 24 px, else 1."""
    policy: Literal["ranking", "bernoulli"] = "ranking"
    """``ranking``: patches in an order, and as many of them as the chance of being right that they add is worth;
    ``bernoulli``: each patch by itself (the paper). See docs/method.md."""
    policy_head: Literal["certainty", "spatial", "global"] = "spatial"
    """``spatial``: a patch's logit comes from the features at its place, in as many of the network's last maps as it
    takes to have a place for every patch, and from the last one's mean; ``certainty``: and from how sure the policy
    network is of the class, where it starts; ``global``: all logits from the mean (the paper)."""
    policy_start: Literal["lr", "scratch", "shared"] = "lr"
    """``lr``: the policy starts from the LR classifier's features where both are the same network; ``shared``: it keeps
    them as they are and learns its head alone, so that one pass over LR serves the policy and the classifier's second
    stream."""
    fill: Literal["mean", "low"] = "low"
    """What the HR classifier has in the place of unread patches: the mean colour, or nothing (the paper), or LR: the
    enlarged image (``masked``), features of it (``canvas``), a token for the set (``patch-set``), tokens for unread
    patches (``vit``). ``bagnet`` takes ``mean`` only."""
    low_stream: Literal["ft2", "ft1", "pt"] = "pt"
    """The stage from which on LR-CNN is the classifier's second stream; the paper's is ``ft2``. From ``pt`` on, a
    classifier that knows nothing of an image without a patch (``canvas``, ``patch-set``, ``vit``) says as LR-CNN."""
    fusion: Literal["share", "learned", "capped"] = "capped"
    """Two streams: weight HR by S/P (the paper), by ``1 - (1 - S/P)^k``, or by that times a cap, so that LR-CNN has its
    say where every patch is read too. With ``policy: ranking`` k and the cap are set on validation images, before Pt
    and after each stage; with ``bernoulli`` they are learnt in Ft and stay at their starts, 3 and 0.6, in Pt."""

    # --- training
    stages: tuple[Stage, ...] = STAGES
    """Which stages to train; those already trained in the run folder are kept."""
    seed: int = 0
    """Seed of everything random."""
    batch: int = 0
    """Images a step; 0: by the number of training images, as epochs of -1."""
    shards: int = 1
    """Parts into which each step's images are cut, so that processes may share it and the weights are the same however
    many they are; 1 (not named): no cut, and 8 or one each where torchrun starts several. See docs/larger.md."""
    epochs_lr: int = -1
    """Epochs of the LR classifier; -1: fewer the more training images there are (`patchdrop.settings.defaults`)."""
    epochs_hr: int = -1
    """Epochs of the HR classifier on whole images."""
    epochs_patches: int = -1
    """Epochs in which a copy of the HR classifier learns to read any subset of patches; 0 leaves it out."""
    epochs_pt: int = -1
    """Epochs of Pt."""
    epochs_ft1: int = -1
    """Epochs of Ft-1."""
    epochs_ft2: int = -1
    """Epochs of Ft-2."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """``muon``: weight matrices by orthogonal steps, the rest by AdamW; ``adamw``: all by AdamW, which wants
    lower rates (set ``rate_classifier`` to 2e-3). See `patchdrop.training.optimizer`."""
    rate_classifier: float = 2e-2
    """Peak learning rate of classifiers trained from scratch (one cycle)."""
    rate_finetune: float = 4e-3
    """Peak learning rate of the HR classifier in ``patches``, Ft-1 and Ft-2."""
    rate_policy: float = 1e-3
    """Peak learning rate of the policy in Pt; in Ft-1 and Ft-2 it is 0.4 of that."""
    weight_decay: float = 0.05
    """Decoupled weight decay of the classifiers."""
    label_smoothing: float = 0.1
    """Label smoothing of the classifiers' cross-entropy."""
    estimator: Literal["straight-through", "rloo", "self-critical", "exact"] = "straight-through"
    """Policy gradient: ``self-critical`` (the paper), ``rloo``, ``straight-through``, or, for a grid of at most 10
    patches, ``exact``; see docs/estimators.md."""
    samples: int = 2
    """Masks sampled per image by ``rloo``."""
    sigma: float = 0.5
    """Penalty for a wrong class; the start value when ``target_patches`` moves it."""
    tolerance: float = 0.5
    """Points of accuracy that may be lost, against the best that the policy has however much it reads, for the sake of
    reading less; the operating point of ``policy: ranking`` is found by it on the validation split."""
    target_patches: float = 0.0
    """If above 0, this many patches an image on average in place of ``tolerance``; for ``policy: bernoulli`` sigma is
    moved between 0.1 and 20 towards it."""
    mistake: float = 0.0
    """If above 0, what a wrong answer costs, in prices of all of an image's HR, in place of ``tolerance``."""
    insist: bool = False
    """Train the policy even where HR-CNN is no better than LR-CNN."""
    alpha_start: float = 0.7
    """Mixing towards the policy at the start of each stage: ``s <- alpha s + (1 - alpha)(1 - s)``."""
    alpha_end: float = 0.95
    """Mixing at the end of each stage."""
    device: str = "auto"
    """``cpu``, ``cuda``, ``cuda:1``, or ``auto``."""
    precision: Precision = "float32"
    """Of what networks compute while they train; ``bfloat16`` is faster on GPUs. Weights are kept in float32."""
    threads: int = 0
    """CPU threads of the networks; 0 leaves it to torch, or is 1 where there are ``shards``. Part of what makes a run
    repeat to the bit."""
    save_minutes: float = 5.0
    """Save the training state this often besides at each epoch's end."""

    def __post_init__(self) -> None:
        if self.layout in ("auto", EARLIER_NAME, MARKERS):  # a folder of that name is read by another layout
            for name in ("data", "layout"):
                object.__setattr__(self, name, called_now(getattr(self, name)))
        for name, hint in get_type_hints(TrainSettings).items():
            object.__setattr__(self, name, _coerce(getattr(self, name), hint, name))
        for name, low, high in _RANGES:
            value = getattr(self, name)
            if not low <= value <= high:
                raise UsageError(f"{name}: {value} is out of range, use {low:g} to {high:g}")
        if not self.stages:
            raise UsageError(f"stages: none is named, use some of {', '.join(STAGES)}")
        _ = self.named  # a size or grid that is none is refused here

    @property
    def named(self) -> Named:
        """Sizes and grid as far as they are named."""
        return named(self.high, self.low, self.grid)

    @property
    def shape(self) -> Shape:
        """Sizes, grid and channels, once all are named."""
        return shape_of(self.high, self.low, self.grid, self.channels)

    @property
    def epochs(self) -> dict[str, int]:
        """Epochs of each stage, in training order."""
        return {stage: getattr(self, f"epochs_{stage}") for stage in STAGES}

    @property
    def trained_stages(self) -> list[str]:
        """The stages asked for that are not left out by 0 epochs."""
        return [stage for stage in self.stages if self.epochs[stage] != 0]

    @property
    def operating_points(self) -> list[str]:
        """Flags of the operating points that are asked for, one of which makes sense."""
        given = {
            "--target-patches": self.target_patches > 0,
            "--mistake": self.mistake > 0,
            "--tolerance": self.tolerance != TrainSettings.tolerance,
        }
        return [flag for flag, is_given in given.items() if is_given]

    @property
    def steady(self) -> TrainSettings:
        """These settings, with one thread if steps are cut into shards and no number is named.

        Else it would follow how many processes share a machine, and so would the bits.
        """
        return replace(self, threads=1) if self.shards > 1 and not self.threads else self

    @property
    def bound(self) -> dict[str, Any]:
        """All but `FREE_SETTINGS`: what may not change between calls of a run, or differ between its processes."""
        return {name: value for name, value in self.to_mapping().items() if name not in FREE_SETTINGS}

    def filled(self, values: Mapping[str, Any]) -> TrainSettings:
        """These settings, with those of `UNNAMED` that nobody named taken from ``values``."""
        unnamed = [name for name, value in UNNAMED.items() if getattr(self, name) == value]
        return replace(self, **{name: values[name] for name in unnamed if name in values})

    def to_mapping(self) -> dict[str, Any]:
        """Plain values, in the order of the fields, as YAML and JSON take them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}


UNNAMED: dict[str, Any] = {
    **dict.fromkeys(("high", "low", "grid", "hr_network", "lr_network", "policy_network"), ""),
    **dict.fromkeys(("batch", "low_enlarge"), 0),
    "shards": 1,
    **{f"epochs_{stage}": -1 for stage in STAGES},
    "augment": ("auto",),
}
"""Settings that are filled in from the data, and their values until then."""

_RANGES: tuple[tuple[str, float, float], ...] = (
    ("channels", 1, 64),
    ("val_fraction", 0.0, 0.9),
    ("memory_gb", 0.0, 1e6),
    ("workers", 0, 1024),
    ("low_enlarge", 0, 64),
    ("patch_stages", 0, 64),
    ("set_layers", 1, 64),
    ("batch", 0, 1_000_000),
    ("shards", 1, 4096),
    ("epochs_lr", -1, 100_000),
    ("epochs_hr", -1, 100_000),
    ("epochs_patches", -1, 100_000),
    ("epochs_pt", -1, 100_000),
    ("epochs_ft1", -1, 100_000),
    ("epochs_ft2", -1, 100_000),
    ("rate_classifier", 0.0, 100.0),
    ("rate_finetune", 0.0, 100.0),
    ("rate_policy", 0.0, 100.0),
    ("weight_decay", 0.0, 100.0),
    ("label_smoothing", 0.0, 0.99),
    ("samples", 2, 1000),
    ("sigma", 0.0, 1000.0),
    ("tolerance", 0.0, 100.0),
    ("target_patches", 0.0, 1_000_000),
    ("mistake", 0.0, 1e9),
    ("alpha_start", 0.5, 1.0),
    ("alpha_end", 0.5, 1.0),
    ("threads", 0, 4096),
    ("save_minutes", 0.0, 1e6),
)


def nearest(word: str, names: Iterable[str]) -> str:
    """``, did you mean 'x'?`` or an empty string; the tail of an error about an unknown name."""
    close = difflib.get_close_matches(str(word), list(names), n=1)
    return f", did you mean {close[0]!r}?" if close else ""


def from_mapping(values: Mapping[str, Any], where: str) -> TrainSettings:
    """Settings from plain values, each checked against its field's type.

    Args:
        values: field name -> value, as read from YAML; missing fields keep their defaults.
        where: named in errors, e.g. the file the values came from.

    Raises:
        UsageError: an unknown key (with the nearest right one), or a value of the wrong type.
    """
    hints = get_type_hints(TrainSettings)
    checked: dict[str, Any] = {}
    for key, value in values.items():
        if key in GONE:
            raise UsageError(f"{where}: the setting {key!r} is gone, {GONE[key]}; remove it")
        if key not in hints:
            raise UsageError(f"{where}: there is no setting {key!r}{nearest(key, hints)}")
        checked[key] = _coerce(called_now(value) if key == "layout" else value, hints[key], f"{where}: {key}")
    return TrainSettings(**checked)


def _coerce(value: Any, hint: Any, where: str) -> Any:
    origin = get_origin(hint)
    if origin is tuple:
        items = value if isinstance(value, (list, tuple)) else [value]
        return tuple(_coerce(item, get_args(hint)[0], where) for item in items)
    if origin is Literal:
        if value not in get_args(hint):
            choices = ", ".join(map(str, get_args(hint)))
            raise UsageError(f"{where}: {value!r} is not one of {choices}{nearest(value, get_args(hint))}")
        return value
    if hint is str and isinstance(value, (int, float, Path)) and not isinstance(value, bool):
        return str(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, hint) or (hint is not bool and isinstance(value, bool)):
        raise UsageError(f"{where}: {value!r} is no {hint.__name__}")
    return value


def read_settings(path: Path) -> TrainSettings:
    """Settings from a run's ``settings.yaml``, also one of an earlier version.

    Raises:
        UsageError: the file cannot be read, is no mapping, or holds an unknown key or a wrong value.
    """
    values = read_yaml(path)
    if values.get("layout", "auto") in ("auto", EARLIER_NAME):
        values |= {name: MARKERS for name in ("data", "layout") if values.get(name) == EARLIER_NAME}
    if "policy" not in values:  # before there was a choice
        then = {"policy": "bernoulli", "low_stream": "ft2", "fill": "mean", "fusion": "share"}
        gone = {*GONE, *(("estimator",) if values.get("estimator") == "nested" else ())}
        values = {**then, **{name: value for name, value in values.items() if name not in gone}}
    return from_mapping(values, str(path))


def to_yaml(values: Mapping[str, Any]) -> str:
    """Plain values as a YAML file holds them."""
    return yaml.safe_dump(dict(values), sort_keys=False, allow_unicode=True)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        UsageError: the file cannot be read or is no mapping.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: is not YAML ({first_line(error)})") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold `setting: value` lines")
    return values


def profile_names() -> list[str]:
    """Settings that come with the package, by name."""
    return sorted(p.name.removesuffix(".yaml") for p in _PROFILES.iterdir() if p.name.endswith(".yaml"))


def read_profile(source: str) -> dict[str, Any]:
    """The settings in a YAML file, or in a profile that comes with the package.

    Raises:
        UsageError: there is neither a file nor a profile of that name.
    """
    if source in profile_names():
        return read_yaml(_PROFILES / f"{source}.yaml")
    if not source or not Path(source).exists():
        names = profile_names()
        raise UsageError(
            f"--config {source}: no such file, and no profile{nearest(source, names)} (profiles: {', '.join(names)})"
        )
    return read_yaml(Path(source))
