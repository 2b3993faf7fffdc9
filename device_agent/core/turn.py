"""What the parts of the core share while one event is handled."""

from collections import Counter
from collections.abc import Callable
from math import inf
from typing import TYPE_CHECKING

from device_agent.core.commands import Command
from device_agent.core.timers import Timers
from device_agent.core.uplink import Uplink
from protocols.errors import TonaBug
from protocols.topics import ROOT, Channel, Party, build

if TYPE_CHECKING:
    from device_agent.core.ledger import Ledger


def cell_of(topic: str) -> str:
    """Return the cell of a topic that was parsed once; empty for none."""
    return topic.split("/", 3)[2] if topic else ""


def _nothing() -> "Ledger":
    raise TonaBug("the ledger was not wired")


class Turn:
    """Clock, outgoing commands and the few facts that several parts need."""

    __slots__ = (
        "_tail",
        "answered_ms",
        "cell",
        "counts",
        "draining",
        "inbox",
        "jitter",
        "ledger",
        "node",
        "now_ms",
        "out",
        "round_trip_ms",
        "silence_ms",
        "sinks",
        "spacing_ms",
        "stood_ms",
        "store_urls",
        "stores",
        "timers",
        "uplink",
    )

    def __init__(self, node: str, cell: str) -> None:
        self.node = node
        self.serve(cell)
        self._tail = self.inbox.removeprefix(f"{ROOT}/{cell}")
        self.round_trip_ms: float = 0.0
        """Of the last link report, to the broker and back; 0: not measured."""
        self.uplink = Uplink()
        self.now_ms: float = 0.0
        self.out: list[Command] = []
        self.timers = Timers()
        self.counts: Counter[str] = Counter()
        """What was dropped, refused or late, by a fixed set of names."""
        self.ledger: Callable[[], Ledger] = _nothing
        """Who keeps account of calls (wired by the core)."""
        self.jitter = 0.0
        """Of this connection, in [0, 1)."""
        self.sinks: set[str] = set()
        """Services whose answers this node also brings elsewhere."""
        self.store_urls: tuple[str, ...] = ()
        """Of the cell that serves this node."""
        self.stores: dict[str, tuple[str, ...]] = {}
        """Base URLs of the stores of the cells around, where there are any."""
        self.draining = ""
        """Why nothing new is taken; empty while everything is."""
        self.answered_ms = -inf
        """When an answer left, or came in, last."""
        self.silence_ms = 0.0
        """The longest time between two answers since a handover began."""
        self.spacing_ms = 0.0
        """The usual time between two answers."""
        self.stood_ms = 0
        """How long a client's request stood at most, of which was told since a handover began."""

    def serve(self, cell: str) -> None:
        """Be served by this cell."""
        self.cell = cell
        self.inbox = str(build(cell, Party.NODE, self.node, Channel.INVOKE))
        """The topic where this node takes requests, and answers to those of its feeder."""

    def answered(self) -> None:
        """Take note of an answer."""
        gap_ms, self.answered_ms = self.now_ms - self.answered_ms, self.now_ms
        if gap_ms < inf:
            self.silence_ms = max(self.silence_ms, gap_ms)
            self.spacing_ms += (gap_ms - self.spacing_ms) / 8

    def kept(self, gone: int) -> None:
        """Take note that something waits for a connection, for which so much had to go."""
        self.counts["kept"] += 1
        self.dropped(gone)

    def dropped(self, gone: int) -> None:
        """Take note of so much that had waited in vain."""
        if gone:
            self.counts["kept dropped"] += gone

    def own(self, topic: str) -> bool:
        """Whether a topic is where this node takes requests, in whatever cell."""
        return topic.endswith(self._tail)

    def urls(self, reply_to: str) -> tuple[str, ...]:
        """Return the stores of a request's large values: that of its client's cell first."""
        cell = cell_of(reply_to)
        if cell in {"", self.cell}:
            return self.store_urls
        return (*self.stores.get(cell, ()), *self.store_urls)

    def spread(self, wait_ms: float) -> float:
        """Return a wait that differs from node to node: up to half longer."""
        return wait_ms * (1.0 + self.jitter / 2)
