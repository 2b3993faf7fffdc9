"""Containers through an OCI runtime: created, started, waited for, removed; and which runtime.

`create` leaves a process that waits for `start`, with everything around it in place; as process 1
of our namespace we inherit it, so no process of the runtime stays beside a running container. What
the runtime leaves of one that has ended are its state folder and its control group: removing both
is ours, and costs no process.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import struct
import threading
from collections.abc import Iterator
from itertools import product
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import container_cgroup as cgroup
    from device_agent.executors.programs import container_images as images
    from device_agent.executors.programs import container_space as space
    from device_agent.executors.programs import container_spec as spec
    from device_agent.executors.programs.stream import Refusal
else:
    import container_cgroup as cgroup
    import container_images as images
    import container_space as space
    import container_spec as spec
    from stream import Refusal

KNOWN: Final = ("crun", "runc")
"""The quicker one first."""
SEARCH: Final = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")
RUNTIME_TIMEOUT_S: Final = 15.0
END_TIMEOUT_S: Final = 5.0
MAX_WORDS_BYTES: Final = 16 * 1024
TRIAL_MEMORY_BYTES: Final = 64 << 20
TRIAL_CODE: Final = 42
_NULL: Final = "/dev/null"
_PROGRAMS: Final = {
    "x86_64": (62, 2, "b83c000000bf2a0000000f05"),
    "aarch64": (183, 2, "a80b8052400580d2010000d4"),
    "armv7l": (40, 1, "0170a0e32a00a0e3000000ef"),
    "armv6l": (40, 1, "0170a0e32a00a0e3000000ef"),
    "riscv64": (243, 2, "9308d0051305a00273000000"),
}
"""ELF machine and class, and `exit(42)`: the smallest program, for machines that have no other."""
ARM_ABI: Final = 0x05000000
_AUTHORS: Final = (
    *("no such file", "not found", "ermission denied", "not a directory", "is a directory"),
    *("symbolic links", "executable", "chdir", "cwd", "exec:", "name too long"),
    *("argument list too long", "unable to find user"),
)
"""What a runtime says where an image or the task's arguments are at fault."""
_TOO_SMALL: Final = "memory limit could be too low"


class Runtime:
    """One runtime, the way it works here, and where its state lies."""

    def __init__(self, box: spec.Box, folder: str) -> None:
        self.box = box
        self.name = os.path.basename(box.runtime)
        self.folder = folder
        os.makedirs(folder, mode=0o700, exist_ok=True)

    def command(self, *words: str, log: str) -> list[str]:
        """Return the command line of the runtime."""
        options = ["--root", self.folder, "--log", log, "--log-format", "json"]
        if not self.box.cgroups:
            options += ["--cgroup-manager=disabled"] if self.name == "crun" else ["--rootless=true"]
        return [self.box.runtime, *options, *words]


class Container:
    """One container from its creation to its end; not for two threads but `kill`."""

    def __init__(self, runtime: Runtime, name: str, bundle: str, group: str) -> None:
        self._runtime = runtime
        self.name = name
        self.group = group
        self._bundle = bundle
        self._log = f"{bundle}/log"
        self._pid = 0
        self.pidfd = -1
        self._code: int | None = None
        self._spent_us = 0
        self._most_bytes = 0
        """Of what has ended, as the kernel says at its end."""
        self._killed = os.eventfd(0, os.EFD_CLOEXEC)
        """Readable from `kill` on, which ends the runtime at work, too."""
        self._lock = threading.Lock()

    def create(self, stdin: int, stdout: int, stderr: int) -> None:
        """Have everything in place but the program's first instruction. Raises Refusal."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._log)
        pid_file = f"{self._bundle}/pid"
        words = ("create", "--bundle", self._bundle, "--pid-file", pid_file, self.name)
        with _known.creating():
            self._runtime_does(words, (stdin, stdout, stderr))
            try:
                with open(pid_file, encoding="ascii") as file:
                    self._pid = int(file.read())
                pidfd = os.pidfd_open(self._pid)
            except (OSError, ValueError):
                raise self._refusal("it ended at once") from None
            _known.add(self._pid)
            # Written by us the bound holds: it cannot be lowered from inside.
            with contextlib.suppress(OSError), open(f"/proc/{self._pid}/oom_score_adj", "wb") as at:
                at.write(str(spec.OOM_SCORE).encode())
        with self._lock:
            self.pidfd = pidfd
            if _ends(self._killed, 0):
                self._signal()

    def start(self) -> None:
        """Let the program run. Raises Refusal."""
        null = os.open(_NULL, os.O_RDWR | os.O_CLOEXEC)
        try:
            self._runtime_does(("start", self.name), (null, null, null))
        finally:
            os.close(null)

    def _runtime_does(self, words: tuple[str, ...], stdio: tuple[int, int, int]) -> None:
        command = self._runtime.command(*words, log=self._log)
        code = run(command, stdio, RUNTIME_TIMEOUT_S, self._killed)
        if code is None:
            raise self._refusal(f"{self._runtime.name} did not {words[0]} it in time")
        if code:
            raise self._refusal(self._said() or f"{self._runtime.name} {words[0]} gave {code}")

    def _refusal(self, why: str) -> Refusal:
        if _TOO_SMALL in why or cgroup.ran_out_of_memory(self.group):
            why = "its memory limit is too small for it to start"
            return Refusal("limit", "user", f"the container did not start: {why}")
        users = any(one in why.lower() for one in _AUTHORS)
        text = f"the container did not start: {why}"
        return Refusal("executor", "user" if users else "environment", text, retryable=not users)

    def _said(self) -> str:
        """Return the last error that the runtime wrote into its log."""
        try:
            with open(self._log, "rb") as file:
                file.seek(max(0, os.fstat(file.fileno()).st_size - MAX_WORDS_BYTES))
                lines = file.read().splitlines()
        except OSError:
            return ""
        return next(filter(None, map(said_by_runtime, reversed(lines))), "")

    def wait(self, timeout_s: float | None = None) -> int | None:
        """Wait for the end; the exit code, negative for a signal, None when it lives on.

        Not for a container that was never created.
        """
        if self._code is None and _ends(self.pidfd, timeout_s):
            # Once alone: the process id may soon be another child's.
            _, status, spent = os.wait4(self._pid, 0)
            self._spent_us = round(1e6 * (spent.ru_utime + spent.ru_stime))
            self._most_bytes = spent.ru_maxrss * 1024
            self._code = os.waitstatus_to_exitcode(status)
            _known.discard(self._pid)
        return self._code

    def cpu_us(self) -> int:
        """Return the processor time that its processes have taken, those that run beside as well.

        Without a control group only what has ended counts beside its first process.
        """
        known = cgroup.cpu_us(self.group) if self._runtime.box.cgroups else None
        if known is not None:
            return known
        return self._spent_us if self._code is not None else _spent_us(self._pid)

    def most_bytes(self) -> int:
        """Return the memory that it has taken at most, as far as that is known; else 0."""
        return cgroup.memory_bytes(self.group, peak=True) or self._most_bytes

    def kill(self) -> None:
        """End every process of it at once; from any thread, and before it is there too."""
        with self._lock:
            if self._killed >= 0:
                os.eventfd_write(self._killed, 1)
            self._signal()

    def _signal(self) -> None:
        if self.pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)

    def remove(self) -> None:
        """End it if need be and remove what the runtime has left of it."""
        self.kill()
        if self._runtime.box.cgroups:
            # With its share of the processor it would take its time to end.
            cgroup.set_share(self.group, 0, cgroup.PRIORITY_USUAL)
        if self.pidfd >= 0:
            self.wait(END_TIMEOUT_S)
        else:
            _known.end_orphans()
        with self._lock:
            for fd in (self.pidfd, self._killed):
                if fd >= 0:
                    os.close(fd)
            self.pidfd = self._killed = -1
        images.remove_tree(f"{self._runtime.folder}/{self.name}")
        if self._runtime.box.cgroups:
            cgroup.remove(self.group)


def said_by_runtime(line: bytes) -> str:
    """Return the error in a line of a runtime's log; empty when there is none."""
    with contextlib.suppress(ValueError, RecursionError, AttributeError):
        entry = json.loads(line)
        if entry.get("level") == "error":
            return " ".join(str(entry.get("msg")).split())[:500]
    return ""


def _ends(pidfd: int, timeout_s: float | None, stop: int = -1) -> bool:
    """Wait for the end of a process, unless `stop` becomes readable; whether it has ended."""
    poller = select.poll()
    for fd in (pidfd, stop):
        if fd >= 0:
            poller.register(fd, select.POLLIN)
    return pidfd in dict(poller.poll(None if timeout_s is None else timeout_s * 1000))


class _Known:
    """Our children that somebody waits for; what is none of them was left half made."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pids: set[int] = set()
        self._creating = 0
        self._orphans = False
        """There may be a child that nobody waits for."""

    def spawn(self, command: list[str], stdio: tuple[int, int, int]) -> int:
        """Start a command. Raises OSError."""
        actions = [(os.POSIX_SPAWN_DUP2, fd, at) for at, fd in enumerate(stdio)]
        environment = {
            "PATH": ":".join(SEARCH),
            "XDG_RUNTIME_DIR": space.WORK,
            # Where crun holds its own program for a moment; killed then, it leaves a file.
            "_LIBCONTAINER_STATEDIR": space.WORK,
        }
        with self._lock:
            pid = os.posix_spawn(command[0], command, environment, file_actions=actions)
            self._pids.add(pid)
        return pid

    def add(self, pid: int) -> None:
        """Note a child that we have inherited."""
        with self._lock:
            self._pids.add(pid)

    def discard(self, pid: int) -> None:
        """Forget a child that has been waited for."""
        with self._lock:
            self._pids.discard(pid)

    @contextlib.contextmanager
    def creating(self) -> Iterator[None]:
        """Expect a child to be inherited, which nobody knows for a moment."""
        with self._lock:
            self._creating += 1
        try:
            yield
        finally:
            with self._lock:
                self._creating -= 1
                if self._orphans:
                    self._end_orphans()

    def end_orphans(self) -> None:
        """End children that nobody knows, as soon as none is expected."""
        with self._lock:
            self._orphans = True
            self._end_orphans()

    def _end_orphans(self) -> None:
        if self._creating:
            return
        self._orphans = False
        for pid in _children():
            if pid not in self._pids:
                with contextlib.suppress(ProcessLookupError, ChildProcessError):
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)


_known: Final = _Known()


def run(
    command: list[str], stdio: tuple[int, int, int], timeout_s: float, stop: int = -1
) -> int | None:
    """Run a command until its end or until `stop` is readable; its exit code, None when killed."""
    try:
        pid = _known.spawn(command, stdio)
    except OSError as error:
        return error.errno or 1
    pidfd = os.pidfd_open(pid)
    try:
        in_time = _ends(pidfd, timeout_s, stop)
        if not in_time:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    finally:
        os.close(pidfd)
        _known.discard(pid)
    return os.waitstatus_to_exitcode(status) if in_time else None


def _children() -> Iterator[int]:
    with open("/proc/self/stat", encoding="ascii") as file:
        me = file.read().split()[0]
    for name in os.listdir("/proc"):
        if name.isdecimal():
            with contextlib.suppress(OSError), open(f"/proc/{name}/stat", "rb") as file:
                if file.read().rpartition(b")")[2].split()[1] == me.encode():
                    yield int(name)


def smallest_program(machine: str) -> bytes | None:
    """Return an ELF program that exits with `TRIAL_CODE`; None for a machine we do not know."""
    known = _PROGRAMS.get(machine)
    if known is None:
        return None
    number, wide, code_hex = known
    code = bytes.fromhex(code_hex)
    ident = b"\x7fELF" + bytes([wide, 1, 1]) + bytes(9)
    base = 0x400000
    if wide == 2:  # noqa: PLR2004 - ELFCLASS64
        start = 64 + 56
        whole = start + len(code)
        head = (2, number, 1, base + start, 64, 0, 0, 64, 56, 1, 0, 0, 0)
        return (
            ident
            + struct.pack("<HHIQQQIHHHHHH", *head)
            + struct.pack("<IIQQQQQQ", 1, 5, 0, base, base, whole, whole, 0x1000)
            + code
        )
    start = 52 + 32
    whole = start + len(code)
    head = (2, number, 1, base + start, 52, 0, ARM_ABI, 52, 32, 1, 0, 0, 0)
    return (
        ident
        + struct.pack("<HHIIIIIHHHHHH", *head)
        + struct.pack("<IIIIIIII", 1, 0, base, base, whole, whole, 5, 0x1000)
        + code
    )


def installed(configured: str) -> list[str]:
    """Return the runtimes to try: the configured one alone, or those that are found."""
    if configured:
        return [configured]
    folders = [*os.environ.get("PATH", "").split(":"), *SEARCH]
    found = []
    for name in KNOWN:
        path = next((p for f in folders if f and os.access(p := f"{f}/{name}", os.X_OK)), None)
        if path is not None:
            found.append(path)
    return found


def version(path: str) -> str:
    """Return the version that a runtime tells; empty when it tells none."""
    read, write = os.pipe2(os.O_CLOEXEC)
    null = os.open(_NULL, os.O_RDWR | os.O_CLOEXEC)
    try:
        code = run([path, "--version"], (null, write, null), RUNTIME_TIMEOUT_S)
    finally:
        os.close(write)
        os.close(null)
    with open(read, "rb") as file:
        words = file.read(MAX_WORDS_BYTES).decode("utf-8", "replace").split()
    known = "version" in words[:-1] and code == 0
    return words[words.index("version") + 1][:40] if known else ""


def choose(configured: str, group: str, work: str) -> tuple[Runtime | None, list[str]]:
    """Try the runtimes by really running a container; the first that can, and why others cannot."""
    program = smallest_program(os.uname().machine)
    if program is None:
        return None, [f"containers are not tried on {os.uname().machine}: add its program to us"]
    rootfs = f"{work}/trial"
    for one in ("proc", "sys", "dev/shm", "tmp", "tona/in", "tona/out"):
        os.makedirs(f"{rootfs}/{one}", exist_ok=True)
    with open(f"{rootfs}/program", "wb") as file:
        file.write(program)
    os.chmod(f"{rootfs}/program", 0o755)  # noqa: S103 - whoever the container is has to run it
    paths, whys = installed(configured), dict[str, str]()
    root = os.geteuid() == 0 and not _in_user_space()
    # The strongest way first, with whatever runtime knows it.
    for users, cgroups in product((True, False) if root else (True,), (True, False)):
        for path in paths:
            box = spec.Box(path, users=users, cgroups=cgroups, swap=cgroup.counts_swap())
            runtime = Runtime(box, f"{work}/state")
            why = _try(runtime, rootfs, group, work)
            if not why:
                whys.pop(path, None)
                return runtime, _doubts(whys)
            whys.setdefault(path, why)
    return None, _doubts(whys)


def _doubts(whys: dict[str, str]) -> list[str]:
    return [
        f"{os.path.basename(path)} is installed but cannot start a container here: {why}"
        if os.path.exists(path)
        else f"there is no container runtime at {path}"
        for path, why in whys.items()
    ]


def _in_user_space() -> bool:
    """Whether we are root in a user namespace alone."""
    with open("/proc/self/uid_map", encoding="ascii") as file:
        return file.read().split() != ["0", "0", "4294967295"]


def _try(runtime: Runtime, rootfs: str, group: str, work: str) -> str:
    """Run the smallest program in a container; why it did not run, empty when it did."""
    bundle = f"{work}/trial-bundle"
    os.makedirs(bundle, exist_ok=True)
    wanted = spec.Wanted(
        rootfs,
        ["/program"],
        env=[],
        cwd="/",
        inputs=f"{rootfs}/tona/in",
        outputs=f"{rootfs}/tona/out",
        memory_bytes=TRIAL_MEMORY_BYTES,
        host_id=space.host_ids()[0],
        group=group,
    )
    write_config(bundle, runtime.box, wanted)
    container = Container(runtime, "trial", bundle, group)
    null = os.open(_NULL, os.O_RDWR | os.O_CLOEXEC)
    try:
        container.create(null, null, null)
        container.start()
        code = container.wait(RUNTIME_TIMEOUT_S)
    except Refusal as refusal:
        return str(refusal).removeprefix("the container did not start: ")
    finally:
        os.close(null)
        container.remove()
    return "" if code == TRIAL_CODE else f"the trial program gave {code}, not {TRIAL_CODE}"


def write_config(bundle: str, box: spec.Box, wanted: spec.Wanted) -> None:
    """Write the document that a runtime reads."""
    with open(f"{bundle}/config.json", "w", encoding="utf-8") as file:
        json.dump(spec.config(box, wanted), file)


def _spent_us(pid: int) -> int:
    """Return the processor time of a process and of the children that it has seen end."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            words = file.read().rpartition(")")[2].split()
        return sum(map(int, words[11:15])) * 1_000_000 // os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError):
        return 0
