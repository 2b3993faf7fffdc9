"""A node's radio, as its device agent meets it: a file of signals, and a program that switches.

The file (`--radio file:PATH`) says how strong each cell is that is heard. The program (`--switch`)
is a shell script, for it has to be quick: it writes the cell into one pipe, and reads from another
one to which cell the radio has come.
"""

import asyncio
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from protocols.topics import valid_name
from tona.testbed.replay import Signal

SCRIPT: Final = """#!/bin/sh
# Brings the radio to the cell named first; ends with 0 when it is there.
printf '%s %s\\n' "$1" "$$" > '{asked}' || exit 1
while read -r who at; do
  # What another one has left unread is passed over.
  [ "$who" != "$$" ] || {{ [ "$at" = "$1" ]; exit; }}
done < '{told}'
"""
READ_BYTES: Final = 4096
SIGNALS: Final = "signals.json"
SWITCH: Final = "switch"
ATTACHMENT: Final = "attachment.json"
"""Files in the folder of a radio; the last one is the device agent's, for the client beside it."""


class Radio:
    """One node's radio, in a folder of its own; `tune` is told where it is to go."""

    def __init__(self, folder: Path, tune: Callable[[str], None]) -> None:
        self._signals = folder / SIGNALS
        self._switch = folder / SWITCH
        self._folder = folder
        self._tune = tune
        self._asked = self._told = -1
        self._waits = ""
        """The process id of the program that waits."""

    def start(self) -> None:
        """Make file, program and pipes; from now on the program is heard. Raises OSError."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        asked, told = self._folder / "asked", self._folder / "told"
        for pipe in (asked, told):
            os.mkfifo(pipe, 0o600)
        # Both ends are ours as well, so that neither side waits for the other to open.
        self._asked, self._told = (
            os.open(pipe, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC) for pipe in (asked, told)
        )
        self._switch.write_text(SCRIPT.format(asked=asked, told=told), encoding="utf-8")
        self._switch.chmod(0o700)
        self.say({})
        asyncio.get_running_loop().add_reader(self._asked, self._heard)

    def say(self, signals: Mapping[str, Signal]) -> None:
        """Write what is heard now."""
        draft = self._signals.with_suffix(".new")
        draft.write_bytes(msgspec.json.encode(signals))
        draft.replace(self._signals)

    def came_to(self, cell: str) -> None:
        """Tell the program that waits where the radio is; empty: it could not go."""
        who, self._waits = self._waits, ""
        if who:
            # A pipe that is full has nobody who reads.
            with suppress(BlockingIOError):
                os.write(self._told, f"{who} {cell}\n".encode())

    def stop(self) -> None:
        """Hear nothing more; safe before `start`."""
        if self._asked >= 0:
            asyncio.get_running_loop().remove_reader(self._asked)
            os.close(self._asked)
            os.close(self._told)
            self._asked = self._told = -1
            self._waits = ""

    def _heard(self) -> None:
        with suppress(BlockingIOError):
            for line in os.read(self._asked, READ_BYTES).decode(errors="replace").split("\n"):
                cell, _, who = line.partition(" ")
                if valid_name(cell) and who.isdecimal():
                    self._waits = who
                    self._tune(cell)
