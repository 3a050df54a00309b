"""A fit: data become a study, the study is searched, and what was found is kept in memory."""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sklearn.frozen import FrozenEstimator
from torch import nn

from autoprune import run
from autoprune.errors import AutopruneError
from autoprune.pruning.cut import load_state
from autoprune.pruning.files import read_json
from autoprune.pruning.plan import FineTune, Plan
from autoprune.pruning.weights import load_tensors
from autoprune.results.exported import PLAN, read_plan
from autoprune.results.limits import Limits, gaps
from autoprune.results.picking import chosen
from autoprune.results.result import Model, SearchResult
from autoprune.results.store import Store
from autoprune.searching.candidate import DENSE
from autoprune.searching.journal import open_journal
from autoprune.searching.optuna_study import quiet_optuna
from autoprune.searching.space import Space
from autoprune.sklearn.data import Data, split
from autoprune.sklearn.networks import Moments, Network, network_of
from autoprune.sklearn.skorched import fitted_net, initialised, is_net, module_of
from autoprune.sklearn.tasks import RegressionTask, WeightedTask
from autoprune.study import PruningStudy
from autoprune.terminal import reporter_for
from autoprune.training.supervised import SupervisedTask

if TYPE_CHECKING:
    import optuna

NAME = "estimator"
STEPS = 600
"""Optimiser steps that the dense network is trained for, unless that is few or many epochs."""
FEWEST_EPOCHS, MOST_EPOCHS = 20, 100
DENSE_RATE = 3e-3
"""Peak learning rate of its training."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Order:
    """What an estimator asks for: its parameters, by their names, and what two of them mean."""

    seed: int
    workers: int
    """Worker processes; 0 for none, where this one does all."""
    module: Any
    module_params: Mapping[str, Any] | None
    budget: int
    select: str
    max_loss: float | None
    scoring: str | None
    dense_epochs: int | None
    epochs: int | tuple[int, int] | None
    final_epochs: int | None
    validation_fraction: float
    verbose: int
    out: str | Path | None
    tracking_uri: str | None
    study_params: Mapping[str, Any] | None
    search_params: Mapping[str, Any] | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Found:
    """What is left of a search in memory."""

    dense: Model
    front: tuple[Model, ...]
    chosen: Model
    network: nn.Module
    """The chosen one."""
    plan: Plan
    """What of the dense network it has."""
    zeroed: tuple[str, ...]
    """Parameters of which only what is not zero counts."""
    built_with: Mapping[str, Any]
    """What the function that builds the dense network is called with."""
    study: optuna.Study


def found_by(order: Order, data: Data) -> Found:
    """Search for smaller networks for `data`, and return what was found."""
    study, built_with = study_of(order, data)
    with ExitStack() as stack:
        out = order.out
        if out is None:
            out = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="autoprune-")))
        reporter = stack.enter_context(reporter_for(quiet=False)) if order.verbose else None
        recorded = order.tracking_uri is not None
        settings: dict[str, Any] = {
            "budget": order.budget,
            "workers": order.workers,
            "tracking_uri": order.tracking_uri if recorded else "none",
            "extras": recorded or order.out is not None,
            **(order.search_params or {}),
        }
        try:
            result = run.search(study, out=out, reporter=reporter, **settings)
        except AutopruneError as error:
            if order.out is None:
                error.add_note("The search's folder is gone; `out` names one that stays.")
            raise
        model = choice(result, order.select, order.max_loss)
        plan, zeroed = _plan(result, model)
        return Found(
            dense=result.dense,
            front=result.front,
            chosen=model,
            network=_network(result, model),
            plan=plan,
            zeroed=zeroed,
            built_with=built_with,
            study=_in_memory(result),
        )


def choice(result: SearchResult, select: str, max_loss: float | None) -> Model:
    """Return the model that `select` names of those that lose at most `max_loss` points.

    That is the dense one, where all lose more.
    """
    limits = Limits(max_loss=max_loss).meant_by(select)
    within = [m for m in result.front if not any(gaps(result, m, limits, {}))]
    return chosen(result, within, select) if within else result.dense


def study_of(order: Order, data: Data) -> tuple[PruningStudy, Mapping[str, Any]]:
    """Return what is searched for an estimator's data, and what its network is built with."""
    train, valid = split(data, order.validation_fraction, seed=order.seed)
    learnt = data.part(train)
    network = dense_network(order, learnt)
    batch_size = batch_size_for(len(train))
    dense_epochs = order.dense_epochs
    if dense_epochs is None:
        dense_epochs = 0 if network.trained else epochs_for(len(train), batch_size)
    usual = dense_epochs or epochs_for(len(train), batch_size)
    study: dict[str, Any] = {
        "name": NAME,
        "model": network.build,
        "example": torch.from_numpy(data.inputs[:2].copy()),
        "task": task_of(network, learnt, data.part(valid), scoring=order.scoring),
        "train": FineTune(epochs=dense_epochs, lr=DENSE_RATE, batch_size=batch_size)
        if dense_epochs
        else None,
        "space": space_for(order.epochs, usual=usual, batch_size=batch_size),
        "final_epochs": usual if order.final_epochs is None else order.final_epochs,
        "seed": order.seed,
    }
    return PruningStudy(**(study | dict(order.study_params or {}))), network.params


def dense_network(order: Order, data: Data) -> Network:
    """Return the dense network, a skorch net's fitted to the training data if it is not yet."""
    module = bare(order.module, lambda net: fitted_net(net, data, seed=order.seed))
    return network_of(
        module,
        order.module_params or {},
        data.shape,
        inputs=Moments.of(data.inputs, data.weights),
        targets=None if data.classes else Moments.of(data.targets, data.weights),
    )


def bare(module: Any, ready: Callable[[Any], Any] = initialised) -> Any:
    """Return the module of a skorch net, once `ready` has been at it, or `module` itself."""
    if isinstance(module, FrozenEstimator):
        module = module.estimator
    return module_of(ready(module)) if is_net(module) else module


def task_of(network: Network, train: Data, valid: Data, *, scoring: str | None) -> SupervisedTask:
    """Return the task: which loss, by what the network answers with, and which score."""
    loss = usual_loss(network, train)
    scale = Moments.of(train.targets, train.weights).scale if loss == "mse" else 1.0
    if train.weights is not None and valid.weights is not None:
        mean = train.weights.mean()
        return WeightedTask(
            train=(train.inputs, train.targets, train.weights / mean),
            valid=(valid.inputs, valid.targets, valid.weights / mean),
            loss=loss,
            scoring=scoring or ("r2" if train.classes is None else "accuracy"),
            scale=scale,
        )
    learnt, judged = (train.inputs, train.targets), (valid.inputs, valid.targets)
    if loss == "mse":
        return RegressionTask(train=learnt, valid=judged, scale=scale, scoring=scoring)
    return SupervisedTask(train=learnt, valid=judged, loss=loss, scorer=scoring)


def usual_loss(network: Network, data: Data) -> str:
    """Return the loss that goes with what the network answers.

    Raises
    ------
    ValueError
        If it does not answer with a number for each class or target.
    """
    samples = data.inputs[:2]
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        model = network.build().eval()
        answer = model(torch.from_numpy(samples.copy()))
    found = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
    wanted = data.shape.n_outputs
    plural = {(len(samples), wanted)}
    single = {(len(samples),), (len(samples), 1)}
    if data.classes is not None and found in plural:
        return "cross_entropy"
    if data.classes == 2 and found in single:
        return "bce_with_logits"
    if data.classes is None and found in (plural | single if wanted == 1 else plural):
        return "mse"
    what = "class" if data.classes is not None else "target"
    raise ValueError(
        f"The module must return a tensor of shape ({len(samples)}, {wanted}) for "
        f"{len(samples)} samples, a number for each {what}, but returned {found}."
    )


def batch_size_for(samples: int) -> int:
    """Return the usual batch size for so many samples.

    >>> batch_size_for(300), batch_size_for(1_400), batch_size_for(60_000)
    (32, 64, 128)
    """
    return 32 if samples < 1_000 else 64 if samples < 10_000 else 128


def epochs_for(samples: int, batch_size: int) -> int:
    """Return how many epochs make the usual number of steps, within bounds.

    >>> epochs_for(1_150, 64), epochs_for(60, 32), epochs_for(60_000, 128)
    (33, 100, 20)
    """
    epochs = STEPS // math.ceil(samples / batch_size)
    return min(max(epochs, FEWEST_EPOCHS), MOST_EPOCHS)


def space_for(epochs: int | tuple[int, int] | None, *, usual: int, batch_size: int) -> Space:
    """Return what is searched, for networks whose dense one trains for `usual` epochs."""
    if epochs is None:
        epochs = (max(usual // 4, 1), max(usual, 2))
    return Space(
        epochs=epochs,
        lr=(1e-3, 1e-2),
        batch_size=batch_size,
        weight_decay=(1e-4, 1e-1),
        criteria=("taylor", "fisher", "l2"),
    )


def _network(result: SearchResult, model: Model) -> nn.Module:
    """Return one of a result's networks, on the CPU, ready to answer."""
    if model.name == DENSE:
        assert result.build is not None
        weights = load_tensors(Store(result.out).weights(DENSE))
        network = load_state(result.build(), weights).eval()
    else:
        network = result.load(model.name)
    # Tensors of a file share its memory, and lie at odd places in it: kernels then add up in
    # another order, and a copy of the estimator would not answer to the last bit as it does.
    return copy.deepcopy(network)


def _plan(result: SearchResult, model: Model) -> tuple[Plan, tuple[str, ...]]:
    """Return what a model of a result has of the dense one, and which of its weights are zero."""
    if model.name == DENSE:
        groups = Store(result.out).load_grouping()
        return Plan(
            widths=groups.channels, criterion="none", finetune=FineTune(epochs=0, lr=0.0)
        ), ()
    file = result.out / model.path / PLAN
    return Plan.from_json(read_json(file)), read_plan(file).zeroed


def _in_memory(result: SearchResult) -> optuna.Study:
    """Copy a search's Optuna study out of its folder."""
    import optuna

    memory = optuna.storages.InMemoryStorage()
    with quiet_optuna():
        optuna.copy_study(
            from_study_name=result.study,
            from_storage=open_journal(Store(result.out).journal),
            to_storage=memory,
        )
        return optuna.load_study(study_name=result.study, storage=memory)
