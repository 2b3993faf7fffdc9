"""The roles of one process, made from its configuration, and which of all roles serves what."""

from msgspec import Struct

from controller.anchor.decider import Anchor
from controller.anchor.settings import Settings as AnchorSettings
from controller.config import Config
from controller.decider import Decider, Role
from controller.host.host import serving
from controller.host.neighbours import role_at
from controller.namo.decider import Namo
from controller.records import FLEET, JOB, NODE, SERVICE, TASK
from controller.registry import Registry
from controller.registry.merge import LOCAL, Merger
from controller.scheduler.decider import Scheduler
from controller.scheduler.decider import Settings as SchedulerSettings
from protocols.messages.mobility import CellPoint


def deciders(
    config: Config,
    epoch: int,
    store_urls: tuple[str, ...],
    unix_offset_ms: int | None = None,
    broker_url: str = "",
) -> list[Decider]:
    """Return the roles that a process is to run; `epoch` is that of its life.

    `broker_url` is where nodes of its cell connect; empty: they are handed over to it by nobody.
    `unix_offset_ms` makes the wall clock's time of that of a turn, for people; None: not known.
    """
    made: list[Decider] = []
    anchors = config.anchors or (config.ta,)
    if Role.NAMO in config.roles:
        namo = Namo(
            *(config.namo, anchors[0], anchors),
            secured=config.secured,
            unix_offset_ms=unix_offset_ms,
        )
        made.append(namo)
    if Role.TA in config.roles:
        anchor = AnchorSettings(
            name=config.ta,
            schedulers=config.schedulers or (config.ts,),
            peers=tuple(one for one in anchors if one != config.ta),
            namo=config.namo,
            side=config.side,
            cells=config.cells or (config.cell,),
            direct=bool(config.direct),
            mobility=config.mobility,
            unix_offset_ms=unix_offset_ms,
        )
        made.append(Anchor(anchor))
    if Role.TS in config.roles:
        scheduler = SchedulerSettings(
            name=config.ts,
            epoch=epoch,
            anchors=anchors,
            heartbeat_ms=config.heartbeat_ms,
            sample_ms=config.sample_ms,
            store_urls=store_urls,
            cell=config.cell,
            elsewhere=tuple(
                one for one in anchors if one != config.ta or Role.TA not in config.roles
            ),
            point=CellPoint(config.cell, config.ts, (broker_url,), store_urls[:4])
            if broker_url
            else None,
            beside=config.ta if Role.TA in config.roles else "",
            neighbours=config.neighbours,
            mobility=config.mobility,
        )
        made.append(Scheduler(scheduler))
    return made


def elsewhere(config: Config) -> list[tuple[str, str]]:
    """Return the links that a process opens by itself: a role of its own, and one elsewhere."""
    anchors, pairs = config.anchors or (config.ta,), []
    schedulers = config.schedulers or (config.ts,)
    if Role.NAMO in config.roles:
        pairs += [(config.namo, anchor) for anchor in anchors]
    if Role.TA in config.roles:
        pairs += [(config.ta, one) for one in (config.namo, *schedulers)]
    if Role.TS in config.roles:
        pairs += [(config.ts, anchor) for anchor in anchors]
    own = {config.namo: Role.NAMO, config.ta: Role.TA, config.ts: Role.TS}
    return [(one, other) for one, other in pairs if own.get(other) not in config.roles]


def holding_roles(config: Config, merger: Merger, node: str) -> list[str]:
    """Return a role of each process that knows a node; those that have lost it come last."""
    sources = dict.fromkeys([*merger.holders(FLEET, node), *merger.holders(NODE, node)])
    return [config.ts if one == LOCAL else role_at(one) for one in sources]


def serving_role(config: Config, registry: Registry, operation: str, arguments: Struct) -> str:
    """Return the name of the role that serves an operation; empty: none is known."""
    wanted = serving(operation)
    name = str(getattr(arguments, "name", ""))
    own = {Role.NAMO: config.namo, Role.TA: config.ta, Role.TS: config.ts}[wanted]
    if wanted is Role.NAMO:
        return own
    if operation == "node.handover":
        return own if wanted in config.roles else (config.anchors or (config.ta,))[0]
    role = ""
    task = registry.get(TASK, name) if operation.startswith("task.") else None
    if task is not None:
        anchor = getattr(registry.get(SERVICE, task.service), "anchor", "")
        role = task.scheduler if wanted is Role.TS else anchor
    elif wanted is Role.TS:
        role = getattr(registry.get(FLEET, name), "scheduler", "")
    else:
        job = registry.get(JOB, name)
        service = job.submit.service if job is not None else getattr(arguments, "service", "")
        role = getattr(registry.get(SERVICE, service), "anchor", "")
    return role or (own if wanted in config.roles else "")
