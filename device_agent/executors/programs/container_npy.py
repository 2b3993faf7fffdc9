"""NumPy's `.npy` files, version 1.0: the header in front of a dense tensor, both ways."""

from __future__ import annotations

import re
from typing import Final

MAGIC: Final = b"\x93NUMPY\x01\x00"
ALIGN_BYTES: Final = 64
"""NumPy aligns the data so; the header is padded with spaces."""
PREFIX_BYTES: Final = len(MAGIC) + 2
MAX_HEADER_BYTES: Final = 4096
MAX_RANK: Final = 8
MAX_DIGITS: Final = 15
DESCR: Final = {
    1: "<f4",
    2: "|u1",
    3: "|i1",
    4: "<u2",
    5: "<i2",
    6: "<i4",
    7: "<i8",
    9: "|b1",
    10: "<f2",
    11: "<f8",
    12: "<u4",
    13: "<u8",
}
"""NumPy's name of each dtype number."""
NUMBER: Final = {descr[1:]: number for number, descr in DESCR.items()}
DTYPE: Final = {
    1: "float32",
    2: "uint8",
    3: "int8",
    4: "uint16",
    5: "int16",
    6: "int32",
    7: "int64",
    9: "bool",
    10: "float16",
    11: "float64",
    12: "uint32",
    13: "uint64",
}
"""Our name of each dtype number, for people."""
_QUOTED: Final = r"""['"]{}['"]\s*:\s*"""
_DESCR: Final = re.compile(_QUOTED.format("descr") + r"""['"]([^'"]{1,16})['"]""")
_ORDER: Final = re.compile(_QUOTED.format("fortran_order") + r"(True|False)\b")
_SHAPE: Final = re.compile(_QUOTED.format("shape") + r"\(([0-9,\s]{0,200})\)")


class NotNpy(Exception):
    """A file that is no tensor we take; the text ends a sentence that begins with its name."""


def header(number: int, shape: tuple[int, ...]) -> bytes:
    """Return what stands in front of a tensor of this dtype number and shape."""
    text = f"{{'descr': '{DESCR[number]}', 'fortran_order': False, 'shape': {shape}, }}"
    room = PREFIX_BYTES + len(text) + 1
    text += " " * (-room % ALIGN_BYTES) + "\n"
    return MAGIC + len(text).to_bytes(2, "little") + text.encode("ascii")


def parse(start: bytes) -> tuple[int, tuple[int, ...], int]:
    """Return dtype number, shape and where the data begins. Raises NotNpy.

    `start` is the first `PREFIX_BYTES + MAX_HEADER_BYTES` of the file, or all of a shorter one.
    """
    if not start.startswith(MAGIC[:6]):
        raise NotNpy("is no .npy file: its first bytes differ")
    if not start.startswith(MAGIC):
        version = ".".join(map(str, start[6:8]))
        raise NotNpy(f"is an .npy file of version {version}: write version 1.0")
    at = PREFIX_BYTES + int.from_bytes(start[len(MAGIC) : PREFIX_BYTES], "little")
    if at > len(start):
        raise NotNpy(f"has an .npy header that ends after {at} bytes, beyond the file or our bound")
    text = start[PREFIX_BYTES:at].decode("latin-1")
    return _number(text), _shape(text), at


def _number(text: str) -> int:
    found = _DESCR.search(text)
    if found is None:
        raise NotNpy("has an .npy header without a plain dtype: fields and lists are not taken")
    descr = found[1]
    if "O" in descr:
        raise NotNpy("holds Python objects: write a dense tensor")
    if descr.startswith(">"):
        raise NotNpy(f"is big-endian ({descr}): write it little-endian")
    number = NUMBER.get(descr[1:])
    if number is None or descr[0] not in "<|=":
        raise NotNpy(f"has the dtype {descr!r}, which tasks do not have")
    order = _ORDER.search(text)
    if order is None:
        raise NotNpy("has an .npy header without 'fortran_order'")
    if order[1] == "True":
        raise NotNpy("is in Fortran order: write it in C order (numpy.ascontiguousarray)")
    return number


def _shape(text: str) -> tuple[int, ...]:
    found = _SHAPE.search(text)
    if found is None:
        raise NotNpy("has an .npy header without a 'shape' of lengths")
    axes = [one.strip() for one in found[1].split(",")]
    if axes[-1] == "":
        axes.pop()
    if len(axes) > MAX_RANK or not all(one.isdecimal() and len(one) <= MAX_DIGITS for one in axes):
        raise NotNpy(f"has the shape ({found[1]}), which is none")
    return tuple(map(int, axes))
