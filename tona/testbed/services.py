"""The services of a run: one for each node that moves, an echo of eight bytes in Wasm."""

import json
from pathlib import Path
from typing import Any, Final

from controller.records import TaskState
from protocols.messages.hierarchy import NodeState
from tona.bundle import bundle
from tona.cli.api import Api
from tona.cli.follow import NODES, TASKS, Things, until
from tona.testbed.bed import SENSOR, SENSOR_BYTES
from tona.testbed.choices import Ask
from tona.testbed.identities import Identities
from tona.testbed.plan import Spec

USE_CASE: Final = "testbed"
ONLINE_S: Final = 60.0
RUNNING_S: Final = 120.0
ECHO: Final = """
(module
  (memory (export "memory") 16)
  (func (export "tona_alloc") (param i32) (result i32) (i32.const 1024))
  (func (export "tona_run") (param $in i32) (param i32) (param $out i32) (param i32) (result i32)
    (memory.copy (local.get $out) (local.get $in) (i32.const 48))
    (i32.const 0)))
"""
"""The description of its only output is that of its only input."""


def service_of(node: str) -> str:
    """Return the name of the service of a node."""
    return f"for-{node}"


def document(spec: Spec, ask: Ask, per_s: float) -> str:
    """Return the use case; the module lies beside it as `echo.wasm`. Pure."""
    edges = list(spec.edge_nodes)
    services: list[dict[str, Any]] = [
        {
            "name": service_of(node),
            "kind": "computing",
            "spares": len(edges) - 1 if ask is Ask.EDGE else 0,
            "outputs": {"y": "echo.y"},
            "tasks": [
                {
                    "name": "echo",
                    "executor": "wasm",
                    "artifact": "echo.wasm",
                    "nodes": edges if ask is Ask.EDGE else [node],
                    "limits": {"memory_bytes": 2 << 20},
                    "demand": {"cpu_percent": 0},
                    "expected_ms": 1,
                    "inputs": {"x": {"from": "request.x", "dtype": "uint8", "shape": [-1]}},
                    "outputs": {"y": {"dtype": "uint8", "shape": [-1]}},
                }
            ],
        }
        for node in spec.node_names
    ]
    if ask is Ask.OWN:
        for node, service in zip(spec.node_names, services, strict=True):
            source = {"kind": "sensor", "name": SENSOR, "nodes": [node], "rate_per_s": per_s}
            service["sources"] = {"x": {**source, "dtype": "uint8", "shape": [SENSOR_BYTES]}}
    return json.dumps({"name": USE_CASE, "services": services})


async def deploy(
    api: Api, spec: Spec, ask: Ask, per_s: float, folder: Path, identities: Identities | None
) -> dict[str, str]:
    """Submit the services and wait until all of them run; return the cell of each.

    Raises UserError, EnvironmentFailure.
    """
    from wasmtime import wat2wasm  # noqa: PLC0415 - slow to import

    names = {*spec.node_names, *spec.edge_nodes}
    await until(api, NODES, lambda seen: _online(seen, names), ONLINE_S, "not every node is online")
    place = folder / "services"
    place.mkdir()
    (place / "echo.wasm").write_bytes(bytes(wat2wasm(ECHO)))
    (place / "usecase.json").write_text(document(spec, ask, per_s), encoding="utf-8")
    made = bundle(place / "usecase.json")
    for file in made.files:
        await api.push(file, lambda _: None)
    if identities is not None:
        await identities.sign(api, made.files)
    await api.call("usecase.submit", document=made.document, format=made.notation)
    wanted = spec.nodes
    done = await until(
        api, TASKS, lambda tasks: _run(tasks, wanted), RUNNING_S, "not every service runs"
    )
    return {one.service: one.scheduler.removeprefix("ts-") for one in done.values()}


def _online(nodes: Things, names: set[str]) -> bool:
    return all(one in nodes and nodes[one].state is NodeState.ONLINE for one in names)


def _run(tasks: Things, count: int) -> bool:
    return len(tasks) == count and all(one.state is TaskState.RUNNING for one in tasks.values())
