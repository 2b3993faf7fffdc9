"""What an artifact holds: an OCI image layout in a tar archive, or a plain root file system.

Only the image for this machine is read, each blob held against its digest before its first use.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from device_agent.executors.programs import container_tar as tar
    from device_agent.executors.programs.container_tree import Hostile, Tree, parts_of
else:
    import container_tar as tar
    from container_tree import Hostile, Tree, parts_of

MAX_JSON_BYTES: Final = 4 << 20
MAX_LAYERS: Final = 128
MAX_INDEXES: Final = 4
"""An index may name another one, this deep."""
MAX_MANIFESTS: Final = 256
"""In all indexes together, each as often as it is named."""
MAX_MEMBERS: Final = 10_000
MAX_WORDS: Final = 256
"""In the command line, and in the environment."""
MAX_WORD_BYTES: Final = 32 * 1024
COPY_BYTES: Final = 1 << 20
NO_WORK: Final = ("proc", "sys", "dev")
"""No program works there, and a folder of the machine's may be left open for a moment."""
GZIP: Final = b"\x1f\x8b"
ZSTD: Final = b"\x28\xb5\x2f\xfd"
DAMAGED: Final = (tar.BadTar, EOFError, gzip.BadGzipFile, zlib.error)
"""What reading an archive raises when it is none."""
VARIANTS: Final = {"arm": ("v7", "v6", "v5", ""), "arm64": ("v8", "")}
"""Which variants of an architecture run here, best first; an ARMv6 skips the first."""


class Platform:
    """The machine, in OCI's words."""

    def __init__(self, machine: str) -> None:
        """`machine` is what uname says."""
        known = {
            "x86_64": "amd64",
            "aarch64": "arm64",
            "armv7l": "arm",
            "armv6l": "arm",
            "i686": "386",
            "loongarch64": "loong64",
        }
        self.architecture = known.get(machine, machine)
        self.variants = VARIANTS.get(self.architecture, ("",))
        if machine == "armv6l":
            self.variants = self.variants[1:]

    def rank(self, architecture: object, system: object, variant: object) -> int | None:
        """Return how well something fits, 0 is best; None when it does not run here."""
        if (architecture, system) != (self.architecture, "linux"):
            return None
        if not variant:
            return 0
        return self.variants.index(variant) if variant in self.variants else None


class Config:
    """How an image wants to be run."""

    def __init__(self, entrypoint: list[str], command: list[str], env: list[str], cwd: str) -> None:
        self.entrypoint = entrypoint
        self.command = command
        self.env = env
        self.cwd = cwd


class Region:
    """A part of a file, read from its beginning."""

    def __init__(self, file: Any, start: int, size: int) -> None:
        self._file = file
        self._start = start
        self.size = size
        self._at = 0

    def read(self, size: int = -1, /) -> bytes:
        """Return some bytes, at most so many; none at the end."""
        left = self.size - self._at
        self._file.seek(self._start + self._at)
        data: bytes = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data

    def seek(self, at: int, /) -> None:
        """Go on reading there."""
        self._at = at


class Hashed:
    """A source of bounded length and the digest of what was read of it."""

    def __init__(self, source: tar.Source, limit_bytes: int) -> None:
        self._source = source
        self._limit = limit_bytes
        self.left = limit_bytes
        """How many bytes more it may have."""
        self._hash = hashlib.sha256()

    def read(self, size: int, /) -> bytes:
        """Read on, and note it. Raises Hostile when it is too long."""
        data = self._source.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise Hostile(f"unpacked a part of it takes more than {self._limit} bytes")
        self._hash.update(data)
        return data

    def digest(self) -> str:
        """Read to the end; the digest of everything."""
        while self.read(COPY_BYTES):
            pass
        return f"sha256:{self._hash.hexdigest()}"


class Layout:
    """An OCI image layout: where each member of the outer archive lies."""

    def __init__(self, file: Any, members: dict[str, tuple[int, int]]) -> None:
        self._file = file
        self._members = members

    def member(self, name: str) -> Region:
        """Return a member by its name. Raises Hostile."""
        found = self._members.get(name)
        if found is None:
            raise Hostile(f"the image layout has no {name!r}")
        return Region(self._file, *found)

    def blob(self, descriptor: dict[str, Any]) -> Region:
        """Return a blob that is what its digest and size say. Raises Hostile."""
        digest = text_of(descriptor, "digest")
        algorithm, _, name = digest.partition(":")
        if algorithm != "sha256" or len(name) != 64 or not name.isalnum():  # noqa: PLR2004 - hex
            raise Hostile(f"the image names a blob by {digest[:100]!r}, only sha256 is taken")
        region = self.member(f"blobs/sha256/{name}")
        if region.size != descriptor.get("size"):
            raise Hostile(f"blob {digest} has {region.size} bytes, not {descriptor.get('size')}")
        if Hashed(region, region.size).digest() != digest:
            raise Hostile(f"blob {digest} is not what its digest says")
        region.seek(0)
        return region

    def document(self, region: Region, what: str) -> dict[str, Any]:
        """Read a JSON object. Raises Hostile."""
        if region.size > MAX_JSON_BYTES:
            raise Hostile(f"the {what} has {region.size} bytes, at most {MAX_JSON_BYTES} are taken")
        try:
            found = json.loads(region.read())
        except (ValueError, RecursionError):
            raise Hostile(f"the {what} is no JSON document") from None
        if not isinstance(found, dict):
            raise Hostile(f"the {what} is no JSON object")
        return found


def find(file: Any) -> Layout | None:
    """Look through an archive for an image layout; None for a plain root file system.

    Raises Hostile, or one of DAMAGED.
    """
    members: dict[str, tuple[int, int]] = {}
    layout = old = False
    archive = tar.Archive(file, file.seek)
    for count, entry in enumerate(archive, 1):
        name = entry.name.removeprefix("./")
        layout |= name == "oci-layout"
        old |= name == "manifest.json"
        if count > MAX_MEMBERS and not layout:
            return None
        if count > MAX_MEMBERS:
            raise Hostile(f"the image layout has more than {MAX_MEMBERS} members")
        if entry.kind == tar.FILE:
            if name in members and not name.startswith("blobs/"):
                raise Hostile(f"the image layout has {name[:200]!r} twice")
            members.setdefault(name, (archive.at, entry.size))
    if layout:
        return Layout(file, members)
    if old and any(name.endswith("/layer.tar") for name in members):
        raise Hostile(
            "this is an image archive of the old kind, without an OCI layout: "
            "save it with Docker 25 or newer, or `skopeo copy docker-archive:OLD oci-archive:NEW`"
        )
    return None


_Image = tuple[dict[str, Any], dict[str, Any]]
"""Manifest and configuration."""


def choose(layout: Layout, platform: Platform) -> _Image:
    """Return manifest and configuration of the image for this machine. Raises Hostile."""
    index = layout.document(layout.member("index.json"), "index.json")
    search = _Search(layout, platform)
    manifests = search.manifests(index, MAX_INDEXES)
    if not manifests:
        named = ", ".join(sorted(set(search.seen))) or "none"
        raise Hostile(
            f"the image has no form for linux/{platform.architecture}, this machine; it has {named}"
        )
    best = min(manifests)
    equal = {digest for rank, digest in manifests if rank == best[0]}
    if len(equal) > 1:
        raise Hostile(f"the archive holds {len(equal)} images for this machine: save one alone")
    return manifests[best]


class _Search:
    """Looks through indexes for what runs here, in bounds."""

    def __init__(self, layout: Layout, platform: Platform) -> None:
        self._layout = layout
        self._platform = platform
        self._left = MAX_MANIFESTS
        self.seen: list[str] = []
        """Platforms of the images that there are."""

    def manifests(self, index: dict[str, Any], depth: int) -> dict[tuple[int, str], _Image]:
        """Collect the manifests that run here, by rank and digest. Raises Hostile."""
        found: dict[tuple[int, str], _Image] = {}
        if depth == 0:
            raise Hostile(f"the image has indexes in indexes, more than {MAX_INDEXES} deep")
        for descriptor in objects_of(index, "manifests"):
            self._left -= 1
            if self._left < 0:
                raise Hostile(f"the image names more than {MAX_MANIFESTS} manifests")
            said = descriptor.get("platform")
            if isinstance(said, dict) and "unknown" in (said.get("architecture"), said.get("os")):
                continue  # An attestation about an image, not an image.
            if isinstance(said, dict) and self._rank(said) is None:
                continue
            document = self._layout.document(self._layout.blob(descriptor), "manifest")
            if "manifests" in document:
                found |= self.manifests(document, depth - 1)
                continue
            config = document.get("config")
            if not isinstance(config, dict):
                raise Hostile("the image's manifest names no configuration")
            about = self._layout.document(self._layout.blob(config), "configuration")
            rank = self._rank(about)
            if rank is not None:
                found[rank, text_of(descriptor, "digest")] = document, about
        return found

    def _rank(self, about: dict[str, Any]) -> int | None:
        words = [about.get(one) for one in ("os", "architecture", "variant")]
        self.seen.append("/".join(str(one)[:40] for one in words if one))
        return self._platform.rank(words[1], words[0], words[2])


def config_of(about: dict[str, Any]) -> Config:
    """Take what we heed from an image's configuration. Raises Hostile."""
    config = about.get("config")
    if config is None:
        config = {}
    if not isinstance(config, dict):
        raise Hostile("the image's configuration is no object")
    env = words_of(config, "Env")
    if not all("=" in one[1:] for one in env):
        raise Hostile("the image's environment has an entry without a name and '='")
    cwd = _work_folder(config.get("WorkingDir") or "/")
    return Config(words_of(config, "Entrypoint"), words_of(config, "Cmd"), env, cwd)


def _work_folder(cwd: object) -> str:
    """Return the working folder as it is, if a program may work there. Raises Hostile."""
    if not isinstance(cwd, str) or not cwd.startswith("/"):
        raise Hostile(f"the image's working folder {cwd!r:.200} is no absolute name")
    parts = parts_of(cwd.lstrip("/"))
    if parts[:1] and parts[0] in NO_WORK:
        raise Hostile(f"the image's working folder {cwd!r:.200} is the kernel's: choose another")
    return cwd


def unpack(
    layout: Layout, manifest: dict[str, Any], about: dict[str, Any], tree: Tree, limit_bytes: int
) -> None:
    """Put the layers into a tree, one over the other. Raises Hostile, or one of DAMAGED.

    `limit_bytes` is how long the archives of all layers may be, padding and headers included.
    """
    layers = objects_of(manifest, "layers")
    rootfs = about.get("rootfs")
    contents = rootfs.get("diff_ids") if isinstance(rootfs, dict) else None
    if len(layers) > MAX_LAYERS:
        raise Hostile(f"the image has {len(layers)} layers, at most {MAX_LAYERS} are taken")
    if not isinstance(contents, list) or len(contents) != len(layers):
        raise Hostile("the image's configuration does not name the content of each layer")
    for descriptor, content in zip(layers, contents):  # noqa: B905 - as many
        source = Hashed(expand(layout.blob(descriptor), "a layer"), limit_bytes)
        tree.apply(tar.Archive(source), layer=True)
        if source.digest() != content:
            raise Hostile(f"a layer's content is not {content!r:.100}, as the image says")
        limit_bytes = source.left


def expand(region: Region, what: str) -> tar.Source:
    """Return what reads a tar archive that may be compressed. Raises Hostile."""
    start = region.read(4)
    region.seek(0)
    if start.startswith(ZSTD):
        raise Hostile(
            f"{what} is compressed with zstd, which is not taken: "
            "build the image with gzip or without compression"
        )
    if start.startswith(GZIP):
        return gzip.GzipFile(fileobj=region)
    return region


def text_of(document: dict[str, Any], key: str) -> str:
    """Return a string of a document. Raises Hostile."""
    value = document.get(key)
    if not isinstance(value, str):
        raise Hostile(f"the image has a part without {key!r}")
    return value


def objects_of(document: dict[str, Any], key: str) -> list[dict[str, Any]]:
    """Return a list of objects of a document. Raises Hostile."""
    value = document.get(key)
    if not isinstance(value, list) or not all(isinstance(one, dict) for one in value):
        raise Hostile(f"the image has no list of {key!r}")
    return value


def words_of(document: dict[str, Any], key: str) -> list[str]:
    """Return a list of strings of a document, empty when there is none. Raises Hostile."""
    value = document.get(key)
    if value is None:
        return []
    if not isinstance(value, list) or len(value) > MAX_WORDS or not all(map(_is_word, value)):
        raise Hostile(f"the image's {key} is no list of at most {MAX_WORDS} strings")
    return value


def _is_word(one: object) -> bool:
    """Whether something is a text that a program can be given."""
    if not isinstance(one, str) or "\0" in one or len(one) > MAX_WORD_BYTES:
        return False
    try:
        one.encode()
    except UnicodeEncodeError:
        return False
    return True
