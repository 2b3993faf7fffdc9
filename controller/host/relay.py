"""What a gateway carries to the brokers of other cells: pure, so that the twin carries alike.

A topic names its cell, so whoever wants something of another cell says it at his own broker, on the
topic of that cell. What is said to the inbox of a node that has left is carried after it, once
each way: two gateways that both believe the node at the other one carry nothing in circles.

What feeds services, or is given by them, has no receiver that its topic could name. So the gateway
of a cell whose nodes take it in brings it from the brokers of the others, where it was said, and
says it at its own on the very topic. What it says so names another cell, and nobody brings it on.
"""

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from controller.decider import Carry
from protocols.messages import Body, Cancel, Deliver, Invoke
from protocols.topics import Channel, Party, Topic, build, wildcard

CELLS_MAX: Final = 64
"""Cells that one gateway carries to."""
CARRIES_MAX: Final = 10_000
"""Nodes after which something is carried at once."""
REMEMBERED_MAX: Final = 4096
"""Messages carried after nodes that are known again."""
CARRIED: Final = (
    (Party.NODE, Channel.INVOKE),
    (Party.NODE, Channel.CATCHUP),
    (Party.CLIENT, Channel.REPLY),
    (Party.SERVICE, Channel.REQUEST),
)
"""Requests, what goes from step to step, and answers; what controls a cell stays in it. A node that
has left a cell asks its gateway for what it has missed.
"""
FOLLOWED: Final = (Channel.INPUT, Channel.OUTPUT)
ASKED_MAX: Final = 1024
"""Services whose requests are counted."""
FOLLOWS_MAX: Final = 1024
"""Channels of services that one gateway brings from each other cell."""
FOLLOWED_MS: Final = 10_000
"""So long after the last node here that takes it in has gone: it may ask for it from elsewhere."""


class Relay:
    """Decides what of a cell's messages goes to which other cell."""

    def __init__(self, cell: str) -> None:
        self._cell = cell
        self.cells: frozenset[str] = frozenset()
        """In reach."""
        self._until_ms: dict[str, int] = {}
        self._to: dict[str, str] = {}
        self._seen: OrderedDict[tuple[object, ...], None] = OrderedDict()
        self._asked: dict[str, int] = {}
        self.followed: frozenset[tuple[str, Channel]] = frozenset()
        """Channels of services that are brought from other cells, and kept a while."""
        self._wanted: frozenset[tuple[str, Channel]] = frozenset()
        self._unwanted_ms: dict[tuple[str, Channel], int] = {}
        """Channels that no node here takes in any more, and until when they are followed."""
        self.counters = {
            "relay_brought": 0,
            "relay_carried": 0,
            "relay_carried_after": 0,
            "relay_again": 0,
            "relay_unsent": 0,
        }

    def reach(self, cells: Iterable[str]) -> None:
        """Carry to these cells from now on; the first CELLS_MAX of them."""
        others = [one for one in dict.fromkeys(cells) if one != self._cell]
        self.cells = frozenset(others[:CELLS_MAX])

    def carry(self, carry: Carry, now_ms: int) -> None:
        """Carry after a node from now on, or no more."""
        self.expire(now_ms)
        if carry.for_ms <= 0 or carry.cell == self._cell:
            self._until_ms.pop(carry.node, None)
            self._to.pop(carry.node, None)
        elif carry.node in self._to or len(self._to) < CARRIES_MAX:
            self._until_ms[carry.node] = now_ms + carry.for_ms
            self._to[carry.node] = carry.cell

    def follow(self, topics: Iterable[tuple[str, Channel]], now_ms: int) -> None:
        """Bring this of other cells from now on; the first FOLLOWS_MAX of it."""
        wanted = [one for one in dict.fromkeys(topics) if one[1] in FOLLOWED]
        before, self._wanted = self._wanted, frozenset(wanted[:FOLLOWS_MAX])
        self._unwanted_ms |= dict.fromkeys(before - self._wanted, now_ms + FOLLOWED_MS)
        for one in self._wanted & self._unwanted_ms.keys():
            del self._unwanted_ms[one]
        while len(self._wanted) + len(self._unwanted_ms) > FOLLOWS_MAX:
            del self._unwanted_ms[next(iter(self._unwanted_ms))]
        self.followed = self._wanted | self._unwanted_ms.keys()

    def expire(self, now_ms: int) -> bool:
        """Forget nodes that left long ago, and what they took in; return whether any was."""
        over = [node for node, until_ms in self._until_ms.items() if now_ms >= until_ms]
        for node in over:
            del self._until_ms[node], self._to[node]
        unwanted = [one for one, until_ms in self._unwanted_ms.items() if now_ms >= until_ms]
        for topic in unwanted:
            del self._unwanted_ms[topic]
        self.followed = self._wanted | self._unwanted_ms.keys()
        return bool(over or unwanted)

    @property
    def due_ms(self) -> int | None:
        """When `expire` has something to do; None: not before another word of a role."""
        return min((*self._until_ms.values(), *self._unwanted_ms.values()), default=None)

    def filters(self) -> list[str]:
        """Return what to subscribe to at the broker of the own cell."""
        foreign = [wildcard(cell, *kind) for cell in sorted(self.cells) for kind in CARRIED]
        inboxes = [build(self._cell, Party.NODE, one, Channel.INVOKE) for one in sorted(self._to)]
        own = self.filters_at(self._cell)
        asked = [wildcard(self._cell, Party.NODE, Channel.CATCHUP)] if own else []
        return foreign + [str(one) for one in inboxes] + own + asked

    def filters_at(self, cell: str) -> list[str]:
        """Return what is followed of a cell, to be subscribed to at its broker."""
        return [str(build(cell, Party.SERVICE, *one)) for one in sorted(self.followed)]

    def brings(self, topic: Topic, cell: str) -> bool:
        """Whether what was heard at the broker of another cell is to be said here."""
        named = topic.party is Party.SERVICE and (topic.name, topic.channel) in self.followed
        return named and topic.cell == cell

    def onward(self, topic: Topic, body: Body) -> Topic | None:
        """Return on which topic of another cell a message goes on; None: it stays."""
        if (topic.party, topic.channel) not in CARRIED:
            return None
        if topic.cell != self._cell:
            if topic.cell not in self.cells:
                return None
            self._count(body)
            return topic
        cell = self._to.get(topic.name) if topic.channel is Channel.INVOKE else None
        if cell is None or cell not in self.cells:
            return None
        if self._known(topic.name, cell, body):
            self.counters["relay_again"] += 1
            return None
        self.counters["relay_carried_after"] += 1
        return build(cell, topic.party, topic.name, topic.channel)

    def asked(self) -> dict[str, int]:
        """Return how many requests were carried since the last time, by service."""
        asked, self._asked = self._asked, {}
        return asked

    def _count(self, body: Body) -> None:
        if not isinstance(body, Invoke) or body.attempt > 1:
            return
        if body.service in self._asked or len(self._asked) < ASKED_MAX:
            self._asked[body.service] = self._asked.get(body.service, 0) + 1

    def _known(self, node: str, cell: str, body: Body) -> bool:
        """Whether this was carried after the node before."""
        if not isinstance(body, Invoke | Deliver | Cancel):
            return False
        attempt = 0 if isinstance(body, Cancel) else body.attempt
        source = body.source if isinstance(body, Deliver) else ""
        key = (node, cell, type(body), body.request, attempt, source)
        if key in self._seen:
            return True
        self._seen[key] = None
        if len(self._seen) > REMEMBERED_MAX:
            self._seen.popitem(last=False)
        return False
