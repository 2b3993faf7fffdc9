"""`tona testbed`: cells, nodes that move and radio links on this machine."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from typer import Argument, Option

from protocols.errors import UserError
from tona.cli import errors
from tona.cli.context import AsJson, or_dash, show, show_json, table
from tona.cli.signals import told_to_end, unless
from tona.cli.testbed_options import (
    CELLS,
    NODES,
    Cells,
    Folder,
    InAddress,
    InMode,
    InRadios,
    Mode,
    Nodes,
    Seed,
    SwitchMs,
    WhoMoves,
    spec_of,
)
from tona.testbed.choices import SWITCH_MS, Address, By, Radios

if TYPE_CHECKING:
    from tona.testbed.bed import Ground, Standing
    from tona.testbed.plan import Spec
    from tona.testbed.traces import Window


app = typer.Typer(
    help="Cells, nodes that move and radio links on this machine, to try and to measure handovers.",
    no_args_is_help=True,
)


@app.command()
def up(  # noqa: PLR0917 - options
    cells: Cells = CELLS,
    nodes: Nodes = NODES,
    traces: Annotated[
        Path | None,
        Option(help="Folder of radio traces that the nodes go through, over and over."),
    ] = None,
    by: WhoMoves = By.SIGNALS,
    radios: InRadios = Radios.TWO,
    address: InAddress = Address.KEEP,
    switch_ms: SwitchMs = SWITCH_MS,
    seed: Seed = 0,
    mode: InMode = Mode.NETNS,
    data: Folder = None,
    as_json: AsJson = False,
) -> None:
    """Build a testbed and keep it until Ctrl-C or `tona testbed down`."""
    spec = spec_of(cells, nodes, radios, address, by, seed, mode, switch_ms)
    windows: dict[str, list[Window]] = {}
    if traces is not None:
        from tona.testbed.timetable import timetable  # noqa: PLC0415 - slow to import
        from tona.testbed.tracefiles import read  # noqa: PLC0415 - the same

        if cells == 1:
            raise UserError("--traces: a node needs two cells to go from one to the other")
        found = read(traces.expanduser())
        count = max(nodes, sum(one.moves for one in found))
        windows = timetable(found, spec.node_names, count, seed)
    ended = asyncio.run(_keep(spec, mode, folder_of(data), as_json, windows, by))
    if ended is signal.SIGINT:
        raise typer.Exit(errors.INTERRUPTED)


@app.command()
def down(
    force: Annotated[
        bool, Option("--force", help="End one too that `tona testbed run` measures.")
    ] = False,
    data: Folder = None,
    as_json: AsJson = False,
) -> None:
    """End the testbed, or remove what a dead one has left; says what was there."""
    from tona.testbed.bed import take_down  # noqa: PLC0415 - slow to import

    folder = folder_of(data)
    was = take_down(folder, force=force)
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


async def _keep(
    spec: "Spec",
    mode: Mode,
    folder: Path,
    as_json: bool,
    windows: "dict[str, list[Window]]",
    by: By,
) -> signal.Signals:
    from tona.testbed.bed import Bed, clear, hold  # noqa: PLC0415 - slow to import
    from tona.testbed.drives import Drives  # noqa: PLC0415 - the same

    told = told_to_end()
    lock = hold(folder)
    bed: Bed | None = None
    drives: Drives | None = None
    try:
        bed = Bed(make_ground(spec, mode, folder), folder, complain)
        drives = Drives(bed, windows, by)
        drives.start()
        standing = await unless(told, bed.start(drives.begin))
        if standing is not None:
            if as_json:
                sys.stdout.write(msgspec.json.encode(standing).decode() + "\n")
                sys.stdout.flush()
            else:
                draw(standing)
            if windows:
                await unless(told, drives.replay(standing))
            elif (failure := await unless(told, bed.failed())) is not None:
                raise failure
        return told.result()
    finally:
        if drives is not None:
            await drives.stop()
        if bed is not None:
            await bed.stop()
        clear(folder)
        lock.close()


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
