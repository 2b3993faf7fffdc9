"""What a service promises: bounds that fit its kind, zones of users, privacy and security."""

from typing import Final

from controller.namo.lines import Path
from controller.namo.model import Service, bounds_of
from controller.namo.reader import Problems
from controller.namo.wiring import come_from
from protocols.errors import UserError
from protocols.messages.invocation import REQUEST
from protocols.qoais import INDICATORS, Bound, Direction, ServiceKind, check
from protocols.submission import near

_TIMES: Final = ("latency_ms", "training_duration_s")
NODE: Final = "node"


def check_quality(service: Service, path: Path, problems: Problems) -> None:
    """Check the SLA of a service by itself, and what it asks of the tasks."""
    _check_bounds(service, path, problems)
    _check_users(service, path, problems)
    levels = {one.indicator: one.level for one in service.sla.all_bounds()}
    if levels.get("data_privacy") == NODE:
        _check_raw_inputs(service, path, problems)
    for at, way in enumerate(service.ways()):
        where = (*path, "alternatives", at - 1) if at else path
        for number, task in enumerate(way.tasks):
            here = (*where, "tasks", number)
            if levels.get("algorithm_privacy") == NODE and not task.nodes:
                problems.add(
                    here,
                    f"algorithm_privacy is node, but task {task.name!r} names no nodes "
                    "that may have its program",
                )


def _check_bounds(service: Service, path: Path, problems: Problems) -> None:
    seen: set[str] = set()
    count = len(service.sla.bounds)
    for at, bound in enumerate(service.sla.all_bounds()):
        named = ("zone", bound.indicator) if at >= count else ("bounds", at)
        where = (*path, "sla", *named)
        text = bound_problem(bound, service.kind)
        if text:
            problems.add(where, text)
        if bound.indicator in seen:
            problems.add(where, f"the indicator {bound.indicator} has a bound already")
        seen.add(bound.indicator)


def _check_users(service: Service, path: Path, problems: Problems) -> None:
    seen: set[str] = set()
    for at, one in enumerate(service.sla.users):
        where = (*path, "sla", "users", at)
        if one.user in seen:
            problems.add((*where, "user"), f"{one.user!r} has a zone already")
        seen.add(one.user)
        for bound in bounds_of(one.zone):
            text = bound_problem(bound, service.kind)
            indicator = INDICATORS.get(bound.indicator)
            if not text and indicator is not None and not indicator.measured:
                text = (
                    f"{bound.indicator} is the same for every user: a zone of one user "
                    "has what is measured for each"
                )
            if text:
                problems.add((*where, "zone", bound.indicator), text)


def bound_problem(bound: Bound, kind: ServiceKind) -> str:
    """Return in one sentence why a service of this kind cannot promise it; empty: it can."""
    indicator = INDICATORS.get(bound.indicator)
    if indicator is None:
        return f"there is no indicator {bound.indicator!r}{near(bound.indicator, INDICATORS)}"
    if kind not in indicator.kinds:
        return f"{bound.indicator} is of services of {', '.join(indicator.kinds)}, not of {kind}"
    try:
        check(bound)
    except UserError as error:
        return str(error)
    return _number_problem(bound)


def _number_problem(bound: Bound) -> str:
    indicator = INDICATORS[bound.indicator]
    if indicator.direction is Direction.LOWER and bound.at_most is None:
        return f"{indicator.name} is better the lower it is: give at_most"
    if indicator.direction is Direction.HIGHER and bound.at_least is None:
        return f"{indicator.name} is better the higher it is: give at_least"
    value = bound.at_least if bound.at_most is None else bound.at_most
    if value is not None and value < 0:
        return f"{indicator.name} must be a number from 0"
    if value is not None and indicator.unit == "%" and value > 100:  # noqa: PLR2004 - percent
        return f"{indicator.name} is a percentage: at most 100"
    if value == 0 and indicator.name in _TIMES:
        return f"{indicator.name} cannot be 0"
    return ""


def _check_raw_inputs(service: Service, path: Path, problems: Problems) -> None:
    """Raw input that stays on its node needs to come to be on nodes that are known."""
    for at, way in enumerate(service.ways()):
        where = (*path, "alternatives", at - 1) if at else path
        for number, task in enumerate(way.tasks):
            comes = [come_from(one.source) for one in task.inputs.values()]
            raw = [come.port for come in comes if come.step == REQUEST]
            fed = [service.sources[port] for port in raw if port in service.sources]
            if raw and not task.nodes and not any(one.nodes for one in fed):
                problems.add(
                    (*where, "tasks", number),
                    f"data_privacy is node, but where request.{raw[0]} comes to be is not known: "
                    f"give services.sources.{raw[0]} with nodes, or the task its nodes",
                )
