"""Each protection is needed: without it a checker finds a broken rule, with it the seeds are kept.

A run here is a whole fault schedule, with the faults that its protection is for.
"""

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from controller.anchor.job_shelf import Shelf
from controller.anchor.ledger import Ledger
from controller.decider import Received
from controller.scheduler.fleet import Fleet
from controller.scheduler.serving import Serving
from controller.scheduler.table import TaskTable
from controller.twin import schedule
from controller.twin.faults import Kind
from controller.twin.hands import Shape
from controller.twin.hosting import SimHost
from controller.twin.network import Weather
from controller.twin.node import SimNode
from controller.twin.rules import Rule
from controller.twin.run import Plan
from device_agent.core.assignments import Assignments
from device_agent.core.jobs import JobEnds
from device_agent.core.outbox import Outbox
from protocols.messages import Birth, Death
from protocols.messages.hierarchy import NodeState

SEEDS = range(12)
SMALL = replace(schedule.PLAN, nodes=5, services=2, steps=2, jobs=20, seconds=16, quiet_seconds=60)
ROUGH = Weather((1, 250), drop_share=0.05, double_share=0.1, reorder=True)
Patch = Callable[[pytest.MonkeyPatch], None]


def without_epochs(patch: pytest.MonkeyPatch) -> None:
    """A node takes any assignment, however old."""
    patch.setattr(Assignments, "_stale", lambda *_: False)


def without_order_on_nodes(patch: pytest.MonkeyPatch) -> None:
    """A node speaks before its journal has written."""
    patch.setattr(SimNode, "journal_first", False)


def without_order_in_controller(patch: pytest.MonkeyPatch) -> None:
    """A controller speaks before its store has written."""
    patch.setattr(SimHost, "record_first", False)


def without_idempotence(patch: pytest.MonkeyPatch) -> None:
    """An anchor takes a job that it has ended for a new one."""
    patch.setattr(Shelf, "get", lambda *_: None)


def without_reservation(patch: pytest.MonkeyPatch) -> None:
    """An anchor counts nothing of what it has promised."""
    patch.setattr(Ledger, "put", lambda *_: None)
    patch.setattr(Ledger, "drop", lambda *_: None)


def without_envelope(patch: pytest.MonkeyPatch) -> None:
    """A scheduler uses every node that it sees."""

    def usable(table: TaskTable, entry: object) -> list[str]:
        del entry
        return [one for one in table.nodes if table.nodes.state(one) is NodeState.ONLINE][::-1]

    patch.setattr(TaskTable, "usable", usable)


def without_birth_sequence(patch: pytest.MonkeyPatch) -> None:
    """A scheduler forgets which connection of a node was the newest."""
    births, deaths = Fleet.birth, Fleet.death

    def forget(fleet: Fleet, node: str) -> None:
        slot = fleet._nodes.slots.get(node)
        if slot is not None:
            fleet._nodes.incarnations[slot] = 0

    def birth(fleet: Fleet, event: Received, body: Birth) -> bool:
        forget(fleet, event.sender)
        return births(fleet, event, body)

    def death(fleet: Fleet, event: Received, body: Death) -> None:
        slot = fleet._nodes.slots.get(event.sender)
        if slot is not None:
            fleet._nodes.incarnations[slot] = event.incarnation
        deaths(fleet, event, body)

    patch.setattr(Fleet, "birth", birth)
    patch.setattr(Fleet, "death", death)


def without_routes(patch: pytest.MonkeyPatch) -> None:
    """A scheduler says once where a service is."""
    renew = Serving.renew
    patch.setattr(Serving, "renew", lambda one, name: _planless(one, name) and renew(one, name))


def _planless(serving: Serving, service: str) -> bool:
    route = serving.route(service)
    return route is None or route.plan is None


def without_outbox(patch: pytest.MonkeyPatch) -> None:
    """A node says everything once."""
    patch.setattr(Outbox, "_send_all", lambda *_: None)
    patch.setattr(JobEnds, "on_timer", lambda *_: None)


REMOVED: dict[str, tuple[Patch, Plan, set[Rule]]] = {
    "epoch": (
        without_epochs,
        replace(
            SMALL,
            weather=replace(ROUGH, delay_ms=(1, 2000), double_share=0.3),
            changes=2,
            faults={Kind.CUT: 5, Kind.LOAD: 3},
        ),
        {Rule.EPOCH},
    ),
    "journal order on nodes": (
        without_order_on_nodes,
        replace(SMALL, faults={Kind.NODE_CRASH: 2}),
        {Rule.JOURNAL},
    ),
    "journal order in the controller": (
        without_order_in_controller,
        replace(SMALL, faults={Kind.HOST_BEFORE: 3}),
        {Rule.JOURNAL, Rule.LOST, Rule.FOUND},
    ),
    "idempotence": (
        without_idempotence,
        replace(SMALL, weather=replace(ROUGH, delay_ms=(1, 2000), double_share=0.3)),
        {Rule.DOUBLED},
    ),
    "reservation": (
        without_reservation,
        replace(SMALL, services=4, shape=Shape(memory_bytes=4 * schedule.TASK_BYTES)),
        {Rule.RESERVATION, Rule.CAPACITY},
    ),
    "envelope": (without_envelope, replace(SMALL, faults={Kind.NODE_CRASH: 3}), {Rule.ENVELOPE}),
    "birth sequence": (
        without_birth_sequence,
        replace(SMALL, weather=ROUGH, faults={Kind.LATE_WILL: 3, Kind.STORM: 1, Kind.CUT: 3}),
        {Rule.INCARNATION},
    ),
    "routes": (
        without_routes,
        replace(SMALL, jobs=0, faults={Kind.NODE_CRASH: 4}),
        {Rule.FOUND},
    ),
    "outbox": (
        without_outbox,
        replace(SMALL, weather=replace(ROUGH, drop_share=0.2)),
        {Rule.CONVERGENCE, Rule.LOST},
    ),
}


@pytest.mark.parametrize("name", REMOVED)
def test_without_it_a_checker_fails_and_with_it_none(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    remove, plan, rules = REMOVED[name]
    with monkeypatch.context() as patch:
        remove(patch)
        found = None
        for seed in SEEDS:
            found = schedule.run(seed, plan=plan)
            if found.rule is not None:
                break
    assert found is not None
    assert found.rule in rules, found.text
    for seed in range(found.seed + 1):
        kept = schedule.run(seed, plan=plan)
        assert kept.rule is None, kept.text
