"""A value moves once, as soon as the most urgent of those who wait for it needs it."""

import msgspec
import pytest
from device_harness import SimNode, assign, digest, invoke, of

from device_agent.core import commands, events
from protocols.manifest import Dtype
from protocols.messages.invocation import Blob, Cancel, Invoke

BLOB = Blob(Dtype.UINT8, (100_000,), digest("big"), 100_000)


@pytest.fixture
def node() -> SimNode:
    one = SimNode()
    one.hear(assign())
    return one


def wanting(request: str, priority: int, budget_ms: int = 5000) -> Invoke:
    body = invoke(request, budget_ms=budget_ms)
    return msgspec.structs.replace(body, inputs={"x": BLOB}, priority=priority)


def test_a_value_that_is_fetched_moves_sooner_for_whoever_is_more_urgent(node: SimNode) -> None:
    said = node.call(wanting("r1", 0))
    said += node.call(wanting("r2", 0, 9000))
    said += node.call(wanting("r3", 7))
    said += node.call(wanting("r4", 3))
    said += node.call(wanting("r5", 7, 4000))
    (fetch,) = of(commands.FetchBlob, said)
    assert fetch.urgency == (0, node.now_ms + 5000)
    assert of(commands.HurryBlob, said) == [
        commands.HurryBlob(BLOB.digest, (-7, node.now_ms + due_ms)) for due_ms in (5000, 4000)
    ]


def test_a_value_that_is_pushed_moves_sooner_for_whoever_is_more_urgent(node: SimNode) -> None:
    said = []
    for request, priority in (("r1", 1), ("r2", 0), ("r3", 7)):
        node.call(msgspec.structs.replace(invoke(request), priority=priority))
        said += node.answer(y=BLOB)
    (push,) = of(commands.PushBlob, said)
    assert push.urgency[0] == -1
    (hurry,) = of(commands.HurryBlob, said)
    assert (hurry.digest, hurry.urgency[0], hurry.pushing) == (BLOB.digest, -7, True)


def test_a_value_that_is_wanted_anew_is_as_urgent_as_who_wants_it_then(node: SimNode) -> None:
    node.call(wanting("r1", 7))
    assert of(commands.LeaveBlob, node.call(Cancel("r1")))
    (fetch,) = of(commands.FetchBlob, node.call(wanting("r2", 0)))
    assert fetch.urgency[0] == 0
    assert of(commands.HurryBlob, node.call(wanting("r3", 1)))
    node.tell(events.BlobReady(BLOB.digest))
    (fetch,) = of(commands.FetchBlob, node.call(wanting("r4", 0)))
    assert fetch.urgency[0] == 0
