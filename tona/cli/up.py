"""`tona up`: a whole cell on this machine, kept alive until Ctrl-C."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from typer import Option

from controller.broker.spec import EMBEDDED
from controller.config import DEFAULT_API_PORT
from protocols.errors import UserError
from tona.cli import errors
from tona.cli.context import AsJson
from tona.cli.signals import told_to_end, unless
from tona.local.cell import NODES_MAX, Cell, Plan, Running

DEFAULT_NODES: Final = 1


def up(
    nodes: Annotated[int, Option(min=0, max=NODES_MAX, help="Device agents.")] = DEFAULT_NODES,
    broker: Annotated[
        str, Option(help="embedded, mosquitto, or mqtt://HOST:PORT of one that runs already.")
    ] = EMBEDDED,
    cell: Annotated[str, Option(help="Name of the cell.")] = "cell",
    data: Annotated[Path | None, Option(help="Folder of data and logs.")] = None,
    api_port: Annotated[
        int, Option(min=0, max=65535, help="Port of the API; 0: any free one.")
    ] = DEFAULT_API_PORT,
    broker_port: Annotated[
        int, Option(min=0, max=65535, help="Port of our broker; 0: any free one.")
    ] = 0,
    as_json: AsJson = False,
) -> None:
    """Run a controller and device agents on loopback until Ctrl-C; what dies is started again."""
    if broker.startswith("mqtts://"):
        raise UserError(
            "`tona up` stays on loopback without certificates: run `tona controller` and "
            f"`tona agent` with bundles to use {broker}"
        )
    folder = (data or _state_folder(cell)).expanduser().absolute()
    plan = Plan(
        folder=folder,
        nodes=nodes,
        cell=cell,
        broker=broker,
        api_port=api_port,
        broker_port=broker_port,
    )
    if asyncio.run(_run(plan, as_json)) is signal.SIGINT:
        raise typer.Exit(errors.INTERRUPTED)


async def _run(plan: Plan, as_json: bool) -> signal.Signals:
    told = told_to_end()
    cell = Cell(plan, _complain)
    try:
        running = await unless(told, cell.start())
        if running is not None:
            _announce(plan, running, as_json)
            failure = await unless(told, cell.failed())
            if failure is not None:
                raise failure
        return told.result()
    finally:
        await cell.stop()


def _announce(plan: Plan, running: Running, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(running).decode() + "\n")
    else:
        sys.stdout.write(
            f"cell {plan.cell}: API {running.api_url}, broker {running.broker}, "
            f"nodes {', '.join(plan.names) or 'none'}, logs {plan.folder / 'logs'}\n"
            "look with `tona fleet watch`, submit with `tona usecase submit FILE`, end with Ctrl-C"
            "\n"
        )
    sys.stdout.flush()


def _complain(name: str, what: str) -> None:
    print(f"{name} {what}", file=sys.stderr, flush=True)  # noqa: T201 - a person started us


def _state_folder(cell: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "tona" / f"up-{cell}"
