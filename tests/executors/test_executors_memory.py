"""What a task remembers: whole commits, a torn end costs the last one alone, the log is bounded."""

import os
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.executors.process import PROGRAMS

sys.path.append(str(PROGRAMS))

from memory import SLACK_BYTES, Changes, Memory, MemoryFull, read_blocks

LIMIT_BYTES = 4000
KEYS = st.binary(min_size=1, max_size=4)
CHANGES = st.dictionaries(KEYS, st.none() | st.binary(max_size=60), min_size=1, max_size=6)


def entries(memory: Memory) -> dict[bytes, bytes]:
    return {
        key: value
        for changes, _ in read_blocks(memory.entries())
        for key, value in changes.items()
        if value is not None
    }


@given(commits=st.lists(CHANGES, max_size=12), torn=st.integers(0, 200))
def test_what_is_read_is_what_was_committed_up_to_a_torn_end(
    tmp_path_factory: pytest.TempPathFactory, commits: list[Changes], torn: int
) -> None:
    path = tmp_path_factory.mktemp("memory") / "m"
    memory = Memory(str(path), LIMIT_BYTES)
    states: list[dict[bytes, bytes]] = [{}]
    ends = [0]
    for changes in commits:
        memory.commit(changes)
        after = {**states[-1], **changes}
        states.append({key: value for key, value in after.items() if value is not None})
        ends.append(path.stat().st_size)
        assert entries(memory) == states[-1]
        assert memory.size() == sum(len(key) + len(value) for key, value in states[-1].items())
    memory.close()
    size = max(0, path.stat().st_size - torn)
    os.truncate(path, size)
    whole = max(at for at, end in enumerate(ends) if end <= size)
    again = Memory(str(path), LIMIT_BYTES)
    assert entries(again) == states[whole]
    again.commit({b"after": b"all"})
    again.close()
    with closing(Memory(str(path), LIMIT_BYTES)) as last:
        assert entries(last) == {**states[whole], b"after": b"all"}


@given(garbage=st.binary(max_size=300))
def test_garbage_is_no_memory(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    path = tmp_path_factory.mktemp("memory") / "m"
    path.write_bytes(garbage)
    memory = Memory(str(path), LIMIT_BYTES)
    memory.commit({b"k": b"v"})
    assert memory.get(b"k") == b"v"
    memory.close()


def test_a_commit_beyond_the_limit_changes_nothing(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "m"), 10)
    memory.commit({b"a": b"12345"})
    with pytest.raises(MemoryFull, match="12 bytes"):
        memory.commit({b"b": b"12345"})
    assert entries(memory) == {b"a": b"12345"}
    memory.commit({b"a": None, b"b": b"12345"})
    assert entries(memory) == {b"b": b"12345"}
    memory.close()


def test_the_log_is_written_anew_before_it_is_mostly_old(tmp_path: Path) -> None:
    path = tmp_path / "m"
    memory = Memory(str(path), LIMIT_BYTES)
    largest = 0
    for at in range(500):
        memory.commit({b"n": b"%1000d" % at})
        largest = max(largest, path.stat().st_size)
    assert SLACK_BYTES < largest < SLACK_BYTES + 2 * LIMIT_BYTES
    assert not list(tmp_path.glob("*.part"))
    memory.close()
    with closing(Memory(str(path), LIMIT_BYTES)) as again:
        assert again.get(b"n") == b"%1000d" % 499


def test_a_memory_that_is_being_replaced_takes_no_commit(tmp_path: Path) -> None:
    memory = Memory(str(tmp_path / "m"), LIMIT_BYTES)
    memory.close()
    with pytest.raises(OSError, match="replaced"):
        memory.commit({b"a": b"b"})
