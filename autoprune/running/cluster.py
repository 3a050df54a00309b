"""A connection to a Ray cluster: what it has to offer, and one line for all that can go wrong.

Ray is imported here, when a cluster is asked for, and nowhere else.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import signal
import socket
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autoprune.errors import AutopruneError, first_line

REACH_SECONDS = 5.0
"""How long the head node may take to take a call."""
CAPACITY_SECONDS = 2.0
"""How old what is known of the nodes may be."""


@dataclass(frozen=True, kw_only=True)
class Needs:
    """What one trial takes of a node."""

    cpus: float = 1.0
    gpus: float = 0.0

    def fit(self, resources: Mapping[str, float]) -> int:
        """Return how many trials fit on a node of these resources at once.

        >>> Needs(cpus=2, gpus=0.5).fit({"CPU": 8.0, "GPU": 1.0})
        2
        """
        wanted = {"CPU": self.cpus, "GPU": self.gpus}
        shares = [resources.get(name, 0.0) / n for name, n in wanted.items() if n]
        return math.floor(min(shares) + 1e-9)

    def __str__(self) -> str:
        gpus = f" and {self.gpus:g} GPUs" if self.gpus else ""
        return f"{self.cpus:g} CPUs{gpus}"


@dataclass
class Cluster:
    """A Ray cluster that this process is connected to.

    Attributes
    ----------
    ray
        The module.
    """

    ray: Any
    needs: Needs
    _seen: tuple[float, int] = field(default=(-math.inf, 0))

    def capacity(self, *, fresh: bool = False) -> int:
        """Return how many trials the living nodes can run at once."""
        when, count = self._seen
        if fresh or time.monotonic() - when > CAPACITY_SECONDS:
            count = sum(self.needs.fit(resources) for resources in self._nodes())
            self._seen = time.monotonic(), count
        return count

    def check(self) -> None:
        """Raise `AutopruneError` unless some node offers what a trial needs."""
        if self.capacity(fresh=True):
            return
        offers = "; ".join(
            f"{node.get('CPU', 0):g} CPUs, {node.get('GPU', 0):g} GPUs" for node in self._nodes()
        )
        raise AutopruneError(
            f"Some node of the cluster must offer what a trial needs, {self.needs}, but none does "
            f"({offers or 'no node is alive'}). Lower --cpus-per-trial or --gpus-per-trial, or add "
            f"a node with `ray start --address=...`."
        )

    def _nodes(self) -> list[dict[str, float]]:
        return [node["Resources"] for node in self.ray.nodes() if node["Alive"]]


@contextlib.contextmanager
def connected(address: str | None, needs: Needs) -> Iterator[Cluster]:
    """Connect to a Ray cluster, as long as the context lasts.

    Parameters
    ----------
    address
        ``host:port`` of its head, ``ray://host:port`` of a Ray client server, or ``auto`` for the
        cluster that this machine is a node of. None takes what ``RAY_ADDRESS`` says, or starts
        one of this machine's own.

    Raises
    ------
    AutopruneError
        If Ray is not installed, there is no such cluster or it is of another version, or no node
        offers what a trial needs.
    """
    ray = _load_ray()
    theirs = ray.is_initialized()  # the caller's own connection, which stays
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    _reach(address)
    if not theirs:
        _connect(ray, address)
    try:
        cluster = Cluster(ray, needs)
        cluster.check()
        yield cluster
    finally:
        if not theirs:
            ray.shutdown()


def _load_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else it warns of a change of GPU visibility, which agents set for themselves.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise AutopruneError(
            f"The engine ray must have Ray installed, but importing it raised {first_line(error)}. "
            f"Run `pip install 'autoprune[ray]'`."
        ) from error


def _connect(ray: Any, address: str) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.init(
                address=address,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                **({"include_dashboard": False} if address == "local" else {}),
            )
    except Exception as error:
        raise _no_connection(address, error) from error
    finally:
        with contextlib.suppress(ValueError):  # only the main thread may, and Ray knows
            signal.signal(signal.SIGTERM, handler)
    _silence(ray)


def _silence(ray: Any) -> None:
    """Keep Ray from printing into our output, as when a node dies: events tell that."""
    with contextlib.suppress(AttributeError):
        ray._private.worker.print_to_stdstream = lambda *_, **__: None


def _reach(address: str) -> None:
    """Call the head node first: Ray itself tries for minutes, and prints as it does."""
    if address == "auto":
        known = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"
        if not known.exists():
            return  # Ray says so
        address = known.read_text().strip()
    if address == "local":
        return
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65536:
        raise AutopruneError(
            f"`--address` must be HOST:PORT, ray://HOST:PORT or auto, but is {address!r}."
        )
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise AutopruneError(
            f"A Ray cluster must be running at --address {address}, but it cannot be reached: "
            f"{error.strerror or error}. Start it with `ray start --head`, which prints its "
            f"address, and let firewalls pass it."
        ) from error


def _no_connection(address: str, error: Exception) -> AutopruneError:
    text = str(error)
    at = f"at {address} "
    if "ersion mismatch" in text:
        return AutopruneError(
            f"Ray and Python must be of the same versions on all machines, but those of the "
            f"cluster {at}are others than ours: {' '.join(text.split())}"
        )
    if "uthenticat" in type(error).__name__ + text:
        return AutopruneError(
            f"The cluster {at}must know this machine's token, but refused it. Copy the head node's "
            f"~/.ray/auth_token to the same place here, and set RAY_AUTH_MODE=token."
        )
    return AutopruneError(
        f"A Ray cluster must be running {at}for the engine ray, but connecting raised "
        f"{first_line(error).rstrip('.')}. Start it with `ray start --head`."
    )


def loss_of(error: Exception) -> str:
    """Say why an agent was lost, by what Ray raised when it was asked."""
    text = str(error)
    if "OutOfMemory" in type(error).__name__ or "low on memory" in text:
        return "its node had no memory left"
    if "node has died" in text or "node died" in text or "unavailable" in text:
        return "its node left the cluster"
    return first_line(error)
