"""Archives of containers: read strictly, unpacked nowhere else, refused with one sentence."""

import errno
import gzip
import hashlib
import io
import json
import os
import platform
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from container_guests import add, layout_tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.executors.process import PROGRAMS

sys.path.append(str(PROGRAMS))

import container_image
import container_images
import container_tar
import container_tree
import container_unpack
from stream import Refusal

BOUNDS = (1 << 20, 200, 1 << 19)
ALWAYS = {"dev", "proc", "sys", "tmp", "tona", "tona/in", "tona/out"}

Member = tuple[str, dict[str, Any]]


def archive(*members: Member, form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for name, fields in members:
            add(tar, name, fields.pop("data", b""), **fields)
    return out.getvalue()


def file(name: str, data: bytes = b"x", **fields: Any) -> Member:
    return name, {"data": data, **fields}


def folder(name: str) -> Member:
    return name, {"type": tarfile.DIRTYPE}


def symlink(name: str, target: str) -> Member:
    return name, {"type": tarfile.SYMTYPE, "linkname": target}


def hard_link(name: str, target: str) -> Member:
    return name, {"type": tarfile.LNKTYPE, "linkname": target}


@pytest.fixture
def unpack(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Unpack an artifact as its process does; nothing beside the images may have changed."""
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "precious").write_text("untouched", encoding="ascii")

    def work(data: bytes, **request: Any) -> Path:
        name = hashlib.sha256(data).hexdigest()
        artifact = tmp_path / name
        artifact.write_bytes(data)
        usual = {
            "artifact": str(artifact),
            "digest": name,
            "images": str(images),
            "machine": platform.machine(),
            "bounds": BOUNDS,
            "cache": 1 << 30,
            "keep": [],
        }
        container_unpack.unpack(usual | request)
        return images / name / "rootfs"

    yield work
    assert (tmp_path / "precious").read_text(encoding="ascii") == "untouched"
    beside = {one.name for one in tmp_path.iterdir()} - {"images", "precious"}
    assert all(len(one) == 64 for one in beside)


def tree(root: Path) -> dict[str, object]:
    """What lies in a folder: bytes of files, targets of links."""
    found: dict[str, object] = {}
    for path in sorted(root.rglob("*")):
        name = str(path.relative_to(root))
        if path.is_symlink():
            found[name] = f"-> {path.readlink()}"
        elif path.is_file():
            found[name] = path.read_bytes()
        elif name not in ALWAYS:
            found[name] = "folder"
    return found


FORMS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("pack", [bytes, gzip.compress])
def test_a_plain_root_file_system_is_unpacked(
    unpack: Callable[..., Path], form: int, pack: Callable[[bytes], bytes]
) -> None:
    data = archive(
        folder("./"),
        folder("bin"),
        file("bin/program", b"#!", mode=0o4711),
        file("etc/secret", b"s", mode=0o600, mtime=1_000_000),
        symlink("bin/sh", "/bin/program"),
        symlink("usr/lib/x", "../../bin/program"),
        hard_link("bin/other", "bin/program"),
        file("long/" + "n" * 90 + "/" + "m" * 60, b"l"),
        form=form,
    )
    root = unpack(pack(data))
    assert tree(root) == {
        "bin": "folder",
        "bin/program": b"#!",
        "bin/other": b"#!",
        "bin/sh": "-> /bin/program",
        "etc": "folder",
        "etc/secret": b"s",
        "long": "folder",
        "long/" + "n" * 90: "folder",
        "long/" + "n" * 90 + "/" + "m" * 60: b"l",
        "usr": "folder",
        "usr/lib": "folder",
        "usr/lib/x": "-> ../../bin/program",
    }
    assert (root / "bin/program").stat().st_mode & 0o7777 == 0o755
    assert (root / "etc/secret").stat().st_mode & 0o7777 == 0o644
    assert (root / "etc/secret").stat().st_mtime == 1_000_000


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("nested", [True, False])
def test_layers_lie_over_each_other(
    unpack: Callable[..., Path], compressed: bool, nested: bool
) -> None:
    lower = archive(
        file("etc/a", b"1"),
        file("etc/b", b"1"),
        file("etc/deep/c", b"1"),
        file("var/x/old", b"1"),
        file("was-file", b"1"),
        folder("was-folder"),
        file("was-folder/in", b"1"),
        symlink("was-link", "etc"),
    )
    upper = archive(
        file("etc/.wh.a", b""),
        file("etc/b", b"2"),
        file("etc/.wh.deep", b""),
        file("var/x/new", b"2"),
        file("var/x/.wh..wh..opq", b""),
        folder("was-file"),
        file("was-folder", b"2"),
        folder("was-link"),
        file("was-link/inside", b"2"),
        file(".wh.never-there", b""),
        file(".wh..wh.plnk", b""),
    )
    config = {"Entrypoint": ["/e"], "Cmd": ["c"], "Env": ["A=b"], "WorkingDir": "/w/d"}
    data = layout_tar([lower, upper], config, compressed=compressed, nested=nested)
    root = unpack(data)
    assert tree(root) == {
        "etc": "folder",
        "etc/b": b"2",
        "var": "folder",
        "var/x": "folder",
        "var/x/new": b"2",
        "was-file": "folder",
        "was-folder": b"2",
        "was-link": "folder",
        "was-link/inside": b"2",
        "w": "folder",
        "w/d": "folder",
    }
    about = container_images.about(str(root.parents[1]), root.parent.name)
    assert (about["entrypoint"], about["command"], about["env"], about["cwd"]) == (
        ["/e"],
        ["c"],
        ["A=b"],
        "/w/d",
    )


def test_a_gzipped_layout_is_unpacked_too(unpack: Callable[..., Path]) -> None:
    data = layout_tar([archive(file("a"))], compressed=True)
    assert tree(unpack(gzip.compress(data))) == {"a": b"x"}


def test_mount_points_are_folders_whatever_the_image_says(unpack: Callable[..., Path]) -> None:
    data = archive(symlink("tona", "/etc"), symlink("tmp", "var/tmp"), file("proc"), file("a"))
    root = unpack(data)
    assert tree(root) == {"a": b"x"}
    assert all((root / one).is_dir() and not (root / one).is_symlink() for one in ALWAYS)


ATTACKS = {
    "dots": ([file("../precious")], "leads out of the image by '..'"),
    "dots within": ([file("a/../../precious")], "leads out of the image by '..'"),
    "absolute": ([file("/precious")], "is an absolute name"),
    "absolute folder": ([folder("/etc")], "is an absolute name"),
    "link out": ([symlink("a", "../precious")], "outside of the image"),
    "link out of a folder": ([symlink("a/b/c", "../../../x")], "outside of the image"),
    "absolute link out": ([symlink("a", "/../precious")], "outside of the image"),
    "file through a link": (
        [symlink("a", "/etc"), file("a/precious")],
        "lies under 'a', which is a link or a file",
    ),
    "file through a chain": (
        [symlink("a", "b"), symlink("b", "/"), file("a/b/precious")],
        "lies under 'a', which is a link or a file",
    ),
    "file through a file": ([file("a"), file("a/b")], "lies under 'a'"),
    "hard link out": ([hard_link("a", "../precious")], "leads out of the image"),
    "absolute hard link": ([hard_link("a", "/etc/passwd")], "is an absolute name"),
    "hard link through a link": (
        [symlink("l", "/"), hard_link("a", "l/etc/passwd")],
        "lies under 'l'",
    ),
    "hard link to nothing": ([hard_link("a", "b")], "which is not here"),
    "hard link to a folder": ([folder("b"), hard_link("a", "b")], "to what is no file"),
    "character device": ([("null", {"type": tarfile.CHRTYPE})], "is a character device"),
    "block device": ([("sda", {"type": tarfile.BLKTYPE})], "is a block device"),
    "pipe": ([("p", {"type": tarfile.FIFOTYPE})], "is a named pipe"),
    "line in a name": ([file("a\nb")], "has control characters in its name"),
    "link of a line": ([symlink("a", "b\nc")], "is no name"),
    "deep": ([file("d/" * 64 + "x")], "65 folders deep, at most 64"),
    "long part": ([file("n" * 256)], "a part of more than 255 bytes"),
    "many": ([file(str(one), b"") for one in range(201)], "more than the 200 entries"),
    "folders on the way": (
        [file(f"{one}/" + "d/" * 40 + "x") for one in range(5)],
        "more than the 200 entries",
    ),
    "hard link that turns a link outwards": (
        [symlink("a/b/l", "../../x"), hard_link("l", "a/b/l")],
        "'l' links to '../../x', outside of the image",
    ),
    "large file": ([file("a", bytes((1 << 19) + 1))], "a file may have 524288"),
    "large together": (
        [file(str(one), bytes(1 << 19)) for one in range(3)],
        "takes more than 1048576 bytes",
    ),
    "the root": ([file("./")], "the root, is a file"),
    "the root as a link": ([symlink("./.", "/etc")], "the root, is a symbolic link"),
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
@pytest.mark.parametrize("layered", [True, False])
def test_an_attack_is_refused_in_one_sentence(
    unpack: Callable[..., Path], attack: tuple[list[Member], str], layered: bool
) -> None:
    members, said = attack
    data = archive(*((name, dict(fields)) for name, fields in members))
    data = layout_tar([data]) if layered else data
    with pytest.raises(Refusal, match="the image is refused") as caught:
        unpack(data)
    code, blame, text, retryable = caught.value.answer
    assert (code, blame, retryable) == ("executor", "user", False)
    assert said in text
    assert "\n" not in text


def test_where_links_are_confined_to_a_folder_files_are_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def confined(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", confined)
    data = archive(
        file("a/x", b"1" * 5000, mode=0o755, mtime=7),
        hard_link("b/x", "a/x"),
        symlink("a/s", "x"),
        hard_link("b/s", "a/s"),
    )
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    target = container_tree.Tree(fd, container_tree.Bounds(*BOUNDS))
    target.apply(container_tar.Archive(io.BytesIO(data)), layer=False)
    os.close(fd)
    assert (tmp_path / "b/x").read_bytes() == b"1" * 5000
    assert (tmp_path / "b/x").stat().st_mode & 0o7777 == 0o755
    assert (tmp_path / "b/x").stat().st_mtime == 7
    assert (tmp_path / "b/s").readlink() == Path("x")
    # Six entries, two of them folders on the way, take their place on a disk as well.
    assert target.bytes == 10_000 + 6 * container_tree.ENTRY_BYTES


def test_names_with_a_nul_are_refused(unpack: Callable[..., Path]) -> None:
    data = archive(("x", {"data": b"", "pax_headers": {"path": "a\0b"}}))
    assert b"a\0b" in data
    with pytest.raises(Refusal, match="control characters"):
        unpack(data)


def test_a_bomb_ends_at_the_bound(unpack: Callable[..., Path]) -> None:
    bomb = gzip.compress(bytes(64 << 20))
    with pytest.raises(Refusal, match="takes more than 1048576 bytes"):
        unpack(bomb)
    whole = archive(file("a"))
    with pytest.raises(Refusal, match="takes more than 2097152 bytes"):
        unpack(layout_tar([whole + bytes(32 << 20)], compressed=True))


def test_what_is_no_whole_archive_is_refused(unpack: Callable[..., Path]) -> None:
    data = archive(file("a", b"x" * 2000), file("b", b"y"))
    for cut in (0, 1, 511, 512, 1000, 3000, 3584):
        with pytest.raises(Refusal, match=r"artifact (ends in the middle|has a header)"):
            unpack(data[:cut])
    with pytest.raises(Refusal, match="no tar archive"):
        unpack(b"MZ" + bytes(2000))
    with pytest.raises(Refusal, match="artifact is damaged"):
        unpack(gzip.compress(data)[:-20])
    with pytest.raises(Refusal, match="zstd"):
        unpack(b"\x28\xb5\x2f\xfd" + bytes(100))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"architecture": "s390y"}, r"no form for linux/\w+, this machine; it has linux/s390y"),
        ({"damage": "layer"}, "is not what its digest says"),
        ({"damage": "config"}, "is not what its digest says"),
        ({"damage": "manifest"}, "is not what its digest says"),
        ({"config": {"Env": [3]}}, "Env is no list"),
        ({"config": {"Env": ["x"]}}, "an entry without a name and '='"),
        ({"config": {"Env": ["=x"]}}, "an entry without a name and '='"),
        ({"config": {"Cmd": ["\ud800"]}}, "Cmd is no list"),
        ({"architecture": "\ud800"}, "this machine; it has"),
        ({"config": {"Entrypoint": "x"}}, "Entrypoint is no list"),
        ({"config": {"WorkingDir": "x"}}, "is no absolute name"),
        ({"config": {"WorkingDir": "/a/../../b"}}, "leads out of the image"),
        ({"config": {"WorkingDir": "/a\nb"}}, "control characters"),
        ({"config": {"WorkingDir": "/\ud800"}}, "control characters"),
        ({"config": {"WorkingDir": "//proc/self/fd/7"}}, "is the kernel's: choose another"),
        ({"config": "x"}, "is no object"),
    ],
)
def test_a_layout_that_does_not_fit_is_refused(
    unpack: Callable[..., Path], options: dict[str, Any], said: str
) -> None:
    with pytest.raises(Refusal, match=said) as caught:
        unpack(layout_tar([archive(file("a"))], **options))
    assert "".join(map(str, caught.value.answer)).isprintable()


def test_layers_are_bounded_together(unpack: Callable[..., Path]) -> None:
    layers = [archive(file(name)) + bytes(800 << 10) for name in "abc"]
    assert set(tree(unpack(layout_tar(layers[:2], compressed=True)))) == {"a", "b"}
    with pytest.raises(Refusal, match="unpacked a part of it takes more than"):
        unpack(layout_tar(layers, compressed=True))


def test_a_whiteout_that_comes_again_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = []
    hide = container_tree.Tree._hide
    monkeypatch.setattr(
        container_tree.Tree, "_hide", lambda *words: (looked.append(words[1]), hide(*words))
    )
    kept = [file(f"a/{one}") for one in range(50)]
    data = archive(*kept, *(file("a/.wh..wh..opq") for _ in range(50)))
    fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    container_tree.Tree(fd, container_tree.Bounds(*BOUNDS)).apply(
        container_tar.Archive(io.BytesIO(data)), layer=True
    )
    os.close(fd)
    assert len(looked) == len(list((tmp_path / "a").iterdir())) == 50


def test_what_has_the_name_of_an_image_without_being_one_is_replaced(
    unpack: Callable[..., Path], tmp_path: Path
) -> None:
    data = archive(file("a"))
    broken = tmp_path / "images" / hashlib.sha256(data).hexdigest() / "rootfs"
    broken.mkdir(parents=True)
    (broken / "b").touch()
    assert tree(unpack(data)) == {"a": b"x"}


def test_a_layer_that_is_not_what_the_configuration_says_is_refused(
    unpack: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = hashlib.sha256
    swapped = archive(file("evil"))
    layer = archive(file("good"))
    monkeypatch.setattr(
        "container_guests.hashlib.sha256",
        lambda data: honest(layer if data == swapped else data),
    )
    # The digest of the packed layer is right, that of its content is another one's.
    data = layout_tar([swapped], compressed=True)
    monkeypatch.undo()
    with pytest.raises(Refusal, match="a layer's content is not"):
        unpack(data)


def test_an_archive_of_the_old_kind_is_told_how_to_be_saved(unpack: Callable[..., Path]) -> None:
    data = archive(file("manifest.json", b"[]"), file("abc/layer.tar"))
    with pytest.raises(Refusal, match="save it with Docker 25 or newer"):
        unpack(data)


def test_two_images_are_one_too_many(unpack: Callable[..., Path]) -> None:
    whole = {}
    for letter in "ab":
        with tarfile.open(fileobj=io.BytesIO(layout_tar([archive(file(letter))]))) as tar:
            for member in tar:
                if member.isfile():
                    whole.setdefault(member.name, []).append(tar.extractfile(member).read())
    index = [json.loads(one) for one in whole.pop("index.json")]
    index[0]["manifests"] += index[1]["manifests"]
    members = [file(name, data[0]) for name, data in whole.items()]
    data = archive(*members, file("index.json", json.dumps(index[0]).encode()))
    with pytest.raises(Refusal, match="holds 2 images for this machine: save one alone"):
        unpack(data)


def test_an_index_that_goes_on_for_ever_is_refused(unpack: Callable[..., Path]) -> None:
    blobs = {}
    data = b'{"schemaVersion": 2, "manifests": []}'
    for _ in range(6):
        name = hashlib.sha256(data).hexdigest()
        blobs[f"blobs/sha256/{name}"] = data
        entry = {"digest": f"sha256:{name}", "size": len(data)}
        data = json.dumps({"manifests": [entry]}).encode()
    members = [file(name, blob) for name, blob in blobs.items()]
    with pytest.raises(Refusal, match="indexes in indexes"):
        unpack(archive(*members, file("index.json", data), file("oci-layout", b"{}")))
    name, blob = next(iter(blobs.items()))
    entry = {"digest": f"sha256:{Path(name).name}", "size": len(blob)}
    wide = json.dumps({"manifests": [entry] * 300}).encode()
    with pytest.raises(Refusal, match="more than 256 manifests"):
        unpack(archive(file(name, blob), file("index.json", wide), file("oci-layout", b"{}")))
    deep = b'{"manifests": ' + b"[" * 100_000
    with pytest.raises(Refusal, match="no JSON"):
        unpack(archive(file("index.json", deep), file("oci-layout", b"{}")))


def test_an_artifact_that_is_not_its_digest_is_refused(unpack: Callable[..., Path]) -> None:
    with pytest.raises(Refusal, match="not what its digest says"):
        unpack(archive(file("a")), digest="0" * 64)


NAMES = st.lists(
    st.sampled_from(["a", "b", "..", ".", "", "l", ".wh.a", ".wh..wh..opq", "tona", "tmp"]),
    min_size=1,
    max_size=4,
).map("/".join)
TARGETS = st.one_of(NAMES, NAMES.map("/".__add__), st.just("../" * 8 + "precious"))
MEMBERS = st.one_of(
    st.tuples(NAMES, st.just({"data": b"evil"})),
    st.tuples(NAMES, st.just({"type": tarfile.DIRTYPE})),
    st.builds(symlink, NAMES, TARGETS),
    st.builds(hard_link, NAMES, TARGETS),
)


def whole(root: Path) -> dict[str, object]:
    return tree(root) | {"mode": root.stat().st_mode}


@settings(deadline=None, suppress_health_check=list(HealthCheck))
@given(members=st.lists(MEMBERS, max_size=8), layer=st.booleans(), flips=st.data())
def test_whatever_an_archive_says_nothing_is_written_outside(
    tmp_path_factory: pytest.TempPathFactory,
    members: list[Member],
    layer: bool,
    flips: st.DataObject,
) -> None:
    outside = tmp_path_factory.mktemp("outside")
    (outside / "precious").write_text("untouched", encoding="ascii")
    root = outside / "inside" / "rootfs"
    root.mkdir(parents=True)
    data = bytearray(archive(*((name, dict(fields)) for name, fields in members)))
    if flips.draw(st.booleans()):
        at = flips.draw(st.integers(0, len(data) - 1))
        data[at] ^= 1 << flips.draw(st.integers(0, 7))
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        target = container_tree.Tree(fd, container_tree.Bounds(*BOUNDS))
        try:
            target.apply(container_tar.Archive(io.BytesIO(data)), layer=layer)
            target.ensure("tona/in", replace=True)
        except (container_tree.Hostile, *container_image.DAMAGED):
            pass
    finally:
        os.close(fd)
    assert (outside / "precious").read_text(encoding="ascii") == "untouched"
    assert sorted(one.name for one in outside.iterdir()) == ["inside", "precious"]
    assert [one.name for one in root.parent.iterdir()] == ["rootfs"]
    for path in root.rglob("*"):
        about = path.lstat()
        assert path.is_symlink() or about.st_mode & 0o7777 in (0o644, 0o755)


TEXTS = st.text(
    st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"], exclude_characters="/"),
    min_size=1,
    max_size=60,
).filter(lambda one: one not in {".", ".."} and len(one.encode()) < 255)


@settings(deadline=None)
@given(
    files=st.dictionaries(st.lists(TEXTS, min_size=1, max_size=3).map("/".join), st.binary()),
    form=st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT]),
)
def test_what_was_packed_is_read(files: dict[str, bytes], form: int) -> None:
    data = archive(*(file(name, content) for name, content in files.items()), form=form)
    reader = container_tar.Archive(io.BytesIO(data))
    read = {entry.name: b"".join(reader.blocks()) for entry in reader}
    assert read == files


@settings(deadline=None)
@given(st.binary(max_size=2000))
def test_garbage_is_no_archive_and_no_fault(data: bytes) -> None:
    reader = container_tar.Archive(io.BytesIO(data))
    with pytest.raises(container_tar.BadTar):
        for _ in reader:
            pass
