"""Clients: routes when they change or are asked for; requests without one get the plan here."""

from collections.abc import Callable
from typing import Final
from zlib import crc32

import msgspec

from controller.decider import Received, ToInvoke, ToService, ToTopic
from controller.desk import Desk
from controller.scheduler import routes
from controller.scheduler.mover import LISTENING
from controller.scheduler.settings import EPOCH_SHIFT, Settings
from controller.scheduler.table import TaskTable
from protocols.errors import Blame, UnknownTopic
from protocols.messages import Invoke, Result, Route, RouteRequest
from protocols.messages.invocation import Failure, FailureCode, Plan
from protocols.topics import INVOCATION_MAX_BYTES, parse

FRAME_BYTES: Final = 1024
"""Room for what stands around a request in its frame."""


class Serving:
    """The routes of the cell."""

    def __init__(
        self,
        desk: Desk,
        table: TaskTable,
        settings: Settings,
        credit: Callable[[str], int],
        abroad: Callable[[str], None],
    ) -> None:
        self.routes: dict[str, Route] = {}
        self._desk = desk
        self._table = table
        self._epoch = settings.epoch << EPOCH_SHIFT
        self._cell = settings.cell
        self._store_urls = settings.store_urls
        self._credit = credit
        self._abroad = abroad

    def route(self, service: str) -> Route | None:
        """Return the newest route of a service."""
        return self.routes.get(service)

    def renew(self, service: str) -> bool:
        """Make the route of a service anew; returns whether it is another one, and said so."""
        tasks = self._table.of_service(service)
        old = self.routes.get(service)
        withdrawn = self._table.why_withdrawn(service)
        plans = withdrawn or self._plans(service, old, tasks)
        if not plans:
            return False
        encoding = self._encoding(plans)
        credit = 0 if isinstance(plans, str) else self._credit(service) * len(plans)
        if (
            old is not None
            and _plans_of(old) == (() if isinstance(plans, str) else plans)
            and not (withdrawn and old.reason != withdrawn)
            and old.encoding == encoding
            and not routes.another_credit(old.credit, credit)
        ):
            return False
        self._epoch += 1
        new = routes.route(service, self._epoch, plans, self._store_urls, credit, encoding)
        if old is not None and new.plan is not None and self._drains(_plans_of(old), new.plan):
            new = msgspec.structs.replace(new, drains=True)
        if tasks or withdrawn:
            self.routes[service] = new
        else:
            self.routes.pop(service, None)
        self._desk.tell(ToService(service), new, "route")
        return True

    def _drains(self, before: tuple[Plan, ...], plan: Plan) -> bool:
        """Whether the nodes that a service leaves are there still, and end what they have begun."""
        after = {step.task: step for step in plan.steps}
        steps = [one for each in before for one in each.steps if one.task in after]
        left = [one for one in steps if one.node != after[one.task].node]
        for one in steps:
            here = (one.cell or self._cell) == self._cell
            gone = here and self._table.nodes.state(one.node) not in LISTENING
            moved = (one.cell or self._cell) != (after[one.task].cell or self._cell)
            if gone if one in left else moved:
                return False
        return bool(left)

    def _plans(
        self, service: str, old: Route | None, tasks: tuple[str, ...]
    ) -> tuple[Plan, ...] | str:
        """Return the plans of a service, or why it is not served; empty: it never was."""
        if not tasks:
            return f"service {service!r} was deleted" if old is not None else ""
        plans = routes.build_plans(self._table, tasks, self._cell)
        before = _plans_of(old) if old is not None else ()
        if isinstance(plans, str) and before:
            same = routes.still_serves(before[0], self._table, self._cell)
            return before[:1] if same else plans
        return plans

    def _encoding(self, plans: tuple[Plan, ...] | str) -> str:
        """Return how clients shall pack: as the tasks do that they feed."""
        if isinstance(plans, str):
            return ""
        fed = [step.task for step in plans[0].steps if routes.is_entry(step)]
        tasks = self._table.tasks
        found = {tasks[one].tuning.encoding if one in tasks else "" for one in fed}
        return found.pop() if len(found) == 1 else ""

    # What clients say.

    def requested(self, event: Received, request: RouteRequest) -> None:
        """Answer where a service is served."""
        reply_to = request.reply_to or event.reply_to
        if not reply_to:
            return
        route = self.routes.get(request.service)
        if route is None:
            reason = "none of that name was submitted here"
            route = routes.route(request.service, self._epoch, reason, (), 0, "")
        if _cell_of(reply_to) != self._cell:
            route = routes.from_afar(route, self._cell)
        self._desk.tell(ToTopic(reply_to, event.correlation), route, event.cause)

    def invoke(self, event: Received, invoke: Invoke) -> None:
        """Hand a request on to the nodes that its service begins on, or refuse it."""
        route = self.routes.get(invoke.service)
        if route is None or route.plan is None:
            reason = route.reason if route else f"there is no service {invoke.service!r} here"
            code = FailureCode.NOT_READY if route else FailureCode.NO_SERVICE
            failure = Failure(code, Blame.USER, reason, retryable=route is not None)
            self._refuse(event, invoke, failure)
            return
        # By its id: the node that has a request is asked again for its answer.
        plans = _plans_of(route)
        plan = plans[crc32(invoke.request.encode()) % len(plans)]
        forwarded = [
            (node, _planned(event, invoke, plan, names))
            for node, names in routes.entry_inputs(plan).items()
        ]
        if any(_too_large(one) for _, one in forwarded):
            text = (
                "the values do not fit into one message beside the plan: send large ones as blobs"
            )
            failure = Failure(FailureCode.BAD_INPUT, Blame.USER, text, retryable=False)
            self._refuse(event, invoke, failure)
            return
        cells = routes.cells(plan)
        if invoke.attempt == 1 and any(cells.get(node) for node, _ in forwarded):
            self._abroad(invoke.service)
        for node, one in forwarded:
            self._desk.tell(ToInvoke(node, cells.get(node, "")), one, event.cause, event.tenant)

    def _refuse(self, event: Received, invoke: Invoke, failure: Failure) -> None:
        reply_to = invoke.reply_to or event.reply_to
        if reply_to:
            to = ToTopic(reply_to, invoke.correlation or event.correlation)
            answer = Result(invoke.request, invoke.attempt, failure=failure)
            self._desk.tell(to, answer, event.cause)


def _cell_of(topic: str) -> str:
    try:
        return parse(topic).cell
    except UnknownTopic:
        return ""


def _plans_of(route: Route) -> tuple[Plan, ...]:
    return (route.plan, *route.others) if route.plan is not None else ()


def _planned(event: Received, invoke: Invoke, plan: Plan, names: set[str]) -> Invoke:
    """Return the part of a request that one entry node takes, with the plan."""
    return msgspec.structs.replace(
        invoke,
        inputs={name: value for name, value in invoke.inputs.items() if name in names},
        reply_to=invoke.reply_to or event.reply_to,
        plan=plan,
        # Only an anchor makes jobs.
        job=False,
        correlation=invoke.correlation or event.correlation,
    )


def _too_large(invoke: Invoke) -> bool:
    return len(msgspec.msgpack.encode(invoke)) > INVOCATION_MAX_BYTES - FRAME_BYTES
