"""What a client knows of a service: its newest route, and who waits for a better one. Pure."""

from collections import deque
from math import inf
from typing import Final, NamedTuple

from msgspec import Struct, field

from protocols.messages.invocation import REQUEST, Plan, Route

ASK_FIRST_MS: Final = 250
ASK_CAP_MS: Final = 2000
"""A question for a route that nobody answers is asked again within these bounds."""
STOOD_MS: Final = 10_000.0
"""A request that has ended so long ago is no news."""
STOOD_MAX_MS: Final = 3_600_000


class Entry(NamedTuple):
    """A node to which a request goes, and the values that its steps need."""

    node: str
    names: frozenset[str]
    cell: str = ""
    """Where the node is; empty: in the cell that serves the service."""


def entries(plan: Plan) -> tuple[Entry, ...]:
    """Return the nodes with a step that the request feeds, in the order of the plan."""
    wanted: dict[tuple[str, str], set[str]] = {}
    for step in plan.steps:
        names = {edge.source_port for edge in step.inputs if edge.source == REQUEST}
        if names or not step.inputs:
            wanted.setdefault((step.node, step.cell), set()).update(names)
    return tuple(Entry(node, frozenset(names), cell) for (node, cell), names in wanted.items())


def cell_of(plan: Plan) -> str:
    """Return the cell that all steps of a plan name; empty: they name none, or several."""
    cells = {step.cell for step in plan.steps}
    return cells.pop() if len(cells) == 1 else ""


def moved(before: Plan | None, after: Plan) -> bool:
    """Whether a step of the plan now runs elsewhere, under another epoch, or in another cell."""
    return before is None or {
        (one.task, one.node, one.epoch, one.cell) for one in before.steps
    } != {(one.task, one.node, one.epoch, one.cell) for one in after.steps}


class Service(Struct):
    """One service, as this client sees it."""

    name: str
    plan: Plan | None = None
    epoch: int = -1
    source: str = ""
    """Who said the newest route: epochs of another scheduler do not compare with his."""
    expires_ms: float = 0.0
    """Until when the plan may be used without hearing from the scheduler."""
    refresh_ms: float = 0.0
    """From when on the scheduler is asked again, while the plan is still used."""
    credit: int = 0
    """Requests under way that the scheduler allows; 0: as many as the client likes."""
    blob_urls: tuple[str, ...] = ()
    encoding: str = ""
    """How inputs are packed; empty: not at all."""
    reason: str = "no scheduler has answered yet"
    """Why there is no plan."""
    ways: tuple[tuple[Plan, tuple[Entry, ...]], ...] = ()
    """The plan and the others that do the same, each with the nodes to which a request goes."""
    turn: int = 0
    """Which of them the next request takes."""
    names: frozenset[str] = frozenset()
    """The inputs of the service."""
    waiting: deque[str] = field(default_factory=deque)
    """Requests that cannot be sent yet, oldest first."""
    requests: dict[str, None] = {}
    """Every open request of the service, oldest first."""
    under_way: int = 0
    """How many of them were sent."""
    ask_at_ms: float | None = None
    """When the question for a route is repeated; None: nothing is asked."""
    ask_wait_ms: int = ASK_FIRST_MS
    looked_ms: float = -inf
    """When the route was last looked at for the sake of what is in work."""
    stood: tuple[float, float] = (0.0, 0.0)
    """How long a request has stood that has ended since the last one was sent, and when it ended.
    """

    def ended(self, begin_ms: float, now_ms: float) -> None:
        """Take note of how long a request has stood."""
        if now_ms - begin_ms >= self.stood[0]:
            self.stood = now_ms - begin_ms, now_ms

    def news(self, now_ms: float) -> int:
        """Return how long a request has stood at most of which nobody was told, in ms."""
        stood_ms, ended_ms = self.stood
        self.stood = 0.0, 0.0
        return min(round(stood_ms), STOOD_MAX_MS) if now_ms - ended_ms < STOOD_MS else 0

    def usable(self, now_ms: float) -> bool:
        """Whether requests can go by the plan now."""
        return self.plan is not None and now_ms < self.expires_ms

    @property
    def plans(self) -> tuple[Plan, ...]:
        """The plans of the last route that had any."""
        return tuple(plan for plan, _ in self.ways)

    def holds(self, plan: Plan | None) -> bool:
        """Whether a plan that was taken is still one of those that may be."""
        return any(not moved(plan, one) for one in self.plans)

    def way(self, before: Plan | None) -> tuple[Plan, tuple[Entry, ...]]:
        """Return the way of a request: the one that it has gone before, or the next in turn."""
        for plan, wanted in self.ways:
            if before is not None and not moved(before, plan):
                return plan, wanted
        self.turn = (self.turn + 1) % len(self.ways)
        return self.ways[self.turn]

    def has_room(self) -> bool:
        """Whether one more request may be under way."""
        return self.credit == 0 or self.under_way < self.credit

    def learn(self, route: Route, source: str, now_ms: float) -> bool:
        """Take a route in; False when it is older than the one that still holds."""
        older = source == self.source and route.epoch < self.epoch
        if older and now_ms < self.expires_ms:
            return False
        self.source = source
        plans = (route.plan, *route.others) if route.plan is not None else ()
        if plans and plans != self.plans:
            self.ways = tuple((plan, entries(plan)) for plan in plans)
            self.names = frozenset(name for entry in self.ways[0][1] for name in entry.names)
        self.plan, self.epoch, self.credit = route.plan, route.epoch, route.credit
        self.expires_ms = now_ms + route.valid_ms
        self.refresh_ms = now_ms + route.valid_ms / 2
        self.blob_urls = route.blob_urls
        self.encoding = route.encoding
        self.reason = route.reason or "its tasks are not running"
        if route.plan is not None:
            self.ask_at_ms = None
            self.ask_wait_ms = ASK_FIRST_MS
        return True

    def ask(self, now_ms: float) -> float:
        """Note that a route is asked for now; return when to ask again."""
        self.ask_at_ms = now_ms + self.ask_wait_ms
        self.ask_wait_ms = min(2 * self.ask_wait_ms, ASK_CAP_MS)
        return self.ask_at_ms
