"""The kernel's language for links and addresses, and the table that follows it. Pure.

`parse` turns a datagram into events, `Table.apply` folds events into interfaces. A dump names
everything that is there; what a whole dump did not name is gone (`begin`, then `finish`).
"""

import socket
import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final

from msgspec import Struct

from protocols.errors import MalformedFrame

MAX_INTERFACES: Final = 4096
MAX_ADDRESSES: Final = 256
"""Per interface; the kernel allows more."""

GROUPS: Final = 0x1 | 0x10 | 0x100
"""RTMGRP_LINK, RTMGRP_IPV4_IFADDR, RTMGRP_IPV6_IFADDR."""

_HEADER: Final = struct.Struct("=IHHII")
_LINK: Final = struct.Struct("=BxHiII")
_ADDRESS: Final = struct.Struct("=BBBBI")
_ROUTE: Final = struct.Struct("=BBBBBBBBI")
_ATTRIBUTE: Final = struct.Struct("=HH")
_ERRNO: Final = struct.Struct("=i")
_WORD: Final = struct.Struct("=I")

_REQUEST: Final = 0x1
_DUMP: Final = 0x300
_DUMP_INTERRUPTED: Final = 0x10
_TYPE_MASK: Final = 0x3FFF
_IFF_UP: Final = 0x1
_IFLA_IFNAME: Final = 3
_IFLA_OPERSTATE: Final = 16
_IFLA_CARRIER: Final = 33
_OPERATING: Final = (b"\0", b"\6")
"""IF_OPER_UNKNOWN (loopback and simple drivers) and IF_OPER_UP; dormant Wi-Fi is not there yet."""
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_FLAGS: Final = 8
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_PREFSRC: Final = 7
_TENTATIVE: Final = 0x40 | 0x8
"""IFA_F_TENTATIVE and IFA_F_DADFAILED: not usable, or not yet."""


class Kind(IntEnum):
    """Message types that we speak."""

    ERROR = 2
    DONE = 3
    NEW_LINK = 16
    DEL_LINK = 17
    GET_LINK = 18
    NEW_ADDRESS = 20
    DEL_ADDRESS = 21
    GET_ADDRESS = 22
    NEW_ROUTE = 24
    GET_ROUTE = 26


class LinkSeen(Struct, frozen=True):
    """An interface is there, in this state."""

    index: int
    name: str
    arp_type: int
    up: bool
    carrier: bool


class LinkGone(Struct, frozen=True):
    """An interface has gone, and its addresses with it."""

    index: int


class AddressSeen(Struct, frozen=True):
    """An interface has a usable address."""

    index: int
    address: str


class AddressGone(Struct, frozen=True):
    """An interface has an address no more, or not yet."""

    index: int
    address: str


class RouteSeen(Struct, frozen=True):
    """The answer to a look-up: by which interface and from which address."""

    index: int
    source: str


class DumpDone(Struct, frozen=True):
    """Everything has been named. Interrupted: it changed meanwhile and has to be asked again."""

    sequence: int
    interrupted: bool


class Refused(Struct, frozen=True):
    """The kernel refused a request; `code` is an errno."""

    sequence: int
    code: int


Event = LinkSeen | LinkGone | AddressSeen | AddressGone | RouteSeen | DumpDone | Refused


class Interface(Struct, frozen=True):
    """A network interface; `carrier` says that it is up and something answers at the other end."""

    index: int
    name: str
    arp_type: int
    up: bool
    carrier: bool
    addresses: tuple[str, ...] = ()


def dump_request(kind: Kind, sequence: int) -> bytes:
    """Return the request for all links or all addresses."""
    body = _LINK.pack(0, 0, 0, 0, 0)
    return _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | _DUMP, sequence, 0) + body


def route_request(address: str, sequence: int) -> bytes:
    """Return the look-up of the way to a numeric address. Raises ValueError when it is none."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        packed = socket.inet_pton(family, address.partition("%")[0])
    except OSError:
        raise ValueError(f"{address} is no numeric address") from None
    body = _ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    body += _ATTRIBUTE.pack(_ATTRIBUTE.size + len(packed), _RTA_DST) + packed
    return _HEADER.pack(_HEADER.size + len(body), Kind.GET_ROUTE, _REQUEST, sequence, 0) + body


def parse(datagram: bytes) -> list[Event]:
    """Return the events of one datagram. Raises MalformedFrame; unknown types are passed over."""
    try:
        return list(_events(datagram))
    except (struct.error, ValueError) as error:
        raise MalformedFrame(f"netlink: {error}") from error


def _events(datagram: bytes) -> Iterator[Event]:
    offset = 0
    while offset < len(datagram):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(datagram, offset)
        if length < _HEADER.size or offset + length > len(datagram):
            raise MalformedFrame(f"netlink: a message of {length} bytes does not fit")
        body = datagram[offset + _HEADER.size : offset + length]
        if kind == Kind.DONE:
            yield DumpDone(sequence, bool(flags & _DUMP_INTERRUPTED))
        elif kind == Kind.ERROR:
            yield Refused(sequence, -_ERRNO.unpack_from(body)[0])
        elif kind in (Kind.NEW_LINK, Kind.DEL_LINK):
            if link := _link(body, gone=kind == Kind.DEL_LINK):
                yield link
        elif kind in (Kind.NEW_ADDRESS, Kind.DEL_ADDRESS):
            if address := _address(body, gone=kind == Kind.DEL_ADDRESS):
                yield address
        elif kind == Kind.NEW_ROUTE:
            yield _route(body)
        offset += (length + 3) & ~3


def _link(body: bytes, *, gone: bool) -> Event | None:
    family, arp_type, index, flags, _ = _LINK.unpack_from(body)
    if family != socket.AF_UNSPEC:
        return None  # a bridge speaks of its port: the link itself is as it was
    if gone:
        return LinkGone(index)
    attributes = _attributes(body, _LINK.size)
    if _IFLA_CARRIER not in attributes:
        return None  # an event of wireless extensions, without the link's state
    name = attributes.get(_IFLA_IFNAME, b"").rstrip(b"\0").decode("utf-8", "replace")[:32]
    carrier = attributes[_IFLA_CARRIER] != b"\0"
    operating = attributes.get(_IFLA_OPERSTATE, b"\0") in _OPERATING
    up = bool(flags & _IFF_UP)
    return LinkSeen(index, name, arp_type, up, up and carrier and operating)


def _address(body: bytes, *, gone: bool) -> Event | None:
    family, _, flags, _, index = _ADDRESS.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6):
        return None
    attributes = _attributes(body, _ADDRESS.size)
    packed = attributes.get(_IFA_LOCAL) or attributes.get(
        _IFA_ADDRESS
    )  # the latter may be the peer
    if packed is None:
        return None
    if _IFA_FLAGS in attributes:  # 32 bits of what the header has 8 of
        flags = _WORD.unpack_from(attributes[_IFA_FLAGS])[0]
    text = socket.inet_ntop(family, packed)
    if gone or flags & _TENTATIVE:
        return AddressGone(index, text)
    return AddressSeen(index, text)


def _route(body: bytes) -> Event:
    family = _ROUTE.unpack_from(body)[0]
    attributes = _attributes(body, _ROUTE.size)
    index = _WORD.unpack_from(attributes[_RTA_OIF])[0] if _RTA_OIF in attributes else 0
    source = attributes.get(_RTA_PREFSRC)
    return RouteSeen(index, socket.inet_ntop(family, source) if source else "")


def _attributes(body: bytes, offset: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while offset + _ATTRIBUTE.size <= len(body):
        length, kind = _ATTRIBUTE.unpack_from(body, offset)
        if length < _ATTRIBUTE.size or offset + length > len(body):
            raise MalformedFrame(f"netlink: an attribute of {length} bytes does not fit")
        found[kind & _TYPE_MASK] = body[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3
    return found


class Table:
    """All interfaces, by index, as the events say."""

    def __init__(self) -> None:
        self.interfaces: dict[int, Interface] = {}
        self._links_named: set[int] = set()
        self._addresses_named: dict[tuple[int, str], None] = {}
        self._dumping = False

    def begin(self) -> None:
        """Note from here on what a dump names."""
        self._dumping = True
        self._links_named.clear()
        self._addresses_named.clear()

    def finish(self) -> None:
        """Forget what the whole dump did not name."""
        for index in [one for one in self.interfaces if one not in self._links_named]:
            del self.interfaces[index]
        named: dict[int, list[str]] = {}
        for index, address in self._addresses_named:
            named.setdefault(index, []).append(address)
        for index, one in self.interfaces.items():
            addresses = tuple(named.get(index, ())[:MAX_ADDRESSES])
            if set(addresses) != set(one.addresses):
                self._set_addresses(index, addresses)
        self.begin()
        self._dumping = False

    def apply(self, event: Event) -> None:
        """Fold one event in; what concerns no interface changes nothing."""
        match event:
            case LinkSeen(index, name, arp_type, up, carrier):
                if self._dumping:
                    self._links_named.add(index)
                known = self.interfaces.get(index)
                if known is None and len(self.interfaces) >= MAX_INTERFACES:
                    return
                addresses = known.addresses if known else ()
                self.interfaces[index] = Interface(index, name, arp_type, up, carrier, addresses)
            case LinkGone(index):
                self.interfaces.pop(index, None)
            case AddressSeen(index, address):
                if self._dumping:
                    self._addresses_named[index, address] = None
                known = self.interfaces.get(index)
                if known and address not in known.addresses:
                    self._set_addresses(index, (*known.addresses, address)[:MAX_ADDRESSES])
            case AddressGone(index, address):
                self._addresses_named.pop((index, address), None)
                known = self.interfaces.get(index)
                if known:
                    self._set_addresses(
                        index, tuple(one for one in known.addresses if one != address)
                    )
            case _:
                return

    def _set_addresses(self, index: int, addresses: tuple[str, ...]) -> None:
        one = self.interfaces[index]
        self.interfaces[index] = Interface(
            index, one.name, one.arp_type, one.up, one.carrier, addresses
        )
