import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from controller.store import SqliteStore

# importlib mode puts no folder of tests on the path; the helper there is also a program.
sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "state.db"


@pytest.fixture
async def store(path: Path) -> AsyncIterator[SqliteStore]:
    one = await SqliteStore.open(path, log_length=10)
    yield one
    await one.close()
