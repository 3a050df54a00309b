"""How Optuna should be told of a stopped trial: as PRUNED, or as COMPLETE and infeasible.

    python benchmarks/told.py [--task fashion-mlp] [--seeds 0,1,2] [--sampler tpe] [--write]

A pruned trial of several objectives teaches a sampler nothing. The other way is to tell the score
that it had when it was stopped, with a constraint `early_stop` above 0, which keeps it off the
front. Both ways run the same searches, with the same rule for stopping; compared are the fronts'
hypervolumes (dense accuracy down to half of it, 2.5 decades of parameters) and the epochs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import optuna
import torch
from curves import BUDGET, searched, study_of, trials_in

from autoprune import searchrun
from autoprune.driver import Driver
from autoprune.progress import EndedTrial
from autoprune.searching.candidate import Score
from autoprune.searching.pareto import hypervolume
from autoprune.trialrun import TrialRun

RESULTS = Path(__file__).parent / "RESULTS.md"
HEADING = "## How Optuna is told of stopped trials"


class TellsScores(Driver):
    """Tells the score of a stopped trial, and that the trial is infeasible."""

    def _start(self, running: TrialRun) -> None:
        super()._start(running)
        running.trial.set_constraint("early_stop", 0.0)

    def _stop(self, study: optuna.Study, running: TrialRun) -> EndedTrial:
        running.trial.set_constraint("early_stop", 1.0)
        self._note(running, curve=running.curve, stopped=True, **running.attributes)
        score = Score(valid=running.curve[-1], params=running.params, macs=0, size_bytes=0)
        study.tell(running.trial, self._values(score))
        self._record(running, "stopped", None)
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


def write(lines: Sequence[str], about: str) -> None:
    """Put the table into RESULTS.md, in the place of an earlier one."""
    text = RESULTS.read_text()
    before, _, rest = text.partition(f"{HEADING}\n")
    _, mark, after = rest.partition("\n## ")
    body = "\n".join(lines)
    RESULTS.write_text(f"{before.rstrip()}\n\n{HEADING}\n\n{about}\n\n{body}\n{mark}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task", default="fashion-mlp")
    parser.add_argument("--sampler", default="tpe")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--budget", type=int, default=BUDGET)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    lines = [
        "| seed | told as | stopped | epochs | hypervolume |",
        "| --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    for seed in map(int, options.seeds.split(",")):
        for way in WAYS:
            found = run(way, options.task, options.sampler, seed, options.budget)
            lines.append(
                f"| {seed} | {way} | {found.stopped} of {options.budget} | {found.epochs} "
                f"| {found.hypervolume:.4f} |"
            )
            print(lines[-1], flush=True)
    if options.write:
        write(
            lines,
            f"`python benchmarks/told.py --task {options.task} --sampler {options.sampler} "
            f"--seeds {options.seeds} --write`, {options.budget} trials.",
        )


if __name__ == "__main__":
    main()
