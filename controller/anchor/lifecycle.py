"""The life of a task at its anchor.

Theory of operation. *Deploy*: an order makes a task ACCEPTED: from its record on it is never lost.
A placement, which gives every task of the service a node or none of them, makes it PLACED: room
is reserved, and a scheduler holds the envelope. *Start*: when its node says that it is ready the
task is READY, and RUNNING as soon as all that feed it serve too. *Modify*: an order of a newer
generation makes a task that serves MODIFYING: the older generation serves until the newer one is
ready, on the same node where that is possible. *Monitor*: a node that is lost or fails makes it
MOVING, inside its envelope or into a new one. A scheduler that cannot keep its quality makes it
DEGRADED until the scheduler has been silent about it for long enough; where a person has to agree
to what would help it is in APPROVAL. Another cell makes it TRANSFERRING: the old scheduler serves
until every task of the service is ready at the new one, else the task returns.

What goes wrong while it is deployed: no node can take it, then it is WAITING; nodes could, and all
have failed to run it, then it is FAILED. Both are tried again, ever more rarely, and at once when
the fleet changes; but not an artifact that is itself at fault (`faults.py`), before the next
generation. Nothing but a *delete* ends a task. DELETING lasts until whoever runs it has been
told: the scheduler at once, the node itself where the anchor speaks to it. DELETED is a memory for
people.
"""

from enum import StrEnum
from typing import Final

from controller.records import TaskState
from protocols.errors import TonaBug


class TaskEvent(StrEnum):
    """What can happen to a task."""

    ORDER = "order"
    """NAMO wants a newer generation of it."""
    PLACE = "place"
    """There is an envelope, or another one."""
    NO_NODE = "no-node"
    """No node can take it, or its service as a whole."""
    FAIL = "fail"
    """Every node that could take it has failed to run it."""
    READY = "ready"
    """Its newest generation is ready on a node."""
    OLDER = "older"
    """An older generation is ready on a node."""
    START = "start"
    """It is ready, and what feeds it serves."""
    UNREADY = "unready"
    """Nothing of it is ready on any node."""
    DANGER = "danger"
    """Its scheduler cannot keep its quality."""
    KEPT = "kept"
    """Its scheduler has not complained for long."""
    ASK = "ask"
    """A person has to agree to what would help."""
    ANSWER = "answer"
    """The person has."""
    TRANSFER = "transfer"
    """Another scheduler prepares it while the old one serves."""
    RETURN = "return"
    """The other scheduler could not."""
    DELETE = "delete"
    FORGET = "forget"
    """Whoever runs it has been told."""


_S, _E = TaskState, TaskEvent
SERVING: Final = (_S.READY, _S.RUNNING, _S.MODIFYING, _S.DEGRADED, _S.APPROVAL, _S.TRANSFERRING)
"""Something of the task is ready on a node."""
STARTED: Final = SERVING[1:]
"""And so is what feeds it."""
HOMELESS: Final = (_S.ACCEPTED, _S.WAITING, _S.FAILED)
"""It has no node that could run it."""
_DEPLOYING: Final = (*HOMELESS, _S.PLACED, _S.MOVING)
_LIVING: Final = (*_DEPLOYING, *SERVING)
_WELL: Final = (_S.RUNNING, _S.DEGRADED, _S.APPROVAL)


def _same(event: TaskEvent, *states: TaskState) -> dict[tuple[TaskState, TaskEvent], TaskState]:
    return {(state, event): state for state in states}


def _all(
    event: TaskEvent, after: TaskState, *states: TaskState
) -> dict[tuple[TaskState, TaskEvent], TaskState]:
    return {(state, event): after for state in states}


TABLE: Final[dict[tuple[TaskState, TaskEvent], TaskState]] = {
    # Deploy.
    **_same(_E.ORDER, *_DEPLOYING),
    **_all(_E.PLACE, _S.PLACED, *HOMELESS),
    **_same(_E.PLACE, _S.PLACED, _S.MOVING, *SERVING),
    **_all(_E.NO_NODE, _S.WAITING, *_DEPLOYING),
    **_same(_E.NO_NODE, *SERVING),
    **_all(_E.FAIL, _S.FAILED, *_DEPLOYING),
    **_same(_E.FAIL, *SERVING),
    # Start. A node may come back before the anchor has found another one.
    **_all(_E.READY, _S.READY, *_DEPLOYING[1:], _S.READY, _S.MODIFYING, _S.TRANSFERRING),
    **_same(_E.READY, *_WELL),
    **_all(_E.START, _S.RUNNING, _S.READY),
    # Modify.
    **_all(_E.ORDER, _S.MODIFYING, *SERVING),
    (_S.TRANSFERRING, _E.ORDER): _S.TRANSFERRING,
    **_all(_E.OLDER, _S.MODIFYING, *_DEPLOYING[1:], *SERVING),
    # Monitor.
    **_all(_E.UNREADY, _S.MOVING, *SERVING),
    **_same(_E.UNREADY, *_DEPLOYING[1:]),
    **_all(_E.DANGER, _S.DEGRADED, _S.RUNNING, _S.DEGRADED),
    **_same(_E.DANGER, _S.READY, _S.MODIFYING, _S.APPROVAL, _S.TRANSFERRING, *_DEPLOYING),
    **_all(_E.KEPT, _S.RUNNING, _S.RUNNING, _S.DEGRADED),
    **_all(_E.ASK, _S.APPROVAL, *_WELL),
    **_all(_E.ANSWER, _S.DEGRADED, _S.APPROVAL),
    **_all(_E.TRANSFER, _S.TRANSFERRING, *SERVING),
    # What does not serve has nothing to keep: the other cell begins anew.
    **_all(_E.TRANSFER, _S.PLACED, *_DEPLOYING),
    **_all(_E.RETURN, _S.RUNNING, *SERVING),
    # Delete.
    **_all(_E.DELETE, _S.DELETING, *_LIVING, _S.DELETING),
    **_same(_E.READY, _S.DELETING),
    **_same(_E.OLDER, _S.DELETING),
    **_same(_E.UNREADY, _S.DELETING),
    **_all(_E.FORGET, _S.DELETED, _S.DELETING),
}


def advance(state: TaskState, event: TaskEvent, story: str = "") -> TaskState:
    """Return the next state. Raises TonaBug, with the task's story, for an illegal pair."""
    try:
        return TABLE[state, event]
    except KeyError:
        raise TonaBug(f"a {state} task cannot take {event}; its story: {story}") from None
