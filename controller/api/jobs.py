"""The arguments of the operations on jobs: values as JSON, and how they become a submission."""

from typing import Annotated, Final

from msgspec import Meta, Struct

from protocols.base import Digest, Shape
from protocols.manifest import Dtype, tensor_bytes
from protocols.messages import JobSubmit
from protocols.messages.invocation import INLINE_MAX_BYTES, Blob, Budget, Tensor, Value, Values
from protocols.messages.job import JobState
from protocols.messages.quality import PRIORITY_DEFAULT, Priority
from protocols.submission import check_job_id

JobKey = Annotated[str, Meta(min_length=1, max_length=128)]
LIMIT_MAX: Final = 10_000
API_CLIENT: Final = "api"
"""Who a job that came over HTTP is said to be of."""


class JobInput(Struct, frozen=True, forbid_unknown_fields=True):
    """One value: a text, or bytes in base64, or the digest of a blob of the cell's store."""

    text: str | None = None
    data: bytes | None = None
    digest: Digest | None = None
    dtype: Dtype = Dtype.UINT8
    shape: Shape | None = None
    """Null: as many items as there are bytes."""

    def __post_init__(self) -> None:
        """Hold what is given together. Raises ValueError, which is told to whoever asked."""
        given = [one for one in (self.text, self.data, self.digest) if one is not None]
        if len(given) != 1:
            raise ValueError("an input is one of text, data and digest")
        if self.shape is not None and -1 in self.shape:
            raise ValueError("the shape of a value has no -1")
        if self.digest is not None:
            if self.shape is None:
                raise ValueError("a digest needs the shape of its value")
            return
        content = self._content()
        if len(content) > INLINE_MAX_BYTES:
            raise ValueError(
                f"{len(content)} bytes, at most {INLINE_MAX_BYTES}: put a blob and name its digest"
            )
        if self.shape is not None and tensor_bytes(self.dtype, self.shape) != len(content):
            raise ValueError(
                f"{self.dtype.value} {list(self.shape)} takes "
                f"{tensor_bytes(self.dtype, self.shape)} bytes, {len(content)} were given"
            )
        if self.shape is None and self.dtype is not Dtype.UINT8:
            raise ValueError(f"values of type {self.dtype.value} need a shape")

    def value(self) -> Value:
        """Return it as it travels."""
        if self.digest is not None:
            shape = self.shape or ()
            return Blob(self.dtype, shape, self.digest, tensor_bytes(self.dtype, shape))
        content = self._content()
        shape = self.shape if self.shape is not None else (len(content),)
        return Tensor(self.dtype, shape, content)

    def _content(self) -> bytes:
        return self.text.encode() if self.text is not None else self.data or b""


class SubmitJob(Struct, frozen=True, forbid_unknown_fields=True):
    """A durable invocation; the same job submitted again is the same job."""

    job: JobKey
    """An identifier of the caller's choice, never used for another job, such as a UUID."""
    service: JobKey
    inputs: dict[str, JobInput] = {}
    deadline_ms: Annotated[int, Meta(ge=0, le=30 * 86_400_000)] = 0
    """From acceptance; 0: none."""
    run_ms: Budget = 60_000
    priority: Priority = PRIORITY_DEFAULT

    def __post_init__(self) -> None:
        """Check the identifier. Raises ValueError, which is told to whoever asked."""
        check_job_id(self.job)

    def submit(self) -> JobSubmit:
        """Return the message that this stands for."""
        inputs: Values = {name: one.value() for name, one in self.inputs.items()}
        return JobSubmit(
            self.job, self.service, inputs, "", self.deadline_ms, self.run_ms, self.priority,
            client=API_CLIENT,
        )  # fmt: skip


class ListJobs(Struct, frozen=True, forbid_unknown_fields=True):
    """Which jobs."""

    prefix: str = ""
    service: str = ""
    state: JobState | None = None
    limit: Annotated[int, Meta(ge=1, le=LIMIT_MAX)] = 1000
    """At most so many, by their identifiers."""
