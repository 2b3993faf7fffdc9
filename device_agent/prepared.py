"""What the first stage of the daemon's process hands to the second.

The first stage reads the configuration, recognises the board, probes the executors and reads the
journal, with everything that takes; then it becomes the daemon (same process id) by `execve`, which
begins with memory that none of this has ever touched. The lock on the data folder goes along.
"""

import os
import sys
from typing import NoReturn

import msgspec
from msgspec import Struct

from device_agent.core.events import Restored
from device_agent.told import put_off
from firmware_profiles.profile import Profile
from protocols.manifest import Dtype
from protocols.messages.presence import ExecutorInfo, Trust


class SensorFile(Struct, frozen=True):
    """A sensor as the configuration declares it."""

    path: str
    dtype: Dtype = Dtype.UINT8
    shape: tuple[int, ...] = (-1,)
    """At most one -1: as long as what is read."""


class Prepared(Struct, frozen=True):
    """Everything the daemon needs to know at its start."""

    node: str
    cell: str
    host: str
    port: int
    bundle: str
    """Path; empty on loopback."""
    data: str
    lock: int
    """Descriptor that holds the data folder."""
    profile: Profile
    why: str
    """Why it is that profile."""
    warnings: tuple[str, ...]
    executors: tuple[ExecutorInfo, ...]
    restored: Restored
    sensors: dict[str, SensorFile]
    files: str
    """Folder whose files may feed services; empty: none."""
    incarnation: int
    """The last one that was used."""
    reserved: int
    """The last one that is ours to use."""
    runtime: str = ""
    """Path of the container runtime; empty: the one that works here."""
    share: str = ""
    """HOST:PORT at which neighbours may fetch artifacts; empty: nowhere."""
    radios: int = 2
    """To how many cells it can be attached at once."""
    switch: str = ""
    """Path of the program that brings the link to another cell up; empty: none is needed."""
    keeps_address: bool = False
    """Whether its connections outlive a change of the link, and any cell is reached over each."""
    radio: str = ""
    """Who tells the signals of cells: `file:PATH`, `modem` or empty."""
    attachment: str = ""
    """File in which to say where the node is attached; empty: none."""
    trust: Trust | None = None
    """What it trusted last of those who sign artifacts; None on loopback."""


def interpreter() -> list[str]:
    """Return the command of an interpreter that looks for modules as this one does."""
    flags = sys.flags
    options = ["-P"] * flags.safe_path + ["-I"] * flags.isolated + ["-O"] * flags.optimize
    return [sys.executable, *options]


def become_daemon(prepared: Prepared, options: list[str]) -> NoReturn:
    """Replace this process by the daemon, under these options beside ours. Raises OSError."""
    handle = os.memfd_create("prepared", 0)
    os.write(handle, msgspec.msgpack.encode(prepared))
    os.lseek(handle, 0, os.SEEK_SET)
    os.set_inheritable(prepared.lock, True)
    os.set_inheritable(handle, True)
    command = [*interpreter(), *options, "-m", "device_agent.begin", str(handle)]
    put_off()
    os.execv(sys.executable, command)  # noqa: S606 - the same program, this very interpreter


def take_over(handle: int) -> Prepared:
    """Read what the first stage has left."""
    with os.fdopen(handle, "rb") as file:
        prepared = msgspec.msgpack.decode(file.read(), type=Prepared)
    os.set_inheritable(prepared.lock, False)
    return prepared
