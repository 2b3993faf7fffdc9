"""`tona testbed`: cells, nodes that move and radio links on this machine."""

import asyncio
import os
import signal
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
import typer
from typer import Argument, Option

from tona.cli import errors
from tona.cli.context import AsJson, or_dash, show, show_json, table
from tona.cli.signals import told_to_end, unless

if TYPE_CHECKING:
    from tona.testbed.bed import Ground, Standing
    from tona.testbed.plan import Spec

CELLS: Final = 3
NODES: Final = 6
GOOD_DELAY_MS: Final = 10.0
GOOD_JITTER_MS: Final = 2.0
GOOD_MBIT_PER_S: Final = 50.0

app = typer.Typer(
    help="Cells, nodes that move and radio links on this machine, to try and to measure handovers.",
    no_args_is_help=True,
)


class Mode(StrEnum):
    """Where a testbed's traffic goes."""

    NETNS = "netns"
    LOOPBACK = "loopback"


Cells = Annotated[int, Option(min=1, max=16, help="Cells, each with gateway, broker and TS.")]
Nodes = Annotated[int, Option(min=1, max=32, help="Nodes that move among them.")]
InMode = Annotated[
    Mode,
    Option(
        help="netns: a network for each, needs root; loopback: a proxy per cell, needs nothing."
    ),
]
Folder = Annotated[
    Path | None, Option("--data", help="Its folder; else ~/.local/state/tona/testbed.")
]


@app.command()
def up(
    cells: Cells = CELLS,
    nodes: Nodes = NODES,
    mode: InMode = Mode.NETNS,
    data: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Build a testbed and keep it until Ctrl-C or `tona testbed down`."""
    from tona.testbed.plan import Spec  # noqa: PLC0415 - slow to import

    spec = Spec(cells=cells, nodes=nodes)
    ended = asyncio.run(_keep(spec, mode, folder_of(data), as_json))
    if ended is signal.SIGINT:
        raise typer.Exit(errors.INTERRUPTED)


@app.command()
def down(data: Folder = None, as_json: AsJson = False) -> None:
    """End the testbed, or remove what a dead one has left; says what was there."""
    from tona.testbed.bed import take_down  # noqa: PLC0415 - slow to import

    folder = folder_of(data)
    was = take_down(folder)
    if as_json:
        show_json(msgspec.json.encode({"was": was, "folder": str(folder)}))
        return
    words = {
        "alive": "the testbed has ended",
        "dead": "a testbed that had died is cleared away",
        "nothing": f"there is no testbed in {folder}",
    }
    show(words[was])


@app.command()
def status(data: Folder = None, as_json: AsJson = False) -> None:
    """Show the testbed that stands."""
    from tona.testbed.bed import standing  # noqa: PLC0415 - slow to import

    found = standing(folder_of(data))
    if as_json:
        show_json(msgspec.json.encode(found))
    else:
        draw(found)


@app.command(
    "exec",
    context_settings={"allow_interspersed_args": False, "ignore_unknown_options": True},
)
def execute(
    command: Annotated[list[str], Argument(help="Command and arguments, after `--`.")],
    at: Annotated[
        str, Option(help="Gateway or node in whose network it runs; else the operator's.")
    ] = "",
    data: Folder = None,
) -> None:
    """Run a command inside the testbed, as its operator."""
    from tona.testbed.bed import standing  # noqa: PLC0415 - slow to import
    from tona.testbed.visit import visit  # noqa: PLC0415 - the same

    visit(standing(folder_of(data)), at, command)


def folder_of(given: Path | None) -> Path:
    """Return where a testbed keeps everything that it writes."""
    if given is not None:
        return given.expanduser().absolute()
    state = os.environ.get("XDG_STATE_HOME") or "~/.local/state"
    return Path(state).expanduser() / "tona" / "testbed"


def make_ground(spec: "Spec", mode: Mode, folder: Path) -> "Ground":
    """Make the ground of a testbed. Raises UserError, EnvironmentFailure."""
    from tona.testbed.ground import NetworkGround  # noqa: PLC0415 - slow to import
    from tona.testbed.loopback import LoopbackGround  # noqa: PLC0415 - the same

    if mode is Mode.LOOPBACK:
        return LoopbackGround(spec, folder)
    return NetworkGround(spec, folder, complain)


def complain(name: str, what: str) -> None:
    """Say what happens to a process."""
    print(f"{name} {what}", file=sys.stderr, flush=True)  # noqa: T201 - a person started us


async def _keep(spec: "Spec", mode: Mode, folder: Path, as_json: bool) -> signal.Signals:
    from tona.testbed.bed import Bed, clear, hold  # noqa: PLC0415 - slow to import

    told = told_to_end()
    lock = hold(folder)
    bed: Bed | None = None
    try:
        ground = make_ground(spec, mode, folder)
        bed = Bed(ground, folder, complain)
        standing = await unless(told, bed.start(lambda: _good(ground)))
        if standing is not None:
            if as_json:
                sys.stdout.write(msgspec.json.encode(standing).decode() + "\n")
                sys.stdout.flush()
            else:
                draw(standing)
            failure = await unless(told, bed.failed())
            if failure is not None:
                raise failure
        return told.result()
    finally:
        if bed is not None:
            await bed.stop()
        clear(folder)
        lock.close()


def _good(ground: "Ground") -> None:
    """Have every link up, as good as links are in the midst of a cell."""
    from tona.testbed.lane import Conditions  # noqa: PLC0415 - slow to import

    good = Conditions(
        down_mbit_per_s=GOOD_MBIT_PER_S,
        up_mbit_per_s=GOOD_MBIT_PER_S,
        delay_ms=GOOD_DELAY_MS,
        jitter_ms=GOOD_JITTER_MS,
    )
    for node in ground.spec.node_names:
        for cell in ground.spec.cell_names:
            ground.become(node, cell, good)


def draw(found: "Standing") -> None:
    """Print what stands, and how to look inside."""
    if found.seen is None:
        show(f"the testbed in {found.folder} is starting (process {found.pid})")
        return
    rows = table("GATEWAY", "ROLES", "BROKER", "API", "NODES")
    for one in found.seen.processes:
        nodes = ", ".join(node.name for node in found.seen.nodes if node.cell == one.cell)
        rows.add_row(one.name, ", ".join(one.roles), one.broker, one.api_url, or_dash(nodes))
    show(f"testbed of {found.spec.cells} cells and {found.spec.nodes} nodes ({found.mode})", rows)
    show(
        f"logs {found.folder}/run/logs; look with `tona testbed exec -- tona fleet watch`, "
        "end with Ctrl-C or `tona testbed down`"
    )
