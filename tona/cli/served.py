"""What `tona usecase submit --wait` waits for: services that run, unless a task never will."""

import asyncio
from contextlib import aclosing
from typing import Any, Final

from controller.namo.submission import Submitted
from controller.records import ServiceRecord, StoryRecord, TaskRecord, TaskState
from protocols.errors import EnvironmentFailure
from protocols.messages.hierarchy import ServiceState
from tona.cli.context import console, put, stated
from tona.cli.follow import SERVICES, TASKS, Things, follow

SCHEDULER: Final = "ts"
TOLD: Final = ("failed", "escalated")
"""What a scheduler says in a task's story about nodes that could not run it."""


async def served(api: Any, answer: Submitted, within_s: float) -> None:
    """Wait until every service of a submission runs; what is in the way is said meanwhile.

    Raises EnvironmentFailure after that time, and at once when a task has failed for good.
    """
    seen = _Seen(answer)
    running = asyncio.ensure_future(_run(api, seen))
    failing = asyncio.ensure_future(_failure(api, answer, seen))
    both = (running, failing)
    try:
        done, _ = await asyncio.wait(both, timeout=within_s, return_when=asyncio.FIRST_COMPLETED)
        if running in done:
            return await running
        why = await failing if failing in done else ""
    finally:
        for one in both:
            one.cancel()
        await asyncio.gather(*both, return_exceptions=True)
    name = answer.name
    if why:
        raise EnvironmentFailure(f"use case {name} will not run as it is: {why}")
    seen.tell_all()
    raise EnvironmentFailure(
        f"use case {name} does not run within {within_s:.0f} s; see `tona task list`"
    )


class _Seen:
    """What a submission has made, as it was last seen; says once what each service waits for."""

    def __init__(self, answer: Submitted) -> None:
        self.tasks: Things = {}
        self._of = answer.tasks
        self._names = answer.services
        self._services: Things = {}
        self._told: set[str] = set()

    def look(self, services: Things) -> bool:
        """Take in how the services are; return whether all of them run."""
        self._services = services
        missing = self._missing()
        for name in missing:
            one = services.get(name)
            if one is not None and one.reason:
                self._say(_line(name, one))
        return not missing

    def tell_all(self) -> None:
        """Say of each service and task that does not run what its state is, and why."""
        self._told.clear()
        for name in self._missing():
            self._say(_line(name, self._services.get(name)))
        for name in self._of:
            one = self.tasks.get(name)
            if one is not None and one.state is not TaskState.RUNNING:
                self._say(f"task {name}: {stated(one.state, one.reason)}")

    def _missing(self) -> list[str]:
        running = ServiceState.RUNNING
        found = self._services
        return [one for one in self._names if one not in found or found[one].state is not running]

    def _say(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            put(console(stderr=True), line)


def _line(name: str, one: ServiceRecord | None) -> str:
    state = "not known yet" if one is None else stated(one.state, one.reason)
    return f"service {name}: {state}"


async def _run(api: Any, seen: _Seen) -> None:
    """Return when all services run."""
    async with aclosing(follow(api, SERVICES)) as states:
        async for services in states:
            if seen.look(services):
                return


async def _failure(api: Any, answer: Submitted, seen: _Seen) -> str:
    """Return which task has failed for good, and why; there may never be one."""
    async with aclosing(follow(api, TASKS)) as states:
        async for tasks in states:
            seen.tasks = tasks
            for name in answer.tasks:
                if name in tasks and _failed(tasks[name]):
                    why = await _for_good(api, name)
                    if why:
                        return why
    raise EnvironmentFailure("the controller tells of no more changes")


def _failed(task: TaskRecord) -> bool:
    """Whether no node can run it and nothing is left to ask: NAMO has no other way either."""
    given_up = task.state is TaskState.FAILED or task.given_up >= task.generation
    return given_up and task.asked is None


async def _for_good(api: Any, name: str) -> str:
    """Return why a task has failed, asked for anew; empty where another order is under way."""
    task: TaskRecord = await api.call("task.show", name=name)
    service: ServiceRecord = await api.call("service.show", name=task.service)
    if not _failed(task) or task.generation < service.order.generation:
        return ""
    story: list[StoryRecord] = await api.call("task.events", name=name)
    told = [one.detail for one in story if one.layer == SCHEDULER and one.event in TOLD]
    return f"{name}: {told[-1] if told else task.reason}"
