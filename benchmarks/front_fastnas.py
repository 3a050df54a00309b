"""NVIDIA Model Optimizer's FastNAS: `nvidia-modelopt`, with `huggingface_hub` and `torchprofile`.

Its table of sensitivities is measured once and reused across sizes. Its divisors of channels and
features are lowered to 2: with the usual 32 it could not prune networks as small as these.
"""

from __future__ import annotations

import io
import tempfile
import warnings
from collections.abc import Mapping
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from importlib.util import find_spec
from typing import Any

from front_bench import Bench, sizes, spread
from front_grids import GRID_SIZES
from front_record import Record
from torch import nn

NEEDED = ("modelopt", "huggingface_hub", "torchprofile")
DIVISOR = 2
CALIBRATION_BATCHES = 4
"""Of 128 images, as for every cut here, instead of its usual 50."""


def modelopt(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return import_module(f"modelopt.torch.{module}")


def with_divisor(value: Any) -> Any:
    """Return FastNAS's configuration with every divisor lowered."""
    if isinstance(value, Mapping):
        divisors = ("channel_divisor", "feature_divisor")
        return {k: DIVISOR if k in divisors else with_divisor(v) for k, v in value.items()}
    return value


class FastNas:
    """FastNAS on one dense model; one table of sensitivities for all sizes."""

    def __init__(self, bench: Bench, table: str) -> None:
        self._bench = bench
        self._prune = modelopt("prune").prune
        fastnas = modelopt("prune.fastnas")
        self._config = with_divisor(fastnas.FastNASConfig().model_dump())
        self._table = table

    def pruned(self, share: float) -> nn.Module:
        """Return the dense model pruned to at most `share` of its parameters.

        Raises whatever FastNAS raises at a size that it finds infeasible.
        """
        batches = list(self._bench.batches(samples=128 * CALIBRATION_BATCHES, batch_size=128))
        with (
            warnings.catch_warnings(),
            redirect_stdout(io.StringIO()),
            redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore")
            model, _ = self._prune(
                self._bench.dense(),
                mode=[("fastnas", self._config)],
                constraints={"params": share * self._bench.dense_params},
                dummy_input=self._bench.spec.example,
                config={
                    "score_func": lambda m: self._bench.task.evaluate(m, "valid"),
                    "data_loader": batches,
                    "collect_func": lambda batch: batch.inputs,
                    "checkpoint": self._table,
                },
            )
        return model


def run(bench: Bench, record: Record) -> None:
    """12 sizes, those that it can make, each fine-tuned by itself."""
    lacking = [name for name in NEEDED if find_spec(name) is None]
    if lacking:
        raise SystemExit(f"FastNAS is left out: {', '.join(lacking)} not installed")
    refused: dict[str, list[str]] = {}
    found: list[nn.Module] = []
    with tempfile.TemporaryDirectory() as folder:
        searcher = FastNas(bench, f"{folder}/table.pth")
        for share in sizes(min(GRID_SIZES, bench.epochs)):
            try:
                found.append(searcher.pruned(share))
            except Exception as error:  # whatever it says: the size is named as refused
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                refused.setdefault(reason, []).append(f"1/{1 / share:.0f}")
    record.notes += [f"refused {', '.join(named)}: {why}" for why, named in refused.items()]
    for number, (small, epochs) in enumerate(
        zip(found, spread(bench.epochs, len(found)), strict=True)
    ):
        valid = bench.tune(small, bench.settings(epochs), number=number)
        record.add(small, valid, epochs=epochs)
