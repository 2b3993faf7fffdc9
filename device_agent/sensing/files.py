"""Small kernel files, kept open: a sample is one `pread` each, no path look-up."""

import errno
import os
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from msgspec import Struct

MAX_MATCHES: Final = 64
MAX_TEXT_BYTES: Final = 4096
_REFUSED: Final = (errno.EACCES, errno.EPERM)


class KernelFile:
    """An open file of /proc or /sys. The kernel writes it anew for each read at offset 0."""

    __slots__ = ("_descriptor", "_size")

    def __init__(self, path: Path, size: int = MAX_TEXT_BYTES) -> None:
        """Open the file. Raises OSError when it is not there or not ours to read."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self._size = size

    def read(self) -> bytes | None:
        """Return up to `size` bytes, or None when the kernel gives nothing now."""
        try:
            return os.pread(self._descriptor, self._size, 0) or None
        except OSError:
            return None

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Found(Struct, frozen=True):
    """The files of one pattern, and those that are there but not ours to read."""

    files: tuple[KernelFile, ...]
    refused: tuple[str, ...]


def open_all(paths: tuple[Path, ...], root: Path) -> Found:
    """Open every path that can be read; name the others by their path on the live system."""
    files: list[KernelFile] = []
    refused: list[str] = []
    for path in paths:
        try:
            files.append(KernelFile(path))
        except OSError as error:
            if error.errno in _REFUSED:
                refused.append(f"/{path.relative_to(root)}")
    return Found(tuple(files), tuple(refused))


def open_one(path: Path, size: int = MAX_TEXT_BYTES) -> KernelFile | None:
    """Open a file, or return None when it is not there or not readable."""
    try:
        return KernelFile(path, size)
    except OSError:
        return None


def expand(root: Path, pattern: str, base: Path | None = None) -> tuple[Path, ...]:
    """Return what a profile's path means under `root`, sorted; `./` starts in `base`.

    A path without wildcards is returned as it is, whether there is such a file or not: opening it
    tells an absent file from a forbidden one.
    """
    if pattern.startswith("./"):
        folder, relative = base or root, pattern[2:]
    else:
        folder, relative = root, pattern.lstrip("/")
    if not any(sign in relative for sign in "*?["):
        return (folder / relative,)
    return tuple(sorted(folder.glob(relative), key=_natural))[:MAX_MATCHES]


def fits(folder: Path, where: dict[str, str]) -> bool:
    """Whether every named file in the folder has a text that fits its pattern."""
    return all(fnmatchcase(text(folder / name), pattern) for name, pattern in where.items())


def text(path: Path, size: int = MAX_TEXT_BYTES) -> str:
    """Return a small file's text without its end of line; empty when there is none."""
    try:
        with path.open("rb", buffering=0) as file:
            return (file.read(size) or b"").decode("utf-8", "replace").strip()
    except OSError:
        return ""


def _natural(path: Path) -> tuple[int, str]:
    """Sort hwmon10 behind hwmon9."""
    return len(str(path)), str(path)
