"""From a run with all its inputs to a call of its instance: fetches, queue, workers, shedding.

An instance has as many calls under way at once as it has workers; more runs wait in its queue, by
priority, then deadline, then arrival. A worker is free again only when the executor has answered,
also for a call that nobody waits for any more. Where a model's manifest allows it, calls that wait
share a run; `batches` says when.

Overload. A run that by the mean of the last ones cannot end within its time is shed at once, with
the figures; so is one whose turn comes too late, when those before it took longer than was
expected. When the queue is full, whoever is worth least of it and the newcomer is shed. An instance
that runs nothing takes whatever comes, so that a mean that was learnt in a bad hour is unlearnt.
"""

from collections.abc import Callable
from itertools import count
from typing import TYPE_CHECKING, Final

from device_agent.core.commands import CancelCall, Execute, ExecuteTogether
from device_agent.core.instances import Batch, Instance
from device_agent.core.quality import Meter
from device_agent.core.request import Phase, Request, Run
from device_agent.core.turn import Turn
from device_agent.core.values import MADE, blobs
from device_agent.core.waiters import Waiters
from protocols.errors import Blame, TonaBug
from protocols.messages.invocation import Failure, FailureCode
from protocols.messages.task import InstanceState

if TYPE_CHECKING:
    from device_agent.core.batches import Pace
    from device_agent.core.deviceless import Deviceless

AGAIN: Final = 2.0
"""Another attempt may help when there is time for so many mean runs."""

_Code = FailureCode


def _nothing() -> "Deviceless":
    raise TonaBug("the workers were not wired")


class Workers:
    """The runs and calls of every instance. `fail` and `settle` are those of the requests."""

    def __init__(
        self,
        turn: Turn,
        meter: Meter,
        fail: Callable[[Request, Failure], None],
        settle: Callable[[Request], None],
        idle: Callable[[Instance], None],
    ) -> None:
        self._turn = turn
        self._meter = meter
        self._fail = fail
        self._settle = settle
        self._idle = idle
        self.deviceless: Callable[[], Deviceless] = _nothing
        """Who lets instances follow the requests (wired by the core)."""
        self._calls: dict[str, Run] = {}
        self._fetches = Waiters[Run](turn)
        self._numbers = count(1)
        self._arrivals = count()

    def running(self, call: str) -> Run | None:
        """Return the run of a call that the executor has."""
        return self._calls.get(call)

    def take(self, call: str) -> Run | None:
        """Take the run of an answered call out and free its worker; None when it is too late."""
        run = self._calls.pop(call, None)
        if run is None:
            self._turn.counts["late call"] += 1
        else:
            batch = run.instance.running.pop(call)
            batch.left -= 1
            run.instance.busy -= not batch.left
        return run

    def learn(self, run: Run, *, at_least: bool = False) -> None:
        """Take how long a run took into the mean of its instance; one cut off took at least so."""
        instance, batch = run.instance, run.batch
        if batch is None:
            return
        took_ms = self._turn.now_ms - batch.began_ms
        if at_least and took_ms <= (batch.expected_ms or instance.mean_run_ms):
            return
        if batch.calls == 1:
            instance.learn(took_ms)
        elif at_least or not batch.left:
            # Alone each would have taken no longer, and no less than its share.
            mean_ms = instance.mean_run_ms
            instance.learn(min(max(mean_ms, took_ms / batch.calls), took_ms))
        else:
            return
        if instance.pace is not None and batch.rows:
            instance.pace.learn(batch.rows, batch.calls, took_ms)

    def drop(self, run: Run) -> None:
        """Let go of a run that nobody waits for any more."""
        instance = run.instance
        if run.phase is Phase.RUNNING:
            self._turn.out.append(CancelCall(instance.name, run.call))
        elif run.phase is Phase.QUEUED:
            instance.queue.remove(run)
        elif run.phase is Phase.FETCHING:
            instance.fetching -= 1
            for digest in run.wanted:
                self._fetches.leave(digest, run)
            self._check_idle(instance)
        run.phase = Phase.DEAD

    def forget(self, instance: Instance) -> None:
        """Forget the calls of an instance that will answer none of them."""
        for call in instance.running:
            del self._calls[call]
        instance.running.clear()
        instance.busy = 0
        instance.queue.clear()

    def not_fetched(self, digest: str) -> list[Request]:
        """Return the requests that wait for a value which cannot be had."""
        return [run.request for run in self._waited(digest)]

    def _waited(self, digest: str) -> list[Run]:
        """Return the runs that waited for a value; they wait for it no more."""
        runs = self._fetches.end(digest)
        for run in runs:
            run.wanted.discard(digest)
        return runs

    def blob_ready(self, digest: str) -> None:
        """Go on with every run that waited for this value last."""
        for run in self._waited(digest):
            if not run.wanted and run.phase is Phase.FETCHING:
                run.instance.fetching -= 1
                run.fetch_us = int((self._turn.now_ms - run.since_ms) * 1000)
                run.since_ms = self._turn.now_ms
                self._meter.of(run.instance).fetch.add(run.fetch_us / 1000)
                self.enqueue(run)
                self._settle(run.request)

    def start(self, run: Run) -> None:
        """Fetch the large inputs of a run, then let it run or wait."""
        run.request.runs[run.step.task] = run
        large = {
            digest: size
            for digest, size in blobs(run.inputs).items()
            if not digest.startswith(MADE)
        }
        if not large:
            self.enqueue(run)
            return
        run.phase = Phase.FETCHING
        run.instance.fetching += 1
        run.wanted = set(large)
        for digest, size_bytes in large.items():
            self._fetches.add(digest, size_bytes, run, run.request)

    def rerank(self, request: Request) -> None:
        """Let the runs of a request wait in the places of its new deadline and priority."""
        for run in request.runs.values():
            if run.phase is Phase.QUEUED and run.instance.queue.remove(run):
                self._rank(run)
                run.instance.queue.push(run)

    def _rank(self, run: Run) -> None:
        run.rank = *run.request.urgency, next(self._arrivals)

    def enqueue(self, run: Run) -> None:
        """Run it, let it wait, or shed it or another one in its place."""
        instance = run.instance
        queue = instance.queue
        run.phase = Phase.QUEUED
        if not queue and self._may_run(instance):
            self._execute([run])
            return
        self._rank(run)
        wait_ms = instance.wait_ms(queue.ahead(run.rank), self._turn.now_ms)
        if self._too_late(run, wait_ms):
            self._shed_late(run, wait_ms)
        elif len(queue) < instance.manifest.limits.queue:
            queue.push(run)
            if instance.workers < instance.replicas:
                self.deviceless().grow(instance)
                self.next(instance)
        elif run.rank < queue.last.rank:
            worst: Run = queue.last
            queue.remove(worst)
            queue.push(run)
            self._shed_full(worst)
            self._settle(worst.request)
        else:
            self._shed_full(run)

    def _too_late(self, run: Run, wait_ms: float) -> bool:
        left_ms = run.request.deadline_ms - self._turn.now_ms
        return wait_ms + run.instance.mean_run_ms > left_ms

    def _shed_late(self, run: Run, wait_ms: float) -> None:
        instance = run.instance
        left_ms = run.request.deadline_ms - self._turn.now_ms
        self.shed(
            run,
            f"task {run.step.task} would begin in {wait_ms:.0f} ms and run "
            f"{instance.mean_run_ms:.0f} ms, {left_ms:.0f} ms are left ({len(instance.queue)} wait "
            f"for {instance.replicas} workers)",
        )

    def _shed_full(self, run: Run) -> None:
        bound = run.instance.manifest.limits.queue
        self.shed(
            run,
            f"task {run.step.task} has {bound} requests waiting, its limit, and this one has the "
            f"lowest priority ({run.request.priority}) and the latest deadline",
        )

    def shed(self, run: Run, text: str) -> None:
        """Refuse a run that does not wait in the queue; another attempt may help if time is left.

        The caller settles its request.
        """
        request, instance = run.request, run.instance
        run.phase = Phase.DEAD
        self._meter.of(instance).shed += 1
        left_ms = request.deadline_ms - self._turn.now_ms
        retryable = left_ms > 1 and left_ms > AGAIN * instance.mean_run_ms
        failure = self._failure(_Code.SHED, text, run.step.task, retryable=retryable)
        self._fail(request, failure)

    def _execute(self, runs: list[Run]) -> None:
        """Give runs to one worker."""
        instance = runs[0].instance
        calls = [call for run in runs if (call := self._begin(run)) is not None]
        if not calls:
            return
        if instance.deviceless is not None:
            self.deviceless().busy(instance)
        batch = Batch(self._turn.now_ms, len(calls), left=len(calls))
        for call in calls:
            self._calls[call.call].batch = instance.running[call.call] = batch
        instance.busy += 1
        if instance.pace is not None:
            batch.rows = instance.pace.rows([self._calls[call.call].inputs for call in calls])
            batch.expected_ms = instance.pace.ms(batch.rows) if batch.rows else 0.0
        self._turn.out.append(calls[0] if len(calls) == 1 else ExecuteTogether(tuple(calls)))

    def _begin(self, run: Run) -> Execute | None:
        """Return the call of a run; None, and its request failed, when it is too late."""
        turn, request, instance = self._turn, run.request, run.instance
        window = self._meter.of(instance)
        left_ms = int(request.deadline_ms - turn.now_ms)
        if left_ms < 1:
            run.phase = Phase.DEAD
            window.late += 1
            text = f"no time was left to run task {run.step.task}"
            self._fail(request, self._failure(_Code.DEADLINE, text, run.step.task))
            return None
        run.phase = Phase.RUNNING
        run.call = str(next(self._numbers))
        run.queue_us = int((turn.now_ms - run.since_ms) * 1000)
        window.queue.add(run.queue_us / 1000)
        request.ran = True
        self._calls[run.call] = run
        priority = instance.tuning.priority + request.priority
        return Execute(instance.name, run.call, run.inputs, left_ms, request.cause, priority)

    def next(self, instance: Instance) -> None:
        """Give free workers of an instance what comes first and can still be in time."""
        queue = instance.queue
        while queue and self._may_run(instance):
            run: Run = queue.pop()
            runs = [run]
            # The last one may try: were it shed too, nothing would unlearn a wrong mean.
            if (instance.running or queue) and self._too_late(run, 0.0):
                self._shed_late(run, 0.0)
            else:
                if instance.pace is not None and queue:
                    runs = self._sharing(run, instance.pace)
                self._execute(runs)
            for one in runs:
                if one.phase is Phase.DEAD:
                    self._settle(one.request)
        self._check_idle(instance)

    def _may_run(self, instance: Instance) -> bool:
        """Whether a worker is free, and the memory that it needs."""
        if not instance.free:
            return False
        return instance.deviceless is None or self.deviceless().may_run(instance)

    def _sharing(self, run: Run, pace: "Pace") -> list[Run]:
        """Return a run, and those taken out of the queue that had best share its turn."""
        instance = run.instance
        waiting = (1 + len(instance.queue)) / instance.workers
        free = instance.workers - instance.busy
        runs = pace.sharing(run, instance.queue, waiting, free, self._turn.now_ms)
        for one in runs[1:]:
            instance.queue.remove(one)
        return runs

    def _check_idle(self, instance: Instance) -> None:
        if not instance.idle:
            return
        if instance.state is InstanceState.DRAINING:
            self._idle(instance)
        elif instance.deviceless is not None:
            self.deviceless().idle(instance)

    def _failure(
        self, code: FailureCode, text: str, task: str, *, retryable: bool = False
    ) -> Failure:
        return Failure(code, Blame.ENVIRONMENT, text, retryable, task, self._turn.node)
