"""How long it takes to cost plans: parameters and MACs of 10,000 plans of a ResNet-50.

    python benchmarks/costs.py [--plans 10000] [--write]

Costs follow from the widths; the last line compares one plan with the model that is really cut.
`--write` puts the figures into RESULTS.md.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import torch
from networks import resnet50
from results_file import write_section

from autoprune.pruning.cost import CostModel
from autoprune.pruning.cut import cut
from autoprune.pruning.forward import count_params
from autoprune.pruning.graph import find_groups

TITLE = "How long costing plans takes"
ABOUT = "`python benchmarks/costs.py --write`, one thread:"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=10_000)
    parser.add_argument("--write", action="store_true", help="refresh RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = resnet50().eval()
    began = time.perf_counter()
    grouping = find_groups(model, torch.zeros(1, 3, 64, 64))
    found = time.perf_counter() - began
    cost = CostModel(grouping)
    rng = np.random.default_rng(0)
    rows = rng.integers(1, cost.channels + 1, size=(options.plans, len(cost.names)))
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        params, macs = cost.params_of(rows), cost.macs_of(rows)
        seconds.append(time.perf_counter() - began)
    widths = dict(zip(cost.names, rows[0].tolist(), strict=True))
    small = cut(model, grouping, {n: tuple(range(w)) for n, w in widths.items()})
    lines = [
        f"{count_params(model):,} parameters, {len(grouping.shapes)} tensors, "
        f"{len(grouping.groups)} groups (found in {found:.1f} s)",
        f"{options.plans:,} plans: parameters and MACs in {statistics.median(seconds):.3f} s "
        f"(median of {len(seconds)}, {min(seconds):.3f} to {max(seconds):.3f})",
        f"plan 0: {params[0]:,} parameters, really {count_params(small):,}; {macs[0]:,} MACs",
    ]
    text = "\n".join(lines)
    print(text)
    if options.write:
        write_section(TITLE, f"{ABOUT}\n\n```\n{text}\n```")


if __name__ == "__main__":
    main()
