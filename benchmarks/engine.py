"""What finding groups, costing and cutting take on a ResNet-50, beside torch-pruning's own path.

    python benchmarks/engine.py [--plans 7] [--size 224] [--write]

One thread, no training. Ours and theirs run in fresh processes, one after the other, in the same
run. `--write` puts the table into RESULTS.md. Linux only:
peaks of resident memory are the kernel's own (VmHWM, reset before each stage). Times are the
process's CPU time, which on one thread is its time on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import gc
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from results_file import wrapped, write_section
from torch import Tensor, nn

TITLE = "The engine"
PARAMS = 25_557_032
BATCHES, BATCH_SIZE = 2, 4
COSTED = 10_000
TRACE = "find groups, once"
EVIDENCE = f"evidence for all criteria, once ({BATCHES * BATCH_SIZE} images)"
L2, TAYLOR = "one plan, by L2 norm", "one plan, by Taylor"
COSTS = f"parameters and MACs of {COSTED:,} plans"

# --- the network --------------------------------------------------------------------------------


class Bottleneck(nn.Module):
    """He et al. 2016; the stride is on the 3 x 3 convolution, as in torchvision."""

    def __init__(self, inputs: int, middle: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * middle
        self.conv1 = nn.Conv2d(inputs, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.down = nn.Identity()
        if inputs != outputs:
            self.down = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        return F.relu(self.bn3(self.conv3(y)) + self.down(x))


class ResNet50(nn.Module):
    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        inputs, blocks = 64, []
        for middle, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
            for i in range(count):
                blocks.append(Bottleneck(inputs, middle, stride if i == 0 else 1))
                inputs = 4 * middle
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.fc(self.blocks(x).mean((2, 3)))


def network() -> nn.Module:
    torch.manual_seed(0)
    model = ResNet50().eval()
    params = sum(p.numel() for p in model.parameters())
    if params != PARAMS:
        raise SystemExit(f"this ResNet-50 must have {PARAMS:,} parameters, but has {params:,}")
    return model


# --- measuring, in a process of its own ---------------------------------------------------------


def memory(name: str) -> int:
    """Return an entry of this process's memory in bytes: VmRSS (now) or VmHWM (its peak)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise SystemExit("this benchmark needs Linux: /proc/self/status has no " + name)


class Stopwatch:
    """Times stages and their peaks of resident memory over what there was before each."""

    def __init__(self) -> None:
        self.found: dict[str, Any] = {}

    def measure(self, stage: str, action: Callable[[], Any], times: int = 1) -> Any:
        """Run `action`, after one untimed run if it is to be timed several `times`."""
        gc.collect()
        # What earlier stages freed must not hide what this one takes.
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
        before, seconds, result = memory("VmRSS"), [], None
        for _ in range(times + (times > 1)):
            result = None
            gc.collect()  # what one run leaves is not the next one's
            began = time.process_time()
            result = action()
            seconds.append(time.process_time() - began)
        self.found[stage] = {
            "seconds": statistics.median(seconds[-times:]),
            "peak_bytes": max(memory("VmHWM") - before, 0),
        }
        return result


def measure_ours(plans: int, size: int) -> dict[str, Any]:
    from autoprune.pruning.cost import CostModel
    from autoprune.pruning.criteria import score_groups
    from autoprune.pruning.cut import cut
    from autoprune.pruning.evidence import collect, top_channels
    from autoprune.pruning.graph import find_groups

    model, example, watch = network(), torch.randn(1, 3, size, size), Stopwatch()
    grouping = watch.measure(TRACE, lambda: find_groups(model, example))
    widths = {name: max(1, count // 2) for name, count in grouping.channels.items()}
    halved = [group.name for group in grouping.groups]

    batches = [
        (torch.randn(BATCH_SIZE, 3, size, size), torch.randint(1000, (BATCH_SIZE,)))
        for _ in range(BATCHES)
    ]

    def loss(net: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(net(batch[0]), batch[1])

    evidence = watch.measure(EVIDENCE, lambda: collect(model, grouping, batches=batches, loss=loss))

    def plan(criterion: str) -> nn.Module:
        scores = score_groups(criterion, evidence, grouping)
        return cut(model, grouping, {n: top_channels(scores[n], widths[n]) for n in halved})

    small = watch.measure(L2, lambda: plan("l2"), plans)
    params = sum(p.numel() for p in small.parameters())
    del small
    watch.measure(TAYLOR, lambda: plan("taylor"), plans)

    cost = CostModel(grouping)
    if cost.params(widths) != params:
        raise SystemExit(f"costed {cost.params(widths):,} parameters, cut to {params:,}")
    rng = np.random.default_rng(0)
    rows = rng.integers(1, cost.channels + 1, size=(COSTED, len(cost.names)))
    watch.measure(COSTS, lambda: (cost.params_of(rows), cost.macs_of(rows)))
    return {"stages": watch.found, "params": params, "groups": len(widths)}


def measure_theirs(plans: int, size: int) -> dict[str, Any]:
    import torch_pruning

    model, example, watch = network(), torch.randn(1, 3, size, size), Stopwatch()

    def build() -> Any:
        return torch_pruning.DependencyGraph().build_dependency(model, example, verbose=False)

    def plan() -> nn.Module:
        copied = copy.deepcopy(model)
        torch_pruning.pruner.MagnitudePruner(  # traces the model again
            copied,
            example,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
            pruning_ratio=0.5,
            ignored_layers=[copied.fc],
        ).step()
        return copied

    watch.measure(TRACE, build)
    small = watch.measure(L2, plan, plans)
    return {"stages": watch.found, "params": sum(p.numel() for p in small.parameters())}


# --- the table ----------------------------------------------------------------------------------


def in_a_fresh_process(who: str, plans: int, size: int) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, __file__, "--measure", who, "--plans", str(plans), "--size", str(size)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return found


def cell(found: dict[str, Any] | None, stage: str, what: str) -> str:
    if found is None or stage not in found["stages"]:
        return "-"
    value = found["stages"][stage][what]
    if what == "peak_bytes":
        return f"{value / 2**20:,.0f} MB"
    return f"{value * 1000:,.0f} ms" if value < 1 else f"{value:,.2f} s"


def table(ours: dict[str, Any], theirs: dict[str, Any] | None) -> str:
    rows = [
        "| stage | autoprune | its memory | torch-pruning | its memory |",
        "| --- | --- | --- | --- | --- |",
    ]
    for stage in (TRACE, EVIDENCE, L2, TAYLOR, COSTS):
        cells = [
            cell(found, stage, what)
            for found in (ours, theirs)
            for what in ("seconds", "peak_bytes")
        ]
        rows.append(f"| {' | '.join([stage, *cells])} |")
    return "\n".join(rows)


def section(ours: dict[str, Any], theirs: dict[str, Any] | None, *, plans: int, size: int) -> str:
    versions = f"Python {platform.python_version()}, torch {torch.__version__}"
    they = "torch-pruning is not installed"
    if theirs is not None:
        versions += f", torch-pruning {version('torch-pruning')}"
        they = f"torch-pruning's {theirs['params']:,}"
    paragraph = (
        f"`python benchmarks/engine.py --write`: ResNet-50 ({PARAMS:,} parameters, "
        f"{PARAMS * 4 / 2**20:.0f} MB) at {size} x {size} pixels, CPU time on one thread, "
        f"{versions}. A plan halves each of the {ours['groups']} groups: score, choose and cut. "
        f"Times of a plan are medians of {plans} after one more that is not counted. Memory is the "
        f"peak of resident memory over what there was before the stage, the dense model itself. "
        f"Finding groups is, for torch-pruning, to build its dependency graph, without a proof; "
        f"its plan is a deep copy and `MagnitudePruner(pruning_ratio=0.5).step()`, which "
        f"traces the model each time. Our plan has {ours['params']:,} parameters, {they}."
    )
    return f"{wrapped(paragraph)}\n\n{table(ours, theirs)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--plans", type=int, default=7, help="plans that are timed")
    parser.add_argument("--size", type=int, default=224, help="pixels on a side")
    parser.add_argument("--write", action="store_true", help="refresh RESULTS.md")
    parser.add_argument("--measure", choices=("ours", "theirs"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.measure:
        measure = measure_ours if options.measure == "ours" else measure_theirs
        print(json.dumps(measure(options.plans, options.size)))
        return
    ours = in_a_fresh_process("ours", options.plans, options.size)
    theirs = None
    if find_spec("torch_pruning"):
        theirs = in_a_fresh_process("theirs", options.plans, options.size)
    text = section(ours, theirs, plans=options.plans, size=options.size)
    print(text)
    if options.write:
        write_section(TITLE, text)


if __name__ == "__main__":
    main()
