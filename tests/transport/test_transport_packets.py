import contextlib
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocols.errors import MalformedFrame
from protocols.transport import packets
from protocols.transport.packets import MalformedPacket, PacketReader

BOUND = 5_000
unhurried = settings(deadline=None)


def read(reader: PacketReader, stream: bytes, cuts: list[int]) -> list[tuple[int, bytes, int]]:
    """Feed the stream in pieces of the lengths given, over and over; return every packet."""
    found, at, turn = [], 0, 0
    while at < len(stream):
        room = reader.writable()
        piece = stream[at : at + min(len(room), cuts[turn % len(cuts)])]
        room[: len(piece)] = piece
        reader.feed(len(piece))
        at, turn = at + len(piece), turn + 1
        while (packet := reader.take()) is not None:
            found.append(packet)
    return found


topics = st.binary(min_size=1, max_size=80)
parcels = st.tuples(topics, st.integers(0, 4_900), st.integers(0, 0xFFFF))
cuts = st.lists(st.integers(1, 20_000), min_size=1, max_size=8)


@unhurried
@given(st.lists(parcels, max_size=8), cuts)
def test_any_cutting_of_the_stream_gives_the_same_packets(
    sent: list[tuple[bytes, int, int]], lengths: list[int]
) -> None:
    payloads = [random.Random(size).randbytes(size) for _, size, _ in sent]
    stream = b"".join(
        packets.publish(packets.text(topic), payload, packet_id, b"\x00")
        for (topic, _, packet_id), payload in zip(sent, payloads, strict=True)
    )
    found = read(PacketReader(BOUND), stream, lengths)
    assert len(found) == len(sent)
    for (first, body, left_out), (topic, _, packet_id), payload in zip(
        found, sent, payloads, strict=True
    ):
        head = packets.head(first, body)
        assert head[:2] == (topic, packet_id)
        assert packets.content(body, head.at) == ("", b"", payload)
        assert left_out == 0


@unhurried
@given(st.integers(BOUND, 3 * BOUND), st.integers(0, 0xFFFF), cuts)
def test_an_oversized_packet_is_skipped_and_its_head_is_known(
    size: int, packet_id: int, lengths: list[int]
) -> None:
    topic = packets.text(b"tona/1/c/node/n/command")
    big = packets.publish(topic, bytes(size), packet_id, b"\x00")
    small = packets.publish(topic, b"next", 0, b"\x00")
    reader = PacketReader(BOUND)
    found = read(reader, big + small + big + small, lengths)
    whole = len(topic) + (2 if packet_id else 0) + 1 + size
    assert len(found[0][1]) + found[0][2] == whole
    assert packets.head(*found[0][:2])[:2] == (b"tona/1/c/node/n/command", packet_id)
    assert [body[-4:] for _, body, left_out in found if not left_out] == [b"next"] * 2
    assert len(reader._buffer) == packets.READ_BYTES


@given(st.text(max_size=60), st.binary(max_size=200))
def test_response_topic_and_correlation_come_back(topic: str, correlation: bytes) -> None:
    block = packets.request_properties(topic, correlation)
    assert packets.content(block + b"payload", 0) == (topic, correlation, b"payload")


@given(st.binary(max_size=300))
def test_any_bytes_are_a_publish_or_the_brokers_fault_or_the_peers(body: bytes) -> None:
    for first in (0x30, 0x32):
        try:
            head = packets.head(first, body)
            packets.content(body, head.at)
        except (MalformedPacket, MalformedFrame):
            pass


@given(st.binary(max_size=40))
def test_any_bytes_are_an_answer_or_the_brokers_fault(body: bytes) -> None:
    for read_one in (packets.acknowledged, packets.suback, lambda b: packets.connack(b, BOUND)):
        with contextlib.suppress(MalformedPacket):
            read_one(body)
    assert packets.disconnected(body)


def test_a_packet_larger_than_the_buffer_at_rest_gets_room() -> None:
    big = packets.publish(packets.text(b"t"), bytes(200_000), 1, b"\x00")
    found = read(PacketReader(250_000), big * 3, [65_536])
    assert [(len(body), left_out) for _, body, left_out in found] == [(200_006, 0)] * 3


def test_a_property_block_that_would_take_long_is_refused() -> None:
    many = b"\x26\x00\x01a\x00\x01b" * 1000
    body = packets._length(len(many)) + many + b"payload"
    with pytest.raises(MalformedFrame, match="property block of 7000 bytes"):
        packets.content(body, 0)


def test_a_length_of_five_bytes_is_the_brokers_fault() -> None:
    with pytest.raises(MalformedPacket, match="length"):
        read(PacketReader(BOUND), b"\x30\xff\xff\xff\xff\x01", [1])


def test_a_connack_tells_the_servers_bounds() -> None:
    assert packets.connack(b"\x00\x00", BOUND) == (0xFFFF, BOUND, 0)
    properties = b"\x21\x00\x05" + b"\x27\x00\x00\x10\x00" + b"\x13\x00\x1e"
    body = b"\x00\x00" + bytes((len(properties),)) + properties
    assert packets.connack(body, BOUND) == (5, 4096, 30)


def test_a_refusal_tells_why() -> None:
    said = packets.text(b"come back later")
    body = b"\x00\x97" + bytes((len(said) + 1,)) + b"\x1f" + said
    assert packets.connack(body, BOUND) == (
        "the broker refuses us: code 151 (Connection Refused: Quota exceeded), come back later"
    )
