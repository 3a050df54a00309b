"""The command line, assembled from its commands. It decides nothing."""

from __future__ import annotations

import errno
import signal
import sys
from typing import Annotated, NoReturn

import typer

from autoprune.commands import (
    baselines,
    bench,
    check,
    compare,
    doctor,
    front,
    new,
    pick,
    report,
    search,
    sensitivity,
    sync,
    ui,
)
from autoprune.errors import AutopruneError
from autoprune.redaction import redacted

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


@app.callback(invoke_without_command=True)
def root(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from autoprune import __version__

        typer.echo(__version__)
        raise typer.Exit


app.command(epilog=search.EXAMPLES)(search.search)
app.command(epilog=front.EXAMPLES)(front.front)
app.command(epilog=pick.EXAMPLES)(pick.pick)
app.command(epilog=bench.EXAMPLES)(bench.bench)
app.command(epilog=baselines.EXAMPLES)(baselines.baselines)
app.command(epilog=compare.EXAMPLES)(compare.compare)
app.command(epilog=check.EXAMPLES)(check.check)
app.command(epilog=doctor.EXAMPLES)(doctor.doctor)
app.command(epilog=sensitivity.EXAMPLES)(sensitivity.sensitivity)
app.command(epilog=new.EXAMPLES)(new.new)
app.command(epilog=report.EXAMPLES)(report.report)
app.command(epilog=sync.EXAMPLES)(sync.sync)
app.command(epilog=ui.EXAMPLES)(ui.ui)


def main() -> NoReturn:
    """Run the command; a user's mistake is one line and exit code 2, SIGTERM is as Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
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
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            typer.echo(
                f"autoprune: A path must be one that a file can have, but {error.filename!r} is "
                f"not: {error.strerror}. Give a shorter one.",
                err=True,
            )
            sys.exit(2)
        _print_redacted(error)  # nobody's mistake but ours
        sys.exit(1)
    sys.exit(code if isinstance(code, int) else 0)


def _print_redacted(error: Exception) -> None:
    """Print an error's traceback without the secrets in its URLs."""
    import traceback

    typer.echo(redacted("".join(traceback.format_exception(error))), err=True, nl=False)
