"""Streams of requests: inputs in, answers out, a bounded number under way."""

import asyncio
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable
from itertools import takewhile
from typing import Any, TypeVar

import msgspec

from tona.errors import InvocationError
from tona.values import Result

_T = TypeVar("_T")
_Task = asyncio.Task[Result | InvocationError]


async def stream(
    invoke: Callable[[_T], Awaitable[Result]],
    inputs: AsyncIterable[_T] | Iterable[_T],
    in_flight: int,
    ordered: bool,
) -> AsyncIterator[Result | InvocationError]:
    """Yield an answer, or why there is none, for each input; closes what runs when left early.

    The next input is waited for while answers are: a slow source holds no answer back.
    """
    source = aiter(inputs) if isinstance(inputs, AsyncIterable) else _each(inputs)
    running: dict[_Task, None] = {}
    done: list[_Task] = []
    pulled: asyncio.Task[tuple[bool, Any]] | None = None
    open_ended, index = True, 0
    try:
        while True:
            if pulled is None and open_ended and len(running) < max(1, in_flight):
                pulled = asyncio.create_task(_pull(source))
            if pulled is None and not running:
                return
            under_way: set[asyncio.Task[Any]] = {*running, *([pulled] if pulled else [])}
            await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
            if pulled is not None and pulled.done():
                open_ended, item = pulled.result()
                pulled = None
                if open_ended:
                    task = asyncio.create_task(_one(invoke, item, index))
                    task.add_done_callback(done.append)
                    running[task] = None
                    index += 1
            for task in _ready(running, done, ordered):
                del running[task]
                yield task.result()
    finally:
        rest: set[asyncio.Task[Any]] = {*running, *([pulled] if pulled else [])}
        for task in rest:
            task.cancel()
        if rest:
            await asyncio.wait(rest)


def _ready(running: dict[_Task, None], done: list[_Task], ordered: bool) -> list[_Task]:
    """Return what can be yielded: the done ones as they ended, or the first ones if done."""
    ended = done.copy()
    done.clear()
    return list(takewhile(_Task.done, running)) if ordered else ended


async def _one(
    invoke: Callable[[_T], Awaitable[Result]], item: _T, index: int
) -> Result | InvocationError:
    try:
        return msgspec.structs.replace(await invoke(item), index=index)
    except InvocationError as error:
        return error


async def _pull(source: AsyncIterator[Any]) -> tuple[bool, Any]:
    try:
        return True, await anext(source)
    except StopAsyncIteration:
        return False, None


async def _each(inputs: Iterable[_T]) -> AsyncIterator[_T]:
    for one in inputs:
        yield one
