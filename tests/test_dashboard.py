"""A search's journal in optuna-dashboard, and what importances say of its parameters."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults

import optuna
import pytest
from helpers import UNTRACKED, write_study
from pretending import completed, driver_on

from autoprune import run
from autoprune.pruning.cost import CostModel
from autoprune.results.store import Store
from autoprune.running.executor import Event
from autoprune.searching.allocation import Allocator
from autoprune.searching.candidate import trial_name
from autoprune.searching.journal import open_journal
from autoprune.searching.optuna_study import open_study
from autoprune.searching.sampler import SamplerContext, make_sampler
from autoprune.searching.space import SearchSpace
from autoprune.searching.storage_url import with_driver
from autoprune.study import load_study

dashboard = pytest.importorskip("optuna_dashboard", reason="needs optuna-dashboard")

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    # Of importances with a target: a low one is what they are of, as it is for parameters.
    pytest.mark.filterwarnings("ignore:PedAnovaImportanceEvaluator computes:UserWarning"),
]


def get(storage: Path | str, path: str) -> Any:
    """Return what the dashboard on a journal, or on a database's URL, answers, as JSON."""
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": "GET", "QUERY_STRING": ""}
    environ["wsgi.input"] = io.BytesIO()
    setup_testing_defaults(environ)
    statuses: list[str] = []
    app = dashboard.wsgi(str(storage))
    body = b"".join(app(environ, lambda status, headers, *_: statuses.append(status)))
    assert statuses == ["200 OK"], body
    return json.loads(body)


@pytest.mark.parametrize("kind", ["journal", "sqlite", "postgresql"])
@pytest.mark.usefixtures("quick_export", "databases_closed")
def test_a_search_opens_in_the_dashboard(
    kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    out = tmp_path / "out"
    study = write_study(tmp_path / "study.py", final_epochs=1)
    shown: Path | str = out / "study.journal"
    storage = None
    if kind == "sqlite":
        shown = storage = f"sqlite:///{tmp_path}/studies.db"
    elif kind == "postgresql":
        storage = request.getfixturevalue("postgres").create_database("dashboard")
        shown = with_driver(storage)  # the dashboard's own driver would be psycopg2
    run.search(study, out=out, budget=3, storage=storage, **UNTRACKED)
    listed = {s["study_name"]: s for s in get(shown, "/api/studies")["study_summaries"]}
    main, final = sorted(listed)
    assert final == f"{main}-final"
    assert main.startswith("tiny")
    found = get(shown, f"/api/studies/{listed[main]['study_id']}")
    assert found["directions"] == ["maximize", "minimize"]
    assert found["objective_names"] == ["accuracy", "params"]
    assert [t["state"] for t in found["trials"]] == ["Complete"] * 3
    for trial in found["trials"]:
        candidate = Store(out).load_candidate(trial_name(trial["number"]))
        assert [float(v) for v in trial["values"]] == [
            candidate.score.valid,
            candidate.score.params,
        ]
        assert {"sparsity/body.0", "sparsity/body.2", "criterion", "lr"} <= {
            p["name"] for p in trial["params"]
        }
        attributes = {a["key"]: a["value"] for a in trial["user_attrs"]}
        assert attributes["parent"] == candidate.parent
        assert json.loads(attributes["lineage"])[0] == candidate.parent
        assert json.loads(attributes["seed"]) == candidate.seed


class Instant:
    """Ends every job at once: the larger the model, the better its score."""

    slots = 1

    def __init__(self, store: Store, cost: CostModel) -> None:
        self.store = store
        self.cost = cost
        self.job: dict[str, Any] = {}

    def submit(self, job: str, function: object, **arguments: Any) -> None:
        self.job = arguments

    def next_event(self) -> Event:
        plan = self.job["plan"]
        valid = math.log(self.cost.params(plan["widths"])) / 10
        valid += 0.01 * plan["finetune"]["distill_weight"]
        return completed(self.job, valid, self.cost, self.store)

    def answer(self, job: str, *, go_on: bool) -> None: ...

    def close(self) -> None: ...


@pytest.mark.parametrize("sampler", ["pruning", "random"])
def test_sparsities_are_what_matters_for_the_size(
    sampler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optuna_dashboard._importance.param_importance_cache", {})
    loaded = load_study(write_study(tmp_path / "study.py", kind="conv"))
    grouping, store = loaded.find_groups(loaded.build()), Store(tmp_path / "out")
    store.root.mkdir()
    cost = CostModel(grouping)
    space = SearchSpace(channels=grouping.channels, space=loaded.space, has_dropout=False)
    study = open_study(
        "tiny",
        storage=open_journal(store.journal),
        objectives=[("accuracy", True), ("params", False)],
    )
    study.sampler = make_sampler(
        sampler,
        SamplerContext(
            space=space, allocator=Allocator(cost, allowed=space.allowed), budget=50, seed=0
        ),
    )
    driver = driver_on(Instant(store, cost), space, cost, store)
    driver.search(study, budget=50, deadline=None)
    of_params = optuna.importance.get_param_importances(study, target=lambda t: t.values[1])
    number = get(store.journal, "/api/studies")["study_summaries"][0]["study_id"]
    shown = get(store.journal, f"/api/studies/{number}/param_importances")["param_importances"]
    in_dashboard = {p["name"]: p["importance"] for p in shown[1]}
    for importances in (of_params, in_dashboard):
        assert set(importances) == set(space.distributions)
        sparsities = sum(v for name, v in importances.items() if name.startswith("sparsity/"))
        assert sparsities > sum(importances.values()) - sparsities
