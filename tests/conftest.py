"""Fixtures that every test may use."""

import os
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers import leave_out_programs
from hypothesis import settings
from postgres import PostgresServer, binaries
from torch import Tensor

from autoprune import SupervisedTask

# The import mode puts no folder on the path, but tests share nets.py and helpers.py.

pytest.register_assert_rewrite("contract")

# The same examples every time: a test that fails does so for everyone.
settings.register_profile("small", max_examples=12, deadline=None, derandomize=True, database=None)
settings.load_profile("small")


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the exported programs and their proof; see `leave_out_programs`."""
    leave_out_programs(monkeypatch)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; the gate, which can install one, must not go without it."""
    programs = binaries()
    if programs is None:
        reason = "needs PostgreSQL's programs: apt-get install postgresql"
        if os.environ.get("CI") and os.getuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)
    pytest.importorskip("psycopg", reason="needs psycopg: pip install 'autoprune[postgresql]'")
    server = PostgresServer(programs)
    try:
        server.start()
        yield server
    finally:
        server.discard()


@pytest.fixture
def databases_closed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Close every connection that a test leaves open."""
    import sqlalchemy

    engines: list[Any] = []
    create = sqlalchemy.engine.create_engine

    def remembered(*arguments: Any, **settings: Any) -> Any:
        engines.append(create(*arguments, **settings))
        return engines[-1]

    monkeypatch.setattr("sqlalchemy.engine.create_engine", remembered)
    yield
    for engine in engines:
        engine.dispose()


def blobs(samples: int, seed: int) -> tuple[Tensor, Tensor]:
    """Three classes around three corners of an 8-dimensional cube, easy to tell apart."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(samples) % 3
    x = 0.5 * torch.randn(samples, 8, generator=generator) + 2 * torch.eye(3, 8)[y]
    return x, y


@pytest.fixture
def task() -> SupervisedTask:
    """Classify 8 numbers into 3 classes: 120 samples to train on, 60 each to judge by."""
    return SupervisedTask(train=blobs(120, 0), valid=blobs(60, 1), test=blobs(60, 2))
