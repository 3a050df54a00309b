"""`autoprune doctor`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from autoprune.commands.options import JsonOption, StudyArgument

EXAMPLES = "Example:  autoprune doctor my_study.py --max-params 10000"


def doctor(
    study: StudyArgument = "digits",
    max_params: Annotated[
        int | None,
        typer.Option(min=1, help="Say whether this size can be reached; exit code 1 if not."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what of a study's model can be pruned, and why the rest cannot."""
    from autoprune.results.diagnosis import diagnose
    from autoprune.study import load_study

    diagnosis = diagnose(load_study(study))
    reached = max_params is None or diagnosis.reaches(max_params)
    if as_json:
        asked = {} if max_params is None else {"max_params": max_params, "reachable": reached}
        typer.echo(json.dumps(diagnosis.to_json() | asked, indent=1))
    else:
        from autoprune.tables import print_diagnosis

        print_diagnosis(diagnosis)
        if max_params is not None:
            typer.echo(
                f"At most {max_params:,} parameters {'can' if reached else 'cannot'} be reached: "
                f"the smallest possible model has {diagnosis.least_params:,}."
            )
    if not reached:
        raise typer.Exit(1)
