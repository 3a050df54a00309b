"""What others offer: torch-pruning, and Optuna scripts written by hand around it.

They get the same dense model, the same recipe (tuned with epochs that are not charged to them) and
the same epochs as everybody.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import optuna
from front_bench import SMALLEST, Bench, chain_length, sizes, spread
from front_grids import GRID_SIZES
from front_record import Record, size_of
from torch import nn

tp: Any = import_module("torch_pruning") if find_spec("torch_pruning") else None

FINE_STEPS = 400
"""Steps in which torch-pruning's pruner comes by a wanted size, as its own examples do."""
MOST = 0.97
"""Largest ratio of an Optuna script."""
PLAIN = {"lr": 1e-3, "batch_size": 64, "distill_weight": 0.0, "optimizer": "adamw"}
"""What a script does usually: AdamW's default learning rate and no distillation."""


def pruner(model: nn.Module, bench: Bench, **options: Any) -> Any:
    """Return torch-pruning's pruner over all but the layer that gives the outputs."""
    heads = {
        layer: module.heads
        for module in model.modules()
        if hasattr(module, "heads")
        for layer in (module.query, module.key, module.value)
    }
    # Its own defaults are shared between calls and grow.
    options |= {"in_channel_groups": {}, "out_channel_groups": {}}
    options = {"importance": tp.importance.GroupMagnitudeImportance(p=2)} | options
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.pruner.MagnitudePruner(
            model, bench.spec.example, ignored_layers=[model.head], num_heads=heads, **options
        )


def step(cutter: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cutter.step()


# --- torch-pruning ------------------------------------------------------------------------------


def narrowing(bench: Bench, **options: Any) -> Iterator[tuple[float, nn.Module]]:
    """Prune the dense model untrained in fine steps; yield the ratio and the model after each."""
    model = bench.dense()
    cutter = pruner(model, bench, pruning_ratio=1.0, iterative_steps=FINE_STEPS, **options)
    last = size_of(model)
    for number in range(1, FINE_STEPS + 1):
        step(cutter)
        if size_of(model) < last:
            last = size_of(model)
            yield number / FINE_STEPS, model


def one_shot(bench: Bench, record: Record, **options: Any) -> None:
    """12 sizes, each the first of at most that many parameters, and fine-tuned by itself."""
    wanted = sizes(min(GRID_SIZES, bench.epochs))
    found: list[nn.Module] = []
    for _, model in narrowing(bench, **options):
        while (
            len(found) < len(wanted) and size_of(model) <= wanted[len(found)] * bench.dense_params
        ):
            found.append(copy.deepcopy(model))
    if len(found) < len(wanted):
        missed = ", ".join(f"1/{1 / share:.0f}" for share in wanted[len(found) :])
        record.notes.append(f"torch-pruning gets no smaller than its last size: not {missed}")
    for number, (small, epochs) in enumerate(
        zip(found, spread(bench.epochs, len(found)), strict=True)
    ):
        valid = bench.tune(small, bench.settings(epochs), number=number)
        record.add(small, valid, epochs=epochs)


def uniform(bench: Bench, record: Record) -> None:
    one_shot(bench, record)


def global_l2(bench: Bench, record: Record) -> None:
    one_shot(bench, record, global_pruning=True)


def lamp(bench: Bench, record: Record) -> None:
    importance = tp.importance.LAMPImportance(p=2)
    one_shot(bench, record, global_pruning=True, importance=importance)


def iterative(bench: Bench, record: Record) -> None:
    """Its own iterative pruning: one model that gets smaller step by step, trained after each.

    The schedule of ratios is such that sizes are geometric, down to the smallest it can make.
    """
    steps = chain_length(bench.epochs)
    made = [(ratio, size_of(model)) for ratio, model in narrowing(bench)]
    least = made[-1][1] / bench.dense_params
    ratios = [0.0]
    for share in sizes(steps, least=least):
        limit = math.ceil(share * bench.dense_params)
        ratios.append(next(ratio for ratio, params in made if params <= limit))
    if least > SMALLEST:
        record.notes.append(f"torch-pruning gets no smaller than 1/{1 / least:.0f}")
    model = bench.dense()
    cutter = pruner(
        model,
        bench,
        pruning_ratio=1.0,
        iterative_steps=steps,
        iterative_pruning_ratio_scheduler=lambda *_: ratios,
    )
    for number, epochs in enumerate(spread(bench.epochs, steps)):
        step(cutter)
        valid = bench.tune(model, bench.settings(epochs), number=number)
        record.add(model, valid, epochs=epochs)


# --- Optuna scripts -----------------------------------------------------------------------------


def roots_of(bench: Bench) -> list[tuple[str, int]]:
    """Return name and channels of the layers whose ratio an Optuna script chooses."""
    model = bench.dense()
    cutter = pruner(model, bench)
    names = {module: name for name, module in model.named_modules()}
    groups = cutter.DG.get_all_groups(
        ignored_layers=cutter.ignored_layers, root_module_types=cutter.root_module_types
    )
    found = [group[0].dep.target.module for group in groups]
    parts = cutter.out_channel_groups  # attention heads are cut by the same number each
    return [(names[m], cutter.DG.get_out_channels(m) // parts.get(m, 1)) for m in found]


def with_ratios(
    bench: Bench, roots: Sequence[tuple[str, int]], ratios: Sequence[float]
) -> nn.Module:
    """Cut the dense model by a ratio for each root layer, at least one channel each."""
    model = bench.dense()
    by_layer = {
        # A ratio that would leave no channel makes torch-pruning skip the layer without a word.
        model.get_submodule(name): min(ratio, 1 - 1 / channels)
        for (name, channels), ratio in zip(roots, ratios, strict=True)
    }
    step(pruner(model, bench, pruning_ratio=0.0, pruning_ratio_dict=by_layer))
    return model


def optuna_script(bench: Bench, record: Record, sampler: Any, **changes: Any) -> None:
    """Ask for a ratio per layer, cut from dense, fine-tune, tell: what is usually written."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.create_study(directions=["maximize", "minimize"], sampler=sampler)
    roots = roots_of(bench)
    for number, epochs in enumerate(spread(bench.epochs, chain_length(bench.epochs))):
        trial = study.ask()
        ratios = [trial.suggest_float(name, 0.0, MOST) for name, _ in roots]
        small = with_ratios(bench, roots, ratios)
        valid = bench.tune(small, bench.settings(epochs, **changes), number=number)
        study.tell(trial, [valid, math.log10(size_of(small))])
        record.add(small, valid, epochs=epochs)


def tpe_sampler(bench: Bench) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return optuna.samplers.TPESampler(seed=bench.seed, multivariate=True)


def optuna_tpe(bench: Bench, record: Record) -> None:
    optuna_script(bench, record, tpe_sampler(bench))


def optuna_plain(bench: Bench, record: Record) -> None:
    optuna_script(bench, record, tpe_sampler(bench), **PLAIN)


def optuna_nsga2(bench: Bench, record: Record) -> None:
    optuna_script(bench, record, optuna.samplers.NSGAIISampler(seed=bench.seed, population_size=10))
