"""A conditional handover that was never needed is void: neither completed nor failed."""

import pytest
from cells_bench import CellsBench

from controller.anchor.handovers import CONDITIONAL_MS
from controller.handover_records import CrossingRecord, HandoverState
from protocols.messages import HandoverCommand, HandoverFailed, HandoverRequired


@pytest.fixture
def bench() -> CellsBench:
    bench = CellsBench("a", "b")
    bench.born("n", "a")
    bench.order("a", spares=0)
    bench.passes(1000, "n")
    return bench


def prepare(bench: CellsBench) -> HandoverCommand:
    """Have the anchor prepare a conditional handover of `n` to `b`."""
    incarnation = bench.nodes["n"][1]
    required = HandoverRequired("h-1", "n", incarnation, ("b",), "b is near", conditional=True)
    bench.hear_at_anchor("ts-a", required)
    command = bench.told("n", HandoverCommand)[-1]
    assert isinstance(command, HandoverCommand)
    assert command.conditional
    return command


def failures(bench: CellsBench) -> list[int]:
    values = [one.value for one in bench.store.values()]
    return [one.failed for one in values if isinstance(one, CrossingRecord)]


def test_a_condition_that_does_not_hold_in_time_makes_it_void(bench: CellsBench) -> None:
    prepare(bench)
    bench.passes(CONDITIONAL_MS + 2000, "n")
    [record] = bench.handovers("n")
    assert (record.state, record.reason) == (
        HandoverState.VOID,
        "its condition has not held in time",
    )
    assert not any(failures(bench))
    assert bench.owners() == ["ts-a"]


def test_one_that_another_replaces_is_void(bench: CellsBench) -> None:
    prepare(bench)
    bench.hand_over("n", "b")
    assert [one.state for one in bench.handovers("n")] == [
        HandoverState.VOID,
        HandoverState.COMMANDED,
    ]
    assert not any(failures(bench))


def test_one_that_was_executed_in_vain_has_failed(bench: CellsBench) -> None:
    command = prepare(bench)
    bench.say("n", HandoverFailed(command.handover, "n", "b is not reached"))
    bench.run()
    assert bench.handovers("n")[0].state is HandoverState.FAILED
    assert failures(bench) == [1]
