"""Training towards zero before the cut: does each sparsifier beat cutting the plain model?

    python benchmarks/sparsify.py [--epochs 10] [--seeds 0,1,2] [--write]

The dense digits network of each seed is trained once. Each sparsifier then trains a copy of it for
the same epochs, with the recipe that a search would use (the middle of the study's space,
distillation from the dense model), and the copy is cut by `l2` to the uniform widths that leave
10 % of the parameters; BatchNorm's statistics are re-estimated and the model is scored, without any
training after the cut. Two lines to compare with: the dense model cut the same way, and a copy that
was trained plainly for the same epochs. `--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from statistics import mean

import torch
from results_file import wrapped, write_section
from torch import nn

from autoprune.evaluation import RECALIBRATION_BATCH, RECALIBRATION_SAMPLES
from autoprune.pruning.cost import CostModel
from autoprune.pruning.criteria import score_groups
from autoprune.pruning.cut import cut
from autoprune.pruning.evidence import collect, top_channels
from autoprune.pruning.plan import Sparsify
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.space import middle_recipe
from autoprune.study import load_study
from autoprune.training.calibrate import recalibrate
from autoprune.training.distill import Teacher
from autoprune.training.finetune import finetune
from autoprune.training.sparsify import SPARSIFIERS, sparsify
from autoprune.training.task import Batch

SHARE = 0.1
CUT, TRAINED = "none: dense model, cut", "none: trained as long, cut"
TITLE = "Sparsifiers"


@dataclass(frozen=True, kw_only=True)
class Row:
    """Accuracies of one seed and method: before the cut, and after it."""

    whole: float
    valid: float
    test: float


class Bench:
    """The digits study at one seed: its dense model, and the uniform cut to a tenth."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.study = replace(load_study("digits"), seed=seed, device="cpu")
        self.task = self.study.task
        self.dense = self.study.build()
        for _ in finetune(self.dense, self.task, self.study.train, seed=seed):
            pass
        self.grouping = self.study.find_groups(self.dense)
        self.cost = CostModel(self.grouping)
        goal = round(SHARE * self.cost.params(self.grouping.channels))
        self.widths = Allocator(self.cost).widths(goal, Shape(eta=1.0))

    def trained(self, method: str, epochs: int) -> nn.Module:
        """Return a copy of the dense model, trained further by a method."""
        model = copy.deepcopy(self.dense)
        if method == CUT:
            return model
        recipe = replace(middle_recipe(self.study.space), epochs=epochs)
        teacher = Teacher(copy.deepcopy(self.dense), self.task)
        if method == TRAINED:
            training = finetune(model, self.task, recipe, teacher=teacher, seed=self.seed)
        else:
            training = sparsify(
                model,
                self.task,
                recipe,
                Sparsify(method=method, epochs=epochs),
                grouping=self.grouping,
                doomed=self.doomed(),
                teacher=teacher,
                seed=self.seed,
            )
        for _ in training:
            pass
        return model

    def row(self, model: nn.Module) -> Row:
        """Cut a model and score it, without training."""
        recalibrate(model, self.batches())
        small = cut(model, self.grouping, self.kept(model))
        recalibrate(small, self.batches())
        return Row(
            whole=self.task.evaluate(model, "valid"),
            valid=self.task.evaluate(small, "valid"),
            test=self.task.evaluate(small, "test"),
        )

    def kept(self, model: nn.Module) -> dict[str, tuple[int, ...]]:
        scores = score_groups("l2", collect(model, self.grouping), self.grouping)
        return {name: top_channels(scores[name], width) for name, width in self.widths.items()}

    def doomed(self) -> dict[str, list[int]]:
        """Return the channels that `l2` would remove from the dense model."""
        kept = self.kept(self.dense)
        return {
            group.name: sorted(set(range(group.channels)) - set(kept[group.name]))
            for group in self.grouping.groups
        }

    def batches(self) -> Iterator[Batch]:
        seen = 0
        for batch in self.task.batches("train", batch_size=RECALIBRATION_BATCH, seed=self.seed):
            yield batch
            seen += RECALIBRATION_BATCH
            if seen >= RECALIBRATION_SAMPLES:
                return


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--write", action="store_true", help="refresh RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    rows: dict[str, list[Row]] = {name: [] for name in (CUT, TRAINED, *SPARSIFIERS)}
    for seed in seeds:
        bench = Bench(seed)
        for name, found in rows.items():
            found.append(bench.row(bench.trained(name, options.epochs)))
            print(f"{seed} {name}: {found[-1].valid:.4f} on validation", flush=True)
    text = report(rows, seeds, options.epochs, bench)
    print(f"\n{text}\n{time.perf_counter() - began:.0f} s")
    if options.write:
        write_section(TITLE, text)


def report(rows: dict[str, list[Row]], seeds: list[int], epochs: int, bench: Bench) -> str:
    params = bench.cost.params(bench.widths)
    dense = bench.cost.params(bench.grouping.channels)
    intro = (
        f"`python benchmarks/sparsify.py --epochs {epochs} --seeds "
        f"{','.join(map(str, seeds))} --write`: the digits network, trained {epochs} epochs with "
        f"each sparsifier, then cut by `l2` to uniform widths ({params:,} of {dense:,} parameters) "
        f"and scored without training after the cut. Accuracies are means over seeds "
        f"{', '.join(map(str, seeds))}, the least of them in brackets; strengths were set on "
        f"validation with seeds 10 and 11. Beats: in how many seeds the test accuracy is above "
        f"that of the dense model cut by `l2`, and above that of the model trained as long "
        f"without a sparsifier."
    )
    lines = [
        wrapped(intro),
        "",
        "| sparsifier | valid before the cut | valid after | test after | beats cut | "
        "beats trained |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in rows.items():
        beaten = [
            "" if name in (CUT, TRAINED) else f"{sum(_wins(found, rows[other]))} of {len(seeds)}"
            for other in (CUT, TRAINED)
        ]
        shown = name if name in (CUT, TRAINED) else f"`{name}`"
        valid, test = [r.valid for r in found], [r.test for r in found]
        lines.append(
            f"| {shown} | {mean(r.whole for r in found):.4f} | {mean(valid):.4f} ({min(valid):.4f})"
            f" | {mean(test):.4f} ({min(test):.4f}) | {beaten[0]} | {beaten[1]} |"
        )
    losers = [name for name in SPARSIFIERS if not all(_wins(rows[name], rows[CUT]))]
    lines += ["", f"Do not beat plain `l2` in every seed: {', '.join(losers) or 'none'}."]
    return "\n".join(lines)


def _wins(found: list[Row], others: list[Row]) -> list[bool]:
    return [one.test > other.test for one, other in zip(found, others, strict=True)]


if __name__ == "__main__":
    main()
