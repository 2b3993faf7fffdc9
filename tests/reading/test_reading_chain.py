"""The chain as one: its description, the words of a real page, real photographs, the build."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from chain import CHARACTERS, RECOGNISER, character_table, find_artifact, load
from guest import Array, Guest
from local import Runner, lines, main

from protocols.errors import UserError
from protocols.manifest import Dtype, ExecutorKind

Png = Callable[[Any], Array]
ROOT = Path(__file__).resolve().parents[2]
READING = ROOT / "examples" / "reading"
PLATES = ROOT.parent / "shared" / "data" / "plates_cars" / "eu"
WASM = ("decode", "prepare", "crop", "text", "read")
ONNX_TYPES = {"tensor(float)": Dtype.FLOAT32}
CLANG = shutil.which(os.environ.get("CLANG", "clang"))
COMPILER = "14.0.6"
"""The compiler of the committed modules, see build.sh."""


def picture(name: str) -> Path:
    return Path(distribution("scikit-image").locate_file(f"skimage/data/{name}"))


def test_the_use_case_names_six_tasks_in_order() -> None:
    order = load().order
    steps = [spec.step for spec in order.tasks]
    assert sorted(steps) == sorted(["decode", "prepare", "detect", "crop", "recognise", "text"])
    for spec in order.tasks:
        fed_by = {edge.source for edge in spec.inputs} - {"request"}
        assert all(steps.index(source) < steps.index(spec.step) for source in fed_by)


def test_the_recogniser_may_run_inside_a_module() -> None:
    specs = {spec.step: spec for spec in load(READING / "inside.toml").order.tasks}
    assert specs["recognise"].inferred
    assert specs["recognise"].group == specs["read"].group != ""
    assert [one.task for one in specs["read"].manifest.infers] == ["reading-inside.recognise"]


def test_every_artifact_is_a_file_with_the_digest_and_size_it_is_known_by() -> None:
    chain = load()
    for spec in chain.order.tasks:
        for one in (spec.manifest.artifact, *(c.artifact for c in spec.manifest.constants)):
            assert chain.files[one.digest].stat().st_size == one.size_bytes


def test_the_ports_of_a_model_are_the_models_own() -> None:
    chain = load()
    for spec in chain.order.tasks:
        if spec.manifest.kind is not ExecutorKind.ONNX:
            continue
        path = chain.files[spec.manifest.artifact.digest]
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for ports, nodes in (
            (spec.manifest.inputs, session.get_inputs()),
            (spec.manifest.outputs, session.get_outputs()),
        ):
            assert [port.name for port in ports] == [node.name for node in nodes]
            for port, node in zip(ports, nodes, strict=True):
                assert ONNX_TYPES[node.type] == port.dtype
                for axis, known in zip(port.shape, node.shape, strict=True):
                    assert axis == -1 or not isinstance(known, int) or axis == known


def test_the_committed_characters_are_those_of_the_model() -> None:
    model = find_artifact(RECOGNISER, READING)
    assert CHARACTERS.read_bytes().decode() == character_table(model)
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    written = session.get_modelmeta().custom_metadata_map["character"]
    assert character_table(model).split("\n") == [*written.splitlines(), " "]


@pytest.mark.parametrize(
    ("reference", "sentence"),
    [
        ("modules/absent.wasm", "there is no file"),
        ("package:rapidocr_onnxruntime/models/absent.onnx", "there is no file"),
        ("package:no_such_package/model.onnx", "the Python package no_such_package is not"),
    ],
)
def test_an_artifact_that_is_not_there_is_named(reference: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        find_artifact(reference, READING)


def test_a_model_without_characters_is_refused(tmp_path: Path) -> None:
    for content, sentence in ((b"", "no metadata"), (b"\xff" * 12, "damaged")):
        model = tmp_path / "model.onnx"
        model.write_bytes(content)
        with pytest.raises(UserError, match=sentence):
            character_table(model)


@pytest.mark.parametrize("name", WASM)
def test_a_module_imports_nothing_but_a_model_and_is_small(name: str) -> None:
    path = READING / "modules" / f"{name}.wasm"
    assert Guest(path).imports == (1 if name == "read" else 0)
    assert path.stat().st_size < 128 * 1024


def test_the_page_gives_its_real_words(runner: Runner) -> None:
    outputs = runner.read(picture("page.png").read_bytes())
    text = "".join(lines(outputs)).lower().replace(" ", "")
    for words in (
        "region-based segmentation",
        "let us first determine markers of the coins and the background",
        "these markers are pixels that we can label unambiguously as",
        "either object or background",
        "histogram of grey values",
    ):
        assert words.replace(" ", "") in text
    assert len(lines(outputs)) == len(outputs["scores"]) == len(outputs["index"])
    assert (outputs["scores"] >= 0.5).all()
    tops = outputs["boxes"][outputs["index"], 0, 1]
    assert (np.diff(tops) > -10).all()


def test_a_picture_without_text_gives_none(runner: Runner, png: Png) -> None:
    outputs = runner.read(png(np.full((200, 300, 3), 255)).tobytes())
    assert lines(outputs) == []
    assert outputs["boxes"].shape == (0, 4, 2)


def test_the_program_prints_each_file_and_says_what_it_cannot_read(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    page = str(picture("page.png"))
    assert main([str(broken), page]) == 1
    told = capsys.readouterr()
    assert re.fullmatch(rf"{re.escape(page)}\tRegion-based ?segmentation .*\n", told.out)
    assert (
        told.err == f"{broken}: the file is no JPEG, PNG, BMP, GIF or PNM image, or it is damaged\n"
    )


@pytest.mark.skipif(not PLATES.is_dir(), reason=f"needs the photographs in {PLATES}")
def test_most_number_plates_are_read(
    runner: Runner, record_property: Callable[[str, object], None]
) -> None:
    photos = sorted(PLATES.glob("*.jpg"))[:24]
    read = 0
    for photo in photos:
        plate = photo.with_suffix(".txt").read_text().split("\t")[5].strip()
        texts = [
            re.sub(r"[\W_]", "", one).upper() for one in lines(runner.read(photo.read_bytes()))
        ]
        read += plate in texts
    record_property("plates_read", f"{read} of {len(photos)}")
    # RapidOCR 1.4.4's own pipeline on the same models reads 18 of these 24
    assert read >= 18


@pytest.mark.timeout(400)
@pytest.mark.skipif(CLANG is None, reason="needs clang to build the modules")
def test_the_committed_modules_come_from_these_sources(tmp_path: Path, runner: Runner) -> None:
    built = subprocess.run(
        [READING / "build.sh", tmp_path], capture_output=True, text=True, timeout=350, check=False
    )
    if built.returncode and "file not found" in built.stderr:
        pytest.skip("needs the packages that build.sh names: " + built.stderr.splitlines()[0])
    assert built.returncode == 0, built.stderr
    version = subprocess.run([str(CLANG), "--version"], capture_output=True, text=True, check=True)
    if COMPILER in version.stdout:
        for name in WASM:
            committed = (READING / "modules" / f"{name}.wasm").read_bytes()
            assert (tmp_path / f"{name}.wasm").read_bytes() == committed
    page = np.fromfile(picture("page.png"), np.uint8)
    again = {name: Guest(tmp_path / f"{name}.wasm") for name in WASM}
    image, size = again["decode"]([page], 2)
    (x,) = again["prepare"]([image], 1)
    (surface,) = runner.step("detect", [x])
    crops, _, count, _ = again["crop"]([image, surface, size], 4)
    (probabilities,) = runner.step("recognise", [crops])
    table = np.fromfile(CHARACTERS, np.uint8)
    text, _, _ = again["text"]([probabilities, count, table], 3)
    assert text.tobytes() == runner.read(page.tobytes())["text"].tobytes()
