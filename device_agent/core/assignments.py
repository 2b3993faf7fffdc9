"""Assignments: what this node holds, under which epoch, how it is tuned.

Epochs fence: whatever is below the highest epoch seen for a task is counted, refused and answered
with the present status. The same assignment again only repeats the status. A higher epoch for what
already runs is adopted without touching it, so a new scheduler or a reconnection restarts nothing;
requests of the epoch before are served for `grace_ms` more, for routes are on their way. Another
generation, variant, provider or number of threads is prepared beside the old instance, which serves
its own epoch until the new one is ready and for `grace_ms` more; both are journalled until then, so
that a reboot ends no service whose next version cannot come.

A `Tune` changes what needs no other instance. Its order is that of its sender's incarnation and its
number; what it says is journalled as part of the assignment.
"""

from typing import Final

from msgspec import structs

from device_agent.core.capacity import HELD_MAX, named, refusal, room
from device_agent.core.commands import Forget, Keep, TuneInstance
from device_agent.core.events import JournalFailed, Restored
from device_agent.core.instances import Held, Instance, replicas_of, runs_as
from device_agent.core.lifecycle import Entry
from device_agent.core.outbox import Outbox
from device_agent.core.tasks import TOMBSTONES_MAX, Tasks
from device_agent.core.turn import Turn
from device_agent.core.upkeep import Upkeep
from protocols.errors import Blame
from protocols.messages.presence import Inventory
from protocols.messages.quality import Tune
from protocols.messages.task import Assign, InstanceState, Origin, Release, Status

JOURNAL_MS: Final = 30_000
"""Between two tries to journal what already holds."""

_State = InstanceState
_LIVE: Final = frozenset(
    {_State.FETCHING, _State.DEPLOYING, _State.READY, _State.RESTARTING},
)


class Assignments:
    """The tasks of this node, as schedulers and the journal want them."""

    def __init__(
        self, turn: Turn, outbox: Outbox, tasks: Tasks, upkeep: Upkeep, inventory: Inventory
    ) -> None:
        self._turn = turn
        self._outbox = outbox
        self._tasks = tasks
        self._upkeep = upkeep
        self._inventory = inventory
        self.held = tasks.held

    def restore(self, event: Restored) -> None:
        """Take in the journal and begin to run what it kept; nobody has to be in reach."""
        for task, epoch in event.tombstones[-TOMBSTONES_MAX:]:
            self._tasks.tombstones[task] = epoch
        older = {one.task: one for one in event.older}
        for assign in event.assigns[:HELD_MAX]:
            held = self.held[assign.task] = Held(assign, older=older.get(assign.task))
            held.current = self._upkeep.create(held.older or assign)
        self._share_room("journal")
        for held in self.held.values():
            if held.older is not None:
                held.coming = self._upkeep.create(held.assign)
        self._share_room("journal")
        for task, held in self.held.items():
            for instance in (held.current, held.coming):
                if instance is not None:
                    self._upkeep.fetch(instance, "journal")
            self._tasks.tell(task, "journal")

    def assign(self, message: Assign, cause: str) -> None:
        """Hold a task. Stale ones change nothing, refused ones are answered with the reason."""
        held = self.held.get(message.task)
        origin = self._origin(message, held)
        if origin != message.origin:
            message = structs.replace(message, origin=origin)
        if self._stale(message, held):
            self._turn.counts["stale"] += 1
            self._tasks.tell(message.task, cause)
            return
        if held is not None and not held.released and self._same(message, held):
            self._tasks.tell(message.task, cause)
            return
        refused = self._refusal(message, held)
        if refused:
            self._turn.counts["refused"] += 1
            self._post_failed(message, refused, cause)
            return
        older = self._older(message, held)
        self._turn.out.append(Keep(message, cause, older))
        self._tasks.tombstones.pop(message.task, None)
        if held is None:
            held = self.held[message.task] = Held(message)
        held.assign, held.older, held.released, held.fresh = message, older, False, True
        instance = self._adopt(held, message, cause)
        if instance is None:
            self._prepare(held, message, cause)
        self._share_room(cause, instance)
        self._tasks.tell(message.task, cause)

    def release(self, message: Release, cause: str) -> None:
        """Give a task up to an epoch; what runs is finished first."""
        held = self.held.get(message.task)
        if held is not None and not held.released:
            if message.epoch < held.assign.epoch:
                self._turn.counts["stale"] += 1
                self._tasks.tell(message.task, cause)
                return
            self._tasks.bury(message.task, message.epoch, cause)
            self._give_up(message.task, held, cause)
            self._share_room(cause)
        elif message.epoch > self._tasks.tombstones.get(message.task, -1):
            self._tasks.bury(message.task, message.epoch, cause)
        self._tasks.tell(message.task, cause)

    def tune(self, message: Tune, incarnation: int, cause: str) -> None:
        """Run a task as told, without a restart; an older word or one of another epoch is not."""
        held = self.held.get(message.task)
        if held is None or held.released or message.epoch != held.assign.epoch:
            self._turn.counts["stale"] += 1
            self._tasks.tell(message.task, cause)
            return
        if not named(message.tuning):
            self._turn.counts["refused"] += 1
            return
        stamp = (incarnation, message.number)
        if stamp > held.tuned:
            held.tuned = stamp
            said, have = message.tuning, held.assign.tuning
            tuning = structs.replace(
                have,
                cpu_percent=said.cpu_percent,
                replicas=said.replicas,
                priority=said.priority,
                encoding=said.encoding,
                warmth=said.warmth,
            )
            if self._refusal(structs.replace(held.assign, tuning=tuning), held):
                # It would always hold what tasks that always hold theirs leave no room for.
                self._turn.counts["refused"] += 1
                tuning = structs.replace(tuning, warmth=have.warmth)
            if tuning != have:
                held.assign = structs.replace(held.assign, tuning=tuning)
                self._turn.out.append(Keep(held.assign, cause, held.older))
                self._share_room(cause, held.shown)
        self._tasks.tell(message.task, cause)

    def fence(self, incarnation: int, *, another: bool) -> None:
        """Hear a scheduler of another life, or another one: its numbers count anew."""
        for held in self.held.values():
            if another or held.tuned[0] != incarnation:
                held.tuned = (incarnation, 0)

    def stop_all(self, cause: str) -> None:
        """Drain every instance, for the daemon ends; the journal keeps the assignments."""
        for held in self.held.values():
            self._retire_all(held, cause)

    @property
    def active(self) -> bool:
        """Whether any instance still has something to end."""
        return any(held.retiring for held in self.held.values())

    # What the journal says.

    def journal_failed(self, event: JournalFailed) -> None:
        """Go on with what was journalled once and write it later; give up what never was."""
        held = self.held.get(event.task)
        if held is None or held.released:
            if self._tasks.tombstones.get(event.task) == event.epoch:
                self._turn.timers.set(("journal", event.task), self._turn.now_ms + JOURNAL_MS)
            return
        if event.epoch != held.assign.epoch:
            return
        serves = held.current is not None and held.current.state is _State.READY
        if serves or not held.fresh:
            held.story.append(Entry(_State.READY, "not journalled", event.text))
            self._turn.timers.set(("journal", event.task), self._turn.now_ms + JOURNAL_MS)
            return
        self._give_up(event.task, held, event.text)
        self._post_failed(held.assign, event.text, "journal")

    def write_again(self, task: str) -> None:
        """Journal what could not be journalled."""
        held = self.held.get(task)
        if held is not None and not held.released:
            self._turn.out.append(Keep(held.assign, "journal", held.older))
        elif task in self._tasks.tombstones:
            self._turn.out.append(Forget(task, self._tasks.tombstones[task], "journal"))

    # How it is done.

    def _origin(self, message: Assign, held: Held | None) -> Origin | None:
        """Return whose memory a task has to wait for: what a node awaits already stays due."""
        if message.origin is not None and message.origin.node != self._turn.node:
            return message.origin
        shown = None if held is None or held.released else held.shown
        return shown.awaits if shown is not None else None

    def _stale(self, message: Assign, held: Held | None) -> bool:
        if message.epoch <= self._tasks.tombstones.get(message.task, -1):
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

    def _post_failed(self, assign: Assign, reason: str, cause: str) -> None:
        status = Status(
            0,
            assign.task,
            assign.epoch,
            _State.FAILED,
            reason,
            Blame.ENVIRONMENT,
            generation=assign.generation,
        )
        self._outbox.post(status, cause)

    def _older(self, message: Assign, held: Held | None) -> Assign | None:
        """Return what will serve while an assignment is prepared; None: nothing else will."""
        if held is None or held.released or held.current is None:
            return None
        if held.coming is not None and _fits(held.coming, message):
            return held.older
        if held.current.state is not _State.READY or _fitting(held, message) is not None:
            return None
        return held.assign if held.coming is None else held.older

    def _adopt(self, held: Held, message: Assign, cause: str) -> Instance | None:
        """Take over a new epoch for what runs or comes already; None when nothing fits."""
        instance = _fitting(held, message)
        if instance is None:
            return None
        if instance is held.leaving:
            self._return(held, instance, cause)
        instance.awaits = message.origin
        instance.former = instance.epoch
        instance.former_until_ms = self._turn.now_ms + message.grace_ms
        instance.epoch = message.epoch
        held.story.append(Entry(instance.state, f"epoch {message.epoch} adopted", cause))
        if instance is held.current and held.coming is not None:
            self._upkeep.retire(held, held.coming, cause)
        return instance

    def _return(self, held: Held, instance: Instance, cause: str) -> None:
        """Let what was replaced a moment ago serve again, and its successor leave."""
        self._turn.timers.cancel(("grace", instance.name))
        successor, held.current, held.leaving = held.current, instance, None
        if successor is not None:
            self._upkeep.stay(held, successor, cause)

    def _prepare(self, held: Held, message: Assign, cause: str) -> None:
        if held.coming is not None:
            self._upkeep.retire(held, held.coming, cause)
        instance = self._upkeep.create(message)
        if held.current is not None and held.current.state is _State.READY:
            held.coming = instance
        else:
            if held.current is not None:
                self._upkeep.retire(held, held.current, cause)
            held.current = instance
        self._upkeep.fetch(instance, cause)

    def _share_room(self, cause: str, tuned: Instance | None = None) -> None:
        """Let tasks have the workers that they want, as far as memory goes; `tuned` runs anew so.

        Executors are told what has changed for them.
        """
        before = _pace(tuned)
        if tuned is not None:
            assign = self.held[tuned.task].assign
            tuned.tuning, tuned.wanted = assign.tuning, replicas_of(assign)
            self._upkeep.changed(tuned)
        moved = tuned if before != _pace(tuned) else None
        shown = [one.shown for one in self.held.values() if not one.released and one.shown]
        for instance, replicas in zip(shown, room(self._inventory, shown), strict=True):
            if replicas != instance.replicas or instance is moved:
                instance.replicas = replicas
                self._upkeep.changed(instance)
                if instance.state in {_State.DEPLOYING, _State.READY}:
                    share, priority = _pace(instance)
                    said = TuneInstance(instance.name, instance.workers, share, priority, cause)
                    self._turn.out.append(said)

    def _give_up(self, task: str, held: Held, cause: str) -> None:
        held.released = True
        self._retire_all(held, cause)
        self._tasks.close(task, held)

    def _retire_all(self, held: Held, cause: str) -> None:
        for instance in (held.coming, held.current, held.leaving):
            if instance is not None:
                self._upkeep.retire(held, instance, cause)


def _fits(instance: Instance, message: Assign) -> bool:
    return instance.state in _LIVE and runs_as(instance, message)


def _fitting(held: Held, message: Assign) -> Instance | None:
    """Return what runs or comes already as an assignment asks for it."""
    for instance in (held.coming, held.current, held.leaving):
        if instance is not None and _fits(instance, message):
            return instance
    return None


def _pace(instance: Instance | None) -> tuple[float, int]:
    """Return what of a tuning an executor is told beside the number of workers."""
    return (instance.tuning.cpu_percent, instance.tuning.priority) if instance else (0.0, 0)
