"""What a request is answered with, and where outputs go: messages to clients and other nodes.

While the node is offline results and deliveries are kept, up to a bound, until the deadline of
their request; what was already on its way when the connection ended is asked for again by the
client, and answered from memory.

Tensors leave the node packed where the task is tuned so: to other nodes always, to a client only
if its request says that it can unpack them. What stays on this node is never packed.
"""

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from device_agent.core.box import Box
from device_agent.core.commands import Forward, Reply
from device_agent.core.events import Received
from device_agent.core.jobs import JobEnds
from device_agent.core.quality import Meter
from device_agent.core.request import Answer, Request
from device_agent.core.turn import Turn, cell_of
from device_agent.core.values import (
    MESSAGE_MAX_BYTES,
    answers,
    cell_in,
    inline_bytes,
    needed_elsewhere,
    total_bytes,
)
from protocols.errors import Blame, UnknownTopic
from protocols.messages.invocation import (
    Accepted,
    Deliver,
    Failure,
    FailureCode,
    Invoke,
    Plan,
    Result,
    Tensor,
    Value,
)
from protocols.packing import DEFLATE, pack
from protocols.topics import Channel, Party, Topic, parse

KEPT_MAX: Final = 256
KEPT_MAX_BYTES: Final = 4 << 20
"""Messages kept while offline, and their inline tensors; the oldest make room."""
REPLY_TOPICS_MAX: Final = 256
"""Reply topics known to be valid; the memory of them is emptied when full."""

_INBOXES: Final = frozenset({(Party.CLIENT, Channel.REPLY), (Party.NODE, Channel.INVOKE)})
"""Where answers may go: to a client, and to a node whose feeder is the client."""


def correlation_of(event: Received, body: Invoke | Deliver) -> bytes:
    """Return the client's correlation data: whoever passes a request on puts it into the body."""
    return body.correlation or event.correlation


class Replies:
    """Builds the messages that leave a request.

    `to_self` takes answers to the feeder of this node, `sink` what else an answer of a service is
    wanted for: (service, result, cause, tenant).
    """

    def __init__(
        self,
        turn: Turn,
        meter: Meter,
        jobs: JobEnds,
        to_self: Callable[[Accepted | Result], None],
        sink: Callable[[str, Result, str, str], None],
    ) -> None:
        self._turn = turn
        self._meter = meter
        self._jobs = jobs
        self._to_self = to_self
        self._sink = sink
        self._users: dict[str, Topic] = {}
        self._offline = False
        self._kept: Box[Forward | Reply] = Box(KEPT_MAX, KEPT_MAX_BYTES)

    def connected(self) -> None:
        """Send what was kept and is still waited for."""
        self._offline = False
        waited, late = self._kept.take(self._turn.now_ms)
        self._turn.dropped(late)
        if waited:
            self._turn.answered()
            self._turn.out += waited

    def disconnected(self) -> None:
        """Keep messages from now on."""
        self._offline = True

    def user(self, reply_to: str) -> str:
        """Return who waits at a topic; empty when no answer may go there."""
        topic = self._inbox(reply_to)
        return topic.name if topic is not None else ""

    def _inbox(self, reply_to: str) -> Topic | None:
        known = self._users.get(reply_to)
        if known is not None:
            return known
        try:
            topic = parse(reply_to)
        except UnknownTopic:
            return None
        if (topic.party, topic.channel) not in _INBOXES:
            return None
        if len(self._users) >= REPLY_TOPICS_MAX:
            self._users.clear()
        self._users[reply_to] = topic
        return topic

    def accept(self, request: Request) -> None:
        """Tell the client that its request is under way here."""
        if not request.job:
            accepted = Accepted(request.id, request.attempt, self._turn.node)
            if self._turn.own(request.reply_to):
                self._to_self(accepted)
            elif not self._offline:
                self._turn.out.append(_reply(request, accepted))

    def result(self, request: Request, failure: Failure) -> None:
        """Tell the client that its request failed."""
        if request.user:
            self._meter.refused(request.plan.service, request.user)
        self._give(request, Result(request.id, request.attempt, {}, failure))

    def refuse(
        self, event: Received, body: Invoke | Deliver, reply_to: str, failure: Failure
    ) -> None:
        """Answer what never became a request of this node."""
        self._turn.counts[failure.code.value] += 1
        result = Result(body.request, body.attempt, {}, failure)
        service = body.service if isinstance(body, Invoke) else body.plan.service
        if body.job:
            self._jobs.ended(service, result, event.cause, event.tenant)
            self._note(event, body, service, "", failure)
            return
        user = self.user(reply_to)
        self._meter.refused(service, user)
        self._note(event, body, service, user, failure)
        if self._turn.own(reply_to):
            self._to_self(result)
            return
        correlation = correlation_of(event, body)
        self._turn.out.append(Reply(reply_to, result, event.cause, event.tenant, correlation))

    def _note(
        self, event: Received, body: Invoke | Deliver, service: str, user: str, failure: Failure
    ) -> None:
        who = body.request, event.tenant, user, body.agent, event.cause
        self._turn.ledger().refused(who, service, failure.task, failure.code, failure.text)

    def send(self, request: Request, task: str, answer: Answer) -> Failure | None:
        """Send outputs to the client and to other nodes, as the plan says, or say why not."""
        plan = request.plan
        failure = self._answer(request, task, answer)
        if failure is not None or len(plan.steps) == 1:
            return failure
        left_ms = max(0, int(request.deadline_ms - self._turn.now_ms))
        for node, ports in needed_elsewhere(plan, self._turn.node, task).items():
            values = self._pick(task, {port: port for port in sorted(ports)}, answer, plan)
            if isinstance(values, Failure):
                return values
            values = self._packed(answer, values)
            deliver = Deliver(
                request.id,
                request.attempt,
                task,
                left_ms,
                values,
                request.reply_to,
                plan,
                answer.timings,
                request.correlation,
                request.priority,
                request.job,
                self._elapsed_us(answer, values),
                request.user,
                request.answer_encoding,
                request.agent,
            )
            self._count_sent(answer, values)
            cell = cell_in(plan, node) or cell_of(request.reply_to)
            said = Forward(node, deliver, request.cause, request.tenant, cell)
            self._say(request, said, values)
        return None

    def _answer(self, request: Request, task: str, answer: Answer) -> Failure | None:
        """Give the client its part of the answer, if this step has one."""
        edges, part, parts = answers(request.plan, task)
        if not edges:
            return None
        values = self._pick(task, {one.port: one.source_port for one in edges}, answer, None)
        if isinstance(values, Failure):
            return values
        result = Result(request.id, request.attempt, values, None, answer.timings, part, parts)
        service, local = request.plan.service, self._turn.own(request.reply_to)
        if not local and request.answer_encoding == DEFLATE:
            sources = {one.port: one.source_port for one in edges}
            result = msgspec.structs.replace(result, outputs=self._packed(answer, values, sources))
        if not local:
            self._count_sent(answer, result.outputs)
            latency_ms = self._elapsed_us(answer, result.outputs) / 1000
        else:
            latency_ms = self._turn.now_ms - answer.born_ms
        if request.user:
            self._meter.answered(service, request.user, latency_ms)
        self._give(request, result)
        if service in self._turn.sinks and not request.job:
            topic = self._inbox(request.reply_to)
            if topic is not None and topic.party is Party.CLIENT:
                # The feeder of a node passes on what its own requests bring.
                plain = msgspec.structs.replace(result, outputs=values)
                self._sink(service, plain, request.cause, request.tenant)
        return None

    def _elapsed_us(self, answer: Answer, values: Mapping[str, Value]) -> int:
        """Return how old a request is when its outputs reach the other side of this node's way.

        What is too large for a message lies at the other side already.
        """
        turn = self._turn
        way_ms = turn.round_trip_ms / 2 + turn.uplink.takes_ms(inline_bytes(values), turn.now_ms)
        return int((turn.now_ms - answer.born_ms + way_ms) * 1000)

    def _packed(
        self, answer: Answer, values: dict[str, Value], sources: Mapping[str, str] | None = None
    ) -> dict[str, Value]:
        """Return values packed where the task is tuned so and it is worth it."""
        if answer.instance.tuning.encoding != DEFLATE:
            return values
        if not answer.tried:
            answer.tried = True
            for name, value in answer.outputs.items():
                if isinstance(value, Tensor) and (tight := pack(value)) is not value:
                    answer.packed[name] = tight
        if not answer.packed:
            return values
        return {
            name: answer.packed.get(sources[name] if sources else name, value)
            for name, value in values.items()
        }

    def _count_sent(self, answer: Answer, values: Mapping[str, Value]) -> None:
        self._meter.of(answer.instance).sent_bytes += total_bytes(values)

    def _pick(
        self, task: str, ports: Mapping[str, str], answer: Answer, plan: Plan | None
    ) -> dict[str, Value] | Failure:
        """Return the outputs of one message under their new names, or why there is none."""
        outputs = answer.outputs
        missing = sorted(set(ports.values()) - outputs.keys())
        if missing:
            text = f"the plan takes {', '.join(missing)} from task {task}, which does not give it"
            return Failure(
                FailureCode.BAD_INPUT, Blame.USER, text, retryable=False, task=task,
                node=self._turn.node,
            )  # fmt: skip
        values = {port: outputs[source] for port, source in ports.items()}
        # What came along with a delivery counts too: a peer must not make our message too large.
        size = inline_bytes(values) + len(msgspec.msgpack.encode((plan, answer.timings)))
        if size > MESSAGE_MAX_BYTES:
            text = f"outputs of task {task} take {size} bytes, a message {MESSAGE_MAX_BYTES}"
            return Failure(
                FailureCode.LIMIT, Blame.USER, text, retryable=False, task=task,
                node=self._turn.node,
            )  # fmt: skip
        return values

    def _give(self, request: Request, result: Result) -> None:
        """Bring an answer to whoever asked."""
        if request.job:
            self._jobs.ended(request.plan.service, result, request.cause, request.tenant)
        elif self._turn.own(request.reply_to):
            self._to_self(result)
        else:
            self._say(request, _reply(request, result), result.outputs)

    def _say(self, request: Request, said: Forward | Reply, values: Mapping[str, Value]) -> None:
        if not self._offline:
            self._turn.answered()
            self._turn.out.append(said)
            return
        gone = self._kept.put(said, inline_bytes(values), request.deadline_ms)
        self._turn.kept(gone)


def _reply(request: Request, body: Accepted | Result) -> Reply:
    return Reply(request.reply_to, body, request.cause, request.tenant, request.correlation)
