"""Optimised forms of models: made once, used when their seal is whole, made anew when it is not."""

import os
import shutil
import sys
from pathlib import Path

import pytest
from executor_guests import Shelf, floats
from executor_models import Model
from msgspec import structs

from device_agent.executors.door import Done, ExecutorFailure, Setup
from device_agent.executors.onnx import OnnxExecutor
from device_agent.executors.process import PROGRAMS
from protocols.manifest import Dtype, ExecutorKind, Limits, Manifest, Port

sys.path.insert(0, str(PROGRAMS))

import onnx_forms
import sealed

BUDGET_MS = 60_000
X = (Port("x", Dtype.FLOAT32, (-1,)),)
Y = (Port("y", Dtype.FLOAT32, (-1,)),)


@pytest.fixture
def forms(tmp_path: Path) -> Path:
    return tmp_path / "optimised"


def task(shelf: Shelf, operator: str) -> tuple[Path, Manifest]:
    graph = Model.graph(
        [Model.node(operator, ["x", "x"], ["y"])],
        [Model.value("x", 1, "n")],
        [Model.value("y", 1, "n")],
    )
    return shelf.task(ExecutorKind.ONNX, Model.whole(graph), X, Y)


async def answer(onnx: OnnxExecutor, made: tuple[Path, Manifest], setup: Setup) -> object:
    """Load a model anew and run it on 3."""
    artifact, manifest = made
    await onnx.start("t", artifact, manifest, {}, setup)
    result = await onnx.invoke("t", "c", {"x": floats(3)}, BUDGET_MS)
    assert isinstance(result, Done), result
    await onnx.stop("t")
    onnx._models.spare(None)
    return result.outputs["y"]


def form_of(forms: Path, manifest: Manifest) -> Path:
    return forms / f"{manifest.artifact.digest.removeprefix('sha256:')}.ort"


async def test_an_author_may_say_how_many_threads_until_somebody_tunes(
    onnx: OnnxExecutor, shelf: Shelf
) -> None:
    artifact, manifest = task(shelf, "Add")
    manifest = structs.replace(manifest, threads=2)
    await onnx.start("said", artifact, manifest, {}, Setup())
    await onnx.start("tuned", artifact, manifest, {}, Setup(threads=1))
    count = {
        one: len(list(Path(f"/proc/{onnx._instances[one].pid}/task").iterdir()))
        for one in ("said", "tuned")
    }
    # One more in each waits for `stop`.
    assert count == {"said": 3, "tuned": 2}


@pytest.mark.parametrize("threads", [1, 2])
async def test_a_form_is_made_once_and_used(
    onnx: OnnxExecutor, shelf: Shelf, forms: Path, threads: int
) -> None:
    made, setup = task(shelf, "Add"), Setup(threads=threads)
    assert await answer(onnx, made, setup) == floats(6)
    form = form_of(forms, made[1])
    first = form.stat().st_ino
    assert await answer(onnx, made, setup) == floats(6)
    assert form.stat().st_ino == first
    assert (forms.stat().st_mode & 0o777, (forms / "key").stat().st_mode & 0o777) == (0o700, 0o600)
    # What is under a whole seal is what runs: here another model, sealed as this one.
    other = task(shelf, "Mul")
    assert await answer(onnx, other, setup) == floats(9)
    digest = form.stem
    name = f"{digest} {onnx_forms.BOUND_TO}"
    sealed.store(str(forms), form.name, name, form_of(forms, other[1]).read_bytes())
    assert await answer(onnx, made, setup) == floats(9)


async def test_a_broken_or_foreign_form_is_made_anew(
    onnx: OnnxExecutor, shelf: Shelf, forms: Path
) -> None:
    made, other = task(shelf, "Add"), task(shelf, "Mul")
    await answer(onnx, made, Setup())
    await answer(onnx, other, Setup())
    form, foreign = form_of(forms, made[1]), form_of(forms, other[1])
    whole = form.read_bytes()
    seal = Path(f"{form}.seal")

    async def mended() -> None:
        assert await answer(onnx, made, Setup()) == floats(6)
        assert form.read_bytes() == whole

    form.write_bytes(whole[:-1])
    await mended()
    form.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    await mended()
    form.write_bytes(foreign.read_bytes())
    await mended()
    shutil.copy(foreign, form)
    shutil.copy(f"{foreign}.seal", seal)
    await mended()
    seal.unlink()
    await mended()
    # Sealed by this device for another runtime or processor.
    sealed.store(str(forms), form.name, f"{form.stem} 0 0.0 0", foreign.read_bytes())
    await mended()
    # Sealed by somebody else.
    (forms / "key").write_bytes(os.urandom(sealed.KEY_BYTES))
    await mended()
    # A key that others can read seals nothing.
    (forms / "key").chmod(0o644)
    assert await answer(onnx, made, Setup()) == floats(6)


async def test_without_a_place_for_forms_models_run(
    onnx: OnnxExecutor, shelf: Shelf, forms: Path
) -> None:
    forms.touch()
    assert await answer(onnx, task(shelf, "Add"), Setup()) == floats(6)


async def test_a_file_that_is_not_its_digest_leaves_no_form(
    onnx: OnnxExecutor, shelf: Shelf, forms: Path
) -> None:
    (artifact, manifest), (other, _) = task(shelf, "Add"), task(shelf, "Mul")
    shutil.copy(other, artifact)
    assert await answer(onnx, (artifact, manifest), Setup()) == floats(9)
    assert not form_of(forms, manifest).exists()


async def test_the_limit_of_a_task_holds_with_a_form_too(onnx: OnnxExecutor, shelf: Shelf) -> None:
    weights = Model.tensor("w", 1, (1 << 21,), bytes(8 << 20))
    nodes = [Model.node("Add", ["x", "w"], ["y"])]
    ends = [Model.value("x", 1, "n")], [Model.value("y", 1, "n")]
    data = Model.whole(Model.graph(nodes, *ends, (weights,)))
    artifact, manifest = shelf.task(ExecutorKind.ONNX, data, X, Y)
    manifest = structs.replace(manifest, limits=Limits(memory_bytes=9 << 20))
    with pytest.raises(ExecutorFailure, match="within the task's memory limit of 9437184 bytes"):
        await onnx.deploy(artifact, manifest)
    await onnx.deploy(artifact, structs.replace(manifest, limits=Limits()))
    with pytest.raises(ExecutorFailure, match="within the task's memory limit of 9437184 bytes"):
        await onnx.deploy(artifact, manifest)


def test_old_forms_give_way(tmp_path: Path) -> None:
    folder = str(tmp_path / "private")
    sealed.make_private(folder)
    for age, name in enumerate(("c.ort", "b.ort", "a.ort")):
        sealed.store(folder, name, name, bytes(10))
        os.utime(f"{folder}/{name}", (1000 - age, 1000 - age))
    sealed.trim(folder, ".ort", 20)
    left = {one.name for one in Path(folder).iterdir()}
    with Path(folder, "b.ort").open("rb") as kept:
        assert sealed.whole(folder, "b.ort", "b.ort", kept.fileno())
        assert not sealed.whole(folder, "b.ort", "c.ort", kept.fileno()), "bound to a name"
        assert not sealed.whole(folder, "a.ort", "a.ort", kept.fileno())
    assert left == {"key", "b.ort", "b.ort.seal", "c.ort", "c.ort.seal"}
