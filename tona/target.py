"""Where a cell is reached: by the address of its controller, or by a bundle of its authority."""

import asyncio
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
LOOK_S: Final = 2.0
"""How long the controller that a bundle names may take to say what cells there are."""


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
    return at_cell(
        bundle.cell,
        bundle.broker_host,
        bundle.broker_port,
        await _beyond(bundle.api_url, context),
        identity=bundle.name,
        context=context,
    )


async def _beyond(url: str, context: ssl.SSLContext) -> str:
    """Return where to ask for the cells of services; empty where there is one, or nobody says.

    A client needs its broker alone: a controller that does not answer at once is done without.
    """
    if not url:
        return ""
    store = Store(context)
    try:
        async with asyncio.timeout(LOOK_S):
            answer = await store.text(url, SYSTEM_PATH)
        return "" if _alone(msgspec.json.decode(answer, type=_System)) else url
    except (EnvironmentFailure, TimeoutError, msgspec.DecodeError, UnicodeDecodeError):
        return ""
    finally:
        store.close()


def _alone(system: _System) -> bool:
    return system.cells is None or {one.cell for one in system.cells} == {system.cell}


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
    return at_cell(system.cell, host, port, "" if _alone(system) else url)


def at_cell(
    cell: str,
    host: str,
    port: int,
    api_url: str = "",
    *,
    identity: str = "",
    context: ssl.SSLContext | None = None,
) -> Target:
    """Return how to reach a cell: with a certificate, or on loopback with a name of its own."""
    settings = Settings(
        host=host,
        port=port,
        identity=identity if context is not None else f"client-{os.urandom(6).hex()}",
        speaker=Speaker.CLIENT,
        cell=cell,
        tls=context,
    )
    return Target(settings, context, api_url)
