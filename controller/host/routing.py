"""From MQTT messages to roles and back: pure, so that the twin routes as production does."""

from collections.abc import Iterable
from typing import Final

from controller.decider import (
    Received,
    Role,
    Target,
    ToInvoke,
    ToNode,
    ToRole,
    ToService,
    ToTopic,
)
from protocols.codec import Frame
from protocols.errors import UnknownTopic
from protocols.topics import Channel, Party, Topic, build, parse, wildcard

_SENSED: Final = (
    Channel.PRESENCE,
    Channel.LOAD,
    Channel.LINK,
    Channel.STATUS,
    Channel.RESULT,
)


def subscriptions(cell: str, roles: dict[str, Role]) -> list[str]:
    """Return the filters of nodes and clients that a host of these roles (by name) listens to."""
    if Role.TS not in roles.values():
        return []
    filters = [wildcard(cell, Party.NODE, channel) for channel in _SENSED]
    return [*filters, wildcard(cell, Party.SERVICE, Channel.REQUEST)]


def inboxes(cell: str, names: Iterable[str]) -> list[str]:
    """Return the filters of what other processes say to these."""
    return [str(build(cell, Party.ROLE, name, Channel.INBOX)) for name in sorted(names)]


def heard_directly(cell: str) -> list[str]:
    """Return the filters of what a TA hears of nodes itself, beside their TS."""
    return [wildcard(cell, Party.NODE, channel) for channel in (Channel.PRESENCE, Channel.STATUS)]


def role_of(topic: Topic, roles: dict[str, Role]) -> str | None:
    """Return the name of the local role that hears this topic; None when nobody does."""
    if topic.party is Party.ROLE:
        return topic.name if topic.name in roles else None
    return next((name for name, role in roles.items() if role is Role.TS), None)


def received(frame: Frame, response_topic: str = "", correlation: bytes = b"") -> Received:
    """Return the event that a frame is to a role."""
    return Received(
        frame.sender,
        frame.incarnation,
        frame.number,
        frame.tenant,
        frame.cause,
        frame.body,
        response_topic,
        correlation,
    )


def topic_of(cell: str, target: Target) -> Topic | None:
    """Return the topic of a target; None when a client named one that is no reply topic."""
    match target:
        case ToNode(node=node):
            return build(cell, Party.NODE, node, Channel.COMMAND)
        case ToInvoke(node=node, cell=there):
            return build(there or cell, Party.NODE, node, Channel.INVOKE)
        case ToRole(role=role):
            return build(cell, Party.ROLE, role, Channel.INBOX)
        case ToService(service=service):
            return build(cell, Party.SERVICE, service, Channel.ROUTE)
        case ToTopic(topic=text):
            try:
                topic = parse(text)
            except UnknownTopic:
                return None
            return topic if topic.channel is Channel.REPLY else None
