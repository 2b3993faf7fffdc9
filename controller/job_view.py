"""Jobs as people see them: what a record says, its values as text or bytes."""

from msgspec import Struct

from controller.records import JobRecord
from protocols.manifest import Dtype
from protocols.messages.invocation import Blob, Failure, Timings, Value
from protocols.messages.job import JobState


class JobOutput(Struct, frozen=True):
    """One output: its bytes, or the digest of a large one in the cell's store."""

    dtype: Dtype
    shape: tuple[int, ...]
    data: bytes = b""
    digest: str = ""
    size_bytes: int = 0


class JobView(Struct, frozen=True):
    """A job and where it stands."""

    job: str
    service: str
    state: JobState
    client: str
    tenant: str
    priority: int
    attempts: int
    """How often it was begun."""
    deadline_ms: int = 0
    """From acceptance; 0: none."""
    failure: Failure | None = None
    """Why it failed, or of an open job, why its last attempt did."""
    outputs: dict[str, JobOutput] = {}
    """Of one that is done; not in listings."""
    timings: Timings = ()
    accepted_unix_ms: int = 0
    started_unix_ms: int = 0
    """When it was first sent to run; 0: it was not, or that is not known."""
    ended_unix_ms: int = 0


def job_view(record: JobRecord, *, whole: bool = True) -> JobView:
    """Return a job as people see it, with its outputs if it is to be whole."""
    submit = record.submit
    outputs = {}
    if whole and record.state is JobState.DONE:
        for part in record.parts.values():
            outputs.update({name: _output(value) for name, value in part.items()})
    return JobView(
        submit.job,
        submit.service,
        record.state,
        record.client,
        record.tenant,
        submit.priority,
        record.attempts,
        submit.deadline_ms,
        record.failure,
        outputs,
        record.timings if whole else (),
        record.accepted_unix_ms,
        record.started_unix_ms,
        record.ended_unix_ms,
    )


def _output(value: Value) -> JobOutput:
    if isinstance(value, Blob):
        return JobOutput(value.dtype, value.shape, b"", value.digest, value.size_bytes)
    return JobOutput(value.dtype, value.shape, value.data, "", len(value.data))
