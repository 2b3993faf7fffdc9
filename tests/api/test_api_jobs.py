"""The identifier of a job that comes over HTTP."""

import msgspec
import pytest

from controller.api.jobs import SubmitJob


@pytest.mark.parametrize("job", ["8f3a1c20d5e7-job-1", "a", "A.b_c-d", "x" * 128])
def test_a_job_may_be_named_so(job: str) -> None:
    assert msgspec.convert({"job": job, "service": "s"}, SubmitJob).job == job


@pytest.mark.parametrize("job", ["a b", "-a", "a/b", "ä", "a\n", "x" * 129, ""])
def test_a_job_cannot_be_named_so(job: str) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert({"job": job, "service": "s"}, SubmitJob)
