"""The filters of system calls that confine what runs an author's program.

Two, for x86-64 and aarch64. `FEW` is an allow list for what computes: memory, threads, clocks,
files that Landlock lets it have, sockets that are open already. It proved robust with numpy, ONNX
Runtime on CPUs, threads and allocators: they need nothing else, and what is not listed fails with
ENOSYS, which C libraries take for an older kernel and do without. `BROAD` is a deny list for what
drives a GPU, whose drivers need calls that nobody has listed: it takes away other processes,
programs, networks, mounts, kernel memory and whatever has been a way out.

Small programs of the kernel's packet filter, one instruction a tuple; the kernel remembers which
calls are allowed whatever their arguments, so that those cost nothing. Standard library only.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import Final

FEW: Final = "few"
BROAD: Final = "broad"
ARCHES: Final = {"x86_64": (0xC000003E, 0), "aarch64": (0xC00000B7, 1)}
"""Machine: its number for filters (AUDIT_ARCH), its column in the tables below."""

# System calls: numbers on x86-64 and aarch64, -1 where there is none.
COMPUTING: Final = {
    "read": (0, 63), "write": (1, 64), "open": (2, -1), "close": (3, 57), "stat": (4, -1),
    "fstat": (5, 80), "lstat": (6, -1), "poll": (7, -1), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, -1),
    "select": (23, -1), "sched_yield": (24, 124), "mremap": (25, 216), "mincore": (27, 232),
    "madvise": (28, 233), "dup": (32, 23), "nanosleep": (35, 101), "getpid": (39, 172),
    "sendto": (44, 206), "recvfrom": (45, 207), "sendmsg": (46, 211), "recvmsg": (47, 212),
    "shutdown": (48, 210), "getsockname": (51, 204), "getsockopt": (55, 209), "exit": (60, 93),
    "uname": (63, 160), "fcntl": (72, 25), "ftruncate": (77, 46), "getcwd": (79, 17),
    "rename": (82, -1), "unlink": (87, -1), "readlink": (89, -1), "gettimeofday": (96, 169),
    "getrlimit": (97, 163), "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153),
    "getuid": (102, 174), "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177),
    "getppid": (110, 173), "sigaltstack": (131, 132), "arch_prctl": (158, -1),
    "gettid": (186, 178), "time": (201, -1), "futex": (202, 98), "sched_getaffinity": (204, 123),
    "getdents64": (217, 61), "set_tid_address": (218, 96), "restart_syscall": (219, 128),
    "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115), "exit_group": (231, 94), "epoll_wait": (232, -1),
    "epoll_ctl": (233, 21), "openat": (257, 56), "newfstatat": (262, 79), "unlinkat": (263, 35),
    "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48), "pselect6": (270, 72),
    "ppoll": (271, 73), "set_robust_list": (273, 99), "utimensat": (280, 88),
    "epoll_pwait": (281, 22), "eventfd2": (290, 19), "epoll_create1": (291, 20), "dup3": (292, 24),
    "getcpu": (309, 168), "renameat2": (316, 276), "getrandom": (318, 278),
    "memfd_create": (319, 279), "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293),
    "faccessat2": (439, 439), "futex_waitv": (449, 449),
}  # fmt: skip
FORKING: Final = {
    "wait4": (61, 260), "waitid": (247, 95), "kill": (62, 129), "pipe2": (293, 59),
    "seccomp": (317, 277),
}  # fmt: skip
"""What a process needs beside `FEW` to fork and to end what it forked."""
DANGEROUS: Final = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "execve": (59, 221), "execveat": (322, 281),
    "fork": (57, -1), "vfork": (58, -1), "ptrace": (101, 117), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "process_madvise": (440, 440), "kcmp": (312, 272),
    "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "pidfd_send_signal": (424, 424),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "setsid": (112, 157), "setpgid": (109, 154), "unshare": (272, 97), "setns": (308, 268),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51),
    "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "mknod": (133, -1), "mknodat": (259, 33), "chmod": (90, -1), "fchmod": (91, 52),
    "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, -1), "fchown": (93, 55),
    "lchown": (94, -1), "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6),
    "fsetxattr": (190, 7), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "bpf": (321, 280), "keyctl": (250, 219), "add_key": (248, 217),
    "request_key": (249, 218), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "userfaultfd": (323, 282), "perf_event_open": (298, 241),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60),
    "syslog": (103, 116), "settimeofday": (164, 170), "clock_settime": (227, 112),
    "clock_adjtime": (305, 266), "adjtimex": (159, 171), "sethostname": (170, 161),
    "setdomainname": (171, 162), "personality": (135, 92), "iopl": (172, -1), "ioperm": (173, -1),
    "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "setpriority": (141, 140), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239),
}  # fmt: skip
CLONE: Final = (56, 220)
CLONE3: Final = (435, 435)
PRCTL: Final = (157, 167)
PRLIMIT: Final = (302, 261)
TGKILL: Final = (234, 131)
KILL: Final = (62, 129)
SECCOMP: Final = (317, 277)
CAPSET: Final = (126, 91)

_THREAD: Final = 0x10000
_NAMESPACES: Final = 0x7E020000
_SIBLING: Final = 0x8000
"""A child of one's parent, who knows nothing of it."""
_X32: Final = 0x40000000

# seccomp_data: nr, arch, instruction pointer, arguments.
_NR, _ARCH, _ARGUMENT = 0, 4, 16
_LOAD, _EQUAL, _ANY_BIT, _AT_LEAST, _RETURN = 0x20, 0x15, 0x45, 0x35, 0x06
_ALLOW, _END, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_INSTRUCTION: Final = struct.Struct("<HBBI")
_DENIED: Final = _ERRNO | errno.EPERM
_UNKNOWN: Final = _ERRNO | errno.ENOSYS
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_NAME: Final = 15
_PR_SET_SECCOMP: Final = 22
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_SET_THP_DISABLE: Final = 41
_FILTER: Final = 1
_AF_UNIX: Final = 1

_libc: Final = ctypes.CDLL(None, use_errno=True)


class Refused(Exception):
    """Something that the kernel does not do for us; the text is a sentence for people."""


def machine() -> str:
    """Return what this machine is, as `uname -m` says."""
    return os.uname().machine


Code = list[tuple[int, int, int, int]]


def _head() -> Code:
    """Load the number of the call; another architecture's calls end the process."""
    arch, _ = ARCHES.get(machine(), (0, 0))
    return [
        (_LOAD, 0, 0, _ARCH),
        (_EQUAL, 1, 0, arch),
        (_RETURN, 0, 0, _END),
        (_LOAD, 0, 0, _NR),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _UNKNOWN),
    ]


def _when(number: int, then: Code) -> Code:
    """Do this at one call; the code ends in a return."""
    return [(_EQUAL, 0, len(then), number), *then] if number >= 0 else []


def _first_argument(number: int, allowed: tuple[int, ...]) -> Code:
    """Allow a call with these values of its first argument and no others."""
    code: Code = [(_LOAD, 0, 0, _ARGUMENT)]
    for value in allowed:
        code += [(_EQUAL, 0, 1, value), (_RETURN, 0, 0, _ALLOW)]
    return _when(number, [*code, (_RETURN, 0, 0, _DENIED)])


def _clone(column: int, *, forks: bool) -> Code:
    """Allow threads, and processes if need be, in no namespace of their own."""
    code: Code = [
        (_LOAD, 0, 0, _ARGUMENT),
        (_ANY_BIT, 0, 1, _NAMESPACES | _SIBLING),
        (_RETURN, 0, 0, _DENIED),
    ]
    if not forks:
        code += [(_ANY_BIT, 1, 0, _THREAD), (_RETURN, 0, 0, _DENIED)]
    return _when(CLONE[column], [*code, (_RETURN, 0, 0, _ALLOW)])


def confining(calls: str, *, forks: bool) -> Code:
    """Return the filter `FEW` or `BROAD`, with or without the leave to fork."""
    _, column = ARCHES.get(machine(), (0, 0))
    code = [*_head(), *_clone(column, forks=forks)]
    # Its flags lie in memory, where no filter can see them: C libraries then take `clone`.
    code += _when(CLONE3[column], [(_RETURN, 0, 0, _UNKNOWN)])
    code += _first_argument(PRLIMIT[column], (0,))
    allowed = {} if calls == BROAD else COMPUTING
    denied = DANGEROUS
    if forks:
        allowed = allowed | FORKING
    else:
        code += _first_argument(TGKILL[column], (os.getpid(),))
        denied = denied | {"kill": KILL}
    if calls == BROAD:
        # A driver looks for its service so; `connect` then says that there is none.
        code += _first_argument(DANGEROUS["socket"][column], (_AF_UNIX,))
    for call in allowed.values():
        code += _when(call[column], [(_RETURN, 0, 0, _ALLOW)])
    for call in denied.values():
        code += _when(call[column], [(_RETURN, 0, 0, _DENIED)])
    if calls == BROAD:
        bond: Code = [(_LOAD, 0, 0, _ARGUMENT), (_EQUAL, 0, 1, _PR_SET_PDEATHSIG)]
        code += _when(PRCTL[column], [*bond, (_RETURN, 0, 0, _DENIED), (_RETURN, 0, 0, _ALLOW)])
        return [*code, (_RETURN, 0, 0, _ALLOW)]
    options: tuple[int, ...] = (_PR_SET_NAME, _PR_SET_THP_DISABLE)
    if forks:
        options += (_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP)
    return [*code, *_first_argument(PRCTL[column], options), (_RETURN, 0, 0, _UNKNOWN)]


def without_forks() -> Code:
    """Return what takes the leave to fork, and to signal others, back from a filtered process."""
    _, column = ARCHES.get(machine(), (0, 0))
    code = [*_head(), *_clone(column, forks=False)]
    for call in FORKING.values():
        code += _when(call[column], [(_RETURN, 0, 0, _DENIED)])
    code += _first_argument(PRCTL[column], (_PR_SET_NAME, _PR_SET_THP_DISABLE))
    code += _first_argument(TGKILL[column], (os.getpid(),))
    return [*code, (_RETURN, 0, 0, _ALLOW)]


def put_in_force(program: Code) -> None:
    """Filter the calls of this process and all that it forks, for ever. Raises Refused."""
    here = machine()
    if here not in ARCHES or struct.calcsize("P") != struct.calcsize("Q"):
        raise Refused(f"its system calls are not confined: no filter for {here}")
    code = b"".join(_INSTRUCTION.pack(*one) for one in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    described = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    number = SECCOMP[ARCHES[here][1]]
    if _libc.syscall(number, _FILTER, ctypes.c_ulong(0), described) != 0:
        raise Refused(f"its system calls are not confined: {os.strerror(ctypes.get_errno())}")
