"""How to search, as opposed to what."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from optuna.samplers import BaseSampler

from autoprune.errors import AutopruneError, Rules, check_values
from autoprune.results.mlflow_registry import check_name
from autoprune.searching.sampler import check_sampler
from autoprune.searching.strategy import Strategy
from autoprune.training.latency import check_engine

Objective = Literal["pareto", "weighted"]
Engine = Literal["local", "ray"]

LONGEST_NAME = 200
"""Of a study that is joined: Optuna's tables have room for little more."""
DEFAULT_BUDGET = 50
"""Trials of a search that is given no bound."""


SETTINGS_RULES: Rules = {
    "tracking_uri": (
        lambda v: v is None or bool(str(v).strip()),
        "an MLflow tracking URI, 'none', or left out for a database in the output folder",
    ),
    "experiment": (
        lambda v: isinstance(v, str) and bool(v.strip()),
        "the name of an MLflow experiment",
    ),
}


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How to search, as opposed to what.

    Raises
    ------
    AutopruneError
        If a value breaks its rule.
    """

    budget: int | None = None
    """Trials that end as complete or stopped: 50, or as many as `budget_epochs` allows."""
    budget_epochs: int | None = None
    """Epochs that the search trains in all: fine-tuning, sparsifiers, stopped and failed trials and
    the final stage; not the dense model's."""
    timeout: float | None = None
    """Seconds after which no new trial begins."""
    trial_timeout: float | None = None
    """Seconds that a trial may take; its worker is ended then, and it is tried again at most twice.
    The time that a new worker takes to load the study does not count."""
    workers: int | Literal["auto"] = "auto"
    """Worker processes; ``auto`` is one per core (or GPU), 0 runs trials in this process. On Ray
    ``auto`` is as many as the cluster's nodes have room for."""
    engine: Engine = "local"
    """Where trials run: in worker processes of this machine, or on a Ray cluster."""
    address: str | None = None
    """The Ray cluster's: ``host:port``, ``ray://host:port``, or ``auto`` for the one that this
    machine is a node of. Without it, what ``RAY_ADDRESS`` says, or one of this machine's own."""
    cpus_per_trial: float = 1.0
    """CPUs that a trial takes of a node of the Ray cluster, and as many threads."""
    gpus_per_trial: float = 0.0
    """GPUs that it takes; 0.5 is two trials a GPU, 0 hides them."""
    sampler: str | BaseSampler = "pruning"
    """What proposes trials: ``pruning`` (ours), Optuna's ``tpe``, ``nsga2``, ``gp`` or ``random``,
    or any sampler object."""
    strategy: Strategy = field(default_factory=Strategy)
    """How the sampler ``pruning`` spends the budget."""
    objectives: str | Sequence[str] = ("accuracy", "params")
    """The score (``accuracy``, ``score`` or the metric's name) and at least one of ``params``,
    ``macs``, ``size``, ``memory`` and ``latency``; with commas between them, or in a sequence."""
    latency_engine: str = "eager"
    """What latency is measured by: ``eager``, ``compile`` or ``onnx``."""
    latency_batch: int = 1
    """Samples in the batch that latency is measured on."""
    objective: Objective = "pareto"
    """``pareto`` for a front, ``weighted`` for one number per trial."""
    accuracy_weight: float = 0.8
    """Weight of the score against the share of parameters removed, for ``weighted``."""
    early_stop: bool | None = None
    """Whether trials that are clearly dominated are stopped early. By default those of any sampler
    but ours, which proposes hardly any: stopping them saved little, and bought nothing."""
    inherit: bool = True
    """Whether trials are cut from what earlier ones trained; else each from the dense model."""
    storage: str | None = field(default=None, repr=False)
    """An Optuna storage URL; by default a journal file in the output folder."""
    join: str | None = None
    """A name under which drivers with folders of their own share one study in `storage`."""
    tracking_uri: str | None = field(default=None, repr=False)
    """An MLflow tracking URI; by default a database in the output folder; ``none`` for none."""
    experiment: str = "autoprune"
    """The MLflow experiment that the search's runs belong to."""
    register: str | None = None
    """Name in MLflow's model registry that the front's models become versions of, with the aliases
    ``smallest``, ``knee`` and ``best``."""
    extras: bool = True
    """Whether the search leaves more than its models' weights and plans, which are reloaded and
    compared in any case: programs (``model.pt2``, ``model.onnx``) that are proved in a process of
    their own, the front's times, pictures, and which groups hurt."""

    @property
    def stops_early(self) -> bool:
        """Whether clearly dominated trials are stopped: as asked, or as suits the sampler."""
        return self.sampler != "pruning" if self.early_stop is None else self.early_stop

    def __post_init__(self) -> None:
        names = self.objectives
        if isinstance(names, str):
            names = [name.strip() for name in names.split(",") if name.strip()]
        object.__setattr__(self, "objectives", tuple(names))
        check_engine(self.latency_engine)
        if type(self.latency_batch) is not int or self.latency_batch < 1:
            raise AutopruneError(
                f"`latency_batch` must be a whole number of at least 1, "
                f"but is {self.latency_batch!r}."
            )
        check_values(self, SETTINGS_RULES)
        if self.budget is None and self.budget_epochs is None:
            object.__setattr__(self, "budget", DEFAULT_BUDGET)
        _check_count("budget", self.budget, "trial")
        _check_count("budget_epochs", self.budget_epochs, "epoch")
        self._check_join()
        if self.timeout is not None and not self.timeout > 0:
            raise AutopruneError(f"`timeout` must be more than 0 seconds, but is {self.timeout}.")
        if self.trial_timeout is not None and not self.trial_timeout > 0:
            raise AutopruneError(
                f"`trial_timeout` must be more than 0 seconds, but is {self.trial_timeout}."
            )
        if self.trial_timeout is not None and self.workers == 0:
            raise AutopruneError(
                "`trial_timeout` must go with worker processes, which can be ended, but `workers` "
                "is 0. Use workers=1."
            )
        if self.workers != "auto" and (not isinstance(self.workers, int) or self.workers < 0):
            raise AutopruneError(
                f"`workers` must be 'auto' or at least 0, but is {self.workers!r}."
            )
        self._check_engine()
        self._check_register()
        if isinstance(self.sampler, str):
            check_sampler(self.sampler)
        if self.objective not in ("pareto", "weighted"):
            raise AutopruneError(
                f"`objective` must be 'pareto' or 'weighted', but is {self.objective!r}."
            )
        if not 0 <= self.accuracy_weight <= 1:
            raise AutopruneError(
                f"`accuracy_weight` must be between 0 and 1, but is {self.accuracy_weight}."
            )

    def _check_join(self) -> None:
        if self.join is None:
            return
        if self.storage is None:
            raise AutopruneError(
                "`join` must go with a database that all drivers reach, but `storage` is not "
                "given. Add --storage postgresql://user@host/database."
            )
        if not self.join.strip() or len(self.join) > LONGEST_NAME:
            raise AutopruneError(
                f"`join` must be a name of 1 to {LONGEST_NAME} characters, but is {self.join!r}."
            )
        if self.budget_epochs is not None:
            raise AutopruneError(
                "`budget_epochs` must be one driver's own, but with `join` a budget is shared. "
                "Use --budget, which counts the trials of all drivers."
            )

    def _check_engine(self) -> None:
        if self.engine not in ("local", "ray"):
            raise AutopruneError(f"`engine` must be 'local' or 'ray', but is {self.engine!r}.")
        if self.engine == "ray":
            if self.workers == 0:
                raise AutopruneError(
                    "`workers` must be 'auto' or at least 1 with the engine ray, but is 0."
                )
            if not (self.cpus_per_trial > 0 and self.gpus_per_trial >= 0):
                raise AutopruneError(
                    f"`cpus_per_trial` must be more than 0 and `gpus_per_trial` at least 0, but "
                    f"they are {self.cpus_per_trial:g} and {self.gpus_per_trial:g}."
                )
        elif self.address is not None or (self.cpus_per_trial, self.gpus_per_trial) != (1, 0):
            raise AutopruneError(
                "`address`, `cpus_per_trial` and `gpus_per_trial` must go with the engine ray, "
                "but the engine is local. Add --engine ray."
            )

    def _check_register(self) -> None:
        if self.register is None:
            return
        check_name(self.register)
        if self.tracking_uri == "none":
            raise AutopruneError(
                "`register` must go with MLflow, but `tracking_uri` is 'none'. Leave out one."
            )
        if not self.extras:
            raise AutopruneError(
                "`register` must go with programs, which MLflow loads, but `extras` is False. "
                "Leave out one."
            )

    @property
    def latency(self) -> dict[str, Any]:
        """How latency is measured, as jobs take it."""
        return {"engine": self.latency_engine, "batch_size": self.latency_batch}

    def worker_count(self) -> int:
        """Return how many worker processes there are on this machine."""
        if self.workers != "auto":
            return self.workers
        import torch

        return torch.cuda.device_count() or len(os.sched_getaffinity(0))


def _check_count(name: str, value: Any, unit: str) -> None:
    if value is not None and (type(value) is not int or value < 1):
        raise AutopruneError(
            f"`{name}` must be a whole number of at least 1 {unit}, but is {value!r}."
        )
