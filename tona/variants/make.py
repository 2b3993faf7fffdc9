"""The ways to make a model smaller or faster, each a function from a file to a file."""

import contextlib
import io
import logging
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import onnx
import onnxruntime
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from onnxruntime.transformers.float16 import convert_float_to_float16

from protocols.errors import UserError
from tona.variants.samples import Arrays, Sample

AXIS_OPSET: Final = 13
"""The first operator set with a scale for each channel."""
REASON_CHARACTERS: Final = 300


class Way(NamedTuple):
    """One way to make a variant."""

    name: str
    bits: int
    about: str
    make: Callable[[Path, Path, list[Sample]], None]
    """From the model, to the variant, with samples to calibrate by. Raises what libraries raise."""


class _Reader(CalibrationDataReader):  # type: ignore[misc]  # it ships no type information
    def __init__(self, samples: list[Sample]) -> None:
        self._inputs: Iterator[Arrays] = iter([one.inputs for one in samples])

    def get_next(self) -> Arrays | None:
        return next(self._inputs, None)


def _dynamic(model: Path, target: Path, _samples: list[Sample]) -> None:
    with _prepared(model, target) as (source, _):
        quantize_dynamic(source, target, weight_type=QuantType.QInt8, reduce_range=True)


def _static(model: Path, target: Path, samples: list[Sample]) -> None:
    _calibrated(model, target, samples, None, CalibrationMethod.MinMax)


def _convolutions(model: Path, target: Path, samples: list[Sample]) -> None:
    _calibrated(model, target, samples, ["Conv"], CalibrationMethod.Entropy)


def _calibrated(
    model: Path, target: Path, samples: list[Sample], operators: list[str] | None, method: Any
) -> None:
    with _prepared(model, target) as (source, per_channel):
        quantize_static(
            source,
            target,
            _Reader(samples),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=operators,
            per_channel=per_channel,
            # 7 bits for weights: a processor without VNNI adds pairs of products in 16 bits, and
            # where that overflows the answer is wrong without a word.
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
        )


def _half(model: Path, target: Path, _: list[Sample]) -> None:
    onnx.save(convert_float_to_float16(onnx.load(model), keep_io_types=True), target)


def _folded(model: Path, target: Path, _: list[Sample]) -> None:
    options = onnxruntime.SessionOptions()
    # Beyond this level operators are the runtime's own: no other provider would know them.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(target)
    options.log_severity_level = 4
    onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])


WAYS: Final = (
    Way("int8-dynamic", 8, "weights int8, scales of the rest at each run", _dynamic),
    Way("int8-all", 8, "every operator int8, scales for each channel from samples", _static),
    Way("int8-conv", 8, "convolutions int8, scales for each channel from samples", _convolutions),
    Way("fp16", 16, "half precision inside, inputs and outputs as they are", _half),
    Way("folded", 32, "constants computed, what has no use removed", _folded),
)


@contextlib.contextmanager
def _prepared(model: Path, target: Path) -> Iterator[tuple[Path, bool]]:
    """Give a model with inferred shapes, in an operator set that knows channels if it can be."""
    folder = target.with_suffix(".prepared")
    folder.mkdir()
    try:
        newer, ready = folder / "newer.onnx", folder / "ready.onnx"
        loaded = onnx.load(model)
        channels = _opset(loaded) >= AXIS_OPSET
        if not channels:
            with contextlib.suppress(Exception):  # a converter that does not know an operator
                loaded = onnx.version_converter.convert_version(loaded, AXIS_OPSET)
                channels = True
        onnx.save(loaded, newer)
        quant_pre_process(newer, ready, skip_symbolic_shape=True)
        yield ready, channels
    finally:
        shutil.rmtree(folder)


def _opset(model: Any) -> int:
    return next((one.version for one in model.opset_import if one.domain in {"", "ai.onnx"}), 0)


def make(way: Way, model: Path, target: Path, samples: list[Sample]) -> str:
    """Make one variant; why it cannot be, or nothing. What libraries print is left out."""
    logging.getLogger().setLevel(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            way.make(model, target, samples)
    except Exception as error:  # noqa: BLE001 - three libraries, each with types of its own
        target.unlink(missing_ok=True)
        return " ".join(f"{type(error).__name__}: {error}".split())[:REASON_CHARACTERS]
    return ""


def check_model(path: Path) -> None:
    """Hold a file to be a model that runs here. Raises UserError."""
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # noqa: BLE001 - protobuf, checker and file system have their own
        said = " ".join(str(error).split())[:REASON_CHARACTERS]
        raise UserError(f"{path}: it is no ONNX model that can be used: {said}") from None
