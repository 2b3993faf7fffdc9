"""Every message of the protocol, by subject; `protocols.codec` frames them.

A message is a frozen struct, written as a MessagePack array whose first element is its tag. Fields
are only ever appended, each with a default: an older reader ignores it, a newer one fills it in.
"""

from protocols.base import Message
from protocols.messages.hierarchy import (
    AnchorWelcome,
    EnvelopeGrant,
    EnvelopeRevoke,
    Escalation,
    EscalationAnswer,
    NodeSummary,
    SchedulerHello,
    ServiceDelete,
    ServiceOrder,
    ServiceReport,
    TaskReport,
)
from protocols.messages.invocation import (
    Accepted,
    Cancel,
    Deliver,
    Invoke,
    Result,
    Route,
    RouteRequest,
)
from protocols.messages.presence import (
    Birth,
    Death,
    Drain,
    RebirthRequest,
    Welcome,
)
from protocols.messages.sense import LinkReport, LoadReport, Probe, SetSensing
from protocols.messages.task import Acknowledge, Assign, Release, Status

NODE_SAYS = Birth | Death | LoadReport | LinkReport | Status | Probe
NODE_HEARS = Welcome | RebirthRequest | Drain | SetSensing | Assign | Release | Acknowledge
INVOCATION = Invoke | Deliver | Cancel | Accepted | Result | RouteRequest | Route
HIERARCHY = (
    ServiceOrder
    | ServiceDelete
    | ServiceReport
    | EnvelopeGrant
    | EnvelopeRevoke
    | TaskReport
    | NodeSummary
    | Escalation
    | EscalationAnswer
    | SchedulerHello
    | AnchorWelcome
)
Body = NODE_SAYS | NODE_HEARS | INVOCATION | HIERARCHY

__all__ = [
    "HIERARCHY",
    "INVOCATION",
    "NODE_HEARS",
    "NODE_SAYS",
    "Accepted",
    "Acknowledge",
    "AnchorWelcome",
    "Assign",
    "Birth",
    "Body",
    "Cancel",
    "Death",
    "Deliver",
    "Drain",
    "EnvelopeGrant",
    "EnvelopeRevoke",
    "Escalation",
    "EscalationAnswer",
    "Invoke",
    "LinkReport",
    "LoadReport",
    "Message",
    "NodeSummary",
    "Probe",
    "RebirthRequest",
    "Release",
    "Result",
    "Route",
    "RouteRequest",
    "SchedulerHello",
    "ServiceDelete",
    "ServiceOrder",
    "ServiceReport",
    "SetSensing",
    "Status",
    "TaskReport",
    "Welcome",
]
