"""Loads a model within its task's memory limit, or says how much would have been enough.

What a model takes cannot be told from its file: it depends on what the runtime prepares of it. So
one that does not load within the limit is loaded a few times within more, to tell its author what
to ask for. The limit is the soft one of the process; how much more it may become is the hard one.
Standard library only.
"""

from __future__ import annotations

import gc
import resource
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final, TypeVar

if TYPE_CHECKING:
    from device_agent.executors.programs import resting
    from device_agent.executors.programs.stream import Refusal
else:
    import resting
    from stream import Refusal

TRIES: Final = 3
"""Each halves what is not known of how much is enough."""
SEARCH_S: Final = 20.0
"""No try begins so long after loading was asked for, or who waits for it would give up first."""
STEP_BYTES: Final = 1 << 20
OWN_BYTES: Final = 1 << 20
"""What a model has to leave of its limit: its process tells how it went, and takes calls."""

_Loaded = TypeVar("_Loaded")


def load(limit_bytes: int, within: Callable[[], _Loaded], asked_s: float) -> _Loaded:
    """Load within the soft limit, for ever from now on. Raises Refusal with what is enough.

    `asked_s`: when it was asked for, of the monotonic clock.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    loaded = _attempt(within)
    if loaded is not None:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, soft))
        return loaded
    text = f"the model does not load within the task's memory limit of {limit_bytes} bytes"
    until_s = asked_s + SEARCH_S
    if time.monotonic() >= until_s:
        raise Refusal("limit", "user", f"{text}: raise limits.memory_bytes")
    # What an attempt leaves behind counts in the next one.
    resting.map_large()

    def enough(more_bytes: int) -> bool:
        gc.collect()
        resting.give_back()
        resource.setrlimit(resource.RLIMIT_DATA, (soft + more_bytes, hard))
        return _attempt(within) is not None

    too_few, most = 0, hard - soft
    if not enough(most):
        text += f", nor within {most} more: raise limits.memory_bytes, or make the model smaller"
        raise Refusal("limit", "user", text)
    for _ in range(TRIES):
        more = (too_few + most) // 2 // STEP_BYTES * STEP_BYTES
        if more <= too_few or time.monotonic() >= until_s:
            break
        too_few, most = (too_few, more) if enough(more) else (more, most)
    wanted = -(-(limit_bytes + most) // STEP_BYTES) * STEP_BYTES
    text += f": set limits.memory_bytes to {wanted} and what its runs take"
    raise Refusal("limit", "user", text)


def _attempt(within: Callable[[], _Loaded]) -> _Loaded | None:
    """Load; None where memory ended. Raises Refusal for another reason."""
    try:
        left = bytearray(OWN_BYTES)
        loaded = within()
        del left
    except MemoryError:
        return None
    except Refusal as refusal:
        if refusal.answer[0] != "limit":
            raise
        return None
    return loaded
