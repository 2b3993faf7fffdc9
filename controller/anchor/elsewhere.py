"""Services in several cells: every scheduler that clients may ask knows where each task is served.

A service whose node has gone over to another cell may have tasks of several schedulers. Each of
these is told of the others' tasks, and so is who had one before: clients that were in its cell go
on from there. Who has a node that feeds the service is told as well, and has it fed from there.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from controller.anchor.lifecycle import SERVING
from controller.anchor.placement import NodeFacts
from controller.decider import Record
from controller.handover_records import PointRecord
from controller.records import POINT, TaskRecord
from protocols.messages import Elsewhere
from protocols.messages.mobility import CellPoint
from protocols.messages.quality import Source

FOLLOWERS_MAX: Final = 8
"""Schedulers without a task of a service that still serve clients of it; the newest count."""


class Elsewheres:
    """Tells schedulers of the tasks that others have."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.points: dict[str, CellPoint] = {}
        """Where each scheduler's cell is reached, as it has said."""
        self._told: dict[tuple[str, str], tuple[object, ...]] = {}
        """By scheduler and task: what it was told last."""
        self._fed: dict[str, frozenset[str]] = {}
        """By service: schedulers that were told of it for their nodes feed it."""

    def restore(self, records: Iterable[Record]) -> None:
        """Take in where cells are reached."""
        for one in records:
            if isinstance(one.value, PointRecord) and one.key in self._book.settings.schedulers:
                self.points[one.key] = one.value.point

    def put(self, scheduler: str, point: CellPoint, cause: str) -> bool:
        """Note where a cell is reached; returns whether that is news."""
        if self.points.get(scheduler) == point:
            return False
        self.points[scheduler] = point
        self._book.desk.keep(POINT, scheduler, PointRecord(point), cause)
        return True

    def cell_of(self, scheduler: str) -> str:
        """Return the cell of a scheduler; empty: it has not said so."""
        point = self.points.get(scheduler)
        return point.cell if point is not None else ""

    def moved(self, service: str, before: str, cause: str) -> None:
        """Take in that a scheduler has lost a task of a service."""
        held = self._book.services.get(service)
        if held is None:
            return
        owners = {one.scheduler for one in self._book.ordered(service)}
        wanted = [one for one in (*held.followers, before) if one not in owners]
        followers = tuple(dict.fromkeys(reversed(wanted)))[:FOLLOWERS_MAX][::-1]
        for gone in sorted(set(held.followers) - {*followers, *owners}):
            self._over(gone, self._book.ordered(service), cause)
        if followers != held.followers:
            self._book.put_service(service, structs.replace(held, followers=followers), cause)
        self.tell(service, cause)

    def tell(self, service: str, cause: str) -> None:
        """Bring every scheduler of a service up to date."""
        held = self._book.services.get(service)
        if held is None:
            return
        tasks = self._book.ordered(service)
        owners = dict.fromkeys(_owners(tasks))
        feeding = self._feeding(held.sources) - owners.keys()
        audience = dict.fromkeys((*owners, *held.followers, *sorted(feeding)))
        for scheduler in sorted(self._fed.get(service, frozenset()) - audience.keys()):
            self._over(scheduler, tasks, cause)
        self._fed.pop(service, None)
        if feeding:
            self._fed[service] = feeding
        if len(audience) < 2:  # noqa: PLR2004 - one scheduler has all of them
            return
        for scheduler in audience:
            for task in tasks:
                self._tell(scheduler, task, cause)

    def _feeding(self, sources: Iterable[Source]) -> frozenset[str]:
        """Return the schedulers of the nodes that provide these."""
        found = (self._provider(one) for one in sources)
        return frozenset(facts.scheduler for facts in found if facts is not None)

    def _provider(self, source: Source) -> NodeFacts | None:
        facts = self._book.nodes.get(source.nodes[0]) if source.nodes else None
        return facts if facts is not None and facts.scheduler in self.points else None

    def node_moved(self, node: str, cause: str) -> None:
        """Tell who serves what a node feeds, wherever it is now."""
        for service in self._book.fed_by(node):
            self.tell(service, cause)

    def again(self, scheduler: str, cause: str) -> None:
        """Tell a scheduler that has begun anew."""
        for key in [key for key in self._told if key[0] == scheduler]:
            del self._told[key]
        for service, held in self._book.services.items():
            mine = scheduler in _owners(self._book.ordered(service))
            if mine or scheduler in held.followers or scheduler in self._feeding(held.sources):
                self.tell(service, cause)

    def forget(self, tasks: Iterable[str]) -> None:
        """Forget what was said of tasks that another anchor has now, and tells of."""
        names = set(tasks)
        for key in [key for key in self._told if key[1] in names]:
            del self._told[key]

    def _gone(self, tasks: list[TaskRecord]) -> None:
        for one in tasks:
            self._fed.pop(one.service, None)

    def ended(self, tasks: list[TaskRecord], cause: str) -> None:
        """Have tasks forgotten wherever they are served from afar: they are over."""
        names = {one.spec.task for one in tasks}
        self._gone(tasks)
        for scheduler in sorted({one for one, task in self._told if task in names}):
            self._over(scheduler, tasks, cause)

    def _over(self, scheduler: str, tasks: list[TaskRecord], cause: str) -> None:
        for task in tasks:
            if self._told.pop((scheduler, task.spec.task), None) is not None:
                body = Elsewhere(task.spec, task.service, task.generation, (), (), over=True)
                self._book.desk.tell_role(scheduler, body, cause, task.tenant)

    def _tell(self, scheduler: str, task: TaskRecord, cause: str) -> None:
        key = scheduler, task.spec.task
        if scheduler == _server(task):
            self._told.pop(key, None)
            return
        serves, left = task.state in SERVING, task.leaving
        node, epoch = (task.node, task.epoch) if serves else ("", 0)
        served, home = task.served or task.generation, task.scheduler
        if left is not None:
            # Who serves it until the next one is ready.
            node, epoch, home = left.node, left.epoch, left.scheduler
            served = left.granted or served
        held = self._book.services[task.service]
        sources = tuple(
            structs.replace(one, nodes=one.nodes[:1])
            for one in held.sources
            if (facts := self._provider(one)) is not None and facts.scheduler == scheduler
        )
        said = (node, epoch, served, home, sources)
        if self._told.get(key) == said:
            return
        self._told[key] = said
        order = held.order
        body = Elsewhere(
            task.held or task.spec,
            task.service,
            served,
            tuple(one.task for one in order.tasks),
            order.outputs,
            node,
            epoch,
            self.cell_of(home),
            sources=sources,
            sinks=order.sinks if sources else (),
            sla=order.sla,
        )
        self._book.desk.tell_role(scheduler, body, cause, task.tenant)

    def __iter__(self) -> Iterator[CellPoint]:
        return iter(self.points.values())


def _server(task: TaskRecord) -> str:
    """Return the scheduler that serves a task: the one that it leaves until the next is ready."""
    return task.leaving.scheduler if task.leaving is not None else task.scheduler


def _owners(tasks: list[TaskRecord]) -> list[str]:
    """Return the schedulers of tasks, and those that still serve a part of them."""
    found = [one.scheduler for one in tasks]
    leaving = sorted({_server(one) for one in tasks} - set(found))
    apart = [one for one in leaving if any(_server(task) != one for task in tasks)]
    return [one for one in (*found, *apart) if one]
