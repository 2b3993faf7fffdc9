import asyncio
import random
import sqlite3
import sys
from pathlib import Path

import pytest
from store_records import artifact

from controller.store import SqliteStore
from controller.store.schema import APPLICATION_ID, MIGRATIONS
from protocols.errors import EnvironmentFailure, UserError

PROGRAM = Path(__file__).parent / "store_records.py"


async def test_kill_9_of_the_writer_loses_nothing_that_was_acknowledged(path: Path) -> None:
    chance = random.Random(7)
    acknowledged: set[int] = set()
    for turn in range(5):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            PROGRAM,
            str(path),
            str(turn * 1_000_000),
            stdout=asyncio.subprocess.PIPE,
        )
        assert process.stdout is not None
        async with asyncio.timeout(60):
            for _ in range(chance.randint(1, 300)):
                acknowledged.add(int(await process.stdout.readline()))
            process.kill()
            rest = await process.stdout.read()
            await process.wait()
        # The last line may be cut in the middle; whole lines were acknowledged.
        acknowledged |= {int(line) for line in rest.splitlines(keepends=True) if b"\n" in line}
        store = await SqliteStore.open(path)
        kept = {int(one.key.removeprefix("sha256:"), 16): one for one in await store.load()}
        assert acknowledged <= kept.keys()
        assert all(one.value.size_bytes == 7 for one in kept.values())
        assert store.seq == len(kept)
        await store.close()


async def refusal(path: Path) -> Exception:
    with pytest.raises((UserError, EnvironmentFailure)) as caught:
        await SqliteStore.open(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return caught.value


async def test_a_file_that_is_no_database_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(b"a shopping list, certainly no database\n" * 100)
    before = path.read_bytes()
    error = await refusal(path)
    assert isinstance(error, UserError)
    assert "is not a tona store: name another folder" in str(error)
    assert path.read_bytes() == before


async def test_a_database_of_someone_else_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE notes (text)")
    other.commit()
    other.close()
    before = path.read_bytes()
    assert "is not a tona store" in str(await refusal(path))
    assert path.read_bytes() == before


async def test_a_newer_schema_is_left_alone(path: Path, store: SqliteStore) -> None:
    await store.close()
    newer = sqlite3.connect(path)
    newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    error = await refusal(path)
    assert isinstance(error, UserError)
    assert "was written by a newer version (schema 2, this one knows 1)" in str(error)


@pytest.mark.parametrize("damage", ["short", "zeroed"])
async def test_a_torn_file_is_one_sentence(path: Path, damage: str) -> None:
    store = await SqliteStore.open(path)
    epoch = await store.acquire("a")
    await store.append(epoch, 0, [artifact(number) for number in range(500)])
    await store.close()
    whole = path.read_bytes()
    half = len(whole) // 2 // 4096 * 4096
    path.write_bytes(whole[:half] if damage == "short" else whole[:half].ljust(len(whole), b"\0"))
    error = await refusal(path)
    assert isinstance(error, EnvironmentFailure)
    assert "is damaged: restore a backup" in str(error)


async def test_a_record_of_another_version_is_one_sentence(path: Path, store: SqliteStore) -> None:
    await store.close()
    other = sqlite3.connect(path)
    other.execute("INSERT INTO current VALUES ('comet', 'halley', x'80', 1)")
    other.commit()
    store = await SqliteStore.open(path)
    with pytest.raises(EnvironmentFailure, match="holds comet 'halley', a kind"):
        await store.load()
    other.execute("UPDATE current SET kind = 'task'")
    other.commit()
    other.close()
    with pytest.raises(EnvironmentFailure, match="holds task 'halley' in a form"):
        await store.load()
    await store.close()


async def test_a_place_that_cannot_hold_a_file_is_one_sentence(tmp_path: Path) -> None:
    assert "may write" in str(await refusal(Path("/proc/tona/state.db")))
    assert "may write" in str(await refusal(tmp_path))


async def test_what_a_crash_leaves_at_the_very_first_start_is_no_damage(path: Path) -> None:
    path.parent.mkdir()
    path.touch()
    store = await SqliteStore.open(path)
    assert await store.load() == []
    await store.close()
    file = sqlite3.connect(path)
    assert file.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert file.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    file.close()


async def test_a_lock_that_another_process_holds_is_one_sentence(
    path: Path, store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    await store._do(lambda database: database.connection.execute("PRAGMA busy_timeout = 1"))
    epoch = await store.acquire("a")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(EnvironmentFailure, match="is held by another process"):
        await store.append(epoch, 0, [])
    monkeypatch.setattr("controller.store.database.BUSY_TIMEOUT_S", 0.001)
    assert "is held by another process" in str(await refusal(path))
    other.execute("ROLLBACK")
    other.close()
    assert await store.append(epoch, 0, []) == 0
