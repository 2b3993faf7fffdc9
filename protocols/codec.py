"""Frames: `[version, sender, incarnation, number, tenant, cause, body]` in MessagePack.

Decoding validates in one pass; only when that fails are the bytes looked at again, to say whether
it was the version or the peer. Errors carry blame (`protocols.errors`).
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import msgspec

from protocols.base import Count, Id, Name, Part
from protocols.errors import ForeignSender, MalformedFrame, OversizedFrame, TonaBug, UnknownVersion
from protocols.topics import Topic

if TYPE_CHECKING:
    from protocols.messages import Body

VERSION: Final = 1

_Heard = TypeVar("_Heard")


class Framed(Part, Generic[_Heard], frozen=True):
    """What stands around every message."""

    version: int
    """Of the protocol; a frame of another one is dropped."""
    sender: Name
    """Identity of who speaks; where the topic names one, the two must be equal."""
    incarnation: Count
    """Grows with every connection of this sender."""
    number: Count
    """Counts the sender's frames of this incarnation, from 0; a gap is a loss."""
    tenant: Name
    """On whose behalf; `default` where there are no others."""
    cause: Id
    """What set this off: an operation, a request, an event; it is passed on unchanged."""
    body: _Heard
    """The message, its tag first."""


if TYPE_CHECKING:
    Frame = Framed[Body]
else:
    Frame = Framed


class _Head(Part, frozen=True):
    """The one field that every version shares."""

    version: int


_encoder = msgspec.msgpack.Encoder()
_head_decoder = msgspec.msgpack.Decoder(_Head)


def encode(frame: Frame, max_bytes: int) -> bytes:
    """Encode a frame. Raises TonaBug when it exceeds the bound of its channel: ours to split."""
    payload = _encoder.encode(frame)
    if len(payload) > max_bytes:
        raise TonaBug(
            f"{type(frame.body).__name__} of {len(payload)} bytes exceeds its channel's {max_bytes}"
        )
    return payload


def decoder(heard: Any) -> Callable[[bytes, int], Frame]:
    """Return `decode` for who hears these messages alone; any other one is malformed to it."""
    read = msgspec.msgpack.Decoder(Framed[heard]).decode

    def decode(payload: bytes, max_bytes: int) -> Frame:
        if len(payload) > max_bytes:
            raise OversizedFrame(f"frame of {len(payload)} bytes, the bound is {max_bytes}")
        try:
            frame = read(payload)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _blame(payload, error) from None
        if frame.version != VERSION:
            raise UnknownVersion(f"frame of version {frame.version}, we speak {VERSION}")
        return frame

    return decode


def decode(payload: bytes, max_bytes: int) -> Frame:
    """Decode and validate a frame. Raises OversizedFrame, UnknownVersion or MalformedFrame."""
    return _every()(payload, max_bytes)


@cache
def _every() -> Callable[[bytes, int], Frame]:
    from protocols.messages import Body  # noqa: PLC0415 - a node has no memory for all of them

    return decoder(Body)


def _blame(payload: bytes, error: Exception) -> UnknownVersion | MalformedFrame:
    try:
        head = _head_decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return MalformedFrame(f"no frame: {error}")
    if head.version != VERSION:
        return UnknownVersion(f"frame of version {head.version}, we speak {VERSION}")
    return MalformedFrame(f"frame not valid: {error}")


def check_sender(frame: Frame, topic: Topic) -> None:
    """Hold the sender against a topic that its owner alone publishes. Raises ForeignSender."""
    if topic.rule.owner_publishes and frame.sender != topic.name:
        raise ForeignSender(f"{frame.sender!r} speaks on the topic of {topic.name!r}")
