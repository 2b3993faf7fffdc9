"""What `usecase submit --wait` makes of services and tasks that change."""

import asyncio
from collections.abc import AsyncGenerator
from types import SimpleNamespace
from typing import Any

import pytest

from controller.namo.submission import Submitted
from controller.records import SERVICE, StoryRecord, TaskState
from protocols.errors import EnvironmentFailure
from protocols.messages.hierarchy import ServiceState
from tona.cli.follow import SERVICES, until
from tona.cli.served import served

ANSWER = Submitted("cam", "default", 2, "created", ("watch",), tasks={"watch.t": None})


def a_service(state: ServiceState, reason: str = "", generation: int = 2) -> Any:
    order = SimpleNamespace(service="watch", generation=generation)
    return SimpleNamespace(order=order, state=state, reason=reason)


def a_task(state: TaskState, **changes: Any) -> Any:
    fields = {"generation": 2, "given_up": 0, "asked": None, "reason": "why", "service": "watch"}
    spec = SimpleNamespace(task="watch.t")
    return SimpleNamespace(spec=spec, state=state, **(fields | changes))


class _Api:
    """Has one service and one task; the watch of a kind tells what it is given."""

    def __init__(self, service: Any, task: Any) -> None:
        self.service, self.task = service, task
        self.story = [
            StoryRecord("watch.t", 1, "ts", "failed", "node-1: no module"),
            StoryRecord("watch.t", 2, "namo", "refused", "no other way"),
        ]
        self.changes: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def listing(self, operation: str) -> tuple[list[Any], str]:
        return [self.service if operation == "service.list" else self.task], "1"

    async def call(self, operation: str, name: str) -> Any:
        assert name in ("watch", "watch.t")
        shown = {"service.show": self.service, "task.show": self.task, "task.events": self.story}
        return shown[operation]

    async def watch(self, kind: str, token: str) -> AsyncGenerator[Any, None]:
        del token
        if kind == SERVICE:
            while True:
                key, value = await self.changes.get()
                self.service = value
                yield SimpleNamespace(key=key, value=value)
        await asyncio.Event().wait()
        yield None


async def test_it_returns_when_all_run(capsys: pytest.CaptureFixture[str]) -> None:
    waiting = a_service(ServiceState.WAITING, "watch.t: no node has joined yet")
    api = _Api(waiting, a_task(TaskState.WAITING))
    api.changes.put_nowait(("watch", waiting))
    api.changes.put_nowait(("watch", a_service(ServiceState.RUNNING)))
    await served(api, ANSWER, 60)
    told = capsys.readouterr()
    assert told.err == "service watch: waiting: watch.t: no node has joined yet\n"
    assert told.out == ""


@pytest.mark.parametrize(
    "task", [a_task(TaskState.FAILED), a_task(TaskState.MODIFYING, given_up=2)]
)
async def test_a_task_that_failed_for_good_ends_it_at_once(task: Any) -> None:
    api = _Api(a_service(ServiceState.WAITING, "watch.t: why"), task)
    with pytest.raises(EnvironmentFailure, match=r"watch\.t: node-1: no module$"):
        await asyncio.wait_for(served(api, ANSWER, 600), 60)


@pytest.mark.parametrize(
    ("task", "generation"),
    [
        (a_task(TaskState.WAITING), 2),
        (a_task(TaskState.FAILED, asked="NAMO"), 2),
        (a_task(TaskState.MODIFYING, given_up=1), 2),
        (a_task(TaskState.FAILED), 3),
    ],
)
async def test_what_may_still_run_is_waited_for(
    capsys: pytest.CaptureFixture[str], task: Any, generation: int
) -> None:
    api = _Api(a_service(ServiceState.DEPLOYING, generation=generation), task)
    with pytest.raises(EnvironmentFailure, match="does not run within 0 s"):
        await served(api, ANSWER, 0.2)
    told = f"service watch: deploying\ntask watch.t: {task.state}: why\n"
    assert capsys.readouterr().err == told


async def test_an_answer_that_fails_is_told() -> None:
    api = _Api(a_service(ServiceState.WAITING), a_task(TaskState.WAITING))

    async def broken(operation: str) -> Any:
        raise EnvironmentFailure(f"no controller answers ({operation})")

    api.listing = broken  # type: ignore[method-assign]
    with pytest.raises(EnvironmentFailure, match="no controller answers"):
        await served(api, ANSWER, 60)


async def test_a_wait_in_vain_says_how_what_was_waited_for_stands() -> None:
    api: Any = _Api(a_service(ServiceState.WAITING, "watch.t: no node is online"), None)
    with pytest.raises(EnvironmentFailure) as caught:
        await until(api, SERVICES, lambda _: False, 0.2, "service watch does not run")
    assert str(caught.value) == (
        "service watch does not run within 0 s: watch is waiting, watch.t: no node is online"
    )
