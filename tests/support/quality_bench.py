"""A scheduler in closed loop with simulated nodes: what it does changes what they measure."""

import random
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import Struct
from scheduler_bench import Bench
from tests_support import manifest, task_spec

from controller.decider import Fired, Output, Send, ToNode
from protocols.manifest import ArtifactRef, Manifest
from protocols.messages import (
    AnchorWelcome,
    Assign,
    EnvelopeGrant,
    Escalation,
    Feed,
    LoadReport,
    QualityReport,
    Status,
    TaskEvent,
    Tune,
)
from protocols.messages.hierarchy import TaskQos
from protocols.messages.invocation import Edge
from protocols.messages.quality import Leeway, TaskSample, Tuning, UserSample, Variant
from protocols.messages.task import InstanceState

STEP_MS = 100
WINDOW_MS = 500
START_MS = 300


def program(number: int) -> Manifest:
    """Return a manifest whose artifact is this number."""
    ref = ArtifactRef(f"sha256:{number:064x}", 1)
    return msgspec.structs.replace(manifest(), artifact=ref)


SMALL = Variant("small", program(1), accuracy_percent=90.0, expected_ms=40.0)
TINY = Variant("tiny", program(2), accuracy_percent=80.0, expected_ms=20.0)


def envelope(
    *nodes: str, latency_ms: float | None = 100.0, leeway: Leeway | None = None, **changes: Any
) -> EnvelopeGrant:
    """Return a grant of one task with a latency budget and this leeway."""
    spec_changes = changes.pop("spec", {})
    qos = spec_changes.pop("qos", TaskQos(latency_ms=latency_ms))
    spec = task_spec(qos=qos, variants=(SMALL, TINY), expected_ms=80.0, **spec_changes)
    return EnvelopeGrant(
        "svc",
        changes.pop("generation", 1),
        spec,
        nodes,
        changes.pop("first", 1),
        changes.pop("last", 200),
        ("svc.a",),
        (Edge("y", "a", "x"),),
        leeway=leeway if leeway is not None else Leeway(),
        **changes,
    )


class Truth(Struct):
    """What a run costs now: `run_ms(node, tuning, feed)` and what waits before it."""

    run_ms: Callable[[str, Tuning, Feed | None], float]
    queue_ms: float = 0.0
    per_s: float = 10.0
    noise: float = 0.05
    shed_share: float = 0.0
    sent_bytes: int = 0


class Loop(Bench):
    """Nodes that obey and measure."""

    def __init__(self, truth: Truth, seed: int = 0, nodes: tuple[str, ...] = ("n1", "n2")) -> None:
        super().__init__()
        self.truth = truth
        self.dice = random.Random(seed)
        self.cpu = dict.fromkeys(nodes, 20.0)
        self.running: Assign | None = None
        self.tuning = Tuning()
        self.node_now = ""
        self.feed_now: Feed | None = None
        self.refuses = False
        self.due: list[tuple[int, Callable[[], Output]]] = []
        self.out = Output()
        self.anchor(AnchorWelcome("ta-main", 1, 0))
        self.born(*nodes)
        for node in nodes:
            self.node(node, LoadReport(self.now_ms, self.cpu[node]))

    def feed(self, *events: Any) -> Output:
        output = super().feed(*events)
        if hasattr(self, "due"):
            for send in output.sends:
                self._obey(send)
        return output

    def _obey(self, send: Send) -> None:
        if not isinstance(send.to, ToNode):
            return
        node, body = send.to.node, send.body
        if isinstance(body, Assign):
            self.due.append((self.now_ms + START_MS, lambda: self._start(node, body)))
        elif isinstance(body, Tune):
            self.due.append((self.now_ms + 50, lambda: self._tuned(node, body)))
        elif isinstance(body, Feed) and body.sources:
            self.feed_now = body

    def _start(self, node: str, assign: Assign) -> Output:
        if self.refuses and self.running is not None:
            failed = Status(1, assign.task, assign.epoch, InstanceState.FAILED, "no memory")
            return self.node(node, failed)
        if self.running is None or assign.epoch >= self.running.epoch:
            self.running, self.tuning, self.node_now = assign, assign.tuning, node
        return self.ready(node, assign.epoch, assign.generation)

    def _tuned(self, node: str, tune: Tune) -> Output:
        self.tuning = tune.tuning
        status = Status(2, tune.task, tune.epoch, InstanceState.READY, generation=1)
        return self.node(node, msgspec.structs.replace(status, tuned=tune.number))

    def lives(self, ms: int) -> Output:
        """Let time pass; the task is measured every window and every node speaks each second."""
        out = Output()
        for _ in range(ms // STEP_MS):
            self.now_ms += STEP_MS
            for one in [one for one in self.due if one[0] <= self.now_ms]:
                self.due.remove(one)
                out.extend(one[1]())
            if self.now_ms % 1000 == 0:
                for node, cpu in self.cpu.items():
                    out.extend(self.node(node, LoadReport(self.now_ms, cpu)))
            if self.now_ms % WINDOW_MS == 0 and self.running is not None:
                out.extend(self.node(self.node_now, self.report()))
            if self.now_ms % 200 == 0:
                out.extend(self.feed(Fired("sweep")))
        return out

    def report(self) -> QualityReport:
        """Return what the node has measured in the last window."""
        assert self.running is not None
        truth = self.truth
        run = truth.run_ms(self.node_now, self.tuning, self.feed_now)
        run *= max(0.2, self.dice.gauss(1.0, truth.noise))
        offered = max(1, round(truth.per_s * WINDOW_MS / 1000))
        shed = round(offered * truth.shed_share)
        sample = TaskSample(
            "svc.a",
            self.running.epoch,
            self.tuning.variant,
            done=offered - shed,
            shed=shed,
            queue_ms=truth.queue_ms,
            run_ms=run,
            run_p95_ms=run * 1.1,
            output_bytes=truth.sent_bytes * (offered - shed),
            sent_bytes=truth.sent_bytes * (offered - shed),
        )
        user = UserSample("svc", "u1", offered - shed, 0, run, run * 1.1)
        return QualityReport(self.now_ms, WINDOW_MS, (sample,), (user,))


def story(output: Output) -> list[str]:
    """Return the events of quality in their order."""
    return [one.body.event for one in output.sends if isinstance(one.body, TaskEvent)]


def actions(output: Output) -> list[str]:
    """Return what was done, as the story tells it."""
    return [
        one.body.detail
        for one in output.sends
        if isinstance(one.body, TaskEvent) and one.body.event in {"acted", "relaxing", "reverted"}
    ]


def escalations(output: Output) -> list[Escalation]:
    """Return what was handed up."""
    return [one.body for one in output.sends if isinstance(one.body, Escalation)]
