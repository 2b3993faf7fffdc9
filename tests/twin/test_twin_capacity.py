"""Capacity questions: traces in, a day of the production deciders out."""

from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from msgspec.structs import replace

from controller.twin.capacity import Question, answer, picture
from controller.twin.traces import diurnal, read
from protocols.errors import UserError

SHARED = Path(__file__).parents[3] / "shared" / "data" / "workload"
SMALL = Question(nodes=60, hours=2.0, step_s=120.0, heartbeat_s=600.0, tasks=40)
RISE = [(0.0, 0.1), (7200.0, 1.0)]


def test_a_rising_trace_places_more_tasks_and_the_bill_says_what_it_cost() -> None:
    told = answer(SMALL, RISE)
    first, last = told.moments[0], told.moments[-1]
    assert len(told.moments) == 60
    assert first.wanted < last.wanted == told.peak_wanted == 38
    assert last.placed == 38
    assert told.peak_waiting == 0
    assert told.messages["Assign"] >= 38
    assert told.ts_load_percent[1] >= told.ts_load_percent[0] > 0
    # Each node says at least a heartbeat every ten minutes, and more when its load moves.
    assert told.messages["LoadReport"] >= 60 * 11


def test_the_same_question_has_the_same_answer_but_for_the_time_it_takes() -> None:
    one, other = answer(SMALL, RISE), answer(SMALL, RISE)
    assert one.messages == other.messages
    assert [moment.cpu_percent for moment in one.moments] == [
        moment.cpu_percent for moment in other.moments
    ]
    assert answer(replace(SMALL, seed=2), RISE).messages != one.messages


def test_what_does_not_fit_waits_and_more_nodes_are_named() -> None:
    tight = replace(SMALL, nodes=8, tasks=80, heartbeat_s=1200.0, step_s=600.0)
    told = answer(tight, RISE)
    assert told.peak_waiting > 0
    assert told.nodes_needed > 8


def test_a_picture_is_an_svg_with_a_curve_for_each_figure() -> None:
    root = ET.fromstring(picture(answer(replace(SMALL, hours=1.0), RISE)))  # noqa: S314 - our own
    curves = [one for one in root.iter() if one.tag.endswith("polyline")]
    assert len(curves) >= 9


def test_a_day_has_one_top() -> None:
    day = diurnal(24)
    top = max(day, key=lambda one: one[1])
    assert top == (15 * 3600, pytest.approx(1.0))
    assert min(load for _, load in day) > 0


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ("time,load\n0,2\n60,4\n", [(0, 0.5), (60, 1.0)]),
        ("timestamp,value\n2024-01-01 00:00:00,1\n2024-01-01 00:01:00,3\n", [(0, 1 / 3), (60, 1)]),
        ("at,size\n0,9\n10,9\n70,9\n", [(0, 1.0), (60, 0.5)]),
    ],
)
def test_traces_are_loads_or_arrivals(
    tmp_path: Path, text: str, points: list[tuple[float, float]]
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    assert read(path, 60 / 3600) == [(at, pytest.approx(load)) for at, load in points]


def test_a_short_trace_is_repeated(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text("time,load\n0,1\n1800,2\n")
    assert [at for at, _ in read(path, 2.0)] == [0, 1800, 3600, 5400, 7200]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "no load in it"),
        ("time,load\n", "no load in it"),
        ("time,load\nnow,3\n", "trace.csv:2"),
        ("time,load\n0,much\n", "trace.csv:2"),
        ("time,load\n0,0\n60,0\n", "no load in it"),
    ],
)
def test_a_bad_trace_is_told_in_one_sentence(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(text)
    with pytest.raises(UserError, match=said):
        read(path, 1.0)


@pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data/workload here")
def test_real_traces_are_read() -> None:
    requests = read(SHARED / "nab/realAWSCloudwatch/elb_request_count_8c0756.csv", 24.0)
    assert len(requests) > 200
    assert max(load for _, load in requests) == 1.0
    arrivals = read(SHARED / "AzureLLMInferenceTrace_code.csv", 1.0)
    assert 50 <= len(arrivals) <= 61
