"""A search and a real MLflow server that goes away: nothing is lost, training never waits."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import optuna
import pytest
import torch
from helpers import UNTRACKED, Here, environment, leave_out_programs, run_cli, write_study
from mlflow import MlflowClient
from mlflow.entities import Run
from optuna.trial import FrozenTrial, TrialState
from servers import MlflowServer, silent_server

from autoprune import run
from autoprune.errors import AutopruneError
from autoprune.progress import SilentReporter, Status
from autoprune.results import delivery
from autoprune.results.result import SearchResult
from autoprune.results.store import Store
from autoprune.results.sync import sync
from autoprune.searching.candidate import DENSE, trial_name
from autoprune.telling import COVERED

pytestmark = [
    pytest.mark.long,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*Any type hint is inferred as AnyType:UserWarning"),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]

SECRET = "Zq7/s3cret@word"
USER = f"bob:{quote(SECRET, safe='')}"


class Script(SilentReporter):
    """Does things when so many trials have ended, and keeps what is said of MLflow."""

    def __init__(self, **steps: Any) -> None:
        self._steps = steps
        self.ended = 0
        self.notes: list[str] = []
        self.recorded_after: int | None = None
        """How many trials had ended when the search began to wait for MLflow."""

    def update(self, status: Status) -> None:
        if status.stage == "recording":
            self.recorded_after = self.ended
        if status.ended is not None:
            self.ended += 1
            self._steps.get(f"after_{self.ended}", lambda: None)()

    def note(self, message: str) -> None:
        if "MLflow" in message:
            self.notes.append(message)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    server = MlflowServer(tmp_path_factory.mktemp("server"))
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.stop()


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study.py", epochs=2)


def trials_of(out: Path) -> list[FrozenTrial]:
    backend = optuna.storages.journal.JournalFileBackend(str(out / "study.journal"))
    storage = optuna.storages.JournalStorage(backend)
    return optuna.load_study(study_name="tiny", storage=storage).trials


def delivered(out: Path) -> int:
    """Return how many records a server has got."""
    return sum(len(file.read_text().splitlines()) for file in out.glob("spool/delivered-*"))


def runs_of(client: MlflowClient, experiment: str) -> tuple[Run, dict[str, Run]]:
    """Return the search's own run and the trials' runs, of which there is one each."""
    number = client.get_experiment_by_name(experiment).experiment_id
    runs = list(client.search_runs([number]))
    children = {r.data.tags["autoprune.trial"]: r for r in runs if "autoprune.trial" in r.data.tags}
    (parent,) = [r for r in runs if "autoprune.trial" not in r.data.tags]
    assert len(children) == len(runs) - 1
    return parent, children


def check(client: MlflowClient, experiment: str, out: Path, budget: int) -> dict[str, Run]:
    """Check that MLflow has every metric of every trial of a finished search, once."""
    parent, children = runs_of(client, experiment)
    trials = trials_of(out)
    dense = children.pop(DENSE)
    assert children.keys() == {trial_name(t.number) for t in trials}
    assert dense.data.tags["kind"] == DENSE
    assert dense.data.metrics.keys() >= {"valid", "params", "test"}
    assert [p.step for p in client.get_metric_history(parent.info.run_id, COVERED)] == list(
        range(1, budget + 1)
    )
    assert [t.state for t in trials] == [TrialState.COMPLETE] * budget
    for trial in trials:
        ours = children[trial_name(trial.number)]
        score = Store(out).load_candidate(trial_name(trial.number)).score
        assert ours.info.status == "FINISHED"
        assert ours.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert ours.data.params.keys() == {*trial.params, "parent"}
        assert ours.data.metrics["params"] == score.params
        assert ours.data.metrics["macs"] == score.macs
        history = client.get_metric_history(ours.info.run_id, "valid")
        assert sorted((p.step, p.value) for p in history) == list(
            enumerate(trial.user_attrs["curve"])
        )
        assert len(client.get_metric_history(ours.info.run_id, "loss")) == 2
        files = {a.path for a in client.list_artifacts(ours.info.run_id)}
        assert {"plan.json", "sparsity.png"} <= files
    front = {m["name"] for m in json.loads((out / "front.json").read_text())["front"]}
    marked = {name for name, run in children.items() if run.data.tags["front"] == "true"}
    assert marked == front
    for name in front:
        assert "final_valid" in children[name].data.metrics
    assert parent.info.status == "FINISHED"
    assert parent.data.metrics["trials_complete"] == budget
    return children


@pytest.mark.usefixtures("quick_export")
def test_a_server_that_is_away_for_a_third_of_a_search_has_everything_at_the_end(
    server: MlflowServer, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LAST_ATTEMPTS", 200)  # a busy machine starts servers slowly
    monkeypatch.setattr(delivery, "QUIET_SECONDS", 200)
    out = tmp_path / "out"
    seen: list[int] = []

    def stop() -> None:
        deadline = time.monotonic() + 120
        while delivered(out) < 2:  # it has had some of it
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server.stop()
        seen.append(delivered(out))

    def start() -> None:
        seen.append(delivered(out))
        server.start()

    script = Script(after_2=stop, after_4=start)
    uri = server.uri.replace("//", f"//{USER}@")
    run.search(
        study,
        out=out,
        budget=6,
        workers=0,
        tracking_uri=uri,
        experiment="third",
        reporter=script,
    )
    before, after = seen
    assert before == after < 5  # the records of two trials came while nobody was there
    assert script.notes == []
    check(MlflowClient(server.uri), "third", out, 6)
    assert_no_secret(tmp_path, server.folder)


def test_a_server_that_is_away_until_the_end_gets_everything_later(
    server: MlflowServer, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: Here
) -> None:
    synced, resumed = tmp_path / "synced", tmp_path / "resumed"
    settings: dict[str, Any] = {"workers": 0, "tracking_uri": server.uri}
    script = Script()
    server.stop()
    with monkeypatch.context() as patch:
        patch.setattr(delivery, "LAST_ATTEMPTS", 2)
        result = run.search(
            study, out=synced, budget=2, experiment="late", reporter=script, **settings
        )
        leave_out_programs(patch)
        run.search(study, out=resumed, budget=2, experiment="next", **settings)
    records = len(list(synced.glob("spool/0*.json")))
    assert records == 6  # start, dense model, two trials, front, finish
    fault, left = script.notes
    assert "MLflow could not be reached" in fault
    assert left.startswith(f"{records} records for MLflow are still in {synced / 'spool'}")
    assert f"`autoprune sync {synced}`" in left
    assert delivered(synced) == delivered(resumed) == 0

    server.start()
    server.wait()
    process = here("sync", synced, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert process.stdout == f"Delivered 6 records; {server.uri} has all 6.\n"
    client = MlflowClient(server.uri)
    children = check(client, "late", synced, 2)
    assert sync(Store(synced), uri=None, experiment=None).delivered == 0
    check_models(server, children, result, monkeypatch)

    # The next search on the other folder delivers what was left there.
    script = Script()
    with monkeypatch.context() as patch:
        leave_out_programs(patch)
        run.search(study, out=resumed, budget=3, experiment="next", reporter=script, **settings)
    assert script.notes == []
    check(client, "next", resumed, 3)


def check_models(
    server: MlflowServer,
    children: dict[str, Run],
    result: SearchResult,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Check that the server has the front's models, and that they answer as the exported ones."""
    import mlflow.pytorch

    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    client = MlflowClient(server.uri)
    names = {r.info.run_id: name for name, r in children.items()}
    number = client.get_experiment_by_name("late").experiment_id
    models = client.search_logged_models([number])
    assert {names[m.source_run_id] for m in models} == {m.name for m in result.front}
    inputs = torch.rand(3, 64)
    for model in models:
        where = model.artifact_location.removeprefix("mlflow-artifacts:/")
        place = server.folder / "artifacts" / where
        with torch.no_grad():
            expected = result.load(names[model.source_run_id])(inputs)
            torch.testing.assert_close(mlflow.pytorch.load_model(str(place))(inputs), expected)


@pytest.mark.usefixtures("quick_export")
def test_a_server_that_never_answers_keeps_no_trial_waiting(
    server: MlflowServer, study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with silent_server() as uri, monkeypatch.context() as patch:
        patch.setattr(delivery, "QUIET_SECONDS", 1.0)
        script = Script()
        result = run.search(study, out=out, budget=4, workers=0, tracking_uri=uri, reporter=script)
    # All have ended and the front is exported before anybody waits for the one request that
    # MLflow was sent: not a single record had got through.
    assert script.recorded_after == 4
    assert result.trials["complete"] == 4
    assert delivered(out) == 0
    assert any("no answer" in note for note in script.notes)
    assert script.notes[-1].startswith("8 records for MLflow are still in")
    monkeypatch.setattr(delivery, "QUIET_SECONDS", 200)  # this server answers, however late
    done = sync(Store(out), uri=server.uri, experiment="silent")
    assert (done.delivered, done.left) == (8, 0)
    check(MlflowClient(server.uri), "silent", out, 4)


# --- secrets ------------------------------------------------------------------------------------


def assert_no_secret(*folders: Path, said: str = "") -> None:
    """Check that no file holds the secret, in any of the ways that it is written in."""
    forms = [SECRET, quote(SECRET), USER, base64.b64encode(f"bob:{SECRET}".encode()).decode()]
    shown = [form.encode() for form in [*forms, *SECRET.split("/")]]
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and path.name != "study.py":
                content = path.read_bytes()
                assert not any(form in content for form in shown), path
    assert not any(form in said.encode() for form in shown), said


@pytest.mark.usefixtures("quick_export")
def test_secrets_of_a_server_that_is_not_there_are_nowhere(
    study: Path, tmp_path: Path, here: Here
) -> None:
    uri = f"http://{USER}@127.0.0.1:9/mlflow?token={quote(SECRET, safe='')}"
    options = ("--budget", 1, "--workers", 0, "--tracking-uri", uri, "--out", "out")
    process = run_cli("search", study, *options, cwd=tmp_path)
    assert process.returncode == 0, process.stderr
    assert "MLflow could not be reached" in process.stderr
    assert "--tracking-uri" in process.stderr
    assert_no_secret(tmp_path, said=process.stdout + process.stderr)

    process = here("sync", "out", cwd=tmp_path)
    assert process.returncode == 2
    assert "held a secret" in process.stderr
    assert "http://***@127.0.0.1:9/mlflow?token=***" in process.stderr
    process = here("sync", "out", "--tracking-uri", uri, cwd=tmp_path)
    assert process.returncode == 1
    assert "5 of 5 records are still to be delivered" in process.stderr
    assert "Traceback" not in process.stderr
    assert_no_secret(tmp_path, said=process.stdout + process.stderr)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql+nothing", "sqlite", "nothing"])
def test_secrets_of_a_storage_that_cannot_be_opened_are_nowhere(
    scheme: str, study: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    uri = f"{scheme}://{USER}@127.0.0.1:9/optuna?password={quote(SECRET, safe='')}"
    with pytest.raises(AutopruneError, match="--storage") as raised:
        run.search(study, out=tmp_path / "out", budget=1, storage=uri, **UNTRACKED)
    assert not (tmp_path / "out").exists()
    said = capfd.readouterr()
    assert_no_secret(tmp_path, said=f"{raised.value}{said.out}{said.err}")


def test_secrets_of_a_mistyped_command_and_of_a_bug_are_not_shown(
    study: Path, tmp_path: Path
) -> None:
    process = run_cli("search", study, f"https://{USER}@host", cwd=tmp_path)
    assert process.returncode == 2
    assert_no_secret(said=process.stderr)
    code = (
        "import sys\nfrom autoprune import cli, run\n"
        f"def search(*a, **b): raise RuntimeError('https://bob:{SECRET}@host')\n"
        "run.search = search\nsys.argv = ['autoprune', 'search']\ncli.main()\n"
    )
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 1
    assert "Traceback" in process.stderr
    assert "RuntimeError: https://***@host" in process.stderr
    assert_no_secret(said=process.stderr)
