"""Telling of a search: each ended trial to the tracker, where it stands to the reporter."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

from autoprune.account import Account
from autoprune.pool import Pool
from autoprune.progress import EndedTrial, FrontPoint, Pace, Reporter, Stage, Status
from autoprune.results.growth import plane_of
from autoprune.results.records import State
from autoprune.results.tracking import Tracker
from autoprune.searching.candidate import Candidate, Score
from autoprune.trialrun import TrialRun

COVERED = "hypervolume_by_trial"
"""The metric of the search's run that grows with the front; its steps are finished trials."""

RECENT = 10
"""Trials whose epochs tell how many the next ones will take."""


class Teller:
    """Tells a tracker and a reporter of the trials of a search.

    Parameters
    ----------
    dense
        The dense model's score.
    channels
        The dense model's widths, by group.
    under_way
        The trials under way; the caller keeps it up to date.
    """

    def __init__(
        self,
        *,
        tracker: Tracker,
        reporter: Reporter,
        metric: str,
        dense: Score,
        channels: Mapping[str, int],
        tags: Mapping[str, str],
        pool: Pool,
        account: Account,
        under_way: Collection[TrialRun],
    ) -> None:
        self._tracker = tracker
        self._reporter = reporter
        self._metric = metric
        self._dense = dense
        # A score that is no share spans no plane before there are others to compare it with.
        self._plane = plane_of(
            dense_params=dense.params,
            dense_valid=dense.valid,
            higher_is_better=pool.higher_is_better,
        )
        self._channels = channels
        self._tags = dict(tags)
        self._pool = pool
        self._account = account
        self._under_way = under_way
        self._pace = Pace()
        self._before = account.spent
        """Epochs that earlier sittings have trained, see `begin`."""
        self._usual: deque[int] = deque(maxlen=RECENT)
        """Epochs of the trials that ended last."""

    @contextmanager
    def recording(
        self, run: TrialRun, state: State, candidate: Candidate | None = None, *, cause: str = ""
    ) -> Iterator[None]:
        """Tell the tracker how a trial ends, before the study is told in the context and after it.

        Whenever this process is killed, the tracker's record can be told from the study to hold.
        """
        record = run.record(
            state,
            candidate,
            cause=cause,
            channels=self._channels,
            dense_params=self._dense.params,
            tags=self._tags,
        )
        if candidate is not None and not run.is_final:
            step = len(self._pool.candidates) + 1
            record = replace(record, search_metrics=self._covered_with(candidate), step=step)
        self._tracker.trial(record)
        yield
        self._tracker.ended(run.name)

    def _covered_with(self, candidate: Candidate) -> dict[str, float]:
        """Return how much of the plane the front covers once it has this candidate, too."""
        if self._plane is None:
            return {}
        front = [*self._pool.front(), candidate]
        return {COVERED: self._plane.share([(c.score.params, c.score.valid) for c in front])}

    def begin(self) -> None:
        """Take what has been trained so far as an earlier sitting's: the pace begins here."""
        self._pace = Pace()
        self._before = self._account.spent

    def search_stages(self, budget: int | None, done: int) -> list[Stage]:
        """Return what bounds the search, in trials and in epochs; the last one is shown."""
        stages = [] if budget is None else [Stage(name="search", total=budget, done=done)]
        if self._account.budget is not None:
            stages.append(Stage(name="search", total=self._account.budget, unit="epochs"))
        return stages

    def search(self, stages: Sequence[Stage], done: int, ended: EndedTrial | None = None) -> None:
        """Report how far the search has come; it is over when the first of its bounds is met."""
        if ended is not None and ended.state != "failed":
            self._usual.append(ended.epochs)
        trained = self._trained()
        left = min(self._epochs_left(stage, done, trained) for stage in stages)
        final = self._account.final_epochs * len(self._pool.without_final())
        eta = self._pace.seconds(left + final, trained=trained - self._before)
        self._report(stages[-1], trained if stages[-1].unit else done, ended, eta=eta)

    def final(
        self, stage: Stage, done: int, ended: EndedTrial | None = None, *, epochs: int
    ) -> None:
        """Report how far the final stage, of so many `epochs` a model, has come."""
        left = epochs * (stage.total - done) - sum(run.epochs for run in self._under_way)
        eta = self._pace.seconds(max(left, 0), trained=self._trained() - self._before)
        self._report(stage, done, ended, eta=eta)

    def left_out(self, count: int, *, of: int) -> None:
        """Report that epochs do not last for the final stage of `count` models."""
        self._reporter.note(
            f"{count} of the front's {of} models get no final fine-tuning: the epochs of the "
            f"budget are used up."
        )

    def _trained(self) -> int:
        return self._account.spent + sum(run.spent for run in self._under_way)

    def _epochs_left(self, stage: Stage, done: int, trained: int) -> float:
        """Return the epochs until a bound of the search is met, the final stage's left out."""
        if stage.unit:
            return max(stage.total - self._account.reserved() - trained, 0)
        if not self._usual:
            return math.inf
        usual = sum(self._usual) / len(self._usual)
        return max(usual * (stage.total - done) - sum(r.epochs for r in self._under_way), 0)

    def _report(
        self, stage: Stage, done: int, ended: EndedTrial | None, *, eta: float | None
    ) -> None:
        self._reporter.update(
            Status(
                stage=stage.name,
                done=done,
                total=stage.total,
                unit=stage.unit,
                metric=self._metric,
                higher_is_better=self._pool.higher_is_better,
                dense_params=self._dense.params,
                dense_valid=self._dense.valid,
                running=[run.standing() for run in self._under_way],
                front=[
                    FrontPoint(c.name, c.score.params, c.score.valid, c.score.latency)
                    for c in self._pool.front()
                ],
                ended=ended,
                eta_seconds=eta,
            )
        )
