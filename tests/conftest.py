"""Tests that run whole cells of real processes take turns: side by side they starve each other."""

from pathlib import Path

import pytest

CELLS = {"demo", "deployments", "loop"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if item.path.is_relative_to(here) and item.path.relative_to(here).parts[0] in CELLS:
            item.add_marker(pytest.mark.xdist_group("cells"))
