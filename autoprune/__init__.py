"""autoprune: smaller PyTorch models, found by search.

Names are imported when they are first used, so that ``import autoprune`` stays quick.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from autoprune.version import VERSION

if TYPE_CHECKING:
    from autoprune.benching import bench as bench
    from autoprune.errors import AutopruneError as AutopruneError
    from autoprune.pruning.criteria import criterion as criterion
    from autoprune.pruning.group_rules import GroupRule as GroupRule
    from autoprune.pruning.group_rules import Stay as Stay
    from autoprune.pruning.group_rules import Tie as Tie
    from autoprune.pruning.group_rules import group_rule as group_rule
    from autoprune.pruning.plan import FineTune as FineTune
    from autoprune.pruning.plan import Plan as Plan
    from autoprune.replaying import replay as replay
    from autoprune.results.load import load as load
    from autoprune.results.picking import pick as pick
    from autoprune.results.result import SearchResult as SearchResult
    from autoprune.results.result import open_result as open_result
    from autoprune.run import search as search
    from autoprune.searching.space import Space as Space
    from autoprune.searching.strategy import Strategy as Strategy
    from autoprune.sensing import sensitivity as sensitivity
    from autoprune.study import PruningStudy as PruningStudy
    from autoprune.study import load_study as load_study
    from autoprune.training.regularise import Regulariser as Regulariser
    from autoprune.training.sparsify import sparsifier as sparsifier
    from autoprune.training.supervised import SupervisedTask as SupervisedTask
    from autoprune.training.task import Batch as Batch
    from autoprune.training.task import Task as Task
    from autoprune.uniform import baselines as baselines

__version__ = VERSION

_HOMES = {
    "AutopruneError": "autoprune.errors",
    "Batch": "autoprune.training.task",
    "FineTune": "autoprune.pruning.plan",
    "GroupRule": "autoprune.pruning.group_rules",
    "Plan": "autoprune.pruning.plan",
    "PruningStudy": "autoprune.study",
    "Regulariser": "autoprune.training.regularise",
    "SearchResult": "autoprune.results.result",
    "Space": "autoprune.searching.space",
    "Stay": "autoprune.pruning.group_rules",
    "Strategy": "autoprune.searching.strategy",
    "SupervisedTask": "autoprune.training.supervised",
    "Task": "autoprune.training.task",
    "Tie": "autoprune.pruning.group_rules",
    "baselines": "autoprune.uniform",
    "bench": "autoprune.benching",
    "criterion": "autoprune.pruning.criteria",
    "group_rule": "autoprune.pruning.group_rules",
    "load": "autoprune.results.load",
    "load_study": "autoprune.study",
    "open_result": "autoprune.results.result",
    "pick": "autoprune.results.picking",
    "replay": "autoprune.replaying",
    "search": "autoprune.run",
    "sensitivity": "autoprune.sensing",
    "sparsifier": "autoprune.training.sparsify",
}
__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'autoprune' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
