"""The world of these tests is a module beside them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from jobs_world import World


@pytest.fixture
def world() -> World:
    return World()
