"""Links and addresses pushed by the kernel: a non-blocking socket around the pure table."""

import errno
import os
import socket
from collections import Counter
from typing import Final

from msgspec import Struct

from device_agent.sensing.rtnetlink import (
    GROUPS,
    DumpDone,
    Event,
    Interface,
    Kind,
    Refused,
    RouteSeen,
    Table,
    dump_request,
    parse,
    route_request,
)
from protocols.errors import EnvironmentFailure, MalformedFrame

DATAGRAM_BYTES: Final = 64 * 1024
MAX_DATAGRAMS: Final = 256
"""Read in one go; the loop calls again for more."""
MAX_DUMPS: Final = 8
"""Attempts to get a dump that nothing interrupted, one after the other."""


class Change(Struct, frozen=True):
    """One interface before and after; None where it was not, or is not, there."""

    before: Interface | None
    after: Interface | None


class LinkMonitor:
    """Follows every interface of this network namespace.

    Put `fileno()` into the loop and call `read()` whenever it is readable. When the kernel has
    dropped messages (ENOBUFS) everything is asked for anew; a change is then reported late, not
    lost.
    """

    def __init__(self, *, receive_bytes: int | None = None) -> None:
        """Subscribe, then take in all that is there. Raises OSError without netlink."""
        self._table = Table()
        self._sequence = 0
        self._stage: Kind | None = None
        self._again = False
        self._dumps = 0
        self.dropped: Counter[str] = Counter()
        """What was not taken in, by reason: `overrun`, `malformed`, `foreign`, `refused`."""
        flags = socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | flags, socket.NETLINK_ROUTE
        )
        try:
            if receive_bytes is not None:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            self._socket.bind((0, GROUPS))
            self._dump()
            self.read()
        except (OSError, EnvironmentFailure):
            self._socket.close()
            raise

    @property
    def interfaces(self) -> tuple[Interface, ...]:
        """Every interface as last heard, by index."""
        return tuple(one for _, one in sorted(self._table.interfaces.items()))

    def get(self, index: int) -> Interface | None:
        """Return the interface of this index."""
        return self._table.interfaces.get(index)

    def fileno(self) -> int:
        """Return the descriptor for the loop."""
        return self._socket.fileno()

    def read(self) -> tuple[Change, ...]:
        """Take in what the kernel has said and return what has changed by it. Never blocks.

        Raises EnvironmentFailure when the socket is of no use any more.
        """
        before = dict(self._table.interfaces)
        try:
            for _ in range(MAX_DATAGRAMS):
                self._receive()
        except BlockingIOError:
            pass  # all read
        except OSError as error:
            raise EnvironmentFailure(f"netlink: {os.strerror(error.errno or 0)}") from error
        after = self._table.interfaces
        return tuple(
            Change(before.get(index), after.get(index))
            for index in sorted(before.keys() | after.keys())
            if before.get(index) != after.get(index)
        )

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def _receive(self) -> None:
        try:
            datagram, sender = self._socket.recvfrom(DATAGRAM_BYTES)
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            self.dropped["overrun"] += 1
            self._dumps = 0
            self._restart()
            return
        self._take(datagram, sender[0])

    def _take(self, datagram: bytes, sender: int) -> None:
        if sender != 0:
            self.dropped["foreign"] += 1  # only the kernel's word counts
            return
        try:
            events = parse(datagram)
        except MalformedFrame:
            self.dropped["malformed"] += 1
            return
        for event in events:
            self._follow(event)

    def _follow(self, event: Event) -> None:
        match event:
            case DumpDone(sequence, interrupted):
                if sequence == self._sequence:
                    self._again = self._again or interrupted
                    self._next_stage()
            case Refused(sequence, code) if code and sequence == self._sequence:
                self.dropped["refused"] += 1
                if self._dumps >= MAX_DUMPS:
                    raise EnvironmentFailure(f"netlink names no links: {os.strerror(code)}")
                self._dump()
            case _:
                self._table.apply(event)

    def _restart(self) -> None:
        """Dump anew, or when a dump is under way (the kernel runs one at a time) after it."""
        if self._stage is None:
            self._dump()
        else:
            self._again = True

    def _dump(self) -> None:
        self._again = False
        self._dumps += 1
        self._table.begin()
        self._request(Kind.GET_LINK)

    def _next_stage(self) -> None:
        if self._stage is Kind.GET_LINK:
            self._request(Kind.GET_ADDRESS)
            return
        self._stage = None
        if self._again and self._dumps < MAX_DUMPS:
            self._dump()
            return
        self._dumps = 0
        self._table.finish()

    def _request(self, kind: Kind) -> None:
        self._sequence += 1
        self._stage = kind
        self._socket.send(dump_request(kind, self._sequence))


def route(address: str) -> RouteSeen | None:
    """Ask the kernel which way leads to a numeric address; None when none does.

    Raises ValueError when the address is not numeric. The kernel answers before `send` returns, so
    nothing waits here.
    """
    request = route_request(address, 1)
    with socket.socket(
        socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
    ) as asking:
        asking.setblocking(False)
        try:
            asking.send(request)
            events = parse(asking.recv(DATAGRAM_BYTES))
        except (OSError, MalformedFrame):
            return None
    return next((one for one in events if isinstance(one, RouteSeen) and one.index), None)
