"""What stands in for a Trainer while a module's own steps run, and hears what they say."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, get_args

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.lightning.metrics import is_metric
from autoprune.training.task import Split

REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": torch.sum,
    "min": torch.min,
    "max": torch.max,
}


class UnknownAttributeError(AutopruneError, AttributeError):
    """Something that a Trainer has and that stands in for it has not."""


@dataclass(kw_only=True)
class Stage:
    """What a module and its data may ask of `self.trainer`: where its training stands.

    Anything else that a Trainer has is an `AutopruneError`, which `hasattr` understands.
    """

    max_epochs: int = 1
    num_training_batches: int = 1
    estimated_stepping_batches: int = 1
    current_epoch: int = 0
    """Epochs count from 0, as in Lightning."""
    global_step: int = 0
    datamodule: Any = None
    training: bool = False
    validating: bool = False
    sanity_checking: bool = False
    testing: bool = False
    predicting: bool = False
    fast_dev_run: bool = False
    barebones: bool = False
    world_size: int = 1
    num_devices: int = 1
    global_rank: int = 0
    local_rank: int = 0
    is_global_zero: bool = True
    accumulate_grad_batches: int = 1
    logger: None = None
    loggers: tuple[()] = ()
    callbacks: tuple[()] = ()
    optimizers: list[Any] = field(default_factory=list)
    callback_metrics: dict[str, Tensor] = field(default_factory=dict)
    """What was logged in the last validation."""

    @property
    def logged_metrics(self) -> dict[str, Tensor]:
        return self.callback_metrics

    @property
    def max_steps(self) -> int:
        return self.estimated_stepping_batches

    @contextmanager
    def during(self, split: Split) -> Iterator[None]:
        """Be at work on a split: training, validating or testing."""
        before = self.training, self.validating, self.testing
        self.training, self.validating, self.testing = (split == one for one in get_args(Split))
        try:
            yield
        finally:
            self.training, self.validating, self.testing = before

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        known = ", ".join(self.__dataclass_fields__)
        raise UnknownAttributeError(
            f"A module and its data may ask `self.trainer` for {known}, but one asks for {name!r}: "
            f"autoprune trains without a Trainer. Guard it."
        )


@dataclass
class Heard:
    """What a module logged, by name, and what it answered."""

    weight: int = 1
    """Samples of the batch under way."""
    values: dict[str, list[tuple[Tensor, int]]] = field(default_factory=dict)
    reductions: dict[str, Any] = field(default_factory=dict)
    metrics: dict[str, Any] = field(default_factory=dict)
    answers: list[Any] = field(default_factory=list)
    """What `forward` returned, call by call."""
    parts: list[Any] = field(default_factory=list)
    """What the module's direct children that have weights returned."""

    @property
    def outputs(self) -> Any:
        """What distillation compares: what `forward` answered, else the last child called.

        None if neither was called.
        """
        if self.answers:
            return self.answers[0] if len(self.answers) == 1 else tuple(self.answers)
        return self.parts[-1] if self.parts else None

    def log(self, name: str, value: Any, *_: Any, **settings: Any) -> None:
        """Take what `self.log` is given, which `self.log_dict` calls, too."""
        if is_metric(value):
            self.metrics[name] = value
            return
        if isinstance(value, Mapping):
            for key, entry in value.items():
                self.log(f"{name}.{key}", entry, **settings)
            return
        tensor = torch.as_tensor(value).detach().float().mean()
        weight = settings.get("batch_size") or self.weight
        self.values.setdefault(name, []).append((tensor, weight))
        self.reductions[name] = settings.get("reduce_fx", "mean")

    def results(self) -> dict[str, Tensor]:
        """Return what was logged, over all batches: by weighted mean unless it asked otherwise."""
        found = {}
        for name, logged in self.values.items():
            values = torch.stack([value.cpu() for value, _ in logged])
            weights = torch.tensor([float(weight) for _, weight in logged])
            how = self.reductions[name]
            reduce = how if callable(how) else REDUCTIONS.get(how)
            found[name] = (
                (values * weights).sum() / weights.sum() if reduce is None else reduce(values)
            )
        for name, metric in self.metrics.items():
            found[name] = torch.as_tensor(metric.compute()).detach().float().cpu()
        return found


@contextmanager
def listening(
    model: Any, stage: Stage, *, training: bool, answers: bool = False
) -> Iterator[Heard]:
    """Let a module's own steps run: with `stage` for a Trainer, and its `log` heard.

    With `answers`, so is what it and its children answer. The module is left as it was.
    """
    heard = Heard()
    own = {name: vars(model)[name] for name in ("log", "_trainer") if name in vars(model)}
    hooks = list(_hooks(model, heard)) if answers else []
    vars(model).update(log=heard.log, _trainer=stage)
    try:
        with stage.during("train" if training else "valid"):
            yield heard
    finally:
        for hook in hooks:
            hook.remove()
        for name in ("log", "_trainer"):
            vars(model).pop(name, None)
        vars(model).update(own)


def _hooks(model: nn.Module, heard: Heard) -> Iterator[Any]:
    yield model.register_forward_hook(lambda _, __, answer: heard.answers.append(answer))
    for child in model.children():
        if any(True for _ in child.parameters()):
            yield child.register_forward_hook(lambda _, __, answer: heard.parts.append(answer))
