"""Which groups hurt, as ``sensitivity.json`` has it: read, tabled and drawn. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import read_signed
from autoprune.results.store import Store

DROPPED = "dropped"
"""What the column of blocks is called."""


@dataclass(frozen=True, kw_only=True)
class LossTable:
    """What cutting one group alone costs."""

    what: str
    """What the numbers are."""
    groups: tuple[str, ...]
    columns: tuple[str, ...]
    """Shares of the channels that are left, and `DROPPED` where there are blocks."""
    lost: tuple[tuple[float | None, ...], ...]
    """By group and column; None where there is no such cut. Below 0 is a gain."""
    most: float
    """The largest number, or a little if none is above 0."""


def loss_table(found: Mapping[str, Any]) -> LossTable:
    """Table what a ``sensitivity.json`` says: the score that is lost against the dense model.

    Examples
    --------
    >>> cell = {"fraction": 0.5, "width": 4, "loss": 1.5, "score": 0.75}
    >>> group = {"name": "conv", "channels": 8, "cells": [cell]}
    >>> dense = {"loss": 1.0, "score": 1.0}
    >>> found = {"metric": "accuracy", "higher_is_better": True, "dense": dense}
    >>> table = loss_table({**found, "fractions": [0.5], "criterion": "l2", "groups": [group]})
    >>> table.columns, table.lost
    (('50%',), ((0.25,),))
    """
    sign = 1.0 if found["higher_is_better"] else -1.0
    fractions = [float(f) for f in found["fractions"]]
    blocks = any(cell["fraction"] == 0 for g in found["groups"] for cell in g["cells"])
    keys = [*fractions, *([0.0] if blocks else [])]
    lost = []
    for group in found["groups"]:
        scores = {float(cell["fraction"]): cell["score"] for cell in group["cells"]}
        lost.append(
            tuple(
                sign * (found["dense"]["score"] - scores[key]) if key in scores else None
                for key in keys
            )
        )
    known = [value for row in lost for value in row if value is not None]
    return LossTable(
        what=f"{found['metric']} lost when one group alone is cut by {found['criterion']}",
        groups=tuple(str(group["name"]) for group in found["groups"]),
        columns=tuple(f"{f:.4g}%" for f in (100 * f for f in fractions))
        + ((DROPPED,) if blocks else ()),
        lost=tuple(lost),
        most=max([*known, 1e-3]),
    )


def by_harm(table: LossTable) -> list[str]:
    """Return the groups, those that lose most over all their cuts first."""

    def mean(row: tuple[float | None, ...]) -> float:
        there = [value for value in row if value is not None]
        return sum(there) / max(len(there), 1)

    order = sorted(range(len(table.groups)), key=lambda i: -mean(table.lost[i]))
    return [table.groups[i] for i in order]


def read_sensitivity(file: Path) -> dict[str, Any]:
    """Read a ``sensitivity.json``; raise `AutopruneError` if it was altered."""
    found = read_signed(file, way_out="Delete it, and run `autoprune sensitivity` again.")
    try:
        loss_table(found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AutopruneError(
            f"{file} must be as autoprune wrote it, but reading it gave {first_line(error)}. "
            f"Delete it, and run `autoprune sensitivity` again."
        ) from error
    return found


def sensitivity_files(store: Store) -> list[Path]:
    """Return the files that show which groups of a search hurt, the picture drawn; none if there
    is nothing to show.
    """
    if not store.sensitivity_file.exists():
        return []
    from autoprune.results.figures import sensitivity_picture

    picture = store.sensitivity_file.with_suffix(".png")
    try:
        sensitivity_picture(read_sensitivity(store.sensitivity_file), picture)
    except AutopruneError:
        return []
    return [store.sensitivity_file, picture]
