"""A process that enters the sandbox and then tries what it must not do; prints what became of it.

executor_trials.py PROGRAMS PLAN_AS_JSON
"""

import ctypes
import json
import mmap
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, sys.argv[1])

import sandbox
import sandbox_filter

AGENT = os.getppid()
TABLES = sandbox_filter.DANGEROUS
COLUMN = 0 if os.uname().machine == "x86_64" else 1


def call(name: str) -> None:
    """Make a system call by its number, with arguments that could at most fail."""
    libc = ctypes.CDLL(None, use_errno=True)
    number = TABLES[name][COLUMN]
    if number < 0:
        raise OSError(38, "no such call here")
    if libc.syscall(number, -1, 0, 0, 0, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), name)


def outlive() -> None:
    """Take the bond to the parent away."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(1, 0, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def raise_a_limit() -> None:
    """Limit another process of the same user."""
    libc = ctypes.CDLL(None, use_errno=True)
    limit = (ctypes.c_uint64 * 2)(0, 0)
    numbers = {"x86_64": 302, "aarch64": 261}
    if libc.syscall(numbers[os.uname().machine], AGENT, 0, limit, None) != 0:
        raise OSError(ctypes.get_errno(), "prlimit64")


def trials(blobs: str) -> dict[str, Callable[[], Any]]:
    """Return what is tried, by name; `may ` before what has to work."""
    outside = Path(blobs).parent
    found: dict[str, Callable[[], Any]] = {
        "read /etc/passwd": Path("/etc/passwd").read_bytes,
        "read a neighbour": (outside / "secret").read_bytes,
        "read by /proc": Path(f"/proc/{AGENT}/cwd/pyproject.toml").read_bytes,
        "list blobs": lambda: list(Path(blobs).iterdir()),
        "list outside": lambda: list(outside.iterdir()),
        "write outside": (outside / "new").touch,
        "open outside to write": lambda: (outside / "secret").open("r+b").close(),
        "truncate outside": lambda: os.truncate(outside / "secret", 0),
        "link outside": lambda: Path(blobs, "link").symlink_to("/etc/passwd"),
        "make a folder": Path(blobs, "folder").mkdir,
        "rename out": lambda: Path(blobs, "blob").rename(outside / "blob"),
        "chmod": lambda: (outside / "secret").chmod(0o600),
        "open a socket": socket.socket,
        "open a local socket": lambda: socket.socket(socket.AF_UNIX),
        "signal the agent": lambda: os.kill(AGENT, 0),
        "signal all": lambda: os.kill(-1, 0),
        "fork": os.fork,
        "exec": lambda: os.execv("/bin/true", ["true"]),  # noqa: S606 - it must not work
        "leave the group": os.setsid,
        "outlive the parent": outlive,
        "limit the agent": raise_a_limit,
        "become somebody": lambda: os.setuid(1),
        "may write a blob": lambda: Path(blobs, "blob").write_bytes(b"12345678"),
        "may read a blob": Path(blobs, "blob").read_bytes,
        "may rename a blob": lambda: Path(blobs, "blob").rename(Path(blobs, "other")),
        "may remove a blob": Path(blobs, "other").unlink,
        "may start a thread": start_a_thread,
        "may map memory": lambda: mmap.mmap(-1, 1 << 20).close(),
    }
    return found | {f"call {name}": lambda name=name: call(name) for name in TABLES}


def start_a_thread() -> None:
    """Start a thread and wait for it."""
    thread = threading.Thread(target=os.getpid)
    thread.start()
    thread.join()


def outcome(trial: Callable[[], Any]) -> str:
    """Return `done`, or the name of the error."""
    try:
        trial()
    except OSError as error:
        return type(error).__name__
    return "done"


def main() -> None:
    """Enter and try."""
    asked = json.loads(sys.argv[2])
    asked = {key: tuple(one) if isinstance(one, list) else one for key, one in asked.items()}
    told: dict[str, Any] = {}
    everything = trials(asked["write"][0])
    kept = sandbox.enter(sandbox.Plan(**asked))
    if asked.get("forks"):
        pid = os.fork()
        if pid:
            told["zygote forks"] = os.waitpid(pid, 0)[1] == 0
            told["zygote signals the agent"] = outcome(lambda: os.kill(AGENT, signal.SIGCONT))
            sys.stdout.write(json.dumps(told) + "\n")
            return
        sandbox.never_fork()
    told |= {"strong": kept.strong, "gaps": kept.gaps, "user": os.geteuid()}
    told["tried"] = {name: outcome(trial) for name, trial in everything.items()}
    sys.stdout.write(json.dumps(told) + "\n")


if __name__ == "__main__":
    main()
