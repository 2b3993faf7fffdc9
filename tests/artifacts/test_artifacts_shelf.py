"""What stays on the node and what goes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.artifacts.blobs import FRESH_S, BlobFolder, blob_path, sweep
from device_agent.artifacts.cache import PART_MAX_AGE_S, ArtifactCache
from device_agent.artifacts.shelf import Entry, Shelf, hex_of, to_evict
from protocols.errors import EnvironmentFailure

A, B, C = (f"sha256:{letter * 64}" for letter in "abc")


def put(shelf: Shelf, digest: str, size: int, used_s: float) -> None:
    path = shelf.path(digest)
    path.write_bytes(bytes(size))
    os.utime(path, (used_s, used_s))


@pytest.fixture
def shelf(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "shelf", 100)


def test_the_least_lately_used_goes_first(shelf: Shelf) -> None:
    for digest, used_s in ((A, 30), (B, 10), (C, 20)):
        put(shelf, digest, 30, used_s)
    shelf.make_room(40)
    assert [shelf.has(digest, 30) for digest in (A, B, C)] == [True, False, True]


def test_what_is_in_use_stays_until_its_last_pin_goes(shelf: Shelf) -> None:
    put(shelf, A, 60, 10)
    put(shelf, B, 30, 20)
    shelf.pin(A)
    shelf.pin(A)
    shelf.unpin(A)
    shelf.make_room(40)
    assert (shelf.has(A, 60), shelf.has(B, 30)) == (True, False)
    with pytest.raises(EnvironmentFailure, match="60 of its 100 bytes are in use"):
        shelf.make_room(50)
    shelf.unpin(A)
    shelf.unpin(A)
    shelf.make_room(50)
    assert not shelf.has(A, 60)


def test_a_use_makes_content_young(shelf: Shelf) -> None:
    put(shelf, A, 50, 10)
    put(shelf, B, 50, 20)
    shelf.pin(A)
    shelf.unpin(A)
    shelf.make_room(10)
    assert (shelf.has(A, 50), shelf.has(B, 50)) == (True, False)


def test_strange_files_are_left_alone(shelf: Shelf) -> None:
    (shelf.folder / "notes.txt").write_bytes(bytes(500))
    shelf.make_room(100)
    assert (shelf.folder / "notes.txt").exists()


@pytest.mark.parametrize("digest", ["", "sha256:", "sha256:../x", "md5:" + "a" * 64, "a" * 64])
def test_what_is_no_digest_names_no_file(digest: str) -> None:
    with pytest.raises(EnvironmentFailure, match="no SHA-256"):
        hex_of(digest)


@given(
    st.lists(st.tuples(st.integers(0, 50), st.floats(0, 100)), max_size=12),
    st.sets(st.integers(0, 11)),
    st.integers(-10, 300),
)
def test_eviction_frees_enough_or_everything_it_may(
    files: list[tuple[int, float]], pins: set[int], excess: int
) -> None:
    entries = [Entry(str(index), size, used) for index, (size, used) in enumerate(files)]
    pinned = frozenset(str(index) for index in pins)
    chosen = to_evict(entries, pinned, excess)
    freed = sum(one.size_bytes for one in chosen)
    free = [one for one in entries if one.name not in pinned]
    assert not {one.name for one in chosen} & pinned
    assert freed >= excess or len(chosen) == len(free)
    # Nothing was given up that was not needed, and nothing younger than what stayed.
    if chosen:
        assert freed - chosen[-1].size_bytes < excess
        kept = [one.used_s for one in free if one not in chosen]
        assert max(one.used_s for one in chosen) <= min(kept, default=100)


def test_the_cache_outlives_a_restart_and_trusts_only_what_it_verified(tmp_path: Path) -> None:
    first = ArtifactCache(tmp_path, 100, now_s=0)
    put(first, A, 10, 5)
    first.mark_verified(A, "default")
    assert first.verified(A, 10, "default")
    second = ArtifactCache(tmp_path, 100, now_s=0)
    assert second.has(A, 10)
    assert not second.verified(A, 10, "default")
    assert not second.has(A, 11)


def test_unfinished_downloads_are_kept_to_resume_and_go_when_old(tmp_path: Path) -> None:
    cache = ArtifactCache(tmp_path, 100, now_s=0)
    for digest, used_s in ((A, 1000.0), (B, 1000.0 + PART_MAX_AGE_S)):
        cache.part(digest).write_bytes(b"half")
        os.utime(cache.part(digest), (used_s, used_s))
    ArtifactCache(tmp_path, 100, now_s=1001.0 + PART_MAX_AGE_S)
    assert (cache.part(A).exists(), cache.part(B).exists()) == (False, True)


def test_blobs_go_by_age_then_by_size_but_never_fresh_or_pinned(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path, 100, max_age_s=60)
    now_s = 1000.0
    put(blobs, A, 10, now_s - 61)
    put(blobs, B, 80, now_s - 30)
    put(blobs, C, 80, now_s - FRESH_S / 2)
    assert blobs.trim(now_s) == 90
    assert [blobs.has(one, size) for one, size in ((A, 10), (B, 80), (C, 80))] == [
        False,
        False,
        True,
    ]
    blobs.pin(C)
    assert blobs.trim(now_s + 10_000_000_000) == 0
    blobs.unpin(C)
    assert blobs.trim(now_s + 10_000_000_000) == 80


def test_what_was_made_here_stays_until_it_is_dropped(tmp_path: Path) -> None:
    blobs = BlobFolder(tmp_path, 100, max_age_s=60)
    held, left = blobs.make(bytes(90)), blobs.make(bytes(70))
    blobs.hold(held)
    put(blobs, A, 30, 5)
    for one in (held, left):
        os.utime(blobs.path(one), (7, 7))
    assert sorted(entry.size_bytes for entry in blobs.entries()) == [30, 70, 90]
    # What a dead executor has left goes like any value that nobody uses.
    assert blobs.trim(now_s=50) == 100
    assert [entry.size_bytes for entry in blobs.entries()] == [90]
    blobs.trim(now_s=1000)
    assert blobs.path(held).exists()
    blobs.drop(held)
    assert blobs.entries() == []
    assert blobs.pinned() == frozenset()
    blobs.drop(held)


def test_one_look_at_the_values_makes_room_for_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = BlobFolder(tmp_path / "blobs", 160, 60.0)
    put(folder, A, 155, 10)
    folder.make_room(5)
    assert not folder.has(A, 155), "a sixteenth is made free at once"
    looks: list[int] = []
    entries = folder.entries

    def counted() -> list[Entry]:
        looks.append(1)
        return entries()

    monkeypatch.setattr(folder, "entries", counted)
    folder.make_room(5)
    folder.make_room(5)
    assert not looks
    folder.make_room(5)
    assert looks
    put(folder, B, 100, 10)
    folder.pin(B)
    folder.make_room(55)
    with pytest.raises(EnvironmentFailure, match="100 of its 160 bytes are in use"):
        folder.make_room(65)


def test_the_blob_folder_begins_empty(tmp_path: Path) -> None:
    BlobFolder(tmp_path, 100, 60).make(b"left by a crash")
    put(BlobFolder(tmp_path, 100, 60), A, 10, 5)
    (tmp_path / ".part-77-abc-1").write_bytes(b"torn")
    assert BlobFolder(tmp_path, 100, 60).entries() == []


def test_shared_memory_is_used_only_when_it_is_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.artifacts.blobs.SHARED_MEMORY", tmp_path)
    mine = tmp_path / f"tona-{os.geteuid()}"
    fallback = tmp_path / "disk"
    assert blob_path("n1", fallback) == mine / "n1"
    mine.chmod(0o777)
    assert blob_path("n1", fallback) == fallback
    monkeypatch.setattr("device_agent.artifacts.blobs.SHARED_MEMORY", tmp_path / "absent")
    assert blob_path("n1", fallback) == fallback


HOLD = """
import sys
from pathlib import Path
from device_agent.artifacts.blobs import BlobFolder
blobs = BlobFolder(Path(sys.argv[1]), 100, 60.0)
print("held", flush=True)
sys.stdin.read()
"""


def test_what_an_agent_left_is_swept_once_it_lives_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.artifacts.blobs.SHARED_MEMORY", tmp_path)
    lives, killed = (blob_path(name, tmp_path / "disk") for name in ("n1", "n2"))
    BlobFolder(lives, 100, 60.0)
    command = [sys.executable, "-c", HOLD, str(killed)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"held\n"
        for folder in (lives, killed):
            (folder / ("a" * 64)).write_bytes(b"value")
        sweep()
        assert len(list(killed.iterdir())) == 2
        agent.kill()
    sweep()
    assert (len(list(lives.iterdir())), killed.exists()) == (2, False)


def test_a_sweep_goes_nowhere_that_is_not_ours_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.artifacts.blobs.SHARED_MEMORY", tmp_path)
    sweep()
    left = blob_path("n1", tmp_path / "disk")
    elsewhere = tmp_path / "elsewhere"
    for folder in (left, elsewhere):
        folder.mkdir()
        (folder / "file").touch()
    (left.parent / "link").symlink_to(elsewhere)
    left.parent.chmod(0o777)
    sweep()
    assert left.exists()
    left.parent.chmod(0o700)
    sweep()
    assert (left.exists(), (elsewhere / "file").exists()) == (False, True)


def test_a_folder_that_came_back_is_held_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.artifacts.blobs.SHARED_MEMORY", tmp_path)
    blobs = BlobFolder(blob_path("n1", tmp_path / "disk"), 100, 60.0)
    shutil.rmtree(blobs.folder)
    assert blobs.trim(0.0) == 0
    sweep()
    assert blobs.folder.exists()


def test_what_can_never_fit_drives_nothing_out(shelf: Shelf) -> None:
    put(shelf, A, 40, 10)
    put(shelf, B, 40, 20)
    shelf.pin(B)
    with pytest.raises(EnvironmentFailure, match="40 of its 100 bytes are in use"):
        shelf.make_room(2**53)
    assert (shelf.has(A, 40), shelf.has(B, 40)) == (True, True)
    shelf.make_room(60)
    assert (shelf.has(A, 40), shelf.has(B, 40)) == (False, True)


def test_a_folder_that_was_cleared_away_comes_back(tmp_path: Path) -> None:
    folder = BlobFolder(tmp_path / "blobs", 100, 60.0)
    put(folder, A, 10, 10)
    shutil.rmtree(folder.folder)
    assert folder.trim(20.0) == 0
    assert folder.folder.stat().st_mode & 0o777 == 0o700
    shutil.rmtree(folder.folder)
    folder.make_room(50)
    put(folder, A, 10, 10)
    assert folder.used_bytes() == 10


def test_what_the_disk_refuses_is_the_environments(shelf: Shelf) -> None:
    shelf.path(A).mkdir()
    with pytest.raises(EnvironmentFailure, match="cannot delete"):
        shelf.drop(A)
    shelf.path(A).rmdir()
    shelf.folder.rmdir()
    shelf.folder.write_text("a file")
    with pytest.raises(EnvironmentFailure, match="cannot read"):
        shelf.entries()
