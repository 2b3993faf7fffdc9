"""Services into tasks: order, wiring, budgets."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.namo.decompose import decompose
from controller.namo.graph import longest_through, needed, order
from controller.namo.model import UseCase
from controller.namo.usecase import parse
from protocols.errors import UserError
from protocols.manifest import ArtifactRef, Constant, Dtype, ExecutorKind, Port
from protocols.messages.invocation import Edge
from protocols.qoais_map import EXPECTED_MS, HOP_MS

DIGEST = "sha256:" + "cd" * 32


def task(name: str, inputs: dict[str, object], **more: object) -> dict[str, object]:
    return {
        "name": name,
        "executor": "wasm",
        "artifact": DIGEST,
        "artifact_bytes": 10,
        "inputs": inputs,
        "outputs": {"y": {"dtype": "float32", "shape": [1, -1]}},
        **more,
    }


FROM_REQUEST = {"from": "request.x", "dtype": "float32", "shape": [1, -1]}


def use_case(tasks: list[dict[str, object]], outputs: dict[str, str], **more: object) -> UseCase:
    service = {"name": "s", "kind": "inference", "tasks": tasks, "outputs": outputs, **more}
    document = msgspec.json.encode({"name": "u", "services": [service]}).decode()
    return parse(document, "json")[0]


def diamond(**more: object) -> UseCase:
    return use_case(
        [
            task("join", {"a": "left.y", "b": "right.y"}, expected_ms=9),
            task("left", {"x": "head.y"}, expected_ms=19),
            task("right", {"x": {"from": "head.y", "shape": [1, 4]}}, expected_ms=4),
            task("head", {"x": FROM_REQUEST}, expected_ms=9),
        ],
        {"answer": "join.y"},
        **more,
    )


def test_a_task_stands_after_everything_that_feeds_it() -> None:
    (made,) = decompose(diamond(), 3)
    assert [one.task for one in made.tasks] == ["s.head", "s.left", "s.right", "s.join"]
    assert made.generation == 3
    assert made.outputs == (Edge("answer", "join", "y"),)
    join = made.tasks[3]
    assert join.step == "join"
    assert join.inputs == (Edge("a", "left", "y"), Edge("b", "right", "y"))


def test_an_input_takes_the_type_of_its_source_unless_it_has_its_own() -> None:
    (made,) = decompose(diamond(), 1)
    by_step = {one.step: one.manifest.inputs for one in made.tasks}
    assert by_step["left"] == (Port("x", Dtype.FLOAT32, (1, -1)),)
    assert by_step["right"] == (Port("x", Dtype.FLOAT32, (1, 4)),)


def test_a_constant_is_a_port_without_an_edge() -> None:
    constant = {"artifact": DIGEST, "artifact_bytes": 7, "dtype": "uint8", "shape": [7]}
    case = use_case([task("a", {"x": FROM_REQUEST}, constants={"t": constant})], {"y": "a.y"})
    (spec,) = decompose(case, 1)[0].tasks
    assert [port.name for port in spec.manifest.inputs] == ["x", "t"]
    assert spec.manifest.constants == (Constant("t", ArtifactRef(DIGEST, 7)),)
    assert [edge.port for edge in spec.inputs] == ["x"]


def test_latency_is_split_in_proportion_to_cost_along_the_dearest_path() -> None:
    case = diamond(
        sla={"zone": {"latency_ms": {"at_most": 80}, "accuracy_percent": {"at_least": 90}}}
    )
    (made,) = decompose(case, 1)
    budget = {one.step: one.qos.latency_ms for one in made.tasks}
    # head, left, join cost 10 + 20 + 10 with their hops; right takes what its own path leaves.
    assert budget == pytest.approx({"head": 20, "left": 40, "join": 20, "right": 80 * 5 / 25})
    assert [bound.indicator for bound in made.tasks[0].qos.bounds] == ["accuracy_percent"]
    assert [bound.indicator for bound in made.sla.zone.bounds] == ["latency_ms", "accuracy_percent"]


def test_without_a_bound_no_task_has_a_budget() -> None:
    assert {one.qos.latency_ms for one in decompose(diamond(), 1)[0].tasks} == {None}


def test_an_undeclared_cost_goes_by_the_kind_of_executor() -> None:
    case = use_case(
        [task("a", {"x": FROM_REQUEST}), task("b", {"x": "a.y"}, executor="onnx")],
        {"y": "b.y"},
        sla={"zone": {"latency_ms": {"at_most": 100}}},
    )
    wasm, onnx = (EXPECTED_MS[kind] + HOP_MS for kind in (ExecutorKind.WASM, ExecutorKind.ONNX))
    first, second = decompose(case, 1)[0].tasks
    assert first.qos.latency_ms == pytest.approx(100 * wasm / (wasm + onnx))
    assert second.qos.latency_ms == pytest.approx(100 * onnx / (wasm + onnx))


def test_a_service_that_fits_no_message_is_refused_with_a_reason() -> None:
    constants = {
        f"{'c' * 55}{n}": {"artifact": DIGEST, "artifact_bytes": 7, "dtype": "uint8", "shape": [7]}
        for n in range(8)
    }
    tasks = [task(f"t{n}", {"x": FROM_REQUEST}, constants=constants) for n in range(50)]
    with pytest.raises(UserError, match="bytes to describe"):
        decompose(chain(tasks), 1)


def test_a_service_whose_plan_fits_no_message_is_refused_with_a_reason() -> None:
    """A plan names each source in full, so that it may be larger than the order."""
    ports = {f"p{at}": {"dtype": "uint8", "shape": [1]} for at in range(16)}
    tasks = [
        task(
            f"t{n}",
            {f"p{at}": {**FROM_REQUEST} if n == 0 else f"t{n - 1}.p{at}" for at in range(16)},
            outputs=ports,
        )
        for n in range(60)
    ]
    with pytest.raises(UserError, match="bytes to describe"):
        decompose(use_case(tasks, {"y": "t59.p0"}, name="s" * 60), 1)


def chain(tasks: list[dict[str, object]]) -> UseCase:
    chained = [
        {**one, "inputs": {"x": FROM_REQUEST if at == 0 else f"t{at - 1}.y"}}
        for at, one in enumerate(tasks)
    ]
    return use_case(chained, {"y": f"t{len(tasks) - 1}.y"})


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[str, list[str]], dict[str, float]]:
    count = draw(st.integers(1, 8))
    names = [f"t{n}" for n in range(count)]
    sources = {
        name: draw(st.lists(st.sampled_from(names[:at]), unique=True)) if at else []
        for at, name in enumerate(names)
    }
    shuffled = {name: sources[name] for name in draw(st.permutations(names))}
    costs = draw(st.lists(st.floats(0.1, 1000), min_size=count, max_size=count))
    return shuffled, dict(zip(names, costs, strict=True))


def walks(sources: dict[str, list[str]], end: str) -> list[list[str]]:
    return [[end]] + [[*w, end] for one in sources[end] for w in walks(sources, one)]


@given(graphs())
def test_no_path_is_given_more_than_the_bound_and_the_dearest_all_of_it(
    graph: tuple[dict[str, list[str]], dict[str, float]],
) -> None:
    sources, cost = graph
    ordered, left = order(sources)
    assert not left
    assert sorted(ordered) == sorted(sources)
    assert all(ordered.index(s) < ordered.index(t) for t in sources for s in sources[t])
    through = longest_through(ordered, sources, cost)
    share = {one: cost[one] / through[one] for one in sources}
    sums = [sum(share[one] for one in walk) for end in sources for walk in walks(sources, end)]
    assert max(sums) == pytest.approx(1)


@given(graphs(), st.data())
def test_a_circle_is_left_over_and_nothing_else_is_lost(
    graph: tuple[dict[str, list[str]], dict[str, float]], data: st.DataObject
) -> None:
    sources, _ = graph
    one = data.draw(st.sampled_from(sorted(sources)))
    sources[one] = [*sources[one], one]
    ordered, left = order(sources)
    assert one in left
    assert sorted(ordered + left) == sorted(sources)
    assert needed(sources, [one]) >= {one}
