"""From a job with all its inputs to a call of its instance: fetches, queue, workers.

An instance runs as many calls at once as its assignment has replicas; more wait in its queue, first
come first served, up to the manifest's bound. A worker is free again only when the executor has
answered, also for a call that nobody waits for any more.
"""

from collections.abc import Callable
from itertools import count
from typing import Final

from device_agent.core.commands import CancelCall, Execute, FetchBlob
from device_agent.core.instances import Instance
from device_agent.core.jobs import Job, Phase, Request
from device_agent.core.turn import Turn
from device_agent.core.values import blobs
from protocols.errors import Blame
from protocols.messages.invocation import Failure, FailureCode
from protocols.messages.task import InstanceState

WAITERS_MAX: Final = 1024
"""Jobs that may wait for one large value before those nobody waits for are cleared away."""

_Code = FailureCode


class Workers:
    """The jobs and calls of every instance. `fail` and `settle` are those of the requests."""

    def __init__(
        self,
        turn: Turn,
        fail: Callable[[Request, Failure], None],
        settle: Callable[[Request], None],
        idle: Callable[[Instance], None],
    ) -> None:
        self._turn = turn
        self._fail = fail
        self._settle = settle
        self._idle = idle
        self._calls: dict[str, Job] = {}
        self._fetches: dict[str, list[Job]] = {}
        self._numbers = count(1)

    def take(self, call: str) -> Job | None:
        """Take the job of an answered call out and free its worker; None when it is too late."""
        job = self._calls.pop(call, None)
        if job is None:
            self._turn.counts["late call"] += 1
        else:
            job.instance.running -= 1
        return job

    def drop(self, job: Job) -> None:
        """Let go of a job that nobody waits for any more."""
        instance = job.instance
        if job.phase is Phase.RUNNING:
            self._turn.out.append(CancelCall(instance.name, job.call))
        elif job.phase is Phase.QUEUED and job in instance.queue:
            instance.queue.remove(job)
        elif job.phase is Phase.FETCHING:
            instance.fetching -= 1
            self._check_idle(instance)
        job.phase = Phase.DEAD

    def forget(self, instance: Instance) -> None:
        """Forget the calls of an instance that will answer none of them."""
        self._calls = {
            call: job for call, job in self._calls.items() if job.instance is not instance
        }
        instance.running = 0
        instance.queue.clear()

    def not_fetched(self, digest: str) -> list[Request]:
        """Return the requests that wait for a value which cannot be had."""
        jobs = self._fetches.pop(digest, ())
        return [job.request for job in jobs if job.phase is Phase.FETCHING]

    def blob_ready(self, digest: str) -> None:
        """Go on with every job that waited for this value last."""
        for job in self._fetches.pop(digest, ()):
            if job.phase is Phase.FETCHING:
                job.wanted.discard(digest)
                if not job.wanted:
                    job.instance.fetching -= 1
                    job.fetch_us = int((self._turn.now_ms - job.since_ms) * 1000)
                    job.since_ms = self._turn.now_ms
                    self._enqueue(job)
                    self._settle(job.request)

    def start(self, job: Job) -> None:
        """Fetch the large inputs of a job, then run it or let it wait."""
        job.request.jobs[job.step.task] = job
        large = blobs(job.inputs)
        if not large:
            self._enqueue(job)
            return
        job.phase = Phase.FETCHING
        job.instance.fetching += 1
        job.wanted = set(large)
        for digest, size_bytes in large.items():
            waiters = self._fetches.setdefault(digest, [])
            if len(waiters) >= WAITERS_MAX:
                waiters[:] = [one for one in waiters if one.phase is Phase.FETCHING]
            waiters.append(job)
            if len(waiters) == 1:
                urls, cause = self._turn.store_urls, job.request.cause
                self._turn.out.append(FetchBlob(digest, size_bytes, urls, cause))

    def _enqueue(self, job: Job) -> None:
        """Run a job, or let it wait within the bound of its task."""
        instance = job.instance
        job.phase = Phase.QUEUED
        if instance.running < instance.replicas and not instance.queue:
            self._execute(job)
        elif len(instance.queue) < instance.manifest.limits.queue:
            instance.queue.append(job)
        else:
            task, bound = job.step.task, instance.manifest.limits.queue
            text = f"task {task} has {bound} requests waiting, its limit"
            job.phase = Phase.DEAD
            self._fail(job.request, self._failure(_Code.BUSY, text, task, retryable=True))

    def _execute(self, job: Job) -> None:
        turn, request = self._turn, job.request
        left_ms = int(request.deadline_ms - turn.now_ms)
        if left_ms < 1:
            job.phase = Phase.DEAD
            text = f"no time was left to run task {job.step.task}"
            self._fail(request, self._failure(_Code.DEADLINE, text, job.step.task))
            return
        instance = job.instance
        instance.running += 1
        job.phase = Phase.RUNNING
        job.call = call = str(next(self._numbers))
        job.queue_us = int((turn.now_ms - job.since_ms) * 1000)
        request.ran = True
        self._calls[call] = job
        budget_ms = min(left_ms, instance.manifest.limits.deadline_ms)
        turn.out.append(Execute(instance.name, call, job.inputs, budget_ms, request.cause))

    def next(self, instance: Instance) -> None:
        """Give free workers of an instance what waits longest."""
        while instance.running < instance.replicas and instance.queue:
            job = instance.queue.popleft()
            self._execute(job)
            if job.phase is Phase.DEAD:
                self._settle(job.request)
        self._check_idle(instance)

    def _check_idle(self, instance: Instance) -> None:
        if instance.state is InstanceState.DRAINING and instance.idle:
            self._idle(instance)

    def _failure(
        self, code: FailureCode, text: str, task: str, *, retryable: bool = False
    ) -> Failure:
        return Failure(code, Blame.ENVIRONMENT, text, retryable, task, self._turn.node)
