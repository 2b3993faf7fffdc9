"""A log of calls that cannot grow: it is told once, in words, and told when it grows again."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_harness import SimNode, of

from device_agent.core import commands, events
from device_agent.logkeeper import LogKeeper
from protocols.messages import Birth
from protocols.messages.profile import AuditQuery

SIZE = 64 * 1024
RECORDS = 4


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own that is soon full."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount, unmount = shutil.which("mount"), shutil.which("umount")
    if mount is None or unmount is None:
        pytest.skip("takes mount")
    options = ("-t", "tmpfs", "-o", f"size={SIZE}", "none", folder)
    if subprocess.run([mount, *options], capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run([unmount, "-l", folder], check=True)


def batch() -> commands.WriteLog:
    return commands.WriteLog(os.urandom(1024), RECORDS)


async def test_a_full_disk_is_told_in_one_sentence_and_its_end_too(small: Path) -> None:
    keeper = LogKeeper(small / "calls")
    written = keeper.write(batch())
    assert (written.logged, written.problem) == (RECORDS, "")
    filler = small / "filler"
    room = os.statvfs(small)
    filler.write_bytes(bytes(room.f_bavail * room.f_frsize))
    failed = [keeper.write(batch()) for _ in range(8)]
    full = next(one for one in failed if one.problem)
    assert full.problem == (
        f"calls are not logged in {small / 'calls'}: No space left on device; make room or mend "
        "the disk"
    )
    assert failed[-1] == full, "what is logged does not grow"
    page = await keeper.read(AuditQuery("1", "t"))
    assert full.problem in page.problem
    filler.unlink()
    again = keeper.write(batch())
    assert again.problem == ""
    assert again.logged > full.logged
    keeper.close()


def test_a_folder_that_is_none_is_told_too(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    keeper = LogKeeper(tmp_path / "file" / "calls")
    assert "Not a directory" in keeper.write(batch()).problem


def test_a_node_says_so_with_its_birth_and_takes_it_back() -> None:
    node = SimNode()
    node.connect()
    node.welcome()
    assert not of(Birth, node.tell(events.LogWritten(4, b"h")))
    node.after(60_000)
    [birth] = of(Birth, node.tell(events.LogWritten(4, b"h", "calls are not logged: it is full")))
    assert birth.warnings == ("calls are not logged: it is full",)
    node.welcome()
    node.after(60_000)
    assert not of(Birth, node.tell(events.LogWritten(4, b"h", "calls are not logged: it is full")))
    [birth] = of(Birth, node.tell(events.LogWritten(8, b"i")))
    assert birth.warnings == ()
