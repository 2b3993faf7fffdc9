"""A service goes from anchor to anchor after its node: never two owners, and in the end one."""

from collections import deque
from itertools import pairwise
from typing import Any

import pytest
from anchor_bench import Bench, chain
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests_support import INVENTORY

from controller.anchor.handing import AGAIN_MS, LOOK_MS, OFFER_MS
from controller.anchor.settings import Settings
from controller.decider import Linked, Output, Received, ToRole
from controller.records import GIVEN, STORY, TASK, TaskRecord
from protocols.messages import (
    AnchorMoved,
    AnchorOffer,
    AnchorTaken,
    AnchorTransfer,
    EnvelopeGrant,
    EnvelopeRevoke,
    LeaseRequest,
    NodeSummary,
    Relinquished,
    SchedulerHello,
    ServiceDelete,
    ServiceOrder,
    TaskReport,
)
from protocols.messages.hierarchy import NodeState
from protocols.messages.task import InstanceState

WEST, EAST, NAMO = "ta-west", "ta-east", "namo-main"
BESIDE = {"ts-west": WEST, "ts-east": EAST}


class Two:
    """Two anchors over one pair of schedulers, which speak with NAMO and each other by links."""

    def __init__(self) -> None:
        schedulers = tuple(BESIDE)
        self.benches = {
            name: Bench(Settings(name, schedulers, (WEST, EAST), NAMO, cells=("west", "east")))
            for name in (WEST, EAST)
        }
        self.wires: dict[tuple[str, str], deque[Any]] = {}
        self.grants: list[tuple[str, str, int, int]] = []
        """Of `svc.a`: by whom, to whom, and the epochs."""
        self.namo: list[tuple[str, Any]] = []
        self.deaf: set[str] = set()
        """Who hears nothing."""
        self.running = ("", 0)
        self.attached = ("ts-west", 1)
        self.heard: list[tuple[str, str, bool]] = []
        """Who was told who has the service now, and whether that is still to take it."""
        for name in self.benches:
            self.greet(name)
            self.node("ts-west", 1, name)

    def greet(self, anchor: str) -> None:
        for scheduler, beside in BESIDE.items():
            self.hear(anchor, scheduler, SchedulerHello(scheduler, 1, None, beside))
            self.hear(anchor, scheduler, LeaseRequest(1))

    def node(self, scheduler: str, incarnation: int, *anchors: str) -> None:
        self.attached = scheduler, incarnation
        for anchor in anchors or (WEST, EAST):
            summary = NodeSummary("n1", NodeState.ONLINE, incarnation, INVENTORY)
            self.hear(anchor, scheduler, summary)

    def hear(self, anchor: str, sender: str, body: Any) -> None:
        bench = self.benches[anchor]
        self.out(anchor, bench.feed(Received(sender, 0, 0, "default", "test", body)))

    def out(self, anchor: str, output: Output) -> None:
        for send in (*output.early, *output.sends):
            to = send.to.role if isinstance(send.to, ToRole) else ""
            if to in self.benches:
                self.wires.setdefault((anchor, to), deque()).append(send.body)
            elif to in BESIDE:
                self.scheduler(to, anchor, send.body)
            elif to == NAMO:
                self.namo.append((anchor, send.body))
        self.check()

    def scheduler(self, name: str, anchor: str, body: Any) -> None:
        """A scheduler that believes the newest lease, and lets go when it is told."""
        if isinstance(body, EnvelopeGrant):
            self.grants.append((anchor, name, body.epoch_from, body.epoch_to))
            task = body.spec.task
            self.running = self.running if self.running[0] else (name, body.epoch_from)
            self.running = name, self.running[1]
            report = TaskReport(task, body.generation, "n1", self.running[1], InstanceState.READY)
            self.hear(anchor, name, report)
        elif isinstance(body, EnvelopeRevoke) and body.transferred:
            seen = max(last for _, to, _, last in self.grants if to == name)
            told = Relinquished(
                body.task, body.generation, "n1", self.running[1], seen, leased=body.leased
            )
            self.hear(anchor, name, told)
        elif isinstance(body, AnchorMoved):
            self.heard.append((name, body.anchor, body.going))

    def deliver(self, way: tuple[str, str]) -> bool:
        wire = self.wires.get(way)
        if not wire:
            return False
        sender, to = way
        self.hear(to, sender, wire.popleft())
        return True

    def pump(self, ms: int = 20_000) -> None:
        for _ in range(ms // 100):
            while any(self.deliver(way) for way in list(self.wires)):
                pass
            for name, bench in self.benches.items():
                self.out(name, bench.passes(100))

    def until_given(self) -> None:
        """Let time pass until the western anchor has given the service, and nobody has heard."""
        bench = self.benches[WEST]
        while not bench.ta.handing.given:
            for way in list(self.wires):
                self.deliver(way)
            self.out(WEST, bench.passes(LOOK_MS))

    def crash(self, name: str) -> None:
        """What was on the way to it and from it is lost; both sides begin their link anew."""
        for way in list(self.wires):
            if name in way:
                del self.wires[way]
        bench, other = self.benches[name], EAST if name == WEST else WEST
        self.out(name, bench.restart())
        self.greet(name)
        self.node(*self.attached, name)
        self.out(name, bench.feed(Linked(other)))
        self.out(name, bench.feed(Linked(NAMO)))
        self.out(other, self.benches[other].feed(Linked(name)))

    def owners(self) -> list[str]:
        return [name for name, one in self.benches.items() if "svc" in one.ta.book.services]

    def stored(self) -> list[str]:
        return [name for name, one in self.benches.items() if (TASK, "svc.a") in one.store]

    def check(self) -> None:
        assert len(self.owners()) < 2, "two anchors own the service"
        assert len(self.stored()) < 2, "two stores have the task"
        leased = sorted(self.grants, key=lambda one: one[2])
        for before, after in pairwise(leased):
            assert before[3] < after[2], "one epoch was leased twice"
        for bench in self.benches.values():
            for one in bench.ta.handing.given.values():
                near = {BESIDE[scheduler] for scheduler in one.schedulers}
                assert near == {one.to}, "its scheduler may go on with the leave of who gave it"


@pytest.fixture
def two() -> Two:
    one = Two()
    one.hear(WEST, NAMO, chain("svc", 1, "a"))
    one.pump(1000)
    assert one.owners() == [WEST]
    return one


def test_a_service_goes_to_the_anchor_beside_its_cell(two: Two) -> None:
    two.node("ts-east", 2)
    two.pump(2000)
    assert two.owners() == two.stored() == [EAST]
    task = two.benches[EAST].task()
    assert (task.scheduler, task.node, task.epoch) == ("ts-east", "n1", two.running[1])
    assert two.grants[-1][0] == EAST
    [moved] = [body for _, body in two.namo if isinstance(body, AnchorMoved)][-1:]
    assert (moved.anchor, moved.before, moved.number) == (EAST, WEST, 1)
    assert two.benches[WEST].ta.counters["anchors_given"] == 1
    given = two.benches[WEST].store[GIVEN, "svc"].value
    assert given is not None
    assert given.records == ()  # type: ignore[attr-defined] - a GivenRecord


def test_its_story_goes_on_there(two: Two) -> None:
    told = [key for kind, key in two.benches[WEST].store if kind == STORY]
    two.node("ts-east", 2)
    two.pump(2000)
    fresh = {key for kind, key in two.benches[EAST].store if kind == STORY}
    assert fresh
    assert not fresh & set(told)


def test_namo_is_told_until_it_has_heard(two: Two) -> None:
    two.node("ts-east", 2)
    two.pump(2000)
    said = len([1 for _, body in two.namo if isinstance(body, AnchorMoved)])
    two.pump(2 * AGAIN_MS)
    more = [one for one in two.namo if isinstance(one[1], AnchorMoved)][said:]
    assert [who for who, _ in more]
    two.hear(EAST, NAMO, AnchorTaken("svc", 1))
    two.namo.clear()
    two.pump(2 * AGAIN_MS)
    assert not [body for _, body in two.namo if isinstance(body, AnchorMoved)]


def test_an_order_for_what_was_given_is_answered_with_where_it_is(two: Two) -> None:
    two.node("ts-east", 2)
    two.pump(2000)
    for body in (chain("svc", 2, "a"), ServiceDelete("svc", 2)):
        two.namo.clear()
        two.hear(WEST, NAMO, body)
        [(who, moved)] = two.namo
        assert (who, moved.anchor, moved.number) == (WEST, EAST, 1)
        assert two.owners() == [EAST]


def test_namo_hears_from_who_takes_a_service_and_not_before(two: Two) -> None:
    two.node("ts-east", 2)
    two.until_given()
    two.namo.clear()
    two.hear(WEST, NAMO, chain("svc", 1, "a"))
    assert not two.namo, "it would order it there anew, and what runs would be forgotten"
    two.pump(1000)
    assert {who for who, body in two.namo if isinstance(body, AnchorMoved)} == {EAST}


def test_namo_may_order_it_back_when_it_knows_who_had_it(two: Two) -> None:
    two.node("ts-east", 2)
    two.pump(2000)
    two.hear(EAST, NAMO, ServiceDelete("svc", 2, transferred=True, anchor=WEST))
    heard = {"moved_generation": 1, "moved_number": 1}
    order: ServiceOrder = chain("svc", 2, "a", taken_from=(EAST,), epochs_above=10_000, **heard)
    two.hear(WEST, NAMO, order)
    two.pump(1000)
    assert WEST in two.owners()


def test_one_that_is_not_its_scheduler_is_no_reason_to_go(two: Two) -> None:
    two.benches[WEST].ta.handing.beside["ts-east"] = ""
    two.node("ts-east", 2)
    two.pump(2000)
    assert two.owners() == [WEST]


def test_an_anchor_that_is_away_gets_nothing(two: Two) -> None:
    two.node("ts-east", 2)
    for _ in range(2 * OFFER_MS // LOOK_MS):
        two.wires.clear()
        two.out(WEST, two.benches[WEST].passes(LOOK_MS))
        two.wires.pop((WEST, EAST), None)
    assert two.owners() == [WEST]
    two.pump(2 * OFFER_MS)
    assert two.owners() == [EAST]


def test_what_goes_on_while_it_is_offered_is_not_given(two: Two) -> None:
    two.node("ts-east", 2)
    while not two.wires.get((WEST, EAST)):
        two.out(WEST, two.benches[WEST].passes(LOOK_MS))
    two.node("ts-west", 3)
    assert two.running[0] == "ts-west"
    two.pump(OFFER_MS)
    assert two.owners() == [WEST]
    two.node("ts-east", 4)
    two.pump(OFFER_MS)
    assert two.owners() == [EAST]


def test_who_refuses_what_was_given_gives_it_back(two: Two) -> None:
    two.node("ts-east", 2)
    two.until_given()
    two.wires.clear()
    assert two.owners() == []
    two.hear(WEST, EAST, AnchorTaken("svc", 1, refused="there is no room"))
    assert two.owners() == [WEST]
    assert two.benches[WEST].task().node == "n1"
    assert (GIVEN, "svc") not in two.benches[WEST].store


def test_its_schedulers_are_told_who_has_it(two: Two) -> None:
    two.node("ts-east", 2)
    two.until_given()
    held = two.wires.copy()
    two.wires.clear()
    for restarts in (False, True):
        if restarts:
            two.out(WEST, two.benches[WEST].restart())
        two.greet(WEST)
        assert two.heard == [("ts-east", EAST, True)]
        two.heard.clear()
    two.wires = held
    two.pump(1000)
    assert two.heard == [("ts-east", EAST, False)], "as soon as it is taken"
    two.heard.clear()
    two.greet(WEST)
    two.greet(EAST)
    assert two.heard == [("ts-east", EAST, False)], "and whenever it asks"
    two.node("ts-west", 3)
    gives(two, EAST, WEST)
    two.heard.clear()
    two.greet(WEST)
    assert two.heard == []


@pytest.mark.parametrize("taken", [False, True])
def test_a_scheduler_that_asks_for_a_copy_is_told_who_has_its_task(two: Two, taken: bool) -> None:
    two.node("ts-east", 2)
    if taken:
        gives(two, WEST, EAST)
    two.until_given()
    body = NodeSummary("n1", NodeState.ONLINE, 3, INVENTORY, kept=("svc.a", "other.a"))
    output = two.benches[WEST].feed(Received("ts-west", 0, 0, "default", "test", body))
    sends = [one.body for one in output.sends if one.to == ToRole("ts-west")]
    assert [one.task for one in sends if isinstance(one, EnvelopeRevoke)] == ["other.a"]
    [moved] = [one for one in sends if isinstance(one, AnchorMoved)]
    assert (moved.service, moved.anchor, moved.going) == ("svc", EAST, not taken)


def test_what_is_not_whole_is_refused(two: Two) -> None:
    two.node("ts-east", 2)
    two.until_given()
    [transfer] = two.wires.pop((WEST, EAST))
    cut = type(transfer)(transfer.service, transfer.number, transfer.records[:1])
    two.hear(EAST, WEST, cut)
    [answer] = two.wires.pop((EAST, WEST))
    assert answer.refused == "it is not whole"
    assert two.owners() == []


def gives(two: Two, one: str, other: str) -> Any:
    """Have an anchor give the service; return the transfer, which the other has taken."""
    for _ in range(100):
        two.out(one, two.benches[one].passes(LOOK_MS))
        for way in (one, other), (other, one):
            two.deliver(way)
        wire = two.wires.get((one, other), ())
        found = [body for body in wire if isinstance(body, AnchorTransfer)]
        if found:
            two.pump(2000)
            return found[0]
    pytest.fail("it is not given")


def test_an_old_transfer_that_comes_again_owns_nothing(two: Two) -> None:
    two.node("ts-east", 2)
    first = gives(two, WEST, EAST)
    two.node("ts-west", 3)
    gives(two, EAST, WEST)
    assert two.owners() == [WEST]
    two.wires.clear()
    two.hear(EAST, WEST, first)
    assert two.owners() == [WEST]
    [answer] = [body for body in two.wires[EAST, WEST] if isinstance(body, AnchorTaken)]
    assert not answer.refused
    # A new life of the service begins to count anew, and is none of the old.
    two.benches[EAST].ta.handing._keep(
        structs.replace(two.benches[EAST].ta.handing.given["svc"], generation=0, number=9), "test"
    )
    two.node("ts-east", 4)
    gives(two, WEST, EAST)
    assert two.owners() == [EAST]


def test_a_new_generation_goes_on_counting(two: Two) -> None:
    two.node("ts-east", 2)
    gives(two, WEST, EAST)
    two.hear(EAST, NAMO, chain("svc", 2, "a"))
    assert two.benches[EAST].ta.book.services["svc"].number == 1
    two.hear(WEST, NAMO, chain("other", 2, "a", handed=3))
    assert two.benches[WEST].ta.book.services["other"].number == 3


@pytest.mark.parametrize("stranger", ["ts-east", "n1", "ta-nobody"])
def test_who_is_no_anchor_gives_nothing(two: Two, stranger: str) -> None:
    two.node("ts-east", 2)
    transfer = gives(two, WEST, EAST)
    before = two.benches[EAST].store.copy()
    two.wires.clear()
    for body in (transfer, AnchorOffer("svc", 9, ("ts-east",))):
        two.hear(EAST, stranger, body)
    two.hear(EAST, "ts-nobody", Relinquished("svc.a", 1, "n1", 1, 0, 32))
    assert two.benches[EAST].ta.counters["forged_message"] == 3
    assert two.benches[EAST].store == before
    assert not two.wires


STEPS = ("west>east", "east>west", "time", "crash west", "crash east", "to west", "to east")


@given(st.lists(st.sampled_from(STEPS)))
def test_whatever_is_lost_and_whoever_crashes_it_has_one_owner_in_the_end(steps: list[str]) -> None:
    two = Two()
    two.hear(WEST, NAMO, chain("svc", 1, "a"))
    two.pump(500)
    two.node("ts-east", 2)
    for step in steps:
        if ">" in step:
            one, other = step.split(">")
            two.deliver((f"ta-{one}", f"ta-{other}"))
        elif step == "time":
            for name, bench in two.benches.items():
                two.out(name, bench.passes(LOOK_MS))
        elif step.startswith("to "):
            two.node(f"ts-{step.removeprefix('to ')}", two.attached[1] + 1)
        else:
            two.crash(f"ta-{step.removeprefix('crash ')}")
    two.pump(10_000)
    assert len(two.owners()) == 1
    [owner] = two.owners()
    task = two.benches[owner].task()
    assert isinstance(task, TaskRecord)
    assert (task.node, task.epoch) == ("n1", two.running[1])
