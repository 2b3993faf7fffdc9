"""The life of instances: fetched, started, mended when they break, drained and stopped.

What the table in `lifecycle` allows happens here; `assignments` decides which instances there are.
"""

from collections.abc import Callable, Iterable
from typing import Final

from device_agent.core.commands import FetchArtifact, Keep, StartInstance, StopInstance
from device_agent.core.events import (
    ArtifactFailed,
    ArtifactReady,
    InstanceExited,
    InstanceFailed,
    InstanceStats,
)
from device_agent.core.instances import Held, Instance, digests, instance_of, move
from device_agent.core.lifecycle import LifecycleEvent
from device_agent.core.tasks import Tasks
from device_agent.core.turn import Turn
from protocols.errors import Blame
from protocols.messages.task import Assign, InstanceState

RESTARTS_MAX: Final = 5
"""Troubles within the window that are mended by trying again; one more and the task has failed."""
RESTART_WINDOW_MS: Final = 600_000
BACKOFF_FIRST_MS: Final = 500
BACKOFF_MAX_MS: Final = 60_000
DRAIN_MS: Final = 30_000
"""What runs may take to finish when its instance is released."""
STOP_MS: Final = 30_000
"""Without word from the executor an instance counts as stopped after this."""
MEMORY_STEP: Final = 0.2
"""Relative change of an instance's memory that is worth a status."""

_State, _Event = InstanceState, LifecycleEvent


def _nobody(_instance: Instance, _text: str) -> None:
    """Stand in until `requests` is wired."""


class Upkeep:
    """Every instance of this node. `online` tells whether a scheduler is in reach."""

    def __init__(self, turn: Turn, tasks: Tasks, online: Callable[[], bool]) -> None:
        self._turn = turn
        self._tasks = tasks
        self._online = online
        self.instances: dict[str, Instance] = {}
        self._fetching: dict[tuple[str, str], set[str]] = {}
        """Who waits for an artifact, by tenant and digest."""
        self._serial = 0
        self.may_start: Callable[[Instance], bool] = lambda _: True
        """Whether there is memory for an instance now; else it is started when there is."""
        self.changed: Callable[[Instance], None] = lambda _: None
        """Told of every instance that has come, gone or changed in what it may take."""
        self.abandon: Callable[[Instance, str], None] = _nobody
        """Fails every request that still counts on this instance (wired by the core)."""

    # What assignments ask for.

    def create(self, assign: Assign) -> Instance:
        """Return a new instance; `fetch` sets it off."""
        instance = instance_of(assign, self._name(assign.task))
        self.instances[instance.name] = instance
        self.changed(instance)
        return instance

    def fetch(self, instance: Instance, cause: str) -> None:
        """Have everything that an instance needs in the cache; it starts when all is there."""
        needed = digests(instance.manifest)
        instance.wanting = set(needed)
        for digest, size_bytes in needed.items():
            waiters = self._fetching.get((instance.tenant, digest))
            if waiters is None:
                self._fetching[instance.tenant, digest] = {instance.name}
                urls = self._turn.store_urls
                self._turn.out.append(
                    FetchArtifact(digest, size_bytes, urls, cause, instance.tenant)
                )
            else:
                waiters.add(instance.name)

    def retire(self, held: Held, instance: Instance, cause: str) -> None:
        """Release one instance: stop it at once, or let it finish what runs."""
        for place in ("coming", "current", "leaving"):
            if getattr(held, place) is instance:
                setattr(held, place, None)
        before = instance.state
        self._turn.timers.cancel(("grace", instance.name))
        self._move(held, instance, _Event.RELEASE, cause)
        if instance.state is _State.STOPPED:
            self._drop(instance)
            return
        held.retiring.append(instance)
        if before is _State.DEPLOYING or instance.idle:
            self._stop(instance, cause)
        else:
            self._turn.timers.set(("drain", instance.name), self._turn.now_ms + DRAIN_MS)

    def stay(self, held: Held, instance: Instance, cause: str) -> None:
        """Let an instance that is replaced serve its epoch for the grace of the assignment."""
        if held.leaving is not None:
            self.retire(held, held.leaving, cause)
        if instance.state is not _State.READY or not held.assign.grace_ms:
            self.retire(held, instance, cause)
            return
        held.leaving = instance
        due_ms = self._turn.now_ms + held.assign.grace_ms
        self._turn.timers.set(("grace", instance.name), due_ms)

    def reachable(self, cause: str) -> None:
        """Try at once what could not be fetched: the store may be in reach again."""
        for held in list(self._tasks.held.values()):
            for instance in (held.current, held.coming):
                if instance is not None and instance.offline_fetches:
                    instance.offline_fetches = 0
                    if instance.state is _State.RESTARTING:
                        self._turn.timers.cancel(("retry", instance.name))
                        self._retry(held, instance, cause)

    # What executors and fetches say.

    def artifact_ready(self, event: ArtifactReady) -> None:
        """Go on with every instance that waited for this artifact last."""
        digest = event.digest
        for name in self._fetching.pop((event.tenant, digest), ()):
            instance = self.instances.get(name)
            if instance is None:
                continue
            instance.wanting.discard(digest)
            fetched = not instance.wanting and instance.state is _State.FETCHING
            if fetched and self.may_start(instance):
                self.start(instance, digest)

    def start(self, instance: Instance, cause: str) -> None:
        """Start an instance that has everything it needs."""
        instance.offline_fetches = 0
        self._move(self._tasks.held[instance.task], instance, _Event.FETCHED, cause)
        tuning = instance.tuning
        self._turn.out.append(
            StartInstance(
                instance.name,
                instance.task,
                instance.manifest,
                instance.workers,
                instance.task,
                tuning.threads,
                tuning.provider,
                tuning.cpu_percent,
                tuning.priority,
                instance.tenant,
                instance.fresh,
            )
        )
        self._tasks.tell(instance.task, cause)

    def artifact_failed(self, event: ArtifactFailed) -> None:
        """Trouble for every instance that waits for this artifact."""
        offline = event.retryable and not self._online()
        for name in self._fetching.pop((event.tenant, event.digest), ()):
            instance = self.instances.get(name)
            if instance is not None and instance.state is _State.FETCHING:
                if offline:
                    instance.offline_fetches += 1
                self._trouble(instance, event.text, event.blame, event.retryable, event.digest)

    def ready(self, name: str) -> None:
        """Take note that an instance can be invoked; one that was prepared takes over now."""
        instance = self.instances.get(name)
        if instance is None or instance.state is not _State.DEPLOYING:
            return
        held = self._tasks.held[instance.task]
        self._move(held, instance, _Event.STARTED, name)
        instance.reason, instance.blame = "", None
        held.fresh = False
        if held.coming is instance:
            old, held.current, held.coming = held.current, instance, None
            if held.older is not None:
                held.older = None
                self._turn.out.append(Keep(held.assign, name))
            if old is not None:
                self.stay(held, old, f"epoch {instance.epoch} is ready")
        self._tasks.tell(instance.task, name)

    def failed(self, event: InstanceFailed) -> None:
        """Take note that the executor could not start an instance."""
        instance = self.instances.get(event.instance)
        if instance is None:
            return
        if instance.state is _State.DEPLOYING:
            self._trouble(instance, event.text, event.blame, event.retryable, event.instance)
        elif instance.state is _State.DRAINING:
            self.stopped(event.instance)

    def exited(self, event: InstanceExited) -> None:
        """Take note that an instance died by itself."""
        instance = self.instances.get(event.instance)
        if instance is None:
            return
        self.abandon(instance, event.text)
        held = self._tasks.held[instance.task]
        if instance.state is _State.DRAINING:
            self.stopped(event.instance)
        elif held.leaving is instance:
            self.retire(held, instance, event.text)
        elif instance.state in {_State.READY, _State.DEPLOYING}:
            self._trouble(instance, event.text, event.blame, retryable=True, cause=event.instance)

    def stopped(self, name: str) -> None:
        """Forget what the executor has ended; late words about replaced ones are expected."""
        instance = self.instances.get(name)
        if instance is None or instance.state is not _State.DRAINING:
            return
        held = self._tasks.held[instance.task]
        self.abandon(instance, "the instance was stopped")
        self._move(held, instance, _Event.ENDED, name)
        held.retiring.remove(instance)
        self._drop(instance)
        if self._tasks.close(instance.task, held):
            self._tasks.tell(instance.task, name)

    def idle(self, instance: Instance) -> None:
        """Stop a draining instance that has finished what ran."""
        if instance.state is _State.DRAINING:
            self._stop(instance, "drained")

    def stats(self, event: InstanceStats) -> None:
        """Note what an instance takes and how it runs; a clear change is worth a status."""
        instance = self.instances.get(event.instance)
        if instance is None:
            return
        before, now = instance.memory_bytes, event.memory_bytes
        moved = before is None or abs(now - before) > MEMORY_STEP * before
        if moved or event.remark != instance.remark:
            instance.memory_bytes, instance.remark = now, event.remark
            self.changed(instance)
            self._tasks.tell(instance.task, "memory" if moved else "remark")

    def on_timer(self, subject: str, name: str) -> None:
        """Act on the end of a wait of one instance."""
        instance = self.instances.get(name)
        if instance is None:
            return
        held = self._tasks.held[instance.task]
        if subject == "retry":
            self._retry(held, instance, "backoff")
        elif subject == "grace":
            self.retire(held, instance, "grace is over")
        elif subject == "drain":
            self.abandon(instance, f"the instance was released and had {DRAIN_MS} ms to finish")
            self._stop(instance, "drain is over")
        else:
            self._turn.counts["stop timed out"] += 1
            self.stopped(name)

    # How it is done.

    def _name(self, task: str) -> str:
        self._serial += 1
        return f"{task}~{self._serial}"

    def _move(self, held: Held, instance: Instance, event: LifecycleEvent, cause: str) -> None:
        move(held, instance, event, cause)
        self.changed(instance)

    def _retry(self, held: Held, instance: Instance, cause: str) -> None:
        del self.instances[instance.name]
        instance.name = self._name(instance.task)
        self.instances[instance.name] = instance
        self._move(held, instance, _Event.RETRY, cause)
        self.fetch(instance, cause)
        self._tasks.tell(instance.task, cause)

    def _trouble(
        self, instance: Instance, text: str, blame: Blame, retryable: bool, cause: str
    ) -> None:
        """Try again after a while, or give up when that is no use."""
        turn, held = self._turn, self._tasks.held[instance.task]
        if instance.state is not _State.FETCHING:
            turn.out.append(StopInstance(instance.name, cause))
        instance.reason, instance.blame = text, blame
        since = turn.now_ms - RESTART_WINDOW_MS
        instance.troubles = [at for at in instance.troubles if at > since]
        if not instance.offline_fetches:
            instance.troubles.append(turn.now_ms)
        tries = len(instance.troubles) + instance.offline_fetches
        if not retryable or len(instance.troubles) > RESTARTS_MAX:
            self._move(held, instance, _Event.GIVE_UP, cause)
        else:
            self._move(held, instance, _Event.TROUBLE, cause)
            instance.restarts += 1
            wait_ms = min(BACKOFF_FIRST_MS * 2 ** min(tries - 1, 16), BACKOFF_MAX_MS)
            turn.timers.set(("retry", instance.name), turn.now_ms + turn.spread(wait_ms))
        self._tasks.tell(instance.task, cause)

    def _stop(self, instance: Instance, cause: str) -> None:
        if instance.stopping:
            return
        instance.stopping = True
        self._turn.timers.cancel(("drain", instance.name))
        self._turn.timers.set(("stop", instance.name), self._turn.now_ms + STOP_MS)
        self._turn.out.append(StopInstance(instance.name, cause))

    def _drop(self, instance: Instance) -> None:
        """Forget an instance that is stopped."""
        name = instance.name
        for subject in ("retry", "drain", "stop", "rest", "warm"):
            self._turn.timers.cancel((subject, name))
        self.instances.pop(name, None)
        self.changed(instance)
        self._unwant([name])

    def _unwant(self, names: Iterable[str]) -> None:
        for waiters in self._fetching.values():
            waiters.difference_update(names)
