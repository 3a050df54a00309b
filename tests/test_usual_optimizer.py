"""What trains where a study names no optimiser: Muon, unless that is dear."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import UNTRACKED, write_study

from autoprune import PruningStudy, Space, SupervisedTask, run
from autoprune.errors import AutopruneError
from autoprune.results.store import Store
from autoprune.study import load_study

CONV = "nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10)"
WIDE = "nn.Flatten(), nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 10)"
NET = "Net = lambda: nn.Sequential({})"


def study_of(path: Path, layers: str, **space: Any) -> PruningStudy:
    # Under one name, Python would take the second for the first: their sizes and times are equal.
    name = "conv.py" if layers == CONV else "wide.py"
    file = write_study(path / name, kind="conv", model=NET.format(layers))
    study = load_study(file)
    return replace(study, space=replace(study.space, **space))


def optimizer_of(study: PruningStudy) -> Any:
    model = study.build()
    return run.space_of(study, model, study.find_groups(model)).optimizer


def test_muon_is_usual_unless_its_arithmetic_is_dear(tmp_path: Path) -> None:
    assert optimizer_of(study_of(tmp_path, CONV)) == "muon"
    assert optimizer_of(study_of(tmp_path, WIDE)) == "adamw"
    # Against larger batches it is cheap, but it must be so at each of a study's sizes.
    assert optimizer_of(study_of(tmp_path, WIDE, batch_size=4096)) == "muon"
    assert optimizer_of(study_of(tmp_path, WIDE, batch_size=(32, 4096))) == "adamw"


def test_what_a_study_names_is_used(tmp_path: Path) -> None:
    assert optimizer_of(study_of(tmp_path, CONV, optimizer="adamw")) == "adamw"
    assert optimizer_of(study_of(tmp_path, WIDE, optimizer="muon")) == "muon"
    both = ("adamw", "muon")
    assert optimizer_of(study_of(tmp_path, CONV, optimizer=both)) == both


def test_single_weights_and_tasks_with_a_way_of_their_own_keep_to_adamw(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, CONV)
    single = replace(study, space=Space(granularity="weight", batch_size=4096))
    assert optimizer_of(single) == "adamw"
    monkeypatch.setattr(SupervisedTask, "optimisation", object(), raising=False)
    assert optimizer_of(study) == "adamw"


@pytest.mark.usefixtures("quick_export")
def test_a_search_says_what_it_trained_with_and_keeps_to_it(tmp_path: Path) -> None:
    settings: dict[str, Any] = {**UNTRACKED, "budget": 2, "out": tmp_path / "out"}
    study = study_of(tmp_path, CONV)
    run.search(study, **settings)
    store = Store(tmp_path / "out")
    trials = [store.load_candidate(name) for name in ("t000", "t001")]
    assert {trial.plan.finetune.optimizer for trial in trials} == {"muon"}
    identity = json.loads((tmp_path / "out" / "search.json").read_text())
    assert identity["study_settings"]["optimizer"] == "muon"
    other = replace(study, space=replace(study.space, optimizer="adamw"))
    with pytest.raises(AutopruneError, match="its optimizer is 'muon', not 'adamw'"):
        run.search(other, **settings)
