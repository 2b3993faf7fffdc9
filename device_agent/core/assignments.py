"""Assignments: what this node holds, under which epoch, and how it is brought to run.

Epochs fence: whatever is below the highest epoch seen for a task is counted, refused and answered
with the present status. The same assignment again only repeats the status. A higher epoch for what
already runs is adopted without touching it, so a new scheduler or a reconnection restarts nothing.
A new generation is prepared beside the old one, which serves until the new one is ready.
"""

from collections.abc import Callable, Iterable
from typing import Final

from device_agent.core.capacity import HELD_MAX, refusal
from device_agent.core.commands import (
    FetchArtifact,
    Forget,
    Keep,
    StartInstance,
    StopInstance,
)
from device_agent.core.events import (
    ArtifactFailed,
    InstanceExited,
    InstanceFailed,
    JournalFailed,
    Restored,
)
from device_agent.core.instances import Held, Instance, digests, instance_of, move
from device_agent.core.lifecycle import Entry, LifecycleEvent
from device_agent.core.outbox import Outbox
from device_agent.core.turn import Turn
from protocols.errors import Blame
from protocols.messages.presence import Holding, Inventory
from protocols.messages.task import Assign, InstanceState, Release

TOMBSTONES_MAX: Final = 1024
RESTARTS_MAX: Final = 5
"""Troubles within the window that are mended by trying again; one more and the task has failed."""
RESTART_WINDOW_MS: Final = 600_000
BACKOFF_FIRST_MS: Final = 500
BACKOFF_MAX_MS: Final = 60_000
DRAIN_MS: Final = 30_000
"""What runs may take to finish when its instance is released."""
STOP_MS: Final = 30_000
"""Without word from the executor an instance counts as stopped after this."""
JOURNAL_MS: Final = 30_000
"""Between two tries to journal what already holds."""
MEMORY_STEP: Final = 0.2
"""Relative change of an instance's memory that is worth a status."""

_State, _Event = InstanceState, LifecycleEvent
_LIVE: Final = frozenset(
    {_State.FETCHING, _State.DEPLOYING, _State.READY, _State.RESTARTING},
)


def _nobody(_instance: Instance, _text: str) -> None:
    """Stand in until `requests` is wired."""


class Assignments:
    """The tasks of this node. `online` tells whether a scheduler is in reach."""

    def __init__(
        self,
        turn: Turn,
        outbox: Outbox,
        inventory: Inventory,
        online: Callable[[], bool],
    ) -> None:
        self._turn = turn
        self._outbox = outbox
        self._inventory = inventory
        self._online = online
        self.held: dict[str, Held] = {}
        self._instances: dict[str, Instance] = {}
        self._tombstones: dict[str, int] = {}
        self._fetching: dict[str, set[str]] = {}
        self._serial = 0
        self.abandon: Callable[[Instance, str], None] = _nobody
        """Fails every request that still counts on this instance (wired by the core)."""

    # What peers and the journal say.

    def restore(self, event: Restored) -> None:
        """Take in the journal and begin to run what it kept; nobody has to be in reach."""
        for task, epoch in event.tombstones[-TOMBSTONES_MAX:]:
            self._tombstones[task] = epoch
        for assign in event.assigns[:HELD_MAX]:
            held = self.held[assign.task] = Held(assign)
            held.current = self._new(assign)
            self._fetch(held.current, "journal")
            self._tell(assign.task, "journal")

    def assign(self, message: Assign, cause: str) -> None:
        """Hold a task. Stale ones change nothing, refused ones are answered with the reason."""
        held = self.held.get(message.task)
        if self._stale(message, held):
            self._turn.counts["stale"] += 1
            self._tell(message.task, cause)
            return
        if held is not None and not held.released and self._same(message, held):
            self._tell(message.task, cause)
            return
        refusal = self._refusal(message, held)
        if refusal:
            self._turn.counts["refused"] += 1
            self._outbox.post(
                task=message.task,
                epoch=message.epoch,
                generation=message.generation,
                state=_State.FAILED,
                cause=cause,
                reason=refusal,
                blame=Blame.ENVIRONMENT,
            )
            return
        self._turn.out.append(Keep(message, cause))
        self._tombstones.pop(message.task, None)
        if held is None:
            held = self.held[message.task] = Held(message)
        held.assign, held.released = message, False
        if not self._adopt(held, message, cause):
            self._prepare(held, message, cause)
        self._tell(message.task, cause)

    def release(self, message: Release, cause: str) -> None:
        """Give a task up to an epoch; what runs is finished first."""
        held = self.held.get(message.task)
        if held is not None and not held.released:
            if message.epoch < held.assign.epoch:
                self._turn.counts["stale"] += 1
                self._tell(message.task, cause)
                return
            self._bury(message.task, message.epoch, cause)
            held.released = True
            for instance in (held.coming, held.current):
                if instance is not None:
                    self._retire(held, instance, cause)
            self._close(message.task, held)
        elif message.epoch > self._tombstones.get(message.task, -1):
            self._bury(message.task, message.epoch, cause)
        self._tell(message.task, cause)

    def holdings(self) -> tuple[Holding, ...]:
        """Return what a birth says of the tasks of this node."""
        found = []
        for task, held in self.held.items():
            instance = held.current or held.coming
            if instance is not None and not held.released:
                found.append(Holding(task, instance.epoch, instance.state, instance.generation))
        return tuple(found)

    def reachable(self, cause: str) -> None:
        """Try at once what could not be fetched: the store may be in reach again."""
        for held in list(self.held.values()):
            for instance in (held.current, held.coming):
                if instance is not None and instance.offline_fetches:
                    instance.offline_fetches = 0
                    if instance.state is _State.RESTARTING:
                        self._turn.timers.cancel(("retry", instance.name))
                        self._retry(held, instance, cause)

    def stop_all(self, cause: str) -> None:
        """Drain every instance, for the daemon ends; the journal keeps the assignments."""
        for held in self.held.values():
            for instance in (held.coming, held.current):
                if instance is not None:
                    self._retire(held, instance, cause)

    @property
    def instances(self) -> int:
        """How many instances there are in any state."""
        return len(self._instances)

    @property
    def active(self) -> bool:
        """Whether any instance still has something to end."""
        return any(held.retiring for held in self.held.values())

    # What the journal, executors and fetches say.

    def journal_failed(self, event: JournalFailed) -> None:
        """Go on with what serves and write it later; give up what is only on its way."""
        held = self.held.get(event.task)
        if held is None or held.released:
            if self._tombstones.get(event.task) == event.epoch:
                self._turn.timers.set(("journal", event.task), self._turn.now_ms + JOURNAL_MS)
            return
        if event.epoch != held.assign.epoch:
            return
        if held.current is not None and held.current.state is _State.READY:
            held.story.append(Entry(_State.READY, "not journalled", event.text))
            self._turn.timers.set(("journal", event.task), self._turn.now_ms + JOURNAL_MS)
            return
        held.released = True
        for instance in (held.coming, held.current):
            if instance is not None:
                self._retire(held, instance, event.text)
        self._close(event.task, held)
        self._outbox.post(
            task=event.task,
            epoch=event.epoch,
            generation=held.assign.generation,
            state=_State.FAILED,
            cause="journal",
            reason=event.text,
            blame=Blame.ENVIRONMENT,
        )

    def artifact_ready(self, digest: str) -> None:
        """Go on with every instance that waited for this artifact last."""
        for name in self._fetching.pop(digest, ()):
            instance = self._instances.get(name)
            if instance is None:
                continue
            instance.wanting.discard(digest)
            if not instance.wanting and instance.state is _State.FETCHING:
                instance.offline_fetches = 0
                move(self.held[instance.task], instance, _Event.FETCHED, digest)
                self._turn.out.append(
                    StartInstance(
                        name, instance.task, instance.manifest, instance.replicas, instance.task
                    )
                )
                self._tell(instance.task, digest)

    def artifact_failed(self, event: ArtifactFailed) -> None:
        """Trouble for every instance that waits for this artifact."""
        offline = event.retryable and not self._online()
        for name in self._fetching.pop(event.digest, ()):
            instance = self._instances.get(name)
            if instance is not None and instance.state is _State.FETCHING:
                if offline:
                    instance.offline_fetches += 1
                self._trouble(instance, event.text, event.blame, event.retryable, event.digest)

    def ready(self, name: str) -> None:
        """Take note that an instance can be invoked; a newer generation takes over now."""
        instance = self._instances.get(name)
        if instance is None or instance.state is not _State.DEPLOYING:
            return
        held = self.held[instance.task]
        move(held, instance, _Event.STARTED, name)
        instance.reason, instance.blame = "", None
        if held.coming is instance:
            old, held.current, held.coming = held.current, instance, None
            if old is not None:
                self._retire(held, old, f"generation {instance.generation} is ready")
        self._tell(instance.task, name)

    def failed(self, event: InstanceFailed) -> None:
        """Take note that the executor could not start an instance."""
        instance = self._instances.get(event.instance)
        if instance is None:
            return
        if instance.state is _State.DEPLOYING:
            self._trouble(instance, event.text, event.blame, event.retryable, event.instance)
        elif instance.state is _State.DRAINING:
            self.stopped(event.instance)

    def exited(self, event: InstanceExited) -> None:
        """Take note that an instance died by itself."""
        instance = self._instances.get(event.instance)
        if instance is None:
            return
        self.abandon(instance, event.text)
        if instance.state is _State.DRAINING:
            self.stopped(event.instance)
        elif instance.state in {_State.READY, _State.DEPLOYING}:
            self._trouble(instance, event.text, event.blame, retryable=True, cause=event.instance)

    def stopped(self, name: str) -> None:
        """Forget what the executor has ended; late words about replaced ones are expected."""
        instance = self._instances.get(name)
        if instance is None or instance.state is not _State.DRAINING:
            return
        held = self.held[instance.task]
        self.abandon(instance, "the instance was stopped")
        move(held, instance, _Event.ENDED, name)
        held.retiring.remove(instance)
        self._drop(instance)
        if self._close(instance.task, held):
            self._tell(instance.task, name)

    def idle(self, instance: Instance) -> None:
        """Stop a draining instance that has finished what ran."""
        if instance.state is _State.DRAINING:
            self._stop(instance, "drained")

    def stats(self, name: str, memory_bytes: int) -> None:
        """Note what an instance takes; a clear change is worth a status."""
        instance = self._instances.get(name)
        if instance is None:
            return
        before = instance.memory_bytes
        if before is None or abs(memory_bytes - before) > MEMORY_STEP * before:
            instance.memory_bytes = memory_bytes
            self._tell(instance.task, "memory")

    def on_timer(self, subject: str, name: str) -> None:
        """Act on the end of a wait of one instance, or of one task's journal entry."""
        if subject == "journal":
            self._write_again(name)
            return
        instance = self._instances.get(name)
        if instance is None:
            return
        if subject == "retry":
            self._retry(self.held[instance.task], instance, "backoff")
        elif subject == "drain":
            self.abandon(instance, f"the instance was released and had {DRAIN_MS} ms to finish")
            self._stop(instance, "drain is over")
        else:
            self._turn.counts["stop timed out"] += 1
            self.stopped(name)

    # How it is done.

    def _stale(self, message: Assign, held: Held | None) -> bool:
        if message.epoch <= self._tombstones.get(message.task, -1):
            return True
        if held is None:
            return False
        have = held.assign
        return (message.epoch, message.generation) < (have.epoch, have.generation)

    def _same(self, message: Assign, held: Held) -> bool:
        have = held.assign
        return message.epoch == have.epoch and message.generation == have.generation

    def _refusal(self, message: Assign, held: Held | None) -> str:
        """Say why a task cannot be held here; empty when it can."""
        others = [one.assign for one in self.held.values() if one is not held and not one.released]
        if self._turn.draining and (held is None or held.released):
            return f"node {self._turn.node} takes no new task: {self._turn.draining}"
        return refusal(self._turn.node, self._inventory, others, message)

    def _adopt(self, held: Held, message: Assign, cause: str) -> bool:
        """Take over a new epoch for what runs or comes already; return whether it fits."""
        for instance in (held.coming, held.current):
            if (
                instance is not None
                and instance.state in _LIVE
                and instance.generation == message.generation
                and instance.manifest == message.manifest
            ):
                instance.epoch = message.epoch
                held.story.append(Entry(instance.state, f"epoch {message.epoch} adopted", cause))
                instance.replicas = message.replicas
                if instance is held.current and held.coming is not None:
                    self._retire(held, held.coming, cause)
                return True
        return False

    def _prepare(self, held: Held, message: Assign, cause: str) -> None:
        if held.coming is not None:
            self._retire(held, held.coming, cause)
        instance = self._new(message)
        if held.current is not None and held.current.state is _State.READY:
            held.coming = instance
        else:
            if held.current is not None:
                self._retire(held, held.current, cause)
            held.current = instance
        self._fetch(instance, cause)

    def _new(self, assign: Assign) -> Instance:
        instance = instance_of(assign, self._name(assign.task))
        self._instances[instance.name] = instance
        return instance

    def _name(self, task: str) -> str:
        self._serial += 1
        return f"{task}~{self._serial}"

    def _fetch(self, instance: Instance, cause: str) -> None:
        needed = digests(instance.manifest)
        instance.wanting = set(needed)
        for digest, size_bytes in needed.items():
            waiters = self._fetching.get(digest)
            if waiters is None:
                self._fetching[digest] = {instance.name}
                self._turn.out.append(
                    FetchArtifact(digest, size_bytes, self._turn.store_urls, cause)
                )
            else:
                waiters.add(instance.name)

    def _retry(self, held: Held, instance: Instance, cause: str) -> None:
        del self._instances[instance.name]
        instance.name = self._name(instance.task)
        self._instances[instance.name] = instance
        move(held, instance, _Event.RETRY, cause)
        self._fetch(instance, cause)
        self._tell(instance.task, cause)

    def _trouble(
        self, instance: Instance, text: str, blame: Blame, retryable: bool, cause: str
    ) -> None:
        """Try again after a while, or give up when that is no use."""
        turn, held = self._turn, self.held[instance.task]
        if instance.state is not _State.FETCHING:
            turn.out.append(StopInstance(instance.name, cause))
        instance.reason, instance.blame = text, blame
        since = turn.now_ms - RESTART_WINDOW_MS
        instance.troubles = [at for at in instance.troubles if at > since]
        if not instance.offline_fetches:
            instance.troubles.append(turn.now_ms)
        tries = len(instance.troubles) + instance.offline_fetches
        if not retryable or len(instance.troubles) > RESTARTS_MAX:
            move(held, instance, _Event.GIVE_UP, cause)
        else:
            move(held, instance, _Event.TROUBLE, cause)
            instance.restarts += 1
            wait_ms = min(BACKOFF_FIRST_MS * 2 ** min(tries - 1, 16), BACKOFF_MAX_MS)
            turn.timers.set(("retry", instance.name), turn.now_ms + turn.spread(wait_ms))
        self._tell(instance.task, cause)

    def _retire(self, held: Held, instance: Instance, cause: str) -> None:
        """Release one instance: stop it at once, or let it finish what runs."""
        if held.coming is instance:
            held.coming = None
        elif held.current is instance:
            held.current = None
        before = instance.state
        move(held, instance, _Event.RELEASE, cause)
        if instance.state is _State.STOPPED:
            self._drop(instance)
            return
        held.retiring.append(instance)
        if before is _State.DEPLOYING or instance.idle:
            self._stop(instance, cause)
        else:
            self._turn.timers.set(("drain", instance.name), self._turn.now_ms + DRAIN_MS)

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
        for subject in ("retry", "drain", "stop"):
            self._turn.timers.cancel((subject, name))
        self._instances.pop(name, None)
        self._unwant([name])

    def _unwant(self, names: Iterable[str]) -> None:
        for waiters in self._fetching.values():
            waiters.difference_update(names)

    def _write_again(self, task: str) -> None:
        held = self.held.get(task)
        if held is not None and not held.released:
            self._turn.out.append(Keep(held.assign, "journal"))
        elif task in self._tombstones:
            self._turn.out.append(Forget(task, self._tombstones[task], "journal"))

    def _bury(self, task: str, epoch: int, cause: str) -> None:
        self._turn.out.append(Forget(task, epoch, cause))
        self._tombstones.pop(task, None)
        self._tombstones[task] = epoch
        if len(self._tombstones) > TOMBSTONES_MAX:
            del self._tombstones[next(iter(self._tombstones))]

    def _close(self, task: str, held: Held) -> bool:
        """Let go of a released task when its last instance has ended; return whether it has."""
        over = held.released and not held.retiring and held.shown is None
        if over:
            del self.held[task]
        return over

    def _tell(self, task: str, cause: str) -> None:
        """Post the present status of a task."""
        held = self.held.get(task)
        if held is None or held.released:
            epoch = self._tombstones.get(task)
            if epoch is not None:
                self._outbox.post(
                    task=task,
                    epoch=epoch,
                    generation=held.assign.generation if held else 0,
                    state=_State.DRAINING if held else _State.STOPPED,
                    cause=cause,
                )
            return
        instance = held.shown
        if instance is not None:
            self._outbox.post(
                task=task,
                epoch=instance.epoch,
                generation=instance.generation,
                state=instance.state,
                cause=cause,
                reason=instance.reason,
                blame=instance.blame,
                restarts=instance.restarts,
                memory_bytes=instance.memory_bytes,
            )
