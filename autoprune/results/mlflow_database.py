"""MLflow's database in a search's folder: there as a whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def database_url(path: Path) -> str:
    """Return the URL of a database file, for MLflow and SQLAlchemy, whatever is in its path.

    >>> database_url(Path("/runs/mine/mlflow.db"))
    'sqlite:////runs/mine/mlflow.db'
    """
    from sqlalchemy import URL, make_url

    plain = f"sqlite:///{path}"
    if make_url(plain).database == str(path):
        return plain
    # Versions of SQLAlchemy escape differently, but SQLite reads URIs itself; by the driver's full
    # name, as MLflow makes the folder that it sees after `sqlite:///`, escaped as it is.
    url = URL.create("sqlite+pysqlite", database=path.as_uri(), query={"uri": "true"})
    return url.render_as_string()


def make_database(path: Path) -> None:
    """Make MLflow's database if there is none.

    MLflow makes its tables step by step, and neither goes on where it was killed nor begins anew:
    a half made database could never be used. So it is made under another name first.
    """
    if path.exists():
        return
    from mlflow.store.db import utils

    mlflow: Any = utils
    fresh = path.with_name(f"{path.name}.new")
    for left in path.parent.glob(f"{fresh.name}*"):
        left.unlink()
    engine = mlflow.create_sqlalchemy_engine_with_retry(database_url(fresh))
    try:
        mlflow._initialize_tables(engine)
    finally:
        engine.dispose()
    fresh.replace(path)
