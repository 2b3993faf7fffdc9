"""Checks of outputs and reference samples: what breaks is refused, by numpy and without alike."""

import math
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.artifacts.blobs import BlobFolder
from device_agent.executors.door import Bytes, Done, Failed
from device_agent.executors.process import PROGRAMS
from device_agent.reference import Prover, compare
from protocols.errors import Blame
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Manifest, Port, Reference, Sample
from protocols.messages.invocation import FailureCode

FLOAT, BYTES = 1, 2
NOTHING: list[Any] = [None, None, [], False, 0, None, ""]


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PROGRAMS))
    import checks as found  # noqa: PLC0415 - a program of the executors' own folder

    yield found
    for name in set(sys.modules) - before:
        del sys.modules[name]


def asked(**changes: Any) -> list[Any]:
    names = ("at_least", "at_most", "values", "finite", "fewest", "most", "form")
    return [changes.get(name, usual) for name, usual in zip(names, NOTHING, strict=True)]


def floats(*items: float) -> memoryview:
    return memoryview(struct.pack(f"<{len(items)}f", *items))


@pytest.fixture(params=["numpy", "without"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "without":
        monkeypatch.delitem(sys.modules, "numpy", raising=False)
    else:
        pytest.importorskip("numpy")


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    ("items", "wanted", "words"),
    [
        ((1.0, 2.0), {"at_least": 1.0, "at_most": 2.0}, ""),
        ((1.0, 2.5, 9.0), {"at_most": 2.0}, "has 2 of 3 items above 2, the declared most"),
        ((-1.0, 2.0), {"at_least": 0.0}, "has 1 of 2 items below 0, the declared least"),
        ((math.nan, 2.0), {"at_least": 0.0}, "has 1 of 2 items that are no finite number"),
        ((math.inf, 2.0), {"at_least": 0.0}, ""),
        ((math.inf, 2.0), {"finite": True}, "has 1 of 2 items that are no finite number"),
        ((1.0, 3.0), {"values": [1.0, 2.0]}, "has 1 of 2 items that are not declared"),
        ((1.0,), {"fewest": 2}, "has 1 items, 2 to any are declared"),
        ((1.0, 1.0, 1.0), {"most": 2}, "has 3 items, 0 to 2 are declared"),
        ((), {"at_least": 0.0}, ""),
    ],
)
def test_what_breaks_a_check_is_told_without_its_values(
    checks: Any, items: tuple[float, ...], wanted: dict[str, Any], words: str
) -> None:
    assert checks.broken(FLOAT, floats(*items), asked(**wanted)) == words


@pytest.mark.parametrize(
    ("data", "form", "words"),
    [
        (b'{"a": 1}', "json", ""),
        (b'{"a": 1', "json", "is no JSON document"),
        (b"[" * 100_000, "json", "is no JSON document"),
        ("grün".encode(), "text", ""),
        (b"\xff\xfe", "text", "is no UTF-8 text"),
    ],
)
def test_bytes_are_of_their_form(checks: Any, data: bytes, form: str, words: str) -> None:
    assert checks.broken(BYTES, memoryview(data), asked(form=form)) == words


def test_the_first_that_refuses_ends_the_call_and_others_only_flag(checks: Any) -> None:
    values = [("y", FLOAT, (2,), floats(1.0, 9.0)), ("z", BYTES, (1,), memoryview(b"{"))]
    flagging = ["y", *asked(at_most=5.0), False]
    assert (
        checks.hold(values, [flagging]) == "output 'y' has 1 of 2 items above 5, the declared most"
    )
    assert checks.hold(values, []) == ""
    with pytest.raises(Exception, match="output 'z' is no JSON") as refused:
        checks.hold(values, [flagging, ["z", *asked(form="json"), True]])
    assert refused.value.answer[:2] == ["check-failed", "user"]  # type: ignore[attr-defined]


NUMBERS = st.floats(width=32)


@given(
    st.lists(NUMBERS, max_size=40), st.none() | st.integers(-5, 5), st.none() | st.integers(-5, 5)
)
def test_both_ways_count_alike(items: list[float], low: int | None, high: int | None) -> None:
    sys.path.insert(0, str(PROGRAMS))
    try:
        import checks  # noqa: PLC0415 - a program of the executors' own folder
    finally:
        sys.path.remove(str(PROGRAMS))
    numpy = pytest.importorskip("numpy")
    with_it = checks._counted(FLOAT, floats(*items), low, high, [1.0], finite=True)
    del sys.modules["numpy"]
    try:
        without = checks._counted(FLOAT, floats(*items), low, high, [1.0], finite=True)
    finally:
        sys.modules["numpy"] = numpy
    assert with_it == without


# References.


def test_items_are_compared_by_their_own_size() -> None:
    def packed(*items: float) -> bytes:
        return struct.pack(f"<{len(items)}d", *items)

    assert compare("d", packed(1.0, math.nan), packed(1.0, math.nan), 0.0) == (0, 0.0)
    assert compare("d", packed(1000.0, 0.001), packed(1001.0, 0.0), 0.01) == (0, 0.0)
    assert compare("d", packed(2.0), packed(1.0), 0.5) == (1, 1.0)
    assert compare("d", packed(math.nan), packed(1.0), 1e9) == (1, math.inf)


class Echo:
    """An executor that answers with what it is told to."""

    def __init__(self, answer: Done | Failed) -> None:
        self.answer = answer
        self.inputs: dict[str, Any] = {}

    async def invoke(self, _task: str, _call: str, inputs: Any, *_rest: Any) -> Done | Failed:
        self.inputs = inputs
        return self.answer


def proving(folder: Path, wanted: bytes, tolerance: float = 0.0) -> tuple[Prover, Manifest]:
    (folder / "in").write_bytes(b"\x01\x02")
    (folder / "out").write_bytes(wanted)
    sample = Sample("x", (2,), ArtifactRef("sha256:" + "a" * 64, 2))
    expected = Sample("y", (len(wanted) // 4,), ArtifactRef("sha256:" + "b" * 64, len(wanted)))
    manifest = Manifest(
        ExecutorKind.WASM,
        ArtifactRef("sha256:" + "c" * 64, 1),
        (Port("x", Dtype.UINT8, (-1,)),),
        (Port("y", Dtype.FLOAT32, (-1,)),),
        reference=Reference((sample,), (expected,), tolerance),
    )
    assert expected.artifact in manifest.beside
    paths = {sample.artifact.digest: folder / "in", expected.artifact.digest: folder / "out"}
    return Prover(BlobFolder(folder / "blobs", 1 << 20, 60.0), paths.__getitem__), manifest


def answering(*items: float) -> Done:
    return Done({"y": Bytes(Dtype.FLOAT32, (len(items),), bytes(floats(*items)))}, 5)


async def test_a_program_that_agrees_is_proved(tmp_path: Path) -> None:
    prover, manifest = proving(tmp_path, bytes(floats(1.0, 2.0)), 0.1)
    echo = Echo(answering(1.05, 2.0))
    assert await prover.prove(echo, "t~1", manifest) is None  # type: ignore[arg-type]
    assert echo.inputs == {"x": Bytes(Dtype.UINT8, (2,), b"\x01\x02")}


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (answering(1.0, 3.0), FailureCode.CHECK, "1 of 2 items of output 'y' differ"),
        (answering(1.0), FailureCode.CHECK, "is [1], [2] is expected"),
        (
            Failed(FailureCode.EXECUTOR, Blame.USER, "it trapped", retryable=False),
            FailureCode.EXECUTOR,
            "the reference sample fails: it trapped",
        ),
    ],
)
async def test_one_that_does_not_is_refused_by_its_authors_fault(
    tmp_path: Path, answer: Any, code: FailureCode, words: str
) -> None:
    prover, manifest = proving(tmp_path, bytes(floats(1.0, 2.0)))
    found = await prover.prove(Echo(answer), "t~1", manifest)  # type: ignore[arg-type]
    assert found is not None
    assert (found.code, found.blame, found.retryable) == (code, Blame.USER, False)
    assert words in found.text


async def test_a_sample_that_is_gone_may_come_again(tmp_path: Path) -> None:
    prover, manifest = proving(tmp_path, bytes(floats(1.0)))
    (tmp_path / "in").unlink()
    found = await prover.prove(Echo(answering(1.0)), "t~1", manifest)  # type: ignore[arg-type]
    assert found is not None
    assert (found.code, found.retryable) == (FailureCode.FETCH, True)
