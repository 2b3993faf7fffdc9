"""The cost model: it finds the truth under noise, forgets it when it changes, and is monotone."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from controller.scheduler.cost import CostModel, Work, wait_ms
from controller.scheduler.levers import TRUST_HIGH, Forecast, anchored

BIG, SMALL = Work("big"), Work("small")
LOADS = st.floats(0, 100)


def pressure(cpu: float) -> float:
    busy = min(0.95, cpu / 100)
    return busy * busy / (1 - busy)


def taught(seed: int, base_ms: float, factor: float, noise: float = 0.1) -> CostModel:
    """Return a model that has seen a program under loads drawn at random."""
    dice, model = random.Random(seed), CostModel()
    for at in range(300):
        model.now_ms = at * 500
        cpu = dice.uniform(0, 95)
        run = base_ms * (1 + factor * pressure(cpu)) * dice.gauss(1, noise)
        model.learn_run(BIG, "n1", "board", max(0.01, run), cpu, 5)
    return model


@given(
    seed=st.integers(0, 1000),
    base_ms=st.floats(0.5, 5000),
    factor=st.floats(0.0, 1.0),
)
def test_it_finds_what_a_run_costs_under_any_load(seed: int, base_ms: float, factor: float) -> None:
    model = taught(seed, base_ms, factor)
    for cpu in (5.0, 50.0, 90.0):
        truth = base_ms * (1 + factor * pressure(cpu))
        found = model.run(BIG, "n1", "board", cpu)
        assert found is not None
        assert found.ms == pytest.approx(truth, rel=0.3)
        assert found.confidence > 0.5


@given(seed=st.integers(0, 100), low=LOADS, high=LOADS, factor=st.floats(0, 1))
def test_more_load_never_costs_less(seed: int, low: float, high: float, factor: float) -> None:
    model = taught(seed, 20.0, factor)
    low, high = sorted((low, high))
    one, other = (model.run(BIG, "n1", "board", cpu) for cpu in (low, high))
    assert one is not None
    assert other is not None
    assert one.ms <= other.ms


@given(
    rates=st.tuples(st.floats(0, 500), st.floats(0, 500)),
    runs=st.tuples(st.floats(0.1, 500), st.floats(0.1, 500)),
    workers=st.integers(1, 32),
)
def test_more_requests_or_longer_runs_never_wait_less(
    rates: tuple[float, float], runs: tuple[float, float], workers: int
) -> None:
    few, many = sorted(rates)
    short, long = sorted(runs)
    assert wait_ms(few, short, workers) <= wait_ms(many, short, workers) + 1e-9
    assert wait_ms(few, short, workers) <= wait_ms(few, long, workers) + 1e-9
    assert wait_ms(few, long, workers + 1) <= wait_ms(few, long, workers) + 1e-9


def test_a_wait_is_that_of_a_queue_with_one_worker() -> None:
    assert wait_ms(50, 10, 1) == pytest.approx(10.0), "M/M/1 at one half: as long as a run"
    assert wait_ms(0, 10, 1) == 0.0


def test_a_program_is_forgotten_when_it_costs_something_else() -> None:
    model = taught(1, 20.0, 0.1)
    for at in range(40):
        model.now_ms += 500
        model.learn_run(BIG, "n1", "board", 60.0, 10.0, 5)
        del at
    found = model.run(BIG, "n1", "board", 10.0)
    assert found is not None
    assert found.ms == pytest.approx(60.0, rel=0.15)


def test_an_unknown_pair_is_looked_up_as_near_as_it_is_known() -> None:
    model = CostModel()
    assert model.run(BIG, "n1", "pi", 0.0) is None
    declared = model.run(BIG, "n1", "pi", 0.0, expected_ms=100.0)
    for node, board, ms in (("n1", "pi", 40.0), ("n2", "jetson", 10.0)):
        for _ in range(20):
            model.learn_run(BIG, node, board, ms, 0.0, 5, expected_ms=20.0)
    for _ in range(20):
        model.learn_run(SMALL, "n3", "odd", 5.0, 0.0, 5)
        model.learn_run(SMALL, "n1", "pi", 10.0, 0.0, 5)
    same_board = model.run(BIG, "n9", "pi", 0.0)
    faster = model.run(BIG, "n3", "odd", 0.0)
    kept = model.run(Work("new"), "n1", "pi", 0.0, expected_ms=100.0)
    assert declared is not None
    assert same_board is not None
    assert faster is not None
    assert kept is not None
    assert declared.ms == 100.0
    assert same_board.ms == pytest.approx(40.0)
    assert faster.ms < same_board.ms, "it is the faster node with what both have run"
    assert kept.ms == pytest.approx(200.0), "its promises were kept twice over on this node"
    known = model.run(BIG, "n1", "pi", 0.0)
    assert known is not None
    assert known.confidence > same_board.confidence > faster.confidence > declared.confidence


def test_a_slower_node_slows_what_has_not_run_for_a_while() -> None:
    model = CostModel()
    for _ in range(30):
        model.learn_run(BIG, "n1", "pi", 80.0, 0.0, 5)
        model.learn_run(SMALL, "n1", "pi", 40.0, 0.0, 5)
    for _ in range(30):
        model.learn_run(SMALL, "n1", "pi", 120.0, 0.0, 5)
    found = model.run(BIG, "n1", "pi", 0.0)
    assert found is not None
    assert found.ms == pytest.approx(240.0, rel=0.3)


def test_packing_and_ways_are_learnt() -> None:
    model = CostModel()
    assert model.packing("big", "") == 1.0
    guess = model.packing("big", "deflate")
    model.learn_sent("big", "", 1000, 1000)
    model.learn_sent("big", "deflate", 1000, 250)
    assert model.packing("big", "deflate") == pytest.approx(0.25) != guess
    assert model.hop_ms(("a", "a"), (10, 10), 1000, None) == 0.0
    assert model.hop_ms(("a", "b"), (10, 20), 0, None) == 15.0
    assert model.hop_ms(("a", "b"), (0, 0), 125_000, 10.0) == pytest.approx(100.0)
    model.learn_fetch("b", 1000, 10)
    assert model.hop_ms(("a", "b"), (0, 0), 1000, 1000.0) == pytest.approx(10.0)


def test_what_changes_nothing_is_not_predicted_to_help() -> None:
    forecast = Forecast(76.0, 40.0, 0.3, 100.0, None, None)
    assert anchored(forecast, 132.0, 76.0).level_ms == pytest.approx(132.0)
    light = replace(forecast, level_ms=15.0)
    assert anchored(light, 132.0, 76.0).level_ms == pytest.approx(26.05, 0.01)
    assert anchored(forecast, None, 76.0) == forecast
    assert anchored(forecast, 132.0, None) == forecast
    assert anchored(forecast, 1e9, 1.0).level_ms == pytest.approx(76.0 * TRUST_HIGH)
