"""Histograms: they add up, survive the wire, and give quantiles within their bound."""

from hypothesis import given
from hypothesis import strategies as st

from protocols.histogram import BOUNDS, BUCKETS, add, merged, pack, quantile, total, unpack

COUNTS = st.lists(st.integers(0, 1000), min_size=BUCKETS, max_size=BUCKETS)
FIGURES = st.lists(st.floats(1.0, 1e10), min_size=1, max_size=200)
WIDTH = BOUNDS[1] / BOUNDS[0]


def counted(figures: list[float]) -> list[int]:
    counts = [0] * BUCKETS
    for one in figures:
        counts[sum(bound < one for bound in BOUNDS)] += 1
    return counts


@given(COUNTS, COUNTS)
def test_packing_loses_nothing_and_sums_are_sums(one: list[int], other: list[int]) -> None:
    assert unpack(pack(one)) == one
    assert total(pack(one)) == sum(one)
    both = [a + b for a, b in zip(one, other, strict=True)]
    assert add(pack(one), pack(other)) == pack(both)
    assert merged([pack(one), pack(other)]) == both


@given(FIGURES, st.floats(0.01, 1.0))
def test_a_quantile_lies_in_the_bucket_of_the_true_one(figures: list[float], share: float) -> None:
    found = quantile(counted(figures), share)
    ordered = sorted(figures)
    rank = max(1, -(-round(share * len(ordered) * 1e9) // 1_000_000_000))
    true = ordered[min(rank, len(ordered)) - 1]
    assert found is not None
    assert true / WIDTH / 1.001 <= found <= true * WIDTH * 1.001


def test_nothing_has_no_quantile_and_strangers_are_bounded() -> None:
    assert quantile([0] * BUCKETS, 0.5) is None
    assert pack([0] * BUCKETS) == () == add((), ())
    assert unpack((BUCKETS + 5, 3, 4))[-1] == 7
