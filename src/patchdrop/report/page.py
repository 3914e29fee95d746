"""Write ``report.html``: one file that opens offline, with every picture inside it and also beside it."""

from __future__ import annotations

import base64
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.figure import Figure
from PIL import Image

from patchdrop.grid import Grid
from patchdrop.report import figures, theme, words
from patchdrop.report.gallery import GalleryItem, contact_sheet, fit, heat_panel, panels, rgb
from patchdrop.terminal import columns

SHEET_ITEMS = 8
"""Number of images on ``figures/gallery.png``."""
PANEL_PIXELS = 900_000
"""Pixels of one kind of panel over all cards; keeps a page of 36 images below 4 MB, even of noise."""


@dataclass(frozen=True)
class Picture:
    """A PNG of the report."""

    file: str
    """Path below ``figures``."""
    png: bytes
    alt: str
    width: int
    """Width in CSS pixels."""
    height: int

    @property
    def src(self) -> str:
        """The picture itself, as a data URL."""
        return "data:image/png;base64," + base64.b64encode(self.png).decode()


@dataclass(frozen=True)
class Card:
    """A gallery item ready for the page."""

    item: GalleryItem
    pictures: list[Picture]
    """LR, probabilities, HR with the patches read marked, the classifier's view."""


def write_report(
    folder: Path,
    results: dict[str, Any],
    log: list[dict[str, Any]],
    gallery: list[GalleryItem],
    calibration: dict[str, Any] | None = None,
) -> Path:
    """Write ``folder/report.html`` and its pictures, ``folder/figures/**.png``.

    Args:
        results: the evaluation's document; a stage that was not trained may be missing everywhere.
        log: the training log; lines of other events are skipped.
        gallery: images of the split, shown in this order.
        calibration: the content of ``calibration.json``, if there is one.

    Returns:
        The path of the page.
    """
    grid = Grid(*results["grid"])
    validation = [line for line in log if line.get("event") == "validation"]
    charts = draw_charts(results, validation)
    if calibration:
        charts["dial"] = dial_picture(calibration)
    cards = draw_cards(gallery, grid)
    drawn = [picture for card in cards for picture in card.pictures]
    for picture in [*charts.values(), *drawn]:
        save(folder, picture.file, picture.png)
    if gallery:
        sheet = contact_sheet(gallery[:SHEET_ITEMS], grid)
        save(folder, "gallery.png", figures.png_bytes(sheet))
    page = folder / "report.html"
    folder.mkdir(parents=True, exist_ok=True)
    page.write_text(render(results, log, charts, cards, calibration), encoding="utf-8")
    return page


def save(folder: Path, file: str, png: bytes) -> None:
    """Write a picture below ``folder/figures``."""
    path = folder / "figures" / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(png)


# --- charts


def draw_charts(results: dict[str, Any], validation: list[theme.Row]) -> dict[str, Picture]:
    """Draw every chart there are numbers for, by its name on the page, which is also its file's."""
    charts = {}
    rows = words.charted(results["rows"])
    if rows:
        alt = "Accuracy against share of HR read. " + words.points(rows)
        charts["accuracy"] = chart("accuracy", figures.accuracy_against_share(rows), alt)
        narrow = figures.accuracy_against_share(rows, width=380, height=400)
        charts["accuracy-narrow"] = chart("accuracy-narrow", narrow, alt)
    for row in words.policy_rows(results):
        stage = row["stage"]
        if row.get("patches_histogram"):
            figure = figures.patches_histogram(row["patches_histogram"], row["mean_patches"])
            mean = theme.number(row["mean_patches"], 1)
            alt = f"{theme.stage_name(stage)}: share of images by number of patches read; mean {mean}."
            charts[f"patches-{stage}"] = chart(f"patches-{stage}", figure, alt)
    for stage, looks in words.present(results, "looks").items():
        charts[f"looks-{stage}"] = looks_picture(results, stage, looks)
    if found := words.last_forecast(results):
        stage, said = found
        alt = f"{theme.stage_name(stage)}: {words.predicted(said['bins'])}."
        charts["forecast"] = chart("forecast", figures.forecast(said["bins"]), alt)
    if last := words.last_classes(results):
        stage, classes = last
        alt = f"Patches read on average for each class in {theme.stage_name(stage)}, as in the table."
        charts["classes"] = chart("classes", figures.patches_by_class(classes, results["patches"]), alt)
    for stage in theme.STAGES:
        lines = [line for line in validation if line.get("stage") == stage]
        if drawn := figures.training(stage, lines):
            alt = f"{theme.stage_name(stage)}: validation figures over {len(lines)} epochs of training."
            charts[f"training-{stage}"] = chart(f"training-{stage}", drawn, alt)
    return charts


def dial_picture(calibration: dict[str, Any]) -> Picture:
    """Draw the curve of operating points."""
    curve, chosen = calibration["points"], calibration["chosen"]
    figure = figures.dial(curve, chosen["point"] if chosen else None)
    alt = "Accuracy against share of HR read over thresholds. " + words.ends(calibration)
    return chart("dial", figure, alt)


def chart(name: str, figure: Figure, alt: str) -> Picture:
    """Turn a chart into a picture."""
    width, height = (round(side * figures.DPI) for side in figure.get_size_inches())
    return Picture(f"{name}.png", figures.png(figure), alt, width, height)


def looks_picture(results: dict[str, Any], stage: str, looks: list[float]) -> Picture:
    """Draw how often each patch is read, in the shape of the image."""
    grid = Grid(*results["grid"])
    height, width = fit(results["high"], 320)
    image = heat_panel(np.array(looks), grid, (2 * height, 2 * width))
    alt = f"{theme.stage_name(stage)}: share of images reading each patch, row by row: {by_row(looks, grid)}."
    return Picture(f"looks-{stage}.png", figures.png_bytes(image), alt, width, height)


def by_row(values: Any, grid: Grid) -> str:
    """Say values in 0..1, ``(P,)``, as percent in words, rows separated by semicolons."""
    rows = np.asarray(values, dtype=float).reshape(grid.rows, grid.cols)
    return "; ".join(", ".join(f"{100 * value:.0f}" for value in row) for row in rows) + f"{theme.SPACE}%"


# --- gallery


def draw_cards(gallery: list[GalleryItem], grid: Grid) -> list[Card]:
    """Draw the gallery's cards, in order."""
    side = card_side(len(gallery))
    return [draw_card(item, grid, side, f"gallery/{place:03}") for place, item in enumerate(gallery)]


def card_side(cards: int) -> int:
    """Return the longest side of a card's pictures in pixels; the more cards, the fewer pixels each has."""
    return round(min(320, max(96, math.sqrt(PANEL_PIXELS / max(1, cards)))))


def draw_card(item: GalleryItem, grid: Grid, side: int, stem: str) -> Card:
    """Draw one item's four pictures, ``side`` pixels long on the longest side; LR keeps its own few pixels."""
    size = fit(item.high.shape, side)
    drawn = panels(item, grid, size)
    read = ", ".join(str(p + 1) for p in np.flatnonzero(item.choice)) or "none"
    total = item.choice.size
    alts = {
        "low": f"{item.name} in low resolution, {item.low.shape[0]} by {item.low.shape[1]} pixels",
        "heat": f"Probability of each patch, row by row: {by_row(item.probabilities, grid)}",
        "read": f"High resolution, unread patches dimmed; of {total}, read: {read}",
        "seen": f"What the classifier saw of {item.name}",
    }
    low = Image.fromarray(rgb(item.low))
    pictures = [
        Picture(f"{stem}-{kind}.png", small_png(kind, image), alts[kind], size[1], size[0])
        for kind, image in drawn._replace(low=low)._asdict().items()
    ]
    return Card(item, pictures)


def small_png(kind: str, image: Image.Image) -> bytes:
    """Store HR photographs in 256 colours: a third of the bytes, no visible difference; the rest is small anyway."""
    return figures.png_bytes(image.quantize(256) if kind in ("read", "seen") else image)


# --- page


def render(
    results: dict[str, Any],
    log: list[dict[str, Any]],
    charts: dict[str, Picture],
    cards: list[Card],
    calibration: dict[str, Any] | None,
) -> str:
    """Render the page's HTML."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["start"] = str.startswith
    environment.filters |= {
        "percent": theme.percent,
        "whole_percent": theme.whole_percent,
        "number": theme.number,
        "stage_name": theme.stage_name,
        "mark": theme.mark,
    }
    return environment.get_template("page.html.j2").render(
        results=results,
        headline=words.headline(results),
        comparison=words.comparison(results),
        verdict=results.get("verdict"),
        judged=list(columns.judged(results)),
        verdict_columns=[c for c in columns.VERDICT if c is not columns.METHOD],
        result_columns=[c for c in columns.RESULTS if c not in (columns.METHOD, columns.STAGE)],
        forecast=words.last_forecast(results),
        tiles=words.tiles(results),
        groups=words.groups(results),
        charts=charts,
        calibration=calibration,
        chosen=words.chosen(calibration) if calibration else "",
        cards=cards,
        stages=theme.STAGES,
        class_stages=list(words.present(results, "per_class")),
        classes=words.class_table(results),
        warnings=[line for line in log if line.get("event") == "warning"],
        provenance=words.provenance(results),
        command=(results.get("provenance") or {}).get("command"),
        right=theme.RIGHT,
        wrong=theme.WRONG,
    )
