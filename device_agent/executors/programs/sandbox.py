"""What a process that runs an author's program gives up before it touches anything of an author.

    kept = enter(Plan(read=("/sys/devices/system/cpu",), look=(blobs,), memory_bytes=256 << 20))

In this order: limits, a user of its own where the machine has one for it, every capability,
Landlock (files, TCP, signals), a filter of system calls. Each holds for the process and all that it
forks, for ever. What the kernel does not offer is left out and said in a sentence.

The process has one thread: filter and Landlock hold for the calling thread and what it starts.
Standard library only, Python 3.10 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pwd
import resource
import signal
import stat
import struct
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from device_agent.executors.programs import sandbox_filter
    from device_agent.executors.programs.sandbox_filter import BROAD, FEW, Refused
else:
    import sandbox_filter
    from sandbox_filter import BROAD, FEW, Refused

__all__ = ["BROAD", "FEW", "Kept", "Plan", "cap_memory", "enter", "landlock_version", "never_fork"]

_CAPABILITIES: Final = 0x20080522
"""Version of the kernel's layout of capabilities."""
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38

# Landlock.
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION: Final = 1
_BENEATH: Final = 1
_READ: Final = 1 << 2
_READS: Final = 1 << 0 | _READ | 1 << 3
_REPLACES: Final = 1 << 1 | _READ | 1 << 5 | 1 << 8 | 1 << 14
"""Write, read by name, remove, make and truncate files; no folder can be listed or made."""
_BUILDS: Final = (
    1 << 1 | _READ | 1 << 3 | 1 << 4 | 1 << 5 | 1 << 7 | 1 << 8 | 1 << 12 | 1 << 13 | 1 << 14
)
"""Everything about files, folders and links; no device, pipe or socket, and no program."""
_DRIVES: Final = 1 << 1 | _READ | 1 << 15
_OF_FILES: Final = 1 << 0 | 1 << 1 | _READ | 1 << 14 | 1 << 15
_KNOWN_BY: Final = {1: 1 << 13, 2: 1 << 14, 3: 1 << 15, 5: 1 << 16}
"""From this version on the kernel knows the rights below this bit."""


class Plan(NamedTuple):
    """What a process may still do."""

    read: tuple[str, ...] | None = ()
    """Files and folders, with all below; None: whatever its user may."""
    look: tuple[str, ...] = ()
    """Folders whose files it may read by name, not list."""
    write: tuple[str, ...] = ()
    """Folders whose files it may make, read by name, replace and remove, not list."""
    build: tuple[str, ...] = ()
    """Folders in which it may make, list, link and remove whatever is no device, pipe or socket."""
    devices: tuple[str, ...] = ()
    """Device files and their folders, to read, write and control."""
    memory_bytes: int = 0
    """Private memory beyond what it has; 0: no bound."""
    spare_bytes: int = 0
    """By how much it may lift that bound itself."""
    files: int = 128
    """Open at once."""
    forks: bool = False
    """Whether it may have children; `never_fork` takes that back."""
    calls: str = FEW
    user: str = ""
    """Whom it becomes if it is root and the machine knows the name; else it stays who it is."""
    processes: int = 1024
    """And threads, of that user together."""


class Kept(NamedTuple):
    """What is in force."""

    strong: bool
    """Files and system calls are both confined."""
    gaps: tuple[str, ...]
    """Sentences on what this machine does not give."""


_libc: Final = ctypes.CDLL(None, use_errno=True)


def enter(plan: Plan) -> Kept:
    """Give up everything that the plan does not name, for good; say what is in force then.

    The process has one thread. Raises OSError when its limits or its user cannot be set.
    """
    gaps: list[str] = []
    user, group = identity(plan.user)
    _limit(plan, counted=bool(user))
    rules = _open_rules(plan)
    try:
        if user:
            _become(user, group)
        _prctl(_PR_SET_NO_NEW_PRIVS, 1)
        _drop_capabilities(gaps)
        strong = True
        try:
            _confine_files(plan, rules)
        except Refused as refused:
            gaps.append(str(refused))
            strong = False
        try:
            confining = sandbox_filter.confining(plan.calls, forks=plan.forks)
            sandbox_filter.put_in_force(confining)
        except Refused as refused:
            gaps.append(str(refused))
            strong = False
    finally:
        for handle, _ in rules:
            os.close(handle)
    if plan.read is None:
        gaps.append("it may read the files of its user, for its provider needs those of the system")
        strong = False
    return Kept(strong, tuple(gaps))


def never_fork() -> None:
    """Take the leave to fork back, and that to signal others, from a process that has entered.

    Nothing where the kernel or the machine has no filters: `enter` has said so.
    """
    with contextlib.suppress(Refused):
        sandbox_filter.put_in_force(sandbox_filter.without_forks())


def identity(name: str) -> tuple[int, int]:
    """Return user and group that a process can become under this name; zeros: it stays itself."""
    if not name or os.geteuid() != 0:
        return 0, 0
    try:
        about = pwd.getpwnam(name)
    except KeyError:
        return 0, 0
    return about.pw_uid, about.pw_gid


def _limit(plan: Plan, *, counted: bool) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    files = plan.files if hard == resource.RLIM_INFINITY else min(plan.files, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if counted:
        # Counted over all processes of a user: only one of its own can have such a bound.
        resource.setrlimit(resource.RLIMIT_NPROC, (plan.processes, plan.processes))
    if plan.memory_bytes:
        cap_memory(plan.memory_bytes, plan.spare_bytes)


def cap_memory(more_bytes: int, spare_bytes: int = 0) -> None:
    """Let the private data of this process grow by so much and no further.

    It may lift that by the spare ones, for itself and what it forks, or give them up.

    The address space cannot be the measure: runtimes reserve far more than they use.
    """
    with open("/proc/self/status", encoding="ascii") as file:
        have = next(int(line.split()[1]) for line in file if line.startswith("VmData"))
    limit = have * 1024 + more_bytes
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit + spare_bytes))


def _become(user: int, group: int) -> None:
    """Become somebody else, for ever."""
    parent = os.getppid()
    os.setgroups([])
    os.setresgid(group, group, group)
    os.setresuid(user, user, user)
    # A change of the user takes the bond to the parent away.
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def _drop_capabilities(gaps: list[str]) -> None:
    known = sandbox_filter.ARCHES.get(sandbox_filter.machine())
    header = struct.pack("<Ii", _CAPABILITIES, 0)
    if known is None or _libc.syscall(sandbox_filter.CAPSET[known[1]], header, bytes(24)):
        gaps.append("it keeps the privileges of the device agent")


def _prctl(option: int, value: int) -> None:
    if _libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")


# Landlock: what may be opened by name.


def landlock_version() -> int:
    """Return which version of Landlock the kernel speaks; 0: none."""
    return max(0, int(_libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_VERSION))))


def _open_rules(plan: Plan) -> list[tuple[int, int]]:
    """Open what the plan names, while that is still allowed; a path that is absent is no rule."""
    rules = []
    asked = [(one, _READS) for one in plan.read or ()]
    asked += [(one, _READ) for one in plan.look]
    asked += [(one, _REPLACES) for one in plan.write]
    asked += [(one, _BUILDS) for one in plan.build]
    asked += [(one, _DRIVES) for one in plan.devices]
    for path, rights in asked:
        try:
            handle = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        folder = stat.S_ISDIR(os.fstat(handle).st_mode)
        rules.append((handle, rights if folder else rights & _OF_FILES))
    return rules


def _confine_files(plan: Plan, rules: list[tuple[int, int]]) -> None:
    version = landlock_version()
    if version == 0:
        raise Refused("its files are not confined: this kernel has no Landlock")
    known = next((bit for least, bit in reversed(_KNOWN_BY.items()) if version >= least), 1 << 13)
    handled = known - 1
    if plan.read is None:
        handled &= ~_READS
    words = [handled]
    if version >= 4:  # noqa: PLR2004 - the version that brought networks
        words.append(0b11)
    if version >= 6:  # noqa: PLR2004 - the version that brought scopes
        words.append(0b11)
    attributes = struct.pack(f"<{len(words)}Q", *words)
    ruleset = _libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        raise Refused(f"its files are not confined: {os.strerror(ctypes.get_errno())}")
    try:
        for handle, rights in rules:
            rule = struct.pack("<Qi", rights & handled, handle)
            if rights & handled and _libc.syscall(_ADD, ruleset, _BENEATH, rule, 0) != 0:
                raise Refused(f"its files are not confined: {os.strerror(ctypes.get_errno())}")
        if _libc.syscall(_RESTRICT, ruleset, 0) != 0:
            raise Refused(f"its files are not confined: {os.strerror(ctypes.get_errno())}")
    finally:
        os.close(ruleset)
