"""Sources that are read: sensors that the configuration names, and files of one folder.

A sensor is a file that is read anew each time: a value of sysfs, a device, the snapshot of a
camera. Files lie below the folder that the configuration names; no `..`, no link and no other kind
of file leads out of it. A name that is a folder gives its files one after another, by name.

Reading blocks, so it happens in threads, which are there only while something is read.
"""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from msgspec import Struct

from device_agent.core.commands import ReadSource
from device_agent.core.pictures import decimate
from device_agent.prepared import SensorFile
from protocols.errors import EnvironmentFailure
from protocols.manifest import Dtype, tensor_bytes
from protocols.messages.quality import SourceKind

SOURCE_MAX_BYTES: Final = 32 << 20
_READ_BYTES: Final = 1 << 20
_PLAIN: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY
_FOLDER: Final = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY | os.O_NOFOLLOW


class Reading(Struct, frozen=True):
    """What a source gave."""

    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes
    cursor: str = ""


class Unusable(EnvironmentFailure):
    """A file of a folder cannot be used; the next one may be."""

    def __init__(self, text: str, cursor: str) -> None:
        super().__init__(text)
        self.cursor = cursor


class Sources:
    """The sensors and files of this node."""

    def __init__(self, sensors: dict[str, SensorFile], files: Path | None) -> None:
        self._sensors = sensors
        self._files = files

    @property
    def names(self) -> tuple[str, ...]:
        """The sensors of the configuration."""
        return tuple(sorted(self._sensors))

    def read(self, command: ReadSource) -> Reading | None:
        """Read a source now; None when a folder has nothing new.

        Raises EnvironmentFailure; Unusable where the fault is one file's of a folder.
        """
        try:
            if command.kind is SourceKind.SENSOR:
                data, cursor = self._sensor(command), ""
            else:
                found = self._file(command.name, command.cursor)
                if found is None:
                    return None
                data, cursor = found
        except OSError as error:
            text = f"source {command.name!r} cannot be read: {error.strerror}"
            raise EnvironmentFailure(text) from None
        shape = fit(command.dtype, command.shape, len(data))
        if shape is None:
            raise Unusable(
                f"source {command.name!r} gave {len(data)} bytes, which is no "
                f"{command.dtype.value}{list(command.shape)}",
                cursor,
            )
        shape, data = decimate(command.dtype, shape, data, command.decimation)
        return Reading(command.dtype, shape, data, cursor)

    def _sensor(self, command: ReadSource) -> bytes:
        """Read a sensor: a device that never ends gives as much as the shape asks for."""
        sensor = self._sensors.get(command.name)
        if sensor is None:
            told = f"this node has no sensor {command.name!r}: name it in [sensors]"
            raise EnvironmentFailure(told)
        endless = -1 in command.shape
        most = SOURCE_MAX_BYTES if endless else tensor_bytes(command.dtype, command.shape)
        if most > SOURCE_MAX_BYTES:
            raise _too_much(command.name)
        with _closing(os.open(sensor.path, _PLAIN)) as handle:
            return _read(handle, command.name, most, whole=endless)

    def _file(self, name: str, cursor: str) -> tuple[bytes, str] | None:
        if self._files is None:
            raise EnvironmentFailure("files do not feed services on this node: set `files`")
        parts = name.split("/")
        if not all(part and part not in {".", ".."} and "\0" not in part for part in parts):
            raise EnvironmentFailure(f"file {name!r} does not lie below the folder of this node")
        with _closing(os.open(self._files, _FOLDER & ~os.O_NOFOLLOW)) as root:
            return self._below(root, parts, name, cursor)

    def _below(
        self, folder: int, parts: list[str], name: str, cursor: str
    ) -> tuple[bytes, str] | None:
        """Go down one level: each is opened in the one above, so no link is ever followed."""
        part, rest = parts[0], parts[1:]
        if rest:
            with _closing(os.open(part, _FOLDER, dir_fd=folder)) as next_one:
                return self._below(next_one, rest, name, cursor)
        with _closing(os.open(part, _PLAIN | os.O_NOFOLLOW, dir_fd=folder)) as handle:
            mode = os.fstat(handle).st_mode
            if stat.S_ISREG(mode):
                return _read(handle, name), ""
            if not stat.S_ISDIR(mode):
                raise EnvironmentFailure(f"{name!r} is no file and no folder")
            return _next(handle, name, cursor)


def _next(folder: int, name: str, cursor: str) -> tuple[bytes, str] | None:
    """Return the first file of a folder after a name; hidden ones are on their way."""
    for one in sorted(one for one in os.listdir(folder) if one > cursor and one[0] != "."):
        try:
            handle = os.open(one, _PLAIN | os.O_NOFOLLOW, dir_fd=folder)
        except OSError:
            continue
        with _closing(handle):
            if stat.S_ISREG(os.fstat(handle).st_mode):
                try:
                    return _read(handle, f"{name}/{one}"), one
                except EnvironmentFailure as error:
                    raise Unusable(str(error), one) from None
    return None


@contextmanager
def _closing(handle: int) -> Iterator[int]:
    """Close a descriptor at the end."""
    try:
        yield handle
    finally:
        os.close(handle)


def _read(handle: int, name: str, most: int = SOURCE_MAX_BYTES, *, whole: bool = True) -> bytes:
    """Read a file, or its first bytes, up to a bound."""
    parts: list[bytes] = []
    size = 0
    while size < most + whole and (part := os.read(handle, min(_READ_BYTES, most + whole - size))):
        parts.append(part)
        size += len(part)
    if size > most:
        raise _too_much(name)
    return b"".join(parts)


def _too_much(name: str) -> EnvironmentFailure:
    return EnvironmentFailure(f"source {name!r} has more than {SOURCE_MAX_BYTES} bytes")


def fit(dtype: Dtype, shape: tuple[int, ...], size: int) -> tuple[int, ...] | None:
    """Return the shape of so many bytes, its one -1 filled in; None when they do not fit."""
    known = tensor_bytes(dtype, tuple(axis for axis in shape if axis != -1))
    if -1 not in shape:
        return shape if known == size else None
    if shape.count(-1) > 1 or not known or size % known:
        return None
    return tuple(size // known if axis == -1 else axis for axis in shape)
