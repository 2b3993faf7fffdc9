"""The one table of operations: what can be asked of a controller, by whom, and with what effect.

HTTP routes, the OpenAPI description and the calls of the command line are all made from it. An
argument stands in the path when the path names it, else in the query of a GET or DELETE, else in
the JSON body. An operation with effect `read` is answered from the registry; one with effect
`write` is handed to the role that serves it and answered when its records are durable.
"""

from enum import StrEnum
from typing import Annotated, Final

from msgspec import Meta, Struct

from controller.api.accounting import ACCOUNTS
from controller.api.choices import ListApprovals, ServiceExplanation
from controller.api.jobs import ListJobs, SubmitJob
from controller.api.mobility import MOBILITY
from controller.api.operation import (
    Arguments,
    Effect,
    Key,
    Named,
    Operation,
    Permission,
    Plane,
    Transfer,
)
from controller.api.places import Draining, Explanation, Forgotten, ServicePlace
from controller.api.quality import ServiceQos
from controller.api.stored import Content, HoldersOf, PublishedBy, PutArtifact, Stored, TrustFile
from controller.handover_records import HandoverRecord
from controller.job_view import JobView
from controller.namo.submission import Submitted
from controller.records import (
    APPROVAL,
    ARTIFACT,
    FLEET,
    HANDOVER,
    QUALITY,
    SERVICE,
    STORY,
    TASK,
    USE_CASE,
    ApprovalRecord,
    ArtifactRecord,
    CellView,
    NodeView,
    ServiceQuality,
    ServiceRecord,
    StoryRecord,
    TaskRecord,
    TaskState,
    UseCaseRecord,
    UseCaseState,
)
from controller.trust.publishers import TrustState
from protocols.base import Count
from protocols.messages.hierarchy import NodeState, ServiceState

DOCUMENT_MAX_LENGTH: Final = 512 * 1024
"""Characters of a use case document."""
WATCHED: Final[dict[str, type[Struct]]] = {
    USE_CASE: UseCaseRecord,
    SERVICE: ServiceRecord,
    TASK: TaskRecord,
    STORY: StoryRecord,
    FLEET: NodeView,
    ARTIFACT: ArtifactRecord,
    QUALITY: ServiceQuality,
    APPROVAL: ApprovalRecord,
    HANDOVER: HandoverRecord,
}
"""The kinds that `GET /v1/watch/KIND` follows."""


class DocumentFormat(StrEnum):
    """The notations of a use case."""

    TOML = "toml"
    JSON = "json"


class Nothing(Arguments, frozen=True):
    """No arguments."""


class SubmitUseCase(Arguments, frozen=True):
    """A use case as its author wrote it."""

    document: Annotated[str, Meta(min_length=1, max_length=DOCUMENT_MAX_LENGTH)]
    format: DocumentFormat = DocumentFormat.TOML
    dry_run: bool = False
    """Say what would be ordered, and order nothing."""


class RollBack(Named, frozen=True):
    """A use case to go back with."""

    dry_run: bool = False


class ListUseCases(Arguments, frozen=True):
    """Which use cases; without a state all but the deleted ones."""

    prefix: str = ""
    state: UseCaseState | None = None


class ListServices(Arguments, frozen=True):
    """Which services; without a state all but the deleted ones."""

    prefix: str = ""
    use_case: str = ""
    state: ServiceState | None = None


class ListTasks(Arguments, frozen=True):
    """Which tasks; without a state all but the deleted ones."""

    prefix: str = ""
    service: str = ""
    node: str = ""
    state: TaskState | None = None


class ListNodes(Arguments, frozen=True):
    """Which nodes."""

    prefix: str = ""
    state: NodeState | None = None


class ListArtifacts(Arguments, frozen=True):
    """Which artifacts, by the name they were given."""

    prefix: str = ""


class Watch(Arguments, frozen=True, rename={"from_": "from"}):
    """What to follow, and since when."""

    kind: Key
    from_: str = ""
    """A token of a listing or an event; empty: from now on."""
    prefix: str = ""
    """Only keys that start so."""


class SystemInfo(Struct, frozen=True):
    """What this controller is."""

    cell: str
    version: str
    roles: tuple[str, ...]
    broker: str
    """Where clients reach the broker of the cell, as `mqtt[s]://HOST:PORT`."""
    started_unix_ms: Count
    counters: dict[str, float] = {}
    cells: tuple[CellView, ...] = ()
    """Every cell whose scheduler has spoken."""


_VIEW, _DATA, _CONTROL = Permission.VIEW, Plane.DATA, Plane.CONTROL

TABLE: Final = (
    Operation(
        "usecase.submit",
        "Submit a use case; a changed document of the same name replaces it.",
        SubmitUseCase,
        Submitted,
        Permission.SUBMIT,
        _CONTROL,
        "POST",
        "/v1/usecases",
        Effect.WRITE,
    ),
    Operation(
        "usecase.list",
        "List use cases.",
        ListUseCases,
        list[UseCaseRecord],
        _VIEW,
        _DATA,
        "GET",
        "/v1/usecases",
    ),
    Operation(
        "usecase.show",
        "Show a use case.",
        Named,
        UseCaseRecord,
        _VIEW,
        _DATA,
        "GET",
        "/v1/usecases/{name}",
        kind=USE_CASE,
    ),
    Operation(
        "usecase.rollback",
        "Go back to the version before, while the present one has not proved itself.",
        RollBack,
        Submitted,
        Permission.SUBMIT,
        _CONTROL,
        "POST",
        "/v1/usecases/{name}/rollback",
        Effect.WRITE,
        kind=USE_CASE,
    ),
    Operation(
        "usecase.delete",
        "End a use case, its services and their tasks.",
        Named,
        UseCaseRecord,
        Permission.SUBMIT,
        _CONTROL,
        "DELETE",
        "/v1/usecases/{name}",
        Effect.WRITE,
        kind=USE_CASE,
    ),
    Operation(
        "service.list",
        "List services.",
        ListServices,
        list[ServiceRecord],
        _VIEW,
        _DATA,
        "GET",
        "/v1/services",
    ),
    Operation(
        "service.show",
        "Show a service.",
        Named,
        ServiceRecord,
        _VIEW,
        _DATA,
        "GET",
        "/v1/services/{name}",
        kind=SERVICE,
    ),
    Operation(
        "service.qos",
        "Show the quality of a service from SLA to resource, target beside measured.",
        Named,
        ServiceQos,
        _VIEW,
        _DATA,
        "GET",
        "/v1/services/{name}/qos",
        kind=SERVICE,
    ),
    Operation(
        "service.explain",
        "Say how a service is done, where it is anchored, and why not otherwise.",
        Named,
        ServiceExplanation,
        _VIEW,
        _DATA,
        "GET",
        "/v1/services/{name}/explain",
        kind=SERVICE,
    ),
    Operation(
        "approve.list",
        "List the decisions that wait for a person.",
        ListApprovals,
        list[ApprovalRecord],
        _VIEW,
        _CONTROL,
        "GET",
        "/v1/approvals",
    ),
    Operation(
        "approve.grant",
        "Let the network do what it has asked for.",
        Named,
        ApprovalRecord,
        Permission.OPERATE,
        _CONTROL,
        "POST",
        "/v1/approvals/{name}/grant",
        Effect.WRITE,
        kind=APPROVAL,
    ),
    Operation(
        "approve.deny",
        "Do not let the network do what it has asked for.",
        Named,
        ApprovalRecord,
        Permission.OPERATE,
        _CONTROL,
        "POST",
        "/v1/approvals/{name}/deny",
        Effect.WRITE,
        kind=APPROVAL,
    ),
    Operation(
        "service.where",
        "Say at which cell's broker a service takes its requests.",
        Named,
        ServicePlace,
        _VIEW,
        _DATA,
        "GET",
        "/v1/services/{name}/where",
    ),
    Operation(
        "task.list", "List tasks.", ListTasks, list[TaskRecord], _VIEW, _DATA, "GET", "/v1/tasks"
    ),
    Operation(
        "task.show",
        "Show a task.",
        Named,
        TaskRecord,
        _VIEW,
        _DATA,
        "GET",
        "/v1/tasks/{name}",
        kind=TASK,
    ),
    Operation(
        "task.explain",
        "Say why a task is where it is, and why not elsewhere.",
        Named,
        Explanation,
        _VIEW,
        _DATA,
        "GET",
        "/v1/tasks/{name}/explain",
        kind=TASK,
    ),
    Operation(
        "task.events",
        "Tell the story of a task, oldest first.",
        Named,
        list[StoryRecord],
        _VIEW,
        _DATA,
        "GET",
        "/v1/tasks/{name}/events",
        kind=TASK,
    ),
    *ACCOUNTS,
    *MOBILITY,
    Operation(
        "job.submit",
        "Submit a durable invocation; the same one again is the same job.",
        SubmitJob,
        JobView,
        Permission.SUBMIT,
        _DATA,
        "POST",
        "/v1/jobs",
        Effect.WRITE,
    ),
    Operation(
        "job.list",
        "List the jobs that are open, and those that are remembered, without their outputs.",
        ListJobs,
        list[JobView],
        _VIEW,
        _DATA,
        "GET",
        "/v1/jobs",
    ),
    Operation(
        "job.show",
        "Show a job and its outputs.",
        Named,
        JobView,
        _VIEW,
        _DATA,
        "GET",
        "/v1/jobs/{name}",
    ),
    Operation(
        "job.cancel",
        "End a job, if it is not over.",
        Named,
        JobView,
        Permission.SUBMIT,
        _DATA,
        "DELETE",
        "/v1/jobs/{name}",
        Effect.WRITE,
    ),
    Operation(
        "fleet.status",
        "List the nodes with load and link.",
        ListNodes,
        list[NodeView],
        _VIEW,
        _CONTROL,
        "GET",
        "/v1/fleet",
    ),
    Operation(
        "node.show",
        "Show a node.",
        Named,
        NodeView,
        _VIEW,
        _CONTROL,
        "GET",
        "/v1/nodes/{name}",
        kind=FLEET,
    ),
    Operation(
        "node.drain",
        "Let a node finish what it has and give it nothing new.",
        Named,
        Draining,
        Permission.OPERATE,
        _CONTROL,
        "POST",
        "/v1/nodes/{name}/drain",
        Effect.WRITE,
        kind=FLEET,
    ),
    Operation(
        "node.resume",
        "Let a node that was drained take tasks again.",
        Named,
        Draining,
        Permission.OPERATE,
        _CONTROL,
        "POST",
        "/v1/nodes/{name}/resume",
        Effect.WRITE,
        kind=FLEET,
    ),
    Operation(
        "node.forget",
        "Forget a node that is gone for good; born again, it is simply known again.",
        Named,
        Forgotten,
        Permission.OPERATE,
        _CONTROL,
        "DELETE",
        "/v1/nodes/{name}",
        Effect.WRITE,
        kind=FLEET,
    ),
    Operation(
        "artifact.list",
        "List the artifacts of the cell's store.",
        ListArtifacts,
        list[ArtifactRecord],
        _VIEW,
        _DATA,
        "GET",
        "/v1/artifacts",
    ),
    Operation(
        "trust.show",
        "Say who may sign artifacts here, and until when what is said of that holds.",
        Nothing,
        TrustState,
        _VIEW,
        _DATA,
        "GET",
        "/v1/trust",
    ),
    Operation(
        "system.info",
        "Say what this controller is and where its broker listens.",
        Nothing,
        SystemInfo,
        _VIEW,
        _CONTROL,
        "GET",
        "/v1/system",
    ),
    Operation(
        "watch",
        "Follow the changes of a kind as server-sent events.",
        Watch,
        None,
        _VIEW,
        _DATA,
        "GET",
        "/v1/watch/{kind}",
        transfer=Transfer.EVENTS,
    ),
    Operation(
        "artifact.put",
        "Keep an artifact; the body is its content.",
        PutArtifact,
        ArtifactRecord,
        Permission.SUBMIT,
        _DATA,
        "PUT",
        "/v1/artifacts/{hex}",
        Effect.WRITE,
        transfer=Transfer.BYTES,
    ),
    Operation(
        "artifact.get",
        "Fetch an artifact or a range of it.",
        Content,
        None,
        Permission.FETCH,
        _DATA,
        "GET",
        "/v1/artifacts/{hex}",
        transfer=Transfer.BYTES,
    ),
    Operation(
        "trust.get",
        "Fetch a metadata file of the trust in artifacts (TUF).",
        TrustFile,
        None,
        Permission.FETCH,
        _DATA,
        "GET",
        "/v1/trust/{file}",
        transfer=Transfer.BYTES,
    ),
    Operation(
        "trust.sign",
        "Take in what a publisher has signed; the body is his metadata (TUF).",
        PublishedBy,
        Stored,
        Permission.SUBMIT,
        _CONTROL,
        "PUT",
        "/v1/trust/publishers/{publisher}",
        Effect.WRITE,
        transfer=Transfer.BYTES,
    ),
    Operation(
        "artifact.holders",
        "Name the nodes from which a neighbour may fetch an artifact, least loaded first.",
        HoldersOf,
        list[str],
        Permission.FETCH,
        _DATA,
        "GET",
        "/v1/artifacts/{hex}/holders",
    ),
    Operation(
        "blob.put",
        "Keep a large value for a while; the body is its content.",
        Content,
        Stored,
        Permission.STORE,
        _DATA,
        "PUT",
        "/v1/blobs/{hex}",
        Effect.WRITE,
        transfer=Transfer.BYTES,
    ),
    Operation(
        "blob.get",
        "Fetch a large value or a range of it.",
        Content,
        None,
        Permission.FETCH,
        _DATA,
        "GET",
        "/v1/blobs/{hex}",
        transfer=Transfer.BYTES,
    ),
)

BY_NAME: Final = {one.name: one for one in TABLE}
