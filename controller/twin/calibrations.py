"""Calibrations on a simulated machine: they take their time, and find what runs there take."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from msgspec import structs

from device_agent.core import commands, events
from protocols.manifest import Manifest, tensor_bytes
from protocols.messages.calibration import Calibrate, Calibrated, Measured

if TYPE_CHECKING:
    from controller.twin.node import SimNode

END_MS: Final = 1
WAKE_MS: Final = 1.0
RUNS: Final = 8
MEMORY_PART, HELD_PART = 4, 8
"""Of a program's limit: what its instance takes, and the process that holds it."""


class Calibrations:
    """The bench of one node."""

    def __init__(
        self, node: "SimNode", start_ms: int, run_ms: Callable[[str, Manifest], float]
    ) -> None:
        self._node = node
        self._start_ms = start_ms
        self._run_ms = run_ms
        self._asked: Calibrate | None = None

    def begin(self) -> None:
        """Begin a life of the node: nothing is measured."""
        self._asked = None

    def act(
        self, command: commands.RunCalibration | commands.EndCalibration, *, broken: bool
    ) -> None:
        """Begin a calibration, or end the one that runs; on a `broken` machine nothing starts."""
        if isinstance(command, commands.RunCalibration):
            asked = self._asked = command.asked
            took_ms = self._start_ms + RUNS * self._run_ms(asked.task, asked.manifest)
            self._node.later(took_ms, partial(self._over, asked, broken=broken))
        elif self._asked is not None:
            told = structs.replace(_answer(self._asked), refused=command.reason, passing=True)
            self._asked = None
            self._node.later(END_MS, partial(self._node.tell, events.CalibrationEnded(told)))

    def _over(self, asked: Calibrate, *, broken: bool) -> None:
        if self._asked is not asked:
            return
        self._asked = None
        told = structs.replace(_answer(asked), refused="the runtime does not start")
        if not broken:
            memory_bytes = asked.manifest.limits.memory_bytes
            told = structs.replace(
                told,
                refused="",
                runs=tuple(self._measured(asked, at) for at in range(len(asked.runs))),
                start_ms=float(self._start_ms),
                wake_ms=WAKE_MS,
                memory_bytes=memory_bytes // MEMORY_PART,
                held_bytes=memory_bytes // HELD_PART,
            )
        self._node.tell(events.CalibrationEnded(told))

    def _measured(self, asked: Calibrate, at: int) -> Measured:
        size = sum(tensor_bytes(one.dtype, one.shape) for one in asked.runs[at])
        return Measured(size, self._run_ms(asked.task, asked.manifest))


def _answer(asked: Calibrate) -> Calibrated:
    return Calibrated(asked.number, asked.anchor, asked.node)
