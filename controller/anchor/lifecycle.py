"""The life of a task at its anchor.

Theory of operation. An order makes a task ACCEPTED: from its record on it is never lost. A
placement makes it PLACED: the scheduler holds an envelope. READY from its node makes it RUNNING. A
node that is lost or fails makes it MOVING, inside the envelope or, after an escalation, with a new
one. Where no node can run it, it is WAITING and is placed as soon as the fleet changes; nothing
but a delete ends it. DELETING waits for the scheduler to have been told; DELETED is a memory for
people. A new generation sends any living task through placement again, while the old one runs.
"""

from enum import StrEnum
from typing import Final

from controller.records import TaskState
from protocols.errors import TonaBug


class TaskEvent(StrEnum):
    """What can happen to a task."""

    ORDER = "order"
    PLACE = "place"
    READY = "ready"
    UNREADY = "unready"
    NO_NODE = "no-node"
    DELETE = "delete"
    FORGET = "forget"


_S, _E = TaskState, TaskEvent
_LIVING: Final = (_S.ACCEPTED, _S.PLACED, _S.RUNNING, _S.MOVING, _S.WAITING)

TABLE: Final[dict[tuple[TaskState, TaskEvent], TaskState]] = {
    # An order again, of a newer generation, keeps what runs; placement decides what changes.
    (_S.ACCEPTED, _E.ORDER): _S.ACCEPTED,
    (_S.PLACED, _E.ORDER): _S.PLACED,
    (_S.RUNNING, _E.ORDER): _S.RUNNING,
    (_S.MOVING, _E.ORDER): _S.MOVING,
    (_S.WAITING, _E.ORDER): _S.WAITING,
    (_S.ACCEPTED, _E.PLACE): _S.PLACED,
    (_S.PLACED, _E.PLACE): _S.PLACED,
    (_S.RUNNING, _E.PLACE): _S.RUNNING,
    (_S.MOVING, _E.PLACE): _S.MOVING,
    (_S.WAITING, _E.PLACE): _S.PLACED,
    (_S.PLACED, _E.READY): _S.RUNNING,
    (_S.RUNNING, _E.READY): _S.RUNNING,
    (_S.MOVING, _E.READY): _S.RUNNING,
    # The node may have come back before the TA found another.
    (_S.WAITING, _E.READY): _S.RUNNING,
    (_S.PLACED, _E.UNREADY): _S.PLACED,
    (_S.RUNNING, _E.UNREADY): _S.MOVING,
    (_S.MOVING, _E.UNREADY): _S.MOVING,
    (_S.WAITING, _E.UNREADY): _S.WAITING,
    (_S.ACCEPTED, _E.NO_NODE): _S.WAITING,
    (_S.PLACED, _E.NO_NODE): _S.WAITING,
    (_S.RUNNING, _E.NO_NODE): _S.RUNNING,
    (_S.MOVING, _E.NO_NODE): _S.WAITING,
    (_S.WAITING, _E.NO_NODE): _S.WAITING,
    **{(state, _E.DELETE): _S.DELETING for state in _LIVING},
    (_S.DELETING, _E.DELETE): _S.DELETING,
    (_S.DELETING, _E.READY): _S.DELETING,
    (_S.DELETING, _E.UNREADY): _S.DELETING,
    (_S.DELETING, _E.FORGET): _S.DELETED,
}


def advance(state: TaskState, event: TaskEvent, story: str = "") -> TaskState:
    """Return the next state. Raises TonaBug, with the task's story, for an illegal pair."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise TonaBug(f"a {state} task cannot take {event}; its story: {story}") from None
