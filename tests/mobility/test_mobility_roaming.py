"""Rules tried on traces: what is read of them, and what rules come to where that is known."""

import gzip
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controller.mobility.settings import MobilitySettings
from controller.twin import radio, roaming, roaming_study
from controller.twin.radio import Field, Sample, Stretch
from protocols.errors import UserError
from tona.cli.sim import app

HEAD = "Timestamp,NetworkMode,RSRP,RAWCELLID,NRxRSRP"
BRIEF_S = 1700
TRACES = Path(__file__).parents[3] / "shared" / "data" / "radio"


def drive(seconds: int, *, fall: float = 1.0) -> Stretch:
    """Return a drive from cell A to cell B: one falls as the other rises."""
    half = seconds // 2
    samples = []
    for at in range(seconds):
        left = max(-115.0, min(-70.0, -90.0 - fall * (at - half)))
        right = max(-115.0, min(-70.0, -90.0 + fall * (at - half)))
        here, there = (left, right) if at < half else (right, left)
        samples.append(Sample(float(at), "A" if at < half else "B", here, there))
    return Stretch("drive", tuple(samples))


def rows(count: int, second: int = 0, mode: str = "LTE") -> list[str]:
    return [
        f"2020.01.01_00.{(second + at) // 60:02}.{(second + at) % 60:02},{mode},-90,{at // 10},-95"
        for at in range(count)
    ]


def test_traces_are_cut_where_they_pause_or_leave_the_network(tmp_path: Path) -> None:
    text = "\n".join([HEAD, *rows(30), *rows(20, 30, "HSPA+"), *rows(40, 50), *rows(5, 100)])
    with gzip.open(tmp_path / "one.csv.gz", "wt") as file:
        file.write(text)
    (tmp_path / "other.csv").write_text("time,load\n1,2\n")
    found = radio.read(tmp_path)
    assert [one.name for one in found] == ["one.csv.gz#1", "one.csv.gz#2"]
    assert [one.seconds for one in found] == [29.0, 39.0]
    assert [len(one.changes) for one in found] == [2, 3]


def test_what_is_no_trace_is_said_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no radio trace"):
        radio.read(tmp_path)
    (tmp_path / "bad.csv").write_text(f"{HEAD}\nyesterday,LTE,-90,1,-95\n")
    with pytest.raises(UserError, match=r"bad\.csv:2: no time, level or cell"):
        radio.read(tmp_path)
    (tmp_path / "bad.csv").unlink()
    (tmp_path / "bad.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(UserError, match="cannot be read"):
        radio.read(tmp_path)


def test_neighbours_are_named_and_fade_when_they_are_reported_no_more() -> None:
    field = Field(drive(40))
    assert set(field.cells) == {"A", "B"}
    early, middle = field.levels([0.5, 20.0])
    assert early["A"] == -70.5
    assert early["B"] == pytest.approx(-109.5)
    assert middle == {"A": -90.0, "B": -90.0}
    gone = Stretch(
        "gone", (*drive(20).samples, *(Sample(20.0 + at, "B", -70.0, None) for at in range(60)))
    )
    (late,) = Field(gone).levels([75.0])
    assert "A" not in late


@pytest.mark.parametrize("radios", [1, 2])
def test_a_drive_from_one_cell_to_the_next_takes_one_handover(radios: int) -> None:
    found = roaming.try_rules(drive(60), [roaming.Model(radios=radios)], MobilitySettings())
    for one in found:
        assert (one.moves, one.failed, one.lost, one.ping_pongs) == (1, 0, 0, 0), one.rule
        gaps = [] if radios == 2 else [roaming.Model().attach_ms]
        assert one.gaps_ms == gaps, one.rule


def test_a_link_that_dies_at_once_is_left_before_a_command_could_arrive() -> None:
    strongest, plain, ours, *_ = roaming.try_rules(
        drive(40, fall=9.0), [roaming.Model(command_ms=600)], MobilitySettings(command_ms=600)
    )
    assert (plain.failed, plain.by_itself) == (1, 0)
    assert (ours.failed, ours.by_itself) == (0, 1)
    assert sum(ours.gaps_ms) < sum(plain.gaps_ms)
    assert strongest.by_itself == 0


def test_the_same_seed_gives_the_same_figures() -> None:
    models = [roaming.Model(noise_db=2.0, seed=7)]
    settings = MobilitySettings()
    first = roaming.try_rules(drive(60), models, settings)
    assert first == roaming.try_rules(drive(60), models, settings)
    assert first[0].ping_pongs > first[2].ping_pongs


def test_the_command_compares_the_rules_and_renews_a_page(tmp_path: Path) -> None:
    (tmp_path / "one.csv").write_text("\n".join([HEAD, *rows(40)]))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{roaming_study.BEGIN}old\n{roaming_study.END}\nafter\n")
    asked = ["mobility", "--traces", str(tmp_path), "-j", "1", "--json", "--page", str(page)]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0
    made = json.loads(done.stdout)
    assert [one["rule"] for one in made["rows"]] == ["as driven", *roaming.RULES * 2]
    text = page.read_text()
    assert "| ours | 2 |" in text
    assert "old" not in text
    assert text.endswith(f"{roaming_study.END}\nafter\n")


@pytest.mark.skipif(not TRACES.is_dir(), reason="the shared radio traces are not here")
def test_on_a_real_trace_ours_fails_less_than_a3_and_returns_less_than_the_strongest() -> None:
    stretches = [one for one in radio.read(TRACES) if one.seconds < BRIEF_S]
    stretches.sort(key=lambda one: -len(one.changes))
    model = [roaming.Model(noise_db=1.0)]
    strongest, plain, ours, *_ = roaming.try_rules(stretches[0], model, MobilitySettings())
    assert ours.failed + ours.lost < plain.failed + plain.lost
    assert ours.ping_pong_percent < strongest.ping_pong_percent / 4
