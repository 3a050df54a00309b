import copy

import pytest
import torch
from nets import build, grouped, same_state
from torch import Tensor, nn

from autoprune.pruning.compensate import compensated
from autoprune.pruning.cut import cut
from autoprune.pruning.evidence import collect
from autoprune.pruning.groups import Grouping, Kept


def half(grouping: Grouping) -> dict[str, tuple[int, ...]]:
    return {n: tuple(range(0, count, 2)) for n, count in grouping.channels.items()}


def only(grouping: Grouping, group: str) -> dict[str, tuple[int, ...]]:
    """Keep every second channel of one group, and all of the others."""
    return {**grouping.all_kept(), group: half(grouping)[group]}


def means_of(model: nn.Module, grouping: Grouping, x: Tensor) -> dict[str, Tensor]:
    evidence = collect(model, grouping, batches=[x], loss=lambda m, b: m(b).square().mean())
    return {name: stats.mean for name, stats in evidence.inputs.items()}


def outputs(
    net: str, kept: Kept, x: Tensor, *, reader: str, compensate: bool = True
) -> tuple[Tensor, Tensor]:
    """Return what `reader` gives in the dense and in the cut model."""
    model, _ = build(net)
    smaller = model
    if compensate:
        smaller = compensated(model, grouped(net), kept, means_of(model, grouped(net), x))
    seen = []
    for each in (model, cut(smaller, grouped(net), kept)):
        hook = each.get_submodule(reader).register_forward_hook(lambda m, a, y: seen.append(y))
        each(x)
        hook.remove()
    return seen[0].detach(), seen[1].detach()


def test_a_linear_reader_keeps_its_mean() -> None:
    x = torch.randn(40, 6)
    kept = only(grouped("mlp"), "0")
    dense, small = outputs("mlp", kept, x, reader="2")
    torch.testing.assert_close(small.mean(0), dense.mean(0))
    _, plain = outputs("mlp", kept, x, reader="2", compensate=False)
    assert not torch.allclose(plain.mean(0), dense.mean(0), atol=1e-2)
    assert (small - dense).square().sum() < (plain - dense).square().sum()


def test_entries_of_a_flattened_channel_are_compensated_each() -> None:
    x = torch.randn(40, 1, 6, 6)
    dense, small = outputs("flatten", only(grouped("flatten"), "0"), x, reader="3")
    torch.testing.assert_close(small.mean(0), dense.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("net", "group", "reader", "shape"),
    [
        ("conv1d", "0", "4", (2, 16)),  # no padding, but positions at the ends count less
        ("autoencoder", "0", "2", (1, 8, 8)),
        ("autoencoder", "2", "4", (1, 8, 8)),  # a transposed convolution of stride 2
    ],
)
def test_convolutions_keep_their_mean_but_for_borders(
    net: str, group: str, reader: str, shape: tuple[int, ...]
) -> None:
    x = torch.randn(60, *shape) + 1
    kept = only(grouped(net), group)
    dense, small = outputs(net, kept, x, reader=reader)
    _, plain = outputs(net, kept, x, reader=reader, compensate=False)
    others = (0, *range(2, dense.dim()))
    error = (small.mean(others) - dense.mean(others)).norm()
    assert error < 0.5 * (plain.mean(others) - dense.mean(others)).norm()


def test_a_strided_transposed_convolution_keeps_its_mean_exactly() -> None:
    # Kernel and stride are equal: every output sees one tap, there is no border.
    x = torch.randn(60, 1, 8, 8) + 1
    dense, small = outputs("autoencoder", only(grouped("autoencoder"), "2"), x, reader="4")
    torch.testing.assert_close(small.mean((0, 2, 3)), dense.mean((0, 2, 3)), rtol=1e-3, atol=1e-4)


def test_no_bias_is_added_and_only_readers_change() -> None:
    model, x = build("residual")
    grouping = grouped("residual")
    before = copy.deepcopy(model.state_dict())
    new = compensated(model, grouping, half(grouping), means_of(model, grouping, x))
    assert same_state(model.state_dict(), before)
    assert list(new.state_dict()) == list(before)
    changed = {n for n, t in new.state_dict().items() if not torch.equal(t, before[n])}
    assert changed == {"shortcut.bias", "head.bias"}  # the other readers have none


def test_nothing_removed_changes_nothing() -> None:
    model, x = build("mlp")
    grouping = grouped("mlp")
    new = compensated(model, grouping, grouping.all_kept(), means_of(model, grouping, x))
    assert same_state(new.state_dict(), model.state_dict())


def test_a_bias_that_layers_share_is_left() -> None:
    model, x = build("mlp")
    grouping = grouped("mlp")
    means = means_of(model, grouping, x)
    model.add_module("other", nn.Linear(8, 8))
    model.other.bias = model[2].bias
    new = compensated(model, grouping, only(grouping, "0"), means)
    assert torch.equal(new[2].bias, model[2].bias)
