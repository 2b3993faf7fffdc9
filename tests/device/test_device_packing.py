"""Packed tensors: both ways, bounded, and only for whoever can read them."""

import zlib

import pytest
from device_harness import NODE, SimNode, assign, chain, invoke, of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from device_agent.core import commands
from protocols.errors import MalformedFrame
from protocols.manifest import Dtype
from protocols.messages import Deliver, Result, Tune
from protocols.messages.invocation import INLINE_MAX_BYTES, FailureCode, Tensor
from protocols.messages.quality import Tuning
from protocols.packing import LEAST_BYTES, pack, unpack

PLAIN = tensor(bytes(5000))


@given(st.binary(max_size=2000), st.integers(0, 3))
@settings(deadline=None, derandomize=True)
def test_what_is_packed_is_unpacked_and_never_larger(data: bytes, repeats: int) -> None:
    value = tensor(data * 4**repeats)
    packed = pack(value)
    assert unpack(packed) == value
    assert packed is value or len(packed.data) <= 0.9 * len(value.data)


def test_what_saves_little_stays_as_it_is() -> None:
    noise = tensor(zlib.compress(bytes(range(256)) * 40, 9) * 2)
    assert pack(tensor(bytes(LEAST_BYTES - 1))).encoding == ""
    assert pack(PLAIN).encoding == "deflate"
    assert len(noise.data) >= LEAST_BYTES
    assert pack(pack(PLAIN)) == pack(PLAIN)


@pytest.mark.parametrize(
    "value",
    [
        Tensor(Dtype.UINT8, (10,), zlib.compress(bytes(5000)), "deflate"),
        Tensor(Dtype.UINT8, (5001,), zlib.compress(bytes(5000)), "deflate"),
        Tensor(Dtype.UINT8, (1 << 30,), zlib.compress(bytes(1 << 20)), "deflate"),
        Tensor(Dtype.UINT8, (-1,), zlib.compress(bytes(10)), "deflate"),
        Tensor(Dtype.UINT8, (5000,), zlib.compress(bytes(5000))[:-1], "deflate"),
        Tensor(Dtype.UINT8, (5000,), zlib.compress(bytes(5000)) + b"x", "deflate"),
        Tensor(Dtype.UINT8, (3,), b"abc", "deflate"),
        Tensor(Dtype.UINT8, (3,), b"abc", "brotli"),
    ],
)
def test_bombs_and_rubbish_are_refused_as_bad_input(value: Tensor) -> None:
    with pytest.raises(MalformedFrame):
        unpack(value)
    node = SimNode()
    node.join()
    node.hear(assign("t"))
    (result,) = of(Result, node.call(structs.replace(invoke(), inputs={"x": value})))
    assert result.failure is not None
    assert result.failure.code is FailureCode.BAD_INPUT


def test_no_more_is_unpacked_than_a_message_may_carry() -> None:
    most = tensor(bytes(INLINE_MAX_BYTES))
    assert unpack(pack(most)) == most
    with pytest.raises(MalformedFrame, match="the bound is"):
        unpack(Tensor(Dtype.UINT8, (INLINE_MAX_BYTES + 1,), b"", "deflate"))


def tuned() -> SimNode:
    node = SimNode()
    node.join()
    node.hear(assign("t"))
    node.hear(Tune("t", 1, 1, Tuning(encoding="deflate")))
    return node


def test_inputs_are_unpacked_before_their_use() -> None:
    node = tuned()
    (execute,) = of(
        commands.Execute, node.call(structs.replace(invoke(), inputs={"x": pack(PLAIN)}))
    )
    assert execute.inputs == {"x": PLAIN}


def test_a_client_gets_packed_tensors_only_if_it_says_that_it_reads_them() -> None:
    node = tuned()
    node.call(invoke("bare"))
    assert of(Result, node.answer(y=PLAIN))[0].outputs == {"answer": PLAIN}
    node.call(structs.replace(invoke("sdk"), answer_encoding="deflate"))
    (result,) = of(Result, node.answer(y=PLAIN))
    assert result.outputs == {"answer": pack(PLAIN)}
    (again,) = of(Result, node.call(structs.replace(invoke("sdk"), attempt=2)))
    assert unpack(again.outputs["answer"]) == PLAIN


def test_a_node_gets_packed_tensors_and_hands_on_what_the_client_reads() -> None:
    node = tuned()
    plan = chain(("t", NODE, 1), ("u", "node-b", 4))
    node.call(structs.replace(invoke("r", plan), answer_encoding="deflate"))
    (deliver,) = of(Deliver, node.answer(y=PLAIN))
    assert deliver.values == {"y": pack(PLAIN)}
    assert deliver.answer_encoding == "deflate"
    here = tuned()
    back = structs.replace(deliver, plan=chain(("t2", "node-z", 1), ("t", NODE, 1)), source="t2")
    (execute,) = of(commands.Execute, here.call(back))
    assert execute.inputs == {"x": PLAIN}
    assert of(Result, here.answer(y=PLAIN))[0].outputs == {"answer": pack(PLAIN)}


def test_steps_of_one_node_pass_dense_values() -> None:
    node = tuned()
    node.hear(assign("u"))
    node.call(invoke("r", chain(("t", NODE, 1), ("u", NODE, 1))))
    (execute,) = of(commands.Execute, node.answer(y=PLAIN))
    assert execute.inputs == {"x": PLAIN}
