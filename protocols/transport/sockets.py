"""The prepared socket: no Nagle, bound where the settings say, connected."""

import asyncio
import socket

from protocols.transport.settings import Settings

_Address = tuple[str, int] | tuple[str, int, int, int] | tuple[int, bytes]


async def open_socket(settings: Settings) -> socket.socket:
    """Connect to the first address of the broker that answers; the socket is non-blocking.

    Raises OSError, of the last address tried.
    """
    failure: OSError | None = None
    for family, address in await _addresses(settings.host, settings.port):
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.setblocking(False)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            _bind(made, settings)
            await asyncio.get_running_loop().sock_connect(made, address)
        except OSError as error:
            made.close()
            failure = error
        except BaseException:
            made.close()
            raise
        else:
            return made
    raise failure or OSError(f"{settings.host} has no address")


async def _addresses(host: str, port: int) -> list[tuple[int, _Address]]:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, host)
        except OSError:
            continue
        return [(family, (host, port))]
    # Only a name costs the loop's resolver thread.
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [(family, address) for family, _, _, _, address in found]


def _bind(made: socket.socket, settings: Settings) -> None:
    try:
        if settings.interface:
            name = settings.interface.encode()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, name)
        if settings.source_address:
            made.bind((settings.source_address, 0))
    except OSError as error:
        where = settings.interface or settings.source_address
        raise OSError(f"cannot bind to {where}: {error.strerror}") from error
