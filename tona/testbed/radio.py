"""What a node's radio says of the cells around it, and what the node may ask of it.

A Unix stream socket per node, JSON with an object a line. The radio tells every cell that is heard
and which links carry, at once and at every change; a node with one radio may have it tuned:

    radio: {"cells": {"du-1": {"rsrp_dbm": -93.0, "rsrq_db": -9.0}}, "up": ["du-1"]}
    node:  {"tune": "du-2"}
"""

import asyncio
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec
from msgspec import Struct

from protocols.base import Name
from tona.testbed.replay import Signal

LINE_MAX_BYTES: Final = 4096


class Heard(Struct, frozen=True, omit_defaults=True):
    """What the radio says now."""

    cells: dict[str, Signal] = {}
    up: tuple[str, ...] = ()


class Tune(Struct, frozen=True, forbid_unknown_fields=True):
    """What the node asks for."""

    tune: Name


class Radio:
    """One node's radio; `tune` is told where it is to go."""

    def __init__(self, path: Path, tune: Callable[[str], None]) -> None:
        self.path = path
        self.heard = Heard()
        self._tune = tune
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self.path.unlink(missing_ok=True)
        self._server = await asyncio.start_unix_server(
            self._serve, str(self.path), limit=LINE_MAX_BYTES
        )

    def say(self, heard: Heard) -> None:
        """Tell what is heard now, if that is another thing than before."""
        if heard == self.heard:
            return
        self.heard = heard
        for writer in self._writers:
            self._write(writer)

    async def stop(self) -> None:
        """Listen no more; safe before `start`."""
        if self._server is not None:
            self._server.close()
        for writer in list(self._writers):
            writer.transport.abort()
        self.path.unlink(missing_ok=True)

    def _write(self, writer: asyncio.StreamWriter) -> None:
        if writer.transport.get_write_buffer_size() <= LINE_MAX_BYTES:
            writer.write(msgspec.json.encode(self.heard) + b"\n")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        self._write(writer)
        try:
            with suppress(OSError, ValueError):
                while line := await reader.readline():
                    self._asked(line)
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    def _asked(self, line: bytes) -> None:
        try:
            wanted = msgspec.json.decode(line, type=Tune)
        except msgspec.DecodeError as error:
            print(f"{self.path.name}: not understood: {error}", file=sys.stderr)  # noqa: T201 - log
            return
        self._tune(wanted.tune)
