"""Where a broker is reached, and which addresses never leave the machine."""

import ipaddress
from typing import NamedTuple


class Address(NamedTuple):
    """Where clients connect; `tls` says that both sides show certificates there."""

    host: str
    port: int
    tls: bool

    @property
    def url(self) -> str:
        """The address as `mqtt://HOST:PORT` or `mqtts://HOST:PORT`."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"


def is_loopback(host: str) -> bool:
    """Whether `host` stays on this machine. A name other than localhost is taken as elsewhere."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def reachable(host: str) -> str:
    """Return the host at which this machine itself reaches a listener on `host`."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)  # noqa: S104 - compared, not bound
