"""The report: what the page says, that it stands alone, and what the pictures show."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from patchdrop.grid import Grid, boxes
from patchdrop.report import theme
from patchdrop.report.figures import apart, training
from patchdrop.report.gallery import DIM, VEIL, GalleryItem, dimmed, heat_panel, overlay, rgb
from patchdrop.report.page import card_side, draw_card, write_report
from patchdrop.terminal import columns

NASTY = '<b>&"x'
CLASSES = ["beach", NASTY, "cost $5 or $6"]
POLICY_STAGES = ("pt", "ft1", "ft2")


# --- synthetic data


def row(method: str, stage: str | None, accuracy: float, mean: float, patches: int, **more: Any) -> dict[str, Any]:
    """A row of results of 1,000 test images that all read about ``mean`` patches."""
    histogram = [0] * (patches + 1)
    histogram[round(mean)] = 1000
    return {
        "method": method,
        "stage": stage,
        "accuracy": accuracy,
        "ci95": [accuracy - 0.02, accuracy + 0.01],
        "correct": round(1000 * accuracy),
        "n": 1000,
        "mean_patches": mean,
        "hr_fraction": mean / patches,
        "patches_sd": 1.25,
        "patches_histogram": histogram,
        "distinct_masks": 345,
        "reward": -0.5,
        "p_value": None,
        **more,
    }


def fake_results(stages: tuple[str, ...] = POLICY_STAGES, rows: int = 4, cols: int = 4) -> dict[str, Any]:
    """Results of these policy stages, with classifiers and yardsticks."""
    patches = rows * cols
    found = [
        row("LR-CNN", "lr", 0.7, 0, patches, p_value=1e-9),
        row("HR-CNN", "hr", 0.879, patches, patches, p_value=0.42),
    ]
    for place, stage in enumerate(stages):
        share = (0.5, 0.4, 0.3125)[place]
        found.append(row("PatchDrop", stage, 0.861 + 0.01 * place, share * patches, patches))
        found.append(row("Random", stage, 0.75, share * patches, patches, p_value=0.0312))
        found.append(row("Shuffled", stage, 0.82, share * patches, patches, p_value=0.5))
    per_class = [
        {"class": name, "n": 10 + i, "accuracy": 0.5 + 0.1 * i, "mean_patches": 1.0 + i}
        for i, name in enumerate(CLASSES)
    ]
    return {
        "name": "run-7",
        "data": "scenes",
        "split": "test",
        "classes": len(CLASSES),
        "class_names": CLASSES,
        "patches": patches,
        "grid": [rows, cols],
        "high": [32, 32],
        "low": [8, 8],
        "rows": found,
        "per_class": dict.fromkeys(stages, per_class),
        "looks": {stage: [i / patches for i in range(patches)] for stage in stages},
        "provenance": {
            "command": "patchdrop train --data 'a & b'",
            "commit": "0abc123",
            "machine": "two cores",
            "seed": 0,
            "versions": {"torch": "9.9"},
            "seconds": {"lr": 40.0, "pt": 200.0},
        },
    }


def fake_log() -> list[dict[str, Any]]:
    """Two epochs of each stage, a warning, and lines that are of no interest."""
    lines: list[dict[str, Any]] = [{"event": "start"}, {"event": "validation", "stage": "other", "epoch": 1}]
    for stage in ("lr", "hr", "patches", *POLICY_STAGES):
        for epoch in (1, 2):
            line = {"event": "validation", "stage": stage, "epoch": epoch, "accuracy": 0.5, "train_loss": 1.0}
            if stage in POLICY_STAGES:
                line |= {"reward": 0.1, "mean_patches": 4.0, "patches_sd": 1.0, "accuracy_shuffled": 0.4}
            lines.append(line)
    return [*lines, {"event": "warning", "stage": "pt", "message": "one mask for <all>"}]


def item(grid: Grid, height: int = 32, width: int = 32, channels: int = 3, right: bool = True) -> GalleryItem:
    """An image of noise that reads every other patch."""
    draw = np.random.default_rng(height * width + channels)
    high = draw.integers(60, 256, (height, width, channels), dtype=np.uint8)
    choice = np.arange(grid.patches) % 2 == 0
    return GalleryItem(
        name=f"{NASTY}/7.png",
        low=high[::4, ::4],
        high=high,
        probabilities=np.linspace(0, 1, grid.patches),
        choice=choice,
        seen=high,
        true="beach",
        predicted="beach" if right else NASTY,
        probability=0.734,
    )


# --- reading the page


class Page(HTMLParser):
    """The tags of a page, the text of its table rows, and all its text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.rows: list[list[str]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data: str) -> None:
        self.words.append(data.strip())
        if self.rows and self.rows[-1]:
            self.rows[-1][-1] += data.strip()

    def of(self, tag: str) -> list[dict[str, str]]:
        """The attributes of every such tag."""
        return [attrs for name, attrs in self.tags if name == tag]

    @property
    def text(self) -> str:
        """All text, with plain spaces."""
        return " ".join(" ".join(self.words).split())


def read(path: Path) -> Page:
    return Page(path.read_text(encoding="utf-8").replace(theme.SPACE, " "))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a full report: every stage, one image right and one wrong."""
    folder = tmp_path_factory.mktemp("report")
    grid = Grid(4, 4)
    gallery = [item(grid), item(grid, right=False)]
    assert write_report(folder, fake_results(), fake_log(), gallery) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(folder: Path) -> Page:
    return read(folder / "report.html")


FIGURES = [
    "accuracy",
    "accuracy-narrow",
    "classes",
    *(f"{kind}-{stage}" for kind in ("patches", "looks") for stage in POLICY_STAGES),
    *(f"training-{stage}" for stage in ("lr", "hr", "patches", *POLICY_STAGES)),
    *(f"gallery/{place:03}-{kind}" for place in (0, 1) for kind in ("low", "heat", "read", "seen")),
]


@pytest.mark.parametrize("name", FIGURES)
def test_each_figure_is_a_file_and_the_same_bytes_are_in_the_page(name: str, folder: Path) -> None:
    png = (folder / "figures" / f"{name}.png").read_bytes()
    assert Image.open(io.BytesIO(png)).format == "PNG"
    assert base64.b64encode(png).decode() in (folder / "report.html").read_text(encoding="utf-8")


def test_no_other_figure_is_written_but_the_contact_sheet(folder: Path) -> None:
    written = {str(p.relative_to(folder / "figures")) for p in (folder / "figures").rglob("*.png")}
    assert written == {f"{name}.png" for name in FIGURES} | {"gallery.png"}


def test_page_needs_nothing_from_outside(page: Page, folder: Path) -> None:
    addresses = [attrs[key] for _, attrs in page.tags for key in ("src", "href", "srcset") if key in attrs]
    assert addresses
    assert all(address.startswith(("data:image/png;base64,", "#")) for address in addresses)
    html = re.sub(r"base64,[^\"]*", "", (folder / "report.html").read_text(encoding="utf-8"))
    assert not re.search(r"https?:|url\(|@import|<script|<link", html)


def test_links_on_the_page_lead_somewhere(page: Page) -> None:
    targets = {attrs["id"] for _, attrs in page.tags if "id" in attrs}
    assert {attrs["href"][1:] for attrs in page.of("a")} == targets


def test_every_image_says_what_it_shows(page: Page) -> None:
    images = page.of("img")
    assert len(images) == len(FIGURES) - 1  # the narrow chart is the wide one's stand-in
    assert all(len(image["alt"]) > 10 for image in images)
    assert "PatchDrop, Ft-2: 88.1 % with 31 % read" in images[0]["alt"]


def test_names_are_escaped(page: Page, folder: Path) -> None:
    assert NASTY not in (folder / "report.html").read_text(encoding="utf-8")
    assert f"is beach · 8 of 16 patches {NASTY}/7.png" in page.text
    assert [NASTY, "11", "2.0", "60 %", "2.0", "60 %", "2.0", "60 %"] in page.rows
    assert "Pt one mask for <all>" in page.text
    assert "patchdrop train --data 'a & b'" in page.text


def test_headline_tells_the_last_stage_against_everything_read(page: Page) -> None:
    expected = (
        "PatchDrop reads 31 % of the high-resolution pixels and is right on 88.1 % of images; "
        "reading everything gives 87.9 %."
    )
    assert expected in page.text
    others = "as many patches at random give 75.0 %; masks chosen for other images give 82.0 %."
    assert f"Low resolution alone gives 70.0 %; {others}" in page.text
    assert "± 1.5 points; 881 of 1,000 right" in page.text


def test_table_has_every_row_with_its_figures(page: Page) -> None:
    head, *table = [cells for cells in page.rows if len(cells) == len(columns.RESULTS) - 1]
    assert head == ["method", *(column.name for column in columns.RESULTS[2:])]
    assert len(table) == 11
    assert table[0] == ["▼LR-CNN", "70.0", "68.0 - 71.0", "0.00", "1.25", "0.0", "345", "-0.500", "1e-09", "–"]
    assert table[8] == ["●PatchDrop", "88.1", "86.1 - 89.1", "5.00", "1.25", "31.2", "345", "-0.500", "–", "–"]
    assert table[9] == ["◆Random", "75.0", "73.0 - 76.0", "5.00", "1.25", "31.2", "345", "-0.500", "0.031", "–"]


def test_right_and_wrong_are_told_in_words(page: Page) -> None:
    assert page.words.count("✓ right") == 1
    assert page.words.count("✗ wrong") == 1


def test_classes_that_read_most_come_first(page: Page) -> None:
    names = [cells[0] for cells in page.rows if cells and cells[0] in CLASSES]
    assert names == list(reversed(CLASSES))


def test_provenance_is_complete(page: Page) -> None:
    for fact in ("Commit 0abc123", "Machine two cores", "Seed 0", "Versions torch 9.9"):
        assert fact in page.text
    assert "LR-CNN 40 s, Pt 3 min 20 s; together 4 min 0 s" in page.text


def test_missing_stages_leave_out_their_parts(tmp_path: Path) -> None:
    results = fake_results(stages=("pt",))
    results["looks"], results["per_class"] = {}, {}
    page = read(write_report(tmp_path, results, [], []))
    assert "reads 50 % of the high-resolution pixels and is right on 86.1 %" in page.text
    sections = {attrs["id"] for attrs in page.of("section")}
    assert sections == {"results", "patches", "provenance"}
    written = {p.stem for p in (tmp_path / "figures").rglob("*.png")}
    assert written == {"accuracy", "accuracy-narrow", "patches-pt"}


def test_classifiers_alone_and_nothing_at_all_still_make_a_page(tmp_path: Path) -> None:
    results = fake_results(stages=())
    page = read(write_report(tmp_path, results, fake_log()[:4], []))
    assert "HR-CNN is right on 87.9 % of images; LR-CNN is right on 70.0 % of images." in page.text
    assert (tmp_path / "figures/training-lr.png").exists()
    empty = results | {"rows": [], "per_class": {}, "looks": {}, "provenance": {}}
    assert "Nothing has been evaluated yet." in read(write_report(tmp_path / "empty", empty, [], [])).text


def judged(kind: str = "policy", better: str | None = None) -> dict[str, Any]:
    """A verdict on Ft-2 against two plain strategies."""
    plain = {
        "random": {"accuracy": 0.75, "mean_patches": 5.0, "reward": 0.7, "surplus": -3.0, "p_value": 0.0004},
        "fixed mask": {"accuracy": 0.87, "mean_patches": 5.0, "reward": 0.84, "surplus": 0.1, "p_value": 0.61},
    }
    said = {"stage": "ft2", "kind": kind, "sentence": f"{NASTY} and so on.", "better": better, "price": 0.0953}
    return {**said, "images": 502, "accuracy": 0.88, "mean_patches": 4.5, "reward": 0.85, "plain": plain}


def told() -> dict[str, Any]:
    """A forecast in two parts."""
    bins = [
        {"predicted": share, "right": share - 0.1, "ci95": [share - 0.2, share], "n": 50 + place}
        for place, share in enumerate((0.5, 0.9))
    ]
    return {"bins": bins, "calibration_error": {"chance_now": 0.0321, "chance_after": 0.1}}


@pytest.mark.parametrize(("kind", "look"), [("policy", "said"), ("nothing", "said"), ("loses", "said bad")])
def test_the_verdict_heads_the_page_whatever_it_is_and_has_its_figures(tmp_path: Path, kind: str, look: str) -> None:
    page = read(write_report(tmp_path, fake_results() | {"verdict": judged(kind)}, [], []))
    assert page.text.index(f"{NASTY} and so on.") < page.text.index("PatchDrop reads 31 %")
    assert look in [attrs.get("class") for attrs in page.of("p")]
    table = [cells for cells in page.rows if len(cells) == 6]
    assert table[:3] == [
        ["method", *(column.name for column in columns.VERDICT[1:])],
        ["Policy", "88.0", "4.50", "28.1", "0.850", "–"],
        ["Fixed mask", "87.0", "5.00", "31.2", "0.840", "0.61"],
    ]
    assert table[3][:5] == ["Random", "75.0", "5.00", "31.2", "0.700"] and table[3][5].startswith("0.0004")
    assert ("a rule predicts in its place" in page.text) == (kind == "loses")
    assert "on 502 validation images" in page.text and "costs 0.095 wrong answers" in page.text
    assert {attrs["href"][1:] for attrs in page.of("a")} == {attrs["id"] for _, attrs in page.tags if "id" in attrs}


@pytest.mark.parametrize("now", [0.0321, None])
def test_what_was_predicted_is_shown_against_what_was_measured(tmp_path: Path, now: float | None) -> None:
    said = told()
    said["calibration_error"]["chance_now"] = now
    results = fake_results() | {"forecast": {"pt": {"bins": []}, "ft1": said}}
    page = read(write_report(tmp_path, results, [], []))
    (alt,) = [image["alt"].replace(theme.SPACE, " ") for image in page.of("img") if "predicted" in image["alt"]]
    assert alt == "Ft-1: right on 40.0 % where 50.0 % was predicted; 80.0 % where 90.0 % was predicted."
    assert ("off; what is said of LR alone, 3.2 %" in page.text) == (now is not None)
    assert "On average a part is 10.0 % off" in page.text
    assert Image.open(tmp_path / "figures" / "forecast.png").size == (880, 880)
    assert {attrs["href"][1:] for attrs in page.of("a")} == {attrs["id"] for _, attrs in page.tags if "id" in attrs}


@pytest.mark.parametrize("more", [{}, {"verdict": None, "forecast": {}}])
def test_without_a_verdict_and_a_forecast_the_page_has_neither(tmp_path: Path, more: dict[str, Any]) -> None:
    page = read(write_report(tmp_path, fake_results() | more, [], []))
    assert {attrs["id"] for attrs in page.of("section")}.isdisjoint({"verdict", "forecast"})
    assert not (tmp_path / "figures" / "forecast.png").exists()


def test_of_many_yardsticks_the_chart_has_three_and_the_table_all(tmp_path: Path) -> None:
    results = fake_results()
    names = {"Random places": 0.81, "Fixed mask": 0.85, "Activation map": 0.84, "Detail": 0.8, "Cascade": 0.86}
    for stage in POLICY_STAGES:
        results["rows"] += [row(name, stage, accuracy, 5, 16, p_value=0.1) for name, accuracy in names.items()]
    page = read(write_report(tmp_path, results, [], []))
    alt = page.of("img")[0]["alt"]
    shown = {part.partition(",")[0].removeprefix("Accuracy against share of HR read. ") for part in alt.split("; ")}
    assert {name.partition(":")[0] for name in shown} == {
        "LR-CNN",
        "HR-CNN",
        "PatchDrop",
        "Random",
        "Cascade",
        "Fixed mask",
    }
    assert all(f"✚{name}" in [cells[0] for cells in page.rows] for name in names if name != "Cascade")
    assert "all of HR where LR-CNN is unsure, and none elsewhere, gives 86.0 %." in page.text


def fake_calibration(kind: str | None) -> dict[str, Any]:
    """A curve of 17 points, the sixth of them chosen; the ninth has the policy's own threshold."""
    curve = [
        {**row("PatchDrop", "ft2", 0.7 + 0.01 * s, s, 16), "threshold": 1 - s / 16, "cut": float(8 - s)}
        for s in range(17)
    ]
    asked = {"mean-budget": {"mean_budget": 5}, "target-accuracy": {"target_accuracy": 0.7, "confidence": 0.95}}
    return {
        "stage": "ft2",
        "points": curve,
        "chosen": kind and {"kind": kind, "point": 5},
        "target": asked.get(kind or "", {"target_cost": 900, "unit": "bytes"}),
        "images": {"n": 1000, "data": NASTY, "split": "test"},
    }


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (
            "mean-budget",
            "Chosen: 5 patches on average on val. It reads every patch with a probability of at least 0.688",
        ),
        ("target-accuracy", "on at least 70.0 % of new images from the same source, with 95 % confidence. It reads"),
        ("target-cost", "Chosen: the most accurate on val that costs at most 900 bytes an image there."),
        (None, "No point is chosen: only the curve was asked for."),
    ],
)
def test_a_calibrated_run_shows_its_dial(tmp_path: Path, kind: str | None, words: str) -> None:
    page = read(write_report(tmp_path, fake_results(stages=("ft2",)), [], [], fake_calibration(kind)))
    assert "dial" in {attrs["id"] for attrs in page.of("section")}
    assert {attrs["href"][1:] for attrs in page.of("a")} >= {"dial", "results"}
    assert words in page.text
    assert f"measured on 1000 images of {NASTY}, test split" in page.text
    if kind:
        assert "31 % of high resolution, and is right on 75.0 % of the calibration images (73.0 - 76.0 %)." in page.text
    (alt,) = [image["alt"] for image in page.of("img") if "thresholds" in image["alt"]]
    ends = "Nothing read: 70.0 % with 0 % read; all read: 86.0 % with 100 % read"
    assert (ends + "; chosen: 75.0 % with 31 % read" if kind else ends) in alt.replace(theme.SPACE, " ")
    assert Image.open(tmp_path / "figures" / "dial.png").size == (1280, 800)


def test_uneven_grid_of_grey_images(tmp_path: Path) -> None:
    grid = Grid(3, 5)
    results = fake_results(stages=("pt",), rows=3, cols=5) | {"high": [16, 23], "low": [4, 6]}
    page = read(write_report(tmp_path, results, [], [item(grid, 16, 23, channels=1)]))
    assert "8 of 15 patches" in page.text
    assert "row by row: 0, 7, 13, 20, 27; 33, 40, 47, 53, 60; 67, 73, 80, 87, 93 %" in page.of("img")[2]["alt"]


# --- pictures


@pytest.mark.parametrize("grid", [Grid(4, 4), Grid(3, 5)])
def test_unread_patches_are_dim_grey_and_read_ones_untouched(grid: Grid) -> None:
    shown = item(grid, 16, 23)
    picture = dimmed(shown, grid)
    for (top, left, bottom, right), chosen in zip(boxes(grid, 16, 23), shown.choice, strict=True):
        before, after = shown.high[top:bottom, left:right], picture[top:bottom, left:right]
        expected = before if chosen else VEIL + DIM * before.mean(axis=-1, keepdims=True)
        np.testing.assert_array_equal(after, np.broadcast_to(expected, before.shape).astype(np.uint8))


def test_overlay_is_a_whole_multiple_with_a_white_line_around_read_patches() -> None:
    grid = Grid(2, 2)
    black = np.zeros((100, 150, 3), np.uint8)
    shown = GalleryItem(
        "x",
        black,
        black,
        np.array([1.0, 0, 0, 0]),
        np.array([True, False, False, False]),
        black,
        "a",
        "a",
        1.0,
    )
    picture = np.asarray(overlay(shown, grid))
    assert picture.shape == (300, 450, 3)
    assert (picture[0, :225] == 255).all()
    assert (picture[:150, 0] == 255).all()
    assert (picture[149, :225] == 255).all()
    assert (picture[20:130, 20:200] == 0).all()
    assert (picture[160:, 230:] == VEIL).all()


def test_large_images_keep_their_size_in_an_overlay() -> None:
    assert overlay(item(Grid(4, 4), 400, 390), Grid(4, 4)).size == (390, 400)


@pytest.mark.parametrize(("channels", "shown"), [(1, [0, 0, 0]), (2, [0, 0, 0]), (3, [0, 1, 2]), (5, [0, 1, 2])])
def test_first_three_channels_are_shown_or_grey(channels: int, shown: list[int]) -> None:
    image = np.broadcast_to(np.arange(channels, dtype=np.uint8), (2, 3, channels))
    np.testing.assert_array_equal(rgb(image)[0, 0], shown)


def test_heat_grows_darker_with_the_value() -> None:
    picture = np.asarray(heat_panel(np.array([0.0, 0.5, 1.0]), Grid(1, 3), (8, 30)), dtype=int)
    light = [picture[2, column].sum() for column in (2, 12, 22)]
    assert light[0] > light[1] > light[2]


def test_low_resolution_is_stored_pixel_for_pixel(folder: Path) -> None:
    stored = np.asarray(Image.open(folder / "figures/gallery/000-low.png"))
    np.testing.assert_array_equal(stored, item(Grid(4, 4)).low)


def test_contact_sheet_holds_both_images_side_by_side(folder: Path) -> None:
    sheet = Image.open(folder / "figures/gallery.png")
    assert sheet.width > 1400
    assert sheet.height < 400


def test_cards_of_36_noisy_images_leave_room_below_4_megabytes() -> None:
    one = draw_card(item(Grid(4, 4), 128, 128), Grid(4, 4), card_side(36), "one")
    assert 36 * sum(len(picture.src) for picture in one.pictures) < 3_000_000


def test_a_stage_with_nothing_logged_has_no_chart() -> None:
    assert training("pt", []) is None
    assert training("pt", [{"epoch": 1, "accuracy": float("nan")}, {"epoch": 2, "reward": None}]) is None


def test_names_are_moved_apart_only_where_they_would_meet() -> None:
    assert apart([(30, 88), (31, 87), (60, 87)], near=5, gap=2) == [(30, 89), (31, 87), (60, 87)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (theme.percent(0.8641), "86.4 %"),
        (theme.whole_percent(0.314), "31 %"),
        (theme.whole_percent(0.004), "0.4 %"),
        (theme.whole_percent(0.9961), "99.6 %"),
        (theme.percent(float("nan")), "–"),
        (theme.number(-1234.5), "−1,234.50"),
        (theme.number(None), "–"),
        (columns.p_value(0.00042), "0.00042"),
        (columns.p_value(3.14e-9), "3.1e-09"),
        (columns.p_value(None), ""),
        (columns.interval([0.861, 0.8912]), "86.1 - 89.1"),
        (columns.interval(None), ""),
        (columns.percent(float("nan")), ""),
        (columns.number(1364, 0), "1,364"),
        (theme.duration(59.4), "59 s"),
        (theme.duration(7500), "2 h 5 min"),
        (theme.shorten("dense residential", 6), "dense…"),
    ],
)
def test_numbers_are_written_for_reading(text: str, expected: str) -> None:
    assert text.replace(theme.SPACE, " ") == expected
