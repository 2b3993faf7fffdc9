"""What the shell may suggest for an argument: the names that the controller knows."""

import asyncio
from collections.abc import Callable
from typing import Any, Final

from protocols.errors import TonaError

TIMEOUT_S: Final = 2.0
"""A shell that hangs at a key is worse than one that suggests nothing."""


def _names(operation: str, name: Callable[[Any], str]) -> Callable[[str], list[str]]:
    def complete(incomplete: str) -> list[str]:
        from tona.cli.api import Api, target  # noqa: PLC0415 - slow to import
        from tona.cli.context import settings  # noqa: PLC0415 - the same

        async def ask() -> list[str]:
            async with asyncio.timeout(TIMEOUT_S), Api(target(settings())) as api:
                return [name(one) for one in await api.call(operation)]

        try:
            return [one for one in asyncio.run(ask()) if one.startswith(incomplete)]
        except (TonaError, TimeoutError):
            return []

    return complete


nodes: Final = _names("fleet.status", lambda one: one.node)
services: Final = _names("service.list", lambda one: one.order.service)
tasks: Final = _names("task.list", lambda one: one.spec.task)
approvals: Final = _names("approve.list", lambda one: one.number)
use_cases: Final = _names("usecase.list", lambda one: one.name)
