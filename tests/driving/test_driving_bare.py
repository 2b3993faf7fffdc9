"""A case as one process without any platform, which the case study holds ours against."""

import io
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from reference import HERE, TRAFFIC, Array, Runner

from benchmarks.case_study import native
from benchmarks.programs.case_program import read_tensors, write_tensors
from benchmarks.programs.case_server import command_of

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
