"""Memory of one worker over many trials of different plans.

    python benchmarks/memory.py [--study digits] [--trials 50] [--write]

`--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
from results_file import wrapped, write_section

from autoprune import jobs
from autoprune.opening import opening_for
from autoprune.pruning.plan import FineTune, Plan
from autoprune.results.store import Store
from autoprune.run import prunable_groups
from autoprune.running.executor import Failed, Progress
from autoprune.running.local import LocalExecutor
from autoprune.searching.candidate import DENSE
from autoprune.study import find_study_file, load_study
from autoprune.training.device import kernel_caches

TITLE = "Memory of a worker"
ABOUT = (
    "`python benchmarks/memory.py`: megabytes (RSS) that one worker holds after each of 50 trials "
    "of different plans on the built-in study, two epochs each, on a CPU. With torch's own caches, "
    "kernels for shapes that never come again pile up; workers keep as many as one model needs "
    "(`training.device.kernel_caches`)."
)
SHOWN = (1, 2, 5, 10, 20, 30, 40, 50)


def run(executor: LocalExecutor, function: Callable[..., Any], name: str, **arguments: Any) -> None:
    """Run one job to its end."""
    executor.submit(name, function, **arguments)
    while isinstance(event := executor.next_event(), Progress):
        executor.answer(name, go_on=True)
    assert not isinstance(event, Failed), event


def measured(study_file: Path, trials: int, environment: dict[str, str] | None) -> list[float]:
    """Return the megabytes that a worker holds after each trial."""
    study = load_study(study_file)
    grouping = prunable_groups(study, study.build())
    layers = sum(len(shape) > 1 for shape in grouping.shapes.values())
    rng, found = random.Random(0), []
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder)
        store.save_grouping(grouping)
        executor = LocalExecutor(
            opening_for(
                study_file, store, in_process=False, seed=None, criteria=None, sparsify=None
            ),
            workers=1,
            log_folder=store.logs,
            environments=[kernel_caches(layers) if environment is None else environment],
        )
        run(executor, jobs.prepare_dense, DENSE)
        for number in range(trials):
            plan = Plan(
                widths={name: rng.randint(1, count) for name, count in grouping.channels.items()},
                criterion=rng.choice(["taylor", "l2"]),
                finetune=FineTune(epochs=2, lr=1e-2, batch_size=rng.choice([16, 32, 48])),
            )
            order = {"name": f"t{number:03d}", "plan": plan.to_json(), "parent": DENSE}
            executor.submit("trial", jobs.evaluate, seed=number, **order)
            while isinstance(event := executor.next_event(), Progress):
                executor.answer("trial", go_on=True)
            assert not isinstance(event, Failed), event
            (worker,) = psutil.Process().children()
            found.append(worker.memory_info().rss / 1e6)
        executor.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--study", default="digits")
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    study = find_study_file(options.study).resolve()
    shown = [n for n in SHOWN if n <= options.trials]
    lines = [
        "| caches | " + " | ".join(f"trial {n}" for n in shown) + " | since the second |",
        "| --- |" + " --- |" * (len(shown) + 1),
    ]
    print("\n".join(lines))
    for name, environment in (("torch's own", {}), ("as workers have them", None)):
        found = measured(study, options.trials, environment)
        cells = " | ".join(f"{found[n - 1]:.1f}" for n in shown)
        lines.append(f"| {name} | {cells} | {found[-1] - found[1]:+.1f} MB |")
        print(lines[-1], flush=True)
    if options.write:
        write_section(TITLE, "\n".join([wrapped(ABOUT), "", *lines]))


if __name__ == "__main__":
    main()
