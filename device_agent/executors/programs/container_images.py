"""The folder of unpacked images, each under the hex of its artifact's digest.

    HEX/about.json    what unpacking found: artifact, bytes, command line, environment, folder
    HEX/rootfs/       the root file system, for everybody to read
    .part-HEX/        one that is being unpacked, or taken away

The folder is the truth: a name stands for a whole image, whatever was killed when.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from typing import Any, Final

PART: Final = ".part-"
ABOUT: Final = "about.json"
ROOTFS: Final = "rootfs"
_HEX: Final = re.compile(r"[0-9a-f]{64}")


def about(images: str, name: str) -> dict[str, Any] | None:
    """Return what is known of an unpacked image; None when there is none. Renews its age."""
    path = f"{images}/{name}/{ABOUT}"
    try:
        with open(path, encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
        os.utime(path)
    except (OSError, ValueError):
        return None
    return found


def names(images: str) -> list[str]:
    """Return the names of unpacked images, the least lately used first."""
    aged = []
    for name in os.listdir(images):
        if _HEX.fullmatch(name):
            try:
                used = os.stat(f"{images}/{name}/{ABOUT}").st_mtime_ns
            except OSError:
                used = 0
            aged.append((used, name))
    return [name for _, name in sorted(aged)]


def remove_tree(path: str) -> None:
    """Remove a folder and all below as far as that is possible; no link is followed.

    Not shutil's, which brings every compressor into a process that stays.
    """
    with contextlib.suppress(OSError):
        for _, folders, files, fd in os.fwalk(path, topdown=False):
            for name in (*folders, *files):
                with contextlib.suppress(OSError):
                    _remove(name, fd)
        os.rmdir(path)


def _remove(name: str, folder: int) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        os.rmdir(name, dir_fd=folder)


def discard(images: str, name: str) -> None:
    """Take an image away: at once out of sight, then its files."""
    part = f"{images}/{PART}{name}"
    remove_tree(part)
    with contextlib.suppress(OSError):
        os.rename(f"{images}/{name}", part)
    remove_tree(part)


def collect(images: str, keep: frozenset[str]) -> None:
    """Take away the images whose artifact is gone, but for those in use."""
    for name in names(images):
        found = about_quietly(images, name)
        if name not in keep and (found is None or not os.path.exists(found["artifact"])):
            discard(images, name)


def about_quietly(images: str, name: str) -> dict[str, Any] | None:
    """Return what is known of an unpacked image without renewing its age."""
    try:
        with open(f"{images}/{name}/{ABOUT}", encoding="utf-8") as file:
            found: dict[str, Any] = json.load(file)
    except (OSError, ValueError):
        return None
    return found if "artifact" in found and "bytes" in found else None


def sweep(images: str) -> None:
    """Remove what an unpacking that was killed has left; none may be under way."""
    for name in os.listdir(images):
        if name.startswith(PART):
            remove_tree(f"{images}/{name}")


def make_room(images: str, max_bytes: int, keep: frozenset[str]) -> bool:
    """Take the least lately used away until the rest fits; whether it does."""
    sizes = {}
    for name in names(images):
        found = about_quietly(images, name)
        sizes[name] = found["bytes"] if found else 0
    total = sum(sizes.values())
    for name, size in sizes.items():
        if total <= max_bytes:
            break
        if name not in keep:
            discard(images, name)
            total -= size
    return total <= max_bytes
