"""Envelopes on their way to a scheduler, each with a fresh block of epochs."""

from collections.abc import Sequence
from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from controller.records import AnchoredRecord, TaskRecord
from protocols.messages import EnvelopeGrant, EnvelopeRevoke
from protocols.messages.quality import Source
from protocols.messages.task import Origin
from protocols.qoais_map import resource_bounds

EPOCH_BLOCK: Final = 32
"""Epochs leased with each grant; the TS asks for more when they are used up."""


class Granting:
    """Says what a task may use; the record with the new block of epochs goes first."""

    def __init__(self, book: Book) -> None:
        self._book = book

    def grant(self, task: TaskRecord, cause: str) -> None:
        """Grant the newest generation of a task that has been placed."""
        self.renew(structs.replace(task, granted=task.generation, held=None), cause)

    def renew(self, task: TaskRecord, cause: str) -> None:
        """Lease a fresh block of epochs with the envelope that a task has."""
        if task.heir:
            # Who is to have it is granted the newest, as soon as the present one has let go.
            self._book.put(task, cause)
            return
        held = self._book.services[task.service]
        first, last = task.epoch_high + 1, task.epoch_high + EPOCH_BLOCK
        task = structs.replace(
            task,
            epoch_high=last,
            resources=resource_bounds(task.spec, held.sources, held.order.kind),
        )
        self._book.put(task, cause)
        sources = _provided(held, self._book, task.scheduler)
        grant = _grant(task, held, first, last, sources)
        self._book.desk.tell_role(task.scheduler, grant, cause, task.tenant)

    def again(self, scheduler: str, cause: str) -> int:
        """Grant everything that a scheduler should hold once more; returns how much that is.

        It has lost its memory, or may not have heard what was last said.
        """
        grants = 0
        for task in list(self._book.tasks.values()):
            mine = task.scheduler == scheduler and not task.heir
            if mine and task.nodes and task.service in self._book.services:
                self.renew(task, cause)
                grants += 1
        return grants

    def leaving(self, scheduler: str, cause: str) -> int:
        """Let a scheduler that a transfer leaves keep what serves; it gets no further epochs."""
        grants = 0
        for task in self._book.tasks.values():
            left = task.leaving
            held = self._book.services.get(task.service)
            if left is None or left.scheduler != scheduler or held is None:
                continue
            grant = structs.replace(
                _grant(
                    task,
                    held,
                    left.epoch + 1,
                    left.epoch,
                    _provided(held, self._book, scheduler),
                ),
                generation=left.granted,
                spec=left.spec or task.spec,
                nodes=left.nodes or (left.node,),
                reserved=_reserved(task, left.nodes or (left.node,)),
                current_node=left.node,
                current_epoch=left.epoch,
                arriving=False,
                origin=None,
            )
            self._book.desk.tell_role(scheduler, grant, cause, task.tenant)
            grants += 1
        return grants

    def revoke(
        self, task: TaskRecord, scheduler: str, reason: str, cause: str, *, stays: bool = False
    ) -> None:
        """Take the envelope of a task from a scheduler; `stays`: its service is not over."""
        if scheduler:
            revoke = EnvelopeRevoke(task.spec.task, task.generation, reason, stays)
            self._book.desk.tell_role(scheduler, revoke, cause, task.tenant)


def _provided(held: AnchoredRecord, book: Book, scheduler: str) -> tuple[Source, ...]:
    """Return what a scheduler is told of sources: who provides one elsewhere does so alone."""
    found = []
    for one in held.sources:
        facts = book.nodes.get(one.nodes[0]) if one.nodes else None
        there = facts is not None and facts.scheduler not in ("", scheduler)
        found.append(structs.replace(one, nodes=one.nodes[:1]) if there else one)
    return tuple(found)


def _grant(
    task: TaskRecord, held: AnchoredRecord, first: int, last: int, sources: tuple[Source, ...]
) -> EnvelopeGrant:
    order = held.order
    arriving = task.leaving is not None
    return EnvelopeGrant(
        service=task.service,
        generation=task.granted if task.held is not None else task.generation,
        spec=task.held or task.spec,
        nodes=task.nodes,
        epoch_from=first,
        epoch_to=last,
        plan_tasks=tuple(spec.task for spec in order.tasks),
        outputs=order.outputs,
        # A scheduler to which the task is transferred has nothing to wait for.
        current_node="" if arriving else task.node,
        current_epoch=task.leaving.epoch if task.leaving is not None else task.epoch,
        leeway=task.leeway,
        tuning=task.tuning,
        resources=task.resources,
        sla=order.sla,
        users=order.users,
        sources=sources,
        sinks=order.sinks,
        reserved=_reserved(task, task.nodes),
        arriving=arriving,
        origin=Origin(task.memory.node, task.memory.epoch) if task.memory is not None else None,
    )


def _reserved(task: TaskRecord, nodes: Sequence[str]) -> tuple[int, ...]:
    """Return what is set aside on these nodes, for a scheduler that has several anchors."""
    return tuple(task.reserved.get(node, 0) for node in nodes)
