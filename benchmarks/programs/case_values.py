"""Named tensors in a message, the large ones by digest in the cell's store, as the SDK's."""

import asyncio
import hashlib
from collections.abc import Sequence
from typing import Final

import msgspec

from benchmarks.programs.case_program import Tensors
from protocols.messages.invocation import INLINE_MAX_BYTES
from tona.store import Store

SMALL, LARGE = 0, 1
_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(dict[str, tuple[int, tuple[int, ...], int, int, bytes]])


async def pack(tensors: Tensors, store: Store, urls: Sequence[str]) -> bytes:
    """Store what is large, and return the message."""
    parts: dict[str, tuple[int, tuple[int, ...], int, int, bytes]] = {}
    large: dict[str, memoryview] = {}
    for name, (dtype, shape, data) in tensors.items():
        view = memoryview(data).cast("B")
        if view.nbytes <= INLINE_MAX_BYTES:
            parts[name] = (dtype, shape, SMALL, view.nbytes, bytes(view))
        else:
            digest = await store.run(_digest, view)
            parts[name] = (dtype, shape, LARGE, view.nbytes, digest.encode())
            large[digest] = view
    await store.put_all(urls, large)
    return _encoder.encode(parts)


async def unpack(message: bytes, store: Store, urls: Sequence[str]) -> Tensors:
    """Return the tensors of a message, fetched and verified. Raises ValueError for an error."""
    try:
        parts = _decoder.decode(message)
    except msgspec.DecodeError:
        raise ValueError(message[:300].decode(errors="replace")) from None

    async def fetch(size: int, value: bytes, kind: int) -> bytes:
        return await store.get(urls, value.decode(), size) if kind == LARGE else value

    contents = await asyncio.gather(
        *(fetch(size, value, kind) for _, _, kind, size, value in parts.values())
    )
    return {
        name: (dtype, shape, data)
        for (name, (dtype, shape, *_)), data in zip(parts.items(), contents, strict=True)
    }


def _digest(view: memoryview) -> str:
    return "sha256:" + hashlib.sha256(view).hexdigest()
