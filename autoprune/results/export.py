"""Exporting a candidate: safetensors and plan, a `torch.export` program, an ONNX file.

The exported files run without autoprune. What they must answer is written down as a reference,
from the model in memory, and compared in a clean process before anything counts as exported.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import AutopruneError, first_line
from autoprune.pruning.files import file_digest, write_json, write_signed
from autoprune.pruning.forward import (
    batch_size_of,
    call,
    map_tensors,
    randomised,
    shared_names,
    tensors_of,
)
from autoprune.pruning.masks import count_nonzero
from autoprune.pruning.plan import Plan
from autoprune.pruning.weights import load_tensors, save_model, save_tensors
from autoprune.results.exported import PLAN, WEIGHTS
from autoprune.training.programs import at_batch, check_onnx, export_program, save_onnx

PROGRAM, ONNX = "model.pt2", "model.onnx"
TOLERANCE = 1e-4
"""Largest allowed difference between an exported model's outputs and the model's in memory, as a
share of the largest output if that is above 1."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What became of an export."""

    formats: tuple[str, ...]
    """Of ``safetensors``, ``pt2`` and ``onnx``, those that were written."""
    problems: tuple[str, ...]
    """Why a format is missing, one line each."""


def export_model(
    model: nn.Module,
    folder: Path,
    *,
    example: Any,
    plan: Plan,
    about: Mapping[str, Any],
    zeroed: Sequence[str] = (),
    programs: bool = True,
) -> Exported:
    """Write `model` to `folder` in every format, with the reference that proves them.

    Parameters
    ----------
    example
        Inputs as the model is called with them; the first dimension is the batch, and is left
        free in the exported programs where the model allows it.
    about
        JSON-able facts that go into ``plan.json``.
    zeroed
        Parameters of which single weights were pruned: only those that are not zero count.
    programs
        Whether to write ``model.pt2`` and ``model.onnx`` beside the weights and the plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    model = model.cpu().eval()
    digest = save_model(folder / WEIGHTS, model)
    params = count_nonzero(model, zeroed)
    content = {
        **about,
        "params": params,
        "zeroed": list(zeroed),
        "shared": list(shared_names(model)),
        "sha256": digest,
        **plan.to_json(),
    }
    example = map_tensors(lambda t: t.detach().cpu(), example)
    formats, problems, dynamic = ["safetensors"], list[str](), False
    if programs:
        more, problems, dynamic = _write_programs(model, folder, example)
        formats += more
    written = sorted(file for file in folder.iterdir() if file.name.startswith((PROGRAM, ONNX)))
    content["files"] = {file.name: file_digest(file) for file in written}
    write_signed(folder / PLAN, content)
    _save_reference(model, folder, example, dynamic=dynamic)
    return Exported(formats=tuple(formats), problems=tuple(problems))


def _write_programs(
    model: nn.Module, folder: Path, example: Any
) -> tuple[list[str], list[str], bool]:
    """Write what programs can be had.

    Returns their formats, why others are missing, and whether they take batches of any size.
    """
    try:
        program, dynamic = _trace(model, example)
        torch.export.save(program, folder / PROGRAM)
    except Exception as error:
        return [], [f"pt2: {first_line(error)}"], False
    try:
        save_onnx(program, folder / ONNX)
        check_onnx(folder / ONNX, example)
    except Exception as error:
        for file in folder.glob(f"{ONNX}*"):
            file.unlink()
        return ["pt2"], [f"onnx: {first_line(error)}"], dynamic
    return ["pt2", "onnx"], [], dynamic


def export_onnx(model: nn.Module, path: Path, *, example: Any) -> None:
    """Write `model` as an ONNX file alone, its batch dimension free where the model allows it."""
    example = map_tensors(lambda t: t.detach().cpu(), example)
    program, _ = _trace(model.cpu().eval(), example)
    save_onnx(program, path)


def reference_file(folder: Path) -> Path:
    """Return where a folder's reference inputs and outputs are kept until it is verified."""
    return folder.with_name(f"{folder.name}.reference.safetensors")


def verify(folders: Sequence[Path], *, processes: int = 1) -> dict[str, list[str]]:
    """Compare exported programs with their references in processes that cannot import autoprune.

    Returns
    -------
    dict
        By folder name, what is wrong with it; an empty list if nothing is.
    """
    shares = [share for n in range(processes) if (share := folders[n::processes])]
    with ThreadPoolExecutor(max(len(shares), 1)) as pool:
        return {name: faults for found in pool.map(_verify, shares) for name, faults in found}


def _verify(folders: Sequence[Path]) -> Iterable[tuple[str, list[str]]]:
    script = Path(__file__).with_name("verify.py")
    order = [{"folder": str(f), "reference": str(reference_file(f))} for f in folders]
    run = subprocess.run(
        [sys.executable, "-I", str(script), str(TOLERANCE)],
        input=json.dumps(order),
        capture_output=True,
        text=True,
        check=False,
        start_new_session=True,  # Ctrl-C is for the driver
    )
    if run.returncode != 0:
        lines = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        raise AutopruneError(f"Verifying the exported models failed: {lines[-1]}")
    answers: dict[str, list[str]] = json.loads(run.stdout)
    return answers.items()


def differs(model: nn.Module, folder: Path) -> str | None:
    """Say how a reloaded model differs from the reference, None if it does not."""
    reference = load_tensors(reference_file(folder))
    plan_inputs = json.loads(reference_layout(folder).read_text())
    inputs = _fill(plan_inputs, reference, "input")
    with torch.no_grad():
        outputs = tensors_of(call(model, inputs))
    for i, output in enumerate(outputs):
        expected = reference[f"output/{i}"]
        if output.shape != expected.shape:
            return f"safetensors: output {i} is {tuple(output.shape)}, not {tuple(expected.shape)}"
        gap = float((output.float() - expected.float()).abs().max())
        if not gap <= TOLERANCE * max(1.0, float(expected.float().abs().max())):
            return f"safetensors: output {i} differs by {gap:.2g}"
    return None


def _trace(model: nn.Module, example: Any) -> tuple[torch.export.ExportedProgram, bool]:
    """Export with a free batch dimension if the model allows it, else with the example's."""
    try:
        roomy = at_batch(example, max(batch_size_of(example), 2))
        program = export_program(model, roomy, dynamic=True)
        with torch.no_grad():
            call(program.module(), at_batch(example, batch_size_of(roomy) + 1))
        return program, True
    except Exception:  # whatever the reason, the fixed batch is the alternative
        return export_program(model, example, dynamic=False), False


def reference_layout(folder: Path) -> Path:
    """Return where the nesting of the reference inputs is kept."""
    return folder.with_name(f"{folder.name}.reference.json")


def _save_reference(model: nn.Module, folder: Path, example: Any, *, dynamic: bool) -> None:
    """Write what the model in memory answers, at another batch size if that is free."""
    size = batch_size_of(example) + (3 if dynamic else 0)
    inputs = at_batch(randomised(example, seed=1), size)
    with torch.no_grad():
        outputs = tensors_of(call(model, inputs))
    tensors = {f"input/{i}": t for i, t in enumerate(tensors_of(inputs))}
    tensors |= {f"output/{i}": t for i, t in enumerate(outputs)}
    save_tensors(reference_file(folder), tensors)
    write_json(reference_layout(folder), _layout(inputs, iter(range(len(tensors)))))


def _layout(inputs: Any, counter: Any) -> Any:
    """Replace each tensor of a nest of inputs by its number."""
    if isinstance(inputs, Mapping):
        return {key: _layout(item, counter) for key, item in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return [_layout(item, counter) for item in inputs]
    return next(counter) if isinstance(inputs, Tensor) else inputs


def _fill(layout: Any, tensors: Mapping[str, Tensor], prefix: str) -> Any:
    if isinstance(layout, Mapping):
        return {key: _fill(item, tensors, prefix) for key, item in layout.items()}
    if isinstance(layout, list):
        return tuple(_fill(item, tensors, prefix) for item in layout)
    return tensors[f"{prefix}/{layout}"]
