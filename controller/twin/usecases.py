"""Use cases for simulated fleets, as a user would write them."""

from enum import StrEnum
from typing import Any, Final

LATENCY_MS: Final = 2000
"""What a tight service allows; its nodes sample several times within each task's share of it."""
RAW_NODES: Final = ("node-0000", "node-0002", "node-0004")
"""Where raw input that may not leave its node comes to be; of one cell where there are two."""
_PORT: Final = {"dtype": "uint8", "shape": [-1]}


class Flavour(StrEnum):
    """What is special about a service."""

    PLAIN = "plain"
    TIGHT = "tight"
    """Bounds its latency; each task has a lighter variant, and another form."""
    PRIVATE = "private"
    """Its raw input may not leave the nodes where it comes to be."""
    ORIGINAL = "original"
    """A task goes back to the node that it was lost with."""
    PATIENT = "patient"
    """A task waits for the node that it was lost with."""


def chain(
    number: int,
    steps: int,
    version: int = 0,
    flavour: Flavour = Flavour.PLAIN,
    *,
    remembers: bool = False,
) -> dict[str, Any]:
    """Return a use case of one service: `steps` Wasm tasks in a row over a byte vector.

    `remembers`: each run of a task adds to its memory; it has no variants.
    """
    tasks = [_task(number, at, version, flavour) for at in range(steps)]
    for task in tasks if remembers else ():
        task["functions"] = ["memory"]
        task["limits"] = {"state_bytes": 1 << 20}
        # What a module remembers is of no use to a model.
        task.pop("variants", None)
    zone: dict[str, Any] = {}
    if flavour is Flavour.TIGHT:
        zone["latency_ms"] = {"at_most": LATENCY_MS}
    if flavour is Flavour.PRIVATE:
        zone["data_privacy"] = {"level": "node"}
        tasks[0]["nodes"] = list(RAW_NODES)
    service = {
        "name": f"service-{number}",
        "kind": "computing",
        "outputs": {"x": f"step{steps - 1}.x"},
        "tasks": tasks,
        "sla": {"zone": zone},
    }
    return {"name": f"usecase-{number}", "services": [service]}


def _task(number: int, at: int, version: int, flavour: Flavour) -> dict[str, Any]:
    source = {"from": "request.x", **_PORT} if at == 0 else {"from": f"step{at - 1}.x"}
    task: dict[str, Any] = {
        "name": f"step{at}",
        "executor": "wasm",
        "artifact": _artifact(number, version),
        "inputs": {"x": source},
        "outputs": {"x": _PORT},
    }
    if flavour is Flavour.TIGHT:
        task["expected_ms"], task["accuracy_percent"] = 20.0, 95.0
        lighter, graph = _artifact(number, version + 1000), _artifact(number, version + 2000)
        task["variants"] = [
            {"name": "light", "artifact": lighter, "expected_ms": 5.0, "accuracy_percent": 90.0},
            {
                "name": "graph",
                "executor": "onnx",
                "artifact": graph,
                "expected_ms": 20.0,
                "accuracy_percent": 95.0,
            },
        ]
    if flavour is Flavour.ORIGINAL:
        task["policy"] = {"reconcile": "keep-original"}
    if flavour is Flavour.PATIENT:
        task["policy"] = {"replace": False}
    return task


def _artifact(number: int, version: int) -> dict[str, Any]:
    return {"digest": f"sha256:{version:032x}{number:032x}", "size_bytes": 1000}
