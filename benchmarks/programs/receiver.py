"""The limit of ingest: an `asyncio.Protocol` that subscribes and counts PUBLISH packets.

    python -m benchmarks.programs.receiver HOST PORT FILTER

Answers every line with the count so far. It decodes no frame, keeps no table, looks at nothing.
"""

import asyncio
import os
import sys
from typing import Any, cast

from benchmarks.harness.lines import say, serve
from protocols.transport import packets

CHUNK_BYTES = 256 * 1024
KEEPALIVE_S = 3600


class Receiver(asyncio.BufferedProtocol):
    """Counts packets by their length fields alone."""

    def __init__(self, topic_filter: str) -> None:
        self.count = 0
        self.ready = asyncio.get_running_loop().create_future()
        self._filter = topic_filter
        self._buffer = bytearray(CHUNK_BYTES)
        self._view = memoryview(self._buffer)
        self._end = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say CONNECT and SUBSCRIBE in one go."""
        self._transport = cast("asyncio.Transport", transport)
        name = f"receiver-{os.getpid()}"
        hello = packets.connect(name, KEEPALIVE_S, packets.READ_BYTES, None)
        self._transport.write(hello)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Lend the free part of the buffer."""
        del sizehint
        return self._view[self._end :]

    def buffer_updated(self, nbytes: int) -> None:
        """Count the whole packets and keep the rest."""
        buffer, end = self._buffer, self._end + nbytes
        at = 0
        while at + 5 <= end:
            size, body = buffer[at + 1], at + 2
            if size > 127:
                size, body = size & 127 | (buffer[at + 2] & 127) << 7, at + 3
                if buffer[at + 2] > 127:
                    size, body = size | buffer[at + 3] << 14, at + 4
            if body + size > end:
                break
            kind = buffer[at] & 0xF0
            if kind == packets.PUBLISH:
                self.count += 1
            elif kind == packets.CONNACK and self._transport is not None:
                self._transport.write(packets.subscribe([(self._filter, 0)], 1))
            elif kind == packets.SUBACK:
                self.ready.set_result(None)
            at = body + size
        self._buffer[: end - at] = self._buffer[at:end]
        self._end = end - at


async def main() -> None:
    """Receive until our parent hangs up."""
    host, port, topic_filter = sys.argv[1:]
    loop = asyncio.get_running_loop()
    transport, receiver = await loop.create_connection(
        lambda: Receiver(topic_filter), host, int(port)
    )
    await receiver.ready

    async def count(_question: Any) -> int:
        return receiver.count

    say({})
    await serve(count)
    transport.close()


if __name__ == "__main__":
    asyncio.run(main())
