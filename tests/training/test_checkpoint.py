"""Training that is cut short and gone on with comes to what it would have come to."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import jitter
from torch import Tensor, nn

from autoprune import SupervisedTask
from autoprune.pruning.graph import find_groups
from autoprune.pruning.plan import OPTIMIZERS, FineTune, OptimizerName, Sparsify
from autoprune.training.checkpoint import (
    FORMAT,
    Keeper,
    TrainingState,
    read_checkpoint,
    write_checkpoint,
)
from autoprune.training.finetune import Epoch, finetune
from autoprune.training.regularise import Regulariser
from autoprune.training.sparsify import SPARSIFIERS, sparsifier, sparsify

EPOCHS = 5
TUNING = FineTune(epochs=EPOCHS, lr=1e-2, batch_size=32, dropout=0.3)


def net() -> nn.Module:
    torch.manual_seed(3)
    return nn.Sequential(
        nn.Linear(8, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3)
    )


class Stack(list[TrainingState]):
    """Keeps every state that it is offered."""

    def __call__(self, state: Callable[[], TrainingState | None]) -> None:
        found = state()
        if found is not None:
            # As on disk: what comes later must not change it.
            self.append(replace(found, tensors={n: t.clone() for n, t in found.tensors.items()}))


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, its = one.state_dict(), other.state_dict()
    return mine.keys() == its.keys() and all(torch.equal(mine[n], its[n]) for n in mine)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("after", range(1, EPOCHS + 1))
def test_training_goes_on_bit_for_bit(
    task: SupervisedTask, after: int, optimizer: OptimizerName, tmp_path: Path
) -> None:
    settings = replace(TUNING, optimizer=optimizer)
    whole, states = net(), Stack()
    epochs = list(finetune(whole, task, settings, seed=1, keep=states))
    assert [state.epoch for state in states] == [1, 2, 3, 4, 5]

    file = tmp_path / "there.safetensors"
    write_checkpoint(file, states[after - 1], {"note": [1, 2]})
    saved = read_checkpoint(file)
    assert saved is not None
    assert saved.about == {"note": [1, 2]}
    torch.manual_seed(99)  # another process, somewhere else
    torch.rand(7)
    other = net()
    rest = list(finetune(other, task, settings, seed=1, start=saved.training))
    assert rest == epochs[after:]
    assert same(other, whole)
    assert not same(other, net())


@pytest.mark.parametrize("after", [1, EPOCHS - 1])
def test_training_on_data_that_draw_from_numpy_and_python_goes_on(
    task: SupervisedTask, after: int
) -> None:
    task._augment = jitter
    whole, states = net(), Stack()
    epochs = list(finetune(whole, task, TUNING, seed=1, keep=states))
    np.random.rand(3), random.random()
    other = net()
    assert list(finetune(other, task, TUNING, seed=1, start=states[after - 1])) == epochs[after:]
    assert same(other, whole)


def sparsify_net(
    model: nn.Module,
    task: SupervisedTask,
    method: str,
    keep: Stack | None = None,
    start: TrainingState | None = None,
) -> list[Epoch]:
    grouping = find_groups(net(), torch.zeros(2, 8))
    doomed = dict.fromkeys(grouping.channels, (0, 1, 2))
    chosen = Sparsify(method=method, epochs=4)
    return list(
        sparsify(
            model, task, TUNING, chosen,
            grouping=grouping, doomed=doomed, seed=5, start=start, keep=keep,
        )
    )  # fmt: skip


@pytest.mark.parametrize("augment", [None, jitter])
@pytest.mark.parametrize("method", sorted(SPARSIFIERS))
def test_every_sparsifier_goes_on_bit_for_bit(
    task: SupervisedTask, method: str, augment: Callable[[Tensor], Tensor] | None
) -> None:
    task._augment = augment
    whole, states = net(), Stack()
    epochs = sparsify_net(whole, task, method, keep=states)
    assert [state.epoch for state in states] == [1, 2, 3, 4]
    for state in states:
        np.random.rand(3), random.random(), torch.rand(3)
        other = net()
        assert sparsify_net(other, task, method, start=state) == epochs[state.epoch :]
        assert same(other, whole)


@pytest.mark.usefixtures("registries")
def test_a_sparsifier_that_cannot_say_where_it_stands_gets_no_checkpoint(
    task: SupervisedTask,
) -> None:
    class Fading(Regulariser):
        steps = 0

        def after_step(self, lr: float) -> None:
            self.steps += 1

    sparsifier("fading")(lambda scope: Fading())
    states = Stack()
    chosen = Sparsify(method="fading", epochs=2)
    grouping = find_groups(net(), torch.zeros(2, 8))
    list(sparsify(net(), task, TUNING, chosen, grouping=grouping, keep=states))
    assert states == []


# --- on disk ------------------------------------------------------------------------------------


def state(**tensors: Tensor) -> TrainingState:
    return TrainingState(epoch=3, tensors=tensors, numbers={"rates": [0.1 + 0.2]})


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    file = tmp_path / "there.safetensors"
    write_checkpoint(file, state(a=torch.randn(40), n=torch.tensor(7)), {"stage": 1})
    return file


def test_a_checkpoint_holds_what_was_written(kept: Path) -> None:
    saved = read_checkpoint(kept)
    assert saved is not None
    assert saved.training.epoch == 3
    assert saved.training.numbers == {"rates": [0.1 + 0.2]}
    assert saved.training.tensors["n"] == 7


@pytest.mark.parametrize("harm", ["cut", "altered", "renamed", "text", "gone", "older"])
def test_a_checkpoint_that_cannot_be_trusted_counts_as_none(
    kept: Path, harm: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = kept.read_bytes()
    if harm == "cut":
        kept.write_bytes(content[:-9])
    elif harm == "altered":
        kept.write_bytes(content[:-5] + bytes([content[-5] ^ 1]) + content[-4:])
    elif harm == "renamed":
        kept.write_bytes(content.replace(b"stage", b"stagf"))
    elif harm == "text":
        kept.write_text("{}")
    elif harm == "older":
        with monkeypatch.context() as patch:
            patch.setattr("autoprune.training.checkpoint.FORMAT", FORMAT - 1)
            write_checkpoint(kept, state(), {"stage": 1})
            assert read_checkpoint(kept) is not None
    else:
        kept.unlink()
    assert read_checkpoint(kept) is None


def test_checkpoints_are_written_no_more_often_than_is_worth_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr("autoprune.training.checkpoint.time.monotonic", lambda: clock[0])
    asked: list[float] = []

    def slow() -> TrainingState:
        asked.append(clock[0])
        clock[0] += 1.0  # what it costs
        return state()

    keeper = Keeper(file=tmp_path / "c", seconds=10.0)
    for _ in range(200):
        clock[0] += 1.0
        keeper.offer(slow, dict)
    # The first after 10 s; then the work in between lasts 50 times as long as the writing.
    assert asked == [10.0, 61.0, 112.0, 163.0]
    Keeper(file=None).offer(slow, dict)
    assert len(asked) == 4
