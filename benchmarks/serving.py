"""What pruning saves whoever serves the model: dense and knee side by side, under the same load.

    python benchmarks/serving.py [OUT] [--batch 64] [--requests 400] [--clients 2] [--write]

OUT is a finished search; without it, one of the built-in study is run. The dense model and the
front's knee are served by `mlflow models serve` on this machine alone, one worker and one compute
thread each, and are called in turns, block by block; then both are run in this process by ONNX
Runtime on one thread. `--write` puts the table into RESULTS.md.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from results_file import wrapped, write_section

import autoprune
from autoprune.results.choosing import knee
from autoprune.results.export import ONNX, PROGRAM, export_onnx
from autoprune.results.mlflow_models import ModelFiles
from autoprune.results.result import SearchResult, open_result
from autoprune.results.signature import describe
from autoprune.searched import Searched, reopen
from autoprune.searching.candidate import DENSE
from autoprune.training.programs import at_batch, export_program
from autoprune.workbench import Workbench

TITLE = "Serving"
BLOCKS = 10
"""How often the models take turns."""
START_SECONDS = 180
WARM_UP = 20
"""Requests that are not counted, to each server."""
Call = Callable[[], None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", nargs="?", type=Path, help="a finished search")
    parser.add_argument("--study", help="what was searched there, if it does not say")
    parser.add_argument("--batch", type=int, default=64, help="samples in a request")
    parser.add_argument("--requests", type=int, default=400, help="to each model")
    parser.add_argument("--clients", type=int, default=2, help="that ask at the same time")
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        out = options.out or searched_now(Path(folder) / "out")
        result = open_result(out)
        chosen = knee(result.front, higher_is_better=result.higher_is_better)
        searched = reopen(out, options.study)
        models = prepared(result, searched, Path(folder), chosen.name)
        batch = at_batch(searched.study.example, options.batch).numpy()
        served = serve(models, batch, requests=options.requests, clients=options.clients)
        in_process = by_onnx_runtime(models, batch, requests=options.requests)
    shares = {DENSE: 1.0, "knee": chosen.params / result.dense.params}
    lines = table({"mlflow models serve": served, "ONNX Runtime, in process": in_process}, shares)
    about = wrapped(
        f"`python benchmarks/serving.py --write`: {result.study}, the dense model "
        f"({result.dense.params:,} parameters, test {result.dense.test:.4f}) and the knee of its "
        f"front ({chosen.params:,}, test {chosen.test:.4f}). {options.requests} requests of "
        f"{options.batch} samples to each model in turns; the servers have one worker and one "
        f"compute thread each and {options.clients} clients that wait for each answer, so that the "
        f"load is the same and bounded. Milliseconds are those of a whole request, JSON included."
    )
    text = "\n".join([about, "", *lines])
    print(text)
    if options.write:
        write_section(TITLE, text)


def searched_now(out: Path) -> Path:
    autoprune.search("digits", out=out, budget=16, tracking_uri="none")
    return out


def prepared(result: SearchResult, searched: Searched, root: Path, knee: str) -> dict[str, Path]:
    """Write both models in MLflow's format, and as ONNX files beside that; return their folders."""
    study = searched.study
    dense = Workbench(study, searched.store).model(DENSE).cpu().eval()
    exported = root / "exported"
    exported.mkdir()
    torch.export.save(export_program(dense, study.example, dynamic=True), exported / PROGRAM)
    export_onnx(dense, exported / ONNX, example=study.example)
    (entry,) = [m for m in result.front if m.name == knee]
    places = {}
    described = describe(study.example, dense)
    assert described is not None
    for name, folder in ((DENSE, exported), ("knee", result.out / entry.path)):
        files = ModelFiles(
            folder=folder, described=described, example={"input": study.example.numpy()}
        )
        places[name] = root / name
        files.write(places[name], model_id=name, run="none", location=str(places[name]))
        copy_onnx(folder, places[name])
    return places


def copy_onnx(folder: Path, to: Path) -> None:
    """Copy an ONNX file with its weights, which may lie beside it."""
    for file in folder.glob(f"{ONNX}*"):
        (to / file.name).write_bytes(file.read_bytes())


# --- over the network ---------------------------------------------------------------------------


def serve(
    models: dict[str, Path], batch: np.ndarray, *, requests: int, clients: int
) -> dict[str, Figures]:
    body = json.dumps({"inputs": batch.tolist()}).encode()
    with server(models[DENSE]) as dense, server(models["knee"]) as small:
        ports = {DENSE: dense, "knee": small}
        for port in ports.values():
            ask(port, body, WARM_UP)
        found = {name: Figures() for name in models}
        for _ in range(BLOCKS):
            for name, port in ports.items():
                began = time.perf_counter()
                each = requests // BLOCKS // clients
                with ThreadPoolExecutor(clients) as pool:
                    answers = pool.map(ask, [port] * clients, [body] * clients, [each] * clients)
                    for seconds in answers:
                        found[name].add(seconds)
                found[name].took += time.perf_counter() - began
    return found


@contextmanager
def server(model: Path) -> Iterator[int]:
    """Serve a model on this machine alone; yield the port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", str(model)]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--workers", "1"],
        env=os.environ | {"OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_for(port, process)
        yield port
    finally:
        os.killpg(process.pid, 15)
        process.wait()


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server ended with exit code {process.returncode}")
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        time.sleep(0.5)
    raise SystemExit(f"no server answered on port {port} within {START_SECONDS} s")


def ask(port: int, body: bytes, count: int) -> list[float]:
    """Send so many requests, one after the other; return the seconds that each took."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    seconds = []
    for _ in range(count):
        began = time.perf_counter()
        connection.request(
            "POST", "/invocations", body=body, headers={"Content-Type": "application/json"}
        )
        answer = connection.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise SystemExit(f"the server answered {answer.status}: {text[:200]!r}")
        seconds.append(time.perf_counter() - began)
    return seconds


# --- in this process ----------------------------------------------------------------------------


def by_onnx_runtime(
    models: dict[str, Path], batch: np.ndarray, *, requests: int
) -> dict[str, Figures]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        name: ort.InferenceSession(str(place / ONNX), options, providers=["CPUExecutionProvider"])
        for name, place in models.items()
    }
    found = {name: Figures() for name in models}
    for block in range(BLOCKS + 1):  # the first one warms up
        for name, session in sessions.items():
            feed = {session.get_inputs()[0].name: batch}
            for _ in range(requests // BLOCKS):
                began = time.perf_counter()
                session.run(None, feed)
                if block:
                    took = time.perf_counter() - began
                    found[name].add([took])
                    found[name].took += took
    return found


class Figures:
    """What was measured of one model."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.took = 0.0

    def add(self, seconds: list[float]) -> None:
        self.seconds += seconds

    def cells(self) -> tuple[float, float, float]:
        p50, p99 = np.percentile(self.seconds, [50, 99])
        return 1e3 * float(p50), 1e3 * float(p99), len(self.seconds) / self.took


def table(found: dict[str, dict[str, Figures]], shares: dict[str, float]) -> list[str]:
    lines = [
        "| by | model | parameters | p50 ms | p99 ms | requests a second |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for way, models in found.items():
        dense = models[DENSE].cells()
        for name, figures in models.items():
            cells = [f"{value:.3g}" for value in figures.cells()]
            if name != DENSE:
                ratios = [a / b for a, b in zip(figures.cells(), dense, strict=True)]
                cells = [f"{c} ({r:.2f}x)" for c, r in zip(cells, ratios, strict=True)]
            lines.append(f"| {way} | {name} | {shares[name]:.1%} | {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
