"""The requests of a client, decided on a virtual clock."""

import itertools
from collections.abc import Iterator
from heapq import heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from protocols.errors import Blame
from protocols.manifest import Dtype
from protocols.messages import Accepted, Result, Route
from protocols.messages.invocation import (
    Blob,
    Edge,
    Failure,
    FailureCode,
    Plan,
    Step,
    Tensor,
    Timing,
)
from tona import requests
from tona.events import (
    AskRoute,
    Cancelled,
    Command,
    Event,
    Finish,
    Heard,
    Online,
    SendCancel,
    SendInvoke,
    Submit,
    Unsent,
    Upload,
    Uploaded,
    Wake,
    Woken,
)
from tona.requests import ACCEPT_MS, DRAIN_MS, MAX_ATTEMPTS, Requests

ONE = Tensor(Dtype.UINT8, (1,), b"1")
TWO = Tensor(Dtype.UINT8, (1,), b"2")
BUSY = Failure(FailureCode.BUSY, Blame.ENVIRONMENT, "queue full", retryable=True)
BROKEN = Failure(FailureCode.BAD_INPUT, Blame.USER, "no image", retryable=False)


def step(task: str, node: str, epoch: int, *names: str) -> Step:
    return Step(task, node, epoch, tuple(Edge(n, "request", n) for n in names), ("y",))


def route(
    *steps: Step, epoch: int = 1, credit: int = 0, valid_ms: int = 30_000, service: str = "s"
) -> Route:
    ends = tuple(Edge(one.task, one.task, "y") for one in steps) or (Edge("y", "t", "y"),)
    plan = Plan(service, 1, steps, ends) if steps else None
    return Route(service, epoch, plan, valid_ms, credit, ("http://store",), "a node was lost")


class Desk:
    """The core with a clock that is moved by hand."""

    def __init__(self) -> None:
        self.core = Requests("reply")
        self.now_ms = 1000.0
        self.wake_ms: float | None = None
        self.said: list[Command] = []
        self.do(Online(connected=True))

    def do(self, event: Event) -> list[Command]:
        out = self.core.handle(event, self.now_ms)
        for command in out:
            if isinstance(command, Wake):
                self.wake_ms = command.at_ms
        said = [one for one in out if not isinstance(one, Wake)]
        self.said += said
        return said

    def hear(self, body: Accepted | Result | Route) -> list[Command]:
        return self.do(Heard(body))

    def submit(
        self, name: str = "r", deadline_ms: float = 5000, uploads: bool = False, **inputs: Tensor
    ) -> list[Command]:
        given = {**inputs} or {"x": ONE}
        due_ms = self.now_ms + deadline_ms
        return self.do(Submit(name, "s", given, due_ms, uploads))

    def sleep(self, ms: float) -> list[Command]:
        end_ms = self.now_ms + ms
        said: list[Command] = []
        while self.wake_ms is not None and self.wake_ms <= end_ms:
            self.now_ms, self.wake_ms = max(self.now_ms, self.wake_ms), None
            said += self.do(Woken())
        self.now_ms = end_ms
        return said


@pytest.fixture
def desk() -> Desk:
    return Desk()


@pytest.fixture
def warm() -> Desk:
    one = Desk()
    one.submit("first")
    one.hear(route(step("t", "n1", 1, "x")))
    one.hear(Result("first", 1, {"y": ONE}))
    one.said.clear()
    return one


def sent(commands: list[Command]) -> list[tuple[str, str, int]]:
    found = [one for one in commands if isinstance(one, SendInvoke)]
    return [(one.node, one.body.request, one.body.attempt) for one in found]


def finish(commands: list[Command]) -> Finish:
    (found,) = [one for one in commands if isinstance(one, Finish)]
    return found


def failure(commands: list[Command]) -> Failure:
    found = finish(commands).failure
    assert found is not None
    return found


def test_a_cold_request_asks_for_the_route_then_goes(desk: Desk) -> None:
    assert desk.submit() == [AskRoute("s")]
    out = desk.hear(route(step("t", "n1", 1, "x")))
    assert sent(out) == [("n1", "r", 1)]
    (command,) = out
    assert isinstance(command, SendInvoke)
    assert command.body.plan is not None
    assert (command.body.budget_ms, command.body.reply_to) == (5000, "reply")
    timing = Timing("t", "n1", 1, 2)
    out = desk.hear(Result("r", 1, {"y": TWO}, None, (timing,)))
    assert out == [Finish("r", {"y": TWO}, None, (timing,), 1, ("http://store",))]


def test_a_warm_request_is_one_message_out_and_one_back(warm: Desk) -> None:
    assert sent(warm.submit()) == [("n1", "r", 1)]
    assert [type(o) for o in warm.sleep(70) + warm.hear(Result("r", 1, {"y": ONE}))] == [Finish]
    assert [one.body.stood_ms for one in warm.submit("n") if isinstance(one, SendInvoke)] == [70]


def test_an_answer_that_comes_again_is_dropped(warm: Desk) -> None:
    warm.submit()
    warm.hear(Result("r", 1, {"y": ONE}))
    assert warm.hear(Result("r", 1, {"y": ONE})) == []
    assert warm.hear(Accepted("r", 1, "n1")) == []
    assert warm.core.counters.late == 2


def test_every_entry_node_gets_what_its_steps_need_and_parts_are_joined(desk: Desk) -> None:
    desk.submit(a=ONE, b=TWO)
    out = desk.hear(route(step("t", "n1", 1, "a"), step("u", "n2", 1, "a", "b")))
    bodies = {one.node: one.body.inputs for one in out if isinstance(one, SendInvoke)}
    assert bodies == {"n1": {"a": ONE}, "n2": {"a": ONE, "b": TWO}}
    shared = Timing("t", "n1", 1, 2)
    assert desk.hear(Result("r", 1, {"t": ONE}, None, (shared,), 0, 2)) == []
    assert desk.hear(Result("r", 1, {"t": ONE}, None, (shared,), 0, 2)) == []
    done = finish(
        desk.hear(Result("r", 1, {"u": TWO}, None, (shared, Timing("u", "n2", 1, 1)), 1, 2))
    )
    assert done.outputs == {"t": ONE, "u": TWO}
    assert [one.task for one in done.timings] == ["t", "u"]


def test_parts_of_different_attempts_make_no_answer(desk: Desk) -> None:
    desk.submit()
    desk.hear(route(step("t", "n1", 1, "x"), step("u", "n2", 1, "x")))
    desk.hear(Result("r", 1, {"t": ONE}, None, (), 0, 2))
    desk.sleep(ACCEPT_MS)
    assert desk.hear(Result("r", 2, {"u": ONE}, None, (), 1, 2)) == []
    assert finish(desk.hear(Result("r", 2, {"t": ONE}, None, (), 0, 2))).attempts == 2


def test_a_failure_that_may_be_retried_is_tried_again_after_a_pause(warm: Desk) -> None:
    warm.submit()
    assert warm.hear(Result("r", 1, {}, BUSY)) == []
    out = warm.sleep(100)
    assert sent(out) == [("n1", "r", 2)]
    assert finish(warm.hear(Result("r", 2, {"y": ONE}))).attempts == 2


def test_a_failure_that_may_not_be_retried_ends_the_request(warm: Desk) -> None:
    warm.submit()
    assert failure(warm.hear(Result("r", 1, {}, BROKEN))) == BROKEN


def test_a_failure_of_an_attempt_that_was_given_up_is_dropped(warm: Desk) -> None:
    warm.submit()
    warm.sleep(ACCEPT_MS)
    assert warm.hear(Result("r", 1, {}, BUSY)) == []
    assert finish(warm.hear(Result("r", 2, {"y": ONE}))).failure is None


def test_silence_is_answered_by_the_next_attempt_and_a_question(warm: Desk) -> None:
    warm.submit(deadline_ms=20_000)
    assert warm.sleep(ACCEPT_MS - 1) == []
    out = warm.sleep(1)
    assert out[0] == AskRoute("s")
    assert sent(out) == [("n1", "r", 2)]
    assert sent(warm.sleep(2 * ACCEPT_MS)) == [("n1", "r", 3)]


def test_the_node_of_an_accepted_request_is_left_in_peace(warm: Desk) -> None:
    warm.submit(deadline_ms=20_000)
    warm.hear(Accepted("r", 1, "n1"))
    assert {*map(type, warm.sleep(15_000))} == {AskRoute}
    assert failure(warm.sleep(5_000)).code is FailureCode.DEADLINE


def test_a_request_counts_as_accepted_when_every_entry_node_has_said_so(desk: Desk) -> None:
    desk.submit()
    desk.hear(route(step("t", "n1", 1, "x"), step("u", "n2", 1, "x")))
    desk.hear(Accepted("r", 1, "n1"))
    assert [node for node, _, _ in sent(desk.sleep(ACCEPT_MS))] == ["n1", "n2"]
    desk.hear(Accepted("r", 1, "n2"))
    desk.hear(Accepted("r", 2, "n1"))
    desk.hear(Accepted("r", 2, "n2"))
    assert sent(desk.sleep(3000)) == []


def test_a_new_route_moves_what_is_under_way_at_once(warm: Desk) -> None:
    warm.submit()
    warm.hear(Accepted("r", 1, "n1"))
    assert sent(warm.hear(route(step("t", "n2", 2, "x"), epoch=2))) == [("n2", "r", 2)]
    assert sent(warm.hear(route(step("t", "n2", 2, "x"), epoch=3))) == []
    assert finish(warm.hear(Result("r", 1, {"y": ONE}))).attempts == 2


def test_what_a_node_ends_before_it_leaves_is_not_asked_for_elsewhere_at_once(warm: Desk) -> None:
    for name in "rqp":
        warm.submit(name)
    warm.hear(Accepted("r", 1, "n1"))
    drained = structs.replace(route(step("t", "n2", 2, "x"), epoch=2), drains=True)
    assert sent(warm.hear(drained)) == []
    warm.hear(Accepted("q", 1, "n1"))
    assert finish(warm.hear(Result("p", 1, {"y": ONE}))).attempts == 1
    # A node that does not answer after all is not waited for any longer.
    again = sent(warm.sleep(DRAIN_MS))
    assert sorted(again) == [("n2", "q", 2), ("n2", "r", 2)]


def test_an_older_route_is_dropped_unless_the_newer_has_expired(warm: Desk) -> None:
    warm.submit()
    assert warm.hear(route(step("t", "n9", 1, "x"), epoch=0)) == []
    assert warm.core.counters.stale_routes == 1
    warm.sleep(30_000)
    warm.submit("later")
    assert sent(warm.hear(route(step("t", "n9", 1, "x"), epoch=0))) == [("n9", "later", 1)]


def test_an_old_route_is_refreshed_while_it_is_used_and_not_used_when_expired(warm: Desk) -> None:
    warm.sleep(15_001)
    out = warm.submit()
    assert sent(out) == [("n1", "r", 1)]
    assert AskRoute("s") in out
    warm.hear(Result("r", 1, {"y": ONE}))
    warm.sleep(15_000)
    assert warm.submit("r2") == [AskRoute("s")]


def test_a_question_without_an_answer_is_repeated_ever_more_slowly(desk: Desk) -> None:
    desk.submit(deadline_ms=10_000)
    asked = []
    for _ in range(100):
        asked += [desk.now_ms for one in desk.sleep(100) if isinstance(one, AskRoute)]
    gaps = [round(b - a) for a, b in itertools.pairwise(asked)]
    assert gaps[:3] == [500, 1000, 2000]
    assert set(gaps[3:]) == {2000}


def test_a_service_that_is_not_served_is_said_so_at_the_deadline(desk: Desk) -> None:
    desk.submit()
    desk.hear(route())
    told = failure(desk.sleep(5000))
    assert told.code is FailureCode.NO_SERVICE
    assert told.text == "service 's' is not served: a node was lost"


def test_a_service_that_comes_back_serves_who_has_waited(desk: Desk) -> None:
    desk.submit("a")
    desk.submit("b")
    desk.hear(route())
    out = desk.hear(route(step("t", "n1", 1, "x"), epoch=2))
    assert sent(out) == [("n1", "a", 1), ("n1", "b", 1)]


def test_the_credit_of_the_route_bounds_what_is_under_way(desk: Desk) -> None:
    for name in "abc":
        desk.submit(name)
    assert sent(desk.hear(route(step("t", "n1", 1, "x"), credit=2))) == [
        ("n1", "a", 1),
        ("n1", "b", 1),
    ]
    assert sent(desk.submit("d")) == []
    assert sent(desk.hear(Result("b", 1, {"y": ONE}))) == [("n1", "c", 1)]
    assert sent(desk.do(Cancelled("a"))) == [("n1", "d", 1)]


def test_what_was_under_way_keeps_its_place_when_the_route_is_gone_for_a_while(desk: Desk) -> None:
    desk.submit("a")
    desk.hear(route(step("t", "n1", 1, "x"), credit=1))
    desk.submit("b")
    desk.hear(route(epoch=2))
    desk.hear(Result("a", 1, {}, BUSY))
    desk.sleep(500)
    assert sent(desk.hear(route(step("t", "n2", 1, "x"), epoch=3, credit=1))) == [("n2", "a", 2)]
    assert sent(desk.hear(Result("a", 2, {"y": ONE}))) == [("n2", "b", 1)]


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        (
            {"imge": ONE},
            "service 's' has no input 'imge'; did you mean 'image'? (it takes 'image')",
        ),
        ({"image": ONE, "q": ONE}, "service 's' has no input 'q' (it takes 'image')"),
    ],
)
def test_a_wrong_input_is_refused_before_it_is_sent(
    desk: Desk, inputs: dict[str, Tensor], text: str
) -> None:
    desk.submit(**inputs)
    told = failure(desk.hear(route(step("t", "n1", 1, "image"))))
    assert (told.code, told.blame, told.text) == (FailureCode.BAD_INPUT, Blame.USER, text)


def test_a_missing_input_is_named(desk: Desk) -> None:
    desk.submit(a=ONE)
    told = failure(desk.hear(route(step("t", "n1", 1, "a", "b"))))
    assert told.text == "service 's' needs the input 'b' (it takes 'a', 'b')"


def test_large_values_are_stored_before_the_request_goes(warm: Desk) -> None:
    blob = {"x": Blob(Dtype.UINT8, (9,), "sha256:" + "0" * 64, 9)}
    out = warm.do(Submit("r", "s", dict(blob), warm.now_ms + 5000, uploads=True))
    assert out == [Upload("r", ("http://store",))]
    assert warm.do(Uploaded("r", "disk full")) == []
    assert warm.sleep(100) == [Upload("r", ("http://store",))]
    assert sent(warm.do(Uploaded("r"))) == [("n1", "r", 1)]
    # A node that cannot fetch it may mean that the store has lost it.
    lost = Failure(FailureCode.FETCH, Blame.ENVIRONMENT, "404", retryable=True)
    warm.hear(Result("r", 1, {}, lost))
    assert warm.sleep(200) == [Upload("r", ("http://store",))]
    assert sent(warm.do(Uploaded("r"))) == [("n1", "r", 2)]


def test_after_a_break_of_the_line_everything_is_asked_again(warm: Desk) -> None:
    warm.submit("a")
    warm.hear(Accepted("a", 1, "n1"))
    warm.do(Online(connected=False))
    assert warm.submit("b") == []
    assert warm.sleep(2000) == []
    out = warm.do(Online(connected=True))
    assert AskRoute("s") in out
    assert sorted(sent(out)) == [("n1", "a", 2), ("n1", "b", 1)]


def test_a_route_from_before_a_break_is_used_and_asked_for_again(warm: Desk) -> None:
    warm.do(Online(connected=False))
    assert warm.do(Online(connected=True)) == []
    out = warm.submit()
    assert sent(out) == [("n1", "r", 1)]
    assert AskRoute("s") in out


def test_an_answer_to_an_attempt_that_was_never_made_is_dropped(warm: Desk) -> None:
    warm.submit()
    assert warm.hear(Result("r", 2, {"y": ONE})) == []
    assert warm.core.counters.late == 1


def test_each_attempt_has_its_own_time_to_be_accepted(warm: Desk) -> None:
    warm.submit(deadline_ms=20_000)
    warm.sleep(ACCEPT_MS / 2)
    assert sent(warm.hear(route(step("t", "n2", 2, "x"), epoch=2))) == [("n2", "r", 2)]
    assert sent(warm.sleep(2 * ACCEPT_MS - 1)) == []
    assert sent(warm.sleep(1)) == [("n2", "r", 3)]


def test_without_a_line_the_deadline_says_so(warm: Desk) -> None:
    warm.do(Online(connected=False))
    warm.submit()
    told = failure(warm.sleep(5000))
    assert told.text == (
        "service 's' gave no answer within 5000 ms: there is no connection to the broker"
    )


def test_a_message_that_could_not_be_queued_is_tried_again(warm: Desk) -> None:
    warm.submit()
    assert warm.do(Unsent("r")) == []
    assert sent(warm.sleep(100)) == [("n1", "r", 2)]


def test_a_cancelled_request_is_cancelled_at_its_nodes(warm: Desk) -> None:
    warm.submit()
    assert warm.do(Cancelled("r")) == [SendCancel("n1", "r", "s")]
    assert warm.do(Cancelled("r")) == []
    assert warm.sleep(10_000) == []


def test_the_deadline_tells_what_went_wrong(warm: Desk) -> None:
    warm.submit(deadline_ms=40)
    told = failure(warm.sleep(40))
    assert told.text == "service 's' gave no answer within 40 ms and n1 said nothing at all"
    warm.submit("again", deadline_ms=70)
    warm.hear(Result("again", 1, {}, BUSY))
    told = failure(warm.sleep(70))
    assert "attempts the last that failed: queue full" in told.text


def test_a_request_without_time_is_answered_at_once(warm: Desk) -> None:
    assert failure(warm.submit(deadline_ms=0)).code is FailureCode.DEADLINE


def test_requests_and_services_are_bounded(warm: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requests, "MAX_REQUESTS", 1)
    monkeypatch.setattr(requests, "MAX_SERVICES", 1)
    other = Submit("o", "other", {}, warm.now_ms + 100)
    assert "follows 1 services" in failure(warm.do(other)).text
    warm.submit("a")
    assert "has 1 requests" in failure(warm.submit("b")).text


def test_nothing_is_kept_of_what_is_over(warm: Desk) -> None:
    for at in range(3000):
        warm.submit(f"q{at}")
        warm.hear(Result(f"q{at}", 1, {"y": ONE}))
    warm.sleep(20_000)
    assert len(warm.core) == 0
    assert warm.core._due == []
    service = warm.core._services["s"]
    assert (service.under_way, len(service.requests), len(service.waiting)) == (0, 0, 0)


def test_who_waits_in_vain_leaves_nothing_behind(desk: Desk) -> None:
    for at in range(50):
        desk.submit(f"q{at}", deadline_ms=10)
        desk.sleep(20)
    assert len(desk.core._services["s"].waiting) == 0


class World:
    """Nodes and scheduler that do what a list of numbers says: lose, double, delay, fail, move."""

    def __init__(self, choices: Iterator[int]) -> None:
        self.desk = Desk()
        self.choices = choices
        self.mail: list[tuple[float, int, Accepted | Result | Route]] = []
        self.posted = 0
        self.epoch = 1
        self.finished: dict[str, list[tuple[float, Finish]]] = {}
        self.attempts: dict[str, list[int]] = {}
        self.inputs: dict[str, list[dict[str, object]]] = {}
        self.cancelled: set[str] = set()

    def pick(self, below: int) -> int:
        return next(self.choices, 0) % below

    def post(self, body: Accepted | Result | Route) -> None:
        for _ in range((1, 1, 1, 2, 0)[self.pick(5)]):
            self.posted += 1
            delay_ms = (1, 5, 700, 3000)[self.pick(4)]
            heappush(self.mail, (self.desk.now_ms + delay_ms, self.posted, body))

    def route(self) -> Route:
        self.epoch += self.pick(2)
        if self.pick(4) == 3:
            return route(epoch=self.epoch)
        node = f"n{self.pick(3)}"
        steps = [step("t", node, self.epoch, "x")]
        if self.pick(2):
            steps.append(step("u", "n7", 1, "x"))
        valid_ms = (30_000, 400)[self.pick(2)]
        return route(*steps, epoch=self.epoch, credit=self.pick(3), valid_ms=valid_ms)

    def obey(self, commands: list[Command]) -> None:
        for command in commands:
            match command:
                case AskRoute():
                    self.post(self.route())
                case SendInvoke(node=node, body=body):
                    self.see(node, body.request, body.attempt, dict(body.inputs))
                case Upload(request=request):
                    failed = ("", "", "disk full")[self.pick(3)]
                    self.obey(self.desk.do(Uploaded(request, failed)))
                case Finish(request=request):
                    entry = (self.desk.now_ms, command)
                    self.finished.setdefault(request, []).append(entry)
                case _:
                    pass

    def see(self, node: str, request: str, attempt: int, inputs: dict[str, object]) -> None:
        assert request not in self.finished, "a request goes out after its end"
        assert request not in self.cancelled
        self.inputs.setdefault(request, []).append(inputs)
        seen = self.attempts.setdefault(request, [])
        assert attempt >= max(seen, default=1)
        seen.append(attempt)
        match self.pick(6):
            case 0:
                self.post(Accepted(request, attempt, node))
                self.post(Result(request, attempt, {"y": ONE}))
            case 1:
                self.post(Result(request, attempt, {}, BUSY))
            case 2:
                self.post(Result(request, attempt, {}, BROKEN))
            case 3:
                self.post(Result(request, attempt, {node: ONE}, None, (), self.pick(2), 2))
            case 4:
                self.post(Accepted(request, attempt, node))
            case _:
                self.obey(self.desk.do(Unsent(request)))

    def run(self, until_ms: float) -> None:
        desk = self.desk
        while desk.now_ms < until_ms:
            posted_ms = self.mail[0][0] if self.mail else until_ms
            woken_ms = until_ms if desk.wake_ms is None else desk.wake_ms
            next_ms = max(desk.now_ms, min(until_ms, posted_ms, woken_ms))
            self.obey(desk.sleep(next_ms - desk.now_ms))
            while self.mail and self.mail[0][0] <= desk.now_ms:
                self.obey(desk.hear(heappop(self.mail)[2]))


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 59), min_size=20, max_size=120),
    st.lists(
        st.tuples(
            st.sampled_from(["submit", "submit", "upload", "cancel", "off", "on", "route"]),
            st.sampled_from([1, 30, 500, 2500]),
            st.sampled_from([20, 900, 8000]),
        ),
        max_size=12,
    ),
)
def test_every_request_ends_exactly_once_whatever_happens(
    choices: list[int], acts: list[tuple[str, int, int]]
) -> None:
    world = World(iter(choices * 8))
    desk = world.desk
    due_ms: dict[str, float] = {}
    for number, (act, pause_ms, deadline_ms) in enumerate(acts):
        name = f"r{number}"
        match act:
            case "submit" | "upload":
                due_ms[name] = desk.now_ms + deadline_ms
                world.obey(desk.submit(name, deadline_ms, uploads=act == "upload"))
            case "cancel":
                alive = [one for one in due_ms if one not in world.finished]
                if alive:
                    world.cancelled.add(alive[0])
                    world.obey(desk.do(Cancelled(alive[0])))
            case "route":
                world.post(world.route())
            case _:
                world.obey(desk.do(Online(connected=act == "on")))
        world.run(desk.now_ms + pause_ms)
    world.run(desk.now_ms + 20_000)
    assert set(world.finished) == set(due_ms) - (world.cancelled - set(world.finished))
    for name, ends in world.finished.items():
        ((at_ms, end),) = ends
        assert at_ms <= due_ms[name]
        assert (end.failure is None) == bool(end.outputs)
        assert end.attempts <= MAX_ATTEMPTS
    for seen in world.attempts.values():
        assert len(set(seen)) <= MAX_ATTEMPTS
        assert sorted(set(seen)) == list(range(1, max(seen) + 1))
    assert len(desk.core) == 0
    for service in desk.core._services.values():
        assert (service.under_way, len(service.requests), len(service.waiting)) == (0, 0, 0)


def test_attempts_are_bounded(warm: Desk) -> None:
    warm.submit(deadline_ms=3_000_000)
    attempts, ends = 1, []
    for epoch in range(4000):
        warm.hear(route(step("t", "n1", 1, "x"), epoch=2 + epoch))
        attempts += len(sent(warm.hear(Result("r", attempts, {}, BUSY))))
        out = warm.sleep(500)
        attempts += len(sent(out))
        ends += [one for one in warm.said if isinstance(one, Finish)]
        if ends:
            break
    (end,) = ends
    assert end.failure == BUSY
    assert end.attempts == attempts == MAX_ATTEMPTS
