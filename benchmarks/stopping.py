"""What stopping trials early saves and what it costs, replayed on searches that stopped nothing.

    python benchmarks/stopping.py [--write]

Trials of `curves.py`'s searches end one after the other, as they did; each is stopped where the
rule would have stopped it, and is then no example for those that come later. Counted are the epochs
that were saved, how many members of the front (of the search that stopped nothing) would have been
stopped, and what share of that front's hypervolume is gone. The epochs that a real search saves go
to further trials; here they are lost.

The rule's numbers were set on one half of the runs; the other half, of other seeds or samplers, is
what it is judged on, and a third lot was run when it had been set. For comparison stand the same
rule with other numbers, and the first rule that there was: two finished trials of the same length
that cost no more and were 1 % better after 2, 4, 8, ... epochs. What could be saved at best is what
a rule would save that knows how trials end: it stops each after an epoch that ends no better than
a finished one that costs no more.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
from curves import DESIGN, LATER, REPORT, Run, Trial, runs_of
from results_file import wrapped, write_section

from autoprune.pruning.plan import FineTune, Plan
from autoprune.searching.candidate import DENSE, Candidate, Score
from autoprune.searching.pareto import front_of, hypervolume
from autoprune.searching.stopping import StoppingRule

TITLE = "Stopping trials early"
ABOUT = (
    "`python benchmarks/stopping.py --write`: searches of 40 trials that stopped nothing "
    "(`benchmarks/curves.py`), replayed. The rule's numbers were set on one half of the runs and "
    "are judged on the other half, on some runs of which earlier forms of it had been tried, and "
    "on runs that were made afterwards. At best: what a rule "
    "would save that stops after one epoch whatever is going to end dominated by a trial that has "
    "finished by then. Members of the front are of the search that stopped nothing; the "
    "hypervolume is lost if the saved epochs are not used, which a search with `budget_epochs` "
    "does. A front's hypervolume lies between the tenth worst and the best score of its run. The "
    "last rows have other rules: the same with other factors of the leader's error (at first and "
    "in the end; half of that from the dense model), and the first one that there was."
)
OTHERS = ((3.0, 2.0), (4.0, 2.0), (8.0, 2.0), (12.0, 2.0))
"""Other values of the rule's `behind`."""
Rule = Callable[[Candidate, int, Sequence[Candidate]], bool]
"""Says of a trial, after an epoch, whether it stops, given those that finished before."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one run, or of several in all."""

    trials: int
    stopped: int
    epochs: int
    trained: int
    needed: int
    """Epochs that a rule would train that knows how trials end."""
    front: int
    lost: int
    """Members of the front that were stopped."""
    hypervolume_lost: float
    """Share of the front's; the mean over runs."""

    def cells(self) -> str:
        return (
            f"{self.stopped} of {self.trials} | {1 - self.trained / self.epochs:.1%} "
            f"| {1 - self.needed / self.epochs:.0%} | {self.lost} of {self.front} "
            f"| {self.lost / self.front:.1%} | {self.hypervolume_lost:.2%}"
        )


def candidate(trial: Trial) -> Candidate:
    return Candidate(
        name=f"t{trial.number:03d}",
        trial=trial.number,
        plan=Plan(
            widths=trial.widths, criterion="l2", finetune=FineTune(epochs=trial.epochs, lr=1e-3)
        ),
        score=Score(valid=trial.curve[-1], params=trial.params, macs=0, size_bytes=0),
        parent=trial.parent,
        epochs=trial.epochs,
        curve=trial.curve,
    )


def rule_of(run: Run, **numbers: Any) -> Rule:
    """Return autoprune's rule, as its driver asks it."""
    rule = StoppingRule(higher_is_better=run.higher_is_better, **numbers)

    def stops(trial: Candidate, epoch: int, finished: Sequence[Candidate]) -> bool:
        return rule.dominated(
            costs={"params": trial.score.params},
            epochs=trial.plan.finetune.epochs,
            curve=trial.curve[: epoch + 1],
            completed=finished,
            inherits=trial.parent != DENSE,
        )

    return stops


def all_knowing_rule_of(run: Run) -> Rule:
    """Return the rule that stops whatever is going to end dominated by a finished trial."""
    sign = 1.0 if run.higher_is_better else -1.0

    def stops(trial: Candidate, epoch: int, finished: Sequence[Candidate]) -> bool:
        return any(
            o.score.params <= trial.score.params
            and sign * o.score.valid >= sign * trial.score.valid
            for o in finished
        )

    return stops


def former_rule_of(run: Run) -> Rule:
    """Return the first rule that there was."""
    sign = 1.0 if run.higher_is_better else -1.0

    def stops(trial: Candidate, epoch: int, finished: Sequence[Candidate]) -> bool:
        if epoch < 2 or epoch & (epoch - 1) or epoch == len(trial.curve) - 1:
            return False
        witnesses = [
            o.curve[epoch]
            for o in finished
            if len(o.curve) == len(trial.curve) and o.score.params <= trial.score.params
        ]
        better = [w for w in witnesses if sign * (w - trial.curve[epoch]) > 0.01 * abs(w)]
        return len(better) >= 2

    return stops


def replay(run: Run, rule: Rule) -> Outcome:
    """Let a run's trials end as the rule would have it."""
    trials = [candidate(t) for t in run.trials]
    finished, trained = ended(trials, rule)
    _, needed = ended(trials, all_knowing_rule_of(run))
    front = front_of(trials, higher_is_better=run.higher_is_better)
    left = {t.name for t in finished}
    return Outcome(
        trials=len(trials),
        stopped=len(trials) - len(finished),
        epochs=sum(len(t.curve) - 1 for t in trials),
        trained=trained,
        needed=needed,
        front=len(front),
        lost=sum(c.name not in left for c in front),
        hypervolume_lost=1 - volume(run, finished, trials) / volume(run, trials, trials),
    )


def ended(trials: Sequence[Candidate], rule: Rule) -> tuple[list[Candidate], int]:
    """Return the trials that a rule lets finish, and the epochs of all of them."""
    finished: list[Candidate] = []
    trained = 0
    for trial in trials:
        epochs = len(trial.curve) - 1
        stopped = next((e for e in range(1, epochs) if rule(trial, e, finished)), None)
        trained += epochs if stopped is None else stopped
        if stopped is None:
            finished.append(trial)
    return finished, trained


def volume(run: Run, some: Sequence[Candidate], every: Sequence[Candidate]) -> float:
    """Return the hypervolume of some trials, between a poor score of the run and its best one."""
    sign = 1.0 if run.higher_is_better else -1.0
    scores = [sign * t.score.valid for t in every]
    return hypervolume(
        [(t.score.params, sign * t.score.valid) for t in some],
        dense_params=run.dense_params,
        floor=float(np.quantile(scores, 0.1)),
        ceiling=max(scores) + 1e-9,
    )


def together(outcomes: Sequence[Outcome]) -> Outcome:
    fields = ("trials", "stopped", "epochs", "trained", "needed", "front", "lost")
    return Outcome(
        **{f: sum(getattr(o, f) for o in outcomes) for f in fields},
        hypervolume_lost=float(np.mean([o.hypervolume_lost for o in outcomes])),
    )


def lines_of(title: str, runs: Sequence[Run], make: Callable[[Run], Rule]) -> list[str]:
    """Return a row a task and one a sampler, and one for all."""
    outcomes = [(run, replay(run, make(run))) for run in runs]

    def row(name: str, some: Sequence[Outcome]) -> str:
        return f"| {title} | {name} | {len(some)} | {together(some).cells()} |"

    lines = []
    for part in ("task", "sampler"):
        ordered = sorted(outcomes, key=lambda o: getattr(o[0], part))
        for name, group in groupby(ordered, key=lambda o: getattr(o[0], part)):
            lines.append(row(name, [o for _, o in group]))
    return [*lines, row("**all**", [o for _, o in outcomes])]


def table() -> list[str]:
    lines = [
        "| runs | of | | stopped | epochs saved | at best | of the front | | hypervolume lost |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    design, report = runs_of(DESIGN), runs_of(REPORT)
    lines += lines_of("judged on", report, rule_of)
    lines += lines_of("made afterwards", runs_of(LATER), rule_of)[-1:]
    lines += lines_of("set on", design, rule_of)[-1:]
    for behind in OTHERS:
        name = f"{behind[0]:.0f} to {behind[1]:.0f} times"
        other = partial(rule_of, behind=behind)
        lines += lines_of(f"judged on, {name}", report, other)[-1:]
        lines += lines_of(f"set on, {name}", design, other)[-1:]
    lines += lines_of("judged on, first rule", report, former_rule_of)[-1:]
    return [*lines, *lines_of("set on, first rule", design, former_rule_of)[-1:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    lines = table()
    print("\n".join(lines))
    if options.write:
        write_section(TITLE, "\n".join([wrapped(ABOUT), "", *lines]))


if __name__ == "__main__":
    main()
