"""Feeds: which node's data feeds a service, how fast and how reduced, and where answers go.

A node that provides a source is the client of the service: it is told the plan, and told again
whenever that changes, at its birth, a few times in any case, and now and then for ever: a feed has
no acknowledgement, and the newest number holds. A node that gives an output of a service with sinks
is told of these; when it gives it no more it keeps them a while, for what is still under way.

Births say what nodes feed. How an earlier life of the scheduler has had the sources read goes on,
inside the envelope; what belongs to no service ends, once every anchor has granted what it holds.
"""

from collections.abc import Callable, Iterable
from typing import Final

import msgspec
from msgspec import Struct

from controller.decider import ToNode
from controller.desk import Desk
from controller.scheduler.copies import TaskEntry
from controller.scheduler.nodes import AWAY, NodeTable
from controller.scheduler.settings import EPOCH_SHIFT
from controller.scheduler.table import TaskTable
from protocols.messages import Feed, Route
from protocols.messages.hierarchy import NodeState
from protocols.messages.invocation import REQUEST, Plan
from protocols.messages.presence import Feeding
from protocols.messages.quality import Source, SourceKind
from protocols.topics import Channel, source_topic

REPEAT_MS: Final = 1000
REPEATS: Final = 3
REFRESH_MS: Final = 30_000
LINGER_MS: Final = 10_000
"""How long a node keeps the sinks of a service whose outputs it gives no more."""
MAX_TOLD: Final = 100_000
"""Feeds, and ends of feeds, that are remembered; beyond it the oldest is forgotten."""
PRIVACY: Final = "data_privacy"
STAYS: Final = "node"
BUDGET_MIN_MS: Final = 1000
BUDGET_MAX_MS: Final = 10_000
BUDGETS_PER_LATENCY: Final = 5
"""A request that has waited for so many times its latency is of no use any more."""


class Data(Struct, frozen=True):
    """How a service's sources are read; the default is as they are declared."""

    rate_per_s: float = 0.0
    decimation: int = 1
    function: str = ""


AS_DECLARED: Final = Data()


class _Told(Struct):
    feed: Feed
    sent_ms: int = 0
    times: int = 0


class Feeds:
    """By service and node: what was told last."""

    def __init__(self, epoch: int, desk: Desk, nodes: NodeTable, table: TaskTable) -> None:
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._number = self._first = epoch << EPOCH_SHIFT
        self._followed: tuple[tuple[str, Channel], ...] = ()
        self._arrived_ms: dict[str, int] = {}
        """When nodes that feed services have come from other cells."""
        self._welcomed = False
        self._data: dict[str, Data] = {}
        self._providers: dict[tuple[str, str], str] = {}
        """Of each service and input, as chosen last."""
        self._told: dict[tuple[str, str], _Told] = {}
        self._stale: dict[str, None] = {}
        self._fed: dict[str, None] = {}
        """Services that have sources or sinks."""
        self._since: dict[str, int] = {}
        """Number of the feed that says how sources are read; of this life: it is chosen here."""
        self._heard: dict[str, dict[str, Feeding]] = {}
        """What births have told and nobody has looked at yet, by service and node."""
        self._ends: dict[str, frozenset[str]] = {}
        """Nodes that give the outputs of each service with sinks."""
        self._leaving: dict[tuple[str, str], int] = {}
        """Until when nodes keep the sinks of a service, whose outputs they give no more."""

    # What others read and change.

    def data(self, service: str) -> Data:
        """Return how the sources of a service are read."""
        return self._data.get(service, AS_DECLARED)

    def set_data(self, service: str, data: Data) -> None:
        """Have the sources of a service read so."""
        if data == AS_DECLARED:
            self._data.pop(service, None)
        else:
            self._data[service] = data
        self._since[service] = self._first
        self._stale[service] = None

    def sources(self, service: str) -> tuple[Source, ...]:
        """Return what feeds a service beside clients."""
        entry = self._entry(service)
        return entry.grant.sources if entry is not None else ()

    def renew(self, service: str) -> None:
        """Look at the feeds of a service at the end of this turn."""
        self._stale[service] = None

    def ends_changed(self, service: str) -> bool:
        """Whether other nodes than before give the outputs of a service with sinks."""
        entry = self._entry(service)
        found = self._ends_of(entry) if entry is not None else frozenset()
        return found != self._ends.get(service, frozenset())

    def let_go(self, service: str, node: str) -> None:
        """Leave a node alone about a service: another scheduler tells it."""
        self._told.pop((service, node), None)
        self._leaving.pop((service, node), None)
        self._heard.get(service, {}).pop(node, None)

    def node_born(self, node: str, feeds: Iterable[Feeding], *, arrived: bool = False) -> None:
        """Tell a node again what it may have forgotten, and look at what it feeds.

        What one that has come from another cell feeds may belong to a service of that one: its
        anchor says so in a moment.
        """
        self._arrived_ms.pop(node, None)
        feeds = tuple(feeds)
        if arrived and feeds and len(self._arrived_ms) < MAX_TOLD:
            self._arrived_ms[node] = self._desk.now_ms
        for key in [one for one in self._told if one[1] == node]:
            if arrived:
                # What was told in an earlier stay, an end maybe, says nothing about this one.
                del self._told[key]
                self._stale[key[0]] = None
            else:
                self._told[key].sent_ms, self._told[key].times = 0, 0
        for feeding in feeds:
            if feeding.service in self._heard or len(self._heard) < MAX_TOLD:
                self._heard.setdefault(feeding.service, {})[node] = feeding
                self._stale[feeding.service] = None

    def node_changed(self, node: str) -> None:
        """Look for other providers where a node of a feed has come or gone."""
        for service in [one for one, heard in self._heard.items() if node in heard]:
            del self._heard[service][node]
            if not self._heard[service]:
                del self._heard[service]
        self._stale.update(self._fed)

    def anchors_welcomed(self) -> None:
        """End what belongs to no service: all anchors have granted all they hold."""
        self._welcomed = True
        self._stale.update(dict.fromkeys(self._heard))

    def settle(self, route: Callable[[str], Route | None]) -> None:
        """Tell nodes what has changed for them."""
        stale, self._stale = self._stale, {}
        for service in stale:
            found = route(service)
            self._settle(service, found.plan if found else None)
        if stale:
            self._follow()

    def _follow(self) -> None:
        """Have brought from other cells what sources of nodes here name."""
        wanted = {
            one: None
            for (service, _), told in self._told.items()
            for source in told.feed.sources
            if source.kind is SourceKind.TOPIC
            and (one := source_topic(service, source.name)[:2])[0]
        }
        if (topics := tuple(sorted(wanted))) != self._followed:
            self._followed = self._desk.output.follows = topics

    def sweep(self) -> None:
        """Say again what may not have been heard."""
        due_ms = self._desk.now_ms - LINGER_MS
        for node in [node for node, at_ms in self._arrived_ms.items() if at_ms <= due_ms]:
            del self._arrived_ms[node]
            self._stale.update(
                dict.fromkeys(service for service, heard in self._heard.items() if node in heard)
            )
        for key in [one for one in self._leaving if one not in self._told]:
            del self._leaving[key]
        for (service, _), due_ms in self._leaving.items():
            if self._desk.now_ms >= due_ms:
                self._stale[service] = None
        for key, told in list(self._told.items()):
            wait_ms = REPEAT_MS if told.times < REPEATS else REFRESH_MS
            if told.feed.sources or told.feed.sinks or told.times < REPEATS:
                if self._desk.now_ms - told.sent_ms >= wait_ms:
                    self._say(key[1], told)
            elif key[0] not in self._fed:
                del self._told[key]

    # How it is done.

    def _entry(self, service: str) -> TaskEntry | None:
        found = [self._table.tasks.get(task) for task in self._table.of_service(service)]
        entries = [entry for entry in found if entry is not None]
        return max(entries, key=lambda entry: entry.grant.generation) if entries else None

    def _afar(self, service: str) -> TaskEntry | None:
        """Return what is known of a service that only nodes here feed: its tasks are elsewhere."""
        for task in self._table.of_service(service):
            away = self._table.away.get(task)
            if away is not None and away.copy.grant.sources:
                return TaskEntry(away.copy.grant, away.anchor, "default", self._desk.now_ms, 0, 0)
        return None

    def _settle(self, service: str, plan: Plan | None) -> None:
        entry = self._entry(service) or self._afar(service)
        heard = self._heard.get(service, {})
        waits = {node: one for node, one in heard.items() if node in self._arrived_ms}
        if entry is None and waits:
            heard = {node: one for node, one in heard.items() if node not in waits}
            self._heard[service] = waits
        elif entry is not None or self._welcomed:
            self._heard.pop(service, None)
        if entry is not None and (entry.grant.sources or entry.grant.sinks):
            self._fed[service] = None
        elif service in self._fed:
            del self._fed[service]
        elif not heard or (service in self._heard and not waits):
            return
        nodes = dict.fromkeys(heard)
        nodes.update({node: None for one, node in self._told if one == service})
        if entry is not None:
            self._inherit(entry, heard)
            self._settle_entry(entry, nodes, plan)
            return
        for node in nodes:
            self._tell(node, Feed(service, 0))
        self._forget(service)

    def _settle_entry(self, entry: TaskEntry, nodes: dict[str, None], plan: Plan | None) -> None:
        """Tell the nodes that shall hold a feed of a service, and those that may still do."""
        by_node = self._chosen(entry)
        for node in nodes:
            if node not in by_node and self._lingers(entry, node):
                by_node[node] = ()
        for source in entry.grant.sources:
            # Who could provide it may do so, as an earlier scheduler has told it.
            nodes.update(dict.fromkeys(source.nodes))
        for node in nodes:
            if node not in by_node:
                self._tell(node, Feed(entry.grant.service, 0))
        for node, sources in by_node.items():
            self._tell(node, self._feed(entry, plan if sources else None, sources))

    def _chosen(self, entry: TaskEntry) -> dict[str, tuple[Source, ...]]:
        """Return the nodes that shall hold a feed of a service, with their sources."""
        service = entry.grant.service
        found: dict[str, tuple[Source, ...]] = {}
        for source in entry.grant.sources:
            node = self._provider(service, source)
            found[node] = (*found.get(node, ()), source)
        found.pop("", None)
        self._ends[service] = ends = self._ends_of(entry)
        for node in sorted(ends):
            found.setdefault(node, ())
        for node in found:
            self._leaving.pop((service, node), None)
        return found

    def _ends_of(self, entry: TaskEntry) -> frozenset[str]:
        """Return the nodes with a copy that gives, or is to give, an output for a sink."""
        if not entry.grant.sinks:
            return frozenset()
        tasks = self._table.of_service(entry.grant.service)
        found = (self._table.tasks.get(task) for task in tasks)
        return frozenset(
            copy.node
            for one in found
            for copy in (one.copies() if one is not None else ())
            if any(edge.source == copy.grant.spec.step for edge in copy.grant.outputs)
        )

    def _lingers(self, entry: TaskEntry, node: str) -> bool:
        """Whether a node that is no more chosen keeps the sinks for what is under way."""
        key = entry.grant.service, node
        told = self._told.get(key)
        if told is None or not told.feed.sinks or not entry.grant.sinks:
            self._leaving.pop(key, None)
            return False
        due_ms = self._leaving.setdefault(key, self._desk.now_ms + LINGER_MS)
        if self._desk.now_ms < due_ms:
            return True
        del self._leaving[key]
        return False

    def _inherit(self, entry: TaskEntry, heard: dict[str, Feeding]) -> None:
        """Have sources read on as an earlier life of the scheduler has chosen, if that may be."""
        service = entry.grant.service
        able = {
            node
            for source in entry.grant.sources
            for node in source.nodes or self._having(service, source)
        }
        said = [one for node, one in heard.items() if node in able and one.number < self._first]
        newest = max(said, key=lambda one: one.number, default=None)
        if newest is None or newest.number <= self._since.get(service, -1):
            return
        data = Data(newest.rate_per_s, newest.decimation, newest.function)
        if data_allowed(entry, data) or self._entry(service) is None:
            self.set_data(service, data)
            self._since[service] = newest.number
            self._stale.pop(service)

    def _forget(self, service: str) -> None:
        for known in (self._data, self._since, self._ends):
            known.pop(service, None)
        for by_node in (self._providers, self._leaving):
            for key in [key for key in by_node if key[0] == service]:
                del by_node[key]

    def _feed(self, entry: TaskEntry, plan: Plan | None, sources: tuple[Source, ...]) -> Feed:
        grant, data = entry.grant, self.data(entry.grant.service)
        latency_ms = latency_bound(entry)
        budget_ms = BUDGET_MAX_MS
        if latency_ms is not None:
            wanted_ms = int(latency_ms * BUDGETS_PER_LATENCY)
            budget_ms = max(BUDGET_MIN_MS, min(BUDGET_MAX_MS, wanted_ms))
        return Feed(
            grant.service,
            0,
            plan,
            sources,
            grant.sinks,
            budget_ms,
            data.rate_per_s,
            data.decimation,
            data.function,
            grant.spec.priority,
        )

    def _provider(self, service: str, source: Source) -> str:
        """Return the node that shall provide a source: it stays while it is there."""
        candidates = source.nodes or self._having(service, source)
        if candidates and self._nodes.state(candidates[0]) is NodeState.MOVED:
            # It provides the source from where it is, as long as the anchor has it first.
            candidates = ()
        if self._stays(service):
            homes = self._homes(service, source)
            candidates = tuple(node for node in candidates if homes == {node})
        online = [node for node in candidates if self._nodes.state(node) is NodeState.ONLINE]
        key = (service, source.input)
        chosen = self._providers.get(key, "")
        if not online and chosen in candidates and self._nodes.state(chosen) is NodeState.SUSPECT:
            # Nobody could take its place: it goes on until it is known to be lost.
            online = [chosen]
        if chosen not in online:
            self._providers[key] = online[0] if online else ""
        return self._providers[key]

    def _stays(self, service: str) -> bool:
        """Whether raw input may not leave the node that it comes to be on."""
        entry = self._entry(service)
        bounds = entry.grant.sla.zone.bounds if entry is not None else ()
        return any(one.indicator == PRIVACY and one.level == STAYS for one in bounds)

    def _homes(self, service: str, source: Source) -> set[str]:
        """Return the nodes of the tasks that take a source in, where they run now."""
        found = (self._table.tasks.get(task) for task in self._table.of_service(service))
        return {
            entry.current.node
            for entry in found
            if entry is not None and entry.current is not None
            for edge in entry.grant.spec.inputs
            if (edge.source, edge.source_port) == (REQUEST, source.input)
        }

    def _having(self, service: str, source: Source) -> tuple[str, ...]:
        """Return the nodes of the service's envelopes that have a source."""
        found: dict[str, None] = {}
        for task in self._table.of_service(service):
            entry = self._table.tasks.get(task)
            for node in entry.grant.nodes if entry is not None else ():
                if node in self._nodes and self._has(node, source):
                    found[node] = None
        return tuple(found)

    def _has(self, node: str, source: Source) -> bool:
        inventory = self._nodes.inventory(node)
        match source.kind:
            case SourceKind.SENSOR:
                return source.name in inventory.sensors
            case SourceKind.FILE:
                return inventory.files
            case SourceKind.TOPIC:
                return True

    def _tell(self, node: str, feed: Feed) -> None:
        key = (feed.service, node)
        if self._nodes.state(node) is NodeState.MOVED:
            # The scheduler of its cell tells it, also whether the feed ends.
            self._told.pop(key, None)
            return
        old = self._told.get(key)
        if old is not None and msgspec.structs.replace(old.feed, number=0) == feed:
            return
        self._number += 1
        if len(self._told) >= MAX_TOLD:
            del self._told[next(iter(self._told))]
        self._told[key] = told = _Told(msgspec.structs.replace(feed, number=self._number))
        self._say(node, told)

    def _say(self, node: str, told: _Told) -> None:
        told.sent_ms = self._desk.now_ms
        if self._nodes.state(node) not in AWAY:
            told.times += 1
            self._desk.tell(ToNode(node), told.feed, "feed")


def latency_bound(entry: TaskEntry) -> float | None:
    """Return the latency that was agreed for the whole service, ms."""
    for bound in entry.grant.sla.zone.bounds:
        if bound.indicator == "latency_ms" and bound.at_most is not None:
            return bound.at_most
    return None


def data_allowed(entry: TaskEntry, data: Data) -> bool:
    """Whether the envelope allows the sources to be read so."""
    leeway = entry.grant.leeway
    return data == AS_DECLARED or (
        (not data.rate_per_s or 0 < leeway.rate_min_per_s <= data.rate_per_s)
        and (data.decimation == 1 or data.decimation in leeway.decimations)
        and (not data.function or data.function in leeway.functions)
    )
