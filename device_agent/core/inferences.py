"""Models that guests run in the middle of their own calls.

An inference is a request of one step, which the guest's run waits for: it is admitted, queued by
the priority and the deadline of the guest's request, run and counted like any run of its task, and
answered to the guest. It ends with the guest's run, whatever ends that. Guests run models and
models run nothing, so nobody waits in a circle; the guest's deadline bounds the wait.
"""

from itertools import count

from device_agent.core.assignments import Assignments
from device_agent.core.commands import Inferred
from device_agent.core.events import ExecutorDone, Inferring
from device_agent.core.instances import Instance
from device_agent.core.request import Phase, Request, Run
from device_agent.core.requests import Requests
from device_agent.core.turn import Turn
from device_agent.core.values import inline_bytes
from protocols.errors import Blame
from protocols.manifest import ExecutorKind
from protocols.messages.invocation import Failure, FailureCode, Step
from protocols.messages.task import InstanceState


class Inferences:
    """The inferences of this node's guests."""

    def __init__(self, turn: Turn, assignments: Assignments, requests: Requests) -> None:
        self._turn = turn
        self._assignments = assignments
        self._requests = requests
        self._numbers = count(1)

    def ask(self, event: Inferring) -> None:
        """Run a model for a guest, or tell it why not."""
        run = self._requests.workers.running(event.call)
        values = dict(zip(map(str, count()), event.values, strict=False))
        if run is None or run.phase is Phase.DEAD or run.inferring is not None:
            # The executor has been told to stop this call, or its host makes things up.
            self._turn.counts["late inference"] += 1
            self._requests.waste(values)
            return
        if not self._requests.hold(run.request, values):
            self._requests.admission.settle(run.request)
            return
        found = self._target(run, event.name)
        if isinstance(found, Failure):
            self._tell(run, found)
        elif len(event.values) != len(found.ports):
            text = f"task {found.task} takes {len(found.ports)} inputs, not {len(event.values)}"
            self._tell(run, self._failure(FailureCode.BAD_INPUT, Blame.USER, text, found.task))
        else:
            self._begin(run, found, event)

    def _target(self, run: Run, name: str) -> Instance | Failure:
        """Return the instance that a guest may have run, or why there is none."""
        guest = run.instance
        task = next((one.task for one in guest.manifest.infers if one.name == name), None)
        if task is None:
            text = f"the manifest of task {guest.task} names no model {name[:64]!r}"
            return self._failure(FailureCode.BAD_INPUT, Blame.USER, text, guest.task)
        held = self._assignments.held.get(task)
        for one in (held.current, held.leaving) if held is not None else ():
            if one is not None and one.state is InstanceState.READY and one.tenant == guest.tenant:
                if one.manifest.kind is ExecutorKind.ONNX:
                    return one
                text = f"task {task}, which task {guest.task} infers with, is no model"
                return self._failure(FailureCode.BAD_INPUT, Blame.USER, text, task)
        text = f"task {task}, which task {guest.task} infers with, is not ready on this node"
        return self._failure(FailureCode.NOT_READY, Blame.ENVIRONMENT, text, task, retryable=True)

    def _begin(self, run: Run, target: Instance, event: Inferring) -> None:
        asking, turn, requests = run.request, self._turn, self._requests
        inputs = dict(zip(target.ports, event.values, strict=True))
        size_bytes = inline_bytes(inputs)
        if not requests.admission.has_room(size_bytes):
            text = requests.admission.full()
            busy = self._failure(
                FailureCode.BUSY, Blame.ENVIRONMENT, text, target.task, retryable=True
            )
            self._tell(run, busy)
            return
        request = Request(
            # Longer than any identifier that a client can choose.
            id=f"{'infer':>129}{next(self._numbers)}",
            attempt=1,
            plan=asking.plan,
            reply_to="",
            correlation=b"",
            deadline_ms=asking.deadline_ms,
            cause=asking.cause,
            tenant=asking.tenant,
            user=asking.user,
            priority=asking.priority,
            guest=run,
        )
        run.inferring = request
        step = Step(target.task, turn.node, target.epoch, (), ())
        inner = Run(request, step, target, inputs, (), turn.now_ms, turn.now_ms)
        request.runs[target.task] = inner
        requests.admission.enter(request, size_bytes, request.deadline_ms)
        # What is large lies in the blob folder already.
        requests.workers.enqueue(inner)
        requests.admission.settle(request)

    def done(self, run: Run, event: ExecutorDone) -> None:
        """Give a guest what its model gave."""
        request = run.request
        if run.phase is Phase.DEAD or request.guest is None:
            return
        self._requests.measure(run, event)
        request.runs.clear()
        request.guest.inferring = None
        self._turn.out.append(
            Inferred(request.guest.instance.name, request.guest.call, event.outputs)
        )
        self._requests.admission.settle(request)

    def failed(self, request: Request, failure: Failure) -> None:
        """Tell a guest why its model gives nothing."""
        guest = request.guest
        if guest is not None and guest.inferring is request:
            guest.inferring = None
            self._tell(guest, failure)

    def _tell(self, run: Run, failure: Failure) -> None:
        self._turn.out.append(Inferred(run.instance.name, run.call, {}, failure))

    def _failure(
        self,
        code: FailureCode,
        blame: Blame,
        text: str,
        task: str,
        *,
        retryable: bool = False,
    ) -> Failure:
        return Failure(code, blame, text[:1000], retryable, task, self._turn.node)
