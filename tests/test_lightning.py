"""A LightningModule is trained by its own steps, as a Trainer would, and comes back smaller."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT, UNTRACKED, environment

pytest.importorskip("lightning", reason="needs Lightning: pip install 'autoprune[lightning]'")

import lightnings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightnings import Blobs, Net
from nets import same_state
from torch import nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    LinearLR,
    MultiStepLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import CatMetric
from torchmetrics.classification import MulticlassAccuracy

import autoprune
from autoprune import AutopruneError, FineTune, SearchResult, Space
from autoprune.jobs import dense_model
from autoprune.lightning import LightningTask, study_from
from autoprune.lightning.checks import UNUSED
from autoprune.lightning.metrics import metrics_in
from autoprune.training.checkpoint import TrainingState
from autoprune.training.distill import Teacher, to_batch
from autoprune.training.finetune import finetune
from autoprune.training.optimise import OneCycle, Optimisation, optimisation_for

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

EPOCHS = 3
OWN = FineTune(epochs=EPOCHS, lr=1e-2)


ONE: dict[str, Any] = {"batch_size": 1, "seed": 0}


class InOrder(Blobs):
    """The same batches for a Trainer and for us, who shuffle by seeds of our own."""

    def train_dataloader(self) -> Any:
        return DataLoader(self.train, batch_size=20)


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SearchResult:
    study = study_from(
        Net,
        Blobs(),
        monitor="val_acc",
        name="lightning",
        train_epochs=4,
        final_epochs=1,
        space=Space(epochs=2, lr=(5e-3, 2e-2), sparsify=("none", "group_lasso"), sparsify_epochs=1),
    )
    return autoprune.search(study, budget=3, out=tmp_path_factory.mktemp("lightning"), **UNTRACKED)


def test_a_search_ends_with_smaller_modules_of_the_same_class(result: SearchResult) -> None:
    assert result.metric == "val_acc"
    assert result.dense.valid > 0.9
    assert result.front
    for model in result.front:
        net = autoprune.load(result.out / model.path, model=Net())
        assert type(net) is Net
        assert net.head.in_features == net.body[0].out_features
        assert sum(p.numel() for p in net.parameters()) == model.params < result.dense.params
        task = LightningTask(Blobs(), monitor="val_acc")
        assert task.evaluate(net, "valid") == pytest.approx(model.valid)
        assert task.evaluate(net, "test") == pytest.approx(model.test)
        files = {file.name for file in (result.out / model.path).iterdir()}
        assert {"model.safetensors", "model.pt2", "model.onnx"} <= files


def one_cycle(net: Net) -> Any:
    return Net.configure_optimizers(net)


def plateau(net: Net) -> Any:
    optimizer = AdamW(net.parameters(), lr=1e-2)
    schedule = ReduceLROnPlateau(optimizer, patience=0, threshold=10.0, factor=0.3)
    return {"optimizer": optimizer, "lr_scheduler": schedule, "monitor": "val_loss"}


def with_lists(net: Net) -> Any:
    optimizer = SGD(net.parameters(), lr=1e-2, momentum=0.5)
    every_second = {"scheduler": StepLR(optimizer, 1, gamma=0.5), "interval": "step"}
    return [optimizer], [every_second | {"frequency": 4}, LinearLR(optimizer, 0.5, total_iters=2)]


def cosine(net: Net) -> Any:
    optimizer = SGD(net.parameters(), lr=1e-2)
    return [optimizer], [CosineAnnealingLR(optimizer, net.trainer.max_epochs)]


def milestones(net: Net) -> Any:
    optimizer = SGD(net.parameters(), lr=1e-2)
    return [optimizer], [MultiStepLR(optimizer, [2])]


def milestones_at_last(net: Net) -> Any:
    optimizer = SGD(net.parameters(), lr=1e-2)
    rising = LinearLR(optimizer, 0.5, total_iters=1)
    falling = MultiStepLR(optimizer, [1, 1])
    return [optimizer], [SequentialLR(optimizer, [rising, falling], milestones=[1])]


FORMS: dict[str, Callable[[Net], Any]] = {
    "optimizer": lambda net: AdamW(net.parameters(), lr=1e-2),
    "list": lambda net: [SGD(net.parameters(), lr=1e-2, momentum=0.9)],
    "tuple of lists": cosine,
    "several schedules": with_lists,
    "dict": lambda net: {"optimizer": AdamW(net.parameters(), lr=1e-2)},
    "steps": one_cycle,
    "plateau": plateau,
    "milestones": milestones,
    "milestones at last": milestones_at_last,
}


def configured_by(form: Callable[[Net], Any], seed: int = 0) -> Net:
    torch.manual_seed(seed)
    kind = type("Configured", (Net,), {"configure_optimizers": form})
    net = kind()
    assert isinstance(net, Net)
    return net


def fitted(net: Net, folder: Path) -> Trainer:
    """Return a Trainer that has trained a module."""
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(net, InOrder())
    return trainer


@pytest.mark.filterwarnings("ignore")
def test_a_trainers_checkpoint_is_the_dense_model(tmp_path: Path) -> None:
    net = Net()
    fitted(net, tmp_path).save_checkpoint(tmp_path / "best.ckpt")
    study = study_from(Net, Blobs(), monitor="val_acc", checkpoint=tmp_path / "best.ckpt")
    dense = dense_model(study)
    assert type(dense) is Net
    assert same_state(dense.state_dict(), net.state_dict())


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_training_comes_to_what_a_trainer_comes_to(form: str, tmp_path: Path) -> None:
    ours, theirs = configured_by(FORMS[form]), configured_by(FORMS[form])
    trainer = fitted(theirs, tmp_path)
    task = LightningTask(InOrder(), monitor="val_loss")
    epochs = list(finetune(ours, task, OWN))
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, msg=name)
    assert epochs[-1].valid == pytest.approx(float(trainer.callback_metrics["val_loss"]))
    assert ours._trainer is None
    assert "log" not in vars(ours)
    accuracy = LightningTask(InOrder(), monitor="val_acc").evaluate(ours, "valid")
    assert accuracy == pytest.approx(float(trainer.callback_metrics["val_acc"]))


def test_the_plans_rate_scales_the_modules_own() -> None:
    net = configured_by(FORMS["steps"])
    task = LightningTask(Blobs(), monitor="val_acc")
    settings = replace(OWN, lr=5e-2)
    rates = []
    running = optimisation_for(task, net, settings, steps=18)
    for _ in range(18):
        rates.append(running.lr)
        running.step()
        running.after_step()
    assert max(rates) == pytest.approx(5e-2, rel=0.02)
    ahead = optimisation_for(task, net, settings, steps=18)
    assert ahead.total_rate() == pytest.approx(sum(rates))


@pytest.mark.parametrize("form", FORMS)
def test_training_goes_on_from_where_it_stood(form: str) -> None:
    task = LightningTask(Blobs(), monitor="val_acc")
    whole = configured_by(FORMS[form])
    states: list[TrainingState | None] = []
    expected = list(
        finetune(whole, task, OWN, seed=3, keep=lambda state: states.append(_copied(state())))
    )
    assert states[0] is not None
    other = configured_by(FORMS[form], seed=9)
    rest = list(finetune(other, task, OWN, seed=3, start=states[0]))
    assert [epoch.epoch for epoch in rest] == [2, 3]
    assert rest == expected[1:]
    assert same_state(other.state_dict(), whole.state_dict())


def _copied(state: TrainingState | None) -> TrainingState | None:
    if state is None:
        return None
    return replace(state, tensors={name: t.clone() for name, t in state.tensors.items()})


def test_distillation_is_added_from_outside() -> None:
    torch.manual_seed(0)
    task = LightningTask(Blobs(), monitor="val_acc")
    student, dense = Net().eval(), Net().eval()
    batch = next(iter(task.batches("train", batch_size=20, seed=0)))
    loss, outputs = task.step(student, batch)
    x, y = batch.targets
    assert torch.equal(outputs, student(x))
    assert torch.equal(loss, F.cross_entropy(student(x), y))
    answers = Teacher(dense, task).outputs(batch)
    kl = F.kl_div(student(x).log_softmax(1), dense(x).softmax(1), reduction="batchmean")
    torch.testing.assert_close(task.distance(outputs, answers, 1.0), kl)
    squared = LightningTask(Blobs(), monitor="val_acc", distance="squared")
    assert torch.equal(squared.distance(outputs, answers, 1.0), F.mse_loss(outputs, answers))
    told = LightningTask(Blobs(), monitor="val_acc", inputs=lambda item: item[0])
    torch.testing.assert_close(told.distance(outputs, answers, 1.0), kl)


def test_what_a_module_is_called_with_may_be_told() -> None:
    class Bare(Blobs):
        """Batches that are one tensor: the label is the last column."""

        def setup(self, stage: str) -> None:
            super().setup(stage)
            for name in ("train", "val") if stage == "fit" else ("test",):
                x, y = getattr(self, name).tensors
                setattr(self, name, torch.cat([x, y[:, None]], 1))

    def inputs(item: Any) -> Any:
        return item[:, :8]

    task = LightningTask(Bare(), monitor="val_acc", inputs=inputs)
    batch = next(iter(task.batches("train", batch_size=20, seed=0)))
    assert batch.inputs.shape == (20, 8)
    one, other = torch.randn(2, 4, 3)
    assert torch.equal(task.distance(one, other, 1.0), F.mse_loss(one, other))
    softened = LightningTask(Bare(), monitor="val_acc", inputs=inputs, distance="softened")
    assert not torch.equal(softened.distance(one, other, 1.0), F.mse_loss(one, other))


class Wrapping(Net):
    """Calls its parts, not itself, and answers with a dict."""

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        logits = self.head(self.body(x))
        self.accuracy(logits, y)
        return {"loss": F.cross_entropy(logits, y)}


def test_a_step_that_calls_the_parts_is_listened_to() -> None:
    task = LightningTask(Blobs(), monitor="val_acc")
    net = Wrapping().eval()
    batch = next(iter(task.batches("train", batch_size=20, seed=0)))
    _, outputs = task.step(net, batch)
    assert torch.equal(outputs, net(batch.inputs))
    assert float(net.accuracy.tp.sum()) == 0  # else it would grow for as long as a search lasts


class Counting(Net):
    """Asks its metrics at the end of an epoch, after validation."""

    def __init__(self) -> None:
        super().__init__()
        self.of_epoch = MulticlassAccuracy(3, average="micro")
        self.labels = CatMetric()
        self.seen: list[tuple[float, list[float]]] = []

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        x, y = batch
        self.labels(y.float())
        logits = self(x)
        self.of_epoch(logits, y)
        self.log("train_acc", self.of_epoch, on_epoch=True)
        self.log("labels", self.labels, on_epoch=True)
        return F.cross_entropy(logits, y)

    def on_train_epoch_end(self) -> None:
        self.seen.append((float(self.of_epoch.compute()), self.labels.compute().tolist()))


@pytest.mark.filterwarnings("ignore")
def test_metrics_count_over_an_epoch_as_a_trainers_do(tmp_path: Path) -> None:
    ours, theirs = Counting(), Counting()
    theirs.load_state_dict(ours.state_dict())
    fitted(theirs, tmp_path)
    list(finetune(ours, LightningTask(InOrder(), monitor="val_acc"), OWN))
    assert len(ours.seen) == EPOCHS
    assert ours.seen == theirs.seen


def test_only_the_training_of_a_module_counts() -> None:
    task = LightningTask(Blobs(), monitor="val_acc")
    net, dense = Wrapping(), Counting()
    settings = replace(OWN, distill_weight=0.5)
    epochs = list(finetune(net, task, settings, teacher=Teacher(dense, task)))
    assert epochs[-1].valid == task.evaluate(net, "valid")  # the metric counts in training, too
    assert [metric.update_count for metric in metrics_in(net) + metrics_in(dense)] == [0] * 4
    other = Counting()
    other.labels.update(torch.ones(2))
    task.step(other, next(iter(task.batches("train", batch_size=1, seed=0))))
    task.evaluate(other, "valid")
    assert other.labels.compute().tolist() == [1.0, 1.0]


class Decorated(Net):
    """Its steps leave out the batch's number, and are wrapped."""

    @torch.enable_grad()
    def training_step(self, batch: Any) -> Any:
        return super().training_step(batch, 0)

    @torch.no_grad()
    def validation_step(self, batch: Any) -> None:
        super().validation_step(batch, 0)


class DecoratedNumbered(Net):
    @torch.no_grad()
    def validation_step(self, batch: Any, batch_idx: int) -> None:
        super().validation_step(batch, batch_idx)


@pytest.mark.parametrize("kind", [Decorated, DecoratedNumbered])
def test_a_decorated_step_gets_what_it_takes(kind: type[Net]) -> None:
    task = LightningTask(Blobs(), monitor="val_acc")
    plain, decorated = Net(), kind()
    decorated.load_state_dict(plain.state_dict())
    assert task.evaluate(decorated, "valid") == task.evaluate(plain, "valid")
    batch = next(iter(task.batches("train", batch_size=20, seed=0)))
    assert torch.equal(task.step(decorated, batch)[0], task.step(plain, batch)[0])


class Asking(Net):
    def on_train_epoch_start(self) -> None:
        self.seen = [*getattr(self, "seen", []), (self.current_epoch, self.trainer.max_epochs)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        assert self.trainer.training
        assert not hasattr(self.trainer, "profiler")
        assert batch_idx == self.global_step % self.trainer.num_training_batches
        return super().training_step(batch, batch_idx)


def test_a_module_may_ask_where_its_training_stands() -> None:
    net = Asking()
    list(finetune(net, LightningTask(Blobs(), monitor="val_acc"), OWN))
    assert net.seen == [(0, 3), (1, 3), (2, 3)]


CALLED = (
    "on_train_start",
    "on_train_epoch_start",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_start",
    "on_validation_batch_start",
    "on_validation_batch_end",
    "on_validation_epoch_end",
    "on_validation_end",
)


class Noting(Net):
    """Notes its hooks as they are called, and what it knows of its training then."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[Any, ...]] = []


def _noting(hook: str) -> Any:
    def note(self: Noting, *given: Any) -> None:
        numbers = [entry for entry in given if isinstance(entry, int)]
        self.seen.append((hook, self.current_epoch, self.global_step, self.training, *numbers))

    return note


for _hook in CALLED:
    setattr(Noting, _hook, _noting(_hook))


@pytest.mark.filterwarnings("ignore")
def test_hooks_are_called_when_a_trainer_calls_them(tmp_path: Path) -> None:
    ours, theirs = Noting(), Noting()
    fitted(theirs, tmp_path)
    list(finetune(ours, LightningTask(InOrder(), monitor="val_acc"), OWN))
    assert {hook for hook, *_ in ours.seen} == set(CALLED)
    assert ours.seen == theirs.seen
    listed = (ROOT / "docs/lightning.md").read_text()
    assert all(f"`{h}`" in listed or h.startswith("on_validation_") for h in CALLED)


def test_a_training_that_goes_on_starts_too() -> None:
    task = LightningTask(Blobs(), monitor="val_acc")
    states: list[TrainingState | None] = []
    list(finetune(Noting(), task, OWN, keep=lambda state: states.append(_copied(state()))))
    again = Noting()
    list(finetune(again, task, OWN, start=states[0]))
    starts = [
        entry[:2] for entry in again.seen if entry[0].endswith(("train_start", "epoch_start"))
    ]
    assert starts[:2] == [("on_train_start", 1), ("on_train_epoch_start", 1)]
    assert [hook for hook, _ in starts].count("on_train_start") == 1


@pytest.mark.parametrize("form", ["steps", "plateau"])
def test_what_a_sparsifier_trains_beside_follows_one_cycle(form: str) -> None:
    task = LightningTask(Blobs(), monitor="val_acc")

    def group() -> list[dict[str, Any]]:
        return [{"params": [nn.Parameter(torch.ones(2))], "lr": 0.3}]

    def rates(running: Optimisation, steps: int) -> list[float]:
        found = []
        for _ in range(steps):
            found.append(running.optimizers[-1].param_groups[-1]["lr"])
            running.step()
            running.after_step()
        return found

    expected = rates(OneCycle(nn.Linear(1, 1), OWN, 18, group()), 18)
    assert max(expected) == pytest.approx(0.3)
    running = task.optimisation(configured_by(FORMS[form]), OWN, 18, group())
    first = rates(running, 6)
    told = running.state()
    assert told is not None
    later = task.optimisation(configured_by(FORMS[form]), OWN, 18, group())
    later.load_state(told)
    assert first + rates(later, 12) == expected


def test_a_batch_that_is_held_twice_is_moved_once() -> None:
    batch = next(iter(LightningTask(Blobs(), monitor="val_acc").batches("train", **ONE)))
    moved = to_batch(batch, torch.device("meta"))
    assert moved.inputs.device.type == "meta"
    assert moved.inputs is moved.targets[0]


class Transferring(Blobs):
    """Changes a batch on its way, and notes what the Trainer was said to be at."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, str]] = []

    def note(self, hook: str) -> None:
        at = [name for name in ("training", "validating", "testing") if getattr(self.trainer, name)]
        self.seen.append((hook, " ".join(at)))

    def prepare_data(self) -> None:
        self.note("prepare_data")

    def setup(self, stage: str) -> None:
        self.note(f"setup {stage}")
        super().setup(stage)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.note("before")
        x, y = batch
        return x + 1, y

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        self.note("after")
        x, y = batch
        return x * (2 if self.trainer.training else 1), y


def test_the_datas_hooks_change_a_batch_and_know_its_split() -> None:
    data = Transferring()
    task = LightningTask(data, monitor="val_acc")
    assert data.seen[:2] == [("prepare_data", "training"), ("setup fit", "training")]
    assert ("setup test", "testing") in data.seen
    plain = LightningTask(Blobs(), monitor="val_acc")
    for split, at in (("train", "training"), ("valid", "validating"), ("test", "testing")):
        data.seen = []
        mine, theirs = (
            next(iter(one.batches(split, batch_size=20, seed=0))) for one in (task, plain)
        )
        assert data.seen == [("before", at), ("after", at)]
        expected = (theirs.inputs + 1) * (2 if split == "train" else 1)
        assert torch.equal(mine.inputs, expected)
        assert torch.equal(mine.targets[0], expected)
    data.seen = []
    list(finetune(Net(), task, OWN))
    assert data.seen == [
        (hook, at)
        for at, batches in [("training", 6), ("validating", 2)] * EPOCHS
        for _ in range(batches)
        for hook in ("before", "after")
    ]
    assert data.trainer.max_epochs == EPOCHS


# --- bad input ----------------------------------------------------------------------------------


class NoStep(LightningModule):
    def forward(self, x: Any) -> Any:
        return x


class Manual(Net):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


class Lossless(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return None


class Curious(Net):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return self.trainer.strategy.reduce(1)


class OneLoss(LightningTask):
    def step(self, model: nn.Module, batch: Any) -> Any:
        x, y = batch.targets
        logits = model(x)
        return F.cross_entropy(logits, y), logits

    def optimisation(self, *arguments: Any) -> Any:
        return OneCycle(*arguments)


def test_a_module_that_optimises_by_itself_has_a_task_of_its_own() -> None:
    net, task = Manual(), OneLoss(Blobs(), monitor="val_acc")
    before = task.evaluate(net, "valid")
    epochs = list(finetune(net, task, FineTune(epochs=4, lr=2e-2), teacher=Teacher(Net(), task)))
    assert epochs[-1].valid > max(before, 0.8)


def several(net: Net) -> Any:
    return [SGD(net.body.parameters(), lr=1e-2), SGD(net.head.parameters(), lr=1e-2)]


class Endless(Blobs):
    def train_dataloader(self) -> Any:
        return DataLoader(_Endless(), batch_size=2)


class _Endless(IterableDataset[Any]):
    def __iter__(self) -> Any:
        yield from ()


class Several(Blobs):
    def val_dataloader(self) -> Any:
        return [super().val_dataloader()] * 2


class Carrying(Blobs):
    def transfer_batch_to_device(self, batch: Any, device: Any, dataloader_idx: int) -> Any: ...


def warming_up(net: Net) -> Any:
    optimizer = SGD(net.parameters(), lr=1e-2)
    steps, epochs = net.trainer.estimated_stepping_batches, net.trainer.max_epochs
    rising = LinearLR(optimizer, 0.1, total_iters=steps // epochs)
    rest = 1 / (steps - net.trainer.num_training_batches)  # of one epoch: there is none
    falling = StepLR(optimizer, 1, gamma=1 - rest)
    schedule = SequentialLR(optimizer, [rising, falling], [steps // epochs])
    return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def test_a_module_is_checked_with_as_many_steps_as_it_will_have() -> None:
    study = study_from(configured_by(warming_up), Blobs(), monitor="val_acc")
    assert study.space.lr == pytest.approx((1e-2 / 3, 3e-2))
    seen = []

    def noted(net: Net) -> Any:
        trainer = net.trainer
        seen.append((trainer.max_epochs, trainer.num_training_batches, trainer.max_steps))
        return SGD(net.parameters(), lr=1e-2)

    for options in ({"train_epochs": 7}, {"space": Space(epochs=(2, 5))}, {}):
        study_from(configured_by(noted), Blobs(), monitor="val_acc", **options)
    assert seen == [(7, 6, 42), (5, 6, 30), (16, 6, 96)]


def waiting(monitor: str | None, **more: Any) -> Callable[[], Net]:
    def form(net: Net) -> Any:
        optimizer = SGD(net.parameters(), lr=1e-2)
        scheduler = {"scheduler": ReduceLROnPlateau(optimizer), "monitor": monitor, **more}
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    return lambda: configured_by(form)


def test_a_plateau_that_need_not_be_logged_is_not_waited_for() -> None:
    net = waiting("train_loss", strict=False)()
    study = study_from(net, Blobs(), monitor="val_acc")
    assert len(list(finetune(net, study.task, replace(OWN, epochs=1)))) == 1


def test_a_plateau_that_is_not_logged_stops_a_training() -> None:
    task = LightningTask(Blobs(), monitor="val_acc")
    with pytest.raises(AutopruneError, match="but 'train_loss' is not: it logs val_acc, val_loss"):
        list(finetune(waiting("train_loss")(), task, OWN))


def hooked(hook: str) -> Net:
    net: Net = type("Hooked", (Net,), {hook: lambda *_: None})()
    return net


BAD: dict[str, tuple[Callable[[], Any], Callable[[], Any], dict[str, Any], str]] = {
    "no step": (NoStep, Blobs, {}, "must have a training_step to be pruned, but NoStep has none"),
    "manual": (Manual, Blobs, {}, "Manual sets automatic_optimization = False"),
    "carrying": (Net, Carrying, {}, "Carrying has transfer_batch_to_device, which autoprune does"),
    "no loss": (Lossless, Blobs, {}, "must return the loss, or a dict with 'loss'"),
    "strategy": (Curious, Blobs, {}, "asks for 'strategy'"),
    "optimizers": (lambda: configured_by(several), Blobs, {}, "returned 2 optimizers"),
    "closure": (
        lambda: configured_by(lambda net: torch.optim.LBFGS(net.parameters())),
        Blobs,
        {},
        "LBFGS evaluates the loss several times",
    ),
    "plateau": (waiting("train_loss"), Blobs, {}, "but 'train_loss' is not: it logs val_acc, val_"),
    "plateau of nothing": (waiting(None), Blobs, {}, "gives it no 'monitor'. Return {'optimizer'"),
    "one epoch": (
        lambda: configured_by(warming_up),
        Blobs,
        {"train_epochs": 1},
        "for one of 1 epochs of 6 batches raised ZeroDivisionError",
    ),
    "no optimizer": (lambda: configured_by(lambda _: None), Blobs, {}, "returned no optimizers"),
    "not lightning": (lambda: nn.Linear(8, 3), Blobs, {}, "must be a LightningModule, but is a L"),
    "unlogged": (Net, Blobs, {"monitor": "val_f1"}, "it logs val_acc, val_loss. Add self.log("),
    "mode": (Net, Blobs, {"monitor": "val_goodness"}, "must say whether 'val_goodness' is to be"),
    "data": (Net, dict, {}, "`datamodule` must be a LightningDataModule, but is a dict"),
    "endless": (Net, Endless, {}, "must return a loader with a length"),
    "several": (Net, Several, {}, "must return one DataLoader, but returned a list"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line_that_says_what_to_do(case: str) -> None:
    module, data, options, message = BAD[case]
    with pytest.raises(AutopruneError) as error:
        study_from(module(), data(), **({"monitor": "val_acc"} | options))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("hook", UNUSED)
def test_a_hook_that_is_not_called_is_refused_by_name_and_listed(hook: str) -> None:
    with pytest.raises(AutopruneError, match=f"Hooked has {hook}, which autoprune does not call"):
        study_from(hooked(hook), Blobs(), monitor="val_acc")
    assert f"`{hook}`" in (ROOT / "docs/lightning.md").read_text()


def test_hooks_that_do_not_matter_may_be_ignored() -> None:
    study = study_from(
        hooked("optimizer_step"), Blobs(), monitor="val_acc", ignore=["optimizer_step"]
    )
    assert study.space.lr == pytest.approx((1e-2 / 3, 3e-2))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set")
def test_datasets_alone_make_a_datamodule() -> None:
    data = Blobs()
    data.setup("fit")
    made = LightningDataModule.from_datasets(data.train, data.val, batch_size=16)
    for loader in (made.train_dataloader, made.val_dataloader):
        assert loader() is not None
    task = LightningTask(made, monitor="val_loss")
    assert (task.fixed_batch_size, task.has_test, task.higher_is_better) == (16, False, False)


def test_without_lightning_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['lightning'] = None; sys.meta_path.insert(0, type('N', (), {"
        "'find_spec': staticmethod(lambda name, *_: None)}))\n"
        "import autoprune; autoprune.search\n"
        "import importlib.util as util; find = util.find_spec\n"
        "packages = 'lightning', 'pytorch_lightning'\n"
        "util.find_spec = lambda name, *a: None if name in packages else find(name, *a)\n"
        "assert not {*packages, 'transformers'} & {n for n, m in sys.modules.items() if m}\n"
        "import autoprune.lightning"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, check=False
    )
    assert run.returncode == 1
    assert "Run `pip install 'autoprune[lightning]'`." in run.stderr.splitlines()[-1]


def test_the_other_package_of_lightning_will_do(tmp_path: Path) -> None:
    text = Path(lightnings.__file__).read_text()
    (tmp_path / "others.py").write_text(text.replace("lightning.pytorch", "pytorch_lightning"))
    code = (
        "import sys; sys.modules['lightning'] = None; sys.path.insert(0, '.')\n"
        "from others import Blobs, Net\n"
        "from autoprune.lightning import study_from\n"
        "study = study_from(Net(), Blobs(), monitor='val_acc')\n"
        "print(study.space.lr, study.task.evaluate(study.build(), 'valid'))"
    )
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment(),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("(0.0033")
