"""Runs a model as the ONNX executor does, and variants beside their original."""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from msgspec import Struct, field

# Before the import that reads it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime

from protocols.errors import UserError
from tona.variants.judge import Metric, Outputs, deviation
from tona.variants.samples import Sample

WEIGH_TIMEOUT_S: Final = 120
SILENT: Final = 4


class Course(Struct):
    """What one model did with all samples."""

    right: int = 0
    labelled: int = 0
    same: int = 0
    mean: float = 0.0
    most: float = 0.0
    took_ms: list[float] = field(default_factory=list)


def open_session(model: Path, threads: int) -> Any:
    """Load a model with the settings of the ONNX executor."""
    options = onnxruntime.SessionOptions()
    options.enable_mem_pattern = False
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = SILENT
    return onnxruntime.InferenceSession(
        str(model), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )


def outputs_of(session: Any, sample: Sample) -> Outputs:
    """Run one sample. Raises UserError when the model refuses it."""
    names = [one.name for one in session.get_outputs()]
    try:
        return dict(zip(names, session.run(None, sample.inputs), strict=True))
    except Exception as error:  # noqa: BLE001 - the runtime raises a dozen types
        said = " ".join(str(error).split())[:300]
        raise UserError(f"the model does not take sample {sample.name}: {said}") from None


def race(sessions: dict[str, Any], samples: list[Sample], metric: Metric) -> dict[str, Course]:
    """Run every sample through all sessions, the first of which is the original.

    Each sample goes to all of them, in an order of chance, so that whatever else the machine does,
    and what the one before leaves in its caches, meets all alike. Raises UserError.
    """
    courses = {name: Course() for name in sessions}
    names = list(sessions)
    for session in sessions.values():
        outputs_of(session, samples[0])
    dice = Random(0)  # noqa: S311 - for an order, not for a secret
    for sample in samples:
        outputs: dict[str, Outputs] = {}
        for name in dice.sample(names, len(names)):
            began = time.perf_counter_ns()
            outputs[name] = outputs_of(sessions[name], sample)
            courses[name].took_ms.append((time.perf_counter_ns() - began) / 1e6)
        for name, course in courses.items():
            _judge(course, outputs[name], outputs[names[0]], sample, metric)
    return courses


def _judge(
    course: Course, outputs: Outputs, original: Outputs, sample: Sample, metric: Metric
) -> None:
    course.same += metric.same(outputs, original)
    mean, most = deviation(outputs, original)
    course.mean += mean
    course.most = max(course.most, most)
    if sample.label is not None and metric.read is not None:
        course.labelled += 1
        course.right += metric.read(outputs) == sample.label


def memory_bytes(model: Path, sample: Sample, threads: int) -> int | None:
    """Return what a process of its own takes for the model and one run; None: it cannot be told."""
    with tempfile.TemporaryDirectory() as folder:
        inputs = Path(folder, "inputs.npz")
        np.savez(inputs, **sample.inputs)
        command = (sys.executable, "-P", "-m", "tona.variants.weigh", str(model), str(inputs))
        try:
            done = subprocess.run(
                [*command, str(threads)],
                capture_output=True,
                timeout=WEIGH_TIMEOUT_S,
                check=True,
            )
            return int(done.stdout)
        except (OSError, subprocess.SubprocessError, ValueError):
            return None
