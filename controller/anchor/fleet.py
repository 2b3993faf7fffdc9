"""Nodes, coarsely, as their schedulers summarise them; and the fleet, more coarsely, for NAMO."""

from typing import Final

from controller.anchor.book import Book
from controller.anchor.elsewhere import Elsewheres
from controller.anchor.handovers import Handovers
from controller.anchor.placement import NodeFacts
from controller.anchor.placing import Placing
from controller.anchor.search import unplaced
from controller.anchor.switching import Switching
from controller.decider import Received
from protocols.messages import AnchorSummary, NodeSummary
from protocols.messages.hierarchy import NodeState

SUMMARY_MS: Final = 5000
SOON_MS: Final = 500
"""A clear change is told this soon, together with what else changes meanwhile."""
MAX_SEATS: Final = 100_000
TIMER: Final = "summary"


class Fleet:
    """Takes in node summaries, and sends what NAMO is to know of them."""

    def __init__(
        self,
        book: Book,
        placing: Placing,
        switching: Switching,
        handovers: Handovers,
        elsewheres: Elsewheres,
    ) -> None:
        self._book = book
        self._placing = placing
        self._switching = switching
        self._handovers = handovers
        self._elsewheres = elsewheres
        self._incarnations: dict[str, int] = {}
        self._seated: dict[str, tuple[str, ...]] = {}
        self._changed: dict[str, str] = {}
        """Nodes that came, went or changed in this turn, and the cause."""
        self._due_ms: int | None = None

    def begin(self) -> None:
        """Begin with the regular summaries; no word of an attachment that was over counts."""
        for task in self._book.tasks.values():
            if task.home and task.attached:
                known = self._incarnations.get(task.home, 0)
                self._incarnations[task.home] = max(known, task.attached)
        self._wake(SUMMARY_MS)

    def summary(self, event: Received, summary: NodeSummary) -> None:
        """Take in what a scheduler says of a node; the node is of the cell that it came to last."""
        book, node = self._book, summary.node
        if event.sender not in book.settings.schedulers:
            book.counters["unknown_scheduler"] += 1
            return
        old = book.nodes.get(node)
        if not summary.forgotten and summary.incarnation < self._incarnations.get(node, 0):
            # The cell that it has left speaks of what was.
            return
        if (
            old is not None
            and old.scheduler not in ("", event.sender)
            and summary.state is not NodeState.ONLINE
        ):
            return
        if summary.forgotten:
            self._forget(node)
            return
        self._incarnations[node] = summary.incarnation
        self._seat(node, summary.tasks)
        facts = NodeFacts(
            node,
            summary.state,
            summary.inventory,
            summary.cpu_percent,
            summary.round_trip_ms,
            event.sender,
            attached=summary.incarnation,
        )
        freed = self._others(node, summary)
        book.put_node(facts)
        moved = old is not None and old.scheduler not in ("", facts.scheduler)
        if old is not None and moved:
            self._handovers.came(summary, old.scheduler, event.sender, event.cause)
            self._elsewheres.node_moved(node, event.cause)
        same = old is not None and (old.state, old.inventory, old.scheduler) == (
            facts.state,
            facts.inventory,
            facts.scheduler,
        )
        if not same:
            self._switching.look(node, event.cause)
        if summary.kept:
            self._switching.kept(node, summary, event.sender, event.cause)
        if same and not freed:
            return
        self._wake(SOON_MS)
        self._changed.setdefault(node, event.cause)

    def _others(self, node: str, summary: NodeSummary) -> bool:
        """Take in what tasks of other anchors have there; returns whether that is less now."""
        ledger = self._book.ledger
        if not summary.others and not ledger.others(node):
            ledger.put_others(node, ())
            return False
        before = ledger.taken_bytes(node), ledger.taken_instances(node)
        ledger.put_others(node, summary.others)
        after = ledger.taken_bytes(node), ledger.taken_instances(node)
        return any(now < then for now, then in zip(after, before, strict=True))

    def _forget(self, node: str) -> None:
        self._seat(node, ())
        self._book.ledger.put_others(node, ())
        self._incarnations.pop(node, None)
        self._changed.pop(node, None)
        self._handovers.forget(node)
        self._book.drop_node(node)
        self._wake(SOON_MS)

    def _seat(self, node: str, tasks: tuple[str, ...]) -> None:
        """Note which tasks a node has; only the newest word about a task counts."""
        seats = self._book.seats
        for task in self._seated.pop(node, ()):
            if seats.get(task) == node:
                del seats[task]
        if tasks and len(seats) < MAX_SEATS:
            self._seated[node] = tasks
            seats.update(dict.fromkeys(tasks, node))

    def settle(self) -> None:
        """Look at every service that the changes of this turn may concern."""
        changed, self._changed = self._changed, {}
        if not changed:
            return
        book, placing = self._book, self._placing
        came = {node for node in changed if book.usable(node)}
        cause = next(iter(changed.values()))
        for failed in placing.search.failed.values():
            for node in came & failed.keys():
                del failed[node]
        for service in list(book.services):
            if self._concerned(service, new=bool(came)):
                placing.later(service, cause)

    def _concerned(self, service: str, *, new: bool) -> bool:
        """Whether a service may need a node, or gain from one that came."""
        book, order = self._book, self._book.services[service].order
        if order.sources:
            return True
        for task in book.ordered(service):
            there = sum(not book.gone(one, task.scheduler) for one in task.nodes)
            if (new and unplaced(task)) or (not unplaced(task) and there < 1 + order.spares):
                return True
        return False

    def patience_over(self, scheduler: str) -> None:
        """Look at what was left alone while a scheduler had not spoken of all its nodes."""
        for service in self._book.services:
            if any(one.scheduler == scheduler for one in self._book.ordered(service)):
                self._placing.later(service, "silence")

    # For NAMO.

    def fired(self) -> None:
        """Tell NAMO how the fleet is, and come back."""
        self._due_ms = None
        self._book.desk.tell_role(self._book.settings.namo, self._summarise(), TIMER)
        self._wake(SUMMARY_MS)

    def again(self) -> None:
        """Tell a NAMO that has begun anew."""
        self._wake(0)

    def _wake(self, in_ms: int) -> None:
        at_ms = self._book.desk.now_ms + in_ms
        if self._due_ms is None or at_ms < self._due_ms:
            self._due_ms = at_ms
            self._book.desk.wake(TIMER, at_ms)

    def _summarise(self) -> AnchorSummary:
        settings, census = self._book.settings, self._book.census
        free, largest = census.free_bytes(self._book.ledger)
        trip_ms = census.round_trip_ms
        return AnchorSummary(
            anchor=settings.name,
            side=settings.side,
            cells=settings.cells,
            nodes=len(census),
            cpu_count=census.cpu_count,
            cpu_percent=round(census.cpu_percent, 1),
            task_memory_free_bytes=free,
            largest_free_bytes=largest,
            round_trip_ms=None if trip_ms is None else round(trip_ms, 2),
            executors=census.executors,
            accelerators=census.accelerators,
            lost=len(self._book.nodes) - len(census),
        )
