"""A scheduler on a bench: its clock, and the words of nodes and anchor."""

from typing import Any

from msgspec import Struct
from tests_support import INVENTORY, task_spec

from controller.decider import Called, Event, Fired, Output, Received, Send, ToNode
from controller.scheduler.decider import Scheduler, Settings
from protocols.messages import Assign, Birth, EnvelopeGrant, LoadReport, Status
from protocols.messages.invocation import Edge
from protocols.messages.presence import Feeding, Holding
from protocols.messages.task import InstanceState, LostPolicy

READY = InstanceState.READY


def grant(*nodes: str, generation: int = 1, first: int = 1, **changes: Any) -> EnvelopeGrant:
    policy = changes.pop("policy", LostPolicy())
    return EnvelopeGrant(
        "svc",
        generation,
        task_spec(policy=policy),
        nodes,
        first,
        first + 31,
        ("svc.a",),
        (Edge("y", "a", "x"),),
        **changes,
    )


class Bench:
    """A scheduler, its clock, and the words of nodes and anchor."""

    def __init__(self, **settings: Any) -> None:
        self.ts = Scheduler(Settings(**settings))
        self.now_ms = 1_000
        self.incarnations: dict[str, int] = {}
        self.first = self.ts.restore((), self.now_ms)
        self.seen: list[Send] = list(self.first.sends)

    def feed(self, *events: Event) -> Output:
        output = self.ts.handle(list(events), self.now_ms)
        self.seen += output.sends
        return output

    def node(self, node: str, body: Any) -> Output:
        incarnation = self.incarnations.get(node, 1)
        return self.feed(Received(node, incarnation, 0, "default", "test", body))

    def anchor(self, body: Any) -> Output:
        return self.feed(Received("ta-main", 0, 0, "default", "test", body))

    def born(
        self, *nodes: str, holdings: tuple[Holding, ...] = (), feeds: tuple[Feeding, ...] = ()
    ) -> Output:
        output = Output()
        for node in nodes:
            self.incarnations[node] = self.incarnations.get(node, 0) + 1
            output.extend(self.node(node, Birth("1", "boot", INVENTORY, holdings, feeds=feeds)))
            output.extend(self.joined())
        return output

    def joined(self) -> Output:
        """Let time pass until nobody waits in line."""
        output = Output()
        while self.ts.joins:
            self.now_ms = max(self.now_ms, self.ts.joins.due_ms or 0)
            output.extend(self.feed(Fired("joins")))
        return output

    def passes(self, ms: int, *alive: str) -> Output:
        """Let time pass with heartbeats of the nodes that live."""
        output = Output()
        for _ in range(ms // 200):
            self.now_ms += 200
            for node in alive:
                output.extend(self.node(node, LoadReport(self.now_ms, 5.0)))
            output.extend(self.feed(Fired("sweep")))
        return output

    def lasts(self, node: str, body: Any, ms: int = 1000, every_ms: int = 500) -> Output:
        """Have a node say the same for a while, and return what came of it."""
        output = self.node(node, body)
        for _ in range(ms // every_ms):
            self.now_ms += every_ms
            output.extend(self.node(node, body))
        return output

    def ready(self, node: str, epoch: int, generation: int = 1) -> Output:
        status = Status(1, "svc.a", epoch, InstanceState.READY, generation=generation)
        return self.node(node, status)


class Drained(Struct):
    """The arguments of `node.drain`."""

    name: str


def drain(bench: Bench, node: str, operation: str = "node.drain") -> Output:
    """Have an operator drain a node, or resume it."""
    return bench.feed(Called("c", operation, Drained(node), "default", "test", 0))


def said(output: Output, kind: type[Any]) -> list[Any]:
    return [send.body for send in output.sends if isinstance(send.body, kind)]


def told(output: Output, node: str, kind: type[Any]) -> list[Any]:
    return [
        send.body
        for send in output.sends
        if isinstance(send.body, kind) and send.to == ToNode(node)
    ]


def running(bench: Bench, *nodes: str, **changes: Any) -> int:
    """Grant the task and make it ready on the first node; return its epoch."""
    [assign] = said(bench.anchor(grant(*nodes, **changes)), Assign)
    bench.ready(nodes[0], assign.epoch)
    return int(assign.epoch)
