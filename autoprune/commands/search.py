"""`autoprune search`."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from autoprune.commands.options import JsonOption, StudyArgument, names, shown

EXAMPLES = (
    "Examples:  autoprune search --budget 50  |  "
    "autoprune search my_study.py --budget 200 --workers 4 --out runs/mine"
)


class Engine(StrEnum):
    local = "local"
    ray = "ray"


class Objective(StrEnum):
    pareto = "pareto"
    weighted = "weighted"


def search(
    study: StudyArgument = "digits",
    budget: Annotated[
        int | None, typer.Option(help="Trials to run.  [default: 50, without --budget-epochs]")
    ] = None,
    budget_epochs: Annotated[
        int | None,
        typer.Option(help="Epochs to train in all; trials and final stage share them."),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds after which no new trial begins.")
    ] = None,
    trial_timeout: Annotated[
        float | None,
        typer.Option(help="Seconds that a trial may take before its worker is ended."),
    ] = None,
    workers: Annotated[
        str, typer.Option(help="Worker processes; `auto` is one per core or GPU, 0 none.")
    ] = "auto",
    engine: Annotated[
        Engine, typer.Option(help="Worker processes of this machine, or a Ray cluster.")
    ] = Engine.local,
    address: Annotated[
        str | None,
        typer.Option(help="The Ray cluster: HOST:PORT, ray://HOST:PORT or auto."),
    ] = None,
    cpus_per_trial: Annotated[
        float, typer.Option(help="CPUs that a trial takes of the Ray cluster.")
    ] = 1.0,
    gpus_per_trial: Annotated[
        float, typer.Option(help="GPUs that a trial takes of the Ray cluster; may be a fraction.")
    ] = 0.0,
    out: Annotated[
        Path | None, typer.Option(help="Output folder.  [default: autoprune-runs/<study name>]")
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option("--fresh", help="Delete the search that OUT holds, and begin anew."),
    ] = False,
    seed: Annotated[int | None, typer.Option(help="Replaces the study's seed.")] = None,
    sampler: Annotated[
        str, typer.Option(help="pruning (ours), or Optuna's tpe, nsga2, gp, random.")
    ] = "pruning",
    criteria: Annotated[
        str | None, typer.Option(help="Criteria to search, e.g. `taylor,l2`; replaces the study's.")
    ] = None,
    sparsify: Annotated[
        str | None,
        typer.Option(help="Sparsifiers to search, e.g. `none,l1`; replaces the study's."),
    ] = None,
    objectives: Annotated[
        str,
        typer.Option(help="The score and what it costs: params, macs, size, memory, latency."),
    ] = "accuracy,params",
    latency_engine: Annotated[
        str, typer.Option(help="What measures latency: eager, compile or onnx.")
    ] = "eager",
    latency_batch: Annotated[
        int, typer.Option(help="Samples in the batch that latency is measured on.")
    ] = 1,
    objective: Annotated[
        Objective, typer.Option(help="A front, or one weighted number per trial.")
    ] = Objective.pareto,
    accuracy_weight: Annotated[
        float, typer.Option(help="Weight of the score for `--objective weighted`.")
    ] = 0.8,
    stop: Annotated[
        bool | None,
        typer.Option(
            "--stop/--no-stop",
            help="Stop clearly dominated trials early.  [default: with samplers but ours]",
        ),
    ] = None,
    inherit: Annotated[
        bool,
        typer.Option(
            "--inherit/--no-inherit",
            help="Cut trials from what earlier ones trained, or all from the dense model.",
        ),
    ] = True,
    join: Annotated[
        str | None,
        typer.Option(help="Share the study of this NAME in --storage with other drivers."),
    ] = None,
    storage: Annotated[
        str | None, typer.Option(help="Optuna storage URL.  [default: a journal file in OUT]")
    ] = None,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow tracking URI; `none` for none.  [default: a database in OUT]"),
    ] = None,
    experiment: Annotated[str, typer.Option(help="MLflow experiment.")] = "autoprune",
    register: Annotated[
        str | None,
        typer.Option(
            help="Model in MLflow's registry that gets the front as versions, with the aliases "
            "smallest, knee and best."
        ),
    ] = None,
    extras: Annotated[
        bool,
        typer.Option(
            "--extras/--no-extras",
            help="Write, time and draw the models of the front, or leave weights and plans alone.",
        ),
    ] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the front alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search for smaller models, and export those that nothing beats.

    The same command again goes on where an earlier one stopped.
    """
    from autoprune.run import search as run_search
    from autoprune.tables import print_front
    from autoprune.terminal import reporter_for

    reporter = reporter_for(quiet=quiet or as_json)
    with _interruptible(out), reporter:
        result = run_search(
            study,
            out=out,
            fresh=fresh,
            seed=seed,
            criteria=None if criteria is None else names(criteria),
            sparsify=None if sparsify is None else names(sparsify),
            reporter=reporter,
            budget=budget,
            budget_epochs=budget_epochs,
            timeout=timeout,
            trial_timeout=trial_timeout,
            workers=_worker_count(workers),
            engine=engine.value,
            address=address,
            cpus_per_trial=cpus_per_trial,
            gpus_per_trial=gpus_per_trial,
            sampler=sampler,
            objectives=names(objectives),
            latency_engine=latency_engine,
            latency_batch=latency_batch,
            objective=objective.value,
            accuracy_weight=accuracy_weight,
            early_stop=stop,
            inherit=inherit,
            storage=storage,
            join=join,
            tracking_uri=tracking_uri,
            experiment=experiment,
            register=register,
            extras=extras,
        )
    if as_json:
        typer.echo((result.out / "front.json").read_text(), nl=False)
        return
    print_front(result)
    folder = shlex.quote(str(shown(result.out)))
    typer.echo(
        f"\nModels: {shown(result.out / 'front')}\n"
        f"Report: autoprune report {folder} --open\n"
        f"Review: autoprune ui {folder}"
    )


@contextmanager
def _interruptible(out: Path | None) -> Iterator[None]:
    """Say where a search is kept that Ctrl-C or SIGTERM ends."""
    from autoprune.run import DEFAULT_FOLDER

    try:
        yield
    except KeyboardInterrupt:
        where = out or f"{DEFAULT_FOLDER}/<study name>"
        typer.echo(
            f"Stopped. Finished trials are kept in {where}: the same command goes on.", err=True
        )
        raise typer.Exit(130) from None


def _worker_count(text: str) -> Any:
    return int(text) if text.lstrip("-").isdigit() else text
