"""One run of the twin: a fleet, use cases, clients and faults from one seed."""

import json
from collections.abc import Callable
from typing import Final

from msgspec import Struct

from controller.anchor.decider import Anchor
from controller.anchor.decider import Settings as AnchorSettings
from controller.decider import Decider
from controller.namo.decider import Namo
from controller.records import TASK, TaskRecord, TaskState
from controller.scheduler.decider import Scheduler
from controller.scheduler.decider import Settings as SchedulerSettings
from controller.twin.checkers import Checkers
from controller.twin.client import SimClient
from controller.twin.hosting import SimHost, SimStore
from controller.twin.node import Shape, SimNode
from controller.twin.world import Faults, Network, World

CELL: Final = "twin"
CHECK_MS: Final = 500


class Plan(Struct, frozen=True):
    """What a run is made of."""

    nodes: int = 100
    services: int = 10
    steps: int = 3
    requests_per_s: float = 2.0
    """Of each service."""
    budget_ms: int = 20_000
    seconds: int = 60
    quiet_seconds: int = 30
    """At the end without faults, for the fleet to converge."""
    kills: int = 10
    """Nodes killed and started again, at drawn times."""
    cuts: int = 5
    """Nodes cut off and reconnected."""
    controller_kills: int = 1
    faults: Faults = Faults()


class Outcome(Struct, frozen=True):
    """What came of it."""

    seed: int
    simulated_ms: int
    steps: int
    messages: int
    requests: int
    answered: int
    unanswered: int
    executions: int
    tasks: int
    running: int
    latency_p50_ms: int
    latency_p99_ms: int


class Submission(Struct, frozen=True):
    """The arguments of `usecase.submit`, as NAMO reads them."""

    document: str
    format: str = "json"
    dry_run: bool = False


class Twin:
    """A simulated cell that a scenario can also drive by hand."""

    def __init__(self, seed: int, plan: Plan) -> None:
        self.plan = plan
        self.world = World(seed)
        self.network = Network(self.world, plan.faults)
        self.checkers = Checkers(seed)
        self.store = SimStore()
        self.host = SimHost("gateway", CELL, self.world, self.network, self.store, _deciders)
        self.nodes = {
            name: SimNode(name, CELL, self.world, self.network, Shape(), self.checkers.ran)
            for name in (f"node-{number:04d}" for number in range(plan.nodes))
        }
        self.clients: list[SimClient] = []

    def boot(self) -> None:
        """Start the controller, then every node within two seconds."""
        self.host.start()
        for node in self.nodes.values():
            self.world.after(self.world.dice.randint(0, 2000), node.start)
        self.world.after(CHECK_MS, self._check)

    def submit(self, number: int) -> None:
        """Submit one use case: a chain of tasks."""
        self.host.call("usecase.submit", Submission(json.dumps(chain(number, self.plan.steps))))

    def run(self) -> Outcome:
        """Run the whole plan and check what must hold. Raises BrokenRule."""
        self.boot()
        self.world.run_until(3000)
        for number in range(self.plan.services):
            self.submit(number)
            client = SimClient(
                f"client-{number}", CELL, f"service-{number}", self.world, self.network
            )
            self.clients.append(client)
            self.world.after(5000, self._stream(client))
        self._draw_faults()
        self.world.run_until(self.plan.seconds * 1000)
        self.network.faults = Faults()
        self.world.run_until((self.plan.seconds + self.plan.quiet_seconds) * 1000)
        tasks = self.tasks()
        placed = {name: task.node for name, task in tasks.items()}
        self.checkers.converged(self.nodes, tasks, placed)
        return self._outcome(tasks)

    def tasks(self) -> dict[str, TaskRecord]:
        """Return the durable tasks."""
        return {
            key: record.value
            for (kind, key), record in self.store.current.items()
            if kind == TASK and isinstance(record.value, TaskRecord)
        }

    def _outcome(self, tasks: dict[str, TaskRecord]) -> Outcome:
        answered, unanswered = self.checkers.answered(self.clients)
        waits = sorted(
            asked.answered_ms - asked.sent_ms
            for client in self.clients
            for asked in client.requests.values()
            if asked.answered_ms is not None
        )
        return Outcome(
            self.world.seed,
            self.world.now_ms,
            self.world.steps,
            self.network.messages,
            answered + unanswered,
            answered,
            unanswered,
            self.checkers.runs,
            len(tasks),
            sum(task.state is TaskState.RUNNING for task in tasks.values()),
            waits[len(waits) // 2] if waits else 0,
            waits[len(waits) * 99 // 100] if waits else 0,
        )

    def _check(self) -> None:
        self.checkers.capacity(self.nodes.values())
        self.world.after(CHECK_MS, self._check)

    def _stream(self, client: SimClient) -> Callable[[], None]:
        gap_ms = max(1, round(1000 / self.plan.requests_per_s))

        def send() -> None:
            if self.world.now_ms + gap_ms < self.plan.seconds * 1000:
                client.request(self.plan.budget_ms)
                self.world.after(gap_ms, send)

        return send

    def _draw_faults(self) -> None:
        dice, last_ms = self.world.dice, self.plan.seconds * 1000
        names = sorted(self.nodes)
        killed = dice.sample(names, min(self.plan.kills, len(names)))
        for name in killed:
            node, at_ms = self.nodes[name], dice.randint(6000, last_ms - 8000)
            self.world.at(at_ms, node.kill)
            self.world.at(at_ms + dice.randint(500, 7000), node.start)
        standing = [name for name in names if name not in killed]
        for name in dice.sample(standing, min(self.plan.cuts, len(standing))):
            node, at_ms = self.nodes[name], dice.randint(6000, last_ms - 8000)
            self.world.at(at_ms, lambda node=node: node.cut(off=True))  # type: ignore[misc]
            mend_ms = at_ms + dice.randint(500, 7000)
            self.world.at(mend_ms, lambda node=node: node.cut(off=False))  # type: ignore[misc]
        for _ in range(self.plan.controller_kills):
            at_ms = dice.randint(8000, last_ms - 8000)
            self.world.at(at_ms, self.host.kill)
            self.world.at(at_ms + dice.randint(200, 3000), self.host.start)


def chain(number: int, steps: int) -> dict[str, object]:
    """Return a use case of one service: `steps` Wasm tasks in a row over a byte vector."""
    port = {"dtype": "uint8", "shape": [-1]}
    artifact = {"digest": "sha256:" + f"{number:064x}", "size_bytes": 1000}
    tasks = [
        {
            "name": f"step{at}",
            "executor": "wasm",
            "artifact": artifact,
            "inputs": {
                "x": {"from": "request.x", **port} if at == 0 else {"from": f"step{at - 1}.x"}
            },
            "outputs": {"x": port},
        }
        for at in range(steps)
    ]
    service = {
        "name": f"service-{number}",
        "kind": "computing",
        "outputs": {"x": f"step{steps - 1}.x"},
        "tasks": tasks,
    }
    return {"name": f"usecase-{number}", "services": [service]}


def _deciders(epoch: int) -> list[Decider]:
    return [
        Namo("namo-main", "ta-main"),
        Anchor(AnchorSettings()),
        Scheduler(SchedulerSettings(epoch=epoch)),
    ]
