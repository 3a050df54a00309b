"""What Muon gains over AdamW where a model is cut from the dense one and trained a few epochs.

    python benchmarks/optimizers.py [--tasks resnet,mobile] [--work benchmarks/front_runs] [--write]

On the front benchmark's tasks, with the dense model that their recipes were tuned on; it is made
if the work folder lacks it. Scores are of validation.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from front_bench import TUNING_SEED, Bench, Work, chain_length
from front_tasks import ADAMW_TASKS, TASKS, check_data
from results_file import wrapped, write_section

from autoprune.pruning.plan import OPTIMIZERS, OptimizerName
from autoprune.searching.allocation import Shape

TIMES = (4, 16, 64)
"""Times fewer parameters."""
RATES = (0.5, 1.0, 2.0)
"""Factors of the recipe's learning rate."""
REPEATS = 2
EPOCHS = 2
"""In those that a model of the chain gets."""
TITLE = "Muon or AdamW, one model at a time"
ABOUT = (
    "`python benchmarks/optimizers.py --write`: a model is cut from the dense one (eta = 0.5) and "
    "trained by the front benchmark's recipe, whose learning rate was tuned for AdamW, with the "
    f"dense model that it was tuned on. Validation accuracies in percent, means of {REPEATS} runs, "
    "at the best of three learning rates, whose factor is in brackets. Time: CPU seconds with Muon "
    "by those with AdamW, one thread."
)
HEAD = (
    "| task | size | epochs | AdamW | Muon | points | time |\n"
    "| --- | --- | --- | --- | --- | --- | --- |"
)


def row(bench: Bench, times: int) -> str:
    """Return a size's row of the table."""
    epochs = EPOCHS * (bench.epochs // chain_length(bench.epochs))
    best: dict[OptimizerName, tuple[float, float]] = {}
    seconds: dict[OptimizerName, float] = {}
    for optimizer in OPTIMIZERS:
        started = time.process_time()
        best[optimizer] = max((score(bench, times, epochs, optimizer, r), r) for r in RATES)
        seconds[optimizer] = time.process_time() - started
    told = [f"{100 * score:.1f} ({rate:g})" for score, rate in best.values()]
    gain = 100 * (best["muon"][0] - best["adamw"][0])
    ratio = seconds["muon"] / seconds["adamw"]
    cells = (bench.spec.title, f"1/{times}", epochs, *told, f"{gain:+.1f}", f"{ratio:.2f}")
    return f"| {' | '.join(map(str, cells))} |"


def score(bench: Bench, times: int, epochs: int, optimizer: OptimizerName, rate: float) -> float:
    """Return the mean validation score of some runs."""
    settings = bench.settings(epochs, optimizer=optimizer, lr=rate * bench.recipe["lr"])
    found = []
    for number in range(REPEATS):
        widths = bench.widths(1 / times, Shape(eta=0.5))
        small = bench.pruned(bench.whole(), widths, bench.recipe["criterion"])
        found.append(bench.tune(small.model, settings, number=number))
    return sum(found) / REPEATS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default=",".join(ADAMW_TASKS))
    parser.add_argument("--work", type=Path, default=Path(__file__).parent / "front_runs")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    names = options.tasks.split(",")
    check_data(names)
    table = [HEAD]
    for name in names:
        bench = Bench(TASKS[name], TUNING_SEED, Work(root=options.work))
        if not bench.dense_file.exists():
            bench.train_dense()
        for times in TIMES:
            table.append(row(bench, times))
            print(table[-1], flush=True)
    if options.write:
        write_section(TITLE, f"{wrapped(ABOUT)}\n\n" + "\n".join(table))


if __name__ == "__main__":
    main()
