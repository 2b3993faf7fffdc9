"""Two anchors and two cells: jobs find their way by any scheduler, or are to be submitted again."""

from typing import Any

from jobs_world import (
    ABOVE,
    CLIENT,
    NAMO,
    OTHER,
    REPLY,
    TA,
    TS,
    Node,
    World,
    jobs_of,
    query,
    say,
    says,
    submit,
)
from msgspec import structs

from controller.anchor.decider import Anchor
from controller.anchor.decider import Settings as AnchorSettings
from controller.decider import Received, Record
from controller.records import JOB, TASK
from controller.scheduler.decider import Scheduler
from controller.scheduler.decider import Settings as SchedulerSettings
from protocols.errors import Blame
from protocols.messages import JobHandover, ServiceDelete, ServiceOrder
from protocols.messages.job import JobState
from protocols.qoais import ServiceKind
from protocols.topics import Channel

TS2 = "ts-two"


class Two(World):
    """Node n1 is in the first cell, n2 in the second."""

    def __init__(self, schedulers_of_old: tuple[str, ...] = (TS, TS2)) -> None:
        self.schedulers = {TA: schedulers_of_old, OTHER: (TS, TS2)}
        self.cell = {"n1": TS, "n2": TS2}
        self.asks_at = TS
        self.store_of_second: dict[tuple[str, str], Record] = {}
        super().__init__("n1", "n2", start=False, anchors=(TA, OTHER))
        self.start_controller()
        for node in self.nodes.values():
            node.start()
        self.settle()
        self.all_specs = self.specs
        self.specs = self.bound("n1")
        self.order()
        self.settle()
        self.nodes["n1"].holds = True
        say(self, submit("j1", b"v1"))
        self.passes(100)

    def bound(self, node: str) -> Any:
        return tuple(structs.replace(one, nodes=(node,)) for one in self.all_specs)

    def stored(self, role: str) -> dict[tuple[str, str], Record]:
        return self.store_of_second if role == TS2 else super().stored(role)

    def start_anchor(self, name: str = TA) -> None:
        self.roles[name] = Anchor(AnchorSettings(name, self.schedulers[name], NAMO))
        self.timers = {key: at for key, at in self.timers.items() if key[0] != name}
        records = list(self.stored(name).values())
        self.take(name, self.roles[name].restore(records, self.now_ms))

    def start_scheduler(self) -> None:
        self.epoch += 1
        for name in (TS, TS2):
            settings = SchedulerSettings(name=name, epoch=self.epoch, anchors=self.anchors)
            self.roles[name] = Scheduler(settings)
            self.take(name, self.roles[name].restore([], self.now_ms))

    def from_node(self, node: Node, channel: Channel, body: Any) -> None:
        said = Received(node.name, node.incarnation, 0, "default", "test", body)
        if not self.lose(channel, body):
            self.wire.append(lambda: self.feed(self.cell[node.name], said))

    def client(self, body: Any, tenant: str = "default") -> None:
        said = Received(CLIENT, 7, 0, tenant, "test", body, REPLY, b"c")
        self.wire.append(lambda: self.feed(self.asks_at, said))

    def taken_over(self) -> None:
        """Have the other anchor run it in the second cell, for the first one has lost its node."""
        self.nodes["n1"].kill()
        self.passes(5000, 500)
        order = ServiceOrder(
            "svc", "uc", ServiceKind.COMPUTING, 2, self.bound("n2"), self.outputs,
            epochs_above=ABOVE, taken_from=(TA,),
        )  # fmt: skip
        says(self, OTHER, order)
        self.settle()
        assert self.store_of_other[TASK, "svc.s0"].value.scheduler == TS2


def arrives(world: Two) -> None:
    world.settle()
    world.passes(10_000, 500)
    assert (JOB, "j1") not in world.store
    assert jobs_of(world, OTHER)["j1"].state is JobState.DONE
    assert len(world.ends()) == 1


def test_jobs_reach_the_scheduler_of_the_new_cell() -> None:
    world = Two()
    world.taken_over()
    says(world, TA, ServiceDelete("svc", 2, transferred=True))
    arrives(world)


def test_where_only_the_old_cell_is_shared_its_scheduler_passes_them_on() -> None:
    world = Two((TS,))
    world.taken_over()
    says(world, TA, ServiceDelete("svc", 2, transferred=True, anchor=OTHER))
    arrives(world)


def test_a_service_of_another_cell_is_to_be_asked_again() -> None:
    world = Two()
    says(world, TA, ServiceDelete("svc", 2, anchor=OTHER))
    world.settle()
    (end,) = world.ends()
    assert end.failure == world.record().failure
    assert (end.failure.blame, end.failure.retryable) == (Blame.ENVIRONMENT, True)
    assert end.failure.text == "service 'svc' has moved to another cell: submit the job again"


def test_who_waits_is_told_that_nobody_has_taken_its_job() -> None:
    world = Two()
    world.lose = lambda _to, body: isinstance(body, JobHandover)
    world.taken_over()
    says(world, TA, ServiceDelete("svc", 2, transferred=True, anchor=OTHER))
    world.asks_at = TS2
    say(world, query())
    world.passes(700_000, 2000)
    (end,) = world.ends()
    assert world.record().state is JobState.FAILED
    assert end.failure.retryable
