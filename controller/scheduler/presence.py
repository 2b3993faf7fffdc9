"""The life of a node as its scheduler sees it.

Theory of operation. A birth opens it; its incarnation fences whatever an older connection still
says. A will is a hint: some brokers publish it at a mere takeover, so it only makes the node
SUSPECT, and a rebirth request asks whether it lives. Any message of the same incarnation answers
that. Silence does the same as a will, later. A suspect that stays silent is LOST; so is one that
said farewell. A lost node comes back by birth only. One that has said which cell serves it now is
MOVED: its tasks run on there, nobody replaces them, and their anchor says when they are no more
ours; where it turns up in no cell for long it is LOST. DRAINING is a wish of the operator, kept
in the node's record: a lost node that comes back is DRAINING again, until the operator ends it.
"""

from enum import StrEnum
from typing import Final

from protocols.errors import TonaBug
from protocols.messages.hierarchy import NodeState


class NodeEvent(StrEnum):
    """What can happen to a node."""

    BIRTH = "birth"
    HEARD = "heard"
    WILL = "will"
    SILENCE = "silence"
    TIMEOUT = "timeout"
    FAREWELL = "farewell"
    DRAIN = "drain"
    RESUME = "resume"
    MOVE = "move"
    """It has said farewell and where it goes."""


_ON, _SUS, _DRAIN, _LOST, _MOVED = (
    NodeState.ONLINE,
    NodeState.SUSPECT,
    NodeState.DRAINING,
    NodeState.LOST,
    NodeState.MOVED,
)

TABLE: Final[dict[tuple[NodeState, NodeEvent], NodeState]] = {
    (_ON, NodeEvent.BIRTH): _ON,
    (_ON, NodeEvent.HEARD): _ON,
    (_ON, NodeEvent.WILL): _SUS,
    (_ON, NodeEvent.SILENCE): _SUS,
    (_ON, NodeEvent.FAREWELL): _LOST,
    (_ON, NodeEvent.DRAIN): _DRAIN,
    (_SUS, NodeEvent.BIRTH): _ON,
    (_SUS, NodeEvent.HEARD): _ON,
    (_SUS, NodeEvent.WILL): _SUS,
    (_SUS, NodeEvent.SILENCE): _SUS,
    (_SUS, NodeEvent.TIMEOUT): _LOST,
    (_SUS, NodeEvent.FAREWELL): _LOST,
    (_SUS, NodeEvent.DRAIN): _DRAIN,
    (_DRAIN, NodeEvent.BIRTH): _DRAIN,
    (_DRAIN, NodeEvent.HEARD): _DRAIN,
    (_DRAIN, NodeEvent.WILL): _DRAIN,
    (_DRAIN, NodeEvent.SILENCE): _DRAIN,
    (_DRAIN, NodeEvent.TIMEOUT): _LOST,
    (_DRAIN, NodeEvent.FAREWELL): _LOST,
    (_DRAIN, NodeEvent.DRAIN): _DRAIN,
    (_DRAIN, NodeEvent.RESUME): _ON,
    (_LOST, NodeEvent.BIRTH): _ON,
    (_LOST, NodeEvent.WILL): _LOST,
    (_LOST, NodeEvent.FAREWELL): _LOST,
    (_LOST, NodeEvent.MOVE): _LOST,
    (_ON, NodeEvent.MOVE): _MOVED,
    (_SUS, NodeEvent.MOVE): _MOVED,
    (_DRAIN, NodeEvent.MOVE): _MOVED,
    (_MOVED, NodeEvent.BIRTH): _ON,
    (_MOVED, NodeEvent.WILL): _MOVED,
    (_MOVED, NodeEvent.MOVE): _MOVED,
    (_MOVED, NodeEvent.FAREWELL): _LOST,
    (_MOVED, NodeEvent.TIMEOUT): _LOST,
}


def advance(state: NodeState, event: NodeEvent) -> NodeState:
    """Return the next state. Raises TonaBug for a pair the table does not have."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise TonaBug(f"node {state} cannot take {event}") from None
