"""How much sooner two workers finish a search than one.

    python benchmarks/workers.py [--budget 24] [--repeats 3] [--write]

The built-in study with the random sampler and without early stopping, so that both searches train
the same trials for the same epochs; everything on. They run in turns, so that whatever else the
machine does meets both. `--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from results_file import wrapped, write_section

TITLE = "Two workers"
STAGES = ("dense", "search", "final", "export", "recording")
RUN = """\
import json, sys, time
import autoprune
from autoprune.progress import SilentReporter

class Clock(SilentReporter):
    seconds, stage, since = {}, "begin", time.perf_counter()
    def update(self, status):
        now = time.perf_counter()
        self.seconds[self.stage] = self.seconds.get(self.stage, 0.0) + now - self.since
        self.stage, self.since = status.stage, now

began, clock = time.perf_counter(), Clock()
result = autoprune.search(
    "digits", out=sys.argv[1], workers=int(sys.argv[2]), budget=int(sys.argv[3]),
    sampler="random", early_stop=False, reporter=clock,
)
clock.update(type("End", (), {"stage": "end"}))
epochs = json.load(open(sys.argv[1] + "/front.json"))["epochs"]
print(json.dumps({"whole": time.perf_counter() - began, "epochs": epochs, **clock.seconds}))
"""


def start(folder: Path, workers: int, budget: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", RUN, str(folder / str(workers)), str(workers), str(budget)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def result_of(process: subprocess.Popen[str]) -> dict[str, Any]:
    said, _ = process.communicate()
    assert process.returncode == 0
    found: dict[str, Any] = json.loads(said.splitlines()[-1])
    return found


def pair(budget: int, *, at_once: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the seconds of a search with one worker and of one with two, by stage."""
    with tempfile.TemporaryDirectory() as name:
        if at_once:
            both = [start(Path(name), workers, budget) for workers in (1, 2)]
            one, two = map(result_of, both)
        else:
            one, two = (result_of(start(Path(name), workers, budget)) for workers in (1, 2))
    return one, two


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--at-once", action="store_true", help="on a machine with cores to spare")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    pairs = []
    for _ in range(options.repeats):
        pairs.append(pair(options.budget, at_once=options.at_once))
        one, two = pairs[-1]
        print({name: (round(one[name], 1), round(two.get(name, 0), 1)) for name in one}, flush=True)
    lines = ["| stage | one worker | two workers | times as fast |", "| --- | --- | --- | --- |"]
    for stage in (*(s for s in pairs[0][0] if s not in ("whole", "epochs")), "whole"):
        one, two = (
            median(run.get(stage, 0.0) for run in runs) for runs in zip(*pairs, strict=True)
        )
        ratio = median(p[0].get(stage, 0.0) / max(p[1].get(stage, 0.0), 1e-9) for p in pairs)
        lines.append(f"| {stage} | {one:.1f} s | {two:.1f} s | {ratio:.2f} |")
    print("\n".join(lines))
    if options.write:
        about = (
            f"`python benchmarks/workers.py --budget {options.budget} --repeats {options.repeats} "
            f"--write`: searches of {options.budget} trials of digits with one worker and with "
            f"two, in turns; random sampler, no early stopping, so that both train the same trials "
            f"({pairs[0][0]['epochs']} and {pairs[0][1]['epochs']} epochs). Medians of seconds by "
            f"stage and of their ratios. The load of the machine's {os.cpu_count()} cores, this "
            f"included, was {os.getloadavg()[2]:.1f}."
        )
        write_section(TITLE, "\n".join([wrapped(about), "", *lines]))


if __name__ == "__main__":
    main()
