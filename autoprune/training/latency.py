"""Latency: how long a model takes for a batch, as measured here and now.

A shared machine is never quiet. So a measurement is the median of many short blocks of calls, with
the interquartile range beside it; and models that are to be compared take turns, block by block,
so that what else the machine does hits all of them alike.
"""

from __future__ import annotations

import copy
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import nn

from autoprune.errors import AutopruneError, first_line, unknown
from autoprune.pruning.forward import call, tensors_of
from autoprune.training.device import device_of, to_device
from autoprune.training.programs import at_batch, export_program, save_onnx

Engine = Literal["eager", "compile", "onnx"]
ENGINES: tuple[str, ...] = get_args(Engine)

SECONDS = 0.2
"""What the blocks of one model last, all together, unless its calls are slow."""
BLOCKS = 200
"""Each so short that most of them end before another process gets the core."""
FEWEST_BLOCKS = 5
"""For models that take long."""
LONGEST = 0.5
"""Seconds after which a slow model's blocks are enough, if they are not too few."""
WARM_UP_CALLS = 3
WARM_UP_SECONDS = 0.05

Call = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """A measured latency, and what it was measured with."""

    seconds: float
    """For one call on a batch: the median over all blocks."""
    spread: float
    """Interquartile range over the blocks, in seconds."""
    runs: int
    """Blocks that were timed."""
    engine: str
    batch_size: int
    threads: int
    device: str


def measure(
    model: nn.Module | Path,
    example: Any,
    *,
    engine: str = "eager",
    batch_size: int = 1,
    threads: int = 1,
) -> Latency:
    """Measure the latency of one model; see `measure_together`.

    Examples
    --------
    >>> found = measure(nn.Linear(4, 2), torch.zeros(1, 4), batch_size=8)
    >>> found.seconds > 0, found.engine, found.batch_size
    (True, 'eager', 8)
    """
    models = {"": model}
    return measure_together(models, example, engine=engine, batch_size=batch_size, threads=threads)[
        ""
    ]


def measure_together(
    models: Mapping[str, nn.Module | Path],
    example: Any,
    *,
    engine: str = "eager",
    batch_size: int = 1,
    threads: int = 1,
) -> dict[str, Latency]:
    """Measure the latencies of several models in turns, so that they can be compared.

    Parameters
    ----------
    models
        Models, measured in evaluation mode on the device they are on and not changed; for the
        engine ``onnx``, ONNX files too.
    example
        Inputs as the models are called with them. They are repeated or cut to `batch_size`.
    engine
        ``eager`` calls the model as it is, ``compile`` after `torch.compile`, ``onnx`` runs it in
        ONNX Runtime on the CPU.
    threads
        Compute threads of this process meanwhile; what was set before is restored.

    Raises
    ------
    AutopruneError
        If there is no such engine, or a model does not run by it on such a batch.
    """
    check_engine(engine)
    if not models:
        return {}
    for name, value in (("batch_size", batch_size), ("threads", threads)):
        if value < 1:
            raise AutopruneError(f"`{name}` of a latency must be at least 1, but is {value}.")
    inputs = at_batch(example, batch_size)
    with ExitStack() as stack:
        stack.enter_context(compute_threads(threads))
        calls: dict[str, Call] = {}
        devices: dict[str, torch.device] = {}
        try:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")  # torch warns of its own parts when it compiles
            for name, model in models.items():
                calls[name], devices[name] = _opened(model, inputs, engine, threads, stack)
            stack.enter_context(torch.inference_mode())
            pace = {name: _warm_up(run, devices[name]) for name, run in calls.items()}
        except Exception as error:
            raise AutopruneError(
                f"A model must run on a batch of {batch_size} by engine {engine!r} to have its "
                f"latency measured, but that raised {first_line(error).rstrip('.')}. "
                f"Choose another engine or batch size."
            ) from error
        times = _in_turns(calls, devices, pace)
    return {
        name: Latency(
            seconds=float(np.median(found)),
            spread=float(np.subtract(*np.percentile(found, [75, 25]))),
            runs=len(found),
            engine=engine,
            batch_size=batch_size,
            threads=threads,
            device=str(devices[name]),
        )
        for name, found in times.items()
    }


def check_engine(name: str) -> None:
    """Raise `AutopruneError` if there is no engine called `name`."""
    if name not in ENGINES:
        raise unknown("latency engine", name, ENGINES)


def _opened(
    model: nn.Module | Path, inputs: Any, engine: str, threads: int, stack: ExitStack
) -> tuple[Call, torch.device]:
    """Return what runs `model` once on `inputs`, and where it runs."""
    if isinstance(model, Path):
        return _onnx_call(model, inputs, threads), torch.device("cpu")
    own = copy.deepcopy(model).eval()
    if engine == "onnx":
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        cpu = torch.device("cpu")
        program = export_program(own.to(cpu), to_device(inputs, cpu), dynamic=False)
        save_onnx(program, folder / "model.onnx")
        return _onnx_call(folder / "model.onnx", inputs, threads), cpu
    device = device_of(own)
    here = to_device(inputs, device)
    if engine == "eager":
        return (lambda: call(own, here)), device
    stack.enter_context(_many_compiled())
    compiled = torch.compile(own, dynamic=False)
    return (lambda: call(compiled, here)), device  # type: ignore[arg-type]


def _onnx_call(path: Path, inputs: Any, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        str(path), sess_options=options, providers=["CPUExecutionProvider"]
    )
    names = [i.name for i in session.get_inputs()]
    arrays = [t.detach().cpu().contiguous().numpy() for t in tensors_of(inputs)]
    feed = dict(zip(names, arrays, strict=True))
    return lambda: session.run(None, feed)


@contextmanager
def compute_threads(count: int) -> Iterator[None]:
    """Give this process so many compute threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def _many_compiled() -> Iterator[None]:
    """Let a class be compiled once per cut size: past 8, torch would quietly go back to eager."""
    from torch._dynamo import config

    with config.patch(cache_size_limit=10_000, accumulated_cache_size_limit=10_000):
        yield


def _warm_up(run: Call, device: torch.device) -> float:
    """Call a few times; return the seconds of the fastest call."""
    began, fastest, done = time.perf_counter(), float("inf"), 0
    while done < WARM_UP_CALLS or time.perf_counter() - began < WARM_UP_SECONDS:
        fastest = min(fastest, _timed(run, 1, device))
        done += 1
    return max(fastest, 1e-7)


def _in_turns(
    calls: Mapping[str, Call], devices: Mapping[str, torch.device], pace: Mapping[str, float]
) -> dict[str, list[float]]:
    """Return the seconds of a call in each block, by name; `pace` is about what one takes."""
    counts = {name: max(round(SECONDS / BLOCKS / each), 1) for name, each in pace.items()}
    slowest = max(counts[name] * each for name, each in pace.items())
    blocks = min(max(int(LONGEST / slowest), FEWEST_BLOCKS), BLOCKS)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(blocks):
        for name, run in calls.items():
            times[name].append(_timed(run, counts[name], devices[name]))
    return times


def _timed(run: Call, count: int, device: torch.device) -> float:
    """Return the seconds of one call, as the mean over `count` calls in a row."""
    if device.type == "cuda":
        with torch.cuda.device(device):
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            start.record()
            for _ in range(count):
                run()
            end.record()
            end.synchronize()
            return float(start.elapsed_time(end)) / 1000 / count
    _wait_for(device)
    began = time.perf_counter()
    for _ in range(count):
        run()
    _wait_for(device)
    return (time.perf_counter() - began) / count


def _wait_for(device: torch.device) -> None:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
