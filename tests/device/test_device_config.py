"""Configuration: precedence, names, addresses, folders; and what the workshop decides."""

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import VERSION, config
from device_agent.executors.door import Bytes, File
from device_agent.workshop import INLINE_TOTAL_BYTES, spill
from protocols.errors import UserError
from protocols.manifest import Dtype
from protocols.messages.invocation import INLINE_MAX_BYTES
from protocols.topics import valid_name

ROOT = Path(__file__).parents[2]


def test_flags_win_over_environment_over_file(tmp_path: Path) -> None:
    path = tmp_path / "node.toml"
    path.write_text('node = "file"\ncell = "file"\nprofile = "file"\n', encoding="utf-8")
    environment = {"TONA_CONFIG": str(path), "TONA_CELL": "env", "TONA_NODE": "env"}
    read = config.read(["--node", "flag"], environment)
    assert (read.node, read.cell, read.profile) == ("flag", "env", "file")


@pytest.mark.parametrize(
    ("text", "told"),
    [("nodes = 'x'", "no option 'nodes'"), ("node = 3", "string"), ("node =", "not a TOML file")],
)
def test_a_wrong_file_is_told_with_its_name(tmp_path: Path, text: str, told: str) -> None:
    path = tmp_path / "node.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=told) as error:
        config.read(["--config", str(path)], {})
    assert str(path) in str(error.value)


def test_the_node_has_the_hosts_name_unless_a_bundle_names_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "-küche.local domain")
    assert config.read([], {}).node == "k-che.local-domain"
    assert config.read(["--bundle", "x"], {}).node == ""


@given(st.text(max_size=100))
def test_every_host_name_becomes_a_valid_one(name: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("socket.gethostname", lambda: name)
        assert valid_name(config.host_name())


@pytest.mark.parametrize(
    ("text", "host", "port", "loopback"),
    [
        ("127.0.0.1:1883", "127.0.0.1", 1883, True),
        ("127.9.0.1:1", "127.9.0.1", 1, True),
        ("[::1]:1883", "::1", 1883, True),
        ("mqtt://127.0.0.1:1883", "127.0.0.1", 1883, True),  # as a controller says it
        ("localhost:1883", "localhost", 1883, True),
        ("broker.example:8883", "broker.example", 8883, False),
        ("[2001:db8::1]:8883", "2001:db8::1", 8883, False),
        ("0.0.0.0:1883", "0.0.0.0", 1883, False),  # noqa: S104 - it is refused
        ("127.0.0.1.example:1883", "127.0.0.1.example", 1883, False),
    ],
)
def test_addresses(text: str, host: str, port: int, loopback: bool) -> None:
    address = config.parse_address(text)
    assert (address.host, address.port, address.loopback) == (host, port, loopback)


@pytest.mark.parametrize(
    "text",
    ["", "host", ":1", "host:", "host:0", "host:65536", "host:x", "mqtts://host:1", "host/cell:1"],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="HOST:PORT"):
        config.parse_address(text)


def test_the_data_folder_follows_xdg() -> None:
    asked = config.Config()
    home = Path("~/.local/state/tona/n").expanduser()
    assert config.data_folder(asked, "n", {}) == home
    assert config.data_folder(asked, "n", {"XDG_STATE_HOME": "relative"}) == home
    assert config.data_folder(asked, "n", {"XDG_STATE_HOME": "/s"}) == Path("/s/tona/n")
    assert config.data_folder(config.Config(data="/d"), "n", {}) == Path("/d")


def test_the_version_is_the_distributions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == VERSION


def test_outputs_too_large_together_become_files_largest_first() -> None:
    def value(size: int) -> Bytes:
        return Bytes(Dtype.UINT8, (size,), bytes(size))

    assert spill({"a": value(INLINE_MAX_BYTES), "b": value(INLINE_MAX_BYTES)}) == frozenset()
    assert spill({"a": value(INLINE_MAX_BYTES + 1), "b": value(5)}) == {"a"}
    three = {"a": value(50_000), "b": value(60_000), "c": value(40_000)}
    assert spill(three) == {"b"}
    assert sum(len(one.data) for name, one in three.items() if name != "b") < INLINE_TOTAL_BYTES
    assert spill({"f": File(Dtype.UINT8, (9,), "sha256:" + "0" * 64, 9)}) == frozenset()


@pytest.mark.parametrize(
    ("share", "bundle", "told"),
    [
        ("8610", "", "write HOST:PORT"),
        ("127.0.0.1:x", "", "write HOST:PORT"),
        ("127.0.0.1:99999", "", "write HOST:PORT"),
        ("192.168.1.2:8610", "", "without a bundle only loopback"),
        ("192.168.1.2:8610", "n.bundle", ""),
        ("127.0.0.1:0", "", ""),
        ("", "", ""),
    ],
)
def test_neighbours_are_served_off_loopback_only_with_a_bundle(
    share: str, bundle: str, told: str
) -> None:
    asked = config.Config(share=share, bundle=bundle)
    if told:
        with pytest.raises(UserError, match=told):
            config.share_address(asked)
    else:
        assert config.share_address(asked) == share


def test_whether_the_address_is_kept_is_one_of_two_words() -> None:
    assert not config.keeps_address(config.read([], {}))
    assert config.keeps_address(config.read(["--address=keep"], {}))
    with pytest.raises(UserError, match="write keep, or change"):
        config.keeps_address(config.read(["--address=both"], {}))
