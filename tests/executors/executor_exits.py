"""What executors report of instances that died."""

import asyncio

WAIT_S = 60.0


class Exits(list[tuple[str, str]]):
    """Collects `on_exit` and lets a test wait for it."""

    def __init__(self) -> None:
        super().__init__()
        self._event = asyncio.Event()

    def __call__(self, task: str, reason: str) -> None:
        self.append((task, reason))
        self._event.set()

    async def first(self) -> tuple[str, str]:
        await asyncio.wait_for(self._event.wait(), WAIT_S)
        return self[0]
