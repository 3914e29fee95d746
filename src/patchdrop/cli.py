"""The command line: names, flags and exit codes; what the commands do is in `commands`."""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from patchdrop.errors import Interrupted, PatchDropError, UsageError
from patchdrop.scenes.flags import Reach, SceneFlags
from patchdrop.scenes.formats import DEFAULT, OF_IMAGES, Format
from patchdrop.settings.comparison import CompareOptions, Price
from patchdrop.settings.config_file import defaults
from patchdrop.settings.dial import Dial, Target
from patchdrop.settings.flat import TrainSettings, from_mapping, read_profile
from patchdrop.settings.machine import Machine
from patchdrop.settings.processes import place
from patchdrop.settings.spread import Spread
from patchdrop.version import VERSION

if TYPE_CHECKING:
    from patchdrop.read.inputs import Inputs
    from patchdrop.tariffs.tariff import Tariff

DONE, USAGE, BAD_INPUT, SOME_FAILED, PLAIN_IS_BETTER, INTERRUPTED, TERMINATED = 0, 2, 3, 4, 5, 130, 143

app = App(
    name="patchdrop",
    help="Learn when and where to zoom: read only the high-resolution patches an image needs.",
    version=VERSION,
    result_action="return_value",
    suppress_keyboard_interrupt=False,
    # `--stages pt ft1` as well as `--stages pt --stages ft1`.
    default_parameter=Parameter(consume_multiple=True),
)

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON document on stdout.")]
Out = Annotated[Path, Parameter(help="Run folder to make or to go on with.")]
Settings = Annotated[TrainSettings, Parameter(name="*")]
DialFlags = Annotated[Dial, Parameter(name="*")]
TargetFlags = Annotated[Target, Parameter(name="*")]
MachineFlags = Annotated[Machine, Parameter(name="*")]
Flag = Parameter(negative="")
Options = Annotated[CompareOptions, Parameter(name="*")]
# A file may be called [1].png, which is no JSON list.
Files = Parameter(json_list=False, negative="")
Formats = Annotated[tuple[Format, ...], Parameter(name="--format", negative="")]
ReachFlags = Annotated[Reach, Parameter(name="*")]
SceneOptions = Annotated[SceneFlags, Parameter(name="*")]
SpreadFlags = Annotated[Spread, Parameter(name="*")]
TariffFile = Annotated[Path | None, Parameter(help="YAML file with the terms that pixels are sold by, for money.")]


@app.command
def demo(*, out: Out, as_json: Json = False) -> int:
    """Train every stage on the embedded images, evaluate, write the report and print the table."""
    from patchdrop import commands

    return _trained(commands.train(from_mapping(read_profile("demo"), "demo"), out), as_json)


@app.command
def train(
    *,
    out: Out,
    settings: Settings | None = None,
    config: str | None = None,
    dry_run: Annotated[bool, Flag] = False,
    as_json: Json = False,
) -> int:
    """Train the classifiers, then the policy in Pt, Ft-1 and Ft-2; stopped anywhere, the same command goes on.

    Exits with 5 where a plain strategy turned out better than the policy on validation images.

    Parameters
    ----------
    config
        YAML file with settings, such as a run's settings.yaml, or the name of a profile that comes with the
        package, such as demo. Flags given beside it win.
    dry_run
        State data, networks, FLOPs, stages and time, and train nothing.
    """
    from patchdrop import commands
    from patchdrop.terminal.tables import plan_table

    chosen = settings or TrainSettings()
    if dry_run:
        _print(commands.plan(chosen), plan_table, as_json)
        return DONE
    return _trained(commands.train(chosen, out), as_json)


def _trained(document: dict[str, Any], as_json: bool) -> int:
    """Print the table of a training; return its exit code. Where a plain strategy is better, stderr says so too."""
    from patchdrop.terminal.tables import results_table
    from patchdrop.terminal.talk import say

    if not document:  # another process has it, which this one helped
        return DONE
    _print(document, results_table, as_json)
    verdict = document["verdict"]
    if verdict is None or verdict["kind"] != "loses":
        return DONE
    say(verdict["sentence"])
    return PLAIN_IS_BETTER


@app.command
def evaluate(
    run: Path,
    *,
    data: str | None = None,
    split: str = "test",
    dial: DialFlags | None = None,
    machine: MachineFlags | None = None,
    as_json: Json = False,
) -> int:
    """The table of a run: accuracy, S, share of HR, distinct masks and reward for each stage.

    Parameters
    ----------
    run
        Run folder.
    data
        Folder or CSV file with the labelled images; by default what the run was trained on.
    split
        test or val.
    """
    from patchdrop import commands
    from patchdrop.terminal.tables import results_table

    _print(commands.evaluate(run, data, split, dial, machine), results_table, as_json)
    return DONE


@app.command
def predict(
    run: Path,
    inputs: Annotated[list[str] | None, Files] = None,
    *,
    out: Path | None = None,
    low: Annotated[list[Path] | None, Files] = None,
    stage: str | None = None,
    overlay: Path | None = None,
    scaled_low: Annotated[bool, Flag] = False,
    dial: DialFlags | None = None,
    plan: Path | None = None,
    formats: Formats = DEFAULT,
    scene: SceneOptions | None = None,
    tariff: TariffFile = None,
    machine: MachineFlags | None = None,
    spread: SpreadFlags | None = None,
    as_json: Json = False,
) -> int:
    """Label, probability, chosen patches and share of HR read: of image files, and of each cell of scenes.

    Parameters
    ----------
    run
        Run folder.
    inputs
        Image files, folders of them, patterns, and scenes: tiled GeoTIFFs, slides, or URLs (http, https, s3, gs, az);
        or lists of these: .txt with one a line, .csv or .parquet with a column path. Which of them are scenes is found
        by looking at them, and said.
    out
        Folder for the results, which several processes may share; what is finished there is not read again. Without
        it results are printed.
    low
        LR images of a sensor of their own, one for each image file.
    stage
        pt, ft1 or ft2; by default the last one that is trained.
    overlay
        Folder for pictures of what was read of image files.
    scaled_low
        Make LR by decoding a JPEG at a reduced scale: an image without a chosen patch is then never decoded whole.
    plan
        Read of scenes what this plan.json says, rather than what the policy chooses now.
    formats
        Files to write: jsonl, csv, parquet; of scenes also geojson, gpkg (GeoPackage), map (of classes, a COG), png
        (picture). The parquet of scenes is GeoParquet.
    """
    from patchdrop.terminal.tables import predicted_tables

    asked = scene or SceneFlags()
    found = _looked_at(run, inputs, asked, [folder for folder in (out, overlay) if folder is not None])
    for_images = {"--low": low, "--overlay": overlay, "--scaled-low": scaled_low}
    for_scenes = {"--plan": plan, "--tariff": tariff, "the flags of scenes": asked != SceneFlags()}
    _refuse_idle(for_images, found.images, "image files", found)
    _refuse_idle(for_scenes, found.scenes or asked.scenes, "scenes", found)
    if overlay is not None and overlay.resolve() in {Path(image).resolve().parent for image in found.images}:
        raise UsageError(f"--overlay {overlay}: holds images that are read, which pictures could replace; name another")
    if out is None and formats != DEFAULT:
        raise UsageError("--format: says which files to write; name a folder for them with --out")
    if plan and tariff:
        raise UsageError("--tariff: a plan brings its own; give it to `patchdrop plan`")
    if out is not None and not (found.scenes or asked.scenes) and formats != DEFAULT:
        for_scenes = {f"--format {kind}": kind not in OF_IMAGES for kind in formats}
        _refuse_idle(for_scenes, None, "scenes", found)
    shared = spread or Spread()
    if out is None and shared != Spread():
        raise UsageError("--shard, --workers and --scheduler: share work that goes into a folder; name one with --out")
    sold = _sold_by(tariff)  # what is wrong with it is said before images are read
    failures, failed = _failures()
    document: dict[str, Any] = {}
    if found.images:
        how_images = (run, stage, dial, overlay, scaled_low, machine or Machine())
        document |= _predict_images(how_images, found.images, low, failed, out, formats, shared)
    if found.scenes or asked.scenes:
        how = (run, stage, dial, machine)
        document |= _predict_scenes(how, found.scenes, asked, failed, out, formats, plan, sold, shared)
    _print({**document, "failed": failures}, predicted_tables, as_json)
    read = document.get("image_files", {}).get("classes") or document.get("predictions") or document.get("scenes")
    return _code(failures, bool(read))


def _looked_at(run: Path, inputs: list[str] | None, asked: SceneFlags, results: list[Path]) -> Inputs:
    """Look at the inputs, and say what they are where there are both kinds, or where some stand for others."""
    if not inputs and not asked.scenes:
        raise UsageError("inputs: none was given; name image files, folders, scenes or URLs, or a list with --scenes")
    from patchdrop.read.inputs import inputs_of
    from patchdrop.runs.folder import RunFolder
    from patchdrop.terminal.talk import say

    found = inputs_of(inputs or [], RunFolder(run).settings().shape.high, results)
    if sorted(found.images + found.scenes) != sorted(inputs or []) or (found.images and found.scenes):
        say(f"inputs: {found}")
    return found


def _refuse_idle(flags: dict[str, Any], wanted: Any, kind: str, found: Inputs) -> None:
    """Refuse flags that none of the inputs has a use for."""
    given = [flag for flag, value in flags.items() if value]
    if given and not wanted:
        raise UsageError(f"{' and '.join(given)}: for {kind}, and the inputs are {found}; leave out, or name some")


def _predict_images(
    how: tuple[Any, ...],
    images: list[str],
    low: list[Path] | None,
    failed: Callable[[str], None],
    out: Path | None,
    formats: Sequence[Format],
    spread: Spread,
) -> dict[str, Any]:
    from dataclasses import asdict

    from patchdrop import commands
    from patchdrop.commands.predicting import Asking

    asking = Asking(*how)
    if out is not None:
        return commands.predict_into(asking, images, low, out, formats, failed, spread)
    return {"predictions": [asdict(found) for found in commands.predict(asking, images, low, failed)]}


def _predict_scenes(
    how: tuple[Path, str | None, Dial | None, Machine | None],
    named: list[str],
    asked: SceneFlags,
    failed: Callable[[str], None],
    out: Path | None,
    formats: Sequence[Format],
    plan: Path | None,
    sold: Tariff | None,
    spread: Spread | None,
) -> dict[str, Any]:
    from patchdrop.scenes import predict as scenes
    from patchdrop.scenes.listing import sources_of
    from patchdrop.scenes.model import Choosing
    from patchdrop.scenes.walk import reading_of

    sources = sources_of(named, asked.scenes, asked.asset, failed, asked.low_scene)
    choosing, reading = Choosing(*how), reading_of(asked)
    if out is None:
        return scenes.predicted_cells(choosing, sources, reading, failed, plan, sold, spread)
    return scenes.predict(choosing, sources, scenes.Results(out, formats), reading, failed, plan, sold, spread)


@app.command
def check(
    sources: Annotated[list[str] | None, Files] = None,
    /,
    *,
    run: Path | None = None,
    high: str = "128",
    low: str = "32",
    grid: str = "4",
    reach: ReachFlags | None = None,
    as_json: Json = False,
) -> int:
    """Are scenes fit for reading single patches? Reads their headers, and says what to do where they are not.

    Parameters
    ----------
    sources
        Tiled GeoTIFFs or their URLs (http, https, s3, gs, az).
    run
        Run folder of the model that is to read them; without it, sizes and grid are those given here.
    high
        HR size of a cell in pixels.
    low
        LR size of a cell in pixels.
    grid
        Patches of a cell.
    """
    from patchdrop.scenes.check import check as check_scenes
    from patchdrop.scenes.check import shape_of
    from patchdrop.scenes.listing import sources_of
    from patchdrop.terminal.scene_tables import check_table

    failures, failed = _failures()
    shape, asked = shape_of(run, high, low, grid), reach or Reach()
    named = sources_of(sources, asked.scenes, asked.asset, failed, asked.low_scene)
    found = check_scenes(named, shape, failed, asked.jobs, asked.cache, asked.limit)
    _print({"scenes": found, "failed": failures}, check_table, as_json)
    fit = [scene["fit"] for scene in found]
    return DONE if all(fit) and not failures else SOME_FAILED if any(fit) else BAD_INPUT


@app.command
def plan(
    run: Path,
    sources: Annotated[list[str] | None, Files] = None,
    /,
    *,
    out: Path,
    stage: str | None = None,
    dial: DialFlags | None = None,
    scene: SceneOptions | None = None,
    tariff: TariffFile = None,
    latency: Annotated[float | None, Parameter(validator=Number(gte=0))] = None,
    bandwidth: Annotated[float | None, Parameter(validator=Number(gt=0))] = None,
    machine: MachineFlags | None = None,
    spread: SpreadFlags | None = None,
    as_json: Json = False,
) -> int:
    """What predicting scenes would read: looks at headers and overviews only, and prices the patches chosen.

    Parameters
    ----------
    run
        Run folder.
    sources
        Tiled GeoTIFFs or their URLs (http, https, s3, gs, az).
    out
        Folder for plan.json and the areas to order, or the chosen patches, as GeoJSON.
    stage
        pt, ft1 or ft2; by default the last one that is trained.
    latency
        Milliseconds until an answer begins, for the estimate of time; by default 50 over HTTP, 0.1 on a disk.
    bandwidth
        Megabits a second, for the estimate of time; by default 100 over HTTP, 4000 on a disk.
    """
    from patchdrop.scenes import plan as scenes
    from patchdrop.scenes.listing import sources_of
    from patchdrop.scenes.model import Choosing
    from patchdrop.scenes.walk import reading_of
    from patchdrop.terminal.scene_tables import scenes_table

    asked = scene or SceneFlags()
    choosing, reading = Choosing(run, stage, dial, machine), reading_of(asked)
    terms = scenes.Terms(_sold_by(tariff), latency, bandwidth)
    failures, failed = _failures()
    named = sources_of(sources, asked.scenes, asked.asset, failed, asked.low_scene)
    document = scenes.plan(choosing, named, out, reading, terms, failed, spread)
    _print({**document, "failed": failures}, scenes_table, as_json)
    return _code(failures, bool(document["scenes"]))


def _sold_by(tariff: Path | None) -> Tariff | None:
    from patchdrop.tariffs.tariff import read_tariff

    return None if tariff is None else read_tariff(tariff)


def _failures() -> tuple[list[str], Callable[[str], None]]:
    """Reasons of what failed, and what takes and says each of them."""
    from patchdrop.terminal.talk import say

    found: list[str] = []

    def failed(reason: str) -> None:
        found.append(reason)
        say(f"error: {reason}")

    return found, failed


def _code(failures: list[str], some: bool) -> int:
    """The exit code where some items may have failed; ``some``: whether any did not."""
    if failures:
        return SOME_FAILED if some else BAD_INPUT
    return DONE


@app.command
def calibrate(
    run: Path,
    *,
    data: str | None = None,
    split: str = "test",
    stage: str | None = None,
    fraction: float | None = None,
    seed: int | None = None,
    target: TargetFlags | None = None,
    machine: MachineFlags | None = None,
    as_json: Json = False,
) -> int:
    """Accuracy and cost of every threshold, and the one that meets a target, for predict and evaluate --calibrated.

    Parameters
    ----------
    run
        Run folder.
    data
        Folder or CSV file with labelled images that training did not use; by default what the run was trained on.
    split
        Split of the data; of what the run was trained on only test.
    stage
        pt, ft1 or ft2; by default the last one that is trained.
    fraction
        Share of the split that is drawn for calibration; by default half of the run's own test split, else all.
    seed
        Seed of the draw; by default the run's.
    """
    from patchdrop import commands
    from patchdrop.terminal.tables import calibration_table

    _print(commands.calibrate(run, data, split, stage, target, fraction, seed, machine), calibration_table, as_json)
    return DONE


@app.command
def bench(
    run: Path,
    *,
    batch: tuple[int, ...] = (1, 8, 64),
    threads: int | None = None,
    rounds: int = 15,
    stages: tuple[str, ...] | None = None,
    data: str | None = None,
    split: str = "test",
    device: str = "cpu",
    images: int = 64,
    as_json: Json = False,
) -> int:
    """Milliseconds, FLOPs and memory of the plain HR network, LR-CNN, policy and classifiers, timed in turns.

    Parameters
    ----------
    run
        Run folder.
    batch
        Images a batch.
    threads
        CPU threads; by default the run's.
    rounds
        Timed runs of each.
    stages
        Which of lr, hr, pt, ft1 and ft2; by default all that are trained.
    data
        Folder or CSV file with the images to use; by default noise.
    split
        Split of the data.
    device
        cpu, cuda or auto; a GPU holds weights and images before the clock starts.
    images
        Images that a policy's own choice is timed on.
    """
    from patchdrop import commands
    from patchdrop.terminal.tables import bench_table

    _print(commands.bench(run, batch, threads, rounds, stages, data, split, device, images), bench_table, as_json)
    return DONE


@app.command
def export(run: Path, *, onnx: Path, stage: str | None = None, as_json: Json = False) -> int:
    """Policy and classifier as two ONNX graphs, written once ONNX Runtime is seen to give what torch gives.

    Parameters
    ----------
    run
        Run folder.
    onnx
        Folder for policy.onnx, classifier.onnx and model.json.
    stage
        pt, ft1 or ft2; by default the last one that is trained.
    """
    from patchdrop import commands
    from patchdrop.terminal.tables import export_table

    _print(commands.export(run, onnx, stage), export_table, as_json)
    return DONE


@app.command
def compare(
    *,
    options: Options,
    out: Annotated[Path | None, Parameter(help="Folder of the comparison to make or to go on with.")] = None,
    settings: Settings | None = None,
    config: str | None = None,
    price_per_image: float | None = None,
    price_per_km2: float | None = None,
    gsd: float | None = None,
    list_rows: Annotated[bool, Parameter(name="--list", negative="")] = False,
    as_json: Json = False,
) -> int:
    """Train and judge every row of one of the paper's tables side by side; stopped anywhere, the same command goes on.

    Parameters
    ----------
    config
        YAML file with settings, such as a comparison's compare.yaml, or the name of a profile; wins over --profile.
    price_per_image
        Price of all HR pixels of an image, in any currency.
    price_per_km2
        Price of HR by the area on the ground; needs --gsd.
    gsd
        Metres on the ground for each HR pixel.
    list_rows
        Say what the rows are and, with --data, what each would take here; train nothing.
    """
    from patchdrop import commands
    from patchdrop.terminal.tables import compare_list_table, compare_table

    chosen = settings or TrainSettings()
    price = Price(price_per_image, price_per_km2, gsd)
    if list_rows:
        _print(commands.compare_list(options, chosen, out or Path()), compare_list_table, as_json)
        return DONE
    if out is None:
        raise UsageError("--out: name a folder for the comparison")
    _print(commands.compare(options, chosen, out, price), compare_table, as_json)
    return DONE


@app.command
def info(run: Path, *, as_json: Json = False) -> int:
    """What is in a run: stages, settings, networks, grid, classes, figures, versions.

    Parameters
    ----------
    run
        Run folder.
    """
    from patchdrop import commands
    from patchdrop.terminal.tables import info_table

    _print(commands.info(run), info_table, as_json)
    return DONE


def _print(document: dict[str, Any], table: Callable[[dict[str, Any]], Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 140).print(table(document))


def main(tokens: list[str] | None = None) -> int:
    """Run a command line and return its exit code; every expected error is one line on stderr."""
    # Threads that spin for long while they wait make training several times slower as soon as anything else runs on
    # the cores (docs/decisions.md). Read by OpenMP when torch is loaded, so set before.
    os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    for stream in (sys.stdout, sys.stderr):  # a name of a file may be no UTF-8
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    # Pillow's own remarks about a damaged file would stand beside our one line about it.
    logging.getLogger("PIL").setLevel(logging.CRITICAL)
    arguments = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    from patchdrop.terminal.talk import as_line, hush, line, tell, warnings_told

    hush(place().local > 0)  # of the processes of one machine the first says what all of them would
    try:
        with warnings_told(as_line):
            return DONE if _only_first(arguments) else _run(arguments)
    except Interrupted as stopped:
        line("stopped; everything is saved, the same command goes on")
        return TERMINATED if stopped.signal == 15 else INTERRUPTED
    except KeyboardInterrupt:
        line("stopped")
        return INTERRUPTED
    except BrokenPipeError:
        return DONE
    except PatchDropError as error:
        if debug:
            raise
        return tell(error)


def _only_first(arguments: list[str]) -> bool:
    """Whether this is one of several processes and has nothing to do; raises UsageError in the first for most commands.

    Several share a training. What is answered at once, such as ``--help``, is for the first alone.
    """
    here = place()
    shared = arguments[:1] in (["train"], ["demo"])
    asks = not arguments or not {"-h", "--help", "--version"}.isdisjoint(arguments)
    if here.size == 1 or (shared and not asks and "--dry-run" not in arguments):
        return False
    if here.rank == 0 and not asks:
        raise UsageError("torchrun: processes share `patchdrop train` and `demo` only; run this without it")
    return here.rank > 0


def _run(arguments: list[str]) -> int:
    from patchdrop.terminal.talk import line

    app.config = defaults(arguments)
    try:
        code = app(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        line(f"error: {_one_line(error)}")
        return USAGE
    return int(code or DONE)


def _one_line(error: CycloptsError) -> str:
    return " ".join(str(error).split())
