"""How long it takes to ask for a trial, by the number of groups and of earlier trials.

    python benchmarks/sampling.py [--groups 10,40,300] [--earlier 0,49,499] [--write]

Nothing is trained: earlier trials are made up, with widths at random and a score that grows with
them. Asking is the sampler's part: CPU time with the study in memory, the median of 5 trials. The
whole is to ask and to tell with the study in a journal file, as by default: seconds, the least of
5, as the machine may be busy. Beside each is how long a trial must be for that to be 2 % of it.
`--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import optuna
import torch
from optuna.storages import BaseStorage, InMemoryStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, create_trial
from results_file import wrapped, write_section
from torch import nn

from autoprune import Space
from autoprune.pruning.cost import CostModel
from autoprune.pruning.graph import find_groups
from autoprune.searching.allocation import Allocator
from autoprune.searching.history import PARAMS, VALID
from autoprune.searching.sampler import SamplerContext, make_sampler
from autoprune.searching.space import SPARSITY, SearchSpace

TITLE = "How long sampling takes"
SHARE = 0.02
REPEATS = 5
ABOUT = (
    "`python benchmarks/sampling.py --write`: a deep perceptron with so many hidden layers, each a "
    "group; earlier trials are made up. Asking is CPU time with the study in memory, median of "
    f"{REPEATS}; the whole is to ask and to tell with the study in a journal file, the least of "
    f"{REPEATS}, and most of it is the journal's writing, parameter by parameter."
)
WIDTH = 16


@dataclass(frozen=True, kw_only=True)
class Row:
    groups: int
    sampler: str
    earlier: int
    ask: float
    """CPU-seconds, the study in memory."""
    journal: float
    """Seconds to ask for a trial and tell its end, the study in a journal file."""


class Network:
    """A deep perceptron with as many groups as hidden layers, and its search space."""

    def __init__(self, groups: int) -> None:
        layers: list[nn.Module] = []
        for _ in range(groups):
            layers += [nn.Linear(WIDTH, WIDTH), nn.ReLU()]
        grouping = find_groups(nn.Sequential(*layers, nn.Linear(WIDTH, 3)), torch.zeros(2, WIDTH))
        self.cost = CostModel(grouping)
        self.allocator = Allocator(
            self.cost,
            sensitivity={g: float(i % 7) for i, g in enumerate(grouping.channels)},
            lamp={g: np.linspace(0, 1, WIDTH).tolist() for g in grouping.channels},
        )
        self.space = SearchSpace(channels=grouping.channels, space=Space(), has_dropout=False)
        assert len(grouping.groups) == groups

    def context(self, budget: int) -> SamplerContext:
        return SamplerContext(space=self.space, allocator=self.allocator, budget=budget, seed=0)

    def outcome(self, params: dict[str, object]) -> tuple[float, int]:
        """Return a made-up score and the true size of the plan that parameters ask for."""
        size = self.cost.params(self.space.widths(params))
        # Some noise that the same parameters always get.
        noise = 0.02 * np.sin(1e4 * sum(v for v in params.values() if isinstance(v, float)))
        return 1 - float(np.exp(-8 * size / self.allocator.dense_params)) + float(noise), size

    def finished(self, count: int) -> list[FrozenTrial]:
        """Return completed trials of random sizes, each group near the trial's own mean."""
        rng = np.random.default_rng(0)
        distributions = self.space.distributions
        trials = []
        for _ in range(count):
            mean = rng.uniform(0.05, 0.95)
            params = {
                name: float(np.clip(rng.normal(mean, 0.1), 0, d.high))
                if name.startswith(SPARSITY)
                else d.choices[0]
                if hasattr(d, "choices")
                else float(d.low)
                for name, d in distributions.items()
            }
            score, size = self.outcome(params)
            trials.append(
                create_trial(
                    params=params,
                    distributions=distributions,
                    values=[score, size],
                    user_attrs={VALID: score, PARAMS: size},
                )
            )
        return trials


def timed(
    network: Network, sampler: str, earlier: Sequence[FrozenTrial], storage: BaseStorage
) -> tuple[float, float]:
    """Return the median CPU-seconds of asking, and the least seconds of asking and telling."""
    study = optuna.create_study(
        storage=storage,
        directions=["maximize", "minimize"],
        sampler=make_sampler(sampler, network.context(len(earlier) + REPEATS)),
    )
    study.add_trials(earlier)
    asked, told = [], []
    for _ in range(REPEATS):
        cpu, began = time.process_time(), time.perf_counter()
        trial = study.ask(network.space.distributions)
        asked.append(time.process_time() - cpu)
        spent = time.perf_counter() - began
        score, size = network.outcome(trial.params)
        began = time.perf_counter()
        trial.set_user_attr(VALID, score)
        trial.set_user_attr(PARAMS, size)
        study.tell(trial, [score, size])
        told.append(spent + time.perf_counter() - began)
    return median(asked), min(told)


def row(network: Network, sampler: str, earlier: Sequence[FrozenTrial]) -> Row:
    ask, _ = timed(network, sampler, earlier, InMemoryStorage())
    with tempfile.TemporaryDirectory() as folder:
        backend = JournalFileBackend(str(Path(folder) / "study.journal"))
        _, whole = timed(network, sampler, earlier, JournalStorage(backend))
    return Row(
        groups=len(network.cost.groups),
        sampler=sampler,
        earlier=len(earlier),
        ask=ask,
        journal=whole,
    )


def line(found: Row) -> str:
    return (
        f"| {found.groups} | {found.sampler} | {found.earlier + 1} | {1e3 * found.ask:.1f} ms "
        f"| {found.ask / SHARE:.1f} s | {1e3 * found.journal:.0f} ms "
        f"| {found.journal / SHARE:.1f} s |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--groups", default="10,40,300")
    parser.add_argument("--earlier", default="0,49,499")
    parser.add_argument("--samplers", default="pruning,tpe,random")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
    lines = [
        "| groups | sampler | trial | asking | is 2 % of | the whole | is 2 % of |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    print("\n".join(lines))
    for groups in map(int, options.groups.split(",")):
        network = Network(groups)
        finished = network.finished(max(map(int, options.earlier.split(","))))
        for sampler in options.samplers.split(","):
            for earlier in map(int, options.earlier.split(",")):
                lines.append(line(row(network, sampler, finished[:earlier])))
                print(lines[-1], flush=True)
    if options.write:
        write_section(TITLE, "\n".join([wrapped(ABOUT), "", *lines]))


if __name__ == "__main__":
    main()
