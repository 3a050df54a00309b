import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from autoprune import SupervisedTask
from autoprune.training.scoring import accuracy
from autoprune.training.yardstick import (
    MOST_RESAMPLED,
    Yardstick,
    score_and_yardstick,
    score_error,
    share_error,
)

X = torch.randn(200, 3, generator=torch.Generator().manual_seed(0))
CLASSES = (torch.arange(200) % 4).clamp(max=2)  # half of them are 2
NUMBERS = 3 * X[:, 0] + X[:, 1]


class Always(nn.Module):
    """Gives every sample the same answer, and has a parameter to be found by."""

    def __init__(self, *answer: float) -> None:
        super().__init__()
        self.answer = nn.Parameter(torch.tensor(answer, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        return self.answer.expand(len(x), -1)


def task_of(targets: Tensor, inputs: Tensor = X, **settings: Any) -> SupervisedTask:
    return SupervisedTask(train=(inputs, targets), valid=(inputs, targets), **settings)


def found(task: Any, model: nn.Module) -> Yardstick:
    score, yardstick = score_and_yardstick(task, model, "valid")
    assert score == task.evaluate(model, "valid")
    return yardstick


@pytest.mark.parametrize(
    ("targets", "outputs", "settings", "chance"),
    [
        (CLASSES, 3, {}, 0.5),
        (CLASSES, 3, {"scorer": "balanced_accuracy"}, 1 / 3),
        (CLASSES, 3, {"scorer": "neg_log_loss"}, -1.5 * math.log(2)),
        (nn.functional.one_hot(CLASSES).float(), 3, {}, 0.5),
        (NUMBERS, 1, {"loss": "mse"}, 0.0),
        (NUMBERS[:, None], 1, {"loss": "mse", "scorer": "r2"}, 0.0),
        (
            NUMBERS,
            1,
            {"loss": "l1", "scorer": "neg_mean_absolute_error"},
            -float((NUMBERS - NUMBERS.median()).abs().mean()),
        ),
        (
            torch.stack([CLASSES == 2, CLASSES == 0], 1).float(),
            2,
            {"loss": "bce_with_logits"},
            0.625,  # no sample is class 0 in three of four, half are class 2
        ),
    ],
    ids=["accuracy", "balanced", "log loss", "shares", "r2", "r2 of a column", "l1", "labels"],
)
def test_chance_is_what_the_best_constant_answer_scores(
    targets: Tensor, outputs: int, settings: dict[str, Any], chance: float
) -> None:
    yardstick = found(task_of(targets, **settings), nn.Linear(3, outputs))
    assert yardstick.samples == 200
    assert yardstick.chance == pytest.approx(chance, abs=1e-4)


def test_chance_of_pixels_is_that_of_the_commonest_class() -> None:
    targets = torch.zeros(10, 4, 4, dtype=torch.long)
    targets[:, 0] = 1  # a quarter of the pixels
    task = task_of(targets, torch.randn(10, 2, 4, 4))
    yardstick = found(task, nn.Conv2d(2, 3, 1))
    assert yardstick.chance == pytest.approx(0.75)
    # Its noise is that of images, each of which has 16 pixels.
    assert yardstick.standard_error is not None
    assert yardstick.standard_error < share_error(0.5, 10) / 2


@pytest.mark.parametrize(
    "settings",
    [
        {"loss": lambda outputs, targets: outputs.sum(), "scorer": accuracy},
        {"scorer": lambda outputs, targets: 1 / (len(outputs.argmax(1).unique()) - 1)},
        {"scorer": lambda outputs, targets: math.nan if outputs.std(0).sum() == 0 else 0.5},
    ],
    ids=["own loss", "scorer that raises", "scorer that is not a number"],
)
def test_chance_is_unknown_where_no_constant_answer_has_a_score(settings: dict[str, Any]) -> None:
    assert found(task_of(CLASSES, **settings), nn.Linear(3, 3)).chance is None


def test_accuracys_error_is_the_binomial_one() -> None:
    # Half are right: sqrt(0.5 * 0.5 / 202), with the rule of succession.
    yardstick = found(task_of(CLASSES), Always(0, 0, 1))
    assert yardstick.standard_error == pytest.approx(0.5 / math.sqrt(202), rel=1e-6)


def test_all_right_is_not_beyond_doubt() -> None:
    assert share_error(1.0, 20) == pytest.approx(share_error(0.0, 20))
    assert 0 < share_error(1.0, 20) < share_error(0.5, 20)
    assert share_error(1.0, 2_000) < share_error(1.0, 20)


def test_the_bootstrap_agrees_with_what_is_known_of_a_mean() -> None:
    errors = torch.randn(500, generator=torch.Generator().manual_seed(1))
    error = score_error(lambda o, t: float((o - t).mean()), errors, torch.zeros(500))
    assert error == pytest.approx(float(errors.std()) / math.sqrt(500), rel=0.25)


def test_large_splits_are_resampled_in_part_and_their_error_is_that_of_all() -> None:
    samples = 4 * MOST_RESAMPLED
    seen: list[int] = []

    def scorer(outputs: Tensor, targets: Tensor) -> float:
        seen.append(len(outputs))
        return float((outputs - targets).mean())

    errors = torch.randn(samples, generator=torch.Generator().manual_seed(2))
    error = score_error(scorer, errors, torch.zeros(samples))
    assert set(seen) == {MOST_RESAMPLED}
    assert error == pytest.approx(1 / math.sqrt(samples), rel=0.25)


def test_a_scorer_that_cannot_be_resampled_has_no_error() -> None:
    def needs_all(outputs: Tensor, targets: Tensor) -> float:
        if len(torch.unique(targets)) < 50:
            raise ValueError("a class is missing")
        return 0.5

    assert score_error(needs_all, torch.zeros(50), torch.arange(50)) is None


def test_the_same_data_give_the_same_error_and_leave_the_random_state_alone() -> None:
    state = torch.get_rng_state()
    first, second = (score_error(lambda o, t: float(o.mean()), X[:, 0], X[:, 0]) for _ in range(2))
    assert first == second
    assert torch.equal(state, torch.get_rng_state())


class OwnTask:
    """A task with no more than what a task must have."""

    metric, higher_is_better = "accuracy", True

    def batches(self, split: str, *, batch_size: int, seed: int | None) -> Any:
        return task_of(CLASSES).batches("valid", batch_size=batch_size, seed=seed)

    def evaluate(self, model: nn.Module, split: str) -> float:
        return 0.75


class OwnEvaluation(SupervisedTask):
    def evaluate(self, model: nn.Module, split: str) -> float:
        return 0.75


@pytest.mark.parametrize(
    "task", [OwnTask(), OwnEvaluation(train=(X, CLASSES), valid=(X, CLASSES))], ids=["task", "sub"]
)
def test_of_other_tasks_the_samples_are_counted(task: Any) -> None:
    expected = Yardstick(samples=200, standard_error=share_error(0.75, 200), chance=None)
    assert found(task, nn.Linear(3, 3)) == expected
    task.metric = "loss"
    assert found(task, nn.Linear(3, 3)).standard_error is None
    task.metric = "accuracy"


def test_the_split_is_read_once_where_one_pass_says_all() -> None:
    class Counting(nn.Linear):
        heard = 0

        def forward(self, x: Tensor) -> Tensor:
            self.heard += len(x)
            return super().forward(x)

    model = Counting(3, 3)
    score, yardstick = score_and_yardstick(task_of(CLASSES), model, "valid")
    assert model.heard == len(X)
    assert score == yardstick.score


def test_a_task_may_bring_its_own() -> None:
    class Measured(OwnTask):
        def yardstick(self, model: nn.Module, split: str) -> Yardstick:
            return Yardstick(samples=7, standard_error=0.5, chance=0.1)

    assert found(Measured(), nn.Linear(3, 3)).samples == 7


def test_several_outputs_have_noise_and_no_chance() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.one(x), self.one(x)

    task = task_of(
        CLASSES,
        loss=lambda outputs, targets: nn.functional.cross_entropy(outputs[0], targets),
        scorer=lambda outputs, targets: accuracy(outputs[0], targets),
    )
    yardstick = found(task, Two())
    assert yardstick.chance is None
    assert yardstick.standard_error is not None
    share = task.evaluate(Two(), "valid")
    assert np.isfinite(share)
    assert yardstick.standard_error < 0.1
