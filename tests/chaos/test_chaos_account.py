"""The account of the chaos program: it is exact only when everything sent is accounted for once."""

import asyncio
from typing import Any

import pytest
from chaos_load import Load

import tona
from protocols.errors import Blame
from protocols.messages.invocation import Failure, FailureCode
from tona.errors import error_of

BUSY = error_of(Failure(FailureCode.BUSY, Blame.ENVIRONMENT, "the queue is full", retryable=True))


class Answer:
    def __init__(self, value: bytes) -> None:
        self.outputs = {"y": value}


class OneJob:
    def __init__(self, value: bytes) -> None:
        self._value = value

    async def result(self) -> Answer:
        return Answer(self._value)


class Client:
    """Answers with what it was given, unless it is told otherwise."""

    def __init__(self) -> None:
        self.refuses: tona.InvocationError | None = None
        self.lies = False
        self.keeps = False
        self.jobs: list[str] = []

    async def invoke(self, service: str, inputs: dict[str, bytes], *, deadline_s: float) -> Answer:
        del service, deadline_s
        await asyncio.sleep(0)
        if self.refuses is not None:
            raise self.refuses
        return Answer(b"another's" if self.lies else inputs["x"])

    async def submit(self, service: str, inputs: dict[str, bytes], *, job: str) -> OneJob:
        del service
        self.jobs.append(job)
        if self.keeps:
            await asyncio.Event().wait()
        return OneJob(inputs["x"])


async def ran(client: Client, monkeypatch: pytest.MonkeyPatch) -> Load:
    monkeypatch.setattr("chaos_load.PAUSE_S", 0)
    monkeypatch.setattr("chaos_load.JOB_PAUSE_S", 0)
    world: Any = None
    load = Load(client, world)  # type: ignore[arg-type]
    load.services = ["a", "b"]
    async with load, asyncio.timeout(60), load._more:
        await load._more.wait_for(lambda: load.tally()["sent"] >= 12)
    await load.settle()
    return load


async def test_everything_answered_with_its_own_value_is_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = Client()
    load = await ran(client, monkeypatch)
    tally = load.tally()
    assert load.exact()
    assert tally["sent"] == tally["answered"] >= 6
    assert tally["jobs_accepted"] == tally["jobs_done"] == len(set(client.jobs)) > 0


async def test_a_refusal_is_counted_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    client.refuses = BUSY
    load = await ran(client, monkeypatch)
    assert load.exact()
    assert load.tally()["refused"] == load.tally()["sent"] > 0
    assert list(load.reasons) == ["Refused: the queue is full"]


async def test_anothers_value_is_not_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    client = Client()
    client.lies = True
    load = await ran(client, monkeypatch)
    assert not load.exact()


@pytest.mark.parametrize("count", ["sent", "answered", "jobs_accepted", "jobs_done"])
async def test_one_too_many_or_too_few_is_not_exact(
    monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    load = await ran(Client(), monkeypatch)
    load._count[count] += 1
    assert not load.exact()
