"""Questions to the logs of nodes: asked side by side, answered together, within a time.

The records stay where they were made: to send every one of thousands a second upwards would load
the links for what is read rarely. What is kept here is the head of each log's chain, with which a
node's answer is held against what the node said before.
"""

from collections.abc import Callable, Sequence
from typing import Final

import msgspec
from msgspec import Struct, field

from controller.accounts import (
    AuditTask,
    Call,
    CallRecord,
    HeadsRecord,
    TaskAudit,
    newest_first,
    view,
)
from controller.decider import Answer, Called, Received, ToNode
from controller.desk import Desk
from protocols.errors import Blame
from protocols.messages import AuditPage, AuditQuery

ASK_MS: Final = 10_000
"""How long nodes may take; those that have not answered are named."""
NODES_MAX: Final = 32
"""Nodes that are asked at once."""
QUESTIONS_MAX: Final = 64
PAGES_MAX: Final = 8
"""Pages that are asked of one node for one question."""
TIMER: Final = "audit/"

_decoder = msgspec.msgpack.Decoder(list[CallRecord])


class _Question(Struct):
    call: Called
    arguments: AuditTask
    waiting: dict[str, int]
    """Nodes that have not answered, and how many pages they have given."""
    calls: list[Call] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


class Inquiries:
    """The questions that are open."""

    def __init__(
        self,
        desk: Desk,
        epoch: int,
        listens: Callable[[str], bool],
        heads: Callable[[str], HeadsRecord | None],
    ) -> None:
        """Begin; `listens` tells whether a node can be asked, `heads` what it said of its log."""
        self._desk = desk
        self._epoch = epoch
        self._listens = listens
        self._heads = heads
        self._open: dict[str, _Question] = {}
        self._number = 0

    def ask(self, call: Called, arguments: AuditTask, nodes: Sequence[str]) -> None:
        """Ask the nodes that have run a task for its calls."""
        if len(self._open) >= QUESTIONS_MAX:
            text = "too many questions to the logs at once; try again in a moment"
            self._desk.answer(Answer(call.call, error=text, blame=Blame.ENVIRONMENT))
            return
        self._number += 1
        number = f"{self._epoch:x}.{self._number}"
        question = _Question(call, arguments, {})
        for node in nodes[:NODES_MAX]:
            if self._listens(node):
                question.waiting[node] = 0
            else:
                question.problems[node] = "the node is not here now"
        for node in nodes[NODES_MAX:]:
            question.problems[node] = f"no more than {NODES_MAX} nodes are asked: name one"
        self._open[number] = question
        for node in question.waiting:
            self._send(number, question, node, 0)
        self._desk.wake(TIMER + number, self._desk.now_ms + ASK_MS)
        self._finish(number)

    def _send(self, number: str, question: _Question, node: str, before: int) -> None:
        one, known = question.arguments, self._heads(node)
        query = AuditQuery(
            number,
            one.name,
            one.since_unix_ms,
            one.verdict,
            one.user,
            one.limit,
            before,
            {str(logged): head for logged, head in known.heads} if known is not None else {},
        )
        self._desk.tell(ToNode(node), query, question.call.cause)

    def answered(self, event: Received, page: AuditPage) -> None:
        """Take in a page; ask for the next one where that is wanted."""
        question, node = self._open.get(page.number), event.sender
        if question is None or node not in question.waiting:
            return
        try:
            records = _decoder.decode(page.records or b"\x90")
        except (msgspec.DecodeError, UnicodeDecodeError):
            records, page = [], msgspec.structs.replace(page, problem="its answer is malformed")
        question.calls += [view(node, one) for one in records]
        question.waiting[node] += 1
        known = self._heads(node)
        problem = page.problem or (known.problem if known is not None else "")
        if problem:
            question.problems.setdefault(node, problem)
        have = sum(1 for one in question.calls if one.node == node)
        more = page.next and have < question.arguments.limit
        if more and question.waiting[node] < PAGES_MAX:
            self._send(page.number, question, node, page.next)
            return
        del question.waiting[node]
        if node not in question.problems:
            question.checked.append(node)
        self._finish(page.number)

    def fired(self, number: str) -> None:
        """Answer with what has come."""
        question = self._open.get(number)
        if question is not None:
            late = dict.fromkeys(question.waiting, f"no answer within {ASK_MS // 1000} s")
            question.problems |= late
            question.waiting.clear()
            self._finish(number)

    def _finish(self, number: str) -> None:
        question = self._open[number]
        if question.waiting:
            return
        del self._open[number]
        self._desk.wake(TIMER + number, None)
        calls = newest_first(question.calls, question.arguments.limit)
        value = TaskAudit(calls, tuple(sorted(question.checked)), question.problems)
        self._desk.answer(Answer(question.call.call, value=value))
