"""`tona up`: a whole cell on this machine, kept alive until Ctrl-C."""

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, Final

import msgspec
import typer
from typer import Option

from controller.broker.spec import EMBEDDED, check_spec
from controller.config import DEFAULT_API_PORT
from controller.decider import Role
from protocols.errors import UserError
from protocols.topics import valid_name
from tona.cli import errors
from tona.cli.context import AsJson, show, table
from tona.cli.signals import told_to_end, unless
from tona.local import deployed
from tona.local.cell import NODES_MAX, Cell, Plan, Running
from tona.local.deployed import Deployed, Seen
from tona.local.deployments import DEPLOYMENTS
from tona.local.deployments import deployment as find

DEFAULT_NODES: Final = 1
DEFAULT_NODES_OF_CELL: Final = 2
"""In a deployment."""
LOOK_S: Final = 2.0
"""Between two looks at whether the controller reaches a broker that others run."""


def up(
    deployment: Annotated[
        str | None,
        Option(
            help="One of the paper's deployments, its roles in processes of their own: "
            + ", ".join(one.name for one in DEPLOYMENTS)
            + ".",
            autocompletion=lambda: [one.name for one in DEPLOYMENTS],
        ),
    ] = None,
    nodes: Annotated[
        int | None,
        Option(min=0, max=NODES_MAX, help="Device agents; else 1, or 2 for each cell."),
    ] = None,
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
    check_spec(broker)
    if not valid_name(cell):
        raise UserError(f"--cell {cell!r}: use letters, digits, '.', '_' and '-', at most 64")
    if broker.startswith("mqtts://"):
        raise UserError(
            "`tona up` stays on loopback without certificates: run `tona controller` and "
            f"`tona agent` with bundles to use {broker}"
        )
    folder = (data or _state_folder(deployment or cell)).expanduser().absolute()
    if deployment is None:
        plan = Plan(
            folder=folder,
            nodes=DEFAULT_NODES if nodes is None else nodes,
            cell=cell,
            broker=broker,
            api_port=api_port,
            broker_port=broker_port,
        )
        ended = asyncio.run(_run(plan, as_json))
    else:
        spread = _spread(deployment, folder, nodes, broker, api_port)
        ended = asyncio.run(_run(spread, as_json))
    if ended is signal.SIGINT:
        raise typer.Exit(errors.INTERRUPTED)


def _spread(
    name: str, folder: Path, nodes: int | None, broker: str, api_port: int
) -> deployed.Plan:
    if "://" in broker:
        raise UserError(
            f"--broker {broker}: each process of a deployment starts a broker of its own; "
            "choose embedded or mosquitto"
        )
    chosen = find(name)
    cells = len(chosen.holding(Role.TS))
    return deployed.Plan(
        folder=folder,
        deployment=chosen,
        nodes=DEFAULT_NODES_OF_CELL * cells if nodes is None else nodes,
        broker=broker,
        api_port=api_port,
    )


async def _run(plan: Plan | deployed.Plan, as_json: bool) -> signal.Signals:
    told = told_to_end()
    cell = Cell(plan, _complain) if isinstance(plan, Plan) else Deployed(plan, _complain)
    watching: asyncio.Task[None] | None = None
    try:
        running: Running | Seen | None = await unless(told, cell.start())
        if running is not None:
            _announce(plan, running, as_json)
            if isinstance(running, Running) and "://" in plan.broker:
                watching = asyncio.create_task(_watch(running))
            failure = await unless(told, cell.failed())
            if failure is not None:
                raise failure
        return told.result()
    finally:
        if watching is not None:
            watching.cancel()
        await cell.stop()


async def _watch(running: Running) -> None:
    """Say when the controller does not reach the broker that others run, and when it does again."""
    from tona.cli.api import ailing  # noqa: PLC0415 - slow to import

    since, said = "", False
    while True:
        await asyncio.sleep(LOOK_S)
        why = await ailing(running.api_url, LOOK_S)
        if why and since and not said:
            said = True
            _complain(
                "controller:",
                f"{why}, since {since}: start it, or name another with --broker; "
                "nothing runs meanwhile, and it is tried again and again",
            )
        elif why == "":
            if said:
                _complain("controller:", f"the broker {running.broker} answers")
            since, said = "", False
        elif why and not since:
            # Told at the next look: it may just be connecting.
            since = time.strftime("%H:%M:%S")


def _announce(plan: Plan | deployed.Plan, running: Running | Seen, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(msgspec.json.encode(running).decode() + "\n")
    elif isinstance(plan, deployed.Plan) and isinstance(running, Seen):
        _show_deployed(plan, running)
    elif isinstance(plan, Plan) and isinstance(running, Running):
        sys.stdout.write(
            f"cell {plan.cell}: API {running.api_url}, broker {running.broker}, "
            f"nodes {', '.join(plan.names) or 'none'}, logs {plan.folder / 'logs'}\n"
            "look with `tona fleet watch`, submit with `tona usecase submit FILE`, end with Ctrl-C"
            "\n"
        )
    sys.stdout.flush()


def _show_deployed(plan: deployed.Plan, seen: Seen) -> None:
    rows = table("PROCESS", "ROLES", "CELL", "BROKER", "API", "NODES")
    for one in seen.processes:
        nodes = ", ".join(node.name for node in seen.nodes if node.cell == one.cell)
        roles = ", ".join(one.roles)
        rows.add_row(one.name, roles, one.cell, one.broker, one.api_url, nodes or "-")
    show(f"{seen.deployment}: {plan.deployment.summary}", rows)
    show(
        f"logs {plan.folder / 'logs'}; look with `tona fleet watch` (--api {seen.api_url}), "
        "end with Ctrl-C"
    )


def _complain(name: str, what: str) -> None:
    print(f"{name} {what}", file=sys.stderr, flush=True)  # noqa: T201 - a person started us


def _state_folder(cell: str) -> Path:
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "tona" / f"up-{cell}"
