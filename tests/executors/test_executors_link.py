"""The wire between daemon and executors: frames whole, torn, oversized, and both sides' tables."""

import asyncio
import json
import socket
import struct
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.executors.contract import Contract, fit_constant
from device_agent.executors.door import Bytes, Done, Failed, File
from device_agent.executors.link import Link, Reply
from device_agent.executors.programs import abi, wire
from protocols import manifest as tables
from protocols.errors import TonaBug
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.invocation import INLINE_MAX_BYTES, FailureCode

sys.path.insert(0, str(Path(wire.__file__).parent))

import contextlib

from onnx_scan import NotProtobuf, misfit
from stream import Refusal, Stream, map_file, read_values, write_values

WAIT_S = 60


def frame(header: dict[str, Any], body: bytes = b"") -> bytes:
    text = json.dumps(header).encode()
    return wire.PREFIX.pack(len(text), len(body)) + text + body


class Peer:
    """The far end of a link, in the test's hands."""

    def __init__(self) -> None:
        ours, self.sock = socket.socketpair()
        self.ended = asyncio.Event()
        self.events: list[Reply] = []
        self.link = Link(ours, self.ended.set, self.events.append)
        self.answers: asyncio.Queue[tuple[Reply | None, bytes]] = asyncio.Queue()

    def request(self, header: dict[str, Any] | None = None) -> int:
        def answered(reply: Reply | None, body: memoryview) -> None:
            self.answers.put_nowait((reply, bytes(body)))

        return self.link.request(header or {"op": "x"}, [b"abc"], answered)

    async def answer(self) -> tuple[Reply | None, bytes]:
        return await asyncio.wait_for(self.answers.get(), WAIT_S)

    async def end(self) -> None:
        await asyncio.wait_for(self.ended.wait(), WAIT_S)


@pytest.fixture
async def peer() -> AsyncIterator[Peer]:
    one = Peer()
    yield one
    one.link.close()
    one.sock.close()


async def test_the_last_word_of_who_has_ended_is_taken(peer: Peer) -> None:
    first, second = peer.request(), peer.request()
    peer.sock.sendall(frame({"id": first}))
    peer.sock.close()
    peer.link.finish()
    answers = [(await peer.answer())[0] for _ in (first, second)]
    assert answers == [Reply(first), None]
    assert peer.ended.is_set()


async def test_frames_come_through_in_pieces_and_in_heaps(peer: Peer) -> None:
    numbers = [peer.request() for _ in range(3)]
    header, body = Stream(peer.sock).receive() or ({}, memoryview(b""))
    assert (header["id"], bytes(body)) == (numbers[0], b"abc")
    answers = b"".join(frame({"id": number}, bytes([number])) for number in reversed(numbers))
    for byte in answers[:-30]:
        peer.sock.send(bytes([byte]))
        await asyncio.sleep(0)
    peer.sock.send(answers[-30:])
    found = [await peer.answer() for _ in numbers]
    assert [(reply.id if reply else 0, body) for reply, body in found] == [
        (number, bytes([number])) for number in reversed(numbers)
    ]


async def test_the_largest_frame_goes_both_ways(peer: Peer) -> None:
    body = bytes(range(256)) * (wire.MAX_BODY_BYTES // 256)
    loop = asyncio.get_running_loop()
    number = peer.link.request({"op": "x"}, [body], lambda _reply, _body: None)
    received = await asyncio.wait_for(loop.run_in_executor(None, Stream(peer.sock).receive), WAIT_S)
    assert received is not None
    assert (received[0]["id"], bytes(received[1])) == (number, body)
    number = peer.request()
    await loop.run_in_executor(None, peer.sock.sendall, frame({"id": number}, body))
    assert (await peer.answer())[1] == body


async def test_events_and_late_answers(peer: Peer) -> None:
    number = peer.request()
    peer.sock.send(frame({"id": 0, "exit": [7, "killed"]}))
    peer.sock.send(frame({"id": 999}))
    peer.sock.send(frame({"id": number, "unknown": 1}))
    assert (await peer.answer())[0] == Reply(number)
    assert [event.exit for event in peer.events] == [(7, "killed")]


@pytest.mark.parametrize(
    "garbage",
    [
        struct.pack("<II", 1 << 30, 0),
        struct.pack("<II", 2, 1 << 30) + b"{}",
        struct.pack("<II", 4, 0) + b"\xff\xff\xff\xff",
        frame({"id": "one"}),
        frame({"id": 1, "fail": "no"}),
        frame({}),
    ],
)
async def test_what_is_no_frame_ends_the_link(peer: Peer, garbage: bytes) -> None:
    peer.request()
    peer.sock.send(garbage)
    assert await peer.answer() == (None, b"")
    await peer.end()


async def test_an_ended_link_answers_what_is_open_and_what_comes_later(peer: Peer) -> None:
    peer.request()
    peer.sock.close()
    assert await peer.answer() == (None, b"")
    await peer.end()
    peer.request()
    assert await peer.answer() == (None, b"")
    assert await peer.link.ask({"op": "x"}) is None


async def test_a_frame_of_ours_beyond_the_bound_is_our_bug(peer: Peer) -> None:
    with pytest.raises(TonaBug):
        peer.link.tell({"op": "x" * wire.MAX_HEADER_BYTES})


def test_both_sides_know_the_same_tables() -> None:
    sizes = {tables.ONNX_DTYPE_NUMBER[dtype]: size for dtype, size in tables.ITEM_BYTES.items()}
    assert sizes == abi.ITEM_BYTES
    assert wire.INLINE_MAX_BYTES == INLINE_MAX_BYTES
    assert wire.MAX_BODY_BYTES >= tables.MAX_PORTS * INLINE_MAX_BYTES
    assert abi.PORT.size == 48


@given(st.binary(max_size=64))
def test_no_bytes_break_the_scan_of_a_model(data: bytes) -> None:
    with contextlib.suppress(NotProtobuf):
        assert isinstance(misfit(data + b"location"), str)


def test_values_pass_through_files_and_frames(tmp_path: Path) -> None:
    small, large = memoryview(b"abcd"), memoryview(bytes(wire.INLINE_MAX_BYTES + 4))
    values = [("s", 1, (1,), small), ("l", 1, (len(large) // 4,), large)]
    made = tmp_path / "made"
    made.mkdir()
    described, inline = write_values(values, str(tmp_path), 1 << 20)
    assert (described[0][4], inline) == ("", [small])
    assert [f"made/{one.name}" for one in made.iterdir()] == [described[1][4]]
    assert read_values(described, small, str(tmp_path)) == values
    again, _ = write_values(values, str(tmp_path), 1 << 20)
    assert again[0] == described[0]
    assert again[1][4] != described[1][4]
    with pytest.raises(Refusal, match="not 3"):
        map_file(str(tmp_path / described[1][4]), 3)
    with pytest.raises(Refusal, match="No such file"):
        write_values(values[1:], str(tmp_path / "absent"), 1 << 20)


@pytest.fixture
def contract() -> Contract:
    ports = (Port("a", Dtype.FLOAT32, (-1, 2)), Port("b", Dtype.INT64, ()))
    ref = ArtifactRef("sha256:" + "0" * 64, 1)
    limits = Limits(output_bytes=1000)
    return Contract(Manifest(ExecutorKind.ONNX, ref, ports, ports, limits), {})


def test_a_good_answer_is_taken(contract: Contract) -> None:
    out = [("a", 1, (1, 2), 8, ""), ("b", 7, (), 8, "made/" + "f" * 64)]
    found = contract.read(Reply(1, us=5, out=out), memoryview(b"12345678"))
    assert found == Done(
        {
            "a": Bytes(Dtype.FLOAT32, (1, 2), b"12345678"),
            "b": File(Dtype.INT64, (), "made:" + "f" * 64, 8),
        },
        5,
    )


@pytest.mark.parametrize(
    "first",
    [
        ("z", 1, (1, 2), 8, ""),
        ("a", 7, (1, 2), 8, ""),
        ("a", 99, (1, 2), 8, ""),
        ("a", 1, (1, 3), 12, ""),
        ("a", 1, (-1, 2), 8, ""),
        ("a", 1, (1, 2), 7, ""),
        ("a", 1, (1, 2), 8, "../../etc/passwd"),
        ("a", 1, (1000, 2), 8000, "f" * 64),
        ("a", 1, (2, 2), 16, ""),
    ],
)
def test_an_executor_is_not_trusted(contract: Contract, first: Any) -> None:
    reply = Reply(1, out=[first, ("b", 7, (), 8, "f" * 64)])
    result = contract.read(reply, memoryview(b"12345678"))
    assert isinstance(result, Failed)
    assert result.code is FailureCode.EXECUTOR


def test_an_unknown_failure_is_a_failure(contract: Contract) -> None:
    result = contract.read(Reply(1, fail=("odd", "nobody", "text", True)), memoryview(b""))
    assert isinstance(result, Failed)
    assert "text" in result.text


@pytest.mark.parametrize(
    ("shape", "size", "found"),
    [
        ((2, 3), 24, (2, 3)),
        ((-1, 3), 24, (2, 3)),
        ((), 4, ()),
        ((-1, 3), 25, None),
        ((2, 3), 20, None),
        ((-1, -1), 24, None),
        ((-1, 0), 0, None),
    ],
)
def test_a_constants_shape_follows_from_its_size(
    shape: tuple[int, ...], size: int, found: tuple[int, ...] | None
) -> None:
    fit = fit_constant(Port("c", Dtype.FLOAT32, shape), size, "/c")
    assert (None if isinstance(fit, str) else fit.shape) == found


def test_a_daemon_that_reads_no_answer_has_hung_up() -> None:
    daemon, ours = socket.socketpair()
    ours.sendall(frame({"id": 1}))
    daemon.close()
    stream = Stream(ours)
    stream.send({"id": 2})
    assert stream.receive() is None
    ours.close()
