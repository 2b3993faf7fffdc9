"""Deployments in the twin: which processes there are, which roles they run, where these meet.

Each process has a broker of its own, its *home*; the nodes of a cell are at that of its TS. Roles
of different processes meet at the home of the first one. The configuration of a process is the
production one, so that its roles are made as `controller.roles` makes them.
"""

from collections.abc import Sequence
from typing import Final

from msgspec import Struct

from controller.config import Config
from controller.decider import Role

NAMO, TA, TS = Role.NAMO, Role.TA, Role.TS


class Site(Struct, frozen=True):
    """One controller process; its cell carries its name."""

    name: str
    roles: tuple[Role, ...]
    side: str = "radio"
    direct: bool = False
    """Whether its TA also hears and tells the nodes itself."""

    def role(self, role: Role) -> str:
        """Return the name of its role."""
        return f"{role.value}-{self.name}"


SITES: Final[dict[str, tuple[Site, ...]]] = {
    "gateway": (Site("gateway", (NAMO, TA, TS)),),
    "gnodeb-ues": (Site("management", (NAMO,)), Site("gnodeb", (TA, TS))),
    "cu-dus": (Site("management", (NAMO,)), Site("cu", (TA, TS))),
    "cu-dus-ues": (Site("cu", (NAMO, TA)), Site("du-1", (TS,)), Site("du-2", (TS,))),
    "cn-gnodeb-ues": (Site("core", (NAMO, TA), "core", direct=True), Site("gnodeb", (TS,))),
}
"""One process with all roles, and the four deployments of the TONA paper."""
ROAMING: Final = "roaming"
ANCHORS_ROAMING: Final = "anchors-roaming"
ROAMED: Final[dict[str, tuple[Site, ...]]] = {
    ROAMING: (
        Site("cu", (NAMO, TA)),
        *(Site(f"cell-{number}", (TS,)) for number in range(1, 4)),
    ),
    ANCHORS_ROAMING: (
        Site("management", (NAMO,)),
        *(Site(f"cell-{number}", (TA, TS)) for number in range(1, 4)),
    ),
}
"""Three cells among which nodes roam: under one TA, and with a TA in each."""


def config_of(site: Site, sites: Sequence[Site], heartbeat_ms: int, sample_ms: int) -> Config:
    """Return the configuration of a process among the others."""

    def names(role: Role) -> tuple[str, ...]:
        return tuple(one.role(role) for one in sites if role in one.roles)

    near = {role: site.role(role) if role in site.roles else names(role)[0] for role in Role}
    cells = tuple(one.name for one in sites if TS in one.roles)
    return Config(
        cell=site.name,
        name=site.name,
        heartbeat_ms=heartbeat_ms,
        sample_ms=sample_ms,
        roles=site.roles,
        namo=near[NAMO],
        ta=near[TA],
        ts=near[TS],
        anchors=names(TA),
        schedulers=names(TS),
        side="core" if site.side == "core" else "radio",
        cells=cells,
        direct=tuple(f"mqtt://127.0.0.1/{cell}" for cell in cells) if site.direct else (),
    )
