"""A job that sleeps instead of training: what workers run in benchmarks of everything else."""

from __future__ import annotations

import os
import time
from collections.abc import Generator
from pathlib import Path
from typing import Any


def open_folder(spec: dict[str, Any]) -> Path:
    return Path(spec["out"])


def nap(
    folder: Path,
    *,
    name: str,
    plan: dict[str, Any],
    seconds: float,
    epochs: int,
    valid: float,
    params: int,
    bytes: int,
) -> Generator[dict[str, Any], bool, dict[str, Any]]:
    """Take so many seconds, tell of `epochs` on the way, and leave weights of so many bytes."""
    began = time.time()
    for epoch in range(epochs + 1):
        yield {"epoch": epoch, "valid": valid, **({"loss": 1.0} if epoch else {})}
        time.sleep(max(began + seconds * (epoch + 1) / (epochs + 1) - time.time(), 0))
    weights = folder / "candidates" / name / "weights.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    weights.write_bytes(os.urandom(bytes))
    kept = {group: list(range(width)) for group, width in plan["widths"].items()}
    return {
        "valid": valid,
        "params": params,
        "macs": params,
        "size_bytes": bytes,
        "sha256": None,
        "plan": {**plan, "kept": kept},
        "seconds": {},
        "slept": [began, time.time(), str(folder)],
    }
