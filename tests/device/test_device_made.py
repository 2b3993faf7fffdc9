"""Large values that are made here: they stay as long as their request, and leave under a digest."""

import msgspec
import pytest
from device_harness import NODE, SimNode, assign, chain, digest, invoke, of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st

from device_agent.core import commands, events
from device_agent.core.admission import MADE_MAX_BYTES
from device_agent.core.finished import FINISHED_MADE_MAX_BYTES, MARGIN_MS
from device_agent.core.values import made
from protocols.codec import VERSION, Frame, decode, encode
from protocols.errors import Blame, MalformedFrame
from protocols.manifest import Dtype
from protocols.messages import Cancel, Result
from protocols.messages.invocation import Blob, FailureCode
from protocols.topics import Channel

LIMIT = 1 << 20
SIZE = 100_000
NAMED = digest("its content")
TWO = chain(("t", NODE, 1), ("u", NODE, 1))


def value(number: int = 0, size: int = SIZE) -> Blob:
    return Blob(Dtype.UINT8, (size,), f"made:{number:064x}", size)


def dropped(said: list[commands.Command]) -> list[str]:
    return [name for one in said if isinstance(one, commands.DropValues) for name in one.names]


def fail(node: SimNode, call: str, *, again: bool) -> list[commands.Command]:
    del node.calls[call]
    return node.tell(events.ExecutorFailed(call, FailureCode.EXECUTOR, Blame.USER, "no", again))


@pytest.fixture
def node() -> SimNode:
    one = SimNode()
    one.join()
    one.hear(assign("t"))
    one.hear(assign("u"))
    return one


def test_it_feeds_the_next_step_at_once_and_goes_with_its_request(node: SimNode) -> None:
    node.call(invoke(plan=TWO))
    said = node.answer(y=value())
    (execute,) = said
    assert isinstance(execute, commands.Execute), "neither fetched nor pushed"
    assert execute.inputs == {"x": value()}
    said = node.answer()
    assert of(Result, said)[0].outputs == {"answer": tensor(b"ok")}
    assert dropped(said) == [value().digest]
    assert node.core.requests.admission.made_bytes == 0


def test_it_leaves_the_node_under_its_digest(node: SimNode) -> None:
    node.call(invoke())
    (push,) = node.answer(y=value())
    assert isinstance(push, commands.PushBlob)
    assert push.digest == value().digest
    said = node.tell(events.BlobPushed(value().digest, NAMED))
    named = msgspec.structs.replace(value(), digest=NAMED)
    assert of(Result, said)[0].outputs == {"answer": named}
    assert dropped(said) == [value().digest]
    # The store may have let go of it since: from now on it is a value like any other.
    (push,) = of(commands.PushBlob, node.call(invoke(attempt=2)))
    assert push.digest == NAMED
    assert of(Result, node.tell(events.BlobPushed(NAMED)))[0].outputs == {"answer": named}


def test_no_message_can_bring_one() -> None:
    body = msgspec.structs.replace(invoke(), inputs={"x": value()})
    with pytest.raises(MalformedFrame):
        decode(encode(Frame(VERSION, "app", 1, 0, "default", "c", body), LIMIT), LIMIT)


def test_another_attempt_goes_on_from_where_the_first_one_failed(node: SimNode) -> None:
    node.call(invoke(plan=TWO))
    node.answer(y=value())
    assert not dropped(fail(node, *node.calls, again=True))
    (execute,) = of(commands.Execute, node.call(invoke(plan=TWO, attempt=2)))
    assert execute.instance == "u~2", "the first step does not run again"
    assert execute.inputs == {"x": value()}
    assert dropped(node.answer()) == [value().digest]


def test_what_failed_for_good_or_was_cancelled_keeps_nothing(node: SimNode) -> None:
    node.call(invoke(plan=TWO))
    node.answer(y=value())
    assert dropped(node.hear(Cancel("r1"), Channel.INVOKE)) == [value().digest]
    node.call(invoke("r2", TWO))
    node.answer(y=value(1))
    assert dropped(fail(node, *node.calls, again=False)) == [value(1).digest]


def test_what_may_be_tried_again_is_kept_until_its_time_is_over(node: SimNode) -> None:
    node.call(invoke(plan=TWO))
    node.answer(y=value())
    said = node.at(node.now_ms + 1000)
    assert of(Result, said)[0].failure.code is FailureCode.DEADLINE
    # Nobody has time for another attempt, but whoever asks is told the same.
    assert dropped([*said, *node.after(2 * MARGIN_MS + 20_000)]) == [value().digest]


def test_what_comes_too_late_is_dropped(node: SimNode) -> None:
    node.helpful = False
    node.call(invoke())
    node.hear(Cancel("r1"), Channel.INVOKE)
    assert dropped(node.answer(y=value())) == [value().digest]
    assert dropped(node.tell(events.ExecutorDone("99", {"y": value(1)}, 1))) == [value(1).digest]


def test_a_step_that_is_new_here_has_a_dropped_value_made_again(node: SimNode) -> None:
    elsewhere = chain(("t", NODE, 1), ("u", NODE, 1))
    node.call(invoke(plan=elsewhere))
    node.answer(y=value())
    assert dropped(node.answer())
    node.hear(assign("w"))
    other = chain(("t", NODE, 1), ("w", NODE, 1))
    (execute,) = of(commands.Execute, node.call(invoke(plan=other, attempt=2)))
    assert execute.instance == "t~1"
    said = node.answer(y=value(1))
    assert of(commands.Execute, said)[0].inputs == {"x": value(1)}
    assert dropped(node.answer()) == [value(1).digest]


def test_a_whole_answer_is_said_again_without_what_was_dropped(node: SimNode) -> None:
    node.call(invoke(plan=TWO))
    node.answer(y=value())
    node.answer()
    again = node.call(invoke(plan=TWO))
    assert of(Result, again)[0].outputs == {"answer": tensor(b"ok")}
    assert not of(commands.Execute, again)


def test_there_is_a_bound_for_all_of_them(node: SimNode) -> None:
    node.call(invoke(plan=TWO))
    said = node.answer(y=value(size=MADE_MAX_BYTES + 1))
    failure = of(Result, said)[0].failure
    assert (failure.code, failure.retryable) == (FailureCode.BUSY, True)
    assert "bytes of values under way" in failure.text
    assert dropped(said) == [value().digest]
    assert of(commands.Execute, node.call(invoke("r2", TWO)))


def test_a_node_that_is_full_of_them_takes_no_other_request(node: SimNode) -> None:
    node.call(invoke(plan=TWO))
    node.answer(y=value(size=MADE_MAX_BYTES))
    failure = of(Result, node.call(invoke("r2")))[0].failure
    assert (failure.code, failure.retryable) == (FailureCode.BUSY, True)
    assert f"1 requests with {MADE_MAX_BYTES + 3} bytes" in failure.text
    node.answer()
    assert of(commands.Execute, node.call(invoke("r2", attempt=2)))


def test_what_is_kept_for_another_attempt_is_bounded(node: SimNode) -> None:
    said = []
    for number in range(3):
        node.call(invoke(f"r{number}", TWO))
        node.answer(y=value(number, FINISHED_MADE_MAX_BYTES // 2))
        said += fail(node, *node.calls, again=True)
    assert dropped(said) == [value(0).digest]
    assert node.core.requests.admission.made_bytes == FINISHED_MADE_MAX_BYTES


STEPS = st.lists(st.tuples(st.sampled_from("irafcdpw"), st.integers(0, 3)), max_size=40)


@settings(deadline=None)
@given(STEPS)
def test_every_one_is_dropped_once_nobody_can_want_it(steps: list[tuple[str, int]]) -> None:
    node = SimNode()
    node.join()
    node.hear(assign("t"))
    node.hear(assign("u"))
    born: set[str] = set()
    for what, at in steps:
        request = f"r{at}"
        match what:
            case "i" | "r":
                node.call(invoke(request, TWO, attempt=1 + (what == "r")))
            case "a" if node.calls:
                one = value(len(born))
                born.add(one.digest)
                node.answer(list(node.calls)[at % len(node.calls)], y=one)
            case "f" if node.calls:
                fail(node, list(node.calls)[at % len(node.calls)], again=at % 2 == 0)
            case "c":
                node.hear(Cancel(request), Channel.INVOKE)
            case "d" | "w":
                node.after(at * 400.0)
            case "p":
                for push in of(commands.PushBlob, node.said)[-4:]:
                    node.tell(events.BlobPushed(push.digest, digest(push.digest)))
        kept = {
            name
            for requests in (
                node.core.requests.admission.live.values(),
                node.core.requests.admission.finished._requests.values(),
            )
            for one in requests
            for name in one.made
        }
        assert born - set(dropped(node.said)) == kept
        assert node.core.requests.admission.made_bytes == SIZE * len(kept)
    node.after(60_000)
    assert sorted(dropped(node.said)) == sorted(born), "each of them, and once"


def test_only_what_was_made_here_counts() -> None:
    other = Blob(Dtype.UINT8, (SIZE,), NAMED, SIZE)
    assert made({"a": value(), "b": other, "c": tensor()}) == {value().digest: SIZE}
