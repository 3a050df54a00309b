"""Delivery to MLflow: whatever call fails, everything is there in the end, and nothing twice."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from mlflow.entities import ViewType
from torch import nn

from autoprune.errors import AutopruneError
from autoprune.pruning.files import write_json
from autoprune.results import delivery
from autoprune.results.delivery import Delivery
from autoprune.results.records import (
    FinishRecord,
    FrontModel,
    Overview,
    Record,
    StartRecord,
    TrialRecord,
)
from autoprune.results.spool import Destination, Spool, save_destination
from autoprune.results.store import Store
from autoprune.results.sync import sync
from autoprune.results.tracking import MlflowTracker
from autoprune.settings import Settings

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "BACKOFF_SECONDS", (0.01, 0.04))


# --- a server of our own ------------------------------------------------------------------------


@dataclass
class Shelf:
    """Keeps what it is given, and fails when it is told to."""

    got: list[Record] = field(default_factory=list)
    over: list[bool] = field(default_factory=list)
    away: int = 0
    """How many more times it is away."""
    refused: set[int] = field(default_factory=set)
    """Numbers of deliveries, from 0, that are refused."""
    asked: int = 0
    hold: threading.Event | None = None
    """Delivery hangs until this is set."""

    def connect(self, answered: Callable[[], None]) -> Shelf:
        if self.away:
            self.away -= 1
            raise ConnectionError("nobody at https://bob:pw@host")
        answered()
        return self

    def deliver(self, record: Record, *, over: bool) -> list[str]:
        if self.hold is not None:
            self.hold.wait()
        self.asked += 1
        if self.asked - 1 in self.refused:
            raise ValueError("too long")
        if self.away:
            raise ConnectionError("gone")
        self.got.append(record)
        self.over.append(over)
        return ["part of it is gone"] if isinstance(record, FinishRecord) else []

    def is_alive(self) -> bool:
        return not self.away


def start(number: int) -> StartRecord:
    return StartRecord(params={"number": number}, tags={}, time=float(number))


FINISH = FinishRecord(metrics={}, status="FINISHED", time=9.0)


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path, Destination.of(None, "autoprune"))


def test_records_arrive_in_their_order_while_more_come(spool: Spool) -> None:
    shelf = Shelf()
    running = Delivery(spool, shelf.connect)
    for number in range(20):
        spool.write(start(number))
        running.wake()
    assert running.close() == []
    assert shelf.got == [start(number) for number in range(20)]
    assert spool.pending() == []


def test_a_server_that_was_away_gets_everything_in_order(spool: Spool) -> None:
    shelf = Shelf(away=5)
    running = Delivery(spool, shelf.connect)
    for number in range(5):
        spool.write(start(number))
        running.wake()
    assert running.close() == []
    assert shelf.got == [start(number) for number in range(5)]


def test_what_is_refused_keeps_nothing_else_back_and_is_tried_again(spool: Spool) -> None:
    shelf = Shelf(refused={1})
    for number in range(4):
        spool.write(start(number))
    assert Delivery(spool, shelf.connect).close() == []
    assert shelf.got == [start(number) for number in (0, 2, 3, 1)]


def test_what_is_always_refused_stays_and_is_told_of_once(spool: Spool) -> None:
    shelf = Shelf(refused=set(range(100)))
    spool.write(start(0))
    spool.write(start(1))
    assert Delivery(spool, shelf.connect).close() == ["MLflow: ValueError: too long"]
    assert spool.pending() == [0, 1]


def test_an_altered_record_keeps_nothing_else_back(spool: Spool, tmp_path: Path) -> None:
    shelf = Shelf()
    spool.write(start(0))
    spool.write(start(1))
    (tmp_path / "000000-start.json").write_text("{")
    (problem,) = Delivery(spool, shelf.connect).close()
    assert "000000-start.json" in problem
    assert shelf.got == [start(1)]
    assert spool.pending() == [0]


def test_a_server_that_stays_away_is_left_after_some_attempts(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LAST_ATTEMPTS", 3)
    shelf = Shelf(away=10**6)
    spool.write(start(0))
    (problem,) = Delivery(spool, shelf.connect).close()
    assert problem == ("MLflow could not be reached: ConnectionError: nobody at https://***@host")
    assert spool.pending() == [0]


def test_a_server_that_hangs_is_left_after_a_while(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "QUIET_SECONDS", 0.3)
    shelf = Shelf(hold=threading.Event())
    spool.write(start(0))
    spool.write(start(1))
    running = Delivery(spool, shelf.connect)
    (problem,) = running.close()
    assert "no answer" in problem
    assert spool.pending() == [0, 1]
    shelf.hold.set()  # type: ignore[union-attr]


def test_a_sittings_start_says_whether_it_is_over(spool: Spool) -> None:
    shelf = Shelf()
    for record in (start(0), FINISH, start(1)):
        spool.write(record)
    assert Delivery(spool, shelf.connect).close() == ["part of it is gone"]
    assert shelf.over == [True, False, False]


# --- MLflow itself, with a client that fails at a chosen call -----------------------------------

SEARCH = "0123"


@dataclass
class Fault:
    """One failing call among all that are made of a client."""

    at: int
    """Which call fails, from 0; -1 is none."""
    done: bool = False
    """Whether it is carried out, and only its answer lost."""
    calls: int = 0


@pytest.fixture
def fault(monkeypatch: pytest.MonkeyPatch) -> Fault:
    """Make MLflow's clients fail as the fault says."""
    found = Fault(at=-1)

    class Client(MlflowClient):
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name.startswith("_") or not callable(value):
                return value

            def call(*arguments: Any, **named: Any) -> Any:
                found.calls += 1
                if found.calls - 1 != found.at:
                    return value(*arguments, **named)
                if found.done:
                    value(*arguments, **named)
                raise ConnectionError(f"lost: {name}")

            return call

    monkeypatch.setattr(mlflow, "MlflowClient", Client)
    return found


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/all.db"


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("program")
    batch = {"input": {0: torch.export.Dim("batch")}}
    exported = torch.export.export(nn.Linear(4, 2), (torch.zeros(2, 4),), dynamic_shapes=batch)
    torch.export.save(exported, folder / "model.pt2")
    return folder / "model.pt2"


@dataclass(frozen=True)
class Recorder:
    """Records the same small search wherever it is asked to."""

    root: Path
    database: str
    program: Path

    def store(self, name: str) -> Store:
        store = Store(self.root / name)
        write_json(store.identity_file, {"format": 1, "id": SEARCH, "study": "tiny"})
        for trial in ("t000", "t001"):
            folder = store.front / trial
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "model.pt2").write_bytes(self.program.read_bytes())
            (folder / "model.safetensors").write_bytes(trial.encode())
        store.front_file.write_text("{}")
        return store

    def record(self, name: str) -> list[str]:
        """Record a search in an experiment of that name."""
        store = self.store(name)
        tracker = MlflowTracker(
            store, uri=self.database, experiment=name, search=SEARCH, name="tiny"
        )
        tracker.start({"study": "tiny"}, {"seed": "0"})
        tracker.dense(ended("dense", plan=None, curves={}, search_metrics={}))
        for key in ("t000", "t001"):
            tracker.trial(ended(key))
            tracker.ended(key)
        net = nn.Linear(4, 2)
        models = [
            FrontModel(
                key="t000",
                folder=store.front / "t000",
                metrics={"test": 0.75},
                module=lambda: net,
                example=torch.zeros(2, 4),
                about="12 parameters",
            )
        ]
        overview = Overview(
            note="[t000](run:t000) and [dense](run:dense)",
            aliases={"knee": "t000", "best": "t000"},
            dense={"test": 0.8},
            register=name,
        )
        tracker.front(models, [store.front_file], overview)
        return tracker.finish({"front_size": 1}, status="FINISHED")


def ended(key: str, **changes: Any) -> TrialRecord:
    record = TrialRecord(
        key=key,
        run_name=f"{key} 50% 0.9",
        state="complete",
        params={"lr": 0.1},
        metrics={"valid": 0.9, "params": 12},
        curves={"valid": [0.1, 0.5], "loss": [2.0, float("nan")]},
        tags={"seed": "0"},
        plan={"widths": {"a": 3}},
        note="how it was made",
        search_metrics={"hypervolume_by_trial": 0.25},
        step=int(key[-1]) if key[-1].isdigit() else 0,
        started=1000.0,
        ended=1010.5,
    )
    return replace(record, **changes)


@pytest.fixture
def recorder(tmp_path: Path, database: str, program: Path) -> Recorder:
    return Recorder(tmp_path, database, program)


def contents(database: str, experiment: str, registered: str = "") -> dict[str, Any]:
    """Return all that MLflow holds of an experiment, but for ids and times.

    `registered` is its model in the registry, which has the experiment's name by default.
    """
    registered = registered or experiment
    client = MlflowClient(tracking_uri=database)
    number = client.get_experiment_by_name(experiment).experiment_id
    found: dict[str, Any] = {}
    runs = client.search_runs([number], run_view_type=ViewType.ACTIVE_ONLY)
    keys = {run.info.run_id: run.data.tags.get("autoprune.trial", "") for run in runs}
    assert len(set(keys.values())) == len(runs), "a run is there twice"
    for run in runs:
        own = run.info.run_id
        tags = {k: v for k, v in run.data.tags.items() if k != "mlflow.parentRunId"}
        for key, address in ((keys[r], f"#/experiments/{number}/runs/{r}") for r in keys):
            tags = {k: v.replace(f"({address})", f"(run:{key})") for k, v in tags.items()}
        parent = run.data.tags.get("mlflow.parentRunId")
        found[keys[own]] = {
            "status": run.info.status,
            "start": keys[own] and run.info.start_time,
            "end": keys[own] and run.info.end_time,
            "parent": keys.get(parent, "none") if parent else None,
            "params": run.data.params,
            "tags": tags,
            "points": {
                name: sorted((p.step, repr(p.value)) for p in client.get_metric_history(own, name))
                for name in run.data.metrics
            },
            "files": sorted(a.path for a in client.list_artifacts(own)),
            "outputs": len(run.outputs.model_outputs) if run.outputs else 0,
        }
    models = client.search_logged_models([number])
    places = {m.artifact_location for m in models}
    found["versions"] = sorted(
        (
            keys[v.run_id],
            v.description,
            sorted(v.tags.items()),
            sorted(client.get_model_version(registered, v.version).aliases),
            v.source in places,
        )
        for v in client.search_model_versions(f"name = '{registered}'")
        if v.run_id in keys
    )
    found["models"] = sorted(
        (keys[m.source_run_id], m.name, str(m.status), sorted((x.key, x.value) for x in m.metrics))
        for m in models
    )
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def run_calls(recorder: Recorder, fault: Fault) -> tuple[dict[str, Any], int]:
    """Record without a fault; return what MLflow holds then, and how many calls it took."""
    assert recorder.record("whole") == []
    return contents(recorder.database, "whole"), fault.calls


def test_all_of_a_search_is_recorded(recorder: Recorder) -> None:
    assert recorder.record("all") == []
    found = contents(recorder.database, "all")
    assert set(found) == {"", "dense", "t000", "t001", "models", "versions"}
    parent, first, second = found[""], found["t000"], found["t001"]
    assert parent["status"] == first["status"] == second["status"] == "FINISHED"
    assert (first["start"], first["end"], first["parent"]) == (1_000_000, 1_010_500, "")
    assert parent["params"] == {"study": "tiny"}
    assert parent["points"] == {
        "front_size": [[0, "1.0"]],
        "hypervolume_by_trial": [[0, "0.25"], [1, "0.25"]],
    }
    assert parent["tags"]["mlflow.note.content"] == "[t000](run:t000) and [dense](run:dense)"
    assert parent["tags"]["worth.knee"] == "t000"
    assert found["dense"]["parent"] == ""
    assert found["dense"]["points"]["test"] == [[0, "0.8"]]
    assert first["tags"]["mlflow.note.content"] == "how it was made"
    assert parent["files"] == ["front.json"]
    assert first["points"]["valid"] == [[0, "0.1"], [1, "0.5"], [2, "0.9"]]
    assert first["points"]["loss"] == [[0, "2.0"], [1, "nan"]]
    assert first["points"]["test"] == [[0, "0.75"]]
    assert (first["tags"]["front"], second["tags"]["front"]) == ("true", "false")
    assert (first["outputs"], second["outputs"]) == (1, 0)
    assert found["models"] == [["t000", "model", "READY", [["test", 0.75]]]]
    tags = [["autoprune.search", SEARCH], ["front", "true"], ["trial", "t000"]]
    assert found["versions"] == [["t000", "12 parameters", tags, ["best", "knee"], True]]


def test_a_fault_at_any_call_loses_and_doubles_nothing(recorder: Recorder, fault: Fault) -> None:
    expected, calls = run_calls(recorder, fault)
    assert calls >= 25
    for at in range(calls):
        fault.at, fault.done, fault.calls = at, at % 2 == 0, 0
        name = f"fault-{at}"
        assert recorder.record(name) == [], name
        assert fault.calls > at
        assert contents(recorder.database, name) == expected, name


def test_delivering_everything_again_changes_nothing(recorder: Recorder) -> None:
    recorder.record("again")
    before = contents(recorder.database, "again")
    store = recorder.store("again")
    for file in store.spool.glob("delivered-*"):
        file.unlink()
    done = sync(store, uri=None, experiment=None)
    assert (done.delivered, done.left, done.total) == (6, 0, 6)
    assert done.problems == ()
    assert contents(recorder.database, "again") == before


def test_another_server_can_be_given_everything(recorder: Recorder) -> None:
    recorder.record("one")
    expected = contents(recorder.database, "one")
    told: list[tuple[int, int]] = []
    done = sync(
        recorder.store("one"),
        uri=None,
        experiment="other",
        tell=lambda done, total: told.append((done, total)),
    )
    assert (done.delivered, done.left) == (6, 0)
    assert told[-1] == (6, 6)
    assert contents(recorder.database, "other", registered="one") == expected
    assert sync(recorder.store("one"), uri=None, experiment="other").delivered == 0


def test_a_trial_that_was_gone_on_with_has_one_curve(recorder: Recorder) -> None:
    store = recorder.store("twice")
    tracker = MlflowTracker(
        store, uri=recorder.database, experiment="twice", search=SEARCH, name="tiny"
    )
    short = ended("t000", state="failed", curves={"valid": [0.1]}, metrics={"valid": 0.5})
    for record in (short, ended("t000", started=2000.0, ended=2020.0)):
        tracker.trial(record)
        tracker.ended("t000")
    assert tracker.finish({}, status="FINISHED") == []
    for file in store.spool.glob("delivered-*"):
        file.unlink()
    sync(store, uri=None, experiment=None)
    (run,) = [v for k, v in contents(recorder.database, "twice").items() if k == "t000"]
    assert run["status"] == "FINISHED"
    assert run["points"]["valid"] == [[0, "0.1"], [1, "0.5"], [2, "0.9"]]


def test_an_empty_twin_of_a_run_is_deleted(recorder: Recorder) -> None:
    recorder.record("twins")
    before = contents(recorder.database, "twins")
    client = MlflowClient(tracking_uri=recorder.database)
    number = client.get_experiment_by_name("twins").experiment_id
    for key in ("", "t001"):  # a request that was carried out long after it was given up
        tags = {"autoprune.search": SEARCH, **({"autoprune.trial": key} if key else {})}
        client.create_run(number, tags=tags)
    store = recorder.store("twins")
    for file in store.spool.glob("delivered-*"):
        file.unlink()
    sync(store, uri=None, experiment=None)
    assert contents(recorder.database, "twins") == before


def test_an_export_that_is_gone_is_said_and_keeps_nothing_back(recorder: Recorder) -> None:
    recorder.record("gone")
    store = recorder.store("gone")
    for file in (store.front / "t000").iterdir():
        file.unlink()
    (store.front / "t000").rmdir()
    done = sync(store, uri=None, experiment="gone-too")
    assert done.left == 0
    (problem,) = done.problems
    assert "front/t000" in problem


@pytest.fixture
def without_pickle(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    return


@pytest.mark.usefixtures("without_pickle")
def test_a_logged_model_is_the_exported_file_and_loads_without_pickle(recorder: Recorder) -> None:
    import mlflow.pyfunc
    import mlflow.pytorch

    recorder.record("model")
    client = MlflowClient(tracking_uri=recorder.database)
    number = client.get_experiment_by_name("model").experiment_id
    (model,) = client.search_logged_models([number])
    place = Path(model.artifact_location.removeprefix("file://"))
    assert (place / "data" / "model.pt2").read_bytes() == recorder.program.read_bytes()
    inputs = torch.rand(5, 4)
    with torch.no_grad():
        expected = torch.export.load(recorder.program).module()(inputs)
        torch.testing.assert_close(mlflow.pytorch.load_model(str(place))(inputs), expected)
    served = mlflow.pyfunc.load_model(str(place))
    torch.testing.assert_close(torch.as_tensor(served.predict(inputs.numpy())), expected)
    assert served.metadata.signature.inputs.inputs[0].shape == (-1, 4)
    assert served.input_example.shape == (2, 4)


# --- sync's errors ------------------------------------------------------------------------------


def test_a_secret_address_must_be_given_again(recorder: Recorder) -> None:
    store = recorder.store("secret")
    save_destination(store.spool, Destination.of("https://bob:pw@host", "secret"))
    with pytest.raises(AutopruneError, match=r"--tracking-uri") as raised:
        sync(store, uri=None, experiment=None)
    assert "pw" not in str(raised.value)


@pytest.mark.parametrize("uri", ["none", "htp://host", "http://", "https://:80", "host:5000"])
def test_an_address_that_leads_nowhere_is_refused(recorder: Recorder, uri: str) -> None:
    recorder.store("nowhere").spool.mkdir()
    with pytest.raises(AutopruneError, match=r"tracking URI.*--tracking-uri"):
        sync(recorder.store("nowhere"), uri=uri, experiment=None)


# --- the front's models, once more ---------------------------------------------------------------


def test_another_front_moves_the_aliases_and_says_who_has_left(recorder: Recorder) -> None:
    recorder.record("moved")
    store = recorder.store("moved")
    (store.front / "t000" / "model.safetensors").write_bytes(b"trained longer")
    tracker = MlflowTracker(
        store, uri=recorder.database, experiment="moved", search=SEARCH, name="tiny"
    )
    models = [
        FrontModel(
            key=key,
            folder=store.front / key,
            metrics={"test": 0.5},
            module=lambda: nn.Linear(4, 2),
            example=torch.zeros(2, 4),
            about=f"{key}, anew",
        )
        for key in ("t000", "t001")
    ]
    overview = Overview(aliases={"knee": "t001", "best": "t000"}, register="moved")
    tracker.front(models, [], overview)
    assert tracker.finish({}, status="FINISHED") == []
    versions = contents(recorder.database, "moved")["versions"]
    assert [
        (key, about, dict(tags)["front"], names) for key, about, tags, names, _ in versions
    ] == [
        ("t000", "12 parameters", "false", []),  # the weights are others
        ("t000", "t000, anew", "true", ["best"]),
        ("t001", "t001, anew", "true", ["knee"]),
    ]


def test_a_model_that_mlflow_cannot_serve_is_not_registered_and_that_is_said(
    recorder: Recorder,
) -> None:
    store = recorder.store("unserved")
    tracker = MlflowTracker(
        store, uri=recorder.database, experiment="unserved", search=SEARCH, name="tiny"
    )
    tracker.trial(ended("t000"))
    tracker.ended("t000")
    (store.front / "t000" / "model.pt2").unlink()
    model = FrontModel(
        key="t000",
        folder=store.front / "t000",
        metrics={"test": 0.5},
        module=lambda: nn.Linear(4, 2),
        example=torch.zeros(2, 4),
    )
    tracker.front([model], [], Overview(aliases={"best": "t000"}, register="unserved"))
    (said,) = tracker.finish({}, status="FINISHED")
    assert said == "front/t000 cannot be registered: MLflow serves none of its formats."
    assert contents(recorder.database, "unserved")["versions"] == []


@pytest.mark.parametrize("name", ["", " ", "a/b", "a:b", "a@b"])
def test_a_registered_model_needs_a_name_that_an_address_can_hold(name: str) -> None:
    with pytest.raises(AutopruneError, match="registered model"):
        Settings(register=name)


def test_nothing_is_registered_without_mlflow() -> None:
    with pytest.raises(AutopruneError, match="tracking_uri"):
        Settings(register="digits", tracking_uri="none")
