"""Requests that keep flowing: as soon as one is answered, the next is sent."""

import asyncio
from collections.abc import Awaitable, Callable

from protocols.errors import TonaError
from tona.demo.summary import Answer
from tona.errors import InvocationError
from tona.values import Result


class Traffic:
    """A fixed number of requests under way, from `start` to `stop`; every end is noted."""

    def __init__(self, invoke: Callable[[], Awaitable[Result]], in_flight: int) -> None:
        self.answers: list[Answer] = []
        self._invoke = invoke
        self._in_flight = in_flight
        self._stopping = False
        self._ended = asyncio.Event()
        self._lanes: list[asyncio.Task[None]] = []

    def start(self) -> None:
        """Begin to send."""
        self._lanes = [asyncio.create_task(self._lane()) for _ in range(self._in_flight)]

    async def until(self, done: Callable[[list[Answer]], bool], within_s: float) -> bool:
        """Wait until the ends noted so far satisfy `done`; returns False after that time."""
        try:
            async with asyncio.timeout(within_s):
                while not done(self.answers):
                    self._ended.clear()
                    await self._ended.wait()
        except TimeoutError:
            return False
        return True

    async def stop(self) -> None:
        """Send nothing new, and wait for the end of what is under way."""
        self._stopping = True
        await asyncio.gather(*self._lanes)

    def abandon(self) -> None:
        """Drop what is under way."""
        for lane in self._lanes:
            lane.cancel()

    async def _lane(self) -> None:
        clock = asyncio.get_running_loop().time
        while not self._stopping:
            sent_s = clock()
            try:
                result = await self._invoke()
            except InvocationError as error:
                answer = Answer(sent_s, clock(), error=str(error))
            except TonaError as error:
                self.answers.append(Answer(sent_s, clock(), error=str(error)))
                self._ended.set()
                return
            else:
                nodes = frozenset(one.node for one in result.timings)
                answer = Answer(sent_s, clock(), nodes)
            self.answers.append(answer)
            self._ended.set()
