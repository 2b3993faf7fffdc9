"""What one process shows of another: the newest of everything, whatever was missed between."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests_support import INVENTORY, task_spec

from controller.decider import View
from controller.records import (
    CELL,
    FLEET,
    JOB,
    STORY,
    TASK,
    CellView,
    JobRecord,
    NodeView,
    Placement,
    StoryRecord,
    TaskRecord,
    TaskState,
)
from controller.registry import LiveRegistry, Registry, mirror
from controller.registry.mirror import KINDS, Outgoing, change
from protocols.manifest import Dtype
from protocols.messages import JobSubmit, Mirror
from protocols.messages.hierarchy import NodeState
from protocols.messages.invocation import Tensor
from protocols.messages.job import JobState


def cell(number: int) -> CellView:
    return CellView("ts", f"c{number}", "mqtt://127.0.0.1:1")


def node(scheduler: str, state: NodeState = NodeState.ONLINE) -> NodeView:
    return NodeView("n", state, scheduler, INVENTORY)


class Pair:
    """A process, and one that is shown what it has; what was shown before a cut may be lost."""

    def __init__(self) -> None:
        self.here = LiveRegistry(Registry("here"))
        self.there = LiveRegistry(Registry("there"))
        self.outgoing = Outgoing(self.here.model, KINDS)
        self.here.followers.append(self.outgoing.changed)
        self.line: list[Mirror] = []

    def carry(self, source: str = "here") -> None:
        while self.line:
            one = self.line.pop(0)
            if one.first:
                self.there.merger.begin(source)
            elif not one.kind:
                self.there.show(self.there.merger.end(source))
            else:
                shown = change(one)
                assert shown is not None
                self.there.show(self.there.merger.merge(source, [shown]))

    def same(self) -> bool:
        return all(self.here.model.list(kind) == self.there.model.list(kind) for kind in KINDS)


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("put"), st.sampled_from("abc"), st.integers(0, 9) | st.none()),
        st.tuples(st.just("take"), st.integers(1, 3), st.none()),
        st.tuples(st.just("carry"), st.none(), st.none()),
        st.tuples(st.just("cut"), st.none(), st.none()),
    ),
    max_size=40,
)


@given(STEPS)
def test_after_any_cuts_both_show_the_same(steps: list[tuple[str, Any, Any]]) -> None:
    pair = Pair()
    for what, key, number in steps:
        if what == "put":
            pair.here.apply(views=[View(CELL, key, None if number is None else cell(number))])
        elif what == "take":
            pair.line += pair.outgoing.take(key)
        elif what == "carry":
            pair.carry()
        else:
            pair.line.clear()
            pair.outgoing.begin()
    if not any(step[0] == "cut" for step in steps):
        assert not pair.line, "nothing is shown before the listener is there"
        pair.outgoing.begin()
    while pair.outgoing.waiting:
        pair.line += pair.outgoing.take(2)
    pair.carry()
    assert pair.same()


def test_a_key_that_changes_often_is_shown_once_with_its_newest_value() -> None:
    pair = Pair()
    pair.outgoing.begin()
    pair.line += pair.outgoing.take(10)
    for number in range(50):
        pair.here.apply(views=[View(CELL, "a", cell(number))])
    shown = pair.outgoing.take(10)
    assert [one.key for one in shown] == ["a"]
    assert change(shown[0]) == View(CELL, "a", cell(49))


def test_what_a_source_no_longer_has_after_a_new_beginning_is_forgotten() -> None:
    pair = Pair()
    pair.here.apply(views=[View(CELL, "a", cell(1)), View(CELL, "b", cell(2))])
    pair.outgoing.begin()
    pair.line += pair.outgoing.take(10)
    pair.carry()
    revision = pair.there.model.revision
    pair.outgoing = Outgoing(pair.here.model, KINDS)
    pair.here.apply(views=[View(CELL, "a", None)])
    pair.outgoing.begin()
    pair.line += pair.outgoing.take(10)
    pair.carry()
    assert pair.there.model.list(CELL) == [cell(2)]
    assert pair.there.model.revision == revision + 1, "what stays the same is no change"


def test_a_node_that_went_over_is_shown_as_its_new_scheduler_sees_it() -> None:
    live = LiveRegistry(Registry("e"))
    live.show(live.merger.merge("du-1", [View(FLEET, "n", node("ts-1"))]))
    live.show(live.merger.merge("du-2", [View(FLEET, "n", node("ts-2"))]))
    live.show(live.merger.merge("du-1", [View(FLEET, "n", node("ts-1", NodeState.LOST))]))
    assert live.model.get(FLEET, "n").scheduler == "ts-2"
    live.show(live.merger.merge("du-2", [View(FLEET, "n", None)]))
    assert live.model.get(FLEET, "n").state is NodeState.LOST
    live.show(live.merger.merge("du-1", [View(FLEET, "n", None)]))
    assert live.model.get(FLEET, "n") is None


def test_a_node_that_is_lost_in_the_cell_it_came_to_last_is_shown_there() -> None:
    live = LiveRegistry(Registry("e"))

    def shown(source: str, state: NodeState, incarnation: int) -> tuple[str, NodeState]:
        view = structs.replace(node(f"ts-{source}", state), incarnation=incarnation)
        live.show(live.merger.merge(source, [View(FLEET, "n", view)]))
        seen = live.model.get(FLEET, "n")
        return seen.scheduler, seen.state

    assert shown("b", NodeState.LOST, 3) == ("ts-b", NodeState.LOST)
    assert shown("a", NodeState.ONLINE, 5) == ("ts-a", NodeState.ONLINE)
    assert shown("a", NodeState.MOVED, 5) == ("ts-a", NodeState.MOVED), "it is on its way"
    assert shown("b", NodeState.ONLINE, 6) == ("ts-b", NodeState.ONLINE)
    assert shown("a", NodeState.ONLINE, 5) == ("ts-b", NodeState.ONLINE), "a late word"
    assert shown("b", NodeState.LOST, 6) == ("ts-b", NodeState.LOST)
    assert shown("a", NodeState.LOST, 5) == ("ts-b", NodeState.LOST)
    assert shown("a", NodeState.ONLINE, 7) == ("ts-a", NodeState.ONLINE)


def test_nodes_of_a_silent_process_are_suspect_until_it_is_heard() -> None:
    live = LiveRegistry(Registry("e"))
    live.show(live.merger.merge("du-1", [View(FLEET, "n", node("ts-1"))]))
    live.show(live.merger.away("du-1", "ts-1 is silent"))
    seen = live.model.get(FLEET, "n")
    assert (seen.state, seen.reason) == (NodeState.SUSPECT, "ts-1 is silent")
    live.show(live.merger.away("du-1", ""))
    assert live.model.get(FLEET, "n") == node("ts-1")
    lost = node("ts-1", NodeState.LOST)
    live.show(live.merger.merge("du-1", [View(FLEET, "n", lost)]))
    live.show(live.merger.away("du-1", "ts-1 is silent"))
    assert live.model.get(FLEET, "n") == lost


def test_what_two_hold_stays_when_one_drops_it() -> None:
    """A task that another anchor takes over is deleted by the first one, not for people."""
    live = LiveRegistry(Registry("e"))
    live.apply(views=[View(CELL, "a", cell(1))])
    live.show(live.merger.merge("other", [View(CELL, "a", cell(2))]))
    assert live.model.get(CELL, "a") == cell(2)
    live.apply(views=[View(CELL, "a", None)])
    assert live.model.get(CELL, "a") == cell(2)
    live.show(live.merger.merge("other", [View(CELL, "a", None)]))
    assert live.model.get(CELL, "a") is None


def test_large_things_are_shown_without_what_is_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    pair = Pair()
    inputs = {"x": Tensor(Dtype.UINT8, (50_000,), bytes(50_000))}
    job = JobRecord(JobSubmit("j", "s", inputs), "c", "default", JobState.DONE, parts={0: inputs})
    few = {f"n{number}": {"cpu": 1.0} for number in range(mirror.SCORES_MAX + 50)}
    task = TaskRecord(
        task_spec(), "s", "default", 1, TaskState.RUNNING, placement=Placement(1, scores=few)
    )
    story = StoryRecord("t", 0, "ta", "placed", "x")
    pair.here.apply(views=[View(JOB, "j", job), View(TASK, "t", task), View(STORY, "t/0", story)])
    pair.outgoing.begin()
    pair.line += pair.outgoing.take(10)
    pair.carry()
    there = pair.there.model
    assert there.get(JOB, "j").submit.inputs == there.get(JOB, "j").parts == {}
    assert len(there.get(TASK, "t").placement.scores) == mirror.SCORES_MAX
    assert there.get(STORY, "t/0") == story
    monkeypatch.setattr(mirror, "BODY_MAX_BYTES", 10)
    pair.outgoing.begin()
    pair.outgoing.take(10)
    assert pair.outgoing.counters["mirror_too_large"] == 3


def test_what_is_not_understood_is_not_shown() -> None:
    assert change(Mirror("comet", "a", b"\x80")) is None
    assert change(Mirror(CELL, "a", b"\xc1")) is None
