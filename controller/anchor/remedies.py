"""What an anchor can do for a task whose scheduler cannot keep its quality.

In the order in which they are tried: more nodes, a larger share, another model, another source of
its data, another cell. Each says what it would do before it does it, so that a person can be asked.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Final

from msgspec import Struct, structs

from controller.anchor.book import Book
from controller.anchor.envelopes import Wider, choose_sources
from controller.anchor.faults import hopeless
from controller.anchor.placing import MAX_ENVELOPE, Placing
from controller.anchor.privacy import taken_in
from controller.records import TaskRecord
from protocols.qoais import INDICATORS, Dimension

LEFT_MS: Final = 120_000
"""A task does not go back so soon to a node that it left for its quality's sake."""
_NODES, _SHARE, _MODEL, _DATA, _CELL = "nodes", "share", "model", "data", "cell"
_ORDER: Final = (_NODES, _SHARE, _MODEL, _DATA, _CELL)
_FIRST: Final = {Dimension.ALGORITHM: _MODEL, Dimension.DATA: _DATA}
"""What an indicator of this dimension asks for before all else."""


class Remedy(Struct, frozen=True):
    """One thing that can be done now."""

    kind: str
    action: str
    """In words, such as `grant n4 and n5 too`."""
    do: Callable[[str], bool]
    """Does it, given the cause; False when it turns out impossible."""


class Remedies:
    """Finds what is possible now."""

    def __init__(self, book: Book, placing: Placing) -> None:
        self._book = book
        self._placing = placing
        self._left: dict[str, dict[str, int]] = {}
        """Of each task the nodes that it left, and when."""
        self._makers: dict[str, Callable[[TaskRecord, str], Remedy | str]] = {
            _NODES: self._more_nodes,
            _SHARE: self._more_share,
            _MODEL: self._other_model,
            _DATA: self._other_source,
            _CELL: self._other_cell,
        }

    def kinds(self, indicator: str) -> Sequence[str]:
        """Return the kinds of remedy for an indicator, in the order to try them."""
        known = INDICATORS.get(indicator)
        first = _FIRST.get(known.dimension) if known and known.dimension else None
        if first is None:
            return _ORDER
        return (first, *(one for one in _ORDER if one != first))

    def make(self, kind: str, task: TaskRecord, why: str) -> Remedy | str:
        """Return what of this kind can be done for a task, or why nothing can."""
        if task.leaving is not None:
            return "it is on its way to another cell"
        if any(one.heir for one in self._book.ordered(task.service)):
            # It has no scheduler for a moment: nobody there could be let go, or asked.
            return "it follows its node to another cell"
        if hopeless(task):
            return f"its generation {task.generation} can run nowhere"
        return self._makers[kind](task, why)

    def _more_nodes(self, task: TaskRecord, why: str) -> Remedy | str:
        book, search = self._book, self._placing.search
        name, service = task.spec.task, task.service
        spares = book.services[service].order.spares
        there = tuple(one for one in task.nodes if not book.gone(one, task.scheduler))
        if task.leeway.moves and not task.spec.group:
            fresh = search.spares(task, min(1 + spares, MAX_ENVELOPE - len(there)), task.nodes)
            if not fresh:
                return "no other node of its cell can take it"
            return Remedy(
                _NODES,
                f"grant {name} also {', '.join(fresh)}",
                lambda cause: self._placing.widen(
                    book.tasks[name], (*fresh, *there), cause, f"{why}: more nodes"
                ),
            )
        found = search.elsewhere(service, {name}, {task.node, *self._just_left(name)})
        if not found.complete:
            return "no other node of its cell can take it, and what has to be with it"
        to = found.plan[name].chosen[0]

        def do(cause: str) -> bool:
            self._left.setdefault(name, {})[task.node] = book.desk.now_ms
            return self._placing.apply(service, found, cause, why)

        return Remedy(_NODES, f"move {name} from {task.node or 'nowhere'} to {to}", do)

    def _just_left(self, name: str) -> Collection[str]:
        """Return the nodes that a task left a short while ago; forget the others."""
        now_ms = self._book.desk.now_ms
        for task, nodes in list(self._left.items()):
            kept = {node: at_ms for node, at_ms in nodes.items() if now_ms - at_ms < LEFT_MS}
            if kept and task in self._book.tasks:
                self._left[task] = kept
            else:
                del self._left[task]
        return self._left.get(name, {}).keys()

    def _more_share(self, task: TaskRecord, why: str) -> Remedy | str:
        return self._wider(task, _SHARE, structs.replace(self._held(task), share=True), why)

    def _other_model(self, task: TaskRecord, why: str) -> Remedy | str:
        if not task.spec.variants:
            return "it has no variants"
        return self._wider(task, _MODEL, structs.replace(self._held(task), variants=True), why)

    def _held(self, task: TaskRecord) -> Wider:
        return self._placing.wider.get(task.spec.task, Wider())

    def _wider(self, task: TaskRecord, kind: str, wider: Wider, why: str) -> Remedy | str:
        name = task.spec.task
        before = self._held(task)
        self._placing.wider[name] = wider
        after = self._placing.reserve(task).leeway
        self._placing.wider[name] = before
        gains = []
        # Without a share of its own it takes what the node has: more of one changes nothing.
        if task.tuning.cpu_percent and after.cpu_percent_max > task.leeway.cpu_percent_max:
            gains.append(f"up to {after.cpu_percent_max:.0f} % of a core")
        if after.replicas_max > task.leeway.replicas_max:
            gains.append(f"up to {after.replicas_max} workers")
        fresh = [one for one in after.variants if one not in task.leeway.variants]
        if fresh:
            gains.append(f"variants {', '.join(fresh)}")
        if not gains:
            return "it has all of that which its document allows and its nodes have room for"

        def do(cause: str) -> bool:
            self._placing.wider[name] = wider
            held = self._book.tasks[name]
            return self._placing.widen(held, held.nodes, cause, f"{why}: {' and '.join(gains)}")

        return Remedy(kind, f"allow {name} {' and '.join(gains)}", do)

    def _other_source(self, task: TaskRecord, why: str) -> Remedy | str:
        del why
        service = task.service
        held = self._book.services[service]
        eaten = taken_in(task.spec)
        for source in held.sources:
            if source.input not in eaten or len(source.nodes) < 2:  # noqa: PLR2004 - one more
                continue
            current, name = source.nodes[0], source.input
            tasks = self._book.ordered(service)
            shunned = self._placing.shunned.get(service, {}) | {name: current}
            after, _ = choose_sources(
                held.order.sources, held.sources, tasks, self._book.nodes, shunned
            )
            to = next((one.nodes[0] for one in after if one.input == name), current)
            if to == current:
                continue

            def do(cause: str, shunned: dict[str, str] = shunned) -> bool:
                self._placing.shunned[service] = shunned
                return self._placing.feed(service, cause)

            return Remedy(_DATA, f"read input {name} from {to} instead of {current}", do)
        return "no other node provides its data" if eaten else "it takes no data from a node"

    def _other_cell(self, task: TaskRecord, why: str) -> Remedy | str:
        service = task.service
        if len(self._book.settings.schedulers) < 2:  # noqa: PLR2004 - another one
            return "there is no other cell"
        found = self._placing.search.another_cell(service)
        if not found.complete:
            reason = found.plan[task.spec.task].reason
            return f"no other cell can take its service: {reason}"
        return Remedy(
            _CELL,
            f"move service {service} to the cell of {found.scheduler}",
            lambda cause: self._placing.apply(service, found, cause, why),
        )
