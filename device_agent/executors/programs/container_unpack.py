"""Unpacks one image into the folder of images and exits.

What it reads is hostile: a child reads it, in bounds and in a sandbox that leaves it nothing but
the new folder. Its parent gives the folder its name; the daemon kills both when they take too long.

    container_unpack.py SOCKET_FD PARENT_PID
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import json
import os
import resource
import socket
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if __name__ == "__main__":
    # The library first: no module of ours hides one of it. Whoever imports this keeps its own path.
    _HERE: Final = os.path.dirname(os.path.realpath(__file__))
    sys.path[:] = [one for one in sys.path if os.path.realpath(one) != _HERE] + [_HERE]

if TYPE_CHECKING:
    from device_agent.executors.programs import container_image as image
    from device_agent.executors.programs import container_images as images
    from device_agent.executors.programs import container_tar as tar
    from device_agent.executors.programs import sandbox
    from device_agent.executors.programs.container_tree import Bounds, Hostile, Tree
    from device_agent.executors.programs.stream import Header, Refusal, Stream, die_with_parent
else:
    import container_image as image
    import container_images as images
    import container_tar as tar
    import sandbox
    from container_tree import Bounds, Hostile, Tree
    from stream import Header, Refusal, Stream, die_with_parent

NICENESS: Final = 10
"""Those who serve go before it, for as long as a large image takes."""
MEMORY_BYTES: Final = 512 << 20
MOUNT_POINTS: Final = ("proc", "sys", "dev", "tmp", "tona/in", "tona/out")
"""Folders that every container needs: the tree cannot be written to later."""
SPOOL: Final = "spool"


def unpack(request: Header) -> None:
    """Serve one request. Raises Refusal, or OSError of the disk."""
    folder: str = request["images"]
    name: str = request["digest"]
    keep = frozenset(request["keep"]) | {name}
    images.sweep(folder)
    images.collect(folder, keep)
    if images.about(folder, name) is not None:
        return
    # Whatever has its name without being whole.
    images.discard(folder, name)
    part = f"{images.PART}{name}"
    os.makedirs(f"{folder}/{part}/{images.ROOTFS}", mode=0o755)
    about = _unpack(request, f"{folder}/{part}")
    total: int = request["cache"]
    os.rename(f"{folder}/{part}", f"{folder}/{name}")
    if not images.make_room(folder, total, keep):
        images.discard(folder, name)
        raise Refusal(
            "limit",
            "environment",
            f"the image takes {about['bytes']} bytes, which do not fit beside those in use "
            f"into the {total} bytes for images on this node",
            retryable=True,
        )


def _unpack(request: Header, part: str) -> dict[str, Any]:
    """Have a child in a sandbox fill the folder; what it found. Raises Refusal or OSError."""
    with contextlib.ExitStack() as open_ones:
        file = open_ones.enter_context(open(request["artifact"], "rb"))
        if hashlib.file_digest(file, "sha256").hexdigest() != request["digest"]:
            text = f"artifact {request['artifact']} is not what its digest says"
            raise Refusal("executor", "environment", text)
        spool = open_ones.enter_context(open(f"{part}/{SPOOL}", "w+b"))
        os.unlink(f"{part}/{SPOOL}")
        answer = _in_a_child(lambda: _fill(request, file, spool, f"{part}/{images.ROOTFS}"))
    if "fail" in answer:
        code, blame, text, retryable = answer["fail"]
        raise Refusal(code, blame, text, retryable=retryable)
    about: dict[str, Any] = answer["about"] | {"artifact": request["artifact"]}
    with open(f"{part}/{images.ABOUT}", "x", encoding="utf-8") as about_file:
        json.dump(about, about_file)
        about_file.flush()
        # A name stands for whole content after a power cut too.
        ctypes.CDLL(None).syncfs(about_file.fileno())
    return about


def _in_a_child(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work in a process of its own; its answer, or why there is none."""
    read, write = os.pipe2(os.O_CLOEXEC)
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            die_with_parent(parent)
            with open(write, "w", encoding="utf-8") as pipe:
                json.dump(_guarded(work), pipe)
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    try:
        answer: dict[str, Any] = json.loads(text)
    except ValueError:
        why = "unpacking the image takes too much memory, or was killed"
        return {"fail": ["executor", "environment", why, True]}
    return answer


def _guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Do the work; the answer, or a failure with the blame for it."""
    try:
        return {"about": work()}
    except Hostile as hostile:
        return {"fail": ["executor", "user", f"the image is refused: {hostile}", False]}
    except image.DAMAGED as error:
        words = str(error) if isinstance(error, tar.BadTar) else f"is damaged: {error}"
        return {"fail": ["executor", "user", f"the artifact {words}", False]}
    except MemoryError:
        text = "the image is refused: reading it takes more memory than is allowed"
        return {"fail": ["limit", "user", text, False]}
    except OSError as error:
        text = f"the image cannot be unpacked: {error.strerror or error}"
        return {"fail": ["executor", "environment", text, True]}


def _shut_in(folder: str) -> None:
    """Leave this process nothing but the new folder, as far as the kernel allows, for good."""
    with contextlib.suppress(PermissionError):
        os.chroot(folder)
        os.chdir("/")
        folder = "/"
    sandbox.enter(sandbox.Plan(build=(folder,), calls=sandbox.BROAD))


def _plain(file: Any, spool: Any, limit_bytes: int) -> Any:
    """Return a file with the archive uncompressed. Raises Hostile, or one of DAMAGED."""
    size = file.seek(0, os.SEEK_END)
    source = image.expand(image.Region(file, 0, size), "the artifact")
    if isinstance(source, image.Region):
        file.seek(0)
        return file
    hashed = image.Hashed(source, limit_bytes)
    while piece := hashed.read(image.COPY_BYTES):
        spool.write(piece)
    spool.seek(0)
    return spool


def _fill(request: Header, artifact: Any, spool: Any, folder: str) -> dict[str, Any]:
    """Fill the folder; what the image says of itself. Raises Hostile, one of DAMAGED, OSError."""
    total, entries, file_bytes = request["bounds"]
    resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
    root = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    _shut_in(folder)
    file = _plain(artifact, spool, total)
    tree = Tree(root, Bounds(total, entries, file_bytes))
    layout = image.find(file)
    file.seek(0)
    if layout is None:
        tree.apply(tar.Archive(file), layer=False)
        config = image.Config([], [], [], "/")
    else:
        manifest, about = image.choose(layout, image.Platform(request["machine"]))
        config = image.config_of(about)
        image.unpack(layout, manifest, about, tree, 2 * total)
    for one in MOUNT_POINTS:
        tree.ensure(one, replace=True)
    with contextlib.suppress(Hostile):
        # Through a link of the image: the runtime finds its way inside the container.
        tree.ensure(config.cwd.lstrip("/"))
    return {
        "bytes": tree.bytes,
        "entrypoint": config.entrypoint,
        "command": config.command,
        "env": config.env,
        "cwd": config.cwd,
    }


def answer(request: Header) -> Header:
    """Unpack as asked; `fail` or nothing out."""
    try:
        unpack(request)
    except Refusal as refusal:
        return {"id": request["id"], "fail": refusal.answer}
    except OSError as error:
        text = f"the image cannot be unpacked into {request['images']}: {error.strerror or error}"
        return {"id": request["id"], "fail": ["executor", "environment", text, True]}
    finally:
        with contextlib.suppress(OSError):
            images.sweep(request["images"])
    return {"id": request["id"]}


def main(arguments: list[str]) -> int:
    """Take one request from the socket, answer it and leave."""
    die_with_parent(int(arguments[2]))
    os.umask(0o022)
    os.nice(NICENESS)
    with socket.socket(fileno=int(arguments[1])) as sock:
        stream = Stream(sock)
        frame = stream.receive()
        if frame is not None:
            stream.send(answer(frame[0]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
