"""The last of what was published in a cell, for nodes that were attached nowhere: pure.

A node asks when it is attached again, at the gateway of the cell that it has left or is back in. It
is handed what was published since, in order, and from another cell also what is published there for
a while longer, until the gateway of its new cell brings that. It takes each value once.
"""

from collections import OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from heapq import heapify, heappop, heappush, merge
from itertools import chain, islice, takewhile
from typing import Final, NamedTuple

from msgspec import Struct, field

from protocols.codec import Frame
from protocols.messages import CatchUp, Invoke, Missed, Result
from protocols.messages.invocation import Tensor, Value
from protocols.topics import Channel, Topic

KEPT_MS: Final = 10_000
"""Longer ago is too old; a node knows again what it has taken for half as long more."""
KEPT_MAX: Final = 512
KEPT_MAX_BYTES: Final = 4 << 20
"""Of one topic, and handed on at once; tensors count. The oldest make room."""
TOTAL_MAX_BYTES: Final = 64 << 20
"""Of all topics, with what values take beside their tensors: of the one with most the oldest make
room.
"""
VALUE_BYTES: Final = 1024
"""What a value takes beside its tensors: measured with short names."""
OVERLAP_MS: Final = 1000
"""What was published so shortly before its link ended a node may not have got."""
LINGER_MS: Final = 10_000
"""That long after it has asked a node in another cell is handed what is published here."""
NODES_MAX: Final = 1024
"""Nodes of each topic that are handed what is published; one more takes the oldest's place."""
WHERE_MAX: Final = 16_384
"""Nodes of which it is known in which cell they are."""
STALE_MAX: Final = 8
"""Sizes that a topic has had and that are still among the present ones, on average."""
TOPICS_MAX: Final = 1024
"""With such nodes; one more takes the oldest's place."""
HANDED_MAX: Final = 4096
HANDED_MAX_BYTES: Final = 32 << 20
"""Half of what waits at most to be sent (`controller.lines.QUEUE_MAX_BYTES`); tensors count."""
HANDED_MS: Final = 1000
"""So much is handed on in such a time, over all nodes; more is dropped."""
AGAIN_MS: Final = 200
"""A node that asks for the same again so soon, from the same cell, is not heard."""

Key = tuple[str, Channel]


class _Said(NamedTuple):
    number: int
    at_ms: int
    topic: Topic
    frame: Frame
    body: Invoke | Result
    values: dict[str, Value]
    size_bytes: int


class _Ring(Struct):
    """What was published on one topic."""

    said: deque[_Said] = field(default_factory=deque)
    size_bytes: int = 0
    """Of tensors."""

    @property
    def whole_bytes(self) -> int:
        """What all of it takes."""
        return self.size_bytes + VALUE_BYTES * len(self.said)

    def drop(self) -> int:
        """Forget the oldest; return what it has taken."""
        size_bytes = self.said.popleft().size_bytes
        self.size_bytes -= size_bytes
        return size_bytes + VALUE_BYTES


class Late(NamedTuple):
    """A value for a node that has missed it."""

    node: str
    cell: str
    body: Missed
    cause: str
    tenant: str


class Lately:
    """What was published lately on the topics that nodes of a cell follow."""

    def __init__(self, cell: str) -> None:
        self.counters = dict.fromkeys(
            ("missed_kept", "missed_dropped", "missed_asked", "missed_refused", "missed_handed"), 0
        )
        self._cell = cell
        self._rings: OrderedDict[Key, _Ring] = OrderedDict()
        """The one that was published on last stands last."""
        self._total_bytes = 0
        self._number = 0
        self._toward: dict[Key, dict[str, tuple[str, int]]] = {}
        """By topic: nodes that are handed what is published, in which cell and until when, whoever
        has asked first first.
        """
        self._where: dict[str, str] = {}
        """By node: the cell where it was when it asked last."""
        self._sizes: list[tuple[int, Key]] = []
        """Heap of topics by what they take, negative; entries of earlier sizes stand among them."""
        self._asked: OrderedDict[str, tuple[int, frozenset[Key]]] = OrderedDict()
        """By node: when it has asked, and for what since."""
        self._span = 0, 0, 0
        """When the present time of HANDED_MS began, how many values went on in it, their bytes."""

    def keep(self, topic: Topic, frame: Frame, now_ms: int) -> list[Late]:
        """Keep what was published just now; return it for those that get it at once."""
        body = frame.body
        if not isinstance(body, Invoke | Result):
            return []
        key = topic.name, topic.channel
        values = body.inputs if isinstance(body, Invoke) else body.outputs
        size_bytes = sum(len(one.data) for one in values.values() if isinstance(one, Tensor))
        said = _Said(self._number, now_ms, topic, frame, body, values, size_bytes)
        self._number += 1
        self.counters["missed_kept"] += 1
        ring = self._rings.setdefault(key, _Ring())
        self._rings.move_to_end(key)
        ring.said.append(said)
        ring.size_bytes += size_bytes
        self._total_bytes += size_bytes + VALUE_BYTES
        self._make_room(key, now_ms)
        toward = self._toward.get(key, {})
        # Whoever has asked first stands first.
        while toward and next(iter(toward.values()))[1] <= now_ms:
            del toward[next(iter(toward))]
        return self._onward(toward, said, now_ms)

    def _onward(self, toward: dict[str, tuple[str, int]], said: _Said, now_ms: int) -> list[Late]:
        """Return a value for those that get it at once: if not for all, for the last to ask."""
        count, left_bytes = self._left(now_ms)
        if said.size_bytes:
            count = min(count, left_bytes // said.size_bytes)
        found: list[Late] = []
        for passed, (node, (cell, _)) in enumerate(reversed(toward.items())):
            if len(found) == count:
                self.counters["missed_dropped"] += len(toward) - passed
                break
            # What a node has asked for elsewhere before goes where it is at present.
            if self._where.get(node, cell) == cell:
                found.append(self._late(node, cell, said, now_ms))
        self._count(len(found), len(found) * said.size_bytes)
        return found[::-1]

    def _make_room(self, key: Key, now_ms: int) -> None:
        ring = self._rings[key]
        old_ms = now_ms - KEPT_MS
        while ring.said and ring.said[0].at_ms < old_ms:
            self._total_bytes -= ring.drop()
        while len(ring.said) > KEPT_MAX or ring.size_bytes > KEPT_MAX_BYTES:
            self._drop(ring)
        self._note(key)
        while self._total_bytes > TOTAL_MAX_BYTES:
            largest = self._largest()
            self._drop(self._rings[largest])
            self._note(largest)
        first = next(iter(self._rings))
        quiet = self._rings[first]
        if not quiet.said or quiet.said[-1].at_ms < old_ms:
            self._total_bytes -= quiet.whole_bytes
            del self._rings[first]

    def _note(self, key: Key) -> None:
        """Have a topic found by what it takes now."""
        heappush(self._sizes, (-self._rings[key].whole_bytes, key))
        if len(self._sizes) > STALE_MAX * len(self._rings):
            self._sizes = [(-ring.whole_bytes, one) for one, ring in self._rings.items()]
            heapify(self._sizes)

    def _largest(self) -> Key:
        """Return the topic that takes most."""
        while True:
            size_bytes, key = self._sizes[0]
            ring = self._rings.get(key)
            if ring is not None and ring.whole_bytes == -size_bytes:
                return key
            heappop(self._sizes)

    def _drop(self, ring: _Ring) -> None:
        self._total_bytes -= ring.drop()
        self.counters["missed_dropped"] += 1

    def asked(self, node: str, body: CatchUp, followed: Collection[Key], now_ms: int) -> list[Late]:
        """Return what a node has missed of what is followed in this cell, the oldest first."""
        self.counters["missed_asked"] += 1
        asked_ms, known = self._asked.pop(node, (-AGAIN_MS, frozenset[Key]()))
        # Two questions from two cells may come at once where their way is slow.
        again = now_ms - asked_ms < AGAIN_MS and self._where.get(node) == body.cell
        if not again:
            asked_ms, known = now_ms, frozenset()
        asks = dict.fromkeys((one.service, one.channel) for one in body.topics)
        wanted = [one for one in asks if one in followed and one not in known]
        self._asked[node] = asked_ms, known.union(wanted)
        if len(self._asked) > NODES_MAX:
            self._asked.popitem(last=False)
        if again and not wanted:
            self.counters["missed_refused"] += 1
            return []
        self._where.pop(node, None)
        self._where[node] = body.cell
        if len(self._where) > WHERE_MAX:
            del self._where[next(iter(self._where))]
        if body.cell != self._cell:
            for key in wanted:
                self._go_on(key, node, body.cell, now_ms)
        rings = [self._rings[one] for one in wanted if one in self._rings]
        since_ms = now_ms - min(KEPT_MS, body.apart_ms + OVERLAP_MS)
        if min(self._left(now_ms)) <= 0:
            # In a storm most that is asked for is not to be had: it is not put in order either.
            self.counters["missed_dropped"] += _many(rings, since_ms)
            return []
        found = _newest(rings, since_ms)
        first = self._allowed([one.size_bytes for one in found], now_ms)
        return [self._late(node, body.cell, one, now_ms) for one in found[first:]]

    def _left(self, now_ms: int) -> tuple[int, int]:
        """Return how many values may be handed on now, and how many bytes."""
        if now_ms - self._span[0] >= HANDED_MS:
            self._span = now_ms, 0, 0
        _, count, total_bytes = self._span
        return HANDED_MAX - count, HANDED_MAX_BYTES - total_bytes

    def _count(self, count: int, total_bytes: int) -> None:
        begin_ms, before, before_bytes = self._span
        self._span = begin_ms, before + count, before_bytes + total_bytes

    def _allowed(self, sizes_bytes: Sequence[int], now_ms: int) -> int:
        """Return from which on these may be handed on now."""
        count, left_bytes = self._left(now_ms)
        first, total_bytes = len(sizes_bytes), 0
        while first and len(sizes_bytes) - first < count:
            if total_bytes + sizes_bytes[first - 1] > left_bytes:
                break
            first -= 1
            total_bytes += sizes_bytes[first]
        self._count(len(sizes_bytes) - first, total_bytes)
        self.counters["missed_dropped"] += first
        return first

    def _go_on(self, key: Key, node: str, cell: str, now_ms: int) -> None:
        toward = self._toward.setdefault(key, {})
        if len(self._toward) > TOPICS_MAX:
            del self._toward[next(iter(self._toward))]
        toward.pop(node, None)
        if len(toward) >= NODES_MAX:
            del toward[next(iter(toward))]
        toward[node] = cell, now_ms + LINGER_MS

    def _late(self, node: str, cell: str, said: _Said, now_ms: int) -> Late:
        topic, frame, body = said.topic, said.frame, said.body
        missed = Missed(
            topic.name,
            topic.channel,
            frame.sender,
            body.request,
            body.attempt,
            body.part if isinstance(body, Result) else 0,
            said.values,
            now_ms - said.at_ms,
            self._cell,
        )
        return Late(node, cell, missed, frame.cause, frame.tenant)


def _newest(rings: Iterable[_Ring], since_ms: float) -> list[_Said]:
    """Return the last since then that may be handed on at once, the oldest first."""
    found: deque[_Said] = deque()
    size_bytes = 0
    for said in merge(*(reversed(one.said) for one in rings), reverse=True):
        size_bytes += said.size_bytes
        if said.at_ms < since_ms or len(found) == KEPT_MAX or size_bytes > KEPT_MAX_BYTES:
            break
        found.appendleft(said)
    return list(found)


def _many(rings: Iterable[_Ring], since_ms: float) -> int:
    """Return how many there are since then, of the last that may be handed on at once by number."""
    lately = (takewhile(lambda one: one.at_ms >= since_ms, reversed(ring.said)) for ring in rings)
    return sum(1 for _ in islice(chain.from_iterable(lately), KEPT_MAX))
