"""The choice of programs: measured when a service is first placed, weighed anew as figures come.

Nothing waits for a calibration. A service starts as its authors' predictions say; what is not known
of its programs is then measured on nodes that may run them: on each where they are few, else on
those of the envelope and on one of every other board. When all have answered, or the time is over,
the service is placed anew with what is known by then. Later words about runs do the same for its
programs alone, on the nodes where its tasks are, ever more rarely while that changes something.
"""

from collections.abc import Iterator
from typing import Final

from msgspec import Struct, structs

from controller.anchor.book import Book
from controller.anchor.calibration_inputs import runs_of
from controller.anchor.envelopes import program as program_of
from controller.anchor.lifecycle import SERVING
from controller.anchor.placement.columns import driving
from controller.anchor.placement.rules import Program, programs, runs_on
from controller.anchor.placing import Placing
from controller.anchor.search import Found
from controller.decider import Received
from controller.records import TaskRecord
from protocols.forms import has_choice
from protocols.messages import Calibrate, Calibrated, RunFigures
from protocols.messages.hierarchy import Autonomy

TIMER: Final = "calibrations/"
CALIBRATIONS_MS: Final = 30_000
"""What all calibrations of a service may take; then it is weighed with what is known."""
CALIBRATION_MS: Final = 5000
"""What a node may take for one of them."""
SERVICE_CALIBRATIONS_MAX: Final = 64
"""Asked for a service at once; what is left out is asked after the next placement."""
FEW_NODES: Final = 8
"""So many nodes are all measured."""
AGAIN_MS: Final = 1000
"""A service that is on its way is looked at again after so long."""
CHANGED: Final = 0.2
"""Share by which a run must have changed before the service is weighed anew..."""
PAUSE_MS: Final = 10_000
PAUSE_MAX_MS: Final = 600_000
"""... and how long after the last time: twice as long after each change, within these bounds."""


class _Asked(Struct, frozen=True):
    service: str
    digest: str
    provider: str
    board: str
    node: str


class _Weighing(Struct):
    """When a service is weighed anew."""

    until_ms: int = 0
    """When its calibrations are over at the latest; 0: there are none."""
    due: str = ""
    """Why it is to be weighed; empty: it is not."""
    moves: bool = False
    """Whether other nodes are looked at too."""
    after_ms: int = 0
    pause_ms: int = PAUSE_MS
    weighed_ms: dict[str, float] = {}
    """Of each task, what a run was predicted to take."""


class Calibrations:
    """Has programs measured, and their services weighed with what is found."""

    def __init__(self, book: Book, placing: Placing) -> None:
        self._book = book
        self._figures = book.figures
        self._placing = placing
        self._asked: dict[str, _Asked] = {}
        self._services: dict[str, _Weighing] = {}
        self._number = 0

    # What is asked.

    def settle(self) -> None:
        """Have measured what is not known of the services that were placed in this turn."""
        placed, self._placing.applied = self._placing.applied, {}
        for service, cause in placed.items():
            if service in self._book.services:
                self._ask(service, cause)
        for service in self._services.keys() - self._book.services.keys():
            del self._services[service]

    def _ask(self, service: str, cause: str) -> None:
        asked = 0
        for task in self._book.ordered(service):
            if not has_choice(task.spec) or task.leaving is not None:
                continue
            for program, node in self._unknown(task):
                if asked == SERVICE_CALIBRATIONS_MAX:
                    break
                asked += self._send(task, program, node, cause)
        if asked:
            weighing = self._services.setdefault(service, _Weighing())
            weighing.until_ms = self._book.desk.now_ms + CALIBRATIONS_MS
            self._wake(service, weighing.until_ms)

    def _unknown(self, task: TaskRecord) -> Iterator[tuple[Program, str]]:
        """Yield what is not known of a task's programs, and the nodes to ask."""
        pending = {(one.digest, one.provider, one.node) for one in self._asked.values()}
        nodes = self._nodes(task)
        inventories = (
            one.inventory for one in self._book.nodes.values() if one.scheduler == task.scheduler
        )
        for program in programs(task.spec, driving(inventories)):
            manifest = program.manifest
            if manifest.remembers or manifest.infers:
                # What needs more than its inputs is learnt of as it serves.
                continue
            digest = manifest.artifact.digest
            for node in nodes:
                known = self._figures.of(digest, program.provider, node)
                able = runs_on(program, self._book.inventories[node])
                asked = (digest, program.provider, node) in pending
                if able and not asked and (known is None or not known.tried):
                    yield program, node

    def _nodes(self, task: TaskRecord) -> list[str]:
        book, spec = self._book, task.spec
        there = [
            one.node
            for one in book.nodes.values()
            if book.usable(one.node, task.scheduler) and (not spec.nodes or one.node in spec.nodes)
        ]
        first = [one for one in task.nodes if one in there]
        there = first + sorted(set(there) - set(first))
        if len(there) <= FEW_NODES:
            return there
        boards = {book.inventories[one].profile for one in first}
        for node in there[len(first) :]:
            board = book.inventories[node].profile
            if board not in boards:
                boards.add(board)
                first.append(node)
        return first

    def _send(self, task: TaskRecord, program: Program, node: str, cause: str) -> bool:
        desk, manifest = self._book.desk, program.manifest
        self._number += 1
        number = f"{task.spec.task}/{desk.now_ms}.{self._number}"
        self._asked[number] = _Asked(
            task.service,
            manifest.artifact.digest,
            program.provider,
            self._book.inventories[node].profile,
            node,
        )
        asked = Calibrate(
            number,
            desk.name,
            node,
            task.spec.task,
            manifest,
            program.provider,
            runs_of(task.spec, manifest),
            CALIBRATION_MS,
        )
        desk.tell_role(task.scheduler, asked, cause, task.tenant)
        return True

    # What is heard.

    def calibrated(self, event: Received, found: Calibrated) -> None:
        """Take in a calibration; nodes that this anchor hears itself say it twice."""
        if event.sender not in self._book.settings.schedulers:
            return
        asked = self._asked.get(found.number)
        if asked is None or asked.node != found.node:
            self._book.counters["stale_report"] += 1
            return
        del self._asked[found.number]
        self._figures.tried(asked.digest, asked.provider, asked.board, found, event.cause)
        if not any(one.service == asked.service for one in self._asked.values()):
            self._over(asked.service, "its programs are measured", event.cause)

    def ran(self, event: Received, told: RunFigures) -> None:
        """Take in how a task has run; a lasting change is worth a look at its programs."""
        task = self._book.tasks.get(told.task)
        inventory = self._book.inventories.get(told.node)
        if task is None or inventory is None or event.sender != task.scheduler:
            return
        digest = program_of(task.spec, told.variant).artifact.digest
        known = self._figures.of(digest, told.provider, told.node)
        run_ms = self._figures.ran(digest, inventory.profile, told, event.cause)
        self._placing.rebook(task, event.cause)
        weighing = self._services.setdefault(task.service, _Weighing())
        before_ms = weighing.weighed_ms.get(told.task)
        if weighing.until_ms:
            # It is weighed as soon as its calibrations are over.
            return
        if before_ms is None:
            weighing.weighed_ms[told.task] = run_ms
            if (known is None or not known.runs) and not weighing.due:
                self._want(task.service, weighing, "its first runs are known", moves=False)
        elif abs(run_ms - before_ms) > CHANGED * max(run_ms, before_ms) and not weighing.due:
            why = f"{told.task} takes {run_ms:.1f} ms a run on {told.node}, not {before_ms:.1f}"
            self._want(task.service, weighing, why, moves=False)

    def fired(self, service: str) -> None:
        """Weigh a service whose time has come."""
        weighing = self._services.get(service)
        if weighing is None:
            return
        now_ms = self._book.desk.now_ms
        if weighing.until_ms and now_ms >= weighing.until_ms:
            for number in [key for key, one in self._asked.items() if one.service == service]:
                del self._asked[number]
            self._over(service, "the time for its calibrations is over", "calibrations")
        elif weighing.due and now_ms >= weighing.after_ms:
            self._weigh(service, weighing, "weighed")

    # What comes of it.

    def _over(self, service: str, why: str, cause: str) -> None:
        weighing = self._services.get(service)
        if weighing is None or service not in self._book.services:
            return
        weighing.until_ms = weighing.after_ms = 0
        weighing.due, weighing.moves = why, True
        self._weigh(service, weighing, cause)

    def _want(self, service: str, weighing: _Weighing, why: str, *, moves: bool) -> None:
        weighing.due, weighing.moves = why, moves
        weighing.after_ms = max(weighing.after_ms, self._book.desk.now_ms)
        self._wake(service, weighing.after_ms)

    def _wake(self, service: str, at_ms: int) -> None:
        self._book.desk.wake(TIMER + service, at_ms)

    def _weigh(self, service: str, weighing: _Weighing, cause: str) -> None:
        """Place a service anew with what is known now; one on its way is looked at later."""
        now_ms = self._book.desk.now_ms
        tasks = self._book.ordered(service)
        if any(not _settled(one) for one in tasks):
            weighing.after_ms = now_ms + AGAIN_MS
            self._wake(service, weighing.after_ms)
            return
        why, weighing.due = weighing.due, ""
        weighing.after_ms = now_ms + weighing.pause_ms
        weighing.weighed_ms = {}
        free = {one.spec.task for one in tasks if self._choosable(one)}
        found = self._placing.search.weighed(service, free, keep=not weighing.moves)
        if found is None or not found.complete:
            return
        changed = {
            one.spec.task for one in tasks if one.spec.task in found.free and _other(one, found)
        }
        for task in tasks:
            name = task.spec.task
            if name in found.free and name not in changed:
                self._book.put(structs.replace(task, placement=found.plan[name]), cause)
        found = structs.replace(found, free=frozenset(changed))
        if changed and self._placing.apply(service, found, cause, why):
            weighing.pause_ms = min(PAUSE_MAX_MS, 2 * weighing.pause_ms)
            weighing.after_ms = now_ms + weighing.pause_ms

    def _choosable(self, task: TaskRecord) -> bool:
        """Whether the programs of a task are the anchor's to choose now."""
        order = self._book.services[task.service].order
        own = task.variant == task.tuning.variant
        # What a program remembers is of no use to another one.
        keeps = task.spec.manifest.remembers
        return has_choice(task.spec) and own and not keeps and order.autonomy is not Autonomy.MANUAL


def _settled(task: TaskRecord) -> bool:
    return (
        task.state in SERVING
        and task.leaving is None
        and task.held is None
        and task.asked is None
        and task.served == task.generation
        and bool(task.nodes)
    )


def _other(task: TaskRecord, found: Found) -> bool:
    """Whether a plan wants a task to run otherwise than it does."""
    plan, now = found.plan[task.spec.task], task.tuning
    return (plan.chosen[0], plan.variant, plan.provider, plan.warmth) != (
        task.node,
        now.variant,
        now.provider,
        now.warmth,
    )
