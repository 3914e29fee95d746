"""Predict image files: one after the other, or block by block into a folder that several processes share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from patchdrop.cluster.spread import remembering, spread
from patchdrop.errors import DataError, RunError, UsageError
from patchdrop.evaluation.dial import chosen_point, read_calibration, stage_and_choice
from patchdrop.files import claimed, remove_unfinished, write_bytes
from patchdrop.models.compute import Compute
from patchdrop.policy.budget import above, cut_for_mean
from patchdrop.policy.choice import Choose, greedy
from patchdrop.read.ahead import decoders, one_ahead
from patchdrop.report.gallery import GalleryItem, overlay
from patchdrop.runs.folder import RunFolder
from patchdrop.serve.archive import Archive, Block, blocks_of, refused, to_line
from patchdrop.serve.predictor import Asked, Opened, Prediction, Predictor
from patchdrop.settings.dial import Dial
from patchdrop.settings.machine import Machine
from patchdrop.settings.spread import Spread
from patchdrop.terminal.talk import bars, say

BATCH = 32
"""Images predicted at a time."""
SHOWN = 1000
"""Images up to which each one's prediction is shown, beside the files."""
POLL = 0.5
"""Seconds between two looks at blocks that other processes are at."""
Pair = tuple[str | Path, str | Path | None]
"""HR file, and LR file of a sensor of its own, or None."""
Found = TypeVar("Found")
Refused = Callable[[str, str], None]
"""Called with the name of a file that cannot be read, and why."""


@dataclass(frozen=True)
class Asking:
    """How image files are predicted.

    Attributes:
        dial: how many patches may be read; None: what the policy chooses. A mean budget is spread over the images of
            one call, so LR of all of them is looked at first.
        overlay: folder for a picture of each image.
        scaled_low: see `Predictor`.
        machine: device and precision.
    """

    run: str | Path
    stage: str | None = None
    dial: Dial | None = None
    overlay: Path | None = None
    scaled_low: bool = False
    machine: Machine = field(default_factory=Machine)
    known: Any = None
    """What a worker that has loaded such a run before tells it by from another of the same name."""


def predict(
    asking: Asking,
    images: Sequence[str | Path],
    low: Sequence[str | Path] | None = None,
    failed: Callable[[str], None] | None = None,
) -> Iterator[Prediction]:
    """Predict image files, `BATCH` at a time; the next ones are decoded while the networks work on these.

    Args:
        low: LR image files of a sensor of their own, one for each image.
        failed: called with the reason for each image that cannot be read; without it the first one raises DataError.
    """
    pairs = _pairs(images, low)

    def told(_: str, reason: str) -> None:
        assert failed is not None
        failed(reason)

    yield from _predicted(
        _predictor(asking, pairs), pairs, asking.overlay, _pictures(images), None if failed is None else told
    )


def predict_into(
    asking: Asking,
    images: Sequence[str],
    low: Sequence[str | Path] | None,
    out: Path,
    formats: Sequence[str],
    failed: Callable[[str], None],
    over: Spread,
) -> dict[str, Any]:
    """Predict image files into ``predictions.jsonl`` and other files of a folder, block by block.

    A block that is finished in the folder is not read again, and one that another process is reading is waited for.
    When all blocks are there, whoever finds them makes the files of them. A file that cannot be read has a row with
    its ``error`` there.

    Args:
        formats: ``csv`` and ``parquet`` write such files too.
        failed: called with the reason for each image that cannot be read, in their order.
        over: which blocks are read, and by whom.

    Returns:
        ``image_files``: the document of ``predictions.json``, or a summary of this shard and how many blocks are left;
        ``predictions``: the rows, if there are at most `SHOWN`.

    Raises:
        UsageError: a mean budget over several processes.
        RunError: a file cannot be written.
    """
    spread_out = over.wide or over.shard is not None
    if asking.dial is not None and asking.dial.mean_budget is not None and spread_out:
        raise UsageError(
            "--mean-budget: is spent over all images, whose LR one process must look at; give --budget, or calibrate "
            "the run with --mean-budget and give --calibrated"
        )
    pairs = _pairs(images, low)
    predictor = _predictor(asking, pairs)
    archive = Archive.of(out, formats, _identity(asking, predictor), blocks_of(images, low, _pictures(images)))
    mine = list(over.part(archive.blocks))
    if archive.finished() is None:
        if archive.found() is not None:
            say(f"{out}: has predictions of other images or of another choice, which are replaced")
        if over.wide:
            _over_workers(replace(asking, known=(os.getcwd(), archive.identity)), archive, mine, over)
        else:
            _here(predictor, asking.overlay, archive, mine)
    document = archive.joined()
    if document is None:
        return _so_far(archive, mine, over, failed)
    for reason in archive.reasons():
        failed(reason)
    say(f"image files: {', '.join(str(out / name) for name in document['files'].values())}")
    if len(images) > SHOWN:
        return {"image_files": document}
    return {"image_files": document, "predictions": [row for row in archive.rows() if row["error"] is None]}


def _so_far(archive: Archive, mine: Sequence[Block], over: Spread, failed: Callable[[str], None]) -> dict[str, Any]:
    """Sum up a shard whose images are finished, while those of others are not."""
    if over.shard is None:
        raise RunError(f"{archive.folder}: parts of the predictions were removed meanwhile; run the same again")
    summary, reasons = archive.of_blocks(mine)
    for reason in reasons:
        failed(reason)
    left, count = archive.unfinished(), len(archive.blocks)
    say(f"{archive.folder}: {left} of {count} blocks of images are left to other shards; the last one joins them all")
    return {"image_files": {**summary, "unfinished_blocks": left}}


def _here(predictor: Predictor, pictures: Path | None, archive: Archive, blocks: Sequence[Block]) -> None:
    """Finish blocks in this process; those that others are at come last."""
    left = list(blocks)
    with bars({"images": (sum(len(block.images) for block in blocks), 1.0)}, "images") as shown:
        while left:
            busy = []
            for block in left:
                if _finish(predictor, pictures, archive, block):
                    shown.advance("images", len(block.images))
                else:
                    busy.append(block)
            left = busy
            if left:
                time.sleep(POLL)


def _over_workers(asking: Asking, archive: Archive, blocks: Sequence[Block], over: Spread) -> None:
    """Have workers finish blocks; one that kills its workers is read image by image, so that one image is left out."""
    killed: list[Block] = []
    with bars({"images": (sum(len(block.images) for block in blocks), 1.0)}, "images") as shown:
        work = partial(_finish_there, asking, archive.without_blocks())
        spread(
            work,
            blocks,
            over,
            lambda block, _: shown.advance("images", len(block.images)),
            lambda block, _: killed.append(block),
        )
        for block in killed:
            rows = _rows_over(asking, block.one_by_one(), over)
            write_bytes(archive.part(block), b"".join(map(to_line, rows)))
            shown.advance("images", len(block.images))


def _rows_over(asking: Asking, single: Sequence[Block], over: Spread) -> list[dict[str, Any]]:
    """Have workers predict blocks of one image; one that kills its workers gets a row that says so."""
    found: dict[Block, list[dict[str, Any]]] = {}

    def killed(one: Block, reason: str) -> None:
        (name,) = one.images
        found[one] = [refused(name, f"{name}: {reason}")]

    spread(partial(_rows_there, asking), single, over, found.__setitem__, killed)
    return [row for one in single for row in found[one]]


def _load(asking: Asking) -> Predictor:
    """Load the run on a worker; RunError if it is another one there."""
    predictor = _predictor(asking, [])
    _, identity = asking.known
    if _identity(asking, predictor) != identity:
        raise RunError(f"{asking.run}: is another run on a worker than here; workers must share it")
    return predictor


_loaded = remembering(_load)


def _rows_there(asking: Asking, block: Block) -> list[dict[str, Any]]:
    """Return the rows of a block, on a worker."""
    return _rows(_loaded(asking), asking.overlay, block)


def _finish_there(asking: Asking, archive: Archive, block: Block) -> None:
    """Finish one block, on a worker."""
    while not _finish(_loaded(asking), asking.overlay, archive, block):
        time.sleep(POLL)


def _finish(predictor: Predictor, pictures: Path | None, archive: Archive, block: Block) -> bool:
    """Finish one block, unless it is finished; return False if another process is at it."""
    part = archive.part(block)
    if part.exists():
        return True
    with claimed(part.with_suffix(".claim")) as mine:
        if not mine:
            return False
        if part.exists() or archive.finished() is not None:
            return True
        remove_unfinished(part.parent, part.stem)
        write_bytes(part, b"".join(map(to_line, _rows(predictor, pictures, block))))
    return True


def _rows(predictor: Predictor, pictures: Path | None, block: Block) -> list[dict[str, Any]]:
    """Predict the images of a block."""
    rows: list[dict[str, Any]] = []
    pairs = _pairs(block.images, block.lows)
    for found in _predicted(predictor, pairs, pictures, block.pictures, lambda *why: rows.append(refused(*why))):
        rows.append({**asdict(found), "error": None})
    return rows


def _identity(asking: Asking, predictor: Predictor) -> dict[str, Any]:
    """Return the values that tell results apart."""
    folder = RunFolder(asking.run)
    choice = "policy" if asking.dial is None or not asking.dial.turned else str(asking.dial)
    if isinstance(predictor.choose, partial) and asking.dial is not None and asking.dial.mean_budget is not None:
        choice += f", threshold {predictor.choose.keywords['cut']!r}"
    if asking.dial is not None and asking.dial.calibrated:
        choice += f", threshold {chosen_point(folder, read_calibration(folder))['threshold']:.8g}"
    return {
        "stage": predictor.stage,
        "sha256": folder.stage_config(predictor.stage)["sha256"],
        "choice": choice,
        "scaled_low": asking.scaled_low,
        "precision": asking.machine.precision,
    }


def _pairs(images: Sequence[str | Path], low: Sequence[str | Path] | None) -> list[Pair]:
    if low is not None and len(low) != len(images):
        raise UsageError(f"{len(images)} images and {len(low)} LR images were given, one each is needed")
    return [(path, None if low is None else low[i]) for i, path in enumerate(images)]


def _batches(pairs: Sequence[Pair]) -> list[Sequence[Pair]]:
    return [pairs[i : i + BATCH] for i in range(0, len(pairs), BATCH)]


def _predictor(asking: Asking, pairs: Sequence[Pair]) -> Predictor:
    """Load the run, with the dial as it is turned; a mean budget is spent over these images."""
    dial, machine, stage = asking.dial, asking.machine, asking.stage
    choose: Choose = greedy
    mean_budget = None if dial is None else dial.mean_budget
    run = RunFolder(asking.run).require()
    if dial is not None and dial.turned and mean_budget is None:
        stage, choose = stage_and_choice(dial, run, stage, Compute.of(machine))
    predictor = Predictor(asking.run, stage, machine.device, choose, asking.scaled_low, machine.precision)
    if dial is not None and mean_budget is not None:
        dial.check(predictor.grid.patches)
        with decoders() as threads:
            scores = _scores(predictor, _batches(pairs), threads)
        predictor.choose = partial(above, cut=cut_for_mean(scores, mean_budget))
    return predictor


def _predicted(
    predictor: Predictor,
    pairs: Sequence[Pair],
    folder: Path | None,
    pictures: Sequence[str],
    failed: Refused | None,
) -> Iterator[Prediction]:
    """Predict, and draw a picture of each image into a folder, if there is one.

    Args:
        pictures: name of each image's picture.
    """
    with decoders() as threads:
        if folder is None:
            yield from _answers(predictor, predictor.answer, _batches(pairs), threads, failed)
            return
        names = {str(path): name for (path, _), name in zip(pairs, pictures, strict=True)}
        for prediction, item in _answers(predictor, predictor.explain_answer, _batches(pairs), threads, failed):
            _draw(item, predictor, folder / f"{names[prediction.path]}.png")
            yield prediction


def _draw(item: GalleryItem, predictor: Predictor, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        overlay(item, predictor.grid).save(path)
    except OSError as error:
        raise RunError(f"{path.parent}: cannot be written ({error.strerror}); choose another folder") from error


def _answers(
    predictor: Predictor,
    answer: Callable[[Asked], Iterable[Found]],
    batches: Iterable[Sequence[Pair]],
    threads: Executor,
    failed: Refused | None,
) -> Iterator[Found]:
    """Yield the answer for each image, in order.

    While a batch is classified, the HR files of the next one are decoded, and what LR comes from of the one after it.
    """

    def asked(batch: Sequence[Pair], opened: Opened) -> tuple[Sequence[Pair], Asked | DataError]:
        try:
            return batch, predictor.ask(opened)
        except DataError as error:
            return batch, error

    opened = one_ahead((batch, _open(predictor, batch, threads)) for batch in batches)
    for batch, found in one_ahead(asked(*both) for both in opened):
        try:
            if isinstance(found, DataError):
                raise found
            answers = list(answer(found))
        except DataError as error:
            yield from _alone(predictor, answer, batch, threads, failed, error)
        else:
            yield from answers


def _alone(
    predictor: Predictor,
    answer: Callable[[Asked], Iterable[Found]],
    batch: Sequence[Pair],
    threads: Executor,
    failed: Refused | None,
    reason: DataError,
) -> Iterator[Found]:
    """Yield the answer for each image of a batch of which one cannot be read, asked for alone."""
    if len(batch) > 1:
        yield from _answers(predictor, answer, ([pair] for pair in batch), threads, failed)
    elif failed is None:
        raise reason
    else:
        failed(str(batch[0][0]), str(reason))


def _open(predictor: Predictor, batch: Sequence[Pair], threads: Executor) -> Opened:
    lows = [low for _, low in batch if low is not None]
    return predictor.open([path for path, _ in batch], lows or None, threads)


def _scores(predictor: Predictor, batches: Iterable[Sequence[Pair]], threads: Executor) -> Tensor:
    """Return the patch logits of all images whose LR can be read; the others are reported when they are predicted."""
    found: list[Tensor] = []
    for batch, opened in one_ahead((batch, _open(predictor, batch, threads)) for batch in batches):
        try:
            found.append(predictor.scores_of(opened))
        except DataError:
            if len(batch) > 1:
                found.append(_scores(predictor, [[pair] for pair in batch], threads))
    return torch.cat(found) if found else torch.empty(0, predictor.grid.patches)


def _pictures(images: Sequence[str | Path]) -> list[str]:
    """Name each image's picture: as the image, with a number if an image of another folder has that name."""
    used: set[str] = set()
    counts: dict[str, int] = {}
    names: dict[str, str] = {}
    for image in images:
        if str(image) in names:
            continue
        stem = name = Path(image).stem
        while name in used:
            counts[stem] = counts.get(stem, 1) + 1
            name = f"{stem}-{counts[stem]}"
        used.add(name)
        names[str(image)] = name
    return [names[str(image)] for image in images]
