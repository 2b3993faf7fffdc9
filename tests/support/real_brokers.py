"""Real brokers as child processes, killed and started again on the same port."""

import asyncio
import os
import shutil
import signal
import sys
from pathlib import Path
from typing import Final

import pytest

from controller.broker.lease import PortLease

MOSQUITTO: Final = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin")
KINDS: Final = ("iotcore", "mosquitto")
READY_S: Final = 60

IOTCORE_CONFIG: Final = """
id = 0
[router]
id = 0
max_connections = 100
max_outgoing_packet_count = 200
max_segment_size = 1048576
max_segment_count = 16
[v5.1]
name = "v5"
listen = "127.0.0.1:{port}"
next_connection_delay_ms = 1
[v5.1.connections]
connection_timeout_ms = 60000
max_payload_size = 4194304
max_inflight_count = 200
dynamic_filters = true
"""
MOSQUITTO_CONFIG: Final = """
listener {port} 127.0.0.1
allow_anonymous {anonymous}
set_tcp_nodelay true
max_inflight_messages 1000
max_queued_messages 100000
persistence false
{more}
"""


class Broker:
    """One broker, and its port from the beginning to `close`, also while it is down.

    `more` is added to the Mosquitto configuration, as for TLS. What the broker says lies beside its
    configuration.
    """

    def __init__(self, kind: str, folder: Path, more: str = "") -> None:
        if kind == "mosquitto" and MOSQUITTO is None:
            pytest.skip("mosquitto is not installed")
        # A port that nobody else is handed meanwhile: tests run beside each other.
        self._lease = PortLease("127.0.0.1", 0)
        self.port = self._lease.port
        self._kind = kind
        self._process: asyncio.subprocess.Process | None = None
        self._config = folder / f"{kind}-{self.port}.toml"
        template = IOTCORE_CONFIG if kind == "iotcore" else MOSQUITTO_CONFIG
        anonymous = "false" if more else "true"
        text = template.format(port=self.port, more=more, anonymous=anonymous)
        self._config.write_text(text, encoding="utf-8")

    async def start(self) -> None:
        if self._kind == "iotcore":
            child = Path(__file__).with_name("real_iotcore.py")
            command = [sys.executable, str(child), str(self._config)]
        else:
            assert MOSQUITTO is not None
            command = [MOSQUITTO, "-c", str(self._config)]
        with self._config.with_suffix(".log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                process_group=0,
            )
        async with asyncio.timeout(READY_S):
            if self._kind == "iotcore":
                assert self._process.stdout is not None
                assert await self._process.stdout.readline() == b"ready\n"
            while not await self._listens():
                assert self._process.returncode is None, "the broker has ended"
                await asyncio.sleep(0.01)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        await writer.wait_closed()
        return True

    async def kill(self) -> None:
        """End it with SIGKILL, as a power cut would."""
        process, self._process = self._process, None
        if process is not None:
            if process.returncode is None:
                os.kill(process.pid, signal.SIGKILL)
            await process.wait()
            assert process.stdin is not None
            process.stdin.close()

    async def close(self) -> None:
        """End it, and give its port back."""
        await self.kill()
        self._lease.close()

    def pause(self) -> None:
        """Let it hold its sockets and do nothing."""
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGSTOP)

    def resume(self) -> None:
        assert self._process is not None
        os.kill(self._process.pid, signal.SIGCONT)
