"""Figures, drawn only if matplotlib is installed (the extra [plots])."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

# the palette of Okabe and Ito, which colour-blind readers can tell apart
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
HOW_TO_DRAW = "None without matplotlib: pip install matplotlib"


def pyplot():
    """matplotlib.pyplot, drawing to files only, or None if matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError:
        return None
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                         "grid.alpha": 0.3, "font.size": 10, "figure.dpi": 130,
                         "axes.prop_cycle": plt.cycler(color=COLOURS)})
    return plt


def save_curves(path: str | Path, history: Mapping[str, Sequence[float]],
                panels: Mapping[str, Sequence[str]],
                xlabel: str = "optimizer step") -> list[Path | str]:
    """Plot metrics over steps, smoothed, with the raw values faintly behind.

    history: metric -> one value per step.  panels: y label -> the metrics drawn in that panel.
    Returns what a report has to show: the figure, or a word of how to get one.
    """
    plt = pyplot()
    if plt is None:
        return [HOW_TO_DRAW]
    columns = min(len(panels), 3)
    rows = math.ceil(len(panels) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(4.2 * columns, 3.2 * rows), squeeze=False,
                                layout="constrained")
    for axis in axes.flat[len(panels):]:
        axis.set_visible(False)
    for axis, (ylabel, names) in zip(axes.flat, panels.items(), strict=False):
        for name, colour in zip(names, COLOURS, strict=False):
            values = history[name]
            steps = range(1, len(values) + 1)
            smooth = running_mean(values, max(1, len(values) // 20))
            axis.plot(steps, values, color=colour, alpha=0.25, linewidth=1)
            axis.plot(steps, smooth, color=colour, label=name)
        axis.set(xlabel=xlabel, ylabel=ylabel)
        axis.legend(frameon=False, fontsize=8)
    figure.savefig(path)
    plt.close(figure)
    return [Path(path)]


def running_mean(values: Sequence[float], width: int) -> list[float]:
    """The mean over a trailing window of at most `width` values, at each value."""
    windows = (values[max(0, end - width):end] for end in range(1, len(values) + 1))
    return [sum(window) / len(window) for window in windows]


def save_calibration(path: str | Path, bins: Sequence[Mapping[str, float]]) -> list[Path]:
    """Plot observed against predicted preference rate; a calibrated model is on the diagonal.

    bins: what `reward.evaluate.calibration` returns.  Returns the figure, if it could be drawn.
    """
    plt = pyplot()
    if plt is None:
        return []
    figure, axis = plt.subplots(figsize=(3.6, 3.4), layout="constrained")
    axis.plot([0.5, 1], [0.5, 1], color="grey", linestyle="--", linewidth=1)
    axis.plot([b["predicted"] for b in bins], [b["observed"] for b in bins], marker="o")
    axis.set(xlabel="predicted preference rate", ylabel="observed preference rate",
             title="Calibration")
    figure.savefig(path)
    plt.close(figure)
    return [Path(path)]
