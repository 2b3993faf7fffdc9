"""An authority on a clock that stands still."""

from datetime import UTC, datetime
from pathlib import Path

import pytest

from controller.trust.authority import Authority


class Clock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(tmp_path: Path, clock: Clock) -> Authority:
    return Authority.init(tmp_path / "ca", "fleet", clock)
