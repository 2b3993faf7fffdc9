"""Fault schedules: a seed becomes a small fleet, work for it and faults, and what came of that."""

import random
from typing import Final

from msgspec import Struct
from msgspec.structs import replace

from controller.twin.faults import Kind
from controller.twin.hands import Shape
from controller.twin.network import CODEC_SAMPLE, Weather
from controller.twin.rules import BrokenRule, Rule
from controller.twin.run import Outcome, Plan, Twin
from controller.twin.sites import SITES
from controller.twin.usecases import Flavour
from controller.twin.world import Tell

JOBS: Final = 204
"""Of one schedule, over its services."""
SERVICES: Final = 3
MAX_FIRST: Final = 16
"""Broken seeds that a report names."""
TASK_BYTES: Final = 256 << 20
CHANGE_SHARE: Final = 0.2
"""Of the schedules, those in which a use case is changed while it runs."""
DELETE_SHARE: Final = 0.1
"""Those in which one is deleted and submitted anew later."""
DRAIN_SHARE: Final = 0.1
"""Those in which a node is emptied."""
ROUGH_SHARE: Final = 0.2
"""Those in which the network is bad all the time."""
ROUGH: Final = Weather((1.0, 60.0), drop_share=0.03, double_share=0.03)
MEMORY_SHARE: Final = 0.3
"""Those of one cell in which tasks remember what their runs have left."""
DEPLOYMENTS: Final = ("gateway", "gateway", *SITES)
"""One process oftener than each of the others: it is the fastest to simulate."""

PLAN: Final = Plan(
    services=SERVICES,
    requests_per_s=0.5,
    budget_ms=15_000,
    seconds=22,
    quiet_seconds=200,
    heartbeat_ms=1500,
    sample_ms=1500,
    skew=0.01,
    codec_sample=CODEC_SAMPLE,
)


class Verdict(Struct, frozen=True):
    """One schedule."""

    seed: int
    rule: Rule | None = None
    """Which one was broken; None: every one was kept."""
    text: str = ""
    fingerprint: str = ""
    """Of all that happened until the end, or until the rule was broken."""
    outcome: Outcome | None = None


class Tally(Struct):
    """Many schedules, added up; the sum does not depend on who ran them."""

    schedules: int = 0
    tasks: int = 0
    """Jobs accepted."""
    tasks_failed: int = 0
    """Of them ended with a reason instead of an answer."""
    placed: int = 0
    """Tasks of services, all running or explained in the end."""
    invocations: int = 0
    answered: int = 0
    executions: int = 0
    messages: int = 0
    simulated_s: float = 0.0
    lost: int = 0
    doubled: int = 0
    violations: int = 0
    """Of any other rule."""
    faults: dict[str, int] = {}
    first: list[Verdict] = []
    """The broken ones of the lowest seeds."""

    def add(self, verdict: Verdict) -> None:
        """Add one schedule."""
        self.schedules += 1
        outcome = verdict.outcome
        if verdict.rule is not None:
            self.lost += verdict.rule is Rule.LOST
            self.doubled += verdict.rule is Rule.DOUBLED
            self.violations += verdict.rule not in (Rule.LOST, Rule.DOUBLED)
            self.first = sorted([*self.first, verdict], key=lambda one: one.seed)[:MAX_FIRST]
        if outcome is not None:
            self.tasks += outcome.jobs
            self.tasks_failed += outcome.jobs_failed
            self.placed += outcome.tasks
            self.invocations += outcome.requests
            self.answered += outcome.answered
            self.executions += outcome.executions
            self.messages += outcome.messages
            self.simulated_s += outcome.simulated_ms / 1000
            for name, number in outcome.counts.items():
                self.faults[name] = self.faults.get(name, 0) + number

    @property
    def broken(self) -> bool:
        """Whether any schedule broke a rule."""
        return bool(self.lost or self.doubled or self.violations)


def plan_of(seed: int) -> Plan:
    """Return the fleet, the work and the faults of a seed."""
    memory = random.Random(f"memory {seed}").random()  # noqa: S311 - as below
    dice = random.Random(f"schedule {seed}")  # noqa: S311 - a run must replay from its seed
    kinds = list(Kind)
    faults: dict[Kind, int] = {}
    for _ in range(dice.randint(3, 12)):
        kind = dice.choice(kinds)
        faults[kind] = faults.get(kind, 0) + 1
    nodes = dice.randint(5, 9)
    steps = dice.randint(1, 3)
    room = max(2, -(-2 * SERVICES * steps // nodes))
    shape = Shape(
        memory_bytes=2 * room * TASK_BYTES,
        run_ms=(1, dice.choice((5, 20, 60))),
        cpu_percent=(5.0, dice.choice((10.0, 14.0, 40.0))),
    )
    plan = replace(
        PLAN,
        nodes=nodes,
        steps=steps,
        jobs=JOBS // SERVICES,
        faults=faults,
        shape=shape,
        changes=dice.random() < CHANGE_SHARE,
        deployment=dice.choice(DEPLOYMENTS),
        flavours=tuple(dice.choice(tuple(Flavour)) for _ in range(SERVICES)),
        deletes=dice.random() < DELETE_SHARE,
        again=1,
        drains=dice.random() < DRAIN_SHARE,
        late_nodes=dice.randint(0, 2),
        weather=ROUGH if dice.random() < ROUGH_SHARE else Weather(),
    )
    one_cell = plan.deployment == "gateway"
    return replace(plan, remembers=one_cell and memory < MEMORY_SHARE)


def run(seed: int, trace: Tell | None = None, plan: Plan | None = None) -> Verdict:
    """Run the schedule of a seed, and tell its story to `trace` where there is one."""
    twin = Twin(seed, plan or plan_of(seed), trace)
    try:
        outcome = twin.run()
    except BrokenRule as broken:
        return Verdict(seed, broken.rule, str(broken), twin.world.fingerprint)
    return Verdict(seed, fingerprint=outcome.fingerprint, outcome=outcome)
