"""The example's own modules, its compiled guests and reference runners."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

DRIVING = Path(__file__).resolve().parents[2] / "examples" / "driving"
# The example is no package: its files find each other as siblings.
sys.path.insert(0, str(DRIVING))
sys.path.insert(0, str(Path(__file__).parent))

from reference import Guest, Runner, load  # noqa: E402 - after the path


@pytest.fixture(scope="session")
def guest() -> Callable[[str], Guest]:
    """Compile a committed module once."""

    @cache
    def get(name: str) -> Guest:
        return Guest(DRIVING / "modules" / f"{name}.wasm")

    return get


@pytest.fixture(scope="session")
def runner() -> Callable[[Path], Runner]:
    """Load a use case once."""

    @cache
    def get(use_case: Path) -> Runner:
        return Runner(load(use_case))

    return get
