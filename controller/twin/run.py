"""One run of the twin: a fleet, use cases, clients and faults from one seed."""

import json
import traceback
from collections.abc import Mapping
from functools import partial
from typing import Final

from msgspec import Struct

from controller.decider import Role
from controller.namo.submission import DELETING
from controller.records import TaskRecord, TaskState
from controller.twin.checkers import Checkers
from controller.twin.client import SimClient
from controller.twin.faults import Fault, Kind, Striker, draw
from controller.twin.hands import Shape
from controller.twin.hosting import Places, SimHost
from controller.twin.network import Network, Weather
from controller.twin.node import SimNode
from controller.twin.rules import BrokenRule, Rule
from controller.twin.sites import ROAMED, SITES, Site, config_of
from controller.twin.store import SimStore
from controller.twin.usecases import RAW_NODES, Flavour, chain
from controller.twin.verdict import unplaced, unsettled
from controller.twin.world import Clock, Tell, World

WATCH_MS: Final = 1000
SUBMIT_MS: Final = 2500
STREAM_MS: Final = 4500
"""When clients begin to send."""
ASK_AGAIN_MS: Final = 1500
"""Without an answer a person repeats an operation after this."""
FOUND_MS: Final = 3000
"""Within it a request is answered once all has settled: as long as a client takes to doubt its
route, and to hear of the newest one.
"""
CALM_MS: Final = 1000
"""What has settled must stay so for this long."""


class Plan(Struct, frozen=True):
    """What a run is made of."""

    nodes: int = 100
    services: int = 10
    steps: int = 3
    requests_per_s: float = 2.0
    """Of each service."""
    jobs: int = 0
    """Of each service, spread over the run."""
    budget_ms: int = 20_000
    seconds: int = 60
    quiet_seconds: int = 30
    """At the end without faults: within it everything must settle, and then the run is over."""
    faults: Mapping[Kind, int] = {}
    """How many of each kind strike, at drawn times."""
    wipes: int = 0
    """Losses of the controller's store; everything is submitted again, the nodes remember."""
    drains: int = 0
    """Nodes that an operator empties; they stay so."""
    late_nodes: int = 0
    """Nodes that join in the first half of the run, not at its beginning."""
    deletes: int = 0
    """Use cases deleted; as many are submitted anew later as `again` says."""
    again: int = 0
    changes: int = 0
    """Use cases submitted with other tasks while they run."""
    flavours: tuple[Flavour, ...] = (Flavour.PLAIN,)
    """Of the services, in turn."""
    remembers: bool = False
    """Whether each run of a task adds to its memory, which must then be where the task is."""
    deployment: str = "gateway"
    """Of `controller.twin.sites`."""
    shape: Shape = Shape()
    weather: Weather = Weather()
    """Of the whole run but its quiet end."""
    skew: float = 0.0002
    """By how much the clocks of machines run too fast or too slow at most."""
    heartbeat_ms: int = 1000
    sample_ms: int = 1000
    codec_sample: int = 1
    """One in so many frames passes the codec."""


class Outcome(Struct, frozen=True):
    """What came of it."""

    seed: int
    simulated_ms: int
    steps: int
    messages: int
    requests: int
    answered: int
    unanswered: int
    jobs: int
    jobs_failed: int
    """Ended with a reason instead of an answer."""
    executions: int
    tasks: int
    running: int
    latency_p50_ms: float
    latency_p99_ms: float
    counts: dict[str, int]
    """Faults that struck, starts of processes."""
    fingerprint: str
    """Of all that happened: the same seed gives the same one."""


class Submission(Struct, frozen=True):
    """The arguments of `usecase.submit`, as NAMO reads them."""

    document: str
    format: str = "json"
    dry_run: bool = False


class Named(Struct, frozen=True):
    """The arguments of operations on one use case or node."""

    name: str


class Twin:
    """A simulated cell that a scenario can also drive by hand."""

    kind: type[SimNode] = SimNode
    """Of its nodes."""
    watcher: type[Checkers] = Checkers

    def __init__(self, seed: int, plan: Plan, trace: Tell | None = None) -> None:
        self.plan = plan
        self.world = world = World(seed, trace)
        sites = (SITES | ROAMED)[plan.deployment]
        cells = {one.name: self._network(one.name) for one in sites}
        self.networks = list(cells.values())
        """The home of the process that has NAMO first; roles meet there."""
        self.checkers = self.watcher(world)
        self.hosts = {one.name: self._host(one, sites, cells) for one in sites}
        self.cells = [one.name for one in sites if Role.TS in one.roles]
        self.nodes: dict[str, SimNode] = {}
        for number in range(plan.nodes):
            self.add_node(f"node-{number:04d}", plan.shape)
        self.clients: dict[int, SimClient] = {}
        """Of each use case that lives."""
        self.drained: set[str] = set()

    def _clock(self) -> Clock:
        return Clock.drawn(self.world, self.plan.skew)

    def _network(self, cell: str) -> Network:
        return Network(self.world, cell, self.plan.weather, self.plan.codec_sample)

    def _host(self, site: Site, sites: tuple[Site, ...], cells: Mapping[str, Network]) -> SimHost:
        plan = self.plan
        config = config_of(site, sites, plan.heartbeat_ms, plan.sample_ms)
        direct = {one: cells[one] for one in config.cells if site.direct}
        places = Places(cells[site.name], cells[sites[0].name], direct, cells)
        store = SimStore(self.checkers)
        return SimHost(config, self.world, places, store, self.checkers, self._clock())

    def add_node(self, name: str, shape: Shape, cell: str = "") -> SimNode:
        """Have one more node, not started yet; without a cell, in turn over all."""
        cell = cell or self.cells[len(self.nodes) % len(self.cells)]
        network = self.hosts[cell].places.home
        node = self.kind(name, self.world, network, shape, self.checkers, self._clock())
        self.nodes[name] = node
        return node

    @property
    def head(self) -> SimHost:
        """The process of NAMO."""
        return next(iter(self.hosts.values()))

    def where(self, service: str) -> Network | None:
        """Return at which broker a service is served, as its anchor says; None: nowhere yet."""
        if len(self.cells) == 1:
            return self.hosts[self.cells[0]].places.home
        for task in self.tasks().values():
            if task.service == service and task.scheduler:
                for cell in self.cells:
                    if self.hosts[cell].config.ts == task.scheduler:
                        return self.hosts[cell].places.home
        return None

    # What people do.

    def boot(self) -> None:
        """Start the controller, then every node within two seconds."""
        for host in self.hosts.values():
            host.start()
        late_ms = self.plan.seconds * 500
        for at, node in enumerate(reversed(self.nodes.values())):
            last_ms = late_ms if at < self.plan.late_nodes else 2000
            self.world.after(self.world.dice.randint(0, last_ms), node.start)
        self.world.after(WATCH_MS, self._watch)

    def operate(self, operation: str, arguments: Struct) -> None:
        """Ask the controller for something until it has done it, as a patient person does."""
        host = self.head
        if isinstance(arguments, Named) and operation.startswith("node."):
            host = self.hosts[self.nodes[arguments.name].network.cell]
        call = host.call(operation, arguments)
        self.world.after(ASK_AGAIN_MS, partial(self._look, host, call, operation, arguments))

    def _look(self, host: SimHost, call: str, operation: str, arguments: Struct) -> None:
        answer = host.answers.get(call)
        refused = answer is not None and answer.error and DELETING not in answer.error
        if answer is not None and refused and operation == "usecase.submit":
            raise RuntimeError(f"the twin's own use case is refused: {answer.error}")
        if answer is None or answer.error:
            self.operate(operation, arguments)

    def submit(self, number: int, version: int = 0) -> None:
        """Submit one use case, a chain of tasks, or change it to another version."""
        flavours = self.plan.flavours
        flavour = flavours[number % len(flavours)]
        steps = self.plan.steps + version
        document = chain(number, steps, version, flavour, remembers=self.plan.remembers)
        self.operate("usecase.submit", Submission(json.dumps(document)))

    def delete(self, number: int) -> None:
        """Delete a use case; what its client still waits for is not counted."""
        self.clients.pop(number)
        self.checkers.memories.over(f"service-{number}")
        self.operate("usecase.delete", Named(f"usecase-{number}"))

    def drain(self, name: str) -> None:
        """Empty a node for good."""
        self.drained.add(name)
        self.operate("node.drain", Named(name))

    def wipe(self) -> None:
        """Lose the stores, start the controller without them and submit everything again."""
        for host in self.hosts.values():
            host.kill()
            host.store.lose()
        self.checkers.forget()
        for host in self.hosts.values():
            host.start()
        for number in self.clients:
            self.submit(number)

    def follow(self, number: int) -> None:
        """Have a client send requests, and jobs, to a use case's service from soon on."""
        name = f"client-{number}-{int(self.world.now_ms)}"
        service = f"service-{number}"
        client = SimClient(name, service, self.world, self.networks, partial(self.where, service))
        self.clients[number] = client
        begin_ms = STREAM_MS - SUBMIT_MS
        if self.plan.requests_per_s:
            gap_ms = max(1, round(1000 / self.plan.requests_per_s))
            self.world.after(begin_ms, partial(self._request, number, client, gap_ms))
        span_ms = self.plan.seconds * 1000 - self.world.now_ms - begin_ms
        for at in range(self.plan.jobs):
            wait_ms = begin_ms + span_ms * at / self.plan.jobs
            self.world.after(wait_ms, partial(self._job, number, client))

    def _request(self, number: int, client: SimClient, gap_ms: int) -> None:
        lives = self.clients.get(number) is client
        if lives and self.world.now_ms + gap_ms < self.plan.seconds * 1000:
            client.request(self.plan.budget_ms)
            self.world.after(gap_ms, partial(self._request, number, client, gap_ms))

    def _job(self, number: int, client: SimClient) -> None:
        if self.clients.get(number) is client:
            client.submit()

    # The run.

    def run(self, faults: list[Fault] | None = None) -> Outcome:
        """Run the whole plan and check what must hold. Raises BrokenRule."""
        plan, world = self.plan, self.world
        try:
            self.boot()
            world.run_until(SUBMIT_MS)
            for number in range(plan.services):
                self.submit(number)
                self.follow(number)
            Striker(self).plan(self._drawn() if faults is None else faults)
            self._draw_operations()
            world.run_until(plan.seconds * 1000)
            for network in self.networks:
                network.calm = network.weather = Weather()
            self._settle()
        except BrokenRule:
            raise
        except Exception as bug:
            # Whatever a decider stumbles over is a finding, with its seed.
            raise self.checkers.broken(Rule.BUG, stumble(bug)) from bug
        return self._outcome()

    def _settle(self) -> None:
        """Run until everything has settled and stays so, within the quiet time."""
        end_ms = self.world.now_ms + self.plan.quiet_seconds * 1000
        calm_ms = 0
        reason: BrokenRule | None = None
        while self.world.now_ms < end_ms:
            self.world.run_until(self.world.now_ms + WATCH_MS)
            reason = unsettled(self)
            calm_ms = 0 if reason else calm_ms + WATCH_MS
            if calm_ms > CALM_MS:
                self._ask_once_more()
                return
        if reason:
            raise reason

    def _ask_once_more(self) -> None:
        """Have each client ask again: what has settled is found by whoever looks for it."""
        waiting = unplaced(self)
        asked = []
        for client in self.clients.values():
            if client.service not in waiting:
                client.request(FOUND_MS)
                asked.append(client)
        self.world.run_until(self.world.now_ms + FOUND_MS)
        for client in asked:
            name, last = list(client.requests.items())[-1]
            if last.answered_ms is None:
                text = f"{name} to {client.service} is not answered although all has settled"
                raise self.checkers.broken(Rule.FOUND, f"{text}: {last.failure}")

    def tasks(self) -> dict[str, TaskRecord]:
        """Return the durable tasks."""
        return {
            name: task
            for host in self.hosts.values()
            for name, task in sorted(host.store.tasks.items())
        }

    def _outcome(self) -> Outcome:
        tasks = self.tasks()
        asked = [one for client in self.clients.values() for one in client.requests.values()]
        waits = sorted(
            one.answered_ms - one.sent_ms for one in asked if one.answered_ms is not None
        )
        jobs = [one for client in self.clients.values() for one in client.jobs.values()]
        counts = dict(sorted(self.checkers.counts.items()))
        return Outcome(
            self.world.seed,
            int(self.world.now_ms),
            self.world.steps,
            sum(one.messages for one in self.networks),
            len(asked),
            len(waits),
            len(asked) - len(waits),
            len(jobs),
            sum(bool(one.failure or one.refused) for one in jobs),
            counts.pop("executions", 0),
            len(tasks),
            sum(task.state is TaskState.RUNNING for task in tasks.values()),
            waits[len(waits) // 2] if waits else 0,
            waits[len(waits) * 99 // 100] if waits else 0,
            counts,
            self.world.fingerprint,
        )

    def _watch(self) -> None:
        self.checkers.watch(
            name for host in self.hosts.values() if host.alive for name in host.roles
        )
        self.world.after(WATCH_MS, self._watch)

    # What is drawn.

    def _drawn(self) -> list[Fault]:
        plan = self.plan
        kinds = [kind for kind in Kind for _ in range(plan.faults.get(kind, 0))]
        window_ms = (STREAM_MS, plan.seconds * 1000)
        return draw(self.world.dice, kinds, sorted(self.nodes), sorted(self.hosts), window_ms)

    def _draw_operations(self) -> None:
        plan, dice, last_ms = self.plan, self.world.dice, self.plan.seconds * 1000
        for _ in range(plan.wipes):
            self.world.at(dice.randint(last_ms // 3, last_ms - 10_000), self.wipe)
        numbers = dice.sample(range(plan.services), plan.deletes + plan.changes)
        deleted, changed = numbers[: plan.deletes], numbers[plan.deletes :]
        for at, number in enumerate(deleted):
            at_ms = dice.randint(3500, last_ms // 2)
            self.world.at(at_ms, partial(self.delete, number))
            if at < plan.again:
                again_ms = dice.randint(last_ms * 2 // 3, last_ms - 5000)
                self.world.at(again_ms, partial(self.submit, number))
                self.world.at(again_ms, partial(self.follow, number))
        for number in changed:
            for version in (1, 2):
                at_ms = dice.randint(3500, last_ms // 2) * version
                self.world.at(at_ms, partial(self.submit, number, version))
        # A task that has to stay where it is cannot be drained away.
        bound = RAW_NODES if Flavour.PRIVATE in plan.flavours else ()
        for name in dice.sample(sorted(self.nodes.keys() - set(bound)), plan.drains):
            self.world.at(dice.randint(6000, last_ms), partial(self.drain, name))


def stumble(bug: Exception) -> str:
    """Say what was raised, and where."""
    frame = traceback.extract_tb(bug.__traceback__)[-1]
    return f"{type(bug).__name__}: {bug} ({frame.filename}:{frame.lineno} in {frame.name})"
