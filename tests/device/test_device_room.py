"""Memory that elastic tasks share by turns: never more than the node has, and nobody forgotten."""

from typing import Any

import pytest
from device_harness import (
    INVENTORY,
    MIB,
    NODE,
    SimNode,
    assign,
    chain,
    invoke,
    manifest,
    of,
    tensor,
)
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec import structs

from device_agent.core import capacity, commands, events
from device_agent.core.room import SPARE_BYTES, TURN_MS
from protocols.manifest import Infer
from protocols.messages import Assign, Calibrated, QualityReport, Release, Result, Status, Tune
from protocols.messages.calibration import Calibrate
from protocols.messages.presence import Inventory
from protocols.messages.quality import Tuning, Warmth
from protocols.messages.sense import LoadReport
from protocols.messages.task import Deviceless, InstanceState

HAVE = 256 * MIB
SMALL = structs.replace(INVENTORY, task_memory_bytes=HAVE, max_instances=256)
LONG_MS = 600_000


def elastic(task: str, mib: int = 64, warmth: Warmth = Warmth.FORM, workers: int = 1) -> Assign:
    return structs.replace(
        always(task, mib, workers), deviceless=Deviceless(), tuning=Tuning(warmth=warmth)
    )


def always(task: str, mib: int = 64, workers: int = 1) -> Assign:
    return assign(task, of=manifest(task, memory_mib=mib, queue=64), replicas=workers)


def sampled(free_bytes: int) -> events.Sampled:
    load = LoadReport(1, 5.0, memory_used_bytes=HAVE, memory_available_bytes=free_bytes)
    return events.Sampled(load)


class Shell(SimNode):
    """Keeps account of what instances hold as an executor would see it."""

    def __init__(self, inventory: Inventory = SMALL) -> None:
        self.holds: dict[str, int] = {}
        self.limits: dict[str, int] = {}
        self.began = False
        """Whether one has started or woken since the last check."""
        self.unrested: list[str] = []
        self.left: dict[str, int] = {}
        """What stays of those who rest."""
        self.prompt = True
        """Whether instances rest at once."""
        self.results: dict[str, Result] = {}
        super().__init__(inventory=inventory)
        self.connect()
        self.welcome()

    def _serve(self, command: commands.Command) -> list[events.Event]:
        found = super()._serve(command)
        match command:
            case commands.StartInstance(one, _, made, replicas):
                self.limits[one] = made.limits.memory_bytes
                self.grow(one, replicas)
                self.began = True
            case commands.TuneInstance(one, replicas) if self.holds.get(one) and self.full(one):
                self.grow(one, replicas)
            case commands.Execute(one) | commands.WakeInstance(one) if not self.full(one):
                self.grow(one, 1)
                self.began = True
            case commands.StopInstance(one):
                self.holds.pop(one, None)
            case commands.RestInstance(one, _, keep):
                busy = any(call.instance == one for call in self.calls.values())
                if not busy:
                    left = self.limits[one] // 2 if keep else 0
                    found.append(events.InstanceStats(one, left))
                    self.unrested.append(one)
                    self.left[one] = left
                if self.prompt:
                    found += self.rested()
            case _:
                self.results |= {one.request: one for one in of(Result, [command])}
        return found

    def full(self, one: str) -> bool:
        return self.holds[one] >= self.limits[one]

    def grow(self, one: str, workers: int) -> None:
        self.holds[one] = workers * self.limits[one]

    def check(self) -> None:
        super().check()
        self.recount()
        began, self.began = self.began, False
        assert not began or sum(self.holds.values()) <= HAVE, self.holds

    def recount(self) -> None:
        """Hold the sum that is kept up to date against one of all instances."""
        if self.core._deviceless is None:
            return
        room = self.core._deviceless._room
        always: dict[str, int] = {}
        taken = 0
        for one in self.core.upkeep.instances.values():
            if capacity.elastic(one):
                taken += room._held(one)
            elif one.state is not InstanceState.FAILED:
                size = one.manifest.limits.memory_bytes * one.workers
                always[one.task] = max(always.get(one.task, 0), size)
        calibrations = self.core._calibrations
        running = calibrations.running_bytes if calibrations is not None else 0
        assert room._taken() == running + taken + sum(always.values())

    def rested(self) -> list[events.Event]:
        """Let those rest who were told to and have nothing to do."""
        told, self.unrested = self.unrested, []
        for one in told:
            if one in self.holds and not any(c.instance == one for c in self.calls.values()):
                self.holds[one] = self.left[one]
        return [events.InstanceRested(one) for one in told]

    def let_rest(self) -> None:
        """Say of those who were told to rest that they have."""
        for event in self.rested():
            self.tell(event)

    def ask(self, request: str, task: str, budget_ms: int = LONG_MS) -> list[Any]:
        return self.call(invoke(request, chain((task, NODE, 1)), budget_ms=budget_ms))

    def answer(self) -> list[Any]:
        """Answer the oldest call."""
        call = next(iter(self.calls))
        del self.calls[call]
        return self.tell(events.ExecutorDone(call, {"y": tensor()}, 100))

    def awake(self) -> list[str]:
        return [one for one, size in self.holds.items() if size]


@pytest.fixture
def node() -> Shell:
    return Shell()


def test_a_node_holds_many_more_resting_tasks_than_fit_awake(node: Shell) -> None:
    for number in range(200):
        node.hear(elastic(f"f{number}"))
    states = [one.state for one in node.core.upkeep.instances.values()]
    assert states == [InstanceState.READY] * 200
    assert len(node.awake()) <= HAVE // (64 * MIB)
    for number in range(0, 200, 7):
        node.ask(f"r{number}", f"f{number}")
        node.answer()
        assert node.results[f"r{number}"].failure is None


def test_what_always_holds_its_memory_leaves_room_for_the_largest_other(node: Shell) -> None:
    node.hear(elastic("big", 128))
    node.hear(always("a", 128))
    said = node.hear(always("b", 64))
    assert of(Status, said)[-1].state is InstanceState.FAILED
    assert (
        "256 MiB for tasks, 256 MiB are taken and b may need 64 MiB" in of(Status, said)[-1].reason
    )
    said = node.hear(elastic("bigger", 192))
    assert of(Status, said)[-1].state is InstanceState.FAILED
    said = node.hear(elastic("warm", 64, Warmth.INSTANCE))
    assert of(Status, said)[-1].state is InstanceState.FAILED, "it would hold its memory always"


def test_a_guest_with_models_always_holds_its_memory(node: Shell) -> None:
    guest = elastic("guest", 192)
    infers = (Infer("model", "s.model"),)
    node.hear(structs.replace(guest, manifest=structs.replace(guest.manifest, infers=infers)))
    said = node.hear(elastic("b", 128))
    assert of(Status, said)[-1].state is InstanceState.FAILED


def test_who_has_been_idle_longest_makes_way(node: Shell) -> None:
    for name in ("a", "b", "c", "d"):
        node.hear(elastic(name))
        node.after(10)
    assert node.awake() == ["a~1", "b~2", "c~3", "d~4"]
    said = node.hear(elastic("e"))
    assert [one.instance for one in of(commands.RestInstance, said)] == ["a~1"]
    assert "e~5" in node.awake()


def test_no_more_are_awake_than_the_node_takes_instances() -> None:
    node = Shell(structs.replace(SMALL, max_instances=2))
    for number in range(64):
        node.hear(elastic(f"f{number}", 16))
        assert len(node.awake()) <= 2
    assert len(node.core.tasks.held) == 64
    assert of(Status, node.hear(elastic("g", 16)))[-1].state is InstanceState.FAILED
    for number in range(8):
        node.ask(f"r{number}", f"f{number}")
        assert len(node.awake()) <= 2
    while node.calls:
        node.answer()
    assert len(node.results) == 8


def test_nobody_wakes_before_who_makes_way_has_gone(node: Shell) -> None:
    for name in ("a", "b", "c", "d", "e"):
        node.hear(elastic(name))
        node.after(10)
    node.prompt = False
    said = node.ask("r1", "a")
    assert [one.instance for one in of(commands.RestInstance, said)] == ["b~2"]
    assert not of(commands.Execute, said)
    [event] = node.rested()
    said = node.tell(event)
    assert [one.instance for one in of(commands.Execute, said)] == ["a~1"]


def test_the_busy_make_way_between_two_calls(node: Shell) -> None:
    for name in ("a", "b", "c", "d", "e"):
        node.hear(elastic(name))
    for at, name in enumerate(("b", "c", "d", "e")):
        for number in range(8):
            node.ask(f"{name}{number}", name, 60_000)
            node.after(at)
    node.ask("late", "a", 60_000)
    asked = 0
    while "late" not in node.results:
        node.after(TURN_MS / 4)
        node.answer()
        asked += 1
        assert asked < 32, "those that are busy never end"
    while node.calls:
        node.after(TURN_MS / 4)
        node.answer()
    assert all(one.failure is None for one in node.results.values())
    assert len(node.results) == 33


def test_it_is_told_that_calls_wait_for_memory(node: Shell) -> None:
    node.hear(always("a", 128))
    node.hear(elastic("b", 128))
    node.hear(elastic("c", 128))
    node.ask("r1", "b")
    node.ask("r2", "c")
    said = node.tell(sampled(4 * HAVE))
    [report] = of(QualityReport, said)
    assert {one.task: one.starved for one in report.tasks} == {"b": False, "c": True}


def test_a_start_leaves_the_machine_some_memory(node: Shell) -> None:
    node.hear(elastic("a"))
    node.after(LONG_MS)
    node.tell(sampled(SPARE_BYTES - 1))
    assert not of(commands.Execute, node.ask("r1", "a"))
    said = node.tell(sampled(SPARE_BYTES))
    assert of(commands.Execute, said)


def test_a_request_waits_for_memory_until_its_deadline(node: Shell) -> None:
    node.hear(elastic("a", 256))
    node.hear(elastic("b", 256))
    node.ask("r1", "a")
    node.ask("r2", "b", 500)
    node.after(600)
    failure = node.results["r2"].failure
    assert failure is not None
    assert "memory" in failure.text
    node.answer()
    assert node.results["r1"].failure is None
    node.ask("r3", "b")
    node.answer()
    assert node.results["r3"].failure is None


def test_a_calibration_gives_way_to_a_wake(node: Shell) -> None:
    node.hear(elastic("a", 192))
    node.after(LONG_MS)
    made = manifest("c", memory_mib=128)
    node.hear(Calibrate("1", "ta", NODE, "c", made))
    said = node.ask("r1", "a")
    assert of(commands.EndCalibration, said)
    assert not of(commands.Execute, said)
    found = Calibrated("1", "ta", NODE, refused="given up", passing=True)
    assert of(commands.Execute, node.tell(events.CalibrationEnded(found)))


def test_more_warmth_than_there_is_room_for_is_not_taken(node: Shell) -> None:
    node.hear(always("a", 192))
    node.hear(elastic("b", 64))
    node.hear(elastic("c", 64))
    tune = Tune("b", 1, 1, Tuning(warmth=Warmth.INSTANCE))
    node.hear(tune)
    assert node.core.upkeep.instances["b~2"].tuning.warmth is Warmth.FORM
    assert node.core.counts["refused"] == 1
    node.hear(Release("c", 1))
    node.hear(structs.replace(tune, number=2))
    assert node.core.upkeep.instances["b~2"].tuning.warmth is Warmth.INSTANCE


TASKS = st.tuples(
    st.sampled_from((16, 48, 64, 100)),
    st.sampled_from((*Warmth, None)),
    st.integers(1, 3),
)
small = st.integers(0, 7)


class Turns(RuleBasedStateMachine):
    """Tasks of every kind, whatever comes; `Shell.check` holds what is started to the node."""

    def __init__(self) -> None:
        super().__init__()
        self.node = Shell()
        self.held: list[str] = []
        self.asked: set[str] = set()
        self.tuned = 0

    @initialize(tasks=st.lists(TASKS, min_size=3, max_size=8))
    def begin(self, tasks: list[tuple[int, Warmth | None, int]]) -> None:
        for at, (mib, warmth, workers) in enumerate(tasks):
            name = f"t{at}"
            made = elastic(name, mib, warmth, workers) if warmth else always(name, mib, workers)
            self.node.hear(made)
            if name in self.node.core.tasks.held:
                self.held.append(name)

    @rule(which=small, count=st.integers(1, 3))
    def ask(self, which: int, count: int) -> None:
        for _ in range(count if self.held else 0):
            request = f"r{len(self.asked)}"
            self.asked.add(request)
            self.node.ask(request, self.held[which % len(self.held)])

    @precondition(lambda self: self.node.calls)
    @rule()
    def answer(self) -> None:
        self.node.answer()

    @rule(ms=st.sampled_from((1, TURN_MS, 400, 70_000)))
    def wait(self, ms: int) -> None:
        self.node.after(ms)

    @rule(which=small, warmth=st.sampled_from(Warmth), replicas=st.integers(1, 3))
    def tune(self, which: int, warmth: Warmth, replicas: int) -> None:
        if self.held:
            self.tuned += 1
            task = self.held[which % len(self.held)]
            self.node.hear(Tune(task, 1, self.tuned, Tuning(warmth=warmth, replicas=replicas)))

    @rule(prompt=st.booleans())
    def rest(self, prompt: bool) -> None:
        self.node.prompt = prompt
        self.node.let_rest()

    @precondition(lambda self: self.node.holds)
    @rule(which=small)
    def die(self, which: int) -> None:
        node = self.node
        one = list(node.holds)[which % len(node.holds)]
        node.holds[one] = 0
        node.calls = {call: each for call, each in node.calls.items() if each.instance != one}
        node.tell(events.InstanceExited(one, "killed"))

    @precondition(lambda self: len(self.held) > 2 and self.asked <= self.node.results.keys())
    @rule()
    def release(self) -> None:
        # What leaves and still runs counts no more, here as on every node.
        self.node.hear(Release(self.held.pop(), 1))

    def teardown(self) -> None:
        """Whoever waits has its turn."""
        self.node.prompt = True
        self.node.let_rest()
        for _ in range(1000):
            if self.asked <= self.node.results.keys():
                break
            if self.node.calls:
                self.node.answer()
            self.node.after(100)
        assert self.asked <= self.node.results.keys(), "a call waits for ever"


TestTurns = Turns.TestCase
TestTurns.settings = settings(stateful_step_count=30, deadline=None)
