"""The deployments of the TONA paper, as data: who runs which roles, and who executes.

The first process of each holds NAMO, whose API people use, and the broker where roles meet. Each
process has a broker of its own; the nodes of a cell are at that of its TS.
"""

from typing import Final

from msgspec import Struct

from controller.decider import Role
from protocols.errors import UserError

NAMO, TA, TS = Role.NAMO, Role.TA, Role.TS


class Process(Struct, frozen=True):
    """One controller process; its cell carries its name."""

    name: str
    roles: tuple[Role, ...]
    side: str = "radio"
    """Where its TA stands."""
    direct: bool = False
    """Whether its TA also hears and tells the nodes itself."""

    def role(self, role: Role) -> str:
        """Return the name of its role."""
        return f"{role.value}-{self.name}"


class Deployment(Struct, frozen=True):
    """One way to spread roles over a network."""

    name: str
    summary: str
    processes: tuple[Process, ...]
    executor: str
    """What its nodes are: `ue` or `du`; the first word of their names."""

    def holding(self, role: Role) -> tuple[Process, ...]:
        """Return the processes with a role."""
        return tuple(one for one in self.processes if role in one.roles)

    def names(self, role: Role) -> tuple[str, ...]:
        """Return the names of all roles of a kind."""
        return tuple(one.role(role) for one in self.holding(role))

    def nodes(self, count: int) -> dict[str, str]:
        """Return the names of so many nodes, each with its cell, in turn over the cells."""
        cells = [one.name for one in self.holding(TS)]
        taken = {one.name for one in self.processes}
        number, found = 0, dict[str, str]()
        while len(found) < count:
            number += 1
            name = f"{self.executor}-{number}"
            if name not in taken:
                found[name] = cells[len(found) % len(cells)]
        return found


def cu_dus_ues(cells: int) -> Deployment:
    """Return the deployment whose TA is in the CU, with so many DUs."""
    units = (Process(f"du-{number}", (TS,)) for number in range(1, cells + 1))
    return Deployment(
        "cu-dus-ues",
        f"TA in the CU, a TS in each of {cells} DUs, UEs execute; NAMO beside the TA",
        (Process("cu", (NAMO, TA)), *units),
        "ue",
    )


DEPLOYMENTS: Final = (
    Deployment(
        "gnodeb-ues",
        "TA and TS in the gNodeB, UEs execute; NAMO in a management domain of its own",
        (Process("management", (NAMO,)), Process("gnodeb", (TA, TS))),
        "ue",
    ),
    Deployment(
        "gnodebs-ues",
        "TA and TS in each of two gNodeBs, between which UEs go; NAMO in a domain of its own",
        (
            Process("management", (NAMO,)),
            Process("gnodeb-1", (TA, TS)),
            Process("gnodeb-2", (TA, TS)),
        ),
        "ue",
    ),
    Deployment(
        "cu-dus",
        "TA and TS in the CU, the DUs execute; NAMO in a management domain of its own",
        (Process("management", (NAMO,)), Process("cu", (TA, TS))),
        "du",
    ),
    cu_dus_ues(2),
    Deployment(
        "cn-gnodeb-ues",
        "TA in the core, which also speaks to the UEs; TS in the gNodeB; NAMO beside the TA",
        (Process("core", (NAMO, TA), side="core", direct=True), Process("gnodeb", (TS,))),
        "ue",
    ),
)


def deployment(name: str) -> Deployment:
    """Return a deployment by its name. Raises UserError."""
    for one in DEPLOYMENTS:
        if one.name == name:
            return one
    known = ", ".join(one.name for one in DEPLOYMENTS)
    raise UserError(f"there is no deployment {name!r}: choose one of {known}")
