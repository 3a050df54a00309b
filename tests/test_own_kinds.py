"""Studies of other kinds than classification, as a new user would write them, by the command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import run_cli

import autoprune
from autoprune.study import load_study

REGRESSION = """\
import torch
from sklearn.datasets import load_diabetes
from torch import nn

from autoprune import FineTune, PruningStudy, Space, SupervisedTask

inputs, targets = load_diabetes(return_X_y=True)
targets = (targets - targets.mean()) / targets.std()

study = PruningStudy(
    name="diabetes",
    model=lambda: nn.Sequential(
        nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 1)
    ),
    example=torch.zeros(1, 10),
    task=SupervisedTask(
        train=(inputs[:240], targets[:240]),
        valid=(inputs[240:340], targets[240:340]),
        test=(inputs[340:], targets[340:]),
        loss="mse",
        scorer="neg_mean_absolute_error",
    ),
    train=FineTune(epochs=10, lr=1e-2),
    space=Space(epochs=2),
    final_epochs=1,
)
"""

TWO_HEADS = '''\
"""Which digit it is, and how much ink it has."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from autoprune import FineTune, PruningStudy, Space, SupervisedTask


class TwoHeads(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 12, 3)
        )
        self.digit = nn.Linear(12, 10)
        self.ink = nn.Linear(12, 1)

    def forward(self, x):
        features = self.conv(x).relu().mean((2, 3))
        return {"digit": self.digit(features), "ink": self.ink(features).squeeze(1)}


class TwoHeadsTask(SupervisedTask):
    def step(self, model, batch):
        outputs = model(batch.inputs)
        loss = F.cross_entropy(outputs["digit"], batch.targets["digit"])
        return loss + F.mse_loss(outputs["ink"], batch.targets["ink"]), outputs

    def distance(self, outputs, teacher, temperature):
        wanted = teacher["digit"].softmax(1)
        return F.cross_entropy(outputs["digit"], wanted) + F.mse_loss(
            outputs["ink"], teacher["ink"]
        )


def errors(outputs, targets):
    wrong = (outputs["digit"].argmax(1) != targets["digit"]).float().mean()
    return wrong + F.l1_loss(outputs["ink"], targets["ink"])


images, digits = load_digits(return_X_y=True)
images = torch.tensor(images[:450] / 16, dtype=torch.float32).reshape(-1, 1, 8, 8)
targets = {"digit": torch.tensor(digits[:450]), "ink": images.mean((1, 2, 3))}


def part(start, end):
    return images[start:end], {name: values[start:end] for name, values in targets.items()}


study = PruningStudy(
    name="two-heads",
    model=TwoHeads,
    example=images[:2],
    task=TwoHeadsTask(
        train=part(0, 150),
        valid=part(150, 300),
        test=part(300, 450),
        loss=None,
        scorer=errors,
        higher_is_better=False,
    ),
    train=FineTune(epochs=10, lr=1e-2, batch_size=32),
    space=Space(epochs=2, batch_size=32, distill_weight=0.5),
)
'''

AUTOENCODER = '''\
"""A task that owes nothing to SupervisedTask: an autoencoder on loaders, its inputs noisy."""

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from autoprune import Batch, FineTune, PruningStudy, Space


class Images:
    """The batches of a loader, without labels."""

    def __init__(self, loader):
        self.loader = loader

    def __len__(self):
        return len(self.loader)

    def __iter__(self):
        for (images,) in self.loader:
            yield Batch(inputs=images)


class Reconstruction:
    metric = "squared error"
    higher_is_better = False

    def __init__(self, images):
        self.data = {"train": images[:150], "valid": images[150:300], "test": images[300:450]}

    def batches(self, split, *, batch_size, seed):
        order = torch.Generator().manual_seed(seed or 0)
        data = TensorDataset(self.data[split])
        return Images(DataLoader(data, batch_size, shuffle=seed is not None, generator=order))

    def step(self, model, batch):
        noisy = batch.inputs + 0.05 * torch.randn_like(batch.inputs)
        return F.mse_loss(model(noisy), batch.inputs), None  # None: nothing to distill

    def distance(self, outputs, teacher, temperature):
        raise AssertionError("there are no outputs to compare")

    def evaluate(self, model, split):
        model.eval()
        with torch.no_grad():
            return float(F.mse_loss(model(self.data[split]), self.data[split]))


images = torch.tensor(load_digits().data[:450] / 16, dtype=torch.float32)
study = PruningStudy(
    name="autoencoder",
    model=lambda: nn.Sequential(
        nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 12), nn.ReLU(), nn.Linear(12, 64), nn.Sigmoid()
    ),
    example=images[:2],
    task=Reconstruction(images),
    train=FineTune(epochs=10, lr=1e-2, batch_size=32),
    space=Space(epochs=2, batch_size=(16, 32), criteria=("taylor", "l1")),
    final_epochs=1,
)
'''


def searched(folder: Path, text: str, *options: object) -> dict[str, Any]:
    """Search a study by the command; check its front and return ``front.json``."""
    file = folder / "mine.py"
    file.write_text(text)
    run = run_cli(
        "search", "mine.py", "--workers", 1, "--budget", 3, "--out", "out", *options, cwd=folder
    )
    assert run.returncode == 0, run.stderr
    # Little data is worth a word; nothing else is.
    notes = [line for line in run.stderr.splitlines() if line.startswith("note:")]
    assert all("split has" in note for note in notes), notes
    assert "Traceback" not in run.stderr
    value: dict[str, Any] = json.loads((folder / "out" / "front.json").read_text())
    assert value["trials"]["complete"] + value["trials"]["stopped"] == 3
    assert value["front"]
    study = load_study(file)
    sign = 1 if value["higher_is_better"] else -1
    goodness = [sign * m["valid"] for m in value["front"]]
    assert goodness == sorted(set(goodness))
    for model in value["front"]:
        assert model["verified"] is True
        assert model["formats"] == ["safetensors", "pt2", "onnx"]
        assert model["params"] < value["dense"]["params"]
        loaded = autoprune.load(folder / "out" / model["path"], model=study.build())
        assert sum(p.numel() for p in loaded.parameters()) == model["params"]
        assert study.task.evaluate(loaded, "valid") == _nearly(model["valid"])
        assert study.task.evaluate(loaded, "test") == _nearly(model["test"])
    return value


def _nearly(value: float) -> Any:
    return pytest.approx(value, abs=1e-4)


@pytest.mark.long
def test_regression(tmp_path: Path) -> None:
    value = searched(tmp_path, REGRESSION, "--tracking-uri", "none")
    assert value["metric"] == "neg_mean_absolute_error"
    assert value["higher_is_better"] is True
    assert -0.9 < value["dense"]["valid"] < 0  # guessing the mean is off by 0.86


@pytest.mark.long
def test_several_outputs_with_an_own_step_and_an_error_as_score(tmp_path: Path) -> None:
    value = searched(tmp_path, TWO_HEADS)
    assert value["metric"] == "errors"
    assert value["higher_is_better"] is False
    assert value["dense"]["valid"] < 0.9
    answer = autoprune.load(
        tmp_path / "out" / value["front"][0]["path"],
        model=load_study(tmp_path / "mine.py").build(),
    )(torch.zeros(3, 1, 8, 8))
    assert {name: tuple(t.shape) for name, t in answer.items()} == {"digit": (3, 10), "ink": (3,)}
    assert (tmp_path / "out" / "mlflow.db").exists()


@pytest.mark.long
def test_a_task_from_scratch(tmp_path: Path) -> None:
    value = searched(tmp_path, AUTOENCODER, "--tracking-uri", "none")
    assert value["metric"] == "squared error"
    assert value["higher_is_better"] is False
    assert value["dense"]["valid"] < value["front"][0]["valid"]
