"""Where a cell is reached: by the address of its controller, or by a bundle of its authority."""

import asyncio
import logging
import os
import ssl
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from protocols.errors import EnvironmentFailure, UserError
from protocols.topics import Speaker, valid_name
from protocols.transport import tls
from protocols.transport.settings import Settings
from tona.errors import CannotConnect
from tona.store import Store

SYSTEM_PATH: Final = "/v1/system"
_MQTT_PORT: Final = 1883
_HTTPS_PORT: Final = 443
LOOK_S: Final = 2.0
"""How long the controller that a bundle names may take to say what cells there are."""
SYSTEM_MAX_BYTES: Final = 1 << 20

log = logging.getLogger("tona")


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
    unasked: bool = False
    """Whether `asked` is to find out if there are others at all."""


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
    target = at_cell(
        bundle.cell,
        bundle.broker_host,
        bundle.broker_port,
        bundle.api_url,
        identity=bundle.name,
        context=context,
    )
    return replace(target, unasked=bool(bundle.api_url))


async def asked(target: Target, limit: asyncio.Timeout | None = None) -> Target:
    """Ask the controller that a bundle names whether there are other cells than its own.

    A client needs its broker alone: a controller that does not answer in time is done without, and
    the log says so. `limit` is none that was entered; by default `LOOK_S`.
    """
    told = "it says nothing"
    try:
        async with limit or asyncio.timeout(LOOK_S):
            system = msgspec.json.decode(await _system(target), type=_System)
        return replace(target, api_url="" if _alone(system) else target.api_url, unasked=False)
    except TimeoutError:
        pass
    except (OSError, ValueError, msgspec.DecodeError) as error:
        told = str(error) or type(error).__name__
    log.warning(
        "the controller at %s does not answer (%s): services of cell %s alone are reached",
        *(target.api_url, told, target.settings.cell),
    )
    return replace(target, api_url="", unasked=False)


async def _system(target: Target) -> bytes:
    """Fetch what the controller says of itself; it can be given up at any time, as no thread can.

    Raises OSError or ValueError.
    """
    url = urlsplit(target.api_url)
    port = url.port or _HTTPS_PORT
    reader, writer = await asyncio.open_connection(url.hostname, port, ssl=target.context)
    try:
        writer.write(f"GET {SYSTEM_PATH} HTTP/1.0\r\nHost: {url.netloc}\r\n\r\n".encode())
        answer = b""
        while (part := await reader.read(1 << 16)) and len(answer) < SYSTEM_MAX_BYTES:
            answer += part
        head, _, body = answer.partition(b"\r\n\r\n")
        status = head.partition(b"\r\n")[0]
        if b" 200 " not in status:
            raise ValueError(status[:100].decode(errors="replace") or "an empty answer")
        return body
    finally:
        writer.transport.abort()


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
