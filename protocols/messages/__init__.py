"""Every message of the protocol, by subject; `protocols.codec` frames them.

A message is a frozen struct, written as a MessagePack array whose first element is its tag. Fields
are only ever appended, each with a default: an older reader ignores it, a newer one fills it in.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from protocols.base import Message
from protocols.messages.calibration import Calibrate, Calibrated, RunFigures
from protocols.messages.invocation import (
    Accepted,
    Cancel,
    Deliver,
    Invoke,
    Result,
    Route,
    RouteRequest,
)
from protocols.messages.job import (
    JobAccepted,
    JobEnded,
    JobHandover,
    JobKept,
    JobOwned,
    JobQuery,
    JobRun,
    JobsMoved,
    JobStatus,
    JobSubmit,
)
from protocols.messages.mobility import (
    CatchUp,
    HandoverAnswer,
    HandoverCommand,
    HandoverComplete,
    HandoverFailed,
    HandoverRequest,
    HandoverRequired,
    HandoverTimes,
    Measurement,
    Missed,
    Neighbours,
    Relinquished,
)
from protocols.messages.presence import (
    Birth,
    Death,
    Drain,
    RebirthRequest,
    Welcome,
)
from protocols.messages.profile import AuditPage, AuditQuery, Flagged, ProfileReport
from protocols.messages.quality import Feed, QualityReport, Tune
from protocols.messages.sense import LinkReport, LoadReport, Probe, SetSensing
from protocols.messages.task import (
    Acknowledge,
    Assign,
    MemoryRequest,
    MemoryState,
    Release,
    Status,
)

NODE_SAYS = (
    Birth
    | Death
    | LoadReport
    | LinkReport
    | QualityReport
    | Status
    | Probe
    | Calibrated
    | MemoryState
    | ProfileReport
    | AuditPage
    | Measurement
    | HandoverFailed
    | HandoverTimes
    | CatchUp
)
NODE_HEARS = (
    Welcome
    | RebirthRequest
    | Drain
    | SetSensing
    | Assign
    | Release
    | Acknowledge
    | Tune
    | Feed
    | Calibrate
    | MemoryRequest
    | MemoryState
    | AuditQuery
    | Neighbours
    | HandoverCommand
    | HandoverComplete
    | Missed
)
JOB = (
    JobSubmit
    | JobAccepted
    | JobRun
    | JobEnded
    | JobKept
    | JobQuery
    | JobStatus
    | JobHandover
    | JobOwned
    | JobsMoved
)
INVOCATION = Invoke | Deliver | Cancel | Accepted | Result | RouteRequest | Route
NODE = NODE_HEARS | INVOCATION | Probe
"""What a node may be told; of its own words it hears its probes."""

if TYPE_CHECKING:
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
    from protocols.messages.roles import HIERARCHY, Body
else:

    def __getattr__(name: str) -> object:
        """Return what the roles of the controller say to each other; a node never loads it."""
        if name not in __all__:
            raise AttributeError(name)
        return getattr(import_module("protocols.messages.roles"), name)


__all__ = [
    "HIERARCHY",
    "INVOCATION",
    "JOB",
    "NODE",
    "NODE_HEARS",
    "NODE_SAYS",
    "Accepted",
    "Acknowledge",
    "AnchorMoved",
    "AnchorOffer",
    "AnchorSummary",
    "AnchorTaken",
    "AnchorTransfer",
    "AnchorWelcome",
    "Assign",
    "AuditPage",
    "AuditQuery",
    "Birth",
    "Body",
    "Calibrate",
    "Calibrated",
    "Cancel",
    "CatchUp",
    "CellReport",
    "Death",
    "Deliver",
    "Drain",
    "Elsewhere",
    "EnvelopeGrant",
    "EnvelopeRevoke",
    "Escalation",
    "EscalationAnswer",
    "Feed",
    "Flagged",
    "HandoverAnswer",
    "HandoverCommand",
    "HandoverComplete",
    "HandoverFailed",
    "HandoverRequest",
    "HandoverRequired",
    "HandoverTimes",
    "Invoke",
    "JobAccepted",
    "JobEnded",
    "JobHandover",
    "JobKept",
    "JobOwned",
    "JobQuery",
    "JobRun",
    "JobStatus",
    "JobSubmit",
    "JobsMoved",
    "Lease",
    "LeaseRequest",
    "LinkReport",
    "Linking",
    "LoadReport",
    "Measurement",
    "MemoryRequest",
    "MemoryState",
    "Message",
    "Mirror",
    "Missed",
    "Neighbours",
    "NodeSummary",
    "Probe",
    "ProfileReport",
    "QualityReport",
    "RebirthRequest",
    "Release",
    "Relinquished",
    "RemoteAnswer",
    "RemoteCall",
    "Result",
    "Route",
    "RouteRequest",
    "RunFigures",
    "SchedulerHello",
    "ServiceDelete",
    "ServiceOrder",
    "ServiceReport",
    "SetSensing",
    "Status",
    "TaskEvent",
    "TaskReport",
    "Tune",
    "Welcome",
]
