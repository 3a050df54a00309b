"""Runs by itself (`python -I verify.py TOLERANCE < order.json`), without autoprune.

For each exported folder it loads the programs, runs them on the reference inputs, and prints what
differs from the reference outputs. That it works proves that the models need no autoprune.
"""

import json
import sys
from pathlib import Path
from typing import Any


def main() -> None:
    sys.modules["autoprune"] = None  # type: ignore[assignment]  # importing it is now an error
    tolerance = float(sys.argv[1])
    answers = {}
    for order in json.load(sys.stdin):
        folder = Path(order["folder"])
        answers[folder.name] = list(_faults(folder, Path(order["reference"]), tolerance))
    print(json.dumps(answers))


def _faults(folder: Path, reference_file: Path, tolerance: float) -> Any:
    from safetensors.torch import load_file

    reference = load_file(reference_file)
    inputs = [reference[f"input/{i}"] for i in range(_count(reference, "input"))]
    expected = [reference[f"output/{i}"] for i in range(_count(reference, "output"))]
    layout = json.loads(reference_file.with_suffix(".json").read_text())
    plan = json.loads((folder / "plan.json").read_text())
    for name, run in (("pt2", _run_program), ("onnx", _run_onnx)):
        file = folder / f"model.{name}"
        if not file.exists():
            continue
        try:
            outputs, params = run(file, inputs, layout, plan)
        except Exception as error:
            yield f"{name}: {type(error).__name__}: {error}"
            continue
        if len(outputs) != len(expected):
            yield f"{name}: {len(outputs)} outputs instead of {len(expected)}"
        for i, (output, wanted) in enumerate(zip(outputs, expected, strict=False)):
            if tuple(output.shape) != tuple(wanted.shape):
                yield f"{name}: output {i} is {tuple(output.shape)}, not {tuple(wanted.shape)}"
            else:
                gap = float((output.float() - wanted.float()).abs().max())
                if not gap <= tolerance * max(1.0, float(wanted.float().abs().max())):
                    yield f"{name}: output {i} differs by {gap:.2g}, more than {tolerance:g}"
        if params is not None and params != plan["params"]:
            yield f"{name}: {params} parameters instead of {plan['params']}"


def _count(reference: dict[str, Any], prefix: str) -> int:
    return sum(name.startswith(f"{prefix}/") for name in reference)


def _run_program(
    file: Path, inputs: list[Any], layout: Any, plan: dict[str, Any]
) -> tuple[list[Any], int | None]:
    import torch

    program = torch.export.load(file)
    with torch.no_grad():
        if isinstance(layout, dict):
            result = program.module()(**{k: _nest(v, inputs) for k, v in layout.items()})
        elif isinstance(layout, list):
            result = program.module()(*[_nest(v, inputs) for v in layout])
        else:
            result = program.module()(inputs[0])
    total = 0
    for full, parameter in program.named_parameters():
        # A program of a model with answers of its own class has it one level down.
        names = {full, full.removeprefix("model.")}
        if not names & set(plan.get("shared", ())):
            zeroed = names & set(plan.get("zeroed", ()))
            total += int(parameter.count_nonzero()) if zeroed else parameter.numel()
    return _flat(result), total


def _run_onnx(
    file: Path, inputs: list[Any], layout: Any, plan: dict[str, Any]
) -> tuple[list[Any], int | None]:
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    names = [i.name for i in session.get_inputs()]
    feed = {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}
    return [torch.from_numpy(o) for o in session.run(None, feed)], None


def _nest(layout: Any, inputs: list[Any]) -> Any:
    if isinstance(layout, dict):
        return {key: _nest(item, inputs) for key, item in layout.items()}
    if isinstance(layout, list):
        return tuple(_nest(item, inputs) for item in layout)
    return inputs[layout]


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [t for item in value.values() for t in _flat(item)]
    if isinstance(value, (tuple, list)):
        return [t for item in value for t in _flat(item)]
    return [value] if hasattr(value, "shape") else []


if __name__ == "__main__":
    main()
