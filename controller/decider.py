"""The one door of every role: a batch of events in; records, messages, timers and views out.

`namo`, `ta` and `ts` are deciders. A decider has no clock, no randomness and no I/O: `now_ms` is
the host's monotonic clock, identifiers come with the events. The host makes the records durable
before it sends the messages and gives the answers, so nothing is promised that a crash can take
back. Two roles in one host exchange the same structs without a wire.
"""

from collections.abc import Iterable, Sequence
from enum import StrEnum
from typing import Any, Protocol

from msgspec import Struct

from protocols.errors import Blame
from protocols.messages import Body
from protocols.messages.mobility import CellPoint
from protocols.topics import Channel


class Role(StrEnum):
    """The logical functions that a host may run."""

    NAMO = "namo"
    TA = "ta"
    TS = "ts"


class Received(Struct, frozen=True):
    """A message of a node, a client or another role."""

    sender: str
    incarnation: int
    number: int
    tenant: str
    cause: str
    body: Body
    reply_to: str = ""
    """MQTT 5 response topic, when the message named one."""
    correlation: bytes = b""


class Fired(Struct, frozen=True):
    """A timer that this decider set is due."""

    key: str


class Called(Struct, frozen=True):
    """An operation of the table of operations, to be answered with the same `call`."""

    call: str
    operation: str
    arguments: Struct
    tenant: str
    cause: str
    unix_ms: int
    """Wall clock, for people only: no decision may rest on it."""


class Linked(Struct, frozen=True):
    """A role in another process has begun anew, or we have, as it sees it.

    What was said on the link before may be lost on either side: bring each other up to date.
    """

    role: str


class Abroad(Struct, frozen=True):
    """What this host has seen of the other cells in reach since the last time."""

    answers_ms: dict[str, float | None]
    """How long each one's broker took to answer, by cell; None: it has not answered."""
    asked: dict[str, int] = {}
    """Requests that were carried there, by service."""


Event = Received | Fired | Called | Linked | Abroad


class ToNode(Struct, frozen=True):
    """The command topic of a node."""

    node: str


class ToInvoke(Struct, frozen=True):
    """The invocation inbox of a node."""

    node: str
    cell: str = ""
    """Where the node is; empty: in our own."""


class ToRole(Struct, frozen=True):
    """The inbox of a role; a call when it lives in the same host."""

    role: str


class ToTopic(Struct, frozen=True):
    """The topic that a client named for its answer."""

    topic: str
    correlation: bytes = b""


class ToService(Struct, frozen=True):
    """Everyone who follows the route of a service."""

    service: str


Target = ToNode | ToInvoke | ToRole | ToTopic | ToService


class Send(Struct, frozen=True):
    """A message to send once the records of the same output are durable."""

    to: Target
    body: Body
    cause: str
    tenant: str = "default"


class Carry(Struct, frozen=True):
    """Have what is said to the inbox of a node that has left carried after it, to its new cell."""

    node: str
    cell: str
    """Where it is now; it must be one of those in reach."""
    for_ms: int
    """0: no more, it is back."""


class Record(Struct, frozen=True):
    """The newest state of one durable thing (a struct of `controller.records`); None: deleted."""

    kind: str
    key: str
    value: Struct | None
    cause: str


class View(Struct, frozen=True):
    """The newest state of one volatile thing that people watch; None: gone."""

    kind: str
    key: str
    value: Struct | None


class Timer(Struct, frozen=True):
    """Wake me with `Fired(key)` at `at_ms`; a later timer of the same key replaces it."""

    key: str
    at_ms: int | None
    """None: cancel."""


class Answer(Struct, frozen=True):
    """The result of a `Called` operation, or why there is none."""

    call: str
    value: Any = None
    error: str = ""
    blame: Blame | None = None
    busy: bool = False
    """Whether only what is under way stands in the way: later the same may be done."""


class Output(Struct):
    """What a decider wants done, in this order: `early`, records, then everything else."""

    records: list[Record] = []
    sends: list[Send] = []
    timers: list[Timer] = []
    answers: list[Answer] = []
    views: list[View] = []
    early: list[Send] = []
    """Leaves at once, before any record is durable: it may promise nothing, and a crash right after
    must do no harm.
    """
    reach: tuple[CellPoint, ...] | None = None
    """Cells that messages of this one are to be carried to; None: as before."""
    carries: list[Carry] = []
    """At once, as `early`: a node that has left takes nothing any more, whatever is durable."""
    learnt: list[Record] = []
    """Made durable soon, and nothing waits for it: what a crash takes back of it is told again by
    whoever has told it.
    """
    follows: tuple[tuple[str, Channel], ...] | None = None
    """What is brought from other cells, for nodes of this one take it in: service and channel of
    each; None: as before.
    """

    def extend(self, other: "Output") -> None:
        """Append everything that another output holds."""
        self.records += other.records
        self.sends += other.sends
        self.timers += other.timers
        self.answers += other.answers
        self.views += other.views
        self.early += other.early
        self.reach = self.reach if other.reach is None else other.reach
        self.carries += other.carries
        self.learnt += other.learnt
        self.follows = self.follows if other.follows is None else other.follows


class Decider(Protocol):
    """A role of the TONA network."""

    role: Role
    name: str

    def restore(self, records: Iterable[Record], now_ms: int) -> Output:
        """Take in the durable state, once, before the first event."""
        ...

    def handle(self, events: Sequence[Event], now_ms: int) -> Output:
        """Decide on a batch of events. Nothing else changes the state."""
        ...
