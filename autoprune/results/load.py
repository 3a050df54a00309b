"""Loading an exported model into its own class: safetensors and JSON, no pickle."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import AutopruneError
from autoprune.pruning.cut import load_state
from autoprune.pruning.files import read_json
from autoprune.pruning.groups import module_of
from autoprune.pruning.masks import count_nonzero
from autoprune.pruning.weights import load_tensors

WEIGHTS, PLAN = "model.safetensors", "plan.json"


def load(folder: str | Path, *, model: nn.Module) -> nn.Module:
    """Rebuild an exported model.

    Parameters
    ----------
    folder
        A folder that a search exported, such as ``out/front/t017``.
    model
        The dense model, trained or not. It gives the code; it is not changed.

    Returns
    -------
    nn.Module
        A smaller copy with the exported weights, in evaluation mode.

    Raises
    ------
    AutopruneError
        If files are missing or altered, or belong to another model.

    Examples
    --------
    >>> net = autoprune.load("out/front/t017", model=Net())  # doctest: +SKIP
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise AutopruneError(f"`folder` must be an exported model's folder, but {folder} is none.")
    plan = read_json(folder / PLAN)
    if not isinstance(plan, dict) or plan.get("checksum") != checksum(plan):
        raise AutopruneError(
            f"{folder / PLAN} must be as autoprune exported it, but its checksum does not fit "
            f"its content: it was altered. Export it again."
        )
    state = load_tensors(folder / WEIGHTS, sha256=plan["sha256"])
    dropped = [module_of(name) for name, kept in (plan["kept"] or {}).items() if not kept]
    small = load_state(model, state, dropped=dropped).eval()
    _check_count(small, plan)
    return small


def checksum(plan: Mapping[str, Any]) -> str:
    """Return the SHA-256 of an exported plan's content, its ``checksum`` left out."""
    content = {key: value for key, value in plan.items() if key != "checksum"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _check_count(model: nn.Module, plan: Mapping[str, Any]) -> None:
    expected, found = plan["params"], count_nonzero(model, plan["zeroed"])
    if found != expected:
        raise AutopruneError(
            f"The loaded model must have the plan's {expected} parameters, but has {found}: "
            f"is this the right model?"
        )
