"""The Typer application: every command in one place."""

from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from tona.cli import (
    accounts,
    artifacts,
    configure,
    fleet,
    handovers,
    jobs,
    model,
    profiles,
    quality,
    sim,
    tasks,
    testbed,
    testbed_run,
    trust,
    usecases,
)
from tona.cli.context import flags
from tona.cli.controller import controller
from tona.cli.demo import demo
from tona.cli.doctor import doctor
from tona.cli.invoke import invoke
from tona.cli.operations import call
from tona.cli.up import up

app = typer.Typer(
    name="tona",
    help="AI tasks on a fleet of edge devices, with a quality of service that holds.",
    epilog="Exit codes: 0 done, 1 a rule was broken in `tona sim`, 2 wrong use, 3 not reachable or "
    "not in time, 4 refused or not there, 70 a fault of tona, 130 interrupted; see docs/cli.md.",
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


def agent(context: typer.Context) -> None:
    """Run the device agent of this machine; `tona agent --help` says its options."""
    from tona.__main__ import become_agent  # noqa: PLC0415 - it imports what we are

    become_agent(context.args)


_MACHINE, _WORK = "On this machine", "Work and fleet"
app.command(rich_help_panel=_MACHINE)(up)
app.command(rich_help_panel=_MACHINE)(demo)
app.command(rich_help_panel=_MACHINE)(controller)
app.command(
    rich_help_panel=_MACHINE,
    add_help_option=False,
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
)(agent)
app.command(rich_help_panel=_MACHINE)(doctor)
app.add_typer(profiles.app, name="profile", rich_help_panel=_MACHINE)
app.add_typer(model.app, name="model", rich_help_panel=_MACHINE)
app.add_typer(configure.app, name="config", rich_help_panel=_MACHINE)
app.add_typer(trust.app, name="ca", rich_help_panel=_MACHINE)
app.add_typer(sim.app, name="sim", rich_help_panel=_MACHINE)
app.add_typer(testbed.app, name="testbed", rich_help_panel=_MACHINE)
testbed.app.command()(testbed_run.run)
app.add_typer(fleet.app, name="fleet", rich_help_panel=_WORK)
app.add_typer(fleet.node_app, name="node", rich_help_panel=_WORK)
fleet.node_app.command("handover")(handovers.hand_over)
app.add_typer(handovers.app, name="handover", rich_help_panel=_WORK)
app.add_typer(usecases.app, name="usecase", rich_help_panel=_WORK)
app.command("audit", rich_help_panel=_WORK)(accounts.operations)
app.add_typer(usecases.service_app, name="service", rich_help_panel=_WORK)
usecases.service_app.command("qos")(quality.qos)
usecases.service_app.command("explain")(quality.explain)
app.add_typer(quality.approve_app, name="approve", rich_help_panel=_WORK)
app.add_typer(tasks.app, name="task", rich_help_panel=_WORK)
app.add_typer(artifacts.app, name="artifact", rich_help_panel=_WORK)
app.command(rich_help_panel=_WORK)(invoke)
app.add_typer(jobs.app, name="job", rich_help_panel=_WORK)
app.command(rich_help_panel=_WORK)(call)
