"""The figure of the front benchmark: hypervolume as epochs and seconds go by."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from front_report import OURS, Results, Run

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

AXES = {"epochs": "epochs of fine-tuning", "cpu": "CPU seconds"}
POINTS = 400


def mean_curve(runs: Sequence[Run], by: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a grid of what was spent, and the mean test hypervolume at each of its points.

    It ends where the first of the runs has ended.
    """
    last = min(run.final(by) for run in runs)
    grid = np.linspace(0, last, POINTS)
    return grid, np.mean([[run.at(by, spent) for spent in grid] for run in runs], axis=0)


def panel(axes: Axes, results: Results, by: str) -> None:
    for number, (method, runs) in enumerate(results.runs.items()):
        grid, volume = mean_curve(list(runs.values()), by)
        ours = method == OURS
        style = {"color": "black", "linewidth": 2.2, "zorder": 10} if ours else {"linewidth": 1}
        dashes = "-" if ours or number < 11 else "--"  # colours repeat after ten
        axes.step(grid, volume, dashes, where="post", label=method, **style)
    axes.set_xlabel(AXES[by])
    axes.set_ylabel("test hypervolume")
    axes.set_title(results.title)
    axes.grid(alpha=0.3)


def draw(results: Sequence[Results], file: Path) -> None:
    """Draw a row of two panels for each task, means over seeds."""
    mpl.rcParams["svg.hashsalt"] = "front"  # the same file for the same numbers
    figure, rows = plt.subplots(
        len(results), len(AXES), figsize=(11, 4 * len(results)), squeeze=False, layout="tight"
    )
    for row, each in zip(rows, results, strict=True):
        for axes, by in zip(row, AXES, strict=True):
            panel(axes, each, by)
        row[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1))
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)
