"""Being told to end while a process begins: it waits until imports are done, then ends in order.

An exception out of a handler in the middle of an import shows its trace, or kills an extension
module that is just being made. The daemon has handlers of its own once its loop runs.
"""

import signal
from types import FrameType
from typing import Final

ENDS: Final = frozenset({signal.SIGINT, signal.SIGTERM})


def put_off() -> None:
    """Let what tells us to end wait, also over an exec, until `hear` or `heed`."""
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)


def hear() -> None:
    """Be told from now on, and of what waited."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDS)


def heed() -> None:
    """From now on, and for what waited, end with code 0."""
    for number in ENDS:
        signal.signal(number, _end)
    hear()


def _end(_number: int, _frame: FrameType | None) -> None:
    raise SystemExit(0)
