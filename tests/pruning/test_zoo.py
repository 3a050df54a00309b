"""Every architecture of the zoo, all the way: groups, costs, cuts, training, nesting, export."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from masking import masked
from nets import same_state
from torch import Tensor, nn
from zoo import ZOO
from zoo_case import Case

import autoprune
from autoprune.pruning.cost import CostModel
from autoprune.pruning.cut import cut
from autoprune.pruning.forward import (
    call,
    count_params,
    map_tensors,
    shared_names,
    tensors_of,
    without_fast_path,
)
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import ChannelGroup, Grouping, restrict
from autoprune.pruning.plan import FineTune, Plan
from autoprune.results.export import differs, export_model, verify

Kept = dict[str, tuple[int, ...]]
PLANS = ("smallest", "random", "another random")
TOLERANCE = 1e-5

pytestmark = pytest.mark.parametrize("name", ZOO)


@dataclass(frozen=True, kw_only=True, eq=False)
class Examined:
    """A network of the zoo with its groups, and what it was before they were found."""

    case: Case
    model: nn.Module
    inputs: Any
    grouping: Grouping
    before: Mapping[str, Tensor]
    """Its state, copied before anything was done with it."""


@cache
def examined(name: str) -> Examined:
    case = ZOO[name]
    model, inputs = case.build(), case.inputs()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    grouping = find_groups(model, inputs, **case.options)
    return Examined(case=case, model=model, inputs=inputs, grouping=grouping, before=before)


@pytest.fixture
def net(name: str) -> Examined:
    if ZOO[name].missing:
        pytest.skip(f"{ZOO[name].needs} is not installed")
    return examined(name)


def draw(grouping: Grouping, plan: str) -> Kept:
    """Return the kept channels of one of the `PLANS`: of each group one, or any number."""
    chance = random.Random(f"{plan} {sorted(grouping.channels)}")
    kept = {}
    for name, count in grouping.channels.items():
        width = 1 if plan == "smallest" else chance.randint(1, count)
        kept[name] = tuple(sorted(chance.sample(range(count), width)))
    return kept


def widths_of(kept: Kept) -> dict[str, int]:
    return {name: len(channels) for name, channels in kept.items()}


def answers(model: nn.Module, inputs: Any) -> list[Tensor]:
    # Torch's fused transformer layers would not ask the norms of the masked reference.
    with torch.no_grad(), without_fast_path():
        return tensors_of(call(model, inputs))


# --- groups -------------------------------------------------------------------------------------


def producers(grouping: Grouping, layer: str) -> list[ChannelGroup]:
    """Return the groups whose channels `layer`, or the bare parameter `layer`, produces."""

    def produces(tensor: str) -> bool:
        return tensor == layer or tensor.rpartition(".")[0] == layer

    return [
        group
        for group in grouping.groups
        if any(piece.role == "out" and produces(piece.tensor) for piece in group.slices)
    ]


def test_the_expected_groups_are_found(net: Examined) -> None:
    reasons = {b.layer: b.reason for b in net.grouping.blocked}
    ties = shared_names(net.model)
    faults = []
    for layer, channels in net.case.expected.items():
        weight = ties.get(f"{layer}.weight", "")
        found = [g.channels for g in producers(net.grouping, weight or layer)]
        if not found or channels not in (None, *found) or (channels and len(found) > 1):
            why = reasons.get(layer) or reasons.get(layer.rpartition(".")[0])
            faults.append(f"{layer}: {channels or 'any'} expected, {found} found, blocked: {why}")
    assert not faults, "\n".join(faults)


def test_nothing_stays_dense_in_silence(net: Examined) -> None:
    ties = shared_names(net.model)
    pruned = {s.tensor for g in net.grouping.groups for s in g.slices if s.role == "out"}
    blocked = {b.layer: b for b in net.grouping.blocked}
    for layer, module in net.model.named_modules():
        own = dict(module.named_parameters(prefix=layer, recurse=False))
        if own and not pruned & {ties.get(n, n) for n in own}:
            assert layer in blocked, f"{layer} is in no group and not reported"
            assert blocked[layer].reason.strip()
            assert blocked[layer].params == sum(p.numel() for p in own.values())


def test_groups_are_made_of_whole_entries_of_the_models_tensors(net: Examined) -> None:
    taken: set[tuple[str, int, str, int]] = set()
    for group in net.grouping.groups:
        assert group.channels >= 2
        assert group.slices
        for piece in group.slices:
            assert len(piece.index) == group.channels
            entries = piece.index.ravel().tolist()
            assert min(entries) >= 0
            assert max(entries) < net.before[piece.tensor].shape[piece.dim]
            places = {(piece.tensor, piece.dim, piece.role, entry) for entry in entries}
            assert len(places) == len(entries)
            assert not places & taken
            taken |= places


def test_finding_groups_changes_nothing(net: Examined) -> None:
    assert same_state(net.model.state_dict(), net.before)
    assert not any(module.training for module in net.model.modules())
    assert all(p.requires_grad and p.grad is None for p in net.model.parameters())
    fresh = net.case.build()
    assert repr(net.model) == repr(fresh)
    for ours, theirs in zip(
        answers(net.model, net.inputs), answers(fresh, net.inputs), strict=True
    ):
        assert torch.equal(ours, theirs)


# --- cuts ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", PLANS)
def test_costs_are_those_of_the_cut_model(net: Examined, plan: str) -> None:
    kept = draw(net.grouping, plan)
    small = cut(net.model, net.grouping, kept)
    cost = CostModel(net.grouping)
    assert cost.params(widths_of(kept)) == count_params(small)
    assert cost.params(net.grouping.channels) == count_params(net.model)
    between = CostModel(restrict(net.grouping, kept))
    assert between.params(widths_of(kept)) == count_params(small)
    assert between.macs(widths_of(kept)) == cost.macs(widths_of(kept))
    if widths_of(kept) != net.grouping.channels:
        assert count_params(small) < count_params(net.model)


@pytest.mark.parametrize("plan", PLANS)
def test_a_cut_model_answers_in_the_dense_models_shape(net: Examined, plan: str) -> None:
    small = cut(net.model, net.grouping, draw(net.grouping, plan))
    dense = answers(net.model, net.inputs)
    cut_down = answers(small, net.inputs)
    assert [(t.shape, t.dtype) for t in cut_down] == [(t.shape, t.dtype) for t in dense]
    assert all(bool(t.isfinite().all()) for t in cut_down)
    assert same_state(net.model.state_dict(), net.before)


@pytest.mark.parametrize("plan", PLANS)
def test_cutting_is_masking(net: Examined, plan: str) -> None:
    kept = draw(net.grouping, plan)
    inputs = map_tensors(lambda t: t.double() if t.is_floating_point() else t, net.inputs)
    small = cut(net.model, net.grouping, kept).double()
    reference = masked(net.model, net.grouping, kept, tied=net.case.tied).double()
    for ours, theirs in zip(answers(small, inputs), answers(reference, inputs), strict=True):
        scale = max(1.0, float(theirs.abs().max()))
        assert float((ours - theirs).abs().max()) <= TOLERANCE * scale


def test_keeping_all_changes_nothing(net: Examined) -> None:
    same = cut(net.model, net.grouping, net.grouping.all_kept())
    assert same_state(same.state_dict(), net.before)
    pairs = zip(answers(same, net.inputs), answers(net.model, net.inputs), strict=True)
    for ours, theirs in pairs:
        torch.testing.assert_close(ours, theirs)


def gradients(model: nn.Module, inputs: Any) -> dict[str, Tensor]:
    """Return the gradients of a mixture of all outputs, as training would see them."""
    model = copy.deepcopy(model).train()
    torch.manual_seed(0)
    outputs = [t for t in tensors_of(call(model, inputs)) if t.is_floating_point()]
    total = torch.stack([(t * torch.randn(t.shape)).sum() for t in outputs]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("plan", PLANS)
def test_a_cut_model_can_be_trained(net: Examined, plan: str) -> None:
    small = cut(net.model, net.grouping, draw(net.grouping, plan))
    wanted, found = gradients(net.model, net.inputs), gradients(small, net.inputs)
    assert wanted
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        assert gradient.shape == small.get_parameter(name).shape
        assert bool(gradient.isfinite().all()), name
    assert all(p.grad is None for p in net.model.parameters())


def test_a_cut_of_a_cut_is_the_direct_cut(net: Examined) -> None:
    first = draw(net.grouping, "random")
    between = restrict(net.grouping, first)
    second = draw(between, "another random")
    final = {name: tuple(first[name][i] for i in second[name]) for name in first}
    direct = cut(net.model, net.grouping, final)
    stepwise = cut(cut(net.model, net.grouping, first), between, second)
    assert same_state(stepwise.state_dict(), direct.state_dict())
    pairs = zip(answers(stepwise, net.inputs), answers(direct, net.inputs), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


# --- exports ------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Exports:
    """What became of the exports of all tests of this run."""

    folders: dict[str, Path] = field(default_factory=dict)
    formats: dict[str, tuple[str, ...]] = field(default_factory=dict)
    problems: dict[str, tuple[str, ...]] = field(default_factory=dict)
    faults: dict[str, list[str]] = field(default_factory=dict)
    errors: dict[str, Exception] = field(default_factory=dict)


def export(name: str, folder: Path) -> Any:
    net = examined(name)
    kept = draw(net.grouping, "random")
    plan = Plan(widths=widths_of(kept), criterion="l2", finetune=FineTune(epochs=1, lr=1e-3))
    return export_model(
        cut(net.model, net.grouping, kept),
        folder,
        example=net.inputs,
        plan=plan.with_kept(kept),
        about={"name": name},
    )


@pytest.fixture(scope="session")
def exports(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Export what the chosen tests ask for, and verify it all in one process of its own."""
    found = Exports()
    for name in _asked_for(request.session.items):
        folder = tmp_path_factory.mktemp(name) / name
        try:
            done = export(name, folder)
        except Exception as error:  # shown by the test of that network
            found.errors[name] = error
            continue
        found.folders[name] = folder
        found.formats[name], found.problems[name] = done.formats, done.problems
    found.faults.update(verify(list(found.folders.values()), processes=2))
    return found


def _asked_for(items: list[pytest.Item]) -> Iterator[str]:
    for item in items:
        if isinstance(item, pytest.Function) and item.originalname == "test_exports":
            name = item.callspec.params["name"]
            if not ZOO[name].missing:
                yield name


@pytest.mark.long
def test_exports(net: Examined, name: str, exports: Exports) -> None:
    if name in exports.errors:
        raise exports.errors[name]
    assert exports.formats[name] == ("safetensors", *net.case.formats), exports.problems[name]
    assert set(net.case.formats) | set(net.case.unexported) == {"pt2", "onnx"}
    assert exports.faults[name] == []
    folder = exports.folders[name]
    reloaded = autoprune.load(folder, model=net.case.build())
    assert differs(reloaded, folder) is None
    kept = draw(net.grouping, "random")
    assert count_params(reloaded) == CostModel(net.grouping).params(widths_of(kept))
