"""A service on its way from one cell to another: make before break, for all its tasks together.

The old scheduler serves until every task is ready at the new one, and is told then. What cannot be
made ready there in time returns: the old scheduler gets its envelopes again.
"""

from collections.abc import Callable, Iterable

from msgspec import structs

from controller.anchor.book import Book
from controller.anchor.elsewhere import Elsewheres
from controller.anchor.granting import Granting
from controller.anchor.lifecycle import SERVING, TaskEvent
from controller.anchor.placing import TRANSFER, TRANSFER_MS, Placing
from controller.records import Leaving, TaskRecord, TaskState
from protocols.messages.hierarchy import NodeState


class Transfers:
    """Completes or gives up what placing has begun."""

    def __init__(
        self, book: Book, granting: Granting, placing: Placing, elsewheres: Elsewheres
    ) -> None:
        self._book = book
        self._granting = granting
        self._placing = placing
        self._elsewheres = elsewheres
        self.awaited: Callable[[str], bool] = lambda _: False
        """Whether the device that a service's tasks follow has not come to stay yet."""

    def restored(self) -> None:
        """Watch over the transfers that a crash has interrupted."""
        for task in self._book.tasks.values():
            if task.leaving is not None:
                at_ms = self._book.desk.now_ms + TRANSFER_MS
                self._book.desk.wake(TRANSFER + task.service, at_ms)

    def complete(self, service: str, cause: str) -> None:
        """Let the old scheduler go, once everything that moves is ready at the new one."""
        tasks = self._book.ordered(service)
        moving = [one for one in tasks if one.leaving is not None]
        if not moving or not all(_arrived(one) for one in _waited_for(tasks, moving)):
            return
        if self.awaited(service):
            return
        self._let_go(service, moving, "it serves in another cell", cause)
        self._book.desk.wake(TRANSFER + service, None)
        self._placing.later(service, cause)
        self._placing.room(cause)

    def fired(self, service: str) -> None:
        """Give up what has taken too long."""
        self.give_up(service, f"not ready within {TRANSFER_MS // 1000} s", "transfer")

    def give_up(self, service: str, why: str, cause: str) -> bool:
        """Return to the old scheduler what has not arrived; False when nothing can return."""
        book = self._book
        moving = [one for one in book.ordered(service) if one.leaving is not None]
        lost = [one for one in moving if not self._still_there(one)]
        if not moving or lost:
            self._let_go(service, moving, "its node there is lost", cause)
            return False
        everything = book.ordered(service)
        for task in moving if _follow(moving) else _together(everything, moving):
            self._granting.revoke(task, task.scheduler, f"it returns: {why}", cause)
            if task.leaving is not None:
                self._return(task, task.leaving, why, cause)
            else:
                # It did not serve before: it is placed anew where the others are.
                there = moving[0].leaving.scheduler if moving[0].leaving else ""
                homeless = book.homeless(task)
                book.put(structs.replace(homeless, scheduler=there, heir=""), cause)
        # Clients may have plans from where it was prepared, and go on to ask there.
        self._follow(service, moving, (one.scheduler for one in moving), cause)
        self._placing.search.rest(service)
        book.desk.wake(TRANSFER + service, None)
        self._placing.later(service, cause)
        self._placing.placed(service)
        return True

    def _return(self, task: TaskRecord, left: Leaving, why: str, cause: str) -> None:
        """Let the old scheduler have its envelope again, for the generation that serves there."""
        book = self._book
        after = book.after(task, TaskEvent.RETURN)
        if left.spec is not None:
            after = book.after(after, TaskEvent.OLDER)
        after = structs.replace(
            after,
            scheduler=left.scheduler,
            nodes=(left.node,),
            node=left.node,
            epoch=left.epoch,
            leaving=None,
            memory=None,
            held=left.spec,
            granted=left.granted,
            served=left.granted,
            reserved={left.node: task.reserved.get(left.node, 0)},
        )
        book.tell(task.spec.task, "returned", f"to {left.scheduler}: {why}", cause)
        self._granting.renew(after, cause)

    def _let_go(self, service: str, moving: list[TaskRecord], reason: str, cause: str) -> None:
        """Have the new schedulers serve alone; old ones know where to before they forget."""
        book = self._book
        for task in moving:
            left = task.leaving
            if left is None:
                continue
            reserved = {
                node: held
                for node, held in task.reserved.items()
                if node in task.nodes or (node == task.node and node != left.node)
            }
            node = "" if task.node == left.node else task.node
            book.put(structs.replace(task, leaving=None, reserved=reserved, node=node), cause)
        former = [one.leaving.scheduler for one in moving if one.leaving is not None]
        self._follow(service, moving, former, cause)
        for task in moving:
            if task.leaving is not None:
                self._granting.revoke(task, task.leaving.scheduler, reason, cause)
                self._granting.renew(book.tasks[task.spec.task], cause)
                detail = f"{task.leaving.scheduler}: {reason}"
                book.tell(task.spec.task, "left", detail, cause)

    def _follow(
        self, service: str, moved: list[TaskRecord], former: Iterable[str], cause: str
    ) -> None:
        """Have old schedulers that clients still ask told of a service that others have now.

        One that is sent to another cell as a whole is sought anew by its clients; one that goes by
        itself, after a device or after most of its clients, is not.
        """
        held = self._book.services.get(service)
        sent = len(moved) == len(self._book.ordered(service)) and not _follow(moved)
        if held is None or (sent and not held.followers):
            return
        for scheduler in dict.fromkeys(former):
            self._elsewheres.moved(service, scheduler, cause)

    def _still_there(self, task: TaskRecord) -> bool:
        left = task.leaving
        if left is None:
            return False
        facts = self._book.nodes.get(left.node)
        return (
            facts is not None
            and facts.scheduler == left.scheduler
            and facts.state is not NodeState.LOST
        )


def _follow(moving: list[TaskRecord]) -> bool:
    """Whether tasks follow a device: the others of their service have nothing to do with it."""
    return any(one.leaving is not None and one.leaving.follows for one in moving)


def _waited_for(tasks: list[TaskRecord], moving: list[TaskRecord]) -> list[TaskRecord]:
    """Return the tasks without which the old scheduler does not let go."""
    if _follow(moving):
        return moving
    new = [one for one in tasks if not one.scheduler]
    return [*new, *_together(tasks, moving)]


def _together(tasks: list[TaskRecord], moving: list[TaskRecord]) -> list[TaskRecord]:
    """Return the tasks that one plan has brought to the new scheduler, or is bringing there.

    The others have never left, or have come along with their node: they are nothing to wait for.
    """
    arriving = {one.scheduler for one in moving}
    return [
        one
        for one in tasks
        if (one.heir or one.scheduler) in arriving and (one.leaving is not None or not one.attached)
    ]


def _arrived(task: TaskRecord) -> bool:
    """Whether a task is ready at its new scheduler."""
    return task.state in SERVING and task.state is not TaskState.TRANSFERRING
