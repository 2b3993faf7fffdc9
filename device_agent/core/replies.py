"""What a request is answered with, and where outputs go: messages to clients and other nodes.

While the node is offline results and deliveries are kept, up to a bound, until the deadline of
their request; what was already on its way when the connection ended is asked for again by the
client, and answered from memory.
"""

from collections import deque
from collections.abc import Mapping
from typing import Final

import msgspec

from device_agent.core.commands import Forward, Reply
from device_agent.core.events import Received
from device_agent.core.jobs import Answer, Request
from device_agent.core.turn import Turn
from device_agent.core.values import answers, inline_bytes, needed_elsewhere
from protocols.errors import Blame, UnknownTopic
from protocols.messages.invocation import (
    Accepted,
    Deliver,
    Failure,
    FailureCode,
    Invoke,
    Plan,
    Result,
    Value,
)
from protocols.topics import INVOCATION_MAX_BYTES, Channel, Party, parse

MESSAGE_MAX_BYTES: Final = INVOCATION_MAX_BYTES - 32 * 1024
"""Inline tensors, plan and timings of one message; the rest of its frame is bounded names."""
KEPT_MAX: Final = 256
KEPT_MAX_BYTES: Final = 4 << 20
"""Messages kept while offline, and their inline tensors; the oldest make room."""
REPLY_TOPICS_MAX: Final = 256
"""Reply topics known to be valid; the set is emptied when full."""


def correlation_of(event: Received, body: Invoke | Deliver) -> bytes:
    """Return the client's correlation data: whoever passes a request on puts it into the body."""
    return body.correlation or event.correlation


class Replies:
    """Builds the messages that leave a request."""

    def __init__(self, turn: Turn) -> None:
        self._turn = turn
        self._topics: set[str] = set()
        self._offline = False
        self._kept: deque[tuple[float, int, Forward | Reply]] = deque()
        self._kept_bytes = 0

    def connected(self) -> None:
        """Send what was kept and is still waited for."""
        self._offline = False
        now_ms = self._turn.now_ms
        self._turn.out.extend(said for until_ms, _, said in self._kept if until_ms > now_ms)
        self._kept.clear()
        self._kept_bytes = 0

    def disconnected(self) -> None:
        """Keep messages from now on."""
        self._offline = True

    def valid(self, reply_to: str) -> bool:
        """Whether an answer may go to a topic: that of a client, and nothing else."""
        if reply_to in self._topics:
            return True
        try:
            topic = parse(reply_to)
        except UnknownTopic:
            return False
        if (topic.party, topic.channel) != (Party.CLIENT, Channel.REPLY):
            return False
        if len(self._topics) >= REPLY_TOPICS_MAX:
            self._topics.clear()
        self._topics.add(reply_to)
        return True

    def accept(self, request: Request) -> None:
        """Tell the client that its request is under way here."""
        self._reply(request, Accepted(request.id, request.attempt, self._turn.node))

    def result(self, request: Request, failure: Failure) -> None:
        """Tell the client that its request failed."""
        self._reply(request, Result(request.id, request.attempt, {}, failure))

    def refuse(
        self, event: Received, body: Invoke | Deliver, reply_to: str, failure: Failure
    ) -> None:
        """Answer what never became a request of this node."""
        self._turn.counts[failure.code.value] += 1
        result = Result(body.request, body.attempt, {}, failure)
        correlation = correlation_of(event, body)
        self._turn.out.append(Reply(reply_to, result, event.cause, event.tenant, correlation))

    def send(self, request: Request, task: str, answer: Answer) -> Failure | None:
        """Send outputs to the client and to other nodes, as the plan says, or say why not."""
        plan = request.plan
        edges, part, parts = answers(plan, task)
        if edges:
            values = self._pick(task, {one.port: one.source_port for one in edges}, answer, None)
            if isinstance(values, Failure):
                return values
            result = Result(request.id, request.attempt, values, None, answer.timings, part, parts)
            self._reply(request, result)
        if len(plan.steps) == 1:
            return None
        left_ms = max(0, int(request.deadline_ms - self._turn.now_ms))
        for node, ports in needed_elsewhere(plan, self._turn.node, task).items():
            values = self._pick(task, {port: port for port in sorted(ports)}, answer, plan)
            if isinstance(values, Failure):
                return values
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
            )
            said = Forward(node, deliver, request.cause, request.tenant)
            self._say(request, said, values)
        return None

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

    def _reply(self, request: Request, body: Accepted | Result) -> None:
        said = Reply(request.reply_to, body, request.cause, request.tenant, request.correlation)
        if isinstance(body, Result):
            self._say(request, said, body.outputs)
        elif not self._offline:
            self._turn.out.append(said)

    def _say(self, request: Request, said: Forward | Reply, values: Mapping[str, Value]) -> None:
        if not self._offline:
            self._turn.out.append(said)
            return
        size = inline_bytes(values)
        self._kept.append((request.deadline_ms, size, said))
        self._kept_bytes += size
        while len(self._kept) > KEPT_MAX or self._kept_bytes > KEPT_MAX_BYTES:
            self._kept_bytes -= self._kept.popleft()[1]
            self._turn.counts["kept dropped"] += 1
