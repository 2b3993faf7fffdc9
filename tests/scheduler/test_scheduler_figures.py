"""A scheduler passes calibrations on, and tells an anchor what runs of tasks with a choice cost."""

from typing import Any

import pytest
from msgspec import structs
from scheduler_bench import Bench, grant, running, said, told
from tests_support import manifest

from controller.decider import Output, Received
from controller.scheduler.figures import TELL_MS
from protocols.manifest import ExecutorKind
from protocols.messages import Calibrate, Calibrated, EnvelopeGrant, QualityReport, RunFigures
from protocols.messages.quality import TaskSample, Variant

ASKED = Calibrate("svc.a/1", "ta-main", "n1", "svc.a", manifest())
FOUND = Calibrated("svc.a/1", "ta-main", "n1", start_ms=3.0)


def formed(*nodes: str, **changes: Any) -> EnvelopeGrant:
    made = grant(*nodes, **changes)
    forms = (Variant("graph", manifest(ExecutorKind.ONNX)),)
    return structs.replace(made, spec=structs.replace(made.spec, variants=forms))


@pytest.fixture
def bench() -> Bench:
    made = Bench()
    made.born("n1", "n2")
    return made


def test_a_calibration_goes_to_its_node_and_its_end_to_its_anchor(bench: Bench) -> None:
    assert told(bench.anchor(ASKED), "n1", Calibrate) == [ASKED]
    assert said(bench.node("n1", FOUND), Calibrated) == [FOUND]
    assert not said(bench.node("n2", FOUND), Calibrated), "it is not of that node"
    foreign = structs.replace(FOUND, anchor="somebody")
    assert not said(bench.node("n1", foreign), Calibrated)


def test_nobody_but_an_anchor_has_nodes_measure(bench: Bench) -> None:
    by_node = bench.node("n2", ASKED)
    by_client = bench.feed(Received("app", 1, 0, "default", "test", ASKED))
    assert not said(by_node, Calibrate)
    assert not said(by_client, Calibrate)


def test_a_node_that_is_not_there_is_refused_in_its_place(bench: Bench) -> None:
    (found,) = said(bench.anchor(structs.replace(ASKED, node="n9")), Calibrated)
    assert (found.number, found.refused, found.passing) == ("svc.a/1", "n9 is not online", True)


def report(run_ms: float, done: int = 10, variant: str = "", epoch: int = 1) -> QualityReport:
    sample = TaskSample(
        "svc.a", epoch, variant, done, run_ms=run_ms, input_bytes=100 * done, memory_bytes=4096
    )
    return QualityReport(1000, 1000, (sample,))


def lives(bench: Bench, ms: int, *bodies: Any) -> Output:
    """Have a node say these, and time pass."""
    for body in bodies:
        bench.node("n1", body)
    return bench.passes(ms, "n1", "n2")


def running_form(bench: Bench) -> int:
    """Have a task with two forms run; returns its epoch."""
    bench.anchor(formed("n1", "n2"))
    return bench.ts.table.tasks["svc.a"].next_epoch - 1


def test_runs_are_summed_up_and_told_in_a_while(bench: Bench) -> None:
    epoch = running_form(bench)
    bench.ready("n1", epoch)
    output = lives(bench, 200, report(4.0, 10, epoch=epoch), report(8.0, 30, epoch=epoch))
    assert not said(output, RunFigures)
    (figures,) = said(lives(bench, TELL_MS + 500), RunFigures)
    assert (figures.task, figures.node, figures.variant) == ("svc.a", "n1", "")
    assert (figures.runs, figures.input_bytes, figures.memory_bytes) == (40, 100.0, 4096)
    assert figures.run_ms == pytest.approx(7.0, rel=0.3), "without what load adds"
    assert 4 < figures.per_s < 9
    assert not said(lives(bench, 2 * TELL_MS), RunFigures), "nothing ran since"


def test_what_has_no_choice_and_what_is_over_tells_nothing(bench: Bench) -> None:
    epoch = running(bench, "n1", "n2")
    assert not said(lives(bench, 2 * TELL_MS, report(4.0, epoch=epoch)), RunFigures)
    formed_epoch = running_form(Bench())
    other = Bench()
    other.born("n1", "n2")
    other.anchor(formed("n1", "n2"))
    late = report(4.0, epoch=formed_epoch + 7)
    assert not said(lives(other, 2 * TELL_MS, late), RunFigures)
    elsewhere = report(4.0, variant="graph", epoch=formed_epoch)
    assert not said(lives(other, 2 * TELL_MS, elsewhere), RunFigures)


def test_absurd_runs_are_told_within_bounds(bench: Bench) -> None:
    epoch = running_form(bench)
    bench.ready("n1", epoch)
    (figures,) = said(lives(bench, TELL_MS + 500, report(1e11, epoch=epoch)), RunFigures)
    assert figures.run_ms == 3_600_000
