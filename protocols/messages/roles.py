"""What the roles of the controller say to each other, and with it every message there is.

A module of its own, for a node has no memory for what it never hears.
"""

from protocols.messages import INVOCATION, JOB, NODE_HEARS, NODE_SAYS, Flagged, RunFigures
from protocols.messages.hierarchy import (
    AnchorMoved,
    AnchorOffer,
    AnchorSummary,
    AnchorTaken,
    AnchorTransfer,
    AnchorWelcome,
    CellReport,
    Elsewhere,
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    EscalationAnswer,
    Lease,
    LeaseRequest,
    NodeSummary,
    SchedulerHello,
    ServiceDelete,
    ServiceOrder,
    ServiceReport,
    TaskEvent,
    TaskReport,
)
from protocols.messages.host import Linking, Mirror, RemoteAnswer, RemoteCall
from protocols.messages.mobility import (
    HandoverAnswer,
    HandoverRequest,
    HandoverRequired,
    Relinquished,
)

HIERARCHY = (
    ServiceOrder
    | ServiceDelete
    | ServiceReport
    | EnvelopeGrant
    | EnvelopeRevoke
    | TaskReport
    | TaskEvent
    | NodeSummary
    | Escalation
    | EscalationAnswer
    | SchedulerHello
    | AnchorWelcome
    | AnchorSummary
    | AnchorOffer
    | AnchorTransfer
    | AnchorTaken
    | AnchorMoved
    | Flagged
    | Linking
    | Mirror
    | RemoteCall
    | RemoteAnswer
    | RunFigures
    | HandoverRequired
    | HandoverRequest
    | HandoverAnswer
    | Relinquished
    | LeaseRequest
    | Lease
    | Elsewhere
    | CellReport
)
Body = NODE_SAYS | NODE_HEARS | INVOCATION | JOB | HIERARCHY
