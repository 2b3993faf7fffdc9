"""`tona config show`: every setting of client, controller and agent, and where it comes from."""

import os
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec
import typer
from typer import Argument, Option

from controller import config as controller_config
from device_agent import config as agent_config
from protocols.transport import tls
from tona.cli.context import AsJson, flags, or_dash, settings, show, show_json, table
from tona.cli.settings import Value, client_file, layered, load

PREFIX: Final = "TONA_"
AGENT_FILE: Final = "TONA_CONFIG"

app = typer.Typer(help="Configuration.", no_args_is_help=True)


class Part(StrEnum):
    """Whose configuration."""

    CLIENT = "client"
    CONTROLLER = "controller"
    AGENT = "agent"


@app.command("show")
def show_config(
    part: Annotated[Part | None, Argument(help="Only of this part.")] = None,
    config: Annotated[
        Path | None, Option(help="The file that controller or agent would be given.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show every value and where it comes from: default, file, bundle, environment or flag."""
    readers = {Part.CLIENT: _client, Part.CONTROLLER: _controller, Part.AGENT: _agent}
    found = {one: readers[one](config) for one in readers if part in (None, one)}
    if as_json:
        show_json(msgspec.json.encode(found))
        return
    made = table("PART", "SETTING", "VALUE", "FROM")
    for name, values in found.items():
        for setting, value in values.items():
            made.add_row(name, setting, or_dash(value.value), value.source)
    show(made)
    file = flags.config or client_file(os.environ)
    show(f"client file: {file}" + ("" if file.is_file() else " (absent)"))


def _client(_file: Path | None) -> Mapping[str, Value]:
    found = settings()
    file = found.bundle.value
    known = tls.load(Path(file).expanduser()).api_url if file else ""
    return {"api": found.reached(known), "bundle": found.bundle}


def _controller(file: Path | None) -> Mapping[str, Value]:
    asked = controller_config.read(file, os.environ, {})
    default = controller_config.Config()
    names = default.__struct_fields__
    return _layers({name: getattr(default, name) for name in names}, file, asked)


def _agent(file: Path | None) -> Mapping[str, Value]:
    given = os.environ.get(AGENT_FILE, "")
    path = file or (Path(given) if given else None)
    asked = agent_config.read(["--config", str(path)] if path else [], os.environ)
    default = agent_config.Config(
        node=agent_config.host_name(),
        cell=agent_config.DEFAULT_CELL,
        broker=agent_config.DEFAULT_BROKER,
    )
    names = default.__struct_fields__
    return _layers({name: getattr(default, name) for name in names}, path, asked)


def _layers(defaults: dict[str, Any], path: Path | None, asked: Any) -> Mapping[str, Value]:
    """Return each value as `asked` has it, checked and typed, with the layer that set it."""
    variables = {name: PREFIX + name.upper() for name in defaults}
    found = layered(
        defaults,
        load(path, tuple(defaults)) if path else {},
        str(path),
        {name: os.environ.get(variable) or None for name, variable in variables.items()},
        {},
        variables,
    )
    return {
        name: Value(getattr(asked, name) or one.value, one.source) for name, one in found.items()
    }
