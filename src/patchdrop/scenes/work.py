"""`plan` and `predict` for scenes: the same walk over a scene's cells, priced or carried out.

Of each group of cells: look (LR from the overview), then decide -> choose -> read -> classify by
`patchdrop.episode.play`; a plan stops after choose and counts what would be read. Both fetch tiles in the same order,
so a plan's requests and bytes are those of its execution, as long as no request has to be repeated.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from patchdrop.data.sets import Split
from patchdrop.dial import Dial
from patchdrop.episode import play
from patchdrop.errors import DataError, RunError, UsageError
from patchdrop.evaluation.dial import chosen_point, read_calibration, stage_and_choice
from patchdrop.files import read_json, write_json, writing
from patchdrop.packed import Packed
from patchdrop.policy.choice import Choose, greedy
from patchdrop.read.ledger import Cost, Regions
from patchdrop.read.opening import open_transport
from patchdrop.read.remote import IN_FLIGHT, LIMIT
from patchdrop.read.slide import SlideScene, slide_instead
from patchdrop.read.tiff import HeaderError
from patchdrop.read.tiled import Box, Shape, TiledScene
from patchdrop.read.transport import Stopped, is_url, public_name
from patchdrop.runfolder import RunFolder
from patchdrop.scenes.at_once import SceneBar, at_once
from patchdrop.scenes.bill import DISK, NETWORK, Bill, Link, Priced, bill, check_billable, estimate, total_bill
from patchdrop.scenes.formats import DEFAULT, Format
from patchdrop.scenes.outputs import CellResult, Features, check_formats, file_name, outputs
from patchdrop.scenes.places import Places
from patchdrop.scenes.tariff import Tariff, tariff_from
from patchdrop.serve.predictor import Predictor

CHUNK_PIXELS = 2**20
"""Cells that go through the networks at once have at most this many HR pixels; one cell may have more."""

Failed = Callable[[str], None]
Scene = TiledScene | SlideScene


class Reading(NamedTuple):
    """How scenes are read."""

    gap: int = 0
    """Ranges at most this many bytes apart are read as one."""
    limit: float = LIMIT
    """Seconds a range may take over a network, all attempts together."""
    jobs: int = 1
    """Scenes at once, 1 to 32; they share 32 requests in flight."""
    cache: Path | None = None
    """Folder that keeps headers and overviews of scenes behind a network."""


class Choosing(NamedTuple):
    """Who chooses patches, and how many."""

    run: str | Path
    """Run folder."""
    stage: str | None = None
    """``pt``, ``ft1`` or ``ft2``; None: the last one that is trained."""
    dial: Dial | None = None
    """How many patches of a cell may be read; None: what the policy chooses."""


class Terms(NamedTuple):
    """What reading is worth in money and time; None leaves the choice to the source, or the money out."""

    tariff: Tariff | None = None
    latency: float | None = None
    """Milliseconds; see `Link`."""
    bandwidth: float | None = None
    """Megabits a second; see `Link`."""

    def link(self, source: str) -> Link:
        """How fast bytes of a source come, as it is said or as is usual."""
        usual = NETWORK if is_url(source) else DISK
        return Link(
            usual.latency if self.latency is None else self.latency,
            usual.bandwidth if self.bandwidth is None else self.bandwidth,
            usual.in_flight,
        )


class Results(NamedTuple):
    """What `predict` writes, and where."""

    folder: Path
    formats: Sequence[Format] = DEFAULT
    """Kinds of files."""


@dataclass(frozen=True)
class Model:
    """A trained stage, for batches of any size, used by one scene at a time.

    Attributes:
        sha256: of its weights.
        choice: how patches are chosen, in words: ``policy``, or what the dial says.
        stop: once it is set, the networks answer no more.
    """

    run: str
    stage: str
    sha256: str
    predictor: Predictor
    choice: str = "policy"
    stop: threading.Event = field(default_factory=threading.Event, init=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, init=False)

    @property
    def shape(self) -> Shape:
        """What it takes."""
        config = self.predictor.config
        return Shape(config.high_size, config.low_size, self.predictor.grid, config.channels)

    @property
    def identity(self) -> dict[str, str]:
        """What a plan, or results, were made with."""
        return {"stage": self.stage, "sha256": self.sha256}

    def policy(self, low: Tensor) -> Tensor:
        """Patch logits ``(B, P)`` of LR ``(B, C, h, w)``."""
        found = []
        for part in torch.split(low, self._chunk):
            with self._turn():
                found.append(self.predictor.model.policy(part.to(self.predictor.device)))
        return torch.cat(found)

    def classify(self, packed: Packed, low: Tensor) -> Tensor:
        """Class logits ``(B, K)``."""
        found = []
        for start in range(0, packed.batch, self._chunk):
            keep = torch.zeros(packed.batch, dtype=torch.bool)
            keep[start : start + self._chunk] = True
            part = packed.of_images(keep)
            with self._turn():
                found.append(self.predictor.model.classifier(part, low[keep].to(self.predictor.device)))
        return torch.cat(found)

    @contextmanager
    def _turn(self) -> Iterator[None]:
        with self._lock:
            if self.stop.is_set():
                raise Stopped
            yield

    @property
    def _chunk(self) -> int:
        height, width = self.shape.high
        return max(1, CHUNK_PIXELS // (height * width))


def load_model(choosing: Choosing) -> Model:
    """A trained stage of a run.

    Raises:
        RunError: no such run or stage, or no calibrated point.
        UsageError: it was trained on LR images of a sensor of their own, which a scene's overview is not, or the dial
            is out of range or needs the validation split.
    """
    run, stage, dial = choosing
    choose: Choose = greedy
    choice = "policy"
    if dial is not None and dial.turned:
        folder = RunFolder(run).require()
        stage, choose = stage_and_choice(dial, folder, stage, _no_validation, torch.device("cpu"))
        choice = str(dial)
        if dial.calibrated:
            choice += f", threshold {chosen_point(folder, read_calibration(folder))['threshold']:.8g}"
    predictor = Predictor(run, stage, choose=choose)
    if predictor.own_low:
        raise UsageError(f"{run}: was trained on LR images of their own, a scene's overview is none; train one without")
    sha256 = RunFolder(run).stage_config(predictor.stage)["sha256"]
    return Model(str(run), predictor.stage, sha256, predictor, choice)


def _no_validation() -> Split:
    raise UsageError("--mean-budget: needs images; calibrate the run with it once, then give scenes --calibrated")


# --- plan


def plan(
    choosing: Choosing, sources: Sequence[str], out: Path, reading: Reading, terms: Terms, failed: Failed
) -> dict[str, Any]:
    """Look at scenes, choose, and price the choice.

    Writes ``plan.json`` and, for each scene, the areas to order as GeoJSON into ``out``: the chosen patches where no
    tariff says otherwise. The plan records dial and tariff.

    Args:
        failed: takes the reason of each scene that cannot be planned; the others are.

    Returns:
        The document of ``plan.json``.

    Raises:
        RunError, UsageError: see `load_model`.
    """
    model = load_model(choosing)

    def one(source: str, bar: SceneBar) -> dict[str, Any]:
        return _plan_scene(model, source, out, reading, terms, bar)

    planned = at_once(one, _each_once(sources), reading.jobs, failed, model.stop)
    how = {"choice": model.choice, "gap": reading.gap}
    document = {"run": model.run, **model.identity, **how, "scenes": planned, "total": _total(planned)}
    document |= _billed(planned, terms.tariff)
    if planned:
        write_json(out / "plan.json", document)
    return document


def _plan_scene(model: Model, source: str, out: Path, reading: Reading, terms: Terms, bar: SceneBar) -> dict[str, Any]:
    with _opened(source, model, reading) as scene:
        bar.begin(scene.cells)
        places = Places(scene.georeference, scene.name)
        _check_billable(scene, places, terms.tariff)
        priced: Any = type(scene.transport.ledger)()
        chosen: list[tuple[int, list[int]]] = []
        skipped = 0
        for group in scene.groups():
            cells, low = _seen(scene, group)
            skipped += len(group) - len(cells)
            if cells:
                with torch.inference_mode():
                    choice = model.predictor.choose(model.policy(low)).cpu()
                scene.price(cells, choice, priced)
                rows = [row.nonzero().flatten().tolist() for row in choice]
                chosen += [(cell, patches) for cell, patches in zip(cells, rows, strict=True) if patches]
            bar.advance(len(group))
        spent = scene.transport.ledger
        costs = {"header": spent.needed("header"), "overview": spent.needed("overview"), "patch": priced.of("patch")}
        execution = _with_total(costs)
        boxes = [scene.patch_box(cell, patch) for cell, patches in chosen for patch in patches]
        owed, order = _bill(scene, places, boxes, execution["total"], terms.tariff)
        areas = out / f"{_file_name(source)}.areas.geojson"
        with writing(areas) as file:
            features = Features(file, places.kind)
            if terms.tariff is not None and terms.tariff.sells_imagery:
                for geometry, properties in _ordered(order, places, terms.tariff):
                    features.add(geometry, properties)
            else:
                for box, properties in _areas(scene, chosen):
                    features.add(places.polygon(box), properties)
            features.end()
        return {
            **_described(scene, places),
            "skipped": skipped,
            "patches": sum(len(patches) for _, patches in chosen),
            "areas": areas.name,
            "planning": spent.to_json(),
            "execution": execution,
            "everything": _everything(scene)._asdict(),
            "bill": owed._asdict(),
            "estimate": _estimate(scene, costs, terms.link(source)),
            "chosen": chosen,
        }


def _areas(scene: Scene, chosen: Sequence[tuple[int, Sequence[int]]]) -> Iterator[tuple[Box, dict[str, Any]]]:
    """The chosen patches of each cell, those beside one another as one box."""
    columns = scene.shape.grid.cols
    for cell, patches in chosen:
        runs: list[list[int]] = []
        for patch in patches:
            if runs and patch == runs[-1][-1] + 1 and patch % columns:
                runs[-1].append(patch)
            else:
                runs.append([patch])
        for run in runs:
            first, last = scene.patch_box(cell, run[0]), scene.patch_box(cell, run[-1])
            yield (first[0], first[1], last[2], last[3]), {"cell": cell, "patches": run}


def read_plan(path: Path) -> dict[str, Any]:
    """A ``plan.json``.

    Raises:
        UsageError: it is none.
    """
    try:
        document = read_json(path)
        scenes = {
            scene["scene"]: {int(cell): [int(p) for p in patches] for cell, patches in scene["chosen"]}
            for scene in document["scenes"]
        }
        versions = {scene["scene"]: str(scene["version"]) for scene in document["scenes"]}
        identity = {name: str(document[name]) for name in ("stage", "sha256")}
        sold = document.get("tariff")
        tariff = None if sold is None else tariff_from(sold, f"--plan {path}: tariff")
        gap = int(document["gap"])
        return {"identity": identity, "gap": gap, "tariff": tariff, "chosen": scenes, "versions": versions}
    except RunError as error:
        raise UsageError(f"--plan {path}: cannot be read; make one with `patchdrop plan`") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"--plan {path}: is no plan.json of `patchdrop plan`, or is damaged; make it again") from error


# --- predict


def predict(
    choosing: Choosing,
    sources: Sequence[str],
    results: Results,
    reading: Reading,
    failed: Failed,
    plan_file: Path | None = None,
    tariff: Tariff | None = None,
) -> dict[str, Any]:
    """Read what the policy, or a plan, chooses, and classify every cell.

    Writes for each scene its files and, when it is finished, ``NAME.json`` with the ledger. A scene that is finished in
    the folder is not read again.

    Args:
        failed: takes the reason of each scene that cannot be read; the others are.
        plan_file: a ``plan.json``, whose choice, gap and tariff are used instead of the policy's, ``reading``'s and
            ``tariff``.
        tariff: what money is owed by.

    Returns:
        ``scenes``: the ``NAME.json`` of each; ``total``; ``tariff`` and ``bill``.

    Raises:
        RunError: see `load_model`; or a file cannot be written.
        UsageError: see `load_model`; the plan is of another training, or the folder holds other results.
    """
    check_formats(results.formats)
    if plan_file is not None and choosing.dial is not None and choosing.dial.turned:
        raise UsageError(f"--plan {plan_file}: says what is read; turn the dial of `patchdrop plan` instead")
    planned = None if plan_file is None else read_plan(plan_file)
    if planned is not None:
        reading = reading._replace(gap=planned["gap"])
        tariff = planned["tariff"]
        choosing = choosing._replace(stage=choosing.stage or planned["identity"]["stage"])
    model = load_model(choosing)
    if planned is not None and planned["identity"] != model.identity:
        raise UsageError(f"--plan {plan_file}: was made with another training of {choosing.run}; make it again")
    work = _Work(model, reading, results, tariff)

    def one(source: str, bar: SceneBar) -> dict[str, Any]:
        name = public_name(source)
        if planned is None:
            return _predict_scene(work, source, None, bar)
        if name not in planned["chosen"]:
            raise DataError(f"{name}: is not in {plan_file}; plan it first")
        return _predict_scene(work, source, _Planned(planned["chosen"][name], planned["versions"][name]), bar)

    finished = at_once(one, _each_once(sources), reading.jobs, failed, model.stop)
    document = {"run": model.run, **model.identity, "scenes": finished, "total": _total(finished)}
    return document | _billed(finished, tariff)


class _Planned(NamedTuple):
    """What a plan says of a scene."""

    chosen: dict[int, list[int]]
    """Cell -> patches."""
    version: str
    """Of the file that was planned."""


class _Work(NamedTuple):
    """What `predict` does with every scene."""

    model: Model
    reading: Reading
    results: Results
    tariff: Tariff | None

    def key(self, planned: _Planned | None) -> dict[str, Any]:
        """What results are told apart by."""
        choice = self.model.choice if planned is None else _digest(planned.chosen)
        return {**self.model.identity, "choice": choice, "tariff": _mapping(self.tariff)}


def _predict_scene(work: _Work, source: str, planned: _Planned | None, bar: SceneBar) -> dict[str, Any]:
    """The document of ``NAME.json``: the one that is there, or a new one."""
    path = work.results.folder / _file_name(source)
    key = work.key(planned)
    done = _finished(path.with_name(path.name + ".json"), key, work.results.formats)
    if done is not None:
        return done
    model, formats = work.model, work.results.formats
    with ExitStack() as stack:
        scene = stack.enter_context(_opened(source, model, work.reading))
        if planned is not None and planned.version != scene.transport.version:
            raise DataError(f"{scene.name}: is not the file that was planned; plan it again")
        places = Places(scene.georeference, scene.name)
        _check_billable(scene, places, work.tariff)
        bar.begin(scene.cells)
        writers = stack.enter_context(outputs(formats, path, scene, places, model.predictor.config.classes))
        counts: dict[str, int] = {}
        boxes: list[Box] = []
        for group in scene.groups():
            for found in _predict_group(model, scene, group, planned):
                boxes.extend(scene.patch_box(found.cell, patch) for patch in found.patches)
                counts[found.label or ""] = counts.get(found.label or "", 0) + 1
                for writer in writers:
                    writer.add(found)
            bar.advance(len(group))
        owed, _ = _bill(scene, places, boxes, scene.transport.ledger.total._asdict(), work.tariff)
        summary = {
            **_described(scene, places),
            **key,
            "gap": work.reading.gap,
            "skipped": counts.pop("", 0),
            "patches": len(boxes),
            "classes": counts,
            "files": {kind: file_name(path.name, kind) for kind in formats},
            "execution": scene.transport.ledger.to_json(),
            "everything": _everything(scene)._asdict(),
            "bill": owed._asdict(),
        }
        for writer in writers:
            writer.finish(summary)
    write_json(path.with_name(path.name + ".json"), summary)
    return summary


def _predict_group(model: Model, scene: Scene, group: range, planned: _Planned | None) -> Iterator[CellResult]:
    cells, low = _seen(scene, group)
    decided: dict[int, tuple[str, float, tuple[int, ...], NDArray[np.uint8]]] = {}
    if cells:
        choose = model.predictor.choose if planned is None else _as_planned(cells, planned.chosen)
        with torch.inference_mode():
            episode = play(model.policy, choose, scene.reader(cells), model.classify, low)
        best = episode.logits.float().softmax(1).max(1)
        names = model.predictor.config.classes
        for cell, value, index, row, seen in zip(
            cells, best.values.tolist(), best.indices.tolist(), episode.choice, low.numpy(), strict=True
        ):
            decided[cell] = names[index], value, tuple(row.nonzero().flatten().tolist()), seen
    for cell in group:
        yield CellResult(cell, scene.cell_box(cell), *decided.get(cell, (None, 0.0, ())))


def _as_planned(cells: Sequence[int], chosen: dict[int, list[int]]) -> Choose:
    """The plan's choice for these cells, whatever the policy says now."""

    def choose(scores: Tensor) -> Tensor:
        choice = torch.zeros(scores.shape, dtype=torch.bool)
        for row, cell in enumerate(cells):
            for patch in chosen.get(cell, ()):
                if not 0 <= patch < scores.shape[1]:
                    raise UsageError(f"the plan names patch {patch} of cell {cell}, the grid has {scores.shape[1]}")
                choice[row, patch] = True
        return choice.to(scores.device)

    return choose


def _finished(path: Path, key: dict[str, Any], formats: Sequence[Format]) -> dict[str, Any] | None:
    """The summary of a scene that was finished before.

    Raises:
        UsageError: with another model, plan or tariff, or without a kind of file that is asked for now.
    """
    if not path.exists():
        return None
    found = read_json(path)
    if not isinstance(found, dict) or {name: found.get(name) for name in key} != key:
        raise UsageError(f"{path}: holds results of another run, stage, dial, plan or tariff; choose another --out")
    lacking = [kind for kind in formats if kind not in found["files"]]
    if lacking:
        raise UsageError(f"{path}: was finished without --format {' '.join(lacking)}; choose another --out")
    return found


# --- shared


@contextmanager
def _opened(source: str, model: Model, reading: Reading) -> Iterator[Scene]:
    """A scene, or a slide where the reader of TIFFs does not take the file."""
    in_flight = max(1, IN_FLIGHT // reading.jobs)
    with ExitStack() as stack:
        opened = open_transport(source, reading.limit, in_flight, model.stop, reading.cache)
        transport = stack.enter_context(closing(opened))
        scene: Scene
        try:
            scene = TiledScene(transport, model.shape, reading.gap)
        except HeaderError as refused:
            if is_url(source):
                raise
            scene = SlideScene(stack.enter_context(closing(slide_instead(source, refused))), model.shape)
        yield scene


def _seen(scene: Scene, group: range) -> tuple[list[int], Tensor]:
    """The cells that hold more than nodata, and their LR."""
    look = scene.look(group)
    return [cell for cell, seen in zip(group, look.seen.tolist(), strict=True) if seen], look.low[look.seen]


def _described(scene: Scene, places: Places) -> dict[str, Any]:
    return {
        "scene": scene.name,
        "version": scene.transport.version,
        "size": list(scene.size),
        "coordinates": places.kind,
        "cells": scene.cells,
    }


def _check_billable(scene: Scene, places: Places, tariff: Tariff | None) -> None:
    """Raise DataError where the tariff's prices do not fit the scene, before its pixels are read."""
    if tariff is not None:
        check_billable(tariff, places.kind == "CRS84", isinstance(scene, TiledScene), scene.name)


def _bill(
    scene: Scene, places: Places, boxes: Sequence[Box], total: dict[str, int], tariff: Tariff | None
) -> tuple[Bill, list[Priced]]:
    """What some patches of a scene cost, read with ``total``."""
    cost = everything = Cost(0, 0)  # of a slide nothing is counted that could be paid for
    if isinstance(scene, TiledScene):
        cost, everything = Cost(**total), Cost(**_everything(scene)._asdict())
    return bill(tariff, places.ground(*scene.size), scene.size, boxes, cost, everything)


def _estimate(scene: Scene, costs: dict[str, Any], link: Link) -> dict[str, Any] | None:
    """As `estimate`; None of a slide, whose bytes are not known."""
    if not isinstance(scene, TiledScene):
        return None
    return estimate(costs, Cost(**_everything(scene)._asdict()), link)


def _billed(scenes: Sequence[dict[str, Any]], tariff: Tariff | None) -> dict[str, Any]:
    """The tariff and the sums over scenes."""
    return {"tariff": _mapping(tariff), "bill": total_bill([scene["bill"] for scene in scenes])}


def _mapping(tariff: Tariff | None) -> dict[str, Any] | None:
    return None if tariff is None else tariff.to_mapping()


def _ordered(
    order: Sequence[Priced], places: Places, tariff: Tariff
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Geometry and properties of each area of an order."""
    for (shape, km2), price in order:
        rings = [list(ring.coords)[:-1] for ring in (shape.exterior, *shape.interiors)]
        values = {"km2": km2 if places.kind == "CRS84" else None, "price": price, "currency": tariff.currency}
        yield places.outline(rings), values


def _everything(scene: Scene) -> Cost | Regions:
    """What reading the whole scene costs."""
    header: Any = scene.transport.ledger.needed("header")
    found: Cost | Regions = header.plus(scene.everything())
    return found


def _with_total(costs: dict[str, Any]) -> dict[str, dict[str, int]]:
    """Costs of one kind, and their sum."""
    kind = type(costs["patch"])
    total = kind(*(sum(column) for column in zip(*costs.values(), strict=True)))
    return {name: cost._asdict() for name, cost in {**costs, "total": total}.items()}


def _total(scenes: Sequence[dict[str, Any]]) -> dict[str, int]:
    """Sums over scenes: what was, or would be, read, and what reading everything costs.

    Requests and bytes are of scenes, regions and pixels of slides, whose bytes cannot be counted.
    """
    sums = {name: sum(scene[name] for scene in scenes) for name in ("cells", "skipped", "patches")}
    for units in (("requests", "bytes"), ("regions", "pixels")):
        counted = [scene for scene in scenes if units[1] in scene["everything"]]
        if counted or (not scenes and units[1] == "bytes"):
            sums |= {name: sum(scene["execution"]["total"][name] for scene in counted) for name in units}
            sums |= {f"everything_{name}": sum(scene["everything"][name] for scene in counted) for name in units}
    return sums


def _each_once(sources: Sequence[str]) -> list[str]:
    """The sources without repetitions.

    Raises:
        UsageError: two of them cannot be told apart by what may be shown of them.
    """
    named: dict[str, str] = {}
    for source in sources:
        if named.setdefault(public_name(source), source) != source:
            raise UsageError(
                f"{public_name(source)}: is named twice, with another user, query or fragment; "
                "give one of them, or each its own --out"
            )
    return list(named.values())


def _file_name(source: str) -> str:
    """What a scene's files are called: its own name, and enough of a digest to tell it from others of that name."""
    name = public_name(source)
    stem = PurePosixPath(name).stem[:50] or "scene"  # the file system's limit counts bytes, and suffixes follow
    address = name.encode() if is_url(source) else os.fsencode(os.path.abspath(source))
    return f"{stem}-{hashlib.sha256(address).hexdigest()[:8]}"


def _digest(chosen: dict[int, list[int]]) -> str:
    return "plan " + hashlib.sha256(json.dumps(sorted(chosen.items())).encode()).hexdigest()[:16]
