"""`tona up` beside what runs already: refused in one sentence, before anything is touched."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from controller.broker.embedded import EmbeddedBroker
from controller.broker.lease import PortLease
from device_agent.artifacts.blobs import blob_path
from protocols.errors import UserError
from protocols.folder import DataFolder
from tona.local.cell import Cell, Plan

UP = [sys.executable, "-m", "tona", "up", "--nodes=0", "--api-port=0"]
HOLD = """
import sys
from pathlib import Path
from protocols.folder import DataFolder
lock = DataFolder(Path(sys.argv[1]), "`tona up`")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("more", [(), ("--deployment", "cu-dus")])
def test_a_folder_in_use_is_refused(tona: Any, tmp_path: Path, more: tuple[str, ...]) -> None:
    lock = DataFolder(tmp_path, "`tona up`")
    ended = tona("up", "--api-port", 0, "--data", tmp_path, *more)
    lock.close()
    assert ended.code == 3
    assert ended.err == (
        f"tona: {tmp_path}: another `tona up` (process {os.getpid()}) runs in this data folder; "
        "end it, or name another folder with --data\n"
    )
    assert [one.name for one in tmp_path.iterdir()] == ["lock"]


def test_a_holder_that_was_killed_holds_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(UserError, match=f"process {holder.pid}"):
            DataFolder(tmp_path, "`tona up`")
        holder.kill()
    DataFolder(tmp_path, "`tona up`").close()


@pytest.mark.parametrize("command", ["up", "controller"])
def test_a_folder_that_cannot_be_used_is_named_with_one_code(
    tona: Any, tmp_path: Path, command: str
) -> None:
    folder = tmp_path / "file" / "data"
    folder.parent.touch()
    ended = tona(command, "--api-port", 0, "--data", folder)
    assert ended.code == 3
    assert ended.err == (
        f"tona: {folder}: cannot be used as data folder: Not a directory; "
        "name another with --data\n"
    )


@pytest.mark.parametrize("more", [(), ("--deployment", "cu-dus")])
def test_a_taken_api_port_is_named_with_one_code(
    tona: Any, tmp_path: Path, more: tuple[str, ...]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        ended = tona("up", "--api-port", port, "--nodes", 0, "--data", tmp_path, *more)
    assert ended.code == 3
    assert f"the API cannot listen on 127.0.0.1 port {port}" in ended.err


async def test_the_end_of_a_cell_leaves_nothing_of_killed_agents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.artifacts.blobs.SHARED_MEMORY", tmp_path)
    left = blob_path("node-1", tmp_path / "disk")
    left.mkdir()
    await Cell(Plan(folder=tmp_path / "cell", nodes=1), lambda *_: None).stop()
    assert not left.exists()


@pytest.mark.timeout(120)
async def test_a_broker_that_does_not_answer_is_named_until_it_does(tmp_path: Path) -> None:
    lease = PortLease("127.0.0.1", 0, "the broker")
    url = f"mqtt://127.0.0.1:{lease.port}"
    up = await asyncio.create_subprocess_exec(
        *(*UP, f"--broker={url}", f"--data={tmp_path / 'up'}"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    broker = EmbeddedBroker("127.0.0.1", lease.port, tmp_path / "broker")
    try:
        assert up.stderr is not None
        said = (await up.stderr.readline()).decode()
        why = f"127.0.0.1:{lease.port}: refused, no broker listens there, since "
        assert said.startswith(f"controller: no connection to the broker {why}")
        assert ": start it, or name another with --broker; nothing runs meanwhile" in said
        await broker.start()
        said = (await up.stderr.readline()).decode()
        assert said == f"controller: the broker {url} answers\n"
    finally:
        up.send_signal(signal.SIGTERM)
        await up.communicate()
        await broker.stop()
        lease.close()
    assert up.returncode == 0
