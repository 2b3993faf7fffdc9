"""`tona controller`: the gateway of one cell in the foreground."""

import asyncio
import gc
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from typer import Option

from controller.config import Config, read
from device_agent.systemd import ALIVE, READY, STOPPING, Notifier
from tona.cli import errors
from tona.cli.context import AsJson
from tona.cli.signals import told_to_end, unless
from tona.local.cell import Running

LOG_FORMAT: Final = "%(asctime)s %(levelname)s %(name)s %(message)s"


_PROCESSES: Final = "Several processes"


def _of_several(text: str) -> Any:
    return Option(help=text, rich_help_panel=_PROCESSES)


def _several(text: str) -> Any:
    return _of_several(f"{text} Several with commas.")


def controller(  # noqa: PLR0917 - each parameter is an option of its own name
    config: Annotated[Path | None, Option(help="TOML file with these options.")] = None,
    cell: Annotated[str | None, Option(help="Name of the cell.")] = None,
    name: Annotated[str | None, Option(help="Identity of this controller on the broker.")] = None,
    data: Annotated[str | None, Option(help="Folder of store and artifacts.")] = None,
    api_host: Annotated[str | None, Option(help="Address that the API listens on.")] = None,
    api_port: Annotated[int | None, Option(help="Its port; 0: any free one.")] = None,
    advertise: Annotated[
        str | None, Option(help="Host name under which nodes and clients reach the API.")
    ] = None,
    broker: Annotated[
        str | None, Option(help="embedded, mosquitto, or mqtt:// or mqtts://HOST:PORT.")
    ] = None,
    broker_host: Annotated[str | None, Option(help="Address that our broker listens on.")] = None,
    broker_port: Annotated[int | None, Option(help="Its port; 0: any free one.")] = None,
    authority: Annotated[str | None, Option(help="Folder made by `tona ca init`.")] = None,
    bundle: Annotated[str | None, Option(help="This controller's bundle.")] = None,
    heartbeat_ms: Annotated[int | None, Option(help="Pace of the nodes' heartbeats.")] = None,
    sample_ms: Annotated[int | None, Option(help="Pace of the nodes' sampling.")] = None,
    roles: Annotated[str | None, _several("Of namo, ta and ts those that run here.")] = None,
    namo: Annotated[str | None, _of_several("Name of the NAMO, here or elsewhere.")] = None,
    ta: Annotated[str | None, _of_several("Name of the TA here, or of the nearest.")] = None,
    ts: Annotated[str | None, _of_several("Name of the TS here, or of the nearest.")] = None,
    anchors: Annotated[str | None, _several("TAs that NAMO and TS speak to.")] = None,
    schedulers: Annotated[str | None, _several("TSs that the TA speaks to.")] = None,
    uplink: Annotated[
        str | None, _of_several("mqtt://HOST:PORT/CELL where roles of several processes meet.")
    ] = None,
    side: Annotated[str | None, _of_several("core or radio: where the TA stands.")] = None,
    cells: Annotated[str | None, _several("Cells of the TA's schedulers.")] = None,
    direct: Annotated[
        str | None, _several("Brokers of cells whose nodes the TA also speaks to itself.")
    ] = None,
    stores: Annotated[str | None, _several("More API addresses with artifacts.")] = None,
    neighbours: Annotated[
        str | None, _several("Cells that nodes may be handed over to; else all of the same TA.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Run the controller of a cell until it is told to end (Ctrl-C or SIGTERM)."""
    given = dict(locals())
    told = {field: given[field] for field in Config.__struct_fields__ if field in given}
    asked = read(config, os.environ, told)
    logging.basicConfig(level=logging.INFO, format=LOG_FORMAT, stream=sys.stderr)
    ended = asyncio.run(_run(asked, as_json))
    if ended is signal.SIGINT:
        raise typer.Exit(errors.INTERRUPTED)


async def _run(config: Config, as_json: bool) -> signal.Signals:
    """Run until a signal comes, and return it. Raises UserError, EnvironmentFailure."""
    from controller.gateway import Gateway  # noqa: PLC0415 - needs what [controller] installs

    told = told_to_end()
    notifier = Notifier(os.environ)
    gateway = Gateway(config)
    try:
        running = await unless(told, gateway.start())
        if running is not None:
            # What is there now stays: to look through it again and again would stop everything.
            gc.collect()
            gc.freeze()
            _announce(config, running, as_json)
            notifier.say(READY)
            _alive(notifier)
            await unless(told, gateway.wait())
        return told.result()
    finally:
        notifier.say(STOPPING)
        await gateway.stop()


def _alive(notifier: Notifier) -> None:
    if notifier.interval_s is not None:
        notifier.say(ALIVE)
        asyncio.get_running_loop().call_later(notifier.interval_s, _alive, notifier)


def _announce(config: Config, running: Any, as_json: bool) -> None:
    said = Running(config.cell, running.api_url, running.broker.url)
    if as_json:
        sys.stdout.write(msgspec.json.encode(said).decode() + "\n")
    else:
        sys.stdout.write(
            f"cell {said.cell}: API at {said.api_url}, broker at {said.broker}, "
            f"data in {config.folder()}\n"
        )
    sys.stdout.flush()
