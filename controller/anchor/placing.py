"""Places for the tasks of a service, all or none, with room reserved and envelopes granted.

A plan is held against the ledger before it is applied: what it reserves, the copies that still
serve and the spares of everybody together never exceed a node. A spare gives way where the plan of
another service could not be done otherwise. What runs goes on while nothing better is found.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

from msgspec import structs

from controller.anchor.book import Book
from controller.anchor.envelopes import Wider, choose_sources, leeway
from controller.anchor.faults import hopeless
from controller.anchor.granting import Granting
from controller.anchor.lifecycle import HOMELESS, SERVING, TaskEvent
from controller.anchor.privacy import taken_in
from controller.anchor.search import Found, Search, sought, unplaced
from controller.anchor.upward import Upward
from controller.booking import booked_bytes, may_grow_to
from controller.records import AnchoredRecord, Home, Leaving, Placement, TaskRecord, TaskState
from protocols.errors import TonaBug
from protocols.messages.hierarchy import Attempt, NodeState
from protocols.messages.quality import Leeway, Source, Tuning

RETRY_MIN_MS: Final = 3000
RETRY_MAX_MS: Final = 60_000
"""A service that waits is tried again within these bounds, and at once when a node comes."""
RETRY: Final = "retry/"
TRANSFER: Final = "transfer/"
TRANSFER_MS: Final = 60_000
"""What a transfer to another cell may take before it is given up."""
REBOOK: Final = 2
"""Times as much, or as little, as is set aside for a task: then it is booked anew."""
MAX_ENVELOPE: Final = 64
"""Nodes of one envelope."""


class Placing:
    """Applies plans to the book."""

    def __init__(
        self,
        book: Book,
        granting: Granting,
        upward: Upward,
        placed: Callable[[str], None],
    ) -> None:
        self._book = book
        self._granting = granting
        self._upward = upward
        self.placed = placed
        """Told of every service that has another scheduler, or one at last."""
        self.take_back: Callable[[str, str], None] = lambda *_: None
        """Has the scheduler of a task that has an heir let go of it."""
        self.sourced: Callable[[str, str], None] = lambda *_: None
        """Told of every service whose data others provide now."""
        self.search = Search(book)
        self.wider: dict[str, Wider] = {}
        self.applied: dict[str, str] = {}
        """Services that were placed in this turn, and why."""
        self.shunned: dict[str, dict[str, str]] = {}
        """By service and input: the node that was found wanting as its source."""
        self._short: dict[str, str] = {}
        self._retries: dict[str, tuple[int, int]] = {}
        """Of services that wait: how often tried again, and when they are tried next."""

    # When.

    def later(self, service: str, cause: str) -> None:
        """Look at a service at the end of this turn."""
        self._short.setdefault(service, cause)

    def settle(self) -> None:
        """Look at every service that asked for it."""
        short, self._short = self._short, {}
        for service, cause in short.items():
            self.place(service, cause)

    def room(self, cause: str) -> None:
        """Look at whoever waits: there is room that there was not before."""
        for task in self._book.tasks.values():
            if sought(task):
                self.later(task.service, cause)

    def restored(self) -> None:
        """Go on trying for whoever waited before."""
        for task in self._book.tasks.values():
            if sought(task):
                self._try_later(task.service)

    def fired(self, service: str) -> None:
        """Try again; nodes that have failed a task are candidates again."""
        waiting = [one for one in self._book.ordered(service) if sought(one)]
        for task in waiting:
            self.search.failed.pop(task.spec.task, None)
        if waiting:
            self._short[service] = "retry"
            tries, _ = self._retries.get(service, (0, 0))
            self._retries[service] = tries, self._book.desk.now_ms
            self._try_later(service)

    def forget(self, service: str, tasks: Iterable[str]) -> None:
        """Forget tasks that are over, and their service if it is."""
        for task in tasks:
            self.search.failed.pop(task, None)
            self.search.faults.forget(task)
            self.wider.pop(task, None)
        if service not in self._book.services:
            self._retries.pop(service, None)
            self.shunned.pop(service, None)
            self.search.forget(service)

    def ran(self, service: str) -> None:
        """Begin anew with short pauses: the service has run."""
        self._retries.pop(service, None)

    def _try_later(self, service: str) -> None:
        """Have a service tried again, ever more rarely; what is due already stays so."""
        now_ms = self._book.desk.now_ms
        tries, due_ms = self._retries.get(service, (0, now_ms))
        if due_ms <= now_ms:
            due_ms = now_ms + min(RETRY_MAX_MS, RETRY_MIN_MS << min(tries, 10))
            self._retries[service] = tries + 1, due_ms
            self._book.desk.wake(RETRY + service, due_ms)

    # Where.

    def place(self, service: str, cause: str) -> None:
        """Give the tasks that lack a node one each, or none; then fill up the spares."""
        if service not in self._book.services:
            return
        lacking = self.search.lacking(service)
        by_cell: dict[str, set[str]] = {}
        for name in sorted(lacking):
            by_cell.setdefault(self._book.tasks[name].scheduler, set()).add(name)
        for names in by_cell.values():
            if names & self.search.lacking(service):
                self.seek(service, names, cause)
        self._fill_up(service, cause)
        self.feed(service, cause)
        self._upward.report(service, cause)

    def seek(self, service: str, tasks: Collection[str], cause: str) -> bool:
        """Apply the first plan for these tasks that can be done; else they wait."""
        refused: list[Found] = []
        for _ in range(2):
            for found in self.search.plans(service, tasks):
                if found.complete and self.apply(service, found, cause):
                    return True
                refused.append(found)
            if not self._rebook_all(cause):
                break
        # The one that looked at the whole cell says best why there is nothing.
        whole = [one for one in refused if not one.kept]
        self._wait(service, whole[0], cause)
        return False

    def apply(
        self, service: str, found: Found, cause: str, why: str = "", follows: str = ""
    ) -> bool:
        """Reserve and grant what a complete plan says; False when there is no room for it.

        `follows` is the device that tasks follow to another cell.
        """
        book = self._book
        if any(one.revision != book.revision for one in found.plan.values()):
            raise TonaBug(f"a plan for {service} is stale at revision {book.revision}")
        tasks = book.ordered(service)
        before = {one.spec.task: one.scheduler for one in tasks}
        changed = [
            self._moved(one, found, follows, away=one.scheduler not in ("", found.scheduler))
            for one in tasks
            if one.spec.task in found.free
        ]
        if any(one.memory is not None and self._takes_along(one, found) for one in tasks):
            # What it remembers is on its way still: it does not leave before that has come.
            return False
        fitting = self._fit(changed, found)
        if fitting is None:
            return False
        settled = {one.spec.task: one for one in fitting}
        self._choose_sources(service, [settled.get(one.spec.task, one) for one in tasks], cause)
        # Spares that make room are given up first: their scheduler counts as well.
        for task in sorted(fitting, key=lambda one: one.service == service):
            if task.service == service:
                self._tell_placed(task, found, cause, why)
            else:
                reason = f"a spare makes room for {service}; envelope {', '.join(task.nodes)}"
                book.tell(task.spec.task, "envelope", reason, cause)
            had = before.get(task.spec.task, task.scheduler)
            if task.spec.task not in found.free:
                # It gives up spares: a newest generation that waits for a place waits on.
                self._granting.renew(task, cause)
            elif task.leaving is None and had not in ("", task.scheduler):
                # It is granted there when the one that has it has let go.
                waiting = structs.replace(task, scheduler=had, heir=task.scheduler)
                self._granting.grant(waiting, cause)
                self.take_back(task.spec.task, cause)
            else:
                self._granting.grant(task, cause)
        if any(one.leaving for one in fitting):
            book.desk.wake(TRANSFER + service, book.desk.now_ms + TRANSFER_MS)
        if any(before[name] != found.scheduler for name in found.free):
            self.placed(service)
        self.applied[service] = cause
        return True

    def _choose_sources(self, service: str, tasks: list[TaskRecord], cause: str) -> None:
        held = self._book.services[service]
        sources, _ = self._sources(held, tasks)
        if sources != held.sources:
            self._book.put_service(service, structs.replace(held, sources=sources), cause)
            self.sourced(service, cause)

    def _takes_along(self, task: TaskRecord, found: Found) -> bool:
        """Whether a plan has a task that serves prepared in another cell beside that."""
        away = task.scheduler not in ("", found.scheduler) and task.spec.task in found.free
        facts = self._book.nodes.get(task.node)
        # A node that is in another cell has taken its copy along.
        gone_on = facts is not None and facts.scheduler not in ("", task.scheduler)
        return away and task.state in SERVING and bool(task.node) and not gone_on

    def _moved(
        self, task: TaskRecord, found: Found, follows: str = "", *, away: bool
    ) -> TaskRecord:
        """Return a task with the envelope that a plan gives it."""
        placement = found.plan[task.spec.task]
        shunned = {*self.search.failed.get(task.spec.task, ()), *found.avoid}
        nodes = tuple(one for one in placement.chosen if one not in shunned)
        leaving, memory = None, task.memory
        if self._takes_along(task, found):
            granted = task.granted if task.held is not None else task.generation
            place = task.scheduler, task.node, task.epoch
            leaving = Leaving(*place, task.nodes, task.held, granted, follows)
            memory = Home(*place) if task.spec.manifest.remembers else None
        elif away:
            memory = self._book.left(task)
        else:
            wanted = 1 + self._book.services[task.service].order.spares - len(nodes)
            nodes += self.search.spares(
                structs.replace(task, scheduler=found.scheduler), wanted, {*nodes, *shunned}
            )
        moved = self._book.after(task, TaskEvent.TRANSFER if away else TaskEvent.PLACE)
        return structs.replace(
            moved,
            nodes=nodes,
            placement=placement,
            reason="",
            scheduler=found.scheduler,
            leaving=leaving,
            memory=memory,
            held=None,
            node="" if away and leaving is None else task.node,
            tuning=Tuning(
                variant=placement.variant,
                provider=placement.provider,
                priority=task.spec.priority,
                warmth=placement.warmth,
            ),
        )

    def reserve(self, task: TaskRecord) -> TaskRecord:
        """Return a task with leeway and reservation for its envelope and the copies that serve."""
        book = self._book
        autonomy = book.services[task.service].order.autonomy
        facts = [book.nodes[node] for node in task.nodes if node in book.nodes]
        before = book.tasks.get(task.spec.task)
        wider = self.wider.get(task.spec.task, Wider())
        granted = leeway(task, autonomy, facts, book.ledger, wider)
        asked = self._asked(task, granted)
        reserved = dict.fromkeys(task.nodes, asked)
        held = before.reserved if before is not None else {}
        # What serves now stays until the report that something else does.
        serving = task.node if task.state in SERVING else ""
        for node in (serving, task.leaving.node if task.leaving else ""):
            if node and node in held:
                reserved[node] = max(reserved.get(node, 0), held[node])
        return structs.replace(task, leeway=granted, reserved=reserved)

    def _asked(self, task: TaskRecord, granted: Leeway) -> int:
        """Return what is set aside for a task on each node, with this leeway."""
        per_s = self._book.figures.demand(task.spec.task).per_s
        return booked_bytes(task.held or task.spec, task.tuning, granted, per_s)

    def renew(self, task: TaskRecord, cause: str) -> None:
        """Grant a task the envelope that it has once more, as its record says now."""
        self._granting.renew(task, cause)

    def _rebook_all(self, cause: str) -> bool:
        """Give back what was set aside for requests that do not come any more; whether any was."""
        found = [one for one in self._book.tasks.values() if may_grow_to(one) and one.reserved]
        return sum(self.rebook(one, cause) for one in found) > 0

    def rebook(self, task: TaskRecord, cause: str) -> bool:
        """Set aside what a task needs as often as it is asked now, where there is room for that.

        Returns whether it has less than before.
        """
        moves = task.leaving is not None or task.held is not None or unplaced(task)
        if moves or task.state not in SERVING or task.node not in task.nodes:
            return False
        asked = self._asked(task, task.leeway)
        after = structs.replace(task, reserved=dict.fromkeys(task.nodes, asked))
        before, now = max(task.reserved.values()), max(after.reserved.values())
        if before < REBOOK * now and now < REBOOK * before:
            return False
        over = self._over([after])
        if over:
            after = self._slimmer(after, over)
        if self._over([after]):
            return False
        self._granting.renew(after, cause)
        return now < before

    def _fit(self, changed: list[TaskRecord], found: Found) -> list[TaskRecord] | None:
        """Reserve for these tasks; spares that do not fit are dropped. None: it does not fit."""
        wanted = {one.spec.task: self.reserve(one) for one in changed}
        over = self._over(wanted.values())
        if over:
            wanted = {name: self._slimmer(one, over) for name, one in wanted.items()}
            over = self._over(wanted.values())
        if over and found.spares_yield:
            over = self._make_room(wanted, over)
        return None if over else list(wanted.values())

    def _make_room(self, wanted: dict[str, TaskRecord], over: set[str]) -> set[str]:
        """Add tasks that give up spares on these nodes; returns the nodes that stay too full."""
        there = {name for node in over for name in self._book.ledger.tasks_on(node)}
        for name in sorted(there - wanted.keys()):
            task = self._book.tasks[name]
            slim = self._slimmer(task, over)
            if over and slim.nodes != task.nodes:
                wanted[name] = slim
                over = self._over(wanted.values())
        return over

    def _over(self, tasks: Iterable[TaskRecord]) -> set[str]:
        return self._book.ledger.overbooked(tasks, self._book.inventories)

    def _slimmer(self, task: TaskRecord, over: Collection[str]) -> TaskRecord:
        """Return a task without the spares on these nodes."""
        kept = tuple(
            node
            for at, node in enumerate(task.nodes)
            if at == 0 or node == task.node or node not in over
        )
        left = task.leaving.node if task.leaving else ""
        reserved = {
            node: held
            for node, held in task.reserved.items()
            if node in kept or node in (task.node, left)
        }
        return structs.replace(task, nodes=kept, reserved=reserved)

    def _tell_placed(self, task: TaskRecord, found: Found, cause: str, why: str) -> None:
        placement = task.placement
        detail = f"{why}: " if why else ""
        detail += f"{placement.reason if placement else ''}; envelope {', '.join(task.nodes)}"
        if task.tuning.variant:
            detail += f"; as variant {task.tuning.variant}"
        if task.tuning.provider:
            detail += f"; on {task.tuning.provider}"
        if task.leaving is not None:
            detail += f"; from {task.leaving.scheduler} to {found.scheduler}"
        event = "transferring" if task.leaving is not None else "placed"
        self._book.tell(task.spec.task, event, detail, cause)

    # What else an envelope needs.

    def _fill_up(self, service: str, cause: str) -> None:
        """Replace spares that are gone; no node that is there is taken away."""
        spares = self._book.services[service].order.spares
        for task in self._book.ordered(service):
            if task.leaving is not None or unplaced(task) or not self.search.home(task):
                continue
            there = [one for one in task.nodes if not self._book.gone(one, task.scheduler)]
            if len(there) > spares:
                continue
            fresh = self.search.spares(task, 1 + spares - len(there), task.nodes)
            if not fresh:
                continue
            # A lost node that ran the task may come back with it.
            facts = self._book.nodes.get(task.node)
            lost = facts is not None and facts.state is NodeState.LOST
            back = (task.node,) if lost and task.node in task.nodes else ()
            self.widen(task, (*there, *fresh, *back), cause, "a spare is gone")

    def widen(self, task: TaskRecord, nodes: tuple[str, ...], cause: str, why: str) -> bool:
        """Give a placed task these nodes, what it may do on them and room there; or nothing."""
        after = structs.replace(
            self._book.after(task, TaskEvent.PLACE),
            nodes=nodes[:MAX_ENVELOPE],
        )
        after = self.reserve(after)
        over = self._over([after])
        if over:
            after = self._slimmer(after, over - set(task.nodes))
            if self._over([after]):
                return False
        if after.nodes == task.nodes and after.leeway == task.leeway:
            return False
        detail = f"{why}; envelope {', '.join(after.nodes)}"
        self._book.tell(task.spec.task, "envelope", detail, cause)
        self._granting.grant(after, cause)
        return True

    def part(self, task: TaskRecord, refused: Collection[str], cause: str) -> None:
        """Take these spares from the rest of a task's group too: it moves together or not."""
        group = task.spec.group
        for other in self._book.ordered(task.service) if group else ():
            slim = self._slimmer(other, refused)
            if other.spec.group == group and slim.nodes != other.nodes:
                self._granting.renew(slim, cause)

    def feed(self, service: str, cause: str) -> bool:
        """Choose again who provides the service's data; whoever takes it in is told."""
        book = self._book
        held = book.services[service]
        tasks = book.ordered(service)
        if not held.order.sources or any(unplaced(one) for one in tasks):
            return False
        sources, why = self._sources(held, tasks)
        if sources == held.sources:
            return False
        book.put_service(service, structs.replace(held, sources=sources), cause)
        self.sourced(service, cause)
        before = {one.input: one for one in held.sources}
        after = {one.input: one for one in sources}
        changed = {name for name in why if before.get(name) != after.get(name)}
        for task in tasks:
            taken = changed & taken_in(task.spec)
            for name in sorted(taken):
                book.tell(task.spec.task, "source", f"{name}: {why[name]}", cause)
            if taken:
                self._granting.grant(task, cause)
        return True

    def _sources(
        self, held: AnchoredRecord, tasks: list[TaskRecord]
    ) -> tuple[tuple[Source, ...], Mapping[str, str]]:
        shunned = self.shunned.get(held.order.service, {})
        wanted = held.order.sources
        found, why = choose_sources(wanted, held.sources, tasks, self._book.nodes, shunned)
        missing = {one.input for one in wanted} - {one.input for one in found}
        self._book.unfed[held.order.service] = {name: why[name] for name in sorted(missing)}
        return found, why

    # When there is nothing.

    def _wait(self, service: str, found: Found, cause: str) -> None:
        """No node for some task: none gets one; NAMO is told once, and it is tried again."""
        book = self._book
        short = [one for one in found.free if not found.plan[one].chosen]
        failing = [one for one in found.free if found.plan[one].chosen and self._failed(one, found)]
        blocked = sorted(short) or sorted(failing)
        for held in book.ordered(service):
            name = held.spec.task
            as_ordered = held.state in SERVING and held.served == held.generation
            # It finishes what it has there, and takes nothing new.
            emptied = as_ordered and book.emptied(held.node)
            if name not in found.free or (as_ordered and not emptied):
                continue
            task = book.after(held, TaskEvent.UNREADY) if emptied else held
            if name in failing and self._at_fault(task):
                self.give_up(task, cause)
                continue
            placement = found.plan[name]
            event, reason = TaskEvent.NO_NODE, placement.reason
            if name in failing:
                event, reason = TaskEvent.FAIL, "every node that could run it has failed to"
            elif name not in short:
                why = "there is no room for it beside what serves"
                if blocked:
                    why = f"there is no node for {blocked[0]}: {found.plan[blocked[0]].reason}"
                reason = f"its service is placed as a whole, and {why}"
            self._waits(task, event, structs.replace(placement, chosen=(), reason=reason), cause)
        self._try_later(service)

    def _at_fault(self, task: TaskRecord) -> bool:
        """Whether all that has failed a task was the fault of its artifact."""
        failed = self.search.failed.get(task.spec.task, {})
        return bool(failed) and failed.keys() <= self.search.faults.of(task).keys()

    def give_up(self, task: TaskRecord, cause: str) -> None:
        """Try the newest generation of a task no more; NAMO is told once. What serves goes on."""
        book, first = self._book, not hopeless(task)
        reason = self.search.faults.reason(task) if first else task.reason
        if task.state in SERVING:
            after = book.after(task, TaskEvent.FAIL)
        else:
            self._granting.revoke(task, task.scheduler, "no node can run it", cause)
            after = book.after(book.homeless(task), TaskEvent.FAIL)
        after = structs.replace(
            after,
            reason=reason,
            given_up=task.generation,
            granted=min(task.granted, task.generation - 1),
        )
        book.put(after, cause)
        told = "failed" if after.state is TaskState.FAILED else "given up"
        book.tell(task.spec.task, told, reason, cause)
        if first:
            attempts = tuple(self.search.faults.of(task).values())
            self._upward.escalate(after, reason, attempts, cause)

    def _failed(self, name: str, found: Found) -> bool:
        return found.plan[name].chosen[0] in self.search.failed.get(name, {})

    def _waits(self, task: TaskRecord, event: TaskEvent, placement: Placement, cause: str) -> None:
        book, was = self._book, task.state
        after = structs.replace(
            book.after(task, event),
            placement=placement,
            reason=placement.reason,
            granted=min(task.granted, task.generation - 1),
        )
        if after == task:
            return
        book.put(after, cause)
        if after.state in (TaskState.WAITING, TaskState.FAILED) and after.state is not was:
            book.tell(task.spec.task, after.state.value, placement.reason, cause)
            attempts = [Attempt(f"place on {one.node}", one.reason) for one in placement.rejected]
            if was not in HOMELESS or was is TaskState.ACCEPTED:
                self._upward.escalate(after, placement.reason, attempts, cause)
