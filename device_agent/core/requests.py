"""Invocations: from a request's arrival to its answer, for the steps that run on this node.

`Invoke` is the delivery of the source `request`, `Deliver` that of a step; both feed every step of
this node that takes from the source. A step with all its inputs becomes a job: large inputs are
fetched, it waits for a worker, runs, and its outputs feed the next steps, here without the wire,
and end in the answer's parts.

Messages. `Accepted` goes out only when a step has not answered within `ACCEPT_AFTER_MS`: a warm
request costs one message in and one out, and a client's retry waits longer than that. What is asked
again while it runs is accepted again and not run twice; a higher attempt is adopted. What was
answered is answered the same again, as long as `Finished` remembers it. Any failure ends the
request here with one `Result`; one that may be retried is tried afresh by a higher attempt.
"""

from collections.abc import Callable
from typing import Final

from device_agent.core.assignments import Assignments
from device_agent.core.commands import (
    PushBlob,
)
from device_agent.core.events import BlobFailed, ExecutorDone, ExecutorFailed, Received
from device_agent.core.finished import Finished
from device_agent.core.instances import Instance
from device_agent.core.jobs import Answer, Job, Phase, Request, Waiting
from device_agent.core.replies import Replies, correlation_of
from device_agent.core.turn import Turn
from device_agent.core.values import (
    blobs,
    fed_by,
    inline_bytes,
    merge,
    misfit,
    needed_elsewhere,
)
from device_agent.core.workers import Workers
from protocols.errors import Blame
from protocols.messages.invocation import (
    REQUEST,
    Cancel,
    Deliver,
    Failure,
    FailureCode,
    Invoke,
    Plan,
    Step,
    Timing,
    Value,
)
from protocols.messages.task import InstanceState

ACCEPT_AFTER_MS: Final = 20
LIVE_MAX: Final = 1024
"""Requests under way on this node, over all tasks."""
LIVE_MAX_BYTES: Final = 16 << 20
"""Inline tensors of all requests under way."""
SWEEP_MS: Final = 10_000

_REFUSALS: Final = frozenset({FailureCode.BUSY, FailureCode.NOT_READY, FailureCode.STALE})
_Code = FailureCode


class Requests:
    """The requests of this node; `idle` is told when a draining instance has nothing left."""

    def __init__(
        self, turn: Turn, assignments: Assignments, idle: Callable[[Instance], None]
    ) -> None:
        self._turn = turn
        self._assignments = assignments
        self.workers = Workers(turn, self._fail, self._settle, idle)
        self._live: dict[str, Request] = {}
        self._live_bytes = 0
        self.finished = Finished()
        self._pushes: dict[str, list[tuple[Request, str]]] = {}
        self._replies = Replies(turn)

    def __len__(self) -> int:
        return len(self._live)

    # What peers say.

    def take(self, event: Received, body: Invoke | Deliver) -> None:
        """Feed the steps of this node that take from the source of this delivery."""
        timings: tuple[Timing, ...] = ()
        if isinstance(body, Invoke):
            source, values = REQUEST, body.inputs
        else:
            source, values, timings = body.source, body.values, body.timings
        reply_to = body.reply_to or event.reply_to
        if not self._replies.valid(reply_to):
            self._turn.counts["reply topic"] += 1
            return
        plan = body.plan
        if plan is None:
            failure = self._failure(_Code.NO_SERVICE, Blame.USER, "the request brings no plan")
            self._replies.refuse(event, body, reply_to, failure)
            return
        request = self._known(event, body, plan, reply_to, inline_bytes(values))
        if request is None:
            return
        steps = fed_by(plan, self._turn.node, source)
        if not steps:
            text = f"the plan has no step on node {self._turn.node} that takes from {source}"
            self._fail(request, self._failure(_Code.STALE, Blame.PEER, text, retryable=True))
        for step in steps:
            self._feed(request, step, source, values, timings)
        self._settle(request)

    def connected(self) -> None:
        """Send what has waited for the connection."""
        self._replies.connected()

    def disconnected(self) -> None:
        """Keep answers from now on."""
        self._replies.disconnected()

    def cancel(self, body: Cancel) -> None:
        """Drop what waits and stop what runs of a request; nobody is answered."""
        request = self._live.get(body.request)
        if request is not None:
            text = "the client cancelled the request"
            self._end(request, self._failure(_Code.CANCELLED, Blame.USER, text))
            self._settle(request)

    # What the shell says.

    def done(self, event: ExecutorDone) -> None:
        """Pass the outputs of a call on."""
        job = self.workers.take(event.call)
        if job is None:
            return
        if job.phase is not Phase.DEAD:
            request, task = job.request, job.step.task
            timing = Timing(task, self._turn.node, job.queue_us, event.run_us, job.fetch_us)
            del request.jobs[task]
            request.done[task] = answer = Answer(event.outputs, (*job.timings, timing))
            self._hold(request, inline_bytes(event.outputs))
            self._pass_on(request, task, answer)
            self._settle(request)
        self.workers.next(job.instance)

    def failed(self, event: ExecutorFailed) -> None:
        """End the request of a call that gave no outputs."""
        job = self.workers.take(event.call)
        if job is None:
            return
        if job.phase is not Phase.DEAD:
            job.phase = Phase.DEAD
            failure = Failure(
                event.code,
                event.blame,
                event.text[:1000],
                event.retryable,
                job.step.task,
                self._turn.node,
            )
            self._fail(job.request, failure)
            self._settle(job.request)
        self.workers.next(job.instance)

    def blob_pushed(self, digest: str) -> None:
        """Send every answer that waited for this value last."""
        for request, task in self._pushes.pop(digest, ()):
            waits = request.pushing.get(task)
            if waits is not None:
                request.done[task].pushed.add(digest)
                waits.discard(digest)
                if not waits:
                    del request.pushing[task]
                    self._send(request, task, request.done[task])
                    self._settle(request)

    def blob_failed(self, event: BlobFailed) -> None:
        """End the requests that need a value which cannot be moved."""
        if event.pushing:
            waiting = [request for request, _ in self._pushes.pop(event.digest, ())]
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
            for one in self._live.values()
            if any(job.instance is instance for job in one.jobs.values())
        ]
        for request in hit:
            self._fail(request, failure)
            self._settle(request)
        self.workers.forget(instance)

    def on_timer(self, name: str) -> None:
        """Say that a request is accepted, or that its deadline has come."""
        request = self._live.get(name)
        if request is None:
            return
        if self._turn.now_ms < request.deadline_ms:
            self._replies.accept(request)
            self._turn.timers.set(("request", name), request.deadline_ms)
            return
        stands = [f"{task} is {job.phase.value}" for task, job in request.jobs.items()]
        stands += [f"{task} waits for inputs" for task in request.waiting]
        stands += [f"the outputs of {task} are on their way" for task in request.pushing]
        text = f"the deadline has come while {', '.join(stands)}"[:1000]
        self._fail(request, self._failure(_Code.DEADLINE, Blame.ENVIRONMENT, text))
        self._settle(request)

    def sweep(self) -> None:
        """Forget old answers; come again while there are any."""
        self.finished.sweep(self._turn.now_ms)
        if len(self.finished):
            self._turn.timers.set(("sweep", ""), self._turn.now_ms + SWEEP_MS)

    # From a delivery to a job.

    def _known(
        self,
        event: Received,
        body: Invoke | Deliver,
        plan: Plan,
        reply_to: str,
        size_bytes: int,
    ) -> Request | None:
        """Return the live request of a delivery, new or brought back; None when it is answered."""
        request = self._live.get(body.request)
        if request is not None:
            request.repeated.clear()
            if body.attempt > request.attempt:
                self._adopt(request, event, body, plan, reply_to)
            elif body.attempt < request.attempt or isinstance(body, Invoke):
                self._accept(request)
            if body.attempt < request.attempt:
                self._turn.counts["late attempt"] += 1
                return None
            self._hold(request, size_bytes)
            return request
        request = self.finished.pop(body.request)
        if request is not None:
            failure = request.failure
            if body.attempt < request.attempt:
                self._turn.counts["late attempt"] += 1
                self.finished.put(request)
                return None
            again = body.attempt > request.attempt
            if again:
                self._adopt(request, event, body, plan, reply_to)
            if failure is not None and not (again and failure.retryable):
                self._replies.result(request, failure)
                self.finished.put(request)
                return None
            request.failure = None
        else:
            request = Request(
                body.request,
                body.attempt,
                plan,
                reply_to,
                correlation_of(event, body),
                self._turn.now_ms + body.budget_ms,
                event.cause,
                event.tenant,
            )
        return self._admit(request, event, body, size_bytes)

    def _admit(
        self, request: Request, event: Received, body: Invoke | Deliver, size_bytes: int
    ) -> Request | None:
        """Make a request live within the bounds of this node."""
        turn = self._turn
        failure = None
        if turn.draining and not request.done:
            text = f"node {turn.node} takes no new request: {turn.draining}"
            failure = self._failure(_Code.NOT_READY, Blame.ENVIRONMENT, text, retryable=True)
        elif body.budget_ms <= 0:
            failure = self._failure(_Code.DEADLINE, Blame.USER, "no time was left on arrival")
        elif len(self._live) >= LIVE_MAX or self._live_bytes + size_bytes > LIVE_MAX_BYTES:
            text = f"node {turn.node} has {len(self._live)} requests under way, its limit"
            failure = self._failure(_Code.BUSY, Blame.ENVIRONMENT, text, retryable=True)
        if failure is not None:
            if request.done:
                self.finished.put(request)
            self._replies.refuse(event, body, request.reply_to, failure)
            return None
        request.size_bytes = 0
        request.repeated.clear()
        self._hold(request, size_bytes)
        self._live[request.id] = request
        due_ms = min(turn.now_ms + ACCEPT_AFTER_MS, request.deadline_ms)
        turn.timers.set(("request", request.id), due_ms)
        return request

    def _hold(self, request: Request, size_bytes: int) -> None:
        """Count what a live request keeps in memory; admission goes by the sum."""
        request.size_bytes += size_bytes
        self._live_bytes += size_bytes

    def _adopt(
        self,
        request: Request,
        event: Received,
        body: Invoke | Deliver,
        plan: Plan,
        reply_to: str,
    ) -> None:
        """Go on under a higher attempt: partial inputs come again with it, runs go on."""
        request.attempt = body.attempt
        request.plan = plan
        request.reply_to = reply_to
        request.correlation = correlation_of(event, body)
        request.deadline_ms = self._turn.now_ms + body.budget_ms
        request.waiting.clear()
        for answer in request.done.values():
            # The plan may lead elsewhere now, and the cell's store keeps large values a while only.
            answer.pushed.clear()
        if request.id in self._live:
            due_ms = min(self._turn.now_ms + ACCEPT_AFTER_MS, request.deadline_ms)
            self._turn.timers.set(("request", request.id), due_ms)

    def _feed(
        self,
        request: Request,
        step: Step,
        source: str,
        values: dict[str, Value],
        timings: tuple[Timing, ...],
    ) -> None:
        """Give a step what this source has for it; run it when nothing is missing."""
        task = step.task
        if request.failure is not None:
            return
        if task in request.jobs or task in request.pushing:
            self._accept(request)
            return
        answer = request.done.get(task)
        if answer is not None:
            if task not in request.repeated:
                request.repeated.add(task)
                self._pass_on(request, task, answer)
            return
        instance = self._instance(request, step)
        if instance is not None:
            self._gather(request, step, instance, source, (values, timings))

    def _gather(
        self,
        request: Request,
        step: Step,
        instance: Instance,
        source: str,
        given: tuple[dict[str, Value], tuple[Timing, ...]],
    ) -> None:
        """Add what a source gives to the inputs of a step; start the step when it has them all."""
        values, timings = given
        task = step.task
        waiting = request.waiting.pop(task, None) or Waiting()
        for edge in step.inputs:
            if edge.source == source:
                value = values.get(edge.source_port)
                if value is None:
                    wrong = f"{source} gave no {edge.source_port!r} for {edge.port!r} of {task}"
                else:
                    wrong = misfit(instance, edge.port, value)
                if value is None or wrong:
                    self._bad_input(request, task, wrong)
                    return
                waiting.inputs[edge.port] = value
        waiting.timings = merge(waiting.timings, timings)
        if len(waiting.inputs) < len({edge.port for edge in step.inputs}):
            request.waiting[task] = waiting
            return
        missing = instance.required - waiting.inputs.keys()
        if missing:
            text = f"the plan gives task {task} no input {', '.join(sorted(missing))}"
            self._bad_input(request, task, text)
            return
        self.workers.start(
            Job(request, step, instance, waiting.inputs, waiting.timings, self._turn.now_ms)
        )

    def _bad_input(self, request: Request, task: str, text: str) -> None:
        self._fail(request, self._failure(_Code.BAD_INPUT, Blame.USER, text, task=task))

    def _instance(self, request: Request, step: Step) -> Instance | None:
        """Return the instance that may run a step now, or fail the request."""
        held = self._assignments.held.get(step.task)
        instance = held.current if held is not None else None
        if instance is not None and instance.epoch == step.epoch:
            if instance.state is InstanceState.READY:
                return instance
            code, text = _Code.NOT_READY, f"task {step.task} is {instance.state.value}"
        elif held is not None and held.coming is not None and held.coming.epoch == step.epoch:
            code, text = _Code.NOT_READY, f"task {step.task} is {held.coming.state.value}"
        else:
            have = "does not hold it" if instance is None else f"holds epoch {instance.epoch}"
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
                waiters = self._pushes.setdefault(digest, [])
                waiters.append((request, task))
                if len(waiters) == 1:
                    urls, cause = self._turn.store_urls, request.cause
                    self._turn.out.append(PushBlob(digest, size_bytes, urls, cause))
        else:
            self._send(request, task, answer)
        for step in fed_by(request.plan, self._turn.node, task):
            self._feed(request, step, task, answer.outputs, answer.timings)

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

    def _accept(self, request: Request) -> None:
        if "" not in request.repeated:
            request.repeated.add("")
            self._replies.accept(request)

    def _fail(self, request: Request, failure: Failure) -> None:
        """Answer a request with a failure, once."""
        if request.failure is None:
            self._end(request, failure)
            self._replies.result(request, failure)

    def _end(self, request: Request, failure: Failure) -> None:
        """Let go of everything that is under way for a request."""
        request.failure = failure
        for job in request.jobs.values():
            self.workers.drop(job)
        request.jobs.clear()
        request.waiting.clear()
        request.pushing.clear()

    def _settle(self, request: Request) -> None:
        """Retire a request of which nothing is under way any more."""
        if request.live or self._live.get(request.id) is not request:
            return
        del self._live[request.id]
        self._live_bytes -= request.size_bytes
        self._turn.timers.cancel(("request", request.id))
        failure = request.failure
        if request.ran or request.done or (failure and failure.code not in _REFUSALS):
            if not len(self.finished):
                self._turn.timers.set(("sweep", ""), self._turn.now_ms + SWEEP_MS)
            self.finished.put(request)

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
