"""Fixtures that every test may use."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import Here, leave_out_programs
from hypothesis import settings
from postgres import PostgresServer, binaries
from torch import Tensor

from autoprune import SupervisedTask

# The import mode puts no folder on the path, but tests share nets.py and helpers.py.

pytest.register_assert_rewrite("contract")

# The same examples every time: a test that fails does so for everyone.
settings.register_profile("small", max_examples=12, deadline=None, derandomize=True, database=None)
settings.load_profile("small")


LONGEST = (
    "test_chaos.py", "test_tracking.py", "test_lineage.py", "test_search.py", "test_ray.py",
    "test_storage.py", "test_interrupts.py", "test_faults.py", "test_own_kinds.py",
    "test_package.py", "test_sklearn.py", "test_sparsified.py", "test_ui.py", "test_bad_input.py",
    "test_code_blocks.py",
)  # fmt: skip
"""Files that take a minute or so. Two processes share the files: these are not to come last."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take from the path again what study files put on it."""
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def quick_export(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out the exported programs and their proof; see `leave_out_programs`."""
    leave_out_programs(monkeypatch)


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Here]:
    """Run the command line in this process."""
    from autoprune import cli

    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
        monkeypatch.chdir(cwd)
        monkeypatch.setattr(sys, "argv", ["autoprune", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return subprocess.CompletedProcess(sys.argv, ended.value.code, said.out, said.err)

    yield call
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def registries() -> Iterator[None]:
    """Forget afterwards what a test registers."""
    from autoprune.study import REGISTRIES

    before = [(registry, dict(registry)) for registry in REGISTRIES]
    yield
    for registry, entries in before:
        registry.clear()
        registry.update(entries)


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
