"""A folder that entries of hostile archives are written into, and nowhere else.

Every name is walked one part at a time from the folder's own descriptor, and no link is ever
followed, so that whatever an archive says, what it makes lies inside. What is unpacked is for
everybody to read and for nobody to change: modes are made plain, set-user-id and owners dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import container_tar as tar
else:
    import container_tar as tar

MAX_DEPTH: Final = 64
MAX_PART_BYTES: Final = 255
MAX_LINK_BYTES: Final = 4095
ENTRY_BYTES: Final = 4096
"""What an entry takes on a disk beside its data, as we count it."""
COPY_BYTES: Final = 1 << 20
_FOLDER: Final = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD_FILE: Final = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE: Final = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_FOLDER_MODE: Final = 0o755
_PLAIN_MODE: Final = 0o644
_PROGRAM_MODE: Final = 0o755
WHITEOUT: Final = ".wh."
OPAQUE: Final = ".wh..wh..opq"

Parts = tuple[str, ...]


class Hostile(Exception):
    """An entry that we do not unpack; the text is a sentence about it."""


class Bounds:
    """What one image may take."""

    def __init__(self, total_bytes: int, entries: int, file_bytes: int) -> None:
        self.total_bytes = total_bytes
        self.entries = entries
        self.file_bytes = file_bytes


class Tree:
    """The folder, and what has been put into it."""

    def __init__(self, folder: int, bounds: Bounds) -> None:
        """`folder` is a descriptor of an empty folder that nobody else writes to.

        The process's umask is to be 022: modes are given when something is made.
        """
        self._root = folder
        self._bounds = bounds
        self.bytes = 0
        self._entries = 0
        self._layer: set[Parts] = set()
        """What the present layer has made, and the folders on the way."""
        self._white: set[Parts] = set()
        """The whiteouts of the present layer: one that comes again has nothing left to remove."""

    def apply(self, archive: tar.Archive, *, layer: bool) -> None:
        """Unpack an archive over what is there; only a layer's whiteouts remove something.

        Raises Hostile, BadTar, or OSError of the disk.
        """
        self._layer, self._white = set(), set()
        for entry in archive:
            self._count(entry)
            parts = parts_of(entry.name)
            last = parts[-1] if parts else ""
            if layer and last.startswith(WHITEOUT):
                if parts not in self._white:
                    self._white.add(parts)
                    self._white_out(parts[:-1], last)
                continue
            self._put(entry, parts, archive)
            if layer:
                self._layer.update(parts[:length] for length in range(1, len(parts) + 1))

    def ensure(self, name: str, *, replace: bool = False) -> None:
        """Have a folder there, in the place of whatever is no folder if asked. Raises Hostile."""
        parts = parts_of(name)
        if replace:
            for length in range(1, len(parts) + 1):
                with self._parent(parts[:length]) as (parent, last):
                    if not _is_folder(parent, last):
                        _remove(parent, last)
                        os.mkdir(last, _FOLDER_MODE, dir_fd=parent)
        with self._parent((*parts, ".")):
            pass

    def _count(self, entry: tar.Entry) -> None:
        self._count_one(entry.name)
        if entry.size > self._bounds.file_bytes:
            raise Hostile(
                f"{entry.name[:200]!r} has {entry.size} bytes, "
                f"a file may have {self._bounds.file_bytes}"
            )
        self._take(entry.name, entry.size)

    def _count_one(self, name: str) -> None:
        """Count an entry, or a folder on the way to one. Raises Hostile."""
        self._entries += 1
        if self._entries > self._bounds.entries:
            raise Hostile(f"it holds more than the {self._bounds.entries} entries that are taken")
        self._take(name, ENTRY_BYTES)

    def _take(self, name: str, size: int) -> None:
        """Count so many bytes more. Raises Hostile when there is no room."""
        self.bytes += size
        if self.bytes > self._bounds.total_bytes:
            text = f"unpacked it takes more than {self._bounds.total_bytes} bytes"
            raise Hostile(f"{text}, at {name[:200]!r}")

    def _put(self, entry: tar.Entry, parts: Parts, archive: tar.Archive) -> None:
        if entry.kind == tar.FOLDER:
            self._put_folder(parts)
            return
        if not parts:
            raise Hostile(f"{entry.name[:200]!r}, the root, is a {entry.kind}")
        if entry.kind == tar.FILE:
            self._put_file(entry, parts, archive)
        elif entry.kind == tar.SYMLINK:
            self._put_symlink(entry, parts)
        elif entry.kind == tar.HARD_LINK:
            self._put_hard_link(entry, parts)
        else:
            raise Hostile(f"{entry.name[:200]!r} is a {entry.kind}: leave it out of the image")

    def _put_folder(self, parts: Parts) -> None:
        if not parts:
            return
        with self._parent(parts) as (parent, last):
            if not _is_folder(parent, last):
                _remove(parent, last)
                os.mkdir(last, _FOLDER_MODE, dir_fd=parent)

    def _put_file(self, entry: tar.Entry, parts: Parts, archive: tar.Archive) -> None:
        mode = _PROGRAM_MODE if entry.mode & 0o111 else _PLAIN_MODE
        with self._parent(parts) as (parent, last):
            _remove(parent, last)
            with open(os.open(last, _NEW_FILE, mode, dir_fd=parent), "wb", buffering=0) as file:
                for piece in archive.blocks():
                    _write_all(file.fileno(), piece)
                with contextlib.suppress(OverflowError, OSError):
                    # Python holds its compiled files against the time of their source.
                    os.utime(file.fileno(), (entry.mtime, entry.mtime))

    def _put_symlink(self, entry: tar.Entry, parts: Parts) -> None:
        target = entry.link
        if not target or len(os.fsencode(target)) > MAX_LINK_BYTES or not _printable(target):
            raise Hostile(f"{entry.name[:200]!r} links to {target[:200]!r}, which is no name")
        _check_link(entry.name, parts, target)
        with self._parent(parts) as (parent, last):
            _remove(parent, last)
            os.symlink(target, last, dir_fd=parent)

    def _put_hard_link(self, entry: tar.Entry, parts: Parts) -> None:
        source = parts_of(entry.link)
        if not source or source == parts:
            raise Hostile(f"{entry.name[:200]!r} is a hard link to {entry.link[:200]!r}")
        try:
            with self._parent(source, make=False) as (folder, name):
                about = os.stat(name, dir_fd=folder, follow_symlinks=False)
                if not (stat.S_ISREG(about.st_mode) or stat.S_ISLNK(about.st_mode)):
                    raise Hostile(f"{entry.name[:200]!r} is a hard link to what is no file")
                # Elsewhere the same words may lead out.
                if stat.S_ISLNK(about.st_mode):
                    _check_link(entry.name, parts, os.readlink(name, dir_fd=folder))
                with self._parent(parts) as (parent, last):
                    _remove(parent, last)
                    self._link(folder, name, parent, last)
        except FileNotFoundError:
            text = f"{entry.name[:200]!r} is a hard link to {entry.link[:200]!r}, which is not here"
            raise Hostile(text) from None

    def _link(self, folder: int, name: str, parent: int, last: str) -> None:
        """Have the same file there, or its like where the kernel confines links to a folder."""
        try:
            os.link(name, last, src_dir_fd=folder, dst_dir_fd=parent, follow_symlinks=False)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EMLINK):
                raise
            about = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if stat.S_ISLNK(about.st_mode):
                os.symlink(os.readlink(name, dir_fd=folder), last, dir_fd=parent)
                return
            self._take(last, about.st_size)
            source = os.open(name, _OLD_FILE, dir_fd=folder)
            mode = stat.S_IMODE(about.st_mode)
            with (
                open(source, "rb", buffering=0) as old,
                open(os.open(last, _NEW_FILE, mode, dir_fd=parent), "wb", buffering=0) as new,
            ):
                while piece := old.read(COPY_BYTES):
                    _write_all(new.fileno(), piece)
                os.utime(new.fileno(), ns=(about.st_mtime_ns, about.st_mtime_ns))

    def _white_out(self, folder: Parts, last: str) -> None:
        """Remove what lower layers have; what this layer itself has made stays."""
        try:
            if last == OPAQUE:
                with self._parent((*folder, "."), make=False) as (here, _):
                    for name in os.listdir(here):
                        self._hide((*folder, name), here)
            elif not last.startswith(WHITEOUT * 2):
                name = last[len(WHITEOUT) :]
                if name in ("", ".", ".."):
                    raise Hostile(f"{last!r} is a whiteout of no name")
                with self._parent((*folder, name), make=False) as (here, _):
                    self._hide((*folder, name), here)
        except FileNotFoundError:
            return

    def _hide(self, parts: Parts, parent: int) -> None:
        if parts not in self._layer:
            _remove(parent, parts[-1])
        elif _is_folder(parent, parts[-1]):
            fd = os.open(parts[-1], _FOLDER, dir_fd=parent)
            try:
                for name in os.listdir(fd):
                    self._hide((*parts, name), fd)
            finally:
                os.close(fd)

    @contextlib.contextmanager
    def _parent(self, parts: Parts, *, make: bool = True) -> Iterator[tuple[int, str]]:
        """Open the folder of a name, made if need be, following no link; it and the last part.

        Raises Hostile, or FileNotFoundError when it is not to be made.
        """
        fd = os.dup(self._root)
        try:
            for depth, part in enumerate(parts[:-1], 1):
                fd = self._step(fd, part, parts[:depth], make=make)
            yield fd, parts[-1]
        finally:
            os.close(fd)

    def _step(self, fd: int, part: str, so_far: Parts, *, make: bool) -> int:
        """Open a folder in a folder that is closed by this, but for an error."""
        try:
            below = os.open(part, _FOLDER, dir_fd=fd)
        except FileNotFoundError:
            if not make:
                raise
            self._count_one(part)
            os.mkdir(part, _FOLDER_MODE, dir_fd=fd)
            below = os.open(part, _FOLDER, dir_fd=fd)
        except OSError as error:
            if error.errno not in (errno.ENOTDIR, errno.ELOOP):
                raise
            text = f"an entry lies under {'/'.join(so_far)[:200]!r}, which is a link or a file"
            raise Hostile(text) from None
        os.close(fd)
        return below


def parts_of(name: str) -> Parts:
    """Take a name in an archive apart. Raises Hostile for one that leads out of it."""
    if name.startswith("/"):
        raise Hostile(f"{name[:200]!r} is an absolute name")
    if not _printable(name):
        raise Hostile(f"{name[:200]!r} has control characters in its name")
    parts = tuple(one for one in name.split("/") if one not in ("", "."))
    if ".." in parts:
        raise Hostile(f"{name[:200]!r} leads out of the image by '..'")
    if len(parts) > MAX_DEPTH:
        raise Hostile(f"{name[:200]!r}... lies {len(parts)} folders deep, at most {MAX_DEPTH}")
    if any(len(os.fsencode(one)) > MAX_PART_BYTES for one in parts):
        raise Hostile(f"{name[:200]!r}... has a part of more than {MAX_PART_BYTES} bytes")
    return parts


def _printable(name: str) -> bool:
    """Whether a name has no control characters, and stands for bytes at all."""
    return not any(one < " " or one == "\x7f" or "\ud800" <= one < "\udc80" for one in name)


def _check_link(name: str, parts: Parts, target: str) -> None:
    """Hold a link that is to stand at a place against the image. Raises Hostile."""
    if _climbs(parts[:-1], target):
        raise Hostile(f"{name[:200]!r} links to {target[:200]!r}, outside of the image")


def _climbs(folder: Parts, target: str) -> bool:
    """Whether a relative link leads above the root, as it is written."""
    if target.startswith("/"):
        # The container's own root; nobody else follows it.
        folder = ()
    height = len(folder)
    for part in target.split("/"):
        if part == "..":
            height -= 1
        elif part not in ("", "."):
            height += 1
        if height < 0:
            return True
    return False


def _is_folder(parent: int, name: str) -> bool:
    try:
        return stat.S_ISDIR(os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode)
    except FileNotFoundError:
        return False


def _remove(parent: int, name: str) -> None:
    """Remove whatever has this name, if anything."""
    try:
        os.unlink(name, dir_fd=parent)
    except FileNotFoundError:
        return
    except (IsADirectoryError, PermissionError):
        if not _is_folder(parent, name):
            raise
        shutil.rmtree(name, dir_fd=parent)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left.nbytes:
        left = left[os.write(fd, left) :]
