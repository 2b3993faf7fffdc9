"""What nodes may answer to bring a client down or fill it."""

import pytest

from protocols.manifest import Dtype
from protocols.messages import Result, Route
from protocols.messages.invocation import Edge, Plan, Step, Tensor
from tona import values
from tona.errors import BadInput, TaskFailed
from tona.events import Finish, Heard, Online, SendInvoke, Submit
from tona.requests import Requests

REPLY = "tona/1/cell/client/app/reply"
ONE = Tensor(Dtype.UINT8, (1,), b"1")


def served(*steps: Step) -> Requests:
    core = Requests(REPLY)
    core.handle(Online(connected=True), 0.0)
    core.handle(Submit("r", "s", {"x": ONE}, 30_000.0, uploads=False), 0.0)
    plan = Plan("s", 1, steps, (Edge("y", steps[0].task, "y"),))
    said = core.handle(Heard(Route("s", 1, plan, 30_000)), 1.0)
    assert {one.node for one in said if isinstance(one, SendInvoke)} == {one.node for one in steps}
    return core


def test_parts_that_no_answer_has_are_dropped() -> None:
    core = served(Step("t", "a", 1, (Edge("x", "request", "x"),), ("y",)))
    for part, parts in ((0, 2**40), (7, 2), (2**50, 2**53), (1, 0)):
        assert not core.handle(Heard(Result("r", 1, {}, part=part, parts=parts)), 2.0)
    assert core.counters.late == 4
    (finish,) = core.handle(Heard(Result("r", 1, {"y": ONE})), 3.0)
    assert isinstance(finish, Finish)


def test_a_step_that_needs_nothing_is_asked_too() -> None:
    served(Step("t", "a", 1, (Edge("x", "request", "x"),), ("y",)), Step("u", "b", 1, (), ("y",)))


@pytest.mark.parametrize("shape", [(4,), (-1,), (-1, -1), (2**31 - 1,) * 8, (0,)])
def test_an_answer_that_is_not_what_its_shape_says_is_a_failure(shape: tuple[int, ...]) -> None:
    with pytest.raises(TaskFailed, match="answer"):
        values.dense(Tensor(Dtype.UINT8, shape, b"1"))
    with pytest.raises(TaskFailed):
        values.unpack(Dtype.FLOAT32, shape, b"123")


def test_a_tensor_of_the_wire_is_checked_as_every_input() -> None:
    for amiss in (Tensor(Dtype.UINT8, (4,), b"1"), Tensor(Dtype.UINT8, (1,), b"1", "deflate")):
        with pytest.raises(BadInput, match="'x'"):
            values.pack({"x": amiss})
