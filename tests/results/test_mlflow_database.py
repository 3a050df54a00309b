"""MLflow's database is there as a whole, or not at all."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import sqlalchemy
from mlflow import MlflowClient

from autoprune.results.mlflow_database import database_url, make_database

pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


def test_one_whose_making_was_cut_short_is_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_short(engine: object) -> None:
        raise KeyboardInterrupt

    path = tmp_path / "mlflow.db"
    with monkeypatch.context() as patch:
        patch.setattr("mlflow.store.db.utils._upgrade_db", cut_short)
        with pytest.raises(KeyboardInterrupt):
            make_database(path)
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db.new"]
    make_database(path)
    assert [file.name for file in tmp_path.iterdir()] == ["mlflow.db"]
    client = MlflowClient(f"sqlite:///{path}")
    made = client.create_experiment("dogs")
    make_database(path)
    assert client.get_experiment(made).name == "dogs"


@pytest.mark.parametrize("name", ["runs", "what?", "a#b", "50%25", "100%", "two words", "ü+&=;'"])
def test_its_url_leads_to_it_whatever_is_in_the_path(name: str, tmp_path: Path) -> None:
    file = tmp_path / name / "mlflow.db"
    file.parent.mkdir()
    engine = sqlalchemy.create_engine(database_url(file))
    with engine.begin() as connection:
        connection.execute(sqlalchemy.text("CREATE TABLE dogs (name TEXT)"))
    engine.dispose()
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("SELECT name FROM sqlite_master").fetchall() == [("dogs",)]


def test_mlflow_opens_it_and_makes_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "what? #1 50%25" / "mlflow.db"
    file.parent.mkdir()
    make_database(file)
    MlflowClient(database_url(file)).create_experiment("dogs")
    assert [each.name for each in tmp_path.rglob("*")] == [file.parent.name, file.name]
    with closing(sqlite3.connect(file)) as database:
        assert ("dogs",) in database.execute("SELECT name FROM experiments").fetchall()
