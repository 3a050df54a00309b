"""The worked example: how small a layer of 96 neurons over 1,024 inputs gets, for three seeds.

    python benchmarks/neurons.py [--seeds 0 1 2] [--budget 30] [--write]

Runs `studies/neurons.py` as `autoprune search` does and takes, of the exported front, the model
that is best on validation among those of at most 32 neurons and 64 inputs. Test is only reported.
`--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from results_file import wrapped, write_section

import autoprune
from autoprune.results.result import Model, SearchResult

HERE = Path(__file__).parent
STUDY = HERE.parent / "studies" / "neurons.py"
TITLE = "Worked example: a layer of neurons"
NEURONS, INPUTS = "1", "1.inputs"
MOST = {NEURONS: 32, INPUTS: 64}
DENSE = {NEURONS: 96, INPUTS: 1_024}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A search: the dense model, the chosen one and its widths."""

    seed: int
    dense: Model
    chosen: Model
    widths: dict[str, int]
    front: int
    seconds: float

    @property
    def lost(self) -> float:
        """Points of test accuracy."""
        assert self.dense.test is not None
        assert self.chosen.test is not None
        return 100 * (self.dense.test - self.chosen.test)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--budget", type=int, default=30)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--write", action="store_true", help="refresh RESULTS.md")
    options = parser.parse_args()
    runs = [run(seed, options.budget, options.workers) for seed in options.seeds]
    text = report(runs, options.budget, options.workers)
    print(text)
    if options.write:
        write_section(TITLE, text)


def run(seed: int, budget: int, workers: int) -> Run:
    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        result = autoprune.search(STUDY, budget=budget, workers=workers, seed=seed, out=folder)
        seconds = time.perf_counter() - began
        widths = {m.name: widths_of(result, m) for m in result.front}
    small = [m for m in result.front if all(widths[m.name][g] <= n for g, n in MOST.items())]
    chosen = max(small, key=lambda m: (m.valid, -m.params))
    return Run(
        seed=seed,
        dense=result.dense,
        chosen=chosen,
        widths=widths[chosen.name],
        front=len(result.front),
        seconds=seconds,
    )


def widths_of(result: SearchResult, model: Model) -> dict[str, int]:
    """Read the widths of an exported model from its plan."""
    value = json.loads((result.out / model.path / "plan.json").read_text())
    widths: dict[str, int] = value["widths"]
    return widths


def report(runs: list[Run], budget: int, workers: int) -> str:
    rows = [
        "| seed | model | neurons | inputs | layer's weights | valid | test | points lost on test "
        "| search |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for r in runs:
        rows.append(f"| {r.seed} | dense | {shape(DENSE)} | {scores(r.dense)} | | |")
        rows.append(
            f"| {r.seed} | {r.chosen.name} of {r.front} | {shape(r.widths)} | {scores(r.chosen)} "
            f"| {r.lost:+.2f} | {r.seconds:.0f} s |"
        )
    about = (
        f"`python benchmarks/neurons.py --write`: `autoprune search studies/neurons.py --budget "
        f"{budget} --seed N`, {workers} workers on {os.cpu_count()} cores, everything on. Of the "
        f"exported front, the model that is best on validation (359 images) among those of at most "
        f"{MOST[NEURONS]} neurons and {MOST[INPUTS]} inputs; test (360 images: one is 0.28 points) "
        f"is read once. The layer's weights are float32."
    )
    return "\n".join([wrapped(about), "", *rows])


def shape(widths: dict[str, int]) -> str:
    kilobytes = 4 * widths[NEURONS] * widths[INPUTS] / 1024
    return f"{widths[NEURONS]} | {widths[INPUTS]:,} | {kilobytes:.1f} KB"


def scores(model: Model) -> str:
    return f"{model.valid:.4f} | {model.test:.4f}"


if __name__ == "__main__":
    main()
