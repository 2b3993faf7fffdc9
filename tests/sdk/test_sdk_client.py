"""The client against a real broker, with nodes and a scheduler made of the protocol alone."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real_brokers import Broker
from sdk_cell import PATIENCE_S, Cell, blob, tensor

import tona
from protocols.errors import Blame, UserError
from protocols.messages import Accepted, Invoke, Result
from protocols.messages.invocation import Blob, Failure, FailureCode


async def test_a_service_is_invoked_over_either_broker(any_broker: Broker) -> None:
    async with Cell(any_broker.port) as cell, tona.connect(cell.url) as client:
        result = await client.invoke("s", {"x": "Grüße"}, deadline_s=PATIENCE_S)
        assert result.text("y") == "Grüße"
        assert (result.attempts, result.timings[0].node) == (1, "n1")
        assert result.elapsed_ms > 0


async def test_arrays_go_and_come_back_as_they_are(cell: Cell) -> None:
    async with tona.connect(cell.url) as client:
        for array in (
            np.arange(6, dtype=np.float32).reshape(2, 3),
            np.arange(6, dtype=">i4")[::2],
            np.array([True, False]),
            np.zeros((0, 4), np.int64),
            np.float64(2.5),
        ):
            result = await client.invoke("s", {"x": array}, deadline_s=PATIENCE_S)
            np.testing.assert_array_equal(result["y"], array)
            assert result["y"].dtype == np.asarray(array).dtype.newbyteorder("<")
            assert result["y"].shape == np.shape(array)


async def test_a_warm_request_costs_one_message_out_and_one_back(cell: Cell) -> None:
    async with tona.connect(cell.url) as client:
        await client.invoke("s", {"x": b"first"}, deadline_s=PATIENCE_S)
        way = client._attachment._now
        assert way is not None
        counters = way.session.counters
        sent, received = counters.sent, counters.received
        for _ in range(20):
            await client.invoke("s", {"x": b"warm"}, deadline_s=PATIENCE_S)
        assert (counters.sent - sent, counters.received - received) == (20, 20)
        assert cell.asked == 1


async def test_many_requests_at_once_are_answered_each_with_its_own(cell: Cell) -> None:
    async with tona.connect(cell.url) as client:
        calls = [client.invoke("s", {"x": f"{at}"}, deadline_s=PATIENCE_S) for at in range(300)]
        results = await asyncio.gather(*calls)
        assert [one.text("y") for one in results] == [f"{at}" for at in range(300)]


async def test_large_values_go_through_the_store_both_ways(cell: Cell) -> None:
    image = np.arange(300_000, dtype=np.uint16).reshape(300, 1000)
    answer = image.tobytes()[::-1]

    def behave(invoke: Invoke) -> list[Accepted | Result]:
        given = invoke.inputs["x"]
        assert isinstance(given, Blob)
        assert (given.shape, given.size_bytes) == ((300, 1000), 600_000)
        assert cell.blobs[given.digest.removeprefix("sha256:")] == image.tobytes()
        cell.blobs[hashlib.sha256(answer).hexdigest()] = answer
        return [cell.n1.answer(invoke, {"y": blob(answer)})]

    cell.n1.behave = behave
    async with tona.connect(cell.url) as client:
        for _ in range(3):
            result = await client.invoke("s", {"x": image}, deadline_s=PATIENCE_S)
            assert result.data("y") == answer


async def test_many_middling_inputs_do_not_make_an_oversized_message(cell: Cell) -> None:
    names = ("a", "b", "c", "d")
    cell.place("s", "n1", names=names)
    inputs = {name: bytes([at]) * 60_000 for at, name in enumerate(names)}
    async with tona.connect(cell.url) as client:
        await client.invoke("s", inputs, deadline_s=PATIENCE_S)
    (invoke,) = cell.n1.heard
    assert sum(isinstance(one, Blob) for one in invoke.inputs.values()) == 3


async def test_a_large_output_that_is_not_what_it_says_is_refused(cell: Cell) -> None:
    wrong = blob(b"right" * 20_000)
    cell.blobs[wrong.digest.removeprefix("sha256:")] = b"wrong" * 20_000
    cell.n1.behave = lambda invoke: [cell.n1.answer(invoke, {"y": wrong})]
    async with tona.connect(cell.url) as client:
        with pytest.raises(tona.TaskFailed, match="could not be fetched: the store gave sha256:"):
            await client.invoke("s", {"x": b""}, deadline_s=PATIENCE_S)
        cell.blobs.clear()
        with pytest.raises(tona.TaskFailed, match="answers 404: not here"):
            await client.invoke("s", {"x": b""}, deadline_s=PATIENCE_S)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (FailureCode.BAD_INPUT, tona.BadInput),
        (FailureCode.NO_SERVICE, tona.ServiceUnavailable),
        (FailureCode.LIMIT, tona.Refused),
        (FailureCode.DEADLINE, tona.DeadlineExceeded),
        (FailureCode.EXECUTOR, tona.TaskFailed),
    ],
)
async def test_a_failure_is_an_error_of_its_own_kind(
    cell: Cell, code: FailureCode, kind: type[tona.InvocationError]
) -> None:
    failure = Failure(code, Blame.USER, "it broke", retryable=False, task="s.t", node="n1")
    cell.n1.behave = lambda one: [Result(one.request, one.attempt, {}, failure)]
    async with tona.connect(cell.url) as client:
        with pytest.raises(kind) as caught:
            await client.invoke("s", {"x": b""}, deadline_s=PATIENCE_S)
    assert str(caught.value) == "it broke (task s.t on n1)"
    assert (caught.value.blame, caught.value.code) == (Blame.USER, code)


async def test_a_service_that_nobody_serves_is_said_so(cell: Cell) -> None:
    async with tona.connect(cell.url) as client:
        with pytest.raises(tona.ServiceUnavailable, match="there is no service 'nothing'"):
            await client.invoke("nothing", {"x": b""}, deadline_s=2)


async def test_wrong_calls_are_told_before_anything_is_sent(cell: Cell) -> None:
    async with tona.connect(cell.url) as client:
        with pytest.raises(tona.BadInput, match="'a/b' cannot name a service"):
            await client.invoke("a/b", {"x": b""})
        with pytest.raises(tona.BadInput, match="deadline_s is 0"):
            await client.invoke("s", {"x": b""}, deadline_s=0)
        with pytest.raises(tona.BadInput, match="is of type list"):
            await client.invoke("s", {"x": [1]})
        with pytest.raises(tona.BadInput, match="has no input 'image'"):
            await client.invoke("s", {"image": b""})
        with pytest.raises(tona.BadInput, match="'a/b' cannot name a job"):
            await client.submit("s", {"x": b""}, job="a/b")
    assert cell.n1.heard == []


async def test_a_busy_node_is_asked_again(cell: Cell) -> None:
    busy = Failure(FailureCode.BUSY, Blame.ENVIRONMENT, "full", retryable=True)

    def behave(invoke: Invoke) -> list[Accepted | Result]:
        if invoke.attempt < 3:
            return [Result(invoke.request, invoke.attempt, {}, busy)]
        return cell.n1.echo(invoke)

    cell.n1.behave = behave
    async with tona.connect(cell.url) as client:
        result = await client.invoke("s", {"x": b"1"}, deadline_s=PATIENCE_S)
    assert result.attempts == 3
    assert len({one.request for one in cell.n1.heard}) == 1


async def test_a_request_follows_its_service_to_another_node(cell: Cell) -> None:
    cell.n1.behave = lambda invoke: [cell.n1.accept(invoke)]
    async with tona.connect(cell.url) as client:
        call = asyncio.create_task(client.invoke("s", {"x": b"1"}, deadline_s=PATIENCE_S))
        await cell.n1.until(lambda: bool(cell.n1.heard))
        cell.place("s", "n2")
        cell.publish("s")
        result = await call
    assert (result.attempts, result.timings[0].node) == (2, "n2")


async def test_the_ends_of_a_service_answer_in_parts(cell: Cell) -> None:
    cell.place("s", "n1", "n2")
    cell.n1.behave = lambda one: [cell.n1.answer(one, {"a": tensor(b"1")}, part=0, parts=2)]
    cell.n2.behave = lambda one: [cell.n2.answer(one, {"b": tensor(b"2")}, part=1, parts=2)] * 2
    async with tona.connect(cell.url) as client:
        result = await client.invoke("s", {"x": b""}, deadline_s=PATIENCE_S)
    assert (result.data("a"), result.data("b")) == (b"1", b"2")
    assert sorted(one.node for one in result.timings) == ["n1", "n2"]


async def test_a_broker_that_dies_and_comes_back_loses_no_request(
    cell: Cell, broker: Broker
) -> None:
    cell.n1.behave = lambda invoke: [cell.n1.accept(invoke)]
    async with tona.connect(cell.url) as client:
        calls = [
            asyncio.create_task(client.invoke("s", {"x": f"{at}"}, deadline_s=60))
            for at in range(20)
        ]
        await cell.n1.until(lambda: len(cell.n1.heard) == 20)
        await broker.kill()
        cell.n1.behave = cell.n1.echo
        await broker.start()
        results = await asyncio.gather(*calls)
    assert [one.text("y") for one in results] == [f"{at}" for at in range(20)]
    assert min(one.attempts for one in results) > 1


async def test_a_cancelled_call_is_cancelled_at_the_node(cell: Cell) -> None:
    cell.n1.behave = lambda invoke: [cell.n1.accept(invoke)]
    async with tona.connect(cell.url) as client:
        call = asyncio.create_task(client.invoke("s", {"x": b"1"}, deadline_s=PATIENCE_S))
        await cell.n1.until(lambda: bool(cell.n1.heard))
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await cell.n1.until(lambda: bool(cell.n1.cancelled))
        assert cell.n1.cancelled == [cell.n1.heard[0].request]
        assert len(client._core) == 0


async def test_closing_ends_what_is_under_way(cell: Cell) -> None:
    cell.n1.behave = lambda invoke: [cell.n1.accept(invoke)]
    async with tona.connect(cell.url) as client:
        call = asyncio.create_task(client.invoke("s", {"x": b"1"}, deadline_s=PATIENCE_S))
        await cell.n1.until(lambda: bool(cell.n1.heard))
    with pytest.raises(tona.ClientClosed):
        await call
    with pytest.raises(tona.ClientClosed):
        await client.invoke("s", {"x": b"1"})
    await client.close()


async def source(count: int) -> AsyncIterator[dict[str, Any]]:
    for at in range(count):
        yield {"x": str(at)}


def later_first(cell: Cell, window: int) -> None:
    """Let the node answer each window of requests in the reverse of their order."""
    held: list[Invoke] = []

    def behave(invoke: Invoke) -> list[Accepted | Result]:
        held.append(invoke)
        if len(held) == window:
            while held:
                one = held.pop()
                cell.n1.say(one, cell.n1.echo(one)[0])
        return []

    cell.n1.behave = behave


async def test_a_stream_answers_in_order_or_as_it_comes(cell: Cell) -> None:
    async with tona.connect(cell.url) as client:
        for ordered in (True, False):
            later_first(cell, 4)
            results = [
                (one.index, one.text("y"))
                async for one in client.stream("s", source(12), in_flight=4, ordered=ordered)
                if isinstance(one, tona.Result)
            ]
            assert sorted(results) == [(at, str(at)) for at in range(12)]
            assert (results == sorted(results)) == ordered


async def test_a_stream_takes_a_plain_list_and_goes_on_after_a_failure(cell: Cell) -> None:
    async with tona.connect(cell.url) as client:
        items = [{"x": b"1"}, {"z": b"2"}, {"x": b"3"}]
        answers = [one async for one in client.stream("s", items)]
    first, second, third = answers
    assert isinstance(first, tona.Result)
    assert isinstance(second, tona.BadInput)
    assert isinstance(third, tona.Result)
    assert third.index == 2


async def test_a_slow_source_holds_no_answer_back(cell: Cell) -> None:
    more = asyncio.Event()

    async def slow() -> AsyncIterator[dict[str, Any]]:
        yield {"x": b"1"}
        await more.wait()
        yield {"x": b"2"}

    async with tona.connect(cell.url) as client:
        async for one in client.stream("s", slow()):
            assert isinstance(one, tona.Result)
            more.set()
            last = one
    assert last.index == 1


async def test_a_stream_that_is_left_cancels_what_runs(cell: Cell) -> None:
    def behave(invoke: Invoke) -> list[Accepted | Result]:
        return cell.n1.echo(invoke) if len(cell.n1.heard) == 1 else [cell.n1.accept(invoke)]

    cell.n1.behave = behave
    async with tona.connect(cell.url) as client:
        answers = client.stream("s", source(100), in_flight=3)
        async for _ in answers:
            await cell.n1.until(lambda: len(cell.n1.heard) >= 3)
            break
        await answers.aclose()  # type: ignore[attr-defined]
        assert len(client._core) == 0
        await cell.n1.until(lambda: len(cell.n1.cancelled) == len(cell.n1.heard) - 1)


async def test_the_blocking_client_does_the_same_in_a_thread_of_its_own(cell: Cell) -> None:
    def work() -> list[str]:
        with tona.connect_blocking(cell.url) as client:
            assert isinstance(client, tona.Client)
            told = [client.invoke("s", {"x": "one"}, deadline_s=PATIENCE_S).text("y")]
            with pytest.raises(tona.BadInput):
                client.invoke("s", {"q": b""})
            inputs = [{"x": str(at)} for at in range(10)] + [{"q": "wrong"}]
            for ordered in (True, False):
                answers = list(client.stream("s", inputs, in_flight=3, ordered=ordered))
                served = [one for one in answers if isinstance(one, tona.Result)]
                assert sorted(one.index for one in served) == list(range(10))
                assert len(answers) == 11
                if ordered:
                    told += [one.text("y") for one in served]
            for _ in client.stream("s", inputs):
                break
        client.close()
        with pytest.raises(tona.ClientClosed):
            client.invoke("s", {"x": b""})
        return told

    told = await asyncio.to_thread(work)
    assert told == ["one", *map(str, range(10))]


async def test_a_controller_that_is_not_there_is_said_so() -> None:
    with pytest.raises(tona.CannotConnect, match=r"no controller answers .* start one with"):
        async with tona.connect("http://127.0.0.1:1"):
            pass
    with pytest.raises(tona.CannotConnect, match="no controller answers"):
        await asyncio.to_thread(tona.connect_blocking, "http://127.0.0.1:1")


async def test_a_broker_that_is_not_there_is_said_so(cell: Cell) -> None:
    cell.system["broker"] = "mqtt://127.0.0.1:1"
    with pytest.raises(tona.CannotConnect, match=r"127.0.0.1:1: refused.*tried for 2 s"):
        async with tona.connect(cell.url, timeout_s=2):
            pass


async def test_what_is_no_controller_is_said_so(cell: Cell) -> None:
    for system in ({"cell": CELL_MISSING}, ["x"], {"cell": "a b", "broker": "mqtt://h:1"}):
        cell.system = system
        with pytest.raises(tona.CannotConnect, match=r"no controller of a cell|names no broker"):
            async with tona.connect(cell.url):
                pass
    cell.system = {"cell": "c1", "broker": "mqtts://127.0.0.1:1"}
    with pytest.raises(UserError, match="connect with the bundle"):
        async with tona.connect(cell.url):
            pass
    with pytest.raises(UserError, match="connect with the bundle"):
        async with tona.connect("https://example.invalid"):
            pass


CELL_MISSING = "c1"


async def test_a_bundle_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read the bundle"):
        async with tona.connect(tmp_path / "none.json"):
            pass


def test_the_package_names_what_it_offers() -> None:
    for name in tona.__all__:
        assert getattr(tona, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        tona.nothing  # noqa: B018 - the look-up itself
