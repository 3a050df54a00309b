"""How much of a search is not training: where each trial's time goes, and what memory it takes.

    python benchmarks/overhead.py [--budget 50] [--workers 1] [--write]

Runs the digits search with everything on (journal, MLflow, pictures) but early stopping, and prints
the seconds of each part of all trials, the driver's share, and the peak memory of the processes.
With one worker, whatever is not in a worker's part is the driver's time between two trials.
`--write` puts the figures into RESULTS.md.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from pathlib import Path

import optuna
import psutil
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from results_file import wrapped, write_section

import autoprune

WORK = ("train", "evaluate")
PASSES = ("score", "calibrate")
TITLE = "What of a search is not training"


class PeakMemory:
    """Samples the resident memory of this process and its children, and keeps the peaks."""

    def __init__(self) -> None:
        self.driver = 0
        self.workers: dict[int, int] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        me = psutil.Process()
        while not self._stop.wait(0.2):
            self.driver = max(self.driver, me.memory_info().rss)
            for child in me.children():
                try:
                    if "autoprune.running.worker" in " ".join(child.cmdline()):
                        seen = self.workers.get(child.pid, 0)
                        self.workers[child.pid] = max(seen, child.memory_info().rss)
                except psutil.Error:
                    continue


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=50)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="refresh RESULTS.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, PeakMemory() as memory:
        began = time.perf_counter()
        autoprune.search(
            "digits",
            budget=options.budget,
            workers=options.workers,
            out=folder,
            early_stop=False,  # a stopped trial reports no parts
        )
        total = time.perf_counter() - began
        storage = JournalStorage(JournalFileBackend(str(Path(folder) / "study.journal")))
        study = optuna.load_study(study_name="digits", storage=storage)
        trials = study.get_trials(states=(TrialState.COMPLETE,))
    text = report(trials, options.workers, total, memory)
    print(text)
    if options.write:
        about = (
            f"`python benchmarks/overhead.py --budget {options.budget} --workers "
            f"{options.workers} --write`: trials of digits, MLflow and journal on, early stopping "
            f"off (a stopped trial reports no parts)."
        )
        write_section(TITLE, f"{wrapped(about)}\n\n```\n{text}\n```")


def report(
    trials: list[optuna.trial.FrozenTrial], workers: int, total: float, memory: PeakMemory
) -> str:
    parts: dict[str, float] = {}
    for trial in trials:
        for part, seconds in trial.user_attrs["seconds"].items():
            parts[part] = parts.get(part, 0.0) + seconds
    began = min(t.datetime_start for t in trials)  # type: ignore[type-var]
    ended = max(t.datetime_complete for t in trials)  # type: ignore[type-var]
    slots = (ended - began).total_seconds() * workers  # type: ignore[operator]
    parts["driver and idle"] = slots - sum(parts.values())
    lines = [
        f"{len(trials)} trials, {workers} worker(s), {os.cpu_count()} cores, one run",
        f"whole search, final stage and export included: {total:.1f} s wall",
        f"trials: {slots:.1f} worker-seconds",
        "",
    ]
    for part, seconds in sorted(parts.items(), key=lambda item: -item[1]):
        each = 1000 * seconds / len(trials)
        lines.append(
            f"  {part:16} {seconds:8.2f} s  {seconds / slots:6.2%}  {each:7.1f} ms a trial"
        )
    work = sum(parts[p] for p in WORK)
    passes = sum(parts[p] for p in PASSES)
    peaks = [("driver", memory.driver)]
    peaks += [(f"worker {n}", peak) for n, peak in enumerate(memory.workers.values())]
    lines += [
        "",
        f"  training and evaluation              {work / slots:6.2%}",
        f"  passes over calibration data         {passes / slots:6.2%}",
        f"  sampling, cutting, logging, storing  {1 - (work + passes) / slots:6.2%}",
        "",
        f"  peak memory: {', '.join(f'{who} {peak / 2**20:.0f} MB' for who, peak in peaks)}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
