"""The loop that keeps quality inside the envelope: danger, action, check; upwards if it fails.

One action at a time in each service. The cheapest one is taken that is predicted to bring the task
out of danger without breaking another bound; it is checked, taken back if it has not helped, and
taken back too, carefully, when the danger is long over. When nothing inside the envelope is
predicted or shown to help, the TA hears of it once, with everything that was tried.
"""

from typing import Final

from msgspec import Struct

from controller.decider import ToRole
from controller.desk import Desk
from controller.records import QUALITY
from controller.scheduler import envelope
from controller.scheduler.choice import Chosen, choose, place_of, relaxations
from controller.scheduler.complaints import Complaints
from controller.scheduler.copies import CopyState, TaskEntry
from controller.scheduler.cost import CostModel
from controller.scheduler.danger import Danger
from controller.scheduler.feeds import AS_DECLARED, Data, Feeds, data_allowed
from controller.scheduler.gauges import Gauges
from controller.scheduler.levers import Forecast, Levers, Option, Place, anchored
from controller.scheduler.mover import settled
from controller.scheduler.nodes import NodeTable
from controller.scheduler.quality import Col
from controller.scheduler.relief import Relief
from controller.scheduler.routes import ROUTE_CREDIT
from controller.scheduler.table import TaskTable, serves
from controller.scheduler.trials import SETTLE_MS, Bars, Trial, Verdict, judge
from protocols.messages import (
    EnvelopeGrant,
    EscalationAnswer,
    QualityReport,
    TaskEvent,
)
from protocols.qoais import Dimension

QUIET_MS: Final = 2000
"""After an action was judged its service is left alone for so long."""
CALM_MS: Final = 4000
"""Without danger for so long it is over, for the anchor too."""
RELAX_MS: Final = 20_000
RELAX_MAX_MS: Final = 600_000
"""Without danger for so long an action is taken back; longer after each time that went wrong."""
VIEW_MS: Final = 500
"""A service is shown at most so often."""
CREDIT_MIN: Final = 2


class Control(Struct):
    """The loop of one service."""

    trial: Trial | None = None
    quiet_ms: int = -(10**12)
    """Until when it is left alone."""
    calm_ms: int = 0
    """Since when nothing is in danger."""
    relax_ms: int = RELAX_MS
    told: str = ""
    """The danger that the story tells of already."""
    shown_ms: int = -(10**12)
    dirty: bool = False


class Keeper:
    """Keeps the quality of every service of the cell."""

    def __init__(self, desk: Desk, nodes: NodeTable, table: TaskTable, feeds: Feeds) -> None:
        self.cost = CostModel()
        self.gauges = Gauges(desk, nodes, table, feeds, self.cost)
        self.levers = Levers(nodes, self.gauges.meters, self.cost)
        self.bars = Bars()
        self._desk = desk
        self._nodes = nodes
        self._table = table
        self._feeds = feeds
        self._complaints = Complaints(desk)
        self._controls: dict[str, Control] = {}
        self.relief = Relief(desk, nodes, table, self.gauges, self._complaints, self._moving)
        self._grants: dict[str, EnvelopeGrant] = {}

    # What is heard.

    def quality(self, node: str, report: QualityReport, cause: str) -> None:
        """Take in what a node has measured, and act on it."""
        for service in self.gauges.take(node, report):
            self._control(service).dirty = True
            self._turn(service, cause)

    def granted(self, grant: EnvelopeGrant) -> None:
        """Take in an envelope: what was tried under another one may help now."""
        task, service = grant.spec.task, grant.service
        old = self._grants.get(task)
        self._grants[task] = grant
        if old is not None and old.generation == grant.generation and _alike(old, grant):
            return
        self.bars.clear(task)
        self._complaints.drop(task)
        entry = self._table.tasks.get(task)
        if entry is not None and not data_allowed(entry, self._feeds.data(service)):
            self._feeds.set_data(service, AS_DECLARED)
        control = self._controls.get(service)
        if control is not None:
            control.trial, control.relax_ms = None, RELAX_MS
            self.gauges.renew(service)

    def revoked(self, task: str) -> None:
        """Forget a task that is no longer here."""
        grant = self._grants.get(task)
        if grant is None or task in self._table.tasks:
            return
        del self._grants[task]
        self.bars.clear(task)
        self._complaints.drop(task)
        self.gauges.drop(task, grant.service)
        over = not self._table.of_service(grant.service)
        if over and self._controls.pop(grant.service, None) is not None:
            self._desk.show(QUALITY, grant.service, None)

    def answered(self, answer: EscalationAnswer) -> None:
        """Take in the answer to a complaint."""
        self._complaints.answered(answer)

    def escalate_again(self, anchor: str) -> None:
        """Have what an anchor may not have heard said again."""
        for entry in self._table.tasks.values():
            if entry.anchor == anchor:
                self._complaints.drop(entry.task)

    def credit(self, service: str) -> int:
        """Return how many requests a client may have under way: as many as its tasks can bear."""
        credit = ROUTE_CREDIT
        tasks = self._table.tasks
        # While a change is prepared a task may have no envelope yet.
        for task in [name for name in self._table.of_service(service) if name in tasks]:
            entry = tasks[task]
            credit = min(credit, entry.grant.spec.manifest.limits.queue)
            run_ms = self.gauges.meters.get(task, Col.RUN_MS)
            target = entry.grant.spec.qos.latency_ms
            if run_ms and target is not None:
                workers = envelope.replicas_of(entry.grant, entry.tuning)
                credit = int(min(credit, max(CREDIT_MIN, workers * target / run_ms)))
        return credit

    # The loop.

    def sweep(self) -> None:
        """Judge what is due, relax what may be, show what has changed."""
        for service in self.gauges.sweep():
            self._control(service).dirty = True
        for service, control in self._controls.items():
            if control.trial is not None:
                self._judge(service, control, control.trial, "sweep")
            self._calm(service, control)
            if control.dirty and self._desk.now_ms - control.shown_ms >= VIEW_MS:
                control.dirty, control.shown_ms = False, self._desk.now_ms
                self._table.service_changed(service)
                self._desk.show(
                    QUALITY, service, self.gauges.view(service, self._predicted(service))
                )

    def _turn(self, service: str, cause: str) -> None:
        control = self._control(service)
        if control.trial is not None:
            self._judge(service, control, control.trial, cause)
            return
        dangers = self.gauges.dangers(service)
        if not dangers:
            return
        control.calm_ms = self._desk.now_ms
        if self._desk.now_ms < control.quiet_ms:
            return
        for one in dangers:
            entry = self._table.tasks.get(one.task)
            if entry is not None and serves(entry) and settled(entry):
                self._mend(service, control, entry, one, cause)
                return

    def _mend(
        self, service: str, control: Control, entry: TaskEntry, one: Danger, cause: str
    ) -> None:
        """Act against a danger, or complain that nothing inside the envelope helps."""
        if control.told != f"{one.task} {one.indicator}":
            control.told = f"{one.task} {one.indicator}"
            self._tell(entry, "danger", str(one), cause)
        alone = len(entry.grant.nodes) < 2  # noqa: PLR2004 - itself
        chosen: Chosen | None = None
        rejected: list[tuple[str, str]] = []
        if not envelope.empty(entry.grant, alone=alone):
            chosen, rejected = self._choose(service, entry, one)
        if chosen is None:
            self._complaints.say(entry, one, rejected, cause)
            return
        self._act(service, control, entry, one, chosen, cause)

    def _choose(
        self, service: str, entry: TaskEntry, one: Danger
    ) -> tuple[Chosen | None, list[tuple[str, str]]]:
        """Return the best action for a task; for a whole service, of any of its tasks."""
        names = self._table.of_service(service) if one.whole else (entry.task,)
        entries = [self._table.tasks[name] for name in names if name in self._table.tasks]
        self.cost.now_ms = self._desk.now_ms
        options = []
        for other in entries:
            if serves(other) and settled(other):
                place = place_of(other, self._table)
                data = self._feeds.data(service)
                usable = self._movable(other)
                options += [
                    (other, place, option, self._forecast(other, place, data, option))
                    for option in self.levers.options(other, data, usable)
                    if not self.bars.barred(other.task, option.key, self._desk.now_ms)
                ]
        return choose(one, options, self.gauges.meters, self._nodes)

    def _forecast(self, entry: TaskEntry, place: Place, data: Data, option: Option) -> Forecast:
        """Predict an action; on the same node from what is measured there."""
        found = self.levers.forecast(entry, place, data, option)
        if entry.current is None or option.node != entry.current.node:
            return found
        measured_ms = self.gauges.meters.get(entry.task, Col.LEVEL_MS)
        return anchored(found, measured_ms, self.levers.expected_ms(entry, place, data))

    def _movable(self, entry: TaskEntry) -> list[str]:
        """Return the nodes that a task may move to; none with its last epochs."""
        return self._table.usable(entry) if entry.epochs_left() > 0 else []

    def _act(
        self,
        service: str,
        control: Control,
        entry: TaskEntry,
        one: Danger,
        chosen: Chosen,
        cause: str,
    ) -> None:
        option = chosen.option
        entry = self._table.tasks[option.task]
        current = entry.current
        here = current.node if current is not None else ""
        control.trial = Trial(
            option,
            one.indicator,
            one.use,
            chosen.use,
            entry.tuning,
            here,
            self._feeds.data(service),
            self._desk.now_ms,
            whole=one.whole,
        )
        detail = f"{one}: {option.key}, predicted {chosen.use * one.target:.4g}"
        self._tell(entry, "acted", detail, cause)
        self._apply(service, control.trial, back=False, cause=cause)

    def _apply(self, service: str, trial: Trial, *, back: bool, cause: str) -> None:
        """Have a task run as an action says, or as it did before."""
        option = trial.option
        entry = self._table.tasks[option.task]
        current = entry.current
        entry.rebuff = ""
        entry.tuning = trial.tuning if back else option.tuning
        node = trial.node if back else option.node
        heads = {one.node for one in (current, entry.coming) if one is not None}
        if heads - {node} and node in self._table.usable(entry):
            entry.wanted, entry.moved_ms = node, self._desk.now_ms
        data = trial.data if back else option.data
        if data != self._feeds.data(service):
            self._feeds.set_data(service, data)
        self._table.mark(entry, cause)

    def _judge(self, service: str, control: Control, trial: Trial, cause: str) -> None:
        """See how an action does, and end its trial when that is clear."""
        option = trial.option
        entry = self._table.tasks.get(option.task)
        if entry is None or entry.current is None or entry.current.state is CopyState.GONE:
            control.trial = None
            return
        if entry.rebuff and entry.coming is None and not entry.wanted:
            self._failed(service, control, entry, f"the node refused: {entry.rebuff}", cause)
            return
        self._follow(service, trial, entry)
        use = self.gauges.use_now(service, option.task, trial.indicator, whole=trial.whole)
        if trial.relaxes:
            use = self.gauges.worst_use(service)
        samples = self.gauges.meters.samples(option.task)
        verdict = judge(trial, use, samples, self._desk.now_ms)
        seen = f"{trial.indicator} went from {trial.use_before:.0%} of its bound to "
        seen += f"{use or 0.0:.0%}, predicted {trial.use_predicted:.0%}"
        if verdict is Verdict.HELPED:
            if not trial.relaxes:
                self._complaints.tried(option.task, option.key, seen)
            event = "relaxed" if trial.relaxes else "helped"
            self._over(control, entry, event, f"{option.key}: {seen}", cause)
        elif verdict is Verdict.UNJUDGED:
            self._over(control, entry, "kept", f"{option.key}: nobody used the service", cause)
        elif verdict is Verdict.UNTAKEN:
            self._failed(service, control, entry, "the node has not taken it", cause)
        elif verdict is Verdict.FAILED:
            self._failed(service, control, entry, seen, cause)

    def _follow(self, service: str, trial: Trial, entry: TaskEntry) -> None:
        """Note when a task runs in the new way, and when that shows in its measurements."""
        now_ms, current = self._desk.now_ms, entry.current
        if trial.applied_ms is None:
            if settled(entry) and current is not None and current.node == trial.option.node:
                trial.applied_ms = now_ms
        elif not trial.measuring and now_ms - trial.applied_ms >= SETTLE_MS:
            trial.measuring = True
            self.gauges.renew(service)

    def _failed(
        self, service: str, control: Control, entry: TaskEntry, said: str, cause: str
    ) -> None:
        """Take an action back, and bar it for a while."""
        trial = control.trial
        if trial is None:
            return
        option = trial.option
        # Less data is never worse: what waits from before still takes its time.
        less = option.dimension is Dimension.DATA
        moved = option.key.startswith("move")
        worse = trial.applied_ms is None or "refused" in said or not (moved or less)
        worse |= less and trial.relaxes
        if moved and not worse:
            use = self.gauges.use_now(service, option.task, trial.indicator, whole=trial.whole)
            worse = use is not None and use > trial.use_before
        self.bars.put(option.task, option.key, self._desk.now_ms)
        self._complaints.tried(option.task, option.key, said)
        if trial.relaxes:
            control.relax_ms = min(RELAX_MAX_MS, 2 * control.relax_ms)
        if worse:
            self._apply(service, trial, back=True, cause=cause)
        event = "reverted" if worse else "kept"
        self._over(control, entry, event, f"{option.key} has not helped: {said}", cause)

    def _over(self, control: Control, entry: TaskEntry, event: str, said: str, cause: str) -> None:
        control.trial, control.told = None, ""
        control.quiet_ms = self._desk.now_ms + QUIET_MS
        control.calm_ms = self._desk.now_ms
        control.dirty = True
        entry.rebuff = ""
        self._tell(entry, event, said, cause)
        self.gauges.renew(entry.grant.service)

    def _calm(self, service: str, control: Control) -> None:
        """Say that a danger is over, and take actions back when it is long over."""
        now_ms = self._desk.now_ms
        if control.trial is not None or now_ms < control.quiet_ms:
            return
        if now_ms - control.calm_ms < CALM_MS:
            return
        if self.gauges.dangers(service):
            control.calm_ms = now_ms
            return
        control.told = ""
        for task in self._table.of_service(service):
            entry = self._table.tasks.get(task)
            if entry is None or self.relief.troubles(entry):
                continue
            if self._complaints.raised(task):
                self._tell(entry, "calm", "its quality is kept again", "calm")
                self._complaints.drop(task)
        if now_ms - control.calm_ms >= control.relax_ms:
            self._relax(service, control)

    def _relax(self, service: str, control: Control) -> None:
        """Take one action back, if that is predicted to be safe."""
        now_ms = self._desk.now_ms
        use = self.gauges.worst_use(service)
        data = self._feeds.data(service)
        for task in self._table.of_service(service):
            entry = self._table.tasks.get(task)
            if entry is None or not serves(entry) or not settled(entry):
                continue
            place = place_of(entry, self._table)
            found = relaxations(entry, place, data, self.levers, self.gauges)
            for option, predicted in found:
                if self.bars.barred(task, option.key, now_ms):
                    continue
                node = entry.current.node if entry.current is not None else ""
                control.trial = Trial(
                    option, "the worst indicator", use or 0.0, predicted, entry.tuning, node, data,
                    now_ms, relaxes=True,
                )  # fmt: skip
                self._tell(entry, "relaxing", f"{option.key}: the danger is long over", "calm")
                self._apply(service, control.trial, back=False, cause="calm")
                return
        control.calm_ms = now_ms

    # Nodes.

    def _moving(self, entry: TaskEntry, detail: str, cause: str) -> None:
        """Take in that a task leaves its node: what was tried there is judged no more."""
        control = self._control(entry.grant.service)
        control.trial, control.quiet_ms = None, self._desk.now_ms + QUIET_MS
        self.gauges.renew(entry.grant.service)
        self._tell(entry, "acted", detail, cause)

    # Odds and ends.

    def _control(self, service: str) -> Control:
        control = self._controls.get(service)
        if control is None:
            control = self._controls[service] = Control(calm_ms=self._desk.now_ms)
        return control

    def _predicted(self, service: str) -> dict[str, float]:
        """Return what the cost model expects of each task as it runs now, ms."""
        found = {}
        data = self._feeds.data(service)
        for task in self._table.of_service(service):
            entry = self._table.tasks.get(task)
            if entry is not None and entry.current is not None and serves(entry):
                ms = self.levers.expected_ms(entry, place_of(entry, self._table), data)
                if ms is not None:
                    found[task] = ms
        return found

    def _tell(self, entry: TaskEntry, event: str, detail: str, cause: str) -> None:
        body = TaskEvent(entry.task, event, detail[:2000])
        self._desk.tell(ToRole(entry.anchor), body, cause, entry.tenant)


def _alike(one: EnvelopeGrant, other: EnvelopeGrant) -> bool:
    """Whether two envelopes allow the same."""
    return (
        set(one.nodes) == set(other.nodes)
        and one.leeway == other.leeway
        and one.tuning == other.tuning
        and one.sources == other.sources
        and one.spec == other.spec
    )
