"""An anchor has programs measured, learns from runs, and changes forms by itself."""

from itertools import pairwise
from typing import Any

import pytest
from anchor_bench import Bench, said
from msgspec import structs
from tests_support import INVENTORY, manifest, task_spec

from controller.anchor.calibrations import CALIBRATIONS_MS, PAUSE_MS
from controller.decider import Output
from controller.records import FIGURE, Option
from protocols.manifest import ArtifactRef, ExecutorKind, HostFunction
from protocols.messages import Calibrate, Calibrated, EnvelopeGrant, RunFigures
from protocols.messages.calibration import Measured
from protocols.messages.hierarchy import Autonomy, TaskQos, TaskSpec
from protocols.messages.presence import ExecutorInfo
from protocols.messages.quality import Variant, Warmth
from protocols.messages.task import Deviceless

GRAPH = ArtifactRef("sha256:" + "1" * 64, 1)
WASM_ONLY = structs.replace(INVENTORY, executors=(ExecutorInfo("wasm", "1"),))


def spec(**changes: Any) -> TaskSpec:
    graph = structs.replace(manifest(ExecutorKind.ONNX), artifact=GRAPH)
    forms = (Variant("graph", graph, expected_ms=50.0),)
    return structs.replace(task_spec(variants=forms), **changes)


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.node("n1")
    made.node("n2")
    return made


def placed(bench: Bench, **changes: Any) -> list[Calibrate]:
    """Order the task and have it run where it was placed; returns what is to be measured."""
    output = bench.order(tasks=(spec(**changes.pop("specs", {})),), **changes)
    asked = said(output, Calibrate)
    runs(bench, output)
    return asked


def runs(bench: Bench, output: Output) -> str:
    """Have the newest grant run as it says; returns its variant."""
    grant = said(output, EnvelopeGrant)[-1]
    bench.ready(grant.nodes[0], grant.epoch_from, grant.generation)
    name = grant.spec.task
    bench.ta.book.tasks[name] = structs.replace(bench.task(name), variant=grant.tuning.variant)
    return str(grant.tuning.variant)


def found(asked: Calibrate, run_ms: float, **more: Any) -> Calibrated:
    figures = (Measured(100, run_ms), Measured(10_000, run_ms))
    return Calibrated(
        asked.number, asked.anchor, asked.node, figures, 30.0, 3.0, 4096, 1024, **more
    )


def is_graph(asked: Calibrate) -> bool:
    return asked.manifest.kind is ExecutorKind.ONNX


def answered(bench: Bench, asked: list[Calibrate], own: float, graph: float) -> Output:
    """Answer every calibration; returns what the last answer brings."""
    output = Output()
    for one in asked:
        output = bench.hear(found(one, graph if is_graph(one) else own))
    return output


def options(bench: Bench) -> dict[tuple[str, str], Option]:
    placement = bench.task().placement
    assert placement is not None
    return {(one.node, one.variant): one for one in placement.options}


def test_what_is_not_known_is_measured_on_every_node_of_a_small_cell(bench: Bench) -> None:
    asked = placed(bench)
    assert {(one.node, is_graph(one)) for one in asked} == {
        (node, graph) for node in ("n1", "n2") for graph in (False, True)
    }
    sizes = [[run[0].shape[0] for run in one.runs] for one in asked]
    assert all(one == sorted(one) and len(one) > 1 for one in sizes)
    output = answered(bench, asked, own=40.0, graph=4.0)
    assert runs(bench, output) == "graph"
    seen = options(bench)
    assert {one.source for one in seen.values()} == {"measured"}
    assert [key for key, one in seen.items() if one.chosen] == [(bench.task().nodes[0], "graph")]


def test_what_is_known_is_not_measured_again_not_even_after_a_restart(bench: Bench) -> None:
    answered(bench, placed(bench), own=4.0, graph=40.0)
    assert sum(kind == FIGURE for kind, _ in bench.store) == 4
    bench.restart()
    bench.node("n1")
    bench.node("n2")
    bench.ready("n1", bench.task().epoch_high)
    again = bench.order(2, tasks=(spec(),))
    assert not said(again, Calibrate)
    assert options(bench)["n1", "graph"].run_ms == pytest.approx(40.0)


def test_in_a_large_cell_one_node_of_each_board_is_enough() -> None:
    bench = Bench()
    for at in range(20):
        board = structs.replace(INVENTORY, profile=f"board-{at % 3}")
        bench.node(f"n{at:02}", inventory=board)
    asked = placed(bench, spares=0)
    boards = [bench.ta.book.inventories[one.node].profile for one in asked if is_graph(one)]
    assert sorted(boards) == ["board-0", "board-1", "board-2"]


def test_without_the_executor_nothing_is_asked_and_the_other_form_runs() -> None:
    bench = Bench()
    bench.node("n1", inventory=WASM_ONLY)
    asked = placed(bench)
    assert [is_graph(one) for one in asked] == [False]
    output = answered(bench, asked, own=400.0, graph=1.0)
    assert not said(output, EnvelopeGrant), "there is nothing better"
    assert options(bench)["n1", "graph"].why == "has no onnx executor"


def test_a_refused_calibration_is_a_reason_and_one_that_passes_is_asked_again(bench: Bench) -> None:
    asked = placed(bench)
    for one in asked:
        passing = one.node == "n2"
        told = Calibrated(one.number, one.anchor, one.node, refused="no room", passing=passing)
        bench.hear(told if is_graph(one) else found(one, 4.0))
    assert options(bench)["n1", "graph"].why == "a calibration failed: no room"
    again = said(bench.order(2, tasks=(spec(),)), Calibrate)
    assert [(one.node, is_graph(one)) for one in again] == [("n2", True)]


def test_a_deployment_waits_for_no_calibration_and_calibrations_for_no_node(bench: Bench) -> None:
    asked = placed(bench)
    for one in asked:
        if one.node == "n1":
            bench.hear(found(one, 2.0 if is_graph(one) else 50.0))
    output = bench.passes(CALIBRATIONS_MS + 1)
    assert runs(bench, output) == "graph", "what is known by then decides"
    stale = bench.ta.counters["stale_report"]
    late = next(one for one in asked if one.node == "n2")
    assert not said(bench.hear(found(late, 1.0)), EnvelopeGrant)
    assert bench.ta.counters["stale_report"] == stale + 1


def test_nobody_else_is_believed(bench: Bench) -> None:
    asked = placed(bench)
    for one in asked:
        assert not said(bench.hear(found(one, 1.0), "ts-other"), EnvelopeGrant)
    assert not said(
        bench.hear(RunFigures("svc.a", "n1", "", "", 9, 900.0), "ts-other"), EnvelopeGrant
    )
    assert not any(kind == FIGURE for kind, _ in bench.store)


def told(bench: Bench, run_ms: float, variant: str = "") -> Output:
    node = bench.task().node
    return bench.hear(RunFigures("svc.a", node, variant, "", 40, run_ms, 100.0, 4096, 8.0))


def test_runs_in_service_are_learnt_and_change_the_form_ever_more_rarely(bench: Bench) -> None:
    answered(bench, placed(bench), own=4.0, graph=10.0)
    assert bench.task().tuning.variant == ""
    switches = []
    for round_ in range(400):
        # Whichever form runs turns out to be slow.
        variant = bench.task().tuning.variant
        output = told(bench, 80.0 if round_ % 2 else 60.0, variant)
        output.extend(bench.passes(5000))
        if said(output, EnvelopeGrant):
            switches.append(bench.now_ms)
            runs(bench, output)
    assert switches, "what is slow now is left"
    pauses = [after - before for before, after in pairwise(switches)]
    assert pauses == sorted(pauses) or len(pauses) < 2
    assert len(switches) <= 8


def test_first_runs_are_shown(bench: Bench) -> None:
    answered(bench, placed(bench), own=4.0, graph=10.0)
    told(bench, 5.0)
    bench.passes(2 * PAUSE_MS)
    assert options(bench)[bench.task().node, ""].runs == 40


def test_under_manual_control_no_form_changes(bench: Bench) -> None:
    asked = placed(bench, autonomy=Autonomy.MANUAL)
    output = answered(bench, asked, own=400.0, graph=1.0)
    assert not said(output, EnvelopeGrant)


def test_what_stays_of_a_deviceless_instance_goes_with_the_grant(bench: Bench) -> None:
    qos = TaskQos(latency_ms=200.0)
    asked = placed(bench, specs={"deviceless": Deviceless(1000), "qos": qos})
    output = Output()
    for one in asked:
        slow = structs.replace(found(one, 2.0), start_ms=900.0, memory_bytes=200 << 20)
        output = bench.hear(slow)
    (grant,) = said(output, EnvelopeGrant)
    assert grant.tuning.warmth is Warmth.PROCESS


def test_what_remembers_is_not_tried(bench: Bench) -> None:
    own = task_spec().manifest
    keeps = structs.replace(
        own,
        limits=structs.replace(own.limits, state_bytes=100),
        functions=(HostFunction.MEMORY,),
    )
    asked = placed(bench, specs={"manifest": keeps})
    assert {is_graph(one) for one in asked} == {True}
