"""Where the command line finds its controller: file, environment, flags; the later wins."""

import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from msgspec import Struct

from controller.config import DEFAULT_API_PORT
from protocols.errors import UserError
from protocols.submission import near

DEFAULT_API: Final = f"http://127.0.0.1:{DEFAULT_API_PORT}"
OPTIONS: Final = ("api", "bundle")
KEYS_VARIABLE: Final = "TONA_KEYS"
"""Folder of this user's own keys, with which artifacts are signed."""
VARIABLES: Final = {"api": "TONA_API", "bundle": "TONA_BUNDLE"}
DEFAULT: Final = "default"


class Value(Struct, frozen=True):
    """A setting and where it comes from."""

    value: Any
    source: str


class Settings(Struct, frozen=True):
    """How the controller is reached."""

    api: Value
    """Base URL of the HTTP API."""
    bundle: Value
    """File with this client's identity; empty: none."""

    def reached(self, api_url: str) -> Value:
        """Return the API's URL, where the bundle names `api_url`; what was said goes before it."""
        known = api_url and self.api.source == DEFAULT
        return Value(api_url, self.bundle.value) if known else self.api


def is_url(text: str) -> bool:
    """Whether host and port of an API can be; one without a port has that of its scheme."""
    try:
        parts = urlsplit(text)
        return parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def client_file(environment: Mapping[str, str]) -> Path:
    """Return the client's configuration file, whether it exists or not."""
    base = environment.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "tona" / "client.toml"


def read(
    file: Path | None, environment: Mapping[str, str], flags: Mapping[str, str | None]
) -> Settings:
    """Return the settings; `file` None means the default one, if it exists. Raises UserError."""
    path = file or client_file(environment)
    values = layered(
        {"api": DEFAULT_API, "bundle": ""},
        load(path, OPTIONS) if file is not None or path.is_file() else {},
        str(path),
        {name: environment.get(variable) or None for name, variable in VARIABLES.items()},
        flags,
        VARIABLES,
    )
    settings = Settings(values["api"], values["bundle"])
    for one in (settings.api, settings.bundle):
        if not isinstance(one.value, str):
            raise UserError(f"{one.source}: api and bundle are texts")
    return settings


def layered(
    defaults: Mapping[str, Any],
    from_file: Mapping[str, Any],
    path: str,
    from_environment: Mapping[str, Any],
    flags: Mapping[str, Any],
    variables: Mapping[str, str],
) -> dict[str, Value]:
    """Return every value with its source; None in environment and flags means not given. Pure."""
    merged: dict[str, Value] = {}
    for name, default in defaults.items():
        value = Value(default, DEFAULT)
        if name in from_file:
            value = Value(from_file[name], path)
        if from_environment.get(name) is not None:
            value = Value(from_environment[name], variables[name])
        if flags.get(name) is not None:
            value = Value(flags[name], f"--{name.replace('_', '-')}")
        merged[name] = value
    return merged


def load(path: Path, known: tuple[str, ...]) -> dict[str, Any]:
    """Return a flat TOML file. Raises UserError."""
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None
    for name in document:
        if name not in known:
            hint = near(name, known) or f"; there are {', '.join(known)}"
            raise UserError(f"{path}: there is no setting {name!r}{hint}")
    return document


def client_settings(file: Path | None, api: str | None, bundle: str | None) -> Settings:
    """Return the settings of this process. Raises UserError."""
    return read(file, os.environ, {"api": api, "bundle": bundle})
