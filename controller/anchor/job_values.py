"""What jobs take in and give, counted and compared. Pure."""

from hashlib import sha256

import msgspec

from controller.records import AnchoredRecord
from protocols.messages import JobSubmit
from protocols.messages.invocation import REQUEST, Tensor, Timings, Values
from protocols.submission import misfit

_encode = msgspec.msgpack.Encoder(order="deterministic").encode


def fingerprint(body: JobSubmit) -> str:
    """Return what tells a job from another one of the same id."""
    what = (body.service, body.inputs, body.deadline_ms, body.run_ms, body.priority)
    return sha256(_encode(what)).hexdigest()


def inline_bytes(inputs: Values) -> int:
    """Return the bytes of tensors that inputs hold in memory."""
    return sum(len(one.data) for one in inputs.values() if isinstance(one, Tensor))


def unfitting(held: AnchoredRecord | None, body: JobSubmit) -> str:
    """Say why a job is none of a service's; empty where it is one."""
    if held is None:
        return f"there is no service {body.service!r} here"
    known = {
        edge.source_port
        for task in held.order.tasks
        for edge in task.inputs
        if edge.source == REQUEST
    }
    return misfit(body.service, known, body.inputs)


def merged(one: Timings, other: Timings) -> Timings:
    """Return the timings of both, each step of a node once."""
    known = {(step.task, step.node) for step in one}
    return one + tuple(step for step in other if (step.task, step.node) not in known)
