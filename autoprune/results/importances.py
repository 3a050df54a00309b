"""Which parameters of a search mattered, and for what: a small model, or a good one for its size.

Importances of the score alone say little: it falls with the size, so whatever makes models small
seems to matter most. So trials are compared within sizes, as proxies are.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from autoprune.searching.attributes import PARAMS, VALID
from autoprune.searching.proxies import LEAST, size_bins

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

FEWEST = 10
"""Fewest trials that importances are taken of."""


@dataclass(frozen=True, kw_only=True)
class Importances:
    """PED-ANOVA importances (Watanabe et al. 2023) by parameter, each kind summing to 1."""

    size: Mapping[str, float]
    """For being among the smallest tenth."""
    score: Mapping[str, float]
    """For being among the best tenth of the trials of one size."""
    trials: int
    """Completed trials that these are of."""
    compared: int
    """Those of them that have enough others of their size to be compared with."""


def importances(study: optuna.Study, *, higher_is_better: bool = True) -> Importances | None:
    """Return what mattered in a search; None if too few trials were completed.

    Parameters
    ----------
    study
        Whose trials carry their score and size as user attributes, whatever its objectives are.
    """
    from optuna.trial import TrialState

    trials = [
        t
        for t in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        if VALID in t.user_attrs and PARAMS in t.user_attrs
    ]
    ranks = _ranks(trials, sign=1.0 if higher_is_better else -1.0)
    if len(trials) < FEWEST:
        return None
    return Importances(
        size=_importances(study, lambda t: float(t.user_attrs.get(PARAMS, math.inf))),
        score=_importances(study, lambda t: ranks.get(t.number, math.inf))
        if len(ranks) >= FEWEST
        else {},
        trials=len(trials),
        compared=len(ranks),
    )


def _ranks(trials: list[FrozenTrial], *, sign: float) -> dict[int, float]:
    """Return, by trial, which share of the others of its size are better."""
    found: dict[int, float] = {}
    for members in size_bins([int(t.user_attrs[PARAMS]) for t in trials]):
        scores = [sign * float(trials[i].user_attrs[VALID]) for i in members]
        if len(members) < LEAST:
            continue
        for i, score in zip(members, scores, strict=True):
            better = sum(other > score for other in scores)
            found[trials[i].number] = better / (len(members) - 1)
    return found


def _importances(study: optuna.Study, target: Callable[[FrozenTrial], float]) -> dict[str, float]:
    """Return importances for a low `target`; trials of which it is infinite are left out."""
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    with warnings.catch_warnings():
        # That a low target is what they are of; that some choices were taken by few trials.
        warnings.simplefilter("ignore")
        return get_param_importances(
            study, evaluator=PedAnovaImportanceEvaluator(), target=target, normalize=True
        )
