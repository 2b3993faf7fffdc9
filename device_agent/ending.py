"""The outermost edge of the daemon's process: every end is one line and an exit code.

0 ended in order; 2 a wrong argument or configuration; 69 something the daemon needs is not to be
had; 70 a fault of ours, with its trace in the data folder. No traceback reaches the user.
"""

import contextlib
import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Final

from protocols.errors import EnvironmentFailure, UserError

WRONG_USE: Final = 2
TRACE: Final = "fault.txt"


def to_the_end(work: Callable[[], None], folder: Callable[[], Path | None]) -> int:
    """Do the work of a process; return its exit code. `folder` takes the trace of a fault."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    try:
        work()
    except UserError as error:
        return _tell(str(error), WRONG_USE)
    except EnvironmentFailure as error:
        return _tell(str(error), os.EX_UNAVAILABLE)
    except KeyboardInterrupt:
        return 0
    except Exception as error:  # noqa: BLE001 - the process's outermost edge
        where = _keep_trace(folder())
        told = f"a fault of ours ends it: {type(error).__name__}: {error}{where}"
        return _tell(told, os.EX_SOFTWARE)
    return 0


def _tell(text: str, code: int) -> int:
    # A log without room takes nothing from the code.
    with contextlib.suppress(OSError):
        print(f"device agent: {text}", file=sys.stderr, flush=True)  # noqa: T201 - a person started us
    return code


def _keep_trace(folder: Path | None) -> str:
    """Write the trace of the present fault where a report can take it from."""
    if folder is None:
        return ""
    path = folder / TRACE
    try:
        path.write_text(traceback.format_exc(), encoding="utf-8")
    except OSError:
        return ""
    return f" (trace in {path})"
