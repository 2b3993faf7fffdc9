"""The choice of a task's program: what a run is predicted to take, and which form costs least."""

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from controller.anchor.placement import NodeFacts, Request, Snapshot, place
from controller.anchor.placement.figures import fitted, learnt, predicted
from controller.records import FigureRecord, Line, Option, Placement
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.calibration import Measured
from protocols.messages.hierarchy import NodeState, TaskQos, TaskSpec
from protocols.messages.invocation import REQUEST, Edge
from protocols.messages.presence import Accelerator, ExecutorInfo, Inventory
from protocols.messages.quality import Declared, Variant, Warmth
from protocols.messages.task import Deviceless

MB = 1 << 20
CPU, GPU = "CPUExecutionProvider", "CUDAExecutionProvider"
PORT = Port("x", Dtype.UINT8, (1000,))


def digest(name: str) -> str:
    return "sha256:" + (name.encode().hex() * 64)[:64]


def program(name: str, kind: str = "wasm", providers: tuple[str, ...] = ()) -> Manifest:
    return Manifest(
        ExecutorKind(kind),
        ArtifactRef(digest(name), 1),
        (PORT,),
        (PORT,),
        Limits(memory_bytes=64 * MB),
        providers=providers,
    )


def task(*forms: Variant, **changes: Any) -> TaskSpec:
    edges = (Edge("x", REQUEST, "x"),)
    return TaskSpec("s.a", "a", program("own"), edges, variants=forms, **changes)


def form(name: str, kind: str = "onnx", providers: tuple[str, ...] = ()) -> Variant:
    return Variant(name, program(name, kind, providers))


def node(
    name: str = "n1",
    kinds: tuple[str, ...] = ("wasm", "onnx"),
    providers: tuple[str, ...] = (CPU,),
    board: str = "pi",
) -> NodeFacts:
    gpu = (Accelerator("gpu", "g", providers=(GPU,)),) if GPU in providers else ()
    executors = tuple(
        ExecutorInfo(kind, "1", providers if kind == "onnx" else ()) for kind in kinds
    )
    inventory = Inventory(
        *(board, "x86_64", "linux", 4, 8 << 30, 1 << 40, gpu, executors),
        task_memory_bytes=1024 * MB,
    )
    return NodeFacts(name, NodeState.ONLINE, inventory, 20.0, 2.0, "ts-1")


def figure(
    of: str,
    run_ms: float,
    *,
    provider: str = "",
    at: str = "n1",
    board: str = "pi",
    start_ms: float = 10.0,
    wake_ms: float = 1.0,
    memory_mb: float = 20.0,
    held_mb: float = 10.0,
    refused: str = "",
) -> FigureRecord:
    return FigureRecord(
        digest(of),
        provider,
        at,
        board,
        Line(0.0 if refused else 8.0, 1000.0, run_ms),
        start_ms,
        wake_ms,
        int(memory_mb * MB),
        int(held_mb * MB),
        tried=True,
        refused=refused,
    )


def decided(
    spec: TaskSpec, *figures: FigureRecord, nodes: tuple[NodeFacts, ...] = (), **request: Any
) -> Placement:
    known: dict[tuple[str, str], dict[str, FigureRecord]] = {}
    for one in figures:
        known.setdefault((one.digest, one.provider), {})[one.node] = one
    snapshot = Snapshot(1, nodes or (node(),), figures=known)
    return place([Request(spec, 0, **request)], snapshot)["s.a"]


def options(placement: Placement) -> dict[tuple[str, str, str], Option]:
    return {(one.node, one.variant, one.provider): one for one in placement.options}


# What a run takes.


@pytest.mark.parametrize("seed", range(8))
def test_a_line_is_recovered_under_noise_and_outliers(seed: int) -> None:
    chance = random.Random(seed)
    base, slope = chance.uniform(0.5, 20.0), chance.uniform(1e-6, 1e-4)
    sizes = (10_000, 100_000, 1_000_000)
    line = fitted(
        [Measured(size, chance.uniform(0.7, 1.4) * (base + slope * size)) for size in sizes]
    )
    for _ in range(200):
        size = chance.choice(sizes)
        run_ms = (base + slope * size) * chance.uniform(0.9, 1.1)
        if chance.random() < 0.03:
            run_ms *= 50
        line = learnt(line, size, run_ms, 1)
    for size in (10_000, 300_000, 1_000_000):
        assert predicted(line, size) == pytest.approx(
            base + slope * size, rel=0.2, abs=0.04 * (base + slope * 1_000_000)
        )


def test_one_outlier_changes_little_and_a_lasting_change_is_followed() -> None:
    line = fitted([Measured(1000, 10.0)])
    for _ in range(20):
        line = learnt(line, 1000, 10.0, 1)
    assert predicted(learnt(line, 1000, 10_000.0, 1), 1000) < 11
    for _ in range(40):
        line = learnt(line, 1000, 30.0, 4)
    assert predicted(line, 1000) == pytest.approx(30.0, rel=0.1)


def test_a_calibration_of_several_sizes_gives_the_slope() -> None:
    runs = [Measured(size, 2.0 + size / 1e5) for size in (1_000, 100_000, 1_000_000)]
    line = fitted(runs)
    assert predicted(line, 500_000) == pytest.approx(7.0, rel=0.02)
    for _ in range(50):
        line = learnt(line, 100_000, 3.0, 1)
    assert predicted(line, 1_000_000) == pytest.approx(12.0, rel=0.1), "the slope stays"


@given(
    st.lists(
        st.tuples(st.floats(0, 1e8), st.floats(0, 1e6), st.floats(1, 100)), min_size=1, max_size=30
    )
)
def test_a_prediction_is_never_negative_and_never_falls_with_size(
    runs: list[tuple[float, float, float]],
) -> None:
    line = Line()
    for one in runs:
        line = learnt(line, *one)
    found = [predicted(line, size) for size in (0, 1e3, 1e6, 1e9)]
    assert found == sorted(found)
    assert found[0] >= 0


# Which form.


def test_the_form_that_runs_fastest_is_taken_with_the_figures_of_all() -> None:
    found = decided(task(form("graph")), figure("own", 30.0), figure("graph", 3.0))
    assert found.variant == "graph"
    seen = options(found)
    own, graph = seen["n1", "", ""], seen["n1", "graph", ""]
    assert (own.run_ms, own.source, own.executor) == (30.0, "measured", "wasm")
    assert (graph.run_ms, graph.chosen, graph.why) == (3.0, True, "")
    assert own.why.startswith("costs ")
    assert own.total_ms is not None


def test_before_anything_is_measured_authors_are_believed() -> None:
    fast = structs.replace(form("graph"), expected_ms=1.0)
    assert decided(task(fast, expected_ms=8.0)).variant == "graph"
    assert decided(task(fast, expected_ms=0.5)).variant == ""


def test_a_less_accurate_variant_is_no_form() -> None:
    known = (Declared("accuracy_percent", 95.0),)
    for accuracy in (None, 90.0):
        worse = structs.replace(form("graph"), accuracy_percent=accuracy)
        found = decided(task(worse, declared=known), figure("own", 300.0), figure("graph", 3.0))
        assert found.variant == ""
        assert options(found)["n1", "graph", ""].why == "is less accurate"
    as_good = structs.replace(form("graph"), accuracy_percent=95.0)
    found = decided(task(as_good, declared=known), figure("own", 300.0), figure("graph", 3.0))
    assert found.variant == "graph"


def test_a_node_without_the_executor_takes_the_other_form() -> None:
    bare = node("n2", ("wasm",))
    spec = task(form("graph"), nodes=("n2",))
    figures = figure("own", 30.0), figure("graph", 3.0)
    found = decided(spec, *figures, nodes=(node(), bare))
    assert (found.chosen, found.variant) == (("n2",), "")
    assert options(found)["n2", "graph", ""].why == "has no onnx executor"
    assert options(found)["n2", "", ""].source == "of its board"


def test_a_provider_is_chosen_by_what_it_costs_on_each_node() -> None:
    both = form("graph", providers=(GPU, CPU))
    nodes = node("n1"), node("n2", providers=(GPU, CPU), board="jetson")
    slow = [
        figure("graph", 20.0, provider=CPU, at=at, board=board)
        for at, board in (("n1", "pi"), ("n2", "jetson"))
    ]
    fast = figure("graph", 2.0, provider=GPU, at="n2", board="jetson")
    found = decided(task(both, expected_ms=50.0), *slow, fast, nodes=nodes)
    assert (found.chosen[0], found.variant, found.provider) == ("n2", "graph", GPU)
    assert options(found)["n1", "graph", GPU].why == f"has no {GPU}"
    lame = figure("graph", 40.0, provider=GPU, at="n2", board="jetson")
    found = decided(task(both, expected_ms=50.0), *slow, lame, nodes=nodes)
    assert (found.variant, found.provider) == ("graph", CPU)


def test_what_a_calibration_could_not_run_is_the_last_resort() -> None:
    refused = figure("own", 0.0, refused="the module is broken")
    found = decided(task(form("graph"), expected_ms=1.0), refused, figure("graph", 90.0))
    assert found.variant == "graph"
    assert options(found)["n1", "", ""].why == "a calibration failed: the module is broken"
    assert decided(task(), refused).chosen == ("n1",)


def test_memory_breaks_ties() -> None:
    figures = figure("own", 5.0, memory_mb=200), figure("graph", 5.0, memory_mb=10)
    assert decided(task(form("graph")), *figures).variant == "graph"


def test_another_program_has_to_be_worth_the_change() -> None:
    def chosen(run_ms: float) -> str:
        figures = figure("own", 20.0), figure("graph", run_ms)
        held = {"current": "n1", "reserved_on": "n1", "program": ("", "")}
        return decided(task(form("graph")), *figures, **held).variant

    assert chosen(18.0) == ""
    assert chosen(10.0) == "graph"


def test_the_latency_agreed_prefers_what_keeps_it() -> None:
    # The wait that comes with a longer run is the smaller part of what is late.
    forms = form("graph"), form("late")
    spec = task(*forms, qos=TaskQos(latency_ms=12.0))
    figures = figure("own", 20.0), figure("graph", 9.0), figure("late", 9.5)
    found = decided(spec, *figures)
    assert found.variant == "graph"
    assert "misses the latency of 12.0 ms by" in options(found)["n1", "", ""].why


# What stays of a deviceless instance.


@pytest.mark.parametrize(
    ("latency_ms", "per_s", "warmth"),
    [
        (None, 1.0, Warmth.FORM),
        (None, 0.001, Warmth.FORM),
        (12.0, 0.001, Warmth.PROCESS),
        (5.0, 0.001, Warmth.INSTANCE),
        (1000.0, 0.001, Warmth.FORM),
    ],
)
def test_the_latency_says_what_stays_while_nobody_asks(
    latency_ms: float | None, per_s: float, warmth: Warmth
) -> None:
    spec = task(deviceless=Deviceless(10_000), qos=TaskQos(latency_ms=latency_ms))
    costs = figure("own", 2.0, start_ms=40.0, wake_ms=8.0, memory_mb=20, held_mb=10)
    found = decided(spec, costs, per_s=per_s)
    assert found.warmth is warmth
    (only,) = found.options
    assert only.warmth == warmth.value


def test_without_a_latency_nothing_stays() -> None:
    costs = figure("own", 2.0, start_ms=800.0, wake_ms=8.0, memory_mb=20, held_mb=10)
    assert decided(task(deviceless=Deviceless()), costs).warmth is Warmth.FORM


# For any figures.

FIGURES = st.tuples(
    st.floats(0.1, 500.0),
    st.floats(0.0, 800.0),
    st.floats(0.0, 50.0),
    st.floats(1, 60),
    st.floats(0, 60),
)
CASES = st.tuples(
    st.lists(FIGURES, min_size=2, max_size=4),
    st.sampled_from((None, 3.0, 50.0)),
    st.booleans(),
    st.sampled_from((0.0, 0.01, 5.0)),
)
Figures = list[tuple[float, float, float, float, float]]


def weighed(case: tuple[Figures, float | None, bool, float]) -> tuple[int, Placement]:
    """Return which of the programs is chosen, by its place."""
    figures, latency_ms, follows, per_s = case
    names = ["own", *(f"form{at}" for at in range(1, len(figures)))]
    spec = task(
        *(form(name, "wasm") for name in names[1:]),
        qos=TaskQos(latency_ms=latency_ms),
        deviceless=Deviceless() if follows else None,
    )
    records = [
        figure(name, run, start_ms=start, wake_ms=wake, memory_mb=memory, held_mb=held)
        for name, (run, start, wake, memory, held) in zip(names, figures, strict=True)
    ]
    found = decided(spec, *records, per_s=per_s)
    return names.index(found.variant or "own"), found


@settings(deadline=None)
@given(CASES)
def test_no_option_is_taken_that_another_beats_in_every_figure(
    case: tuple[Figures, float | None, bool, float],
) -> None:
    figures = case[0]
    at, found = weighed(case)
    for other in figures:
        assert not all(theirs < ours for theirs, ours in zip(other, figures[at], strict=True))
    totals = [one.total_ms for one in found.options if one.total_ms is not None]
    chosen = next(one for one in found.options if one.chosen)
    assert chosen.total_ms == pytest.approx(min(totals), abs=0.01)


@settings(deadline=None)
@given(CASES, st.integers(0, 4), st.floats(1.0, 10.0))
def test_what_is_chosen_stays_so_when_another_gets_worse(
    case: tuple[Figures, float | None, bool, float], which: int, factor: float
) -> None:
    at, _ = weighed(case)
    worse = [
        one if place == at else (*one[:which], one[which] * factor, *one[which + 1 :])
        for place, one in enumerate(case[0])
    ]
    assert weighed((worse, *case[1:]))[0] == at
