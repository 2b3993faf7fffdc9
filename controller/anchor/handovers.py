"""Handovers of nodes from cell to cell, as their anchor executes them (docs/decisions/0027).

Theory of operation. What a scheduler or an operator requires is PREPARING: targets are asked in
order. The first that has room makes it COMMANDED: the node is told, through its scheduler. When the
node turns up in another cell, commanded or not, it is SWITCHING until each of its tasks has an
owner there (`switching.py`), and COMPLETED then. A conditional one that was not needed is VOID. One
at most is under way for a node; what a crash interrupts goes on from its record, or from the next
summary of where the node is.
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from controller.anchor.crossings import Crossings
from controller.anchor.elsewhere import Elsewheres
from controller.anchor.nearness import STAY_S
from controller.decider import Answer, Called, Received, Record
from controller.handover_records import OWNERLESS, HandoverRecord, HandoverState
from controller.records import HANDOVER
from protocols.errors import Blame
from protocols.messages import (
    HandoverAnswer,
    HandoverCommand,
    HandoverFailed,
    HandoverRequest,
    HandoverRequired,
    HandoverTimes,
    NodeSummary,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.mobility import MAX_CANDIDATES

PREPARE_MS: Final = 2000
"""So long a target may take to answer."""
EXPIRES_MS: Final = 10_000
"""So long a node may take to come."""
CONDITIONAL_MS: Final = 60_000
"""And one that comes when its condition holds."""
LATE_MS: Final = 1000
"""What a command's way to its node may take, beyond."""
HISTORY: Final = 8
"""Handovers of a node that are kept."""
RECORDS_MAX: Final = 20_000
"""Of all nodes; the oldest is forgotten."""
TIMER: Final = "handover/"
_S = HandoverState
TIMES: Final = (
    "leave_ms",
    "link_ms",
    "connect_ms",
    "welcome_ms",
    "complete_ms",
    "linger_ms",
    "apart_ms",
)
UNDER_WAY: Final = (_S.PREPARING, _S.COMMANDED, _S.SWITCHING)


class Handovers:
    """Prepares, commands and follows handovers, and keeps their history."""

    def __init__(self, book: Book, elsewheres: Elsewheres) -> None:
        self._book = book
        self._elsewheres = elsewheres
        settings = book.settings
        self.crossings = Crossings(book.desk, settings.name, settings.mobility.back_ms)
        self.records: dict[str, deque[HandoverRecord]] = {}
        """By node, the oldest first."""
        self._order: deque[tuple[str, int]] = deque()
        self._began_ms: dict[str, int] = {}
        """Of those under way, by node."""
        self._switched_ms: dict[str, dict[str, int]] = {}
        """By node and task: when the task was taken back."""
        self._calls: dict[str, str] = {}
        """Who waits for the answer of a target, by node."""
        self.watch: Callable[[HandoverRecord], None] = lambda _: None
        """Is told of every handover that fails, and of every node that has come."""
        self.changed: Callable[[HandoverRecord], None] = lambda _: None
        """Is told of every step of every handover."""

    def restore(self, records: Iterable[Record]) -> None:
        """Take in the history."""
        found = [one.value for one in records if isinstance(one.value, HandoverRecord)]
        for one in sorted(found, key=lambda one: (one.started_unix_ms, one.node, one.number)):
            kept = self.records.setdefault(one.node, deque())
            kept.append(one)
            self._order.append((one.node, one.number))
        for node, of_node in self.records.items():
            self.records[node] = deque(sorted(of_node, key=lambda one: one.number))
        self.crossings.restore(records)

    def restored(self) -> None:
        """Go on with what a crash has interrupted; who was to be asked is asked anew by others."""
        now_ms = self._book.desk.now_ms
        for node in list(self.records):
            one = self.under_way(node)
            if one is None:
                continue
            self._began_ms[node] = now_ms - max(one.phases.values(), default=0)
            if one.state is _S.PREPARING:
                self._end(one, _S.FAILED, "its anchor has begun anew", "start")
            elif one.state is _S.COMMANDED:
                self._wake(node, CONDITIONAL_MS if one.conditional else EXPIRES_MS)
            else:
                waiting = {name: now_ms for name in one.tasks if self._waits(name)}
                self._switched_ms[node] = waiting
                self._settle(node, "start")

    def _waits(self, task: str) -> bool:
        record = self._book.tasks.get(task)
        return record is not None and bool(record.heir)

    def under_way(self, node: str) -> HandoverRecord | None:
        """Return the handover that is under way for a node."""
        of_node = self.records.get(node)
        newest = of_node[-1] if of_node else None
        return newest if newest is not None and newest.state in UNDER_WAY else None

    # What is required.

    def called(self, event: Called) -> None:
        """Hand a node over as an operator asks; the answer comes with the target's."""
        node, cell = str(getattr(event.arguments, "name", "")), getattr(event.arguments, "cell", "")
        why, busy = self._impossible(node, (cell,)), self._under_way(node)
        if why or busy:
            blame = Blame.USER if why else Blame.ENVIRONMENT
            self._book.desk.answer(Answer(event.call, error=why or busy, blame=blame, busy=not why))
            return
        self._begin(node, "", (cell,), "an operator asks for it", event.cause, by_hand=True)
        # Not before: what it takes the place of ends, which answers whoever asked for that.
        self._calls[node] = event.call

    def required(self, event: Received, body: HandoverRequired) -> None:
        """Hand a node over as its scheduler asks."""
        facts = self._book.nodes.get(body.node)
        why = self._impossible(body.node, body.cells) or self._under_way(body.node)
        if facts is None or facts.scheduler != event.sender or facts.attached != body.incarnation:
            why = f"{body.node} is not attached there any more"
        if why:
            answer = HandoverAnswer(body.handover, body.node, False, body.cells[0], why)
            self._book.desk.tell_role(event.sender, answer, event.cause)
            return
        self._begin(
            body.node,
            body.handover,
            body.cells,
            body.cause,
            event.cause,
            by_hand=body.by_hand,
            condition=body if body.conditional else None,
        )

    def busy(self, node: str) -> bool:
        """Whether a handover of a node is under way that another one may not replace."""
        before = self.under_way(node)
        return before is not None and not (before.conditional and before.state is _S.COMMANDED)

    def _impossible(self, node: str, cells: tuple[str, ...]) -> str:
        """Return why a node cannot be handed over to any of these cells; empty: it can."""
        facts = self._book.nodes.get(node)
        if facts is None:
            return f"there is no node {node!r}"
        here = self._elsewheres.cell_of(facts.scheduler)
        if facts.state not in (NodeState.ONLINE, NodeState.DRAINING):
            return f"node {node!r} is {facts.state}: only one that is online can be handed over"
        if set(cells) == {here}:
            return f"node {node!r} is served by cell {here!r} already"
        known = sorted(one.cell for one in self._elsewheres if one.cell != here)
        if not set(cells) & set(known):
            named = ", ".join(known) if known else "none"
            return f"there is no cell {cells[0]!r} that {node!r} could go to; there are: {named}"
        return ""

    def _under_way(self, node: str) -> str:
        """Return in a sentence which handover of a node has to end before; empty: none."""
        before = self.under_way(node)
        if before is None or not self.busy(node):
            return ""
        return (
            f"handover {before.handover} of node {node!r} to {before.target} is {before.state}: "
            "ask again when it has ended"
        )

    def _begin(
        self,
        node: str,
        handover: str,
        cells: tuple[str, ...],
        why: str,
        cause: str,
        *,
        by_hand: bool = False,
        condition: HandoverRequired | None = None,
    ) -> None:
        before = self.under_way(node)
        if before is not None:
            # Only a conditional one that waits lets another one begin.
            self._end(before, _S.VOID, "another one takes its place", cause)
        facts = self._book.nodes[node]
        here = self._elsewheres.cell_of(facts.scheduler)
        known = {one.cell for one in self._elsewheres} - {here}
        target, *others = [one for one in cells if one in known][:MAX_CANDIDATES]
        # No other anchor hands over what is attached here.
        named = handover or f"{node}-{facts.attached}.{self._number(node)}"
        record = self._new(node, named, here, target, why)
        record = structs.replace(
            record,
            others=tuple(others),
            incarnation=facts.attached,
            by_hand=by_hand,
            conditional=condition is not None,
            offset_db=condition.offset_db if condition is not None else 0.0,
            time_to_trigger_ms=condition.time_to_trigger_ms if condition is not None else 0,
        )
        self._put(record, cause)
        self._ask(record, cause)

    def _number(self, node: str) -> int:
        of_node = self.records.get(node)
        return of_node[-1].number + 1 if of_node else 1

    def _new(self, node: str, handover: str, source: str, target: str, why: str) -> HandoverRecord:
        number = self._number(node)
        self._began_ms[node] = self._book.desk.now_ms
        return HandoverRecord(
            handover,
            node,
            number,
            source,
            target,
            _S.PREPARING,
            why,
            phases={_S.PREPARING.value: 0},
            started_unix_ms=self._book.desk.unix_ms,
        )

    # Preparation and command.

    def _ask(self, record: HandoverRecord, cause: str) -> None:
        facts = self._book.nodes[record.node]
        to = self._scheduler_at(record.target)
        request = HandoverRequest(
            record.handover,
            record.node,
            record.incarnation,
            facts.scheduler,
            facts.inventory,
            expires_ms=CONDITIONAL_MS if record.conditional else EXPIRES_MS,
        )
        self._book.desk.tell_role(to, request, cause)
        self._wake(record.node, PREPARE_MS)

    def answered(self, event: Received, body: HandoverAnswer) -> None:
        """Take in whether a target has room."""
        record = self._of(body.node, body.handover, _S.PREPARING)
        if record is None or event.sender != self._scheduler_at(record.target):
            self._book.counters["stale_report"] += 1
            return
        if not body.admitted:
            self._next(record, f"{record.target} refuses: {body.reason}", event.cause)
            return
        source = self._scheduler_at(record.source)
        point = self._elsewheres.points[event.sender]
        expires_ms = CONDITIONAL_MS if record.conditional else EXPIRES_MS
        command = HandoverCommand(
            record.handover,
            record.node,
            point,
            record.incarnation,
            record.conditional,
            record.offset_db,
            record.time_to_trigger_ms,
            expires_ms=expires_ms,
        )
        record = self._put(self._at(record, _S.COMMANDED), event.cause)
        self._book.desk.tell_role(source, body, event.cause)
        self._book.desk.tell_role(source, command, event.cause)
        self._wake(record.node, expires_ms + LATE_MS)
        self._answer(record)

    def _next(self, record: HandoverRecord, why: str, cause: str) -> None:
        """Ask the next target, or give it up."""
        if record.others:
            target, *others = record.others
            record = structs.replace(record, target=target, others=tuple(others), reason=why)
            self._ask(self._put(record, cause), cause)
            return
        answer = HandoverAnswer(record.handover, record.node, False, record.target, why[:2000])
        self._book.desk.tell_role(self._scheduler_at(record.source), answer, cause)
        self.watch(self._end(record, _S.REFUSED, why, cause))

    def failed(self, event: Received, body: HandoverFailed) -> None:
        """Take in that a node could not be handed over; it stays where it is."""
        record = self._of(body.node, body.handover, _S.COMMANDED)
        if record is not None and event.sender in self._book.settings.schedulers:
            self.watch(self._end(record, _S.FAILED, body.reason, event.cause))

    def fired(self, node: str) -> None:
        """Give up what has not come in time."""
        record = self.under_way(node)
        if record is None:
            return
        if record.state is _S.PREPARING:
            self._next(record, f"{record.target} does not answer", "handover")
        elif record.state is _S.COMMANDED and record.conditional:
            why = "its condition has not held in time"
            self._end(record, _S.VOID, why, "handover")
        elif record.state is _S.COMMANDED:
            why = f"it has not come to {record.target} in time"
            self.watch(self._end(record, _S.FAILED, why, "handover"))

    # When the node has come.

    def came(self, summary: NodeSummary, before: str, to: str, cause: str) -> None:
        """Take in that a node is attached to another cell now."""
        node, arrival = summary.node, summary.arrival
        record = self.under_way(node)
        source, target = self._elsewheres.cell_of(before), self._elsewheres.cell_of(to)
        if record is None:
            why = "it came by itself"
            if arrival is not None and not arrival.attached:
                why = f"its link to {arrival.source} was lost"
            named = arrival.handover if arrival is not None else ""
            named = named or f"{node}-{summary.incarnation}"
            if arrival is not None and arrival.handover:
                why = "another anchor has handed it over"
            record = structs.replace(self._new(node, named, source, target, why), phases={})
        if record.target != target:
            reason = f"it came to {target}, not to {record.target}"
            record = structs.replace(record, target=target, reason=reason)
        record = structs.replace(
            self._at(record, _S.SWITCHING),
            arrived=summary.incarnation,
            attached=arrival is not None and arrival.attached,
        )
        self._book.desk.wake(TIMER + node, None)
        self._switched_ms.setdefault(node, {})
        self._put(record, cause)
        self.watch(record)
        self._answer(record)

    def task_begun(self, node: str, task: str) -> None:
        """Take in that a task is on its way to another scheduler."""
        self._switched_ms.setdefault(node, {})[task] = self._book.desk.now_ms

    def task_done(self, node: str, task: str) -> None:
        """Take in that a task has its owner."""
        since_ms = self._switched_ms.get(node, {}).pop(task, None)
        record = self.under_way(node)
        if record is None or since_ms is None:
            return
        waited_ms = self._book.desk.now_ms - since_ms
        longest_ms = max(waited_ms, record.phases.get(OWNERLESS, 0))
        tasks = tuple(dict.fromkeys((*record.tasks, task)))[:64]
        phases = {**record.phases, OWNERLESS: longest_ms}
        self._keep(structs.replace(record, tasks=tasks, phases=phases))

    def settle(self, cause: str = "handover") -> None:
        """Complete what has nothing left to wait for."""
        for node in [one for one, waiting in self._switched_ms.items() if not waiting]:
            self._settle(node, cause)

    def _settle(self, node: str, cause: str) -> None:
        if self._switched_ms.get(node):
            return
        self._switched_ms.pop(node, None)
        record = self.under_way(node)
        if record is not None and record.state is _S.SWITCHING:
            self._end(record, _S.COMPLETED, record.reason, cause)

    def took(self, event: Received, body: HandoverTimes) -> None:
        """Take in what a node says of how it came."""
        of_node = self.records.get(body.node, deque())
        for at, record in enumerate(of_node):
            if record.arrived == body.incarnation and not record.times:
                named = ((one, getattr(body, one)) for one in TIMES)
                times = {one: round(ms, 3) for one, ms in named if ms is not None}
                of_node[at] = told = structs.replace(
                    record,
                    times=times,
                    gap_ms=body.gap_ms and round(body.gap_ms, 3),
                    spacing_ms=body.spacing_ms and round(body.spacing_ms, 3),
                    asked_again=body.asked_again,
                    said_again=body.said_again,
                    client_gap_ms=body.client_gap_ms and round(body.client_gap_ms, 3),
                )
                key = self._key(record.node, record.number)
                self._book.desk.keep(HANDOVER, key, told, event.cause)
                self.crossings.told(told, event.cause)

    # Records.

    def _of(self, node: str, handover: str, state: HandoverState) -> HandoverRecord | None:
        record = self.under_way(node)
        fits = record is not None and record.handover == handover and record.state is state
        return record if fits else None

    def _scheduler_at(self, cell: str) -> str:
        return next((one.scheduler for one in self._elsewheres if one.cell == cell), "")

    def _at(self, record: HandoverRecord, state: HandoverState) -> HandoverRecord:
        """Return a handover that has come to a state now."""
        now_ms = self._book.desk.now_ms
        passed_ms = now_ms - self._began_ms.get(record.node, now_ms)
        return structs.replace(
            record, state=state, phases={**record.phases, state.value: passed_ms}
        )

    def _end(
        self, record: HandoverRecord, state: HandoverState, why: str, cause: str
    ) -> HandoverRecord:
        record = structs.replace(self._at(record, state), reason=why[:500])
        back = state is _S.COMPLETED and self.crossings.returns(record)
        record = self._put(structs.replace(record, ping_pong=back), cause)
        self.crossings.ended(record, cause)
        self._began_ms.pop(record.node, None)
        self._book.desk.wake(TIMER + record.node, None)
        self._answer(record)
        return record

    def _answer(self, record: HandoverRecord) -> None:
        call = self._calls.pop(record.node, None)
        if call is None:
            return
        if record.state in (_S.REFUSED, _S.FAILED):
            why = f"node {record.node!r} is not handed over: {record.reason}"
            self._book.desk.answer(Answer(call, error=why, blame=Blame.ENVIRONMENT))
        else:
            self._book.desk.answer(Answer(call, value=record))

    def _wake(self, node: str, in_ms: int) -> None:
        self._book.desk.wake(TIMER + node, self._book.desk.now_ms + in_ms)

    def serves(self, node: str, task: str, verdict: str, cause: str) -> None:
        """Note in a node's newest handover whether a task that serves it follows."""
        of_node = self.records.get(node)
        if of_node and of_node[-1].edge.get(task) != verdict:
            edge = {**of_node[-1].edge, task: verdict}
            self._write(structs.replace(of_node[-1], edge=edge), cause)

    def stays_s(self, node: str) -> float:
        """Return how long a node is thought to stay in a cell: the mean of what it has done."""
        began = [
            one.started_unix_ms
            for one in self.records.get(node, ())
            if one.state in (_S.COMPLETED, _S.SWITCHING)
        ]
        if len(began) < 3:  # noqa: PLR2004 - two stays, of which one may be an exception
            return STAY_S
        return max(1.0, (began[-1] - began[0]) / (len(began) - 1) / 1000)

    def _put(self, record: HandoverRecord, cause: str) -> HandoverRecord:
        self._write(record, cause)
        self.changed(record)
        return record

    def _write(self, record: HandoverRecord, cause: str) -> HandoverRecord:
        self._keep(record)
        key = self._key(record.node, record.number)
        self._book.desk.keep(HANDOVER, key, record, cause)
        return record

    def _key(self, node: str, number: int) -> str:
        # Other anchors keep what they have seen of the same handovers.
        return f"{node}/{self._book.settings.name}/{number % HISTORY}"

    def _keep(self, record: HandoverRecord) -> None:
        of_node = self.records.setdefault(record.node, deque())
        if of_node and of_node[-1].number == record.number:
            of_node[-1] = record
            return
        of_node.append(record)
        self._order.append((record.node, record.number))
        while len(of_node) > HISTORY:
            of_node.popleft()
        if len(self._order) > RECORDS_MAX:
            self._drop(*self._order.popleft())

    def _drop(self, node: str, number: int) -> None:
        of_node = self.records.get(node)
        if of_node and of_node[0].number == number and len(of_node) > 1:
            of_node.popleft()
            self._book.desk.keep(HANDOVER, self._key(node, number), None, "handover")

    def forget(self, node: str) -> None:
        """Forget the history of a node that is known no more."""
        for one in self.records.pop(node, ()):
            self._book.desk.keep(HANDOVER, self._key(node, one.number), None, "forget")
