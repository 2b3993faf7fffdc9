"""Measures the cells around the node: paths to their brokers, and signals where a radio tells.

A path is measured by a TCP connection to the broker's port that is reset as soon as it stands: one
round trip of the kernels, answered by any broker, with TLS or without, and by no program at our
end. ICMP would need a privilege, UDP somebody who answers. The serving cell is measured alike, for
what goes through its broker cannot be held against what ends at a broker's door.

Only loaded where a node is told of neighbours.
"""

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from device_agent.sensing.path_monitor import PathMonitor
from protocols.messages.mobility import CellMeasure

if TYPE_CHECKING:
    from device_agent.sensing.wifi import Wifi

EXCHANGE_BYTES: Final = 280
"""What one connection takes from the network, both ways: four packets, link headers included."""
BYTES_PER_S_MAX: Final = 5600
"""All measuring together; the pace gives way. It bounds how often a radio is woken, too."""
CPU_PERCENT_MAX: Final = 0.5
"""Of one core; beyond it the pace gives way as well."""
SAVING_BYTES_PER_S_MAX: Final = 560
"""On battery: a radio is woken twice a second at most."""
SAVING_CPU_PERCENT_MAX: Final = 0.1
SAVING_SERVING_MS: Final = 2000
BATTERY_S: Final = 30.0
"""It is looked so often whether there is one that discharges."""
TIMEOUT_MS: Final = 1000.0
"""A connection that does not stand by then is lost."""
WINDOW: Final = 10
"""Connections whose fate makes the figures."""
SERVING_MS: Final = 1000
"""The serving cell is measured so often even while neighbours are not."""
STALE_S: Final = 5.0
"""What a file said so long ago is no measurement any more."""
FILE_BYTES_MAX: Final = 64 * 1024
RESOLVED_S: Final = 300.0
"""So long a name's address is taken for true."""
MODEM_S: Final = 10.0
"""ModemManager measures so often, and its command is given so long."""
MODEM_PACE_S: Final = MODEM_S
"""It is asked so often at most: each time costs a process."""
_RESET: Final = struct.pack("ii", 1, 0)
"""Linger of no time: the connection ends with one packet."""
_SIGNALS: Final = ("rsrp_dbm", "rsrq_db", "snr_db")

Signals = dict[str, dict[str, float]]
"""By cell: what its radio tells; the names are those of `CellMeasure`."""

log = logging.getLogger("tona.node")


class _Path:
    """The way to one broker."""

    def __init__(self, host: str, port: int, spent: "_Spent") -> None:
        self.host, self.port = host, port
        self._spent = spent
        self.monitor = PathMonitor(window=WINDOW, timeout_ms=TIMEOUT_MS)
        self.address: tuple[int, tuple[object, ...]] | None = None
        self.resolved_s = float("-inf")
        self._number = 0
        self._flight: socket.socket | None = None

    def measure(self, loop: asyncio.AbstractEventLoop) -> bool:
        """Begin a connection; the one before ends, and is lost if it does not stand. Whether."""
        self.end(loop)
        if self.address is None:
            return False
        family, address = self.address
        try:
            made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            return False
        self._number += 1
        self._flight = made
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        number = self._number
        self.monitor.sent(number, loop.time() * 1000)
        made.connect_ex(address)
        loop.add_writer(made, self._stands, loop, number)
        return True

    def _stands(self, loop: asyncio.AbstractEventLoop, number: int) -> None:
        now_ms, began_s = loop.time() * 1000, time.thread_time()
        if self._flight is not None:
            if not self._flight.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self.monitor.returned(number, now_ms)
            self.end(loop)
            self._spent.cpu_s += time.thread_time() - began_s

    def end(self, loop: asyncio.AbstractEventLoop) -> None:
        """Close what is under way."""
        if self._flight is not None:
            loop.remove_writer(self._flight)
            self._flight.close()
            self._flight = None


class CellSensor:
    """Measures at a pace that the core sets and the bounds allow, and tells what it has found."""

    def __init__(
        self,
        told: Callable[[tuple[CellMeasure, ...], float, float], None],
        radio: str = "",
        serving_dbm: Callable[[], float | None] = lambda: None,
        *,
        reach: bool = True,
    ) -> None:
        """`told` is given the measures, and the bytes per second and percent of a core they took.

        `radio` is `file:PATH`, `modem`, `wifi`, `wifi:PATH` or empty; `serving_dbm` the signal of
        the present interface;
        `reach` whether brokers of neighbours can be reached from where the node is attached.
        """
        self._told = told
        self._loop = asyncio.get_running_loop()
        self._file = radio.removeprefix("file:") if radio.startswith("file:") else ""
        self._modem = _Modem(self._loop) if radio == "modem" else None
        self._serving_dbm = serving_dbm
        self._reach = reach
        self._serving = ""
        self._cells: dict[str, None] = {}
        self._paths: dict[str, _Path] = {}
        self._pace_ms = SERVING_MS
        self._due_ms = 0.0
        """When neighbours are measured again."""
        self._timer: asyncio.TimerHandle | None = None
        self._resolving: asyncio.Task[None] | None = None
        self._spent = _Spent(self._loop.time())
        self._wifi = self._networks(radio)
        self.saving = False
        """Whether a battery is discharged meanwhile."""
        self._battery_due_s = float("-inf")
        self._radio_heard = False
        """Whether the radio tells of a neighbour."""
        self.unanswered = 0
        """Tries in a row to reach the serving broker in vain, while a neighbour was heard."""

    def _networks(self, radio: str) -> "Wifi | None":
        kind, _, names = radio.partition(":")
        if kind != "wifi":
            return None
        from device_agent.sensing.wifi import Wifi  # noqa: PLC0415 - few nodes ask for it

        return Wifi(self._loop, names, lambda: self.saving)

    def watch(self, serving: str, brokers: dict[str, tuple[str, int]], pace_ms: int) -> None:
        """Measure these cells from now on: where the broker of each is, and how often."""
        faster = pace_ms < self._pace_ms
        self._serving, self._pace_ms = serving, pace_ms
        self._cells = dict.fromkeys((serving, *brokers))
        if not self._reach:
            brokers = {cell: place for cell, place in brokers.items() if cell == serving}
        for cell, path in list(self._paths.items()):
            if brokers.get(cell) != (path.host, path.port):
                path.end(self._loop)
                del self._paths[cell]
        for cell, (host, port) in brokers.items():
            if cell not in self._paths:
                self._paths[cell] = _Path(host, port, self._spent)
        if faster or self._timer is None:
            self._due_ms = 0.0
            self._again(0)

    def close(self) -> None:
        """Stop measuring."""
        for handle in (self._timer, self._resolving):
            if handle is not None:
                handle.cancel()
        self._timer = None
        for path in self._paths.values():
            path.end(self._loop)
        for one in (self._modem, self._wifi):
            if one is not None:
                one.close()

    def _again(self, wait_ms: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(wait_ms / 1000, self._measure)

    def _measure(self) -> None:
        """Tell what the last round found, and begin the next one."""
        began_s = time.thread_time()
        now_ms = self._loop.time() * 1000
        if now_ms >= self._battery_due_s * 1000:
            self._battery_due_s = now_ms / 1000 + BATTERY_S
            self.saving = on_battery()
        failed = self._failed(now_ms)
        # Whether a neighbour answers is asked as soon as the serving cell does not.
        all_of_them = now_ms >= self._due_ms or failed == 1
        cells = list(self._cells) if all_of_them else [self._serving]
        measures = self._figures(cells, now_ms)
        exchanges = sum(
            self._paths[cell].measure(self._loop) for cell in cells if cell in self._paths
        )
        self._resolve(now_ms / 1000)
        self._told(measures, self._spent.bytes_per_s, self._spent.cpu_percent)
        if all_of_them:
            self._due_ms = now_ms + self._pace()
        self._spent.add(exchanges * EXCHANGE_BYTES, time.thread_time() - began_s, now_ms / 1000)
        self._again(min(self._pace(), SAVING_SERVING_MS if self.saving else SERVING_MS))

    def _failed(self, now_ms: float) -> int:
        """Return how often in a row the serving broker has not answered by now."""
        path = self._paths.get(self._serving)
        failed, since_ms = path.monitor.unanswered(now_ms) if path is not None else (0, now_ms)
        heard = self._radio_heard or any(
            one.monitor.answered_since(since_ms) for one in self._paths.values() if one is not path
        )
        self.unanswered = failed if heard else 0
        return failed

    def _pace(self) -> float:
        """Return the pace that the bounds allow."""
        most, serving_ms, cpu = BYTES_PER_S_MAX, SERVING_MS, CPU_PERCENT_MAX
        if self.saving:
            most, serving_ms = SAVING_BYTES_PER_S_MAX, SAVING_SERVING_MS
            cpu = SAVING_CPU_PERCENT_MAX
        round_bytes = 1000.0 * EXCHANGE_BYTES * len(self._paths)
        least_ms = round_bytes / most
        if least_ms > serving_ms:
            # Between two rounds the serving cell is measured alone.
            least_ms = round_bytes / (most - 1000.0 * EXCHANGE_BYTES / serving_ms)
        over = self._spent.cpu_percent / cpu
        return max(self._pace_ms * max(1.0, over), least_ms)

    def _figures(self, cells: list[str], now_ms: float) -> tuple[CellMeasure, ...]:
        signals = self._signals()
        self._radio_heard = any(
            "rsrp_dbm" in said for cell, said in signals.items() if cell != self._serving
        )
        made = []
        for cell in cells:
            path = self._paths.get(cell)
            figures = path.monitor.figures(now_ms) if path is not None else None
            said = signals.get(cell, {})
            made.append(
                CellMeasure(
                    cell,
                    figures.round_trip_ms if figures else None,
                    figures.jitter_ms if figures else None,
                    figures.loss_percent if figures else None,
                    said.get("rsrp_dbm"),
                    said.get("rsrq_db"),
                    said.get("snr_db"),
                )
            )
        return tuple(made)

    def _signals(self) -> Signals:
        if self._file:
            return read_signals(self._file, time.time())
        if self._modem is not None:
            return {self._serving: self._modem.signal()}
        if self._wifi is not None:
            return self._wifi.signals(self._serving)
        level = self._serving_dbm()
        return {} if level is None else {self._serving: {"rsrp_dbm": level}}

    def _resolve(self, now_s: float) -> None:
        """Find the addresses of brokers; only a name costs more than a look."""
        for path in self._paths.values():
            if now_s - path.resolved_s < RESOLVED_S:
                continue
            for family in (socket.AF_INET, socket.AF_INET6):
                with suppress(OSError):
                    socket.inet_pton(family, path.host)
                    path.address, path.resolved_s = (family, (path.host, path.port)), float("inf")
            if path.address is None and (self._resolving is None or self._resolving.done()):
                path.resolved_s = now_s
                self._resolving = self._loop.create_task(self._look_up(path))

    async def _look_up(self, path: _Path) -> None:
        try:
            found = await self._loop.getaddrinfo(path.host, path.port, type=socket.SOCK_STREAM)
        except OSError as error:
            log.warning("%s, the broker of a neighbour, has no address: %s", path.host, error)
            return
        family, _, _, _, address = found[0]
        path.address = (family, address)


class _Spent:
    """What measuring takes, over the last seconds."""

    OVER_S: Final = 10.0

    def __init__(self, now_s: float) -> None:
        self._since_s = now_s
        self._bytes = 0
        self.cpu_s = 0.0
        self.bytes_per_s = 0.0
        self.cpu_percent = 0.0

    def add(self, count: int, cpu_s: float, now_s: float) -> None:
        """Take in one round."""
        self._bytes += count
        self.cpu_s += cpu_s
        passed_s = now_s - self._since_s
        if passed_s >= self.OVER_S:
            self.bytes_per_s = self._bytes / passed_s
            self.cpu_percent = 100.0 * self.cpu_s / passed_s
            self._since_s, self._bytes, self.cpu_s = now_s, 0, 0.0


def on_battery(root: str = "/sys/class/power_supply") -> bool:
    """Return whether a battery of this machine discharges, as the kernel says."""
    try:
        return any(_discharges(f"{root}/{one}") for one in os.listdir(root))  # noqa: PTH208 - no objects of paths
    except OSError:
        return False


def _discharges(supply: str) -> bool:
    # Of a mouse or a pen it says so as well.
    return (
        _word(f"{supply}/type") == "Battery"
        and _word(f"{supply}/status") == "Discharging"
        and _word(f"{supply}/scope") in {"", "System"}
    )


def _word(path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:  # noqa: PTH123 - as below
            return file.read(64).strip()
    except OSError:
        return ""


def read_signals(path: str, now_unix_s: float) -> Signals:
    """Return what a file says of cells: JSON, `{"CELL": {"rsrp_dbm": -91, "rsrq_db": -11}}`.

    Whoever drives the radio writes it anew (and renames it into place) at least every `STALE_S`
    seconds. What cannot be read says nothing.
    """
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - each sample: no object of a path
            if now_unix_s - os.fstat(file.fileno()).st_mtime > STALE_S:
                return {}
            said = json.loads(file.read(FILE_BYTES_MAX))
    except (OSError, ValueError):
        return {}
    if not isinstance(said, dict):
        return {}
    return {
        cell: {
            name: float(one[name])
            for name in _SIGNALS
            if isinstance(one.get(name), int | float) and abs(one[name]) < 200  # noqa: PLR2004 - dB
        }
        for cell, one in said.items()
        if isinstance(one, dict)
    }


class _Modem:
    """The signal of the serving cell as ModemManager knows it, asked through its command.

    It measures only for who has told it how often: where it says nothing it is told so, once until
    it says something.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._task: asyncio.Task[None] | None = None
        self._asked_s = float("-inf")
        self._said_s = float("-inf")
        self._said: dict[str, float] = {}
        self._told = False

    def signal(self) -> dict[str, float]:
        """Return the newest figures, and ask for newer ones."""
        now_s = self._loop.time()
        if now_s - self._asked_s >= MODEM_PACE_S and (self._task is None or self._task.done()):
            self._asked_s = now_s
            self._task = self._loop.create_task(self._ask())
        return self._said if now_s - self._said_s < 2 * MODEM_S + STALE_S else {}

    def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()

    async def _ask(self) -> None:
        try:
            out = await _mmcli("--signal-get", "--output-json")
            if out is None:
                return
            self._said, self._said_s = modem_signal(out), self._loop.time()
            if not self._said and not self._told:
                await _mmcli(f"--signal-setup={MODEM_S:.0f}")
            self._told = not self._said
        except OSError as error:
            log.warning("the modem's signal is not known: mmcli: %s", error.strerror)
            self._asked_s = float("inf")


async def _mmcli(*options: str) -> bytes | None:
    """Return what ModemManager's command says; None when it takes too long. Raises OSError."""
    child = await asyncio.create_subprocess_exec(
        *("mmcli", "-m", "any", *options),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        out, _ = await asyncio.wait_for(child.communicate(), MODEM_S)
    except TimeoutError:
        return None
    finally:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
    return out


def modem_signal(text: bytes) -> dict[str, float]:
    """Return what `mmcli --signal-get --output-json` says, of the newest network that says it."""
    try:
        networks = json.loads(text)["modem"]["signal"]
        for name in ("5g", "lte"):
            said = networks.get(name) or {}
            found = {
                ours: float(said[theirs])
                for ours, theirs in zip(_SIGNALS, ("rsrp", "rsrq", "snr"), strict=True)
                if said.get(theirs, "--") != "--"
            }
            if found:
                return found
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
    return {}
