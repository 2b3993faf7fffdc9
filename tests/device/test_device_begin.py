"""What the daemon does without until it needs it."""

import json
import signal
import subprocess
import sys
from pathlib import Path

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


def told(program: list[str], number: signal.Signals, library: bytes) -> tuple[int, bytes]:
    """Tell a program to end once it has loaded a library; return how it ended, and what it said."""
    with subprocess.Popen(
        [sys.executable, "-m", *program], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    ) as process:
        try:
            while library not in Path(f"/proc/{process.pid}/maps").read_bytes():
                assert process.poll() is None
            process.send_signal(number)
            _, said = process.communicate()
        finally:
            process.kill()
    return process.returncode, said


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("program", [["device_agent"], ["tona", "agent"]])
def test_one_that_is_told_while_it_imports_ends_in_order(
    tmp_path: Path, program: list[str], number: signal.Signals
) -> None:
    command = [*program, "--node=n1", f"--data={tmp_path}"]
    code, said = told(command, number, b"msgspec")
    assert code == 0
    assert b"Traceback" not in said
