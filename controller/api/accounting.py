"""The lines of the table of operations about what was done, and by whom."""

from typing import Final

from controller.accounts import (
    AuditOperations,
    AuditTask,
    OperationRecord,
    Quarantined,
    QuarantineTask,
    TaskAudit,
)
from controller.api.operation import Effect, Operation, Permission, Plane
from controller.api.stats import StatsOf, TaskStats
from controller.records import TASK

ACCOUNTS: Final = (
    Operation(
        "task.stats",
        "Show what each version of a task has done: times, memory, bytes, energy, failures.",
        StatsOf,
        TaskStats,
        Permission.VIEW,
        Plane.DATA,
        "GET",
        "/v1/tasks/{name}/stats",
        kind=TASK,
    ),
    Operation(
        "task.audit",
        "Read the newest calls of a task from the logs of its nodes.",
        AuditTask,
        TaskAudit,
        Permission.VIEW,
        Plane.DATA,
        "GET",
        "/v1/tasks/{name}/audit",
        kind=TASK,
        asked=True,
    ),
    Operation(
        "task.quarantine",
        "Have a version of a task run no more, or release it.",
        QuarantineTask,
        Quarantined,
        Permission.OPERATE,
        Plane.CONTROL,
        "POST",
        "/v1/tasks/{name}/quarantine",
        Effect.WRITE,
        kind=TASK,
    ),
    Operation(
        "audit.list",
        "List what was asked of the network, the newest first.",
        AuditOperations,
        list[OperationRecord],
        Permission.VIEW,
        Plane.CONTROL,
        "GET",
        "/v1/audit",
    ),
)
