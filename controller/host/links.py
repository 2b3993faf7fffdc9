"""All links of a host: between its own roles and those of other processes. Pure.

One door: `Links.handle(event, now_ms) -> commands`. A message is cut into pieces that fit the wire
and put together again on the other side. What is said leaves with `Due`, which is due at once then:
what is said in one turn travels together.
"""

from collections.abc import Callable
from typing import Final

import msgspec
from msgspec import Struct

from controller.host.link import COUNTERS, Link, Said
from protocols.messages import Body, LeaseRequest, Linking, NodeSummary, RemoteCall

PIECE_BYTES: Final = 128 * 1024
MESSAGE_MAX_BYTES: Final = 16 << 20
MAX_LINKS: Final = 4096
"""Pairs of roles; a stranger beyond them is counted and not heard."""

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Body)


class Say(Struct, frozen=True):
    """A role of this host has a message for a role elsewhere."""

    own: str
    peer: str
    tenant: str
    cause: str
    body: Body


class Hear(Struct, frozen=True):
    """A frame has come for a role of this host."""

    own: str
    peer: str
    frame: Linking


class Open(Struct, frozen=True):
    """A role of this host knows of one elsewhere."""

    own: str
    peer: str


class Wired(Struct, frozen=True):
    """The wire is up again: what waits for an answer is said at once."""


class Due(Struct, frozen=True):
    """The time of `due_ms` has come."""


Event = Say | Hear | Open | Wired | Due


class Dispatch(Struct, frozen=True):
    """Put a frame on the wire, into the inbox of its receiver."""

    own: str
    frame: Linking


class Hand(Struct, frozen=True):
    """Hand a message to a role of this host."""

    own: str
    peer: str
    tenant: str
    cause: str
    body: Body


class Up(Struct, frozen=True):
    """A link is bound anew: tell the role of this host."""

    own: str
    peer: str


Command = Dispatch | Hand | Up


class Links:
    """Every link of one host; `opening` is above all of its earlier lives, with a random end.

    The random end keeps apart two lives that both have lost their memory.
    """

    def __init__(self, opening: int) -> None:
        self.counters = {
            "links_bound": 0,
            "links_bad_message": 0,
            "links_too_large": 0,
            "links_too_many": 0,
            **COUNTERS,
        }
        self._opening = opening
        self._links: dict[tuple[str, str], Link] = {}
        self._due: dict[tuple[str, str], int] = {}
        self._pieces: dict[tuple[str, str], list[bytes]] = {}

    @property
    def due_ms(self) -> int | None:
        """When `Due` is to be said at the latest; None: there is no link."""
        return min(self._due.values(), default=None)

    def waiting(self, own: str, peer: str) -> tuple[int, int]:
        """Return how many messages, and bytes of them, are not known to be taken."""
        link = self._links.get((own, peer))
        return (link.queued, link.queued_bytes) if link is not None else (0, 0)

    def silent_ms(self, own: str, peer: str, now_ms: int) -> int:
        """Return how long a role elsewhere was not heard; 0 when there is no link to it."""
        link = self._links.get((own, peer))
        return now_ms - link.heard_ms if link is not None else 0

    def bound(self, own: str, peer: str) -> bool:
        """Whether a link stands, as this side knows."""
        link = self._links.get((own, peer))
        return link is not None and link.bound

    def handle(self, event: Event, now_ms: int) -> list[Command]:
        """Take an event in and return what is to be done, in this order."""
        match event:
            case Say():
                return self._say(event, now_ms)
            case Hear():
                return self._hear(event, now_ms)
            case Open(own=own, peer=peer):
                return self._flush((own, peer), now_ms) if self._at(own, peer, now_ms) else []
            case Wired():
                return self._every(lambda link: link.wake(now_ms), now_ms)
            case Due():
                return self._every(None, now_ms)

    def _say(self, say: Say, now_ms: int) -> list[Command]:
        link = self._at(say.own, say.peer, now_ms)
        body = _encoder.encode(say.body)
        if link is None:
            return []
        if len(body) > MESSAGE_MAX_BYTES:
            self.counters["links_too_large"] += 1
            return []
        starts = range(0, len(body), PIECE_BYTES)
        slot = _slot(say.body)
        pieces = [
            Said(say.tenant, say.cause, body[at : at + PIECE_BYTES], at != starts[-1], slot)
            for at in starts
        ]
        link.say(pieces, now_ms, urgent=isinstance(say.body, LeaseRequest))
        self._due[say.own, say.peer] = now_ms if link.ready else link.due_ms
        return []

    def _hear(self, hear: Hear, now_ms: int) -> list[Command]:
        link = self._at(hear.own, hear.peer, now_ms)
        if link is None:
            return []
        commands: list[Command] = []
        key = hear.own, hear.peer
        new, said = link.hear(hear.frame, now_ms)
        if new:
            self._pieces.pop(key, None)
            self.counters["links_bound"] += 1
            commands.append(Up(*key))
        for one in said:
            self._put_together(key, one, commands)
        if new:
            # What the role says as it hears of the link travels with what has waited for it.
            self._due[key] = now_ms
            return commands
        return commands + self._flush(key, now_ms)

    def _put_together(self, key: tuple[str, str], said: Said, commands: list[Command]) -> None:
        pieces = self._pieces.setdefault(key, [])
        pieces.append(said.body)
        if sum(map(len, pieces)) > MESSAGE_MAX_BYTES:
            pieces.clear()
            self.counters["links_too_large"] += 1
        if said.more:
            return
        del self._pieces[key]
        try:
            body = _decoder.decode(b"".join(pieces))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            self.counters["links_bad_message"] += 1
            return
        commands.append(Hand(*key, said.tenant, said.cause, body))

    def _at(self, own: str, peer: str, now_ms: int) -> Link | None:
        key = own, peer
        link = self._links.get(key)
        if link is None:
            if len(self._links) >= MAX_LINKS:
                self.counters["links_too_many"] += 1
                return None
            link = self._links[key] = Link(peer, self._opening, now_ms, self.counters)
        return link

    def _every(self, first: Callable[[Link], None] | None, now_ms: int) -> list[Command]:
        commands: list[Command] = []
        for key, link in self._links.items():
            if first is not None:
                first(link)
            if first is not None or self._due[key] <= now_ms:
                commands += self._flush(key, now_ms)
        return commands

    def _flush(self, key: tuple[str, str], now_ms: int) -> list[Command]:
        link = self._links[key]
        frames: list[Command] = [Dispatch(key[0], one) for one in link.frames(now_ms)]
        self._due[key] = link.due_ms
        return frames


def _slot(body: Body) -> str:
    """Return what a message is the newest word about; empty: each of its kind counts."""
    match body:
        case NodeSummary(node=node):
            return f"node/{node}"
        case LeaseRequest():
            return "lease"
        case RemoteCall(call=call):
            return f"call/{call}"
    return ""
