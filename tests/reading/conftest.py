"""The example's own modules, its compiled guests, and image files made without an image library."""

import struct
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
READING = ROOT / "examples" / "reading"
# The example is no package: its files find each other as siblings.
sys.path.insert(0, str(READING))

from guest import Guest  # noqa: E402 - after the path
from local import Runner  # noqa: E402 - after the path


@pytest.fixture(scope="session")
def guest() -> Callable[[str], Guest]:
    """Compile a committed module once."""
    compiled: dict[str, Guest] = {}

    def get(name: str) -> Guest:
        if name not in compiled:
            compiled[name] = Guest(READING / "modules" / f"{name}.wasm")
        return compiled[name]

    return get


@pytest.fixture(scope="session")
def runner() -> Runner:
    """The whole chain, loaded once."""
    return Runner()


@pytest.fixture(scope="session")
def png() -> Callable[[Any], Any]:
    """Encode uint8[h,w] or uint8[h,w,c] as PNG bytes, uint8[-1]."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    def encode(pixels: Any) -> Any:
        array = np.asarray(pixels, np.uint8)
        array = array[..., None] if array.ndim == 2 else array
        height, width, channels = array.shape
        colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
        rows = b"".join(b"\0" + row.tobytes() for row in array)
        return np.frombuffer(
            b"\x89PNG\r\n\x1a\n"
            + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
            + chunk(b"IDAT", zlib.compress(rows))
            + chunk(b"IEND", b""),
            np.uint8,
        )

    return encode
