"""The node's artifacts: what was fetched stays, within a bound, until room is needed."""

from pathlib import Path
from typing import Final

from device_agent.artifacts.shelf import PART_PREFIX, Shelf, hex_of

PART_MAX_AGE_S: Final = 24 * 3600.0
"""An unfinished download is resumed until it is so old."""


class ArtifactCache(Shelf):
    """Artifacts by digest. A file from an earlier life of the daemon is verified before its use."""

    def __init__(self, folder: Path, max_bytes: int, now_s: float) -> None:
        """Open the folder; old unfinished downloads go. Raises EnvironmentFailure."""
        super().__init__(folder, max_bytes)
        self._verified: set[tuple[str, str]] = set()
        for entry in self.entries():
            if entry.name.startswith(PART_PREFIX) and entry.used_s < now_s - PART_MAX_AGE_S:
                self._unlink(folder / entry.name)

    def verified(self, digest: str, size_bytes: int, tenant: str) -> bool:
        """Whether the content lies here and was found good for this tenant in this life."""
        return (tenant, hex_of(digest)) in self._verified and self.has(digest, size_bytes)

    def mark_verified(self, digest: str, tenant: str) -> None:
        """Remember that the content is what its digest says, and may run for this tenant."""
        self._verified.add((tenant, hex_of(digest)))

    def strike(self, target: str) -> None:
        """Forget that `TENANT/HEX` may run: it is signed no more. What runs is not touched."""
        tenant, _, hex_ = target.rpartition("/")
        self._verified.discard((tenant, hex_))
