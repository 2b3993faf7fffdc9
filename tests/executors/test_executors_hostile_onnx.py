"""Hostile models and inputs: each refused or contained, and the next good model is served.

`TONA_MUTANTS=2000` in the environment tries so many mutated models.
"""

import asyncio
import importlib.util
import os
import random
import struct
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from executor_guests import Shelf, floats
from executor_models import Model, function, operator_sets, proto

from device_agent.executors import models
from device_agent.executors.door import Bytes, Done, ExecutorFailure, Failed, File, Value
from device_agent.executors.onnx import OnnxExecutor
from protocols.errors import Blame
from protocols.manifest import Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.invocation import FailureCode

BUDGET_MS = 60_000
FLOAT, INT64, BOOL = 1, 7, 9
X = (Port("x", Dtype.FLOAT32, (-1,)),)
Y = (Port("y", Dtype.FLOAT32, (-1,)),)
MUTANTS = int(os.environ.get("TONA_MUTANTS", "300"))
SEED = 20_261_122
Task = tuple[Path, Manifest]
Make = Callable[..., Task]


@pytest.fixture
def model(shelf: Shelf) -> Make:
    """Return a task with this model, from x to y if it is not told otherwise."""

    def make(data: bytes, **parts: Any) -> Task:
        return shelf.task(ExecutorKind.ONNX, data, **({"inputs": X, "outputs": Y} | parts))

    return make


def graph(nodes: list[bytes], *initializers: bytes) -> bytes:
    """Return a graph from x to y, each of any length."""
    ends = [Model.value("x", FLOAT, "n")], [Model.value("y", FLOAT, "m")]
    return Model.graph(nodes, *ends, initializers)


GOOD = Model.whole(graph([Model.node("Add", ["x", "x"], ["y"])]))


@pytest.fixture
async def served(onnx: OnnxExecutor, model: Make) -> AsyncIterator[OnnxExecutor]:
    """Give an executor that serves a good model before and after, by one and the same zygote."""
    await onnx.start("good", *model(GOOD), {})
    zygote = onnx._models.zygote
    assert zygote is not None
    worker = onnx._instances["good"].pid
    yield onnx
    result = await onnx.invoke("good", "last", {"x": floats(1, 2)}, BUDGET_MS)
    assert isinstance(result, Done)
    assert result.outputs == {"y": floats(2, 4)}
    assert onnx._instances["good"].pid == worker, "the neighbour has felt nothing"
    assert onnx._models.zygote is zygote
    assert zygote.running


async def refused(onnx: OnnxExecutor, task: Task, said: str = ".") -> Failed:
    with pytest.raises(ExecutorFailure, match=said) as caught:
        await onnx.deploy(*task)
    return caught.value.failed


def inner(levels: int, width: int) -> list[bytes]:
    """Return functions of which each calls the next one so often."""
    functions = []
    for level in range(levels):
        last = level == levels - 1
        call = ("Identity", "") if last else (f"f{level + 1}", "bomb")
        nodes = [
            Model.node(call[0], ["a" if one == 0 else f"v{one - 1}"], [f"v{one}"], domain=call[1])
            for one in range(width)
        ]
        functions.append(function(f"f{level}", "bomb", ["a"], [f"v{width - 1}"], nodes))
    return functions


def bomb(functions: list[bytes], first: str = "f0") -> bytes:
    """Return a model that calls the first function."""
    nodes = [Model.node(first, ["x"], ["y"], domain="bomb")]
    sets = operator_sets(("", 17), ("bomb", 1))
    return proto((1, 8), (7, graph(nodes)), *sets, *((25, one) for one in functions))


async def test_functions_that_expand_without_end_are_refused(
    served: OnnxExecutor, model: Make
) -> None:
    failed = await refused(served, model(bomb(inner(40, 2))), "expand to 200000 nodes")
    assert (failed.blame, failed.retryable) == (Blame.USER, False)
    itself = [function("f0", "bomb", ["a"], ["b"], [Model.node("f0", ["a"], ["b"], domain="bomb")])]
    await refused(served, model(bomb(itself)), "expand")
    branch = Model.graph(
        [Model.node("f1", ["a"], ["c"], domain="bomb")] * 9, [], [Model.value("c", FLOAT, 1)]
    )
    hidden = [
        function(
            f"f{one}",
            "bomb",
            ["a"],
            ["b"],
            [Model.node("If", ["a"], ["b"], Model.subgraph("then_branch", branch))] * 40,
        )
        for one in range(8)
    ]
    hidden = [one.replace(b"f1", f"f{at + 1}".encode()) for at, one in enumerate(hidden)]
    await refused(served, model(bomb(hidden)), "expand")
    await refused(served, model(bomb(inner(600, 1))), "has 600 functions")
    await served.start("small", *model(bomb(inner(4, 3))), {})
    result = await served.invoke("small", "c", {"x": floats(7)}, BUDGET_MS)
    assert isinstance(result, Done)
    assert result.outputs == {"y": floats(7)}


async def test_a_load_that_does_not_end_is_killed(
    served: OnnxExecutor, model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "LOAD_TIMEOUT_S", 1.0)
    # Each constant is small enough to be folded, and takes a thousand million steps.
    side = struct.pack("<2q", 1000, 1000)
    nodes = [Model.node("ConstantOfShape", ["side"], ["m0"])]
    nodes += [Model.node("MatMul", [f"m{one}", f"m{one}"], [f"m{one + 1}"]) for one in range(2000)]
    nodes += [Model.node("ReduceSum", ["m2000"], ["s"]), Model.node("Add", ["x", "s"], ["y"])]
    data = Model.whole(graph(nodes, Model.tensor("side", INT64, (2,), side)))
    failed = await refused(served, model(data), "did not load within 1 s")
    assert (failed.code, failed.blame, failed.retryable) == (FailureCode.LIMIT, Blame.USER, False)


async def test_constants_beyond_the_limit_are_not_computed_at_load(
    served: OnnxExecutor, model: Make
) -> None:
    shape = struct.pack("<2q", 1 << 20, 1 << 20)
    nodes = [
        Model.node("ConstantOfShape", ["shape"], ["huge"]),
        Model.node("ReduceSum", ["huge"], ["s"]),
        Model.node("Add", ["x", "s"], ["y"]),
    ]
    data = Model.whole(graph(nodes, Model.tensor("shape", INT64, (2,), shape)))
    await contained(served, model(data), {"x": floats(1)})


async def contained(onnx: OnnxExecutor, task: Task, inputs: dict[str, Value]) -> Failed:
    """Have a model refused at its load or failing at its run, by the fault of its author."""
    try:
        await onnx.start("bad", *task, {})
    except ExecutorFailure as error:
        failed = error.failed
    else:
        result = await onnx.invoke("bad", "c", inputs, BUDGET_MS)
        assert isinstance(result, Failed)
        failed = result
    await onnx.stop("bad")
    assert failed.text
    return failed


async def test_huge_and_impossible_shapes(served: OnnxExecutor, model: Make) -> None:
    for dims in ((1 << 62,), (1 << 31, 1 << 31), (-1,), (3, -5), (1 << 40, 0)):
        weights = Model.tensor("w", FLOAT, dims, bytes(16))
        data = Model.whole(graph([Model.node("Add", ["x", "w"], ["y"])], weights))
        failed = await contained(served, model(data), {"x": floats(1)})
        assert failed.blame is Blame.USER
        shape = struct.pack(f"<{len(dims)}q", *dims)
        nodes = [Model.node("Expand", ["x", "shape"], ["y"])]
        data = Model.whole(graph(nodes, Model.tensor("shape", INT64, (len(dims),), shape)))
        await contained(served, model(data), {"x": floats(1)})


@pytest.fixture
def tempting(tmp_path: Path) -> Path:
    """Return a file that looks like weights, in the working folder of the children."""
    folder = tmp_path / "empty"
    folder.chmod(0o700)
    secret = tmp_path / "secret"
    secret.write_bytes(struct.pack("<f", 42.0))
    (folder / "weights").write_bytes(secret.read_bytes())
    (folder / "link").symlink_to(secret)
    return secret


async def test_weights_in_other_files_are_refused_by_every_path(
    served: OnnxExecutor, model: Make, tempting: Path
) -> None:
    paths = ["weights", "./weights", "link", "../secret", str(tempting), "/proc/self/cwd/weights"]
    # The last one is the runtime's own word for an address in its memory.
    paths += ["/proc/self/fd/3", "file:///etc/passwd", "", "*/_ORT_MEM_ADDR_/*"]
    for where in paths:
        entry = (13, proto((1, "location"), (2, where)))
        usual = [(1, 1), (2, FLOAT), (8, "w"), entry, (14, 1)]
        for fields in (usual, usual[:-1], [*usual, entry, (14, 0)]):
            data = Model.whole(graph([Model.node("Add", ["x", "w"], ["y"])], proto(*fields)))
            failed = await refused(served, model(data), "weights in other files")
            assert failed.blame is Blame.USER


async def test_a_file_in_the_runtimes_own_format_is_refused(
    served: OnnxExecutor, model: Make, tmp_path: Path
) -> None:
    form = next((tmp_path / "optimised").glob("*.ort")).read_bytes()
    await refused(served, model(form), "own format")


async def test_a_file_larger_than_its_memory_is_refused(served: OnnxExecutor, model: Make) -> None:
    weights = Model.tensor("w", FLOAT, (1 << 19,), bytes(2 << 20))
    data = Model.whole(graph([Model.node("Add", ["x", "w"], ["y"])], weights))
    failed = await refused(served, model(data, limits=Limits(memory_bytes=1 << 20)), "memory limit")
    assert failed.code is FailureCode.LIMIT


async def test_an_old_operator_set_is_refused_with_the_reason(
    served: OnnxExecutor, model: Make
) -> None:
    nodes = graph([Model.node("Add", ["x", "x"], ["y"])])
    data = proto((1, 3), (7, nodes), *operator_sets(("", 6)))
    failed = await refused(served, model(data), "has no Add of operator set 6: convert")
    assert (failed.blame, failed.retryable) == (Blame.USER, False)


async def test_old_models_of_the_onnx_package_are_refused_with_the_reason(
    served: OnnxExecutor, model: Make
) -> None:
    spec = importlib.util.find_spec("onnx")
    if spec is None or spec.origin is None:
        pytest.skip("the package onnx is not installed")
    folder = Path(spec.origin).parent / "backend" / "test" / "data" / "pytorch-operator"
    reasons = []
    for path in sorted(folder.glob("*/model.onnx")):
        failed = await refused(served, model(path.read_bytes()))
        assert failed.blame is Blame.USER
        reasons.append(failed.text)
    assert sum("convert the model to a newer operator set" in one for one in reasons) > 5


async def test_inputs_that_are_not_what_they_say(
    served: OnnxExecutor, shelf: Shelf, blobs: Path
) -> None:
    path, ref = shelf.put(bytes(400))
    path.rename(blobs / path.name)
    bad: list[dict[str, Value]] = [
        {},
        {"x": floats(1), "z": floats(1)},
        {"x": Bytes(Dtype.INT64, (1,), bytes(8))},
        {"x": Bytes(Dtype.FLOAT32, (1, 1), bytes(4))},
        {"x": Bytes(Dtype.FLOAT32, (1 << 60,), bytes(4))},
        {"x": Bytes(Dtype.FLOAT32, (2,), bytes(4))},
        {"x": Bytes(Dtype.FLOAT32, (1 << 20,), bytes(4 << 20))},
        {"x": File(Dtype.FLOAT32, (100,), "sha256:../../secret", 400)},
        {"x": File(Dtype.FLOAT32, (100,), f"sha256:{'0' * 64}", 400)},
        {"x": File(Dtype.FLOAT32, (1 << 40,), ref.digest, 4 << 40)},
        {"x": File(Dtype.FLOAT32, (99,), ref.digest, 396)},
    ]
    for inputs in bad:
        result = await served.invoke("good", "c", inputs, BUDGET_MS)
        assert isinstance(result, Failed), inputs
        assert result.code in {FailureCode.BAD_INPUT, FailureCode.FETCH}


async def test_what_runs_models_is_confined(served: OnnxExecutor) -> None:
    worker = served._instances["good"].pid
    (loader,) = [one.pid for one in served._models.loaded.values()]
    for pid in (loader, worker):
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
        about = dict(line.split(":\t", 1) for line in lines if ":\t" in line)
        assert about["NoNewPrivs"] == "1"
        assert about["Seccomp"] == "2"
        assert int(about["CapEff"], 16) == int(about["CapPrm"], 16) == 0
        limits = Path(f"/proc/{pid}/limits").read_text(encoding="ascii")
        assert "Max core file size        0 " in limits
    info = await served.probe()
    stats = await served.stats("good")
    assert info is not None
    assert stats is not None
    assert (info.security, stats.remark) == ("strong", "")


def bases() -> list[tuple[bytes, tuple[Port, ...]]]:
    """Return small models of many kinds of field, and their inputs."""
    loop_body = Model.graph(
        [Model.node("Identity", ["again"], ["more"]), Model.node("Add", ["v", "v"], ["w"])],
        [Model.value("i", INT64), Model.value("again", BOOL), Model.value("v", FLOAT, "n")],
        [Model.value("more", BOOL), Model.value("w", FLOAT, "n")],
    )
    times = Model.tensor("times", INT64, (), struct.pack("<q", 3))
    truth = Model.tensor("truth", BOOL, (), b"\1")
    loop = Model.node("Loop", ["times", "truth", "x"], ["y"], Model.subgraph("body", loop_body))
    weights = Model.tensor("w", FLOAT, (4,), struct.pack("<4f", 1, 2, 3, 4))
    axes = Model.tensor("axes", INT64, (1,), struct.pack("<q", 0))
    shape = Model.tensor("shape", INT64, (2,), struct.pack("<2q", -1, 4))
    nodes = [
        Model.node("Unsqueeze", ["x", "axes"], ["u"]),
        Model.node("Reshape", ["u", "shape"], ["r"]),
        Model.node("Mul", ["r", "w"], ["p"]),
        Model.node("Softmax", ["p"], ["q"]),
        Model.node("ReduceSum", ["q", "axes"], ["y"], Model.number("keepdims", 0)),
    ]
    return [
        (GOOD, X),
        (Model.whole(graph([loop], times, truth)), X),
        (Model.whole(graph(nodes, weights, axes, shape)), X),
        (bomb(inner(3, 2)), X),
    ]


def mutated(data: bytes, chance: random.Random) -> bytes:
    """Return a model with a few bytes changed, cut, doubled or moved."""
    out = bytearray(data)
    for _ in range(chance.choice((1, 1, 1, 2, 8))):
        at = chance.randrange(len(out))
        match chance.choice((0, 0, 0, 0, 1, 2, 3, 4, 5)):
            case 0:
                out[at] ^= 1 << chance.randrange(8)
            case 1:
                out[at] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
            case 2:
                out[at:at] = chance.randbytes(chance.randrange(1, 9))
            case 3:
                del out[at : at + chance.randrange(1, 17)]
            case 4:
                out[at:at] = out[at : at + chance.randrange(1, 65)]
            case _:
                out[at : at + 10] = b"\xff" * 9 + b"\x01"
        if not out:
            return b"\0"
    return bytes(out)


@pytest.mark.timeout(1200)
async def test_mutated_models_break_nothing(
    served: OnnxExecutor, model: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "LOAD_TIMEOUT_S", 20.0)
    kinds = bases()
    limits = Limits(memory_bytes=64 << 20, deadline_ms=3000, output_bytes=1 << 20)
    inputs: dict[str, Value] = {"x": floats(*range(8))}
    for data, ports in kinds:
        await served.start("kind", *model(data, inputs=ports), {})
        assert isinstance(await served.invoke("kind", "c", inputs, BUDGET_MS), Done)
        await served.stop("kind")
    outcomes = {"refused": 0, "failed": 0, "ran": 0}

    async def attempt(number: int) -> str:
        chance = random.Random(SEED + number)
        data, ports = kinds[number % len(kinds)]
        name = f"mutant-{number}"
        try:
            task = model(mutated(data, chance), inputs=ports, limits=limits)
            await served.start(name, *task, {})
        except ExecutorFailure:
            return "refused"
        result = await served.invoke(name, "c", inputs, BUDGET_MS)
        await served.stop(name)
        return "ran" if isinstance(result, Done) else "failed"

    side_by_side = asyncio.Semaphore(2)

    async def bounded(number: int) -> None:
        async with side_by_side:
            outcomes[await attempt(number)] += 1

    await asyncio.gather(*map(bounded, range(MUTANTS)))
    assert sum(outcomes.values()) == MUTANTS
    assert outcomes["refused"] > MUTANTS // 4
    assert outcomes["ran"] > MUTANTS // 50
