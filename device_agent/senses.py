"""The daemon's timers for sampling and probing, and the kernel's word on links."""

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from device_agent.core import events
from device_agent.sensing.delivery import LOOK_MS, TcpInfo
from device_agent.sensing.link import LinkSensor
from device_agent.sensing.sampler import Sampler
from protocols.errors import EnvironmentFailure

FIRST_PACE_MS: Final = 1000
"""Until the scheduler says otherwise."""

log = logging.getLogger("tona.node")


class Senses:
    """Samples load and link at the pace that the core sets, and tells the core."""

    def __init__(
        self,
        sampler: Sampler,
        link: LinkSensor | None,
        tell: Callable[[events.Event], None],
        probe: Callable[[int], bool],
        link_is_back: Callable[[], None],
    ) -> None:
        """`probe` sends a probe of that number and returns whether it has left."""
        self._sampler = sampler
        self._link = link
        self._tell = tell
        self._probe = probe
        self._link_is_back = link_is_back
        self._loop = asyncio.get_running_loop()
        self._sample_ms = self._probe_ms = FIRST_PACE_MS
        self._whole_every = 1
        self._until_whole = 0
        """Samples before the next one that reads all."""
        self._number = 0
        self.signal_dbm: float | None = None
        """At the last sample."""
        self._timers: dict[str, asyncio.TimerHandle] = {}
        if link is not None:
            self._loop.add_reader(link.fileno(), self._link_changed)

    def start(self) -> None:
        """Begin to sample and to probe."""
        self.pace(self._sample_ms, self._probe_ms)

    def pace(self, sample_ms: int, probe_ms: int, whole_every: int = 1) -> None:
        """Sample and probe so often from now on; one of so many samples reads all."""
        self._sample_ms, self._probe_ms = sample_ms, probe_ms
        self._whole_every, self._until_whole = whole_every, 0
        self._set("sample", sample_ms, self._sample)
        self._set("probe", probe_ms, self._send_probe)

    def attach(
        self,
        address: str,
        look: Callable[[], TcpInfo | None],
        buffered: Callable[[], int],
    ) -> None:
        """Follow the interface that leads to the broker's numeric address, and the connection."""
        if self._link is not None:
            self._link.attach(address)
            self._link.delivery.attach(look, buffered)

    def writing(self) -> None:
        """See what becomes of values that are about to be sent."""
        if self._link is None or "look" in self._timers:
            return
        if self._link.delivery.writing(self._loop.time() * 1000):
            self._set("look", LOOK_MS, self._look)

    def probed(self, number: int) -> None:
        """Take note that a probe is back."""
        if self._link is not None:
            self._link.path.returned(number, self._loop.time() * 1000)

    def close(self) -> None:
        """Stop sampling, close every file."""
        for timer in self._timers.values():
            timer.cancel()
        if self._link is not None:
            self._loop.remove_reader(self._link.fileno())
            self._link.close()
        self._sampler.close()

    def _set(self, name: str, wait_ms: int, work: Callable[[], None]) -> None:
        if name in self._timers:
            self._timers[name].cancel()
        self._timers[name] = self._loop.call_later(wait_ms / 1000, work)

    def _sample(self) -> None:
        self._set("sample", self._sample_ms, self._sample)
        now_ms = round(self._loop.time() * 1000)
        if self._until_whole:
            self._until_whole -= 1
            self._tell(events.Sampled(self._sampler.sample_processor(now_ms)))
            return
        self._until_whole = self._whole_every - 1
        self._tell(events.Sampled(self._sampler.sample(now_ms)))
        if self._link is not None:
            report = self._link.sample(now_ms)
            self.signal_dbm = report.signal_dbm
            self._tell(events.LinkSampled(report, self._link.broken))

    def _look(self) -> None:
        del self._timers["look"]
        if self._link is not None and self._link.delivery.look(self._loop.time() * 1000):
            self._set("look", LOOK_MS, self._look)

    def _send_probe(self) -> None:
        self._set("probe", self._probe_ms, self._send_probe)
        if self._probe(self._number + 1):
            self._number += 1
            if self._link is not None:
                self._link.path.sent(self._number, self._loop.time() * 1000)

    def _link_changed(self) -> None:
        """Tell of a change at once: the kernel's word does not wait for the next sample."""
        link = self._link
        if link is None:
            return
        try:
            changed = link.read()
        except EnvironmentFailure as error:
            log.warning("links are no longer followed: %s", error)
            self._loop.remove_reader(link.fileno())
            self._link = None
            link.close()
            return
        if changed:
            report = link.sample(round(self._loop.time() * 1000))
            self._tell(events.LinkSampled(report, link.broken))
            if report.carrier:
                self._link_is_back()
