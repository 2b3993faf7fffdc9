"""What came from elsewhere, made safe for a terminal. Pure."""

from typing import Final

_UNSEEN: Final = dict.fromkeys([*range(0x20), *range(0x7F, 0xA0)], "\N{REPLACEMENT CHARACTER}")
for _kept in "\t\n":
    del _UNSEEN[ord(_kept)]


def plain(text: str) -> str:
    """Replace control characters: the name of a node must not move the reader's cursor."""
    return text if text.isprintable() else text.translate(_UNSEEN)
