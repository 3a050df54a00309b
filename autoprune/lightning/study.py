"""A study from a `LightningModule` and a `LightningDataModule`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from autoprune.errors import AutopruneError
from autoprune.lightning.checks import Mode, check_hooks
from autoprune.lightning.optimisers import configured_rate
from autoprune.lightning.task import Distance, LightningTask
from autoprune.pruning.forward import map_tensors
from autoprune.pruning.plan import FineTune
from autoprune.searching.space import Space
from autoprune.study import PruningStudy

EPOCHS = (4, 16)
NEAR = 3.0
"""By default learning rates within this factor of the module's own are searched."""


def study_from(
    module: nn.Module | Callable[[], nn.Module],
    datamodule: Any,
    *,
    monitor: str,
    mode: Mode | None = None,
    name: str | None = None,
    example: Any = None,
    train_epochs: int | None = None,
    space: Space | None = None,
    inputs: Callable[[Any], Any] | None = None,
    distance: Distance = "auto",
    ignore: Sequence[str] = (),
    **settings: Any,
) -> PruningStudy:
    """Make a study of a `LightningModule` and its data.

    Parameters
    ----------
    module
        The module, trained or not, or a function that builds it.
    datamodule, monitor, mode, inputs, distance
        As in `LightningTask`.
    name
        Names the study; by default the module's class in lower case.
    example
        Inputs as the module is called with them; by default its `example_input_array`, or two
        samples of the training data.
    train_epochs
        Trains the dense model for so many epochs first, by its own optimiser and rate.
    space
        What is searched; by default 4 to 16 epochs, learning rates near the module's own, and its
        dropout as it is. A plan's `lr` is the peak that the module's own schedules are scaled to;
        its `weight_decay` and `optimizer` are not used.
    ignore
        Hooks of the module's own that training may go without.
    **settings
        Of `PruningStudy`: ``checkpoint``, ``keep``, ``final_epochs``, ``seed``, ...

    Raises
    ------
    AutopruneError
        If the module lacks a hook, logs no such metric, or trains in a way that is not followed.

    Examples
    --------
    >>> study = study_from(Net(), Digits(), monitor="val_acc")  # doctest: +SKIP
    >>> autoprune.search(study, budget=50)  # doctest: +SKIP
    """
    with torch.random.fork_rng(devices=[]):
        built = module if isinstance(module, nn.Module) else module()
    check_hooks(built, ignore=ignore)
    task = LightningTask(datamodule, monitor=monitor, mode=mode, inputs=inputs, distance=distance)
    if example is None:
        example = _example(built, task)
    most = (space or Space(epochs=EPOCHS)).epochs
    epochs = train_epochs or (most if isinstance(most, int) else max(most))
    with torch.random.fork_rng(devices=[]):
        rate = configured_rate(task.check(copy.deepcopy(built), epochs=epochs))
    if rate <= 0:
        raise AutopruneError(f"The optimizer's learning rate must be above 0, but is {rate:g}.")
    if train_epochs is not None:
        settings["train"] = FineTune(epochs=train_epochs, lr=rate)
    near = Space(epochs=EPOCHS, lr=(rate / NEAR, rate * NEAR), weight_decay=0.0, dropout=None)
    return PruningStudy(
        name=name or type(built).__name__.lower(),
        model=module,
        example=example,
        task=task,
        space=space or near,
        **settings,
    )


def _example(module: Any, task: LightningTask) -> Any:
    found = getattr(module, "example_input_array", None)
    if found is None:
        batch = next(iter(task.batches("train", batch_size=2, seed=0)))
        found = map_tensors(lambda tensor: tensor[:2], batch.inputs)
    if isinstance(found, list):
        found = tuple(found)
    return map_tensors(torch.Tensor.detach, found)
