"""Why jobs end that did not fail at a node. Pure."""

from typing import Final

from controller.records import JobRecord
from protocols.errors import Blame
from protocols.messages.invocation import Failure, FailureCode

REASON_MAX: Final = 1000
"""Characters of a reason."""


def cancelled() -> Failure:
    """Return the end that a client asked for."""
    return Failure(FailureCode.CANCELLED, Blame.USER, "the job was cancelled", retryable=False)


def overdue(record: JobRecord) -> Failure:
    """Return the end of a job whose deadline has come."""
    text = f"the job was not done within its deadline of {record.submit.deadline_ms} ms"
    if record.failure is not None:
        text += f"; its last attempt failed: {record.failure.text}"
    return Failure(FailureCode.DEADLINE, Blame.ENVIRONMENT, text[:REASON_MAX], retryable=False)


def gone(service: str, reason: str) -> Failure:
    """Return the end of the jobs of a service that its owner has ended."""
    text = f"service {service!r} has gone: {reason}"[:REASON_MAX]
    return Failure(FailureCode.NO_SERVICE, Blame.USER, text, retryable=False)


def elsewhere(service: str) -> Failure:
    """Return the end of the jobs of a service that has gone where they cannot follow."""
    text = f"service {service!r} has moved to another cell: submit the job again"
    return Failure(FailureCode.NO_SERVICE, Blame.ENVIRONMENT, text, retryable=True)


def untaken(service: str) -> Failure:
    """Return the end of a job that the new anchor of its service did not take."""
    text = f"service {service!r} has an anchor that took no job: submit the job again"
    return Failure(FailureCode.NO_SERVICE, Blame.ENVIRONMENT, text, retryable=True)
