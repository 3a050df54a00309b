"""Loading an exported model into its own class: safetensors and JSON, no pickle."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from autoprune.errors import AutopruneError
from autoprune.pruning.cut import load_state
from autoprune.pruning.masks import count_nonzero
from autoprune.pruning.weights import load_tensors
from autoprune.results.exported import PLAN, WEIGHTS, check_file, read_plan


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
    exported = read_plan(folder / PLAN)
    for name, digest in exported.files.items():
        check_file(folder / name, digest)
    state = load_tensors(folder / WEIGHTS, sha256=exported.sha256)
    small = load_state(model, state, dropped=exported.dropped).eval()
    found = count_nonzero(small, exported.zeroed)
    if found != exported.params:
        raise AutopruneError(
            f"The loaded model must have the plan's {exported.params} parameters, but has {found}: "
            f"is this the right model?"
        )
    return small
