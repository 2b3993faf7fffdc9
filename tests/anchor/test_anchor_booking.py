"""What resting tasks are booked as: many on one node, by how often they are asked."""

import pytest
from anchor_bench import MEMORY, Bench, chain, room, said, sized
from msgspec import structs

from controller.booking import SHARES, booked_bytes, least_bytes, share
from controller.records import TaskState
from protocols.manifest import Infer
from protocols.messages import EnvelopeGrant, NodeSummary, RunFigures
from protocols.messages.hierarchy import NodeState, Reserved, TaskQos
from protocols.messages.quality import Leeway, Tuning, Warmth
from protocols.messages.task import Deviceless

FUNCTION = {"deviceless": Deviceless()}


@pytest.fixture
def bench() -> Bench:
    return Bench()


def function(bench: Bench, name: str, memory_bytes: int = MEMORY, **specs: object) -> None:
    order = chain(name, 1, "a", spares=0, specs={**FUNCTION, **specs})
    tasks = tuple(sized(one, memory_bytes) for one in order.tasks)
    bench.hear(structs.replace(order, tasks=tasks), "namo-main")


def ran(bench: Bench, task: str, per_s: float, node: str = "n1") -> None:
    told = RunFigures(task, node, runs=9, run_ms=5.0, input_bytes=10.0, per_s=per_s)
    bench.hear(told)


def test_a_node_takes_more_resting_tasks_than_fit_awake(bench: Bench) -> None:
    bench.node("n1", inventory=structs.replace(room(4), max_instances=256))
    for number in range(200):
        function(bench, f"f{number}")
    states = [bench.task(f"f{number}.a").state for number in range(200)]
    assert states == [TaskState.PLACED] * 200
    ledger = bench.ta.book.ledger
    assert ledger.booked_bytes("n1") == 200 * (int(MEMORY * SHARES[0]) + 1)
    assert ledger.headroom("n1") == MEMORY - int(MEMORY * SHARES[0]) - 1
    assert ledger.taken_bytes("n1") <= 4 * MEMORY


def test_over_commitment_has_an_end(bench: Bench) -> None:
    bench.node("n1", inventory=structs.replace(room(2), max_instances=1000))
    for number in range(200):
        function(bench, f"f{number}")
    placed = [bench.task(f"f{number}.a").state is TaskState.PLACED for number in range(200)]
    assert sum(placed) == 128, "one in full, beside 127 others that are 1/128 each"
    assert bench.ta.book.ledger.taken_bytes("n1") <= 2 * MEMORY


def test_what_always_runs_keeps_its_memory_and_the_turn_of_the_others(bench: Bench) -> None:
    bench.tight("n1", 2)
    function(bench, "f")
    bench.order(1, "a", spares=0)
    assert bench.task().reserved == {"n1": MEMORY}
    bench.hear(chain("other", 1, "a", spares=0), "namo-main")
    assert bench.task("other.a").state is TaskState.WAITING, "the function would have no turn"
    assert "task memory left" in bench.task("other.a").reason


def test_one_that_could_never_run_there_is_not_placed(bench: Bench) -> None:
    bench.tight("n1", 2)
    bench.order(1, "a", spares=0)
    function(bench, "f", 2 * MEMORY)
    assert bench.task("f.a").state is TaskState.WAITING
    function(bench, "g", MEMORY)
    assert bench.task("g.a").state is TaskState.PLACED


def test_a_latency_that_needs_the_instance_is_guaranteed(bench: Bench) -> None:
    bench.tight("n1", 2)
    function(bench, "f", qos=TaskQos(latency_ms=5.0))
    assert bench.task("f.a").tuning.warmth is Warmth.INSTANCE
    assert bench.task("f.a").reserved == {"n1": MEMORY}
    function(bench, "g", qos=TaskQos(latency_ms=5.0))
    function(bench, "h", qos=TaskQos(latency_ms=5.0))
    assert bench.task("g.a").state is TaskState.PLACED
    assert bench.task("h.a").state is TaskState.WAITING


def test_a_task_that_is_asked_more_often_is_booked_for_more(bench: Bench) -> None:
    bench.tight("n1", 2)
    function(bench, "f")
    bench.ready("n1", 1, task="f.a")
    least = bench.task("f.a").reserved["n1"]
    ran(bench, "f.a", 10.0)
    assert bench.task("f.a").reserved == {"n1": MEMORY}
    bench.passes(3_600_000)
    bench.order(1, "a", "b", spares=0)
    assert bench.task().state is TaskState.WAITING
    bench.passes(10)
    assert bench.task("f.a").reserved["n1"] <= MEMORY / 32
    function(bench, "g")
    assert bench.task("g.a").reserved["n1"] == least


def test_what_nobody_asks_any_more_gives_back_what_others_need(bench: Bench) -> None:
    bench.tight("n1", 4)
    for name in ("f", "g", "h"):
        function(bench, name)
        bench.ready("n1", 1, task=f"{name}.a")
        ran(bench, f"{name}.a", 10.0)
    assert bench.ta.book.ledger.taken_bytes("n1") == 3 * MEMORY
    bench.passes(3_600_000)
    for name in ("one", "other"):
        bench.hear(chain(name, 1, "a", spares=0), "namo-main")
        assert bench.task(f"{name}.a").state is TaskState.PLACED
    assert bench.ta.book.ledger.taken_bytes("n1") <= 4 * MEMORY


def test_what_starts_is_booked_for_no_more_than_was_found_for_it(bench: Bench) -> None:
    bench.tight("n1", 2)
    for name in ("f", "g", "h"):
        function(bench, name)
    ran(bench, "f.a", 10.0)
    bench.ready("n1", 1, task="f.a")
    assert bench.ta.book.ledger.taken_bytes("n1") <= 2 * MEMORY


def test_nothing_is_booked_for_more_than_there_is(bench: Bench) -> None:
    bench.tight("n1", 2)
    for name in ("f", "g", "h"):
        function(bench, name)
        bench.ready("n1", 1, task=f"{name}.a")
    for name in ("f", "g", "h"):
        ran(bench, f"{name}.a", 10.0)
    assert bench.ta.book.ledger.taken_bytes("n1") <= 2 * MEMORY


def test_the_scheduler_is_told_what_is_booked(bench: Bench) -> None:
    bench.tight("n1", 2)
    order = chain("f", 1, "a", spares=0, specs=FUNCTION)
    [grant] = said(bench.hear(order, "namo-main"), EnvelopeGrant)
    assert grant.reserved == (int(MEMORY * SHARES[0]) + 1,)


def test_what_tasks_of_other_anchors_may_grow_to_counts(bench: Bench) -> None:
    others = (Reserved("other.a", MEMORY // 128, 0.0, MEMORY),)
    bench.hear(NodeSummary("n1", NodeState.ONLINE, 1, room(2), others=others), "ts-main")
    assert bench.ta.book.ledger.headroom("n1") == MEMORY
    bench.order(1, "a", spares=0)
    assert bench.task().state is TaskState.WAITING
    function(bench, "f", MEMORY)
    assert bench.task("f.a").state is TaskState.PLACED


def test_booking_is_bounded_and_grows_with_the_requests() -> None:
    rates = (0.0, 1e-6, 0.001, 0.01, 0.1, 1.0, 1e6)
    found = [share(Warmth.FORM, per_s) for per_s in rates]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (1 / 128, 1.0)
    assert share(Warmth.PROCESS, 0.0) == 1 / 2


def test_a_guest_with_models_is_booked_in_full() -> None:
    spec = chain("f", 1, "a", specs=FUNCTION).tasks[0]
    infers = (Infer("model", "s.model"),)
    guest = structs.replace(spec, manifest=structs.replace(spec.manifest, infers=infers))
    assert booked_bytes(guest, Tuning(), Leeway(), 0.0) == MEMORY
    assert least_bytes(guest) == MEMORY
    assert least_bytes(spec) == booked_bytes(spec, Tuning(), Leeway(), 0.0) < MEMORY
