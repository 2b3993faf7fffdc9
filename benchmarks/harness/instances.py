"""Random instances of placement, each from its own seed: uneven fleets on which tasks compete."""

import random
from typing import Final

from msgspec import structs

from controller.anchor.placement import NodeFacts, Request, Snapshot
from controller.anchor.placement.columns import PROCESSOR
from controller.records import FigureRecord, Line
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Limits, Manifest, Port
from protocols.messages.hierarchy import Demand, NodeState, TaskQos, TaskSpec
from protocols.messages.invocation import REQUEST, Edge
from protocols.messages.presence import Accelerator, ExecutorInfo, Inventory
from protocols.messages.quality import Declared, Variant
from protocols.messages.task import Deviceless

MB: Final = 1 << 20
ARTIFACT: Final = ArtifactRef("sha256:" + "0" * 64, 1)
SIZES: Final = (16, 1024, 16 * 1024, 200 * 1024, 2 * MB)
"""Bytes of what tasks hand on: a number, a text, a small picture, a large one, a tensor."""
FEW: Final = 100
"""In fleets smaller than this, some tasks name their nodes."""
NAMED: Final = 0.15
ACCELERATED: Final = 0.1
RUNNING: Final = 0.15
"""Shares of the tasks: that name nodes, that ask for a GPU, that run already."""


def manifest(kind: str, memory_mb: int, size: int) -> Manifest:
    """Return a manifest with one input and one output of this size."""
    port = Port("x", Dtype.UINT8, (size,))
    limits = Limits(memory_bytes=memory_mb * MB)
    return Manifest(ExecutorKind(kind), ARTIFACT, (port,), (port,), limits)


SMALL: Final = Variant("small", manifest("wasm", 16, SIZES[1]), accuracy_percent=80.0)
ACCURATE: Final = (Declared("accuracy_percent", 95.0),)
GPU_PROVIDER: Final = "GpuExecutionProvider"
MEASURED: Final = 0.6
FOLLOWING: Final = 0.3
TIGHT: Final = 0.4
"""Shares of the tasks with forms: measured on a node, deviceless, with a latency to keep."""


def facts(chance: random.Random, name: str, cell: str) -> NodeFacts:
    """Return a node of an uneven fleet: boards, gateways and servers over wire and radio."""
    cores, memory_mb, load, trip = chance.choice(
        ((2, 512, 40, 25.0), (4, 1024, 50, 8.0), (4, 2048, 70, 3.0), (8, 4096, 60, 1.0))
    )
    kinds = ("wasm", "onnx") if chance.random() < 0.8 else ("wasm",)
    gpu = (Accelerator("gpu", "g"),) if chance.random() < 0.25 else ()
    inventory = Inventory(
        "generic",
        "x86_64",
        "linux",
        cores,
        8 << 30,
        1 << 40,
        gpu,
        tuple(ExecutorInfo(kind, "1", _providers(kind, gpu)) for kind in kinds),
        task_memory_bytes=int(memory_mb * chance.uniform(0.3, 1.0)) * MB,
        max_instances=chance.randint(2, 16),
    )
    trip *= chance.uniform(0.5, 2.0)
    mbit = chance.choice((None, 10.0, 50.0, 100.0, 1000.0))
    online = NodeState.ONLINE if chance.random() < 0.95 else NodeState.LOST
    busy = chance.uniform(0.0, load)
    return NodeFacts(name, online, inventory, busy, trip, cell, mbit)


def _providers(kind: str, gpu: tuple[Accelerator, ...]) -> tuple[str, ...]:
    if kind != ExecutorKind.ONNX:
        return ()
    return (GPU_PROVIDER, PROCESSOR) if gpu else (PROCESSOR,)


def instance(
    seed: int,
    tasks: int,
    nodes: int,
    *,
    cells: int = 1,
    variants: float = 0.0,
    tight: float = 1.0,
    forms: float = 0.0,
) -> tuple[list[Request], Snapshot]:
    """Return the tasks of one service, a DAG with groups, and a fleet that holds others already.

    `variants` is the share of tasks that have a less accurate one, `forms` of those that have
    other forms, measured on some nodes; `tight` scales what tasks ask of memory.
    """
    chance = random.Random(seed)  # noqa: S311 - nothing is kept secret with it
    fleet = tuple(facts(chance, f"n{at:05}", f"ts-{at % cells}") for at in range(nodes))
    names = [one.node for one in fleet]
    reserved = {name: chance.randrange(200) * MB for name in names if chance.random() < 0.3}
    counted = {name: chance.randint(1, 2) for name in reserved}
    asked = {name: chance.uniform(5.0, 80.0) for name in reserved}
    requests: list[Request] = []
    group = ""
    for at in range(tasks):
        sources = chance.sample(range(at), min(at, chance.choice((0, 1, 1, 1, 2))))
        edges = tuple(Edge(f"x{one}", f"t{one:02}", "x") for one in sources)
        group = chance.choice(("", "", "g", group)) if at else ""
        few = nodes < FEW and chance.random() < NAMED
        spec = TaskSpec(
            f"s.t{at:02}",
            f"t{at:02}",
            manifest(
                chance.choice(("wasm", "wasm", "wasm", "onnx", "onnx")),
                int(tight * chance.choice((32, 64, 128, 256, 400))),
                chance.choice(SIZES),
            ),
            edges or (Edge("x", REQUEST, "x"),),
            demand=Demand(
                chance.choice((2.0, 10.0, 40.0, 100.0)),
                "gpu" if not group and chance.random() < ACCELERATED else "",
            ),
            nodes=tuple(chance.sample(names, 2 * nodes // 3)) if few else (),
            variants=(SMALL,) if chance.random() < variants else (),
            declared=ACCURATE,
            expected_ms=chance.choice((0.5, 2.0, 10.0, 40.0, 150.0)),
            group=group,
        )
        current = chance.choice(names) if chance.random() < RUNNING else ""
        requests.append(Request(spec, chance.choice((0, 1)), current))
    snapshot = Snapshot(1, fleet, reserved, asked, counted)
    return _formed(chance, requests, snapshot, forms) if forms else (requests, snapshot)


def _formed(
    chance: random.Random, requests: list[Request], snapshot: Snapshot, share: float
) -> tuple[list[Request], Snapshot]:
    """Give a share of the tasks another form each, at times with two providers."""
    figures: dict[tuple[str, str], dict[str, FigureRecord]] = {}
    made = []
    for request in requests:
        if chance.random() >= share:
            made.append(request)
            continue
        spec = request.spec
        kind = "onnx" if spec.manifest.kind is ExecutorKind.WASM else "wasm"
        other = manifest(kind, chance.choice((16, 64, 256)), 16)
        digest = f"sha256:{len(made):064x}"
        other = structs.replace(
            other,
            artifact=ArtifactRef(digest, 1),
            inputs=spec.manifest.inputs,
            outputs=spec.manifest.outputs,
            providers=(GPU_PROVIDER, PROCESSOR) if chance.random() < MEASURED else (),
        )
        form = Variant("form", other, 95.0, chance.choice((0.5, 5.0, 60.0)))
        for node in snapshot.nodes:
            for provider in (GPU_PROVIDER, PROCESSOR, ""):
                if chance.random() < MEASURED:
                    known = _figure(chance, digest, provider, node)
                    figures.setdefault((digest, provider), {})[node.node] = known
        qos = TaskQos(chance.choice((2.0, 20.0, 100.0)) if chance.random() < TIGHT else None)
        following = Deviceless() if chance.random() < FOLLOWING else None
        spec = structs.replace(spec, variants=(form,), qos=qos, deviceless=following)
        program = chance.choice((("", ""), ("form", ""))) if request.current else None
        rate = chance.choice((0.0, 0.01, 1.0))
        made.append(structs.replace(request, spec=spec, program=program, per_s=rate))
    return made, structs.replace(snapshot, figures=figures)


def _figure(chance: random.Random, digest: str, provider: str, node: NodeFacts) -> FigureRecord:
    line = Line(8.0, 1000.0, chance.choice((0.2, 2.0, 30.0)) * chance.uniform(0.5, 2.0))
    start, held = chance.choice((1.0, 30.0, 400.0)), chance.randrange(64) * MB
    return FigureRecord(
        *(digest, provider, node.node, node.inventory.profile, line),
        start_ms=start,
        wake_ms=start * chance.random(),
        memory_bytes=held + chance.randrange(64) * MB,
        held_bytes=held,
        tried=True,
    )
