"""Traces, the windows cut out of them, and the links that they make."""

import gzip
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import UserError
from tona.testbed.likeness import USED_MAX, Traced, likest, traced
from tona.testbed.replay import DELAY_MS, LOSS_PERCENT, Signal, conditions, steps
from tona.testbed.timetable import timetable
from tona.testbed.tracefiles import parse_file, read
from tona.testbed.traces import WINDOW_S, NoTrace, Sample, Window, parse, windows

REAL = Path(__file__).resolve().parents[3] / "shared" / "data" / "radio" / "5g_driving"
HEAD = "Timestamp,RAWCELLID,RSRP,RSRQ,SNR,CQI,DL_bitrate,UL_bitrate,NRxRSRP,NRxRSRQ"
CELLS = ("du-1", "du-2", "du-3")


def row(second: int, cell: str, rsrp: str = "-90", neighbour: str = "-95", cqi: str = "10") -> str:
    moment = f"2020.01.01_10.{second // 60:02d}.{second % 60:02d}"
    return f"{moment},{cell},{rsrp},-9,8.0,{cqi},1000,200,{neighbour},-14"


def drive(*served: str) -> tuple[Sample, ...]:
    return parse([HEAD, *(row(second, cell) for second, cell in enumerate(served))])


def test_rows_of_one_second_are_spread_and_gaps_passed_over() -> None:
    lines = [HEAD, row(0, "7"), row(1, "7"), row(1, "7", neighbour="-"), row(1, "8"), row(3, "8")]
    lines += [row(4, "-"), row(5, "8", rsrp="-"), "nonsense", row(6, "8", cqi="-")]
    samples = parse(lines)
    assert [one.at_s for one in samples] == pytest.approx([0, 1, 4 / 3, 5 / 3, 3, 6])
    assert [one.cell for one in samples] == ["7", "7", "7", "8", "8", "8"]
    assert samples[2].neighbour_rsrp_dbm is None
    assert samples[-1].cqi is None
    assert samples[0].down_mbit_per_s == 1.0


@pytest.mark.parametrize("lines", [["a,b"], [], ["Timestamp,RSRP"]])
def test_what_is_no_trace_is_said_to_be_none(lines: list[str]) -> None:
    with pytest.raises(NoTrace, match="no column"):
        parse(lines)


def test_windows_lie_around_changes_and_steady_ones_between() -> None:
    samples = drive(*["1"] * 30, *["2"] * 30)
    found = windows("drive", samples)
    moving = [one for one in found if one.moves]
    steady = [one for one in found if not one.moves]
    assert len(moving) == 1
    assert moving[0].changes == 1
    assert [one.cell for one in moving[0].samples] == ["1"] * 5 + ["2"] * 5
    assert len(steady) == 4
    assert all(one.changes == 0 for one in steady)
    assert all(0 <= sample.at_s < WINDOW_S for one in found for sample in one.samples)


def test_a_hole_in_a_trace_is_in_no_window() -> None:
    lines = [HEAD, *(row(at, "1") for at in range(20)), *(row(at, "2") for at in range(24, 40))]
    assert not [one for one in windows("drive", parse(lines)) if one.moves]


def test_cells_are_met_in_order_and_met_again() -> None:
    served = ["a", "a", "b", "b", "a", "c", "c", "a", "a", "a"]
    window = Window("drive", drive(*served), moves=True)
    made = steps(window, "du-2", CELLS)
    assert [one.serving for one in made] == [
        {"a": "du-2", "b": "du-3", "c": "du-3"}[one] for one in served
    ]
    assert made[0].signals.keys() == {"du-2", "du-3"}
    assert made[0].signals["du-3"] == Signal(-95.0, -14.0)
    assert not made[0].links["du-1"].up


def test_a_cell_that_was_left_behind_fades() -> None:
    made = steps(Window("drive", drive(*"abbbccccccccccccc"), moves=True), "du-1", CELLS)
    assert made[0].links["du-1"].up
    weaker = [one.signals["du-1"].rsrp_dbm for one in made[4:] if "du-1" in one.signals]
    assert weaker == sorted(weaker, reverse=True)
    assert 3 < len(weaker) < 12
    assert not made[-1].links["du-1"].up


def test_a_single_radio_is_at_one_cell() -> None:
    window = Window("drive", drive(*"aaaaabbbbb"), moves=True)
    step = steps(window, "du-1", CELLS)[0]
    carried = step.carried("du-1")
    assert [cell for cell, one in carried.items() if one.up] == ["du-1"]
    assert not any(one.up for one in step.carried("").values())


def test_a_missing_neighbour_is_taken_from_the_nearest_row_or_from_where_it_goes() -> None:
    rows = [row(at, "a", neighbour="-" if at != 3 else "-101") for at in range(5)]
    rows += [row(at, "b", rsrp="-88", neighbour="-") for at in range(5, 10)]
    one = steps(Window("drive", parse([HEAD, *rows]), moves=True), "du-1", CELLS)
    assert one[0].signals["du-2"].rsrp_dbm == -101
    rows = [row(at, "a", neighbour="-") for at in range(5)]
    rows += [row(at, "b", rsrp="-88", neighbour="-") for at in range(5, 10)]
    one = steps(Window("drive", parse([HEAD, *rows]), moves=True), "du-1", CELLS)
    assert one[0].signals["du-2"].rsrp_dbm == -88


@given(st.floats(-140, -44), st.one_of(st.none(), st.integers(-3, 30)), st.floats(0, 500))
def test_every_signal_makes_a_link(rsrp: float, cqi: int | None, carried: float) -> None:
    link = conditions(rsrp, cqi, carried)
    assert link.up
    assert link.down_mbit_per_s >= carried
    assert DELAY_MS <= link.delay_ms <= DELAY_MS + 14
    assert 0 <= link.loss_percent <= LOSS_PERCENT


def test_a_cell_that_does_not_serve_is_like_the_one_that_does() -> None:
    """Else a link would be another one as soon as the trace goes over to it."""
    rows = [
        *(row(at, "a", rsrp="-100", neighbour="-97", cqi="6") for at in range(5)),
        *(row(at, "b", rsrp="-97", neighbour="-100", cqi="6") for at in range(5, 10)),
    ]
    made = steps(Window("drive", parse([HEAD, *rows]), moves=True), "du-1", CELLS)
    delays = {cell: {one.links[cell].delay_ms for one in made} for cell in ("du-1", "du-2")}
    assert delays == {"du-1": {17.0}, "du-2": {17.0}}
    weak = [row(at, "a", rsrp="-80", neighbour="-110", cqi="9") for at in range(10)]
    one = steps(Window("drive", parse([HEAD, *weak]), moves=False), "du-1", CELLS)[0]
    assert [one.links[cell].delay_ms for cell in ("du-1", "du-2")] == [14.0, 17.0]
    none = [row(at, "a", rsrp="-80", neighbour="-100", cqi="-") for at in range(10)]
    one = steps(Window("drive", parse([HEAD, *none]), moves=False), "du-1", CELLS)[0]
    assert [one.links[cell].delay_ms for cell in ("du-1", "du-2")] == [8.0, 15.0]


def test_the_radio_of_a_window_is_how_much_longer_its_ways_become() -> None:
    cqis = ["15", "15", "9", "12", "10", "10", "15", "15", "15", "15"]
    rows = [row(at, "a", cqi=cqi) for at, cqi in enumerate(cqis)]
    found = traced(Window("drive", parse([HEAD, *rows]), moves=False))
    # Six steps down: 12 ms for both ways and 5 of jitter; two: 4 and 4.5.
    assert found.rises_ms == (17.0, 8.5, 4.5, 3.5, 2.0)
    assert found.delay_ms == pytest.approx(8 + (6 + 3 + 5 + 5) / 10)
    assert found.loss_percent == 0.0
    assert (
        traced(Window("short", parse([HEAD, row(0, "a")]), moves=False)).rises_ms[1:] == (0.0,) * 4
    )


def test_each_window_has_its_likest() -> None:
    def of(rise_ms: float, loss_percent: float = 0.0) -> Traced:
        return Traced((rise_ms, 0.0, 0.0, 0.0, 0.0), 10.0, loss_percent)

    among = [of(2.0), of(10.0), of(20.0), of(20.0, 0.3)]
    assert likest([of(3.0), of(21.0, 0.2), of(18.0), of(12.0)], among) == [3, 2, 1, 0]
    many = likest([of(19.0)] * (2 * USED_MAX), among)
    assert Counter(many) == {2: USED_MAX, 1: USED_MAX}
    assert likest([of(1.0)] * 9, [of(1.0)]) == [0] * USED_MAX
    assert likest([of(1.0)], []) == []


def test_a_better_signal_makes_a_better_link() -> None:
    links = [conditions(float(rsrp)) for rsrp in range(-130, -60)]
    for worse, better in pairwise(links):
        assert better.down_mbit_per_s >= worse.down_mbit_per_s
        assert better.delay_ms <= worse.delay_ms
        assert better.loss_percent <= worse.loss_percent


@given(
    st.lists(st.sampled_from("abcdef"), min_size=2, max_size=30),
    st.sampled_from(CELLS),
    st.integers(2, 3),
)
def test_any_window_leads_somewhere(served: list[str], here: str, count: int) -> None:
    cells = CELLS[:count]
    here = here if here in cells else cells[0]
    made = steps(Window("drive", drive(*served), moves=True), here, cells)
    assert made[0].serving == here
    for one, cell in zip(made, served, strict=True):
        assert one.links[one.serving].up
        assert one.serving in one.signals
        assert one.links.keys() == set(cells)
        assert cell
    for (one, cell), (other, after) in zip(
        zip(made, served, strict=True), zip(made[1:], served[1:], strict=True), strict=False
    ):
        assert (one.serving != other.serving) == (cell != after)


def test_a_folder_of_traces(tmp_path: Path) -> None:
    lines = "\n".join([HEAD, *(row(at, "1" if at < 30 else "2") for at in range(60))])
    (tmp_path / "one.csv.gz").write_bytes(gzip.compress(lines.encode()))
    (tmp_path / "README.md").write_text("no trace")
    found = read(tmp_path)
    assert sum(one.moves for one in found) == 1
    table = timetable(found, ["ue-1", "ue-2"], 3)
    assert [len(one) for one in table.values()] == [4, 2]
    assert [one.moves for one in table["ue-1"]] == [True, False, True, False]
    assert [one.moves for one in table["ue-2"]] == [False, True]
    one, two, same = timetable(found, ["ue-1"], 1, control=True)["ue-1"]
    assert (one.moves, two.moves, same.moves, same.control) == (True, False, False, True)
    made = steps(same, "du-2", CELLS)
    assert {step.serving for step in made} == {"du-2"}
    # What carries is what carries in the window with the change.
    carried = [step.links[step.serving] for step in steps(one, "du-2", CELLS)]
    assert [step.links["du-2"] for step in made] == carried
    (tmp_path / "two.csv.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(UserError, match=r"two\.csv\.gz"):
        read(tmp_path)


def test_a_collection_of_folders_gives_the_traces_in_them(tmp_path: Path) -> None:
    drives, others = tmp_path / "drives", tmp_path / "others"
    drives.mkdir()
    others.mkdir()
    (others / "rates.csv").write_text("1,2\n3,4\n")
    with pytest.raises(UserError, match="no trace in it"):
        read(tmp_path)
    lines = "\n".join([HEAD, *(row(at, "1" if at < 30 else "2") for at in range(60))])
    (drives / "one.csv").write_text(lines)
    found = read(tmp_path)
    assert [one.moves for one in found] == [one.moves for one in read(drives)]
    assert {one.trace for one in found} == {"drives/one.csv"}


def test_a_folder_without_traces_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no trace in it"):
        read(tmp_path)
    with pytest.raises(UserError, match="No such file"):
        read(tmp_path / "absent")
    (tmp_path / "still.csv").write_text("\n".join([HEAD, *(row(at, "1") for at in range(30))]))
    with pytest.raises(UserError, match="the cell changes"):
        read(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="the real traces are not beside the project")
def test_the_real_traces() -> None:
    for file in sorted(REAL.glob("*.csv.gz"))[:3]:
        found = windows(file.name, parse_file(file))
        assert {one.moves for one in found} == {True, False}
        for one in found:
            made = steps(one, "du-1", CELLS)
            assert len({step.serving for step in made}) > one.moves
