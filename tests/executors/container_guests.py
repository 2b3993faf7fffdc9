"""Root file systems from the interpreter that runs the tests, and programs in them."""

import gzip
import hashlib
import io
import json
import os
import platform
import re
import struct
import subprocess
import sys
import tarfile
from importlib.util import cache_from_source
from pathlib import Path

from device_agent.executors.door import Bytes
from protocols.manifest import ArtifactRef, Dtype, ExecutorKind, Interface, Limits, Manifest, Port

PYTHON = "/python"
GUEST = Path(__file__).parent / "container_guest.py"
MODULES = "ctypes errno collections.abc json os pathlib socket struct sys time"
FLAGS = ("-I", "-S", "-B")
NEED = re.compile(r"(?:=> )?(/\S+) \(0x")
OCI = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}


def floats(*values: float) -> Bytes:
    return Bytes(Dtype.FLOAT32, (len(values),), struct.pack(f"<{len(values)}f", *values))


def interpreter_files() -> dict[str, Path]:
    """Where in an image which file of this interpreter has to lie, libraries among them."""
    program = (
        f"import sys, {', '.join(MODULES.split())}\n"
        "for one in list(sys.modules.values()):\n"
        "    if getattr(one, '__file__', None): print(one.__file__)\n"
        "print(sys.prefix, sys.executable)"
    )
    said = subprocess.run(
        [os.path.realpath(sys.executable), *FLAGS, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    real = Path(said.pop().split(" ", 1)[1]).resolve()
    files = {PYTHON: real}
    for one in said:
        files[one] = Path(one)
        if one.endswith(".py") and (compiled := Path(cache_from_source(one))).exists():
            files[str(compiled)] = compiled
    for one in [real, *(Path(path) for path in said if path.endswith(".so"))]:
        needed = subprocess.run(
            ["/usr/bin/ldd", one], capture_output=True, text=True, check=False
        ).stdout
        for path in NEED.findall(needed):
            files[path] = Path(path)
    return files


def add(tar: tarfile.TarFile, name: str, data: bytes = b"", **fields: object) -> None:
    """Put a member into an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(data)
    for field, value in fields.items():
        setattr(member, field, value)
    tar.addfile(member, io.BytesIO(data))


def rootfs_tar() -> bytes:
    """A plain root file system with this interpreter and the guest program."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, path in sorted(interpreter_files().items()):
            # Compiled files are held against the time of their source.
            time = int(path.stat().st_mtime)
            add(tar, name.lstrip("/"), path.read_bytes(), mode=0o755, mtime=time)
        add(tar, "guest.py", GUEST.read_bytes())
    return out.getvalue()


def layout_tar(
    layers: list[bytes],
    config: dict[str, object] | None = None,
    *,
    architecture: str = OCI.get(platform.machine(), platform.machine()),
    compressed: bool = False,
    nested: bool = False,
    damage: str = "",
) -> bytes:
    """An OCI image layout as `docker save` writes it today."""
    blobs: dict[str, bytes] = {}

    def put(data: bytes, kind: str) -> dict[str, object]:
        name = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{name}"] = data[:-1] + b"!" if damage == kind else data
        media = f"application/vnd.oci.image.{kind}"
        return {"mediaType": media, "digest": f"sha256:{name}", "size": len(data)}

    contents = [f"sha256:{hashlib.sha256(one).hexdigest()}" for one in layers]
    packed = [put(gzip.compress(one, 1, mtime=0) if compressed else one, "layer") for one in layers]
    about = {
        "architecture": architecture,
        "os": "linux",
        "config": config or {},
        "rootfs": {"type": "layers", "diff_ids": contents},
    }
    manifest = put(
        json.dumps(
            {
                "schemaVersion": 2,
                "config": put(json.dumps(about).encode(), "config"),
                "layers": packed,
            }
        ).encode(),
        "manifest",
    )
    if nested:
        attestation = put(b'{"schemaVersion": 2}', "attestation")
        attestation["platform"] = {"architecture": "unknown", "os": "unknown"}
        manifest["platform"] = {"architecture": architecture, "os": "linux"}
        index = {"schemaVersion": 2, "manifests": [manifest, attestation]}
        manifest = put(json.dumps(index).encode(), "index")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        add(tar, "blobs/", type=tarfile.DIRTYPE)
        add(tar, "blobs/sha256/", type=tarfile.DIRTYPE)
        for name, data in blobs.items():
            add(tar, name, data)
        index = {"schemaVersion": 2, "manifests": [manifest]}
        add(tar, "index.json", json.dumps(index).encode())
        add(tar, "manifest.json", b"[]")
        add(tar, "oci-layout", b'{"imageLayoutVersion": "1.0.0"}')
    return out.getvalue()


LIMITS = Limits(memory_bytes=64 << 20, deadline_ms=30_000)
ANY = (Port("y", Dtype.FLOAT32, (-1,)),)

Image = tuple[Path, ArtifactRef]
"""Where an artifact lies, and what it is called."""


def task(
    image: Image,
    does: str,
    interface: Interface = Interface.ONCE,
    *,
    outputs: tuple[Port, ...] = ANY,
    limits: Limits = LIMITS,
) -> tuple[Path, Manifest]:
    """A task whose container does one of the deeds of the guest program."""
    manifest = Manifest(
        ExecutorKind.CONTAINER,
        image[1],
        (Port("x", Dtype.FLOAT32, (-1,)),),
        outputs,
        limits,
        interface=interface,
        arguments=(PYTHON, *FLAGS, "/guest.py", interface.value, does),
    )
    return image[0], manifest
