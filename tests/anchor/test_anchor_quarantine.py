"""Versions in quarantine: what a task goes back to, who may say so, and what comes out again."""

from typing import Any

import pytest
from anchor_bench import Bench, said
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs
from tests_support import manifest, task_spec

from controller.accounts import Quarantined, QuarantineTask
from controller.anchor.quarantine import BEFORE, sifted
from controller.decider import Answer, Called, Output
from controller.records import STORY, TaskState
from protocols.manifest import ArtifactRef, Dtype, Manifest, Port
from protocols.messages import EnvelopeGrant, EnvelopeRevoke, Escalation, EscalationAnswer, Flagged
from protocols.messages.hierarchy import Autonomy
from protocols.messages.quality import Variant
from protocols.messages.task import Quarantine

FIRST, SECOND, THIRD = ("sha256:" + one * 64 for one in "123")


def program(digest: str, **changes: Any) -> Manifest:
    return structs.replace(manifest(**changes), artifact=ArtifactRef(digest, 1))


def running(bench: Bench, generation: int, digest: str, **specs: Any) -> None:
    """Order a version and have it ready on node n1."""
    specs = {"manifest": program(digest), **specs}
    granted = said(bench.order(generation, specs=specs), EnvelopeGrant)
    epoch = granted[-1].epoch_from
    bench.ready("n1", epoch, generation)
    assert bench.task().state is TaskState.RUNNING


def twice(policy: Quarantine = Quarantine.NEVER, **more: Any) -> Bench:
    """Return a task whose second version runs after the first."""
    bench = Bench()
    bench.node("n1")
    running(bench, 1, FIRST, quarantine=policy, **more)
    running(bench, 2, SECOND, quarantine=policy, **more)
    return bench


def quarantine(bench: Bench, tenant: str = "default", **asked: Any) -> tuple[Output, Answer]:
    call = Called("c", "task.quarantine", QuarantineTask("svc.a", **asked), tenant, "test", 0)
    output = bench.feed(call)
    return output, output.answers[0]


def granted(output: Output) -> list[str]:
    return [one.spec.manifest.artifact.digest for one in said(output, EnvelopeGrant)]


def events(bench: Bench) -> list[str]:
    rows = [one.value for one in bench.store.values() if one.kind == STORY]
    return [one.event for one in sorted(rows, key=lambda one: one.number)]  # type: ignore[union-attr,attr-defined]


def flag(bench: Bench, digest: str = SECOND, **changes: Any) -> Output:
    words = {"what": "memory", "detail": "the median is 3 times what it was", "grave": True}
    return bench.hear(Flagged("svc.a", digest, **{**words, **changes}))


def test_a_version_in_quarantine_gives_way_to_the_one_before() -> None:
    bench = twice()
    output, answer = quarantine(bench, reason="it reads wrong plates")
    assert answer.value == Quarantined("svc.a", {SECOND: "it reads wrong plates"}, FIRST)
    assert granted(output) == [FIRST]
    assert bench.task().spec.manifest.artifact.digest == FIRST
    assert bench.task().state is not TaskState.FAILED
    assert [one for one in events(bench) if one in ("quarantined", "goes back")] == [
        "quarantined",
        "goes back",
    ]


def test_released_it_runs_again() -> None:
    bench = twice()
    quarantine(bench)
    output, answer = quarantine(bench, release=True)
    assert answer.value == Quarantined("svc.a", {}, SECOND)
    assert granted(output) == [SECOND]
    assert bench.task().ordered is None


def test_without_another_version_nothing_runs_and_the_reason_is_told() -> None:
    bench = Bench()
    bench.node("n1")
    running(bench, 1, FIRST)
    output, answer = quarantine(bench, reason="it is wrong")
    [revoke] = said(output, EnvelopeRevoke)
    assert revoke.stays
    assert "in quarantine: version 111111111111 (it is wrong)" in revoke.reason
    assert bench.task().state is TaskState.FAILED
    assert isinstance(answer.value, Quarantined)
    assert answer.value.reason == revoke.reason
    bench.passes(120_000)
    bench.node("n2")
    assert bench.task().state is TaskState.FAILED, "no node is sought for it"
    output, _ = quarantine(bench, release=True)
    assert granted(output) == [FIRST]


def test_a_version_in_quarantine_that_is_ordered_again_stays_there() -> None:
    bench = twice()
    quarantine(bench)
    output = bench.order(3, specs={"manifest": program(SECOND), "replicas": 2})
    assert granted(output) == [FIRST]
    output = bench.order(4, specs={"manifest": program(THIRD)})
    assert granted(output) == [THIRD]
    assert bench.task().quarantined, "it is remembered"


def test_the_quarantine_survives_a_restart() -> None:
    bench = twice()
    quarantine(bench)
    bench.restart()
    bench.node("n1")
    assert bench.task().spec.manifest.artifact.digest == FIRST
    output, _ = quarantine(bench, release=True)
    assert granted(output)[-1] == SECOND


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"version": "ffff"}, "no one version of svc.a is meant; name one of these: 222222222222"),
        ({"release": True}, "no version of svc.a is in quarantine"),
    ],
)
def test_a_person_is_told_what_is_wrong(asked: dict[str, Any], words: str) -> None:
    _, answer = quarantine(twice(), **asked)
    assert words in answer.error


def test_a_tenant_does_not_touch_tasks_of_another() -> None:
    _, answer = quarantine(twice(), tenant="somebody")
    assert "another tenant" in answer.error


# What nodes measure.


def test_by_default_an_anomaly_is_told_and_nothing_else() -> None:
    bench = twice()
    assert not granted(flag(bench))
    assert bench.task().quarantined == {}
    assert events(bench)[-1] == "anomaly"


def test_where_the_document_says_so_a_grave_anomaly_is_acted_on() -> None:
    bench = twice(Quarantine.AUTO)
    assert not granted(flag(bench, grave=False))
    assert not granted(flag(bench, over=True))
    assert not granted(flag(bench, FIRST)), "it does not run"
    assert granted(flag(bench)) == [FIRST]
    assert bench.task().quarantined == {SECOND: "memory: the median is 3 times what it was"}
    assert not granted(flag(bench)), "once"


@pytest.mark.parametrize("autonomy", [Autonomy.FULL, Autonomy.MANUAL])
def test_where_it_says_so_a_person_is_asked(autonomy: Autonomy) -> None:
    bench = Bench()
    bench.node("n1")
    for generation, digest in ((1, FIRST), (2, SECOND)):
        specs = {"manifest": program(digest), "quarantine": Quarantine.ASK}
        order = bench.order(generation, specs=specs, autonomy=autonomy)
        bench.ready("n1", said(order, EnvelopeGrant)[-1].epoch_from, generation)
    [asked] = said(flag(bench), Escalation)
    assert (asked.person, asked.proposal) == (True, f"quarantine version {SECOND}")
    assert bench.task().state is TaskState.APPROVAL
    assert not said(flag(bench), Escalation), "once"
    denied = EscalationAnswer(asked.number, "svc.a", granted=False, reason="no")
    assert not granted(bench.hear(denied, "namo-main"))
    bench.passes(30_000)
    assert bench.task().state is TaskState.RUNNING
    [again] = said(flag(bench), Escalation)
    agreed = EscalationAnswer(again.number, "svc.a", granted=True, reason="yes")
    assert granted(bench.hear(agreed, "namo-main")) == [FIRST]


def test_a_stranger_flags_nothing() -> None:
    bench = twice(Quarantine.AUTO)
    assert not granted(bench.hear(Flagged("svc.a", SECOND, "memory", grave=True), "ts-other"))


# What is left to run.

DIGESTS = [FIRST, SECOND, THIRD, "sha256:" + "4" * 64]


@given(st.lists(st.sampled_from(DIGESTS), min_size=1, max_size=4, unique=True),
       st.sets(st.sampled_from(DIGESTS)), st.none() | st.sampled_from(DIGESTS))  # fmt: skip
def test_what_is_barred_never_runs(programs: list[str], barred: set[str], old: str | None) -> None:
    variants = tuple(
        Variant(f"v{at}", program(one)) for at, one in enumerate(programs[1:], start=1)
    )
    ordered = structs.replace(task_spec(), manifest=program(programs[0]), variants=variants)
    before = Variant(BEFORE, program(old)) if old is not None else None
    found = sifted(ordered, dict.fromkeys(barred, "bad"), before)
    left = [one for one in programs if one not in barred]
    if found is None:
        assert not left
        assert old is None or old in barred
        return
    runs = [found.manifest, *(one.manifest for one in found.variants)]
    assert not barred & {one.artifact.digest for one in runs}
    if programs[0] not in barred:
        assert found.manifest == ordered.manifest
    elif old is not None and old not in barred:
        assert found.manifest.artifact.digest == old
    else:
        assert found.manifest.artifact.digest == left[0]


def test_a_version_with_other_ports_is_nothing_to_go_back_to() -> None:
    other = structs.replace(program(FIRST), outputs=(Port("x", Dtype.FLOAT32, (-1,)),))
    ordered = structs.replace(task_spec(), manifest=program(SECOND))
    assert sifted(ordered, {SECOND: "bad"}, Variant(BEFORE, other)) is None
