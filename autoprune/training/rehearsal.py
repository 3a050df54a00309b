"""Finding out before a search whether the test data can be used after it."""

from __future__ import annotations

import copy
from collections.abc import Callable

from torch import nn

from autoprune.errors import AutopruneError, first_line
from autoprune.training.device import OwnRandomState
from autoprune.training.task import Split, Task


def check_test(task: Task, model: nn.Module) -> None:
    """Run a copy of `model` on one batch of the test split; nothing is scored.

    A task of one's own without a ``rehearse`` is taken at its word. What the validation split does
    not bear either is reported where the dense model is scored.

    Raises
    ------
    AutopruneError
        If the model answers the validation data, but not the test data.
    """
    rehearse: Callable[[nn.Module, Split], None] | None = getattr(task, "rehearse", None)
    if rehearse is None or not getattr(task, "has_test", True):
        return
    with OwnRandomState():
        model = copy.deepcopy(model)
        try:
            rehearse(model, "valid")
        except Exception:
            return
        try:
            rehearse(model, "test")
        except Exception as error:
            cause = str(error) if isinstance(error, AutopruneError) else first_line(error)
            raise AutopruneError(
                f"The model must run on the test data as on the validation data, but that raised "
                f"{cause.removesuffix('.')}. Mend the study's test split, or leave it out."
            ) from error
