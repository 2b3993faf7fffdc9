"""The tasks of this node and what it says of them: statuses, holdings, tombstones."""

from typing import Final

from msgspec import structs

from device_agent.core.commands import Forget
from device_agent.core.instances import Held, Instance
from device_agent.core.outbox import Outbox
from device_agent.core.turn import Turn
from protocols.messages.presence import Holding
from protocols.messages.task import InstanceState, Status

TOMBSTONES_MAX: Final = 1024
BESIDE_MAX: Final = 32
"""Tasks of which a birth tells what serves beside what is prepared, so that it fits its frame."""
_State = InstanceState


class Tasks:
    """What is held by task, and up to which epoch what is not held was released."""

    def __init__(self, turn: Turn, outbox: Outbox) -> None:
        self._turn = turn
        self._outbox = outbox
        self.held: dict[str, Held] = {}
        self.tombstones: dict[str, int] = {}

    def bury(self, task: str, epoch: int, cause: str) -> None:
        """Journal that a task was released up to an epoch."""
        self._turn.out.append(Forget(task, epoch, cause))
        self.tombstones.pop(task, None)
        self.tombstones[task] = epoch
        if len(self.tombstones) > TOMBSTONES_MAX:
            del self.tombstones[next(iter(self.tombstones))]

    def close(self, task: str, held: Held) -> bool:
        """Let go of a released task when its last instance has ended; return whether it has."""
        over = held.released and not held.retiring and held.shown is None
        if over:
            del self.held[task]
        return over

    def holdings(self) -> tuple[Holding, ...]:
        """Return what a birth says of the tasks of this node."""
        found = []
        beside = 0
        for task, held in self.held.items():
            one, old = held.shown, held.current
            if one is None or held.released:
                continue
            holding = Holding(
                task, one.epoch, one.state, one.generation, one.tuning, origin=one.awaits
            )
            if old is not None and held.serving_epoch and beside < BESIDE_MAX:
                beside += 1
                holding = structs.replace(
                    holding,
                    serving_epoch=old.epoch,
                    serving_generation=old.generation,
                    serving_tuning=old.tuning,
                )
            found.append(holding)
        return tuple(found)

    def tell(self, task: str, cause: str) -> None:
        """Post the present status of a task."""
        held = self.held.get(task)
        if held is None or held.released:
            epoch = self.tombstones.get(task)
            if epoch is not None:
                generation = held.assign.generation if held else 0
                state = _State.DRAINING if held else _State.STOPPED
                self._outbox.post(Status(0, task, epoch, state, generation=generation), cause)
            return
        instance = held.shown
        if instance is not None:
            status = Status(
                0,
                task,
                instance.epoch,
                instance.state,
                instance.reason or _remark(instance),
                instance.blame,
                instance.restarts,
                instance.memory_bytes,
                instance.generation,
                held.tuned[1],
                held.serving_epoch,
                instance.awaits.epoch if instance.awaits is not None else 0,
                instance.remembers,
            )
            self._outbox.post(status, cause)


def _remark(instance: Instance) -> str:
    """Say what of an assignment a node does not give; empty when it gives all."""
    said = [instance.remark] if instance.remark else []
    if instance.replicas < instance.wanted:
        said.append(
            f"{instance.replicas} of {instance.wanted} workers: the node's memory for tasks holds "
            "no more"
        )
    return "; ".join(said)
