"""Placement: feasible, rank, select, with a reason for every rejected node."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from controller.anchor.placement import NodeFacts, Request, Snapshot, place
from controller.records import Placement
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.hierarchy import Demand, NodeState, TaskQos, TaskSpec
from protocols.messages.invocation import REQUEST, Edge
from protocols.messages.presence import Accelerator, ExecutorInfo, Inventory
from protocols.messages.quality import Declared, Variant
from protocols.qoais import Bound

PORT = Port("x", Dtype.UINT8, (-1,))


def program(
    kind: str = "wasm", memory_mb: int = 64, outputs: tuple[Port, ...] = (PORT,)
) -> Manifest:
    limits = Limits(memory_bytes=memory_mb << 20)
    artifact = ArtifactRef("sha256:" + "0" * 64, 1)
    return Manifest(ExecutorKind(kind), artifact, (PORT,), outputs, limits)


def task(
    name: str, *, source: str = REQUEST, kind: str = "wasm", memory_mb: int = 64, **changes: Any
) -> TaskSpec:
    inputs = (Edge("x", source, "x"),)
    return TaskSpec(f"s.{name}", name, program(kind, memory_mb), inputs, **changes)


def private(level: str) -> TaskQos:
    return TaskQos(bounds=(Bound("data_privacy", level=level),))


def firsts(plan: dict[str, Placement]) -> dict[str, str]:
    return {name.removeprefix("s."): one.chosen[0] for name, one in plan.items() if one.chosen}


def node(
    name: str,
    *,
    state: NodeState = NodeState.ONLINE,
    cpu_percent: float = 5.0,
    kinds: tuple[str, ...] = ("wasm", "onnx"),
    memory_mb: int = 1024,
    accelerators: tuple[Accelerator, ...] = (),
    instances: int = 16,
    trip_ms: float | None = None,
    cell: str = "",
) -> NodeFacts:
    inventory = Inventory(
        "generic",
        "x86_64",
        "linux",
        4,
        8 << 30,
        1 << 40,
        accelerators,
        tuple(ExecutorInfo(kind, "1") for kind in kinds),
        (),
        memory_mb << 20,
        instances,
    )
    return NodeFacts(name, state, inventory, cpu_percent, trip_ms, cell)


def test_every_rejected_node_has_its_reason() -> None:
    snapshot = Snapshot(
        7,
        (
            node("busy", memory_mb=32),
            node("full", instances=0),
            node("good"),
            node("gone", state=NodeState.LOST),
            node("plain", kinds=("wasm",)),
            node("unnamed"),
        ),
    )
    wanted = task("a", kind="onnx", nodes=("busy", "full", "good", "gone", "plain"))
    placement = place([Request(wanted, 1)], snapshot)["s.a"]
    assert placement.chosen == ("good",)
    assert {one.node: one.reason for one in placement.rejected} == {
        "busy": "has 32 MB of task memory left, the task asks for 64 MB",
        "full": "holds 0 instances already, its limit",
        "gone": "is lost",
        "plain": "has no onnx executor",
        "unnamed": "is not among the nodes that the task names",
    }


def test_an_accelerator_is_found_by_kind() -> None:
    gpu = node("g", accelerators=(Accelerator("gpu", "x"),))
    placement = place(
        [Request(task("a", demand=Demand(accelerator="gpu")), 0)], Snapshot(1, (gpu, node("n")))
    )["s.a"]
    assert placement.chosen == ("g",)
    assert placement.rejected[0].reason == "has no gpu"


def test_neighbours_stay_together_until_a_node_is_loaded() -> None:
    chain = [Request(task("a"), 0), Request(task("b", source="a"), 0)]
    idle = Snapshot(1, (node("n1"), node("n2")))
    assert {one.chosen for one in place(chain, idle).values()} == {("n1",)}
    second_only = [Request(task("a"), 0), Request(task("b", source="a", nodes=("n2",)), 0)]
    assert place(second_only, idle)["s.b"].chosen == ("n2",)


def test_a_running_task_stays_unless_another_node_is_clearly_better() -> None:
    snapshot = Snapshot(1, (node("n1", cpu_percent=30.0), node("n2", cpu_percent=5.0)))
    assert place([Request(task("a"), 0, current="n1")], snapshot)["s.a"].chosen == ("n1",)
    loaded = Snapshot(1, (node("n1", cpu_percent=99.0), node("n2", cpu_percent=5.0)))
    assert place([Request(task("a"), 0, current="n1")], loaded)["s.a"].chosen == ("n2",)


def test_no_node_at_all_is_said_so() -> None:
    assert place([Request(task("a"), 1)], Snapshot(1, ()))["s.a"].reason == "no node has joined yet"


def test_a_refusal_counts_what_excludes_the_nodes() -> None:
    nodes = (
        *(node(f"gone{at}", state=NodeState.LOST) for at in range(3)),
        *(node(f"plain{at}", kinds=("wasm",)) for at in range(2)),
        node("small", memory_mb=32),
        node("full", instances=0),
    )
    reason = place([Request(task("a", kind="onnx"), 0)], Snapshot(1, nodes))["s.a"].reason
    assert reason == (
        "none of 7 nodes can run it: is lost (3), has no onnx executor (2), "
        "has no instance left (1), has too little task memory left (1)"
    )


def test_a_refusal_counts_nodes_that_are_not_even_weighed() -> None:
    empty = Snapshot(1, (), left_out={"is in the cell of ts-b": 2, "has not been heard of": 1})
    assert place([Request(task("a"), 0)], empty)["s.a"].reason == (
        "none of 3 nodes may be used: is in the cell of ts-b (2), has not been heard of (1)"
    )


SECURITY_GIVEN = {
    ("wasm", ""): "strong",
    ("wasm", "basic"): "basic",
    ("wasm", "none"): "none",
    ("wasm", "magic"): "none",
    ("onnx", ""): "basic",
    ("onnx", "strong"): "strong",
}


@pytest.mark.parametrize("asked", ["none", "basic", "strong"])
@pytest.mark.parametrize(("executor", "given"), SECURITY_GIVEN.items())
def test_a_node_is_used_only_where_it_keeps_the_computing_security(
    executor: tuple[str, str], given: str, asked: str
) -> None:
    kind, declared = executor
    plain = node("n1")
    infos = tuple(
        structs.replace(one, security=declared if one.kind == kind else "")
        for one in plain.inventory.executors
    )
    facts = structs.replace(plain, inventory=structs.replace(plain.inventory, executors=infos))
    qos = TaskQos(bounds=(Bound("computing_security", level=asked),))
    placement = place([Request(task("a", kind=kind, qos=qos), 0)], Snapshot(1, (facts,)))["s.a"]
    levels = ("none", "basic", "strong")
    if levels.index(given) >= levels.index(asked):
        assert placement.chosen == ("n1",)
    else:
        why = f"its {kind} executor keeps {given} computing security, {asked} is asked for"
        assert [(one.node, one.reason) for one in placement.rejected] == [("n1", why)]
        assert placement.reason == f"none of 1 nodes can run it: {why} (1)"


def test_a_service_is_placed_whole_or_not_at_all() -> None:
    chain = [Request(task("a"), 0), Request(task("b", source="a", kind="onnx"), 0)]
    plan = place(chain, Snapshot(1, (node("n1", kinds=("wasm",)),)))
    assert firsts(plan) == {}
    assert plan["s.b"].reason == "none of 1 nodes can run it: has no onnx executor (1)"
    lone = "s.b finds no node, and a service is placed whole or not at all"
    assert plan["s.a"].reason == lone
    assert [(one.stage, one.reason) for one in plan["s.a"].rejected] == [
        ("plan", f"could run it, but {lone}")
    ]


def test_tasks_that_fit_alone_but_not_together_say_so() -> None:
    both = [Request(task("a", memory_mb=600), 0), Request(task("b", memory_mb=600), 0)]
    plan = place(both, Snapshot(1, (node("n1"),)))
    together = "each task finds a node, but no cell of 1 nodes takes all of them together"
    assert {one.reason for one in plan.values()} == {together}
    assert firsts(place(both, Snapshot(1, (node("n1"), node("n2"))))) == {"a": "n1", "b": "n2"}


def test_a_task_leaves_the_best_node_to_one_that_fits_nowhere_else() -> None:
    requests = [Request(task("a", memory_mb=500), 0), Request(task("b", memory_mb=900), 0)]
    snapshot = Snapshot(1, (node("big"), node("small", memory_mb=512, cpu_percent=60.0)))
    assert firsts(place(requests, snapshot)) == {"a": "small", "b": "big"}


def test_a_group_shares_one_node_that_can_run_all_of_it() -> None:
    requests = [
        Request(task("a", group="g", memory_mb=400), 1),
        Request(task("b", kind="onnx"), 0),
        Request(task("c", group="g", kind="onnx", memory_mb=400), 1),
    ]
    nodes = (
        node("n1", memory_mb=700),
        node("n2", kinds=("wasm",)),
        node("n3", cpu_percent=50.0),
        node("n4", cpu_percent=60.0),
    )
    plan = place(requests, Snapshot(1, nodes))
    assert plan["s.a"].chosen == plan["s.c"].chosen == ("n3", "n4")
    assert {one.node: one.reason for one in plan["s.a"].rejected} == {
        "n1": "has 636 MB of task memory left, the tasks of its group ask for 800 MB",
        "n2": "cannot run c of its group: has no onnx executor",
    }


def test_all_tasks_lie_in_one_cell_and_the_best_is_chosen() -> None:
    requests = [Request(task("a"), 1), Request(task("b", kind="onnx"), 1)]
    nodes = (
        node("n1", cell="ts-1", kinds=("wasm",)),
        node("n2", cell="ts-1", kinds=("wasm",)),
        node("n3", cell="ts-2", cpu_percent=50.0),
        node("n4", cell="ts-3", cpu_percent=40.0),
        node("n5", cell="ts-3", cpu_percent=90.0),
    )
    plan = place(requests, Snapshot(1, nodes))
    assert {one.chosen for one in plan.values()} == {("n4", "n5")}, "spares too"
    elsewhere = {one.node for one in plan["s.a"].rejected if "another cell" in one.reason}
    assert elsewhere == {"n1", "n2", "n3"}


def test_raw_input_stays_where_its_privacy_says() -> None:
    nodes = (
        node("n1", cell="ts-1"),
        node("n2", cell="ts-2", cpu_percent=70.0),
        node("n3", cell="ts-2", cpu_percent=50.0),
    )

    def chosen(level: str) -> str:
        spec = task("a", origins=("n2",), qos=private(level))
        return place([Request(spec, 0)], Snapshot(1, nodes))["s.a"].chosen[0]

    assert {level: chosen(level) for level in ("core", "cell", "node")} == {
        "core": "n1",
        "cell": "n3",
        "node": "n2",
    }
    spec = task("a", origins=("n2",), qos=private("node"))
    placement = place([Request(spec, 5)], Snapshot(1, nodes))["s.a"]
    assert placement.chosen == ("n2",), "no spare where the input may not go"
    assert placement.rejected[0].reason == (
        "is not where the task's raw input comes to be, which may not leave its node"
    )


def test_input_that_comes_to_be_on_a_node_draws_the_task_there() -> None:
    nodes = (node("n1", trip_ms=10.0), node("n2", trip_ms=10.0, cpu_percent=30.0))
    assert firsts(place([Request(task("a"), 0)], Snapshot(1, nodes))) == {"a": "n1"}
    fed = task("a", origins=("n2",))
    assert firsts(place([Request(fed, 0)], Snapshot(1, nodes))) == {"a": "n2"}


def test_a_variant_is_taken_only_where_the_manifest_fits_nowhere() -> None:
    variants = (Variant("tiny", program(memory_mb=32)), Variant("small", program(memory_mb=128)))
    known = (Declared("accuracy_percent", 95.0),)
    spec = task("a", memory_mb=600, variants=variants, declared=known)
    roomy = place([Request(spec, 0)], Snapshot(1, (node("n1"), node("n2", memory_mb=256))))
    assert (roomy["s.a"].chosen, roomy["s.a"].variant) == (("n1",), "")
    tight = place([Request(spec, 1)], Snapshot(1, (node("n2", memory_mb=256),)))["s.a"]
    assert (tight.chosen, tight.variant) == (("n2",), "tiny")
    assert "as variant tiny" in tight.reason
    together = [Request(spec, 0), Request(task("b", memory_mb=600), 0)]
    plan = place(together, Snapshot(1, (node("n1"),)))
    assert [plan[name].variant for name in ("s.a", "s.b")] == ["tiny", ""]


def test_a_node_that_has_just_failed_the_task_comes_last() -> None:
    nodes = (node("n1"), node("n2", cpu_percent=90.0, trip_ms=400.0))
    failed = Request(task("a"), 1, failed={"n1": "crashed"})
    assert place([failed], Snapshot(1, nodes))["s.a"].chosen == ("n2", "n1")


def test_a_reservation_counts_for_others_and_not_for_its_own_task() -> None:
    full = Snapshot(1, (node("n1"),), {"n1": 1000 << 20}, {"n1": 5.0}, {"n1": 1})
    own = Request(task("a", memory_mb=1000), 0, reserved_on="n1")
    assert firsts(place([own], full)) == {"a": "n1"}
    assert firsts(place([Request(task("b"), 0)], full)) == {}
    variant = Request(task("a", memory_mb=1010), 0, reserved_on="n1", reserved_bytes=1000 << 20)
    assert firsts(place([variant], full)) == {"a": "n1"}, "it needs 10 MB more, 24 are free"
    larger = Request(task("a", memory_mb=1200), 0, reserved_on="n1", reserved_bytes=1000 << 20)
    assert firsts(place([larger], full)) == {}


def test_a_fixed_task_keeps_its_node_and_the_others_gather_around_it() -> None:
    nodes = (node("n1", state=NodeState.SUSPECT), node("n2"), node("n3", trip_ms=1.0, cell=""))
    booked = Snapshot(1, nodes, {"n2": 2048 << 20}, {}, {"n2": 1})
    chain = [
        Request(task("a"), 1, reserved_on="n1", fixed="n1"),
        Request(task("b", source="a"), 0),
        Request(task("c", source="b"), 0, reserved_on="n2", fixed="n2"),
    ]
    plan = place(chain, booked)
    assert firsts(plan) == {"a": "n1", "b": "n3", "c": "n2"}
    assert plan["s.a"].reason == "it stays on n1"
    assert plan["s.a"].chosen == ("n1", "n3"), "its spare is found all the same"
    absent = [Request(task("a"), 0, fixed="n9")]
    assert place(absent, booked)["s.a"].rejected[0].reason == "is not n9, which the task keeps"


def test_two_fixed_tasks_on_a_node_that_is_booked_above_what_it_has_stay_there() -> None:
    booked = Snapshot(1, (node("n1"),), {"n1": 4096 << 20}, {}, {"n1": 2})
    pair = [Request(task(name), 0, reserved_on="n1", fixed="n1") for name in ("a", "b")]
    plan = place(pair, booked)
    assert firsts(plan) == {"a": "n1", "b": "n1"}
    assert all(0 <= sum(one.scores["n1"].values()) < 100 for one in plan.values())


def test_of_a_large_even_fleet_the_first_by_name_are_taken() -> None:
    nodes = tuple(node(f"n{at:04}") for at in reversed(range(700)))
    chain = [Request(task("a"), 2), Request(task("b", source="a"), 2)]
    plan = place(chain, Snapshot(1, nodes))
    assert {one.chosen for one in plan.values()} == {("n0000", "n0001", "n0002")}


def test_nothing_to_place_is_an_empty_plan() -> None:
    assert place([], Snapshot(1, (node("n1"),))) == {}


@settings(deadline=None)
@given(
    memories=st.lists(st.integers(0, 512), min_size=1, max_size=8),
    demands=st.lists(st.integers(1, 256), min_size=1, max_size=12),
    spares=st.integers(0, 3),
)
def test_no_node_is_booked_above_what_it_has(
    memories: list[int], demands: list[int], spares: int
) -> None:
    nodes = tuple(node(f"n{at}", memory_mb=size) for at, size in enumerate(memories))
    requests = [Request(task(f"t{at}", memory_mb=size), spares) for at, size in enumerate(demands)]
    plan = place(requests, Snapshot(1, nodes))
    booked: dict[str, int] = {}
    for request in requests:
        chosen = plan[request.spec.task].chosen
        assert len(chosen) == len(set(chosen)) <= 1 + spares
        if chosen:
            booked[chosen[0]] = booked.get(chosen[0], 0) + request.spec.manifest.limits.memory_bytes
        else:
            rejected = {one.node for one in plan[request.spec.task].rejected}
            assert rejected == {one.node for one in nodes}, "every rejection is explained"
    for facts in nodes:
        assert booked.get(facts.node, 0) <= facts.inventory.task_memory_bytes


@settings(deadline=None)
@given(st.permutations([f"n{at}" for at in range(5)]))
def test_the_order_of_nodes_does_not_matter(names: list[str]) -> None:
    one = place([Request(task("a"), 2)], Snapshot(1, tuple(node(name) for name in names)))
    assert one["s.a"].chosen == ("n0", "n1", "n2")


def test_values_of_open_shape_count_as_a_list_or_a_picture() -> None:
    def hops(shape: tuple[int, ...]) -> float:
        wide = structs.replace(task("a"), manifest=program(outputs=(Port("x", PORT.dtype, shape),)))
        chain = [Request(wide, 0), Request(task("b", source="a", nodes=("n2",)), 0)]
        plan = place(chain, Snapshot(1, (node("n1", kinds=("onnx",)), node("n2"), node("n3"))))
        return plan["s.a"].scores["n3"]["hops"]

    assert hops((4,)) < hops((-1,)) == hops((256,)) < hops((-1, -1)) == hops((512, 512))
    assert hops((-1, -1, 3)) == hops((-1, -1)) < hops((-1, -1, 6625)) == hops((256, 6625))
