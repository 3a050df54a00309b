"""A PostgreSQL server that tests start, stop and throw away."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

USER, PASSWORD = "team", "s3cret/p@ss"
START_SECONDS = 60


def binaries() -> Path | None:
    """Return the folder of PostgreSQL's programs: Debian keeps them off the path."""
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).parent
    there = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    return there[-1].parent if there else None


class PostgresServer:
    """A cluster of its own on the loopback, that asks for a password.

    It flushes the disk only if it is to be `durable`, as for measurements.
    """

    def __init__(self, programs: Path, *, durable: bool = False) -> None:
        self._programs = programs
        self._durable = durable
        self._folder = Path(tempfile.mkdtemp(prefix="autoprune-postgres-"))
        self._data = self._folder / "data"
        # The server refuses to be run by root: Debian's package has a user for it.
        self._user = "postgres" if os.getuid() == 0 else None
        if self._user is not None:
            shutil.chown(self._folder, self._user, self._user)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port: int = probe.getsockname()[1]
        self._process: subprocess.Popen[bytes] | None = None
        self._create()

    def _create(self) -> None:
        password = self._folder / "password"
        password.write_text(PASSWORD)
        if self._user is not None:
            shutil.chown(password, self._user, self._user)
        subprocess.run(
            [
                self._programs / "initdb", "-D", self._data, "-U", USER, "-E", "UTF8",
                "--locale", "C", "--auth", "scram-sha-256", "--pwfile", password, "--no-sync",
            ],
            check=True, capture_output=True, cwd=self._folder, user=self._user, group=self._user,
            extra_groups=[] if self._user else None,
        )  # fmt: skip

    def start(self) -> None:
        """Start the server, and wait until it lets us in."""
        settings = {
            "listen_addresses": "127.0.0.1", "port": str(self.port),
            "fsync": "on" if self._durable else "off",
            "unix_socket_directories": "",
        }  # fmt: skip
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", self._data, *options],
                stdout=log, stderr=log, cwd=self._folder, user=self._user, group=self._user,
                extra_groups=[] if self._user else None, start_new_session=True,
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while True:
            try:
                self.run("SELECT 1")
                return
            except Exception:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise
                time.sleep(0.2)

    def run(self, statement: str) -> None:
        """Run a statement in the server's own database."""
        import psycopg

        login = {"host": "127.0.0.1", "port": self.port, "user": USER, "password": PASSWORD}
        with psycopg.connect(dbname="postgres", autocommit=True, **login) as connection:
            connection.execute(statement)  # type: ignore[call-overload]

    def create_database(self, name: str) -> str:
        """Create a database; return its URL."""
        self.run(f"CREATE DATABASE {name}")
        return self.url(name)

    def url(self, database: str, *, password: str = PASSWORD) -> str:
        from urllib.parse import quote

        login = f"{USER}:{quote(password, safe='')}"
        return f"postgresql://{login}@127.0.0.1:{self.port}/{database}"

    def stop(self) -> None:
        """End it at once, as a crash would; it can be started again."""
        if self._process is not None:
            self._process.send_signal(signal.SIGQUIT)
            self._process.wait(timeout=30)
            self._process = None

    def discard(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)
