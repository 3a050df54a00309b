"""Which method gets the best front from the same epochs: ours, torch-pruning, Optuna scripts, ...

    python benchmarks/front.py [--tasks resnet,mobile] [--methods chain,autoprune] [--seeds 0-4]
                               [--jobs 2] [--work benchmarks/front_runs] [--write] [--quick]

Every (task, method, seed) is a cell, run in a process of its own on one thread. A finished cell is
a JSON file in the work folder and is not run again, so that a run may be interrupted and gone on
with. `--write` runs nothing: it puts the tables of what is there into benchmarks/RESULTS.md and
draws benchmarks/front.svg. `--quick` shows the shape in three minutes, on digits.
"""

from __future__ import annotations

import argparse
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import front_fastnas
import front_grids
import front_peers
import front_search
import torch
from front_bench import TUNING_SEED, Bench, Work
from front_figure import draw
from front_record import Record
from front_report import TITLE, folder_of, load, muon_pairs, section, suited
from front_tasks import TASKS, check_data
from results_file import write_section

from autoprune.pruning.files import write_json
from autoprune.results.provenance import git_commit

HERE = Path(__file__).parent
FIGURE = HERE / "front.svg"
WORK, QUICK_WORK = HERE / "front_runs", Path(".benchmarks/front-quick")
QUICK, QUICK_EPOCHS = ("autoprune", "chain", "tp-uniform", "optuna-tpe"), 60
METHODS: dict[str, Callable[[Bench, Record], None]] = {
    **{name: partial(front_search.search, method=name) for name in front_search.VARIANTS},
    "chain": front_grids.full_chain,
    "chain-half": front_grids.half_chain,
    "chain-double": front_grids.double_chain,
    "eta-half": front_grids.eta_half,
    "constant-width": front_grids.constant_width,
    "tp-iterative": front_peers.iterative,
    "tp-uniform": front_peers.uniform,
    "tp-global-l2": front_peers.global_l2,
    "tp-lamp": front_peers.lamp,
    "optuna-tpe": front_peers.optuna_tpe,
    "optuna-nsga2": front_peers.optuna_nsga2,
    "optuna-plain": front_peers.optuna_plain,
    "fastnas": front_fastnas.run,
}
DENSE, RECIPE = "dense", "recipe"


@dataclass(frozen=True, kw_only=True)
class Cell:
    """Something to be computed once: a dense model, a task's recipe, or a method's run."""

    task: str
    method: str
    seed: int

    @property
    def title(self) -> str:
        return f"{self.task} {self.method} seed {self.seed}"

    def file(self, work: Work) -> Path:
        if self.method == DENSE:
            return work.dense(self.task, self.seed).with_suffix(".json")
        if self.method == RECIPE:
            return work.recipe(self.task)
        return work.cell(self.task, self.method, self.seed)


# --- one cell, in a process of its own ----------------------------------------------------------


def compute(cell: Cell, work: Work) -> None:
    torch.set_num_threads(1)
    bench = Bench(TASKS[cell.task], cell.seed, work)
    if cell.method == DENSE:
        bench.train_dense()
    elif cell.method == RECIPE:
        bench.tune_recipe()
    else:
        _ = bench.recipe, bench.about_dense  # what is missing is found out before the clock runs
        record = Record()
        METHODS[cell.method](bench, record)
        total = record.spent()
        record.read_test(bench.task)
        write_json(cell.file(work), finished(record, bench, cell.method, total=total))


def finished(
    record: Record, bench: Bench, method: str, *, total: dict[str, float]
) -> dict[str, Any]:
    """Return a cell as it is kept."""
    return {
        "task": bench.spec.name,
        "method": method,
        "seed": bench.seed,
        "budget": bench.epochs,
        "commit": git_commit(),
        "dense": bench.about_dense,
        "recipe": bench.recipe,
        "dense_recipe": asdict(bench.spec.dense),
        "total": total,
        "notes": record.notes,
        "models": record.models,
    }


def compute_alone(cell: Cell, work: Work) -> None:
    """Compute a cell unless it is finished, or another process is at it."""
    lock = cell.file(work).with_suffix(".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise SystemExit(f"{cell.title} is being computed by another process") from None
        if not cell.file(work).exists():
            compute(cell, work)


# --- all of them --------------------------------------------------------------------------------


def run_all(cells: Sequence[Cell], work: Work, *, jobs: int) -> list[str]:
    """Compute cells, `jobs` at a time; return what went wrong, one line each."""
    waiting = [cell for cell in cells if not cell.file(work).exists()]
    running: dict[subprocess.Popen[bytes], tuple[Cell, float, Path]] = {}
    faults: list[str] = []
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                cell = waiting.pop(0)
                log = work.root / "logs" / f"{cell.task}-{cell.method}-s{cell.seed}.log"
                running[started(cell, work, log)] = (cell, time.monotonic(), log)
            time.sleep(0.2)
            for process in [p for p in running if p.poll() is not None]:
                cell, since, log = running.pop(process)
                seconds = time.monotonic() - since
                if process.returncode:
                    lines = log.read_text().strip().splitlines() or ["no output"]
                    faults.append(f"{cell.title} failed: {lines[-1]} (see {log})")
                outcome = "failed" if process.returncode else "done"
                print(
                    f"{cell.title}: {outcome} in {seconds:.0f} s, {len(waiting)} wait", flush=True
                )
    finally:
        for process in running:
            with suppress(OSError):
                process.terminate()
    return faults


def started(cell: Cell, work: Work, log: Path) -> subprocess.Popen[bytes]:
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--work", str(work.root), "--cell"]
    command += [cell.task, cell.method, str(cell.seed)]
    for option, value in (("--epochs", work.epochs), ("--images", work.images)):
        command += [option, str(value)] if value else []
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with log.open("w") as file:
        return subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)


def stages(tasks: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> list[list[Cell]]:
    """Return cells in stages: dense models, recipes, and then the methods, seed by seed."""
    owners = dict.fromkeys(TASKS[t].dense_of or t for t in tasks)
    dense = [Cell(task=t, method=DENSE, seed=s) for t in owners for s in (TUNING_SEED, *seeds)]
    recipes = [Cell(task=t, method=RECIPE, seed=TUNING_SEED) for t in tasks]
    runs = dict.fromkeys(
        Cell(task=folder_of(t, m, like=TASKS[t].dense_of), method=m, seed=s)
        for t in tasks
        for s in seeds
        for m in methods
    )
    return [dense, recipes, [*runs]]


# --- the command line ---------------------------------------------------------------------------


def chosen(text: str, known: Sequence[str]) -> list[str]:
    names = [name for name in text.split(",") if name]
    odd = [name for name in names if name not in known]
    if odd:
        raise SystemExit(f"{odd[0]!r} is none of {', '.join(known)}")
    return names


def seeds_of(text: str) -> list[int]:
    """Return the seeds that ``0-4`` or ``0,2`` names."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tasks", default=",".join(TASKS), help=f"of {','.join(TASKS)}")
    parser.add_argument("--methods", default=",".join(METHODS), help="all by default")
    parser.add_argument("--seeds", default="0-4", help="such as 0-4 or 0,2")
    parser.add_argument("--jobs", type=int, default=2, help="processes at a time")
    parser.add_argument("--work", type=Path, default=WORK, help="where cells are kept")
    parser.add_argument("--epochs", type=int, help="for each method, instead of the task's own")
    parser.add_argument("--images", type=int, help="training images, instead of the task's own")
    parser.add_argument("--write", action="store_true", help="refresh RESULTS.md and front.svg")
    parser.add_argument("--quick", action="store_true", help="digits, one seed, few epochs")
    parser.add_argument("--cell", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.quick:
        options.work, options.epochs = QUICK_WORK, QUICK_EPOCHS
        options.tasks, options.methods, options.seeds = "digits", ",".join(QUICK), "0"
    work = Work(root=options.work.resolve(), epochs=options.epochs, images=options.images)
    if options.cell:
        task, method, seed = options.cell
        compute_alone(Cell(task=task, method=method, seed=int(seed)), work)
        return
    if options.work == WORK and (options.epochs or options.images):
        raise SystemExit("--epochs and --images need a --work of their own")
    tasks = chosen(options.tasks, list(TASKS))
    methods = chosen(options.methods, list(METHODS))
    seeds = seeds_of(options.seeds)
    faults: list[str] = []
    if not options.write:
        check_data(tasks)
        for stage in stages(tasks, methods, seeds):
            faults = run_all(stage, work, jobs=options.jobs)
            if faults:
                break
    titles = {name: TASKS[name].title for name in tasks}
    like = {name: TASKS[name].dense_of for name in tasks}
    results = load(work.root / "cells", titles, methods, like=like)
    text = section(results, tasks=tasks, methods=methods, seeds=seeds)
    print(text)
    if options.write:
        write_section(TITLE, text)
        if results:
            draw([suited(pair) for pair in muon_pairs(results)] or results, FIGURE)
    if faults:
        raise SystemExit("\n".join(faults))


if __name__ == "__main__":
    main()
