"""The log of calls on the disk: chained, bounded, checked, and read by a process of its own."""

import errno
import os
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent import calllog
from device_agent.calllog import CallLog, segments
from device_agent.core.commands import WriteLog
from device_agent.logkeeper import LogKeeper
from device_agent.logread import check, page
from protocols.messages import AuditQuery

SUBJECT = ["t", "s", 1, "sha256:" + "a" * 64, ""]
OFFSET_MS = 1_000_000


def batch(first: int, count: int, **changes: Any) -> bytes:
    rows = [
        [0, at, f"r{at}", "default", changes.get("user", "app"), "", changes.get("verdict", "ok"),
         "", 1, 2, 3, 4, 5, ""]
        for at in range(first, first + count)
    ]  # fmt: skip
    return msgspec.msgpack.encode([[SUBJECT], rows])


def filled(folder: Path, batches: int, each: int = 3) -> CallLog:
    log = CallLog(folder)
    for at in range(batches):
        assert log.write(batch(at * each, each), each, OFFSET_MS)
    return log


def numbers(folder: Path, **asked: Any) -> list[int]:
    body, _, problem = page(folder, AuditQuery("q", **asked))
    assert not problem
    return [one[0] for one in msgspec.msgpack.decode(body)]


def test_records_are_read_newest_first(tmp_path: Path) -> None:
    filled(tmp_path, 4).close()
    assert numbers(tmp_path) == list(range(11, -1, -1))
    assert numbers(tmp_path, limit=2) == [11, 10]
    assert numbers(tmp_path, before=3) == [2, 1, 0]
    assert numbers(tmp_path, since_unix_ms=OFFSET_MS + 9) == [11, 10, 9]
    assert numbers(tmp_path, task="other") == numbers(tmp_path, verdict="shed") == []


def test_a_page_says_where_to_read_on(tmp_path: Path) -> None:
    filled(tmp_path, 4).close()
    body, following, _ = page(tmp_path, AuditQuery("q", limit=5))
    assert len(msgspec.msgpack.decode(body)) == 5
    assert numbers(tmp_path, before=following) == [6, 5, 4, 3, 2, 1, 0]


def test_it_goes_on_after_a_restart_and_cuts_what_is_torn(tmp_path: Path) -> None:
    log = filled(tmp_path, 2)
    log.close()
    [path] = segments(tmp_path)
    with path.open("ab") as file:
        file.write(b"tcl1 and then the power went")
    again = CallLog(tmp_path)
    assert (again.logged, again.head) == (log.logged, log.head)
    again.write(batch(6, 1), 1, OFFSET_MS)
    again.close()
    assert numbers(tmp_path) == [6, 5, 4, 3, 2, 1, 0]


def test_segments_are_bounded_and_still_chained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calllog, "SEGMENT_BYTES", 600)
    log = filled(tmp_path, 60)
    log.close()
    found = segments(tmp_path)
    assert len(found) == calllog.SEGMENTS
    assert sum(one.stat().st_size for one in found) <= calllog.SEGMENTS * 1200
    kept = numbers(tmp_path, limit=1000, heads={"180": log.head})
    assert kept == list(range(179, int(found[0].stem) - 1, -1))


def test_a_disk_that_refuses_costs_records_that_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = filled(tmp_path, 1)

    def full(_handle: int, _data: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as context:
        context.setattr(os, "write", full)
        assert not log.write(batch(3, 5), 5, OFFSET_MS)
    assert (log.logged, log.dropped) == (3, 5)
    assert log.write(batch(3, 1), 1, OFFSET_MS)
    log.close()
    found, wrong = check(tmp_path, {})
    assert ([one.dropped for one in found], wrong) == ([0, 5], "")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_changed_byte_is_found(tmp_path: Path, data: st.DataObject) -> None:
    folder = tmp_path / "log"
    folder.mkdir(exist_ok=True)
    for one in segments(folder):
        one.unlink()
    log = filled(folder, 4)
    log.close()
    [path] = segments(folder)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(0, len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    _, _, problem = page(folder, AuditQuery("q", heads={"12": log.head}))
    assert problem


def test_a_log_that_was_rewritten_from_the_beginning_does_not_lead_to_its_head(
    tmp_path: Path,
) -> None:
    honest = filled(tmp_path / "a", 3)
    honest.close()
    forged = CallLog(tmp_path / "b")
    for at in range(3):
        forged.write(batch(at * 3, 3, verdict="shed" if at == 1 else "ok"), 3, OFFSET_MS)
    forged.close()
    heads = {str(honest.logged): honest.head}
    assert page(tmp_path / "a", AuditQuery("q", heads=heads))[2] == ""
    assert "not those that were logged" in page(tmp_path / "b", AuditQuery("q", heads=heads))[2]
    assert page(tmp_path / "b", AuditQuery("q"))[2] == "", "by itself it looks whole"
    assert "there were 99 records" in page(tmp_path / "a", AuditQuery("q", heads={"99": b"x"}))[2]


def test_a_missing_segment_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calllog, "SEGMENT_BYTES", 400)
    filled(tmp_path, 8).close()
    segments(tmp_path)[1].unlink()
    assert "does not follow" in page(tmp_path, AuditQuery("q"))[2]


async def test_the_keeper_writes_here_and_reads_in_a_child(tmp_path: Path) -> None:
    keeper = LogKeeper(tmp_path / "calls")
    written = keeper.write(WriteLog(batch(0, 3), 3))
    assert written is not None
    query = AuditQuery("q7", heads={"3": written.head})
    answer = await keeper.read(query)
    keeper.close()
    assert (answer.number, answer.logged, answer.head) == ("q7", 3, written.head)
    assert answer.problem == ""
    assert [one[0] for one in msgspec.msgpack.decode(answer.records)] == [2, 1, 0]
    assert (tmp_path / "calls").stat().st_mode & 0o777 == 0o700


def test_a_folder_that_cannot_be_made_costs_records_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "calls").write_text("a file")
    keeper = LogKeeper(tmp_path / "calls")
    failed = keeper.write(WriteLog(batch(0, 3), 3))
    assert (failed.logged, "File exists" in failed.problem) == (0, True)
    (tmp_path / "calls").unlink()
    assert keeper.write(WriteLog(batch(0, 1), 1)) is not None
    keeper.close()
    found, _ = check(tmp_path / "calls", {})
    assert [one.dropped for one in found] == [3]
