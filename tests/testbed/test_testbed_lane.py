"""What a link does to what goes through it."""

import random
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tona.testbed.lane import (
    BURST_BYTES,
    DOWN,
    QUEUE_MS,
    RETRANSMIT_MS,
    Conditions,
    Lane,
)

SIZE = 1500


def lane(conditions: Conditions, mbit_per_s: float = 1000.0, seed: int = 1) -> Lane:
    made = Lane(random.Random(seed).random)
    made.become(conditions, mbit_per_s)
    return made


def test_a_link_that_is_down_carries_nothing() -> None:
    assert Lane(random.random).packet(SIZE, 0.0) is None
    assert lane(DOWN).packet(SIZE, 0.0) is None
    assert lane(DOWN).bytes(SIZE, 0.0) is None


def test_delay_and_jitter() -> None:
    one = lane(Conditions(delay_ms=10, jitter_ms=4))
    waits = [(one.packet(SIZE, at * 100.0) or 0) - at * 100.0 for at in range(100)]
    assert min(waits) >= 10
    assert max(waits) <= 14.1
    assert max(waits) - min(waits) > 2


def test_the_bucket_lets_a_burst_through_and_then_the_rate() -> None:
    one = lane(Conditions(), mbit_per_s=1.2)
    burst = BURST_BYTES // SIZE
    outs = [one.packet(SIZE, 1000.0) for _ in range(burst + 10)]
    assert outs[burst - 1] == 1000.0
    after = [out for out in outs[burst:] if out is not None]
    # 1.2 Mbit/s are 150 bytes a millisecond.
    steps = [later - earlier for earlier, later in pairwise(after)]
    assert steps == [pytest.approx(SIZE / 150.0)] * 9


def test_a_full_queue_drops() -> None:
    one = lane(Conditions(), mbit_per_s=0.1)
    outs = [one.packet(SIZE, 0.0) for _ in range(100)]
    kept = [out for out in outs if out is not None]
    assert 0 < len(kept) < 100
    assert max(kept) <= QUEUE_MS + SIZE / 12.5


def test_losses_are_as_frequent_as_said() -> None:
    one = lane(Conditions(loss_percent=20))
    lost = sum(one.packet(100, at * 10.0) is None for at in range(5000))
    assert 800 < lost < 1200


def test_bytes_stall_where_packets_are_lost() -> None:
    one = lane(Conditions(loss_percent=20))
    waits = [(one.bytes(100, at * 60_000.0) or 0) - at * 60_000.0 for at in range(200)]
    stalled = [wait for wait in waits if wait >= RETRANSMIT_MS]
    assert 20 < len(stalled) < 60
    assert all(wait < 1 or wait >= RETRANSMIT_MS for wait in waits)


@given(
    st.lists(st.tuples(st.integers(40, 1500), st.floats(0, 50)), max_size=60),
    st.floats(0.1, 100),
    st.floats(0, 50),
    st.floats(0, 50),
    st.integers(0, 1 << 16),
)
def test_nothing_overtakes_and_nothing_comes_out_before_it_went_in(
    packets: list[tuple[int, float]], rate: float, delay: float, jitter: float, seed: int
) -> None:
    one = lane(Conditions(delay_ms=delay, jitter_ms=jitter, loss_percent=10), rate, seed)
    now, last = 0.0, 0.0
    for size, pause in packets:
        now += pause
        out = one.packet(size, now)
        if out is not None:
            assert out >= max(last, now + delay - 1e-6)
            last = out


def test_conditions_that_cannot_be_are_refused() -> None:
    for wrong in ({"loss_percent": 101}, {"delay_ms": -1}, {"up_mbit_per_s": 0}):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(wrong, Conditions)
