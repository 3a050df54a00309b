"""Where the Optuna study lies: a journal, SQLite, PostgreSQL; drivers that share one."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from helpers import UNTRACKED, start_cli, write_study
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.samplers import RandomSampler
from optuna.storages import BaseStorage, RDBStorage
from optuna.trial import FrozenTrial, TrialState
from postgres import PASSWORD, PostgresServer

from autoprune import run
from autoprune.asking import asked
from autoprune.errors import AutopruneError
from autoprune.joined import Crew
from autoprune.progress import SilentReporter, Status
from autoprune.pruning.files import read_json
from autoprune.results.store import Store
from autoprune.searching.candidate import trial_name
from autoprune.searching.database import Database
from autoprune.searching.journal import open_journal, together
from autoprune.searching.storage_url import open_database, with_driver

DENSE_PARAMS = 64 * 24 + 24 + 24 * 16 + 16 + 16 * 10 + 10
pytestmark = [pytest.mark.long, pytest.mark.usefixtures("databases_closed")]

KINDS = ("sqlite", "postgresql")
Url = Callable[[str], str]


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Url:
    """Return the URL of a new database, of SQLite or on a PostgreSQL server."""

    def make(kind: str) -> str:
        if kind == "sqlite":
            return f"sqlite:///{tmp_path}/studies.db"
        server: PostgresServer = request.getfixturevalue("postgres")
        return server.create_database(f"d{abs(hash((request.node.name, time.time_ns())))}")

    return make


def trials_in(storage: str, name: str | None = None) -> list[FrozenTrial]:
    """Return what Optuna itself reads: of the study of that name, or of the only search."""
    opened = RDBStorage(with_driver(storage))
    names = [s.study_name for s in opened.get_all_studies()]
    own = [n for n in names if not n.endswith("-final")]
    return optuna.load_study(study_name=name or own[0], storage=opened).trials


# --- a search in a database -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("quick_export")
def test_a_search_in_a_database_is_gone_on_with(kind: str, url: Url, tmp_path: Path) -> None:
    study, out, storage = write_study(tmp_path / "study.py"), tmp_path / "out", url(kind)
    run.search(study, out=out, budget=2, storage=storage, **UNTRACKED)
    first = trials_in(storage)
    assert not (out / "study.journal").exists()
    run.search(study, out=out, budget=4, storage=storage, **UNTRACKED)
    trials = trials_in(storage)
    assert [t.state for t in trials] == [TrialState.COMPLETE] * 4
    assert [t.params for t in trials[:2]] == [t.params for t in first]
    for trial in trials:
        candidate = Store(out).load_candidate(trial_name(trial.number))
        assert trial.values == [candidate.score.valid, candidate.score.params]
        assert trial.user_attrs["parent"] == candidate.parent
    assert all(PASSWORD not in f.read_text(errors="replace") for f in out.rglob("*.json"))


SPACE: dict[str, BaseDistribution] = {
    **{f"sparsity/{i}": FloatDistribution(0.0, 0.9, step=0.1 if i % 2 else None) for i in range(9)},
    "lr": FloatDistribution(1e-4, 1e-1, log=True),
    "epochs": IntDistribution(1, 16, log=True),
    "batch_size": CategoricalDistribution((16, 32)),
    "criterion": CategoricalDistribution(("taylor", "l2")),
    "fixed": FloatDistribution(0.5, 0.5),
}


def run_trials(storage: BaseStorage, ask: Callable[[optuna.Study], optuna.Trial]) -> optuna.Study:
    """Ask for three trials, one of them from the queue, and tell how they end."""
    study = optuna.create_study(
        study_name="x",
        storage=storage,
        directions=["maximize", "minimize"],
        sampler=RandomSampler(seed=0),
    )
    study.enqueue_trial({"lr": 1e-2, "criterion": "l2"}, user_attrs={"parent": "t000"})
    for number, state in enumerate((TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)):
        trial = ask(study)
        with together(trial.storage):
            trial.set_user_attr("valid", 0.1)
            trial.set_user_attr("curve", [0.1, float(number)])
            trial.set_user_attr("valid", 0.2)
        study.tell(trial, [0.2, 7] if state == TrialState.COMPLETE else None, state=state)
    return study


@pytest.mark.parametrize("kind", ["journal", *KINDS])
def test_what_is_written_at_once_is_what_optuna_would_have_written(
    kind: str, url: Url, tmp_path: Path
) -> None:
    plain = run_trials(optuna.storages.InMemoryStorage(), lambda study: study.ask(SPACE))
    if kind == "journal":
        storage: BaseStorage = open_journal(tmp_path / "journal")
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "journal"))
        again: BaseStorage | None = None
    else:
        address = url(kind)
        storage, again = open_database(address), RDBStorage(with_driver(address))
    ours = run_trials(storage, lambda study: asked(study, SPACE))
    read = optuna.load_study(
        study_name="x", storage=again or optuna.storages.JournalStorage(backend)
    )
    for expected, own, found in zip(plain.trials, ours.trials, read.trials, strict=True):
        for trial in (own, found):
            assert trial.params == expected.params
            assert trial.distributions == expected.distributions
            assert trial.user_attrs == expected.user_attrs
            assert (trial.state, trial.values) == (expected.state, expected.values)
    assert ours.trials[0].params["lr"] == 1e-2


def test_parameters_and_attributes_are_one_transaction_each(tmp_path: Path) -> None:
    storage = open_database(f"sqlite:///{tmp_path}/studies.db")
    assert isinstance(storage, Database)
    study = optuna.create_study(storage=storage, sampler=RandomSampler(seed=0))
    commits: list[object] = []
    trial = study.ask()
    sqlalchemy.event.listen(storage._engine, "commit", commits.append)
    with together(storage):
        for number in range(30):
            trial.suggest_float(f"sparsity/{number}", 0, 1)
        trial.set_user_attr("parent", "dense")
    assert len(commits) == 1


def test_a_batch_in_the_journal_is_flushed_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[int] = []
    monkeypatch.setattr("os.fsync", flushed.append)
    study = optuna.create_study(storage=open_journal(tmp_path / "journal"))
    before = len(flushed)
    asked(study, SPACE)
    assert len(flushed) - before == 2  # the new trial, and all its parameters


# --- what cannot be opened ------------------------------------------------------------------------

WRONG = {
    "no such file": ("sqlite:////nowhere/at/all/studies.db", "folder must exist"),
    "no database file": ("sqlite:////etc/hostname", "SQLite database"),
    "no server": ("postgresql://bob:hunter2@127.0.0.1:1/x", "Start the server"),
    "no host": ("postgresql+psycopg://bob:hunter2@nowhere.invalid/x", "mend host and port"),
    "no URL": ("studies.db", "must be a URL such as sqlite:///"),
    "no port": ("postgresql://bob:hunter2@127.0.0.1:hunter2/x", "must be a URL such as"),
    "bare @": ("postgresql://bob:hun@hunter2@127.0.0.1/x", "%40"),
    "unknown kind": ("carrier://pigeon", "is carrier"),
}


def test_trials_that_have_ended_share_what_describes_their_parameters(tmp_path: Path) -> None:
    def ask_and_tell(study: optuna.Study) -> None:
        trial = study.ask()
        value = trial.suggest_float("x", 0.0, 1.0) + trial.suggest_int("y", 1, 3)
        study.tell(trial, value)

    def described(study: optuna.Study) -> set[int]:
        return {id(t.distributions) for t in study.get_trials(deepcopy=False)}

    path = tmp_path / "study.journal"
    study = optuna.create_study(storage=open_journal(path), study_name="one")
    for _ in range(3):
        ask_and_tell(study)
    assert len(described(study)) == 1
    again = optuna.load_study(storage=open_journal(path), study_name="one")
    ask_and_tell(again)
    assert len(described(again)) == 1
    assert [t.distributions for t in again.trials] == [study.trials[0].distributions] * 4


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_wrong_with_a_storage_is_said_in_one_line(wrong: str, tmp_path: Path) -> None:
    storage, words = WRONG[wrong]
    study = write_study(tmp_path / "study.py")
    with pytest.raises(AutopruneError) as said:
        run.search(study, out=tmp_path / "out", budget=1, storage=storage, **UNTRACKED)
    message = str(said.value)
    assert words in message
    assert "--storage" in message
    assert "\n" not in message
    assert "hunter2" not in message
    assert not (tmp_path / "out").exists()


def test_a_server_that_does_not_let_us_in_is_told_apart(postgres: PostgresServer) -> None:
    with pytest.raises(AutopruneError, match=r"password authentication failed.*PGPASSWORD") as said:
        open_database(postgres.url("postgres", password="hunter2"))
    assert "hunter2" not in str(said.value)
    with pytest.raises(AutopruneError, match="createdb nowhere") as said:
        open_database(postgres.url("nowhere"))
    assert PASSWORD not in str(said.value)


def test_the_driver_that_is_installed_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    there: set[str] = {"psycopg"}
    monkeypatch.setattr(
        "autoprune.searching.storage_url.find_spec", lambda name: name in there or None
    )
    assert with_driver("postgresql://h/d") == "postgresql+psycopg://h/d"
    assert with_driver("postgres://h/d") == "postgresql+psycopg://h/d"
    with pytest.raises(AutopruneError, match="psycopg2 is not installed"):
        with_driver("postgresql+psycopg2://h/d")
    there.clear()
    there.add("psycopg2")
    assert with_driver("postgresql://h/d") == "postgresql+psycopg2://h/d"
    there.clear()
    with pytest.raises(AutopruneError, match=r"pip install 'autoprune\[postgresql\]'"):
        with_driver("postgresql://h/d")


# --- a server that goes away ----------------------------------------------------------------------


class Saboteur(SilentReporter):
    """Stops a server when a trial has ended, and starts it again a moment later, or never."""

    def __init__(self, server: PostgresServer, *, back: bool) -> None:
        self._server = server
        self._back = back
        self.stops = 0
        self.returning: threading.Thread | None = None

    def update(self, status: Status) -> None:
        if status.ended is None or self.stops:
            return
        self.stops += 1
        self._server.stop()
        if self._back:
            self.returning = threading.Timer(1.0, self._server.start)
            self.returning.start()


@pytest.mark.usefixtures("quick_export")
def test_a_server_that_is_restarted_costs_nothing(postgres: PostgresServer, tmp_path: Path) -> None:
    study, storage = write_study(tmp_path / "study.py"), postgres.create_database("restarted")
    saboteur = Saboteur(postgres, back=True)
    run.search(
        study, out=tmp_path / "out", budget=4, storage=storage, reporter=saboteur, **UNTRACKED
    )
    assert saboteur.returning is not None
    saboteur.returning.join()
    assert [t.state for t in trials_in(storage)] == [TrialState.COMPLETE] * 4


@pytest.mark.usefixtures("quick_export")
def test_a_server_that_stays_away_stops_the_search_which_goes_on_later(
    postgres: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("autoprune.searching.database.PATIENCE_SECONDS", 1.5)
    study, storage = write_study(tmp_path / "study.py"), postgres.create_database("away")
    settings: dict[str, Any] = {"out": tmp_path / "out", "storage": storage, **UNTRACKED}
    saboteur = Saboteur(postgres, back=False)
    began = time.monotonic()
    try:
        with pytest.raises(AutopruneError, match=r"for 1\.5 s.*the same command goes on") as said:
            run.search(study, budget=4, reporter=saboteur, **settings)
    finally:
        postgres.start()
    assert "\n" not in str(said.value)
    assert PASSWORD not in str(said.value)
    assert time.monotonic() - began < 120
    result = run.search(study, budget=4, **settings)
    assert result.trials["complete"] == 4
    complete = [t for t in trials_in(storage) if t.state == TrialState.COMPLETE]
    assert len({str(t.params) for t in complete}) == 4


# --- several drivers ------------------------------------------------------------------------------


MEETING = """\
import time
from pathlib import Path


class Meeting(SupervisedTask):
    # Trials of one driver wait until the other one has its dense model, too.
    def step(self, model, batch):
        if sum(p.numel() for p in model.parameters()) < {dense}:
            for _ in range(600):
                if len(list(Path({folder!r}).glob("*/dense/dense.json"))) == 2:
                    break
                time.sleep(0.1)
            time.sleep(0.02)
        return super().step(model, batch)


SupervisedTask = Meeting
"""


def test_two_drivers_share_a_study_and_its_budget(postgres: PostgresServer, tmp_path: Path) -> None:
    meeting = MEETING.format(dense=DENSE_PARAMS, folder=str(tmp_path))
    study = write_study(tmp_path / "study.py", before=meeting)
    storage = postgres.create_database("shared")
    drivers = [
        start_cli(
            "search", study, "--out", name, "--storage", storage, "--join", "team",
            "--budget", 8, "--workers", 1, "--tracking-uri", "none", cwd=tmp_path,
        )
        for name in ("a", "b")
    ]  # fmt: skip
    for driver in drivers:
        said = driver.communicate(timeout=240)
        assert driver.returncode == 0, said
        assert PASSWORD not in "".join(said)
    trials = trials_in(storage, "team")
    ended = [t for t in trials if t.state in (TrialState.COMPLETE, TrialState.PRUNED)]
    assert len(ended) == 8
    assert all(t.state.is_finished() for t in trials)
    finished = {t.number for t in trials if t.state == TrialState.COMPLETE}
    held = {}
    for name in ("a", "b"):
        store = Store(tmp_path / name)
        candidates = [store.load_candidate(n) for n in store.candidate_names()]
        held[name] = {c.trial for c in candidates}
        driver_id = read_json(store.identity_file)["id"][:8]
        assert held[name] == {
            t.number for t in trials if t.number in finished and t.user_attrs["driver"] == driver_id
        }
        front = read_json(store.front_file)["front"]
        assert front
        assert all(entry["verified"] for entry in front)
        assert {int(entry["name"][1:]) for entry in front} <= held[name]
    assert held["a"] | held["b"] == finished
    assert held["a"], "both had time to take part"
    assert held["b"], "both had time to take part"


@pytest.mark.usefixtures("quick_export")
def test_whoever_asks_for_one_trial_too_many_gives_it_back(
    url: Url, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, storage = write_study(tmp_path / "study.py"), url("sqlite")
    settings: dict[str, Any] = {"storage": storage, "join": "team", **UNTRACKED}
    run.search(study, out=tmp_path / "a", budget=2, **settings)
    seen: list[int] = []

    def looked_too_early(crew: Crew, study: optuna.Study) -> int:
        seen.append(1)
        return 1 if len(seen) == 1 else crew.done(study)

    monkeypatch.setattr(Crew, "taken", looked_too_early)
    with pytest.raises(AutopruneError, match="No trial was completed"):
        run.search(study, out=tmp_path / "b", budget=2, **settings)
    *ended, given_back = trials_in(storage, "team")
    assert [t.state for t in ended] == [TrialState.COMPLETE] * 2
    assert given_back.state == TrialState.FAIL
    assert not (tmp_path / "b" / "candidates").exists()
    monkeypatch.undo()
    monkeypatch.setattr(
        "autoprune.finale.verify", lambda folders, **_: {f.name: [] for f in folders}
    )
    result = run.search(study, out=tmp_path / "a", budget=3, **settings)
    assert result.trials == {"complete": 3, "stopped": 0, "failed": 0}


@pytest.mark.usefixtures("quick_export")
def test_another_drivers_trials_are_left_alone(url: Url, tmp_path: Path) -> None:
    study, storage = write_study(tmp_path / "study.py"), url("sqlite")
    settings: dict[str, Any] = {"storage": storage, "join": "team", **UNTRACKED}
    run.search(study, out=tmp_path / "a", budget=1, **settings)
    opened = optuna.load_study(study_name="team", storage=storage)
    other = opened.ask()
    other.set_user_attr("driver", "somebody")
    run.search(study, out=tmp_path / "a", budget=3, **settings)
    states = [t.state for t in trials_in(storage, "team")]
    assert states == [TrialState.COMPLETE, TrialState.RUNNING, TrialState.COMPLETE]


@pytest.mark.usefixtures("quick_export")
def test_only_the_same_search_can_be_joined(url: Url, tmp_path: Path) -> None:
    study, storage = write_study(tmp_path / "study.py"), url("sqlite")
    settings: dict[str, Any] = {"storage": storage, **UNTRACKED}
    run.search(study, out=tmp_path / "a", budget=1, join="team", **settings)
    with pytest.raises(AutopruneError, match=r"'team' .* its seed is 0, not 1"):
        run.search(study, out=tmp_path / "b", budget=1, join="team", seed=1, **settings)
    assert not (tmp_path / "b").exists()
    foreign = optuna.create_study(study_name="theirs", storage=storage)
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(AutopruneError, match="autoprune has not made it"):
        run.search(study, out=tmp_path / "b", budget=1, join="theirs", **settings)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"join": "team"}, "`storage` is not given"),
        ({"join": " ", "storage": "sqlite:///x.db"}, "1 to 200 characters"),
        ({"join": "team", "storage": "sqlite:///x.db", "budget_epochs": 9}, "Use --budget"),
    ],
)
def test_what_joining_needs(settings: dict[str, Any], words: str, tmp_path: Path) -> None:
    study = write_study(tmp_path / "study.py")
    with pytest.raises(AutopruneError, match=words):
        run.search(study, out=tmp_path / "out", **settings, **UNTRACKED)
