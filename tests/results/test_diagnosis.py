"""What `doctor` says: every layer, what blocks it, and whether a size can be reached."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS, build
from torch import nn

from autoprune import PruningStudy, Space, SupervisedTask
from autoprune.pruning.cost import CostModel
from autoprune.pruning.cut import cut
from autoprune.pruning.forward import count_params
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Blocked, ChannelGroup, Grouping, restrict
from autoprune.results.diagnosis import diagnose, mostly_blocked, weak_ground
from autoprune.training.yardstick import Yardstick, share_error


def study_of(name: str, **more: Any) -> PruningStudy:
    model, example = build(name)
    data = (torch.zeros(4, 3), torch.zeros(4, dtype=torch.long))
    task = SupervisedTask(train=data, valid=data)
    return PruningStudy(name="s", model=model, example=example, task=task, **more)


@pytest.mark.parametrize("name", NETS)
def test_every_layer_with_parameters_is_listed_once(name: str) -> None:
    study = study_of(name)
    found = diagnose(study)
    owners = {n: m for n, m in study.build().named_modules() if list(m.parameters(recurse=False))}
    assert {layer.name for layer in found.layers} == set(owners)
    assert len(found.layers) == len(owners)
    for layer in found.layers:
        assert layer.params == sum(p.numel() for p in owners[layer.name].parameters(recurse=False))
        assert bool(layer.groups) != bool(layer.reason)
    assert sum(layer.params for layer in found.layers) == found.params
    assert sum(layer.share for layer in found.layers) == pytest.approx(1)
    blocked = {b.layer: b.reason for b in found.blocked}
    assert {n.name: n.reason for n in found.layers if n.reason} == blocked


def test_a_layer_says_which_group_it_belongs_to_and_how_many_channels_it_has() -> None:
    layers = {layer.name: layer for layer in diagnose(study_of("residual")).layers}
    assert layers["conv2"].groups == layers["bn"].groups == ("stem",)
    assert layers["conv1"].groups == ("conv1",)
    assert layers["shortcut"].channels == 16
    assert layers["head"].channels == 3
    assert layers["head"].reason
    concatenated = {layer.name: layer for layer in diagnose(study_of("dense")).layers}
    assert concatenated["norms.2"].groups == ("stem", "convs.0", "convs.1")
    assert concatenated["norms.2"].channels == 14


def test_kept_layers_say_so() -> None:
    found = diagnose(study_of("residual", keep=["conv1"]))
    (layer,) = [layer for layer in found.layers if layer.name == "conv1"]
    assert layer.groups == ()
    assert layer.reason == "kept by 'conv1'"


@given(round_to=st.sampled_from([1, 3, 4]), fewest=st.integers(1, 5))
def test_the_smallest_size_is_that_of_a_model_that_can_be_cut(round_to: int, fewest: int) -> None:
    study = study_of("residual", space=Space(round_to=round_to, min_width=fewest))
    found = diagnose(study)
    grouping = find_groups(study.build(), study.example)
    narrowest = -(-fewest // round_to) * round_to
    kept = {n: tuple(range(min(c, narrowest))) for n, c in grouping.channels.items()}
    smallest = count_params(cut(study.build(), grouping, kept))
    assert found.least_params == smallest
    assert found.reaches(smallest)
    assert not found.reaches(smallest - 1)


def test_blocks_that_may_be_dropped_count_for_the_smallest_size() -> None:
    plain = diagnose(study_of("residual"))
    deep = diagnose(study_of("residual", space=Space(depth=True)))
    assert all(layer.block == "" for layer in plain.layers)
    assert deep.least_params <= plain.least_params
    grouping = study_of("residual", space=Space(depth=True)).find_groups(build("residual")[0])
    inside = {layer.name for layer in deep.layers if layer.block}
    assert bool(inside) == bool(grouping.blocks)


class Blocks(nn.Module):
    """A residual block that is a module of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 8)
        self.block = Add()
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.block(self.stem(x).relu()))


class Add(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 12)
        self.down = nn.Linear(12, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(x).relu())


def test_layers_of_a_block_say_that_it_may_be_dropped() -> None:
    data = (torch.zeros(4, 6), torch.zeros(4, dtype=torch.long))
    study = PruningStudy(
        name="s",
        model=Blocks,
        example=torch.zeros(2, 6),
        task=SupervisedTask(train=data, valid=data),
        space=Space(depth=True),
    )
    found = diagnose(study)
    assert {layer.name: layer.block for layer in found.layers} == {
        "stem": "",
        "block.up": "block",
        "block.down": "block",
        "head": "",
    }
    stem, head = 6 + 1, 3 + 3
    assert found.least_params == stem + head


def test_a_block_that_may_not_be_dropped_stays_when_its_model_is_cut() -> None:
    data = (torch.zeros(4, 6), torch.zeros(4, dtype=torch.long))
    task = SupervisedTask(train=data, valid=data)
    space = Space(depth=False)
    study = PruningStudy(name="s", model=Blocks, example=torch.zeros(2, 6), task=task, space=space)
    assert replace(study, space=Space()).find_groups(study.build()).blocks == ("block.block",)
    whole = study.find_groups(study.build())
    assert whole.blocks == ()
    kept = {n: tuple(range(c // 2)) for n, c in whole.channels.items()}
    widths = {n: len(k) for n, k in kept.items()}
    small = restrict(whole, kept)
    assert CostModel(small).macs(widths) == CostModel(whole).macs(widths)
    assert CostModel(small).memory(widths) == CostModel(whole).memory(widths) > 0


def test_single_weights_have_groups_too() -> None:
    found = diagnose(study_of("mlp", space=Space(granularity="weight")))
    assert any(layer.groups for layer in found.layers)
    assert sum(layer.params for layer in found.layers) == 6 * 12 + 12 + 12 * 8 + 8 + 8 * 3 + 3


def test_a_diagnosis_is_json() -> None:
    value = json.loads(json.dumps(diagnose(study_of("mlp")).to_json()))
    assert value["layers"][0]["name"] == "0"
    assert value["layers"][0]["groups"] == ["0"]
    assert value["layers"][0]["params"] == 6 * 12 + 12


# --- the warning --------------------------------------------------------------------------------


def grouping(*blocked: tuple[str, int, str], free: int) -> Grouping:
    shapes = {f"{name}.weight": (params,) for name, params, _ in blocked} | {"free.weight": (free,)}
    return Grouping(
        groups=(ChannelGroup(name="free", channels=free, slices=()),),
        blocked=tuple(Blocked(layer=n, params=p, reason=r) for n, p, r in blocked),
        shapes=shapes,
        positions={},
    )


def test_the_largest_reasons_are_named_first() -> None:
    said = mostly_blocked(
        grouping(
            ("a", 10, "it is small"),
            ("b", 200, "it is an embedding"),
            ("c", 300, "it is a grouped convolution"),
            ("d", 150, "it is an embedding"),
            free=340,
        )
    )
    assert said is not None
    assert said.startswith("66% of the parameters")
    assert "35% because it is an embedding (b, d); 30% because it is a grouped" in said
    assert said.index("embedding") < said.index("grouped") < said.index("small")


def test_no_warning_where_half_or_more_can_be_pruned() -> None:
    assert mostly_blocked(grouping(("a", 100, "x"), free=100)) is None
    assert mostly_blocked(grouping(("a", 101, "x"), free=100)) is not None
    assert mostly_blocked(find_groups(*build("residual"))) is None


class Wide(nn.Module):
    """Its output layer, whose channels stay, holds almost everything."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(8, 4)
        self.head = nn.Linear(4, 500)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(x).relu())


def test_a_real_network_that_is_mostly_blocked() -> None:
    said = mostly_blocked(find_groups(Wide(), torch.zeros(2, 8)))
    assert said is not None
    assert "99% because its outputs are the model's outputs (head)" in said


def ground(
    valid: float,
    *,
    samples: int = 1_000,
    error: float | None = None,
    chance: float | None = 0.1,
    **more: Any,
) -> list[str]:
    yardstick = Yardstick(samples=samples, standard_error=error, chance=chance)
    settings = {
        "metric": "accuracy",
        "higher_is_better": True,
        "calibration_samples": 256,
        "calibration_asked": 256,
    }
    return weak_ground(valid=valid, yardstick=yardstick, **(settings | more))


@pytest.mark.parametrize(("samples", "noted"), [(40, True), (359, False), (10_000, False)])
def test_few_validation_samples_are_noted_with_what_they_resolve(samples: int, noted: bool) -> None:
    found = ground(0.97, samples=samples, error=share_error(0.97, samples))
    assert len(found) == noted
    if noted:
        # The rule of succession makes 0.948 of 0.97; sqrt(2 * 0.948 * 0.052 / 42) is 4.9 points.
        assert "40 samples" in found[0]
        assert "closer than 4.9 points" in found[0]


def test_what_matters_is_measured_by_what_there_is_to_lose() -> None:
    # 1.4 points are a lot of what a model has that scores 0.6 where chance is 0.5.
    assert ground(0.6, error=0.01, chance=0.5)
    assert not ground(0.9, error=0.01, chance=0.1)
    assert ground(-2.0, error=0.1, chance=-4.0, metric="neg_mean_absolute_error")
    assert not ground(-2.0, error=0.01, chance=-4.0, metric="neg_mean_absolute_error")
    assert "closer than 0.14" in ground(2.0, error=0.1, chance=None, metric="bleu")[0]


@pytest.mark.parametrize(("samples", "noted"), [(40, True), (199, True), (200, False)])
def test_few_samples_are_noted_where_their_noise_is_unknown(samples: int, noted: bool) -> None:
    found = ground(3.5, samples=samples, chance=None, metric="bleu")
    assert len(found) == noted
    assert not noted or f"{samples} samples" in found[0]


@pytest.mark.parametrize(
    ("valid", "chance", "higher_is_better", "noted"),
    [
        (0.10, 0.10, True, True),
        (0.05, 0.10, True, True),
        (0.115, 0.10, True, True),  # within two standard errors
        (0.90, 0.10, True, False),
        (0.90, 0.10, False, True),
        (0.10, 0.90, False, False),
    ],
)
def test_a_model_not_clearly_better_than_chance_is_noted_once(
    valid: float, chance: float, higher_is_better: bool, noted: bool
) -> None:
    found = ground(valid, error=0.01, chance=chance, higher_is_better=higher_is_better)
    assert bool(found) is noted
    if noted:
        (said,) = found
        assert f"{valid:.4g}" in said
        assert f"{chance:.4g}" in said
        assert "train=FineTune(...)" in said


def test_a_model_at_chance_is_noted_without_knowing_the_noise() -> None:
    assert "chance" in ground(-0.1, error=None, chance=0.0, metric="r2")[0]
    assert not ground(0.1, error=None, chance=0.0, metric="r2")


def test_a_calibration_set_smaller_than_asked_is_noted() -> None:
    (said,) = ground(0.9, error=0.001, calibration_samples=100)
    assert "100 samples" in said
    assert "256" in said
