"""Which nodes a neighbour may fetch an artifact from. Pure."""

from typing import Final

from controller.api.stored import HoldersOf
from controller.records import FLEET, TASK, NodeView, TaskRecord, TaskState
from controller.registry import Registry
from protocols.messages.hierarchy import NodeState

HOLDERS_MAX: Final = 8
_SERVES: Final = frozenset({TaskState.READY, TaskState.RUNNING, TaskState.MODIFYING})
_THERE: Final = (NodeState.ONLINE, NodeState.DRAINING)


def holders(arguments: HoldersOf, registry: Registry) -> list[str]:
    """Return where to ask, least loaded first: nodes that share and run a task with it.

    A node may have given the artifact up since: whoever asks goes on to the next one.
    """
    digest = f"sha256:{arguments.hex}"
    running: list[TaskRecord] = registry.list(
        TASK, where=lambda one: one.state in _SERVES and _names(one, digest)
    )
    nodes = {one.node for one in running} - {"", arguments.but}
    views = (registry.get(FLEET, one) for one in nodes)
    found = [one for one in views if one is not None and one.share_url and one.state in _THERE]
    return [one.share_url for one in sorted(found, key=_load)[:HOLDERS_MAX]]


def _names(task: TaskRecord, digest: str) -> bool:
    spec = task.spec
    return any(
        one.artifact.digest == digest or any(beside.digest == digest for beside in one.beside)
        for one in (spec.manifest, *(variant.manifest for variant in spec.variants))
    )


def _load(view: NodeView) -> tuple[float, str]:
    return view.load.cpu_percent if view.load is not None else 0.0, view.node
