"""The command line: parse, call, print. It decides nothing."""

from __future__ import annotations

import json
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from autoprune.errors import AutopruneError
from autoprune.redaction import redacted

if TYPE_CHECKING:
    from autoprune.results.result import SearchResult

# The base of typer's usage errors: click's, or its own where a typer brings click along.
UsageError: type[Exception] = next(
    base for base in typer.BadParameter.__mro__ if base.__name__ == "ClickException"
)

app = typer.Typer(
    name="autoprune",
    add_completion=True,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Find smaller PyTorch models: sparsity, criterion and fine-tuning in one search.",
    epilog="Start with `autoprune search --budget 50`, which needs nothing but this command.",
)


class Objective(StrEnum):
    pareto = "pareto"
    weighted = "weighted"


StudyArgument = Annotated[
    str, typer.Argument(metavar="[STUDY]", help="A study file, or `digits`, the built-in one.")
]
OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="A search's output folder.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from autoprune import __version__

        typer.echo(__version__)
        raise typer.Exit


@app.command(
    epilog="Examples:  autoprune search --budget 50  |  "
    "autoprune search my_study.py --budget 200 --workers 4 --out runs/mine"
)
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
        bool, typer.Option("--stop/--no-stop", help="Stop clearly dominated trials early.")
    ] = True,
    inherit: Annotated[
        bool,
        typer.Option(
            "--inherit/--no-inherit",
            help="Cut trials from what earlier ones trained, or all from the dense model.",
        ),
    ] = True,
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the front alone.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Search for smaller models, and export those that nothing beats.

    The same command again goes on where an earlier one stopped.
    """
    from autoprune.run import search as run_search
    from autoprune.terminal import reporter_for

    reporter = reporter_for(quiet=quiet or as_json)
    with _interruptible(out), reporter:
        result = run_search(
            study,
            out=out,
            fresh=fresh,
            seed=seed,
            criteria=None if criteria is None else _names(criteria),
            sparsify=None if sparsify is None else _names(sparsify),
            reporter=reporter,
            budget=budget,
            budget_epochs=budget_epochs,
            timeout=timeout,
            trial_timeout=trial_timeout,
            workers=_worker_count(workers),
            sampler=sampler,
            objectives=_names(objectives),
            latency_engine=latency_engine,
            latency_batch=latency_batch,
            objective=objective.value,
            accuracy_weight=accuracy_weight,
            early_stop=stop,
            inherit=inherit,
            storage=storage,
            tracking_uri=tracking_uri,
            experiment=experiment,
            register=register,
        )
    if as_json:
        typer.echo((result.out / "front.json").read_text(), nl=False)
        return
    _print_front(result)
    typer.echo(
        f"\nModels: {_shown(result.out / 'front')}    Review: autoprune ui {_shown(result.out)}"
    )


@app.command(
    epilog="Examples:  autoprune front autoprune-runs/digits --max-params 10000  |  "
    "autoprune front autoprune-runs/digits --min-accuracy 0.98 --json"
)
def front(
    out: OutArgument,
    max_params: Annotated[int | None, typer.Option(help="Only models this small.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(help="Only models this good on validation.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the models that a search found."""
    from dataclasses import asdict, replace

    from autoprune.results.result import open_result

    result = open_result(out)
    within = result.within(max_params=max_params, min_accuracy=min_accuracy)
    if not within:
        raise AutopruneError(result.nothing_within(max_params, min_accuracy))
    if as_json:
        value = {
            "study": result.study,
            "metric": result.metric,
            "dense": asdict(result.dense),
            "front": [asdict(m) for m in within],
        }
        typer.echo(json.dumps(value, indent=1))
        return
    _print_front(replace(result, front=within))


@app.command(epilog="Example:  autoprune doctor my_study.py --max-params 10000")
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
        from autoprune.terminal import print_diagnosis

        print_diagnosis(diagnosis)
        if max_params is not None:
            typer.echo(
                f"At most {max_params:,} parameters {'can' if reached else 'cannot'} be reached: "
                f"the smallest possible model has {diagnosis.least_params:,}."
            )
    if not reached:
        raise typer.Exit(1)


@app.command(
    epilog="Example:  autoprune new my_study.py && autoprune search my_study.py --budget 20"
)
def new(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="The study file to write.")],
) -> None:
    """Write a commented study file to start from. It runs as it is."""
    from autoprune.pruning.files import write_whole
    from autoprune.study import find_study_file

    if file.suffix != ".py":
        raise AutopruneError(f"A study file's name must end in .py, but {str(file)!r} does not.")
    if file.exists():
        raise AutopruneError(f"FILE must not exist yet, but {file} does. Choose another name.")
    text = find_study_file("starter").read_text()
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", file.stem).strip("-._")[:64] or "study"
    text = text.replace("starter.py", str(file)).replace('"starter"', f'"{name}"')
    try:
        write_whole(file, text.encode())
    except OSError as error:
        raise AutopruneError(
            f"FILE must be in a folder that can be written, but {file} is not: {error.strerror}."
        ) from error
    typer.echo(f"Wrote {file}. Next: autoprune search {file} --budget 20")


@app.command(
    epilog="Examples:  autoprune sync autoprune-runs/digits  |  "
    "autoprune sync runs/mine --tracking-uri http://mlflow.example:5000"
)
def sync(
    out: OutArgument,
    tracking_uri: Annotated[
        str | None,
        typer.Option(help="MLflow tracking URI.  [default: where the search sent its records]"),
    ] = None,
    experiment: Annotated[
        str | None, typer.Option(help="MLflow experiment.  [default: the search's]")
    ] = None,
) -> None:
    """Bring MLflow the records that a search could not deliver.

    Doing it twice is harmless. Exit code 1 says that some are still waiting.
    """
    from autoprune.results.store import Store
    from autoprune.results.sync import sync as run_sync
    from autoprune.terminal import delivery_progress

    with delivery_progress() as tell:
        done = run_sync(Store(out), uri=tracking_uri, experiment=experiment, tell=tell)
    for problem in done.problems:
        typer.echo(f"note: {redacted(problem)}", err=True)
    if done.left:
        typer.echo(
            f"autoprune: {done.left} of {done.total} records are still to be delivered to "
            f"{done.uri}. Run the same command again.",
            err=True,
        )
        raise typer.Exit(1)
    typer.echo(f"Delivered {done.delivered} records; {done.uri} has all {done.total}.")


@app.command(epilog="Example:  autoprune ui autoprune-runs/digits --port 5001")
def ui(
    out: OutArgument,
    port: Annotated[int, typer.Option(help="Port on this machine.")] = 5000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; the default is this machine alone.")
    ] = "127.0.0.1",
) -> None:
    """Open the MLflow UI on a search, on this machine alone."""
    from autoprune.results.store import Store
    from autoprune.results.ui import serve

    serve(Store(out), host=host, port=port)


def main() -> NoReturn:
    """Run the command; a user's mistake is one line and exit code 2."""
    try:
        code = app(standalone_mode=False)
    except AutopruneError as error:
        typer.echo(f"autoprune: {redacted(str(error))}", err=True)
        sys.exit(2)
    except UsageError as error:
        message = error.format_message() if hasattr(error, "format_message") else str(error)
        typer.echo(f"autoprune: {redacted(message)} See `autoprune --help`.", err=True)
        sys.exit(2)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except Exception as error:  # nobody's mistake but ours
        _print_redacted(error)
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


@contextmanager
def _interruptible(out: Path | None) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end a search, and say where it is kept."""
    from autoprune.run import DEFAULT_FOLDER

    signal.signal(signal.SIGTERM, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        where = out or f"{DEFAULT_FOLDER}/<study name>"
        typer.echo(
            f"Stopped. Finished trials are kept in {where}: the same command goes on.", err=True
        )
        raise typer.Exit(130) from None


def _print_redacted(error: Exception) -> None:
    """Print an error's traceback without the secrets in its URLs."""
    import traceback

    typer.echo(redacted("".join(traceback.format_exception(error))), err=True, nl=False)


def _interrupt(signum: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _worker_count(text: str) -> Any:
    return int(text) if text.lstrip("-").isdigit() else text


def _shown(path: Path) -> Path:
    """Return `path` relative to here if it is below."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def _print_front(result: SearchResult) -> None:
    from autoprune.terminal import print_front

    print_front(result)
