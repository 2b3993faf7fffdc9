import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocols.errors import TonaBug
from protocols.transport.backoff import Policy, step

policies = st.builds(
    lambda first, more, stable: Policy(first, first + more, stable),
    st.integers(1, 60_000),
    st.integers(0, 3_600_000),
    st.integers(1, 3_600_000),
)
draws = st.floats(0, 1, exclude_max=True)


@given(policies, st.integers(0, 10**9), st.integers(0, 10**9), draws)
def test_a_wait_lies_between_half_the_first_and_the_cap(
    policy: Policy, failures: int, up_ms: int, draw: float
) -> None:
    retry = step(policy, failures, up_ms, draw)
    assert policy.first_ms // 2 <= retry.delay_ms <= policy.cap_ms
    assert retry.failures >= 1


@given(policies, st.lists(draws, min_size=2, max_size=60))
def test_a_broker_that_never_stands_is_approached_ever_more_slowly(
    policy: Policy, luck: list[float]
) -> None:
    failures, floor = 0, 0
    for draw in luck:
        up_ms = policy.stable_ms - 1
        floor = max(floor, step(policy, failures, up_ms, 0.0).delay_ms)
        failures, delay_ms = step(policy, failures, up_ms, draw)
        assert delay_ms >= floor
    assert failures == len(luck)


@given(policies, st.integers(0, 1000), draws)
def test_only_a_stable_connection_starts_the_count_anew(
    policy: Policy, failures: int, draw: float
) -> None:
    assert step(policy, failures, policy.stable_ms, draw) == step(policy, 0, 0, draw)
    assert step(policy, failures, policy.stable_ms - 1, draw).failures == failures + 1


def test_the_ceiling_doubles_up_to_the_cap() -> None:
    policy = Policy(first_ms=100, cap_ms=1000)
    waits = [step(policy, failures, 0, 0.0).delay_ms for failures in range(6)]
    assert waits == [50, 100, 200, 400, 500, 500]


@given(policies, st.integers(0, 40))
def test_the_draw_spreads_a_fleet_over_half_the_ceiling(policy: Policy, failures: int) -> None:
    low, high = (step(policy, failures, 0, draw).delay_ms for draw in (0.0, 0.999999))
    assert high >= low
    assert high - low >= (low - 1) * 0.99


def test_senseless_bounds_are_our_bug() -> None:
    for bad in ((0, 10, 10), (20, 10, 10), (1, 10, 0)):
        with pytest.raises(TonaBug, match="backoff needs"):
            Policy(*bad)
