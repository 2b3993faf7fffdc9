"""What a run says of requests, gaps and handovers."""

import asyncio
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from controller.handover_records import HandoverRecord, HandoverState
from tona.testbed.figures import (
    Called,
    Driven,
    Kind,
    Passed,
    Sums,
    chosen,
    gaps,
    quantile,
    verdict,
)
from tona.testbed.likeness import Traced
from tona.testbed.owning import called
from tona.testbed.radio import SIGNALS, SWITCH, Radio
from tona.testbed.replay import Signal
from tona.testbed.stages import Stage, move_of

MS = 1_000_000
SUMS = Sums(sent=10, answered=10, lost=0, wrong=0, doubled=0, repeated=1, retries=2, skipped=0)


def passed(begin_ms: int, end_ms: int, kind: Kind = Kind.HANDOVER) -> Passed:
    return Passed("ue-1", begin_ms * MS, end_ms * MS, kind)


def lengths(answers: list[int], window: Passed) -> list[float]:
    return [one.ms for one in gaps(answers, [window])]


def test_a_gap_belongs_to_the_window_in_which_it_ends() -> None:
    answers = [at * MS for at in (0, 20, 40, 300, 320, 340)]
    assert lengths(answers, passed(30, 310)) == [20.0, 260.0]
    assert lengths(answers, passed(310, 340)) == [20.0, 20.0]


def test_a_window_without_an_answer_has_one_gap() -> None:
    assert lengths([0, 900 * MS], passed(100, 500)) == [500.0]
    assert lengths([], passed(100, 500)) == []


def test_as_many_steady_windows_count_as_others() -> None:
    kinds = (Kind.HANDOVER, Kind.STEADY, Kind.CONTROL, Kind.STEADY, Kind.STEADY)
    windows = chosen([passed(at, at + 1, kinds[at % 5]) for at in range(20)])
    assert {kind: len(found) for kind, found in windows.items()} == dict.fromkeys(Kind, 4)
    assert all(one.kind is kind for kind, found in windows.items() for one in found)


def test_the_ratio_holds_windows_against_each_other() -> None:
    answers = [at * 20 * MS for at in range(1000)]
    del answers[600:601]
    del answers[100:110]
    driven = Driven(
        [passed(0, 4000), passed(5000, 9000, Kind.STEADY), passed(10000, 14000, Kind.CONTROL)],
        handovers=1,
    )
    called = Called(SUMS, answers, [1.0, 2.0, 3.0])
    phases = {"preparing": 0, "commanded": 10, "switching": 120, "completed": 190}
    record = HandoverRecord(
        "h", "ue-1", 1, "du-1", "du-2", HandoverState.COMPLETED, phases=phases,
        started_unix_ms=7_002_100, times={"linger_ms": 300.0},
    )  # fmt: skip
    moves = [one for one in (move_of(record, 7_000_000 * MS),) if one is not None]
    found = verdict({"ue-1": called}, {"ue-1": driven}, moves)
    assert found.handover.max_ms == 220.0
    assert found.steady.max_ms == 20.0
    assert found.gap_ratio == 11.0
    assert found.control is not None
    assert (found.control.max_ms, found.radio_ratio) == (40.0, 2.0)
    assert (found.lost, found.doubled, found.repeated, found.handovers) == (0, 0, 1, 1)
    assert found.latency_p50_ms == 2.0
    # Answers at 1,980 and 2,200 ms lie about the gap: 100 ms after it was asked for.
    assert (found.longest[0].ms, found.longest[0].stage) == (220.0, Stage.ATTACHING)
    assert found.longest[0].after_ms == 100.0
    assert found.stages[Stage.ATTACHING].longer == 1
    assert sum(one.gaps for one in found.stages.values()) == found.handover.gaps
    assert {one.stage for one in found.longest} >= {Stage.RADIO, Stage.ATTACHING}
    assert Stage.PREPARING not in found.stages
    assert found.stages[Stage.PARTING].gaps == 24  # 190 to 670 ms after it began


def worse(window: Passed, rise_ms: float) -> Passed:
    return replace(window, radio=Traced((rise_ms, 0.0, 0.0, 0.0, 0.0), 8.0, 0.0))


def test_windows_are_held_against_steady_ones_of_the_same_radio() -> None:
    """What a weak radio costs is no cost of a handover: the likest steady window costs it too."""
    answers = [at * 20 * MS for at in range(1000)]
    del answers[600:601]  # 12,000 ms, in the steady window with the weak radio
    del answers[100:101]  # 2,000 ms, in the one with a handover
    windows = [
        worse(passed(0, 4000), 30.0),
        worse(passed(5000, 9000, Kind.STEADY), 3.0),
        worse(passed(10000, 14000, Kind.STEADY), 25.0),
    ]
    found = verdict({"ue-1": Called(SUMS, answers, [])}, {"ue-1": Driven(windows)})
    assert (found.gap_ratio, found.matched_ratio) == (2.0, 1.0)
    assert found.matched is not None
    assert (found.matched.windows, found.matched.different) == (1, 1)
    assert found.matched.radio is not None
    assert found.steady.radio is not None
    assert (found.matched.radio.rise_ms, found.steady.radio.rise_ms) == (25.0, 3.0)
    # One that is the likest of several counts as often.
    again = [*windows, worse(passed(14000, 18000), 26.0)]
    found = verdict({"ue-1": Called(SUMS, answers, [])}, {"ue-1": Driven(again)})
    assert found.matched is not None
    assert (found.matched.windows, found.matched.different) == (2, 1)
    assert found.matched.gaps == 2 * 200


def test_nothing_measured_is_nothing_said() -> None:
    found = verdict({"ue-1": Called(SUMS, [], [])}, {"ue-1": Driven()})
    assert found.gap_ratio is None
    assert (found.matched, found.matched_ratio) == (None, None)
    assert found.handover.p999_ms is None


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=200), st.floats(0, 1))
def test_a_quantile_is_not_exceeded_by_its_share(values: list[float], share: float) -> None:
    ordered = sorted(values)
    found = quantile(ordered, share)
    assert found in ordered
    assert sum(one <= found for one in ordered) >= share * len(ordered) - 1e-6


async def test_a_radio_tells_what_it_hears_and_is_switched(tmp_path: Path) -> None:
    at = ""

    def tune(cell: str) -> None:
        radio.came_to(cell if cell != "du-9" else at)

    radio = Radio(tmp_path / "ue-1", tune)
    radio.start()
    try:
        radio.say({"du-1": Signal(-90.0, -11.0), "du-2": Signal(-95.0)})
        assert json.loads((tmp_path / "ue-1" / SIGNALS).read_bytes()) == {
            "du-1": {"rsrp_dbm": -90.0, "rsrq_db": -11.0},
            "du-2": {"rsrp_dbm": -95.0},
        }
        radio.came_to("du-2")
        for cell, code in (("du-2", 0), ("du-9", 1), ("du-3", 0)):
            program = str(tmp_path / "ue-1" / SWITCH)
            process = await asyncio.create_subprocess_exec(program, cell, "127.0.0.1", "1883")
            assert await asyncio.wait_for(process.wait(), 20) == code
    finally:
        radio.stop()
        radio.stop()


def test_what_a_log_says_of_requests_that_are_numbered() -> None:
    log = [
        (3, 60, ""),
        (1, 20, ""),
        (2, 40, "n-2: busy"),
        (5, 100, ""),
        (5, 101, ""),
        (6, 120, "x"),
    ]
    found = called(log, until_ms=110)
    assert (found.sums.sent, found.sums.answered, found.sums.lost) == (5, 3, 2)
    assert found.sums.failures == ("n-2: busy", "request 4 left no record")
    assert found.sums.doubled == 1
    assert found.answers_ns == [20_000_000, 60_000_000, 100_000_000]
    assert called([], until_ms=1).sums.sent == 0
