"""Latency: measured by every engine, in turns, and nothing is changed by it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import NETS, build, same_state
from torch import Tensor, nn

from autoprune import AutopruneError
from autoprune.training.latency import ENGINES, Latency, measure, measure_together
from autoprune.training.programs import at_batch, export_program, save_onnx


class Slow(nn.Module):
    """Takes a given time for each sample."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.seconds = seconds
        self.seen: list[tuple[int, bool, bool]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((len(x), self.training, torch.is_inference_mode_enabled()))
        time.sleep(self.seconds * len(x))
        return x * self.weight


def test_a_latency_is_the_time_of_one_call() -> None:
    found = measure(Slow(0.004), torch.zeros(1, 2), batch_size=3)
    assert found.seconds >= 0.012
    assert found.spread >= 0
    assert found.runs >= 5
    assert (found.engine, found.batch_size, found.threads) == ("eager", 3, 1)
    assert found.device == "cpu"


def test_a_quick_call_is_timed_many_times_and_a_slow_one_is_soon_over() -> None:
    quick = measure(nn.Identity(), torch.zeros(1, 2))
    assert quick.runs >= 50
    assert 0 < quick.seconds < 0.1
    slow = Slow(0.1)
    assert measure(slow, torch.zeros(1, 2)).runs == 5
    assert len(slow.seen) < 20


def test_models_take_turns_in_the_same_number_of_blocks() -> None:
    found = measure_together({"a": Slow(0.001), "b": Slow(0.02)}, torch.zeros(1, 2))
    assert list(found) == ["a", "b"]
    assert found["a"].runs == found["b"].runs
    assert found["a"].seconds < found["b"].seconds


def test_the_model_is_not_changed_and_runs_as_it_will_in_use(monkeypatch: Any) -> None:
    model = Slow(0.0).train()
    seen = model.seen
    monkeypatch.setattr("copy.deepcopy", lambda m: _sharing(m, seen))
    measure(model, torch.zeros(2, 2), batch_size=5)
    assert model.training
    assert set(seen) == {(5, False, True)}


def _sharing(model: Slow, seen: list[tuple[int, bool, bool]]) -> Slow:
    twin = Slow(model.seconds)
    twin.seen = seen
    return twin


@pytest.mark.parametrize("threads", [1, 2])
def test_threads_are_set_meanwhile_and_then_as_before(threads: int) -> None:
    heard: list[int] = []

    class Listens(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            heard.append(torch.get_num_threads())
            return x

    torch.set_num_threads(2)
    try:
        found = measure(Listens(), torch.zeros(1, 2), threads=threads)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(heard) == {threads}
    assert found.threads == threads


@pytest.mark.parametrize("name", NETS)
def test_every_kind_of_model_has_a_latency_at_another_batch(name: str) -> None:
    model, inputs = build(name)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    assert measure(model, inputs, batch_size=3).seconds > 0
    assert same_state(before, model.state_dict())


ONNX_WARNINGS = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def with_marks(function: Any) -> Any:
    for mark in ONNX_WARNINGS:
        function = mark(function)
    return function


@with_marks
@pytest.mark.parametrize("name", ["two_inputs", "dict_input"])
def test_onnx_runs_a_model_and_a_file_of_it(name: str, tmp_path: Path) -> None:
    model, inputs = build(name)
    found = measure(model, inputs, engine="onnx", batch_size=2)
    assert isinstance(found, Latency)
    assert found.seconds > 0
    assert found.engine == "onnx"
    save_onnx(export_program(model, at_batch(inputs, 2), dynamic=False), tmp_path / "model.onnx")
    assert measure(tmp_path / "model.onnx", inputs, engine="onnx", batch_size=2).seconds > 0


@with_marks
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler")
def test_a_compiled_model_is_compiled_for_its_own_size() -> None:
    from torch._dynamo.utils import counters

    counters.clear()
    models = {str(n): nn.Linear(4, n) for n in (2, 3)}
    found = measure_together(models, torch.zeros(1, 4), engine="compile")
    assert all(latency.seconds > 0 for latency in found.values())
    assert counters["stats"]["unique_graphs"] == 2


def test_unknown_engines_are_refused() -> None:
    with pytest.raises(AutopruneError, match=r"Unknown latency engine 'onxx'.*mean 'onnx'"):
        measure(nn.Linear(2, 2), torch.zeros(1, 2), engine="onxx")
    assert ENGINES == ("eager", "compile", "onnx")


@pytest.mark.parametrize("setting", ["batch_size", "threads"])
def test_numbers_below_one_are_refused(setting: str) -> None:
    with pytest.raises(AutopruneError, match=f"`{setting}`.*at least 1, but is 0"):
        measure(nn.Linear(2, 2), torch.zeros(1, 2), **{setting: 0})


def test_a_model_that_does_not_run_on_the_batch_is_named_with_the_way_out() -> None:
    class Pairs(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(2, 3)

    threads = torch.get_num_threads()
    with pytest.raises(AutopruneError, match=r"batch of 5 by engine 'eager'.*batch size"):
        measure(Pairs(), torch.zeros(2, 3), batch_size=5)
    assert torch.get_num_threads() == threads
    assert not torch.is_inference_mode_enabled()


def test_a_batch_repeats_or_cuts_the_example() -> None:
    example = {"x": torch.arange(3), "scale": torch.tensor(2.0)}
    assert at_batch(example, 5)["x"].tolist() == [0, 1, 2, 0, 1]
    assert at_batch(example, 2)["x"].tolist() == [0, 1]
    assert at_batch(example, 5)["scale"] == 2
