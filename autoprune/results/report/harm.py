"""What cutting each group alone costs, where `autoprune sensitivity` has found that out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import read_json

FILE = "sensitivity.json"


def harm(root: Path) -> dict[str, Any] | None:
    """Return by group the score that is lost at each share of its channels; None if not known.

    Raises
    ------
    AutopruneError
        If the file was altered.
    """
    file = root / FILE
    if not file.exists():
        return None
    try:
        return _table(read_json(file))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise AutopruneError(
            f"{file} must be as autoprune wrote it, but reading it gave {first_line(error)}. "
            f"Delete it, and run `autoprune sensitivity` again."
        ) from error


def _table(found: Mapping[str, Any]) -> dict[str, Any]:
    sign = 1.0 if found["higher_is_better"] else -1.0
    shares = [float(share) for share in found["fractions"]]
    if any(cell["fraction"] == 0 for group in found["groups"] for cell in group["cells"]):
        shares.append(0.0)  # of blocks, which are dropped whole
    rows = []
    for group in found["groups"]:
        scores = {float(cell["fraction"]): cell["score"] for cell in group["cells"]}
        lost = [
            sign * (found["dense"]["score"] - scores[share])
            if scores.get(share) is not None
            else None
            for share in shares
        ]
        rows.append({"name": str(group["name"]), "lost": lost})
    return {"criterion": str(found["criterion"]), "shares": shares, "rows": rows}
