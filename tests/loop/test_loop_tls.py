"""A cell off loopback, over TLS, across real links: joins, serves, survives an unplugged cable."""

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
IP = shutil.which("ip", path=PATH) or ""
pytestmark = [
    pytest.mark.timeout(240),
    pytest.mark.skipif(
        os.geteuid() != 0 or not IP,
        reason="needs root and iproute2 for network namespaces of its own",
    ),
    pytest.mark.skipif(
        shutil.which("mosquitto", path=PATH) is None,
        reason="Mosquitto is not installed: apt-get install mosquitto",
    ),
]


def ip(*words: str) -> None:
    subprocess.run([IP, *words], check=True)


@pytest.fixture
def network() -> Iterator[tuple[str, list[str]]]:
    """A gateway's namespace with a bridge, and two devices plugged into it."""
    tag = uuid.uuid4().hex[:6]
    gateway, devices = f"gw-{tag}", [f"d{at}-{tag}" for at in (1, 2)]
    made: list[str] = []
    try:
        for name in (gateway, *devices):
            ip("netns", "add", name)
            made.append(name)
            ip("-n", name, "link", "set", "lo", "up")
        ip("-n", gateway, "link", "add", "br0", "type", "bridge")
        ip("-n", gateway, "addr", "add", "10.77.0.1/24", "dev", "br0")
        ip("-n", gateway, "link", "set", "br0", "up")
        for at, device in enumerate(devices, 1):
            port = f"port{at}"
            ip("-n", gateway, "link", "add", port, "type", "veth", "peer", "up0", "netns", device)
            ip("-n", gateway, "link", "set", port, "master", "br0", "up")
            ip("-n", device, "addr", "add", f"10.77.0.{at + 1}/24", "dev", "up0")
            ip("-n", device, "link", "set", "up0", "up")
        yield gateway, devices
    finally:
        for name in made:
            ip("netns", "del", name)


def test_a_cell_off_loopback(tmp_path: Path, network: tuple[str, list[str]]) -> None:
    gateway, devices = network
    story = Path(__file__).with_name("tls_story.py")
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [IP, "netns", "exec", gateway, sys.executable, str(story), str(tmp_path), *devices],
        cwd=root,
        env={**os.environ, "PATH": PATH, "PYTHONPATH": str(root)},
        capture_output=True,
        text=True,
        timeout=220,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-3000:]
    assert done.stdout.splitlines() == [
        "two nodes joined over TLS",
        "what nobody has signed does not run",
        "an author was allowed and has signed",
        "requests are answered over TLS",
        "a large value went through the store over TLS",
        "the link was unplugged and the tasks went on elsewhere",
        "the node came back by itself",
        "no request was lost",
        "a node's certificate may not command the fleet",
        "a stranger's certificate is refused",
        "a revoked node is put out",
        "a revoked client is refused on its open connection",
    ]
