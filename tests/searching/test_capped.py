"""Samplers that are shown no more trials than they can look at in time."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import FloatDistribution
from optuna.samplers import GPSampler, TPESampler
from optuna.trial import TrialState, create_trial

from autoprune.searching.capped import Capped, CappedGPSampler, CappedTPESampler

SPACE = {"a": FloatDistribution(0, 1), "b": FloatDistribution(0, 1)}

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


class Small(CappedTPESampler):
    limit = 10
    seen: list[int]

    def sample_relative(self, study: Any, trial: Any, search_space: Any) -> dict[str, Any]:
        self.seen = [t.number for t in self._excerpt(study).get_trials()]
        return super().sample_relative(study, trial, search_space)


def study_of(scores: list[float], sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    """Return a study of trials with these scores, each larger than the one before."""
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    study.add_trials(
        create_trial(
            params={"a": 0.01 * number, "b": 0.5},
            distributions=SPACE,
            values=[score, float(number)],
        )
        for number, score in enumerate(scores)
    )
    return study


def test_up_to_the_limit_a_sampler_is_optunas_own() -> None:
    scores = [0.01 * (n % 7) for n in range(9)]
    ours, theirs = (
        study_of(scores, kind(seed=3, multivariate=True, constant_liar=True)).ask(SPACE).params
        for kind in (CappedTPESampler, TPESampler)
    )
    assert ours == theirs


def test_beyond_it_the_front_and_the_latest_are_seen() -> None:
    scores = [0.5, 0.6, 0.7, *[0.1] * 20]
    sampler = Small(seed=0)
    study = study_of(scores, sampler)
    running = study.ask(SPACE)
    assert sampler.seen == [0, 1, 2, *range(17, 24)]
    assert running.number == 23
    study.tell(running, [0.9, 0.0])  # alone on the front now
    study.ask(SPACE)
    assert sampler.seen == [*range(15, 25)]
    study.add_trial(study.trials[-2])
    assert len(study.get_trials(states=(TrialState.COMPLETE,))) == 25  # nothing is lost


def test_a_front_takes_no_more_than_half() -> None:
    sampler = Small(seed=0)
    study_of([0.01 * n for n in range(30)], sampler).ask(SPACE)
    assert sampler.seen == [*range(21, 31)]


@pytest.mark.parametrize("kind", [CappedTPESampler, CappedGPSampler])
def test_what_they_are(kind: type[Capped]) -> None:
    assert issubclass(kind, (TPESampler, GPSampler))
    assert kind.limit <= 300
