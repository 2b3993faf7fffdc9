"""A case as one process without any platform, which the case study holds ours against."""

import io
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference import HERE, TRAFFIC, Array, Runner

from benchmarks.case_study import native
from benchmarks.programs.case_program import read_tensors, write_tensors
from benchmarks.programs.case_server import Fresh, bundle, command_of

compiles = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")


@compiles
def test_a_bare_process_answers_as_the_reference_and_without_numpy(
    tmp_path: Path, runner: Callable[[Path], Runner]
) -> None:
    for name in "recent", "outlook":
        native.compile_guest(HERE / "guests" / f"{name}.c", tmp_path / f"{name}.0.so")
    native.optimise(HERE / "forecaster.onnx", tmp_path / "forecast.ort")
    shutil.copy(HERE / "tables" / "stations.f32", tmp_path)
    speeds: Array = np.linspace(20, 70, 12 * 207, dtype="f4").reshape(12, 207)
    minute: Array = np.array([480], "i4")
    wanted = runner(TRAFFIC).run({"speeds": speeds, "minute": minute})
    frame = io.BytesIO()
    write_tensors(frame, {"speeds": (1, speeds.shape, speeds), "minute": (6, (1,), minute)})
    python, *rest = command_of(str(tmp_path), "traffic")
    ran = subprocess.run(
        [python, "-X", "importtime", *rest],
        input=frame.getvalue(),
        capture_output=True,
        timeout=60,
        check=True,
    )
    found = read_tensors(io.BytesIO(ran.stdout))
    assert found is not None
    for name, value in wanted.items():
        _, shape, data = found[name]
        assert shape == value.shape
        assert np.allclose(np.frombuffer(data, value.dtype).reshape(shape), value, atol=0.01)
    imported = ran.stderr.decode()
    assert "ort_api" in imported
    assert "numpy" not in imported
    assert "onnxruntime" not in imported


def test_containers_of_a_case_share_nothing_that_a_runtime_writes_to(tmp_path: Path) -> None:
    bundle(tmp_path, "/usr", "traffic")
    mounts = json.loads((tmp_path / "config.json").read_text())["mounts"]
    shared = [one for one in mounts if one["type"] == "bind"]
    assert all("ro" in one["options"] for one in shared)
    # Both would make the same links there, and the slower one would fail.
    assert [one["type"] for one in mounts if one["destination"] == "/dev"] == ["tmpfs"]


async def test_a_bare_program_that_gives_no_answer_says_why() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('there is no model')"]
    with pytest.raises(RuntimeError, match="without an answer: status 1, there is no model"):
        await Fresh(command, 1).run({})
