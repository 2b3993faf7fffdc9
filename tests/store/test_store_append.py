import asyncio
import sqlite3
from pathlib import Path

import pytest
from store_records import artifact, gone

from controller.decider import Record
from controller.records import ARTIFACT, CHECKPOINT, ArtifactRecord, CheckpointRecord
from controller.store import Change, Expired, Fenced, OutOfOrder, SqliteStore
from protocols.errors import EnvironmentFailure, TonaBug
from protocols.messages import MemoryState


async def test_what_is_appended_is_loaded_after_a_restart(path: Path) -> None:
    store = await SqliteStore.open(path)
    epoch = await store.acquire("a")
    assert await store.append(epoch, 0, [artifact(1), artifact(2), artifact(1, 9)]) == 3
    assert await store.append(epoch, 3, [gone(2), artifact(3)]) == 5
    await store.close()
    store = await SqliteStore.open(path)
    loaded = await store.load()
    assert [(one.key[-1], one.value.size_bytes) for one in loaded] == [("1", 9), ("3", 1)]
    assert {one.cause for one in loaded} == {"restore"}
    assert store.seq == 5
    await store.close()


async def test_the_disk_is_asked_for_every_commit_and_nobody_else_may_read(
    store: SqliteStore, path: Path
) -> None:
    pragma = await store._do(
        lambda database: [
            database.connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous")
        ]
    )
    assert pragma == ["wal", 2]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_an_empty_append_asks_whether_we_still_own_the_store(store: SqliteStore) -> None:
    epoch = await store.acquire("a")
    assert await store.append(epoch, 0, []) == 0
    await store.acquire("b")
    with pytest.raises(Fenced):
        await store.append(epoch, 0, [])


async def test_a_second_process_fences_the_first_in_either_direction(path: Path) -> None:
    first, second = await SqliteStore.open(path), await SqliteStore.open(path)
    old = await first.acquire("host-1")
    await first.append(old, 0, [artifact(1)])
    new = await second.acquire("host-2")
    assert new > old
    assert second.seq == 1
    with pytest.raises(Fenced, match="belongs to 'host-2' since owner epoch 2"):
        await first.append(old, 1, [artifact(2)])
    assert await second.append(new, 1, [artifact(3)]) == 2
    assert [one.key[-1] for one in await second.load()] == ["1", "3"]
    assert await first.acquire("host-1") > new
    with pytest.raises(Fenced):
        await second.append(new, 2, [artifact(4)])
    await first.close()
    await second.close()


async def test_an_append_on_an_old_state_is_refused_and_so_is_what_builds_on_it(
    store: SqliteStore,
) -> None:
    epoch = await store.acquire("a")
    answers = await asyncio.gather(
        store.append(epoch, 0, [artifact(1)]),
        store.append(epoch, 7, [artifact(2)]),
        store.append(epoch, 8, [artifact(3)]),
        store.append(epoch, 1, [artifact(4)]),
        return_exceptions=True,
    )
    assert isinstance(answers[1], OutOfOrder)
    assert answers[1].seq == 1
    assert isinstance(answers[2], OutOfOrder)
    assert (answers[0], answers[3]) == (1, 2)
    assert [one.key[-1] for one in await store.load()] == ["1", "4"]


async def test_appends_that_wait_together_share_one_commit(path: Path) -> None:
    store = await SqliteStore.open(path)
    epoch = await store.acquire("a")
    commits = []
    await store._do(lambda database: database.connection.set_trace_callback(commits.append))
    answers = await asyncio.gather(
        *(store.append(epoch, None, [artifact(number)]) for number in range(500))
    )
    await store._do(lambda database: database.connection.set_trace_callback(None))
    assert answers == list(range(1, 501))
    assert 1 <= commits.count("COMMIT") <= 50
    await store.close()


async def test_a_full_disk_loses_only_what_was_refused_and_passes(store: SqliteStore) -> None:
    epoch = await store.acquire("a")
    await store.append(epoch, 0, [artifact(1)])

    async def room(pages: int) -> None:
        statement = f"PRAGMA max_page_count = {pages}"
        await store._do(lambda database: database.connection.execute(statement).fetchone())

    await room(1)
    big = [artifact(number) for number in range(2, 500)]
    with pytest.raises(EnvironmentFailure, match="the disk is full: free space"):
        await store.append(epoch, 1, big)
    await room(100_000)
    assert await store.append(epoch, 1, [artifact(2)]) == 2
    assert len(await store.load()) == 2


async def test_a_write_protected_file_is_one_sentence(store: SqliteStore) -> None:
    epoch = await store.acquire("a")
    await store._do(lambda database: database.connection.execute("PRAGMA query_only = 1"))
    with pytest.raises(Exception, match="may not be written: give this user write access"):
        await store.append(epoch, 0, [artifact(1)])


async def test_a_record_of_a_wrong_type_or_size_is_a_bug_of_ours(store: SqliteStore) -> None:
    epoch = await store.acquire("a")
    with pytest.raises(TonaBug, match="of kind 'usecase' cannot be a ArtifactRecord"):
        await store.append(epoch, 0, [Record("usecase", "x", ArtifactRecord("d", 1), "c")])
    huge = ArtifactRecord("d", 1, "x" * (5 << 20))
    with pytest.raises(TonaBug, match="the bound is"):
        await store.append(epoch, 0, [Record(ARTIFACT, "x", huge, "c")])
    assert await store.append(epoch, 0, []) == 0


async def test_a_closed_store_says_so_and_closes_twice(path: Path) -> None:
    store = await SqliteStore.open(path)
    epoch = await store.acquire("a")
    waiting = asyncio.gather(*(store.append(epoch, None, [artifact(n)]) for n in range(20)))
    await asyncio.sleep(0)
    await store.close()
    await store.close()
    assert await waiting == list(range(1, 21))
    with pytest.raises(EnvironmentFailure, match="is closed"):
        await store.append(epoch, 20, [])


async def test_a_watch_continues_exactly_where_it_left(store: SqliteStore) -> None:
    epoch = await store.acquire("a")
    await store.append(epoch, 0, [artifact(1), artifact(2), gone(1)])
    seen: list[Change] = []

    async def follow() -> None:
        async for change in store.watch(1):
            seen.append(change)
            if change.seq == 5:
                return

    async with asyncio.timeout(60), asyncio.TaskGroup() as group:
        group.create_task(follow())
        await store.append(epoch, 3, [artifact(3)])
        await store.append(epoch, 4, [artifact(4)])
    assert [one.seq for one in seen] == [2, 3, 4, 5]
    assert seen[1].record == gone(1)
    assert seen[0].record == artifact(2)
    assert {one.owner_epoch for one in seen} == {epoch}
    assert seen[0].at_unix_ms > 1_600_000_000_000


async def test_a_watch_ends_when_the_store_closes(path: Path) -> None:
    store = await SqliteStore.open(path)

    async def follow() -> list[Change]:
        return [change async for change in store.watch(0)]

    task = asyncio.create_task(follow())
    await store.load()
    await store.close()
    async with asyncio.timeout(60):
        assert await task == []


async def test_the_log_is_bounded_and_an_older_revision_is_expired(
    store: SqliteStore, path: Path
) -> None:
    epoch = await store.acquire("a")
    for number in range(25):
        await store.append(epoch, number, [artifact(number)])
    assert [one.seq for one in await store.changes(15)] == list(range(16, 26))
    for expired in (14, 0, 26):
        with pytest.raises(Expired, match=f"keeps changes 16 to 25, not those after {expired}"):
            await store.changes(expired)
    assert await store.changes(25) == []
    reader = sqlite3.connect(path)
    assert reader.execute("SELECT count(*) FROM log").fetchone() == (10,)
    reader.close()
    assert len(await store.load()) == 25


async def test_bulk_that_nobody_watches_is_loaded_and_not_in_the_log(path: Path) -> None:
    def checkpoint(number: int) -> Record:
        state = MemoryState("t", number, "sha256:" + "a" * 64, 4000, bytes(4000))
        return Record(CHECKPOINT, "t", CheckpointRecord(state), "test")

    store = await SqliteStore.open(path)
    epoch = await store.acquire("a")
    await store.append(epoch, 0, [checkpoint(1), artifact(1), checkpoint(2), artifact(2)])
    changes = await store.changes(0, 2)
    assert [(one.seq, one.record.kind) for one in changes] == [(2, ARTIFACT), (4, ARTIFACT)]
    log_bytes = await store._do(
        lambda database: database.connection.execute(
            "SELECT sum(length(body)) FROM log"
        ).fetchone()[0]
    )
    assert log_bytes < 1000
    loaded = {one.kind: one.value for one in await store.load()}
    assert loaded[CHECKPOINT] == checkpoint(2).value
    await store.append(epoch, 4, [Record(CHECKPOINT, "t", None, "test")])
    assert CHECKPOINT not in {one.kind for one in await store.load()}
    await store.close()
