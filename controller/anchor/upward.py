"""What an anchor tells NAMO: how its services fare, coarsely, and what it cannot mend itself."""

from collections.abc import Sequence
from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from controller.anchor.lifecycle import HOMELESS, STARTED, TaskEvent
from controller.records import Asked, TaskRecord, TaskState
from protocols.messages import Escalation, ServiceReport
from protocols.messages.hierarchy import Attempt, ServiceState

MAX_ATTEMPTS: Final = 64
TEXT_LENGTH: Final = 2000

_S = TaskState


class Upward:
    """The voice of an anchor towards NAMO."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self._reported: dict[str, tuple[int, ServiceState, str]] = {}
        self._asked = 0

    def report(self, service: str, cause: str, *, again: bool = False) -> None:
        """Report on a service when its state or reason is another one, or always."""
        held = self._book.services.get(service)
        if held is None:
            return
        tasks = self._book.ordered(service)
        state, reason = _state(tasks)
        missing = {one.input for one in held.order.sources} - {one.input for one in held.sources}
        if state is ServiceState.RUNNING and missing:
            named = ", ".join(sorted(missing))
            state, reason = ServiceState.DEGRADED, f"no node of its cell provides input {named}"
            known = self._book.unfed.get(service)
            if known:
                reason = "; ".join(f"input {name} is not fed: {why}" for name, why in known.items())
        reason = reason[:TEXT_LENGTH]
        key = (held.order.generation, state, reason)
        if again or self._reported.get(service) != key:
            self._reported[service] = key
            high = max((one.epoch_high for one in tasks), default=0)
            report = ServiceReport(service, held.order.generation, state, reason, high)
            self._book.desk.tell_role(held.namo, report, cause, held.tenant)

    def report_all(self, namo: str, cause: str) -> None:
        """Bring a NAMO up to date that has begun anew: services, and what waits for its answer."""
        for service, held in self._book.services.items():
            if held.namo == namo:
                self.report(service, cause, again=True)
        for task in list(self._book.tasks.values()):
            held_by = self._book.services.get(task.service)
            if task.asked is not None and held_by is not None and held_by.namo == namo:
                self._say(task, task.asked, (), cause)

    def deleted(self, service: str, generation: int, to: str, cause: str, tenant: str) -> None:
        """Tell whoever asked that a service is over."""
        self._reported.pop(service, None)
        report = ServiceReport(service, generation, ServiceState.DELETED)
        self._book.desk.tell_role(to, report, cause, tenant)

    def escalate(
        self,
        task: TaskRecord,
        problem: str,
        attempts: Sequence[Attempt],
        cause: str,
        *,
        proposal: str = "",
        of: Escalation | None = None,
        person: bool = False,
    ) -> None:
        """Ask NAMO, with everything that was tried below; its answer names the number.

        With a proposal a person may agree to it, and the task waits in APPROVAL for that.
        """
        self._asked += 1
        number = f"{self._book.desk.name}/{task.spec.task}/{task.epoch_high}.{self._asked}"
        asked = Asked(number, problem[:TEXT_LENGTH], proposal[:TEXT_LENGTH], person)
        if proposal:
            task = self._book.after(task, TaskEvent.ASK)
        task = self._book.put(structs.replace(task, asked=asked), cause)
        detail = f"{problem}; proposes to {proposal}" if proposal else problem
        self._book.tell(task.spec.task, "asked NAMO", detail, cause)
        self._say(task, asked, attempts, cause, of)

    def _say(
        self,
        task: TaskRecord,
        asked: Asked,
        attempts: Sequence[Attempt],
        cause: str,
        of: Escalation | None = None,
    ) -> None:
        held = self._book.services[task.service]
        body = Escalation(
            asked.number,
            task.spec.task,
            task.generation,
            asked.problem,
            tuple(attempts[-MAX_ATTEMPTS:]),
            task.epoch_high,
            of.indicator if of is not None else "",
            of.target if of is not None else None,
            of.measured if of is not None else None,
            asked.proposal,
            of.broken if of is not None else task.state in HOMELESS,
            person=asked.person,
        )
        self._book.desk.tell_role(held.namo, body, cause, held.tenant)


def _state(tasks: Sequence[TaskRecord]) -> tuple[ServiceState, str]:
    """Return the state of a service, and why: the worst of its tasks decides."""

    def first(*states: TaskState) -> TaskRecord | None:
        return next((one for one in tasks if one.state in states), None)

    behind = next((one for one in tasks if one.granted < one.generation), None)
    if behind is not None and behind.state in STARTED and behind.reason:
        why = f"{behind.spec.task} runs as it was before: {behind.reason}"
        return ServiceState.DEGRADED, why
    homeless = first(_S.WAITING, _S.FAILED)
    if homeless is not None:
        return ServiceState.WAITING, f"{homeless.spec.task}: {homeless.reason}"
    suffering = first(_S.MOVING, _S.APPROVAL, _S.DEGRADED)
    if suffering is not None:
        reason = suffering.reason
        if suffering.state is _S.APPROVAL and suffering.asked is not None:
            reason = f"waits for an approval to {suffering.asked.proposal}"
        return ServiceState.DEGRADED, f"{suffering.spec.task}: {reason}"
    if all(_runs(one) for one in tasks):
        return ServiceState.RUNNING, ""
    return ServiceState.DEPLOYING, ""


def _runs(task: TaskRecord) -> bool:
    """Whether a task runs as it was ordered last: who had it before ends it then."""
    newest = task.served == task.generation
    return task.state is _S.RUNNING or (task.state is _S.TRANSFERRING and newest)
