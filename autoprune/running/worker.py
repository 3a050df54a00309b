"""A worker process: opens its context once, then runs one job after another for its driver.

It talks JSON with the driver over a local socket that only the two of them can authenticate on.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from multiprocessing.connection import Client, Connection
from typing import Any

from autoprune.running.executor import Opening, resolve
from autoprune.running.inline import failure

PARENT_CHECK_SECONDS = 1.0


def main(greeting: dict[str, Any]) -> None:
    """Serve the driver that started this process, until it says so or is gone."""
    _die_with(greeting["driver"])
    connection = Client(greeting["address"], authkey=bytes.fromhex(greeting["key"]))
    opening = Opening(function=greeting["open"], spec=greeting["spec"])
    send(connection, {"hello": greeting["slot"]})
    context: Any = None
    try:
        while (order := receive(connection)).get("job") is not None or "open" in order:
            if "open" in order:
                with contextlib.suppress(Exception):  # its first job says what is wrong
                    context = opening()
                continue
            try:
                if context is None:
                    context = opening()
                send(connection, {"begun": True})
                _run(connection, context, order)
            except GoneError:
                raise
            except Exception as error:
                failed = failure(order["job"], error)
                send(
                    connection,
                    {
                        "failed": failed.cause,
                        "detail": failed.detail,
                        "fixable": failed.fixable,
                        "died": failed.died,
                        "stops": failed.stops,
                    },
                )
                if failed.died:  # what is left of it may be in the next job's way
                    return
    except GoneError:
        os._exit(0)  # the driver is gone: nobody is left to work for


def _run(connection: Connection, context: Any, order: dict[str, Any]) -> None:
    job = resolve(order["call"])(context, **order["arguments"])
    try:
        value = next(job)
        while True:
            send(connection, {"progress": value})
            value = job.send(receive(connection)["go_on"])
    except StopIteration as stop:
        send(connection, {"done": stop.value})


class GoneError(ConnectionError):
    """The other side is gone. A job's own end of file or lost connection is no such error."""


def send(connection: Connection, message: dict[str, Any]) -> None:
    """Send one JSON message; raise `GoneError` if the other side is gone."""
    content = json.dumps(message).encode()
    try:
        connection.send_bytes(content)
    except OSError as error:
        raise GoneError(str(error)) from error


def receive(connection: Connection) -> dict[str, Any]:
    """Receive one JSON message; raise `GoneError` if the other side is gone."""
    try:
        content = connection.recv_bytes()
    except (EOFError, OSError) as error:
        raise GoneError(str(error)) from error
    message: dict[str, Any] = json.loads(content)
    return message


def _die_with(driver: int) -> None:
    """End this process soon after its driver, even in the middle of a long step."""

    def watch() -> None:
        while os.getppid() == driver:
            time.sleep(PARENT_CHECK_SECONDS)
        os._exit(0)

    threading.Thread(target=watch, daemon=True).start()
