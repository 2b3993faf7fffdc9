"""Instances follow the requests: they rest when nobody asks, and wake for who does.

A resting instance is ready all the same: its next call wakes it, in the executor, within the time
of a cold start, and waits for that as for any worker. So nothing here can fail a call; it only
decides who holds memory meanwhile (`room`). Workers grow one by one as long as calls wait, up to
what the assignment and the node's memory allow, and shrink with the rest.
"""

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Final

from device_agent.core.arrivals import Arrivals
from device_agent.core.capacity import elastic
from device_agent.core.commands import RestInstance, TuneInstance, WakeInstance
from device_agent.core.instances import Instance
from device_agent.core.room import Room
from device_agent.core.turn import Turn
from protocols.messages.presence import Inventory
from protocols.messages.quality import Warmth
from protocols.messages.sense import LoadReport
from protocols.messages.task import InstanceState

if TYPE_CHECKING:
    from device_agent.core.calibrations import Calibrations

PATTERNS_MAX: Final = 512
"""Tasks whose arrivals are remembered; the oldest is forgotten."""
PRESSED_PERCENT: Final = 10.0
"""Of the time in which some program waited for memory (PSI): idle instances leave."""
SCARCE_PART: Final = 0.08
"""Of the node's memory; where less is free, idle instances leave."""


class Deviceless:
    """When the deviceless instances of this node rest and wake."""

    def __init__(
        self,
        turn: Turn,
        inventory: Inventory,
        instances: dict[str, Instance],
        start: Callable[[Instance, str], None],
        go_on: Callable[[Instance], None],
        calibrations: Callable[[], "Calibrations | None"],
    ) -> None:
        """Make one; `start` starts an instance, `go_on` begins the calls that wait for one."""
        self._turn = turn
        self._start = start
        self._go_on = go_on
        self._instances = instances
        self._patterns: dict[str, Arrivals] = {}
        self._keeping: set[str] = set()
        """Instances that rest and keep the process of their program."""
        self._room = Room(turn, inventory, instances, self._keeping, self._press, calibrations)

    def may_run(self, instance: Instance) -> bool:
        """Whether memory is there for a call; else the instance gets its turn later."""
        if not instance.resting:
            return self._room.goes_on(instance)
        return self.may_start(instance)

    def may_start(self, instance: Instance) -> bool:
        """Whether memory is there for an instance to start; else it gets its turn later."""
        if not self._room.take(instance):
            return False
        self._woken(instance)
        return True

    def rested(self, name: str) -> None:
        """Take note that an instance has given up its memory."""
        self._room.rested(name)

    def changed(self, instance: Instance) -> None:
        """Take note that an instance has come, gone or changed in what it may take."""
        self._room.note(instance)

    def settle(self) -> None:
        """Give what memory there is now to those who wait for it."""
        for instance in self._room.admitted() if self._room else ():
            ready = instance.state is InstanceState.READY
            if ready and instance.resting and not instance.queue:
                self._turn.out.append(WakeInstance(instance.name, "it is to stay ready"))
            self._woken(instance)
            if instance.state is InstanceState.FETCHING:
                self._start(instance, "there is memory for it")
            else:
                self._go_on(instance)

    def _woken(self, instance: Instance) -> None:
        if instance.resting:
            instance.resting = False
            self._keeping.discard(instance.name)
            self._room.note(instance)

    def _press(self, instance: Instance) -> None:
        self._turn.timers.cancel(("rest", instance.name))
        self._rest(instance, "others need its memory", pressed=True)

    def busy(self, instance: Instance) -> None:
        """Take note that a call of an instance begins."""
        if instance.deviceless is None or instance.running:
            return
        self._pattern(instance).came(self._turn.now_ms)
        self._turn.timers.cancel(("rest", instance.name))
        self._turn.timers.cancel(("warm", instance.name))
        self._woken(instance)

    def idle(self, instance: Instance) -> None:
        """Take note that nothing of an instance runs or waits; it rests in a while."""
        if instance.deviceless is None or instance.state is not InstanceState.READY:
            return
        pattern = self._pattern(instance)
        pattern.went(self._turn.now_ms)
        instance.idle_since_ms = self._turn.now_ms
        if instance.tuning.warmth is Warmth.INSTANCE:
            # It stays, unless memory gets short.
            return
        keep_ms = instance.deviceless.keep_alive_ms or pattern.keep_ms()
        self._turn.timers.set(("rest", instance.name), self._turn.now_ms + keep_ms)

    def tuned(self, instance: Instance) -> None:
        """Take note that what stays of an instance may be another thing now."""
        if instance.state is not InstanceState.READY or not instance.idle:
            return
        stays = instance.tuning.warmth is Warmth.INSTANCE
        if stays and instance.resting:
            if self.may_start(instance):
                self._turn.out.append(WakeInstance(instance.name, "it is to stay ready"))
        elif (
            not stays and not instance.resting and ("rest", instance.name) not in self._turn.timers
        ):
            self.idle(instance)

    def grow(self, instance: Instance) -> None:
        """Add a worker for calls that wait, if there is leave."""
        room = self._room.spare(instance.manifest.limits.memory_bytes)
        if instance.deviceless is not None and instance.grown < instance.replicas and room:
            instance.grown += 1
            self._room.note(instance)
            tuning = instance.tuning
            self._turn.out.append(
                TuneInstance(
                    *(instance.name, instance.workers, tuning.cpu_percent, tuning.priority),
                    "calls wait",
                )
            )

    def on_timer(self, subject: str, name: str) -> None:
        """Let an instance rest, or wake it for the call that is expected."""
        instance = self._instances.get(name)
        if instance is None or instance.state is not InstanceState.READY or not instance.idle:
            return
        if subject == "rest":
            self._rest(instance, "nobody asked")
            return
        if not self._room.spare(instance.manifest.limits.memory_bytes):
            # It wakes when the call is there.
            return
        self._woken(instance)
        self._turn.out.append(WakeInstance(name, "a call is expected"))
        pattern = self._pattern(instance)
        left_ms = pattern.until_ms() - (pattern.next_ms() or 0.0)
        self._turn.timers.set(("rest", name), self._turn.now_ms + max(0.0, left_ms))

    def sampled(self, load: LoadReport) -> None:
        """Let whoever has been idle longest rest while the node's memory is short."""
        self._room.sampled(load)
        self._room.drop_gone()
        short = self._short(load)
        if not short and not self._room.over():
            return
        holders = (one for one in self._holders() if short or elastic(one))
        first = min(holders, key=lambda one: one.idle_since_ms, default=None)
        if first is not None:
            self._turn.timers.cancel(("rest", first.name))
            self._rest(first, "memory is short", pressed=True)

    def _holders(self) -> Iterable[Instance]:
        """Return the idle instances that hold memory."""
        return (
            one
            for one in self._instances.values()
            if one.deviceless is not None
            and one.state is InstanceState.READY
            and one.idle
            and (not one.resting or one.name in self._keeping)
        )

    def _rest(self, instance: Instance, cause: str, *, pressed: bool = False) -> None:
        self._room.leaves(instance)
        instance.resting, instance.grown = True, 1
        keep = instance.tuning.warmth is not Warmth.FORM and not pressed
        (self._keeping.add if keep else self._keeping.discard)(instance.name)
        self._turn.out.append(RestInstance(instance.name, cause, keep))
        fixed = instance.deviceless is not None and instance.deviceless.keep_alive_ms
        pattern = self._pattern(instance)
        next_ms = None if fixed else pattern.next_ms()
        if next_ms is not None:
            due_ms = instance.idle_since_ms + next_ms
            # Once: what was made ready in vain is not made ready again.
            if due_ms > self._turn.now_ms:
                self._turn.timers.set(("warm", instance.name), due_ms)

    def _short(self, load: LoadReport) -> bool:
        if load.pressure is not None and load.pressure.memory_percent >= PRESSED_PERCENT:
            return True
        total = load.memory_used_bytes + load.memory_available_bytes
        return bool(total) and load.memory_available_bytes < SCARCE_PART * total

    def _pattern(self, instance: Instance) -> Arrivals:
        """Return what is known of a task's calls; it outlives the instance."""
        pattern = self._patterns.get(instance.task)
        if pattern is None:
            pattern = self._patterns[instance.task] = Arrivals()
            while len(self._patterns) > PATTERNS_MAX:
                del self._patterns[next(iter(self._patterns))]
        return pattern
