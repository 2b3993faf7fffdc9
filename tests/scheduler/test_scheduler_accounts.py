"""Figures by version and node at the scheduler, and its questions to the logs of nodes."""

from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st
from scheduler_bench import Bench, running, said, told

from controller.accounts import (
    HEADS,
    PROFILE,
    AuditTask,
    HeadsRecord,
    ProfileRecord,
    TaskAudit,
)
from controller.decider import Called, Fired, Output, Record, View
from controller.scheduler.accounts import HEADS_MAX, NODES_MAX, VERSIONS_MAX
from controller.scheduler.inquiries import ASK_MS, PAGES_MAX, TIMER
from protocols.histogram import pack
from protocols.messages import AuditPage, AuditQuery, EnvelopeRevoke, ProfileReport
from protocols.messages.profile import VersionProfile

TASK = "svc.a"


def digest(name: str) -> str:
    return "sha256:" + f"{name:0>64}"


def profile(calls: int, version: str = "a1", **changes: Any) -> VersionProfile:
    counts = [0] * 10
    counts[5] = calls
    figures = {"run_us": pack(counts), "run_sum_us": 8 * calls, "callers": {"app": calls}}
    return VersionProfile(TASK, digest(version), 1, calls=calls, **{**figures, **changes})


def report(life: int, *versions: VersionProfile, logged: int = 0, head: bytes = b"") -> Any:
    return ProfileReport(life, 0, versions, logged, head)


def shown(output: Output) -> dict[str, ProfileRecord]:
    rows: list[Record | View] = [*output.records, *output.views]
    return {
        one.key: one.value
        for one in rows
        if one.kind == PROFILE and isinstance(one.value, ProfileRecord)
    }


def cell(*nodes: str) -> Bench:
    bench = Bench()
    bench.born(*nodes)
    running(bench, *nodes)
    return bench


def test_the_newest_report_of_a_life_says_it_all() -> None:
    bench = cell("n1")
    for calls in (3, 7, 7):
        output = bench.node("n1", report(5, profile(calls)))
    [record] = shown(output).values()
    assert (record.whole.calls, record.whole.run_sum_us) == (7, 56)


def test_the_sums_of_earlier_lives_stay_and_late_words_of_them_do_not_count() -> None:
    bench = cell("n1")
    bench.node("n1", report(5, profile(7, peak_bytes=9)))
    [record] = shown(bench.node("n1", report(6, profile(2)))).values()
    assert (record.whole.calls, record.whole.callers) == (9, {"app": 9})
    assert (record.whole.peak_bytes, record.whole.energy_j) == (9, None)
    assert not shown(bench.node("n1", report(5, profile(8))))


def test_nobody_tells_of_tasks_that_were_never_given_to_it() -> None:
    bench = cell("n1")
    bench.born("n9")
    assert not shown(bench.node("n9", report(5, profile(100))))
    unknown = msgspec.structs.replace(profile(1), task="no.one")
    assert not shown(bench.node("n1", report(5, unknown)))
    assert bench.ts.counters["foreign_profile"] == 2
    # What it has told of while it might it may tell to the end.
    bench.node("n1", report(5, profile(1)))
    bench.anchor(EnvelopeRevoke(TASK, 1, "gone"))
    [record] = shown(bench.node("n1", report(5, profile(3)))).values()
    assert record.whole.calls == 3


@given(st.lists(st.tuples(st.integers(1, 3), st.integers(0, 40)), max_size=12))
def test_nothing_is_counted_twice_or_missed(words: list[tuple[int, int]]) -> None:
    bench = cell("n1")
    best: dict[int, int] = {}
    newest = 0
    for life, more in words:
        if life < newest:
            bench.node("n1", report(life, profile(10_000)))
            continue
        newest = life
        best[life] = best.get(life, 0) + more
        bench.node("n1", report(life, profile(best[life])))
        bench.node("n1", report(life, profile(best[life])))
    kept = bench.ts.accounts.of(TASK)
    assert sum(one.whole.calls for one in kept) == sum(best.values())


def test_versions_and_nodes_of_a_task_are_bounded() -> None:
    names = [f"m{at}" for at in range(NODES_MAX + 5)]
    bench = cell("n1", *names)
    for at in range(VERSIONS_MAX + 3):
        bench.node("n1", report(1, profile(1, f"{at:x}")))
    versions = {one.now.digest for one in bench.ts.accounts.of(TASK)}
    assert versions == {digest(f"{at:x}") for at in range(3, VERSIONS_MAX + 3)}
    for name in names:
        bench.node(name, report(1, profile(2, "8")))
    kept = [one for one in bench.ts.accounts.of(TASK) if one.now.digest == digest("8")]
    assert len(kept) == NODES_MAX + 1
    assert sum(one.whole.calls for one in kept) == 2 * len(names) + 1


def test_it_is_written_once_in_a_while_and_survives_a_restart() -> None:
    bench = cell("n1")
    first = bench.node("n1", report(5, profile(3)))
    second = bench.node("n1", report(5, profile(4)))
    assert [one.kind for one in first.records] == [PROFILE]
    assert not second.records
    assert shown(second), "people see it at once"
    again = Bench()
    again.ts.restore(first.records, again.now_ms)
    assert [one.whole.calls for one in again.ts.accounts.of(TASK)] == [3]


def test_heads_of_a_log_are_kept_and_a_replaced_log_is_told() -> None:
    bench = cell("n1")
    for at in range(1, 40):
        output = bench.node("n1", report(5, logged=at, head=bytes([at])))
    kept = bench.ts.accounts.heads["n1"]
    assert len(kept.heads) <= HEADS_MAX
    assert kept.heads[-1] == (39, bytes([39]))
    output = bench.node("n1", report(6, logged=4, head=b"other"))
    [record] = [one.value for one in output.records if one.kind == HEADS]
    assert isinstance(record, HeadsRecord)
    assert record.problem == "the log had 39 records and then other 4"


# Questions.


def ask(bench: Bench, **more: Any) -> Output:
    arguments = AuditTask(TASK, **more)
    return bench.feed(Called("c1", "task.audit", arguments, "default", "test", 0))


def row(number: int, unix_ms: int) -> list[Any]:
    return [number, unix_ms, TASK, "svc", 1, digest("a1"), "", f"r{number}", "default", "app", "",
            "ok", "", 1, 2, 3, 4, 5, ""]  # fmt: skip


def answer(query: AuditQuery, *rows: list[Any], following: int = 0, problem: str = "") -> AuditPage:
    body = msgspec.msgpack.encode(list(rows))
    return AuditPage(query.number, body, following, problem=problem)


def value(output: Output) -> TaskAudit:
    [one] = output.answers
    assert isinstance(one.value, TaskAudit), one
    return one.value


def test_the_nodes_that_ran_a_task_are_asked_and_answered_together() -> None:
    bench = cell("n1", "n2")
    bench.node("n2", report(5, profile(3), logged=3, head=b"h"))
    asked = ask(bench, limit=3)
    [first], [second] = told(asked, "n1", AuditQuery), told(asked, "n2", AuditQuery)
    assert (first.heads, second.heads) == ({}, {"3": b"h"})
    assert not bench.node("n1", answer(first, row(9, 90), row(8, 70))).answers
    found = value(bench.node("n2", answer(second, row(1, 80), row(0, 60))))
    assert [(one.node, one.unix_ms) for one in found.calls] == [("n1", 90), ("n2", 80), ("n1", 70)]
    assert (found.checked, found.problems) == (("n1", "n2"), {})


def test_it_reads_on_until_there_are_enough() -> None:
    bench = cell("n1")
    [query] = told(ask(bench, limit=3), "n1", AuditQuery)
    more = bench.node("n1", answer(query, row(9, 9), row(8, 8), following=8))
    [onward] = told(more, "n1", AuditQuery)
    assert onward.before == 8
    assert len(value(bench.node("n1", answer(onward, row(7, 7), following=7))).calls) == 3


def test_a_node_that_never_ends_is_not_asked_for_ever() -> None:
    bench = cell("n1")
    [query] = told(ask(bench, limit=1000), "n1", AuditQuery)
    for _ in range(PAGES_MAX - 1):
        assert told(bench.node("n1", answer(query, row(9, 9), following=8)), "n1", AuditQuery)
    assert value(bench.node("n1", answer(query, row(9, 9), following=8)))


def test_who_does_not_answer_is_named() -> None:
    bench = cell("n1", "n2")
    bench.node("n2", report(5, profile(3)))
    [query] = told(ask(bench), "n1", AuditQuery)
    bench.node("n1", answer(query, row(9, 90), problem="records 3 to 5 were changed"))
    bench.now_ms += ASK_MS
    found = value(bench.feed(Fired(TIMER + query.number)))
    assert len(found.calls) == 1
    assert found.checked == ()
    assert found.problems == {"n1": "records 3 to 5 were changed", "n2": "no answer within 10 s"}


def test_garbage_of_a_node_is_its_problem_alone() -> None:
    bench = cell("n1")
    [query] = told(ask(bench), "n1", AuditQuery)
    found = value(bench.node("n1", AuditPage(query.number, b"\xc1garbage")))
    assert found.problems == {"n1": "its answer is malformed"}
    assert not said(bench.node("n1", AuditPage("nobody asked this")), AuditQuery)
