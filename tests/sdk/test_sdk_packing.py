"""What an application sends and gets when tensors are packed on the way."""

import pytest

from protocols.errors import Blame
from protocols.manifest import Dtype
from protocols.messages import Route
from protocols.messages.invocation import REQUEST, Edge, Plan, Step, Tensor
from protocols.packing import pack
from tona import values
from tona.errors import TaskFailed
from tona.events import Heard, Online, SendInvoke, Submit
from tona.requests import Requests

PLAIN = Tensor(Dtype.UINT8, (1000,), bytes(1000))
PLAN = Plan(
    "s",
    1,
    (Step("t", "node-a", 1, (Edge("x", REQUEST, "x"),), ("y",)),),
    (Edge("y", "t", "y"),),
)


@pytest.mark.parametrize(("encoding", "sent"), [("", PLAIN), ("deflate", pack(PLAIN))])
def test_inputs_are_packed_when_the_route_says_so(encoding: str, sent: Tensor) -> None:
    desk = Requests("tona/1/cell/client/app/reply")
    desk.handle(Online(connected=True), 0.0)
    desk.handle(Submit("r", "s", {"x": PLAIN}, 10_000.0, priority=7), 0.0)
    route = Route("s", 1, PLAN, 60_000, encoding=encoding)
    (invoke,) = [one.body for one in desk.handle(Heard(route), 1.0) if isinstance(one, SendInvoke)]
    assert invoke.inputs == {"x": sent}
    assert (invoke.answer_encoding, invoke.priority) == ("deflate", 7)


def test_answers_are_unpacked_and_rubbish_is_told() -> None:
    assert bytes(values.dense(pack(PLAIN)).data) == PLAIN.data
    with pytest.raises(TaskFailed) as caught:
        values.dense(Tensor(Dtype.UINT8, (9,), pack(PLAIN).data, "deflate"))
    assert caught.value.blame is Blame.PEER
