"""`autoprune compare`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.commands.options import JsonOption, shown

if TYPE_CHECKING:
    from autoprune.results.comparing import Comparison, Side

EXAMPLES = (
    "Examples:  autoprune compare runs/taylor runs/l2  |  "
    "autoprune compare runs/monday runs/friday --json"
)


def compare(
    one: Annotated[Path, typer.Argument(metavar="OUT1", help="A search's output folder.")],
    other: Annotated[Path, typer.Argument(metavar="OUT2", help="Another search's.")],
    as_json: JsonOption = False,
) -> None:
    """Set two searches of one task side by side: by hypervolume, and at equal sizes."""
    from autoprune.results import comparing

    both = comparing.compare(one, other)
    if as_json:
        typer.echo(json.dumps(both.to_json(), indent=1))
        return
    _print(both)
    typer.echo(f"\n{comparing.verdict(both)}")


def _print(both: Comparison) -> None:
    from autoprune.tables import print_table

    names = [str(shown(Path(side.out))) for side in both.sides]
    plane = both.reference
    facts = [_facts(side) for side in both.sides]
    print_table(["", *names], [(name, *(f[name] for f in facts)) for name in facts[0]])
    sign = 1 if both.higher_is_better else -1
    typer.echo(
        f"\nHypervolume: share of the plane from {both.metric} {sign * plane.floor:.4g} to "
        f"{sign * plane.ceiling:.4g} and "
        f"{plane.decades:g} decades below {plane.dense_params:,} parameters.\n"
        f"Best {both.metric} on validation of the models that are at most so large:\n"
    )
    rows = []
    for at in both.sizes:
        first, second = at.scores
        gap = "-" if first is None or second is None else f"{first - second:+.4f}"
        cells = [
            "-" if score is None else f"{score:.4f} ({name})"
            for score, name in zip(at.scores, at.names, strict=True)
        ]
        rows.append((f"{at.params:,}", *cells, gap))
    print_table(["params", *names, "difference"], rows)


def _facts(side: Side) -> dict[str, str]:
    tested = side.hypervolume_test
    return {
        "study": side.study,
        "models on the front": str(side.models),
        "trials": str(side.trials),
        "epochs": str(side.epochs),
        "hypervolume, validation": f"{side.hypervolume:.4f}",
        "hypervolume, test": "-" if tested is None else f"{tested:.4f}",
    }
