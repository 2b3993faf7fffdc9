"""What the daemon is told: file, environment `TONA_*`, flags, in that order of rising precedence.

A wrong value raises UserError with one sentence: what, where, what to do.
"""

import argparse
import os
import re
import socket
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final, NoReturn

from msgspec import Struct, structs

from device_agent.core.values import LOAD
from device_agent.prepared import SensorFile
from protocols.errors import UserError
from protocols.topics import valid_name

DEFAULT_CELL: Final = "cell"
DEFAULT_BROKER: Final = "127.0.0.1:1883"
DEFAULT_RADIOS: Final = 2
"""Over one IP interface two brokers can be reached."""
SENSORS_MAX: Final = 63
"""Beside the node's own load; an inventory names no more."""
_NAME_MAX: Final = 64
_V4: Final = 4
_LOOPBACK_NET: Final = 127
_OPTIONS: Final = {
    "node": "name of this node; default: the host's name",
    "cell": f"name of the cell; default: the bundle's, or {DEFAULT_CELL}",
    "broker": f"HOST:PORT of the cell's broker; default: the bundle's, or {DEFAULT_BROKER}",
    "bundle": "file made by `tona ca issue`: identity, key and authority of this node",
    "data": "folder for journal, artifacts and large values",
    "files": "folder whose files may feed services; default: none",
    "profile": "board profile, by name or file; default: recognised",
    "share": "HOST:PORT at which neighbours of the cell may fetch artifacts; default: nowhere",
    "radios": "to how many cells it can be attached at once, 1 or 2; default: 2",
    "switch": "program that brings the link to another cell up, run with CELL HOST PORT",
    "address": "keep: one for all cells, whose brokers are all reached over each; default: change",
    "radio": "who tells the signals of cells: file:PATH, modem or wifi[:PATH]; default: paths",
    "attachment": "file in which to say where the node is attached, for clients beside it",
    "runtime": "path of the container runtime, crun or runc; default: the one that works here",
}


class Config(Struct, frozen=True):
    """What was asked for; empty means not said."""

    node: str = ""
    cell: str = ""
    broker: str = ""
    bundle: str = ""
    data: str = ""
    files: str = ""
    profile: str = ""
    runtime: str = ""
    share: str = ""
    radios: str | int = ""
    switch: str = ""
    address: str = ""
    radio: str = ""
    attachment: str = ""
    sensors: dict[str, SensorFile] = {}
    """What may feed services, beside the node's own load; in the file alone."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one sentence instead of its whole usage."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `tona agent --help`")


class Address(Struct, frozen=True):
    """Where a broker listens."""

    host: str
    port: int

    @property
    def loopback(self) -> bool:
        """Whether it is this machine's own loopback, which alone needs no TLS."""
        return self.host == "localhost" or _is_loopback(self.host)


def read(arguments: Sequence[str], environment: Mapping[str, str]) -> Config:
    """Return the configuration. Raises UserError; `--help` raises SystemExit."""
    parser = _Parser(
        prog="tona agent",
        description="Device agent: reports this machine to its cell and runs the cell's tasks.",
        epilog="Each option may also stand in the environment (TONA_NODE, ...) or in the file.",
        allow_abbrev=False,
    )
    for name, text in _OPTIONS.items():
        parser.add_argument(f"--{name}", default="", help=text)
    parser.add_argument("--config", default="", help="TOML file with these options")
    found, strange = parser.parse_known_args(arguments)
    if strange:
        raise UserError(_unknown(strange[0]))
    flags = vars(found)
    path = flags.pop("config") or environment.get("TONA_CONFIG", "")
    config = _from_file(Path(path)) if path else Config()
    said = {name: environment.get(f"TONA_{name.upper()}", "") for name in _OPTIONS}
    for source in (said, flags):
        config = structs.replace(config, **{name: value for name, value in source.items() if value})
    if not config.node:
        config = structs.replace(config, node="" if config.bundle else host_name())
    return config


def _unknown(argument: str) -> str:
    if not argument.startswith("-"):
        return f"{argument!r} belongs to no option; see `tona agent --help`"
    name = argument.partition("=")[0]
    hint = _near(name, [f"--{one}" for one in (*_OPTIONS, "config", "help")])
    return f"there is no option {name!r}{hint or '; see `tona agent --help`'}"


def _near(name: str, known: Iterable[str]) -> str:
    from protocols.submission import near  # noqa: PLC0415 - for a mistake alone

    return near(name, known)


def _from_file(path: Path) -> Config:
    import tomllib  # noqa: PLC0415 - only where there is such a file

    import msgspec  # noqa: PLC0415 - the same

    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not a TOML file: {error}") from None
    unknown = sorted(document.keys() - _OPTIONS.keys() - {"sensors"})
    if unknown:
        hint = _near(unknown[0], (*_OPTIONS, "sensors")) or f"; use {', '.join(_OPTIONS)}"
        raise UserError(f"{path}: there is no option {unknown[0]!r}{hint}")
    try:
        config = msgspec.convert(document, Config)
    except msgspec.ValidationError as error:
        raise UserError(f"{path}: {error}; options are strings, sensors tables") from None
    if len(config.sensors) > SENSORS_MAX:
        raise UserError(f"{path}: {len(config.sensors)} sensors, a node has at most {SENSORS_MAX}")
    for name, sensor in config.sensors.items():
        _check_sensor(path, name, sensor)
    return config


def _check_sensor(path: Path, name: str, sensor: SensorFile) -> None:
    """Raise UserError for a sensor that could never be read."""
    where = f"{path}: [sensors.{name}]"
    if not valid_name(name) or name == LOAD:
        raise UserError(f"{where}: call it by letters, digits, '.', '_' and '-', and not {LOAD}")
    if not os.path.isabs(sensor.path):  # noqa: PTH117 - a question to a string
        raise UserError(f"{where}: path {sensor.path!r} has to begin with /")
    if sensor.shape.count(-1) > 1 or any(axis < -1 or axis == 0 for axis in sensor.shape):
        raise UserError(f"{where}: shape {list(sensor.shape)} may have one -1 and lengths above 0")


def files_folder(config: Config) -> str:
    """Return the folder whose files may feed services; empty: none. Raises UserError."""
    if not config.files:
        return ""
    folder = Path(config.files).expanduser().absolute()
    if not folder.is_dir():
        raise UserError(f"--files {config.files}: there is no such folder")
    return str(folder)


def share_address(config: Config) -> str:
    """Return where neighbours may fetch artifacts; empty: nowhere. Raises UserError."""
    if not config.share:
        return ""
    host, colon, port = config.share.rpartition(":")
    if not colon or not host or not port.isdecimal() or int(port) >= 1 << 16:
        raise UserError(
            f"--share {config.share!r}: write HOST:PORT, such as 192.168.1.20:8610; port 0 is any"
        )
    if not config.bundle and not Address(host.strip("[]"), 0).loopback:
        raise UserError(f"--share {config.share}: without a bundle only loopback can be shared at")
    return config.share


def radios(config: Config) -> int:
    """Return to how many cells the node can be attached at once. Raises UserError."""
    asked = str(config.radios)
    if asked not in {"", "1", "2"}:
        raise UserError(f"--radios {asked}: write 1, or 2 where two cells can be reached at once")
    return int(asked or DEFAULT_RADIOS)


def switch_program(config: Config) -> str:
    """Return the program that brings a link up; empty: none is needed. Raises UserError."""
    if not config.switch:
        return ""
    from shutil import which  # noqa: PLC0415 - few nodes have one

    found = which(config.switch)
    if found is None:
        raise UserError(f"--switch {config.switch}: there is no such program that can be run")
    return str(Path(found).absolute())


def keeps_address(config: Config) -> bool:
    """Return whether the node keeps its address from cell to cell. Raises UserError."""
    if config.address not in {"", "keep", "change"}:
        raise UserError(f"--address {config.address}: write keep, or change")
    return config.address == "keep"


def radio(config: Config) -> str:
    """Return who tells the signals of cells; empty: nobody. Raises UserError."""
    kind, _, path = config.radio.partition(":")
    if config.radio in {"", "modem", "wifi"}:
        return config.radio
    if kind not in {"file", "wifi"} or not path:
        raise UserError(
            f"--radio {config.radio}: write file:PATH, modem for ModemManager, "
            "or wifi[:PATH] for Wi-Fi"
        )
    return f"{kind}:{Path(path).expanduser().absolute()}"


def host_name() -> str:
    """Return the host's name as one that may stand in a topic."""
    plain = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())
    return plain.lstrip("._-")[:_NAME_MAX] or "node"


def check_name(what: str, name: str) -> str:
    """Return a valid name. Raises UserError."""
    if not valid_name(name):
        raise UserError(
            f"{what} {name!r} is no valid name: use letters, digits, '.', '_' and '-', at most "
            f"{_NAME_MAX}, beginning with a letter or digit"
        )
    return name


def parse_address(text: str) -> Address:
    """Take HOST:PORT apart; an IPv6 address stands in brackets. Raises UserError.

    `mqtt://` before it is how controllers write it.
    """
    host, colon, port = text.removeprefix("mqtt://").rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    known = bool(colon and host) and "/" not in host and port.isdecimal()
    if not known or not 0 < int(port) < 1 << 16:
        raise UserError(f"broker {text!r} is no address: write HOST:PORT, such as 127.0.0.1:1883")
    return Address(host, int(port))


def data_folder(config: Config, node: str, environment: Mapping[str, str]) -> Path:
    """Return where this node keeps its state."""
    if config.data:
        return Path(config.data).expanduser().absolute()
    state = environment.get("XDG_STATE_HOME", "")
    base = Path(state) if os.path.isabs(state) else Path("~/.local/state").expanduser()  # noqa: PTH117 - a string is asked
    return base / "tona" / node


def _is_loopback(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            packed = socket.inet_pton(family, host)
        except OSError:
            continue
        return packed[0] == _LOOPBACK_NET if len(packed) == _V4 else int.from_bytes(packed) == 1
    return False
