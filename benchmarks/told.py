"""How Optuna should be told of a stopped trial: as PRUNED, or as COMPLETE and infeasible.

    python benchmarks/told.py [--task fashion-mlp] [--seeds 0,1,2] [--samplers tpe,nsga2] [--write]

A pruned trial of several objectives teaches a sampler nothing. The other way is to tell the score
that it had when it was stopped, with a constraint `early_stop` above 0, which keeps it off the
front. Both ways run the same searches, with the same rule for stopping; compared are the fronts'
hypervolumes (dense accuracy down to half of it, 2.5 decades of parameters) and the epochs.
`--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import optuna
import torch
from curves import BUDGET, searched, study_of, trials_in
from results_file import wrapped, write_section

from autoprune import searchrun
from autoprune.driver import Driver
from autoprune.progress import EndedTrial
from autoprune.searching.candidate import Score
from autoprune.searching.pareto import hypervolume
from autoprune.trialrun import TrialRun

TITLE = "How Optuna is told of stopped trials"


class TellsScores(Driver):
    """Tells the score of a stopped trial, and that the trial is infeasible."""

    def _complete(
        self, study: optuna.Study, running: TrialRun, result: Mapping[str, Any]
    ) -> EndedTrial:
        running.trial.set_constraint("early_stop", 0.0)  # each trial wants it, and only once
        return super()._complete(study, running, result)

    def _stop(self, study: optuna.Study, running: TrialRun) -> EndedTrial:
        running.trial.set_constraint("early_stop", 1.0)
        running.note(curve=running.curve, **running.attributes)
        score = Score(valid=running.curve[-1], params=running.params, macs=0, size_bytes=0)
        study.tell(running.trial, self._values(score))
        self._teller.record(running, "stopped")
        return running.ended("stopped")


WAYS = {"PRUNED": Driver, "COMPLETE and infeasible": TellsScores}


@contextmanager
def driven_by(driver: type[Driver]) -> Iterator[None]:
    searchrun.Driver = driver  # type: ignore[misc]
    try:
        yield
    finally:
        searchrun.Driver = Driver  # type: ignore[misc]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    hypervolume: float
    stopped: int
    epochs: int


def run(way: str, task: str, sampler: str, seed: int, budget: int) -> Outcome:
    study = study_of(task, seed)
    with tempfile.TemporaryDirectory() as name, driven_by(WAYS[way]):
        folder = Path(name)
        status = searched(study, folder, sampler=sampler, budget=budget)
        trials = trials_in(study.name, folder)
        candidates = [json.loads(f.read_text()) for f in folder.glob("candidates/*/candidate.json")]
    assert status.dense_valid is not None
    return Outcome(
        hypervolume=hypervolume(
            [(c["score"]["params"], c["score"]["valid"]) for c in candidates],
            dense_params=status.dense_params,
            floor=status.dense_valid / 2,
            ceiling=status.dense_valid,
        ),
        stopped=len(trials) - len(candidates),
        epochs=sum(t.user_attrs["epochs"] for t in trials),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="fashion-mlp")
    parser.add_argument("--samplers", default="tpe,nsga2")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", type=int, default=BUDGET)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    lines = [
        "| sampler | seed | told as | stopped | epochs | hypervolume |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    seeds = [int(seed) for seed in options.seeds.split(",")]
    for sampler, seed, way in product(options.samplers.split(","), seeds, WAYS):
        found = run(way, options.task, sampler, seed, options.budget)
        lines.append(
            f"| {sampler} | {seed} | {way} | {found.stopped} of {options.budget} "
            f"| {found.epochs} | {found.hypervolume:.4f} |"
        )
        print(lines[-1], flush=True)
    if options.write:
        about = (
            f"`python benchmarks/told.py --task {options.task} --samplers {options.samplers} "
            f"--seeds {options.seeds} --write`, {options.budget} trials."
        )
        write_section(TITLE, "\n".join([wrapped(about), "", *lines]))


if __name__ == "__main__":
    main()
