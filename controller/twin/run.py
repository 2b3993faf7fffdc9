"""One run of the twin: a fleet, use cases, clients and faults from one seed."""

import json
from collections.abc import Callable
from functools import partial
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
ASK_AGAIN_MS: Final = 1500
"""Without an answer a person repeats an operation after this."""


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
    blackouts: int = 0
    """Every node killed at once, and started again within seconds."""
    shut_downs: int = 0
    """Nodes that end in order and start again."""
    breaks: int = 0
    """Nodes whose executors start nothing for some seconds."""
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
    shape: Shape = Shape()
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


class Named(Struct, frozen=True):
    """The arguments of operations on one use case or node."""

    name: str


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
            name: SimNode(name, CELL, self.world, self.network, plan.shape, self.checkers.ran)
            for name in (f"node-{number:04d}" for number in range(plan.nodes))
        }
        self.clients: dict[int, SimClient] = {}
        """Of each use case that lives."""
        self.drained: set[str] = set()

    def boot(self) -> None:
        """Start the controller, then every node within two seconds."""
        self.host.start()
        late_ms = self.plan.seconds * 500
        for at, node in enumerate(reversed(self.nodes.values())):
            last_ms = late_ms if at < self.plan.late_nodes else 2000
            self.world.after(self.world.dice.randint(0, last_ms), node.start)
        self.world.after(CHECK_MS, self._check)

    def operate(self, operation: str, arguments: Struct) -> None:
        """Ask the controller for something until it has done it, as a patient person does."""
        call = self.host.call(operation, arguments)

        def look() -> None:
            answer = self.host.answers.get(call)
            if answer is None or answer.error:
                self.operate(operation, arguments)

        self.world.after(ASK_AGAIN_MS, look)

    def submit(self, number: int, version: int = 0) -> None:
        """Submit one use case, a chain of tasks, or change it to another version."""
        document = chain(number, self.plan.steps + version, version)
        self.operate("usecase.submit", Submission(json.dumps(document)))

    def delete(self, number: int) -> None:
        """Delete a use case; what its client still waits for is not counted."""
        self.clients.pop(number)
        self.operate("usecase.delete", Named(f"usecase-{number}"))

    def follow(self, number: int) -> None:
        """Have a client send requests to a use case's service from soon on."""
        name = f"client-{number}-{self.world.now_ms}"
        client = SimClient(name, CELL, f"service-{number}", self.world, self.network)
        self.clients[number] = client
        self.world.after(2000, self._stream(number, client))

    def run(self) -> Outcome:
        """Run the whole plan and check what must hold. Raises BrokenRule."""
        self.boot()
        self.world.run_until(3000)
        for number in range(self.plan.services):
            self.submit(number)
            self.follow(number)
        self._draw_faults()
        self._draw_operations()
        self.world.run_until(self.plan.seconds * 1000)
        self.network.faults = Faults()
        self.world.run_until((self.plan.seconds + self.plan.quiet_seconds) * 1000)
        tasks = self.tasks()
        placed = {name: task.node for name, task in tasks.items()}
        self.checkers.emptied(self.drained, placed)
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
        answered, unanswered = self.checkers.answered(self.clients.values())
        waits = sorted(
            asked.answered_ms - asked.sent_ms
            for client in self.clients.values()
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

    def _stream(self, number: int, client: SimClient) -> Callable[[], None]:
        gap_ms = max(1, round(1000 / self.plan.requests_per_s))

        def send() -> None:
            lives = self.clients.get(number) is client
            if lives and self.world.now_ms + gap_ms < self.plan.seconds * 1000:
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
        for _ in range(self.plan.blackouts):
            at_ms = dice.randint(6000, last_ms - 8000)
            for node in self.nodes.values():
                self.world.at(at_ms, node.kill)
                self.world.at(at_ms + dice.randint(500, 7000), node.start)
        for name in dice.sample(names, min(self.plan.shut_downs, len(names))):
            at_ms = dice.randint(6000, last_ms - 20_000)
            self.world.at(at_ms, self.nodes[name].shut_down)
            self.world.at(at_ms + dice.randint(11_000, 15_000), self.nodes[name].start)

        for name in dice.sample(names, min(self.plan.breaks, len(names))):
            at_ms = dice.randint(3000, last_ms - 15_000)
            self.world.at(at_ms, partial(setattr, self.nodes[name], "broken", True))
            mend_ms = at_ms + dice.randint(2000, 15_000)
            self.world.at(mend_ms, partial(setattr, self.nodes[name], "broken", False))
        for _ in range(self.plan.wipes):
            self.world.at(dice.randint(last_ms // 3, last_ms - 10_000), self.wipe)

    def wipe(self) -> None:
        """Lose the store, start the controller without it and submit everything again."""
        self.host.kill()
        self.store.current.clear()
        self.host.start()
        for number in self.clients:
            self.submit(number)

    def _draw_operations(self) -> None:
        plan, dice, last_ms = self.plan, self.world.dice, self.plan.seconds * 1000
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
        for name in dice.sample(sorted(self.nodes), plan.drains):
            self.world.at(dice.randint(6000, last_ms), partial(self.drain, name))

    def drain(self, name: str) -> None:
        """Empty a node for good."""
        self.drained.add(name)
        self.operate("node.drain", Named(name))


def chain(number: int, steps: int, version: int = 0) -> dict[str, object]:
    """Return a use case of one service: `steps` Wasm tasks in a row over a byte vector."""
    port = {"dtype": "uint8", "shape": [-1]}
    artifact = {"digest": "sha256:" + f"{version:032x}{number:032x}", "size_bytes": 1000}
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
