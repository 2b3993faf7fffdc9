"""Clocks that jump, or stand at 1970: nothing waits for them, nothing goes back with them."""

import os
import time
from pathlib import Path

import pytest
from device_harness import NODE, SimNode, assign, chain, invoke, of

from device_agent.artifacts.blobs import BlobFolder
from device_agent.clock import around, unix_ms
from device_agent.core import events
from device_agent.journal import Journal
from protocols.messages import Result, Status
from protocols.messages.task import InstanceState

YEAR_S = 365 * 86_400


def test_a_new_journal_at_1970_begins_above_what_was_used_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Journal(tmp_path / "journal.db", unix_ms(around(tmp_path)))
    _, used = old.reserve()
    old.close()
    (tmp_path / "artifacts").mkdir()
    os.utime(tmp_path / "artifacts", (time.time() + 10, time.time() + 10))
    for one in tmp_path.glob("journal.db*"):
        one.unlink()
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000_000)
    assert time.time_ns() // 1_000_000 == 5000
    new = Journal(tmp_path / "journal.db", unix_ms(around(tmp_path)))
    first, _ = new.reserve()
    new.close()
    assert first > used - 1000


def test_without_a_witness_it_is_no_earlier_than_the_installation(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(time, "time_ns", lambda: 0)
    assert unix_ms([tmp_path / "gone"]) > 1_600_000_000_000
    assert around(tmp_path / "gone") == []


def test_an_existing_journal_goes_on_counting_whatever_the_clock_says(tmp_path: Path) -> None:
    first = Journal(tmp_path / "j.db", 2_000_000_000_000)
    _, used = first.reserve()
    first.close()
    again = Journal(tmp_path / "j.db", 1)
    assert again.reserve()[0] == used
    again.close()


@pytest.mark.parametrize("jump_s", [-50 * YEAR_S, 50 * YEAR_S])
def test_the_blob_folder_keeps_its_bound_over_a_jump_of_the_clock(
    tmp_path: Path, jump_s: int
) -> None:
    blobs = BlobFolder(tmp_path / "blobs", 1000, 600.0)
    now_s = time.time()
    for number in range(10):
        path = blobs.folder / f"{number:064x}"
        path.write_bytes(bytes(500))
        os.utime(path, (now_s - 60, now_s - 60 + number))
    blobs.trim(now_s + jump_s)
    assert sum(one.size_bytes for one in blobs.entries()) <= 1000


def test_leases_of_the_core_follow_its_own_clock_alone() -> None:
    """The core is told a monotonic time; nothing in it asks for another."""
    node = SimNode(events.Restored((assign("t", 3),)))
    assert node.state() is InstanceState.READY, "without any scheduler"
    node.call(invoke("r1", chain(("t", NODE, 3)), budget_ms=500))
    assert of(Result, node.after(500))[0].failure is not None


def test_statuses_and_results_of_an_absent_controller_are_told_later() -> None:
    node = SimNode(events.Restored((assign("t", 3),)))
    node.after(3_600_000)
    assert not of(Status, node.said), "nobody listens"
    node.call(invoke("r1", chain(("t", NODE, 3)), budget_ms=60_000))
    node.tell(events.Disconnected("the controller is away"))
    assert not of(Result, node.answer())
    node.join()
    told = of(Status, node.said)[-1]
    assert (told.task, told.epoch, told.state) == ("t", 3, InstanceState.READY)
    assert of(Result, node.said)[-1].request == "r1"
