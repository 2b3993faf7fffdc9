"""Network namespaces that end with this process: made, wired, shaped.

They have no name that outlives us: a descriptor of ours and the processes inside are all that holds
them, so the kernel takes them and every interface away, however we end.
"""

import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from protocols.errors import EnvironmentFailure, UserError
from tona.local.inside import enter, inside, new_space
from tona.testbed.plan import BACKHAUL, Spec

TUN: Final = Path("/dev/net/tun")
NEEDED: Final = (
    "networks of their own need root, or CAP_NET_ADMIN and CAP_SYS_ADMIN, with ip and tc "
    "(iproute2) and /dev/net/tun: run it with sudo, or use --mode loopback, which needs nothing"
)
_SEARCHED: Final = "/usr/local/sbin:/usr/sbin:/sbin"
_TIMEOUT_S: Final = 30.0
_SYSCTLS: Final = Path("/proc/sys/net/ipv4")


def missing() -> str:
    """Say what keeps this process from having networks of its own; empty: nothing does."""
    for tool in ("ip", "tc"):
        if not _tool(tool):
            return f"{tool} is not installed"
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return f"{TUN}: {error.strerror}"
    try:
        os.close(new_space())
    except OSError as error:
        return str(error.strerror)
    return ""


class Spaces:
    """The namespaces of a testbed; `close` lets go of them."""

    def __init__(self, spec: Spec) -> None:
        """Make and wire them all. Raises UserError, EnvironmentFailure."""
        if why := missing():
            raise UserError(f"{NEEDED} ({why})")
        self._handles = {name: new_space() for name in spec.spaces}
        self.paths: Mapping[str, str] = {
            name: f"/proc/{os.getpid()}/fd/{handle}" for name, handle in self._handles.items()
        }
        """By name, for as long as this process lives."""
        for name, settings in spec.sysctls().items():
            with inside(self.paths[name]):
                for setting, value in settings:
                    (_SYSCTLS / setting).write_text(value, encoding="ascii")
        for name, words in spec.interfaces(self.paths).items():
            self.ip(name, words)
        for name, words in spec.shaping().items():
            self._batch("tc", name, words)

    def operate(self) -> None:
        """Stand in the backhaul from now on: whatever this process starts or asks is there."""
        enter(self.paths[BACKHAUL])

    def ip(self, name: str, words: list[str]) -> None:
        """Say words of `ip` in a namespace. Raises EnvironmentFailure."""
        self._batch("ip", name, words)

    def close(self) -> None:
        """Let go: what nothing holds any more is gone."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles = {}

    def _batch(self, tool: str, name: str, words: list[str]) -> None:
        with inside(self.paths[name]):
            done = subprocess.run(
                [_tool(tool), "-batch", "-"],
                input="\n".join(words) + "\n",
                capture_output=True,
                text=True,
                timeout=_TIMEOUT_S,
                check=False,
            )
        if done.returncode:
            said = " / ".join(done.stderr.split("\n")).strip(" /")
            raise EnvironmentFailure(f"{tool} in the network of {name}: {said}")


def _tool(name: str) -> str:
    return shutil.which(name, path=f"{os.environ.get('PATH', os.defpath)}:{_SEARCHED}") or ""
