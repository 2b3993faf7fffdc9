"""The entries of a tar archive, read strictly, from front to back, in bounded memory.

POSIX ustar and pax with GNU's long names: what image builders write. The reader knows nothing of
the disk; who unpacks decides what an entry may do. Anything else than a whole archive is an error:
a cut one never passes for a shorter one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, Protocol

BLOCK_BYTES: Final = 512
MAX_EXTRA_BYTES: Final = 64 * 1024
"""Of one long name or one set of pax records; names are shorter, extended attributes are skipped
with their record, so that this bounds the memory that a header can take.
"""
CHUNK_BYTES: Final = 1 << 20
MAX_DIGITS: Final = 19
BINARY: Final = 0x80
"""First byte of a number that is no text."""
OLD_FILE: Final = b"\0"
_END: Final = bytes(BLOCK_BYTES)
_LONG_NAME: Final = b"L"
_LONG_LINK: Final = b"K"
_PAX: Final = b"x"
_PAX_GLOBAL: Final = b"g"

FILE: Final = "file"
FOLDER: Final = "folder"
SYMLINK: Final = "symbolic link"
HARD_LINK: Final = "hard link"
_KINDS: Final = {
    b"0": FILE,
    b"\0": FILE,
    b"7": FILE,
    b"1": HARD_LINK,
    b"2": SYMLINK,
    b"3": "character device",
    b"4": "block device",
    b"5": FOLDER,
    b"6": "named pipe",
    b"S": "sparse file",
}


class BadTar(Exception):
    """No archive that we take; the text ends a sentence that begins with what was read."""


class Source(Protocol):
    """What archives are read from: a file, or a stream that unpacks another one."""

    def read(self, size: int, /) -> bytes:
        """Return some bytes, at most so many; none at the end."""
        ...


class Entry:
    """One entry; its data is read by `blocks`, or skipped."""

    def __init__(self, name: str, kind: str, link: str, size: int, mode: int, mtime: int) -> None:
        self.name = name
        self.kind = kind
        self.link = link
        self.size = size
        self.mode = mode
        self.mtime = mtime
        """Seconds of the wall clock."""


class Archive:
    """A tar archive; iterate over it once, reading the data of an entry before the next."""

    def __init__(self, source: Source, seek: Callable[[int], object] | None = None) -> None:
        """With `seek` the data of entries that nobody reads is not read at all."""
        self._source = source
        self._seek = seek
        self.at = 0
        """How many bytes of the source have been read or left out."""
        self._left = 0
        """Of the data of the present entry."""
        self._pad = 0
        self._global: dict[str, str] = {}

    def __iter__(self) -> Iterator[Entry]:
        """Yield the entries. Raises BadTar, or what the source raises."""
        while True:
            self._skip()
            entry = self._next()
            if entry is None:
                return
            yield entry

    def blocks(self) -> Iterator[bytes]:
        """Yield what is left of the present entry's data, in pieces. Raises BadTar."""
        while self._left:
            piece = self._some(min(self._left, CHUNK_BYTES))
            self._left -= len(piece)
            yield piece
        self._exactly(self._pad)
        self._pad = 0

    def _skip(self) -> None:
        if self._seek is None:
            for _ in self.blocks():
                pass
        elif self._left:
            self.at += self._left + self._pad
            self._left = self._pad = 0
            self._seek(self.at)

    def _some(self, size: int) -> bytes:
        piece = self._source.read(size)
        if not piece:
            raise BadTar(f"ends in the middle of an entry, after {self.at} bytes")
        self.at += len(piece)
        return piece

    def _exactly(self, size: int) -> bytes:
        parts: list[bytes] = []
        while size:
            parts.append(self._some(size))
            size -= len(parts[-1])
        return b"".join(parts)

    def _next(self) -> Entry | None:
        own: dict[str, str] = {}
        while True:
            block = self._exactly(BLOCK_BYTES)
            if block == _END:
                # The second block of zeros is left out by some; what follows is padding.
                return None
            _check(block)
            kind = block[156:157]
            size = _number(block[124:136], "size")
            if kind in (_PAX, _PAX_GLOBAL, _LONG_NAME, _LONG_LINK):
                data = self._extra(size)
                if kind == _PAX:
                    own.update(_records(data))
                elif kind == _PAX_GLOBAL:
                    self._global.update(_records(data))
                else:
                    field = "path" if kind == _LONG_NAME else "linkpath"
                    own[field] = _text(data.rstrip(b"\0"))
                continue
            return self._entry(block, kind, size, self._global | own)

    def _extra(self, size: int) -> bytes:
        if size > MAX_EXTRA_BYTES:
            raise BadTar(f"has a header of {size} bytes, at most {MAX_EXTRA_BYTES} are taken")
        data = self._exactly(size)
        self._exactly(-size % BLOCK_BYTES)
        return data

    def _entry(self, block: bytes, kind: bytes, size: int, extra: dict[str, str]) -> Entry:
        if any(one.startswith("GNU.sparse.") for one in extra):
            kind = b"S"
        name = extra.get("path") or _name(block)
        named = _KINDS.get(kind)
        if named is None:
            raise BadTar(f"has the entry {name[:200]!r} of a type that is not known, {kind!r}")
        size = _decimal(extra["size"], "size") if "size" in extra else size
        if kind == OLD_FILE and name.endswith("/"):
            # So archives older than POSIX say it.
            named = FOLDER
        self._left = size if named in (FILE, "sparse file") else 0
        self._pad = -self._left % BLOCK_BYTES
        mtime = extra.get("mtime", "").partition(".")[0]
        return Entry(
            name,
            named,
            extra.get("linkpath") or _text(_cut(block[157:257])),
            self._left,
            _number(block[100:108], "mode"),
            _decimal(mtime, "mtime") if mtime else _number(block[136:148], "mtime"),
        )


def _check(block: bytes) -> None:
    """Hold a header against its checksum. Raises BadTar."""
    said = _number(block[148:156], "checksum")
    if said != sum(block) - sum(block[148:156]) + 8 * 0x20:
        raise BadTar("has a header whose checksum is wrong: it is no tar archive, or damaged")


def _cut(field: bytes) -> bytes:
    return field.split(b"\0", 1)[0]


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _name(block: bytes) -> str:
    name = _cut(block[:100])
    # Old GNU headers have times where POSIX has the prefix of the name.
    prefix = _cut(block[345:500]) if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _number(field: bytes, what: str) -> int:
    """Read octal digits, or GNU's binary form of large numbers. Raises BadTar."""
    if field[0] == BINARY:
        return int.from_bytes(field[1:], "big")
    digits = _cut(field).strip(b" ") or b"0"
    if not digits.isdigit() or b"8" in digits or b"9" in digits:
        raise BadTar(f"has a header whose {what} is no number: it is no tar archive, or damaged")
    return int(digits, 8)


def _decimal(text: str, what: str) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= MAX_DIGITS):
        raise BadTar(f"has a header whose {what} is no number")
    return int(text)


def _records(data: bytes) -> dict[str, str]:
    """Read pax records, each `LENGTH KEY=VALUE` and the end of a line. Raises BadTar."""
    found: dict[str, str] = {}
    at = 0
    while at < len(data):
        digits, blank, _ = data[at : at + 8].partition(b" ")
        if not blank or not digits.isdigit():
            raise BadTar("has pax records that cannot be read")
        end = at + int(digits)
        key, equals, value = data[at + len(digits) + 1 : end].partition(b"=")
        if not equals or end > len(data) or not value.endswith(b"\n"):
            raise BadTar("has pax records that cannot be read")
        found[_text(key)] = _text(value[:-1])
        at = end
    return found
