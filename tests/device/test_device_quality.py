"""What a node measures: percentiles, windows, elapsed time over nodes, users told apart."""

from device_harness import NODE, REPLY, SimNode, assign, chain, invoke, manifest, of, tensor
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from device_agent.core import events
from device_agent.core.quality import SAMPLE_MAX, Sample
from device_agent.core.uplink import MOST_WAIT_MS, Uplink
from protocols.messages import Deliver, LinkReport, LoadReport, QualityReport, Result
from protocols.messages.invocation import REQUEST, Edge, Plan, Step
from protocols.messages.quality import MAX_USERS, Tuning


def sample(node: SimNode) -> QualityReport | None:
    said = node.tell(events.Sampled(LoadReport(int(node.now_ms), 1.0)))
    reports = of(QualityReport, said)
    return reports[0] if reports else None


def serving() -> SimNode:
    node = SimNode()
    node.join()
    node.hear(assign("t"))
    sample(node)
    return node


def linked(node: SimNode, round_trip_ms: float) -> None:
    link = LinkReport(0, "eth0", "wired", carrier=True, round_trip_ms=round_trip_ms)
    node.tell(events.LinkSampled(link))


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=2000))
@settings(deadline=None, derandomize=True)
def test_a_sample_is_bounded_exact_in_the_mean_and_a_choice_of_the_values(
    values: list[float],
) -> None:
    one = Sample()
    for value in values:
        one.add(value)
    assert len(one.kept) <= SAMPLE_MAX
    assert one.count == len(values)
    assert abs(one.mean - sum(values) / len(values)) <= 1e-6 * max(1.0, one.mean)
    assert one.kept == values[:: one.stride]
    assert one.p95() in values


def test_a_percentile_of_many_is_near_that_of_all() -> None:
    one = Sample()
    for number in range(10_000):
        one.add(float(number * 7919 % 10_000))
    assert abs(one.p95() - 9500) < 500


def test_nothing_is_said_where_nothing_ran() -> None:
    node = serving()
    node.after(60_000)
    assert sample(node) is None


def test_a_window_tells_of_runs_waits_bytes_and_users() -> None:
    node = serving()
    node.hear(structs.replace(assign("t", 2), tuning=Tuning(variant="small")))
    assert sample(node) is None
    plan = chain(("t", NODE, 2))
    node.after(1000)
    node.call(invoke("a", plan))
    node.call(invoke("b", plan))
    node.now_ms += 20
    node.answer(y=tensor(b"12345"))
    node.now_ms += 30
    node.answer(y=tensor(b"1234567"))
    report = sample(node)
    assert report is not None
    assert report.window_ms == 1050
    (task,) = report.tasks
    assert (task.task, task.epoch, task.variant, task.done) == ("t", 2, "small", 2)
    assert (task.queue_ms, task.run_ms, task.run_p95_ms) == (10.0, 0.1, 0.1)
    assert (task.input_bytes, task.output_bytes, task.sent_bytes) == (6, 12, 12)
    (user,) = report.users
    assert (user.service, user.user, user.answered, user.failed) == ("s", "app", 2, 0)
    assert (user.latency_ms, user.latency_p95_ms) == (35.0, 50.0)
    assert sample(node) is None, "the window has begun anew"


def test_what_waits_is_told_although_nothing_has_ended() -> None:
    node = serving()
    node.call(invoke("a"))
    node.call(invoke("b"))
    for _ in range(3):
        report = sample(node)
        assert report is not None
        assert (report.tasks[0].queue, report.tasks[0].done) == (1, 0)


def test_figures_wait_for_a_scheduler() -> None:
    node = serving()
    node.tell(events.Disconnected("x"))
    node.call(invoke("a"))
    node.answer()
    assert sample(node) is None
    node.join()
    report = sample(node)
    assert report is not None
    assert report.tasks[0].done == 1


def test_elapsed_time_adds_up_over_nodes_with_half_of_the_own_round_trip_each() -> None:
    node = serving()
    linked(node, 8.0)
    node.call(invoke("a", chain(("t", NODE, 1), ("u", "node-b", 4))))
    node.now_ms += 25
    (deliver,) = of(Deliver, node.answer())
    assert deliver.elapsed_us == 29_000
    assert deliver.user == "app"
    there = serving()
    linked(there, 2.0)
    there.call(structs.replace(deliver, plan=chain(("x", "node-c", 1), ("t", NODE, 1)), source="x"))
    there.now_ms += 10
    there.answer()
    report = sample(there)
    assert report is not None
    assert report.users[0].latency_ms == 29 + 10 + 1


def test_what_leaves_counts_with_the_time_that_its_bytes_take() -> None:
    node = serving()
    link = LinkReport(0, "eth0", "wired", carrier=True, round_trip_ms=8.0)
    # 4 Mbit/s are 500 bytes in a millisecond; 6 ms of others' bytes wait there.
    narrow = structs.replace(link, delivery_mbit_per_s=4.0, send_wait_ms=6.0)
    node.tell(events.LinkSampled(narrow))
    plan = chain(("t", NODE, 1), ("u", "node-b", 4))
    node.call(invoke("a", plan))
    (first,) = of(Deliver, node.answer(y=tensor(bytes(10_000))))
    assert first.elapsed_us == (6 + 20 + 4) * 1000
    node.now_ms += 10
    node.call(invoke("b", plan))
    (second,) = of(Deliver, node.answer(y=tensor(bytes(5000))))
    assert second.elapsed_us == (16 + 10 + 4) * 1000, "it waits for the first one"
    node.now_ms += 1000
    node.call(invoke("c"))
    node.answer(y=tensor(bytes(1000)))
    report = sample(node)
    assert report is not None
    assert report.users[0].latency_ms == 2 + 4
    node.tell(events.LinkSampled(link))
    node.call(invoke("d", plan))
    (last,) = of(Deliver, node.answer(y=tensor(bytes(10_000))))
    assert last.elapsed_us == 4000, "nothing is known of the link any more"


@given(st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 500)), max_size=30))
@settings(deadline=None, derandomize=True)
def test_an_uplink_serves_in_turn_and_no_faster_than_its_rate(sends: list[tuple[int, int]]) -> None:
    way, now_ms, left_ms = Uplink(), 0.0, 0.0
    way.measured(8.0, 0.0, now_ms)
    for size, pause_ms in sends:
        now_ms += pause_ms
        left_ms = min(max(left_ms, now_ms) + size / 1000, now_ms + MOST_WAIT_MS)
        assert abs(way.takes_ms(size, now_ms) - (left_ms - now_ms)) < 1e-6


def test_where_ways_join_the_longer_one_counts() -> None:
    node = serving()
    node.hear(assign("two", of=manifest("two", inputs=("x", "z"))))
    steps = (
        Step("a", "node-a1", 1, (Edge("x", REQUEST, "x"),), ("y",)),
        Step("b", "node-b1", 1, (Edge("x", REQUEST, "x"),), ("y",)),
        Step("two", NODE, 1, (Edge("x", "a", "y"), Edge("z", "b", "y")), ("y",)),
    )
    plan = Plan("s", 1, steps, (Edge("answer", "two", "y"),))

    def delivery(source: str, elapsed_us: int) -> Deliver:
        return Deliver(
            "r", 1, source, 5000, {"y": tensor()}, REPLY, plan, elapsed_us=elapsed_us, user="app"
        )

    node.call(delivery("a", 40_000))
    node.now_ms += 30
    node.call(delivery("b", 90_000))
    node.now_ms += 5
    assert of(Result, node.answer())[0].failure is None
    report = sample(node)
    assert report is not None
    assert report.users[0].latency_ms == 95.0, "b was longer on its way: 90 + 5, a 40 + 35"


def test_a_failure_counts_for_its_user() -> None:
    node = serving()
    node.call(structs.replace(invoke("a"), inputs={}))
    node.call(invoke("b", chain(("t", NODE, 9))))
    report = sample(node)
    assert report is not None
    assert not report.tasks
    assert (report.users[0].user, report.users[0].failed) == ("app", 2)


def test_a_job_is_no_user() -> None:
    node = serving()
    node.call(structs.replace(invoke("job-1"), job=True, reply_to=""))
    node.answer()
    report = sample(node)
    assert report is not None
    assert not report.users
    assert report.tasks[0].done == 1


def test_users_beyond_the_bound_are_summed() -> None:
    node = serving()
    for number in range(MAX_USERS + 30):
        reply = f"tona/1/cell/client/app-{number}/reply"
        node.call(structs.replace(invoke(f"r{number}"), reply_to=reply))
        node.answer()
    report = sample(node)
    assert report is not None
    assert len(report.users) == MAX_USERS + 1
    assert sum(one.answered for one in report.users) == MAX_USERS + 30
    assert [one.answered for one in report.users if not one.user] == [30]
