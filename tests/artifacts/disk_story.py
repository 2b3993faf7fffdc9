"""A disk that runs full, told from inside a mount namespace of its own.

Run by `test_artifacts_disk.py` as `unshare --mount python disk_story.py FOLDER`. Prints one line
for each point that held; any other end is a failure.
"""

import asyncio
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from artifact_store import Store
from artifact_trust import Cell

from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.artifacts.fetch import Fetcher
from device_agent.artifacts.shelf import DISK_RESERVE_BYTES
from device_agent.executors.door import ExecutorFailure
from protocols.manifest import ArtifactRef

MOUNT = shutil.which("mount") or ""
DISK_BYTES = DISK_RESERVE_BYTES + (12 << 20)


def held(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


async def failure(fetcher: Fetcher, ref: ArtifactRef, store: Store) -> str:
    with pytest.raises(ExecutorFailure) as caught:
        await fetcher.fetch_artifact(ref, [store.url])
    assert caught.value.failed.retryable
    return caught.value.failed.text


async def tell(folder: Path, store: Store) -> None:
    disk = folder / "disk"
    cell = Cell(folder / "cell", store)
    (disk / "trust").mkdir(mode=0o700)
    (disk / "trust" / "bootstrap.json").write_bytes(cell.repository.root())
    cache = ArtifactCache(disk / "artifacts", 1 << 30, now_s=0)
    blobs = BlobFolder(folder / "blobs", 1 << 20, max_age_s=60)
    fetcher = Fetcher(cache, blobs, trust=disk / "trust")
    try:
        old, idle, new = (cell.sign(os.urandom(4 << 20)) for _ in range(3))
        for one in (idle, old):
            await fetcher.fetch_artifact(one, [store.url])
        cache.pin(old.digest)
        await fetcher.fetch_artifact(new, [store.url])
        assert not cache.has(idle.digest, idle.size_bytes)
        held("what nobody uses made room for the new version")
        cache.drop(new.digest)
        filler = disk / "filler"
        # In steps until nothing fits: the reserve too is gone.
        with filler.open("wb", buffering=0) as file:
            try:
                while file.write(bytes(1 << 16)):
                    pass
            except OSError:
                held("the disk is full")
        fresh = cell.sign(os.urandom(4 << 20))
        told = await failure(fetcher, fresh, store)
        assert "do not fit on the disk of" in told, told
        assert "free space there" in told, told
        held("a full disk is told before a byte is fetched")
        # Room for the check beforehand, gone while the bytes come.
        cache._free_bytes = lambda: 1 << 30  # type: ignore[method-assign]
        told = await failure(fetcher, fresh, store)
        assert "No space left on device" in told, told
        assert not cache.part(fresh.digest).exists()
        held("a disk that fills up meanwhile is told, and nothing half is left")
        path = await fetcher.fetch_artifact(old, [store.url])
        assert path.stat().st_size == old.size_bytes
        held("the old version is there")
        filler.unlink()
        await fetcher.fetch_artifact(fresh, [store.url])
        held("with room again the new one comes")
    finally:
        await fetcher.close()


def main(folder: Path) -> None:
    disk = folder / "disk"
    disk.mkdir()
    options = f"size={DISK_BYTES},mode=0700"
    subprocess.run([MOUNT, "-t", "tmpfs", "-o", options, "none", disk], check=True)
    store = Store()
    thread = threading.Thread(target=store.serve_forever, args=(0.01,))
    thread.start()
    try:
        asyncio.run(tell(folder, store))
    finally:
        store.shutdown()
        thread.join()
        store.server_close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
