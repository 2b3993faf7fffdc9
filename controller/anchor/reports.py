"""What schedulers report of tasks: where they run, and under which generation."""

from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from controller.anchor.elsewhere import Elsewheres
from controller.anchor.faults import failures, hopeless
from controller.anchor.granting import Granting
from controller.anchor.lifecycle import SERVING, STARTED, TaskEvent
from controller.anchor.placing import Placing
from controller.anchor.switching import Switching
from controller.anchor.transfers import Transfers
from controller.anchor.upward import Upward
from controller.booking import booked_bytes
from controller.decider import Received
from controller.records import TaskRecord, TaskState
from protocols.messages import TaskReport
from protocols.messages.task import InstanceState

_TOLD: Final = {
    InstanceState.READY: "running",
    InstanceState.DEPLOYING: "assigned",
    InstanceState.STOPPED: "lost",
    InstanceState.FAILED: "failed",
}


class Reports:
    """Takes in task reports."""

    def __init__(
        self,
        book: Book,
        granting: Granting,
        placing: Placing,
        transfers: Transfers,
        upward: Upward,
        switching: Switching,
        elsewheres: Elsewheres,
    ) -> None:
        self._switching = switching
        self._elsewheres = elsewheres

        self._book = book
        self._granting = granting
        self._placing = placing
        self._transfers = transfers
        self._upward = upward

    def report(self, event: Received, report: TaskReport) -> None:
        """Take in what became of a task; the word of a scheduler that it has left is a story."""
        book = self._book
        task = book.tasks.get(report.task)
        if task is None or _stale(task, report):
            book.counters["stale_report"] += 1
            return
        if event.sender != task.scheduler:
            left = task.leaving
            if left is not None and left.scheduler == event.sender:
                self._tell(task, report, event.cause, f" in the cell of {event.sender}")
            else:
                book.counters["stale_report"] += 1
            return
        if task.state in (TaskState.ACCEPTED, TaskState.DELETING):
            return
        if report.state is InstanceState.READY:
            task = self._switching.stays(task, report.node, event.cause)
        self._take(task, report, event.cause)
        self._start(task.service, event.cause)
        self._transfers.complete(task.service, event.cause)
        self._elsewheres.tell(task.service, event.cause)
        self._upward.report(task.service, event.cause)

    def _take(self, task: TaskRecord, report: TaskReport, cause: str) -> None:
        ready = report.state is InstanceState.READY
        newest = report.generation == task.generation
        what = TaskEvent.UNREADY
        if ready:
            what = TaskEvent.READY if newest else TaskEvent.OLDER
        if task.leaving is not None and not ready:
            # The old cell serves still: the service is on its way again, if it had arrived.
            if task.state in SERVING:
                self._book.put(self._book.after(task, TaskEvent.TRANSFER), cause)
            self._tell(task, report, cause)
            return
        if ready and not task.nodes:
            # It was given up before it came to run, and another place is sought.
            self._tell(task, report, cause, ", where it was given up")
            self._granting.revoke(task, task.scheduler, "it was given up there", cause)
            return
        if hopeless(task) and not ready and not task.nodes:
            # Why it was given up stands.
            self._tell(task, report, cause)
            return
        after = structs.replace(
            self._book.after(task, what),
            node=report.node,
            epoch=report.epoch,
            reason=task.reason if hopeless(task) or what is TaskEvent.OLDER else report.reason,
            variant=report.variant,
            served=report.generation if ready else task.served,
            failures=_failures(task, report),
        )
        if ready:
            self._placing.ran(task.service)
            after = self._housed(after, newest=newest)
        self._book.put(after, cause)
        self._tell(task, report, cause)
        if hopeless(after) and after.state not in SERVING:
            self._placing.give_up(after, cause)
            return
        if ready and report.node not in after.nodes:
            self._stray(after, cause)

    def _housed(self, task: TaskRecord, *, newest: bool) -> TaskRecord:
        """Give back the room of the copy that has ended, now that another one serves."""
        if not newest or task.node not in task.nodes:
            return task
        # Reserved for the envelope alone, and where an old cell serves until the transfer ends.
        per_s = self._book.figures.demand(task.spec.task).per_s
        asked = booked_bytes(task.spec, task.tuning, task.leeway, per_s)
        # What it is asked more often by now is booked where there is room, by `Placing.rebook`.
        reserved = {node: min(asked, task.reserved.get(node, asked)) for node in task.nodes}
        left = task.leaving.node if task.leaving else ""
        if left in task.reserved:
            reserved[left] = max(reserved.get(left, 0), task.reserved[left])
        return structs.replace(task, reserved=reserved)

    def _stray(self, task: TaskRecord, cause: str) -> None:
        """Take in that a task runs outside its envelope: it moved before it heard of the newest.

        Where there is room it stays; else its scheduler is told the envelope once more.
        """
        fits = task.held is None and self._placing.widen(
            task, (task.node, *task.nodes), cause, "it has moved already"
        )
        if not fits:
            self._granting.renew(task, cause)

    def _start(self, service: str, cause: str) -> None:
        """Start what is ready and fed; what feeds a task comes before it in the order."""
        book = self._book
        states = {one.spec.step: one for one in book.ordered(service)}
        for step, task in states.items():
            if task.state is not TaskState.READY:
                continue
            feeds = {edge.source for edge in task.spec.inputs}
            # A model that runs for a module alone is there before the module is.
            feeds |= {
                one.name
                for one in task.spec.manifest.infers
                if one.name in states and states[one.name].spec.inferred
            }
            waits = sorted(
                one for one in feeds if one in states and states[one].state not in STARTED
            )
            name = task.spec.task
            if not waits:
                states[step] = book.put(book.after(task, TaskEvent.START), cause)
                if task.reason:
                    book.tell(name, "started", "what feeds it runs", cause)
                    states[step] = book.put(structs.replace(states[step], reason=""), cause)
            elif not task.reason:
                reason = f"is ready and waits for {', '.join(waits)}"
                states[step] = book.put(structs.replace(task, reason=reason), cause)

    def _tell(self, task: TaskRecord, report: TaskReport, cause: str, where: str = "") -> None:
        detail = f"{report.node} under epoch {report.epoch}{where}"
        if report.variant:
            detail += f" as variant {report.variant}"
        if report.generation != task.generation:
            detail += f", generation {report.generation}"
        if report.reason:
            detail += f": {report.reason}"
        told = _TOLD.get(report.state, report.state.value)
        self._book.stories.tell(report.task, "ts", told, detail, cause, report.blame)


def _failures(task: TaskRecord, report: TaskReport) -> dict[str, str]:
    """Return which nodes could not run the newest generation; where it is ready, it runs."""
    if report.generation != task.generation:
        return task.failures
    found = failures(task, report.attempts)
    if report.state is InstanceState.READY:
        found.pop(report.node, None)
    return found


def _stale(task: TaskRecord, report: TaskReport) -> bool:
    """Whether a report speaks of an epoch that is over, or was never leased.

    An older copy may serve again: its node has come back before the next one was ready.
    """
    again = report.state is InstanceState.READY and task.state not in SERVING
    return report.epoch > task.epoch_high or (report.epoch < task.epoch and not again)
