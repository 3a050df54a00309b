"""MLflow's database is there as a whole, or not at all."""

from pathlib import Path

import pytest
from mlflow import MlflowClient

from autoprune.results.mlflow_database import make_database

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
