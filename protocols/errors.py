"""Errors by blame: who has to act decides the type.

A fault of ours (`TonaBug`) stops the component loudly. Bad bytes or a broken rule of a peer
(`PeerError`) are counted and dropped. The environment's failures (`EnvironmentFailure`: a link, a
disk, a broker) are retried within a named bound. A request that cannot be served as asked is the
user's (`UserError`) and gets one sentence: what, where, what to do.
"""

from enum import StrEnum


class Blame(StrEnum):
    """Who owns a failure."""

    OURS = "ours"
    PEER = "peer"
    ENVIRONMENT = "environment"
    USER = "user"


class TonaError(Exception):
    """Root of every error raised on purpose; `blame` tells who has to act."""

    blame: Blame = Blame.OURS


class TonaBug(TonaError):
    """An invariant of ours is broken."""


class PeerError(TonaError):
    """A peer sent what the protocol does not allow."""

    blame = Blame.PEER


class OversizedFrame(PeerError):
    """The frame is larger than the bound of its channel."""


class UnknownVersion(PeerError):
    """The frame speaks a protocol version that we do not."""


class MalformedFrame(PeerError):
    """The bytes are no frame: truncated, of a wrong type, or out of range."""


class ForeignSender(PeerError):
    """The frame names another sender than its topic."""


class UnknownTopic(PeerError):
    """The topic is not in the table of topics."""


class EnvironmentFailure(TonaError):
    """A link, disk, process or broker failed; retrying within a bound is right."""

    blame = Blame.ENVIRONMENT


class UserError(TonaError):
    """The request cannot be served as asked; the text says what to do."""

    blame = Blame.USER
