"""Orders of NAMO: services that shall run, change or end."""

from msgspec import structs

from controller.anchor import job_failures
from controller.anchor.book import Book
from controller.anchor.direct import Direct
from controller.anchor.elsewhere import FOLLOWERS_MAX, Elsewheres
from controller.anchor.granting import Granting
from controller.anchor.jobs import Jobs
from controller.anchor.lifecycle import TaskEvent
from controller.anchor.placing import Placing
from controller.anchor.privacy import gathered
from controller.anchor.quarantine import former, sifted
from controller.anchor.upward import Upward
from controller.decider import Received
from controller.records import EPOCHS_OF_GENERATION, AnchoredRecord, TaskRecord, TaskState
from protocols.messages import ServiceDelete, ServiceOrder
from protocols.messages.hierarchy import TaskSpec


class Orders:
    """Turns orders into durable tasks."""

    def __init__(
        self,
        book: Book,
        granting: Granting,
        placing: Placing,
        upward: Upward,
        direct: Direct,
        jobs: Jobs,
        elsewheres: Elsewheres,
    ) -> None:
        self._elsewheres = elsewheres
        self._book = book
        self._granting = granting
        self._placing = placing
        self._upward = upward
        self._direct = direct
        self._jobs = jobs

    def order(self, event: Received, order: ServiceOrder) -> None:
        """Take in an order; one that is known already is answered and changes nothing."""
        book = self._book
        held = book.services.get(order.service)
        if held is not None and held.order.generation >= order.generation:
            self._upward.report(order.service, event.cause, again=True)
            return
        order = gathered(order)
        if held is not None:
            record = structs.replace(held, order=order, tenant=event.tenant, namo=event.sender)
        else:
            before = self._before(order)
            # Clients of any cell may go on with what another anchor has had.
            cells = book.settings.schedulers[:FOLLOWERS_MAX] if before else ()
            record = AnchoredRecord(
                *(order, event.tenant, event.sender),
                expects=before,
                followers=cells,
                number=order.handed,
            )
        book.put_service(order.service, record, event.cause)
        if held is None:
            self._jobs.arrive(order.service)
        self.apply(order, event)

    def apply(self, order: ServiceOrder, event: Received) -> None:
        """Bring the tasks of a service up to its order."""
        book = self._book
        wanted = {spec.task for spec in order.tasks}
        for old in book.of_service(order.service):
            if old.spec.task not in wanted:
                self._end(old, "not in the new generation", event.cause)
        for spec in order.tasks:
            task = book.tasks.get(spec.task)
            if task is None or task.generation < order.generation:
                self._want(spec, order, event)
        self._placing.forget(order.service, wanted)
        self._placing.place(order.service, event.cause)

    def _before(self, order: ServiceOrder) -> tuple[str, ...]:
        """Return the anchors that may have jobs of a service; an empty name: who is not known."""
        others = any(self._book.ledger.is_other(spec.task) for spec in order.tasks)
        return order.taken_from or (("",) if others else ())

    def _want(self, spec: TaskSpec, order: ServiceOrder, event: Received) -> None:
        book, name = self._book, spec.task
        task = book.tasks.get(name)
        above = max((order.generation - 1) * EPOCHS_OF_GENERATION, order.epochs_above)
        what = "modified"
        if task is None or task.state is TaskState.DELETING:
            high = max(above, task.epoch_high if task is not None else 0)
            task = TaskRecord(
                spec,
                order.service,
                event.tenant,
                order.generation,
                TaskState.ACCEPTED,
                node=book.seats.get(name, "") if order.epochs_above else "",
                epoch_high=high,
            )
            what = "accepted"
            book.stories.begins(name)
        else:
            if task.held is None and task.nodes:
                # Its scheduler holds an envelope for this one until there is one for the newest.
                task = structs.replace(task, held=task.spec, granted=task.generation)
            before = former(task, spec)
            sound = sifted(spec, task.quarantined, before)
            task = structs.replace(
                book.after(task, TaskEvent.ORDER),
                spec=sound or spec,
                ordered=spec if sound is not None and sound != spec else None,
                quarantined=task.quarantined if sound is not None else {},
                before=before,
                generation=order.generation,
                epoch_high=max(task.epoch_high, order.epochs_above),
                asked=None,
                failures={},
            )
        detail = f"generation {order.generation}"
        if order.decomposition:
            detail += f" of decomposition {order.decomposition}"
        book.tell(name, what, detail, event.cause)
        book.put(task, event.cause)
        if task.heir:
            # Who is to let go may have it of another anchor meanwhile, and heed this one's newest.
            self._placing.take_back(name, event.cause)

    def delete(self, event: Received, delete: ServiceDelete) -> None:
        """End a service; where another anchor has it now only forget it."""
        book = self._book
        held = book.services.get(delete.service)
        # Who gets a service by order is ahead of whoever is to leave it; who has it of the same
        # generation was given it since by that one.
        since = delete.generation - bool(delete.anchor)
        if held is not None and held.order.generation > since:
            self._upward.report(delete.service, event.cause, again=True)
            return
        if held is not None:
            book.put_service(delete.service, None, event.cause)
        reason = "the service was deleted"
        self._elsewheres.ended(book.of_service(delete.service), event.cause)
        if delete.transferred:
            reason = "the service has another anchor"
            self._jobs.leave(delete.service, event.cause, delete.anchor)
        for task in book.of_service(delete.service):
            if delete.transferred:
                # Its scheduler believes this only where nobody has granted a newer generation.
                self._revoke(task, reason, event.cause)
                self._forget(task, reason, event.cause)
            else:
                self._end(task, reason, event.cause)
        if not delete.transferred:
            end = job_failures.gone(delete.service, reason)
            if delete.anchor:
                end = job_failures.elsewhere(delete.service)
            self._jobs.gone(delete.service, end)
        to, cause = event.sender, event.cause
        self._upward.deleted(delete.service, delete.generation, to, cause, event.tenant)

    def _revoke(self, task: TaskRecord, reason: str, cause: str) -> None:
        """Tell every scheduler that has it: two while it is on its way to another cell."""
        left = task.leaving.scheduler if task.leaving is not None else ""
        for scheduler in dict.fromkeys((task.scheduler, left)):
            self._granting.revoke(task, scheduler, reason, cause)

    def _forget(self, task: TaskRecord, reason: str, cause: str) -> None:
        """Drop a task that runs on under another anchor."""
        self._book.tell(task.spec.task, "transferred", reason, cause)
        self._book.drop(task, cause)
        self._placing.forget(task.service, (task.spec.task,))

    def _end(self, task: TaskRecord, reason: str, cause: str) -> None:
        book, name = self._book, task.spec.task
        if task.state is TaskState.DELETING:
            return
        self._revoke(task, reason, cause)
        task = structs.replace(book.after(task, TaskEvent.DELETE), reason=reason, asked=None)
        book.tell(name, "deleted", reason, cause)
        self._placing.forget(task.service, (name,))
        if self._direct.release(task, reason, cause):
            book.put(structs.replace(task, nodes=(), leaving=None), cause)
        else:
            book.after(task, TaskEvent.FORGET)
            book.drop(task, cause)
        self._placing.room(cause)
