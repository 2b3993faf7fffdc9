"""Where a cell is reached: by the address of its controller, or by a bundle of its authority."""

import os
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from protocols.errors import EnvironmentFailure, UserError
from protocols.topics import Speaker, valid_name
from protocols.transport import tls
from protocols.transport.settings import Settings
from tona.errors import CannotConnect
from tona.store import Store

SYSTEM_PATH: Final = "/v1/system"
_MQTT_PORT: Final = 1883


class _Cell(Struct):
    """A cell that the controller knows."""

    cell: str


class _System(Struct):
    """What the controller says of itself; of `system.info` only what a client needs."""

    cell: str
    broker: str
    cells: tuple[_Cell, ...] | None = None


class Target(Struct, frozen=True):
    """A cell as a client reaches it."""

    settings: Settings
    context: ssl.SSLContext | None = None
    api_url: str = ""
    """Where to ask for the cell of each service; empty: they are all in this one."""


async def find(where: str | Path) -> Target:
    """Return how to reach the cell at an `http://` address, or the one that a bundle names.

    Raises UserError or CannotConnect.
    """
    text = str(where)
    if text.startswith("http://"):
        return await _ask(text.rstrip("/"))
    if text.startswith("https://"):
        raise UserError(
            f"{text} asks for a certificate: connect with the bundle made by `tona ca issue`"
        )
    bundle = tls.load(Path(text))
    if bundle.speaker is not Speaker.CLIENT:
        raise UserError(
            f"{text} is the bundle of a {bundle.speaker}: make a client's with `tona ca issue`"
        )
    context = tls.client_context(bundle)
    settings = Settings(
        host=bundle.broker_host,
        port=bundle.broker_port,
        identity=bundle.name,
        speaker=Speaker.CLIENT,
        cell=bundle.cell,
        tls=context,
    )
    return Target(settings, context)


async def _ask(url: str) -> Target:
    store = Store()
    try:
        answer = await store.text(url, SYSTEM_PATH)
        system = msgspec.json.decode(answer, type=_System)
        broker = urlsplit(system.broker)
        host, port = broker.hostname, broker.port or _MQTT_PORT
    except EnvironmentFailure as error:
        raise CannotConnect(
            f"no controller answers ({error}): start one with `tona up`, or name another address"
        ) from None
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise CannotConnect(f"what answers at {url} is no controller of a cell: {error}") from None
    finally:
        store.close()
    if not host or not valid_name(system.cell):
        raise CannotConnect(f"the controller at {url} names no broker")
    if broker.scheme != "mqtt":
        raise UserError(
            f"the broker of {url} asks for a certificate: "
            "connect with the bundle made by `tona ca issue`"
        )
    alone = system.cells is None or {one.cell for one in system.cells} == {system.cell}
    return at_cell(system.cell, host, port, "" if alone else url)


def at_cell(cell: str, host: str, port: int, api_url: str = "") -> Target:
    """Return how to reach a cell on loopback, as a client with a name of its own."""
    settings = Settings(
        host=host,
        port=port,
        identity=f"client-{os.urandom(6).hex()}",
        speaker=Speaker.CLIENT,
        cell=cell,
    )
    return Target(settings, api_url=api_url)
