"""Complaints: what the envelope cannot hold, told upwards once and repeated rarely."""

from typing import Final

from msgspec import Struct

from controller.decider import ToRole
from controller.desk import Desk
from controller.scheduler.copies import TaskEntry
from controller.scheduler.danger import Danger
from protocols.messages import Escalation, EscalationAnswer
from protocols.messages.hierarchy import Attempt
from protocols.messages.quality import Leeway

AGAIN_MS: Final = 5000
AGAIN_MAX_MS: Final = 60_000
"""While a danger lasts it is told again within these bounds, ever more rarely."""
MAX_ATTEMPTS: Final = 32


class _Complaint(Struct):
    attempts: list[Attempt] = []
    said_ms: int = 0
    times: int = 0
    number: str = ""


class Complaints:
    """By task: what was tried, and what was said of it."""

    def __init__(self, desk: Desk) -> None:
        self._desk = desk
        self._complaints: dict[str, _Complaint] = {}
        self._serial = 0

    def tried(self, task: str, action: str, outcome: str) -> None:
        """Remember an attempt; the newest ones are told."""
        attempts = self._complaints.setdefault(task, _Complaint()).attempts
        attempts.append(Attempt(action, outcome[:500]))
        del attempts[:-MAX_ATTEMPTS]

    def drop(self, task: str) -> None:
        """Forget what was tried: the danger is over, or the envelope is another one."""
        self._complaints.pop(task, None)

    def raised(self, task: str) -> bool:
        """Whether the anchor was told of a task's danger, and not yet that it is over."""
        one = self._complaints.get(task)
        return one is not None and one.times > 0

    def say(
        self,
        entry: TaskEntry,
        danger: Danger,
        rejected: list[tuple[str, str]],
        cause: str,
        problem: str = "",
    ) -> None:
        """Tell the anchor, unless it was told not long ago."""
        one = self._complaints.setdefault(entry.task, _Complaint())
        wait_ms = min(AGAIN_MAX_MS, AGAIN_MS << max(0, min(one.times, 16) - 1))
        if one.times and self._desk.now_ms - one.said_ms < wait_ms:
            return
        one.said_ms, one.times = self._desk.now_ms, one.times + 1
        self._serial += 1
        one.number = f"{self._desk.name}/{entry.task}/quality-{self._desk.now_ms}-{self._serial}"
        tried = {attempt.action for attempt in one.attempts}
        attempts = [
            *one.attempts,
            *(Attempt(action, why) for action, why in rejected if action not in tried),
        ]
        body = Escalation(
            one.number[-128:],
            entry.task,
            entry.grant.generation,
            problem or f"{danger}, and {_why(entry)}",
            tuple(attempts[:64]),
            epoch_seen=entry.next_epoch - 1,
            indicator=danger.indicator,
            target=danger.target or None,
            measured=danger.measured if danger.target else None,
            broken=danger.broken,
        )
        one.number = body.number
        self._desk.tell(ToRole(entry.anchor), body, cause, entry.tenant)

    def answered(self, answer: EscalationAnswer) -> None:
        """Take in what the anchor says; a new envelope, if there is one, clears the complaint."""
        one = self._complaints.get(answer.task)
        if one is not None and one.number == answer.number:
            one.number, one.said_ms = "", self._desk.now_ms
            if answer.granted:
                # Something is done about it: if that does not help it is told soon.
                one.times = 1


def _why(entry: TaskEntry) -> str:
    """Say why nothing is done about it here: without any leeway it is not for want of trying."""
    if entry.grant.leeway == Leeway(moves=False):
        return "the scheduler may change nothing by itself (autonomy manual)"
    return "nothing inside the envelope helps"
