"""What pruning saves in latency, beside what it saves in multiply-accumulates.

    python benchmarks/latency.py [--write]

Three networks with random weights are cut to 50 % and 25 % of their parameters, every group by the
same ratio, with any widths and with multiples of 8. The dense network and its cut ones are measured
in turns, on one thread. `--write` puts the tables into RESULTS.md.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import networks
import torch
from results_file import wrapped, write_section
from torch import Tensor, nn

from autoprune.pruning.cost import CostModel
from autoprune.pruning.cut import cut
from autoprune.pruning.graph import find_groups
from autoprune.searching.allocation import Allocator, Shape
from autoprune.searching.space import SearchSpace, Space
from autoprune.training.latency import Latency, measure_together

TITLE = "Latency beside multiply-accumulates"
ABOUT = (
    "`python benchmarks/latency.py --write`: random weights, one thread, every group cut by the "
    "same ratio. The dense row is milliseconds a batch, the others are shares of the dense "
    "network's; all models of a column took turns in one run, block by block."
)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "ResNet-18, 64x64": (networks.resnet18, torch.zeros(1, 3, 64, 64)),
    "MobileNetV2, 64x64": (networks.mobilenet_v2, torch.zeros(1, 3, 64, 64)),
    "MLP, 512 inputs": (networks.mlp, torch.zeros(1, 512)),
}
SIZES = (0.5, 0.25)
ROUNDINGS = (1, 8)
ENGINES = ("eager", "onnx")
BATCHES = (1, 16)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="put the tables into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for name, (build, example) in NETWORKS.items():
        torch.manual_seed(0)
        for line in table(name, build().eval(), example):
            print(line, flush=True)
            lines.append(line)
    if options.write:
        write_section(TITLE, "\n".join([wrapped(ABOUT), "", *lines]))


def table(name: str, dense: nn.Module, example: Tensor) -> Iterator[str]:
    grouping = find_groups(dense, example)
    cost = CostModel(grouping)
    full = (cost.params(grouping.channels), cost.macs(grouping.channels))
    models: dict[str, nn.Module] = {"dense": dense}
    shares: dict[str, tuple[float, float]] = {}
    for size in SIZES:
        for rounding in ROUNDINGS:
            space = SearchSpace(
                channels=grouping.channels, space=Space(round_to=rounding), has_dropout=False
            )
            allocator = Allocator(cost, allowed=space.allowed)
            widths = allocator.widths(int(size * full[0]), Shape(eta=1.0))
            key = f"{size:.0%}, {'any width' if rounding == 1 else f'multiples of {rounding}'}"
            models[key] = cut(dense, grouping, {n: tuple(range(w)) for n, w in widths.items()})
            shares[key] = (cost.params(widths) / full[0], cost.macs(widths) / full[1])
    found = {
        (engine, batch): measure_together(models, example, engine=engine, batch_size=batch)
        for engine in ENGINES
        for batch in BATCHES
    }
    yield f"**{name}**: {full[0]:,} parameters, {full[1]:,} MACs"
    yield ""
    yield "| cut to | params | MACs | " + " | ".join(f"{e}, batch {b}" for e, b in found) + " |"
    yield "| --- " * (3 + len(found)) + "|"
    dense_cells = [f"{spread(one['dense'])}" for one in found.values()]
    yield f"| dense | 1.000 | 1.000 | {' | '.join(dense_cells)} |"
    for key, (params, macs) in shares.items():
        cells = [f"{one[key].seconds / one['dense'].seconds:.3f}" for one in found.values()]
        yield f"| {key} | {params:.3f} | {macs:.3f} | {' | '.join(cells)} |"
    yield ""


def spread(latency: Latency) -> str:
    return f"{1e3 * latency.seconds:.3f} ms (quartiles {1e3 * latency.spread:.3f} apart)"


if __name__ == "__main__":
    main()
