"""What stopping trials early saves in whole searches, and what it costs.

    python benchmarks/stopped.py [--samplers pruning,tpe] [--seeds 20,21,22] [--budget 50] [--write]

The built-in study is searched with as many trials, with stopping and without, by the same seeds.
Compared are the epochs that were trained and the fronts' validation hypervolumes (of accuracy above
0.5 and 2.5 decades of parameters). What `stopping.py` replays is what a rule would have done; here
later trials and their parents follow from what was stopped. `--write` puts the table into
RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from curves import searched, trials_in
from front_report import with_interval
from results_file import wrapped, write_section

from autoprune.searching.pareto import hypervolume
from autoprune.study import load_study

TITLE = "Stopping trials early, in whole searches"
FLOOR = 0.5
HEAD = (
    "| sampler | searches | trials stopped | epochs without | with | % saved | hypervolume without "
    "| with | difference |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    hypervolume: float
    stopped: int
    epochs: int


def run(sampler: str, seed: int, *, budget: int, early_stop: bool) -> Outcome:
    """Search the built-in study; its final stage is left out."""
    study = replace(load_study("digits"), seed=seed, device="cpu", final_epochs=0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        status = searched(study, folder, sampler=sampler, budget=budget, early_stop=early_stop)
        trials = trials_in(study.name, folder)
        candidates = [json.loads(f.read_text()) for f in folder.glob("candidates/*/candidate.json")]
    return Outcome(
        hypervolume=hypervolume(
            [(c["score"]["params"], c["score"]["valid"]) for c in candidates],
            dense_params=status.dense_params,
            floor=FLOOR,
        ),
        stopped=len(trials) - len(candidates),
        epochs=sum(t.user_attrs["epochs"] for t in trials),
    )


def row(sampler: str, pairs: Sequence[tuple[Outcome, Outcome]], *, budget: int) -> str:
    """Return a sampler's row; each pair is a search without stopping and one with it."""
    without, with_ = zip(*pairs, strict=True)
    epochs = [float(np.mean([o.epochs for o in some])) for some in (without, with_)]
    volumes = [np.array([o.hypervolume for o in some]) for some in (without, with_)]
    cells = (
        sampler,
        len(pairs),
        f"{sum(o.stopped for o in with_)} of {budget * len(pairs)}",
        f"{epochs[0]:.0f}",
        f"{epochs[1]:.0f}",
        with_interval([100 * (1 - b.epochs / a.epochs) for a, b in pairs], "+.1f"),
        *(f"{v.mean():.3f}" for v in volumes),
        with_interval(list(volumes[1] - volumes[0])),
    )
    return f"| {' | '.join(map(str, cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samplers", default="pruning,tpe")
    parser.add_argument("--seeds", default="20,21,22")
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [HEAD]
    print(HEAD)
    for sampler in options.samplers.split(","):
        pairs: list[tuple[Outcome, Outcome]] = []
        for seed in map(int, options.seeds.split(",")):
            without, with_ = (
                run(sampler, seed, budget=options.budget, early_stop=way) for way in (False, True)
            )
            pairs.append((without, with_))
            print(seed, without, with_, flush=True)
        lines.append(row(sampler, pairs, budget=options.budget))
        print(lines[-1], flush=True)
    if options.write:
        about = (
            f"`python benchmarks/stopped.py --samplers {options.samplers} --seeds {options.seeds} "
            f"--write`: the built-in study, {options.budget} trials, each search once without "
            "stopping and once with it. Epochs are means; hypervolumes are of validation; what is "
            "saved and what the difference is are paired, with 95 % intervals: positive where "
            "stopping helps."
        )
        write_section(TITLE, f"{wrapped(about)}\n\n" + "\n".join(lines))


if __name__ == "__main__":
    main()
