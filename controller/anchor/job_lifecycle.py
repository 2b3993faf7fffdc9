"""The life of an open job at its anchor.

Theory of operation. A job WAITS in the line of its service until there is a scheduler and credit;
then it is RUNNING, which ends with outputs or a failure for good, or with a failure that may pass:
then it is PAUSED for a while, and waits again under the number of its next attempt. A client, a
deadline or the end of the service may end it wherever it stands. OVER is a record that whoever asks
is answered from.
"""

from enum import StrEnum
from typing import Final

from protocols.errors import TonaBug


class Phase(StrEnum):
    """Where a job stands."""

    WAITING = "waiting"
    RUNNING = "running"
    PAUSED = "paused"
    OVER = "over"


class JobEvent(StrEnum):
    """What can happen to a job."""

    START = "start"
    """It is its turn."""
    FAIL = "fail"
    """Its run failed in a way that may pass."""
    DUE = "due"
    """Its pause is over."""
    END = "end"
    """It is done, failed for good, or cancelled."""


TABLE: Final[dict[tuple[Phase, JobEvent], Phase]] = {
    (Phase.WAITING, JobEvent.START): Phase.RUNNING,
    (Phase.RUNNING, JobEvent.FAIL): Phase.PAUSED,
    (Phase.PAUSED, JobEvent.DUE): Phase.WAITING,
    (Phase.WAITING, JobEvent.END): Phase.OVER,
    (Phase.RUNNING, JobEvent.END): Phase.OVER,
    (Phase.PAUSED, JobEvent.END): Phase.OVER,
}


def advance(phase: Phase, event: JobEvent, job: str) -> Phase:
    """Return the next phase. Raises TonaBug for an illegal pair."""
    try:
        return TABLE[phase, event]
    except KeyError:
        raise TonaBug(f"job {job!r} is {phase} and cannot take {event}") from None
