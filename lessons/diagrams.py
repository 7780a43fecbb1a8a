"""Diagrams of a pipeline: its models, trained or frozen, and the data that flows between them."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from minigpt.plots import COLOURS

LOOKS: dict[str, dict[str, Any]] = {
         "trained": {"edgecolor": COLOURS[1], "facecolor": "#fbe9dc", "linewidth": 2.0},
         "frozen": {"edgecolor": COLOURS[0], "facecolor": "#e3eff8", "linewidth": 1.4,
                    "linestyle": "--"},
         "data": {"edgecolor": "#777777", "facecolor": "#f4f4f4", "linewidth": 1.0}}
WIDTH, HEIGHT = 1.8, 0.66        # of a box, in inches
COLUMN, ROW = 2.75, 1.2          # from centre to centre, in inches


class Box(NamedTuple):
    """A box: its position on the grid, its text, and its look (a key of LOOKS)."""

    column: float
    row: float
    text: str
    look: str


def draw_pipeline(axis: Any, boxes: Mapping[str, Box],
                  arrows: Sequence[tuple[str, str, str]]) -> None:
    """Draw boxes by name and arrows (from, to, label) between them.

    A figure with a single axis is resized to fit.
    """
    from matplotlib.patches import FancyBboxPatch, Patch

    centres = {name: (COLUMN * box.column, -ROW * box.row) for name, box in boxes.items()}
    for name, box in boxes.items():
        x, y = centres[name]
        axis.add_patch(FancyBboxPatch((x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT,
                                      boxstyle="round,pad=0.04", **LOOKS[box.look]))
        axis.text(x, y, box.text, ha="center", va="center", fontsize=8.5)
    for start, end, label in arrows:
        (x0, y0), (x1, y1) = centres[start], centres[end]
        begin, finish = _edge(x0, y0, x1, y1), _edge(x1, y1, x0, y0)
        axis.annotate("", finish, begin, arrowprops={"arrowstyle": "-|>", "color": "#444444",
                                                     "linewidth": 1.1})
        x, y = (begin[0] + finish[0]) / 2, (begin[1] + finish[1]) / 2
        above = 0.13 if abs(y1 - y0) < 0.1 else 0  # labels go above horizontal arrows, else on them
        axis.text(x, y + above, label, ha="center", va="center", fontsize=7.5, color="#222222",
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0, "alpha": 0.9})
    looks = [look for look in LOOKS if look in {box.look for box in boxes.values()}]
    axis.legend(handles=[Patch(label=look, **LOOKS[look]) for look in looks], loc="upper center",
                ncols=3, bbox_to_anchor=(0.5, 0.0))
    axis.set_axis_off()
    axis.set_aspect("equal")
    axis.autoscale_view()
    if len(axis.figure.axes) == 1:
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        axis.figure.set_size_inches(0.8 * (right - left) + 0.2, 0.8 * (top - bottom) + 0.6)


def _edge(x: float, y: float, to_x: float, to_y: float) -> tuple[float, float]:
    """Where the line from the centre of a box to another point leaves the box."""
    half_width, half_height = WIDTH / 2 + 0.06, HEIGHT / 2 + 0.06
    dx, dy = to_x - x, to_y - y
    scale = min(half_width / abs(dx) if dx else float("inf"),
                half_height / abs(dy) if dy else float("inf"))
    return x + dx * scale, y + dy * scale
