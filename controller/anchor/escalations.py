"""Escalations of schedulers: each is answered once, with what changes or why nothing does.

Theory of operation. A loss is always mended, whatever the autonomy: other nodes, another program,
another cell. For a quality that is in danger or broken there is an *episode* for each task: every
escalation of it tries the next remedy that is possible, and none twice but for more nodes. A
change has to show its effect before the next one (`COOLDOWN_MS`). Where nothing is left NAMO is
asked, with everything that was tried, and not again before `ASK_AGAIN_MS`. With a manual autonomy
a person is asked, by way of NAMO, before anything is done. An episode is over when its scheduler
has been silent about the quality for `KEPT_MS` after a change, or `REFUSED_MS` after a refusal.
"""

from typing import Final

from msgspec import Struct, field, structs

from controller.anchor.book import Book
from controller.anchor.faults import TRIED, failures, hopeless
from controller.anchor.granting import Granting
from controller.anchor.lifecycle import SERVING, TaskEvent
from controller.anchor.placing import Placing
from controller.anchor.quarantine import Quarantines
from controller.anchor.remedies import Remedies, Remedy
from controller.anchor.transfers import Transfers
from controller.anchor.upward import TEXT_LENGTH, Upward
from controller.decider import Received
from controller.records import TaskRecord, TaskState
from protocols import messages
from protocols.base import EPOCH_LIMIT
from protocols.messages import Escalation, EscalationAnswer
from protocols.messages.hierarchy import Attempt, Autonomy

COOLDOWN_MS: Final = 1500
KEPT_MS: Final = 15_000
REFUSED_MS: Final = 90_000
"""Longer than a scheduler waits at most before it escalates again."""
ASK_AGAIN_MS: Final = 60_000
MAX_STEPS: Final = 8
"""Changes of one episode; after them NAMO has to find something else."""
MAX_NODE_STEPS: Final = 3
MAX_OVER: Final = 512
"""Tasks that are over and whose last answer is still known."""
TIMER: Final = "quality/"
_OVER: Final = ("calm", "relaxing")
"""Words of a scheduler that a danger is over."""


WHY_LENGTH: Final = 500
"""Characters of a reason that a task keeps."""


class Episode(Struct):
    """What was done for the quality of one task since it was last kept."""

    generation: int
    attempts: list[Attempt] = field(default_factory=list)
    done: list[str] = field(default_factory=list)
    """Kinds of the remedies that were granted, in order."""
    changed_ms: int | None = None
    asked_ms: int | None = None


class Escalations:
    """Answers schedulers, and takes in the answers of NAMO."""

    def __init__(
        self,
        book: Book,
        granting: Granting,
        placing: Placing,
        transfers: Transfers,
        upward: Upward,
        quarantines: Quarantines,
    ) -> None:
        self._quarantines = quarantines
        self._book = book
        self._granting = granting
        self._placing = placing
        self._transfers = transfers
        self._upward = upward
        self._remedies = Remedies(book, placing)
        self._episodes: dict[str, Episode] = {}
        self._answers: dict[str, EscalationAnswer] = {}
        """The last answer to each task's scheduler: the same question gets the same answer."""

    def _prune(self) -> None:
        """Forget tasks that are over, from time to time."""
        tasks = self._book.tasks
        if len(self._answers) > MAX_OVER + len(tasks):
            self._answers = {name: one for name, one in self._answers.items() if name in tasks}
            self._episodes = {name: one for name, one in self._episodes.items() if name in tasks}

    # From below.

    def escalation(self, event: Received, escalation: Escalation) -> None:
        """Answer an escalation: with a new configuration, or with a refusal."""
        name = escalation.task
        answer = self._answers.get(name)
        if answer is None or answer.number != escalation.number:
            granted, reason = self._decide(event, escalation)
            answer = EscalationAnswer(escalation.number, name, granted, reason[:TEXT_LENGTH])
            if name in self._book.tasks:
                self._prune()
                self._answers[name] = answer
                told = "waits" if self._pending(name, reason) else "refused"
                self._book.tell(name, "granted" if granted else told, reason, event.cause)
        self._book.desk.tell_role(event.sender, answer, event.cause, event.tenant)

    def _pending(self, name: str, reason: str) -> bool:
        """Whether this is said because a person has not answered yet."""
        asked = self._book.tasks[name].asked
        return asked is not None and bool(asked.proposal) and reason == _asks(asked.proposal)

    def _decide(self, event: Received, escalation: Escalation) -> tuple[bool, str]:
        task = self._book.tasks.get(escalation.task)
        if task is None or task.service not in self._book.services:
            return False, f"task {escalation.task!r} is not anchored here: give it up"
        if task.state is TaskState.DELETING:
            return False, "the task is being deleted"
        if event.sender != task.scheduler:
            return False, f"the task belongs to {task.scheduler or 'no scheduler'} now"
        if escalation.generation == task.generation and not escalation.indicator:
            task = self._tried(task, escalation, event.cause)
        if escalation.refused or escalation.generation != task.generation:
            act = self._refused if escalation.refused else self._older
            return act(task, escalation, event.cause)
        tried = "; ".join(f"{one.action}: {one.outcome}" for one in escalation.attempts[:8])
        given_up = hopeless(task) and not escalation.indicator
        if not given_up:
            self._book.stories.tell(
                escalation.task, "ts", "escalated", _problem(escalation, tried), event.cause
            )
        act = self._quality if escalation.indicator else self._loss
        return (False, task.reason) if given_up else act(task, escalation, event.cause)

    def _older(self, task: TaskRecord, escalation: Escalation, cause: str) -> tuple[bool, str]:
        """Answer for a generation that is to be replaced: it gets epochs, and nothing else."""
        serves = task.held is not None and escalation.generation == task.granted
        if serves and task.epoch_high <= escalation.epoch_seen < EPOCH_LIMIT:
            task = structs.replace(task, epoch_high=escalation.epoch_seen)
            self._granting.renew(task, cause)
            return True, f"fresh epochs for {', '.join(task.nodes)}"
        over = f"generation {escalation.generation} is over"
        return False, f"{over}: a place is sought for {task.generation}"

    def _tried(self, task: TaskRecord, escalation: Escalation, cause: str) -> TaskRecord:
        """Note which nodes could not run a task."""
        found = failures(task, escalation.attempts)
        if found == task.failures:
            return task
        return self._book.put(structs.replace(task, failures=found), cause)

    def _refused(self, task: TaskRecord, escalation: Escalation, cause: str) -> tuple[bool, str]:
        """Replace nodes that tasks of other anchors have filled before the grant came there."""
        name, service = task.spec.task, task.service
        if escalation.epoch_seen != task.epoch_high:
            return False, "a newer envelope is on its way"
        refused = frozenset(escalation.refused)
        failed = self._placing.search.failed.setdefault(name, {})
        failed.update(dict.fromkeys(refused, "tasks of other anchors have the room there"))
        left = task.leaving.node if task.leaving else ""
        # A scheduler that has begun anew may have nothing of the task any more.
        serving = task.node if task.state in SERVING and not escalation.broken else ""
        nodes = tuple(one for one in task.nodes if one not in refused)
        held = {
            node: size
            for node, size in task.reserved.items()
            if node in nodes or node in (serving, left)
        }
        if serving in refused and serving in held:
            held[serving] = min(held[serving], escalation.held_bytes)
        self._book.tell(name, "envelope", escalation.problem, cause)
        if nodes and (not task.spec.group or nodes[0] == task.nodes[0]):
            self._book.put(structs.replace(task, nodes=nodes, reserved=held), cause)
            self._placing.part(task, refused, cause)
            self._placing.place(service, cause)
            return True, f"envelope {', '.join(self._book.tasks[name].nodes)}"
        if nodes or serving:
            # What serves goes on there under the envelope of before.
            kept = structs.replace(task, nodes=nodes or (serving,), reserved=held)
            self._book.put(kept, cause)
        else:
            homeless = self._book.homeless(task)
            reserved = {node: size for node, size in held.items() if node == left}
            self._book.put(structs.replace(homeless, reserved=reserved), cause)
        granted = self._placing.seek(service, {name}, cause)
        self._upward.report(service, cause)
        after = self._book.tasks[name]
        if granted:
            return True, f"new envelope {', '.join(after.nodes)}"
        return False, after.reason or "no node can run it now"

    def _loss(self, task: TaskRecord, escalation: Escalation, cause: str) -> tuple[bool, str]:
        """Find other nodes for a task that its envelope cannot hold, or fresh epochs."""
        name, service = task.spec.task, task.service
        failed = self._placing.search.failed.setdefault(name, {})
        for attempt in escalation.attempts:
            node = attempt.action.removeprefix(TRIED)
            # Lost there, it may have come to another cell, and can take its task back there.
            if node != attempt.action and self._book.usable(node, task.scheduler):
                failed[node] = attempt.outcome[:300]
        leases = task.epoch_high <= escalation.epoch_seen < EPOCH_LIMIT
        if leases:
            task = structs.replace(task, epoch_high=escalation.epoch_seen)
            self._book.put(task, cause)
        why = escalation.problem
        if task.leaving is not None and self._transfers.give_up(service, why, cause):
            return False, f"the service returns to {task.leaving.scheduler}"
        task = self._book.tasks[name]
        faults = self._placing.search.faults
        faults.note(task, escalation.attempts)
        granted = False
        if faults.enough(task):
            self._placing.give_up(task, cause)
        else:
            granted = self._placing.seek(service, {name}, cause)
            self._say_why(name, escalation, cause)
        self._upward.report(service, cause)
        after = self._book.tasks[name]
        if granted:
            return True, f"new envelope {', '.join(after.nodes)}"
        if hopeless(after):
            return False, after.reason
        if leases and any(self._book.usable(one) and one not in failed for one in after.nodes):
            self._granting.renew(after, cause)
            return True, f"fresh epochs for {', '.join(after.nodes)}"
        return False, after.reason or "no node can run it now"

    def _say_why(self, name: str, escalation: Escalation, cause: str) -> None:
        """Note what keeps a new version from running, where an older one goes on."""
        task = self._book.tasks[name]
        if task.state is TaskState.MODIFYING and escalation.attempts:
            outcome = escalation.attempts[-1].outcome
            reason = f"the version before goes on, the new one cannot run yet: {outcome}"
            self._book.put(structs.replace(task, reason=reason[:WHY_LENGTH]), cause)

    def _quality(self, task: TaskRecord, escalation: Escalation, cause: str) -> tuple[bool, str]:
        """Try the next remedy of the episode; then NAMO."""
        name, now_ms = task.spec.task, self._book.desk.now_ms
        episode = self._episodes.get(name)
        if episode is None or episode.generation != task.generation:
            episode = self._episodes[name] = Episode(task.generation)
        if episode.changed_ms is not None and now_ms - episode.changed_ms < COOLDOWN_MS:
            return False, f"the last change, {episode.attempts[-1].action}, has to show its effect"
        task = self._endangered(task, escalation, cause)
        if episode.done:
            last = episode.attempts[-1]
            helped = f"did not help: {_measured(escalation)}"
            episode.attempts[-1] = Attempt(last.action, helped)
        granted, reason = self._next(task, episode, escalation, cause)
        quiet_ms = KEPT_MS if granted else REFUSED_MS
        self._book.desk.wake(TIMER + name, now_ms + quiet_ms)
        self._upward.report(task.service, cause)
        return granted, reason

    def _endangered(self, task: TaskRecord, escalation: Escalation, cause: str) -> TaskRecord:
        after = self._book.after(task, TaskEvent.DANGER)
        if after.state is TaskState.DEGRADED:
            after = structs.replace(after, reason=escalation.problem)
        return self._book.put(after, cause) if after != task else task

    def _next(
        self, task: TaskRecord, episode: Episode, escalation: Escalation, cause: str
    ) -> tuple[bool, str]:
        autonomy = self._book.services[task.service].order.autonomy
        if task.asked is not None and task.asked.proposal:
            return False, _asks(task.asked.proposal)
        impossible: list[Attempt] = []
        for kind in self._remedies.kinds(escalation.indicator):
            if not self._open(kind, episode):
                continue
            remedy = self._remedies.make(kind, task, escalation.problem)
            if isinstance(remedy, str):
                impossible.append(Attempt(kind, remedy))
            elif autonomy is Autonomy.MANUAL:
                return self._ask(task, remedy, escalation, episode, cause)
            elif remedy.do(cause):
                episode.attempts.append(Attempt(remedy.action, "granted"))
                episode.done.append(kind)
                episode.changed_ms = self._book.desk.now_ms
                return True, remedy.action
            else:
                impossible.append(Attempt(remedy.action, "there is no room for it"))
        return self._hand_up(task, episode, impossible, escalation, cause)

    def _open(self, kind: str, episode: Episode) -> bool:
        """Whether a kind of remedy may be tried in an episode, still."""
        most = MAX_NODE_STEPS if kind == "nodes" else 1
        return len(episode.done) < MAX_STEPS and episode.done.count(kind) < most

    def _ask(
        self,
        task: TaskRecord,
        remedy: Remedy,
        escalation: Escalation,
        episode: Episode,
        cause: str,
    ) -> tuple[bool, str]:
        """Have a person asked, by way of NAMO; one who has said no is not asked again at once."""
        now_ms = self._book.desk.now_ms
        if task.state not in SERVING or task.state is TaskState.TRANSFERRING:
            return False, "its quality is looked at when it runs"
        if episode.asked_ms is not None and now_ms - episode.asked_ms < ASK_AGAIN_MS:
            return False, f"a person was asked before, for less than {ASK_AGAIN_MS // 1000} s"
        episode.asked_ms = now_ms
        attempts = [*escalation.attempts, *episode.attempts]
        ready = task.state in (TaskState.RUNNING, TaskState.DEGRADED)
        proposal = remedy.action
        if not ready:
            return False, "its quality is looked at when it runs"
        self._upward.escalate(
            task, escalation.problem, attempts, cause, proposal=proposal, of=escalation
        )
        return False, _asks(proposal)

    def _hand_up(
        self,
        task: TaskRecord,
        episode: Episode,
        impossible: list[Attempt],
        escalation: Escalation,
        cause: str,
    ) -> tuple[bool, str]:
        now_ms = self._book.desk.now_ms
        tried = "; ".join(
            f"{one.action}: {one.outcome}" for one in (*episode.attempts, *impossible)
        )
        nothing = f"nothing is left that could help ({tried})"
        if episode.asked_ms is not None and now_ms - episode.asked_ms < ASK_AGAIN_MS:
            return False, f"{nothing}; NAMO knows"
        episode.asked_ms = now_ms
        attempts = [*escalation.attempts, *episode.attempts, *impossible]
        self._upward.escalate(task, escalation.problem, attempts, cause, of=escalation)
        return False, f"{nothing}; NAMO is asked"

    def told(self, event: Received, word: messages.TaskEvent) -> None:
        """Add to a task's story what its scheduler does about its quality inside the envelope."""
        task = self._book.tasks.get(word.task)
        if task is None or event.sender != task.scheduler:
            self._book.counters["stale_report"] += 1
            return
        self._book.stories.tell(word.task, "ts", word.event, word.detail, event.cause, word.blame)
        if word.event in _OVER:
            self.fired(word.task)

    # From above, and time.

    def answered(self, event: Received, answer: EscalationAnswer) -> None:
        """Take in what NAMO says; with an approval, do what was proposed and nothing else."""
        book = self._book
        task = book.tasks.get(answer.task)
        if task is None:
            return
        what = "granted" if answer.granted else "refused"
        book.tell(answer.task, what, answer.reason, event.cause, "namo")
        asked = task.asked
        if asked is None or asked.number != answer.number:
            return
        task = structs.replace(task, asked=None)
        if task.state is TaskState.APPROVAL:
            task = book.after(task, TaskEvent.ANSWER)
        book.put(task, event.cause)
        if asked.proposal:
            self._book.desk.wake(TIMER + answer.task, self._book.desk.now_ms + KEPT_MS)
        if answer.granted and self._quarantines.agreed(
            task, asked.proposal, asked.problem, event.cause
        ):
            return
        if answer.granted and asked.proposal:
            self._do(task, asked.proposal, asked.problem, event.cause)
        self._upward.report(task.service, event.cause)

    def _do(self, task: TaskRecord, proposal: str, problem: str, cause: str) -> None:
        """Do what a person has agreed to, if it is possible still."""
        for kind in self._remedies.kinds(""):
            remedy = self._remedies.make(kind, task, problem)
            if isinstance(remedy, Remedy) and remedy.action == proposal and remedy.do(cause):
                episode = self._episodes.setdefault(task.spec.task, Episode(task.generation))
                episode.attempts.append(Attempt(proposal, "granted"))
                episode.done.append(kind)
                episode.changed_ms = self._book.desk.now_ms
                wake_ms = self._book.desk.now_ms + KEPT_MS
                self._book.desk.wake(TIMER + task.spec.task, wake_ms)
                return
        self._book.tell(task.spec.task, "not done", f"{proposal}: not possible any more", cause)

    def fired(self, name: str) -> None:
        """End an episode: the danger is over, or the scheduler has been silent for long enough."""
        task = self._book.tasks.get(name)
        if task is None or (task.asked is not None and task.asked.proposal):
            return
        self._episodes.pop(name, None)
        if task.state is TaskState.DEGRADED:
            after = structs.replace(self._book.after(task, TaskEvent.KEPT), reason="")
            self._book.put(after, "quiet")
            self._book.tell(name, "kept", "its quality is kept again", "quiet")
            self._upward.report(task.service, "quiet")

    def restored(self) -> None:
        """Wait anew for silence about every quality that was in danger before a crash."""
        for name, task in self._book.tasks.items():
            if task.state is TaskState.DEGRADED:
                self._book.desk.wake(TIMER + name, self._book.desk.now_ms + REFUSED_MS)


def _asks(proposal: str) -> str:
    return f"a person is asked whether to {proposal}"[:TEXT_LENGTH]


def _problem(escalation: Escalation, tried: str) -> str:
    text = escalation.problem
    if escalation.indicator:
        text += f" ({_measured(escalation)})"
    return f"{text}; tried: {tried}" if tried else text


def _measured(escalation: Escalation) -> str:
    target = "no target" if escalation.target is None else f"target {escalation.target:g}"
    found = "not measured" if escalation.measured is None else f"measured {escalation.measured:g}"
    return f"{escalation.indicator} {found}, {target}"
