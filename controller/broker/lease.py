"""A port kept for a server, a broker say, over all its lives.

The lease is a socket that is bound and never listens. On Linux a broker that sets SO_REUSEADDR (all
do) may bind and listen beside it, while nobody else is handed the port: neither another program's
port 0, nor the source port of a client that tries to reconnect while the broker is down. Such a
client could otherwise reach itself, and the broker would find its port taken.
"""

import ipaddress
import socket

from protocols.errors import UserError


class PortLease:
    """Holds `port` of `host` for `whom` until closed; port 0: a free one. Raises UserError."""

    def __init__(self, host: str, port: int, whom: str = "the broker") -> None:
        self._socket = socket.socket(_family(host), socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((host, port))
        except (OSError, OverflowError) as error:
            self._socket.close()
            reason = error.strerror if isinstance(error, OSError) else "no such port"
            raise UserError(
                f"{whom} cannot listen on {host} port {port} ({reason}); "
                "name another address, or port 0 for a free port"
            ) from None
        self.port: int = self._socket.getsockname()[1]

    def close(self) -> None:
        """Give the port back."""
        self._socket.close()


def _family(host: str) -> socket.AddressFamily:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return socket.AF_INET
    return socket.AF_INET if version == 4 else socket.AF_INET6  # noqa: PLR2004 - IPv4
