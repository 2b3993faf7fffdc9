"""How a node goes from cell to cell: what it says where, and what it never does."""

from typing import Any

import pytest
from device_cells import CELLS, HOME, Roamer, point
from device_harness import NODE, REPLY, chain, of, tensor
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from device_agent.core import commands, events
from device_agent.core.mobility import (
    AFTER_MS,
    ATTACH_MS,
    LINGER_MS,
    LOST_MS,
    ROUND_MS,
)
from device_agent.core.moves import TELL_MS
from protocols.manifest import Dtype
from protocols.messages import (
    Feed,
    HandoverCommand,
    HandoverComplete,
    HandoverFailed,
    HandoverTimes,
    Invoke,
    JobEnded,
    Neighbours,
    Result,
    Status,
    Welcome,
)
from protocols.messages.invocation import Deliver
from protocols.messages.quality import Source, SourceKind
from protocols.messages.task import InstanceState
from protocols.topics import Channel

BOUND_MS = 2 * LOST_MS + (len(CELLS) + 1) * ATTACH_MS + 2 * ROUND_MS
"""Without service while a cell can be reached: every cell was tried once by then."""


@pytest.fixture
def node() -> Roamer:
    one = Roamer()
    one.join()
    return one


@pytest.fixture
def alone() -> Roamer:
    one = Roamer(radios=1)
    one.join()
    return one


def call(node: Roamer, request: str, cell: str = HOME, **more: Any) -> list[commands.Command]:
    """Have a client of a cell ask, by the broker of `at` or its own."""
    at = more.pop("at", cell)
    plan = more.pop("plan", chain(("t", NODE, 1)))
    reply = f"tona/1/{cell}/client/app/reply"
    body = Invoke(request, "s", 5000, {"x": tensor()}, reply, more.pop("attempt", 1), plan, **more)
    return node.tell(events.Received(Channel.INVOKE, "app", 1, 0, "default", "c", body, cell=at))


def answer(node: Roamer, call: commands.Execute) -> list[commands.Command]:
    return node.tell(events.ExecutorDone(call.call, {"y": tensor(b"ok")}, 100))


def test_make_before_break(node: Roamer) -> None:
    node.assign()
    (birth,) = [one for _, one in node.cells["a"].births]
    assert (birth.arrival, birth.radios) == (None, 2)
    told = node.command("b")
    assert node.sessions == {"a": 1, "b": 0}
    node.connect("b")
    ((incarnation, birth),) = node.cells["b"].births
    assert incarnation == 2
    assert birth.arrival is not None
    assert (birth.arrival.source, birth.arrival.incarnation) == ("a", 1)
    assert (birth.arrival.handover, birth.arrival.attached) == (told.handover, True)
    assert [one.state for one in birth.holdings] == [InstanceState.READY]
    assert node.serving == "a", "not before the welcome"
    out = node.welcome("b")
    assert [one.cell for one in of(commands.Serve, out)] == ["b"]
    assert of(commands.SetPace, out), "the new scheduler sets the pace"
    node.after(LINGER_MS / 2)
    assert node.sessions == {"a": 1, "b": 2}, "the old one stays until the tasks have their owner"
    node.complete()
    assert node.sessions == {"b": 2}
    (death,) = node.cells["a"].deaths
    assert (death.orderly, death.moved_to) == (True, "b")
    assert [one.after_ms for one in of(commands.Detach, node.said)] == [AFTER_MS]
    (times,) = of(HandoverTimes, node.said)
    assert (times.source, times.cell, times.handover) == ("a", "b", told.handover)
    assert times.complete_ms == times.linger_ms == LINGER_MS / 2
    assert times.apart_ms == 0.0
    assert node.core.presence.arrival is None, "said until the tasks have their owner"
    assert len(of(commands.StartInstance, node.said)) == 1, "what runs is not touched"


def test_a_move_tells_how_long_answers_stayed_away(alone: Roamer) -> None:
    alone.assign()
    for at_ms, name in enumerate(("r1", "r2", "r3")):
        alone.after(20 * bool(at_ms))
        call(alone, name, stood_ms=5000)
        answer(alone, of(commands.Execute, alone.said)[-1])
    alone.command("b")
    alone.go()
    alone.complete()
    assert not of(HandoverTimes, alone.said), "the first answer is waited for"
    alone.after(300)
    call(alone, "r4", cell="b")
    answer(alone, of(commands.Execute, alone.said)[-1])
    call(alone, "r4", cell="b", attempt=2)
    call(alone, "r5", cell="b", stood_ms=310)
    call(alone, "r6", cell="b", stood_ms=25)
    alone.after(TELL_MS)
    (times,) = of(HandoverTimes, alone.said)
    assert times.gap_ms is not None
    assert times.gap_ms >= 300
    assert times.spacing_ms == pytest.approx(20 * (1 - (7 / 8) ** 2))
    assert (times.asked_again, times.said_again) == (1, 1)
    assert times.client_gap_ms == 310, "what clients tell during it"


def test_without_the_word_that_it_is_complete_the_old_attachment_ends_all_the_same(
    node: Roamer,
) -> None:
    node.command("b")
    node.after(LINGER_MS + 1)
    assert node.sessions == {"b": 2}
    (times,) = of(HandoverTimes, node.said)
    assert times.complete_ms is None
    node.complete()
    assert len(of(HandoverTimes, node.said)) == 1


def test_the_old_attachment_waits_for_what_it_has_brought(node: Roamer) -> None:
    node.assign()
    call(node, "r1")
    (run,) = of(commands.Execute, node.said)
    node.command("b")
    node.go()
    node.complete()
    call(node, "r2")
    node.after(1000)
    assert "a" in node.sessions
    out = answer(node, run)
    assert [(one.topic, one.body.request) for one in of(commands.Reply, out)] == [
        ("tona/1/a/client/app/reply", "r1")
    ]
    node.after(100)
    assert node.sessions == {"b": 2}, "r2 came after: it is carried to the new cell if need be"


def test_what_comes_on_both_ways_runs_once(node: Roamer) -> None:
    node.assign()
    node.command("b")
    node.go()
    for at in ("a", "b", "b"):
        call(node, "r1", at=at)
    (run,) = of(commands.Execute, node.said)
    out = answer(node, run)
    assert len(of(Result, out)) == 1
    out = call(node, "r1", at="b")
    assert not of(commands.Execute, out)
    assert not of(Result, out), "the same attempt was only carried after the node"
    (again,) = of(Result, call(node, "r1", at="b", attempt=2))
    assert again.attempt == 2, "who asks again is answered again, without another run"


@pytest.mark.parametrize("complete", [False, True])
def test_commands_of_the_old_scheduler_are_late(node: Roamer, complete: bool) -> None:
    node.command("b")
    node.go()
    if complete:
        node.complete()
        node.sessions["a"] = 1  # its words are still on their way
    before = node.core.presence.incarnation
    body = HandoverCommand("h9", NODE, point("c"), before)
    assert not of(commands.Attach, node.hear("a", body))
    node.hear("a", Neighbours(99, ()))
    node.hear("a", Welcome("ts-a", 1, 1))
    node.hear("a", HandoverComplete("", before))
    assert node.core.counts["late command"] == 4
    assert node.serving == "b"


def test_what_was_not_acknowledged_goes_to_the_new_scheduler(node: Roamer) -> None:
    node.assign()
    told = of(Status, node.said)[-1]
    job = Invoke("j1", "s", 5000, {"x": tensor()}, "", 1, chain(("t", NODE, 1)), job=True)
    event = events.Received(Channel.INVOKE, "ts-a", 1, 0, "default", "c", job, cell="a")
    (run,) = of(commands.Execute, node.tell(event))
    answer(node, run)
    node.command("b")
    node.connect("b")
    out = node.welcome("b")
    assert told in of(Status, out)
    assert [one.job for one in of(JobEnded, out)] == ["j1"]
    says = [one for one in of(commands.Say, out) if isinstance(one.body, JobEnded | Status)]
    assert {one.cell for one in says} == {""}, "at the attachment that serves"


def test_a_target_that_is_not_there_changes_nothing(node: Roamer) -> None:
    node.cells["b"].reachable = False
    told = node.command("b")
    node.after(ATTACH_MS + 1)
    assert (node.serving, node.sessions) == ("a", {"a": 1})
    (failed,) = of(HandoverFailed, node.said)
    assert (failed.handover, failed.node) == (told.handover, NODE)
    assert not of(commands.Renew, node.said), "no birth was said there"
    node.hear("a", told)
    assert node.core.counts["repeated handover"] == 1, "a command is obeyed once"


def test_an_expired_command_ends_before_the_usual_time(node: Roamer) -> None:
    node.cells["b"].reachable = False
    node.command("b", expires_ms=500)
    node.after(501)
    assert of(HandoverFailed, node.said)


def test_a_birth_in_vain_has_the_node_attached_anew(node: Roamer) -> None:
    node.cells["b"].welcomes = False
    told = node.command("b")
    node.after(ATTACH_MS + 1)
    assert [one.cell for one in of(commands.Renew, node.said)] == ["a"]
    (death,) = node.cells["b"].deaths
    assert death.moved_to == "a"
    incarnation, birth = node.cells["a"].births[-1]
    assert (incarnation, birth.arrival.source) == (3, "b")
    assert node.highest() == "a"
    (failed,) = of(HandoverFailed, node.said)
    assert failed.handover == told.handover
    assert node.welcomed


def test_a_newer_command_replaces_the_one_under_way(node: Roamer) -> None:
    node.cells["b"].reachable = False
    first = node.command("b")
    node.command("c")
    node.go()
    assert node.serving == "c"
    assert [one.handover for one in of(HandoverFailed, node.said)] == [first.handover]


def test_to_and_fro_before_the_old_one_has_ended(node: Roamer) -> None:
    for target in ("b", "a", "b", "c", "a"):
        node.command(target)
        node.go()
        assert node.serving == target
    node.complete()
    assert list(node.sessions) == ["a"]
    assert node.highest() == "a"


def test_a_lost_link_leads_to_the_best_neighbour(node: Roamer) -> None:
    node.measured({"a": -90.0, "b": -100.0, "c": -80.0})
    node.cut("a")
    node.after(LOST_MS - 1)
    assert node.sessions == {"a": 0}, "a short loss is none"
    node.after(2)
    assert node.serving == "c"
    ((_, birth),) = node.cells["c"].births
    assert (birth.arrival.source, birth.arrival.handover) == ("a", "")
    assert not birth.arrival.attached
    node.complete()
    (times,) = of(HandoverTimes, node.said)
    assert times.apart_ms == pytest.approx(LOST_MS)


def test_whoever_welcomes_first_serves(node: Roamer) -> None:
    node.cut("a")
    node.cells["b"].reachable = node.cells["c"].reachable = False
    node.after(LOST_MS + 10)
    assert set(node.sessions) == {"a", "b"}
    node.cells["a"].reachable = True
    node.go()
    assert (node.serving, node.welcomed) == ("a", True)
    assert list(node.sessions) == ["a"], "nothing else is sought any more"


def test_nobody_there_is_no_dead_end(node: Roamer) -> None:
    for one in CELLS:
        node.cut(one)
    node.after(10 * BOUND_MS)
    tried = {one.cell for one in of(commands.Attach, node.said)}
    assert tried == {"b", "c"}
    node.cells["c"].reachable = True
    node.after(BOUND_MS)
    assert (node.serving, node.welcomed) == ("c", True)
    node.cut("c")
    node.cells["a"].reachable = True
    node.after(BOUND_MS)
    assert (node.serving, node.welcomed) == ("a", True), "home is always known"


def test_one_radio_breaks_before_it_makes(alone: Roamer) -> None:
    alone.assign()
    call(alone, "r1")
    (run,) = of(commands.Execute, alone.said)
    alone.command("b")
    (death,) = alone.cells["a"].deaths
    assert (death.orderly, death.moved_to) == (True, "b")
    assert alone.sessions == {"b": 0}
    assert not of(commands.Reply, answer(alone, run)), "it is kept"
    alone.tell(events.LinkUp("b"))
    before = len(alone.said)
    alone.connect("b")
    assert [one.topic for one in of(commands.Reply, alone.said[before:])] == [
        "tona/1/a/client/app/reply"
    ], "it leaves with the first connection"
    alone.welcome("b")
    assert alone.serving == "b"
    ((_, birth),) = alone.cells["b"].births
    assert (birth.radios, birth.arrival.attached) == (1, False)
    alone.complete()
    assert of(HandoverTimes, alone.said)


def test_one_radio_returns_when_the_target_is_not_there(alone: Roamer) -> None:
    alone.cells["b"].reachable = False
    told = alone.command("b")
    alone.after(ATTACH_MS + 1)
    assert (alone.serving, alone.sessions, alone.welcomed) == ("a", {"a": 2}, True)
    assert [one.handover for one in of(HandoverFailed, alone.said)] == [told.handover]
    assert alone.highest() == "a"


def test_a_link_that_cannot_be_had_is_not_waited_for(alone: Roamer) -> None:
    alone.command("b")
    alone.tell(events.AttachFailed("b", "the radio hears nothing"))
    alone.go()
    assert (alone.serving, alone.welcomed) == ("a", True)
    (failed,) = of(HandoverFailed, alone.said)
    assert "hears nothing" in failed.reason


def test_a_condition_that_holds_for_its_time_is_executed(node: Roamer) -> None:
    node.command("c", conditional=True, offset_db=3.0, time_to_trigger_ms=300)
    assert "c" not in node.sessions
    for better in (4.0, 2.0, 4.0, 4.0):
        node.measured({"a": -90.0, "c": -90.0 + better})
        assert "c" not in node.sessions, "it has not held for its time without a break"
        node.now_ms += 200
    node.measured({"a": -90.0, "c": -86.0})
    node.go()
    assert node.serving == "c"


def test_a_prepared_handover_is_done_at_once_when_the_link_is_lost(node: Roamer) -> None:
    told = node.command("c", conditional=True, offset_db=3.0)
    node.cut("a")
    node.go()
    assert node.serving == "c"
    ((_, birth),) = node.cells["c"].births
    assert birth.arrival.handover == told.handover


def test_a_condition_is_void_when_cancelled_or_expired(node: Roamer) -> None:
    told = node.command("c", conditional=True)
    cancelled = HandoverCommand(
        told.handover, NODE, told.target, told.incarnation, conditional=True, cancelled=True
    )
    node.hear("a", cancelled)
    node.command("c", conditional=True, expires_ms=1000)
    node.after(1001)
    node.cut("a")
    assert "c" not in node.sessions
    node.after(LOST_MS + 1)
    assert node.cells["b"].births or node.cells["c"].births


def test_a_foreign_command_is_refused(node: Roamer) -> None:
    node.hear("a", HandoverCommand("h1", "another", point("b"), 1))
    node.hear("a", HandoverCommand("h2", NODE, point("b"), 99))
    assert node.core.counts["late handover"] == 2
    node.hear("a", HandoverCommand("h3", NODE, point("a"), 1))
    assert [one.handover for one in of(HandoverFailed, node.said)] == ["h3"]
    assert node.sessions == {"a": 1}


def test_a_restarted_node_comes_to_the_cell_that_served_it(node: Roamer) -> None:
    node.assign()
    node.command("b")
    node.go()
    node.complete()
    assert node.place is not None
    assert node.place.serving == point("b")
    again = Roamer(restored=events.Restored(incarnation=1000, place=node.place))
    again.go()
    assert (again.serving, again.sessions) == ("b", {"b": 1001})
    ((_, birth),) = again.cells["b"].births
    assert birth.arrival is None
    again.cut("b")
    again.after(LOST_MS + 1)
    assert again.serving in {"a", "c"}, "it knows its neighbours"


@pytest.mark.parametrize("radios", [1, 2])
def test_a_restarted_node_whose_cell_is_gone_meanwhile_seeks_another(radios: int) -> None:
    place = commands.Place(HOME, point("b"), (point("a"), point("c")))
    node = Roamer(radios, events.Restored(incarnation=1000, place=place))
    node.cells["b"].reachable = False
    node.go()
    assert node.serving == "b"
    node.after(2 * ATTACH_MS)
    assert node.serving in {"a", "c"}
    assert node.cells[node.serving].births


def test_another_home_forgets_where_it_was() -> None:
    place = commands.Place("elsewhere", point("b"), ())
    restored = events.Restored(incarnation=5, place=place)
    core = Roamer().core
    core.handle(restored, 0.0)
    assert core.presence.cell == HOME


def test_steps_and_stores_of_other_cells(node: Roamer) -> None:
    """What follows a step goes to its cell; large values to the store of the client's cell."""
    node.assign()
    node.command("b")
    node.go()
    plan = chain(("t", NODE, 1), ("u", "other", 2))
    call(node, "r1", plan=plan, at="b")
    (run,) = of(commands.Execute, node.said)
    (said,) = of(commands.Forward, answer(node, run))
    assert isinstance(said.body, Deliver)
    assert said.cell == "a", "a plan without cells is of the cell where its answer goes"
    turn = node.core._turn
    assert turn.urls(REPLY.replace("/cell/", "/a/")) == ("http://a", "http://b")
    assert turn.urls(REPLY.replace("/cell/", "/b/")) == ("http://b",)


def test_feeds_go_on_from_the_cell_before(node: Roamer) -> None:
    """What a feed needs of the old cell it asks there; the new scheduler's word replaces that."""
    camera = Source("x", SourceKind.SENSOR, "camera", Dtype.UINT8, (-1,), rate_per_s=10.0)
    plan = chain(("t", NODE, 1), ("u", "other", 2))
    node.assign()
    node.hear("a", Feed("s", 7, chain(("u", "other", 2)), (camera,), budget_ms=5000))
    node.hear("a", Feed("mine", 7, plan, (camera,), budget_ms=5000))

    def read() -> list[commands.Command]:
        before = len(node.said)
        node.after(100)
        for one in of(commands.ReadSource, node.said[before:]):
            node.tell(events.SourceRead(one.service, one.input, tensor()))
        return node.said[before:]

    (asked,) = of(commands.Forward, read())
    assert (asked.cell, asked.body.reply_to) == ("", f"tona/1/a/node/{NODE}/invoke")
    flight = asked.body
    node.command("b")
    node.go()
    (asked,) = of(commands.Forward, read())
    assert (asked.cell, asked.body.reply_to) == ("a", f"tona/1/b/node/{NODE}/invoke")
    for place in ("", "b"):
        (said,) = of(commands.Forward, answer(node, of(commands.Execute, node.said)[-1]))
        assert (said.cell, said.body.plan.steps[0].cell) == ("a", place), "as it was asked"
    deliver = said.body
    assert [(one.node, one.cell) for one in deliver.plan.steps] == [(NODE, "b"), ("other", "a")]
    assert len(of(commands.KeepFeed, node.said)) == 2, "none while it hurries"
    kept = [one.feed.cell for one in of(commands.KeepFeed, node.complete())]
    assert kept == ["a", "a"]
    result = Result(flight.request, flight.attempt, {"y": tensor(b"ok")})
    old = events.Received(Channel.INVOKE, "other", 1, 0, "default", "c", result, cell="a")
    node.tell(old)
    assert node.core.counts["feed answered"] == 1, "answers to the old inbox count"
    node.hear("b", Feed("s", 1, chain(("u", "other", 3)), (camera,), budget_ms=5000))
    cells = {one.body.plan.steps[0].epoch: one.cell for one in of(commands.Forward, read())}
    assert cells[3] == "", "the new scheduler's plan is of its own cell"


class Roaming(RuleBasedStateMachine):
    """Commands, losses and slow schedulers in any order, early, late and twice."""

    radios = 2

    def __init__(self) -> None:
        super().__init__()
        self.node = Roamer(self.radios)
        self.node.join()
        self.node.assign()
        self.heard: list[tuple[str, Any]] = []
        self.number = 1
        self.apart_ms = 0.0

    @rule(to=st.sampled_from(CELLS), conditional=st.booleans(), wait=st.integers(100, 9000))
    def command(self, to: str, conditional: bool, wait: int) -> None:
        at = self.node.serving
        body = self.node.command(to, conditional=conditional, expires_ms=wait)
        self.heard.append((at, body))

    @rule(pick=st.integers(0, 50))
    def again(self, pick: int) -> None:
        """Have something old come once more, wherever it was said."""
        if self.heard:
            self.node.hear(*self.heard[pick % len(self.heard)])

    @rule(cell=st.sampled_from(CELLS), up=st.booleans())
    def reach(self, cell: str, up: bool) -> None:
        self.node.cells[cell].reachable = up
        if not up:
            self.node.drop(cell)

    @rule(cell=st.sampled_from(CELLS), up=st.booleans())
    def scheduler(self, cell: str, up: bool) -> None:
        self.node.cells[cell].welcomes = up

    @rule(cell=st.sampled_from(CELLS))
    def drop(self, cell: str) -> None:
        self.node.drop(cell)

    @rule(cell=st.sampled_from(CELLS), incarnation=st.integers(0, 30))
    def late_welcome(self, cell: str, incarnation: int) -> None:
        """Have an old welcome come; it answers one incarnation, and no other."""
        if incarnation != self.node.sessions.get(cell):
            self.node.hear(cell, Welcome(f"ts-{cell}", ord(cell), incarnation))

    @rule(older=st.booleans())
    def complete(self, older: bool) -> None:
        incarnation = self.node.core.presence.incarnation - older
        body = HandoverComplete("", max(0, incarnation))
        self.heard.append((self.node.serving, body))
        self.node.hear(self.node.serving, body)

    @rule(levels=st.lists(st.floats(-120, -60), min_size=3, max_size=3))
    def measured(self, levels: list[float]) -> None:
        self.node.measured(dict(zip(CELLS, levels, strict=True)))

    @rule()
    def neighbours(self) -> None:
        self.number += 1
        self.node.neighbours(self.number)

    @rule(cell=st.sampled_from(CELLS))
    def link(self, cell: str) -> None:
        self.node.tell(events.LinkUp(cell))

    @rule(cell=st.sampled_from(CELLS))
    def no_link(self, cell: str) -> None:
        self.node.tell(events.AttachFailed(cell, "no link"))

    @rule(ms=st.sampled_from((1, 60, 500, 1100, 6000, 12_000)))
    def wait(self, ms: int) -> None:
        self.node.after(ms)

    @rule()
    def work(self) -> None:
        self.node.go()

    @invariant()
    def holds(self) -> None:
        node = self.node
        node.check()
        settled = node.welcomed and node.core.attached.mobility.settled
        if settled and node.sessions == {node.serving: node.core.presence.incarnation}:
            assert node.highest() == node.serving, "the highest incarnation is where the node is"
        assert len(of(commands.StartInstance, node.said)) == 1, "the task was touched"

    def teardown(self) -> None:
        """Whatever was: with every cell in reach the node is served within the bound, and stays."""
        for cell in self.node.cells.values():
            cell.reachable = cell.welcomes = True
        self.node.after(BOUND_MS)
        assert self.node.welcomed, self.node.sessions
        self.node.after(LINGER_MS + ATTACH_MS)
        assert list(self.node.sessions) == [self.node.serving]
        assert self.node.highest() == self.node.serving
        self.holds()


class RoamingAlone(Roaming):
    """The same with one radio."""

    radios = 1


TestRoaming = Roaming.TestCase
TestRoaming.settings = settings(stateful_step_count=30, deadline=None)
TestRoamingAlone = RoamingAlone.TestCase
TestRoamingAlone.settings = settings(stateful_step_count=30, deadline=None)
