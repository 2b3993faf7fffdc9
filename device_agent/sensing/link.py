"""The link to the cell: which interface serves it, of what kind, how fast, how well."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from device_agent.sensing.delivery import DeliveryMonitor
from device_agent.sensing.files import KernelFile, open_one, text
from device_agent.sensing.netlink import Change, LinkMonitor, route
from device_agent.sensing.parsing import Reader, number, reader
from device_agent.sensing.path_monitor import PathMonitor
from device_agent.sensing.rtnetlink import Interface, RouteSeen
from firmware_profiles import Parse, Source
from protocols.messages.sense import LinkReport

LOOPBACK: Final = 772
ETHERNET: Final = 1
RAW_IP: Final = 519
"""ARPHRD numbers; modems speak raw IP."""
REPORTED_ADDRESSES: Final = 32
SPEED_EVERY_MS: Final = 60_000
"""The driver is asked for it, which may take its lock: not at every sample."""
WIRELESS_BYTES: Final = 8192
_RATE: Final = Source(path="/sys", parse=Parse.RATE)


class Monitor(Protocol):
    """Where interfaces come from: `LinkMonitor`, or a test's."""

    def fileno(self) -> int:
        """Return the descriptor for the loop."""
        ...

    def read(self) -> tuple[Change, ...]:
        """Return what has changed."""
        ...

    def get(self, index: int) -> Interface | None:
        """Return the interface of this index."""
        ...

    def close(self) -> None:
        """Close it."""
        ...


class LinkSensor:
    """Follows the interface that leads to the broker.

    The daemon puts `fileno()` into its loop, calls `read()` when it is readable, `attach()` with
    the broker's numeric address at each connection, tells `path` of its probes and `delivery` of
    its connections, and samples.
    """

    def __init__(
        self,
        root: Path,
        monitor: Monitor | None = None,
        find_route: Callable[[str], RouteSeen | None] = route,
    ) -> None:
        """Subscribe to the kernel's events. Raises OSError without netlink."""
        self.path = PathMonitor()
        self.delivery = DeliveryMonitor()
        self._root = root
        self._monitor: Monitor = LinkMonitor() if monitor is None else monitor
        self._find_route = find_route
        self._address = ""
        self._way: RouteSeen | None = None
        self._line: Interface | None = None
        """Of the present connection; None: not known, or of a kind that tells no carrier."""
        self._interface: Interface | None = None
        self._counters = _Counters(root, "")
        self._kind = "other"
        self._speed: float | None = None
        self._speed_due_ms = float("-inf")
        self._wireless: KernelFile | None = None

    def fileno(self) -> int:
        """Return the descriptor for the loop."""
        return self._monitor.fileno()

    def attach(self, address: str) -> None:
        """Follow the way to this numeric address. Raises ValueError when it is not numeric."""
        self._address = address
        self._serve(self._find_route(address))
        one = self._interface
        self._line = one if self._way is not None and one is not None and one.carrier else None

    @property
    def broken(self) -> str:
        """Why the connection that was attached last cannot go on; empty: nothing says so."""
        line = self._line
        if line is None:
            return ""
        now = self._monitor.get(line.index)
        if now is None or not now.carrier:
            return f"{line.name} has lost its carrier"
        return "" if self._way is not None else f"no route leads to {self._address} any more"

    def read(self) -> bool:
        """Take in the kernel's events; whether the serving interface is another or has changed.

        Raises EnvironmentFailure when the socket is broken: a new sensor is needed.
        """
        before = self._interface, self.broken
        if self._monitor.read() and self._address:
            self._serve(self._find_route(self._address))
        return (self._interface, self.broken) != before

    def sample(self, now_ms: int) -> LinkReport:
        """Return the link now. Its cause is `heartbeat`; `reporting` decides whether it is sent."""
        if self._address:
            self._serve(self._find_route(self._address))
        one = self._interface
        figures = self.path.figures(now_ms)
        if one is None:
            return LinkReport(
                sampled_ms=now_ms,
                interface="",
                kind="other",
                carrier=False,
                round_trip_ms=figures.round_trip_ms,
                jitter_ms=figures.jitter_ms,
                loss_percent=figures.loss_percent,
            )
        received, transmitted = self._counters.read(now_ms)
        delivery, speed = self.delivery.sample(now_ms), self._speed_now(one, now_ms)
        carried = delivery.mbit_per_s
        if carried is not None and speed is not None:
            carried = min(carried, speed)
        return LinkReport(
            sampled_ms=now_ms,
            interface=one.name,
            kind=self._kind,
            carrier=one.carrier,
            addresses=one.addresses[:REPORTED_ADDRESSES],
            speed_mbit_per_s=speed,
            signal_dbm=self._signal(one) if self._kind == "wifi" else None,
            rx_bytes_per_s=received,
            tx_bytes_per_s=transmitted,
            round_trip_ms=figures.round_trip_ms,
            jitter_ms=figures.jitter_ms,
            loss_percent=figures.loss_percent,
            delivery_mbit_per_s=carried,
            send_wait_ms=delivery.wait_ms,
        )

    def close(self) -> None:
        """Close socket and files."""
        self._monitor.close()
        self._counters.close()
        if self._wireless:
            self._wireless.close()

    def _serve(self, way: RouteSeen | None) -> None:
        """Follow the interface of this way; without one the last interface, as it is now."""
        before, self._way = self._interface, way
        if way is not None:
            found = self._monitor.get(way.index)
        elif before is not None:
            found = self._monitor.get(before.index)
        else:
            found = None
        if found is None and before is not None:  # gone: it keeps its name and has no carrier
            found = Interface(before.index, before.name, before.arp_type, up=False, carrier=False)
        if found == before:
            return
        self._interface = found
        self._speed_due_ms = float("-inf")
        if found is not None and (before is None or before.name != found.name):
            self._kind = link_kind(self._root, found)
            self._counters.close()
            self._counters = _Counters(self._root, found.name)
            self.path.clear()

    def _speed_now(self, one: Interface, now_ms: int) -> float | None:
        if now_ms >= self._speed_due_ms:
            self._speed_due_ms = now_ms + SPEED_EVERY_MS
            speed = number(text(self._root / "sys/class/net" / one.name / "speed").encode())
            self._speed = speed if speed is not None and speed > 0 else None  # -1 is unknown
        return self._speed

    def _signal(self, one: Interface) -> float | None:
        if self._wireless is None:
            self._wireless = open_one(self._root / "proc/net/wireless", WIRELESS_BYTES)
        return signal_dbm(self._wireless.read() or b"", one.name) if self._wireless else None


class _Counters:
    """Bytes per second of one interface, from the kernel's counters."""

    def __init__(self, root: Path, name: str) -> None:
        self._name = name
        self._pairs: list[tuple[KernelFile, Reader]] = []
        if name:
            folder = root / "sys/class/net" / name / "statistics"
            files = [open_one(folder / one) for one in ("rx_bytes", "tx_bytes")]
            self._pairs = [(file, reader(_RATE)) for file in files if file is not None]

    def read(self, now_ms: int) -> tuple[float | None, float | None]:
        """Return received and transmitted; None at the first look or when the interface is gone."""
        if len(self._pairs) != 2:  # noqa: PLR2004 - received and transmitted
            return None, None
        received, transmitted = (
            None if (said := file.read()) is None else rate(said, now_ms)
            for file, rate in self._pairs
        )
        return received, transmitted

    def close(self) -> None:
        """Close the files."""
        for file, _ in self._pairs:
            file.close()
        self._pairs = []


def link_kind(root: Path, one: Interface) -> str:
    """Return `loopback`, `wired`, `wifi`, `cellular` or `other`."""
    if one.arp_type == LOOPBACK:
        return "loopback"
    folder = root / "sys/class/net" / one.name
    device = text(folder / "uevent").splitlines()
    if "DEVTYPE=wlan" in device or (folder / "wireless").exists() or (folder / "phy80211").exists():
        return "wifi"
    if one.arp_type == RAW_IP or "DEVTYPE=wwan" in device or one.name.startswith("wwan"):
        return "cellular"
    return "wired" if one.arp_type == ETHERNET else "other"


def signal_dbm(wireless: bytes, name: str) -> float | None:
    """Return the signal level of an interface from the text of /proc/net/wireless."""
    for line in wireless.decode("ascii", "replace").splitlines():
        head, colon, rest = line.partition(":")
        words = rest.split()
        if colon and head.strip() == name and len(words) > 2:  # noqa: PLR2004 - status link level
            level = number(words[2].rstrip(".").encode())
            return level if level is not None and level < 0 else None  # else no dBm but a scale
    return None
