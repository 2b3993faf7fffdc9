"""Columns of sums: whatever has changed in between, they say what the sums say."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from controller.anchor.placement.sums import Amended, Sums, spread

NAMES = tuple(f"n{at}" for at in range(6))
FLEETS = (list(NAMES), list(NAMES[:3]), ["n5", "n0", "unknown"])
NODES = st.sampled_from(NAMES)
AMOUNTS = st.integers(1, 2**40)
STEPS = st.one_of(
    st.tuples(st.just("put"), NODES, AMOUNTS),
    st.tuples(st.just("pop"), NODES, st.just(0)),
    st.tuples(st.just("look"), st.sampled_from(("0", "1", "2")), st.just(0)),
)


def plainly(amounts: dict[str, float], names: list[str]) -> list[float]:
    return [amounts.get(one, 0.0) for one in names]


@given(steps=st.lists(STEPS, max_size=40), instead=st.dictionaries(NODES, AMOUNTS, max_size=3))
def test_a_column_is_what_the_sums_are(
    steps: list[tuple[str, str, int]], instead: dict[str, float]
) -> None:
    sums, plain = Sums(), dict[str, float]()
    for what, node, amount in [*steps, ("look", "0", 0), ("look", "0", 0)]:
        if what == "put":
            sums[node] = plain[node] = amount
        elif what == "pop":
            assert sums.pop(node, None) == plain.pop(node, None)
        else:
            names = FLEETS[int(node)]
            index = {one: at for at, one in enumerate(names)}
            amended = Amended(sums, instead)
            both = {**plain, **instead}
            assert spread(sums, names, index).tolist() == plainly(plain, names)
            assert spread(amended, names, index).tolist() == plainly(both, names)
            assert dict(amended) == both
            assert len(amended) == len(both)


def test_a_column_is_the_callers_own() -> None:
    sums = Sums()
    sums["n0"] = 5
    names, index = list(NAMES), {one: at for at, one in enumerate(NAMES)}
    column = sums.column(names, index)
    column[:] = 9
    assert np.array_equal(sums.column(names, index), [5, 0, 0, 0, 0, 0])
