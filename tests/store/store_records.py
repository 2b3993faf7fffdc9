"""Records for the tests of the store; run as a program it appends until somebody kills it."""

import asyncio
import sys
from pathlib import Path

from controller.decider import Record
from controller.records import ARTIFACT, ArtifactRecord
from controller.store import SqliteStore


def artifact(number: int, size_bytes: int = 1) -> Record:
    digest = f"sha256:{number:064x}"
    return Record(ARTIFACT, digest, ArtifactRecord(digest, size_bytes, "x" * 40), f"cause-{number}")


def gone(number: int) -> Record:
    return Record(ARTIFACT, f"sha256:{number:064x}", None, "deleted")


async def _write(store: SqliteStore, epoch: int, number: int) -> None:
    await store.append(epoch, None, [artifact(number, 7)])
    sys.stdout.write(f"{number}\n")
    sys.stdout.flush()


async def main(path: Path, first: int) -> None:
    store = await SqliteStore.open(path)
    epoch = await store.acquire("writer")
    while True:
        async with asyncio.TaskGroup() as group:
            for number in range(first, first + 8):
                group.create_task(_write(store, epoch, number))
        first += 8


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
