"""A counter that remembers how far it is, and clients that have it count."""

import asyncio
import struct

from loop_cell import PATIENCE_S

import tona

DEADLINE_S = 45.0
# Adds one to a counter that it remembers, with some bytes beside it, and gives it.
COUNTER = """
(module
  (import "tona" "memory_get" (func $get (param i32 i32 i32 i32) (result i32)))
  (import "tona" "memory_set" (func $set (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 64)
  (data (i32.const 8) "nb")
  (global $top (mut i32) (i32.const 1024))
  (func (export "tona_alloc") (param $size i32) (result i32) (local $at i32)
    (local.set $at (global.get $top))
    (global.set $top
      (i32.and (i32.add (i32.add (global.get $top) (local.get $size)) (i32.const 15))
               (i32.const -16)))
    (local.get $at))
  (func (export "tona_run") (param $in i32) (param $n i32) (param $out i32) (param $m i32)
    (result i32)
    (drop (call $get (i32.const 8) (i32.const 1) (i32.const 16) (i32.const 4)))
    (i32.store (i32.const 16) (i32.add (i32.load (i32.const 16)) (i32.const 1)))
    (drop (call $set (i32.const 8) (i32.const 1) (i32.const 16) (i32.const 4)))
    (i32.store (i32.const 65536) (i32.load (i32.const 16)))
    (drop (call $set (i32.const 9) (i32.const 1) (i32.const 65536) (i32.const {beside})))
    (memory.copy (local.get $out) (local.get $in) (i32.const 48))
    (i32.store (local.get $out) (i32.const 16))
    (i32.store offset=4 (local.get $out) (i32.const 4))
    (i32.store offset=16 (local.get $out) (i32.const 4))
    (i32.const 0)))
"""


class Counting:
    """Clients that count, one call after the other each; what they were told is kept."""

    def __init__(self, client: tona.AsyncClient) -> None:
        self._client = client
        self.told: list[int] = []
        self.failures: list[str] = []
        self.sent = 0
        self.again = 0
        """Attempts beyond the first: what was late may have counted twice."""
        self._end = False
        self._more = asyncio.Condition()

    async def work(self) -> None:
        while not self._end:
            self.sent += 1
            try:
                answer = await self._client.invoke("count", {"x": b"1234"}, deadline_s=DEADLINE_S)
            except tona.InvocationError as error:
                self.failures.append(str(error))
            else:
                [number] = struct.unpack("<I", bytes(answer.outputs["y"])[:4])
                self.told.append(number)
                self.again += answer.attempts - 1
            async with self._more:
                self._more.notify_all()

    async def more(self, count: int) -> None:
        goal = len(self.told) + count
        async with asyncio.timeout(PATIENCE_S), self._more:
            await self._more.wait_for(lambda: len(self.told) >= goal)

    def stop(self) -> None:
        self._end = True
