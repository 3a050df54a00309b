"""A search in the caller's own process leaves that process as it found it."""

from __future__ import annotations

import logging
import os
import random
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import optuna
import pytest
import torch
from helpers import MODELS, UNTRACKED, run_cli, write_study

from autoprune import replay, run
from autoprune.study import load_study
from autoprune.training.device import OwnRandomState


def state() -> dict[str, Any]:
    return {
        "torch": torch.get_rng_state().tolist(),
        "numpy": [str(part) for part in np.random.get_state()],
        "python": random.getstate(),
        "threads": torch.get_num_threads(),
        "grad": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "environment": dict(os.environ),
        "folder": Path.cwd(),
        "path": list(sys.path),
        "signals": [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
        "filters": list(warnings.filters),
        "backend": mpl.get_backend(),
        "optuna": optuna.logging.get_verbosity(),
        "logging": logging.getLogger().level,
    }


@pytest.mark.usefixtures("quick_export")
def test_a_search_in_this_process_changes_nothing_global(tmp_path: Path) -> None:
    file = write_study(tmp_path / "study.py", epochs=2, final_epochs=1)
    # What third parties do to a process when they are first imported is theirs.
    run.search(file, out=tmp_path / "first", budget=1, **UNTRACKED)
    torch.set_num_threads(2)
    torch.rand(3), np.random.rand(3), random.random()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = load_study(file)
    before = state()
    heard: list[torch.Tensor] = []
    run.search(study, out=tmp_path / "out", budget=2, reporter=Watcher(heard), **UNTRACKED)
    after = state()
    assert {name for name in before if before[name] != after[name]} == set()
    # Nor in between, whenever the caller's own code runs.
    assert len(heard) > 5
    assert all(
        torch.equal(each, torch.tensor(before["torch"], dtype=torch.uint8)) for each in heard
    )


@pytest.mark.usefixtures("quick_export")
@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_studys_functions_import_is_found_and_the_path_left_as_it_was(
    workers: int, tmp_path: Path
) -> None:
    nets = f"nets_beside_{workers}"
    (tmp_path / f"{nets}.py").write_text(f"from torch import nn\n\n\n{MODELS['mlp']}")
    lazy = f"def Net():\n    import {nets}\n\n    return {nets}.Net()\n"
    file = write_study(tmp_path / "study.py", model=lazy)
    before = list(sys.path)
    result = run.search(file, out=tmp_path / "out", budget=1, **UNTRACKED | {"workers": workers})
    assert sys.path == before
    assert result.trials["complete"] == 1
    replayed = replay(tmp_path / "out", "t000", study=file, in_process=workers == 0)
    assert replayed.valid == replayed.recorded
    assert sys.path == before


WATCHED = """\
def accuracy(outputs, targets):
    for name in ("pandas", "polars", "pyarrow"):
        # scikit-learn looks for them there, and takes what it finds.
        assert name in sys.modules, f"{name} may still be imported by MLflow's thread"
        assert not sys.modules[name].__spec__._initializing, f"{name} is half imported"
    return float((outputs.argmax(1) == targets).float().mean())


Plain = SupervisedTask
SupervisedTask = lambda **given: Plain(scorer=accuracy, **given)
"""


def test_mlflow_is_imported_before_the_first_job(tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py", before=WATCHED)
    options = ("--budget", "1", "--workers", "0", "--no-extras", "--out", "out")
    process = run_cli("search", study, *options, cwd=tmp_path)
    assert process.returncode == 0, process.stderr


class Watcher:
    def __init__(self, heard: list[torch.Tensor]) -> None:
        self.heard = heard

    def update(self, status: object) -> None:
        self.heard.append(torch.get_rng_state())

    def note(self, text: str) -> None: ...


def test_states_of_its_own_go_on_where_they_were() -> None:
    own = OwnRandomState()
    with own:
        torch.manual_seed(5), np.random.seed(5), random.seed(5)
        first = torch.rand(1).item(), np.random.rand(), random.random()
    torch.rand(9), np.random.rand(9), random.random()
    with own:
        second = torch.rand(1).item(), np.random.rand(), random.random()
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    expected = [(torch.rand(1).item(), np.random.rand(), random.random()) for _ in range(2)]
    assert [first, second] == expected
