"""What the processes of a failed test last said, and how busy the machine was.

A failure that comes once in many runs has to be understood from the output of that run alone.
"""

import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Final

LINES_MAX: Final = 40
FILES_MAX: Final = 16
LINE_MAX: Final = 400
FAULT: Final = "fault.txt"
"""Where a process leaves the traceback of a fault of its own."""


def sections(base: Path, own: Path | None, since_s: float) -> list[tuple[str, str]]:
    """Return titles and texts: the machine, then the end of each log.

    Logs are all that lie in `own`, the test's folder, and those in `base` that were written to
    since `since_s`: fixtures of a module have folders of their own. The newest come last.
    """
    found = [one for one in _logs(base) if one[0] >= since_s or (own and own in one[1].parents)]
    told = [("machine", _machine())]
    for _, path in sorted(found)[-FILES_MAX:]:
        text = _end(path)
        if text:
            told.append((f"last words in {path.relative_to(base)}", text))
    return told


def _logs(base: Path) -> Iterator[tuple[float, Path]]:
    for folder, _, names in os.walk(base):
        for name in names:
            if name.endswith(".log") or name == FAULT:
                path = Path(folder, name)
                try:
                    yield path.stat().st_mtime, path
                except OSError:
                    continue


def _end(path: Path) -> str:
    try:
        with path.open(encoding="utf-8", errors="replace") as lines:
            kept = deque(lines, LINES_MAX)
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return "".join(f"{line.rstrip()[:LINE_MAX]}\n" for line in kept)


def _machine() -> str:
    load = ", ".join(f"{one:.1f}" for one in os.getloadavg())
    memory = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    available = next(one for one in memory if one.startswith("MemAvailable"))
    return f"load {load} on {os.cpu_count()} cores; {' '.join(available.split())}\n"
