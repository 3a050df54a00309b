"""A test split that cannot be used is found before the search, and not after it."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from nets import jitter
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from autoprune import SupervisedTask
from autoprune.errors import AutopruneError
from autoprune.training.rehearsal import check_test

X, Y = torch.randn(40, 4), torch.arange(40) % 3


class Broken(Dataset[Any]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, i: int) -> Any:
        raise EOFError("sample 0 is cut short")


BAD = {
    "another shape": ((X[:, :3], Y), "RuntimeError: mat1 and mat2 shapes"),
    "broken files": (DataLoader(Broken(), batch_size=8), "EOFError: sample 0 is cut short"),
    "no targets": ([*X], r"must give \(inputs, targets\)"),
}


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
        self.sizes: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.sizes.append(len(x))
        answer: Tensor = self.layer(x)
        return answer


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_run_is_named_in_one_line(case: str) -> None:
    test, words = BAD[case]
    task = SupervisedTask(train=(X, Y), valid=(X, Y), test=test)
    with pytest.raises(AutopruneError, match=rf"test data .*{words}.*test split") as said:
        check_test(task, Counting())
    assert "\n" not in str(said.value)


def test_nothing_is_scored_and_the_model_and_the_process_stay_as_they_are() -> None:
    def scorer(outputs: Tensor, targets: Tensor) -> float:
        raise AssertionError("nothing is to be scored")

    class Drawing(Dataset[Any]):
        def __len__(self) -> int:
            return 40

        def __getitem__(self, i: int) -> Any:
            return jitter(X[i]), Y[i]

    model = Counting().train()
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    before = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    check_test(SupervisedTask(train=(X, Y), valid=Drawing(), test=Drawing(), scorer=scorer), model)
    assert (model.training, model.sizes) == (True, [])
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    after = torch.get_rng_state(), str(np.random.get_state()), random.getstate()
    assert torch.equal(after[0], before[0])
    assert after[1:] == before[1:]


def test_a_model_that_runs_on_no_data_is_not_for_the_test_split_to_mend() -> None:
    task = SupervisedTask(train=(X, Y), valid=(X[:, :3], Y), test=(X[:, :3], Y))
    check_test(task, Counting())  # the dense model's score says what is wrong


def test_a_task_that_evaluates_in_its_own_way_is_taken_at_its_word() -> None:
    class Own(SupervisedTask):
        def evaluate(self, model: nn.Module, split: Any) -> float:
            return 0.5

    check_test(Own(train=(X, Y), valid=(X, Y), test=(X[:, :3], Y)), Counting())
    check_test(SupervisedTask(train=(X, Y), valid=(X, Y)), Counting())  # no test data at all
