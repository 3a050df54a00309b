"""A trial under way: what has been heard of it, and how it is told and recorded."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from optuna.trial import Trial

from autoprune.progress import EndedTrial, RunningTrial
from autoprune.pruning.plan import Plan
from autoprune.results.notes import plan_note
from autoprune.results.records import KIND, State, TrialRecord
from autoprune.searching.attributes import RESUMED
from autoprune.searching.candidate import FINAL, Candidate, Score
from autoprune.searching.journal import together
from autoprune.searching.space import NO_SPARSIFY


@dataclass(kw_only=True)
class TrialRun:
    """One candidate's turn in the study, from its plan to its end."""

    trial: Trial
    name: str
    plan: Plan
    parent: str
    parent_epochs: int
    """Epochs along the lineage before it."""
    params: int
    may_stop: bool
    seed: int
    costs: dict[str, float] = field(default_factory=dict)
    """What it costs, by the objective's name, as far as it is known."""
    latency_spread: float | None = None
    """Interquartile range of its latency, in seconds."""
    started: float = field(default_factory=time.time)
    curve: list[float] = field(default_factory=list)
    """Validation score after the cut to its widths, then after each epoch."""
    earlier: list[float] = field(default_factory=list)
    """Scores of the wider models of earlier pruning steps, after each of their epochs."""
    losses: list[float] = field(default_factory=list)
    sparsify_curve: list[float] = field(default_factory=list)
    """Scores of its parent after each epoch with a sparsifier, if this trial trained it."""
    sparsify_cached: bool | None = None
    """Whether an earlier trial had trained it so; None if there is no sparsifier."""
    stopped: bool = False
    asked_epochs: int | None = None
    """Epochs that its parameters ask for, if the budget had fewer left."""
    counted_before: int = 0
    """Epochs that earlier attempts have on record."""
    resumed: int = 0
    """Epochs that it need not train, as an earlier attempt has."""

    @property
    def is_final(self) -> bool:
        return self.name.endswith(FINAL)

    def hear(self, value: Mapping[str, Any]) -> bool:
        """Take in what its job tells; return whether that is of a model of its plan's widths.

        The scores of wider ones are neither for its curve nor to be stopped by.
        """
        if "resumed" in value:
            at_its_widths = [self.hear(earlier) for earlier in value["resumed"]][-1]
            self.resumed = self.epochs
            return at_its_widths
        if self._hear_wider(value):
            return False
        self.curve.append(value["valid"])
        if "loss" in value:
            self.losses.append(value["loss"])
        if "latency" in value:
            self.costs["latency"] = value["latency"]
            self.latency_spread = value["latency_spread"]
        return True

    def _hear_wider(self, value: Mapping[str, Any]) -> bool:
        if "sparsify_cached" in value:
            self.sparsify_cached = value["sparsify_cached"]
        elif "sparsify" in value:
            self.sparsify_curve.append(value["valid"])
        elif "step" in value:
            self.earlier.append(value["valid"])
        else:
            return False
        return True

    def note(self, **attributes: Any) -> None:
        """Write user attributes of its trial."""
        with together(self.trial.storage):
            for name, value in attributes.items():
                self.trial.set_user_attr(name, value)

    @property
    def epochs(self) -> int:
        """Epochs of training so far: with a sparsifier, at wider steps and at its widths."""
        return len(self.sparsify_curve) + len(self.earlier) + max(len(self.curve) - 1, 0)

    @property
    def counted(self) -> int:
        """Epochs of its own that an earlier attempt has on record already."""
        return min(self.resumed, self.counted_before)

    @property
    def spent(self) -> int:
        """Epochs so far that nobody has counted before."""
        return self.epochs - self.counted

    @property
    def planned_epochs(self) -> int:
        """Epochs that it takes at most, of those that nobody has counted before."""
        sparsify = self.plan.sparsify
        return self.plan.finetune.epochs + (sparsify.epochs if sparsify else 0) - self.counted

    @property
    def work(self) -> str:
        """A digest of all that fixes what it comes to; its checkpoint has this name."""
        work = [replace(self.plan, kept=None).to_json(), self.parent, self.seed]
        return hashlib.sha256(json.dumps(work, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def attributes(self) -> dict[str, int | bool]:
        """What it took, as it is told to the study."""
        found: dict[str, int | bool] = {"epochs": self.epochs}
        if self.counted:
            found[RESUMED] = self.counted
        if self.asked_epochs is not None:
            found["asked_epochs"] = self.asked_epochs
        if self.sparsify_cached is not None:
            found["sparsify_epochs"] = len(self.sparsify_curve)
            found["sparsify_cached"] = self.sparsify_cached
        return found

    def mismatch(self, params: int) -> str | None:
        """Say what is wrong with a cut model's parameters, if they are not those of its plan."""
        # Of single weights, one that is kept may happen to be zero.
        masked = self.plan.granularity != "channel"
        if params == self.params or (masked and params < self.params):
            return None
        return (
            f"The cut model must have the {self.params} parameters that its widths imply, "
            f"but has {params}. Please report this model."
        )

    def candidate(self, result: Mapping[str, Any]) -> Candidate:
        """Return what it came to, by its job's result."""
        return Candidate(
            name=self.name,
            trial=self.trial.number,
            plan=Plan.from_json(result["plan"]),
            score=Score(
                valid=result["valid"],
                params=result["params"],
                macs=result["macs"],
                size_bytes=result["size_bytes"],
                memory=int(self.costs["memory"]),
                latency=self.costs.get("latency"),
                latency_spread=self.latency_spread,
            ),
            parent=self.parent,
            epochs=self.parent_epochs + self.plan.finetune.epochs + len(self.sparsify_curve),
            curve=tuple(self.curve),
            seed=self.seed,
            sha256=result.get("sha256"),
        )

    def standing(self) -> RunningTrial:
        """Return where it stands."""
        sparsify = self.plan.sparsify
        if sparsify is not None and self.sparsify_cached is not True and not self.curve:
            return RunningTrial(
                name=self.name,
                params=self.params,
                epoch=len(self.sparsify_curve),
                epochs=sparsify.epochs,
                valid=None,
                doing=f"{sparsify.method} on {self.parent}",
            )
        return RunningTrial(
            name=self.name,
            params=self.params,
            epoch=len(self.earlier) + max(len(self.curve) - 1, 0),
            epochs=self.plan.finetune.epochs,
            valid=self.curve[-1] if self.curve else None,
        )

    def _params(self) -> dict[str, Any]:
        """Return its parameters as they came to be: it may have been shortened."""
        ran = {
            "epochs": self.plan.finetune.epochs,
            "sparsify": self.plan.sparsify.method if self.plan.sparsify else NO_SPARSIFY,
        }
        return {name: ran.get(name, value) for name, value in self.trial.params.items()}

    def ended(self, state: State, cause: str = "") -> EndedTrial:
        """Return how it ended."""
        return EndedTrial(
            name=self.name,
            state=state,
            params=self.params,
            valid=self.curve[-1] if self.curve else None,
            parent=self.parent,
            criterion=self.plan.criterion,
            latency=self.costs.get("latency"),
            cause=cause,
            epochs=self.epochs,
        )

    def record(
        self,
        state: State,
        candidate: Candidate | None,
        *,
        cause: str,
        channels: Mapping[str, int],
        dense_params: int,
        tags: Mapping[str, str],
    ) -> TrialRecord:
        """Return it as it is logged; `candidate` is what it came to, if it is complete."""
        share = self.params / dense_params
        now = time.time()
        metrics = {"params": self.params, "params_fraction": share, "seconds": now - self.started}
        metrics |= self.attributes
        if candidate is not None:
            metrics |= {"macs": candidate.score.macs, "size_bytes": candidate.score.size_bytes}
            if candidate.score.memory is not None:
                metrics["memory_bytes"] = candidate.score.memory
        if "latency" in self.costs:
            metrics["latency_ms"] = 1e3 * self.costs["latency"]
        if self.latency_spread is not None:
            metrics["latency_spread_ms"] = 1e3 * self.latency_spread
        if self.curve:
            metrics["valid"] = self.curve[-1]
        label = f"{self.curve[-1]:.3f}" if self.curve and state != "failed" else state
        plan = candidate.plan if candidate else self.plan
        return TrialRecord(
            key=self.name,
            run_name=f"{self.name} {share:.1%} params {label}",
            state=state,
            params={**self._params(), "parent": self.parent},
            metrics=metrics,
            curves={
                "valid": self.curve[:-1],
                "loss": self.losses,
                **({"valid_earlier_steps": self.earlier} if self.earlier else {}),
                **({"valid_sparsify": self.sparsify_curve} if self.sparsify_curve else {}),
            },
            tags={
                **tags,
                KIND: "final" if self.is_final else "trial",
                **({"cause": cause} if cause else {}),
            },
            note=plan_note(plan, parent=self.parent),
            plan=plan.to_json(),
            sparsity={n: 1 - width / channels[n] for n, width in plan.widths.items()},
            started=self.started,
            ended=now,
        )


def shortened(plan: Plan, epochs: float) -> Plan:
    """Return `plan` with at most so many epochs of training; a sparsifier goes before the last one.

    >>> from autoprune.pruning.plan import FineTune
    >>> plan = Plan(widths={}, criterion="l2", finetune=FineTune(epochs=9, lr=1e-3))
    >>> shortened(plan, 4).finetune.epochs
    4
    """
    sparsify = plan.sparsify
    if sparsify is not None and sparsify.epochs >= epochs:
        sparsify = None
    left = epochs - (sparsify.epochs if sparsify else 0)
    tuning = replace(plan.finetune, epochs=int(min(plan.finetune.epochs, left)))
    return replace(plan, sparsify=sparsify, finetune=tuning)
