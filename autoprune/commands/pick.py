"""`autoprune pick`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.commands.options import (
    JsonOption,
    MaxParamsOption,
    MinAccuracyOption,
    OutArgument,
    shown,
)
from autoprune.errors import AutopruneError

if TYPE_CHECKING:
    from autoprune.results.picking import Picked

EXAMPLES = (
    "Examples:  autoprune pick autoprune-runs/digits --smallest --max-loss 1 --to small  |  "
    "autoprune pick runs/mine --max-params 50k --max-latency 2ms --best --to fast  |  "
    "autoprune pick runs/mine --knee --json"
)


def pick(
    out: OutArgument,
    max_params: MaxParamsOption = None,
    min_accuracy: MinAccuracyOption = None,
    max_latency: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="Only models this fast, e.g. 2ms or 500us."),
    ] = None,
    max_loss: Annotated[
        str | None,
        typer.Option(metavar="POINTS", help="Only models that lose at most this, e.g. 1."),
    ] = None,
    best: Annotated[bool, typer.Option("--best", help="Of these, the best score.")] = False,
    smallest: Annotated[
        bool,
        typer.Option("--smallest", help="Of these, the smallest; it may lose 1 point by default."),
    ] = False,
    knee: Annotated[
        bool,
        typer.Option("--knee", help="Of these, the one below which smaller costs much more."),
    ] = False,
    runtime: Annotated[
        str | None,
        typer.Option(
            help="Whose latencies count: eager, onnx, compile.  [default: what was searched by]"
        ),
    ] = None,
    to: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Copy the model's files to this folder.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an exported model that is at DIR.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Pick a model that a search found, and copy it to where it is needed.

    Limits combine. Without --best, --smallest or --knee, the smallest is picked where the score
    alone is limited, and the best otherwise.
    """
    from autoprune.results import picking

    asked = {"best": best, "smallest": smallest, "knee": knee}
    chosen = [name for name, wanted in asked.items() if wanted]
    if len(chosen) > 1:
        raise AutopruneError(
            f"One model must be picked, but --{chosen[0]} and --{chosen[1]} were given. "
            f"Leave one out."
        )
    if overwrite and to is None:
        raise AutopruneError("`--overwrite` must come with --to, which says what it replaces.")
    picked = picking.pick(
        out,
        max_params=max_params,
        min_accuracy=min_accuracy,
        max_latency=max_latency,
        max_loss=max_loss,
        choose=chosen[0] if chosen else None,
        runtime=runtime,
        to=to,
        overwrite=overwrite,
    )
    if as_json:
        typer.echo(json.dumps(picked.to_json(), indent=1))
    else:
        typer.echo("\n".join(_lines(picked, copied=to is not None)))


def _lines(picked: Picked, *, copied: bool) -> list[str]:
    model, folder = picked.model, shown(picked.folder)
    facts = [f"{model.params:,} parameters", f"{model.macs:,} MACs", f"{model.valid:.4f} valid"]
    if model.test is not None:
        facts.append(f"{model.test:.4f} test")
    if picked.latency_ms is not None:
        facts.append(f"{picked.latency_ms:.3g} ms")
    which = f"{picked.choice} of {picked.within}" if picked.within > 1 else "only one"
    lines = [f"{model.name}: {', '.join(facts)} (the {which} within the limits)"]
    if copied:
        lines.append(f"{'Replaced' if picked.replaced else 'Copied to'} {folder}, checksums right.")
    return [*lines, *_how_to_load(folder)]


def _how_to_load(folder: Path) -> list[str]:
    """Say how each format that is there is loaded."""

    def text(path: Path) -> str:
        return json.dumps(str(path), ensure_ascii=False)

    ways = {
        "model.pt2": f"torch.export.load({text(folder / 'model.pt2')}).module()",
        "model.onnx": f"onnxruntime.InferenceSession({text(folder / 'model.onnx')})",
        "model.safetensors": f"autoprune.load({text(folder)}, model=YourModel())",
    }
    there = [way for file, way in ways.items() if (folder / file).exists()]
    return [f"  {way}" for way in there]
