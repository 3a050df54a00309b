import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from nets import NETS, build, grouped, kept_channels, same_state
from torch import Tensor, nn

from autoprune.errors import AutopruneError
from autoprune.pruning.cost import CostModel
from autoprune.pruning.cut import cut, load_state
from autoprune.pruning.forward import call, count_params
from autoprune.pruning.graph import find_groups
from autoprune.pruning.groups import Grouping, restrict

Kept = dict[str, tuple[int, ...]]


def deaf_to(model: nn.Module, grouping: Grouping, kept: Kept) -> nn.Module:
    """Copy the dense model with every weight that reads a removed channel set to zero."""
    deaf = copy.deepcopy(model)
    weights = dict(deaf.named_parameters())
    for group in grouping.groups:
        for piece in group.slices:
            for channel in set(range(group.channels)) - set(kept[group.name]):
                if piece.role == "in":
                    entries = torch.from_numpy(piece.index[channel])
                    with torch.no_grad():
                        weights[piece.tensor].index_fill_(piece.dim, entries, 0.0)
    return deaf


def run(model: nn.Module, inputs: Any) -> Tensor:
    with torch.no_grad():
        return call(model, inputs)


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
def test_cutting_is_ignoring(name: str, data: st.DataObject) -> None:
    model, inputs = build(name)
    kept = data.draw(kept_channels(grouped(name)))
    if name == "layer_norm":
        kept["0"] = tuple(range(12))  # its statistics change; see test_layer_norm_is_cut below
    small = cut(model, grouped(name), kept)
    deaf = deaf_to(model, grouped(name), kept)
    torch.testing.assert_close(run(small, inputs), run(deaf, inputs), rtol=1e-4, atol=1e-5)


@given(kept=kept_channels(grouped("layer_norm")))
def test_layer_norm_is_cut(kept: Kept) -> None:
    model, inputs = build("layer_norm")
    small = cut(model, grouped("layer_norm"), kept)
    first, norm, _, hidden, _, head = model
    a, b = list(kept["0"]), list(kept["3"])
    with torch.no_grad():
        x = F.linear(inputs, first.weight[a], first.bias[a])
        x = F.gelu(F.layer_norm(x, (len(a),), norm.weight[a], norm.bias[a]))
        x = F.relu(F.linear(x, hidden.weight[b][:, a], hidden.bias[b]))
        expected = F.linear(x, head.weight[:, b], head.bias)
    torch.testing.assert_close(run(small, inputs), expected)


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
def test_widths_are_real(name: str, data: st.DataObject) -> None:
    model, _ = build(name)
    kept = data.draw(kept_channels(grouped(name)))
    small = cut(model, grouped(name), kept)
    for group in grouped(name).groups:
        layer = small.get_submodule(group.name)
        width = layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels
        assert width == len(kept[group.name])


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
def test_sizes_in_the_layers_agree_with_their_tensors(name: str, data: st.DataObject) -> None:
    model, _ = build(name)
    small = cut(model, grouped(name), data.draw(kept_channels(grouped(name))))
    for module in small.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.PReLU)):
            fresh = type(module)(**sizes(module))
            shapes = {n: p.shape for n, p in module.named_parameters()}
            assert {n: p.shape for n, p in fresh.named_parameters()} == shapes
        elif isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            lengths = {len(t) for t in (module.weight, module.bias, module.running_var)}
            assert lengths == {module.num_features}
        elif isinstance(module, nn.LayerNorm):
            assert module.normalized_shape == tuple(module.weight.shape)


def sizes(module: nn.Module) -> dict[str, Any]:
    names = ("in_features", "out_features", "in_channels", "out_channels", "kernel_size", "groups",
             "num_parameters")  # fmt: skip
    found = {n: getattr(module, n) for n in names if hasattr(module, n)}
    return found if isinstance(module, nn.PReLU) else found | {"bias": module.bias is not None}


@pytest.mark.parametrize("name", NETS)
def test_the_dense_model_is_left_alone(name: str) -> None:
    model, inputs = build(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    small = cut(model, grouped(name), dict.fromkeys(grouped(name).channels, (0,)))
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.zero_()
    small.train()
    call(small, noise_of_four(inputs))
    assert same_state(model.state_dict(), before)
    assert not model.training


def noise_of_four(inputs: Any) -> Any:
    if isinstance(inputs, Tensor):
        return torch.cat([inputs, inputs])
    if isinstance(inputs, dict):
        return {key: noise_of_four(value) for key, value in inputs.items()}
    return tuple(noise_of_four(value) for value in inputs)


@pytest.mark.parametrize("name", NETS)
def test_keeping_all_changes_nothing(name: str) -> None:
    model, _ = build(name)
    same = cut(model, grouped(name), grouped(name).all_kept())
    assert same_state(same.state_dict(), model.state_dict())


def test_frozen_parameters_stay_frozen() -> None:
    model, _ = build("mlp")
    model[0].weight.requires_grad_(False)
    small = cut(model, grouped("mlp"), {"0": (1, 2), "2": (3,)})
    assert [p.requires_grad for p in small.parameters()] == [False, True, True, True, True, True]


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
def test_a_cut_of_a_cut_is_the_direct_cut(name: str, data: st.DataObject) -> None:
    model, inputs = build(name)
    grouping = grouped(name)
    first = data.draw(kept_channels(grouping))
    between = restrict(grouping, first)
    second = data.draw(kept_channels(between))
    final = {g: tuple(first[g][i] for i in second[g]) for g in first}

    direct = cut(model, grouping, final)
    stepwise = cut(cut(model, grouping, first), between, second)
    assert same_state(stepwise.state_dict(), direct.state_dict())
    assert torch.equal(run(stepwise, inputs), run(direct, inputs))


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
def test_a_restricted_grouping_describes_the_cut_model(name: str, data: st.DataObject) -> None:
    model, _ = build(name)
    kept = data.draw(kept_channels(grouped(name)))
    small = cut(model, grouped(name), kept)
    grouping = restrict(grouped(name), kept)
    assert grouping.shapes == {n: tuple(p.shape) for n, p in small.named_parameters()}
    assert CostModel(grouping).params(grouping.channels) == count_params(small)


def test_groups_of_a_cut_model_are_found_again() -> None:
    model, inputs = build("residual")
    kept = {"stem": (0, 1, 7), "conv1": (2, 3), "down": (1, 4, 9, 15)}
    again = find_groups(cut(model, grouped("residual"), kept), inputs)
    known = restrict(grouped("residual"), kept)
    assert again.channels == known.channels == {"stem": 3, "conv1": 2, "down": 4}
    assert {(s.tensor, s.dim, s.index.tobytes()) for g in again.groups for s in g.slices} == {
        (s.tensor, s.dim, s.index.tobytes()) for g in known.groups for s in g.slices
    }


@pytest.mark.parametrize("name", NETS)
@given(data=st.data())
def test_a_cut_model_loads_into_the_dense_code(name: str, data: st.DataObject) -> None:
    model, inputs = build(name)
    small = cut(model, grouped(name), data.draw(kept_channels(grouped(name))))
    fresh = NETS[name][0]()
    loaded = load_state(fresh, small.state_dict()).eval()
    assert same_state(loaded.state_dict(), small.state_dict())
    assert torch.equal(run(loaded, inputs), run(small, inputs))
    assert repr(loaded) == repr(small)
    assert count_params(fresh) == count_params(model)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("0.bias"), r"6 tensors, but differ in '0.bias': is this"),
        (lambda s: s.update(extra=torch.zeros(1)), "differ in 'extra'"),
        (
            lambda s: s.update({"0.bias": torch.zeros(13)}),
            r"'0.bias' of the weights must fit .*\(12,\).*\(13,\)",
        ),
        (lambda s: s.update({"0.bias": torch.zeros(12, 1)}), r"is \(12, 1\)"),
    ],
)
def test_a_state_of_another_model_is_refused(change: Any, message: str) -> None:
    model, _ = build("mlp")
    state = dict(model.state_dict())
    change(state)
    with pytest.raises(AutopruneError, match=message):
        load_state(model, state)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"0": (0,)}, "differ in '2': is it another model's plan"),
        ({"0": (0,), "2": (0,), "4": (0,)}, "differ in '4'"),
        ({"0": (), "2": (0,)}, "Group '0' has channels 0 to 11 .* the plan keeps none"),
        ({"0": (1, 0), "2": (0,)}, "each once and in order"),
        ({"0": (1, 1), "2": (0,)}, "each once and in order"),
        ({"0": (0,), "2": (2, 8)}, "channels 0 to 7 .* keeps channel 8"),
        ({"0": (0,), "2": (-1, 2)}, "must keep at least one"),
    ],
)
def test_a_plan_that_does_not_fit_is_refused(kept: Kept, message: str) -> None:
    model, _ = build("mlp")
    with pytest.raises(AutopruneError, match=message):
        cut(model, grouped("mlp"), kept)


def test_a_transposed_depthwise_convolution_is_cut() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1), nn.ConvTranspose2d(8, 8, 2, groups=8), nn.ReLU(), nn.Conv2d(8, 2, 1)
    ).eval()
    inputs = torch.randn(2, 3, 4, 4)
    grouping = find_groups(model, inputs)
    kept = {"0": (1, 2, 5)}
    small = cut(model, grouping, kept)
    assert (small[1].in_channels, small[1].out_channels, small[1].groups) == (3, 3, 3)
    torch.testing.assert_close(run(small, inputs), run(deaf_to(model, grouping, kept), inputs))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(6, 8), nn.Linear(8, 6)
        self.first, self.second = nn.Linear(6, 6, bias=False), nn.Linear(6, 6, bias=False)
        self.second.weight = self.first.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x) + self.outer(torch.relu(self.inner(x))))


def test_tied_weights_stay_one_parameter_when_loaded() -> None:
    model = Tied()
    grouping = find_groups(model, torch.randn(2, 6))
    small = cut(model, grouping, {"inner": [1, 4]})
    loaded = load_state(model, small.state_dict())
    assert loaded.second.weight is loaded.first.weight
    assert count_params(loaded) == count_params(small) == CostModel(grouping).params({"inner": 2})
