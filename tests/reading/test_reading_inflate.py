"""The decoder's own unpacking of PNG data against zlib: every kind of block, and damage."""

import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

Guests = Callable[[str], Any]
STRATEGIES = (
    zlib.Z_DEFAULT_STRATEGY,
    zlib.Z_FILTERED,
    zlib.Z_HUFFMAN_ONLY,
    zlib.Z_RLE,
    zlib.Z_FIXED,
)
LEVELS = (0, 1, 6, 9)
MUTANTS = 300


def chunk(kind: bytes, data: bytes) -> bytes:
    """Give one chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def picture(pixels: Any, stream: bytes) -> Any:
    """Give a PNG of RGB pixels whose data is this stream."""
    height, width, _ = pixels.shape
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", header), chunk(b"IDAT", stream), chunk(b"IEND", b"")
    return np.frombuffer(b"\x89PNG\r\n\x1a\n" + b"".join(parts), np.uint8)


def rows(pixels: Any) -> bytes:
    """Give the rows of a picture without a filter."""
    return b"".join(b"\0" + row.tobytes() for row in pixels)


def pictures() -> list[Any]:
    """Give pictures with short and long, near and far repetitions, codes of all lengths."""
    chance = np.random.default_rng(7)
    noise = chance.integers(0, 256, (70, 210, 3), np.uint8)
    skewed = np.minimum(255, chance.geometric(0.03, (120, 300, 3))).astype(np.uint8)
    rare = np.where(chance.random((250, 250, 3)) < 0.001, 255, chance.integers(0, 3, (250, 250, 3)))
    stripes = np.tile(noise[:, :7], (2, 40, 1))
    far = np.concatenate([noise[:50], np.zeros((3, 210, 3), np.uint8), noise[:50]])
    return [noise, skewed, rare.astype(np.uint8), stripes, far, np.zeros((400, 300, 3), np.uint8)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("level", LEVELS)
def test_whatever_zlib_packs_is_unpacked(guest: Guests, level: int, strategy: int) -> None:
    for pixels in pictures():
        packer = zlib.compressobj(level, zlib.DEFLATED, 15, 9, strategy)
        stream = packer.compress(rows(pixels)) + packer.flush()
        assert np.array_equal(guest("decode")([picture(pixels, stream)], 2)[0], pixels)


def test_blocks_of_all_kinds_follow_one_another(guest: Guests) -> None:
    pixels = pictures()[1]
    whole = rows(pixels)
    packer = zlib.compressobj(6)
    stream = b""
    for at in range(0, len(whole), 977):
        stream += packer.compress(whole[at : at + 977])
        stream += packer.flush((zlib.Z_SYNC_FLUSH, zlib.Z_FULL_FLUSH)[at % 2])
    stream += packer.flush()
    assert np.array_equal(guest("decode")([picture(pixels, stream)], 2)[0], pixels)


def test_what_is_behind_the_picture_is_not_unpacked(guest: Guests) -> None:
    pixels = pictures()[0]
    stream = zlib.compress(rows(pixels) + bytes(200_000_000), 1)
    assert np.array_equal(guest("decode")([picture(pixels, stream)], 2)[0], pixels)
    assert guest("decode").used_bytes < 8 << 20


def test_a_damaged_stream_gives_pixels_or_a_sentence(guest: Guests) -> None:
    chance = np.random.default_rng(11)
    pixels = pictures()[1][:40, :60]
    good = zlib.compress(rows(pixels), 9)
    refused = 0
    for _ in range(MUTANTS):
        stream = bytearray(good)
        for _ in range(int(chance.integers(1, 6))):
            stream[int(chance.integers(0, len(stream)))] ^= 1 << int(chance.integers(0, 8))
        cut = bytes(stream[: int(chance.integers(1, len(stream) + 1))])
        try:
            image, _ = guest("decode")([picture(pixels, cut)], 2)
        except Exception as error:  # noqa: BLE001 - a trap would be of another type
            assert type(error).__name__ == "GuestError"  # noqa: PT017 - either end is right
            refused += 1
        else:
            assert image.shape == pixels.shape
    assert refused > MUTANTS / 2


def filtered(pixels: Any, kinds: Any) -> bytes:
    """Give the rows of a picture, each with a filter of its own, as the specification has it."""
    height, width, _ = pixels.shape
    padded = np.zeros((height + 1, width + 1, 3), int)
    padded[1:, 1:] = pixels
    left, above, corner = padded[1:, :-1], padded[:-1, 1:], padded[:-1, :-1]
    distance = np.abs(left + above - corner - np.stack([left, above, corner]))
    nearest = np.choose(distance.argmin(0), [left, above, corner])
    guesses = np.stack([np.zeros_like(left), left, above, (left + above) // 2, nearest])
    return b"".join(
        bytes([kind]) + (pixels[y].astype(int) - guesses[kind, y]).astype(np.uint8).tobytes()
        for y, kind in enumerate(kinds)
    )


@pytest.mark.parametrize("width", [30, 31, 32, 33, 47])
def test_every_filter_and_data_in_many_chunks(guest: Guests, width: int) -> None:
    chance = np.random.default_rng(width)
    pixels = chance.integers(0, 256, (60, width, 3), np.uint8)
    for first in range(5):
        kinds = [first, *chance.integers(0, 5, 59)]
        stream = zlib.compress(filtered(pixels, kinds))
        header = struct.pack(">IIBBBBB", width, 60, 8, 2, 0, 0, 0)
        data = [chunk(b"IDAT", stream[at : at + 700]) for at in range(0, len(stream), 700)]
        parts = chunk(b"IHDR", header), chunk(b"gAMA", bytes(4)), *data, chunk(b"IEND", b"")
        file = np.frombuffer(b"\x89PNG\r\n\x1a\n" + b"".join(parts), np.uint8)
        assert np.array_equal(guest("decode")([file], 2)[0], pixels)


def test_a_filter_that_nobody_knows_is_refused(guest: Guests) -> None:
    pixels = pictures()[0]
    stream = zlib.compress(filtered(pixels, [0] * 70).replace(b"\0", b"\5", 1))
    with pytest.raises(Exception, match="cannot be decoded"):
        guest("decode")([picture(pixels, stream)], 2)
