"""A plot of points in characters, for a terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

MARK, REFERENCE = "●", "■"
PLAIN = {MARK: "*", REFERENCE: "#", "│": "|", "└": "+", "─": "-"}
"""What stands for these where a terminal cannot show them."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """Points of (size, score), the sizes on a log scale.

    Examples
    --------
    >>> plot = Plot(points=[(10, 0.5), (100, 0.75)], reference=(1000, 1.0), width=9, height=3)
    >>> print("\\n".join(plot.lines()))
    1.000 │        ■
          │    ●
    0.500 │●
          └─────────
           10  1,000
    """

    points: Sequence[tuple[int, float]]
    reference: tuple[int, float] | None = None
    """One more point, such as the dense model."""
    width: int = 40
    """Columns and rows of the plot itself, without its axes."""
    height: int = 10
    plain: bool = False
    """Whether to do with ASCII."""
    _all: list[tuple[int, float]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        every = [*self.points, *([self.reference] if self.reference is not None else [])]
        object.__setattr__(self, "_all", [p for p in every if math.isfinite(p[1])])

    def lines(self) -> list[str]:
        """Return the plot, line by line; nothing where there is nothing to plot."""
        if not self._all:
            return []
        scores = [score for _, score in self._all]
        low, high = min(scores), max(scores)
        rows = [[" "] * self.width for _ in range(self.height)]
        for point in self._all:
            column, row = self._place(point, low=low, high=high)
            mark = REFERENCE if point is self.reference else MARK
            if rows[row][column] != REFERENCE:
                rows[row][column] = mark
        top, bottom = f"{high:.3f}", f"{low:.3f}"
        margin = max(len(top), len(bottom))
        labels = {0: top, self.height - 1: bottom}
        lines = [
            f"{labels.get(number, ''):>{margin}} │{''.join(row)}".rstrip()
            for number, row in enumerate(rows)
        ]
        least, most = (f"{size:,}" for size in self._sizes())
        lines.append(f"{'':>{margin}} └{'─' * self.width}")
        gap = max(self.width - len(least) - len(most), 2)
        lines.append(f"{'':>{margin}}  {least}{' ' * gap}{most}")
        return [self._shown(line) for line in lines]

    def _sizes(self) -> tuple[int, int]:
        sizes = [size for size, _ in self._all]
        return min(sizes), max(sizes)

    def _place(self, point: tuple[int, float], *, low: float, high: float) -> tuple[int, int]:
        least, most = (math.log(max(size, 1)) for size in self._sizes())
        along = (math.log(max(point[0], 1)) - least) / (most - least) if most > least else 0.0
        up = (point[1] - low) / (high - low) if high > low else 1.0
        return round(along * (self.width - 1)), round((1 - up) * (self.height - 1))

    def _shown(self, line: str) -> str:
        return "".join(PLAIN.get(c, c) for c in line) if self.plain else line
