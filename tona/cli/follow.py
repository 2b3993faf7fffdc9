"""A listing kept up to date by a watch, until it satisfies somebody."""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Final

from msgspec import Struct

from controller.records import FLEET, SERVICE, TASK, USE_CASE
from protocols.errors import EnvironmentFailure
from tona.cli.api import Api

TOLD_MAX: Final = 8


class Followed(Struct, frozen=True):
    """A kind that can be listed and watched."""

    kind: str
    operation: str
    key: Callable[[Any], str]


NODES: Final = Followed(FLEET, "fleet.status", lambda one: one.node)
SERVICES: Final = Followed(SERVICE, "service.list", lambda one: one.order.service)
TASKS: Final = Followed(TASK, "task.list", lambda one: one.spec.task)
USE_CASES: Final = Followed(USE_CASE, "usecase.list", lambda one: one.name)

Things = dict[str, Any]


async def follow(api: Api, what: Followed) -> AsyncGenerator[Things, None]:
    """Yield the things of a kind by name, now and after every change; raises as `Api.watch`."""
    things, token = await _list(api, what)
    yield things
    async with aclosing(api.watch(what.kind, token)) as changes:
        async for change in changes:
            if change is None:
                things, _ = await _list(api, what)
            elif change.value is None:
                things.pop(change.key, None)
            else:
                things[change.key] = change.value
            yield things


async def changes(api: Api, what: Followed) -> AsyncGenerator[tuple[str, Any], None]:
    """Yield name and state of each thing, and of each that changes; None: it is gone.

    Raises as `Api.watch`.
    """
    known: set[str] = set()
    things, token = await _list(api, what)
    async with aclosing(api.watch(what.kind, token)) as watched:
        while True:
            for gone in known - things.keys():
                yield gone, None
            for name, value in things.items():
                yield name, value
            known = set(things)
            async for change in watched:
                if change is None:
                    break
                yield change.key, change.value
                if change.value is None:
                    known.discard(change.key)
                else:
                    known.add(change.key)
            things, _ = await _list(api, what)


async def until(
    api: Api, what: Followed, done: Callable[[Things], bool], within_s: float, hope: str
) -> Things:
    """Wait until the things of a kind satisfy `done`, and return them.

    Raises EnvironmentFailure after that time, with the `hope` that was not fulfilled and how the
    things stand, the first `TOLD_MAX` by name.
    """
    things: Things = {}
    try:
        async with asyncio.timeout(within_s), aclosing(follow(api, what)) as states:
            async for things in states:
                if done(things):
                    return things
    except TimeoutError:
        pass
    stand = "; ".join(_stands(*one) for one in sorted(things.items())[:TOLD_MAX])
    raise EnvironmentFailure(f"{hope} within {within_s:.0f} s: {stand or 'there is none'}")


def _stands(name: str, one: Any) -> str:
    """Say in which state a thing is, and why, where it says so."""
    reason = getattr(one, "reason", "")
    return f"{name} is {one.state}" + (f", {reason}" if reason else "")


async def _list(api: Api, what: Followed) -> tuple[Things, str]:
    values, token = await api.listing(what.operation)
    return {what.key(one): one for one in values}, token
