"""What was changed against a danger is taken back when that is long over, each part by itself."""

import pytest
from msgspec import structs
from quality_bench import Loop, Truth, actions, envelope, story
from tests_support import INVENTORY

from protocols.messages import Birth, Feed
from protocols.messages.hierarchy import TaskQos
from protocols.messages.presence import ExecutorInfo
from protocols.messages.quality import Leeway, Tuning
from protocols.qoais import Bound

GPU = "CUDAExecutionProvider"
FAST = 0.4


@pytest.mark.parametrize(
    ("changed", "faster", "leeway"),
    [
        (Tuning(threads=2), FAST, Leeway(moves=False, threads_max=2)),
        (Tuning(provider=GPU), FAST, Leeway(moves=False, providers=(GPU,))),
        (Tuning(replicas=2), 1.0, Leeway(moves=False, replicas_max=2)),
    ],
)
def test_what_a_danger_was_met_with_is_taken_back_when_the_work_is_light(
    changed: Tuning, faster: float, leeway: Leeway
) -> None:
    heavy = [True]

    def run_ms(node: str, tuning: Tuning, feed: Feed | None) -> float:
        del node, feed
        return (70.0 if heavy[0] else 20.0) * (faster if tuning == changed else 1.0)

    loop = Loop(Truth(run_ms))
    executors = (ExecutorInfo("wasm", "1", (GPU,)),)
    loop.node("n1", Birth("1", "boot", structs.replace(INVENTORY, executors=executors)))
    loop.anchor(envelope("n1", leeway=leeway))
    loop.lives(4000)
    entry = loop.ts.table.tasks["svc.a"]
    entry.tuning = changed
    loop.ts.table.mark(entry, "test")
    loop.lives(60_000)
    assert loop.tuning == changed, "it would be too close to danger without"
    heavy[0] = False
    out = loop.lives(60_000)
    assert loop.tuning == Tuning()
    assert story(out) == ["relaxing", "relaxed"]


def test_a_part_that_is_still_needed_keeps_no_other() -> None:
    def run_ms(node: str, tuning: Tuning, feed: Feed | None) -> float:
        del node, feed
        return 70.0 if tuning.cpu_percent < 100 else 35.0

    loop = Loop(Truth(run_ms))
    granted = Tuning(cpu_percent=50.0)
    leeway = Leeway(moves=False, cpu_percent_max=100.0, replicas_max=2, priority_max=8)
    loop.anchor(envelope("n1", leeway=leeway, tuning=granted))
    loop.lives(2000)
    entry = loop.ts.table.tasks["svc.a"]
    entry.tuning = Tuning(cpu_percent=100.0, replicas=2, priority=8)
    loop.ts.table.mark(entry, "test")
    out = loop.lives(150_000)
    assert loop.tuning == Tuning(cpu_percent=100.0)
    assert [one.partition(":")[0] for one in actions(out)] == [
        "workers as granted",
        "priority as granted",
    ]


def test_an_encoding_is_kept_where_the_bytes_would_be_too_many_without() -> None:
    """They are what was agreed on, and no latency tells of them."""
    loop = Loop(Truth(lambda *_: 30.0))
    before = loop.report

    def measured():  # type: ignore[no-untyped-def]  # noqa: ANN202 - a QualityReport
        loop.truth.sent_bytes = 2000 if loop.tuning.encoding else 9000
        report = before()
        made = structs.replace(report.tasks[0], output_bytes=9000 * report.tasks[0].done)
        return structs.replace(report, tasks=(made,))

    loop.report = measured  # type: ignore[method-assign]
    bytes_ = Bound("transmission_bytes", at_most=8000.0)
    qos = TaskQos(latency_ms=100.0, bounds=(bytes_,))
    leeway = Leeway(moves=False, encodings=("deflate",))
    loop.anchor(envelope("n1", leeway=leeway, spec={"qos": qos}))
    out = loop.lives(12_000)
    assert loop.tuning.encoding == "deflate", story(out)
    assert not story(loop.lives(100_000)), "it is not even tried"
