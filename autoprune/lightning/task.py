"""The task of a `LightningDataModule`: a module's own steps train and score it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from autoprune.errors import AutopruneError
from autoprune.lightning.checks import Mode, mode_of, unlogged
from autoprune.lightning.kinds import base_of, call_step, is_own
from autoprune.lightning.listening import Heard, Stage, listening
from autoprune.lightning.metrics import known_metrics, metrics_in, set_aside
from autoprune.lightning.optimisers import OwnOptimisation, configured
from autoprune.pruning.forward import batch_size_of
from autoprune.pruning.plan import FineTune
from autoprune.training.data import LoaderSplit, unpacked
from autoprune.training.device import autocast, device_of, to_device
from autoprune.training.optimise import Optimisation
from autoprune.training.supervised import comparable, soft_divergence
from autoprune.training.task import Batch, Batches, Split

Distance = Literal["auto", "softened", "squared"]
LOADERS: Mapping[Split, str] = {
    "train": "train_dataloader",
    "valid": "val_dataloader",
    "test": "test_dataloader",
}


class LightningTask:
    """The data of a `LightningDataModule`, judged by what a module's `validation_step` logs.

    A model is trained by its own `training_step` and `configure_optimizers`, to which the distance
    to the dense model is added; both splits are scored by its `validation_step`.

    Parameters
    ----------
    datamodule
        With a training and a validation dataloader; one for test, if there is one, is scored once,
        at the end, by `validation_step` too, so that both scores are of one kind.
    monitor
        The logged metric that counts, as in Lightning's `ModelCheckpoint`.
    mode
        ``max`` or ``min``; by default what the metric's name says.
    inputs
        Takes a batch and returns what the module is called with; by default all of a tuple but its
        last entry, or all of a dict but its labels.
    distance
        How outputs are compared in distillation: ``softened`` class scores, ``squared``
        difference, or by default the first if the targets are whole numbers.

    Raises
    ------
    AutopruneError
        If a dataloader is missing, has no length or is not one, or the mode cannot be told.

    Examples
    --------
    >>> from lightning import LightningDataModule  # doctest: +SKIP
    >>> task = LightningTask(Digits(), monitor="val_acc")  # doctest: +SKIP
    """

    def __init__(
        self,
        datamodule: Any,
        *,
        monitor: str,
        mode: Mode | None = None,
        inputs: Callable[[Any], Any] | None = None,
        distance: Distance = "auto",
    ) -> None:
        base = base_of(datamodule, "LightningDataModule")
        if base is None:
            raise AutopruneError(
                f"`datamodule` must be a LightningDataModule, but is a "
                f"{type(datamodule).__name__}. Loaders make one: "
                f"LightningDataModule.from_datasets(train, val, test)."
            )
        if is_own(datamodule, base, "transfer_batch_to_device"):
            raise AutopruneError(
                f"A LightningDataModule must give batches of tensors, which are moved without it, "
                f"but {type(datamodule).__name__} has transfer_batch_to_device, which autoprune "
                f"does not call. Move what it does to on_before_batch_transfer."
            )
        if distance not in get_args(Distance):
            raise AutopruneError(
                f"`distance` must be one of {', '.join(get_args(Distance))}, but is {distance!r}."
            )
        self.metric = monitor
        self.higher_is_better = mode_of(monitor, mode) == "max"
        self._inputs = inputs
        self._datamodule = datamodule
        self._stage = Stage(datamodule=datamodule)
        self._running: OwnOptimisation | None = None
        self._splits = {
            name: self._split(name, loader)
            for name, loader in LOADERS.items()
            if name != "test" or is_own(datamodule, base, loader)
        }
        target = _target(self._first("train"))
        whole = isinstance(target, Tensor) and not target.is_floating_point()
        self._softened = distance == "softened" or (distance == "auto" and whole)

    def _split(self, name: Split, hook: str) -> LoaderSplit:
        with self._at(name) as datamodule:
            if name == "train":
                datamodule.prepare_data()
            if name != "valid":  # "fit" sets up both training and validation
                datamodule.setup("fit" if name == "train" else "test")
            loader = getattr(datamodule, hook)()
        kind = type(self._datamodule).__name__
        if isinstance(loader, (list, tuple)) and len(loader) == 1:
            loader = loader[0]
        if not isinstance(loader, DataLoader):
            raise AutopruneError(
                f"`{hook}` of {kind} must return one DataLoader, but returned a "
                f"{type(loader).__name__}. Join the datasets, e.g. by ConcatDataset."
            )
        try:
            batches = len(loader)
        except TypeError as error:
            raise AutopruneError(
                f"`{hook}` of {kind} must return a loader with a length, but its dataset is an "
                f"IterableDataset without one. Give the dataset a `__len__`."
            ) from error
        if not batches:
            raise AutopruneError(
                f"`{hook}` of {kind} must give at least one batch, but gives none."
            )
        return LoaderSplit(loader, unpack=partial(self._unpacked, name))

    @contextmanager
    def _at(self, split: Split) -> Iterator[Any]:
        """Give the datamodule, which knows meanwhile where training stands and on which split."""
        self._datamodule.trainer = self._stage
        with self._stage.during(split):
            yield self._datamodule

    def _unpacked(self, split: Split, item: Any) -> tuple[Any, Any]:
        """Return what the module is called with, and the whole batch, which its steps take."""
        with self._at(split) as datamodule:
            item = datamodule.on_before_batch_transfer(item, 0)
            item = datamodule.on_after_batch_transfer(item, 0)
        return (unpacked(item)[0] if self._inputs is None else self._inputs(item)), item

    def _first(self, split: Split) -> Any:
        """Return a split's first batch, as the datamodule gives it."""
        return next(iter(self.batches(split, batch_size=1, seed=0))).targets

    @property
    def fixed_batch_size(self) -> int | None:
        """The batch size of the training loader, which autoprune cannot change."""
        return self._splits["train"].batch_size or batch_size_of(self._first("train"))

    @property
    def has_test(self) -> bool:
        return "test" in self._splits

    def batches(self, split: Split, *, batch_size: int, seed: int | None) -> Batches:
        if split not in self._splits:
            raise AutopruneError(
                f"The datamodule must have a {LOADERS[split]} to use {split} data, but has none."
            )
        return self._splits[split].batches(batch_size, seed)

    def step(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Any]:
        module: Any = model
        number = self._stage.global_step % max(self._stage.num_training_batches, 1)
        counted = self._running is not None and self._running.counts(model)
        with (
            nullcontext() if counted else set_aside(known_metrics(model)),
            listening(module, self._stage, training=True, answers=True) as heard,
        ):
            answer = call_step(module.training_step, batch.targets, number)
        loss = answer.get("loss") if isinstance(answer, Mapping) else answer
        if not isinstance(loss, Tensor):
            raise AutopruneError(
                f"`training_step` of {type(model).__name__} must return the loss, or a dict with "
                f"'loss', but returned a {type(answer).__name__}."
            )
        return loss, heard.outputs

    def distance(self, outputs: Any, teacher: Any, temperature: float) -> Tensor:
        """Hinton et al. 2015: softened KL x T^2 for classification; else the squared difference."""
        terms = [
            soft_divergence(o, t, temperature)
            if self._softened and o.dim() > 1 and o.shape[1] > 1
            else F.mse_loss(o, t)
            for o, t in comparable(outputs, teacher)
        ]
        return torch.stack(terms).sum()

    def evaluate(self, model: nn.Module, split: Split) -> float:
        found = self.logged(model, split)
        if self.metric not in found:
            raise unlogged(self.metric, found)
        return float(found[self.metric])

    def rehearse(self, model: nn.Module, split: Split) -> None:
        """Run `validation_step` on one batch of a split; what it logs is left."""
        self.logged(model, split, most=1)

    def logged(self, model: nn.Module, split: Split, *, most: int | None = None) -> Any:
        """Return what `validation_step` logs on a split, or on its first `most` batches."""
        module: Any = model.eval()
        device = device_of(model)
        batches = self.batches(split, batch_size=1, seed=None)
        with (
            set_aside(metrics_in(model)),  # those of the epoch under way go on afterwards
            torch.inference_mode(),
            autocast(device),
            listening(module, self._stage, training=False) as heard,
        ):
            module.on_validation_start()
            module.on_validation_epoch_start()
            for number, batch in enumerate(batches):
                if number == most:
                    break
                _validate(module, to_device(batch.targets, device), number, heard)
            module.on_validation_epoch_end()
            module.on_validation_end()
            found = heard.results()
        self._stage.callback_metrics = found
        return found

    def optimisation(
        self, model: nn.Module, settings: FineTune, steps: int, extra: Sequence[dict[str, Any]]
    ) -> Optimisation:
        """Return the module's own optimiser and schedules; see `OwnOptimisation`."""
        self._stage = self._stage_of(settings.epochs, steps // max(settings.epochs, 1))
        self._running = OwnOptimisation(model, settings, extra, self._stage)
        return self._running

    def check(self, module: nn.Module, *, epochs: int = 1) -> torch.optim.Optimizer:
        """Return a module's optimiser, as a sign that it can be trained and scored.

        Parameters
        ----------
        epochs
            How many the optimiser and its schedules are made for.

        Raises
        ------
        AutopruneError
            If it logs no such metric, returns no loss, or has not one optimiser; or if a scheduler
            waits for a metric that is not logged.
        """
        if self.metric not in (found := self.logged(module, "valid", most=1)):
            raise unlogged(self.metric, found)
        batches = self.batches("train", batch_size=1, seed=0)
        self.step(module.train(), next(iter(batches)))
        optimizer, schedules = configured(module, self._stage_of(epochs, len(batches)))
        for schedule in schedules:
            schedule.check(found)
        return optimizer

    def _stage_of(self, epochs: int, batches: int) -> Stage:
        """Return where a training stands that is to take so many epochs of so many batches."""
        return Stage(
            datamodule=self._datamodule,
            max_epochs=epochs,
            num_training_batches=batches,
            estimated_stepping_batches=epochs * batches,
        )


def _target(item: Any) -> Any:
    """Return the targets of a batch; None for one of which only `inputs` knows the parts."""
    try:
        return unpacked(item)[1]
    except AutopruneError:
        return None


def _validate(module: Any, item: Any, number: int, heard: Heard) -> None:
    heard.weight = batch_size_of(item)
    module.on_validation_batch_start(item, number)
    answer = call_step(module.validation_step, item, number)
    module.on_validation_batch_end(answer, item, number)
