"""The example in a container: built as its page says, run both ways, held against NumPy."""

import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from executor_guests import Shelf

from controller.namo.usecase import parse
from device_agent.executors.container import ContainerExecutor
from device_agent.executors.door import Bytes, Done, Failed
from protocols.manifest import Dtype, ExecutorKind, Interface, Limits, Manifest, Port
from tona.bundle import bundle

EXAMPLE = Path(__file__).parents[2] / "examples" / "containers"
PICTURE = (Port("x", Dtype.UINT8, (-1, -1)),)
EDGES = (Port("y", Dtype.UINT8, (-1, -1)),)


def edges(picture: np.ndarray) -> np.ndarray:
    p = picture.astype(int)
    gx = (p[:-2, 2:] + 2 * p[1:-1, 2:] + p[2:, 2:]) - (p[:-2, :-2] + 2 * p[1:-1, :-2] + p[2:, :-2])
    gy = (p[2:, :-2] + 2 * p[2:, 1:-1] + p[2:, 2:]) - (p[:-2, :-2] + 2 * p[:-2, 1:-1] + p[:-2, 2:])
    found = np.zeros(picture.shape, np.uint8)
    found[1:-1, 1:-1] = np.minimum(abs(gx) + abs(gy), 255)
    return found


def built(folder: Path) -> Path:
    """Build the image in a copy of the example."""
    if shutil.which("cc") is None:
        pytest.skip("no C compiler here")
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("edges", "*.tar"))
    built = subprocess.run(
        [folder / "build.sh"],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": "/usr/bin:/bin", "PYTHON": sys.executable},
    )
    assert built.returncode == 0, built.stderr
    return folder / "edges.tar"


async def test_the_example_finds_edges_both_ways(tmp_path: Path, blobs: Path, shelf: Shelf) -> None:
    image = built(tmp_path / "example")
    with tarfile.open(image) as tar:
        assert {"oci-layout", "index.json"} <= set(tar.getnames())
    path, ref = shelf.put(image.read_bytes())
    bundled = bundle(image.parent / "usecase.toml")
    (service,) = parse(bundled.document, bundled.notation)[0].services
    (task,) = service.tasks
    assert (task.artifact.digest, task.executor) == (ref.digest, ExecutorKind.CONTAINER)
    executor = ContainerExecutor(blobs=blobs, images=tmp_path / "images")
    try:
        if await executor.probe() is None:
            pytest.skip("no container runtime can run here")
        picture = np.random.default_rng(1).integers(0, 256, (60, 80), np.uint8)
        value = Bytes(Dtype.UINT8, picture.shape, picture.tobytes())
        small = Bytes(Dtype.UINT8, (2, 2), bytes(4))
        for interface in Interface.ONCE, Interface.SERVE:
            manifest = Manifest(
                ExecutorKind.CONTAINER,
                ref,
                PICTURE,
                EDGES,
                Limits(memory_bytes=32 << 20),
                interface=interface,
                arguments=("serve",) if interface is Interface.SERVE else (),
            )
            await executor.deploy(path, manifest)
            await executor.start("t", path, manifest, {})
            for number in range(2):
                result = await executor.invoke("t", str(number), {"x": value}, 10_000)
                assert isinstance(result, Done), result
                found = np.frombuffer(result.outputs["y"].data, np.uint8).reshape(60, 80)
                assert np.array_equal(found, edges(picture))
            failed = await executor.invoke("t", "small", {"x": small}, 10_000)
            assert isinstance(failed, Failed)
            assert failed.text == "the picture is smaller than 3x3 or larger than 32768x32768"
    finally:
        await executor.close()
