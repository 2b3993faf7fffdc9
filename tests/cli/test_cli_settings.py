"""Where a value comes from: file, environment, flag; the later wins."""

from pathlib import Path
from typing import Any

import pytest

from protocols.errors import UserError
from tona.cli.settings import DEFAULT_API, Value, client_file, read


def test_the_later_layer_wins(tmp_path: Path) -> None:
    file = tmp_path / "client.toml"
    file.write_text('api = "http://file:1"\nbundle = "file.bundle"\n')
    none: dict[str, str | None] = {"api": None, "bundle": None}
    assert read(None, {"XDG_CONFIG_HOME": str(tmp_path)}, none).api == Value(DEFAULT_API, "default")
    assert read(file, {}, none).api == Value("http://file:1", str(file))
    said = {"TONA_API": "http://environment:1"}
    assert read(file, said, none).api == Value("http://environment:1", "TONA_API")
    flagged = read(file, said, {"api": "http://flag:1", "bundle": None})
    assert flagged.api == Value("http://flag:1", "--api")
    assert flagged.bundle == Value("file.bundle", str(file))


def test_the_default_file_is_found(tmp_path: Path) -> None:
    environment = {"XDG_CONFIG_HOME": str(tmp_path)}
    file = client_file(environment)
    file.parent.mkdir()
    file.write_text('api = "http://home:1"\n')
    assert read(None, environment, {}).api == Value("http://home:1", str(file))


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ('appi = "x"', "there is no setting 'appi'; did you mean 'api'?"),
        ("api = 1", "api and bundle are texts"),
        ("api =", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_named(tmp_path: Path, content: str, sentence: str) -> None:
    file = tmp_path / "client.toml"
    file.write_text(content)
    with pytest.raises(UserError, match=sentence.replace("?", r"\?")) as caught:
        read(file, {}, {})
    assert str(file) in str(caught.value)


def test_config_show_tells_every_value_and_its_source(
    tona: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "any.toml"
    file.write_text('cell = "hall"\n')
    monkeypatch.setenv("TONA_BROKER", "127.0.0.1:2000")
    shown = tona("--api", "http://x:1", "config", "show", "agent", "--config", file, "--json")
    assert shown.json()["agent"]["cell"] == {"value": "hall", "source": str(file)}
    assert shown.json()["agent"]["broker"] == {"value": "127.0.0.1:2000", "source": "TONA_BROKER"}
    client = tona("--api", "http://x:1", "config", "show", "client", "--json").json()["client"]
    assert client["api"] == {"value": "http://x:1", "source": "--api"}
    monkeypatch.delenv("TONA_BROKER")
    monkeypatch.setenv("TONA_API_PORT", "7000")
    whole = tona("config", "show", "--json").json()
    assert whole["controller"]["api_port"] == {"value": 7000, "source": "TONA_API_PORT"}
    assert whole["controller"]["broker"] == {"value": "embedded", "source": "default"}
    assert "TONA_API_PORT" in tona("config", "show").out


def test_a_bundle_knows_the_api_unless_something_else_is_said() -> None:
    none: dict[str, str | None] = {"api": None, "bundle": "me.bundle"}
    said = read(None, {"XDG_CONFIG_HOME": "/nowhere"}, none)
    assert said.reached("https://cell:8600") == Value("https://cell:8600", "me.bundle")
    assert said.reached("") == Value(DEFAULT_API, "default")
    said = read(None, {"XDG_CONFIG_HOME": "/nowhere", "TONA_API": "https://x:1"}, none)
    assert said.reached("https://cell:8600") == Value("https://x:1", "TONA_API")


def test_config_show_has_the_api_of_the_bundle(tona: Any, tmp_path: Path) -> None:
    file = tmp_path / "me.bundle"
    where = ("--authority", tmp_path / "authority")
    assert tona("ca", "init", *where).code == 0
    issue = ("ca", "issue", "me", "--kind", "client", "--broker", "h", "--out", file, *where)
    assert tona(*issue, "--api-url", "https://h:8600").code == 0
    client = tona("--bundle", file, "config", "show", "client", "--json").json()["client"]
    assert client["api"] == {"value": "https://h:8600", "source": str(file)}
