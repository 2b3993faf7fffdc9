"""A network namespace of its own, and a place to plant files."""

import ctypes
import os
import shutil
import subprocess
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

CLONE_NEWNET = 0x40000000


@pytest.fixture
def put(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(path: str, content: str) -> Path:
        file = tmp_path / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)
        return file

    return write


class Namespace:
    """A network namespace: commands of `ip`, and a way to open sockets in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def ip(self, *words: str) -> None:
        subprocess.run(["ip", "-n", self.name, *words], check=True, timeout=30)  # noqa: S607 - found by the path

    def batch(self, lines: list[str]) -> None:
        subprocess.run(
            ["ip", "-n", self.name, "-batch", "-"],  # noqa: S607 - found by the path
            input="\n".join(lines).encode(),
            check=True,
            timeout=60,
        )

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Let this thread open sockets in the namespace; they stay there."""
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        away = os.open(f"/run/netns/{self.name}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert libc.setns(away, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            try:
                yield
            finally:
                assert libc.setns(home, CLONE_NEWNET) == 0
        finally:
            os.close(home)
            os.close(away)


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    if shutil.which("ip") is None:
        pytest.skip("needs the command ip (package iproute2)")
    name = f"tona-{uuid.uuid4().hex[:8]}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)  # noqa: S607 - found by the path
    if made.returncode:
        pytest.skip(f"needs the right to make network namespaces: {made.stderr.decode().strip()}")
    try:
        yield Namespace(name)
    finally:
        subprocess.run(["ip", "netns", "del", name], check=True, timeout=30)  # noqa: S607 - found by the path
