"""What must hold at every step of a run; the first broken rule ends it and names its seed.

The checkers see what crosses a door: what a role was told and says, what stores and journals keep,
what executors start. They trust no role's own idea of its state.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Sequence

from msgspec import Struct

from controller.booking import may_grow_to
from controller.decider import Decider, Event, Output, Received, Record, Role
from controller.records import JOB, TASK, JobRecord, TaskRecord
from controller.scheduler.adoption import FORGOTTEN
from controller.twin.envelopes import Envelopes
from controller.twin.remembered import Remembered
from controller.twin.rules import BrokenRule, Rule
from controller.twin.words import Words
from controller.twin.world import World
from device_agent.core.commands import Change, Forget, Keep
from protocols.messages import (
    JobAccepted,
    JobRun,
    MemoryState,
    NodeSummary,
    Release,
    Status,
    TaskEvent,
)
from protocols.messages.job import JobState
from protocols.messages.task import InstanceState

OVER = frozenset({JobState.DONE, JobState.FAILED, JobState.CANCELLED})


class Checkers:
    """Watches a run."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.counts: Counter[str] = Counter()
        """Faults that struck, and what was checked, by name."""
        self.jobs: dict[str, JobRecord] = {}
        """The durable state of each job that was ever recorded."""
        self._journalled: dict[tuple[str, str], int] = {}
        self._unwritten: set[tuple[str, str, int]] = set()
        self._released: dict[tuple[str, str], int] = {}
        self._holder: dict[tuple[str, int], str] = {}
        self._envelopes: dict[str, Envelopes] = {}
        self._words: dict[str, Words] = {}
        self._rooms: dict[str, _Rooms] = {}
        self.memories = Remembered()

    def broken(self, rule: Rule, text: str) -> BrokenRule:
        """Return the error that ends the run."""
        return BrokenRule(rule, f"seed {self.world.seed} at {self.world.now_ms:.0f} ms: {text}")

    def forget(self) -> None:
        """Take note that a store was lost: leases begin anew, what nodes keep counts on."""
        self._holder.clear()
        self.jobs.clear()
        self.memories.over()

    # Nodes.

    def node_started(self, node: str) -> None:
        """Take note of a start."""
        del node
        self.counts["node starts"] += 1

    def journalled(self, node: str, changes: Iterable[Change]) -> None:
        """Check what a node keeps: epochs never fall, none comes back, each has one node."""
        for change in changes:
            if isinstance(change, Keep):
                self._kept(node, change.assign.task, change.assign.epoch)
            elif isinstance(change, Forget):
                self._rises(node, change.task, change.epoch)
                self._released[node, change.task] = change.epoch

    def _kept(self, node: str, task: str, epoch: int) -> None:
        self._rises(node, task, epoch)
        if epoch <= self._released.get((node, task), 0):
            raise self.broken(
                Rule.EPOCH, f"{node} takes {task} again under epoch {epoch}, which it had released"
            )
        holder = self._holder.setdefault((task, epoch), node)
        if holder != node:
            raise self.broken(
                Rule.EPOCH, f"{task} is held under epoch {epoch} by {holder} and by {node}"
            )

    def _rises(self, node: str, task: str, epoch: int) -> None:
        held = self._journalled.get((node, task), 0)
        if epoch < held:
            text = f"{node} goes back from epoch {held} of {task} to {epoch}"
            raise self.broken(Rule.EPOCH, text)
        self._journalled[node, task] = epoch

    def unwritten(self, node: str, task: str, epoch: int) -> None:
        """Take note that a node was told that its journal does not take this."""
        self._unwritten.add((node, task, epoch))

    def announced(self, node: str, status: Status, kept_epoch: int) -> None:
        """Check that a node speaks of no assignment that a crash could take back.

        What it refuses it does not keep; what serves already goes on when the disk is full.
        """
        gives_up = status.state in (InstanceState.FAILED, InstanceState.STOPPED)
        excused = (node, status.task, status.epoch) in self._unwritten
        if status.epoch > kept_epoch and not gives_up and not excused:
            raise self.broken(
                Rule.JOURNAL,
                f"{node} says {status.state} of {status.task} under epoch {status.epoch}, "
                f"its journal has {kept_epoch}",
            )

    def ran(self, node: str, task: str) -> None:
        """Count an execution."""
        del node, task
        self.counts["executions"] += 1

    def capacity(self, node: str, held_bytes: int, limit_bytes: int) -> None:
        """Check that a node holds no more than it may give to tasks."""
        if held_bytes > limit_bytes:
            raise self.broken(
                Rule.CAPACITY,
                f"{node} holds {held_bytes >> 20} MiB of tasks, it may {limit_bytes >> 20}",
            )

    # Stores.

    def recorded(self, before: Struct | None, record: Record) -> None:
        """Check what becomes durable: a job's end is its last word, no epoch is leased twice."""
        if record.kind == JOB:
            self._job_recorded(before, record)
        elif record.kind == TASK and isinstance(before, TaskRecord):
            after = record.value
            if isinstance(after, TaskRecord) and after.epoch_high < before.epoch_high:
                text = f"falls from {before.epoch_high} to {after.epoch_high}"
                raise self.broken(Rule.EPOCH, f"the lease of {record.key} {text}")

    def _job_recorded(self, before: Struct | None, record: Record) -> None:
        known = self.jobs.get(record.key)
        after = record.value
        if not isinstance(after, JobRecord):
            if isinstance(before, JobRecord) and before.state not in OVER:
                raise self.broken(Rule.LOST, f"job {record.key} was forgotten as {before.state}")
            return
        if known is not None and known.state in OVER:
            same = after.state is known.state and after.parts == known.parts
            if not same:
                raise self.broken(
                    Rule.DOUBLED, f"job {record.key} was {known.state} and is {after.state} again"
                )
        self.jobs[record.key] = after

    # Roles.

    def role_started(
        self, name: str, role: Role, records: Iterable[Record], anchors: Collection[str]
    ) -> None:
        """Forget what an earlier life of a role was told; the anchors are those of its process."""
        self.counts[f"{role} starts"] += 1
        if role is Role.TS:
            self._envelopes[name] = Envelopes(self.broken, anchors)
            self._words[name] = Words(self.broken)
        elif role is Role.TA:
            self._rooms[name] = _Rooms(records)

    def decided(self, decider: Decider, batch: Sequence[Event], output: Output) -> None:
        """Check what a role says against all that it was told."""
        name = decider.name
        if decider.role is Role.TS:
            self._envelopes[name].decided(batch, output, self.world.now_ms)
            self._words[name].decided(batch, output)
            self._given_up(output)
        elif decider.role is Role.TA:
            over = self._rooms[name].decided(batch, output)
            if over:
                raise self.broken(Rule.RESERVATION, over)

    def _given_up(self, output: Output) -> None:
        """Take note of memories that a scheduler gives up."""
        bodies = [send.body for send in output.sends]
        events = [one for one in bodies if isinstance(one, TaskEvent)]
        told = {one.task for one in events if one.event == "memory-lost"}
        for body in bodies:
            if isinstance(body, MemoryState):
                given_up = body.final and bool(body.reason)
            elif isinstance(body, Release):
                given_up = body.reason == FORGOTTEN and body.task in told
            else:
                continue
            if given_up:
                self.memories.give_up(body.task, body.epoch)
                self.counts["memories given up"] += 1

    def said(self, output: Output) -> None:
        """Check what leaves a host: nothing is acknowledged that is not durable."""
        for send in output.sends:
            body = send.body
            if isinstance(body, JobAccepted) and body.accepted and body.job not in self.jobs:
                text = f"job {body.job} is acknowledged and not recorded"
                raise self.broken(Rule.JOURNAL, text)

    def hurried(self, output: Output) -> None:
        """Check what leaves before anything is durable: nothing of it may promise."""
        for send in output.early:
            if not isinstance(send.body, JobRun):
                kind = type(send.body).__name__
                raise self.broken(Rule.JOURNAL, f"{kind} leaves before it is durable")

    def watch(self, alive: Iterable[str]) -> None:
        """Check, now and then, that each scheduler has escalated what it must."""
        for name in alive:
            if name in self._envelopes:
                self._envelopes[name].watch(self.world.now_ms)


class _Rooms:
    """What one anchor has set aside on each node, by its own records."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._tasks: dict[str, dict[str, int]] = {}
        self._growths: dict[str, dict[str, int]] = {}
        self._taken: Counter[str] = Counter()
        self._limits: dict[str, int] = {}
        for record in records:
            if record.kind == TASK:
                self._take(record)

    def _take(self, record: Record) -> list[str]:
        """Take a record in; return the nodes on which it sets more aside than before."""
        task = record.value
        before = self._tasks.pop(record.key, {})
        after = task.reserved if isinstance(task, TaskRecord) else {}
        self._taken.subtract(before)
        self._taken.update(after)
        for node in before:
            self._growths.get(node, {}).pop(record.key, None)
        if isinstance(task, TaskRecord):
            for node, size in after.items():
                growth = max(0, may_grow_to(task) - size)
                self._growths.setdefault(node, {})[record.key] = growth
        if after:
            self._tasks[record.key] = after
        return [node for node, size in after.items() if size > before.get(node, 0)]

    def decided(self, batch: Sequence[Event], output: Output) -> str:
        """Return which node is overbooked by this turn; empty when none is."""
        for event in batch:
            if isinstance(event, Received) and isinstance(event.body, NodeSummary):
                self._limits[event.body.node] = event.body.inventory.task_memory_bytes
        grown: dict[str, str] = {}
        for record in output.records:
            if record.kind == TASK:
                grown.update(dict.fromkeys(self._take(record), record.key))
        for node, task in grown.items():
            taken = self._taken[node] + max(self._growths[node].values(), default=0)
            limit = self._limits.get(node)
            if limit is not None and taken > limit:
                return (
                    f"{taken >> 20} MiB are set aside on {node}, for {task} at last, "
                    f"of {limit >> 20}"
                )
        return ""
