"""Invocations: from a request's arrival to its answer, for the steps that run on this node.

`Invoke` is the delivery of the source `request`, `Deliver` that of a step; both feed every step of
this node that takes from the source. A step with all its inputs becomes a run: large inputs are
fetched, it waits for a worker, runs, and its outputs feed the next steps, here without the wire,
and end in the answer's parts.

Messages. `Accepted` goes out only when a step has not answered within `ACCEPT_AFTER_MS`: a warm
request costs one message in and one out, and a client's retry waits longer than that. What is asked
again while it runs is accepted again and not run twice; a higher attempt is adopted. What was
answered is answered the same again, as long as `Finished` remembers it. Any failure ends the
request here with one `Result`; one that may be retried is tried afresh by a higher attempt. An
epoch that is not ready yet is refused as such: the client waits for it by its own rules.

Time. `born_ms` is when a request reached its first node, on this node's clock: its arrival here
less what the message says has gone by. Where ways join the longer one counts.
"""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final

from device_agent.core.admission import MADE_MAX_BYTES, Admission
from device_agent.core.assignments import Assignments
from device_agent.core.commands import DropValues, ExpectCall
from device_agent.core.events import BlobFailed, ExecutorDone, ExecutorFailed, Received
from device_agent.core.instances import Instance
from device_agent.core.quality import Meter
from device_agent.core.replies import Replies
from device_agent.core.request import Answer, Given, Phase, Request, Run, Waiting
from device_agent.core.turn import Turn
from device_agent.core.values import (
    blobs,
    fed_by,
    inline_bytes,
    made,
    merge,
    misfit,
    needed_elsewhere,
    rename,
    total_bytes,
)
from device_agent.core.waiters import Waiters
from device_agent.core.workers import Workers
from protocols.errors import Blame, MalformedFrame, TonaBug
from protocols.manifest import ExecutorKind
from protocols.messages.invocation import (
    CORRELATION_MAX_BYTES,
    REQUEST,
    Cancel,
    Deliver,
    Failure,
    FailureCode,
    Invoke,
    Step,
    Timing,
    Value,
)
from protocols.messages.task import InstanceState
from protocols.packing import unpack_all

if TYPE_CHECKING:
    from device_agent.core.inferences import Inferences

ELAPSED_MAX_MS: Final = 3_600_000.0
"""No request has more time: a peer that claims more is not believed."""

_Code: Final = FailureCode


def _nothing() -> "Inferences":
    raise TonaBug("the requests were not wired")


class Requests:
    """The requests of this node; `idle` is told when a draining instance has nothing left."""

    def __init__(
        self,
        turn: Turn,
        assignments: Assignments,
        meter: Meter,
        replies: Replies,
        idle: Callable[[Instance], None],
    ) -> None:
        self._turn = turn
        self._assignments = assignments
        self._meter = meter
        self._replies = replies
        self.workers = Workers(turn, meter, self._fail, self._settle, idle)
        self.admission = Admission(turn, replies, self.workers, self._give_way)
        self._pushes = Waiters[tuple[Request, str]](turn, pushing=True)
        self.inferences: Callable[[], Inferences] = _nothing
        """Who runs models for guests (wired by the core)."""

    def __len__(self) -> int:
        return len(self.admission.live)

    # What peers say.

    def take(self, event: Received, body: Invoke | Deliver) -> None:
        """Feed the steps of this node that take from the source of this delivery."""
        # The end of a job goes to the scheduler, whatever topic is named.
        reply_to = "" if body.job else body.reply_to or event.reply_to
        if not body.job and not self._replies.user(reply_to):
            self._turn.counts["reply topic"] += 1
            return
        given = self._given(event, body)
        plan = body.plan
        if plan is None or isinstance(given, Failure):
            no_plan = self._failure(_Code.NO_SERVICE, Blame.USER, "the request brings no plan")
            failure = given if isinstance(given, Failure) else no_plan
            self._replies.refuse(event, body, reply_to, failure)
            return
        size_bytes = inline_bytes(given.values)
        request = self.admission.known(event, body, plan, reply_to, size_bytes)
        if request is None:
            return
        steps = fed_by(plan, self._turn.node, given.source)
        if not steps:
            text = f"the plan has no step on node {self._turn.node} that takes from {given.source}"
            self._fail(request, self._failure(_Code.STALE, Blame.PEER, text, retryable=True))
        for step in steps:
            self._feed(request, step, given)
        self._settle(request)

    def _given(self, event: Received, body: Invoke | Deliver) -> Given | Failure:
        """Return what a delivery brings, dense, or why it cannot be used."""
        now_ms = self._turn.now_ms
        if len(event.correlation) > CORRELATION_MAX_BYTES:
            text = f"the correlation data takes more than {CORRELATION_MAX_BYTES} bytes"
            return self._failure(_Code.BAD_INPUT, Blame.USER, text)
        try:
            if isinstance(body, Invoke):
                self._turn.stood_ms = max(self._turn.stood_ms, body.stood_ms)
                return Given(REQUEST, unpack_all(body.inputs), (), now_ms)
            born_ms = now_ms - min(body.elapsed_us / 1000, ELAPSED_MAX_MS)
            return Given(body.source, unpack_all(body.values), body.timings, born_ms)
        except MalformedFrame as error:
            return self._failure(_Code.BAD_INPUT, Blame.PEER, str(error))

    def cancel(self, body: Cancel) -> None:
        """Drop what waits and stop what runs of a request; nobody is answered."""
        request = self.admission.live.get(body.request)
        if request is not None:
            text = "the client cancelled the request"
            self._end(request, self._failure(_Code.CANCELLED, Blame.USER, text))
            self._settle(request)

    # What the shell says.

    def done(self, event: ExecutorDone) -> None:
        """Pass the outputs of a call on."""
        run = self.workers.take(event.call)
        if run is None:
            self.waste(event.outputs)
            return
        self._leave_guest(run)
        if run.phase is Phase.DEAD:
            self.waste(event.outputs)
        elif run.request.guest is not None:
            self.hold(run.request.guest.request, event.outputs)
            self.inferences().done(run, event)
        else:
            request, task = run.request, run.step.task
            self.measure(run, event)
            timing = Timing(task, self._turn.node, run.queue_us, event.run_us, run.fetch_us)
            del request.runs[task]
            timings = (*run.timings, timing)
            answer = Answer(event.outputs, timings, run.born_ms, run.instance)
            request.done[task] = answer
            self.admission.hold(request, inline_bytes(event.outputs))
            if self.hold(request, event.outputs):
                self._pass_on(request, task, answer)
            self._settle(request)
        self.workers.next(run.instance)

    def hold(self, request: Request, values: Mapping[str, Value]) -> bool:
        """Keep what was made for a live request; False: it is too much, and the request failed."""
        large = made(values)
        if not large or self.admission.keep(request, large):
            return True
        text = f"node {self._turn.node} has more than {MADE_MAX_BYTES} bytes of values under way"
        self._fail(request, self._failure(_Code.BUSY, Blame.ENVIRONMENT, text, retryable=True))
        return False

    def waste(self, values: Mapping[str, Value]) -> None:
        """Delete what was made for nobody."""
        large = made(values)
        if large:
            self._turn.out.append(DropValues(tuple(large)))

    def _leave_guest(self, run: Run) -> None:
        """Let go of what the guest of a run waits for, now that the run is over."""
        inner, run.inferring = run.inferring, None
        if inner is not None and inner.failure is None:
            text = "the run that asked for it is over"
            self._end(inner, self._failure(_Code.CANCELLED, Blame.ENVIRONMENT, text))
            self._settle(inner)

    def measure(self, run: Run, event: ExecutorDone) -> None:
        """Take a run that went well into the figures of its instance."""
        self.workers.learn(run)
        window = self._meter.of(run.instance)
        # Of a run that calls share, what it costs is each one's part.
        window.run.add(event.run_us / 1000 / event.calls)
        window.input_bytes += total_bytes(run.inputs)
        window.output_bytes += total_bytes(event.outputs)
        self._turn.ledger().ran(run, event)

    def failed(self, event: ExecutorFailed) -> None:
        """End the request of a call that gave no outputs."""
        run = self.workers.take(event.call)
        if run is None:
            return
        self._leave_guest(run)
        if run.phase is not Phase.DEAD:
            run.phase = Phase.DEAD
            window = self._meter.of(run.instance)
            if event.code is _Code.DEADLINE:
                window.late += 1
                self.workers.learn(run, at_least=True)
            else:
                window.failed += 1
            failure = Failure(
                event.code,
                event.blame,
                event.text[:1000],
                event.retryable,
                run.step.task,
                self._turn.node,
            )
            self._fail(run.request, failure)
            self._settle(run.request)
        self.workers.next(run.instance)

    def blob_pushed(self, digest: str, named: str) -> None:
        """Send every answer that waited for this value last."""
        for request, task in self._pushes.end(digest):
            waits = request.pushing.get(task)
            if waits is not None:
                answer = request.done[task]
                if named and named != digest:
                    rename(answer.outputs, digest, named)
                answer.pushed.add(named or digest)
                waits.discard(digest)
                if not waits:
                    del request.pushing[task]
                    self._send(request, task, answer)
                    self._settle(request)

    def blob_failed(self, event: BlobFailed) -> None:
        """End the requests that need a value which cannot be moved."""
        if event.pushing:
            waiting = [request for request, _ in self._pushes.end(event.digest)]
        else:
            waiting = self.workers.not_fetched(event.digest)
        for request in waiting:
            if request.failure is None and request.live:
                text = f"value {event.digest[:19]}: {event.text}"[:1000]
                failure = self._failure(_Code.FETCH, Blame.ENVIRONMENT, text, retryable=True)
                self._fail(request, failure)
                self._settle(request)

    def abandon(self, instance: Instance, text: str) -> None:
        """Fail every request that counts on an instance: it is gone, or its time is over."""
        told = f"task {instance.task}: {text}"[:1000]
        failure = self._failure(_Code.EXECUTOR, Blame.ENVIRONMENT, told, retryable=True)
        hit = [
            one
            for one in self.admission.live.values()
            if any(run.instance is instance for run in one.runs.values())
        ]
        for request in hit:
            self._meter.of(instance).failed += 1
            self._fail(request, failure)
            self._settle(request)
        self.workers.forget(instance)

    def on_timer(self, name: str) -> None:
        """Say that a request is accepted, or that its deadline has come."""
        request = self.admission.live.get(name)
        if request is None:
            return
        if self._turn.now_ms < request.deadline_ms:
            self._replies.accept(request)
            self._turn.timers.set(("request", name), request.deadline_ms)
            return
        stands = [f"{task} {_stands(run)}" for task, run in request.runs.items()]
        stands += [f"{task} waits for inputs" for task in request.waiting]
        stands += [f"the outputs of {task} are on their way" for task in request.pushing]
        for run in request.runs.values():
            self._meter.of(run.instance).late += 1
            if run.phase is Phase.RUNNING:
                self.workers.learn(run, at_least=True)
        text = f"the deadline has come while {', '.join(stands)}"[:1000]
        self._fail(request, self._failure(_Code.DEADLINE, Blame.ENVIRONMENT, text))
        self._settle(request)

    # From a delivery to a run.

    def _feed(self, request: Request, step: Step, given: Given) -> None:
        """Give a step what this source has for it; run it when nothing is missing."""
        task = step.task
        if request.failure is not None:
            return
        if task in request.runs or task in request.pushing:
            self.admission.accept(request)
            return
        answer = request.done.get(task)
        if answer is not None and self._is_lost(request, task, answer):
            answer = None
        if answer is not None:
            if task not in request.repeated:
                request.repeated.add(task)
                self._turn.counts["said again"] += 1
                self._pass_on(request, task, answer)
            return
        instance = self._instance(request, step)
        if instance is not None:
            self._gather(request, step, instance, given)

    def _is_lost(self, request: Request, task: str, answer: Answer) -> bool:
        """Whether an answer lacks a value that was dropped and is wanted again by another plan."""
        lost = made(answer.outputs).keys() - request.made.keys()
        if not lost:
            return False
        node, plan = self._turn.node, request.plan
        wanted = {edge.source_port for edge in plan.outputs if edge.source == task}
        for ports in needed_elsewhere(plan, node, task).values():
            wanted |= ports
        for step in fed_by(plan, node, task):
            if step.task not in request.done:
                wanted |= {edge.source_port for edge in step.inputs if edge.source == task}
        again = {port: value for port, value in answer.outputs.items() if port in wanted}
        return not lost.isdisjoint(blobs(again))

    def _gather(self, request: Request, step: Step, instance: Instance, given: Given) -> None:
        """Add what a source gives to the inputs of a step; start the step when it has them all."""
        task = step.task
        waiting = request.waiting.pop(task, None) or Waiting()
        wrong = _take_in(waiting, step, instance, given)
        if wrong:
            self._bad_input(request, task, wrong)
            return
        waiting.timings = merge(waiting.timings, given.timings)
        waiting.born_ms = min(waiting.born_ms, given.born_ms)
        if len(waiting.inputs) < len({edge.port for edge in step.inputs}):
            request.waiting[task] = waiting
            return
        missing = instance.required - waiting.inputs.keys()
        if missing:
            text = f"the plan gives task {task} no input {', '.join(sorted(missing))}"
            self._bad_input(request, task, text)
            return
        have = waiting.inputs, waiting.timings, waiting.born_ms
        run = Run(request, step, instance, *have, self._turn.now_ms)
        self.workers.start(run)
        if run.phase is Phase.RUNNING:
            self._foretell(request, task)

    def _foretell(self, request: Request, task: str) -> None:
        """Say of models that take from a step which runs now that they are next."""
        for step in fed_by(request.plan, self._turn.node, task):
            held = self._assignments.held.get(step.task)
            instance = held.serving(step.epoch, self._turn.now_ms) if held is not None else None
            model = instance is not None and instance.manifest.kind is ExecutorKind.ONNX
            if instance is not None and model and not instance.busy:
                self._turn.out.append(ExpectCall(instance.name))

    def _bad_input(self, request: Request, task: str, text: str) -> None:
        self._fail(request, self._failure(_Code.BAD_INPUT, Blame.USER, text, task=task))

    def _instance(self, request: Request, step: Step) -> Instance | None:
        """Return the instance that may run a step now, or fail the request."""
        held = self._assignments.held.get(step.task)
        if held is not None:
            serving = held.serving(step.epoch, self._turn.now_ms)
            if serving is not None:
                return serving
        shown = [one for one in (held.current, held.coming) if one is not None] if held else []
        meant = next((one for one in shown if one.epoch == step.epoch), None)
        if meant is not None and meant.state is not InstanceState.READY:
            code, text = _Code.NOT_READY, f"task {step.task} is {meant.state.value}"
        else:
            have = f"holds epoch {shown[0].epoch}" if shown else "does not hold it"
            code = _Code.STALE
            text = f"the plan has task {step.task} under epoch {step.epoch}, this node {have}"
        self._turn.counts[code.value] += 1
        failure = self._failure(code, Blame.ENVIRONMENT, text, task=step.task, retryable=True)
        self._fail(request, failure)
        return None

    # From outputs to the answer.

    def _pass_on(self, request: Request, task: str, answer: Answer) -> None:
        """Feed the steps after this one: here at once, elsewhere when large values are pushed."""
        large = self._to_push(request, task, answer)
        if large:
            request.pushing[task] = set(large)
            for digest, size_bytes in large.items():
                self._pushes.add(digest, size_bytes, (request, task), request)
        else:
            self._send(request, task, answer)
        given = Given(task, answer.outputs, answer.timings, answer.born_ms)
        for step in fed_by(request.plan, self._turn.node, task):
            self._feed(request, step, given)

    def _send(self, request: Request, task: str, answer: Answer) -> None:
        failure = self._replies.send(request, task, answer)
        if failure is not None:
            self._fail(request, failure)

    def _to_push(self, request: Request, task: str, answer: Answer) -> dict[str, int]:
        """Return the large values that leave this node and are not in the cell's store yet."""
        if not blobs(answer.outputs):
            return {}
        ports = {edge.source_port for edge in request.plan.outputs if edge.source == task}
        for wanted in needed_elsewhere(request.plan, self._turn.node, task).values():
            ports |= wanted
        large = blobs({port: answer.outputs[port] for port in ports & answer.outputs.keys()})
        return {digest: size for digest, size in large.items() if digest not in answer.pushed}

    # The ends.

    def _give_way(self, request: Request) -> None:
        """Let go of a request that only waits, for one of a higher priority."""
        for run in list(request.runs.values()):
            run.instance.queue.remove(run)
            text = (
                f"node {self._turn.node} has {len(self)} requests under way, its limit, and this "
                f"one has the lowest priority ({request.priority}) of those that wait"
            )
            self.workers.shed(run, text)
        self._settle(request)

    def _fail(self, request: Request, failure: Failure) -> None:
        """Answer a request with a failure, once."""
        if request.failure is None:
            self._end(request, failure)
            if request.guest is not None:
                self.inferences().failed(request, failure)
            else:
                self._replies.result(request, failure)

    def _end(self, request: Request, failure: Failure) -> None:
        """Let go of everything that is under way for a request."""
        request.failure = failure
        ledger = self._turn.ledger()
        if not request.runs:
            who = request.id, request.tenant, request.user, request.agent, request.cause
            service = request.plan.service
            ledger.refused(who, service, failure.task, failure.code, failure.text)
        for run in request.runs.values():
            ledger.failed(run, failure.code, failure.text)
            self.workers.drop(run)
            self._leave_guest(run)
        request.runs.clear()
        request.waiting.clear()
        for task, digests in request.pushing.items():
            for digest in digests:
                self._pushes.leave(digest, (request, task))
        request.pushing.clear()

    def _settle(self, request: Request) -> None:
        self.admission.settle(request)

    def _failure(
        self,
        code: FailureCode,
        blame: Blame,
        text: str,
        *,
        task: str = "",
        retryable: bool = False,
    ) -> Failure:
        return Failure(code, blame, text, retryable, task, self._turn.node)


def _take_in(waiting: Waiting, step: Step, instance: Instance, given: Given) -> str:
    """Add what a source gives to the inputs of a step; say what is wrong with it, if anything."""
    for edge in step.inputs:
        if edge.source != given.source:
            continue
        value: Value | None = given.values.get(edge.source_port)
        if value is None:
            return f"{given.source} gave no {edge.source_port!r} for {edge.port!r} of {step.task}"
        wrong = misfit(instance, edge.port, value)
        if wrong:
            return wrong
        waiting.inputs[edge.port] = value
    return ""


def _stands(run: Run) -> str:
    """Say where a run stands whose time is over."""
    if run.phase is Phase.QUEUED and run.instance.parked:
        return "waits for memory of the node"
    return f"is {run.phase.value}"
