"""A study that prunes inputs, through the whole search: its models are called as before."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from helpers import UNTRACKED, write_study
from torch import Tensor, nn

import autoprune
from autoprune import run
from autoprune.results.result import SearchResult
from autoprune.results.store import Store
from autoprune.study import load_study

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

NEURONS, INPUTS = "body.0", "body.0.inputs"


@dataclass(frozen=True)
class Smallest:
    """A search's smallest model, rebuilt from its safetensors, and its folder."""

    result: SearchResult
    folder: Path
    model: nn.Module
    widths: dict[str, int]
    kept: dict[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def smallest(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Smallest]:
    folder = tmp_path_factory.mktemp("inputs")
    file = write_study(
        folder / "study.py",
        epochs=2,
        final_epochs=1,
        more="prune_inputs=True",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        result = run.search(file, out=folder / "out", budget=4, criteria=["obs"], **UNTRACKED)
        entry = result.front[0]
        model = autoprune.load(result.out / entry.path, model=load_study(file).build())
        plan = Store(result.out).load_candidate(entry.name).plan
        assert plan.kept is not None
        yield Smallest(result, result.out / entry.path, model, dict(plan.widths), dict(plan.kept))


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 64)


def test_inputs_and_neurons_are_fewer(smallest: Smallest) -> None:
    assert smallest.widths[INPUTS] < 64
    assert smallest.widths[NEURONS] < 24
    weight = smallest.model.get_parameter("body.0.weight")
    assert weight.shape == (smallest.widths[NEURONS], smallest.widths[INPUTS])
    assert sum(p.numel() for p in smallest.model.parameters()) == smallest.result.front[0].params


def test_it_picks_what_it_reads_of_a_whole_image(smallest: Smallest, images: Tensor) -> None:
    kept = list(smallest.kept[INPUTS])
    others = sorted(set(range(64)) - set(kept))
    outputs = smallest.model(images)
    assert outputs.shape == (5, 10)
    noise = images.clone()
    noise[:, others] = torch.rand(5, len(others))
    assert torch.equal(smallest.model(noise), outputs)
    noise[:, kept] = torch.rand(5, len(kept))
    assert not torch.equal(smallest.model(noise), outputs)


def test_its_programs_take_whole_images(smallest: Smallest, images: Tensor) -> None:
    with torch.no_grad():
        expected = smallest.model(images)
    program = torch.export.load(smallest.folder / "model.pt2").module()
    torch.testing.assert_close(program(images), expected)
    session = onnxruntime.InferenceSession(str(smallest.folder / "model.onnx"))
    (given,) = session.get_inputs()
    assert given.shape[1:] == [64]
    (answer,) = session.run(None, {given.name: images.numpy()})
    np.testing.assert_allclose(answer, expected.numpy(), rtol=1e-4, atol=1e-5)
