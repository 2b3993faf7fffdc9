"""The program inside the containers of the tests: one deed, called once or again and again.

It knows nothing but its interpreter's standard library, and is called as its interface says.
"""

import json
import os
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

MAGIC = b"\x93NUMPY\x01\x00"
HELD: list[int] = []
TMP = "/tmp"  # noqa: S108 - the container's own


def read(folder: str, name: str) -> bytes:
    whole = Path(f"{folder}/{name}.npy").read_bytes()
    return whole[10 + int.from_bytes(whole[8:10], "little") :]


def write(folder: str, name: str, data: bytes, descr: str = "<f4", shape: str = "") -> None:
    shape = shape or f"({len(data) // 4},)"
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}\n"
    head = MAGIC + len(text).to_bytes(2, "little") + text.encode()
    Path(f"{folder}/{name}.npy").write_bytes(head + data)


def echo(given: str, out: str) -> None:
    write(out, "y", read(given, "x"))


def letters(given: str, out: str) -> None:
    data = read(given, "x")
    write(out, "y", data, "|u1", f"({len(data)},)")


def add(given: str, out: str) -> None:
    values = struct.unpack("<f", read(given, "x")) + struct.unpack("<f", read(given, "c"))
    write(out, "y", struct.pack("<f", sum(values)))


def spin(_given: str, _out: str) -> None:
    while True:
        pass


def work(given: str, out: str) -> None:
    """Take 40 MB and, partly in a child, half a second of the processor."""
    held = bytearray(b"x" * (40 << 20))
    child = os.fork()
    until = time.process_time() + (0.2 if child else 0.3)
    while time.process_time() < until:
        pass
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    del held
    echo(given, out)


def fail(_given: str, _out: str) -> None:
    sys.stderr.write("a line before\n")
    raise SystemExit("the picture has no plate")


def memory(_given: str, _out: str) -> None:
    held = []
    while True:
        held.append(bytearray(os.urandom(1 << 20)))


def forks(_given: str, out: str) -> None:
    count = 0
    try:
        while True:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            count += 1
    except OSError:
        write(out, "y", struct.pack("<f", count))


def large(_given: str, out: str) -> None:
    with Path(f"{out}/y.npy").open("wb") as file:
        while True:
            file.write(bytes(1 << 16))


def missing(_given: str, _out: str) -> None:
    return


def wrong(_given: str, out: str) -> None:
    write(out, "y", bytes(8), "<f8", "(1,)")


def link(_given: str, out: str) -> None:
    Path(f"{out}/y.npy").symlink_to("/etc/passwd")


def pipe(_given: str, out: str) -> None:
    os.mkfifo(f"{out}/y.npy")


def deep(given: str, out: str) -> None:
    Path(out + "/d" * 200).mkdir(parents=True)
    echo(given, out)


def spin_at_zero(given: str, out: str) -> None:
    if read(given, "x") == bytes(4):
        spin(given, out)
    echo(given, out)


def hold(given: str, out: str) -> None:
    """Keep the input open; tell how much is left in those of earlier calls."""
    left = sum(os.fstat(one).st_size for one in HELD)
    HELD.append(os.open(f"{given}/x.npy", os.O_RDONLY))
    write(out, "y", struct.pack("<f", left))


def names(folder: str) -> list[str]:
    return sorted(one.name for one in Path(folder).iterdir())


def look(given: str, out: str) -> None:
    """Tell what can be seen and done from in here."""
    seen: dict[str, object] = {"uid": os.getuid(), "pid": os.getpid(), "host": os.uname().nodename}
    status = Path("/proc/self/status").read_text()
    seen["status"] = {
        line.split(":")[0]: line.split(":")[1].strip() for line in status.splitlines()
    }
    seen["interfaces"] = [name for _, name in socket.if_nameindex()]
    seen["processes"] = [int(one) for one in names("/proc") if one.isdecimal()]
    seen["in"], seen["out"], seen["tona"] = names(given), names(out), names("/tona")
    for name, deed in DEEDS.items():
        try:
            deed()
        except OSError as error:
            seen[name] = error.strerror
        else:
            seen[name] = "done"
    said = json.dumps(seen).encode()
    write(out, "y", said, "|u1", f"({len(said)},)")


def _socket(family: int) -> None:
    with socket.socket(family, socket.SOCK_STREAM):
        pass


def _connect(address: str) -> None:
    with socket.socket() as line:
        line.settimeout(1)
        line.connect((address, 80))


def _call(name: str, *arguments: object) -> None:
    import ctypes  # noqa: PLC0415 - for this deed alone

    libc = ctypes.CDLL(None, use_errno=True)
    if getattr(libc, name)(*arguments) < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


DEEDS = {
    "write root": lambda: Path("/x").write_bytes(b""),
    "write in": lambda: Path("/tona/in/z").write_bytes(b""),
    "write tmp": lambda: Path(TMP, "z").write_bytes(b""),
    "write dev": lambda: Path("/dev/z").write_bytes(bytes(1 << 20)),
    "fill tmp": lambda: Path(TMP, "z").write_bytes(bytes((64 << 20) + 1)),
    "read memory": lambda: Path("/proc/kcore").read_bytes()[:1] or _nothing(),
    "write sysctl": lambda: Path("/proc/sys/kernel/hostname").write_text("x"),
    "make a device": lambda: os.mknod(f"{TMP}/d", 0o20600, os.makedev(1, 3)),
    "make a user namespace": lambda: _call("unshare", 0x10000000),
    "mount": lambda: _call("mount", b"x", b"/tmp", b"tmpfs", 0, None),
    "connect out": lambda: _connect("192.0.2.1"),
    "outlive the agent": lambda: Path("/proc/self/oom_score_adj").write_text("0"),
    "packet socket": lambda: _socket(17),
    "vsock": lambda: _socket(40),
}


def _nothing() -> None:
    raise OSError(2, "is empty")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def serve(deed: Callable[[str, str], None]) -> None:
    for line in sys.stdin:
        call = json.loads(line)
        answer = {"id": call["id"]}
        try:
            deed(call["in"], call["out"])
        except SystemExit as error:
            answer["error"] = str(error)
        say(json.dumps(answer))


def main() -> None:
    """Called as `guest.py once|serve DEED`."""
    how, name = sys.argv[1:3]
    if name == "garbage":
        sys.stdin.readline()
        say("this is no answer")
        time.sleep(60)
    if name == "babble":
        call = json.loads(sys.stdin.readline())
        answer = r'{"id": "%s", "error": "half \ud800 a \u001b[31mred\n pair"}'
        say(answer % call["id"])
        time.sleep(60)
    if name == "die":
        sys.stdin.readline()
        raise SystemExit("out of luck")
    deed = globals()[name]
    if how == "serve":
        serve(deed)
    else:
        deed("/tona/in", "/tona/out")


main()
