"""Jobs: durable invocations, journalled by the TA before they are acknowledged, completed once.

A client submits to the service's topic; the TS hands it to the TA, which records it, acknowledges,
and has the TS run it, again after every loss, until it is done or has failed for good. It may run
twice after a crash; it is completed once: the TA's record decides.
"""

from enum import StrEnum
from typing import Annotated

from msgspec import Meta, field

from protocols.base import Count, Id, Message, Name, Text
from protocols.messages.invocation import (
    Budget,
    Correlation,
    Failure,
    Timings,
    Values,
)
from protocols.messages.quality import PRIORITY_DEFAULT, Priority


class JobState(StrEnum):
    """The life of a job at its TA."""

    ACCEPTED = "accepted"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


class JobSubmit(Message, tag="job-submit", frozen=True):
    """Client to a service's topic, TS to TA: run this once, whatever happens. Idempotent by id."""

    job: Id
    """Chosen by the client, never used twice, such as a UUID."""
    service: Name
    inputs: Values
    reply_to: str = ""
    """Topic of the answers; empty: the MQTT 5 response topic."""
    deadline_ms: Annotated[int, Meta(ge=0, le=30 * 86_400_000)] = 0
    """From acceptance, after which it fails; 0: none."""
    run_ms: Budget = 60_000
    """What one run may take."""
    priority: Priority = PRIORITY_DEFAULT
    correlation: Correlation = b""
    """MQTT 5 correlation data of the client, returned with the answers."""
    client: str = ""
    """Who submits it; filled in by the TS, as the frame says."""


class JobAccepted(Message, tag="job-accepted", frozen=True):
    """TA to client: the job is durable, or why it was not taken."""

    job: Id
    accepted: bool
    """Whether it is durable now."""
    reason: Text = ""
    retryable: bool = False
    """Whether the same submission may be taken later."""
    reply_to: str = ""
    """Where the TS sends it on to, like correlation."""
    correlation: Correlation = b""


class JobRun(Message, tag="job-run", frozen=True):
    """TA to TS: have this run; the TS sends it to the nodes of the route when there is one."""

    job: Id
    attempt: Count
    """Grows with every try; outputs of an older one count as well as those of the newest."""
    service: Name
    inputs: Values
    run_ms: Budget
    priority: Priority = PRIORITY_DEFAULT


class JobEnded(Message, tag="job-ended", frozen=True):
    """A run is over. Node to TS (repeated until acknowledged), TS to TA, TA to client."""

    job: Id
    attempt: Count
    service: Name
    outputs: Values = field(default_factory=dict)
    failure: Failure | None = None
    part: Count = 0
    """As in Result, like parts."""
    parts: Count = 1
    """How many there are."""
    timings: Timings = ()
    """As in Result."""
    number: Count = 0
    """Of the node's outbox; the acknowledgement names it. 0: not kept there."""
    reply_to: str = ""
    """As in JobAccepted; empty on the way to the TA."""
    correlation: Correlation = b""


class JobKept(Message, tag="job-kept", frozen=True):
    """TA to TS: the end of a run is durable, the node may forget it."""

    job: Id
    attempt: Count
    part: Count = 0
    """Which part of the end."""


class JobHandover(Message, tag="job-handover", frozen=True):
    """TA to TS to the TA that has the service now: own this job. Repeated until it does."""

    submit: JobSubmit
    """As it was accepted; without inputs when the job has ended."""
    owner: Name
    """Who hands it over."""
    state: JobState
    attempts: Count
    """The number of the newest."""
    parts: tuple[Values, ...] = ()
    """Outputs of one that is done, part by part."""
    failure: Failure | None = None
    timings: Timings = ()
    """As in Result."""
    left_ms: Count = 0
    """Of the deadline."""
    content: str = ""
    """Fingerprint of what was submitted."""
    accepted_unix_ms: Count = 0
    """For people, like the two that follow; 0: not known."""
    started_unix_ms: Count = 0
    ended_unix_ms: Count = 0
    to: str = ""
    """Who has the service, where the TS does not know; empty: not known."""


class JobOwned(Message, tag="job-owned", frozen=True):
    """The new TA to the one before, by way of the TS: the job is durable here, forget it."""

    job: Id
    owner: Name
    """Who has handed it over."""


class JobsMoved(Message, tag="jobs-moved", frozen=True):
    """TA to TS to the TA that has the service now: these were all jobs of it; or its question."""

    service: Name
    owner: str = ""
    """Who has no jobs of it; empty in a question: whoever had it."""
    to: str = ""
    """Who has the service now; empty: the TS knows."""
    asks: bool = False
    """Whether that one asks the owner; answered when it is so."""


class JobQuery(Message, tag="job-query", frozen=True):
    """Client to a service's topic, TS to TA: how does it stand? A done one is answered again."""

    job: Id
    service: Name
    reply_to: str = ""
    """As in JobSubmit."""
    cancel: bool = False
    """True: end it, if it is not over."""
    correlation: Correlation = b""


class JobStatus(Message, tag="job-status", frozen=True):
    """TA to client: where a job stands that is not over."""

    job: Id
    state: JobState
    attempts: Count = 0
    """How often it was begun."""
    reason: Text = ""
    """Of the last attempt that failed."""
    reply_to: str = ""
    """As in JobAccepted."""
    correlation: Correlation = b""
