"""Draw the report's charts: numbers in, a matplotlib Figure out, without pyplot and its global state.

Sizes are CSS pixels; images have `theme.SCALE` times as many. Margins are set by hand: automatic layout would draw each
chart several times.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator
from matplotlib.transforms import ScaledTranslation
from PIL import Image

from patchdrop.report import theme
from patchdrop.report.theme import Row

DPI = 96
MOST_CLASSES = 40
"""Above this many, the chart of classes keeps those read most and least."""


@dataclass(frozen=True)
class Margins:
    """The margins around the axes, CSS pixels."""

    left: int = 46
    right: int = 14
    top: int = 28
    bottom: int = 44


def png(figure: Figure) -> bytes:
    """Return the figure as PNG bytes, without transparency."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return png_bytes(Image.open(buffer).convert("RGB"))


def png_bytes(image: Image.Image) -> bytes:
    """Return a picture as PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def canvas(width: int, height: int, margins: Margins, panels: int = 1) -> tuple[Figure, list[Axes]]:
    """Make a white figure with ``panels`` axes, one above the other."""
    figure = Figure(figsize=(width / DPI, height / DPI), dpi=DPI * theme.SCALE, facecolor="white")
    pane = (height - panels * (margins.top + margins.bottom)) / panels
    axes = [
        figure.add_axes(
            (
                margins.left / width,
                (margins.bottom + (panels - 1 - i) * (pane + margins.top + margins.bottom)) / height,
                1 - (margins.left + margins.right) / width,
                pane / height,
            )
        )
        for i in range(panels)
    ]
    for ax in axes:
        calm(ax)
    return figure, axes


def calm(ax: Axes) -> None:
    """Style the axes: light horizontal lines, no frame, small grey numbers."""
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.spines["bottom"].set_color("#aab4be")
    ax.grid(axis="y", color=theme.LINE, linewidth=0.8)
    ax.set_axisbelow(True)
    ax.tick_params(length=0, pad=5, labelsize=px(12), labelcolor=theme.MUTED, labelfontfamily=theme.FONT)


def px(pixels: float) -> float:
    """Convert CSS pixels to points, matplotlib's unit of type and lines."""
    return pixels * 72 / DPI


def finish(figure: Figure) -> Figure:
    """Set one font everywhere, and keep a ``$`` in a class name from being read as mathematics."""
    for text in figure.findobj(Text):
        assert isinstance(text, Text)
        text.set_fontfamily(theme.FONT)
        text.set_parse_math(False)
    return figure


def title(ax: Axes, text: str) -> None:
    """Write a short bold heading at the top left of the axes."""
    ax.set_title(text, loc="left", fontsize=px(13), fontweight="bold", color=theme.INK, pad=px(10))


def side_name(ax: Axes, text: str) -> None:
    """Write the name of the horizontal axis."""
    ax.set_xlabel(text, fontsize=px(12), color=theme.MUTED, labelpad=px(8))


def accuracy_against_share(rows: Sequence[Row], width: int = 640, height: int = 440) -> Figure:
    """Draw accuracy against the share of HR read, with 95 % intervals; a chord joins LR-CNN and HR-CNN.

    Methods of one stage read equally much, so all but PatchDrop are moved a few pixels to the right.
    """
    wide = width > 500
    margins = Margins(left=56, right=28, top=56 if wide else 88, bottom=56)
    figure, (ax,) = canvas(width, height, margins)
    firsts = {row["method"]: at(row) for row in reversed(rows)}
    if "LR-CNN" in firsts and "HR-CNN" in firsts:
        x, y = zip(firsts["LR-CNN"], firsts["HR-CNN"], strict=True)
        ax.plot(x, y, color="#9aa5b1", linewidth=1.2, dashes=(4, 4))
    methods = list(dict.fromkeys([*theme.METHODS, *(row["method"] for row in rows)]))
    shown = [method for method in methods if any(row["method"] == method for row in rows)]
    moved = [method for method in shown if method not in theme.OWN]
    for method in shown:
        aside = 9 * (1 + moved.index(method)) if method in moved else 0
        points(ax, [row for row in rows if row["method"] == method], method, aside)
    ax.set_xlim(-5, 105)
    ax.set_ylim(*y_limits(rows))
    name_points(ax, [row for row in rows if row["method"] == "PatchDrop"], near=6000 / width)
    ax.set_xticks(range(0, 101, 20))
    side_name(ax, "share of the high-resolution image read, %")
    title(ax, "Accuracy, %")
    legend(
        ax,
        columns=5 if wide and len(shown) <= 5 else 3,
        lift=0 if wide else 26 / (height - margins.top - margins.bottom),
    )
    return finish(figure)


def at(row: Row) -> tuple[float, float]:
    """Return a row's point: share of HR and accuracy, both in percent."""
    return 100 * row["hr_fraction"], 100 * row["accuracy"]


def points(ax: Axes, rows: Sequence[Row], method: str, aside: int, label: str = "") -> None:
    """Draw a method's points with intervals, ``aside`` CSS pixels to the right; named ``label`` or as the method."""
    look = theme.mark(method)
    x, y = np.array([at(row) for row in rows]).T
    bounds = np.array([[100 * v for v in row["ci95"]] for row in rows]).T
    shift = ScaledTranslation(aside / DPI, 0, ax.figure.dpi_scale_trans)
    leading = method == "PatchDrop"
    ax.errorbar(
        x,
        y,
        yerr=np.maximum(0, [y - bounds[0], bounds[1] - y]),
        fmt=look.marker,
        color=look.colour,
        markersize=px(12 if leading else 10),
        markeredgecolor="white",
        markeredgewidth=1,
        elinewidth=px(2 if leading else 1.4),
        label=label or method,
        zorder=4 if leading else 3,
        transform=ax.transData + shift,
    )


def name_points(ax: Axes, rows: Sequence[Row], near: float) -> None:
    """Name PatchDrop's stages, each left of its point, or above its interval if another point is near on the left.

    Names above that are ``near`` in x, in percent, are moved up until they do not meet. Other methods' points lie to
    the right; next to the left edge there is room above only.
    """
    low, high = ax.get_ylim()
    ordered = sorted(rows, key=lambda row: at(row)[0])
    crowded = [index > 0 and at(row)[0] - at(ordered[index - 1])[0] < near for index, row in enumerate(ordered)]
    above = [row for row, is_crowded in zip(ordered, crowded, strict=True) if is_crowded or at(row)[0] <= 6]
    beside = [row for row in ordered if row not in above]
    tops = apart([(at(row)[0], 100 * row["ci95"][1]) for row in above], near=near, gap=(high - low) / 20)
    placed = [(row, at(row), True) for row in beside]
    placed += [(row, place, False) for row, place in zip(above, tops, strict=True)]
    for row, place, left in placed:
        ax.annotate(
            theme.stage_name(row["stage"] or ""),
            place,
            xytext=(px(-10), 0) if left else (0, px(5)),
            textcoords="offset points",
            ha="right" if left else "center",
            va="center" if left else "bottom",
            fontsize=px(13),
            fontweight="bold",
            color=theme.mark("PatchDrop").colour,
        )


def y_limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return limits in percent, with room below the lowest interval and for a name above the highest one."""
    ends = [100 * value for row in rows for value in (row["accuracy"], *row["ci95"])]
    room = max(1.0, max(ends) - min(ends))
    return max(0.0, min(ends) - 0.06 * room), max(ends) + 0.12 * room


def apart(places: Sequence[tuple[float, float]], near: float, gap: float) -> list[tuple[float, float]]:
    """Move points ``(x, y)`` up, from the lowest on, until those ``near`` in x are ``gap`` apart in y."""
    moved = list(places)
    done: list[tuple[float, float]] = []
    for index in sorted(range(len(places)), key=lambda i: places[i][1]):
        x, y = places[index]
        for other_x, other_y in done:
            if abs(other_x - x) < near and y < other_y + gap:
                y = other_y + gap
        moved[index] = (x, y)
        done.append((x, y))
    return moved


def legend(ax: Axes, columns: int, lift: float = 0) -> None:
    """Draw markers and names in ``columns`` at the top right, ``lift`` heights of the axes above them."""
    handles, labels = ax.get_legend_handles_labels()
    ax.legend(
        [handle[0] if isinstance(handle, tuple) else handle for handle in handles],
        labels,
        loc="lower right",
        bbox_to_anchor=(1.02, 1.01 + lift),
        ncols=columns,
        frameon=False,
        fontsize=px(12),
        labelcolor=theme.INK,
        handletextpad=0.2,
        columnspacing=1.1,
        handlelength=1.4,
        borderaxespad=0,
    )


def dial(curve: Sequence[Row], chosen: int | None, width: int = 640, height: int = 400) -> Figure:
    """Draw each operating point's accuracy against its share of HR, with 95 % intervals; the chosen one stands out.

    Args:
        curve: points from cheap to dear, one of which has the policy's own threshold, a ``cut`` of 0.
        chosen: number of the chosen point.
    """
    figure, (ax,) = canvas(width, height, Margins(left=56, right=28, top=44, bottom=56))
    look = theme.mark("PatchDrop")
    x, y = np.array([at(row) for row in curve]).T
    low, high = np.array([[100 * v for v in row["ci95"]] for row in curve]).T
    ax.fill_between(x, low, high, color=look.colour, alpha=0.15, linewidth=0)
    ax.plot(x, y, color=look.colour, linewidth=px(2), label="thresholds")
    own = [at(row) for row in curve if row["cut"] == 0][:1]
    if own:
        ax.plot(
            *own[0],
            marker=look.marker,
            markersize=px(10),
            color="white",
            markeredgecolor=look.colour,
            markeredgewidth=px(2),
            linestyle="none",
            label="0.5, the policy's own",
            zorder=3,
        )
    if chosen is not None:
        points(ax, [curve[chosen]], "PatchDrop", 0, "chosen")
    ax.set_xlim(-5, 105)
    ax.set_ylim(*y_limits(curve))
    ax.set_xticks(range(0, 101, 20))
    side_name(ax, "share of the high-resolution image read, %")
    title(ax, "Accuracy, %")
    legend(ax, columns=3)
    return finish(figure)


def forecast(bins: Sequence[Row], width: int = 440, height: int = 440) -> Figure:
    """Draw how often the policy was right against how often it expected to be, with 95 % intervals and the diagonal.

    Args:
        bins: ``predicted`` and ``right``, 0 to 1, and the interval ``ci95``, of parts of the images.
    """
    figure, (ax,) = canvas(width, height, Margins(left=56, right=28, top=44, bottom=56))
    look = theme.mark("PatchDrop")
    x = np.array([100 * row["predicted"] for row in bins])
    y = np.array([100 * row["right"] for row in bins])
    low, high = np.array([[100 * v for v in row["ci95"]] for row in bins]).T
    start = max(0.0, min(x.min(), low.min()) - 3)
    end = min(101.0, max(x.max(), high.max()) + 3)
    ax.plot((start, 100), (start, 100), color="#9aa5b1", linewidth=1.2, dashes=(4, 4))
    ax.errorbar(
        x,
        y,
        yerr=np.maximum(0, [y - low, high - y]),
        fmt=look.marker,
        color=look.colour,
        markersize=px(10),
        markeredgecolor="white",
        markeredgewidth=1,
        elinewidth=px(1.6),
        zorder=3,
    )
    ax.set_xlim(start, end)
    ax.set_ylim(start, end)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 5, 10]))
    side_name(ax, "predicted chance of being right, %")
    title(ax, "Right, %")
    return finish(figure)


def patches_histogram(counts: Sequence[int], mean: float, width: int = 340, height: int = 230) -> Figure:
    """Draw how many images read 0, 1, ... P patches, in percent; ``counts`` has P + 1 entries."""
    figure, (ax,) = canvas(width, height, Margins(left=38))
    shares = 100 * np.asarray(counts, dtype=float) / max(1, sum(counts))
    look = theme.mark("PatchDrop")
    ax.bar(range(len(counts)), shares, width=0.78, color=look.colour)
    ax.axvline(mean, color=theme.INK, linewidth=px(1.4), dashes=(3, 2))
    late = mean > len(counts) / 2
    ax.annotate(
        f"mean {mean:.1f}",
        (mean, 1),
        xycoords=ax.get_xaxis_transform(),
        xytext=(px(-5 if late else 5), 0),
        textcoords="offset points",
        ha="right" if late else "left",
        va="top",
        fontsize=px(12),
        color=theme.INK,
    )
    ax.set_xlim(-0.7, len(counts) - 0.3)
    ax.set_ylim(0, max(1.0, 1.18 * float(shares.max())))
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True, min_n_ticks=3))
    ax.yaxis.set_major_locator(MaxNLocator(4))
    title(ax, "Images, %")
    side_name(ax, f"patches read, of {len(counts) - 1}")
    return finish(figure)


def patches_by_class(classes: Sequence[Row], patches: int, width: int = 440) -> Figure:
    """Draw each class' mean number of patches as bars, most first; of many classes, only both ends of the list."""
    ordered = sorted(classes, key=lambda row: -row["mean_patches"])
    half = MOST_CLASSES // 2
    shown = ordered if len(ordered) <= MOST_CLASSES else [*ordered[:half], *ordered[-half:]]
    names = [theme.shorten(row["class"], 22) for row in shown]
    left = 24 + round(6.9 * max(map(len, names)))
    figure, (ax,) = canvas(width, 84 + 24 * len(shown), Margins(left=left, right=40, bottom=48))
    means = [row["mean_patches"] for row in shown]
    places = [i + (len(shown) < len(ordered) and i >= half) for i in range(len(shown))]
    ax.barh(places, means, height=0.68, color=theme.mark("PatchDrop").colour)
    for place, value in zip(places, means, strict=True):
        ax.annotate(
            f"{value:.1f}",
            (value, place),
            xytext=(px(5), 0),
            textcoords="offset points",
            va="center",
            fontsize=px(12),
            color=theme.INK,
        )
    ax.set_yticks(places, names, parse_math=False)
    ax.tick_params(axis="y", labelcolor=theme.INK)
    ax.set_ylim(max(places) + 0.7, -0.7)
    ax.set_xlim(0, max(1.0, *means))
    ax.grid(visible=False, axis="y")
    ax.grid(axis="x", color=theme.LINE, linewidth=0.8)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    side_name(ax, f"patches read on average, of {patches}")
    return finish(figure)


@dataclass(frozen=True)
class Curve:
    """A figure of the training log over epochs."""

    key: str
    label: str
    method: str
    style: str = "-"
    factor: float = 1.0


POLICY_PANELS = {
    "Accuracy, %": (
        Curve("accuracy", "own masks", "PatchDrop", factor=100),
        Curve("accuracy_shuffled", "shuffled", "Shuffled", "--", factor=100),
    ),
    "Reward": (
        Curve("reward", "validation", "PatchDrop"),
        Curve("train_reward", "training", "Random", ":"),
    ),
    "Patches read": (Curve("mean_patches", "mean ± sd", "PatchDrop"),),
}
LR_PANELS = {
    "Accuracy, %": (Curve("accuracy", "validation", "LR-CNN", factor=100),),
    "Training loss": (Curve("train_loss", "training", "Random", ":"),),
}
HR_PANELS = {
    "Accuracy, %": (Curve("accuracy", "validation", "HR-CNN", factor=100),),
    "Training loss": (Curve("train_loss", "training", "Random", ":"),),
}


def training(stage: str, lines: Sequence[Row], width: int = 340) -> Figure | None:
    """Draw validation figures of one stage over its epochs; return None if there is nothing to draw."""
    asked = POLICY_PANELS if stage in theme.POLICY_STAGES else LR_PANELS if stage == "lr" else HR_PANELS
    drawn = {name: curves for name, curves in asked.items() if any(series(lines, c.key) for c in curves)}
    if not drawn:
        return None
    figure, axes = canvas(width, 180 * len(drawn), Margins(left=42), panels=len(drawn))
    for ax, (name, curves) in zip(axes, drawn.items(), strict=True):
        for curve in curves:
            draw_curve(ax, lines, curve)
        if name == "Patches read":
            draw_band(ax, lines)
        title(ax, name)
        ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
        ax.margins(y=0.12)
        legend(ax, columns=2)
    side_name(axes[-1], "epoch")
    return finish(figure)


def series(lines: Iterable[Row], *keys: str) -> list[list[float]]:
    """Return ``[epoch, value of each key]`` of the lines that have them all; a line without an epoch counts on."""
    numbered = [{"epoch": count, **line} for count, line in enumerate(lines, start=1)]
    asked = ("epoch", *keys)
    return [
        [float(line[key]) for key in asked] for line in numbered if all(theme.finite(line.get(key)) for key in asked)
    ]


def draw_curve(ax: Axes, lines: Sequence[Row], curve: Curve) -> None:
    """Draw one curve, with dots while they can be told apart."""
    found = series(lines, curve.key)
    if found:
        x, y = np.array(found).T
        look = theme.mark(curve.method)
        dots = px(5) if len(x) <= 25 else 0
        ax.plot(
            x,
            curve.factor * y,
            curve.style,
            color=look.colour,
            linewidth=px(2),
            marker="o",
            markersize=dots,
            markeredgewidth=0,
            label=curve.label,
        )


def draw_band(ax: Axes, lines: Sequence[Row]) -> None:
    """Draw a band of the mean number of patches plus and minus its standard deviation over images."""
    found = series(lines, "mean_patches", "patches_sd")
    if found:
        x, mean, deviation = np.array(found).T
        colour = theme.mark("PatchDrop").colour
        ax.fill_between(x, mean - deviation, mean + deviation, color=colour, alpha=0.15, linewidth=0)
