"""Put one program into an OCI image layout, without a container engine and always the same way.

    python pack.py PROGRAM ARCHIVE.tar [ARGUMENT ...]

The image holds the program as its entrypoint and nothing else, so it has to be static. What
`docker build` and `docker save` make is taken just the same.
"""

import hashlib
import io
import json
import platform
import sys
import tarfile
from pathlib import Path
from typing import Any, Final

ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm"}
MEDIA: Final = "application/vnd.oci.image"
PROGRAM: Final = 0o755
FILE: Final = 0o644


def archive(files: dict[str, tuple[bytes, int]]) -> bytes:
    """Return a tar archive of these files, each with its mode; equal files give equal bytes."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, (data, mode) in files.items():
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(data), mode
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


def layout(program: Path, arguments: list[str]) -> bytes:
    """Return an image layout whose one layer is the program."""
    blobs: dict[str, tuple[bytes, int]] = {}

    def put(data: bytes, kind: str) -> dict[str, Any]:
        name = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{name}"] = data, FILE
        return {"mediaType": f"{MEDIA}.{kind}", "digest": f"sha256:{name}", "size": len(data)}

    def document(fields: dict[str, Any], kind: str) -> dict[str, Any]:
        return put(json.dumps(fields).encode(), kind)

    layer = put(archive({program.name: (program.read_bytes(), PROGRAM)}), "layer.v1.tar")
    about = {
        "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Entrypoint": [f"/{program.name}"], "Cmd": arguments},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": f"{MEDIA}.manifest.v1+json",
        "config": document(about, "config.v1+json"),
        "layers": [layer],
    }
    index = {"schemaVersion": 2, "manifests": [document(manifest, "manifest.v1+json")]}
    return archive(
        {
            "oci-layout": (b'{"imageLayoutVersion": "1.0.0"}', FILE),
            "index.json": (json.dumps(index).encode(), FILE),
            **blobs,
        }
    )


def main(words: list[str]) -> int:
    """Write the archive that the command line names."""
    if len(words) < 3:  # noqa: PLR2004 - ourselves, the program and the archive
        print("usage: python pack.py PROGRAM ARCHIVE.tar [ARGUMENT ...]", file=sys.stderr)
        return 2
    Path(words[2]).write_bytes(layout(Path(words[1]), words[3:]))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
