"""Jobs over HTTP and on the command line: what is asked, what is shown."""

from typing import Any

import pytest
from jobs_world import submit, tensor

from controller.api import client
from controller.api.jobs import JobInput, SubmitJob
from controller.api.named import from_json, to_json
from controller.api.operations import BY_NAME
from controller.api.reads import read
from controller.decider import Record
from controller.job_view import JobView, job_view
from controller.records import JOB, JobRecord
from controller.registry import Registry
from protocols.errors import Blame, UserError
from protocols.manifest import Dtype
from protocols.messages.invocation import INLINE_MAX_BYTES, Blob, Failure, FailureCode
from protocols.messages.job import JobState
from tona.cli.jobs import _draw

DIGEST = "sha256:" + "ab" * 32


def record(job: str = "j1", state: JobState = JobState.DONE, **more: Any) -> JobRecord:
    outputs = {0: {"y": tensor(b"hello"), "z": Blob(Dtype.FLOAT32, (2,), DIGEST, 8)}}
    return JobRecord(submit(job), "app", "default", state, 2, outputs, **more)


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({}, "one of text, data and digest"),
        ({"text": "a", "data": "YQ=="}, "one of text, data and digest"),
        ({"text": "abc", "shape": [2]}, "takes 2 bytes, 3 were given"),
        ({"data": "YWJj", "dtype": "float32"}, "float32 need a shape"),
        ({"data": "YWJj", "shape": [-1]}, "no -1"),
        ({"digest": DIGEST}, "needs the shape"),
        ({"text": "a" * (INLINE_MAX_BYTES + 1)}, "put a blob"),
    ],
)
def test_a_wrong_input_is_one_sentence(given: dict[str, Any], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        client.call("job.submit", job="j1", service="svc", inputs={"x": given})


def test_inputs_become_values() -> None:
    asked = SubmitJob(
        "j1",
        "svc",
        {
            "text": JobInput(text="hi"),
            "raw": JobInput(data=b"\0\1", dtype=Dtype.UINT8, shape=(1, 2)),
            "large": JobInput(digest=DIGEST, dtype=Dtype.FLOAT32, shape=(3,)),
        },
    )
    inputs = asked.submit().inputs
    assert inputs["text"] == tensor(b"hi")
    assert inputs["raw"].shape == (1, 2)
    assert inputs["large"] == Blob(Dtype.FLOAT32, (3,), DIGEST, 12)


def test_what_is_submitted_survives_the_way_to_the_controller() -> None:
    request = client.call(
        "job.submit", job="j1", service="svc", inputs={"x": {"text": "hi"}}, priority=7
    )
    assert (request.method, request.path) == ("POST", "/v1/jobs")
    assert request.body is not None
    assert b'"hi"' in request.body


def test_jobs_are_listed_without_their_outputs_and_shown_with_them() -> None:
    registry = Registry("1")
    failure = Failure(FailureCode.EXECUTOR, Blame.USER, "no", retryable=False)
    rows = [record("j1"), record("j2", JobState.FAILED, failure=failure)]
    registry.apply(Record(JOB, one.submit.job, one, "t") for one in rows)

    def ask(operation: str, **arguments: Any) -> Any:
        table = BY_NAME[operation]
        answer = read(table, table.arguments(**arguments), registry)
        return from_json(to_json(answer, table.result), table.result)

    listed = ask("job.list")
    assert [(one.job, one.state.value, one.outputs) for one in listed] == [
        ("j1", "done", {}),
        ("j2", "failed", {}),
    ]
    assert [one.job for one in ask("job.list", state=JobState.FAILED)] == ["j2"]
    assert not ask("job.list", service="other")
    assert len(ask("job.list", limit=1)) == 1
    shown = ask("job.show", name="j1")
    assert shown.outputs["y"].data == b"hello"
    assert shown.outputs["z"].digest == DIGEST
    with pytest.raises(Exception, match="there is no job 'j9'"):
        ask("job.show", name="j9")


def test_a_person_sees_text_as_text(capsys: pytest.CaptureFixture[str]) -> None:
    view = job_view(record(accepted_unix_ms=10**12 + 42))
    assert isinstance(view, JobView)
    _draw(view)
    lines = {
        line.split()[0]: line.split(maxsplit=1)[1] for line in capsys.readouterr().out.splitlines()
    }
    assert lines["state"] == "done"
    assert lines["accepted"].endswith(".042")
    assert lines["ended"] == "-"
    assert lines["y"] == "hello"
    assert DIGEST in lines["z"]
