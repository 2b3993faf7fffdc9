"""Looking for nodes: the tasks of a service against the fleet as it is booked now.

A service is placed as a whole. Tasks that need no other node keep theirs and the others are placed
around them. Nothing is changed here: whoever applies a plan holds it against the ledger again.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final

from msgspec import Struct, structs

from controller.anchor.book import Book
from controller.anchor.faults import Faults, hopeless
from controller.anchor.lifecycle import HOMELESS, SERVING
from controller.anchor.placement import Request, place
from controller.anchor.privacy import confined
from controller.records import Placement, TaskRecord, TaskState
from protocols.messages.hierarchy import NodeState

REST_MS: Final = 60_000


class Found(Struct, frozen=True):
    """A plan for a service."""

    plan: Mapping[str, Placement]
    free: frozenset[str]
    """Tasks that were to be placed; the others keep their nodes."""
    complete: bool
    """Whether every one of them has a node that has not just failed it."""
    scheduler: str = ""
    """Of the cell of the nodes."""
    spares_yield: bool = False
    """Whether spares of other tasks make room for it."""
    kept: bool = False
    """Whether only the nodes were looked at where the tasks run now."""
    avoid: frozenset[str] = frozenset()
    """Nodes that the tasks shall not be on, for their quality."""


class Search:
    """Asks placement, in the order in which answers are preferred."""

    def __init__(self, book: Book) -> None:
        self._book = book
        self.failed: dict[str, dict[str, str]] = {}
        """Nodes that have just failed a task, with the reason."""
        self.faults = Faults(book)
        self._resting_until_ms: dict[str, int] = {}

    def home(self, task: TaskRecord) -> str:
        """Return the node that a task has, or will have by its envelope; empty for none."""
        if task.state in HOMELESS:
            return ""
        nodes = (task.node, *task.nodes) if task.node in task.nodes else task.nodes
        return next((node for node in nodes if not self._book.gone(node, task.scheduler)), "")

    def lacking(self, service: str) -> frozenset[str]:
        """Return the tasks of a service that need a node, or a word on their newest generation."""
        tasks = self._book.ordered(service)
        if any(one.leaving is not None or one.heir for one in tasks) or self._unknown(tasks):
            # On the way to another cell, that ends well or the service returns first; or it may
            # run where its scheduler has not spoken of since our start.
            return frozenset()
        return frozenset(
            one.spec.task
            for one in tasks
            if sought(one) or (not hopeless(one) and not self.home(one) and self._replaced(one))
        )

    def plans(self, service: str, free: Collection[str]) -> Iterator[Found]:
        """Yield plans for these tasks, best first: where they run, else in their cell, else beyond.

        The last resorts are room that spares of others have, and another cell. A plan that is not
        complete says why. At least one is yielded.
        """
        cell = self._cell(service, free)
        tasks = self._book.ordered(service)
        free = self._grouped(tasks, {*free, *self._lacking_in(service, cell)})
        if not cell:
            # Taken over from another anchor: it is where its scheduler says.
            known = self._book.nodes
            cells = {known[one.node].scheduler for one in tasks if self._book.usable(one.node)}
            cell = cells.pop() if len(cells) == 1 else ""
        if cell and any(one.spec.task in free and self._serves(one) for one in tasks):
            yield self._try(service, free, cell, keep=True)
        yield self._try(service, free, cell)
        yield self._try(service, free, cell, spares_yield=True)
        if cell and self._bound(tasks, free):
            # Their nodes are in another cell: the others need not follow.
            yield self._try(service, free, "", away_from=cell)
        if cell:
            yield self.another_cell(service, cell)

    def _bound(self, tasks: Iterable[TaskRecord], free: Collection[str]) -> bool:
        """Whether tasks may run on nodes alone that they name."""
        return all(one.spec.nodes for one in tasks if one.spec.task in free)

    def _cell(self, service: str, free: Collection[str]) -> str:
        """Return the scheduler of tasks to place; those of a service may have several."""
        held = (one.scheduler for one in self._book.ordered(service) if one.spec.task in free)
        return next((one for one in held if one), self._book.scheduler_of(service))

    def _lacking_in(self, service: str, cell: str) -> frozenset[str]:
        """Return the tasks of a service that need a node and are not those of another cell."""
        lacking, tasks = self.lacking(service), self._book.ordered(service)
        return lacking & _names(one for one in tasks if one.scheduler in ("", cell))

    def weighed(self, service: str, free: Collection[str], *, keep: bool) -> Found | None:
        """Find what these tasks are best run as, and where unless they keep their nodes.

        None: there is nothing to look at.
        """
        cell = self._cell(service, free)
        held = _names(one for one in self._book.ordered(service) if one.scheduler == cell)
        free = self._grouped(self._book.ordered(service), held & frozenset(free))
        return self._try(service, free, cell, keep=keep) if free else None

    def elsewhere(self, service: str, free: Collection[str], avoid: Collection[str]) -> Found:
        """Find nodes for these tasks in their cell, but not these."""
        cell = self._cell(service, free)
        lacking = self._lacking_in(service, cell)
        free = self._grouped(self._book.ordered(service), {*free, *lacking})
        return self._try(service, free, cell, avoid=frozenset(avoid))

    def rest(self, service: str) -> None:
        """Leave a service in its cell for a while: another one has just failed it."""
        self._resting_until_ms[service] = self._book.desk.now_ms + REST_MS

    def forget(self, service: str) -> None:
        """Forget a service that is over."""
        self._resting_until_ms.pop(service, None)

    def another_cell(self, service: str, cell: str = "") -> Found:
        """Find nodes under another scheduler for all tasks of a service that one has."""
        cell = cell or self._book.scheduler_of(service)
        lost = next((one for one in self._book.ordered(service) if hopeless(one)), None)
        if lost is not None:
            tasks = self._book.ordered(service)
            return self._nothing(tasks, _names(tasks), f"{lost.spec.task} can run nowhere")
        if self._book.desk.now_ms < self._resting_until_ms.get(service, 0):
            tasks = self._book.ordered(service)
            return self._nothing(tasks, _names(tasks), "it has just returned from another cell")
        ours = _names(
            one for one in self._book.ordered(service) if one.scheduler in ("", cell) or not cell
        )
        return self._try(service, ours, "", away_from=cell)

    def toward(self, service: str, free: Collection[str], cell: str, to: str) -> Found:
        """Find nodes for these tasks of one cell in another one."""
        return self._try(
            service, self._grouped(self._book.ordered(service), free), to, away_from=cell
        )

    def spares(self, task: TaskRecord, wanted: int, beside: Collection[str]) -> tuple[str, ...]:
        """Return up to so many further nodes for a task, best first."""
        name = task.spec.task
        if wanted < 1 or (task.spec.group and task.state not in HOMELESS):
            # A spare for one task of a group would part it from the others.
            return ()
        snapshot = self._book.snapshot(task.scheduler)
        kept = tuple(one for one in snapshot.nodes if one.node not in beside)
        request = Request(
            task.spec,
            wanted - 1,
            failed=self.failed.get(name, {}),
            confined=self._confined(task),
            program=(task.tuning.variant, task.tuning.provider),
            bound=True,
            per_s=self._book.figures.demand(name).per_s,
        )
        chosen = place([request], structs.replace(snapshot, nodes=kept))[name].chosen
        return tuple(node for node in chosen if node not in self.failed.get(name, {}))

    def _try(
        self,
        service: str,
        free: frozenset[str],
        cell: str,
        *,
        away_from: str = "",
        keep: bool = False,
        avoid: frozenset[str] = frozenset(),
        spares_yield: bool = False,
    ) -> Found:
        book = self._book
        tasks = book.ordered(service)
        order = book.services[service].order
        requests = [
            self._request(one, free, order.spares, avoid, away=bool(away_from), keep=keep)
            for one in tasks
            if one.spec.task in free or self._beside(one, cell, away_from)
        ]
        # A copy that serves stays reserved until the next one is ready; all else of theirs counts
        # no longer, for the plan replaces it.
        without = {
            one.spec.task: {
                node: held
                for node, held in one.reserved.items()
                if node != one.node or one.state not in SERVING
            }
            for one in tasks
            if one.spec.task in free and not away_from
        }
        if spares_yield:
            without |= self._spares_of_others(free)
        snapshot = book.snapshot(cell, without=without, avoid_scheduler=away_from)
        if self._unknown(tasks):
            return self._nothing(tasks, free, "the nodes of its cell are not known yet")
        plan = place(requests, snapshot)
        complete = all(self._good(plan[name], name, avoid) for name in free)
        scheduler = ""
        if complete and free:
            scheduler = book.nodes[plan[next(iter(free))].chosen[0]].scheduler
        return Found(plan, free, complete, scheduler, spares_yield, keep, avoid)

    def _beside(self, task: TaskRecord, cell: str, away_from: str) -> bool:
        """Whether others are placed around a task that keeps its node: it is of their cell."""
        return task.scheduler in ("", cell) if cell else not away_from

    def _request(
        self,
        task: TaskRecord,
        free: frozenset[str],
        spares: int,
        avoid: frozenset[str],
        *,
        away: bool,
        keep: bool,
    ) -> Request:
        name, spec = task.spec.task, task.spec
        program = (task.tuning.variant, task.tuning.provider)
        if name not in free:
            home = self.home(task)
            return Request(
                *(spec, 0, home, home),
                fixed=home,
                reserved_bytes=task.reserved.get(home, 0),
                instances=self._book.ledger.instances_of(name),
                program=program,
                bound=True,
            )
        serves = self._serves(task) and not away
        if keep and serves:
            spec = structs.replace(spec, nodes=(task.node,))
        current = task.node if serves else ""
        demand = self._book.figures.demand(name)
        return Request(
            spec,
            spares,
            current,
            current,
            self.failed.get(name, {}) | dict.fromkeys(avoid, "its quality is in danger there"),
            reserved_bytes=task.reserved.get(current, 0) if current else None,
            headroom_bytes=self._alone(name, current),
            instances=self._book.ledger.instances_of(name),
            confined=self._confined(task),
            program=program if serves and task.granted == task.generation else None,
            per_s=demand.per_s,
            input_bytes=demand.input_bytes,
        )

    def _alone(self, name: str, node: str) -> int:
        """Return what of a node's headroom there is for this task alone."""
        ledger = self._book.ledger
        return ledger.headroom(node) - ledger.headroom(node, (name,)) if node else 0

    def _confined(self, task: TaskRecord) -> dict[str, tuple[str, ...]]:
        held = self._book.services.get(task.service)
        return confined(task.spec, held.order.sources if held else (), self._book.nodes)

    def _serves(self, task: TaskRecord) -> bool:
        """Whether a copy of the task serves on a node that can be counted on."""
        taken_over = task.state is TaskState.ACCEPTED and bool(task.node)
        return (
            (task.state in SERVING or taken_over)
            and bool(task.node)
            and self._book.usable(task.node, task.scheduler)
        )

    def _nothing(self, tasks: Iterable[TaskRecord], free: frozenset[str], reason: str) -> Found:
        none = Placement(self._book.revision, reason=reason)
        return Found({one.spec.task: none for one in tasks}, free, complete=False)

    def _unknown(self, tasks: Iterable[TaskRecord]) -> bool:
        """Whether a task may run on a node that nobody has spoken of yet."""
        return any(
            one.node and one.state not in HOMELESS and self._book.unknown(one.node, one.scheduler)
            for one in tasks
        )

    def _replaced(self, task: TaskRecord) -> bool:
        """Whether a task shall have another node although its own may come back."""
        facts = self._book.nodes.get(task.node)
        lost = facts is not None and facts.state is NodeState.LOST
        return task.spec.policy.replace or not lost or task.node not in task.nodes

    def _good(self, placement: Placement, name: str, avoid: frozenset[str]) -> bool:
        bad = {*avoid, *self.failed.get(name, ())}
        return bool(placement.chosen) and placement.chosen[0] not in bad

    def _grouped(self, tasks: Sequence[TaskRecord], free: Collection[str]) -> frozenset[str]:
        """Add the tasks that have to be on the same node as one of these."""
        groups = {one.spec.group for one in tasks if one.spec.task in free and one.spec.group}
        together = frozenset(free) | _names(one for one in tasks if one.spec.group in groups)
        return together - _names(one for one in tasks if hopeless(one))

    def _spares_of_others(self, free: frozenset[str]) -> dict[str, dict[str, int]]:
        return {
            one.spec.task: {
                node: one.reserved[node]
                for node in one.nodes[1:]
                if node != one.node and node in one.reserved
            }
            for one in self._book.tasks.values()
            if one.spec.task not in free and one.leaving is None
        }


def unplaced(task: TaskRecord) -> bool:
    """Whether a task, or its newest generation, still needs a node that can run it."""
    return task.state in HOMELESS or task.granted < task.generation


def sought(task: TaskRecord) -> bool:
    """Whether a node is looked for: what was given up waits for its next generation."""
    return unplaced(task) and not hopeless(task)


def _names(tasks: Iterable[TaskRecord]) -> frozenset[str]:
    return frozenset(one.spec.task for one in tasks)
