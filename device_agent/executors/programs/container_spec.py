"""The OCI runtime configuration of our containers; pure.

A container has its own of every namespace, no capability, no network but its own loopback, a
read-only root and three places to write: `/tmp`, `/dev/shm` and `/tona/out`, each bounded.
"""

from __future__ import annotations

from typing import Any, Final

VERSION: Final = "1.0.2"
PIDS_MAX: Final = 256
FILES_MAX: Final = 1024
TMP_BYTES: Final = 64 << 20
"""Of `/tmp`, and of `/dev/shm`; they count as the container's memory, too."""
TMP_FILES: Final = 4096
HOME: Final = "HOME=/tmp"
"""The place where a program may write, unless the image names another."""
PATH: Final = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
OOM_SCORE: Final = 500
"""When the machine runs out of memory a container goes before the daemon does."""
IN: Final = "/tona/in"
OUT: Final = "/tona/out"
EPERM: Final = 1
ENOSYS: Final = 38
CLONE_NEWUSER: Final = 0x10000000
LAST_PLAIN_FAMILY: Final = 16
"""Netlink; above are packet and vsock sockets, which no namespace holds, and rare protocols."""
RARE_FAMILIES: Final = (3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15)

MASKED: Final = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
READ_ONLY: Final = (
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
)
DENIED: Final = (
    "acct",
    "add_key",
    "adjtimex",
    "bpf",
    "chroot",
    "clock_adjtime",
    "clock_settime",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "fsconfig",
    "fsmount",
    "fsopen",
    "fspick",
    "init_module",
    "io_uring_enter",
    "io_uring_register",
    "io_uring_setup",
    "ioperm",
    "iopl",
    "kcmp",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "name_to_handle_at",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pidfd_getfd",
    "pivot_root",
    "process_vm_readv",
    "process_vm_writev",
    "ptrace",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "setdomainname",
    "sethostname",
    "setns",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "umount",
    "umount2",
    "unshare",
    "uselib",
    "userfaultfd",
    "vhangup",
    "vmsplice",
)
"""System calls that no computation needs and whose faults have opened kernels before."""


class Box:
    """How containers are built on this machine, as a trial has shown that it works."""

    def __init__(self, runtime: str, *, users: bool, cgroups: bool, swap: bool) -> None:
        self.runtime = runtime
        """Path of the program."""
        self.users = users
        """With a user namespace."""
        self.cgroups = cgroups
        """With control groups; rlimits stand in for them otherwise."""
        self.swap = swap
        """Whether the kernel counts swap."""

    def __str__(self) -> str:
        """Say it in a few words, for the log."""
        users = "a user namespace" if self.users else "no user namespace"
        groups = "control groups" if self.cgroups else "rlimits"
        return f"{self.runtime} with {users} and {groups}"


class Wanted:
    """One container: what it runs, what it sees, what it may take."""

    def __init__(
        self,
        rootfs: str,
        args: list[str],
        *,
        env: list[str],
        cwd: str,
        inputs: str,
        outputs: str,
        memory_bytes: int,
        host_id: int,
        group: str,
    ) -> None:
        self.rootfs = rootfs
        self.args = args
        self.env = env
        self.cwd = cwd
        self.inputs = inputs
        self.outputs = outputs
        self.memory_bytes = memory_bytes
        self.host_id = host_id
        """Who its user 0 is on the machine."""
        self.group = group
        """Path of its control group under each controller."""


def config(box: Box, wanted: Wanted) -> dict[str, Any]:
    """Return the document that a runtime reads."""
    uid = 0 if box.users else wanted.host_id
    names = {one.partition("=")[0] for one in wanted.env}
    usual = [one for one in (PATH, HOME) if one.partition("=")[0] not in names]
    return {
        "ociVersion": VERSION,
        "process": {
            "terminal": False,
            "user": {"uid": uid, "gid": uid},
            "args": wanted.args,
            "env": [*usual, *wanted.env],
            "cwd": wanted.cwd,
            "capabilities": {
                one: [] for one in ("bounding", "effective", "inheritable", "permitted", "ambient")
            },
            "noNewPrivileges": True,
            "oomScoreAdj": OOM_SCORE,
            "rlimits": _rlimits(box, wanted.memory_bytes),
        },
        "root": {"path": wanted.rootfs, "readonly": True},
        "hostname": "tona",
        "mounts": _mounts(wanted, uid),
        "linux": _linux(box, wanted),
    }


def _rlimits(box: Box, memory_bytes: int) -> list[dict[str, Any]]:
    limits = {"RLIMIT_NOFILE": FILES_MAX, "RLIMIT_CORE": 0}
    if not box.cgroups:
        limits |= {"RLIMIT_DATA": memory_bytes, "RLIMIT_NPROC": PIDS_MAX}
    return [{"type": name, "soft": value, "hard": value} for name, value in limits.items()]


def _mounts(wanted: Wanted, uid: int) -> list[dict[str, Any]]:
    plain = ["nosuid", "noexec", "nodev"]
    room = [f"size={TMP_BYTES}", f"nr_inodes={TMP_FILES}"]
    dev = ["nosuid", "noexec", "strictatime", "mode=755", "size=64k", f"uid={uid}", f"gid={uid}"]
    return [
        _mount("/proc", "proc", "proc", plain),
        _mount("/dev", "tmpfs", "tmpfs", dev),
        _mount("/dev/shm", "tmpfs", "shm", [*plain, "mode=1777", *room]),  # noqa: S108 - inside
        _mount("/sys", "sysfs", "sysfs", [*plain, "ro"]),
        # Programs unpack themselves there and run what they unpacked.
        _mount("/tmp", "tmpfs", "tmpfs", ["nosuid", "nodev", "mode=1777", *room]),  # noqa: S108 - inside
        _mount(IN, "bind", wanted.inputs, [*plain, "bind", "ro"]),
        _mount(OUT, "bind", wanted.outputs, [*plain, "bind", "rw"]),
    ]


def _mount(at: str, kind: str, source: str, options: list[str]) -> dict[str, Any]:
    return {"destination": at, "type": kind, "source": source, "options": options}


def _linux(box: Box, wanted: Wanted) -> dict[str, Any]:
    spaces = ["pid", "network", "ipc", "uts", "mount", "cgroup"]
    linux: dict[str, Any] = {
        "maskedPaths": list(MASKED),
        "readonlyPaths": list(READ_ONLY),
        "seccomp": seccomp(),
    }
    if box.users:
        spaces.append("user")
        mapping = [{"containerID": 0, "hostID": wanted.host_id, "size": 1}]
        linux |= {"uidMappings": mapping, "gidMappings": mapping}
    if box.cgroups:
        memory = {"limit": wanted.memory_bytes}
        if box.swap:
            memory["swap"] = wanted.memory_bytes
        linux |= {
            "cgroupsPath": wanted.group,
            "resources": {
                "memory": memory,
                "pids": {"limit": PIDS_MAX},
                "devices": [{"allow": False, "access": "rwm"}],
            },
        }
    return linux | {"namespaces": [{"type": one} for one in spaces]}


def seccomp() -> dict[str, Any]:
    """Return the filter: what computations use is allowed, the rest of `DENIED` fails."""
    refused = "SCMP_ACT_ERRNO"
    family = [{"index": 0, "value": LAST_PLAIN_FAMILY, "op": "SCMP_CMP_GT"}]
    rare = [[{"index": 0, "value": one, "op": "SCMP_CMP_EQ"}] for one in RARE_FAMILIES]
    new_user = {
        "index": 0,
        "value": CLONE_NEWUSER,
        "valueTwo": CLONE_NEWUSER,
        "op": "SCMP_CMP_MASKED_EQ",
    }
    rules = [
        {"names": list(DENIED), "action": refused, "errnoRet": EPERM},
        # Its arguments are out of a filter's sight: the C library goes on with clone.
        {"names": ["clone3"], "action": refused, "errnoRet": ENOSYS},
        {"names": ["clone"], "action": refused, "errnoRet": EPERM, "args": [new_user]},
        *(
            {"names": ["socket", "socketpair"], "action": refused, "errnoRet": EPERM, "args": one}
            for one in (family, *rare)
        ),
    ]
    return {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": rules}
