"""From whom a neighbour may fetch: who shares, serves a task with the artifact, and is there."""

from typing import Any

import pytest
from msgspec import structs

from controller.api.holders import holders
from controller.api.stored import HoldersOf
from controller.decider import Record, View
from controller.records import FLEET, TASK, NodeView, TaskRecord, TaskState
from controller.registry import Registry
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Manifest, Port
from protocols.messages.hierarchy import NodeState, TaskSpec
from protocols.messages.presence import Inventory
from protocols.messages.sense import LoadReport

HEX = "ab" * 32


def task(node: str, state: TaskState = TaskState.RUNNING, hex_: str = HEX) -> Record:
    manifest = Manifest(
        ExecutorKind.WASM,
        ArtifactRef(f"sha256:{hex_}", 1),
        (),
        (Port("y", Dtype.UINT8, (-1,)),),
    )
    spec = TaskSpec(f"s.{node}", "t", manifest)
    record = TaskRecord(spec, "s", "default", 1, state, node=node)
    return Record(TASK, spec.task, record, "c")


def node(name: str, cpu_percent: float, **more: Any) -> View:
    given = {"share_url": f"http://{name}:1", "state": NodeState.ONLINE, **more}
    inventory = Inventory("generic", "x86_64", "linux", 4, 1 << 30, 1 << 40)
    load = LoadReport(0, cpu_percent)
    view = NodeView(name, given["state"], "ts", inventory, load=load)
    return View(FLEET, name, structs.replace(view, share_url=given["share_url"]))


@pytest.fixture
def registry() -> Registry:
    one = Registry("e")
    one.apply([task("busy"), task("idle"), task("me"), task("other", hex_="cd" * 32)])
    one.apply([task("gone"), task("silent"), task("coming", TaskState.PLACED)])
    one.apply(
        [
            node("busy", 90.0),
            node("idle", 1.0, state=NodeState.DRAINING),
            node("me", 0.0),
            node("other", 0.0),
        ]
    )
    one.apply([node("gone", 0.0, state=NodeState.LOST), node("silent", 0.0, share_url="")])
    one.apply([node("coming", 0.0)])
    return one


def test_the_least_loaded_comes_first_and_the_asker_never(registry: Registry) -> None:
    assert holders(HoldersOf(HEX, but="me"), registry) == ["http://idle:1", "http://busy:1"]


def test_nobody_has_what_nobody_runs(registry: Registry) -> None:
    assert holders(HoldersOf("ef" * 32), registry) == []
