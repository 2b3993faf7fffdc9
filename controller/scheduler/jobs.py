"""Jobs on their way: from the service's topic to the anchor, from the anchor to the nodes.

What a scheduler knows of jobs is soft: a run that an anchor has asked for waits here for a route,
is sent to the entry nodes, and sent again under the same attempt, ever more rarely, until the nodes
report its end: they know it by its id and repeat themselves. When a node of its plan is lost the
run is over for the anchor, who decides on another attempt. A scheduler without memory is told of
every run again.

An end stays with its node until the anchor has it: what is owed is which number of which node to
acknowledge then, and a node that hears nothing says it again. Where a service has no anchor here,
its ends are acknowledged after a while.
"""

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from typing import Final

import msgspec
from msgspec import Struct, structs

from controller.decider import Received, ToInvoke, ToNode, ToRole, ToTopic
from controller.desk import Desk
from controller.scheduler import routes
from protocols.errors import Blame
from protocols.messages import (
    Acknowledge,
    Cancel,
    Invoke,
    JobAccepted,
    JobEnded,
    JobHandover,
    JobKept,
    JobOwned,
    JobQuery,
    JobRun,
    JobsMoved,
    JobStatus,
    JobSubmit,
    Route,
)
from protocols.messages.invocation import Failure, FailureCode, Plan, Tensor, Values
from protocols.topics import INVOCATION_MAX_BYTES

REPEAT_FIRST_MS: Final = 2000
REPEAT_MAX_MS: Final = 30_000
"""A run of which nothing was heard is sent again after this; doubled each time."""
OVERDUE_MS: Final = 5000
"""Beyond the time that a run may take, before it counts as lost."""
RUNS_MAX: Final = 65_536
"""Runs that one scheduler looks after; the anchor is told to come again with one more."""
OWED_MAX: Final = 65_536
"""Ends that wait for their anchor's word; the oldest is forgotten, and its node says it again."""
STRAY_MS: Final = 60_000
"""How long the end of a job may find no anchor here before it is acknowledged all the same: an
anchor that comes back meanwhile has it, and whoever has the job later runs it again.
"""
STRAYS_MAX: Final = 65_536
"""Ends without an anchor that are remembered; the oldest is forgotten, and waits anew."""
ANCHORS_MS: Final = 60_000
"""How long a new scheduler that has several anchors takes no service for unknown."""
ALSO_MAX: Final = 512
"""Further numbers in one acknowledgement."""
SUBMIT_MAX_BYTES: Final = INVOCATION_MAX_BYTES - 32 * 1024
"""Inline tensors of a job: they travel on beside plans and between processes."""
FRAME_BYTES: Final = 1024
"""Room for what stands around a request in its frame."""
DUE_SPARE: Final = 1000
"""Entries of runs that are over, among what is due, before it is cleared of them."""
_DUE: Final = "job/due"


class _Run(Struct, eq=False):
    """A run that an anchor has asked for."""

    asked: JobRun
    anchor: str
    tenant: str
    cause: str
    until_ms: int | None = None
    """When it counts as lost; None: it was never sent."""
    plan: Plan | None = None
    """With which it was sent last."""
    nodes: set[str] = set()
    """Of every plan it was sent with."""
    due_ms: int = 0
    wait_ms: int = REPEAT_FIRST_MS
    ended: set[int] = set()
    """Parts that have come."""
    over: bool = False


class Jobs:
    """Carries jobs between clients, anchors and nodes.

    `route(service)` is the newest route, or None; `anchor_of(service)` the anchor that owns its
    tasks here, empty when there is none; `known(event)` whether it is the word of a node that is
    known in its present connection; `may_answer(node, service)` whether a task of a service may be
    on a node: of runs, and of earlier attempts, that are not known here such a node alone says an
    end. Timers of keys `job/...` come back to `fired`.
    """

    def __init__(
        self,
        desk: Desk,
        route: Callable[[str], Route | None],
        anchor_of: Callable[[str], str],
        anchors: tuple[str, ...],
        known: Callable[[Received], bool],
        may_answer: Callable[[str, str], bool],
    ) -> None:
        self._desk = desk
        self._route = route
        self._anchor_of = anchor_of
        self._anchors = anchors
        self._known = known
        self._may_answer = may_answer
        self._runs: dict[str, _Run] = {}
        self._waiting: dict[str, dict[str, None]] = {}
        """By service, in the order of asking: jobs that no route could take yet."""
        self._owed: dict[tuple[str, int, int], tuple[str, int, int]] = {}
        """By job, attempt and part: node, incarnation and number to acknowledge."""
        self._strays: dict[tuple[str, int, int], int] = {}
        """By job, attempt and part: when an end without an anchor was heard first."""
        self._thanks: dict[tuple[str, int], list[int]] = {}
        self._due: list[tuple[int, int, _Run]] = []
        self._numbers = count()
        self._armed_ms: int | None = None
        self._asked_ms: int | None = None
        """When a client was first asked to wait for an anchor to speak of its service."""

    def __len__(self) -> int:
        return len(self._runs)

    # From clients to the anchor, and back.

    def submit(self, event: Received, body: JobSubmit) -> None:
        """Hand a client's job to the anchor of its service."""
        reply_to = body.reply_to or event.reply_to
        correlation = body.correlation or event.correlation
        anchor = self._anchor(body.service)
        reason, retryable = "", False
        if not anchor:
            reason = f"there is no service {body.service!r} here"
            retryable = self._may_come()
        elif _inline_bytes(body.inputs) > SUBMIT_MAX_BYTES:
            reason = "the values do not fit into one message: send large ones as blobs"
        if reason:
            refusal = JobAccepted(body.job, accepted=False, reason=reason, retryable=retryable)
            self._reply(reply_to, correlation, refusal, event)
            return
        passed = structs.replace(
            body, reply_to=reply_to, correlation=correlation, client=event.sender
        )
        self._desk.tell(ToRole(anchor), passed, event.cause, event.tenant)

    def query(self, event: Received, body: JobQuery) -> None:
        """Hand a client's question to the anchor."""
        reply_to = body.reply_to or event.reply_to
        correlation = body.correlation or event.correlation
        anchor = self._anchor(body.service)
        if not anchor:
            reason = f"there is no service {body.service!r} here"
            retryable = self._may_come()
            refusal = JobAccepted(body.job, accepted=False, reason=reason, retryable=retryable)
            self._reply(reply_to, correlation, refusal, event)
            return
        passed = structs.replace(body, reply_to=reply_to, correlation=correlation)
        self._desk.tell(ToRole(anchor), passed, event.cause, event.tenant)

    def answered(self, event: Received, body: JobAccepted | JobStatus | JobEnded) -> None:
        """Hand an anchor's answer to the client."""
        if event.sender in self._anchors:
            self._reply(body.reply_to, body.correlation, body, event)

    def _reply(
        self,
        reply_to: str,
        correlation: bytes,
        body: JobAccepted | JobStatus | JobEnded,
        event: Received,
    ) -> None:
        if reply_to:
            self._desk.tell(ToTopic(reply_to, correlation), body, event.cause, event.tenant)

    def _anchor(self, service: str) -> str:
        # A service that has no envelope yet is known to its anchor alone.
        return self._anchor_of(service) or (self._anchors[0] if len(self._anchors) == 1 else "")

    def _may_come(self) -> bool:
        """Whether an anchor may yet say that a service is its own: we are new."""
        if self._asked_ms is None:
            self._asked_ms = self._desk.now_ms
        return len(self._anchors) > 1 and self._desk.now_ms - self._asked_ms < ANCHORS_MS

    def between(self, event: Received, body: JobHandover | JobOwned | JobsMoved) -> None:
        """Carry what the anchors of a service before and now say to each other about its jobs."""
        if event.sender not in self._anchors:
            return
        match body:
            case JobHandover():
                # Its tasks say it more newly than whoever has let them go.
                to = self._anchor_of(body.submit.service)
                if to in ("", event.sender):
                    to = body.to
            case JobsMoved(asks=True):
                to = body.owner
            case JobsMoved():
                to = body.to or self._anchor_of(body.service)
            case JobOwned():
                to = body.owner
        asks_all = isinstance(body, JobsMoved) and body.asks and not to
        for role in self._anchors if asks_all else (to,):
            if role in self._anchors and role != event.sender:
                self._desk.tell(ToRole(role), body, event.cause, event.tenant)

    # From the anchor to the nodes.

    def run(self, event: Received, body: JobRun) -> None:
        """Have a job of an anchor run."""
        if event.sender not in self._anchors:
            return
        known = self._runs.get(body.job)
        if known is not None and known.asked.attempt >= body.attempt:
            # It may be of the anchor that has the service now, and goes on for that one.
            known.anchor = event.sender
            return
        if known is not None:
            self._forget(known)
        run = _Run(body, event.sender, event.tenant, event.cause)
        if len(self._runs) >= RUNS_MAX:
            self._lost(run, FailureCode.BUSY, f"{RUNS_MAX} runs are under way in this cell")
            return
        self._runs[body.job] = run
        self._send(run)
        self._rearm()

    def cancel(self, event: Received, body: Cancel) -> None:
        """Stop a run that its anchor has ended."""
        run = self._runs.get(body.request)
        if run is None or event.sender != run.anchor:
            return
        self._forget(run)
        ends = {(step.node, step.cell) for step in run.plan.steps} if run.plan is not None else ()
        for node, cell in sorted(ends):
            self._desk.tell(ToInvoke(node, cell), body, event.cause, event.tenant)

    def _send(self, run: _Run) -> None:
        """Send a run by the route, or again as it was sent, or let it wait for a route."""
        asked, plan = run.asked, run.plan
        if plan is None:
            route = self._route(asked.service)
            if route is None or route.plan is None:
                self._waiting.setdefault(asked.service, {})[asked.job] = None
                return
            plan = run.plan = route.plan
            run.nodes.update(step.node for step in plan.steps)
        if run.until_ms is None:
            run.until_ms = self._desk.now_ms + asked.run_ms + OVERDUE_MS
        invokes = self._invokes(run, plan)
        if any(_too_large(one) for one in invokes.values()):
            text = (
                "the values do not fit into one message beside the plan: send large ones as blobs"
            )
            self._forget(run)
            self._lost(run, FailureCode.BAD_INPUT, text)
            return
        cells = routes.cells(plan)
        for node, invoke in invokes.items():
            self._desk.tell(ToInvoke(node, cells.get(node, "")), invoke, run.cause, run.tenant)
        run.due_ms = min(run.until_ms, self._desk.now_ms + run.wait_ms)
        run.wait_ms = min(2 * run.wait_ms, REPEAT_MAX_MS)
        heappush(self._due, (run.due_ms, next(self._numbers), run))

    def _invokes(self, run: _Run, plan: Plan) -> dict[str, Invoke]:
        """Return what each entry node of a plan is sent."""
        asked = run.asked
        left_ms = asked.run_ms
        if run.until_ms is not None:
            left_ms = min(left_ms, run.until_ms - self._desk.now_ms)
        found = {}
        for node, names in routes.entry_inputs(plan).items():
            inputs = {name: value for name, value in asked.inputs.items() if name in names}
            found[node] = Invoke(
                asked.job, asked.service, left_ms, inputs, "", asked.attempt, plan,
                priority=asked.priority, job=True,
            )  # fmt: skip
        return found

    def _lost(self, run: _Run, code: FailureCode, text: str) -> None:
        """Tell the anchor that a run has failed here."""
        asked, bad = run.asked, code is FailureCode.BAD_INPUT
        failure = Failure(code, Blame.USER if bad else Blame.ENVIRONMENT, text, retryable=not bad)
        ended = JobEnded(asked.job, asked.attempt, asked.service, failure=failure)
        self._desk.tell(ToRole(run.anchor), ended, run.cause, run.tenant)

    # From the nodes to the anchor, and back.

    def ended(self, event: Received, body: JobEnded) -> None:
        """Take in a node's word that a run is over, or an anchor's that a job is."""
        if event.sender in self._anchors:
            self.answered(event, body)
            return
        run = self._runs.get(body.job)
        anchor = run.anchor if run is not None else self._anchor(body.service)
        if not self._known(event):
            return
        # A higher number is of another anchor: a node that was sent the run may know it by that.
        asked = run is not None and run.asked.attempt <= body.attempt
        if not anchor or not (asked or self._may_answer(event.sender, body.service)):
            self._stray(event, body)
            return
        self._strays.pop((body.job, body.attempt, body.part), None)
        if run is not None and asked:
            if event.sender not in run.nodes:
                return
            if run.asked.attempt == body.attempt:
                run.ended.add(body.part)
                if body.failure is not None or len(run.ended) >= body.parts:
                    self._forget(run)
        if body.number:
            if len(self._owed) >= OWED_MAX:
                del self._owed[next(iter(self._owed))]
            owed = (event.sender, event.incarnation, body.number)
            self._owed[body.job, body.attempt, body.part] = owed
        self._desk.tell(ToRole(anchor), body, event.cause, event.tenant)

    def _stray(self, event: Received, body: JobEnded) -> None:
        """Have a node forget an end that no anchor has asked for in a long time."""
        key = (body.job, body.attempt, body.part)
        heard_ms = self._strays.setdefault(key, self._desk.now_ms)
        if self._desk.now_ms - heard_ms >= STRAY_MS and body.number:
            del self._strays[key]
            self._thank(event.sender, event.incarnation, body.number)
        elif len(self._strays) > STRAYS_MAX:
            del self._strays[next(iter(self._strays))]

    def kept(self, event: Received, body: JobKept) -> None:
        """Take in an anchor's word that the end of a run is durable: its node may forget it."""
        owed = self._owed.pop((body.job, body.attempt, body.part), None)
        if owed is not None and event.sender in self._anchors:
            self._thank(*owed)

    def _thank(self, node: str, incarnation: int, number: int) -> None:
        self._thanks.setdefault((node, incarnation), []).append(number)

    def settle(self) -> None:
        """Acknowledge to the nodes what this turn has brought, in one message each."""
        for (node, incarnation), numbers in self._thanks.items():
            for at in range(0, len(numbers), ALSO_MAX + 1):
                first, *also = numbers[at : at + ALSO_MAX + 1]
                thanks = Acknowledge(first, incarnation, "job", tuple(also))
                self._desk.tell(ToNode(node), thanks, "job")
        self._thanks.clear()

    # What changes.

    def route_changed(self, service: str) -> None:
        """Send what waits for this service, if its new route takes it."""
        for job in self._waiting.pop(service, {}):
            run = self._runs.get(job)
            if run is not None:
                self._send(run)
        self._rearm()

    def node_lost(self, node: str) -> None:
        """Give up the runs that a lost node has a step of: their anchors decide what follows."""
        for run in self._through(node):
            self._forget(run)
            self._lost(run, FailureCode.NODE_LOST, f"node {node} is lost")

    def node_born(self, node: str) -> None:
        """Send the runs of a node again that has connected anew: it may have no memory of them."""
        for run in self._through(node):
            run.wait_ms, run.plan = REPEAT_FIRST_MS, None
            self._send(run)
        self._rearm()

    def _through(self, node: str) -> list[_Run]:
        return [
            run
            for run in self._runs.values()
            if run.plan is not None and any(step.node == node for step in run.plan.steps)
        ]

    def linked(self, anchor: str) -> None:
        """Forget the runs of an anchor that has begun anew, or we have: it will ask again."""
        for run in [one for one in self._runs.values() if one.anchor == anchor]:
            if run.plan is None:
                self._forget(run)

    def fired(self, _key: str) -> None:
        """Send again what has not been answered, and give up what never will."""
        self._armed_ms = None
        now_ms = self._desk.now_ms
        while self._due and self._due[0][0] <= now_ms:
            run = heappop(self._due)[2]
            if run.over or run.until_ms is None or now_ms < run.due_ms:
                continue
            if now_ms >= run.until_ms:
                self._forget(run)
                text = f"no end was heard of {run.asked.run_ms} ms after it was sent"
                self._lost(run, FailureCode.NODE_LOST, text)
            else:
                self._send(run)
        self._rearm()

    def _forget(self, run: _Run) -> None:
        run.over = True
        asked = run.asked
        self._runs.pop(asked.job, None)
        waiting = self._waiting.get(asked.service)
        if waiting is not None:
            waiting.pop(asked.job, None)
            if not waiting:
                del self._waiting[asked.service]

    def _rearm(self) -> None:
        """Be woken when the next thing is due; an earlier waking does no harm."""
        if len(self._due) > 2 * len(self._runs) + DUE_SPARE:
            self._due = [one for one in self._due if not one[2].over]
            heapify(self._due)
        if self._due and (self._armed_ms is None or self._due[0][0] < self._armed_ms):
            self._armed_ms = self._due[0][0]
            self._desk.wake(_DUE, self._armed_ms)


def _too_large(invoke: Invoke) -> bool:
    # To encode it only to measure it would cost every small one as much again.
    return (
        _inline_bytes(invoke.inputs) > SUBMIT_MAX_BYTES // 2
        and len(msgspec.msgpack.encode(invoke)) > INVOCATION_MAX_BYTES - FRAME_BYTES
    )


def _inline_bytes(inputs: Values) -> int:
    return sum(len(one.data) for one in inputs.values() if isinstance(one, Tensor))
