"""Opening the database that a storage URL names; what is wrong with one, said without secrets."""

from __future__ import annotations

import re
import time
from importlib.util import find_spec
from typing import Any

from optuna.storages import BaseStorage
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, IntegrityError, NoSuchModuleError, ProgrammingError

from autoprune.errors import AutopruneError, first_line, is_full
from autoprune.searching.database import Database, lost_connection

EXAMPLES = "sqlite:///studies.db or postgresql://user@host/database"
DRIVERS = {"psycopg": "postgresql+psycopg", "psycopg2": "postgresql+psycopg2"}
"""What SQLAlchemy calls PostgreSQL with each driver, by the driver's module; the first one wins."""
BUSY_SECONDS = 30
"""How long to wait for another process that is writing to an SQLite file."""
TRIES = 4
"""Of opening: drivers that create the tables at the same moment get in each other's way."""

_SCHEME = re.compile(r"([A-Za-z][\w.+-]*)://")


def open_database(url: str) -> BaseStorage:
    """Open an Optuna storage by its URL; its tables are created if need be.

    Raises
    ------
    AutopruneError
        If that cannot be done: what to mend, in one line without passwords.
    """
    name = with_driver(url)
    for left in reversed(range(TRIES)):
        try:
            return Database(name, engine_kwargs=_engine_settings(name))
        except Exception as error:
            if is_full(error):
                raise
            crowded = isinstance(error, (IntegrityError, ProgrammingError))
            if not left or not (crowded or "already exists" in str(error)):
                raise _explained(name, error) from error
            time.sleep(0.3)
    raise AssertionError("it was opened, or not")


def with_driver(url: str) -> str:
    """Return a storage URL with a driver for PostgreSQL that is installed.

    Raises
    ------
    AutopruneError
        If it is no URL, or there is no driver.

    Examples
    --------
    >>> with_driver("sqlite:///studies.db")
    'sqlite:///studies.db'
    """
    found = _SCHEME.match(url)
    if found is None:
        raise AutopruneError(f"`--storage` must be a URL such as {EXAMPLES}, but has no scheme.")
    rest = url[found.end() :]
    if "@" in rest.rpartition("@")[0]:
        raise AutopruneError(
            "In `--storage`, special characters of user name and password must be written as "
            "their codes, but there is a bare @. Write %40 for it, %2F for / and %3A for :."
        )
    scheme = found[1].lower()
    if scheme.partition("+")[0] in ("postgresql", "postgres"):
        return f"{_postgresql(scheme)}://{rest}"
    return url


def _postgresql(scheme: str) -> str:
    asked = scheme.partition("+")[2]
    wanted = (asked,) if asked else tuple(DRIVERS)
    for module in wanted:
        if find_spec(module) is not None:
            return DRIVERS.get(module, scheme)
    raise AutopruneError(
        f"A PostgreSQL `--storage` needs a driver, but {wanted[0]} is not installed. "
        f"Run: pip install 'autoprune[postgresql]' (and leave +{asked or 'psycopg2'} out of the "
        f"URL)."
    )


def _engine_settings(url: str) -> dict[str, Any]:
    settings: dict[str, Any] = {"hide_parameters": True}
    if url.startswith("sqlite"):
        return settings | {"connect_args": {"timeout": BUSY_SECONDS}}
    return settings


def _explained(url: str, error: Exception) -> AutopruneError:
    """Return the error that says what to mend where a storage cannot be opened."""
    if isinstance(error, NoSuchModuleError):
        return AutopruneError(
            f"`--storage` must be of a kind of database that SQLAlchemy knows, such as {EXAMPLES}, "
            f"but is {url.partition('://')[0]}."
        )
    if isinstance(error, (ArgumentError, ValueError)):  # it may quote what it cannot read
        return AutopruneError(
            f"`--storage` must be a URL such as {EXAMPLES}, but cannot be read as one. Special "
            f"characters of its password are written as codes: %40 for @, %2F for /, %3A for :."
        )
    lost = lost_connection(error)
    cause = first_line(_deepest(lost or error))
    return AutopruneError(
        f"The Optuna storage must be open to us, but opening it raised "
        f"{_without_password(url, cause).rstrip('.')}. {_fix(url, cause)} Check --storage."
    )


def _deepest(error: BaseException) -> BaseException:
    """Return the driver's own error, which is the shortest."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _fix(url: str, cause: str) -> str:
    known = make_url(url)
    if "does not exist" in cause and "database" in cause:
        return f"Create it with: createdb {known.database}."
    if "password" in cause or "authentication" in cause or "role" in cause:
        return "Mend user name and password, or put the password into PGPASSWORD or ~/.pgpass."
    if url.startswith("sqlite"):
        return "The file's folder must exist, be writable, and the file be an SQLite database."
    if "refused" in cause or "No such file" in cause or "timeout" in cause or "resolve" in cause:
        return "Start the server, or mend host and port."
    return ""


def _without_password(url: str, text: str) -> str:
    password = make_url(url).password
    return text.replace(str(password), "***") if password else text
