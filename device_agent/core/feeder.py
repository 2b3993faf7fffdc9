"""Feeds: this node as the client of a service, with data of its own.

At the pace of a feed the shell reads its sources (`ReadSource`); values of a topic come as they are
published, at most at their pace. The newest value of every input makes an item, which becomes a
request. A few requests may be under way at once; meanwhile one item waits, and a newer one takes
its place: old data is worth less than new. While the node is attached nowhere all of them wait, in
order and within bounds. Every item is answered, replaced, dropped or failed, and each is counted:
`fed` is the sum of `feed answered`, `feed failed` and those under way.

With a service that has sinks this node passes on the answers to its feed, and those that end here.
"""

from collections import deque
from collections.abc import Callable
from itertools import count
from math import inf
from typing import Any, Final

from msgspec import Struct, field, structs

from device_agent.core.capacity import NAME_MAX
from device_agent.core.commands import Follow, ForgetFeed, KeepFeed, ReadSource, Unfollow
from device_agent.core.events import (
    BlobFailed,
    Published,
    SourceFailed,
    SourceRead,
    Stored,
    StoreFailed,
)
from device_agent.core.feed_values import fitted, load_vector
from device_agent.core.flights import Flight, Flights, Local, covers
from device_agent.core.sinks import KEPT_MAX, KEPT_MAX_BYTES, Sinks
from device_agent.core.turn import Turn
from device_agent.core.values import LOAD, inline_bytes, rooted
from protocols.errors import MalformedFrame
from protocols.messages.invocation import INLINE_MAX_BYTES, Accepted, Invoke, Plan, Result, Value
from protocols.messages.mobility import Missed
from protocols.messages.presence import Feeding
from protocols.messages.quality import Feed, Source, SourceKind
from protocols.messages.sense import LoadReport
from protocols.topics import Channel, source_topic

FEEDS_MAX: Final = 64
"""Services that one node feeds or gives sinks to."""
UNDER_WAY_MAX: Final = 8
"""Requests of one feed at once."""
PERIOD_MIN_MS: Final = 10.0
TAKEN_MAX: Final = 1024
TAKEN_MS: Final = 15_000
"""Published values that are known again, and for how long: who begins anew counts anew."""
BUNCHED_MS: Final = 1000.0
"""What was published at its pace may come bunched: so long a pace is exceeded, and made up for."""
READ_MS: Final = 10_000
"""After this a source that is being read counts as failed."""
INLINE_TOTAL_BYTES: Final = 96 * 1024
"""What the sources of one feed may give in messages together; larger values go by reference."""
CHANGES: Final = "changes"


class Pace(Struct, eq=False):
    """How often values of one topic are taken."""

    due_ms: float = -inf
    """When the next one is, if each comes in its time."""
    last_ms: float = -inf
    """When the last one that was taken was published."""

    def takes(self, said_ms: float, rate_per_s: float) -> bool:
        """Take a value that was published then, or leave it out."""
        if rate_per_s <= 0:
            return False
        period_ms = 1000.0 / rate_per_s
        leeway_ms = max(BUNCHED_MS, period_ms) - period_ms / 2
        if said_ms < self.last_ms - leeway_ms / 2:
            # Another gateway hands on, from its oldest value on.
            self.due_ms = said_ms
        if said_ms < self.due_ms - leeway_ms:
            return False
        self.due_ms, self.last_ms = max(self.due_ms, said_ms) + period_ms, said_ms
        return True


class FeedState(Struct, eq=False):
    """One feed and what is known for it."""

    feed: Feed
    stamp: tuple[int, int] = (0, 0)
    """Incarnation of its sender and number of the last Feed that was taken."""
    values: dict[str, Value] = field(default_factory=dict)
    """The newest of each input."""
    reading: dict[str, float] = field(default_factory=dict)
    """Inputs whose source is being read, and since when."""
    cursors: dict[str, str] = field(default_factory=dict)
    """The last file of each folder that was read."""
    sent: dict[str, Value] | None = None
    waiting: deque[tuple[float, dict[str, Value]]] = field(default_factory=deque)
    """Items for which there is no room yet, and until when: the newest, which always counts, behind
    those that were made while nobody was reached.
    """
    unkept: bool = False
    """Whether the journal does not know yet that the node has left the feed's cell."""
    under_way: int = 0
    next_ms: float = 0.0
    heard_ms: dict[str, float] = field(default_factory=dict)
    """When a value of each topic was last taken."""
    paces: dict[tuple[str, bool], Pace] = field(default_factory=dict)
    """By input; what was missed has its own, for newer values may have come before it."""
    plan: Plan | None = None
    """As this node, in its present cell, uses the feed's."""

    @property
    def period_ms(self) -> float:
        """Between two readings of the sources; 0: nothing is read."""
        rates = [_rate(self.feed, one) for one in self.feed.sources if _is_read(one)]
        return max(PERIOD_MIN_MS, 1000.0 / max(rates)) if rates and max(rates) > 0 else 0.0


class Feeder:
    """Every feed of this node. `local` takes the requests that begin here."""

    def __init__(self, turn: Turn, local: Local, life: Callable[[], str]) -> None:
        """Take no feed yet; `life` names this connection or process, unique for ever."""
        self._turn = turn
        self._life = life
        self._feeds: dict[str, FeedState] = {}
        self._numbers = count(1)
        self._load: LoadReport | None = None
        self.followed: dict[tuple[str, Channel], None] = {}
        """Channels of services that the sources name."""
        self._taken: dict[tuple[object, ...], float] = {}
        """The newest published values, and when they came."""
        self.sinks = Sinks(turn)
        self.flights = Flights(turn, local, self._ended)
        self._doors: dict[type, Callable[[Any], None]] = {
            SourceRead: self._read_done,
            SourceFailed: self._read_failed,
            Published: self._published,
            Stored: self.sinks.stored,
            StoreFailed: self.sinks.failed,
        }
        self._clocks: dict[str, Callable[[str], None]] = {
            "feed": self._due,
            "flight": self.flights.on_timer,
            "sink": self.sinks.on_timer,
        }

    # What the scheduler and the journal say.

    def restore(self, feeds: tuple[Feed, ...]) -> None:
        """Go on with the feeds that the journal kept."""
        for feed in feeds[:FEEDS_MAX]:
            self._begin(feed)

    def take(self, feed: Feed, incarnation: int, cause: str) -> None:
        """Feed a service so from now on; an older word than the last changes nothing."""
        state = self._feeds.get(feed.service)
        stamp = (incarnation, feed.number)
        if state is not None and stamp <= state.stamp:
            self._turn.counts["stale feed"] += stamp < state.stamp
            return
        if state is not None:
            state.stamp = stamp
            if feed == structs.replace(state.feed, number=feed.number):
                state.feed = feed
                return
        if not feed.sources and not feed.sinks:
            self._turn.out.append(ForgetFeed(feed.service, cause))
            if state is not None:
                self._end(feed.service)
            return
        if len(feed.function) > NAME_MAX or (state is None and len(self._feeds) >= FEEDS_MAX):
            self._turn.counts["feed refused"] += 1
            return
        self._turn.out.append(KeepFeed(feed, cause))
        self._begin(feed)
        self._feeds[feed.service].stamp = stamp

    def feedings(self) -> tuple[Feeding, ...]:
        """Return what a birth says of the feeds of this node."""
        feeds = [state.feed for state in self._feeds.values()]
        return tuple(
            Feeding(one.service, one.number, one.rate_per_s, one.decimation, one.function)
            for one in feeds
        )

    def fence(self, incarnation: int, *, another: bool) -> None:
        """Hear a scheduler of another life, or another one: its numbers count anew."""
        for state in self._feeds.values():
            if another or state.stamp[0] != incarnation:
                state.stamp = (incarnation, -1)

    def _begin(self, feed: Feed) -> None:
        state = self._feeds.get(feed.service)
        if state is None:
            state = self._feeds[feed.service] = FeedState(feed)
        elif state.feed.sources != feed.sources:
            state = self._feeds[feed.service] = _renewed(state, feed)
        state.feed, state.unkept = feed, False
        state.plan = self._plan(feed)
        self._turn.sinks.discard(feed.service)
        if feed.sinks:
            self._turn.sinks.add(feed.service)
        self.flights.move(feed.service, state.plan)
        self._follow()
        if not feed.sources:
            state.waiting.clear()
        self._launch(state)
        key = ("feed", feed.service)
        self._turn.timers.cancel(key)
        if state.period_ms:
            # The pace goes on as before; a faster one begins at once.
            due_ms = max(self._turn.now_ms, min(state.next_ms, self._turn.now_ms + state.period_ms))
            state.next_ms = due_ms
            self._turn.timers.set(key, due_ms)

    def _plan(self, feed: Feed) -> Plan | None:
        turn = self._turn
        if feed.plan is None or feed.cell in {"", turn.cell}:
            return feed.plan
        return rooted(feed.plan, feed.cell, turn.node, turn.cell)

    def moved(self, source: str, *, apart: bool) -> None:
        """Go on from another cell: plans are those of the cell before until there are new ones.

        `apart`: answers on their way to the cell before may be lost.
        """
        for state in self._feeds.values():
            if not state.feed.cell:
                state.feed, state.unkept = structs.replace(state.feed, cell=source), True
            state.plan = self._plan(state.feed)
            self.flights.move(state.feed.service, state.plan)
        if apart:
            self.flights.connected()

    def settled(self) -> None:
        """Journal what a move has changed; there is no hurry, for it says where feeds were."""
        for state in self._feeds.values():
            if state.unkept:
                state.unkept = False
                self._turn.out.append(KeepFeed(state.feed, "moved"))

    def _end(self, service: str) -> None:
        del self._feeds[service]
        self._turn.sinks.discard(service)
        self._turn.counts["feed failed"] += self.flights.drop(service)
        self._turn.timers.cancel(("feed", service))
        self._follow()

    def _follow(self) -> None:
        """Have the shell subscribe to what the sources name, and to nothing else."""
        wanted = {
            topic: None
            for service, state in self._feeds.items()
            for source in state.feed.sources
            if source.kind is SourceKind.TOPIC
            and (topic := source_topic(service, source.name)[:2])[0]
        }
        for topic in wanted.keys() - self.followed.keys():
            self._turn.out.append(Follow(*topic))
        for topic in self.followed.keys() - wanted.keys():
            self._turn.out.append(Unfollow(*topic))
        self.followed = wanted

    # What the shell says.

    def sampled(self, load: LoadReport) -> None:
        """Keep the newest load: it is a sensor."""
        self._load = load

    def connected(self) -> None:
        """Say again what may not have been heard."""
        self.sinks.connected()
        self.flights.connected()

    def handle(self, event: SourceRead | SourceFailed | Published | Stored | StoreFailed) -> None:
        """Take in what the shell says of sources, topics and the store."""
        self._doors[type(event)](event)

    def on_timer(self, subject: str, name: str) -> None:
        """Act on what is due: a feed, a request of one, an output for the store."""
        self._clocks[subject](name)

    def _due(self, service: str) -> None:
        """Read the sources of a feed."""
        state, now_ms = self._feeds.get(service), self._turn.now_ms
        if state is None or not state.period_ms:
            return
        # Late ticks are not made up for: that would only bunch requests.
        state.next_ms += state.period_ms
        if state.next_ms <= now_ms:
            state.next_ms = now_ms + state.period_ms
        self._turn.timers.set(("feed", service), state.next_ms)
        for source in state.feed.sources:
            if _is_read(source):
                self._read(state, source)
        if not state.reading and state.values and _all_here(state.feed):
            self._offer(state)

    def _read(self, state: FeedState, source: Source) -> None:
        service, name = state.feed.service, source.input
        since_ms = state.reading.get(name)
        if since_ms is not None:
            if self._turn.now_ms < since_ms + READ_MS:
                self._turn.counts["feed slow"] += 1
                return
            self._turn.counts["feed unread"] += 1
        if source.kind is SourceKind.SENSOR and source.name == LOAD:
            if self._load is not None:
                state.values[name] = load_vector(self._load)
                state.reading.pop(name, None)
            return
        state.reading[name] = self._turn.now_ms
        self._turn.out.append(
            ReadSource(
                service,
                name,
                source.kind,
                source.name,
                source.dtype,
                source.shape,
                state.feed.decimation,
                state.cursors.get(name, ""),
                service,
                min(INLINE_MAX_BYTES, INLINE_TOTAL_BYTES // len(state.feed.sources)),
            )
        )

    def _read_done(self, event: SourceRead) -> None:
        """Take a value of a source, or the word that there is nothing new."""
        state = self._feeds.get(event.service)
        if state is None or state.reading.pop(event.input, None) is None:
            self._turn.counts["feed late"] += 1
            return
        if event.cursor:
            state.cursors[event.input] = event.cursor
        if event.value is not None:
            state.values[event.input] = event.value
            if not state.reading:
                self._offer(state)

    def _read_failed(self, event: SourceFailed) -> None:
        """Count a source that could not be read; the next time may do better."""
        state = self._feeds.get(event.service)
        if state is not None:
            state.reading.pop(event.input, None)
            if event.cursor:
                state.cursors[event.input] = event.cursor
        self._turn.counts["feed unread"] += 1

    def _published(self, event: Published) -> None:
        """Take a value that a topic source names."""
        body = event.body
        if isinstance(body, Invoke) and event.channel is Channel.INPUT:
            values, part = body.inputs, 0
        elif isinstance(body, Result) and event.channel is Channel.OUTPUT:
            values, part = body.outputs, body.part
        else:
            self._turn.counts["foreign message"] += 1
            return
        name = event.sender, event.service, body.request, body.attempt, part
        self._brought(event.service, event.channel, name, values)

    def missed(self, body: Missed) -> None:
        """Take a value that was published while nobody was reached."""
        name = body.sender, body.service, body.request, body.attempt, body.part
        if (body.service, body.channel) not in self.followed:
            self._turn.counts["foreign message"] += 1
        elif self._brought(body.service, body.channel, name, body.values, body.age_ms):
            self._turn.counts["missed"] += 1

    def _brought(
        self,
        service: str,
        channel: Channel,
        name: tuple[object, ...],
        values: dict[str, Value],
        age_ms: float | None = None,
    ) -> bool:
        """Take what was published once, so long ago; None: just now."""
        if self._twice(*name, *values):
            self._turn.counts["feed twice"] += 1
            return False
        for fed, state in list(self._feeds.items()):
            for source in state.feed.sources:
                if source.kind is SourceKind.TOPIC:
                    named, wanted, port = source_topic(fed, source.name)
                    if (named, wanted) == (service, channel) and port in values:
                        self._hear(state, source, values[port], age_ms)
        return True

    def _twice(self, *name: object) -> bool:
        """Whether this has come already: by another cell's broker, or before a link was lost."""
        taken, now_ms = self._taken, self._turn.now_ms
        if now_ms - taken.get(name, -inf) < TAKEN_MS:
            return True
        taken.pop(name, None)
        taken[name] = now_ms
        if len(taken) > TAKEN_MAX:
            del taken[next(iter(taken))]
        return False

    def _hear(self, state: FeedState, source: Source, value: Value, age_ms: float | None) -> None:
        name, late = source.input, age_ms is not None
        said_ms = self._turn.now_ms - (age_ms or 0.0)
        pace = state.paces.setdefault((name, late), Pace())
        if not pace.takes(said_ms, _rate(state.feed, source)):
            self._turn.counts["feed thinned"] += 1
            return
        try:
            fit = fitted(source, value, state.feed.decimation)
        except MalformedFrame:
            self._turn.counts["feed misfit"] += 1
            return
        if not late or said_ms > state.heard_ms.get(name, -inf):
            state.values[name] = fit
        if not late:
            state.heard_ms[name] = said_ms
        if not any(_is_read(one) for one in state.feed.sources):
            self._offer(state, {name: fit}, said_ms + state.feed.budget_ms if late else inf)

    # From a value to a request.

    def _offer(
        self, state: FeedState, given: dict[str, Value] | None = None, until_ms: float = inf
    ) -> None:
        """Make an item of the newest values, or of one given: send it, or have it wait."""
        feed = state.feed
        names = {one.input for one in feed.sources}
        if names - state.values.keys():
            self._turn.counts["feed incomplete"] += 1
            return
        item = {name: state.values[name] for name in names} | (given or {})
        last = state.waiting[-1][1] if state.waiting else state.sent
        if feed.function == CHANGES and item == last:
            self._turn.counts["feed unchanged"] += 1
            return
        self._wait(state, item, until_ms)
        self._launch(state)

    def _wait(self, state: FeedState, item: dict[str, Value], until_ms: float) -> None:
        """Have an item wait: in order while nobody is reached, else in the newest's place.

        As long as what was kept waits all go behind it; what was missed goes before the newest.
        """
        waiting, counts = state.waiting, self._turn.counts
        if not self.sinks.online:
            self._turn.kept(0)
        if not self.sinks.online or (waiting and waiting[0][0] < inf):
            until_ms = min(until_ms, self._turn.now_ms + state.feed.budget_ms)
        newest = waiting.pop() if waiting and waiting[-1][0] == inf > until_ms else None
        if newest is None and waiting and waiting[-1][0] == until_ms == inf:
            waiting.pop()
            counts["feed replaced"] += 1
        waiting.append((until_ms, item))
        if newest is not None:
            waiting.append(newest)
        size = sum(inline_bytes(one) for _, one in waiting) if len(waiting) > 1 else 0
        while len(waiting) > KEPT_MAX or size > KEPT_MAX_BYTES:
            size -= inline_bytes(waiting.popleft()[1])
            counts["kept dropped"] += 1

    def _launch(self, state: FeedState) -> None:
        """Send the items that wait, if there is a plan, as far as there is room."""
        waiting, plan = state.waiting, state.plan
        while waiting and plan is not None and state.under_way < UNDER_WAY_MAX:
            until_ms, item = waiting.popleft()
            if until_ms < self._turn.now_ms:
                self._turn.counts["kept dropped"] += 1
            else:
                self._send(state, plan, item)

    def _send(self, state: FeedState, plan: Plan, item: dict[str, Value]) -> None:
        feed = state.feed
        self._turn.counts["fed"] += 1
        if not covers(plan, item):
            self._turn.counts["feed failed"] += 1
            return
        state.sent = item
        state.under_way += 1
        number = next(self._numbers)
        self.flights.send(
            Flight(
                f"{self._turn.node}-{self._life()}-{number}",
                feed.service,
                plan,
                item,
                self._turn.now_ms + feed.budget_ms,
                feed.budget_ms,
                feed.priority,
                f"feed of {feed.service}",
                "default",
            )
        )

    def _ended(self, flight: Flight, result: Result) -> None:
        self._turn.counts["feed answered" if result.failure is None else "feed failed"] += 1
        state = self._feeds.get(flight.service)
        if state is None:
            return
        state.under_way -= 1
        if result.failure is None:
            self._sink(flight.service, result, flight.cause, flight.tenant)
        self._launch(state)

    def heard(self, body: Accepted | Result) -> None:
        """Take in the answer to a request of a feed."""
        self.flights.heard(body)

    def blob_failed(self, event: BlobFailed) -> None:
        """Take note that a large input could not be brought to the store."""
        if event.pushing:
            self.flights.blob_failed(event.digest, event.text)

    def sink(self, service: str, result: Result, cause: str, tenant: str) -> None:
        """Pass on an answer that ended on this node, where the service has sinks."""
        if service in self._feeds:
            self._sink(service, result, cause, tenant)

    def _sink(self, service: str, result: Result, cause: str, tenant: str) -> None:
        feed = self._feeds[service].feed
        if feed.sinks:
            until_ms = self._turn.now_ms + feed.budget_ms
            self.sinks.give(feed.sinks, service, result, cause, tenant, until_ms)


def _renewed(before: FeedState, feed: Feed) -> FeedState:
    """Return the state of a feed with other sources; folders that stay go on where they were."""
    stay = {(one.input, one.kind, one.name) for one in feed.sources}
    cursors = {
        one.input: before.cursors[one.input]
        for one in before.feed.sources
        if (one.input, one.kind, one.name) in stay and one.input in before.cursors
    }
    return FeedState(feed, before.stamp, cursors=cursors, under_way=before.under_way)


def _all_here(feed: Feed) -> bool:
    """Whether every source that is read is the node's own load, which needs no shell."""
    read = [one for one in feed.sources if _is_read(one)]
    return all(one.name == LOAD and one.kind is SourceKind.SENSOR for one in read)


def _is_read(source: Source) -> bool:
    return source.kind is not SourceKind.TOPIC


def _rate(feed: Feed, source: Source) -> float:
    return feed.rate_per_s or source.rate_per_s
