"""Placement: feasible, rank, select, with a reason for every rejected node."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from controller.anchor.placement import NodeFacts, Request, Snapshot, place
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.hierarchy import Demand, NodeState, TaskSpec
from protocols.messages.invocation import REQUEST, Edge
from protocols.messages.presence import Accelerator, ExecutorInfo, Inventory

PORT = Port("x", Dtype.UINT8, (-1,))


def task(
    name: str, *, source: str = REQUEST, kind: str = "wasm", memory_mb: int = 64, **changes: Any
) -> TaskSpec:
    manifest = Manifest(
        ExecutorKind(kind),
        ArtifactRef("sha256:" + "0" * 64, 1),
        (PORT,),
        (PORT,),
        Limits(memory_bytes=memory_mb << 20),
    )
    return TaskSpec(f"s.{name}", name, manifest, (Edge("x", source, "x"),), **changes)


def node(
    name: str,
    *,
    state: NodeState = NodeState.ONLINE,
    cpu_percent: float = 5.0,
    kinds: tuple[str, ...] = ("wasm", "onnx"),
    memory_mb: int = 1024,
    accelerators: tuple[Accelerator, ...] = (),
    instances: int = 16,
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
    return NodeFacts(name, state, inventory, cpu_percent)


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


@given(st.permutations([f"n{at}" for at in range(5)]))
def test_the_order_of_nodes_does_not_matter(names: list[str]) -> None:
    one = place([Request(task("a"), 2)], Snapshot(1, tuple(node(name) for name in names)))
    assert one["s.a"].chosen == ("n0", "n1", "n2")
