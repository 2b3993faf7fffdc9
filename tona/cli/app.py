"""The Typer application: every command in one place."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from tona.cli.context import flags
from tona.cli.controller import controller

app = typer.Typer(
    name="tona",
    help="AI tasks on a fleet of edge devices, with a quality of service that holds.",
    epilog="Exit codes: 0 done, 2 wrong use, 3 not reachable, 4 refused, 70 a fault of tona, "
    "130 interrupted. More in docs/cli.md.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version  # noqa: PLC0415 - only asked for here

        typer.echo(f"tona {version('tona-edge')}")
        raise typer.Exit


@app.callback()
def main(
    api: Annotated[
        str | None,
        Option(help="URL of the controller; else TONA_API, else client.toml, else loopback."),
    ] = None,
    bundle: Annotated[
        str | None, Option(help="This client's bundle from `tona ca issue`; else TONA_BUNDLE.")
    ] = None,
    config: Annotated[Path | None, Option(help="Another client.toml.")] = None,
    version: Annotated[
        bool, Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Hold the global options for the command that follows."""
    del version
    flags.api, flags.bundle, flags.config = api, bundle, config


app.command()(controller)
