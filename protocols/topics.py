"""The one table of topics: build and parse are inverses, QoS, size bound and ACL stand beside.

    tona/1/CELL/node/NODE/CHANNEL        a node speaks (up) or is spoken to (down)
    tona/1/CELL/client/CLIENT/CHANNEL    answers to a client
    tona/1/CELL/service/SERVICE/CHANNEL  requests for a service without a route; its routes
    tona/1/CELL/role/ROLE/CHANNEL        the inbox of a role: `ta-NAME`, `ts-NAME`, `namo-NAME`

No other module holds a topic literal. `%u` in an ACL pattern is the certificate's name.
"""

import re
from enum import StrEnum
from typing import Final, NamedTuple

from protocols.errors import TonaBug, UnknownTopic

ROOT: Final = "tona/1"
NAME_PATTERN: Final = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$(?!\n)"
"""Python's `$` also matches before a last newline; the look-ahead takes that back."""
CONTROL_MAX_BYTES: Final = 64 * 1024
INVOCATION_MAX_BYTES: Final = 192 * 1024
MISSED_MAX_BYTES: Final = INVOCATION_MAX_BYTES + 1024
"""What was published, and who has said it, where and when."""

_NAME = re.compile(NAME_PATTERN)


class Party(StrEnum):
    """Whom the third level of a topic names."""

    NODE = "node"
    CLIENT = "client"
    SERVICE = "service"
    ROLE = "role"


class Channel(StrEnum):
    """The last level of a topic."""

    PRESENCE = "presence"
    LOAD = "load"
    LINK = "link"
    STATUS = "status"
    RESULT = "result"
    PROBE = "probe"
    COMMAND = "command"
    INVOKE = "invoke"
    CATCHUP = "catchup"
    MISSED = "missed"
    REPLY = "reply"
    REQUEST = "request"
    ROUTE = "route"
    INPUT = "input"
    OUTPUT = "output"
    INBOX = "inbox"


class Speaker(StrEnum):
    """Which kind of identity publishes or subscribes; each has ACLs of its own."""

    NODE = "node"
    CLIENT = "client"
    CONTROLLER = "controller"


class Rule(NamedTuple):
    """What holds on one kind of topic."""

    qos: int
    max_bytes: int
    publishers: tuple[Speaker, ...]
    """Who may publish anywhere in the family."""
    owner_publishes: bool
    """Whether the party named in the topic may publish there."""
    owner_subscribes: bool
    """Whether the party named in the topic may subscribe there."""
    subscribers: tuple[Speaker, ...]
    """Who may subscribe anywhere in the family."""


_NODE, _CLIENT, _CONTROLLER = Speaker.NODE, Speaker.CLIENT, Speaker.CONTROLLER

TABLE: Final[dict[tuple[Party, Channel], Rule]] = {
    # What a node says of itself. Only presence and status are worth a broker's acknowledgement:
    # the next load or link report replaces a lost one.
    (Party.NODE, Channel.PRESENCE): Rule(1, CONTROL_MAX_BYTES, (), True, False, (_CONTROLLER,)),
    (Party.NODE, Channel.LOAD): Rule(0, CONTROL_MAX_BYTES, (), True, False, (_CONTROLLER,)),
    (Party.NODE, Channel.LINK): Rule(0, CONTROL_MAX_BYTES, (), True, False, (_CONTROLLER,)),
    (Party.NODE, Channel.STATUS): Rule(1, CONTROL_MAX_BYTES, (), True, False, (_CONTROLLER,)),
    # The ends of jobs, repeated by the node until they are acknowledged.
    (Party.NODE, Channel.RESULT): Rule(0, INVOCATION_MAX_BYTES, (), True, False, (_CONTROLLER,)),
    # A node measures its path by speaking to itself through the broker.
    (Party.NODE, Channel.PROBE): Rule(0, 256, (), True, True, ()),
    (Party.NODE, Channel.COMMAND): Rule(1, CONTROL_MAX_BYTES, (_CONTROLLER,), False, True, ()),
    # Requests come from clients with a route, from the TS, and from the node of the step before.
    # Whoever asks repeats by the same id until the answer: a broker's acknowledgement would add
    # half as much work again and prove nothing.
    (Party.NODE, Channel.INVOKE): Rule(
        0, INVOCATION_MAX_BYTES, (_CLIENT, _CONTROLLER, _NODE), False, True, (_CONTROLLER,)
    ),
    # A node that was attached nowhere asks the gateways of its cells for what was published
    # meanwhile; they carry the question to the cell that it names, and answer where the node is.
    (Party.NODE, Channel.CATCHUP): Rule(
        1, CONTROL_MAX_BYTES, (_CONTROLLER,), True, False, (_CONTROLLER,)
    ),
    (Party.NODE, Channel.MISSED): Rule(0, MISSED_MAX_BYTES, (_CONTROLLER,), False, True, ()),
    # Gateways hear requests and answers to carry them to the cell that they are for.
    (Party.CLIENT, Channel.REPLY): Rule(
        0, INVOCATION_MAX_BYTES, (_NODE, _CONTROLLER), False, True, (_CONTROLLER,)
    ),
    # A gateway says there what clients of its own cell ask of services of another one.
    (Party.SERVICE, Channel.REQUEST): Rule(
        1, INVOCATION_MAX_BYTES, (_CLIENT, _CONTROLLER), False, False, (_CONTROLLER,)
    ),
    (Party.SERVICE, Channel.ROUTE): Rule(
        1, CONTROL_MAX_BYTES, (_CONTROLLER,), False, False, (_CLIENT,)
    ),
    # What feeds a service without a request, and what it gives without a requester. Gateways bring
    # it from the cell that the topic names, and say it in theirs on the same topic.
    (Party.SERVICE, Channel.INPUT): Rule(
        0, INVOCATION_MAX_BYTES, (_CLIENT, _NODE, _CONTROLLER), False, False, (_NODE, _CONTROLLER)
    ),
    (Party.SERVICE, Channel.OUTPUT): Rule(
        0, INVOCATION_MAX_BYTES, (_NODE, _CONTROLLER), False, False, (_CLIENT, _NODE, _CONTROLLER)
    ),
    (Party.ROLE, Channel.INBOX): Rule(
        1, INVOCATION_MAX_BYTES, (_CONTROLLER,), False, False, (_CONTROLLER,)
    ),
}


class Topic(NamedTuple):
    """One concrete topic, taken apart."""

    cell: str
    party: Party
    name: str
    channel: Channel

    @property
    def rule(self) -> Rule:
        """The rule of this topic's family."""
        return TABLE[self.party, self.channel]

    def __str__(self) -> str:
        return f"{ROOT}/{self.cell}/{self.party.value}/{self.name}/{self.channel.value}"


def valid_name(name: str) -> bool:
    """Whether `name` may stand as one level of a topic."""
    return _NAME.fullmatch(name) is not None


def build(cell: str, party: Party, name: str, channel: Channel) -> Topic:
    """Build a topic of the table.

    Raises TonaBug when a name is no topic level or the pair is not in the table: names are checked
    where they enter the system, so an invalid one here is ours.
    """
    if (party, channel) not in TABLE:
        raise TonaBug(f"no topic family {party}/{channel}")
    for part in (cell, name):
        if not valid_name(part):
            raise TonaBug(f"{part!r} cannot be a level of a topic")
    return Topic(cell, party, name, channel)


def parse(topic: str) -> Topic:
    """Take a topic apart; the inverse of `str(build(...))`. Raises UnknownTopic."""
    levels = topic.split("/")
    if len(levels) != 6 or "/".join(levels[:2]) != ROOT:  # noqa: PLR2004 - the table's six levels
        raise UnknownTopic(f"topic {topic[:120]!r} is not of this protocol")
    cell, party, name, channel = levels[2:]
    try:
        key = Party(party), Channel(channel)
    except ValueError:
        raise UnknownTopic(f"topic {topic[:120]!r} names no known channel") from None
    if key not in TABLE or not valid_name(cell) or not valid_name(name):
        raise UnknownTopic(f"topic {topic[:120]!r} is not in the table of topics")
    return Topic(cell, key[0], name, key[1])


def wildcard(cell: str, party: Party, channel: Channel) -> str:
    """Return the filter that matches one family in one cell, every name."""
    if (party, channel) not in TABLE:
        raise TonaBug(f"no topic family {party}/{channel}")
    return f"{ROOT}/{cell}/{party.value}/+/{channel.value}"


def source_topic(service: str, source: str) -> tuple[str, Channel, str]:
    """Return service, channel and port that a topic source names; the first empty: none.

    `SERVICE.OUTPUT` is an output of another service; with the fed service's own name it is what is
    sent to its input.
    """
    named, _, port = source.rpartition(".")
    if not valid_name(named):
        return "", Channel.OUTPUT, port
    return named, Channel.INPUT if named == service else Channel.OUTPUT, port


def anywhere(party: Party, name: str, channel: Channel) -> str:
    """Return the filter that matches what one party is said, or says, in every cell."""
    topic = build("x", party, name, channel)
    return f"{ROOT}/+/{party.value}/{topic.name}/{channel.value}"


def filter_qos(wanted: str) -> int:
    """Return the QoS to subscribe a filter with: its family's, or 1 when it names no family.

    Brokers are to lower a message to the subscription's QoS, but some raise it to that.
    """
    levels = wanted.split("/")
    try:
        return TABLE[Party(levels[3]), Channel(levels[5])].qos
    except (IndexError, KeyError, ValueError):
        return 1


class AclLine(NamedTuple):
    """One permission of an identity: `access` is `read` or `write`; `%u` is its own name."""

    access: str
    pattern: str


def acl(speaker: Speaker) -> list[AclLine]:
    """Return what an identity of this kind may do, derived from the table.

    An owner is bound to its own certificate name, so a valid node cannot speak for another one.
    """
    lines: list[AclLine] = []
    for (party, channel), rule in TABLE.items():
        anyone = f"{ROOT}/+/{party.value}/+/{channel.value}"
        own = f"{ROOT}/+/{party.value}/%u/{channel.value}"
        owner = party.value == speaker.value
        if speaker in rule.publishers:
            lines.append(AclLine("write", anyone))
        elif owner and rule.owner_publishes:
            lines.append(AclLine("write", own))
        if speaker in rule.subscribers:
            lines.append(AclLine("read", anyone))
        elif owner and rule.owner_subscribes:
            lines.append(AclLine("read", own))
    return lines
