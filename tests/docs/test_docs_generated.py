"""Pages that are generated from the code are never stale."""

import runpy
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.mark.parametrize("tool", ["lifecycle_diagrams.py", "protocol_tables.py"])
def test_the_generated_page_is_fresh(tool: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [tool, "--check"])
    assert runpy.run_path(str(TOOLS / tool))["main"]() == 0
