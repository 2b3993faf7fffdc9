"""What the daemon does without until it needs it."""

import json
import subprocess
import sys

import pytest

LOOK = """
import json, sys
from device_agent import begin
begin.leave_out()
import device_agent.run
import protocols.transport.tls
from protocols.messages import LoadReport
import msgspec
said = msgspec.json.encode(LoadReport(1, 2.5))
assert msgspec.json.decode(said, type=LoadReport) == LoadReport(1, 2.5)
loaded = sorted(sys.modules)
# What moving nodes load later bears what is left out.
from protocols import cell_events
assert cell_events.median([3.0, 1.0, 2.0]) == 2.0
print(json.dumps(loaded))
"""


@pytest.fixture(scope="module")
def loaded() -> set[str]:
    looked = subprocess.run(
        [sys.executable, "-c", LOOK], check=True, capture_output=True, text=True, timeout=60
    )
    return set(json.loads(looked.stdout))


@pytest.mark.parametrize("name", ["_decimal", "zlib"])
def test_an_idle_daemon_does_not_hold(loaded: set[str], name: str) -> None:
    assert "device_agent.core.core" in loaded
    assert name not in loaded
