"""`autoprune doctor`."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from autoprune.commands.options import JsonOption, StudyArgument

EXAMPLES = "Example:  autoprune doctor my_study.py --max-params 10k"


def doctor(
    study: StudyArgument = "digits",
    max_params: Annotated[
        str | None,
        typer.Option(
            metavar="N",
            help="Say whether this size can be reached, e.g. 50k or 1.5M; exit code 1 if not.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show what of a study's model can be pruned, and why the rest cannot."""
    from autoprune.results import units
    from autoprune.results.diagnosis import diagnose
    from autoprune.study import load_study

    most = None if max_params is None else units.count("max_params", max_params)
    diagnosis = diagnose(load_study(study))
    reached = most is None or diagnosis.reaches(most)
    if as_json:
        asked = {} if most is None else {"max_params": most, "reachable": reached}
        typer.echo(json.dumps(diagnosis.to_json() | asked, indent=1))
    else:
        from autoprune.tables import print_diagnosis

        print_diagnosis(diagnosis)
        if most is not None:
            typer.echo(
                f"At most {most:,} parameters {'can' if reached else 'cannot'} be reached: "
                f"the smallest possible model has {diagnosis.least_params:,}."
            )
    if not reached:
        raise typer.Exit(1)
