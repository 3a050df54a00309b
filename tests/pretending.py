"""A driver whose jobs only pretend: nothing is trained, and the loop is the real one."""

from __future__ import annotations

from typing import Any

from autoprune.driver import Driver
from autoprune.progress import SilentReporter
from autoprune.pruning.cost import CostModel
from autoprune.results.store import Store
from autoprune.results.tracking import NullTracker
from autoprune.running.executor import Done, Executor
from autoprune.searching.candidate import Score
from autoprune.searching.space import SearchSpace


def driver_on(
    executor: Executor, space: SearchSpace, cost: CostModel, store: Store, **settings: Any
) -> Driver:
    """Return a driver of a search for score and parameters that nobody hears of.

    `settings` are other arguments of `Driver`, further ones or in the place of these.
    """
    usual: dict[str, Any] = {
        "tracker": NullTracker(),
        "reporter": SilentReporter(),
        "dense": Score(valid=0.9, params=9_999, macs=1, size_bytes=1),
        "metric": "accuracy",
        "higher_is_better": True,
        "seed": 0,
        "values": lambda score: [score.valid, float(score.params)],
    }
    return Driver(space=space, cost=cost, store=store, executor=executor, **(usual | settings))


def completed(job: dict[str, Any], valid: float, cost: CostModel, store: Store) -> Done:
    """Return the end of an evaluation of the given arguments; its weights are an empty file."""
    name, plan = job["name"], job["plan"]
    store.weights(name).parent.mkdir(parents=True)
    store.weights(name).touch()
    value = {
        "valid": valid,
        "params": cost.params(plan["widths"]),
        "macs": 1,
        "size_bytes": 1,
        "seconds": {},
        "plan": plan | {"kept": {n: list(range(w)) for n, w in plan["widths"].items()}},
    }
    return Done(job=name, value=value)
