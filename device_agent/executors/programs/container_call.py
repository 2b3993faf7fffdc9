"""Values on their way into a container and out of it, as `.npy` files in two folders.

The container may write to its outputs while we read: nothing of them is mapped, no link is
followed.
"""

from __future__ import annotations

import errno
import os
import stat
from io import FileIO
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import container_images as images
    from device_agent.executors.programs import container_npy as npy
    from device_agent.executors.programs.stream import Refusal, remove
    from device_agent.executors.programs.wire import INLINE_MAX_BYTES, MADE
else:
    import container_images as images
    import container_npy as npy
    from stream import Refusal, remove
    from wire import INLINE_MAX_BYTES, MADE

SUFFIX: Final = ".npy"
ITEM_BYTES: Final = {number: int(descr[2]) for number, descr in npy.DESCR.items()}
_READ: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC

Port = tuple[str, int, tuple[int, ...]]
"""Name, dtype number, shape with -1 for any length."""
Described = list[list[Any]]


def write_input(
    folder: str, name: str, number: int, shape: tuple[int, ...], view: memoryview | str, size: int
) -> None:
    """Write a value as a file; a large one, given by its path, is copied inside the kernel.

    Its header keeps it from being the blob itself. Raises Refusal, or OSError of the memory.
    """
    path = f"{folder}/{name}{SUFFIX}"
    with open(path, "xb", buffering=0) as file:
        start = npy.header(number, shape)
        if isinstance(view, str):
            _write_all(file, memoryview(start))
            _copy_in(view, file.fileno(), size)
        else:
            _write_all(file, memoryview(b"".join((start, view))))


def _write_all(file: FileIO, data: memoryview) -> None:
    while data.nbytes:
        data = data[file.write(data) :]


def _copy_in(source: str, target: int, size: int) -> None:
    try:
        fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        text = f"value {source}: {error.strerror}"
        raise Refusal("fetch", "environment", text, retryable=True) from None
    try:
        have = os.fstat(fd).st_size
        if have != size:
            raise Refusal("fetch", "environment", f"value {source} has {have} bytes, not {size}")
        at = 0
        while at < size:
            at += os.sendfile(target, fd, at, size - at)
    finally:
        os.close(fd)


def read_outputs(
    folder: str, ports: list[Port], blobs: str, limit_bytes: int
) -> tuple[Described, list[memoryview]]:
    """Take the outputs in; described for a frame, small ones beside it. Raises Refusal."""
    described: Described = []
    inline: list[memoryview] = []
    left = limit_bytes
    for port in ports:
        fd = _open(folder, port[0])
        try:
            shape, start, size = _examine(fd, port)
            left -= size
            if left < 0:
                text = f"the outputs take more than the task's limit of {limit_bytes} bytes"
                raise Refusal("limit", "user", text)
            file = ""
            if size > INLINE_MAX_BYTES:
                file = _copy_out(fd, start, size, port[0], blobs)
            else:
                data = os.pread(fd, size, start)
                if len(data) != size:
                    raise _wrong(port[0], "was changed while it was read")
                inline.append(memoryview(data))
        finally:
            os.close(fd)
        described.append([port[0], port[1], shape, size, file])
    return described, inline


def _wrong(name: str, what: str) -> Refusal:
    return Refusal("executor", "user", f"output {name!r} {what}")


def _open(folder: str, name: str) -> int:
    try:
        fd = os.open(f"{folder}/{name}{SUFFIX}", _READ)
    except FileNotFoundError:
        raise _wrong(name, f"is missing: the container wrote no {name}{SUFFIX}") from None
    except OSError as error:
        raise _wrong(name, f"cannot be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise _wrong(name, "is no file")
    return fd


def _examine(fd: int, port: Port) -> tuple[tuple[int, ...], int, int]:
    """Hold a file against its port; shape, where the data begins, its bytes. Raises Refusal."""
    name, number, wanted = port
    try:
        have, shape, start = npy.parse(os.pread(fd, npy.PREFIX_BYTES + npy.MAX_HEADER_BYTES, 0))
    except npy.NotNpy as error:
        raise _wrong(name, str(error)) from None
    fits = len(shape) == len(wanted) and all(
        want in (-1, axis)
        for want, axis in zip(wanted, shape)  # noqa: B905 - ranks are equal
    )
    if have != number or not fits:
        said = f"is {npy.DTYPE[have]}{list(shape)}"
        raise _wrong(name, f"{said}, the manifest says {npy.DTYPE[number]}{list(wanted)}")
    size = ITEM_BYTES[number]
    for axis in shape:
        size *= axis
    there = os.fstat(fd).st_size - start
    if there != size:
        raise _wrong(name, f"has {there} bytes of data, {npy.DTYPE[have]}{list(shape)} has {size}")
    return shape, start, size


def _copy_out(fd: int, start: int, size: int, name: str, blobs: str) -> str:
    """Write a large output into the blob folder, read once; its file there."""
    made = f"{MADE}/{os.urandom(32).hex()}"
    whole = False
    try:
        with open(f"{blobs}/{made}", "xb", buffering=0) as file:
            at = start
            while at < start + size:
                count = os.sendfile(file.fileno(), fd, at, start + size - at)
                if not count:
                    raise _wrong(name, "was changed while it was read")
                at += count
        whole = True
    except OSError as error:
        text = f"an output of {size} bytes does not fit into {blobs}: {error.strerror}"
        raise Refusal("executor", "environment", text, retryable=True) from None
    finally:
        if not whole:
            remove(f"{blobs}/{made}")
    return made


def clear(folder: str) -> None:
    """Empty a folder, whatever lies in it. Raises OSError when that cannot be done."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                images.remove_tree(entry.path)
            else:
                os.unlink(entry.path)
    if os.listdir(folder):
        raise OSError(errno.ENOTEMPTY, "it is being filled again")
