"""What of a model can be pruned, and why the rest cannot."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from autoprune.pruning.cost import CostModel
from autoprune.pruning.groups import Blocked, ChannelGroup, Grouping, module_of
from autoprune.searching.space import SearchSpace
from autoprune.study import PruningStudy
from autoprune.training.yardstick import Yardstick

CLEARLY = 2.0
"""By how many standard errors a model that has learnt something beats chance."""
TELLING = 0.02
"""A difference that matters, as a share of what the dense model has above chance."""
FEW = 200
"""Samples that are few, where nothing says how noisy the score is."""
REASONS = 3
"""How many reasons are named where many layers are blocked."""
UNKNOWN = "no prunable group runs through it"


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
class LayerRow:
    """A layer with parameters of its own, as people read it."""

    name: str
    groups: tuple[str, ...]
    """Groups that its own channels belong to; none for a layer whose own channels stay."""
    channels: int
    """Outputs it has: entries of its first tensor along the pruned dimension, or the first."""
    params: int
    share: float
    """Of the model's parameters."""
    reason: str
    """Why its own channels stay; empty if they need not."""
    block: str
    """The outermost residual block that may be dropped with it; empty if there is none."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """What `autoprune doctor` shows."""

    study: str
    params: int
    least_params: int
    """Parameters of the smallest model the study allows."""
    macs: int
    groups: tuple[GroupRow, ...]
    layers: tuple[LayerRow, ...]
    """Every layer that has parameters, in the model's order."""
    blocked: tuple[Blocked, ...]

    def reaches(self, params: int) -> bool:
        """Return whether the study allows a model of at most `params` parameters."""
        return self.least_params <= params

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
        least_params=cost.params(space.minimum_widths() | dict.fromkeys(grouping.blocks, 0)),
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
        layers=tuple(_layer_rows(grouping, params)),
        blocked=grouping.blocked,
    )


def mostly_blocked(grouping: Grouping) -> str | None:
    """Say so if more than half of the parameters are in blocked layers, with the largest reasons.

    A blocked layer's own channels stay; it still gets smaller where its inputs are pruned.
    """
    total = sum(math.prod(shape) for shape in grouping.shapes.values())
    blocked = sum(b.params for b in grouping.blocked)
    if not blocked > total / 2:
        return None
    by_reason: dict[str, list[Blocked]] = {}
    for layer in grouping.blocked:
        by_reason.setdefault(layer.reason, []).append(layer)
    largest = sorted(by_reason.items(), key=lambda i: -sum(b.params for b in i[1]))[:REASONS]
    parts = [
        f"{sum(b.params for b in layers) / total:.0%} because {reason} "
        f"({', '.join(b.layer for b in layers[:3])}{', ...' if len(layers) > 3 else ''})"
        for reason, layers in largest
    ]
    return (
        f"{blocked / total:.0%} of the parameters are in layers whose own channels stay: "
        f"{'; '.join(parts)}. `autoprune doctor` shows them all."
    )


def weak_ground(
    *,
    metric: str,
    higher_is_better: bool,
    valid: float,
    yardstick: Yardstick,
    calibration_samples: int,
    calibration_asked: int,
) -> list[str]:
    """Say what a search stands on that will not bear much: the dense model, or too few samples.

    A dense model no better than chance is no error: the metric may be one that a constant answer
    is good at, or the trials' own training is to teach the model.
    """
    error, chance = yardstick.standard_error, yardstick.chance
    lead = None if chance is None else (valid - chance) * (1 if higher_is_better else -1)
    notes = []
    if lead is not None and lead <= CLEARLY * (error or 0.0):
        notes.append(
            f"The dense model is not clearly better than chance: its {metric} on validation is "
            f"{valid:.4g}, and that of always giving the same answer is {chance:.4g}. "
            f"Train it first: `train=FineTune(...)` or `checkpoint=`."
        )
    else:
        notes += _noisy(metric, yardstick, scale=abs(valid if lead is None else lead))
    if calibration_samples < calibration_asked:
        notes.append(
            f"The training split has {calibration_samples:,} samples: channels are scored on all "
            f"of them, which is fewer than the usual {calibration_asked}."
        )
    return notes


def _noisy(metric: str, yardstick: Yardstick, *, scale: float) -> list[str]:
    """Say what difference validation can resolve, if that is much of the score's `scale`."""
    samples = f"The validation split has {yardstick.samples:,} samples"
    more = "Give `valid` more samples if you can."
    if yardstick.standard_error is None:
        told = f"{samples}: small differences of {metric} between models are chance. {more}"
        return [told] if yardstick.samples < FEW else []
    resolved = math.sqrt(2) * yardstick.standard_error
    if resolved <= TELLING * scale:
        return []
    least = f"{100 * resolved:.1f} points" if metric == "accuracy" else f"{resolved:.2g}"
    return [
        f"{samples}: models whose {metric} is closer than {least} (one standard error of a "
        f"difference) cannot be told apart. {more}"
    ]


def _layer_rows(grouping: Grouping, total: int) -> Iterator[LayerRow]:
    owned: dict[str, list[str]] = {}
    for tensor in grouping.shapes:
        owned.setdefault(tensor.rpartition(".")[0], []).append(tensor)
    through = {
        (piece.tensor, group.name): piece.dim
        for group in grouping.groups
        for piece in group.slices
        if piece.role == "out"
    } | {(tensor, name): 0 for name, tensor in grouping.weights.items()}
    blocks = sorted(map(module_of, grouping.blocks), key=len)
    reasons = {b.layer: b.reason for b in grouping.blocked}
    for layer, tensors in owned.items():
        pruned = [(t, name, dim) for (t, name), dim in through.items() if t in tensors]
        first, dim = (pruned[0][0], pruned[0][2]) if pruned else (tensors[0], 0)
        params = sum(math.prod(grouping.shapes[t]) for t in tensors)
        stays = next((reasons[n] for n in (layer, *tensors) if n in reasons), UNKNOWN)
        yield LayerRow(
            name=layer or "(the model itself)",
            groups=tuple(dict.fromkeys(name for _, name, _ in pruned)),
            channels=(*grouping.shapes[first], 1)[dim],
            params=params,
            share=params / max(total, 1),
            reason="" if pruned else stays,
            block=next((b for b in blocks if f"{layer}.".startswith(f"{b}.")), ""),
        )


def _layers(group: ChannelGroup) -> tuple[str, ...]:
    owners = [s.tensor.rpartition(".")[0] for s in group.slices if s.role == "out"]
    return tuple(dict.fromkeys(owners))
