"""Where a process runs and is reached: on loopback, or in a network of its own."""

from typing import Final

from msgspec import Struct

LOOPBACK: Final = "127.0.0.1"


class Place(Struct, frozen=True, kw_only=True):
    """One process's place; as it stands, any free port of loopback, without certificates."""

    host: str = LOOPBACK
    broker_port: int = 0
    """0: any free one."""
    api_port: int = 0
    """0: any free one."""
    broker: str = ""
    """Of a controller: `embedded`, `mosquitto` or the URL of one that runs; empty: the plan's."""
    space: str = ""
    """Path of the network namespace that it runs in; empty: ours."""
    bundle: str = ""
    """File of its identity; with one every connection has TLS."""
    authority: str = ""
    """Of a controller with a bundle: folder of the authority."""

    @property
    def scheme(self) -> str:
        """How its broker is spoken to."""
        return "mqtts" if self.bundle else "mqtt"
