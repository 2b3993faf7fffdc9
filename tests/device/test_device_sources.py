"""Sensors and files of a real file system: what is read, and what is never reached."""

import os
from pathlib import Path
from typing import Any

import pytest

from device_agent import config
from device_agent.core.commands import ReadSource
from device_agent.prepared import SensorFile
from device_agent.sources import SOURCE_MAX_BYTES, Reading, Sources
from protocols.errors import EnvironmentFailure, UserError
from protocols.manifest import Dtype
from protocols.messages.quality import SourceKind


def ask(name: str, kind: SourceKind = SourceKind.FILE, **changed: Any) -> ReadSource:
    plain = {
        "dtype": Dtype.UINT8,
        "shape": (-1,),
        "decimation": 1,
        "cursor": "",
        "cause": "test",
    }
    return ReadSource("s", "x", kind, name, **(plain | changed))


@pytest.fixture
def files(tmp_path: Path) -> Path:
    folder = tmp_path / "files"
    (folder / "in").mkdir(parents=True)
    (folder / "one.raw").write_bytes(b"one")
    (tmp_path / "secret").write_bytes(b"secret")
    return folder


@pytest.fixture
def sources(files: Path) -> Sources:
    return Sources({}, files)


def test_a_file_is_read_anew_each_time(sources: Sources, files: Path) -> None:
    assert sources.read(ask("one.raw")) == Reading(Dtype.UINT8, (3,), b"one")
    (files / "one.raw").write_bytes(b"changed")
    assert sources.read(ask("one.raw")) == Reading(Dtype.UINT8, (7,), b"changed")


def test_a_folder_gives_what_is_new_in_the_order_of_names(sources: Sources, files: Path) -> None:
    for name in ("b", "a", ".hidden", "c"):
        (files / "in" / name).write_bytes(name.encode())
    (files / "in" / "a-folder").mkdir()
    seen, cursor = [], ""
    while (found := sources.read(ask("in", cursor=cursor))) is not None:
        seen.append(found.data)
        cursor = found.cursor
    assert seen == [b"a", b"b", b"c"]
    (files / "in" / "d").write_bytes(b"d")
    assert sources.read(ask("in", cursor=cursor)) == Reading(Dtype.UINT8, (1,), b"d", "d")


@pytest.mark.parametrize(
    "name",
    ["../secret", "in/../../secret", "/etc/passwd", "in//x", ".", "..", "link", "links/secret", ""],
)
def test_nothing_outside_the_folder_is_reached(files: Path, sources: Sources, name: str) -> None:
    (files / "link").symlink_to(files.parent / "secret")
    (files / "links").symlink_to(files.parent)
    with pytest.raises(EnvironmentFailure):
        sources.read(ask(name) if name else ask("", kind=SourceKind.FILE))


def test_links_of_a_folder_are_passed_over(files: Path, sources: Sources) -> None:
    (files / "in" / "link").symlink_to(files.parent / "secret")
    assert sources.read(ask("in")) is None


def test_a_pipe_is_no_file(files: Path, sources: Sources) -> None:
    os.mkfifo(files / "pipe")
    with pytest.raises(EnvironmentFailure, match="no file and no folder"):
        sources.read(ask("pipe"))


def test_bytes_that_are_not_what_was_declared_are_refused(sources: Sources) -> None:
    with pytest.raises(EnvironmentFailure, match="3 bytes, which is no float32"):
        sources.read(ask("one.raw", dtype=Dtype.FLOAT32))
    with pytest.raises(EnvironmentFailure, match="3 bytes"):
        sources.read(ask("one.raw", shape=(4,)))


def test_a_picture_is_decimated_where_it_is_read(sources: Sources, files: Path) -> None:
    (files / "picture").write_bytes(bytes(range(24)))
    found = sources.read(ask("picture", shape=(4, -1, 3), decimation=2))
    assert found == Reading(Dtype.UINT8, (2, 1, 3), bytes([0, 1, 2, 12, 13, 14]))


def test_what_is_too_large_is_refused(sources: Sources, files: Path) -> None:
    with (files / "large").open("wb") as file:
        file.truncate(SOURCE_MAX_BYTES + 1)
    with pytest.raises(EnvironmentFailure, match="more than"):
        sources.read(ask("large"))


def test_a_sensor_is_a_file_that_the_configuration_names(tmp_path: Path) -> None:
    path = tmp_path / "temp"
    path.write_bytes(b"41000\n")
    sources = Sources({"temp": SensorFile(str(path))}, None)
    assert sources.read(ask("temp", SourceKind.SENSOR)) == Reading(Dtype.UINT8, (6,), b"41000\n")
    for name in ("other", "../temp"):
        with pytest.raises(EnvironmentFailure, match="no sensor"):
            sources.read(ask(name, SourceKind.SENSOR))
    with pytest.raises(EnvironmentFailure, match="set `files`"):
        sources.read(ask("temp"))
    endless = Sources({"zero": SensorFile("/dev/zero")}, None)
    picture = endless.read(ask("zero", SourceKind.SENSOR, shape=(2, 3)))
    assert picture == Reading(Dtype.UINT8, (2, 3), bytes(6)), "a device may go on for ever"
    with pytest.raises(EnvironmentFailure, match="more than"):
        endless.read(ask("zero", SourceKind.SENSOR))
    path.unlink()
    with pytest.raises(EnvironmentFailure, match="No such file"):
        sources.read(ask("temp", SourceKind.SENSOR))


def test_the_configuration_declares_sensors_and_files(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text(
        f'files = "{tmp_path}"\n[sensors.camera]\npath = "/dev/camera"\ndtype = "uint8"\n'
        "shape = [2, 2, 3]\n",
        encoding="utf-8",
    )
    read = config.read(["--config", str(path)], {})
    assert read.sensors == {"camera": SensorFile("/dev/camera", Dtype.UINT8, (2, 2, 3))}
    assert config.files_folder(read) == str(tmp_path)
    assert config.files_folder(config.Config()) == ""


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('[sensors."a b"]\npath = "/x"', "call it by letters"),
        ('[sensors.load]\npath = "/x"', "not load"),
        ('[sensors.a]\npath = "x"', "begin with /"),
        ("[sensors.a]\n", "missing required field"),
        ('[sensors.a]\npath = "/x"\ndtype = "text"', "dtype"),
        ('[sensors.a]\npath = "/x"\nshape = [-1, -1]', "one -1"),
        ("sensors = 3", "sensors"),
        ("".join(f'[sensors.s{at}]\npath = "/x"\n' for at in range(64)), "at most 63"),
        ("files = 3", "files"),
    ],
)
def test_a_wrong_sensor_is_told_in_one_sentence(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told) as caught:
        config.read(["--config", str(path)], {})
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_folder_of_files_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        config.files_folder(config.Config(files=str(tmp_path / "gone")))
