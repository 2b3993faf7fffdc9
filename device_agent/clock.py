"""The wall clock, where it cannot be helped: everything that is waited for is monotonic.

A board without a battery clock starts in 1970. What must not go back then (the first incarnation of
a new journal) takes the newest file at hand for a witness that time has come at least so far.
"""

import time
from collections.abc import Iterable
from pathlib import Path

INSTALLED = Path(__file__)
"""When this program was installed, at the earliest."""


def unix_ms(witnesses: Iterable[Path] = ()) -> int:
    """Return the milliseconds since 1970, no fewer than files that exist were changed at."""
    return max(time.time_ns() // 1_000_000, *(_changed_ms(one) for one in (INSTALLED, *witnesses)))


def around(folder: Path) -> list[Path]:
    """Return a folder and what lies in it, to be asked how late it is."""
    try:
        return [folder, *folder.iterdir()]
    except OSError:
        return []


def _changed_ms(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return 0
