"""Variants of a small model, made, measured and written for a use case; by the command too."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import structs

from controller.namo.usecase import parse
from protocols.errors import UserError
from tona.variants.study import Figures, Study, Wish, beats, fragment, study

CLASSES = 4
SAMPLES = 40

pytestmark = pytest.mark.xdist_group("study")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("variants")


@pytest.fixture(scope="module")
def model(folder: Path) -> Path:
    """Return a model of one convolution whose class is the channel with the largest mean."""
    dice = np.random.default_rng(3)
    helper, of = onnx.helper, onnx.TensorProto.FLOAT
    weights = np.eye(CLASSES, dtype=np.float32)[:, :, None, None] * 2
    constants = {"w": weights, "noise": dice.random((CLASSES, 1), dtype=np.float32)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("GlobalAveragePool", ["c"], ["p"]),
        helper.make_node("Flatten", ["p"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", of, ["n", CLASSES, 8, 8])],
        [helper.make_tensor_value_info("y", of, ["n", CLASSES])],
        [onnx.numpy_helper.from_array(one, name) for name, one in constants.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 12)], ir_version=8)
    path = folder / "model.onnx"
    onnx.save(made, path)
    return path


@pytest.fixture(scope="module")
def data(folder: Path) -> Path:
    dice = np.random.default_rng(4)
    labels = dice.integers(0, CLASSES, SAMPLES)
    x = dice.random((SAMPLES, CLASSES, 8, 8), dtype=np.float32)
    x[np.arange(SAMPLES), labels] += 1
    # Labels that are wrong show that accuracy is not agreement.
    told = labels.copy()
    told[::10] = (told[::10] + 1) % CLASSES
    path = folder / "data.npz"
    np.savez(path, x=x, labels=told.astype(str))
    return path


@pytest.fixture(scope="module")
def done(folder: Path, model: Path, data: Path) -> Study:
    return study(Wish(model, data, folder / "out", calibration=10))


def test_variants_are_measured_beside_their_original(done: Study, folder: Path) -> None:
    by_name = {one.name: one for one in done.forms}
    assert (done.metric, done.made_with, done.judged_by) == ("top1", 10, 30)
    original = by_name["original"]
    assert original.agreement_percent == 100
    assert original.accuracy_percent is not None
    assert 80 <= original.accuracy_percent < 100
    assert {"int8-all", "int8-conv", "fp16", "folded"} <= by_name.keys()
    for one in done.forms:
        if not one.failed:
            assert one.size_bytes > 0
            assert 0 < one.run_ms_p50 <= one.run_ms_p99
            assert one.memory_bytes is not None
    assert by_name["int8-conv"].agreement_percent > 90
    assert by_name["int8-conv"].deviation_max > 0
    assert by_name["folded"].deviation_max == 0
    kept = onnx.load(folder / "out" / "model.folded.onnx")
    assert [one.name for one in kept.graph.initializer] == ["w"], "what has no use is gone"


DOCUMENT = """
name = "u"
[[services]]
name = "s"
kind = "inference"
outputs = { y = "t.y" }
[[services.tasks]]
name = "t"
executor = "onnx"
artifact = "sha256:%s"
artifact_bytes = 100
inputs.x = { from = "request.x", dtype = "float32", shape = [-1, 4, 8, 8] }
outputs.y = { dtype = "float32", shape = [-1, 4] }
"""


def figures(name: str, **parts: float | str | None) -> Figures:
    made = Figures(name, "", f"m.{name}.onnx", 1000, 8, 90.0, 100.0, 0.0, 0.0, 10.0, 12.0, 1000)
    return structs.replace(made, **parts)


def test_a_use_case_takes_the_fragment_as_it_is(done: Study) -> None:
    forms = [structs.replace(one, worse_than="") for one in done.forms]
    text = fragment(structs.replace(done, forms=tuple(forms)))
    digests = text.replace('.onnx"\n', '.onnx"\nartifact_bytes = 7\n')
    for one in forms:
        digests = digests.replace(f'"{one.file}"', f'"sha256:{"ab" * 32}"')
    use_case, _ = parse(DOCUMENT % ("cd" * 32) + digests, "toml")
    variants = {one.name: one for one in use_case.services[0].tasks[0].variants}
    conv = next(one for one in forms if one.name == "int8-conv")
    assert variants["int8-conv"].precision_bits == 8
    assert variants["int8-conv"].accuracy_percent == pytest.approx(conv.accuracy_percent, abs=0.01)


def test_what_is_worse_in_all_is_not_recommended() -> None:
    best, slow = figures("a"), figures("b", run_ms_p50=20.0, size_bytes=1000)
    assert beats(best, slow)
    assert not beats(slow, best)
    assert not beats(best, figures("c", size_bytes=500, accuracy_percent=50.0)), "it is smaller"
    assert not beats(best, figures("d", run_ms_p50=10.2)), "no machine tells that apart"
    assert beats(best, figures("e", accuracy_percent=89.0)), "equal but for the accuracy"
    assert not beats(best, best)


def test_without_labels_no_accuracy_is_stated() -> None:
    none = [figures(name, accuracy_percent=None, agreement_percent=97.5) for name in ("a", "b")]
    text = fragment(Study("m.onnx", "close", 5, 20, 0, 1, tuple(none)))
    assert "accuracy_percent" not in text
    assert "97.50 %; no labels" in text


def test_mistakes_are_one_sentence(model: Path, data: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.onnx"
    bad.write_bytes(b"no model")
    for wish, told in (
        (Wish(bad, data, tmp_path / "o"), "no ONNX model"),
        (Wish(model, data, tmp_path / "o", calibration=SAMPLES), "none is left"),
        (Wish(model, data, tmp_path / "o", calibration=5, only=("int4",)), "no variant 'int4'"),
        (Wish(model, data, tmp_path / "o", calibration=5, metric="best"), "no metric 'best'"),
    ):
        with pytest.raises(UserError, match=told) as caught:
            study(wish)
        assert "\n" not in str(caught.value)
    other = tmp_path / "other.npz"
    np.savez(other, z=np.zeros((9, 4)))
    with pytest.raises(UserError, match="does not take sample"):
        study(Wish(model, other, tmp_path / "o", calibration=0))


def test_the_command_prints_a_table_or_json(model: Path, data: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tona", "model", "variants", str(model), "--data", str(data)]
    command += ["--out", str(tmp_path / "out"), "--calibration", "10", "--only", "int8-conv"]
    table = subprocess.run(command, capture_output=True, text=True, timeout=100, check=True)
    assert table.stdout.split()[0] == "FORM"
    assert "judged by 30 others" in table.stdout
    said = subprocess.run([*command, "--json"], capture_output=True, timeout=100, check=True)
    forms = json.loads(said.stdout)["forms"]
    assert [one["name"] for one in forms] == ["original", "int8-conv"]
    assert (tmp_path / "out" / "model.int8-conv.onnx").is_file()
