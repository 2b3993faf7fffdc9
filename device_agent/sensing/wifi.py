"""Signals of Wi-Fi cells as `iw` tells them: what the kernel has heard, or a scan if it may.

A scan leaves the channel for some hundred milliseconds and needs a privilege (CAP_NET_ADMIN). So
the results that are there already are read first, without one: whoever manages the network (as
wpa_supplicant does) scans anyway. Only where they are too old is a scan asked for, and where that
is refused it is not asked for again.
"""

import asyncio
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Final

Signals = dict[str, dict[str, float]]
"""As in `cells`."""

SCAN_S: Final = 10.0
"""Results are looked at so often at most."""
SCAN_SAVING_S: Final = 60.0
"""And on battery."""
SCAN_MAX_S: Final = 5.0
"""What `iw` may take."""
FRESH_MS: Final = 15_000.0
"""A network that was last heard longer ago says nothing."""
OUTPUT_MAX: Final = 256 * 1024
NETWORKS_MAX: Final = 256
"""Of one scan."""

log = logging.getLogger("tona.node")


class Wifi:
    """What `iw` says of the networks around, each of which may be a cell's."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, names: str, saving: Callable[[], bool]
    ) -> None:
        """`names` is a file that gives the cell of a BSSID or SSID; empty: the SSID is its name."""
        self._loop = loop
        self._names = read_names(names) if names else {}
        self._saving = saving
        self._task: asyncio.Task[None] | None = None
        self._asked_s = self._said_s = float("-inf")
        self._said: Signals = {}
        self._interface = ""
        self._may_scan = True

    @property
    def every_s(self) -> float:
        """The pace of the moment."""
        return SCAN_SAVING_S if self._saving() else SCAN_S

    def signals(self, serving: str) -> Signals:
        """Return the newest figures, and ask for newer ones; `serving` is the cell that serves."""
        now_s = self._loop.time()
        if now_s - self._asked_s >= self.every_s and (self._task is None or self._task.done()):
            self._asked_s = now_s
            self._task = self._loop.create_task(self._ask(serving))
        return self._said if now_s - self._said_s < 2 * self.every_s else {}

    def close(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()

    async def _ask(self, serving: str) -> None:
        if not self._interface:
            self._interface = interface_of(await self._iw("dev"))
        if not self._interface:
            if self._asked_s < float("inf"):
                log.warning("no signals of Wi-Fi: iw names no interface that is up as a station")
                self._asked_s = float("inf")
            return
        found = wifi_signals(await self._iw("dev", self._interface, "scan", "dump"), self._names)
        if len(found) < 2 and self._may_scan:  # noqa: PLR2004 - the serving one and another
            scanned = await self._iw("dev", self._interface, "scan")
            self._may_scan = bool(scanned)
            if not scanned:
                log.warning("iw may not scan: what the network manager's scans have found is used")
            found = wifi_signals(scanned, self._names) or found
        self._said, self._said_s = renamed(found, serving), self._loop.time()

    async def _iw(self, *words: str) -> str:
        """Return what `iw` prints; empty where it cannot be run, or refuses."""
        try:
            child = await asyncio.create_subprocess_exec(
                *("iw", *words), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
            )
        except OSError:
            return ""
        try:
            out, _ = await asyncio.wait_for(child.communicate(), SCAN_MAX_S)
        except TimeoutError:
            return ""
        finally:
            if child.returncode is None:
                child.kill()
                await child.wait()
        return out[:OUTPUT_MAX].decode(errors="replace") if child.returncode == 0 else ""


ASSOCIATED: Final = ""
"""The name of the network that serves, whatever cell it is taken for."""


def interface_of(text: str) -> str:
    """Return the first interface of `iw dev` that is a station; empty without one."""
    name = ""
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "Interface":
            name = rest.strip()
        elif word == "type" and rest.strip() == "managed" and name:
            return name
    return ""


def wifi_signals(text: str, names: dict[str, str]) -> Signals:
    """Return the best signal of each cell in what `iw dev IF scan dump` prints.

    The network that serves stands under `ASSOCIATED`. What is older than `FRESH_MS` and
    what has no figure is left out.
    """
    found: Signals = {}
    for block in text.split("\nBSS ")[:NETWORKS_MAX]:
        head, *lines = block.removeprefix("BSS ").splitlines() or [""]
        fields: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.strip().partition(":")
            if colon and (name != "last seen" or value.endswith("ms ago")):
                fields.setdefault(name, value.strip())
        dbm = _figure(fields.get("signal", ""))
        seen_ms = _figure(fields.get("last seen", "0"))
        if dbm is None or seen_ms is None or not -200 < dbm <= 0 or seen_ms > FRESH_MS:  # noqa: PLR2004 - dBm
            continue
        bssid, ssid = head[:17].lower(), fields.get("SSID", "")
        cell = names.get(bssid) or names.get(ssid) or ("" if names else ssid)
        serves = "-- associated" in head
        cell = ASSOCIATED if serves else cell
        if (cell or serves) and dbm > found.get(cell, {}).get("rsrp_dbm", -200.0):
            found[cell] = {"rsrp_dbm": dbm}
    return found


def renamed(found: Signals, serving: str) -> Signals:
    """Return signals in which the network that serves is that of the serving cell."""
    others = {cell: one for cell, one in found.items() if cell != ASSOCIATED}
    return others | ({serving: found[ASSOCIATED]} if ASSOCIATED in found else {})


def read_names(path: str) -> dict[str, str]:
    """Return the cells that a file names, JSON `{"BSSID or SSID": "CELL"}`; of garbage none."""
    try:
        said = json.loads(Path(path).read_bytes())
    except (OSError, ValueError) as error:
        log.warning("no cells of Wi-Fi are known: %s: %s", path, error)
        return {}
    if not isinstance(said, dict):
        return {}
    named = {name: cell for name, cell in said.items() if isinstance(cell, str)}
    return named | {name.lower(): cell for name, cell in named.items() if name.count(":") == 5}  # noqa: PLR2004 - of a MAC address


def _figure(text: str) -> float | None:
    try:
        return float(text.split(maxsplit=1)[0])
    except (ValueError, IndexError):
        return None
