"""Following a node: a client beside it is attached to the cell that serves the node.

The device agent writes where it is attached, and where it is about to be, to a file
(option `--attachment`), anew as a whole each time.
"""

import asyncio
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

import msgspec
from msgspec import Struct

from protocols.errors import UserError
from protocols.topics import valid_name

LOOK_S: Final = 0.02
"""Between two looks at the file; one costs some microseconds."""
MAX_BYTES: Final = 4096


class Point(Struct, frozen=True):
    """A cell, and its broker as `mqtt[s]://HOST:PORT`."""

    cell: str
    broker: str

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the broker."""
        parts = urlsplit(self.broker)
        return parts.hostname or "", parts.port or 0


class Whereabouts(Struct, frozen=True):
    """What the file says."""

    node: str
    cell: str
    broker: str
    next: Point | None = None
    """Where it is about to be attached; the link there is up."""
    alone: bool = False
    """Whether what leads to the one is gone when the other is up."""

    @property
    def wanted(self) -> Point:
        """Where to be attached: ahead of the node where it moves."""
        return self.next or Point(self.cell, self.broker)


def read(path: Path) -> Whereabouts:
    """Return what the file says. Raises UserError when there is none, or it is no such file."""
    try:
        with path.open("rb") as file:
            text = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UserError(
            f"{path}: cannot tell where the node is attached: {error.strerror}; is"
            " the device agent told to write it (--attachment), and does it run?"
        ) from None
    try:
        found = msgspec.json.decode(text, type=Whereabouts)
        sound = valid_name(found.cell) and all(found.wanted.address)
        sound = sound and valid_name(found.wanted.cell)
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError):
        sound = False
    if not sound or len(text) > MAX_BYTES:
        raise UserError(f"{path}: does not say where a node is attached")
    return found


async def watch(path: Path, told: Callable[[Whereabouts], None]) -> None:
    """Tell what the file says, now and whenever it has changed, until cancelled.

    While the file is away or is none of ours, what it said last holds.
    """
    seen: tuple[int, int] | None = None
    while True:
        try:
            stat = os.stat(path)  # noqa: PTH116 - a look at a file's times takes microseconds
            now = stat.st_mtime_ns, stat.st_ino
            if now != seen:
                told(read(path))
                seen = now
        except (OSError, UserError):
            seen = None
        await asyncio.sleep(LOOK_S)
