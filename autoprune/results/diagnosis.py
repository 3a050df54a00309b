"""What of a model can be pruned, and why the rest cannot."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from autoprune.pruning.cost import CostModel
from autoprune.pruning.groups import Blocked, ChannelGroup
from autoprune.searching.space import SearchSpace
from autoprune.study import PruningStudy


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """A channel group as people read it."""

    name: str
    channels: int
    layers: tuple[str, ...]
    """Layers that lose outputs with it."""
    params: int
    """Parameters that go if all but one of its channels go, everything else dense."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `autoprune doctor` shows."""

    study: str
    params: int
    least_params: int
    """Parameters of the smallest model the study allows."""
    macs: int
    groups: tuple[GroupRow, ...]
    blocked: tuple[Blocked, ...]

    @property
    def blocked_params(self) -> int:
        return sum(b.params for b in self.blocked)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def diagnose(study: PruningStudy) -> Diagnosis:
    """Find a study's groups and what they are worth."""
    grouping = study.find_groups(study.build())
    cost = CostModel(grouping)
    dense = grouping.channels
    params = cost.params(dense)
    groups = {g.name: g.channels for g in grouping.groups}
    space = SearchSpace(
        channels=groups, blocks=grouping.blocks, space=study.space, has_dropout=False
    )
    return Diagnosis(
        study=study.name,
        params=params,
        least_params=cost.params(space.minimum_widths()),
        macs=cost.macs(dense),
        groups=tuple(
            GroupRow(
                name=group.name,
                channels=group.channels,
                layers=_layers(group),
                params=params - cost.params({**dense, group.name: 1}),
            )
            for group in grouping.groups
        ),
        blocked=grouping.blocked,
    )


def _layers(group: ChannelGroup) -> tuple[str, ...]:
    owners = [s.tensor.rpartition(".")[0] for s in group.slices if s.role == "out"]
    return tuple(dict.fromkeys(owners))
