"""Draw the picture of a comparison: accuracy against share of HR, a panel for each stage."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from matplotlib.transforms import ScaledTranslation

from patchdrop.report import theme
from patchdrop.report.figures import DPI, Margins, at, canvas, finish, px, side_name, title, y_limits
from patchdrop.report.theme import Row

COLOURS = ("#d55e00", "#008a64", "#a8478a", "#68727d", "#7a5c00", "#56b4e9", "#4b3f9e", "#b34700")
MARKERS = ("v", "^", "s", "D", "P", "X", "<", ">")
RIGHT = 220
"""CSS pixels beside a panel, for the methods' names."""
STEP, NEAR = 9, 3.0
"""Points within ``NEAR`` percent of one share are drawn ``STEP`` CSS pixels apart."""


def comparison(rows: Sequence[Row], width: int = 860, panel: int = 420) -> Figure:
    """Draw every method's point with its 95 % interval; PatchDrop is the large blue dot in each panel.

    Methods that read equally much are moved a few pixels to the right of each other.
    """
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    margins = Margins(left=56, right=RIGHT, top=36, bottom=56)
    figure, axes = canvas(width, panel * len(stages), margins, len(stages))
    others = [method for method in methods if not method.endswith("PatchDrop")]
    for ax, stage in zip(axes, stages, strict=True):
        crowd: dict[int, int] = {}
        for row in (row for row in rows if row["stage"] == stage):
            x, y = at(row)
            place = round(x / NEAR)
            aside = STEP * crowd.setdefault(place, 0)
            crowd[place] += 1
            ours = row["method"] not in others
            index = 0 if ours else others.index(row["method"])
            low, high = (100 * bound for bound in row["ci95"])
            ax.errorbar(
                [x],
                [y],
                yerr=[[max(0.0, y - low)], [max(0.0, high - y)]],
                color="#0072b2" if ours else COLOURS[index % len(COLOURS)],
                marker="o" if ours else MARKERS[(index + index // len(COLOURS)) % len(MARKERS)],
                markersize=px(11 if ours else 7),
                elinewidth=px(1.4),
                linestyle="none",
                zorder=3 if ours else 2,
                label=row["method"],
                transform=ax.transData + ScaledTranslation(aside / DPI, 0, figure.dpi_scale_trans),
            )
        ax.set_ylim(*y_limits([row for row in rows if row["stage"] == stage]))
        ax.set_xlim(-5, 113)  # room for points moved to the right of 100
        ax.set_xticks(range(0, 101, 20))
        side_name(ax, "share of the high-resolution image read, % (points of nearly the same share stand side by side)")
        title(ax, f"{theme.stage_name(stage)}: accuracy, %")
        ax.legend(loc="upper left", bbox_to_anchor=(1.02, 1.0), frameon=False, fontsize=px(11), labelcolor=theme.INK)
    return finish(figure)
