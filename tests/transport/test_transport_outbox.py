from collections import deque

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from protocols.transport.outbox import PACKET_IDS, QUEUED, REFUSED, Outbox, Parcel

WINDOW, QUEUE, QUEUE_BYTES = 3, 4, 300


class Sending(RuleBasedStateMachine):
    """Against a model: a list of everything accepted, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.outbox = Outbox(QUEUE, QUEUE_BYTES)
        self.outbox.window = WINDOW
        self.accepted: deque[int] = deque()
        self.gone = 0
        self.unacknowledged: list[int] = []
        self.count = 0

    def leave(self, parcel: Parcel, packet_id: int) -> None:
        assert self.outbox.open
        assert int(parcel.topic) == self.accepted.popleft(), "order is kept"
        assert (packet_id > 0) == (parcel.qos > 0)
        if packet_id:
            assert packet_id <= PACKET_IDS
            assert packet_id not in self.unacknowledged
            self.unacknowledged.append(packet_id)
        assert len(self.unacknowledged) <= WINDOW

    @rule(qos=st.sampled_from((0, 1)), size=st.integers(0, 150))
    def offer(self, qos: int, size: int) -> None:
        parcel = Parcel(b"%d" % self.count, bytes(size), qos, b"")
        queued = self.outbox.queued
        answer = self.outbox.offer(parcel)
        if answer == REFUSED:
            assert queued == QUEUE or self.outbox._queued_bytes + size > QUEUE_BYTES
            return
        self.accepted.append(self.count)
        self.count += 1
        if answer != QUEUED:
            assert queued == 0
            self.leave(parcel, answer)

    @precondition(lambda self: self.unacknowledged)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        packet_id = data.draw(st.sampled_from(self.unacknowledged))
        self.unacknowledged.remove(packet_id)
        self.outbox.acknowledge(packet_id)
        self.outbox.acknowledge(packet_id)

    @rule(is_open=st.booleans())
    def line(self, is_open: bool) -> None:
        self.outbox.open = is_open

    @rule()
    def move(self) -> None:
        while (ready := self.outbox.next()) is not None:
            self.leave(*ready)
        if self.outbox.open and len(self.unacknowledged) < WINDOW:
            assert not self.outbox.queued, "nothing waits without a reason"

    @invariant()
    def bounds_hold(self) -> None:
        assert self.outbox.queued == len(self.accepted) <= QUEUE
        assert 0 <= self.outbox._queued_bytes <= QUEUE_BYTES
        assert self.outbox.inflight == len(self.unacknowledged)
        assert self.outbox.empty == (not self.accepted and not self.unacknowledged)


TestSending = Sending.TestCase
TestSending.settings = settings(deadline=None)


def test_packet_ids_go_round_and_pass_over_those_in_flight() -> None:
    outbox = Outbox(1, 1)
    outbox.window = 2
    parcel = Parcel(b"", b"", 1, b"")
    assert outbox.offer(parcel) == 1
    for expected in (*range(2, PACKET_IDS + 1), 2, 3):
        assert outbox.offer(parcel) == expected
        outbox.acknowledge(expected)
