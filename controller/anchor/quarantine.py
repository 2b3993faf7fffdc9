"""Versions that are not to run: barred by a person, or by what their nodes measure of them.

A version is a program by its digest. Where one is barred, its task runs the version before it, if
that gave and took the same tensors; else its first other variant; else nothing, and whoever asks is
told why. The order of NAMO stays as it is: it is what runs again when the version is released.
"""

from collections.abc import Mapping
from typing import Any, Final

from msgspec import structs

from controller.accounts import Quarantined, QuarantineTask
from controller.anchor.book import Book
from controller.anchor.granting import Granting
from controller.anchor.lifecycle import SERVING, TaskEvent
from controller.anchor.placing import Placing
from controller.anchor.upward import Upward
from controller.decider import Answer, Called, Received
from controller.records import TaskRecord, TaskState
from protocols.errors import Blame
from protocols.messages import Flagged
from protocols.messages.hierarchy import TaskSpec
from protocols.messages.quality import Variant
from protocols.messages.task import Quarantine

BEFORE: Final = "before"
"""Name of the version that a task goes back to, among its variants."""
QUARANTINED_MAX: Final = 16
"""Versions of a task that are barred at once; the oldest one is let go for a newer one."""
REASON_LENGTH: Final = 400
SHORT: Final = 12
PROPOSAL: Final = "quarantine version "
_ASKABLE: Final = (TaskState.RUNNING, TaskState.DEGRADED)


def short(digest: str) -> str:
    """Return a digest as people see it."""
    return digest.removeprefix("sha256:")[:SHORT]


def former(task: TaskRecord, spec: TaskSpec) -> Variant | None:
    """Return what a task goes back to from a newer specification; None: nothing has served."""
    now = task.spec.manifest
    if task.served != task.generation or now.artifact.digest in task.quarantined:
        return task.before
    if now.artifact.digest == spec.manifest.artifact.digest:
        return task.before
    return Variant(BEFORE, now, None, task.spec.expected_ms, task.spec.declared)


def sifted(
    ordered: TaskSpec, quarantined: Mapping[str, str], before: Variant | None
) -> TaskSpec | None:
    """Return a specification without barred programs, the one to run at its head.

    None: no program is left. Where nothing is barred it is the very same.
    """

    def good(one: Variant) -> bool:
        return one.manifest.artifact.digest not in quarantined

    if not quarantined:
        return ordered
    variants = tuple(one for one in ordered.variants if good(one))
    leeway = structs.replace(
        ordered.leeway,
        variants=tuple(
            name for name in ordered.leeway.variants if name in {one.name for one in variants}
        ),
    )
    spec = structs.replace(ordered, variants=variants, leeway=leeway)
    if ordered.manifest.artifact.digest not in quarantined:
        return spec
    fits = before is not None and good(before) and _same_ports(ordered, before)
    head = before if fits else next(iter(variants), None)
    if head is None:
        return None
    return structs.replace(
        spec,
        manifest=head.manifest,
        expected_ms=head.expected_ms,
        declared=head.declared,
        variants=tuple(one for one in variants if one is not head),
        leeway=structs.replace(
            leeway, variants=tuple(name for name in leeway.variants if name != head.name)
        ),
    )


def _same_ports(ordered: TaskSpec, before: Variant) -> bool:
    now, then = ordered.manifest, before.manifest
    return _taken(now) == _taken(then) and now.outputs == then.outputs


def _taken(manifest: Any) -> list[Any]:
    filled = {one.port for one in manifest.constants}
    return sorted((one for one in manifest.inputs if one.name not in filled), key=_name)


def _name(port: Any) -> str:
    return str(port.name)


class Quarantines:
    """Bars and releases versions."""

    def __init__(self, book: Book, granting: Granting, placing: Placing, upward: Upward) -> None:
        self._book = book
        self._granting = granting
        self._placing = placing
        self._upward = upward

    # What schedulers measure.

    def flagged(self, event: Received, flag: Flagged) -> None:
        """Take in that a version behaves unlike its task's history, and act as its policy says."""
        book, task = self._book, self._book.tasks.get(flag.task)
        if task is None or event.sender != task.scheduler:
            book.counters["stale_report"] += 1
            return
        version = short(flag.digest)
        what = "as usual" if flag.over else "anomaly"
        detail = f"{flag.what} of version {version}: {flag.detail}"
        book.stories.tell(flag.task, "ts", what, detail, event.cause)
        runs = task.spec.manifest.artifact.digest == flag.digest
        if flag.over or not flag.grave or flag.digest in task.quarantined or not runs:
            return
        reason = f"{flag.what}: {flag.detail}"[:REASON_LENGTH]
        policy = task.spec.quarantine
        if policy is Quarantine.AUTO:
            self._bar(task, flag.digest, reason, event.cause)
        elif policy is Quarantine.ASK and task.asked is None and task.state in _ASKABLE:
            proposal = f"{PROPOSAL}{flag.digest}"
            self._upward.escalate(
                task, f"version {version}, {reason}", (), event.cause, proposal=proposal,
                person=True,
            )  # fmt: skip

    def agreed(self, task: TaskRecord, proposal: str, problem: str, cause: str) -> bool:
        """Do what a person has agreed to; whether it was a quarantine."""
        if not proposal.startswith(PROPOSAL):
            return False
        self._bar(task, proposal.removeprefix(PROPOSAL), problem[:REASON_LENGTH], cause)
        return True

    # What people say.

    def called(self, call: Called) -> None:
        """Bar a version, or release one."""
        asked, book = call.arguments, self._book
        assert isinstance(asked, QuarantineTask)  # noqa: S101 - the table of operations says so
        task = book.tasks.get(asked.name)
        if task is None or task.state is TaskState.DELETING:
            self._refuse(call, f"there is no task {asked.name!r} here")
            return
        if task.tenant != call.tenant:
            self._refuse(call, f"task {asked.name!r} belongs to another tenant")
            return
        found = self._meant(task, asked)
        if isinstance(found, list):
            known = ", ".join(short(one) for one in found)
            self._refuse(
                call,
                f"no one version of {asked.name} is meant; name one of these: {known}"
                if known
                else f"no version of {asked.name} is in quarantine",
            )
            return
        if asked.release:
            self._release(task, found, call.cause)
        else:
            reason = asked.reason or f"by user {call.tenant!r}"
            self._bar(task, found, reason[:REASON_LENGTH], call.cause)
        after = book.tasks[asked.name]
        value = Quarantined(
            asked.name, after.quarantined, after.spec.manifest.artifact.digest, after.reason
        )
        book.desk.answer(Answer(call.call, value=value))

    def _refuse(self, call: Called, text: str) -> None:
        self._book.desk.answer(Answer(call.call, error=text, blame=Blame.USER))

    def _meant(self, task: TaskRecord, asked: QuarantineTask) -> str | list[str]:
        """Return the version that is meant, or all that it could be."""
        ordered = task.ordered or task.spec
        programs = [ordered.manifest, *(one.manifest for one in ordered.variants)]
        if task.before is not None:
            programs.append(task.before.manifest)
        known = [one.artifact.digest for one in programs]
        known = list(dict.fromkeys([*known, *task.quarantined]))
        if asked.release:
            known = list(task.quarantined)
        prefix = asked.version.removeprefix("sha256:")
        found = [one for one in known if one.removeprefix("sha256:").startswith(prefix)]
        if not asked.version and not asked.release:
            return task.spec.manifest.artifact.digest
        return found[0] if len(found) == 1 else known

    # What is done.

    def _bar(self, task: TaskRecord, digest: str, reason: str, cause: str) -> None:
        kept = {one: why for one, why in task.quarantined.items() if one != digest}
        while len(kept) >= QUARANTINED_MAX:
            del kept[next(iter(kept))]
        told = f"version {short(digest)}: {reason}"
        self._book.tell(task.spec.task, "quarantined", told, cause)
        self._apply(structs.replace(task, quarantined={**kept, digest: reason}), cause)

    def _release(self, task: TaskRecord, digest: str, cause: str) -> None:
        kept = {one: why for one, why in task.quarantined.items() if one != digest}
        self._book.tell(task.spec.task, "released", f"version {short(digest)}", cause)
        if task.given_up == task.generation:
            task = structs.replace(self._book.after(task, TaskEvent.ORDER), given_up=0, reason="")
        self._apply(structs.replace(task, quarantined=kept), cause)

    def _apply(self, task: TaskRecord, cause: str) -> None:
        """Have a task run what is left to it, or nothing."""
        book, name = self._book, task.spec.task
        ordered = task.ordered or task.spec
        spec = sifted(ordered, task.quarantined, task.before)
        if spec is None:
            self._withdraw(task, ordered, cause)
        elif spec != task.spec:
            digest = spec.manifest.artifact.digest
            changed = digest != task.spec.manifest.artifact.digest
            task = structs.replace(task, spec=spec, ordered=None if spec == ordered else ordered)
            book.put(task, cause)
            if changed:
                book.tell(name, "goes back", f"to version {short(digest)}", cause)
            self._placing.seek(task.service, {name}, cause)
        else:
            book.put(task, cause)
            self._placing.place(task.service, cause)
        self._upward.report(task.service, cause)

    def _withdraw(self, task: TaskRecord, ordered: TaskSpec, cause: str) -> None:
        """Let a task run nowhere: no program of it is left."""
        reason = why_nothing(task.quarantined)
        self._granting.revoke(task, task.scheduler, reason, cause, stays=True)
        after = task
        if task.state in SERVING or task.state is not TaskState.FAILED:
            after = self._book.after(self._book.homeless(task), TaskEvent.FAIL)
        after = structs.replace(
            after,
            spec=ordered,
            ordered=None,
            reason=reason,
            given_up=task.generation,
            granted=min(task.granted, task.generation - 1),
            held=None,
        )
        self._book.put(after, cause)
        self._book.tell(task.spec.task, "failed", reason, cause)


def why_nothing(quarantined: Mapping[str, str]) -> str:
    """Say why no version of a task may run."""
    told = "; ".join(f"version {short(one)} ({why})" for one, why in quarantined.items())
    return f"in quarantine: {told}; no other version is left to run"
