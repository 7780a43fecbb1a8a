"""Diagrams of a pipeline: its models, trained or frozen, and the data that flows between them."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
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


class Arrow(NamedTuple):
    """An arrow from box to box, with corners at `via` (positions on the grid)."""

    start: str
    end: str
    label: str = ""
    via: tuple[tuple[float, float], ...] = ()
    colour: str = "#444444"


def draw_pipeline(axis: Any, boxes: Mapping[str, Box],
                  arrows: Sequence[tuple[str, str, str] | Arrow]) -> None:
    """Draw boxes by name and arrows (from, to, label) between them.

    A figure with a single axis is resized to fit.
    """
    from matplotlib.patches import FancyBboxPatch, Patch

    for box in boxes.values():
        x, y = _place(box.column, box.row)
        axis.add_patch(FancyBboxPatch((x - WIDTH / 2, y - HEIGHT / 2), WIDTH, HEIGHT,
                                      boxstyle="round,pad=0.04", **LOOKS[box.look]))
        axis.text(x, y, box.text, ha="center", va="center", fontsize=8.5)
    for arrow in arrows:
        _draw_arrow(axis, boxes, Arrow(*arrow))
    looks = [look for look in LOOKS if look in {box.look for box in boxes.values()}]
    axis.legend(handles=[Patch(label=look, **LOOKS[look]) for look in looks], loc="upper center",
                ncols=3, bbox_to_anchor=(0.5, 0.0))
    axis.set_axis_off()
    axis.set_aspect("equal")
    axis.autoscale_view()
    if len(axis.figure.axes) == 1:
        (left, right), (bottom, top) = axis.get_xlim(), axis.get_ylim()
        axis.figure.set_size_inches(0.8 * (right - left) + 0.2, 0.8 * (top - bottom) + 0.6)


def _place(column: float, row: float) -> tuple[float, float]:
    """A position on the grid, in inches."""
    return COLUMN * column, -ROW * row


def _draw_arrow(axis: Any, boxes: Mapping[str, Box], arrow: Arrow) -> None:
    """Draw an arrow, and its label beside its longest stretch, never on it."""
    start, end = (_place(boxes[name].column, boxes[name].row) for name in (arrow.start, arrow.end))
    points = [start, *(_place(*corner) for corner in arrow.via), end]
    points[0], points[-1] = _edge(*start, *points[1]), _edge(*end, *points[-2])
    if arrow.via:
        axis.plot(*zip(*points[:-1], strict=True), color=arrow.colour, linewidth=1.1)
    axis.annotate("", points[-1], points[-2], arrowprops={
        "arrowstyle": "-|>", "color": arrow.colour, "linewidth": 1.1, "shrinkA": 0})
    (x0, y0), (x1, y1) = max(pairwise(points), key=lambda stretch: math.dist(*stretch))
    angle = math.atan2(y1 - y0, x1 - x0)
    if abs(angle) > math.pi / 2 + 1e-6:   # to the left: the text still reads to the right
        angle -= math.copysign(math.pi, angle)
    axis.text((x0 + x1) / 2 - 0.13 * math.sin(angle), (y0 + y1) / 2 + 0.13 * math.cos(angle),
              arrow.label, ha="center", va="center", rotation=math.degrees(angle), fontsize=7.5,
              color=arrow.colour)


def _edge(x: float, y: float, to_x: float, to_y: float) -> tuple[float, float]:
    """Where the line from the centre of a box to another point leaves the box."""
    half_width, half_height = WIDTH / 2 + 0.06, HEIGHT / 2 + 0.06
    dx, dy = to_x - x, to_y - y
    scale = min(half_width / abs(dx) if dx else float("inf"),
                half_height / abs(dy) if dy else float("inf"))
    return x + dx * scale, y + dy * scale
