"""Who of this node's instances may take memory now, and who waits for some of it.

An elastic instance (`protocols.messages.task`) holds memory from its start or wake to its rest, all
others always. Nobody starts or wakes beyond what the node has for tasks; who does not fit waits in
line, and first who has been idle longest rests for it. When the first in line has waited for a
while, those that are busy make way between two of their calls, so that each has its turn; they
stand in line anew. Every elastic task fits beside those that always hold theirs (`capacity`).
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Final

from device_agent.core.capacity import elastic
from device_agent.core.instances import Instance
from device_agent.core.turn import Turn
from protocols.messages.presence import Inventory
from protocols.messages.sense import LoadReport
from protocols.messages.task import InstanceState

if TYPE_CHECKING:
    from device_agent.core.calibrations import Calibrations

TURN_MS: Final = 250
"""So long the first in line waits before the busy make way, and so long a turn lasts at least."""
SPARE_BYTES: Final = 32 << 20
"""Of the machine's memory stay free, whatever the node may give to tasks."""

_State = InstanceState
_HOLDING: Final = frozenset({_State.DEPLOYING, _State.READY, _State.DRAINING})


class Room:
    """The task memory of one node as its instances hold it."""

    def __init__(
        self,
        turn: Turn,
        inventory: Inventory,
        instances: dict[str, Instance],
        keeping: set[str],
        rest: Callable[[Instance], None],
        calibrations: Callable[[], "Calibrations | None"],
    ) -> None:
        """Make one; `keeping` rest and keep a process, `rest` lets an instance leave its memory."""
        self._turn = turn
        self._have = inventory.task_memory_bytes
        self._most = inventory.max_instances
        self._instances = instances
        self._keeping = keeping
        self._rest = rest
        self._calibrations = calibrations
        self._leaving: dict[str, int] = {}
        """What those hold who were told to rest and have not yet."""
        self._line: dict[str, float] = {}
        """Who waits, in order, and since when."""
        self._woke_ms: dict[str, float] = {}
        self._free_bytes: int | None = None
        """Of the machine, by the last sample, less what has been started since."""
        self._parts: dict[Instance, int] = {}
        """What elastic instances take, those that take any; the sum is kept beside it."""
        self._parts_bytes = 0
        self._always: dict[Instance, int] = {}
        """What all others take."""
        self._always_bytes = 0
        for one in instances.values():
            self.note(one)
        self._pressed = False
        """Whether one has left since that sample because the machine has nothing left."""

    def __bool__(self) -> bool:
        return bool(self._line)

    def sampled(self, load: LoadReport) -> None:
        """Hear how much memory the machine has left."""
        if load.memory_used_bytes or load.memory_available_bytes:
            self._free_bytes = load.memory_available_bytes
            self._pressed = False

    def take(self, instance: Instance) -> bool:
        """Whether an instance may start or wake now; else it stands in line."""
        if not self._line and self._fits(instance):
            self._entered(instance)
            return True
        self._wait(instance)
        self._make_way()
        return False

    def goes_on(self, instance: Instance) -> bool:
        """Whether an instance that is awake may begin a further call, or is to make way."""
        if not self._line or not elastic(instance):
            return True
        first, since_ms = next(iter(self._line.items()))
        now_ms = self._turn.now_ms
        recent = now_ms - self._woke_ms.get(instance.name, -TURN_MS) < TURN_MS
        if first == instance.name or recent or now_ms - since_ms < TURN_MS:
            return True
        self._wait(instance)
        if not instance.running:
            self._rest(instance)
        return False

    def spare(self, size: int) -> bool:
        """Whether so many bytes are free and nobody waits for them."""
        return not self._line and (not self._have or self._taken() + size <= self._have)

    def rested(self, name: str) -> None:
        """Take note that an instance has given up its memory."""
        if self._leaving.pop(name, None) is not None and name in self._instances:
            self.note(self._instances[name])

    def leaves(self, instance: Instance) -> None:
        """Take note that an instance is told to rest."""
        self._leaving[instance.name] = self._held(instance)

    def admitted(self) -> Iterator[Instance]:
        """Yield those in line whose turn it is; the caller starts or wakes each before the next."""
        while self._line:
            name = next(iter(self._line))
            instance = self._instances.get(name)
            if instance is None or not _wants(instance):
                self._forget(name)
            elif _awake(instance):
                self._forget(name)
                yield instance
            elif self._fits(instance):
                self._forget(name)
                self._entered(instance)
                yield instance
            else:
                self._make_way()
                return

    def drop_gone(self) -> None:
        """Forget what is known of instances that are no more."""
        for known in (self._leaving, self._woke_ms):
            for name in known.keys() - self._instances.keys():
                del known[name]

    def over(self) -> bool:
        """Whether more is held than the node has: tasks that always hold theirs have come."""
        return bool(self._have) and self._taken() > self._have

    def note(self, one: Instance) -> None:
        """Count an instance anew, which has come, gone or changed in what it may take."""
        self._parts_bytes -= self._parts.pop(one, 0)
        before = self._always.pop(one, None)
        if self._instances.get(one.name) is one:
            if not elastic(one):
                limit = one.manifest.limits.memory_bytes
                self._always[one] = 0 if one.state is _State.FAILED else limit * one.workers
            elif held := self._held(one):
                self._parts[one] = held
                self._parts_bytes += held
        if self._always.get(one) != before:
            self._always_bytes = _together(self._always)

    # How it is counted.

    def _wait(self, instance: Instance) -> None:
        self._line.setdefault(instance.name, self._turn.now_ms)
        instance.parked = True

    def _forget(self, name: str) -> None:
        del self._line[name]
        instance = self._instances.get(name)
        if instance is not None:
            instance.parked = False

    def _entered(self, instance: Instance) -> None:
        instance.parked, instance.grown = False, 1
        self._woke_ms[instance.name] = self._turn.now_ms
        if self._free_bytes is not None:
            self._free_bytes -= instance.memory_bytes or 0

    def _held(self, instance: Instance) -> int:
        """Return what an elastic instance may take as it is now."""
        limit = instance.manifest.limits.memory_bytes
        if instance.name in self._leaving:
            return self._leaving[instance.name]
        if instance.state not in _HOLDING:
            return 0
        if not instance.resting:
            return limit * instance.workers
        if instance.name not in self._keeping:
            return 0
        return limit if instance.memory_bytes is None else min(limit, instance.memory_bytes)

    def _taken(self) -> int:
        """Return what all take."""
        calibrations = self._calibrations()
        running = calibrations.running_bytes if calibrations is not None else 0
        return running + self._parts_bytes + self._always_bytes

    def _lacks(self, instance: Instance) -> int:
        """Return how many bytes are missing for an instance; not above 0: it fits."""
        need = 0
        if elastic(instance):
            need = instance.manifest.limits.memory_bytes - self._held(instance)
        return self._taken() + need - self._have

    def _fits(self, instance: Instance) -> bool:
        if not self._have:
            return True
        if self._lacks(instance) > 0 or self._crowded(instance):
            return False
        likely = SPARE_BYTES + (instance.memory_bytes or 0)
        return self._free_bytes is None or self._free_bytes >= likely

    def _crowded(self, instance: Instance) -> bool:
        """Whether as many others are awake as the node takes instances."""
        if len(self._instances) < self._most:
            return False
        holders = (*self._parts, *self._always)
        tasks = {one.task for one in holders if one.task != instance.task}
        return len(tasks) >= self._most

    def _make_way(self) -> None:
        """Let those rest who have been idle longest, if that is enough for the first in line."""
        first = self._instances.get(next(iter(self._line)))
        if first is None or not self._have:
            return
        crowded = self._crowded(first) and not self._leaving
        lacks = self._lacks(first) - sum(self._leaving.values())
        idle = sorted(
            (one for one in self._instances.values() if one is not first and self._may_leave(one)),
            key=lambda one: one.idle_since_ms,
        )
        chosen = []
        for one in idle:
            if lacks <= 0 and not crowded:
                break
            chosen.append(one)
            lacks -= self._held(one)
            crowded = False
        if lacks <= 0 and chosen:
            for one in chosen:
                self._rest(one)
        elif lacks <= 0 and not self._leaving and not self._pressed and idle:
            # What tasks may take is there, but the machine has nothing left.
            self._pressed = True
            self._rest(idle[0])
        elif lacks > 0 and (calibrations := self._calibrations()) is not None:
            calibrations.give_way()

    def _may_leave(self, one: Instance) -> bool:
        ready = one.state is _State.READY and elastic(one) and one.name not in self._leaving
        # One in line that has kept its process is not idle: calls of it wait.
        return ready and (one.idle or one.resting) and self._held(one) > 0


def _together(always: dict[Instance, int]) -> int:
    """Return what instances take; of two generations of a task it is the larger one."""
    most: dict[str, int] = {}
    for one, size in always.items():
        most[one.task] = max(most.get(one.task, 0), size)
    return sum(most.values())


def _awake(instance: Instance) -> bool:
    return instance.state in {_State.READY, _State.DRAINING} and not instance.resting


def _wants(instance: Instance) -> bool:
    """Whether an instance in line still needs its turn."""
    if instance.state is _State.FETCHING:
        return not instance.wanting
    serves = instance.state in {_State.READY, _State.DRAINING}
    return serves and (bool(instance.queue) or not elastic(instance))
