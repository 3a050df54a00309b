from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import NETS
from torch import Tensor, nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
)

from autoprune import AutopruneError, SupervisedTask
from autoprune.training.task import Task

X = torch.arange(20.0).reshape(10, 2)
Y = torch.arange(10) % 3


class Items(Dataset[Any]):
    """A data set that gives whatever `item` makes of a position."""

    def __init__(self, item: Any) -> None:
        self.item = item

    def __len__(self) -> int:
        return 10

    def __getitem__(self, i: int) -> Any:
        return self.item(i)


class Unsized(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return zip(X, Y, strict=True)


class Sized(Unsized):
    def __len__(self) -> int:
        return 10


def task_of(source: Any, **settings: Any) -> SupervisedTask:
    return SupervisedTask(train=source, valid=source, **settings)


def all_of(task: SupervisedTask, seed: int | None = None) -> tuple[Tensor, Tensor]:
    batches = list(task.batches("train", batch_size=4, seed=seed))
    assert [len(b.targets) for b in batches] == [4, 4, 2]
    assert len(task.batches("train", batch_size=4, seed=seed)) == 3
    return torch.cat([b.inputs for b in batches]), torch.cat([b.targets for b in batches])


SOURCES = {
    "tensors": (X, Y),
    "arrays": (X.double().numpy(), Y.numpy().astype(np.int32)),
    "lists": (X.tolist(), Y.tolist()),
    "tensor_dataset": TensorDataset(X, Y),
    "dataset": Items(lambda i: (X[i], Y[i])),
    "loader": DataLoader(TensorDataset(X, Y), batch_size=4),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_source_gives_the_same_batches(kind: str) -> None:
    task = task_of(SOURCES[kind])
    assert isinstance(task, Task)
    x, y = all_of(task)
    assert x.dtype == torch.float32
    assert y.dtype == torch.int64
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


@pytest.mark.parametrize("kind", ["tensors", "tensor_dataset", "dataset"])
def test_a_seed_shuffles(kind: str) -> None:
    task = task_of(SOURCES[kind])
    x, y = all_of(task, seed=0)
    assert not torch.equal(x, X)
    assert torch.equal(x[x[:, 0].argsort()], X)
    assert torch.equal(y, Y[(x[:, 0] / 2).long()])
    assert torch.equal(all_of(task, seed=0)[0], x)
    assert not torch.equal(all_of(task, seed=1)[0], x)


def drawing(kind: str, generator: torch.Generator) -> DataLoader[Any]:
    """Return a loader of which one part draws from `generator`."""
    data = Items(lambda i: (X[i], Y[i]))
    if kind == "loader":
        return DataLoader(data, batch_size=4, shuffle=True, generator=generator)
    sampler = RandomSampler(data, num_samples=30, generator=generator)  # drawn as it goes on
    if kind == "sampler":
        return DataLoader(data, batch_size=4, sampler=sampler)
    return DataLoader(data, batch_sampler=BatchSampler(sampler, batch_size=4, drop_last=False))


@pytest.mark.parametrize("kind", ["loader", "sampler", "batch_sampler"])
def test_a_seed_decides_the_order_of_a_loader_with_a_generator(kind: str) -> None:
    generator = torch.Generator().manual_seed(3)
    task = task_of(drawing(kind, generator))
    before = generator.get_state(), torch.get_rng_state()

    def order(seed: int) -> list[int]:
        batches = task.batches("train", batch_size=4, seed=seed)
        return torch.cat([batch.targets for batch in batches]).tolist()

    first = order(5)
    assert order(6) != first
    next(iter(task.batches("train", batch_size=4, seed=5)))  # and no further
    torch.rand(3, generator=generator)
    assert order(5) == first
    generator.set_state(before[0])
    order(5)
    assert torch.equal(generator.get_state(), before[0])
    assert torch.equal(torch.get_rng_state(), before[1])


def test_batches_in_memory_say_where_they_are_from() -> None:
    for batch in task_of((X, Y)).batches("train", batch_size=3, seed=5):
        assert torch.equal(batch.inputs, X[batch.index])
    [batch] = task_of(SOURCES["dataset"]).batches("train", batch_size=10, seed=5)
    assert batch.index is None


def test_a_stream_with_a_length_is_served_by_its_loader() -> None:
    x, y = all_of(task_of(DataLoader(Sized(), batch_size=4)), seed=0)
    assert torch.equal(x, X)
    assert torch.equal(y, Y)


def test_a_loader_keeps_its_batch_size() -> None:
    task = task_of(DataLoader(TensorDataset(X, Y), batch_size=5))
    assert task.fixed_batch_size == 5
    assert len(task.batches("train", batch_size=2, seed=0)) == 2
    assert task_of((X, Y)).fixed_batch_size is None


@pytest.mark.parametrize("key", ["labels", "label", "targets", "target"])
def test_dict_items_carry_their_targets(key: str) -> None:
    task = task_of(Items(lambda i: {"x": X[i], key: Y[i], "mask": X[i, 0]}))
    [batch] = task.batches("train", batch_size=10, seed=None)
    assert batch.inputs.keys() == {"x", "mask"}
    assert torch.equal(batch.inputs["x"], X)
    assert torch.equal(batch.targets, Y)


def test_long_items_have_several_inputs() -> None:
    task = task_of(Items(lambda i: (X[i], X[i, 0], Y[i])))
    [batch] = task.batches("train", batch_size=10, seed=None)
    assert torch.equal(batch.inputs[1], X[:, 0])
    assert torch.equal(batch.targets, Y)


@pytest.mark.parametrize("name", ["two_inputs", "dict_input"])
def test_nets_with_several_inputs_are_trained_and_judged(name: str) -> None:
    factory, example = NETS[name]
    model = factory()
    inputs = {k: v.numpy() for k, v in example.items()} if name == "dict_input" else example
    task = task_of((inputs, np.array([0, 2])))
    [batch] = task.batches("train", batch_size=2, seed=0)
    loss, outputs = task.step(model, batch)
    assert torch.equal(loss, F.cross_entropy(outputs, batch.targets))
    guesses = outputs.argmax(1)
    assert task.evaluate(model, "valid") == float((guesses == batch.targets).float().mean())


# --- bad data -----------------------------------------------------------------------------------


def spoiled(value: float) -> Tensor:
    x = X.clone()
    x[3, 1] = x[7, 0] = value
    return x


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ((X, Y[:7]), "train inputs and targets must have the same length, but have 7 and 10"),
        (((X, X[:4]), Y), "same length, but have 4 and 10"),
        ((X[:0], Y[:0]), "train data must not be empty"),
        (Items(None), None),
        ((spoiled(float("nan")), Y), "2 of its values are NaN or infinite"),
        ((spoiled(float("inf")).numpy(), Y), "2 of its values are NaN or infinite"),
        (({"a": X, "b": spoiled(float("nan"))}, Y), "must be finite"),
        (7, "must be .inputs, targets., a Dataset or a DataLoader, but is a int"),
        ([], "must not be empty"),
        (None, "`train` must be .inputs, targets., a Dataset or a DataLoader, but is None"),
        (TensorDataset(X), r"must give \(inputs, targets\) .* but it gave a tuple of length 1"),
        (Unsized(), "give it a `__len__` and wrap it in a DataLoader"),
        (DataLoader(Unsized()), "The train data must have a length, but their DataLoader has none"),
    ],
)
def test_bad_data_are_refused(source: Any, message: str | None) -> None:
    if message is None:
        source.item = lambda i: 3.0
        with pytest.raises(AutopruneError, match=r"must give \(inputs, targets\) or a dict"):
            next(iter(task_of(DataLoader(source)).batches("train", batch_size=1, seed=0)))
        return
    with pytest.raises(AutopruneError, match=message):
        SupervisedTask(train=source, valid=(X, Y))


def test_every_split_is_checked() -> None:
    with pytest.raises(AutopruneError, match="`valid` must be"):
        SupervisedTask(train=(X, Y), valid=None)
    for split in ("valid", "test"):
        with pytest.raises(AutopruneError, match=f"The {split} data must be finite"):
            SupervisedTask(**{"train": (X, Y), "valid": (X, Y), split: (spoiled(np.nan), Y)})


def test_a_missing_test_split_is_named() -> None:
    task = task_of((X, Y))
    assert not task.has_test
    with pytest.raises(AutopruneError, match="must have test data"):
        task.evaluate(nn.Linear(2, 3), "test")
    assert SupervisedTask(train=(X, Y), valid=(X, Y), test=(X, Y)).has_test


def test_unknown_names_are_refused() -> None:
    with pytest.raises(AutopruneError, match=r"Unknown loss 'mes'.*Did you mean 'mse'"):
        task_of((X, Y), loss="mes")
    with pytest.raises(AutopruneError, match=r"Unknown scorer 'f1_marco'.*Did you mean 'f1_macro'"):
        task_of((X, Y), scorer="f1_marco")


# --- losses and scores --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "function"),
    [
        ("mse", F.mse_loss),
        ("l1", F.l1_loss),
        ("bce_with_logits", F.binary_cross_entropy_with_logits),
    ],
)
def test_flat_targets_fit_a_column_of_outputs(loss: str, function: Any) -> None:
    model = nn.Linear(2, 1)
    task = task_of((X, (Y > 0).long()), loss=loss)
    [batch] = task.batches("train", batch_size=10, seed=None)
    value, outputs = task.step(model, batch)
    torch.testing.assert_close(value, function(outputs[:, 0], (Y > 0).float()))


def test_class_probabilities_are_targets_too() -> None:
    soft = F.one_hot(Y, 3) * 0.8 + 0.1
    task = task_of((X, soft))
    model = nn.Linear(2, 3)
    [batch] = task.batches("train", batch_size=10, seed=None)
    loss, outputs = task.step(model, batch)
    torch.testing.assert_close(loss, -(soft * outputs.log_softmax(1)).sum(1).mean())
    assert task.evaluate(model, "valid") == pytest.approx(
        float((outputs.argmax(1) == Y).float().mean())
    )


def test_default_scorers() -> None:
    named = {loss: task_of((X, X[:, 0]), loss=loss).metric for loss in ("mse", "l1")}
    assert named == {"mse": "r2", "l1": "r2"}
    assert task_of((X, Y)).metric == "accuracy"
    assert task_of((X, Y > 0), loss="bce_with_logits").metric == "accuracy"


def test_a_scorer_function_says_which_way_is_up() -> None:
    def worst(outputs: Tensor, targets: Tensor) -> float:
        return float((outputs[:, 0] - targets).abs().max())

    model = nn.Linear(2, 1)
    task = task_of((X, X[:, 0]), loss="mse", scorer=worst, higher_is_better=False)
    assert (task.metric, task.higher_is_better) == ("worst", False)
    expected = (model(X)[:, 0] - X[:, 0]).abs().max().item()
    assert task.evaluate(model, "valid") == pytest.approx(expected)
    assert task_of((X, Y), scorer=worst, metric="regret").metric == "regret"


def test_a_named_scorer_is_always_high() -> None:
    task = task_of((X, Y), scorer="neg_log_loss", higher_is_better=False)
    assert task.higher_is_better


def test_large_splits_are_judged_whole() -> None:
    x = torch.randn(2_500, 2)
    task = task_of((x, (x[:, 0] > 0).long()))
    model = nn.Linear(2, 2)
    expected = (model(x).argmax(1) == (x[:, 0] > 0)).float().mean()
    assert task.evaluate(model, "valid") == pytest.approx(float(expected))


def test_judging_turns_dropout_off() -> None:
    model = nn.Sequential(nn.Dropout(0.9), nn.Linear(2, 3)).train()
    task = task_of((X, Y), scorer=lambda outputs, _: float(outputs.sum()))
    assert task.evaluate(model, "valid") == task.evaluate(model, "valid")


# --- augmentation and distance ------------------------------------------------------------------


def test_only_training_inputs_are_augmented() -> None:
    task = task_of((X, Y), augment=lambda x: -x)
    [batch] = task.batches("train", batch_size=10, seed=3)
    [plain] = task_of((X, Y)).batches("train", batch_size=10, seed=3)
    assert torch.equal(batch.inputs, -plain.inputs)
    assert torch.equal(batch.targets, plain.targets)
    assert batch.index is None  # the same position has other inputs next time
    assert torch.equal(all_of(task)[0], X)
    [valid] = task.batches("valid", batch_size=10, seed=3)
    assert torch.equal(valid.inputs.sort(0).values, X)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_distance_is_softened_divergence(temperature: float) -> None:
    student, teacher = torch.randn(5, 3), torch.randn(5, 3)
    task = task_of((X, Y))
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    expected = temperature**2 * (p * (p / q).log()).sum() / 5
    torch.testing.assert_close(task.distance(student, teacher, temperature), expected)
    assert float(task.distance(teacher, teacher, temperature)) == pytest.approx(0, abs=1e-6)


def test_distance_of_numbers_is_squared() -> None:
    task = task_of((X, X[:, 0]), loss="mse")
    outputs, teacher = (torch.ones(4, 1), torch.zeros(2)), (torch.zeros(4, 1), torch.full((2,), 3))
    assert float(task.distance(outputs, teacher, 2.0)) == 1.0 + 9.0


def test_a_lone_last_sample_is_trained_with_the_batch_before() -> None:
    x, y = torch.randn(65, 4), torch.arange(65) % 3
    task = SupervisedTask(train=(x, y), valid=(x, y))
    sizes = [len(b.targets) for b in task.batches("train", batch_size=16, seed=0)]
    assert sizes == [16, 16, 16, 17]
    assert len(task.batches("train", batch_size=16, seed=0)) == 4


def test_binary_scorers_take_float_targets() -> None:
    x = torch.randn(40, 4)
    y = (x[:, :1] > 0).float()
    net = torch.nn.Linear(4, 1)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0, 0, 0]]))
        net.bias.zero_()
    for scorer in ("roc_auc", "f1", "accuracy"):
        task = SupervisedTask(train=(x, y), valid=(x, y), loss="bce_with_logits", scorer=scorer)
        assert task.evaluate(net, "valid") == 1.0


def test_several_labels_a_sample_count_one_by_one() -> None:
    x = torch.tensor([[1.0, 9, -1, -1]] * 3)
    y = torch.tensor([[1.0, 1, 0, 1]] * 3)
    task = SupervisedTask(train=(x, y), valid=(x, y), loss="bce_with_logits")
    assert task.evaluate(torch.nn.Identity(), "valid") == 0.75


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (torch.rand(10), "class numbers or rows of probabilities"),
        (["a"] * 10, "Data must be numbers"),
    ],
)
def test_targets_that_are_no_classes_are_refused(targets: object, message: str) -> None:
    x = torch.randn(10, 4)
    with pytest.raises(AutopruneError, match=message):
        SupervisedTask(train=(x, targets), valid=(x, targets))


def test_whole_numbers_and_outputs_of_training_alone_teach_nothing() -> None:
    task = task_of((X, X[:, 0]), loss="mse")
    outputs = (torch.ones(4, 1), torch.arange(4), torch.zeros(4, 3))  # a class, another head
    assert float(task.distance(outputs, (torch.zeros(4, 1), torch.zeros(4).long()), 1.0)) == 1.0
    with pytest.raises(AutopruneError, match="distill_weight=0"):
        task.distance(torch.arange(4), torch.arange(4), 1.0)


class Answer(NamedTuple):
    scores: Tensor
    classes: Tensor


class Answering(nn.Linear):
    def forward(self, x: Tensor) -> Any:
        scores = super().forward(x)
        return Answer(scores, scores.argmax(1))


def test_named_tuples_are_judged_whole() -> None:
    def scorer(outputs: Answer, targets: Tensor) -> float:
        assert torch.equal(outputs.scores.argmax(1), outputs.classes)
        return float(len(outputs.classes) == len(targets))

    x = torch.randn(2_500, 2)
    task = task_of((x, (x[:, 0] > 0).long()), scorer=scorer, loss=lambda o, y: o.scores.sum())
    assert task.evaluate(Answering(2, 2), "valid") == 1.0
