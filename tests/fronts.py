"""Output folders of finished searches, as far as reading them goes: no search is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from autoprune.pruning.files import checksum, file_digest, write_json
from autoprune.pruning.plan import FineTune, Plan

FRONT = {"t007": (1_000, 0.90), "t003": (9_000, 0.97), "t011": (60_000, 0.985)}
"""Parameters and score by name."""
DENSE = (150_000, 0.99)


def write_front(
    out: Path,
    front: dict[str, tuple[int, float]] = FRONT,
    *,
    dense: tuple[int, float] = DENSE,
    exports: bool = True,
    **more: Any,
) -> Path:
    """Write what a finished search leaves for `open_result` and `pick`; return its folder.

    `more` replaces entries of ``front.json``. A model's latency is 1 ms for 10,000 parameters.
    """
    models = [_model(name, *facts) for name, facts in front.items()]
    value = {
        "format": 1,
        "study": "tiny",
        "metric": "accuracy",
        "higher_is_better": True,
        "seed": 0,
        "objectives": ["accuracy", "params"],
        "dense": _model("dense", *dense),
        "front": models,
        "trials": {"complete": len(models), "stopped": 0, "failed": 0},
        **more,
    }
    if exports:
        for model in models:
            write_export(out / model["path"], params=model["params"])
    write_json(out / "front.json", value)
    return out


def _model(name: str, params: int, valid: float) -> dict[str, Any]:
    return {
        "name": name,
        "trial": None if name == "dense" else int(name.removeprefix("t")),
        "params": params,
        "macs": 10 * params,
        "size_bytes": 4 * params,
        "valid": valid,
        "test": valid - 0.01,
        "latency_ms": params / 10_000,
        "path": "dense" if name == "dense" else f"front/{name}",
    }


def write_export(folder: Path, *, params: int) -> None:
    """Write an exported model's files; only their checksums are right."""
    folder.mkdir(parents=True)
    for file in ("model.safetensors", "model.pt2", "model.onnx"):
        (folder / file).write_bytes(f"{file} of {params}".encode())
    plan = Plan(widths={"a": 1}, criterion="l2", finetune=FineTune(epochs=1, lr=0.1))
    content = {
        "params": params,
        "sha256": file_digest(folder / "model.safetensors"),
        "files": {f"model.{e}": file_digest(folder / f"model.{e}") for e in ("pt2", "onnx")},
        **plan.to_json(),
    }
    write_json(folder / "plan.json", content | {"checksum": checksum(content)})
    write_json(folder / "metrics.json", {"params": params})
