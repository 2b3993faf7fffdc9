"""SLA to QoAIS to task to resource QoS: what is shared out never exceeds the whole."""

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from controller.namo.quality import shared
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.hierarchy import TaskQos, TaskSpec
from protocols.messages.invocation import Edge
from protocols.messages.quality import Declared, Source, SourceKind, TaskSample, UserZone
from protocols.qoais import (
    INDICATORS,
    Bound,
    Dimension,
    ServiceKind,
    Share,
    Sla,
    Zone,
    holds,
)
from protocols.qoais_map import (
    by_dimension,
    qoais_of,
    resource_bounds,
    stricter,
    task_values,
)

DIGEST = "sha256:" + "0" * 64
TINY = 1e-6


def spec(step: str, feeds: list[str], **more: Any) -> TaskSpec:
    kind = more.pop("kind", ExecutorKind.WASM)
    manifest = Manifest(
        kind,
        ArtifactRef(DIGEST, more.pop("artifact_bytes", 100)),
        tuple(Port(f"x{at}", Dtype.UINT8, (4,)) for at, _ in enumerate(feeds)),
        (Port("y", Dtype.UINT8, (6,)),),
        Limits(memory_bytes=more.pop("memory_bytes", 1 << 20)),
    )
    edges = tuple(Edge(f"x{at}", one, "y") for at, one in enumerate(feeds))
    return TaskSpec(f"s.{step}", step, manifest, edges, **more)


@st.composite
def dags(draw: st.DrawFn) -> list[TaskSpec]:
    """Draw tasks in topological order, with costs, sizes and declared accuracies."""
    count = draw(st.integers(1, 9))
    specs = []
    for at in range(count):
        feeds = draw(st.lists(st.sampled_from(range(at)), unique=True, max_size=4)) if at else []
        accuracy = draw(st.none() | st.floats(1, 100))
        specs.append(
            spec(
                f"t{at}",
                [f"t{one}" for one in feeds] or ["request"],
                kind=draw(st.sampled_from(ExecutorKind)),
                expected_ms=draw(st.none() | st.floats(0.01, 10_000)),
                artifact_bytes=draw(st.integers(0, 1 << 40)),
                memory_bytes=draw(st.integers(1 << 20, 1 << 40)),
                declared=() if accuracy is None else (Declared("accuracy_percent", accuracy),),
            )
        )
    return specs


def paths(specs: list[TaskSpec], end: TaskSpec) -> list[list[TaskSpec]]:
    by_step = {one.step: one for one in specs}
    before = [by_step[e.source] for e in end.inputs if e.source != "request"]
    return [[end]] + [[*path, end] for one in before for path in paths(specs, one)]


def value(one: TaskSpec, indicator: str) -> float | None:
    for bound in one.qos.bounds:
        if bound.indicator == indicator:
            return bound.at_least if bound.at_most is None else bound.at_most
    return None


@given(dags(), st.floats(0.5, 100_000))
def test_latency_adds_up_to_no_more_on_any_path_and_the_dearest_has_all(
    specs: list[TaskSpec], limit: float
) -> None:
    made = list(shared(specs, [Bound("latency_ms", at_most=limit)]))
    sums = [
        sum(one.qos.latency_ms or math.nan for one in path)
        for end in made
        for path in paths(made, end)
    ]
    assert max(sums) == pytest.approx(limit)
    assert min(one.qos.latency_ms or 0 for one in made) > 0


PRODUCTS = sorted(one.name for one in INDICATORS.values() if one.share is Share.PRODUCT)
SUMS = sorted(one.name for one in INDICATORS.values() if one.share is Share.SUM)
PATHS = sorted(one.name for one in INDICATORS.values() if one.share is Share.PATH)


@given(dags(), st.sampled_from(PRODUCTS), st.floats(0, 100))
def test_kept_shares_multiply_to_the_bound(
    specs: list[TaskSpec], indicator: str, limit: float
) -> None:
    made = shared(specs, [Bound(indicator, at_least=limit)])
    found = [number for one in made if (number := value(one, indicator)) is not None]
    assert found
    product = 100 * math.prod(one / 100 for one in found)
    assert product == pytest.approx(limit, abs=TINY)
    assert all(limit - TINY <= one <= 100 for one in found)


@given(dags(), st.floats(0, 100))
def test_losses_join_to_the_bound(specs: list[TaskSpec], limit: float) -> None:
    made = shared(specs, [Bound("loss_percent", at_most=limit)])
    kept = math.prod(1 - (value(one, "loss_percent") or 0) / 100 for one in made)
    assert 100 * (1 - kept) == pytest.approx(limit, abs=TINY)


@given(dags(), st.sampled_from(SUMS), st.floats(0, 1e12))
def test_sums_add_up_to_the_bound(specs: list[TaskSpec], indicator: str, limit: float) -> None:
    made = shared(specs, [Bound(indicator, at_most=limit)])
    total = sum(value(one, indicator) or 0.0 for one in made)
    assert total == pytest.approx(limit)
    assert all((value(one, indicator) or 0.0) >= 0 for one in made)


@given(dags(), st.sampled_from([one for one in PATHS if one != "latency_ms"]), st.floats(0.1, 1e6))
def test_times_along_a_path_add_up_to_no_more(
    specs: list[TaskSpec], indicator: str, limit: float
) -> None:
    made = list(shared(specs, [Bound(indicator, at_most=limit)]))
    sums = [
        sum(value(one, indicator) or 0.0 for one in path)
        for end in made
        for path in paths(made, end)
    ]
    assert max(sums) <= limit * (1 + TINY)


@given(dags(), st.floats(1, 99.9))
def test_a_task_keeps_its_accuracy_exactly_when_the_whole_does(
    specs: list[TaskSpec], limit: float
) -> None:
    """Where everything that loses accuracy is declared."""
    known = [one for one in specs if one.declared]
    if not known:
        return
    specs = [one if one.declared else _wasm(one) for one in specs]
    whole = 100 * math.prod((one.declared[0].number or 0) / 100 for one in known)
    if abs(whole - limit) < TINY:
        return
    made = shared(specs, [Bound("accuracy_percent", at_least=limit)])
    declared = [(one.declared[0].number, value(one, "accuracy_percent")) for one in made
                if one.declared]  # fmt: skip
    kept = all((number or 0) >= (share or 0) - TINY for number, share in declared)
    assert kept == (whole >= limit)


def _wasm(one: TaskSpec) -> TaskSpec:
    return replace(one, manifest=replace(one.manifest, kind=ExecutorKind.WASM))


def test_levels_hold_for_every_task_and_autonomy_for_none() -> None:
    zone = [Bound("robustness", level="high"), Bound("autonomy", level="manual")]
    for one in shared([spec("a", ["request"]), spec("b", ["a"])], zone):
        assert one.qos == TaskQos(None, (Bound("robustness", level="high"),))


def test_a_training_is_one_long_request() -> None:
    zone = [Bound("training_duration_s", at_most=10), Bound("latency_ms", at_most=20_000)]
    (made,) = shared([spec("a", ["request"])], zone)
    assert made.qos.latency_ms == pytest.approx(10_000)
    assert value(made, "training_duration_s") == 10


# SLA to QoAIS.


def users(*limits: float) -> tuple[UserZone, ...]:
    return tuple(
        UserZone(f"u{at}", Zone((Bound("latency_ms", at_most=one),)))
        for at, one in enumerate(limits)
    )


@pytest.mark.parametrize(
    ("ratio", "limits", "expected"),
    [
        (1.0, (), 200),
        (1.0, (100, 50, 400), 50),
        (0.7, (100, 50, 400), 50),
        (0.6, (100, 50, 400), 100),
        (0.0, (100, 50, 10), 200),
        (0.9, (100,) * 9 + (1,), 100),
    ],
)
def test_the_qoais_satisfies_the_share_of_users_that_was_agreed(
    ratio: float, limits: tuple[float, ...], expected: float
) -> None:
    sla = Sla(Zone((Bound("latency_ms", at_most=200),)), ratio)
    (bound,) = qoais_of(sla, users(*limits))
    assert bound.at_most == expected


@given(st.floats(0, 1), st.lists(st.floats(1, 1000), max_size=12), st.floats(1, 1000))
def test_enough_users_are_inside_their_zone_when_the_qoais_is_kept(
    ratio: float, limits: list[float], zone_ms: float
) -> None:
    sla = Sla(Zone((Bound("latency_ms", at_most=zone_ms),)), ratio)
    (bound,) = qoais_of(sla, users(*limits))
    assert bound.at_most is not None
    assert bound.at_most <= zone_ms
    satisfied = sum(one >= bound.at_most for one in limits)
    assert satisfied >= ratio * len(limits) - TINY


def test_a_user_may_ask_for_what_the_service_does_not() -> None:
    (bound,) = qoais_of(Sla(), users(40))
    assert bound == Bound("latency_ms", at_most=40)


# Task to resource.


def test_a_share_becomes_demands_on_every_dimension() -> None:
    qos = TaskQos(
        60.0,
        (
            Bound("reliability_percent", at_least=99.0),
            Bound("throughput_per_s", at_least=50.0),
            Bound("accuracy_percent", at_least=95.0),
            Bound("data_privacy", level="node"),
            Bound("precision_bits", at_least=16.0),
        ),
    )
    one = replace(spec("a", ["request"], expected_ms=5.0), qos=qos)
    groups = by_dimension(resource_bounds(one))
    assert list(groups) == [one for one in Dimension if one in groups] == list(Dimension)
    flat = {bound.indicator: bound for group in groups.values() for bound in group}
    assert flat["compute_ms"].at_most == pytest.approx(50)
    assert flat["delay_ms"].at_most == pytest.approx(10)
    assert flat["jitter_ms"].at_most == pytest.approx(5)
    assert flat["loss_percent"].at_most == pytest.approx(1)
    assert flat["bandwidth_mbit_per_s"].at_least == pytest.approx(50 * 10 * 8 / 1e6)
    assert flat["storage_bytes"].at_most == 100
    assert flat["memory_bytes"].at_most == 1 << 20
    assert flat["data_privacy"].level == "node"
    assert "throughput_per_s" not in flat


def test_sources_say_how_often_and_how_much() -> None:
    one = spec("a", ["request"])
    manifest = replace(one.manifest, inputs=(Port("x0", Dtype.UINT8, (-1,)),))
    one = replace(one, manifest=manifest)
    assert "bandwidth_mbit_per_s" not in {b.indicator for b in resource_bounds(one)}
    fed = Source("y", SourceKind.SENSOR, "cam", Dtype.UINT8, (994,), rate_per_s=1000)
    found = {bound.indicator: bound for bound in resource_bounds(one, [fed])}
    assert found["bandwidth_mbit_per_s"].at_least == pytest.approx(8.0)


def test_a_kind_of_service_is_asked_only_for_what_is_of_its_kind() -> None:
    qos = TaskQos(None, (Bound("robustness", level="high"),))
    one = replace(spec("a", ["request"]), qos=qos)
    training = {bound.indicator for bound in resource_bounds(one, (), ServiceKind.TRAINING)}
    computing = {bound.indicator for bound in resource_bounds(one, (), ServiceKind.COMPUTING)}
    assert training - computing == {"robustness"}


@given(dags(), st.sampled_from(sorted(ServiceKind)), st.floats(0.5, 1e5))
def test_compute_and_hop_are_the_whole_budget(
    specs: list[TaskSpec], kind: ServiceKind, limit: float
) -> None:
    for one in shared(specs, [Bound("latency_ms", at_most=limit)]):
        found = {bound.indicator: bound for bound in resource_bounds(one, (), kind)}
        whole = (found["compute_ms"].at_most or 0) + (found["delay_ms"].at_most or 0)
        assert whole == pytest.approx(one.qos.latency_ms)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Bound("latency_ms", at_most=1), Bound("latency_ms", at_most=2)),
        (Bound("accuracy_percent", at_least=2), Bound("accuracy_percent", at_least=1)),
        (Bound("data_privacy", level="node"), Bound("data_privacy", level="cell")),
    ],
)
def test_the_stricter_bound_stands(one: Bound, other: Bound) -> None:
    assert stricter(one, other) is one
    assert stricter(other, one) is one


def test_a_sample_tells_what_it_measures_and_no_more() -> None:
    sample = TaskSample(
        "a", 1, done=8, failed=2, shed=10, queue_ms=1, run_ms=3, fetch_ms=1, sent_bytes=800,
        energy_j=4.0,
    )  # fmt: skip
    values = task_values(sample, 2000)
    assert values["throughput_per_s"] == 4
    assert values["availability_percent"] == 40
    assert values["reliability_percent"] == 80
    assert values["latency_ms"] == 5
    assert values["compute_efficiency_percent"] == 60
    assert values["transmission_bytes"] == 100
    assert values["energy_j"] == 0.5
    assert set(values) <= {one.name for one in INDICATORS.values() if one.measured}
    assert task_values(TaskSample("a", 1), 1000) == {"throughput_per_s": 0.0}


# The catalogue against the paper.

EFFICIENCY = {
    "performance_boundary_percent", "training_duration_s", "generalization", "reusability",
    "robustness", "explainability", "objective_consistency", "fairness",
}  # fmt: skip
TABLE_1 = {
    Dimension.DATA: {
        "feature_redundancy_percent", "integrity_percent", "data_accuracy_percent",
        "data_preparation_ms", "sample_space_balance", "data_integrity",
        "sample_distribution_dynamics",
    },
    Dimension.ALGORITHM: {
        "performance_boundary_percent", "training_duration_s", "convergence_rounds",
        "objective_match_percent", "robustness", "reusability", "generalization",
        "explainability", "fairness",
    },
    Dimension.COMPUTING: {"precision_bits", "compute_ms", "compute_efficiency_percent"},
    Dimension.CONNECTION: {
        "bandwidth_mbit_per_s", "bandwidth_jitter_percent", "delay_ms", "jitter_ms",
        "bit_error_rate", "bit_error_jitter", "reliability_percent",
    },
}  # fmt: skip
OTHERS = {
    "storage_bytes", "computing_ms", "transmission_bytes", "energy_j", "storage_security",
    "computing_security", "transmission_security", "data_privacy", "algorithm_privacy", "autonomy",
}  # fmt: skip


def test_the_catalogue_has_what_the_paper_lists_and_marks_it() -> None:
    for dimension, names in TABLE_1.items():
        for name in names:
            assert INDICATORS[name].dimension is dimension, name
    paper = {one.name for one in INDICATORS.values() if one.paper}
    assert paper == EFFICIENCY | OTHERS | set().union(*TABLE_1.values())
    assert all(ServiceKind.TRAINING in INDICATORS[name].kinds for name in paper)


def test_every_indicator_is_whole() -> None:
    for one in INDICATORS.values():
        assert one.quantitative == bool(one.unit)
        assert one.quantitative != bool(one.levels)
        assert one.kinds
        assert one.how
        if not one.measured:
            assert one.how.startswith(("declared by", "kept: ")), one.name
    for kind in ServiceKind:
        assert any(kind in one.kinds and one.measured for one in INDICATORS.values())


def test_a_higher_level_keeps_a_lower_one() -> None:
    for one in INDICATORS.values():
        for low, high in pairwise(one.levels):
            assert holds(Bound(one.name, level=low), high)
            assert not holds(Bound(one.name, level=high), low)
