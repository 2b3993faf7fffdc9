"""The MQTT sessions of one controller process, and which of them carries what.

At *home* is the broker of its own cell: nodes and clients, where it runs a TS. Roles of several
processes meet in one cell, at the *uplink*, which for one of them is home. The process of a TA may
also listen *direct* at the brokers of its cells, to hear and tell nodes itself. Where there are
neighbour cells in reach, it carries to their brokers what is said at home on their topics.
"""

import asyncio
import logging
import ssl
from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from msgspec import Struct

from controller.broker.address import Address
from controller.decider import Abroad, Carry, Role, Send, ToInvoke, ToNode, ToTopic
from controller.host.host import Host, monotonic_ms
from controller.host.linker import Linker
from controller.host.missed import Late, Lately
from controller.host.neighbours import desk_of
from controller.host.relay import FOLLOWED, Relay
from controller.host.routing import (
    heard_directly,
    inboxes,
    received,
    role_of,
    subscriptions,
    topic_of,
)
from protocols.errors import UnknownTopic, UserError
from protocols.messages import Body, CatchUp, Linking
from protocols.messages.mobility import CellPoint
from protocols.topics import Channel, Party, Speaker, Topic, build, parse
from protocols.transport.backoff import Policy
from protocols.transport.session import Inbound, Session
from protocols.transport.settings import Settings

QUEUE_MAX: Final = 100_000
QUEUE_MAX_BYTES: Final = 64 << 20
BACKOFF: Final = Policy(cap_ms=1000, stable_ms=3000)
"""Controllers are few: their reconnecting is no storm, and everyone else waits for them."""
NODES_MAX: Final = 100_000
"""Nodes whose cell is remembered, of those heard directly."""
WAYS_S: Final = 1.0
"""So often the brokers of other cells are asked for an answer: two bytes each way."""
_DATA: Final = (Channel.INVOKE, Channel.REPLY)
"""Heard to be carried, and for no role."""

_log = logging.getLogger(__name__)


class Place(NamedTuple):
    """A cell of a broker, and how its certificate is met."""

    address: Address
    cell: str
    tls: ssl.SSLContext | None = None


class Plan(Struct, frozen=True):
    """Which sessions a process holds."""

    identity: str
    home: Place
    uplink: Place | None
    """None: at home."""
    direct: tuple[Place, ...]
    epoch: int
    """Of this life of the process: incarnation of its frames."""
    meet: Callable[[str, str], Place]
    """Gives the place of a cell at a broker's URL. Raises UserError when it cannot be met."""


class Lines:
    """Carries the messages of a host. `linker` is set before `run`."""

    def __init__(self, plan: Plan, host: Host, linker: Linker) -> None:
        self.plan = plan
        self._host = host
        self._linker = linker
        self._cells: dict[str, str] = {}
        """Of nodes that were heard directly."""
        self.relay = Relay(plan.home.cell)
        self._lately = Lately(plan.home.cell)
        self._away: dict[str, tuple[Place, Session, asyncio.Task[None]]] = {}
        """At the brokers of other cells, to which something is carried."""
        self._ending: set[asyncio.Task[Any]] = set()
        self._expiry: asyncio.TimerHandle | None = None
        self._timing: asyncio.TimerHandle | None = None
        self._ends = [*host.roles, *(desk_of(role) for role in host.roles)]
        cell = plan.home.cell
        filters = subscriptions(cell, host.roles)
        if plan.uplink is None:
            filters += inboxes(cell, self._ends)
        self.home = self._session(
            plan.home, lambda: [*filters, *self.relay.filters()], meeting=plan.uplink is None
        )
        self.uplink = self.home
        if plan.uplink is not None:
            met = inboxes(plan.uplink.cell, self._ends)
            self.uplink = self._session(plan.uplink, met, meeting=True)
        self.direct = {
            one.cell: self._session(one, heard_directly(one.cell), meeting=False)
            for one in plan.direct
        }

    @property
    def sessions(self) -> list[Session]:
        """Each once."""
        rest = [] if self.uplink is self.home else [self.uplink]
        return [self.home, *rest, *self.direct.values()]

    def reach(self, cells: Iterable[CellPoint]) -> None:
        """Carry to these cells from now on, and to no other."""
        wanted: dict[str, Place] = {}
        for one in cells:
            try:
                wanted[one.cell] = self.plan.meet(one.broker_urls[0], one.cell)
            except (UserError, IndexError) as error:
                _log.warning("cell %s is out of reach: %s", one.cell, error or "it has no broker")
        self.relay.reach(wanted)
        for cell, (place, session, running) in list(self._away.items()):
            if wanted.get(cell, place)[:2] != place[:2] or cell not in self.relay.cells:
                del self._away[cell]
                self._end(session, running)
        for cell in sorted(self.relay.cells - self._away.keys()):
            session = self._away_session(wanted[cell])
            running = asyncio.create_task(session.run(), name=f"relay to {cell}")
            self._away[cell] = wanted[cell], session, running
        self.home.resubscribe()
        if self._away and self._timing is None:
            self._time()

    def _time(self) -> None:
        """Have the schedulers here know how far other cells are, and what is asked there."""
        self._timing = None
        answers_ms = {cell: session.ping() for cell, (_, session, _) in self._away.items()}
        asked = self.relay.asked()
        for name, role in self._host.roles.items():
            if role is Role.TS:
                self._host.post(name, Abroad(answers_ms, asked))
        if self._away:
            self._timing = asyncio.get_running_loop().call_later(WAYS_S, self._time)

    def follow(self, topics: Iterable[tuple[str, Channel]]) -> None:
        """Bring this from the brokers of the other cells in reach, and nothing else."""
        self.relay.follow(topics, monotonic_ms())
        self._expire()

    def carry(self, carry: Carry) -> None:
        """Carry after a node that has left, for as long as is said."""
        self.relay.carry(carry, monotonic_ms())
        self._expire()

    def _expire(self) -> None:
        now_ms = monotonic_ms()
        self.relay.expire(now_ms)
        for one in (self.home, *(session for _, session, _ in self._away.values())):
            one.resubscribe()
        if self._expiry is not None:
            self._expiry.cancel()
            self._expiry = None
        due_ms = self.relay.due_ms
        if due_ms is not None:
            loop = asyncio.get_running_loop()
            self._expiry = loop.call_later((due_ms - now_ms) / 1000, self._expire)

    def _end(self, session: Session, running: asyncio.Task[None]) -> None:
        """Close a session that is not used any more, beside what goes on."""
        for one in (asyncio.create_task(session.close()), running):
            self._ending.add(one)
            one.add_done_callback(self._ending.discard)

    def run(self) -> list[asyncio.Task[None]]:
        """Begin to connect, and go on for ever."""
        return [
            asyncio.create_task(one.run(), name=f"session {one.settings.cell}")
            for one in self.sessions
        ]

    async def close(self) -> None:
        """End every session."""
        for timer in (self._expiry, self._timing):
            if timer is not None:
                timer.cancel()
        away, self._away = self._away, {}
        closing = [one.close() for one in self.sessions]
        closing += [session.close() for _, session, _ in away.values()]
        await asyncio.gather(*closing)
        await asyncio.gather(*(running for *_, running in away.values()), *self._ending)

    def failure(self) -> str:
        """Say what is not connected; empty: everything is."""
        for one in self.sessions:
            if not one.connected:
                at = f"{one.settings.host}:{one.settings.port}"
                return f"no connection to the broker {one.last_failure or at}"
        return ""

    def counters(self) -> dict[str, int]:
        """Return what the sessions have counted."""
        named = {"mqtt": self.home}
        if self.uplink is not self.home:
            named["mqtt_uplink"] = self.uplink
        counted = {
            f"{name}_{field}": getattr(one.counters, field)
            for name, one in named.items()
            for field in one.counters.__struct_fields__
        }
        counted |= self.relay.counters | self._lately.counters
        if self.direct:
            counted["mqtt_direct_sent"] = sum(one.counters.sent for one in self.direct.values())
            heard = sum(one.counters.received for one in self.direct.values())
            counted["mqtt_direct_received"] = heard
        return counted

    # Out.

    def send(self, send: Send, sender: str) -> bool:
        """Send a message of a role to a node or a client; False: not now."""
        session = self._session_of(send, sender)
        topic = topic_of(session.settings.cell, send.to) if session is not None else None
        if session is None or topic is None:
            return False
        return session.send(
            topic,
            send.body,
            cause=send.cause,
            tenant=send.tenant,
            correlation=getattr(send.to, "correlation", b""),
        )

    def speak(self, own: str, frame: Linking) -> bool:
        """Put a frame of a link into the inbox of its receiver."""
        session = self.uplink
        topic = build(session.settings.cell, Party.ROLE, frame.receiver, Channel.INBOX)
        return session.send(topic, frame, cause="link", sender=own)

    def _session_of(self, send: Send, sender: str) -> Session | None:
        match send.to:
            case ToNode(node=node) | ToInvoke(node=node, cell=""):
                if self._host.roles[sender] is Role.TA:
                    return self.direct.get(self._cells.get(node, ""), self.home)
            case ToInvoke(cell=cell):
                return self._session_at(cell)
            case ToTopic(topic=topic):
                return self._session_at(_cell_of(topic))
        return self.home

    def _session_at(self, cell: str) -> Session | None:
        """Return who speaks at the broker of a cell."""
        if cell == self.plan.home.cell:
            return self.home
        away = self._away.get(cell)
        return away[1] if away is not None else self.direct.get(cell)

    # In.

    def _session(
        self, place: Place, filters: list[str] | Callable[[], list[str]], *, meeting: bool
    ) -> Session:
        hear = self._hear if place is self.plan.home else self._hear_directly
        return self._made(place, filters, self._hear_meeting(hear) if meeting else hear, meeting)

    def _away_session(self, place: Place) -> Session:
        def hear(inbound: Inbound) -> None:
            if self.relay.brings(inbound.topic, place.cell):
                self._pass_on(inbound.topic, inbound, self.home)
                self._keep(inbound)

        return self._made(place, lambda: self.relay.filters_at(place.cell), hear, False)

    def _made(
        self,
        place: Place,
        filters: list[str] | Callable[[], list[str]],
        hear: Callable[[Inbound], None],
        meeting: bool,
    ) -> Session:
        return Session(
            Settings(
                host=place.address.host,
                port=place.address.port,
                identity=self.plan.identity,
                speaker=Speaker.CONTROLLER,
                cell=place.cell,
                tls=place.tls,
                backoff=BACKOFF,
                queue_max=QUEUE_MAX,
                queue_max_bytes=QUEUE_MAX_BYTES,
            ),
            subscriptions=filters,
            on_message=hear,
            on_connected=lambda _: self._linker.wired() if meeting else None,
            on_disconnected=lambda _: None,
            # Frames of a controller are fenced by the store's owner, not by their connection.
            next_incarnation=lambda: self.plan.epoch,
        )

    def _hear_meeting(self, hear: Callable[[Inbound], None]) -> Callable[[Inbound], None]:
        def either(inbound: Inbound) -> None:
            if inbound.topic.party is not Party.ROLE:
                hear(inbound)
            elif isinstance(inbound.frame.body, Linking) and inbound.topic.name in self._ends:
                self._linker.hear(inbound.topic.name, inbound.frame.sender, inbound.frame.body)

        return either

    def _hear(self, inbound: Inbound) -> None:
        onward = self.relay.onward(inbound.topic, inbound.frame.body)
        if onward is not None:
            self._pass_on(onward, inbound, self._session_at(onward.cell))
            return
        if inbound.topic.channel in _DATA or inbound.topic.cell != self.plan.home.cell:
            return
        if inbound.topic.channel in FOLLOWED:
            self._keep(inbound)
            return
        if inbound.topic.channel is Channel.CATCHUP:
            self._catch_up(inbound.topic.name, inbound.frame.body)
            return
        role = role_of(inbound.topic, self._host.roles)
        if role is not None:
            self._host.post(
                role, received(inbound.frame, inbound.response_topic, inbound.correlation)
            )

    def _pass_on(self, topic: Topic, inbound: Inbound, session: Session | None) -> None:
        """Say a message at another broker, in the name of whoever has said it."""
        frame = inbound.frame
        sent = session is not None and session.send(
            topic,
            frame.body,
            cause=frame.cause,
            tenant=frame.tenant,
            response_topic=inbound.response_topic,
            correlation=inbound.correlation,
            sender=frame.sender,
        )
        # Nobody is told: whoever has asked asks again.
        carried = "relay_brought" if session is self.home else "relay_carried"
        self.relay.counters[carried if sent else "relay_unsent"] += 1

    def _keep(self, inbound: Inbound) -> None:
        """Keep what was published for nodes that are attached nowhere."""
        self._hand(self._lately.keep(inbound.topic, inbound.frame, monotonic_ms()))

    def _catch_up(self, node: str, body: Body) -> None:
        if isinstance(body, CatchUp):
            self._hand(self._lately.asked(node, body, self.relay.followed, monotonic_ms()))

    def _hand(self, values: Iterable[Late]) -> None:
        """Hand nodes what they have missed, where they are."""
        for one in values:
            session = self._session_at(one.cell)
            topic = build(one.cell, Party.NODE, one.node, Channel.MISSED)
            sent = session is not None and session.send(
                topic, one.body, cause=one.cause, tenant=one.tenant
            )
            if sent:
                self._lately.counters["missed_handed"] += 1
            else:
                self.relay.counters["relay_unsent"] += 1

    def _hear_directly(self, inbound: Inbound) -> None:
        role = next((name for name, one in self._host.roles.items() if one is Role.TA), None)
        if role is None or inbound.topic.party is not Party.NODE:
            return
        node = inbound.topic.name
        if node in self._cells or len(self._cells) < NODES_MAX:
            self._cells[node] = inbound.topic.cell
        self._host.post(role, received(inbound.frame))


def _cell_of(topic: str) -> str:
    try:
        return parse(topic).cell
    except UnknownTopic:
        return ""
