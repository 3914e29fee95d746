"""Predict scenes: read the patches of every cell that the policy or a plan chose, and classify every cell."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from patchdrop.cluster.spread import remembering
from patchdrop.errors import DataError, RunError, UsageError
from patchdrop.files import claimed, read_json, remove_unfinished, write_json
from patchdrop.packed import Packed
from patchdrop.policy.choice import Choose
from patchdrop.read.ahead import decoders, one_ahead
from patchdrop.scenes.bill import total_bill
from patchdrop.scenes.chances import Expected, over_scenes
from patchdrop.scenes.concurrency import Busy, SceneBar, alone, concurrently, scenes_over
from patchdrop.scenes.costs import bill_of, billed, check_price, cost_of_everything, mapping, total_of
from patchdrop.scenes.formats import DEFAULT, Format
from patchdrop.scenes.listing import Source
from patchdrop.scenes.model import Choosing, Model, load_model
from patchdrop.scenes.outputs import CellResult, check_formats, file_name, outputs
from patchdrop.scenes.places import Places
from patchdrop.scenes.plan import Plan, Planned, digest, read_plan
from patchdrop.scenes.walk import (
    Decided,
    Failed,
    Reading,
    Scene,
    decide,
    described,
    each_once,
    name_of,
    opened,
    seen_cells,
)
from patchdrop.serve.predictor import Chances
from patchdrop.settings.spread import Spread
from patchdrop.tariffs.tariff import Tariff
from patchdrop.terminal.talk import say
from patchdrop.tiff.tiles import Box
from patchdrop.transport.ranges import LocalFile, Stopped, is_url, public_name


class Results(NamedTuple):
    """The kinds of files that `predict` writes, and their folder."""

    folder: Path
    formats: Sequence[Format] = DEFAULT
    """Kinds of files."""


def predict(
    choosing: Choosing,
    sources: Sequence[Source],
    results: Results,
    reading: Reading,
    failed: Failed,
    plan_file: Path | None = None,
    tariff: Tariff | None = None,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Read what the policy, or a plan, chooses, and classify every cell.

    Write for each scene its files and, when it is finished, ``NAME.json`` with the ledger. A scene that is already
    finished in the folder is not read again, and one that another process is reading is waited for.

    Args:
        failed: called with the reason for each scene that cannot be read; the others are read.
        plan_file: a ``plan.json``, whose choice, gap, size of cells and tariff replace the policy's choice, those of
            ``reading``, and ``tariff``.
        tariff: terms by which the bill is computed.
        spread: which part of the scenes is read, and by whom; None: all of them, by this process.

    Returns:
        ``scenes``: the ``NAME.json`` of each; ``total``; ``tariff`` and ``bill``.

    Raises:
        RunError: see `load_model`; or a file cannot be written.
        UsageError: see `load_model`; or the plan is of another training, or the folder holds other results.
    """
    asked = _Asked(choosing, results, reading, plan_file, tariff)
    work = _work(asked)
    left = each_once(sources)
    if spread is not None:
        left = list(spread.part(left))
        if spread.wide:
            tried, told = left, asked._replace(known=(os.getcwd(), *_known(work.model, plan_file)))
            left = list(scenes_over(spread, partial(_finish_scene, told), tried, failed))
            for source in set(tried) - set(left):
                _sweep(results.folder / name_of(source.scene))
    finished = concurrently(partial(_predict_scene, work), left, reading.jobs, failed, work.model.stop)
    total = {**total_of(finished), **over_scenes(finished)}
    document = {"run": work.model.run, **work.model.identity, "scenes": finished, "total": total}
    return document | billed(finished, work.tariff)


def _work(asked: _Asked) -> _Work:
    """Load what is asked for."""
    choosing, results, reading, plan_file, tariff, known = asked
    check_formats(results.formats)
    if plan_file is not None and choosing.dial is not None and choosing.dial.turned:
        raise UsageError(f"--plan {plan_file}: says what is read; turn the dial of `patchdrop plan` instead")
    planned = None if plan_file is None else read_plan(plan_file)
    if planned is not None:
        reading = reading._replace(gap=planned.gap, cell_metres=planned.cell_metres)
        tariff = planned.tariff
        choosing = choosing._replace(stage=choosing.stage or planned.identity["stage"])
    model = load_model(choosing)
    if planned is not None and planned.identity != model.identity:
        raise UsageError(f"--plan {plan_file}: was made with another training of {choosing.run}; make it again")
    if known is not None and known[1:] != _known(model, plan_file):
        raise RunError(
            f"{choosing.run}: the run or the plan is another one on a worker than here; workers must share it"
        )
    return _Work(model, reading, results, tariff, planned, str(plan_file))


def _known(model: Model, plan_file: Path | None) -> tuple[Any, ...]:
    """Return what tells a run and a plan from others of the same names."""
    content = None if plan_file is None else hashlib.sha256(plan_file.read_bytes()).hexdigest()
    return model.identity, model.choice, content


_loaded = remembering(_work)


def _sweep(path: Path) -> None:
    """Remove what a process that was killed at a scene has left, unless another one is at it."""
    with claimed(_claim(path)) as mine:
        if mine:
            remove_unfinished(path.parent, path.name)


def _claim(path: Path) -> Path:
    """Return the file whose lock says who is at a scene; ``path``: folder and name of its files."""
    return path.with_name(f".{path.name}.claim")


def _finish_scene(asked: _Asked, source: Source) -> None:
    """Finish one scene, on a worker; its files are the result."""
    work = _loaded(asked)
    alone(partial(_predict_scene, work), source, work.model.stop)


def predicted_cells(
    choosing: Choosing,
    sources: Sequence[Source],
    reading: Reading,
    failed: Failed,
    plan_file: Path | None = None,
    tariff: Tariff | None = None,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Predict as `predict` does, but leave nothing on disk: each scene holds its cells, to be shown on the screen.

    Returns:
        What `predict` returns; each of ``scenes`` has ``results``, the lines of its ``jsonl`` file.
    """
    with TemporaryDirectory() as folder:
        results = Results(Path(folder), ("jsonl",))
        document = predict(choosing, sources, results, reading, failed, plan_file, tariff, spread)
        for scene in document["scenes"]:
            name = scene.pop("files")["jsonl"]
            lines = (results.folder / name).read_text(encoding="utf-8").splitlines()
            scene["results"] = [json.loads(line) for line in lines]
    return document


class _Asked(NamedTuple):
    """The arguments of `predict` that hold for every scene."""

    choosing: Choosing
    results: Results
    reading: Reading
    plan_file: Path | None
    tariff: Tariff | None
    known: Any = None
    """What a worker that has loaded such files before tells them by from others of the same names."""


class _Work(NamedTuple):
    """The same with all files read."""

    model: Model
    reading: Reading
    results: Results
    tariff: Tariff | None
    plan: Plan | None
    plan_file: str

    def planned(self, source: Source) -> Planned | None:
        """Return what is planned for a scene; None without a plan."""
        if self.plan is None:
            return None
        name = public_name(source.scene)
        if name not in self.plan.scenes:
            raise DataError(f"{name}: is not in {self.plan_file}; plan it first")
        return self.plan.scenes[name]

    def key(self, source: Source, planned: Planned | None) -> dict[str, Any]:
        """Return the values that tell results apart."""
        choice = self.model.choice if planned is None else digest(planned.chosen)
        low = None if source.low is None else name_of(source.low)
        precision = self.model.predictor.compute.precision
        cut = {"low_key": low, "cell_metres": self.reading.cell_metres}
        cut |= {"precision": None if precision == "float32" else precision}  # results of earlier versions have none
        return {**self.model.identity, "choice": choice, "tariff": mapping(self.tariff), **cut}


def _predict_scene(work: _Work, source: Source, bar: SceneBar) -> dict[str, Any]:
    """Return the document of ``NAME.json``: the one that is there, or a new one.

    Raises:
        Busy: another process is writing it.
    """
    path = work.results.folder / name_of(source.scene)
    planned = work.planned(source)
    key = work.key(source, planned)

    def finished() -> dict[str, Any] | None:
        return _finished(path.with_name(path.name + ".json"), source, key, work.results.formats)

    if (done := finished()) is not None and not _claim(path).exists():
        return done
    with claimed(_claim(path)) as mine:
        if not mine:
            raise Busy
        remove_unfinished(path.parent, path.name)
        if (done := finished()) is not None:  # by another process, since the first look
            return done
        if path.with_name(path.name + ".json").exists():
            say(f"{public_name(source.scene)}: has changed since {path}.json was written, and is read again")
        return _read_scene(work, source, planned, bar, path, key)


def _read_scene(
    work: _Work, source: Source, planned: Planned | None, bar: SceneBar, path: Path, key: dict[str, Any]
) -> dict[str, Any]:
    model, formats = work.model, work.results.formats
    with ExitStack() as stack:
        scene = stack.enter_context(opened(source, model, work.reading))
        places = Places(scene.georeference, scene.name)
        if planned is not None:
            planned.check(described(scene, places))
            planned.check_choice(scene.name, scene.cells, scene.shape.grid.patches)
        check_price(scene, places, work.tariff)
        bar.begin(scene.cells)
        writers = stack.enter_context(outputs(formats, path, scene, places, model.predictor.config.classes))
        counts: dict[str, int] = {}
        expected = Expected()
        boxes: list[Box] = []
        for asked in one_ahead(_ask(model, scene, group, planned) for group in scene.groups()):
            for found in _classify(model, scene, asked):
                boxes.extend(scene.patch_box(found.cell, patch) for patch in found.patches)
                counts[found.label or ""] = counts.get(found.label or "", 0) + 1
                for writer in writers:
                    writer.add(found)
            expected.add(asked.chances)
            bar.advance(len(asked.group))
        owed, _ = bill_of(scene, places, boxes, scene.transport.ledger.total._asdict(), work.tariff)
        summary = {
            **key,
            **described(scene, places),
            "gap": work.reading.gap,
            "skipped": counts.pop("", 0),
            "patches": len(boxes),
            **expected.to_json(),
            "classes": counts,
            "files": {kind: file_name(path.name, kind) for kind in formats},
            "execution": scene.transport.ledger.to_json(),
            "everything": cost_of_everything(scene)._asdict(),
            "bill": owed._asdict(),
        }
        for writer in writers:
            writer.finish(summary)
    for kind in get_args(Format):
        if kind not in formats:  # of an earlier version of the scene
            path.with_name(file_name(path.name, kind)).unlink(missing_ok=True)
    write_json(path.with_name(path.name + ".json"), summary)
    return summary


class _Group(NamedTuple):
    """A group of cells whose patches are chosen and asked for."""

    group: range
    cells: list[int]
    """Cells that hold more than nodata."""
    low: Tensor
    """Their LR."""
    decided: Decided | None
    """Choice for these cells; None if there are none."""

    @property
    def chances(self) -> list[Chances]:
        """Chances of being right on these cells."""
        return [] if self.decided is None else self.decided.chances


def _ask(model: Model, scene: Scene, group: range, planned: Planned | None) -> _Group:
    cells, low = seen_cells(scene, group)
    if not cells:
        return _Group(group, cells, low, None)
    choose = model.predictor.choose if planned is None else _as_planned(cells, planned.chosen)
    decided = decide(model, scene, low, choose)
    scene.ask(cells, decided.choice)
    return _Group(group, cells, low, decided)


def _classify(model: Model, scene: Scene, asked: _Group) -> Iterator[CellResult]:
    group, cells, low, decided = asked
    found: dict[int, CellResult] = {}
    if decided is not None:
        with torch.inference_mode():
            logits = [
                look.classify(packed, low[part])
                for (part, look), packed in zip(decided.parts, _read(scene, cells, decided), strict=True)
            ]
            best = torch.cat(logits).cpu().softmax(1).max(1)
        names = model.predictor.config.classes
        for i, cell in enumerate(cells):
            found[cell] = CellResult(
                cell,
                scene.cell_box(cell),
                names[int(best.indices[i])],
                float(best.values[i]),
                tuple(decided.choice[i].nonzero().flatten().tolist()),
                decided.chances[i].now,
                decided.chances[i].after,
                low[i].numpy(),
            )
    for cell in group:
        yield found.get(cell) or CellResult(cell, scene.cell_box(cell), None, 0.0, ())


def _read(scene: Scene, cells: Sequence[int], decided: Decided) -> Iterator[Packed]:
    """Yield the chosen patches of each part of a group; a thread decodes the next part's while one is classified."""
    broken = threading.Event()

    def read(part: slice) -> Packed:
        if broken.is_set():
            raise Stopped  # nobody will ask for it, and it would be fetched again
        try:
            return scene.reader(cells[part])(decided.choice[part])
        except BaseException:
            broken.set()
            raise

    with decoders(1) as thread:
        for packed in one_ahead(thread.submit(read, part) for part, _ in decided.parts):
            yield packed.result()


def _as_planned(cells: Sequence[int], chosen: dict[int, list[int]]) -> Choose:
    """Return a function that makes the plan's choice for these cells, whatever the policy's logits are."""

    def choose(scores: Tensor) -> Tensor:
        choice = torch.zeros(scores.shape, dtype=torch.bool)
        for row, cell in enumerate(cells):
            for patch in chosen.get(cell, ()):
                choice[row, patch] = True
        return choice.to(scores.device)

    return choose


def _finished(path: Path, source: Source, key: dict[str, Any], formats: Sequence[Format]) -> dict[str, Any] | None:
    """Return the summary of a scene that was finished before; None without one, or if a local file has changed since.

    Raises:
        DataError: the summary is damaged.
        UsageError: it was made with another model, plan, tariff or precision, or without a kind of file that is asked
            for now.
    """
    if not path.exists():
        return None
    found = _summary(path)
    if {name: found.get(name) for name in key} != key:
        raise UsageError(
            f"{path}: holds results of another run, stage, dial, plan or tariff, precision, LR scene or size of "
            "cells; choose another --out"
        )
    for name, version in ((source.scene, found["version"]), (source.low, found.get("low_version"))):
        if name is not None and _changed(name, version):
            return None
    lacking = [kind for kind in formats if kind not in found["files"]]
    if lacking:
        raise UsageError(f"{path}: was finished without --format {' '.join(lacking)}; choose another --out")
    return found


def _summary(path: Path) -> dict[str, Any]:
    """Read a ``NAME.json``; raise DataError if it is damaged."""
    try:
        found = read_json(path)
        whole = isinstance(found["files"], dict) and isinstance(found["version"], str)
        total_of([found])
        over_scenes([found])
        total_bill([found["bill"]])
    except (RunError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise DataError(f"{path}: is damaged; remove it, and the same command reads the scene again")
    return dict(found)


def _changed(source: str, version: str | None) -> bool:
    """Return whether a local file has changed; one that is gone has not, as it cannot be read again."""
    if is_url(source):
        return False
    try:
        with closing(LocalFile(Path(source))) as file:
            return file.version != version
    except DataError:
        return False
