"""What a node has measured of each version of its tasks, and what it has logged of their calls.

A version is a program by its digest. Figures are sums since the node's process began (`life`), so
that a report that is lost, doubled or late does no harm: the newest one says it all. The log of
calls stays on the node; the head of its chain comes with every report, pages of it when asked for.
"""

from typing import Annotated, Final

from msgspec import Meta, field

from protocols.base import Count, Digest, Id, Label, Message, Name, Part, Text
from protocols.histogram import Packed

MAX_CALLERS: Final = 16
"""Callers of a version that are told apart; the others are counted under the empty name."""
MAX_CODES: Final = 24
MAX_VERSIONS: Final = 32
"""Of one report; the rest goes with the next."""
PAGE_MAX_BYTES: Final = 48 * 1024
HEAD_BYTES: Final = 32

Head = Annotated[bytes, Meta(max_length=HEAD_BYTES)]


class VersionProfile(Part, frozen=True):
    """One version of a task on one node, since the node's process began."""

    task: Label
    digest: Digest
    """Of the program."""
    generation: Count
    """The newest of the specification that ran it."""
    variant: str = ""
    """Which one of the specification it is; empty: its own manifest."""
    calls: Count = 0
    """Runs that gave outputs."""
    failures: Annotated[dict[Label, Count], Meta(max_length=MAX_CODES)] = field(
        default_factory=dict
    )
    """Ends without outputs by `FailureCode`; under `flagged` those whose outputs broke a check that
    only flags.
    """
    queue_us: Packed = ()
    run_us: Packed = ()
    cpu_us: Packed = ()
    """Processor time of each run, where its executor measures it."""
    memory_bytes: Packed = ()
    """Most memory of each run, where its executor measures it."""
    input_bytes: Packed = ()
    output_bytes: Packed = ()
    queue_sum_us: Count = 0
    run_sum_us: Count = 0
    cpu_sum_us: Count = 0
    input_sum_bytes: Count = 0
    output_sum_bytes: Count = 0
    peak_bytes: Count | None = None
    """Null: not measured."""
    energy_j: float | None = None
    """Its share of what the board has drawn, by processor time. Null: no sensor."""
    callers: Annotated[dict[str, Count], Meta(max_length=MAX_CALLERS + 1)] = field(
        default_factory=dict
    )
    """Ends by who asked."""


class ProfileReport(Message, tag="profile", frozen=True):
    """A node's figures of the versions that ran since its last report, and the head of its log."""

    life: Count
    """Of the node's process: grows with each, and its sums begin anew."""
    sampled_ms: Count
    """The node's monotonic clock."""
    versions: Annotated[tuple[VersionProfile, ...], Meta(max_length=MAX_VERSIONS)] = ()
    """Sums over the life of the process."""
    logged: Count = 0
    """Records in the node's log, over all its lives."""
    head: Head = b""
    """SHA-256 that chains all of them; empty: there are none."""


class AuditQuery(Message, tag="audit-query", frozen=True):
    """TS to a node: read the log of calls. Answered once with a page, newest records first."""

    number: Id
    """Named by the answer."""
    task: str = ""
    """Only of this task; empty: of all."""
    since_unix_ms: Count = 0
    """Only at or after."""
    verdict: str = ""
    """Only those that ended so."""
    user: str = ""
    """Only of this caller."""
    limit: Annotated[int, Meta(ge=1, le=1000)] = 100
    """Records of one page at most."""
    before: Count = 0
    """Only records below this number; 0: from the newest."""
    heads: Annotated[dict[str, Head], Meta(max_length=16)] = field(default_factory=dict)
    """Heads that the node has reported, by number of records: the chain is held against them."""


class AuditPage(Message, tag="audit-page", frozen=True):
    """A node to the TS: records that were asked for."""

    number: Id
    """Of the query."""
    records: Annotated[bytes, Meta(max_length=PAGE_MAX_BYTES)] = b""
    """A MessagePack list of records, newest first; `controller.records.CallRecord` reads them."""
    next: Count = 0
    """Ask for those before this number to read on; 0: that was all."""
    logged: Count = 0
    """Records in the log."""
    head: Head = b""
    """What chains all of them."""
    problem: Text = ""
    """Why the log cannot be trusted or read; empty: it is whole."""


class Flagged(Message, tag="flagged", frozen=True):
    """TS to TA: a version behaves unlike its task's own history, or does so no more."""

    task: Name
    digest: Digest
    """Of the version."""
    what: Label
    """Such as `run time`; each is flagged once."""
    detail: Text = ""
    """In words, with figures."""
    over: bool = False
    """Whether it is as usual again."""
    grave: bool = False
    """Whether it speaks against the version itself, so that its policy may quarantine it."""
