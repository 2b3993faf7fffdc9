"""A store, and the fetcher under test."""

import sys
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from device_agent.artifacts.blobs import BlobFolder
from device_agent.artifacts.cache import ArtifactCache
from device_agent.artifacts.fetch import Fetcher

sys.path.insert(0, str(Path(__file__).parent))

from artifact_store import Store
from artifact_trust import Cell


@pytest.fixture
def store() -> Iterator[Store]:
    server = Store()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> ArtifactCache:
    return ArtifactCache(tmp_path / "artifacts", 4 << 20, now_s=0)


@pytest.fixture
def blobs(tmp_path: Path) -> BlobFolder:
    return BlobFolder(tmp_path / "blobs", 4 << 20, max_age_s=60)


@pytest.fixture
async def fetcher(cache: ArtifactCache, blobs: BlobFolder) -> AsyncIterator[Fetcher]:
    one = Fetcher(cache, blobs)
    yield one
    await one.close()


@pytest.fixture
def cell(tmp_path: Path, store: Store) -> Cell:
    return Cell(tmp_path / "trust-of-the-cell", store)


@pytest.fixture
def trust(tmp_path: Path, cell: Cell) -> Path:
    """The folder of what a node trusts, as its bundle has left it."""
    folder = tmp_path / "trust-of-the-node"
    folder.mkdir(mode=0o700)
    (folder / "bootstrap.json").write_bytes(cell.repository.root())
    return folder


@pytest.fixture
async def guarded(cache: ArtifactCache, blobs: BlobFolder, trust: Path) -> AsyncIterator[Fetcher]:
    one = Fetcher(cache, blobs, trust=trust)
    yield one
    await one.close()
