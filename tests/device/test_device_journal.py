"""The journal on real files: what was written is there after the worst end."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from device_harness import assign

from device_agent.core.assignments import TOMBSTONES_MAX
from device_agent.core.commands import Forget, Keep, KeepPlace, Place
from device_agent.journal import INCARNATION_BLOCK, Journal
from protocols.errors import EnvironmentFailure
from protocols.messages.mobility import CellPoint

ROOT = Path(__file__).parents[2]


def keep(task: str, epoch: int = 1) -> Keep:
    return Keep(assign(task, epoch), "test")


def test_what_was_written_is_restored(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", 1)
    assert journal.restored().assigns == ()
    older = Keep(assign("a", 2), "test", assign("a", 1))
    gone = (Keep(assign(one, 2), "test", assign(one, 1)) for one in ("b", "c"))
    journal.write([keep("a"), *gone, keep("b"), older, Forget("c", 7, "test")])
    journal.close()
    again = Journal(tmp_path / "j.db", 1)
    restored = again.restored()
    assert {one.task: one.epoch for one in restored.assigns} == {"a": 2, "b": 1}
    assert restored.assigns[0] == assign("a", 2)
    assert restored.older == (assign("a", 1),)
    assert restored.tombstones == (("c", 7),)
    assert not again.warning
    again.close()


def test_the_place_is_kept_unsynced_and_all_else_is_synced(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", 1)
    said: list[str] = []
    journal._file.set_trace_callback(said.append)
    place = Place("cell-1", CellPoint("cell-2", "ts-2", ("mqtt://h:1",)))
    journal.write([KeepPlace(place, "test")])
    journal.reserve()
    journal.write([keep("a"), KeepPlace(place, "test")])
    modes = [one.split()[-1] for one in said if one.startswith("PRAGMA") or "COMMIT" in one]
    assert modes == ["NORMAL", "COMMIT", "FULL", "COMMIT"]
    journal.close()
    again = Journal(tmp_path / "j.db", 1)
    assert again.restored().place == place
    again.close()


def test_release_and_return_within_one_turn_keep_their_order(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", 1)
    journal.write([keep("a"), Forget("a", 1, "test"), keep("a", 2)])
    restored = journal.restored()
    assert [one.epoch for one in restored.assigns] == [2]
    assert restored.tombstones == ()
    journal.close()


def test_tombstones_are_bounded_and_the_newest_stay(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", 1)
    journal.write([Forget(f"t{number}", number, "test") for number in range(TOMBSTONES_MAX + 50)])
    tombstones = journal.restored().tombstones
    assert len(tombstones) == TOMBSTONES_MAX
    assert tombstones[0] == ("t50", 50)
    journal.close()


def test_incarnations_grow_over_restarts_and_a_lost_journal(tmp_path: Path) -> None:
    last = 0
    for clock_ms in (5_000_000, 5_001_000, 1_000, 6_000_000):
        journal = Journal(tmp_path / "j.db", clock_ms)
        first, end = journal.reserve()
        assert first >= max(last, 5_000_000)
        assert end - first == INCARNATION_BLOCK
        last = journal.reserve()[1]
        journal.close()
    (tmp_path / "j.db").unlink()
    journal = Journal(tmp_path / "j.db", 6_000_000 + 8 * INCARNATION_BLOCK)
    assert journal.reserve()[0] >= last, "the clock is ahead of every block used up"
    journal.close()


@pytest.mark.parametrize(
    "junk", [b"not a database at all" * 400, b"SQLite format 3\0" + b"\xff" * 5000]
)
def test_a_damaged_journal_is_moved_aside_with_a_warning(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "j.db"
    path.write_bytes(junk)
    journal = Journal(path, 1)
    assert "damaged" in journal.warning
    assert journal.restored().assigns == ()
    assert (tmp_path / "j.db.damaged").read_bytes() == junk
    journal.write([keep("a")])
    journal.close()


def test_a_page_torn_in_the_middle_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    journal = Journal(path, 1)
    journal.write([keep(f"task-{number}") for number in range(200)])
    journal.close()
    with path.open("r+b") as file:
        file.seek(8192)
        file.write(os.urandom(4096))
    journal = Journal(path, 1)
    assert "damaged" in journal.warning
    journal.close()


def test_an_assignment_that_cannot_be_read_is_dropped_with_a_warning(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", 1)
    journal.write([keep("a"), keep("b")])
    journal._file.execute("UPDATE assignments SET body = x'c1' WHERE task = 'a'")
    assert [one.task for one in journal.restored().assigns] == ["b"]
    assert "task a" in journal.warning
    journal.close()


def test_a_full_disk_is_an_environment_failure_and_nothing_is_half_written(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "j.db", 1)
    journal.write([keep("a")])
    journal._file.execute("PRAGMA max_page_count = 6")
    with pytest.raises(EnvironmentFailure, match=r"full; .* MiB are free"):
        journal.write([keep(f"task-{number}") for number in range(500)])
    journal._file.execute("PRAGMA max_page_count = 100000")
    assert [one.task for one in journal.restored().assigns] == ["a"]
    journal.write([keep("b")])
    journal.close()


WRITER = """
import sys
sys.path[:0] = sys.argv[2:4]
from device_harness import assign
from device_agent.core.commands import Keep
from device_agent.journal import Journal
from pathlib import Path
journal = Journal(Path(sys.argv[1]), 1)
number = 0
while True:
    journal.write([Keep(assign("t", number), "c")])
    print(number, flush=True)
    number += 1
"""


def test_kill_9_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "j.db"
    writer = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(ROOT), str(Path(__file__).parent)],
        stdout=subprocess.PIPE,
        text=True,
    )
    with writer:
        assert writer.stdout is not None
        for _ in range(40):
            line = writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
        acknowledged = [int(one) for one in (line + writer.stdout.read()).split()]
    journal = Journal(path, 1)
    (kept,) = journal.restored().assigns
    assert kept.epoch >= acknowledged[-1]
    assert not journal.warning
    journal.close()


def test_the_file_is_ours_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "deep" / "j.db", 1)
    assert (tmp_path / "deep" / "j.db").stat().st_mode & 0o077 == 0
    assert (tmp_path / "deep").stat().st_mode & 0o077 == 0
    journal.close()
