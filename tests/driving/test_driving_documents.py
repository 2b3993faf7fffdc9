"""The three documents and what they name: files, ports, modules, their sources."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from material import DATA
from reference import HERE, PLATES, SURROUND, TRAFFIC, Guest, load
from steps import costs, requests

from protocols.manifest import ExecutorKind
from protocols.messages.hierarchy import ServiceOrder
from tona.bundle import bundle

MODULES = ("glance", "plate", "recent", "outlook", "forecast", "project", "look", "fuse")
CASES = ("plates", "traffic", "surround")
LARGEST_BYTES = 500_000
CLANG = shutil.which(os.environ.get("CLANG", "clang"))
COMPILER = "14.0.6"
"""The compiler of the committed modules, see build.sh."""


@pytest.mark.parametrize("use_case", [PLATES, TRAFFIC, SURROUND], ids=lambda one: one.stem)
def test_every_artifact_is_found_by_both_loaders(use_case: Path) -> None:
    chain = load(use_case)
    pushed = {file.digest: file.size_bytes for file in bundle(use_case).files}
    for spec in chain.order.tasks:
        for one in (spec.manifest.artifact, *(c.artifact for c in spec.manifest.constants)):
            assert chain.files[one.digest].stat().st_size == one.size_bytes == pushed[one.digest]


@pytest.mark.parametrize("use_case", [PLATES, TRAFFIC], ids=lambda one: one.stem)
def test_the_ports_of_a_model_are_the_models_own(use_case: Path) -> None:
    chain = load(use_case)
    for spec in chain.order.tasks:
        if spec.manifest.kind is not ExecutorKind.ONNX:
            continue
        path = chain.files[spec.manifest.artifact.digest]
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for ports, nodes in (
            (spec.manifest.inputs, session.get_inputs()),
            (spec.manifest.outputs, session.get_outputs()),
        ):
            assert {port.name for port in ports} == {node.name for node in nodes}
            shapes = {node.name: node.shape for node in nodes}
            for port in ports:
                for axis, known in zip(port.shape, shapes[port.name], strict=True):
                    assert axis == -1 or not isinstance(known, int) or axis == known


def test_four_cameras_are_four_tasks_side_by_side_of_one_module() -> None:
    order = load(SURROUND).order
    projections = [spec for spec in order.tasks if spec.step.startswith("look-")]
    assert len(projections) == 4
    assert len({spec.manifest.artifact.digest for spec in projections}) == 1
    assert len({spec.manifest.constants[0].artifact.digest for spec in projections}) == 4
    assert not any(edge.source.startswith("look-") for one in projections for edge in one.inputs)


@pytest.mark.parametrize("name", MODULES)
def test_a_module_imports_nothing_and_is_small(name: str) -> None:
    path = HERE / "modules" / f"{name}.wasm"
    assert Guest(path).imports == 0
    assert path.stat().st_size < 128 * 1024, "the decoder alone has 107 kB"


def test_nothing_large_is_kept() -> None:
    for path in HERE.rglob("*"):
        assert not path.is_file() or path.stat().st_size < LARGEST_BYTES, path


@pytest.mark.skipif(CLANG is None, reason="needs clang to build the modules")
@pytest.mark.timeout(400)
def test_the_committed_modules_come_from_these_sources(tmp_path: Path) -> None:
    built = subprocess.run(
        [HERE / "build.sh", tmp_path], capture_output=True, text=True, timeout=350, check=False
    )
    if built.returncode and "file not found" in built.stderr:
        pytest.skip("needs the packages that build.sh names: " + built.stderr.splitlines()[0])
    assert built.returncode == 0, built.stderr
    version = subprocess.run([str(CLANG), "--version"], capture_output=True, text=True, check=True)
    if COMPILER not in version.stdout:
        pytest.skip(f"the committed modules come from clang {COMPILER}")
    for name in MODULES:
        committed = (HERE / "modules" / f"{name}.wasm").read_bytes()
        assert (tmp_path / f"{name}.wasm").read_bytes() == committed


@pytest.mark.skipif(not DATA.is_dir(), reason=f"needs the real inputs in {DATA}")
def test_the_costs_of_the_steps_are_counted() -> None:
    found: dict[str, Any] = {one.step: one for one in costs(TRAFFIC, requests()[TRAFFIC], 2)}
    assert list(found) == ["recent", "forecast", "outlook"]
    assert found["recent"].in_bytes == 12 * 207 * 4 + 4
    assert found["recent"].out_bytes == found["forecast"].in_bytes == (207 * 13 + 22 * 12) * 4
    assert found["outlook"].out_bytes == 207 * 12 * 5
    assert found["recent"].memory_bytes % 65536 == 0
    assert found["forecast"].memory_bytes % 65536 == 0
    assert found["forecast"].memory_bytes < 1 << 20, "no runtime for models"
    assert all(one.run_ms > 0 for one in found.values())


@pytest.mark.parametrize("case", CASES)
def test_a_case_as_one_module_takes_and_gives_what_its_steps_do(case: str) -> None:
    steps, whole = load(HERE / f"{case}.toml").order, load(HERE / f"{case}_whole.toml").order

    def asked(order: ServiceOrder) -> set[str]:
        edges = (edge for spec in order.tasks for edge in spec.inputs)
        return {edge.source_port for edge in edges if edge.source == "request"}

    assert asked(whole) == asked(steps)
    assert {edge.port for edge in whole.outputs} == {edge.port for edge in steps.outputs}


def test_a_whole_module_imports_nothing_but_infer() -> None:
    imports = {name: Guest(HERE / "modules" / f"{name}_whole.wasm").imports for name in CASES}
    assert imports == {"plates": 1, "traffic": 1, "surround": 0}
