"""Tasks follow their node: a task has one scheduler or none, and its copy runs on.

Theory of operation. A node that turns up in another cell under a higher incarnation is there. Each
of its tasks is taken back from the scheduler that has it (`EnvelopeRevoke` with `transferred`);
from that record on it has an *heir*. When the old one has let go (`Relinquished`) the scheduler of
the node's newest attachment is granted the task, with epochs above, and adopts the copy. Who cannot
be asked is waited out: a scheduler acts only while it has our leave (its `leases.py`), and is told
later what it has lost. What a scheduler serves on another node stays with it.
"""

from collections.abc import Callable
from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from controller.anchor.elsewhere import Elsewheres
from controller.anchor.granting import Granting
from controller.anchor.lifecycle import HOMELESS
from controller.anchor.placing import Placing
from controller.decider import Received
from controller.records import TaskRecord, TaskState
from protocols.messages import EnvelopeRevoke, Lease, LeaseRequest, NodeSummary, Relinquished
from protocols.messages.hierarchy import NodeState

LEASE_MS: Final = 5000
"""As a scheduler counts it (`controller/scheduler/leases.py`)..."""
MARGIN_MS: Final = 500
"""...and this beyond: clocks do not run alike."""
TIMER: Final = "lease/"
_OVER: Final = (*HOMELESS, TaskState.DELETING, TaskState.DELETED)


class Switching:
    """Moves ownership of tasks after their nodes.

    `begun` and `done` are told the node and the task of every change of ownership; `given` tells
    a scheduler to which anchor a task was given, and whether it was.
    """

    def __init__(
        self, book: Book, granting: Granting, placing: Placing, elsewheres: Elsewheres
    ) -> None:
        self._book = book
        self._granting = granting
        self._placing = placing
        self._elsewheres = elsewheres
        self.begun: Callable[[str, str], None] = lambda *_: None
        self.done: Callable[[str, str], None] = lambda *_: None
        self.given: Callable[[str, str, str], bool] = lambda *_: False
        self._leased_until_ms: dict[str, int] = {}
        self._untold: dict[str, set[str]] = {}
        """By scheduler: tasks that it has lost and may not have heard of."""
        self._again: dict[str, str] = {}
        """Nodes to look at again: a task of theirs is on another way still."""

    def restored(self) -> None:
        """Go on where a crash has interrupted; what schedulers were given leave for is unknown."""
        over_ms = self._book.desk.now_ms + LEASE_MS + MARGIN_MS
        self._leased_until_ms = dict.fromkeys(self._book.settings.schedulers, over_ms)
        for scheduler in sorted({one.scheduler for one in self._book.tasks.values() if one.heir}):
            self._book.desk.wake(TIMER + scheduler, over_ms)
        for name, task in self._book.tasks.items():
            for scheduler in task.former:
                self._untold.setdefault(scheduler, set()).add(name)

    # Leave to act.

    def asked(self, event: Received, body: LeaseRequest) -> None:
        """Give a scheduler leave to act on."""
        if event.sender in self._book.settings.schedulers:
            over_ms = self._book.desk.now_ms + LEASE_MS + MARGIN_MS
            self._leased_until_ms[event.sender] = over_ms
            # It must know what it has lost before it has leave to act.
            self._remind(event.sender, event.cause)
            self._book.desk.tell_role(event.sender, Lease(body.number), event.cause)

    def fired(self, scheduler: str) -> None:
        """Grant elsewhere what a scheduler that has no leave any more has not let go."""
        over_ms = self._leased_until_ms.get(scheduler, 0)
        waiting = [
            one for one in self._book.tasks.values() if one.heir and one.scheduler == scheduler
        ]
        if self._book.desk.now_ms < over_ms:
            if waiting:
                self._book.desk.wake(TIMER + scheduler, over_ms)
            return
        for task in waiting:
            former = tuple(dict.fromkeys((*task.former, scheduler)))
            self._untold.setdefault(scheduler, set()).add(task.spec.task)
            silent = structs.replace(task, former=former)
            self._hand(silent, "lease", f"{scheduler} has no leave to act any more")

    # When a node has come to another cell.

    def look(self, node: str, cause: str) -> None:
        """Have every task of a node follow it."""
        facts = self._book.nodes.get(node)
        if facts is None or facts.state is not NodeState.ONLINE:
            return
        for name in sorted(self._book.ledger.tasks_on(node)):
            task = self._book.tasks[name]
            if task.scheduler in ("", facts.scheduler) or task.state in _OVER:
                continue
            if task.home != node or task.heir == facts.scheduler:
                continue
            if task.leaving is not None:
                self._again[node] = cause
                continue
            task = structs.replace(task, attached=max(task.attached, facts.attached))
            self._begin(task, node, facts.scheduler, cause)

    def settle(self) -> None:
        """Look again at nodes whose tasks could not follow yet."""
        again, self._again = self._again, {}
        for node, cause in again.items():
            self.look(node, cause)

    def _begin(self, task: TaskRecord, node: str, to: str, cause: str) -> None:
        first = not task.heir
        task = self._book.put(structs.replace(task, heir=to), cause)
        if first:
            self._revoke(task, task.scheduler, node, cause)
            self.begun(node, task.spec.task)
        over_ms = self._leased_until_ms.get(task.scheduler, 0)
        self._book.desk.wake(TIMER + task.scheduler, max(over_ms, self._book.desk.now_ms))

    def take_back(self, task: str, cause: str) -> None:
        """Have the scheduler of a task that is placed elsewhere let go of it."""
        record = self._book.tasks[task]
        self._revoke(record, record.scheduler, record.home, cause)
        over_ms = self._leased_until_ms.get(record.scheduler, 0)
        self._book.desk.wake(TIMER + record.scheduler, max(over_ms, self._book.desk.now_ms))

    def _revoke(
        self, task: TaskRecord, scheduler: str, node: str, cause: str, *, given: bool = False
    ) -> None:
        cell = self._elsewheres.cell_of(self._goes_to(task, node))
        revoke = EnvelopeRevoke(
            task.spec.task,
            task.generation,
            f"{node} is served by another cell",
            transferred=True,
            node=node,
            cell=cell,
            leased=task.epoch_high,
            given=given,
        )
        self._book.desk.tell_role(scheduler, revoke, cause, task.tenant)

    def again(self, scheduler: str, cause: str) -> None:
        """Say to a scheduler that has begun anew, or may not have heard, what it no longer has."""
        for task in list(self._book.tasks.values()):
            if task.heir and task.scheduler == scheduler:
                self._revoke(task, scheduler, task.home, cause)
        self._remind(scheduler, cause)

    def _remind(self, scheduler: str, cause: str) -> None:
        untold = self._untold.get(scheduler, set())
        for name in sorted(untold):
            task = self._book.tasks.get(name)
            if task is None or scheduler not in task.former:
                untold.discard(name)
            else:
                self._revoke(task, scheduler, task.home, cause, given=True)
        if not untold:
            self._untold.pop(scheduler, None)

    # When it has let go.

    def relinquished(self, event: Received, body: Relinquished) -> None:
        """Grant a task to the scheduler of its node."""
        task = self._book.tasks.get(body.task)
        if task is None:
            return
        if event.sender in task.former:
            former = tuple(one for one in task.former if one != event.sender)
            self._book.put(structs.replace(task, former=former), event.cause)
            return
        if event.sender != task.scheduler or body.leased != task.epoch_high:
            self._book.counters["stale_report"] += 1
            return
        if not task.heir:
            # It was to stay there (`stays`), but has ended before our word came.
            if task.nodes:
                self._granting.renew(task, event.cause)
            return
        seen = min(body.epoch_seen, task.epoch_high)
        if body.node is not None and body.node == task.home and body.epoch <= seen:
            task = structs.replace(task, node=body.node, epoch=max(task.epoch, body.epoch))
        self._hand(task, event.cause, "")

    def _hand(self, task: TaskRecord, cause: str, why: str) -> None:
        """Give a task to the scheduler where its node is now."""
        book, before, node = self._book, task.scheduler, task.home
        facts = book.nodes.get(node)
        to = self._goes_to(task, node)
        spares = tuple(one for one in task.nodes if one != node and book.usable(one, to))
        attached = task.attached
        if attached and facts is not None:
            # It follows its node, which may have gone on; what a plan has brought follows none.
            attached = max(attached, facts.attached)
        after = structs.replace(
            task,
            scheduler=to,
            heir="",
            former=tuple(one for one in task.former if one != to),
            nodes=(node, *spares),
            attached=attached,
        )
        after = self._placing.reserve(after)
        detail = f"{node} to the cell of {to}" + (f": {why}" if why else "")
        book.tell(task.spec.task, "followed", detail, cause)
        self._granting.renew(after, cause)
        self._elsewheres.moved(task.service, before, cause)
        self.done(node, task.spec.task)
        self._placing.placed(task.service)
        self._placing.later(task.service, cause)

    def _goes_to(self, task: TaskRecord, node: str) -> str:
        """Return the scheduler where a node is, else the heir: others only know that it is gone."""
        facts = self._book.nodes.get(node)
        if facts is None or (facts.state is NodeState.LOST and task.heir):
            return task.heir
        return facts.scheduler or task.heir

    def stays(self, task: TaskRecord, node: str, cause: str) -> TaskRecord:
        """Leave a task with its scheduler, which serves it on another node than was thought."""
        if not task.heir or node == task.home:
            return task
        self._book.tell(task.spec.task, "stays", f"it is served on {node}", cause)
        self.done(task.home, task.spec.task)
        return self._book.put(structs.replace(task, heir=""), cause)

    # What a node has brought that nobody has granted.

    def kept(self, node: str, summary: NodeSummary, scheduler: str, cause: str) -> None:
        """Say of each task whether it is wanted there: it is granted, or revoked."""
        for name in summary.kept:
            task = self._book.tasks.get(name)
            if task is None and self.given(name, scheduler, cause):
                # Whoever gets it grants it, or says that it is over.
                continue
            left = task.leaving if task is not None else None
            if left is not None and (left.scheduler, left.node) == (scheduler, node):
                # It serves there until the next one is ready in another cell.
                self._granting.leaving(scheduler, cause)
                continue
            over = task is None or task.state in (TaskState.DELETING, TaskState.DELETED)
            if task is None or over or (task.state not in HOMELESS and task.home != node):
                revoke = EnvelopeRevoke(
                    name, 0, "it is not to run there", node=node, attached=summary.incarnation
                )
                self._book.desk.tell_role(scheduler, revoke, cause)
            elif task.scheduler == scheduler and not task.heir and task.nodes:
                self._granting.renew(task, cause)
            else:
                self._placing.later(task.service, cause)
