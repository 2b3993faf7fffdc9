"""Frames between the daemon and a process of its own; both sides use this file.

    u32 header length | u32 body length | header (JSON object) | body (raw buffers in a row)

A value stands in the header as `[name, dtype number, shape, size in bytes, file]`; without a file
its bytes are next in the body, otherwise they are that file of the node's blob folder: the hex of
its digest, or `made/` and the name of a value that an executor has made, which nobody can guess.
"""

from __future__ import annotations

import struct
from typing import Final

PREFIX: Final = struct.Struct("<II")
MAX_HEADER_BYTES: Final = 64 * 1024
INLINE_MAX_BYTES: Final = 64 * 1024
"""A larger value is a file."""
MAX_BODY_BYTES: Final = 16 * INLINE_MAX_BYTES
MADE: Final = "made"
"""Folder, in the blob folder, of what executors make."""
CHUNK_BYTES: Final = 32 * 1024
"""What one read takes: small, for the allocator maps larger blocks anew at every call."""


class WireError(Exception):
    """The other side sent what is no frame; the connection is over."""


def measure(data: bytes | bytearray | memoryview) -> tuple[int, int]:
    """Return header and body length of the frame that starts here. Raises WireError."""
    header, body = PREFIX.unpack_from(data)
    if header > MAX_HEADER_BYTES or body > MAX_BODY_BYTES:
        raise WireError(f"frame of {header} + {body} bytes exceeds the bound")
    return header, body
