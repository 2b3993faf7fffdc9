"""The ledger: every end of a call leaves a record and its figures, within bounds."""

from typing import Any

import msgspec
from device_harness import NODE, SimNode, assign, chain, failed, invoke, manifest, of, tensor

from device_agent.core import commands, events
from device_agent.core.ledger import BATCH_MS, BATCH_RECORDS, REPORT_CALLS, REPORT_MIN_MS
from protocols.histogram import total
from protocols.messages import AuditPage, AuditQuery, LoadReport, ProfileReport
from protocols.messages.invocation import FailureCode
from protocols.messages.profile import MAX_CALLERS

HEAD = b"h" * 32


def running(**changes: Any) -> SimNode:
    node = SimNode()
    node.join()
    node.hear(assign(of=manifest("m1", **changes)))
    return node


def ran(node: SimNode, at: int, **figures: Any) -> list[commands.Command]:
    node.call(invoke(f"r{at}"))
    call = next(iter(node.calls))
    del node.calls[call]
    return node.tell(events.ExecutorDone(call, {"y": tensor(b"ok")}, 100, **figures))


def logged(said: list[commands.Command]) -> list[tuple[Any, ...]]:
    """Return every record as the reader of a log would: its subject, then the rest."""
    found = []
    for one in of(commands.WriteLog, said):
        subjects, rows = msgspec.msgpack.decode(one.records)
        assert len(rows) == one.count <= BATCH_RECORDS
        found += [(*subjects[row[0]], *row[1:]) for row in rows]
    return found


def sampled(node: SimNode, **load: Any) -> list[ProfileReport]:
    figures = LoadReport(int(node.now_ms), **{"cpu_percent": 50.0, **load})
    return of(ProfileReport, node.tell(events.Sampled(figures)))


def test_a_call_is_logged_within_a_second() -> None:
    node = running()
    ran(node, 1, cpu_us=70)
    assert not logged(node.said)
    node.after(BATCH_MS)
    [record] = logged(node.said)
    task, service, generation, digest, variant, at_ms, request, tenant, user, agent = record[:10]
    assert (task, service, generation, variant) == ("t", "s", 1, "")
    assert digest == manifest("m1").artifact.digest
    assert (at_ms, request, tenant, user, agent) == (1000, "r1", "default", "app", "")
    verdict, reason, queue_us, run_us, cpu_us, taken, given, cause = record[10:]
    assert (verdict, reason, queue_us, run_us, cpu_us) == ("ok", "", 0, 100, 70)
    assert (taken, given, cause) == (3, 2, "test")


def test_a_full_batch_does_not_wait() -> None:
    node = running()
    for at in range(BATCH_RECORDS + 1):
        ran(node, at)
    assert len(logged(node.said)) == BATCH_RECORDS
    node.after(BATCH_MS)
    assert len(logged(node.said)) == BATCH_RECORDS + 1


def test_the_ai_agent_is_named_and_what_is_reported_with_a_flag() -> None:
    node = running()
    node.call(msgspec.structs.replace(invoke("r1"), agent="planner"))
    [call] = node.calls
    node.tell(events.ExecutorDone(call, {"y": tensor()}, 5, flags="output 'y' is above 3"))
    node.after(BATCH_MS)
    [record] = logged(node.said)
    assert record[9:12] == ("planner", "flagged", "output 'y' is above 3")


def test_every_way_to_fail_leaves_its_verdict() -> None:
    node = running(queue=1)
    node.call(invoke("works"))
    node.call(invoke("waits"))
    node.call(invoke("shed"))
    node.call(invoke("stale", chain(("t", NODE, 9))))
    node.call(invoke("late", budget_ms=0))
    node.tell(failed(next(iter(node.calls))))
    node.after(BATCH_MS + 1000)
    verdicts = {record[6]: (record[0], record[10], record[11]) for record in logged(node.said)}
    assert verdicts["works"] == ("t", "executor", ""), "the program's own words are not kept"
    assert verdicts["shed"][:2] == ("t", "shed")
    assert "requests waiting" in verdicts["shed"][2]
    assert verdicts["stale"][:2] == ("t", "stale")
    assert verdicts["late"][:2] == ("", "deadline")
    assert verdicts["waits"][:2] == ("t", "deadline")
    assert len(logged(node.said)) == 5


def test_no_input_and_no_output_is_ever_recorded() -> None:
    node = running()
    secret = b"a very secret input"
    node.call(msgspec.structs.replace(invoke("r1"), inputs={"x": tensor(secret)}))
    node.answer(y=tensor(b"a very secret output"))
    node.call(msgspec.structs.replace(invoke("r2"), inputs={"x": tensor(secret)}))
    [call] = node.calls
    code, blame = FailureCode.EXECUTOR, failed(call).blame
    node.tell(events.ExecutorFailed(call, code, blame, f"I read {secret!r}", retryable=False))
    node.after(BATCH_MS)
    assert len(logged(node.said)) == 2
    assert not any(b"secret" in one.records for one in of(commands.WriteLog, node.said))


def test_figures_are_sums_since_the_process_began() -> None:
    node = running()
    for at in range(3):
        ran(node, at, cpu_us=1000, peak_bytes=1 << 20)
    node.after(REPORT_MIN_MS)
    [first] = sampled(node)
    [version] = first.versions
    assert (version.task, version.calls, version.run_sum_us) == ("t", 3, 300)
    assert total(version.run_us) == total(version.cpu_us) == total(version.memory_bytes) == 3
    assert (version.peak_bytes, version.energy_j) == (1 << 20, None)
    assert version.callers == {"app": 3}
    for at in range(REPORT_CALLS):
        ran(node, 10 + at)
    assert not sampled(node), "it was reported a moment ago"
    node.after(REPORT_MIN_MS)
    [second] = sampled(node)
    assert second.versions[0].calls == 3 + REPORT_CALLS
    assert second.life == first.life


def test_energy_is_the_share_of_what_the_board_draws() -> None:
    node = running()
    sampled(node)
    ran(node, 1, cpu_us=250_000)
    node.after(REPORT_MIN_MS)
    # Of two cores half busy for two seconds a quarter of a second is an eighth.
    [report] = sampled(node, power_w=4.0)
    assert report.versions[0].energy_j == 4.0 * 2.0 / 8


def test_callers_are_bounded() -> None:
    node = running()
    for at in range(MAX_CALLERS + 9):
        reply = f"tona/1/cell/client/app{at}/reply"
        node.call(msgspec.structs.replace(invoke(f"r{at}"), reply_to=reply))
        node.answer()
    node.after(REPORT_MIN_MS)
    [report] = sampled(node)
    callers = report.versions[0].callers
    assert len(callers) == MAX_CALLERS + 1
    assert callers[""] == 9


def test_the_head_of_the_log_goes_with_the_next_report() -> None:
    node = running()
    ran(node, 1)
    node.after(REPORT_MIN_MS)
    sampled(node)
    node.tell(events.LogWritten(1, HEAD))
    [report] = sampled(node)
    assert (report.logged, report.head, report.versions) == (1, HEAD, ())
    assert not sampled(node), "nothing has changed since"


def test_a_question_finds_what_was_not_written_yet() -> None:
    node = running()
    ran(node, 1)
    said = node.hear(AuditQuery("q1"))
    written, read = of(commands.WriteLog, said), of(commands.ReadLog, said)
    assert said.index(written[0]) < said.index(read[0])
    page = AuditPage("q1", b"\x90")
    [told] = of(AuditPage, node.tell(events.LogRead(page, "test")))
    assert told == page


def test_the_end_of_the_daemon_writes_the_last_records() -> None:
    node = running()
    ran(node, 1)
    node.tell(events.ShutDown("enough"))
    assert len(logged(node.said)) == 1
