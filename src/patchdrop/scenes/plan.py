"""Plan what predicting scenes would read and cost, from headers and overviews."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from patchdrop.cluster.spread import remembering
from patchdrop.errors import DataError, RunError, UsageError
from patchdrop.files import read_json, write_json, writing
from patchdrop.scenes.bill import DISK, NETWORK, Link, Priced
from patchdrop.scenes.chances import Expected, over_scenes
from patchdrop.scenes.concurrency import SceneBar, alone, concurrently, scenes_over
from patchdrop.scenes.costs import bill_of, billed, check_price, cost_of_everything, seconds_of, total_of, with_total
from patchdrop.scenes.listing import Source
from patchdrop.scenes.model import Choosing, Model, load_model
from patchdrop.scenes.outputs import Features
from patchdrop.scenes.places import Places
from patchdrop.scenes.rates import work_of
from patchdrop.scenes.walk import Failed, Reading, Scene, decide, described, each_once, name_of, opened, seen_cells
from patchdrop.settings.spread import Spread
from patchdrop.tariffs.tariff import Tariff, tariff_from
from patchdrop.tiff.tiles import Box
from patchdrop.transport.ranges import is_url


class Terms(NamedTuple):
    """The tariff and the speed that a plan counts with; None for no money, or for the source's usual speed."""

    tariff: Tariff | None = None
    latency: float | None = None
    """Milliseconds; see `Link`."""
    bandwidth: float | None = None
    """Megabits a second; see `Link`."""

    def link(self, source: str) -> Link:
        """Return the speed of a connection to a source: what is given here, otherwise what is usual."""
        usual = NETWORK if is_url(source) else DISK
        return Link(
            usual.latency if self.latency is None else self.latency,
            usual.bandwidth if self.bandwidth is None else self.bandwidth,
            usual.in_flight,
        )


def plan(
    choosing: Choosing,
    sources: Sequence[Source],
    out: Path,
    reading: Reading,
    terms: Terms,
    failed: Failed,
    spread: Spread | None = None,
) -> dict[str, Any]:
    """Look at scenes, choose patches, and price the choice.

    Write ``plan.json`` and, for each scene, the areas to order as GeoJSON into ``out``: the chosen patches unless
    the tariff says otherwise. The plan records dial and tariff.

    Args:
        failed: called with the reason for each scene that cannot be planned; the others are planned.
        spread: who plans the scenes; None: this process.

    Returns:
        The document of ``plan.json``, and ``work``: see `work_of`.

    Raises:
        RunError, UsageError: see `load_model`; or a shard is asked for.
    """
    if spread is not None and spread.shard is not None:
        raise UsageError("--shard: a plan is one file; share it with --workers or --scheduler")
    model, left = load_model(choosing), each_once(sources)
    if spread is not None and spread.wide:
        work = partial(_plan_alone, (choosing, (os.getcwd(), model.identity, model.choice)), out, reading, terms)
        planned = list(scenes_over(spread, work, left, failed).values())
    else:
        planned = concurrently(partial(_plan_scene, model, out, reading, terms), left, reading.jobs, failed, model.stop)
    how = {"choice": model.choice, "gap": reading.gap, "cell_metres": reading.cell_metres}
    total = {**total_of(planned), **over_scenes(planned)}
    document = {"run": model.run, **model.identity, **how, "scenes": planned, "total": total}
    document |= billed(planned, terms.tariff)
    if planned:
        write_json(out / "plan.json", document)
    # Times differ from one call to the next, so they are no part of the file.
    return {**document, "work": work_of(model, planned, 0 if spread is None else spread.workers)}


def _load(asked: tuple[Choosing, Any]) -> Model:
    """Load the run on a worker; RunError if it is another one there."""
    choosing, (_, *known) = asked
    model = load_model(choosing)
    if known != [model.identity, model.choice]:
        raise RunError(f"{choosing.run}: is another run on a worker than here; workers must share it")
    return model


_loaded = remembering(_load)


def _plan_alone(
    asked: tuple[Choosing, Any], out: Path, reading: Reading, terms: Terms, source: Source
) -> dict[str, Any]:
    """Plan one scene, on a worker."""
    model = _loaded(asked)
    return alone(partial(_plan_scene, model, out, reading, terms), source, model.stop)


def _plan_scene(
    model: Model, out: Path, reading: Reading, terms: Terms, source: Source, bar: SceneBar
) -> dict[str, Any]:
    with opened(source, model, reading) as scene:
        bar.begin(scene.cells)
        places = Places(scene.georeference, scene.name)
        check_price(scene, places, terms.tariff)
        priced: Any = type(scene.transport.ledger)()
        chosen: list[tuple[int, list[int]]] = []
        expected = Expected()
        skipped = 0
        for group in scene.groups():
            cells, low = seen_cells(scene, group)
            skipped += len(group) - len(cells)
            if cells:
                decided = decide(model, scene, low, model.predictor.choose)
                scene.price(cells, decided.choice, priced)
                expected.add(decided.chances)
                rows = [row.nonzero().flatten().tolist() for row in decided.choice]
                chosen += [(cell, patches) for cell, patches in zip(cells, rows, strict=True) if patches]
            bar.advance(len(group))
        spent = scene.transport.ledger
        costs: dict[str, Any] = {**spent.all_needed(), "patch": priced.of("patch")}
        execution = with_total(costs)
        boxes = [scene.patch_box(cell, patch) for cell, patches in chosen for patch in patches]
        owed, order = bill_of(scene, places, boxes, execution["total"], terms.tariff)
        areas = out / f"{name_of(source.scene)}.areas.geojson"
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
            **described(scene, places),
            "skipped": skipped,
            "patches": sum(len(patches) for _, patches in chosen),
            **expected.to_json(),
            "areas": areas.name,
            "planning": spent.to_json(),
            "execution": execution,
            "everything": cost_of_everything(scene)._asdict(),
            "bill": owed._asdict(),
            "estimate": seconds_of(scene, costs, terms.link(source.scene)),
            "chosen": chosen,
        }


def _areas(scene: Scene, chosen: Sequence[tuple[int, Sequence[int]]]) -> Iterator[tuple[Box, dict[str, Any]]]:
    """Yield the boxes of each cell's chosen patches; patches side by side in a row make one box."""
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


def _ordered(
    order: Sequence[Priced], places: Places, tariff: Tariff
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield geometry and properties of each area of an order."""
    for (shape, km2), price in order:
        rings = [list(ring.coords)[:-1] for ring in (shape.exterior, *shape.interiors)]
        values = {"km2": km2 if places.kind == "CRS84" else None, "price": price, "currency": tariff.currency}
        yield places.outline(rings), values


class Planned(NamedTuple):
    """The part of a plan that is about one scene."""

    chosen: dict[int, list[int]]
    """Cell -> patches."""
    version: str
    """Version of the file that was planned."""
    low: str | None
    """Its LR scene; None: its own overview."""
    low_version: str

    def check(self, found: dict[str, Any]) -> None:
        """Raise DataError if a scene, as `described`, is not the one that was planned."""
        if (found.get("low") is None) != (self.low is None):
            raise DataError(
                f"{found['scene']}: was planned with LR from {self.low or 'its overview'}, not from "
                f"{found.get('low', 'its overview')}; give the same --low-scene, or plan it again"
            )
        for name, version, planned in (
            (found["scene"], found["version"], self.version),
            (self.low, found.get("low_version", ""), self.low_version),
        ):
            if version != planned:
                raise DataError(f"{name}: is not the file that was planned; plan it again")

    def check_choice(self, name: str, cells: int, patches: int) -> None:
        """Raise DataError if the plan names a cell or a patch that a scene with so many does not have."""
        for cell, chosen in self.chosen.items():
            if not 0 <= cell < cells:
                raise DataError(f"{name}: its plan names cell {cell}, the scene has {cells}; plan it again")
            for patch in chosen:
                if not 0 <= patch < patches:
                    raise DataError(
                        f"{name}: its plan names patch {patch} of cell {cell}, the grid has {patches}; plan it again"
                    )


class Plan(NamedTuple):
    """The contents of a ``plan.json``."""

    identity: dict[str, str]
    """Stage and checksum of the weights that it was made with."""
    gap: int
    cell_metres: float | None
    tariff: Tariff | None
    scenes: dict[str, Planned]
    """Name of a scene -> what is planned for it."""


def read_plan(path: Path) -> Plan:
    """Read a ``plan.json``.

    Raises:
        UsageError: it cannot be read, or is not a plan.
    """
    try:
        document = read_json(path)
        scenes = {
            scene["scene"]: Planned(
                {int(cell): [int(p) for p in patches] for cell, patches in scene["chosen"]},
                str(scene["version"]),
                scene.get("low"),
                str(scene.get("low_version", "")),
            )
            for scene in document["scenes"]
        }
        identity = {name: str(document[name]) for name in ("stage", "sha256")}
        sold = document.get("tariff")
        tariff = None if sold is None else tariff_from(sold, f"--plan {path}: tariff")
        metres = document.get("cell_metres")
        return Plan(identity, int(document["gap"]), None if metres is None else float(metres), tariff, scenes)
    except RunError as error:
        raise UsageError(f"--plan {path}: cannot be read; make one with `patchdrop plan`") from error
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError, RecursionError) as error:
        raise UsageError(f"--plan {path}: is no plan.json of `patchdrop plan`, or is damaged; make it again") from error


def digest(chosen: dict[int, list[int]]) -> str:
    """Return a digest that tells a plan's choice from another one."""
    return "plan " + hashlib.sha256(json.dumps(sorted(chosen.items())).encode()).hexdigest()[:16]
