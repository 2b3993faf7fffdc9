"""Ending in order: Ctrl-C and SIGTERM as something that a command can wait for."""

import asyncio
import signal
from collections.abc import Awaitable
from typing import Any, TypeVar

_T = TypeVar("_T")
Told = asyncio.Future[signal.Signals]


def told_to_end() -> Told:
    """Return what the first SIGINT or SIGTERM from now on fulfils."""
    loop = asyncio.get_running_loop()
    told: Told = loop.create_future()

    def hear(number: signal.Signals) -> None:
        if not told.done():
            told.set_result(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, hear, number)
    return told


async def unless(stopper: "asyncio.Future[Any]", work: Awaitable[_T]) -> _T | None:
    """Return the result of the work; None when the stopper came first, which cancels the work."""
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait({task, stopper}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
