"""Between the processes of a controller: links that keep order, remote calls, mirrored views.

Inside one process a role hears another one's messages in order, once, until the process ends. A
*link* gives two roles in different processes the same: numbered frames, acknowledged and repeated.
When either side has started anew, or too much has waited, the link begins anew and both roles are
told, so that they bring each other up to date.
"""

from typing import Annotated, Final

from msgspec import Meta

from protocols.base import Count, Id, Message, Name, Part, Text
from protocols.errors import Blame
from protocols.topics import INVOCATION_MAX_BYTES

BODY_MAX_BYTES: Final = INVOCATION_MAX_BYTES - 4096
FURTHER_MAX: Final = 63


class Linked(Part, frozen=True):
    """A further message of a `Linking`, or piece of one; its number is one above the one before."""

    tenant: Name
    """As in a frame."""
    cause: Text
    """As in a frame."""
    body: Annotated[bytes, Meta(max_length=BODY_MAX_BYTES)]
    """A message in MessagePack."""
    more: bool = False
    """Whether the body goes on in the next number."""


class Linking(Message, tag="linking", frozen=True):
    """A message of a role to another over a link; with an empty one the link is opened."""

    opening: Count
    """Which opening of the sender's side this belongs to; grows with every one."""
    peer_opening: Count
    """The receiver's opening as the sender knows it; 0: not known yet."""
    number: Count
    """From 1 within the opening; 0: carries nothing but the state of the link."""
    taken: Count
    """The highest number of the other side up to which all have been handed to the role."""
    receiver: Name
    """The role it is for."""
    tenant: Name = "default"
    """As in a frame."""
    cause: Text = ""
    """As in a frame."""
    body: Annotated[bytes, Meta(max_length=BODY_MAX_BYTES)] = b""
    """A message in MessagePack, or nothing."""
    more: bool = False
    """Whether the body goes on in the next number."""
    further: Annotated[tuple[Linked, ...], Meta(max_length=FURTHER_MAX)] = ()
    """What follows it, in this order: what is said at once travels together."""


class Mirror(Message, tag="mirror", frozen=True):
    """What people watch on one process, shown on another: the newest state of a view or record.

    One without a kind ends a beginning: what was not mirrored since is forgotten.
    """

    kind: Id
    key: Id
    value: Annotated[bytes, Meta(max_length=BODY_MAX_BYTES)] = b""
    """MessagePack of the struct in `controller.records`; empty: gone."""
    first: bool = False
    """Whether the mirror begins anew with this one."""


class RemoteCall(Message, tag="remote-call", frozen=True):
    """An operation that a role in another process serves."""

    call: Id
    operation: Id
    """Its name in the table of operations."""
    arguments: Annotated[bytes, Meta(max_length=BODY_MAX_BYTES)]
    """MessagePack of the arguments, as the table of operations types them."""
    unix_ms: Count = 0


class RemoteAnswer(Message, tag="remote-answer", frozen=True):
    """The answer to a remote call."""

    call: Id
    value: Annotated[bytes, Meta(max_length=BODY_MAX_BYTES)] = b""
    """MessagePack of the result."""
    error: Text = ""
    """Why there is none, for people."""
    blame: Blame | None = None
    """Whose fault the error is."""
    busy: bool = False
    """Whether only what is under way stands in the way: later the same may be done."""
