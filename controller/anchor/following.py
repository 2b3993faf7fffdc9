"""Tasks at the edge follow the devices that they serve (docs/decisions/0030).

Theory of operation. Whenever a device is about to come to another cell, or has come, the tasks of
its services on other nodes are looked at: each follows or stays, by predicted quality
(`nearness.py`), and both are told. One that follows is *prepared* in the target cell while it
serves where it is (`Leaving`, as when a service goes to another cell; `transfers.py`), with a first
copy of what it remembers. It switches when the device has come and has stayed for `SETTLE_MS`;
until then a device that goes back finds its instance as it was, and the other one is given up.
A service that serves no device follows its clients, as a whole: schedulers tell how often it is
asked from a cell where it is not served, and when that has lasted it is looked at alike.
What it remembers comes through here, from scheduler to scheduler, and the record says where it is
until all of it has come. Of a node that is lost the last checkpoint goes (`checkpoints.py`).
"""

from collections.abc import Iterator
from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from controller.anchor.elsewhere import Elsewheres
from controller.anchor.handovers import Handovers
from controller.anchor.lifecycle import SERVING
from controller.anchor.nearness import Question, Verdict, weigh
from controller.anchor.placement import NodeFacts
from controller.anchor.placing import Placing
from controller.anchor.search import Found, unplaced
from controller.anchor.transfers import Transfers
from controller.anchor.ways import Ways
from controller.anchor.weighing import Weighing
from controller.decider import Received
from controller.handover_records import HandoverRecord, HandoverState
from controller.records import Home, TaskRecord, TaskState
from protocols.messages import CellReport, MemoryRequest, MemoryState, TaskReport
from protocols.messages.hierarchy import NodeState
from protocols.messages.task import InstanceState

SETTLE_MS: Final = 2000
"""So long a device is in its new cell before a task that follows it switches."""
AGAIN_MS: Final = 30_000
"""A device is looked at again after this: what was prepared may have failed, there may be room."""
LOOKS_MAX: Final = 10
"""So often, after each handover."""
LASTS_MS: Final = 8000
"""So long a service has been asked from another cell before that is looked at."""
CLIENTS: Final = "*"
"""Who is followed where that is no device; no node has this name."""
TIMER: Final = "follow/"
_S = HandoverState
_MOVABLE: Final = tuple(
    one for one in SERVING if one not in (TaskState.TRANSFERRING, TaskState.MODIFYING)
)
_CAME: Final = (_S.SWITCHING, _S.COMPLETED)


class Following:
    """Decides which tasks follow, has them prepared, and brings along what they remember."""

    def __init__(
        self,
        book: Book,
        placing: Placing,
        transfers: Transfers,
        elsewheres: Elsewheres,
        handovers: Handovers,
        ways: Ways,
    ) -> None:
        self._book = book
        self._placing = placing
        self._transfers = transfers
        self._elsewheres = elsewheres
        self._handovers = handovers
        self._ways = ways
        self._weighing = Weighing(book, elsewheres, handovers, ways, self._bound_for)
        self._due: dict[str, str] = {}
        """Devices to look at in this turn, and the cause."""
        self._looks: dict[str, int] = {}
        """How often a device was looked at since its last handover."""
        self._asked: dict[str, int] = {}
        """Services without a device that are asked from other cells, and how often looked at."""
        self._settled_ms: dict[str, int] = {}
        """When a device has been in its cell for long enough."""
        transfers.awaited = self._awaited
        handovers.changed = self.changed

    def restored(self) -> None:
        """Look at the devices that tasks follow: how long they are there is counted anew."""
        for task in self._book.tasks.values():
            if task.leaving is not None and task.leaving.follows not in ("", CLIENTS):
                self._came(task.leaving.follows, "start")

    # When.

    def changed(self, record: HandoverRecord) -> None:
        """Take in how far a handover is."""
        if record.state is _S.COMMANDED or record.state in _CAME:
            self._looks[record.node] = 0
        if record.state in _CAME:
            self._came(record.node, record.handover)
        elif record.state is not _S.PREPARING:
            self._due[record.node] = record.handover

    def _came(self, node: str, cause: str) -> None:
        now_ms = self._book.desk.now_ms
        self._settled_ms[node] = now_ms + SETTLE_MS
        self._book.desk.wake(TIMER + node, now_ms + SETTLE_MS)
        self._due[node] = cause

    def fired(self, node: str) -> None:
        """Let what follows a device switch, and look again at what stays."""
        if node.startswith(CLIENTS):
            self._look_for_clients(node.removeprefix(CLIENTS))
            return
        self._settled_ms.pop(node, None)
        for service in self._services(node):
            self._transfers.complete(service, TIMER)
        self._due[node] = TIMER

    def settle(self) -> None:
        """Look at the devices that have moved."""
        due, self._due = self._due, {}
        for node, cause in due.items():
            self._look(node, cause)

    def _awaited(self, service: str) -> bool:
        followed = {
            one.leaving.follows for one in self._book.ordered(service) if one.leaving is not None
        }
        return any(one and not self._there(one, service) for one in followed)

    def _there(self, node: str, service: str) -> bool:
        """Whether a device is in the cell that its tasks follow it to, and has been for long."""
        if node == CLIENTS:
            return True
        facts = self._book.nodes.get(node)
        to = {one.scheduler for one in self._book.ordered(service) if one.leaving is not None}
        return facts is not None and facts.scheduler in to and node not in self._settled_ms

    # Which.

    def _look(self, node: str, cause: str) -> None:
        facts = self._book.nodes.get(node)
        if facts is None or facts.state is not NodeState.ONLINE:
            self._looks.pop(node, None)
            return
        to, looked = self._bound_for(node, facts), False
        for service in self._services(node):
            self._back(service, node, to, cause)
            for task in self._serving(service, node, to):
                self._decide(task, node, to, cause)
                looked = True
        looks = self._looks.get(node, 0)
        if looked and looks < LOOKS_MAX and node not in self._settled_ms:
            self._looks[node] = looks + 1
            self._book.desk.wake(TIMER + node, self._book.desk.now_ms + AGAIN_MS)

    def _bound_for(self, node: str, facts: NodeFacts) -> str:
        """Return the scheduler of the cell where a device is, or is just going to."""
        record = self._handovers.under_way(node)
        going = record is not None and record.state is _S.COMMANDED
        at = record.target if record is not None and going else ""
        points = self._elsewheres.points.values()
        return next((one.scheduler for one in points if one.cell == at), facts.scheduler)

    def _services(self, node: str) -> list[str]:
        """Return the services that have a task or a source on a node."""
        tasks = self._book.tasks
        found = {tasks[one].service for one in self._book.ledger.tasks_on(node)}
        found.update(self._book.fed_by(node))
        return sorted(found & self._book.services.keys())

    def _serving(self, service: str, node: str, to: str) -> Iterator[TaskRecord]:
        """Yield the tasks that serve a device from another cell than that, on other nodes."""
        tasks = self._book.ordered(service)
        if any(one.leaving is not None or one.heir for one in tasks):
            return
        devices = self._devices(service)
        for task in tasks:
            away = task.scheduler not in ("", to) and task.node not in devices
            if node in devices and away and _free(task):
                yield task

    def _devices(self, service: str) -> set[str]:
        """Return the nodes that a service is for: they have a task of their own, or the data."""
        found = {one.nodes[0] for one in self._book.services[service].sources if one.nodes}
        for task in self._book.ordered(service):
            if task.attached or task.spec.nodes == (task.node,):
                found.add(task.node)
        return found

    def _back(self, service: str, node: str, to: str, cause: str) -> None:
        """Give up what is prepared where the device does not stay: its instance goes on."""
        moving = [one for one in self._book.ordered(service) if one.leaving is not None]
        for task in moving:
            left = task.leaving
            if left is not None and left.follows == node and task.scheduler != to:
                self._transfers.give_up(service, f"{node} is not there", cause)
                return

    def _decide(self, task: TaskRecord, node: str, to: str, cause: str) -> None:
        """Have a task prepared where its device goes, or leave it where it is."""
        name, service = task.spec.task, task.service
        task = self._book.tasks[name]
        if task.leaving is not None:
            # It goes along with another one of its group.
            return
        found = self._placing.search.toward(service, {name}, task.scheduler, to)
        placement = found.plan.get(name)
        chosen = placement.chosen[0] if found.complete and placement is not None else ""
        refused = placement.reason if placement is not None else "there is no node for it"
        devices = self._devices(service)
        question = self._weighing.of_task(task, devices, chosen, refused)
        self._note(name, node, self._weighed(service, question, found, node, cause), cause)

    def _weighed(
        self, service: str, question: Question, found: Found, follows: str, cause: str
    ) -> Verdict:
        """Return whether tasks follow; those that do are prepared where a plan says."""
        verdict = weigh(question)
        if not verdict.follows:
            return verdict
        if not self._placing.apply(service, found, cause, verdict.reason, follows=follows):
            where = self._elsewheres.cell_of(found.scheduler)
            why = f"stays on {question.here.node}: there is no room for it in {where}"
            return Verdict(False, why)
        self._elsewheres.tell(service, cause)
        return verdict

    def _note(self, name: str, node: str, verdict: Verdict, cause: str) -> None:
        book, reason = self._book, verdict.reason
        task = book.tasks[name]
        if task.following != reason:
            book.put(structs.replace(task, following=reason), cause)
        if task.following.partition(":")[0] != reason.partition(":")[0]:
            event = "follows" if verdict.follows else "stays"
            who = "its clients" if node == CLIENTS else node
            book.tell(name, event, f"{who}: {reason}", cause)
        self._handovers.serves(node, name, reason, cause)

    # Clients.

    def told(self, event: Received, report: CellReport) -> None:
        """Take in what a gateway has seen of other cells, and who asks there."""
        for service in self._ways.told(event, report):
            if service in self._book.services and service not in self._asked:
                self._asked[service] = 0
                self._later(service, LASTS_MS)

    def _later(self, service: str, in_ms: int) -> None:
        self._book.desk.wake(TIMER + CLIENTS + service, self._book.desk.now_ms + in_ms)

    def _look_for_clients(self, service: str) -> None:
        """Have a whole service prepared where most of its clients are, or leave it where it is."""
        looks = self._asked.pop(service, 0)
        if service not in self._book.services or not self._ways.abroad(service):
            return
        self._follow_clients(service)
        if looks < LOOKS_MAX:
            self._asked[service] = looks + 1
            self._later(service, AGAIN_MS)

    def _follow_clients(self, service: str) -> None:
        tasks, abroad = self._book.ordered(service), self._ways.abroad(service)
        homes = {one.scheduler for one in tasks}
        if self._devices(service) or len(homes) != 1 or not all(_free(one) for one in tasks):
            return
        [home] = homes
        to = max(sorted(abroad.keys() - homes), key=lambda one: abroad[one], default="")
        if not to or not home:
            return
        found = self._placing.search.toward(service, {one.spec.task for one in tasks}, home, to)
        chosen = {name: one.chosen[0] for name, one in found.plan.items() if one.chosen}
        whole = found.complete and len(chosen) == len(tasks)
        question = self._weighing.of_service(tasks, chosen if whole else {})
        if not question.askers:
            return
        verdict = self._weighed(service, question, found, CLIENTS, TIMER)
        for task in tasks:
            self._note(task.spec.task, CLIENTS, verdict, TIMER)

    # What they remember, from scheduler to scheduler.

    def asked(self, event: Received, request: MemoryRequest) -> None:
        """Hand a question on to where a memory is; a node that is lost has nothing to say."""
        book, task = self._book, self._book.tasks.get(request.task)
        home = task.memory if task is not None else None
        if task is None or home is None or event.sender != task.scheduler:
            book.counters["stale_report"] += 1
            return
        facts = book.nodes.get(home.node)
        gone = facts is None or facts.state is NodeState.LOST
        lost = gone and not book.unknown(home.node, home.scheduler)
        checkpoint = book.checkpoints.of(request.task)
        if (
            checkpoint is not None
            and checkpoint.digest != request.checkpoint
            and (lost or request.checkpoint is not None)
        ):
            known = structs.replace(checkpoint, epoch=home.epoch)
            book.desk.tell_role(event.sender, known, event.cause, task.tenant)
        if lost:
            why = f"{home.node} is lost"
            said = MemoryState(request.task, home.epoch, final=True, reason=why)
            book.desk.tell_role(event.sender, said, event.cause, task.tenant)
            return
        asked = structs.replace(request, node=home.node, epoch=home.epoch, checkpoint=None)
        book.desk.tell_role(self._keeper(home), asked, event.cause, task.tenant)

    def said(self, event: Received, state: MemoryState) -> None:
        """Hand a memory on to where it is awaited; keep a checkpoint."""
        task = self._book.tasks.get(state.task)
        if state.checkpoint_age_ms is not None:
            self._keep(event, state, task)
            return
        home = task.memory if task is not None else None
        if task is None or home is None or state.epoch != home.epoch:
            self._book.counters["stale_report"] += 1
            return
        if event.sender not in (self._keeper(home), home.scheduler):
            self._book.counters["forged_message"] += 1
            return
        self._book.desk.tell_role(task.scheduler, state, event.cause, task.tenant)

    def _keep(self, event: Received, state: MemoryState, task: TaskRecord | None) -> None:
        left = task.leaving.scheduler if task is not None and task.leaving is not None else ""
        if task is None or event.sender not in (task.scheduler, left):
            self._book.counters["stale_report"] += 1
            return
        self._book.counters["checkpoints"] += 1
        if not self._book.checkpoints.take(state):
            self._book.counters["checkpoints_without_room"] += 1

    def _keeper(self, home: Home) -> str:
        """Return the scheduler that can ask the node where a memory is."""
        facts = self._book.nodes.get(home.node)
        return facts.scheduler if facts is not None and facts.scheduler else home.scheduler

    def reported(self, event: Received, report: TaskReport) -> None:
        """Note that all that a task remembers has come to its new cell."""
        task = self._book.tasks.get(report.task)
        if (
            task is not None
            and task.memory is not None
            and task.leaving is None
            and event.sender == task.scheduler
            and report.state is InstanceState.READY
            and (report.node, report.epoch) == (task.node, task.epoch)
            and not report.awaits
        ):
            self._placing.renew(structs.replace(task, memory=None), event.cause)


def _free(task: TaskRecord) -> bool:
    """Whether a task serves and is on no other way."""
    on_its_way = task.leaving is not None or task.heir or task.memory is not None
    return task.state in _MOVABLE and not unplaced(task) and task.held is None and not on_its_way
