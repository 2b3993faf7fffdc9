"""Small makers of things that many tests need."""

from typing import Any

from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Manifest, Port
from protocols.messages.hierarchy import TaskSpec
from protocols.messages.invocation import REQUEST, Edge
from protocols.messages.presence import ExecutorInfo, Inventory

INVENTORY = Inventory(
    "generic-x86-64",
    "x86_64",
    "linux",
    4,
    8 << 30,
    1 << 40,
    executors=(ExecutorInfo("wasm", "1"), ExecutorInfo("onnx", "1")),
    task_memory_bytes=4 << 30,
)
PORT = Port("x", Dtype.UINT8, (-1,))


def manifest(kind: ExecutorKind = ExecutorKind.WASM, **changes: Any) -> Manifest:
    """Return a manifest of one uint8 vector in and out."""
    return Manifest(kind, ArtifactRef("sha256:" + "0" * 64, 1), (PORT,), (PORT,), **changes)


def task_spec(task: str = "svc.a", source: str = REQUEST, **changes: Any) -> TaskSpec:
    """Return a task that takes `x` from a step or the request and gives `x`."""
    step = task.rsplit(".", maxsplit=1)[-1]
    program = changes.pop("manifest", None) or manifest()
    return TaskSpec(task, step, program, (Edge("x", source, "x"),), **changes)
