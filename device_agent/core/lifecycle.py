"""The life of one instance of a task on a node, as a table `(state, event) -> state`.

Theory of operation. An instance is one try to run one generation of a task. It fetches what it
needs (artifact and constants), has an executor deploy and start it, and is then ready for
invocations. Trouble (a failed fetch, a failed start, an exit of the executor) sends it to
`restarting`, where it waits for its backoff and begins anew with `fetching`; the artifact is cached
by then, so this is short. Trouble that repeating cannot mend, or too much of it within the window,
ends in `failed`: the instance stays there, with its reason, until it is released or a new
assignment replaces it. A release drains what runs and ends in `stopped`; where nothing runs yet,
it stops at once. Another generation, variant, provider or number of threads is an instance of its
own beside the old one. The old one serves its epoch until the new one is ready and for the grace of
the assignment; then it is released. At most two instances of a task are `ready`, each for another
epoch.

What is not in the table cannot happen; if it does, that is a bug of ours, and the error tells the
task's story.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final

from msgspec import Struct

from protocols.errors import TonaBug
from protocols.messages.task import InstanceState


class LifecycleEvent(StrEnum):
    """What can happen to an instance."""

    FETCHED = "fetched"
    STARTED = "started"
    TROUBLE = "trouble"
    GIVE_UP = "give-up"
    RETRY = "retry"
    RELEASE = "release"
    ENDED = "ended"


_S, _E = InstanceState, LifecycleEvent

TABLE: Final[dict[tuple[InstanceState, LifecycleEvent], InstanceState]] = {
    (_S.FETCHING, _E.FETCHED): _S.DEPLOYING,
    (_S.FETCHING, _E.TROUBLE): _S.RESTARTING,
    (_S.FETCHING, _E.GIVE_UP): _S.FAILED,
    (_S.FETCHING, _E.RELEASE): _S.STOPPED,
    (_S.DEPLOYING, _E.STARTED): _S.READY,
    (_S.DEPLOYING, _E.TROUBLE): _S.RESTARTING,
    (_S.DEPLOYING, _E.GIVE_UP): _S.FAILED,
    (_S.DEPLOYING, _E.RELEASE): _S.DRAINING,
    (_S.READY, _E.TROUBLE): _S.RESTARTING,
    (_S.READY, _E.GIVE_UP): _S.FAILED,
    (_S.READY, _E.RELEASE): _S.DRAINING,
    (_S.RESTARTING, _E.RETRY): _S.FETCHING,
    (_S.RESTARTING, _E.RELEASE): _S.STOPPED,
    (_S.DRAINING, _E.ENDED): _S.STOPPED,
    (_S.FAILED, _E.RELEASE): _S.STOPPED,
}


class Entry(Struct, frozen=True):
    """One line of a task's story: the state it came to, by which event, and that event's cause."""

    state: InstanceState
    event: str
    cause: str


def step(
    state: InstanceState, event: LifecycleEvent, task: str, story: Iterable[Entry]
) -> InstanceState:
    """Return the next state. Raises TonaBug, with the task's story, on an illegal event."""
    after = TABLE.get((state, event))
    if after is None:
        told = "; ".join(f"{one.event} -> {one.state} ({one.cause})" for one in story)
        raise TonaBug(f"task {task} cannot take {event.value!r} while {state.value}: {told}")
    return after
