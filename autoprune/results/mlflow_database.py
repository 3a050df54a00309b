"""MLflow's database in a search's folder: there as a whole, or not at all."""

from __future__ import annotations

from pathlib import Path
from typing import Any


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
    engine = mlflow.create_sqlalchemy_engine_with_retry(f"sqlite:///{fresh}")
    try:
        mlflow._initialize_tables(engine)
    finally:
        engine.dispose()
    fresh.replace(path)
