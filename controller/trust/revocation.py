"""Whether a certificate is still in force, asked at every request; the files are read on change."""

import time
from collections.abc import Callable
from typing import Final

from controller.trust.authority import Authority

LOOK_S: Final = 1.0
"""The authority's folder is looked at this often at most: another process may have revoked."""


class Revocation:
    """The serials that an authority has revoked, kept up with its folder."""

    def __init__(self, authority: Authority, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._authority = authority
        self._clock_s = clock_s
        self._version: tuple[int, ...] = ()
        self._serials: frozenset[int] = frozenset()
        self._looked_s = -LOOK_S

    def __call__(self, serial: str) -> bool:
        """Whether this serial (hexadecimal) is revoked. Raises UserError for a damaged folder."""
        now_s = self._clock_s()
        if now_s - self._looked_s >= LOOK_S:
            version = self._authority.version()
            if version != self._version:
                revoked = self._authority.standing().revoked
                self._serials = frozenset(int(one, 16) for one in revoked)
                self._version = version
            self._looked_s = now_s
        return int(serial, 16) in self._serials
